use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use serde_json::{Value, json};

use super::*;
use crate::{
    attribute::tests::{with_bag, with_lines},
    provider::tests::{Server, until},
};

/// Some day, in seconds since 1970. The clock of all tests that need one.
const NOW: u64 = 1_700_000_000;

/// The PKCS#8 head of an Ed25519 key (RFC 8410); the seed follows.
const ED25519: &[u8] = &[
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The PKCS#8 head of a P-256 key without its public half (RFC 5915); the scalar follows.
const P256: &[u8] = &[
    0x30, 0x41, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x27, 0x30, 0x25, 0x02, 0x01, 0x01, 0x04, 0x20,
];

/// An issuer with one key.
struct Issuer {
    key: EncodingKey,
    algorithm: Algorithm,
    id: Option<&'static str>,
}

impl Issuer {
    fn ed25519(id: &'static str, seed: u8) -> Self {
        Self {
            key: EncodingKey::from_ed_der(&[ED25519, &[seed; 32]].concat()),
            algorithm: Algorithm::EdDSA,
            id: Some(id),
        }
    }

    fn es256(id: &'static str) -> Self {
        Self {
            key: EncodingKey::from_ec_der(&[P256, &[9; 32]].concat()),
            algorithm: Algorithm::ES256,
            id: Some(id),
        }
    }

    fn hs256(secret: &[u8]) -> Self {
        Self {
            key: EncodingKey::from_secret(secret),
            algorithm: Algorithm::HS256,
            id: None,
        }
    }

    fn jwk(&self) -> Value {
        let mut jwk = match self.algorithm {
            // The crate makes `oct` keys only of secrets that it is given as JWK.
            Algorithm::HS256 => json!({"kty": "oct", "k": "c2VjcmV0"}),
            _ => serde_json::to_value(Jwk::from_encoding_key(&self.key, self.algorithm).unwrap()).unwrap(),
        };
        if let Some(id) = self.id {
            jwk["kid"] = id.into();
        }
        jwk
    }

    fn token(&self, claims: Value) -> String {
        self.token_with(claims, |_| {})
    }

    fn token_with(&self, claims: Value, change: impl FnOnce(&mut Header)) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = self.id.map(str::to_owned);
        change(&mut header);
        encode(&header, &claims, &self.key).unwrap()
    }
}

fn jwks(issuers: &[&Issuer]) -> Value {
    json!({"keys": issuers.iter().map(|issuer| issuer.jwk()).collect::<Vec<_>>()})
}

fn jwt(config: Value) -> Jwt {
    Jwt::new("j", serde_json::from_value(config).unwrap(), None).unwrap()
}

fn answer(jwt: &Jwt, headers: &[(&str, &str)], path: &str, now: u64) -> CheckResult {
    with_bag(headers, |bag| {
        let request = bag.request.map(|request| RequestView { path, ..request });
        let bag = Bag { request, ..bag };
        match jwt.check_at(&bag, Duration::from_secs(now)) {
            Checking::Ready(result) => result,
            Checking::Pending(_) => panic!("keys are there or not"),
        }
    })
}

/// Text of the refusal of a token; `None`: allowed.
fn refused(jwt: &Jwt, token: &str) -> Option<String> {
    refused_at(jwt, token, NOW)
}

fn refused_at(jwt: &Jwt, token: &str, now: u64) -> Option<String> {
    match answer(jwt, &[("authorization", &format!("Bearer {token}"))], "/", now) {
        CheckResult::Deny(deny) | CheckResult::Unjudged(Some(deny)) => Some(deny.message),
        _ => None,
    }
}

