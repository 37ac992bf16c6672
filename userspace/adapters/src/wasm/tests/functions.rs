//! Foreign functions: what a module gets of each.

use super::*;

/// What a call of a function answers: 200 and its result, or 500 and the status.
fn called(name: &str, arguments: &[u8]) -> (u16, Vec<u8>) {
    called_with(name, arguments, arguments.len())
}

/// The same with arguments of that length, which end in zeros.
fn called_with(name: &str, arguments: &[u8], length: usize) -> (u16, Vec<u8>) {
    let module = format!(
        r#"(module
          (import "env" "proxy_call_foreign_function" (func $foreign (param i32 i32 i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_send_local_response"
            (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 32)
          (data (i32.const 64) "{name}")
          (data (i32.const 128) "{data}")
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "malloc") (param i32) (result i32) (i32.const 8192))
          (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $status i32)
            ;; Overwritten also where there is no result: nothing could be answered with these.
            (i64.store (i32.const 8) (i64.const -1))
            (local.set $status (call $foreign (i32.const 64) (i32.const {name_length}) (i32.const 128)
              (i32.const {length}) (i32.const 8) (i32.const 12)))
            (if (local.get $status) (then (i64.store (i32.const 8) (i64.const 0))))
            (drop (call $respond
              (select (i32.add (i32.const 500) (local.get $status)) (i32.const 200) (local.get $status))
              (i32.const 0) (i32.const 0) (i32.load (i32.const 8)) (i32.load (i32.const 12))
              (i32.const 0) (i32.const 0) (i32.const -1)))
            (i32.const 1)))"#,
        data = escaped(arguments),
        name_length = name.len(),
    );
    // Without optimisation curves are slow.
    let generous = PluginConfig {
        limits: Limits {
            deadline: Duration::from_secs(10),
            ..Limits::default()
        },
        ..config("")
    };
    let plugin = plugin(&Module::compile(&text(&module)).expect("a filter"), generous);
    let Step::Respond(response) = stream(&plugin).on_request_headers(&mut get("/", &[]), true) else {
        panic!("{name}: no answer");
    };
    (response.status().as_u16(), response.body().to_vec())
}

/// Bytes as modules written as text have them.
fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:02x}")).collect()
}

#[test]
fn functions_answer_as_those_of_envoy() {
    let done = (200, Vec::new());
    assert_eq!(called("clear_route_cache", b""), done);
    assert_eq!(called("declare_property", b"\x0a\x04tier"), done);
    assert_eq!(called("set_envoy_filter_state", b"\x0a\x04tier\x12\x04gold"), done);
    // Bad arguments: no path, no message, or too many.
    assert_eq!(called("set_envoy_filter_state", b"\x12\x04gold").0, 502);
    assert_eq!(called("set_envoy_filter_state", b"\xff").0, 502);
    for strict in ["verify_signature", "sign", "declare_property"] {
        assert_eq!(called(strict, b"\xff").0, 502, "{strict}");
    }
    assert_eq!(called_with("clear_route_cache", b"", 1 << 20), done);
    assert_eq!(called_with("clear_route_cache", b"", (1 << 20) + 1).0, 502);
    // Not found.
    for unknown in ["expr_create", "expr_evaluate", "expr_delete", ""] {
        assert_eq!(called(unknown, b"").0, 501, "{unknown}");
    }
}

/// By zlib: this text thrice, with commas and spaces between.
const THRICE: &str = "789c2bce4ccf4b4d5148aa5428c94855c84d2dced05128264a0c005f621482";

#[test]
fn texts_are_compressed_as_by_zlib() {
    let thrice = [TEXT; 3].join(", ").into_bytes();
    assert_eq!(called("uncompress", &bytes(THRICE)), (200, thrice.clone()));
    let (status, short) = called("compress", &thrice);
    assert!(status == 200 && short.len() < thrice.len(), "{status}: {}", short.len());
    assert_eq!(called("uncompress", &short), (200, thrice.clone()));
    let (_, nothing) = called("compress", b"");
    assert_eq!(called("uncompress", &nothing), (200, Vec::new()));
    // Nothing of that, another text's sum, a part of it, a text for `gzip`: serialization failed.
    let mut other = short.clone();
    *other.last_mut().expect("a sum") ^= 1;
    for wrong in [
        &b""[..],
        b"plain",
        &other[..],
        &short[..short.len() - 5],
        b"\x1f\x8b\x08\0",
    ] {
        assert_eq!(called("uncompress", wrong).0, 503, "{wrong:02x?}");
    }
    // 4 MiB of zeros, and one more: nobody asked for as much.
    let bomb = miniz_oxide::deflate::compress_to_vec_zlib(&vec![0; (4 << 20) + 1], 9);
    assert_eq!(called("uncompress", &bomb).0, 503);
}

