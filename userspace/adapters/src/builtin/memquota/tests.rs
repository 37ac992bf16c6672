use std::{sync::Arc, thread, time::Duration};

use super::*;
use crate::{
    attribute::tests::{with_bag, with_path},
    pipeline::CheckResult,
};

fn quota(json: &str) -> MemQuota {
    MemQuota::new("q", serde_json::from_str(json).unwrap(), None).unwrap()
}

/// `None`: granted; else the refusal.
fn ask(quota: &MemQuota, headers: &[(&str, &str)]) -> Option<Deny> {
    with_bag(headers, |bag| match quota.check(&bag) {
        Checking::Ready(CheckResult::Allow) => None,
        Checking::Ready(CheckResult::Deny(deny)) => Some(*deny),
        _ => panic!("a quota in memory asks nobody and changes nothing"),
    })
}

fn allows(quota: &MemQuota, bag: &Bag<'_>) -> bool {
    matches!(quota.check(bag), Checking::Ready(CheckResult::Allow))
}

/// How many of 20 requests are granted.
fn granted(quota: &MemQuota, headers: &[(&str, &str)]) -> usize {
    (0..20).filter(|_| ask(quota, headers).is_none()).count()
}

#[test]
fn what_is_beyond_the_maximum_is_refused_with_429_and_retry_after() {
    let rule = ObjectRef {
        kind: "Adapter".into(),
        namespace: None,
        name: "r".into(),
    };
    let json = r#"{"quotas": [{"name": "all", "max_amount": 3, "valid_duration": "90s"}]}"#;
    let quota = MemQuota::new("q", serde_json::from_str(json).unwrap(), Some(rule.clone())).unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&quota, &[]), None);
    }
    let deny = ask(&quota, &[]).unwrap();
    let retry: u64 = deny.headers[0].1.to_str().unwrap().parse().unwrap();
    assert_eq!(deny.headers[0].0, header::RETRY_AFTER);
    // The window, and the tick that the grants were in.
    assert!((90..=95).contains(&retry), "{retry}");
    assert_eq!(
        (deny.status, deny.message.as_str(), deny.rule),
        (429, "quota `all` is exhausted", Some(rule))
    );
}

#[test]
fn what_the_retry_after_says_holds() {
    let quota = quota(r#"{"quotas": [{"name": "all", "max_amount": 1, "valid_duration": "500ms"}]}"#);
    assert_eq!(ask(&quota, &[]), None);
    let asked = Instant::now();
    let deny = ask(&quota, &[]).unwrap();
    assert_eq!(deny.headers[0].1, "1");
    while ask(&quota, &[]).is_some() {
        assert!(
            asked.elapsed() < Duration::from_secs(1),
            "it is granted within retry-after"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn dimensions_are_counted_apart_and_absent_is_not_empty() {
    let quota = quota(
        r#"{"quotas": [{"name": "u", "max_amount": 2, "valid_duration": "1h",
            "dimensions": {"user": "request.headers[x-user]", "port": "destination.port"}}]}"#,
    );
    assert_eq!(granted(&quota, &[("x-user", "ann")]), 2);
    assert_eq!(granted(&quota, &[("x-user", "ann")]), 0);
    assert_eq!(granted(&quota, &[("x-user", "bob")]), 2);
    assert_eq!(granted(&quota, &[("x-user", "")]), 2);
    assert_eq!(granted(&quota, &[]), 2);
    assert_eq!(quota.cells("u"), Some(4));
    assert_eq!(quota.cells("v"), None);
}

/// Nobody gets a count, or a limit, of somebody else's by a further value or by how values are written.
#[test]
fn all_values_of_a_dimension_count() {
    let quota = quota(
        r#"{"quotas": [{"name": "u", "max_amount": 2, "valid_duration": "1h",
            "dimensions": {"a": "request.query_params[a]", "b": "request.query_params[b]"},
            "overrides": [{"dimensions": {"a": "vip"}, "max_amount": 4}]}]}"#,
    );
    let granted = |path| with_path(path, |bag| (0..20).filter(|_| allows(&quota, &bag)).count());
    for (path, expect) in [
        ("/?a=1&b=2", 2),
        ("/?%61=%31&b=2", 0),
        ("/?a=1&a=2", 2),
        ("/?a=1&a=3", 2),
        ("/?a=1-1:2", 2),
        ("/?a=1%00&b=2", 2),
        ("/?a=vip&a=1", 2),
        ("/?a=1&a=vip", 2),
        ("/?a=v%69p", 4),
        ("/?a=vip&a=vip", 4),
        ("/?a=", 2),
        ("/", 2),
    ] {
        assert_eq!(granted(path), expect, "{path}");
    }
}

