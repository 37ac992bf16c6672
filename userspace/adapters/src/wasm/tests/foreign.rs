//! Filters made by others, unmodified, for Higress's ABI 0.2.100.

use bytes::BytesMut;

use super::*;

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