/// Does SET with each request, and answers with the property PATH, or with 404.
fn read_back(set: &str, path: &str) -> (u16, String) {
    let module = format!(
        r#"(module
          (import "env" "proxy_set_property" (func $set (param i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_call_foreign_function" (func $foreign (param i32 i32 i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_get_property" (func $get (param i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_send_local_response"
            (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (data (i32.const 64) "set_envoy_filter_state" "\0a\04tier\12\04gold" "silver")
          (data (i32.const 128) "{path}")
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "malloc") (param i32) (result i32) (i32.const 1024))
          (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if {set} (then unreachable))
            (if (call $get (i32.const 128) (i32.const {length}) (i32.const 8) (i32.const 12))
              (then (drop (call $respond (i32.const 404) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
                (i32.const 0) (i32.const 0) (i32.const -1))))
              (else (drop (call $respond (i32.const 200) (i32.const 0) (i32.const 0) (i32.load (i32.const 8))
                (i32.load (i32.const 12)) (i32.const 0) (i32.const 0) (i32.const -1)))))
            (i32.const 1)))"#,
        path = escaped(path.as_bytes()),
        length = path.len(),
    );
    let plugin = plugin(&Module::compile(&text(&module)).expect("a filter"), config(""));
    answered(stream(&plugin).on_request_headers(&mut get("/", &[]), true))
}

#[test]
fn what_a_filter_set_reads_back() {
    let found = |value: &str| (200, value.to_owned());
    let gold = "(call $set (i32.const 88) (i32.const 4) (i32.const 94) (i32.const 4))";
    assert_eq!(read_back(gold, "tier"), found("gold"));
    let silver = "(call $set (i32.const 88) (i32.const 4) (i32.const 98) (i32.const 6))";
    assert_eq!(read_back(&format!("(i32.or {gold} {silver})"), "tier"), found("silver"));
    let state =
        "(call $foreign (i32.const 64) (i32.const 22) (i32.const 86) (i32.const 12) (i32.const 8) (i32.const 12))";
    assert_eq!(read_back(state, "tier"), found("gold"));
    assert_eq!(read_back(state, "filter_state\0tier"), found("gold"));
    // Who wants no result says so by a zero.
    let silent = state.replace("(i32.const 8) (i32.const 12)", "(i32.const 0) (i32.const 0)");
    assert_eq!(read_back(&silent, "tier"), found("gold"));
    for path in ["tier", "filter_state\0tier", "filter_state"] {
        assert_eq!(read_back("(i32.const 0)", path).0, 404, "{path:?}");
    }
    assert_eq!(read_back(gold, "tie").0, 404);
}

/// What all of these signed, by OpenSSL.
const TEXT: &str = "signed by the mesh";

/// A key of 2048 bits.
const RSA: &str = "\
    30820122300d06092a864886f70d01010105000382010f003082010a0282010100dd7d75285d3e63163cbd946ff4bfd9c9635b76c4fba644\
    cd0c07f09fc7412393521f4012f19674b953aaef4d361d8522937b12a0b1ebb83eeb543f711abeadd871e9d078181d973171d1f298dbfc5a\
    414014150560f72c3ffd1e41d4c69be85b4a625dafe16d4ed5c167ea0fad809b1912938e41e933af8fc71d84aac5c21478edea5d9d63f7dc\
    5109558a9b3813902a19f8a80356e3fae1a00891008cbe47fcf2d10e26d828ef90c2a1100f31c6d52ffa3ad9f831f92e7beb2cf1b9349c64\
    cb781233a2911a91cb462822a7c1b2d06fe9067bcf32387a4daac12e79373fd0580284f816d8746d12188efddbeaf136b569b74faccaaca7\
    c44c22f7c16d4bb8c90203010001";
const RSA_SHA256: &str = "\
    c75c515ffa78d6c43e6ce57d165dc672c9197533c41e51492f5c258278f4207f60667b5067fbfb4b43fc500601c8a2e2d8ff5cbdcb7d98a9\
    68bb6bf94c2d80e8a79dbfecc8ca542a938ae50ab34038e87ac7e9f2aa0ba37cb83589929b9e5c539ae08f68ccab0f32d699ffbafd612145\
    78ea79302d57161f90ddcc61694ce0b536ecdbed233b68b39358f09a3776f0d7f80dd1282c7fba7c90dc3c3481ec04b1098d63b65f552e69\
    2d305123739db61c5b4de2a928cd17abb8981953fa744f8f1fbdcd3db16ad422898e8f0557fba8401af8434b94e52d24d5b0efdcf35043a9\
    ce8b3d464ab81d1c9f1d0a8e90ba315c11a787baf5829d2634f640b14555e807";
const RSA_SHA512: &str = "\
    2c012d927aec1374c4e88fe7abd388657f440d9b5c2d48f88321b0debf789c6eeb7a4e196c45dc31ddf27048df9b4ca950cbc67c0d8db9ed\
    7799ea2182fa6922cedc76c5bbfd782b235577d23f7e2ab6121e05be289fa3cdb572f057d2ab52d8d383cf8fff2cd37a1999a1561edeeee9\
    8ba190d5660cfc99c70f29e2e7a5c3cc2473840f1fb8b6cadec2743218df7945381fa0f5d5b6ee20a36c295f08a0c202aac253a73257f2d5\
    6251b1ae80e96d10a060434e4fa6619b7fe6d36a7670fbdaa45566924c5a16758bc9796e7d29d04dd25b0174cbaae9914e02026d328860b8\
    e9ee566e44b413845f4679601fb5ed490394ecc82bbfa2c03cec5b7bb7aea4a6";
/// A key on P-256.
const P256: &str = "\
    3059301306072a8648ce3d020106082a8648ce3d03010703420004efaa1e9dcb7a740f15c29b29d6074f17d15a2f1cc5820da133c0ca5f26\
    711b69c695328ab6f36867e543463a67ac7a0960bbe3d5231b6a771fecb2d327d87019";
const P256_SHA256: &str = "\
    3045022100a4d128852c9129ea96fd3a510be8f59572ee5bbeee3b919660fae2f82133ba480220092bb778846f85c363ea8c4595dcbb61a7\
    9388f543f460e230d5b3d307d8bc8e";
const P256_SHA512: &str = "\
    3045022100f89a41be54a746a9198e4b5837f4efd2402bebbf1e0f90cf225c80bc0b1b2daa02206fa2d10c761f9401c33c0cfe34e72f2c85\
    4c6ef00c384e87e4dcc08dd099f8e1";
/// A key on P-384.
const P384: &str = "\
    3076301006072a8648ce3d020106052b8104002203620004f6d1376a5a57217232c2a521b9d6535935077b17ed8e267dde824be43bab1401\
    b3e271174ebe2c0452e4fd256975525078fd0ae3ff2f43946fb03eb18563c03265a1e89d24698fd887009a910e3fbff7aa4a4c2718c742a7\
    5da5b3e20c98f90a";
const P384_SHA384: &str = "\
    3065023100fa20ca3c11bec38f122fc42b052f4f4634504e2265ce5d916939da724f0189159cec84b20535d3485ec77ac5f93c3133023005\
    8e64707aecbb82d69feba33691424e7decbd67d43c8c75f43e45de12fa0f9a8d9b8d996be16ffee3549cde6b390abb";
const P384_SHA256: &str = "\
    3065023100ecbbfd4d34e63a5990930bba55d8fe800d98c5ad03e4f95da849b2013330eaf64c89295c1d5408d83b8bc697e6eab04c023051\
    05f6865ee3884705a33892d47886ad419edf443f25f461f6ea2229f7b460780d20f6dc0f74479e07a0e02994f124b3";

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("two digits");
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// One field of a message, whose length has two bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("a short field");
    let [low, high] = [(length & 0x7f) as u8 | 0x80, (length >> 7) as u8];
    [&[(number << 3) | 2, low, high][..], bytes].concat()
}

fn verified(hash: &str, key: &str, signature: &[u8], text: &str) -> (u16, Vec<u8>) {
    let arguments = [
        field(1, hash.as_bytes()),
        field(2, &bytes(key)),
        field(3, signature),
        field(4, text.as_bytes()),
    ];
    called("verify_signature", &arguments.concat())
}

#[test]
fn signatures_are_verified() {
    for (hash, key, signature) in [
        ("sha256", RSA, RSA_SHA256),
        ("SHA512", RSA, RSA_SHA512),
        ("sha256", P256, P256_SHA256),
        ("sha512", P256, P256_SHA512),
        ("sha384", P384, P384_SHA384),
        ("sha256", P384, P384_SHA256),
    ] {
        let signature = bytes(signature);
        // `result` is true, and `error` is empty.
        assert_eq!(verified(hash, key, &signature, TEXT), (200, vec![8, 1]), "{hash} {key}");
        // `result` is false, which is not said, and `error` says why.
        let none = |hash, signature: &[u8], text| {
            let (status, answer) = verified(hash, key, signature, text);
            assert_eq!((status, answer[0]), (200, 0x12), "{hash} {key}");
            String::from_utf8_lossy(&answer[2..]).into_owned()
        };
        let unsigned = "the key did not sign this text with that hash function";
        assert_eq!(none(hash, &signature, "signed by another"), unsigned);
        assert_eq!(none(hash, &signature[1..], TEXT), unsigned);
        assert_eq!(none(hash, &[], TEXT), unsigned);
        let other = if hash == "sha384" { "sha512" } else { "sha384" };
        assert_eq!(none(other, &signature, TEXT), unsigned);
        assert_eq!(
            none("sha1", &signature, TEXT),
            "hash function `sha1` is not supported, expected `sha256`, `sha384` or `sha512`"
        );
    }
    assert_eq!(
        verified("sha256", RSA, &bytes(P256_SHA256), TEXT).1[0],
        0x12,
        "another's"
    );
    for key in ["", "3000", &RSA[2..], &P256[..P256.len() - 2]] {
        assert_eq!(verified("sha256", key, &bytes(RSA_SHA256), TEXT).0, 502, "{key}");
    }
}

/// Private keys on P-256 and P-384 as PKCS #8, and their public ones, by OpenSSL.
const P256_PRIVATE: &str = "\
    308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420a69bd3058867efa7454981c77efa9f287918a0fb\
    1e7a0dff4e60b3f9ef4532bfa14403420004f906bf35e8be68a3db6468260721986e7f66a40f9086ebea34f5cd60196c4d54450a343921ac\
    9e4aad93445f80846bb9b74446e931647908c8286b9068bd2e38";
const P256_PUBLIC: &str = "\
    3059301306072a8648ce3d020106082a8648ce3d03010703420004f906bf35e8be68a3db6468260721986e7f66a40f9086ebea34f5cd6019\
    6c4d54450a343921ac9e4aad93445f80846bb9b74446e931647908c8286b9068bd2e38";
const P384_PRIVATE: &str = "\
    3081b6020100301006072a8648ce3d020106052b8104002204819e30819b0201010430ed199e2395b508a6fb921d2e02cc8cd4b2cca2c2bd\
    ae7ad7cad9f8e163ea103f74ccf9105aeef970dfc286b5d6269d77a164036200047e766f7a8a3072b9593f0c2b9dec9238988bed0fd727eb\
    921b9265e52b09e1f1baaec6278cf307cd5f38eb5fe04806f8dfca5b3394ddbe25129c84e4150895ab9d89f46db82a0733e8e9d181fd3815\
    5e434abb20d3eb537be364e9f281e4336f";
const P384_PUBLIC: &str = "\
    3076301006072a8648ce3d020106052b81040022036200047e766f7a8a3072b9593f0c2b9dec9238988bed0fd727eb921b9265e52b09e1f1\
    baaec6278cf307cd5f38eb5fe04806f8dfca5b3394ddbe25129c84e4150895ab9d89f46db82a0733e8e9d181fd38155e434abb20d3eb537b\
    e364e9f281e4336f";

/// The first pair of these.
const P256_PRIVATE_PEM: &str = "\
-----BEGIN PRIVATE KEY-----\n\
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgppvTBYhn76dFSYHH\n\
fvqfKHkYoPseeg3/TmCz+e9FMr+hRANCAAT5Br816L5oo9tkaCYHIZhuf2akD5CG\n\
6+o09c1gGWxNVEUKNDkhrJ5KrZNEX4CEa7m3REbpMWR5CMgoa5BovS44\n\
-----END PRIVATE KEY-----\n";
const P256_PUBLIC_PEM: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE+Qa/Nei+aKPbZGgmByGYbn9mpA+Q\n\
huvqNPXNYBlsTVRFCjQ5IayeSq2TRF+AhGu5t0RG6TFkeQjIKGuQaL0uOA==\n\
-----END PUBLIC KEY-----\n";

/// The answer of `sign`: its signature, or why there is none.
fn signed(hash: &str, key: &[u8]) -> Result<Vec<u8>, (u16, String)> {
    let arguments = [field(1, hash.as_bytes()), key.to_vec(), field(3, TEXT.as_bytes())];
    let (status, answer) = called("sign", &arguments.concat());
    match (status, &*answer) {
        // `result` is true, and so many bytes of `signature` follow.
        (200, [8, 1, 0x12, length, signature @ ..]) if signature.len() == usize::from(*length) => {
            Ok(signature.to_vec())
        }
        (200, [0x1a, _, why @ ..]) => Err((200, String::from_utf8_lossy(why).into_owned())),
        _ => Err((status, String::new())),
    }
}

#[test]
fn texts_are_signed_with_keys_on_curves() {
    for (private, public, hash) in [
        (P256_PRIVATE, P256_PUBLIC, "sha256"),
        (P256_PRIVATE, P256_PUBLIC, "SHA512"),
        (P384_PRIVATE, P384_PUBLIC, "sha256"),
        (P384_PRIVATE, P384_PUBLIC, "sha384"),
    ] {
        let key = field(2, &bytes(private));
        let signature = signed(hash, &key).expect("a signature");
        assert_eq!(
            verified(hash, public, &signature, TEXT),
            (200, vec![8, 1]),
            "{hash} {public}"
        );
        let (status, why) = signed("md5", &key).expect_err("no hash function");
        assert_eq!(status, 200);
        assert!(why.starts_with("hash function `md5` is not supported"), "{why}");
    }
    // No key, a public one, one of RSA, one that is cut.
    for key in ["", P256_PUBLIC, RSA, &P256_PRIVATE[..100]] {
        assert_eq!(
            signed("sha256", &field(2, &bytes(key))),
            Err((502, String::new())),
            "{key}"
        );
    }
}

#[test]
fn keys_may_be_written_as_pem_but_not_twice() {
    let private = field(4, P256_PRIVATE_PEM.as_bytes());
    let signature = signed("sha256", &private).expect("a signature");
    assert_eq!(
        Ok(&signature),
        signed("sha256", &field(2, &bytes(P256_PRIVATE))).as_ref()
    );
    let both = [private, field(2, &bytes(P256_PRIVATE))].concat();
    assert_eq!(signed("sha256", &both), Err((502, String::new())));
    assert_eq!(signed("sha256", &field(4, b"-----BEGIN")), Err((502, String::new())));

    let asked = |keys: &[Vec<u8>]| {
        let rest = [field(1, b"sha256"), field(3, &signature), field(4, TEXT.as_bytes())];
        called("verify_signature", &[rest.concat(), keys.concat()].concat())
    };
    let public = field(5, P256_PUBLIC_PEM.as_bytes());
    assert_eq!(asked(std::slice::from_ref(&public)), (200, vec![8, 1]));
    assert_eq!(asked(&[public, field(2, &bytes(P256_PUBLIC))]).0, 502);
    assert_eq!(asked(&[]).0, 502);
}