#[test]
fn claims_decide() {
    let issuer = Issuer::ed25519("a", 1);
    let jwt = jwt(json!({"jwks": jwks(&[&issuer]), "issuers": ["me", "you"], "audiences": ["shop", "bar"]}));
    let good = json!({"iss": "me", "aud": "shop", "exp": NOW + 1});
    let mut cases = vec![(good.clone(), None)];
    for (claim, value, expect) in [
        ("iss", json!("you"), None),
        ("iss", json!("eve"), Some(BadToken::Issuer)),
        ("iss", json!(["me"]), Some(BadToken::Issuer)),
        ("iss", json!(null), Some(BadToken::Issuer)),
        ("aud", json!(["x", "bar"]), None),
        ("aud", json!(["x"]), Some(BadToken::Audience)),
        ("aud", json!("shopping"), Some(BadToken::Audience)),
        ("aud", json!(null), Some(BadToken::Audience)),
        ("exp", json!(NOW - 59), None),
        ("exp", json!(NOW - 60), Some(BadToken::Expired)),
        ("exp", json!(NOW as f64 - 60.5), Some(BadToken::Expired)),
        ("exp", json!("never"), Some(BadToken::Malformed)),
        ("nbf", json!(NOW + 60), None),
        ("nbf", json!(NOW + 61), Some(BadToken::NotYet)),
    ] {
        let mut claims = good.clone();
        claims[claim] = value;
        cases.push((claims, expect));
    }
    let mut eternal = good;
    eternal.as_object_mut().unwrap().remove("exp");
    cases.push((eternal, Some(BadToken::NoExpiration)));
    for (claims, expect) in cases {
        assert_eq!(
            refused(&jwt, &issuer.token(claims.clone())),
            expect.map(|bad| bad.to_string()),
            "{claims}"
        );
    }
}

#[test]
fn a_refusal_is_401_with_a_challenge() {
    let issuer = Issuer::ed25519("a", 1);
    let rule = ObjectRef {
        kind: "Adapter".into(),
        namespace: None,
        name: "r".into(),
    };
    let config = serde_json::from_value(json!({"jwks": jwks(&[&issuer]), "realm": "mesh"})).unwrap();
    let jwt = Jwt::new("j", config, Some(rule.clone())).unwrap();
    for (headers, expect) in [
        (&[][..], "Bearer realm=\"mesh\""),
        (&[("authorization", "Basic YTpi")], "Bearer realm=\"mesh\""),
        (
            &[("authorization", "bearer x.y.z")],
            "Bearer realm=\"mesh\", error=\"invalid_token\", error_description=\"the token is no JSON Web Token\"",
        ),
    ] {
        let CheckResult::Deny(deny) = answer(&jwt, headers, "/", NOW) else {
            panic!("{headers:?} is refused");
        };
        assert_eq!((deny.status, &deny.rule), (401, &Some(rule.clone())));
        assert_eq!(deny.headers, [(header::WWW_AUTHENTICATE, expect.parse().unwrap())]);
    }
}

/// The examples of RFC 7515, A.2 (RS256) and A.3 (ES256): tokens and keys that another implementation made.
#[test]
fn the_tokens_of_the_rfc_verify() {
    let payload = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let rsa = json!({"kty": "RSA", "e": "AQAB", "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddx\
        HmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-\
        bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7a\
        GhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"});
    let rsa_token = format!(
        "eyJhbGciOiJSUzI1NiJ9.{payload}.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-\
         0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQB\
         MHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8n\
         p6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
    );
    let ec = json!({"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"});
    let ec_token = format!(
        "eyJhbGciOiJFUzI1NiJ9.{payload}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
    );
    let jwt = jwt(json!({"jwks": {"keys": [rsa, ec]}, "issuers": ["joe"]}));
    for token in [rsa_token, ec_token] {
        assert_eq!(refused_at(&jwt, &token, 1_300_819_379), None);
        assert_eq!(
            refused_at(&jwt, &token, 1_300_819_380 + 60),
            Some(BadToken::Expired.to_string())
        );
        // One bit of the signature, of the claims.
        let flipped = token.replacen("eyJpc3MiOiJqb2Ui", "eyJpc3MiOiJqb2Uj", 1);
        assert_eq!(refused_at(&jwt, &flipped, 0), Some(BadToken::Signature.to_string()));
        let (message, signature) = token.rsplit_once('.').unwrap();
        let swapped: String = signature.chars().rev().collect();
        assert_eq!(
            refused_at(&jwt, &format!("{message}.{swapped}"), 0),
            Some(BadToken::Signature.to_string())
        );
    }
}

