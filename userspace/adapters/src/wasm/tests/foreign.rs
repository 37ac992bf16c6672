//! Filters made by others, unmodified: Go and Rust, for Higress's ABI 0.2.100.

use bytes::BytesMut;

use super::*;

#[test]
fn a_transformer_in_go_changes_heads() {
    let module = filter("higress-transformer");
    assert_eq!(module.abi(), AbiVersion::V0_2_100);
    let json = r#"{"reqRules": [{"operate": "add", "headers": [{"key": "x-added", "value": "1"}]},
                                {"operate": "remove", "headers": [{"key": "x-gone"}]}],
                   "respRules": [{"operate": "add", "headers": [{"key": "x-answered", "value": "2"}]}]}"#;
    let plugin = plugin(&module, config(json));
    plugin.prepare(1).expect("it starts");
    let mut filter = stream(&plugin);
    let mut head = get("/a", &[("x-gone", "0"), ("x-stays", "0")]);
    goes_on(filter.on_request_headers(&mut head, true));
    assert_eq!(head.headers["x-added"], "1");
    assert!(!head.headers.contains_key("x-gone"));
    assert_eq!(head.headers["x-stays"], "0");
    assert_eq!(head.headers["host"], "cart");
    assert_eq!(head.uri, "/a");
    let mut answer = ok();
    goes_on(filter.on_response_headers(&mut answer, true));
    assert_eq!(answer.headers.find(b"x-answered"), Some(&b"2"[..]));
    filter.on_end(&end());
    assert_eq!(plugin.stats().traps, 0);
}

#[test]
fn a_masking_filter_in_rust_reads_bodies() {
    let json = r#"{"deny_raw": true, "system_deny": false, "deny_code": 403, "deny_words": ["forbidden"]}"#;
    let plugin = plugin(&filter("higress-data-masking"), config(json));
    plugin.prepare(1).expect("it starts");
    for (text, denied) in [("a fine text", false), ("a forbidden text", true)] {
        let mut filter = stream(&plugin);
        let step = filter.on_request_headers(&mut get("/", &[("content-type", "text/plain")]), false);
        assert!(matches!(step, Step::Continue | Step::Pause), "{step:?}");
        let step = filter.on_request_body(&mut BytesMut::from(text), true);
        assert_eq!(matches!(step, Step::Respond(_)), denied, "{text}: {step:?}");
    }
    assert_eq!(plugin.stats().traps, 0);
}

#[test]
fn an_access_list_in_go_denies_the_addresses_of_a_consumer() {
    let json = r#"{"consumers": {"alice": {"deniedCidrs": ["10.0.0.0/8"]}, "bob": {"allowedCidrs": ["10.0.0.1"]}}}"#;
    let plugin = plugin(&filter("higress-ip-acl"), config(json));
    plugin.prepare(1).expect("it starts");
    let step = |headers: &[(&str, &str)]| stream(&plugin).on_request_headers(&mut get("/", headers), true);
    // Who calls is told by an earlier filter; the address is the one of `info`.
    let (status, body) = answered(step(&[("x-mse-consumer", "alice")]));
    assert_eq!(status, 403, "{body}");
    goes_on(step(&[("x-mse-consumer", "bob")]));
    goes_on(step(&[("x-mse-consumer", "carol")]));
    goes_on(step(&[]));
    assert_eq!(plugin.stats().traps, 0);
}