#[test]
fn the_first_override_that_applies_counts() {
    let quota = quota(
        r#"{"quotas": [{"name": "u", "max_amount": 2, "valid_duration": "1h",
            "dimensions": {"user": "request.headers[x-user]", "port": "destination.port"},
            "overrides": [
              {"dimensions": {"user": "ann", "port": "81"}, "max_amount": 9},
              {"dimensions": {"user": "ann", "port": "80"}, "max_amount": 4},
              {"dimensions": {"user": "ann"}, "max_amount": 5},
              {"dimensions": {"user": "bob"}, "max_amount": 0}]}]}"#,
    );
    assert_eq!(granted(&quota, &[("x-user", "ann")]), 4);
    assert_eq!(granted(&quota, &[("x-user", "eve")]), 2);
    let deny = ask(&quota, &[("x-user", "bob")]).unwrap();
    // It never comes back, so there is nothing to say.
    assert_eq!((deny.status, deny.headers.len()), (429, 0));
}

#[test]
fn every_quota_is_charged_until_one_refuses() {
    let quota = quota(
        r#"{"quotas": [{"name": "a", "max_amount": 5, "valid_duration": "1h"},
                       {"name": "b", "max_amount": 3, "valid_duration": "1h"}]}"#,
    );
    let refusals: Vec<_> = (0..7).map(|_| ask(&quota, &[]).map(|deny| deny.message)).collect();
    let refused = |by: &str| Some(format!("quota `{by}` is exhausted"));
    assert_eq!(
        refusals,
        [None, None, None, refused("b"), refused("b"), refused("a"), refused("a")]
    );
}

#[test]
fn made_up_values_take_no_more_cells_and_get_nobody_more() {
    let quota = quota(
        r#"{"quotas": [{"name": "u", "max_amount": 1, "valid_duration": "1h", "max_cells": 64,
            "dimensions": {"user": "request.headers[x-user]"}}]}"#,
    );
    let granted = (0..5_000)
        .filter(|user| ask(&quota, &[("x-user", &user.to_string())]).is_none())
        .count();
    assert_eq!(quota.cells("u"), Some(64));
    // Each cell, and the shared one of each of the 32 shards.
    assert_eq!(granted, 64 + 32);
}

#[test]
fn idle_cells_make_room() {
    let quota = quota(
        r#"{"quotas": [{"name": "u", "max_amount": 1, "valid_duration": "1h", "max_cells": 1,
            "dimensions": {"user": "request.headers[x-user]"}}]}"#,
    );
    let cells = &quota.quotas[0].cells;
    let take = |key, now| cells.take(key, now, || Limit::new(1, Duration::from_millis(20)));
    assert_eq!(take("a", 1_000_000), Ok(()));
    // No room yet: the shared cell.
    assert_eq!(take("b", 2_000_000), Ok(()));
    assert!(take("c", 3_000_000).is_err());
    // Long after, `a` is idle and makes room for `c`, and only for it.
    assert_eq!(take("c", 200_000_000), Ok(()));
    assert!(take("c", 200_000_001).is_err());
    assert_eq!(cells.len(), 1);
}