#[test]
fn the_token_does_not_choose_how_it_is_verified() {
    let issuer = Issuer::ed25519("a", 1);
    let claims = || json!({"exp": NOW + 1000});
    let with = |set: Value| jwt(json!({"jwks": set}));
    let strict = with(jwks(&[&issuer]));
    let no_key = Some(BadToken::NoKey.to_string());
    // The public key as an HMAC secret, in each form that one might try.
    let public = issuer.jwk()["x"].as_str().unwrap().to_owned();
    for secret in [public.as_bytes(), issuer.jwk().to_string().as_bytes(), b""] {
        let forged = Issuer {
            id: Some("a"),
            ..Issuer::hs256(secret)
        };
        assert_eq!(refused(&strict, &forged.token(claims())), no_key);
    }
    // No signature at all: {"alg":"none"}, {"alg":"None"}.
    for head in ["eyJhbGciOiJub25lIn0", "eyJhbGciOiJOb25lIn0"] {
        let token = issuer.token(claims());
        let payload = token.split('.').nth(1).unwrap();
        assert_eq!(
            refused(&strict, &format!("{head}.{payload}.")),
            Some(BadToken::Malformed.to_string())
        );
    }
    // A key that the token itself brings along.
    let eve = Issuer::ed25519("a", 66);
    let own = serde_json::from_value(eve.jwk()).unwrap();
    assert_eq!(
        refused(&strict, &eve.token_with(claims(), |header| header.jwk = Some(own))),
        Some(BadToken::Signature.to_string())
    );
    // A shared secret counts only where it is asked for by name, and then is no public key.
    let shared = Issuer::hs256(b"secret");
    let both = jwks(&[&shared, &issuer]);
    assert_eq!(refused(&with(both.clone()), &shared.token(claims())), no_key);
    let named = jwt(json!({"jwks": both, "algorithms": ["HS256"]}));
    assert_eq!(refused(&named, &shared.token(claims())), None);
    assert_eq!(refused(&named, &issuer.token(claims())), no_key);
    // What the key says it is for, it is for.
    let mut other = issuer.jwk();
    other["use"] = "enc".into();
    let es256 = Issuer::es256("e");
    assert_eq!(
        refused(&with(json!({"keys": [other, es256.jwk()]})), &issuer.token(claims())),
        no_key
    );
}

#[test]
fn keys_are_found_by_their_id_or_tried() {
    let (a, b, c) = (Issuer::ed25519("a", 1), Issuer::ed25519("b", 2), Issuer::es256("c"));
    let jwt = jwt(json!({"jwks": jwks(&[&a, &b, &c])}));
    let claims = || json!({"exp": NOW + 1000});
    for issuer in [&a, &b, &c] {
        assert_eq!(refused(&jwt, &issuer.token(claims())), None);
        assert_eq!(
            refused(&jwt, &issuer.token_with(claims(), |header| header.kid = None)),
            None
        );
    }
    let wrong = |id: &str| a.token_with(claims(), |header| header.kid = Some(id.into()));
    assert_eq!(refused(&jwt, &wrong("b")), Some(BadToken::Signature.to_string()));
    assert_eq!(refused(&jwt, &wrong("z")), Some(BadToken::NoKey.to_string()));
}

#[test]
fn odd_tokens_are_refused() {
    let issuer = Issuer::ed25519("a", 1);
    let jwt = jwt(json!({"jwks": jwks(&[&issuer])}));
    for token in ["", ".", "..", "a.b", "a.b.c", "....", "é.é.é"] {
        assert_eq!(refused(&jwt, token), Some(BadToken::Malformed.to_string()), "{token}");
    }
    let critical = issuer.token_with(json!({"exp": NOW}), |header| header.crit = Some(vec!["x".into()]));
    assert_eq!(refused(&jwt, &critical), Some(BadToken::Critical.to_string()));
    let long = issuer.token(json!({"exp": NOW, "x": "x".repeat(MAX_TOKEN)}));
    assert_eq!(refused(&jwt, &long), Some(BadToken::TooLong.to_string()));
    let no_object = issuer.token(json!([1, 2]));
    assert_eq!(refused(&jwt, &no_object), Some(BadToken::Malformed.to_string()));
}

