use super::*;
use crate::{
    attribute::{DestinationView, RequestView, tests::with_bag},
    pipeline::Deny,
};

fn verdicts(json: &str) -> Verdicts {
    Verdicts::new(serde_json::from_str(json).unwrap(), CacheMetrics::default())
}

fn key(verdicts: &Verdicts, generation: u64, headers: &[(&str, &str)]) -> Key {
    with_bag(headers, |bag| verdicts.key(&Bag { generation, ..bag }))
}

fn deny() -> CheckResult {
    CheckResult::Deny(Box::new(Deny::new(403, "no")))
}

const BY_USER: &str = r#"{"key": ["request.headers[x-user]"], "ttl": "1s"}"#;

#[test]
fn equal_requests_share_a_verdict_until_it_expires() {
    let verdicts = verdicts(BY_USER);
    let now = Instant::now();
    let ann = || key(&verdicts, 1, &[("x-user", "ann"), ("x-other", "1")]);
    assert_eq!(verdicts.get(&ann(), now), None);
    verdicts.put(ann(), &deny(), now);
    let same = key(&verdicts, 1, &[("x-user", "ann"), ("x-other", "2")]);
    assert_eq!(verdicts.get(&same, now + Duration::from_millis(999)), Some(deny()));
    assert_eq!(verdicts.get(&same, now + Duration::from_secs(1)), None);
    assert_eq!(verdicts.get(&key(&verdicts, 1, &[("x-user", "bob")]), now), None);
    assert_eq!(verdicts.looked_up(), (1, 3));
}

#[test]
fn services_ports_and_hosts_share_no_verdict() {
    let verdicts = verdicts(r#"{"key": ["source.principal"]}"#);
    let now = Instant::now();
    with_bag(&[], |bag| {
        verdicts.put(verdicts.key(&bag), &CheckResult::Allow, now);
        assert_eq!(verdicts.get(&verdicts.key(&bag), now), Some(CheckResult::Allow));
        let at = |destination| Bag { destination, ..bag };
        let shop = bag.destination;
        let host = |host| Bag {
            request: bag.request.map(|request| RequestView { host, ..request }),
            ..bag
        };
        for other in [
            at(DestinationView {
                namespace: "bank",
                ..shop
            }),
            at(DestinationView {
                service: Some("db"),
                ..shop
            }),
            at(DestinationView { service: None, ..shop }),
            at(DestinationView { port: 81, ..shop }),
            host("admin"),
            Bag { request: None, ..bag },
        ] {
            assert_eq!(verdicts.get(&verdicts.key(&other), now), None);
        }
    });
}

#[test]
fn a_change_of_configuration_kills_every_verdict_at_once() {
    let verdicts = verdicts(BY_USER);
    let now = Instant::now();
    let at = |generation| key(&verdicts, generation, &[("x-user", "ann")]);
    verdicts.put(at(1), &deny(), now);
    assert_eq!(verdicts.get(&at(2), now), None);
    // What was asked before the change, and answered after it, does not come back.
    verdicts.put(at(1), &deny(), now);
    assert_eq!(verdicts.get(&at(2), now), None);
    assert_eq!(verdicts.get(&at(1), now), None);
    verdicts.put(at(2), &CheckResult::Allow, now);
    assert_eq!(verdicts.get(&at(2), now), Some(CheckResult::Allow));
}

#[test]
fn no_two_lists_of_values_have_one_key() {
    let verdicts = verdicts(r#"{"key": ["request.headers[a]", "request.headers[b]"]}"#);
    let lists: [&[(&str, &str)]; 10] = [
        &[],
        &[("a", "")],
        &[("b", "")],
        &[("a", ""), ("b", "")],
        &[("a", "x1:y")],
        &[("a", "x"), ("b", "y")],
        &[("a", "-")],
        &[("a", "x"), ("a", "y")],
        &[("a", "x"), ("a", "z")],
        &[("a", "x"), ("a", "y"), ("b", "z")],
    ];
    let keys: std::collections::HashSet<_> = lists.iter().map(|list| key(&verdicts, 1, list).text).collect();
    assert_eq!(keys.len(), lists.len());
}

#[test]
fn it_never_keeps_more_than_it_may() {
    let verdicts = verdicts(r#"{"key": ["request.headers[x-user]"], "max_entries": 64}"#);
    let now = Instant::now();
    for user in 0..1000 {
        let user = user.to_string();
        let headers = [("x-user", user.as_str())];
        verdicts.put(key(&verdicts, 1, &headers), &deny(), now);
        assert!(verdicts.len() <= 64);
        assert_eq!(verdicts.get(&key(&verdicts, 1, &headers), now), Some(deny()));
    }
}

#[test]
fn parameters_are_checked() {
    for (json, expect) in [
        (
            r#"{"key": []}"#,
            "adapter `ext_authz`, field `cache.key`: found `[]`, expected the attributes",
        ),
        (
            r#"{"key": ["source.ip"], "ttl": "0s"}"#,
            "field `cache.ttl`: found `0s`, expected more than 0s",
        ),
        (
            r#"{"key": ["source.ip"], "max_entries": 0}"#,
            "field `cache.max_entries`: found `0`, expected 1 to",
        ),
    ] {
        let config: CacheConfig = serde_json::from_str(json).unwrap();
        let error = config.validate("ext_authz").unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    }
}