#[test]
fn long_values_are_counted_apart_and_take_no_memory() {
    let quota = quota(
        r#"{"quotas": [{"name": "u", "max_amount": 1, "valid_duration": "1h", "max_cells": 4096,
            "dimensions": {"user": "request.headers[x-user]"}}]}"#,
    );
    for user in 0..32 {
        let long = format!("{}{user}", "v".repeat(60 << 10));
        assert_eq!(ask(&quota, &[("x-user", &long)]), None);
        assert!(ask(&quota, &[("x-user", &long)]).is_some());
    }
    let cells = &quota.quotas[0].cells;
    assert_eq!((cells.len(), cells.key_bytes()), (32, 32 * 64));
}

#[test]
fn idle_cells_go_though_there_is_room() {
    let quota = quota(
        r#"{"quotas": [{"name": "u", "max_amount": 1, "valid_duration": "1h",
            "dimensions": {"user": "request.headers[x-user]"}}]}"#,
    );
    let cells = &quota.quotas[0].cells;
    let take = |key: u32, now| cells.take(&key.to_string(), now, || Limit::new(1, Duration::from_millis(20)));
    for key in 0..2_000 {
        take(key, 1_000_000_000).expect("its own");
    }
    for key in 2_000..3_000 {
        take(key, 3_000_000_000).expect("its own");
    }
    assert_eq!(cells.len(), 1_000);
}

/// Eight workers, one count.
#[test]
fn workers_share_the_counts() {
    let quota = Arc::new(quota(
        r#"{"quotas": [{"name": "u", "max_amount": 1000, "valid_duration": "1h",
            "dimensions": {"user": "request.headers[x-user]"}}]}"#,
    ));
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let quota = quota.clone();
            thread::spawn(move || (0..50).map(|_| granted(&quota, &[("x-user", "ann")])).sum::<usize>())
        })
        .collect();
    let granted: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
    assert_eq!(granted, 1000);
}

#[test]
fn bad_parameters_are_refused_with_the_field() {
    let quota = |rest: &str| {
        format!(
            r#"{{"quotas": [{{"name": "u", "max_amount": 1, "valid_duration": "1s", "dimensions": {{"user": "source.ip"}}, {rest}}}]}}"#
        )
    };
    for (json, expect) in [
        (
            r#"{"quotas": []}"#.to_owned(),
            "field `quotas`: found `[]`, expected at least one quota",
        ),
        (
            quota(r#""max_cells": 0"#),
            "field `max_cells`: found `0`, expected 1 or more in quota `u`",
        ),
        (
            quota(r#""overrides": [{"dimensions": {"usr": "a"}, "max_amount": 1}]"#),
            "field `overrides.dimensions`: found `usr`, expected a dimension of quota `u` (user)",
        ),
        (
            quota(r#""overrides": [{"dimensions": {}, "max_amount": 1, "valid_duration": "1ms"}]"#),
            "field `valid_duration`: found `1ms`, expected 10ms or more in quota `u` (it is counted in 20 ticks)",
        ),
    ] {
        let error = MemQuota::new("q", serde_json::from_str(&json).unwrap(), None).unwrap_err();
        assert_eq!(error.to_string(), format!("adapter `memquota`, {expect}"));
    }
    for json in [
        r#"{"quotas": [{"name": "u", "max_amount": -1, "valid_duration": "1s"}]}"#,
        r#"{"quotas": [{"name": "u", "max_amount": 1, "valid_duration": "soon"}]}"#,
        r#"{"quotas": [{"name": "u", "max_amount": 1, "valid_duration": "1s", "dimension": {}}]}"#,
        r#"{"quota": []}"#,
    ] {
        assert!(serde_json::from_str::<Config>(json).is_err(), "{json}");
    }
}

/// Each example of the page is a configuration that loads.
#[test]
fn the_examples_of_the_page_load() {
    let examples = crate::builtin::page_examples(include_str!("README.md"));
    assert_eq!(examples.len(), 2);
    for example in examples {
        quota(example);
    }
}