fn operations(result: CheckResult) -> Vec<HeaderOperation> {
    match result {
        CheckResult::Allow => Vec::new(),
        CheckResult::AllowWith(directives) => directives.request,
        other => panic!("allowed, not {other:?}"),
    }
}

fn set(name: &'static str, value: &'static str) -> HeaderOperation {
    HeaderOperation::Replace(HeaderName::from_static(name), HeaderValue::from_static(value))
}

fn remove(name: &'static str) -> HeaderOperation {
    HeaderOperation::Remove(HeaderName::from_static(name))
}

#[test]
fn claims_become_headers_and_clients_cannot_set_them() {
    let issuer = Issuer::ed25519("a", 1);
    let forward = |claim: &str, header: &str| json!({"claim": claim, "header": header});
    let jwt = jwt(
        json!({"jwks": jwks(&[&issuer]), "allow_missing": true, "claims_to_headers": [
        forward("sub", "X-User"), forward("realm.roles", "x-roles"), forward("https://a/b.c", "x-c"),
        forward("age", "x-age"), forward("realm", "x-realm"), forward("evil", "x-evil"), forward("none", "x-none")]}),
    );
    let token = issuer.token(
        json!({"exp": NOW + 1, "sub": "ann", "realm": {"roles": ["a", "b"]}, "https://a/b.c": true,
        "age": 7, "evil": "a\r\nb: c"}),
    );
    let bearer = format!("Bearer {token}");
    for _ in 0..2 {
        // The second time from memory.
        assert_eq!(
            operations(answer(&jwt, &[("authorization", &bearer)], "/", NOW)),
            [
                set("x-user", "ann"),
                set("x-roles", "a,b"),
                set("x-c", "true"),
                set("x-age", "7"),
                remove("x-realm"),
                remove("x-evil"),
                remove("x-none")
            ]
        );
    }
    let without = operations(answer(&jwt, &[("x-user", "root")], "/", NOW));
    assert_eq!(without.len(), 7);
    assert!(
        without
            .iter()
            .all(|operation| matches!(operation, HeaderOperation::Remove(_)))
    );
}

#[test]
fn tokens_are_looked_for_in_order_and_removed_where_found() {
    let issuer = Issuer::ed25519("a", 1);
    let token = issuer.token(json!({"exp": NOW + 1}));
    let locations = json!([{"header": {"name": "X-Token"}}, {"header": {"name": "authorization", "prefix": "Bearer "}},
        {"cookie": "session"}, {"query": "access_token"}]);
    let looking = jwt(json!({"jwks": jwks(&[&issuer]), "from": locations}));
    let bearer = format!("bEARER {token}");
    let cookie = format!("a=1; session={token}; b=2");
    for (headers, path) in [
        (vec![("x-token", token.as_str())], "/".to_owned()),
        (vec![("authorization", &bearer)], "/".to_owned()),
        (
            vec![("authorization", "Basic YTpi"), ("cookie", &cookie)],
            "/".to_owned(),
        ),
        (vec![], format!("/x?a=b&access_token={token}")),
    ] {
        assert_eq!(
            answer(&looking, &headers, &path, NOW),
            CheckResult::Allow,
            "{headers:?} {path}"
        );
    }
    // The first place that has one counts, also if it is bad.
    let both = [("x-token", "a.b.c"), ("authorization", bearer.as_str())];
    assert!(matches!(answer(&looking, &both, "/", NOW), CheckResult::Deny(_)));

    let locations = json!([{"header": {"name": "X-Token"}}, {"cookie": "session"}]);
    let removing = jwt(json!({"jwks": jwks(&[&issuer]), "from": locations, "remove_token": true}));
    let only = format!("session={token}");
    for (headers, expect) in [
        (vec![("x-token", token.as_str())], remove("x-token")),
        (vec![("cookie", cookie.as_str())], set("cookie", "a=1; b=2")),
        (vec![("cookie", only.as_str())], remove("cookie")),
        (
            vec![("cookie", "c=3"), ("cookie", cookie.as_str())],
            set("cookie", "c=3; a=1; b=2"),
        ),
    ] {
        assert_eq!(operations(answer(&removing, &headers, "/", NOW)), [expect]);
    }
}

/// The service may read another one than we do, also where requests without a token may pass.
#[test]
fn several_tokens_in_one_place_and_those_that_are_no_text_are_refused() {
    let issuer = Issuer::ed25519("a", 1);
    let token = issuer.token(json!({"exp": NOW + 1}));
    let locations = json!([{"header": {"name": "authorization", "prefix": "Bearer "}}, {"cookie": "session"},
        {"query": "access_token"}]);
    let jwt = jwt(json!({"jwks": jwks(&[&issuer]), "from": locations, "allow_missing": true}));
    let (bearer, cookie) = (format!("Bearer {token}"), format!("session={token}"));
    let (bearer, cookie) = (bearer.as_str(), cookie.as_str());
    let twice = format!("{cookie}; session=forged");
    for (headers, path) in [
        (vec![("authorization", bearer), ("authorization", "Bearer forged")], "/"),
        (
            vec![("authorization", "Basic YTpi"), ("authorization", "Bearer forged")],
            "/",
        ),
        (vec![("cookie", cookie), ("cookie", "session=forged")], "/"),
        (vec![("cookie", twice.as_str())], "/"),
        (vec![], format!("/?access_token={token}&access_token=forged").as_str()),
        (vec![], format!("/?access_token={token}&%61ccess_token=forged").as_str()),
    ] {
        let CheckResult::Deny(deny) = answer(&jwt, &headers, path, NOW) else {
            panic!("{headers:?} {path} is refused");
        };
        assert_eq!(deny.status, 401);
    }
    for (name, line) in [
        ("authorization", &b"Bearer \xff"[..]),
        ("authorization", b"\xff"),
        ("cookie", b"a=1; session=\xff"),
    ] {
        with_lines(name, &[line], |bag| {
            let checking = jwt.check_at(&bag, Duration::from_secs(NOW));
            assert!(matches!(checking, Checking::Ready(CheckResult::Deny(_))), "{line:?}");
        });
    }
    assert_eq!(
        answer(&jwt, &[("cookie", "a=1"), ("cookie", cookie)], "/", NOW),
        CheckResult::Allow
    );
    assert_eq!(answer(&jwt, &[("cookie", "a=\"1")], "/", NOW), CheckResult::Allow);
}

#[test]
fn keys_are_followed_and_a_withdrawn_key_takes_its_tokens_along() {
    let (old, new) = (Issuer::ed25519("old", 1), Issuer::ed25519("new", 2));
    let server = Server::start("nonsense");
    let jwt = jwt(json!({"jwks_uri": server.url(), "refresh_interval": "100ms"}));
    let tokens = [&old, &new].map(|issuer| issuer.token(json!({"exp": NOW + 1})));
    let unjudged = answer(&jwt, &[("authorization", &format!("Bearer {}", tokens[0]))], "/", NOW);
    let CheckResult::Unjudged(Some(deny)) = unjudged else {
        panic!("without keys there is no verdict, not {unjudged:?}");
    };
    assert_eq!(deny.status, 503);
    server.serve(200, &jwks(&[&old]).to_string());
    until("the keys are there", || refused(&jwt, &tokens[0]).is_none());
    assert_eq!(refused(&jwt, &tokens[1]), Some(BadToken::NoKey.to_string()));
    server.serve(500, "");
    server.wait_until_asked_again();
    assert_eq!(refused(&jwt, &tokens[0]), None);
    server.serve(200, &jwks(&[&new]).to_string());
    until("the new key is there", || refused(&jwt, &tokens[1]).is_none());
    // Although it was remembered.
    assert_eq!(refused(&jwt, &tokens[0]), Some(BadToken::NoKey.to_string()));
}

#[test]
fn a_remembered_token_still_expires() {
    let issuer = Issuer::ed25519("a", 1);
    let jwt = jwt(json!({"jwks": jwks(&[&issuer])}));
    let token = issuer.token(json!({"exp": NOW}));
    assert_eq!(refused_at(&jwt, &token, NOW), None);
    assert_eq!(jwt.trusted.load().as_ref().unwrap().seen.len(), 1);
    assert_eq!(refused_at(&jwt, &token, NOW + 60), Some(BadToken::Expired.to_string()));
}

#[test]
fn memory_for_tokens_is_bounded_and_bad_ones_take_none() {
    let cache = Cache::default();
    for number in 0..3 * MAX_CACHED_TOKENS {
        let verified = Arc::new(Verified::expiring_at(NOW));
        cache.put(&number.to_string(), verified, Duration::ZERO, Duration::ZERO);
    }
    assert!(cache.len() <= MAX_CACHED_TOKENS);
    let issuer = Issuer::ed25519("a", 1);
    let jwt = jwt(json!({"jwks": jwks(&[&issuer])}));
    for token in ["a.b.c".to_owned(), Issuer::ed25519("a", 2).token(json!({"exp": NOW}))] {
        assert!(refused(&jwt, &token).is_some());
    }
    assert_eq!(jwt.trusted.load().as_ref().unwrap().seen.len(), 0);
}

/// Nothing is asked of a bare connection.
#[test]
fn a_connection_needs_no_token() {
    let jwt = jwt(json!({"jwks": jwks(&[&Issuer::ed25519("a", 1)])}));
    with_bag(&[], |bag| {
        let bag = Bag { request: None, ..bag };
        assert!(matches!(jwt.check(&bag), Checking::Ready(CheckResult::Allow)));
    });
}

#[test]
fn bad_parameters_are_refused_with_the_field() {
    let set = jwks(&[&Issuer::ed25519("a", 1)]);
    let short = json!({"keys": [{"kty": "RSA", "e": "AQAB", "n": "A".repeat(170)}]});
    for (config, expect) in [
        (
            json!({}),
            "field `jwks`: found `nothing`, expected either `jwks` or `jwks_uri`",
        ),
        (
            json!({"jwks": set, "jwks_uri": "/a"}),
            "field `jwks`: found ``jwks` and `jwks_uri``, expected either `jwks` or `jwks_uri`",
        ),
        (
            json!({"jwks": short}),
            "field `jwks`: found `no usable key`, expected a JSON Web Key Set with a key for one of the `algorithms`",
        ),
        (
            json!({"jwks_uri": "/nowhere/jwks"}),
            "field `jwks_uri`: found `/nowhere/jwks`, expected a file that can be read (No such file or directory (os error 2))",
        ),
        (
            json!({"jwks": set, "clock_skew": "2h"}),
            "field `clock_skew`: found `7200s`, expected an hour at most",
        ),
        (
            json!({"jwks": set, "from": [{"header": {"name": "a b"}}]}),
            "field `from.header.name`: found `a b`, expected the name of a header",
        ),
        (
            json!({"jwks": set, "from": [{"query": "t"}], "remove_token": true}),
            "field `remove_token`: found `true`, expected false, because the token may be in query parameter `t` and a check \
             cannot change the path",
        ),
        (
            json!({"jwks": set, "realm": "a\"b"}),
            "field `realm`: found `a\"b`, expected printable ASCII without quotes and backslashes",
        ),
        (
            json!({"jwks": set, "tls": {}}),
            "field `tls`: found `jwks`, expected an `https` URL where `tls` is given",
        ),
        (
            json!({"jwks_uri": "https://a/b", "tls": {"ca_file": "/nowhere"}}),
            "field `tls`: found `/nowhere`, expected a file that can be read (No such file or directory (os error 2))",
        ),
    ] {
        let error = Jwt::new("j", serde_json::from_value(config).unwrap(), None).unwrap_err();
        assert_eq!(error.to_string(), format!("adapter `jwt`, {expect}"));
    }
    for config in [
        json!({"jwks": set, "algorithms": ["none"]}),
        json!({"jwks": set, "audience": "a"}),
        json!({"jwks_uri": "ftp://a/b"}),
        json!({"jwks": set, "from": [{"body": "x"}]}),
    ] {
        assert!(serde_json::from_value::<Config>(config.clone()).is_err(), "{config}");
    }
}

/// Each example of the page is a configuration that loads.
#[test]
fn the_examples_of_the_page_load() {
    let examples = crate::builtin::page_examples(include_str!("README.md"));
    assert_eq!(examples.len(), 2);
    for example in examples {
        jwt(serde_json::from_str(example).unwrap());
    }
}
