use super::*;
use crate::{
    attribute::tests::{with_bag, with_lines},
    pipeline::CheckResult,
};

fn config(json: &str) -> Config {
    serde_json::from_str(json).unwrap()
}

fn result(denier: &Denier, bag: &Bag<'_>) -> CheckResult {
    match denier.check(bag) {
        Checking::Ready(result) => result,
        Checking::Pending(_) => panic!("a denier asks nobody"),
    }
}

fn denies(json: &str) -> bool {
    let denier = Denier::new("d", config(json), None).unwrap();
    with_bag(&[("X-Debug", "yes")], |bag| result(&denier, &bag)) != CheckResult::Allow
}

/// The request is `GET /a/b?c=d` to `shop/web` with `x-debug: yes`.
#[test]
fn everything_that_is_set_must_hold() {
    for (matches, expect) in [
        (r#"{}"#, true),
        (r#"{"namespace": "shop"}"#, true),
        (r#"{"namespace": "default"}"#, false),
        (r#"{"service": "web"}"#, true),
        (r#"{"service": "db"}"#, false),
        (r#"{"method": "GET"}"#, true),
        (r#"{"method": "POST"}"#, false),
        (r#"{"path_prefix": "/a"}"#, true),
        (r#"{"path_prefix": "/a/b?c"}"#, false),
        (r#"{"path_prefix": "/b"}"#, false),
        (r#"{"header": {"name": "X-Debug"}}"#, true),
        (r#"{"header": {"name": "x-debug", "value": "yes"}}"#, true),
        (r#"{"header": {"name": "x-debug", "value": "ye"}}"#, false),
        (r#"{"header": {"name": "x-other"}}"#, false),
        (r#"{"service": "web", "method": "GET", "path_prefix": "/a"}"#, true),
        (r#"{"service": "web", "method": "GET", "path_prefix": "/b"}"#, false),
    ] {
        assert_eq!(denies(&format!(r#"{{"match": {matches}}}"#)), expect, "{matches}");
    }
}

/// One byte that is no text, or a line before it, hides no header.
#[test]
fn every_line_of_a_header_is_looked_at() {
    for (matches, values, expect) in [
        (r#"{"name": "x-debug"}"#, &[&b"\xff"[..]][..], true),
        (r#"{"name": "x-debug", "value": "yes"}"#, &[b"no", b"yes"], true),
        (r#"{"name": "x-debug", "value": "yes"}"#, &[b"\xff", b"yes"], true),
        (r#"{"name": "x-debug", "value": "yes"}"#, &[b"yes\xff", b"no"], false),
        (r#"{"name": "x-debug"}"#, &[], false),
    ] {
        let json = format!(r#"{{"match": {{"header": {matches}}}}}"#);
        let denier = Denier::new("d", config(&json), None).unwrap();
        let denied = with_lines("x-debug", values, |bag| result(&denier, &bag)) != CheckResult::Allow;
        assert_eq!(denied, expect, "{matches} {values:?}");
    }
}

#[test]
fn a_match_on_the_request_does_not_refuse_a_connection() {
    for matches in [
        r#"{"method": "GET"}"#,
        r#"{"path_prefix": "/"}"#,
        r#"{"header": {"name": "x-debug"}}"#,
    ] {
        let denier = Denier::new("d", config(&format!(r#"{{"match": {matches}}}"#)), None).unwrap();
        let found = with_bag(&[("x-debug", "1")], |bag| {
            result(&denier, &Bag { request: None, ..bag })
        });
        assert_eq!(found, CheckResult::Allow, "{matches}");
    }
}

#[test]
fn a_deny_carries_status_message_and_rule() {
    let rule = ObjectRef {
        kind: "Adapter".into(),
        namespace: Some("shop".into()),
        name: "closed".into(),
    };
    let denier = Denier::new(
        "closed",
        config(r#"{"status": 503, "message": "sold out"}"#),
        Some(rule.clone()),
    )
    .unwrap();
    assert_eq!(
        with_bag(&[], |bag| result(&denier, &bag)),
        CheckResult::Deny(Box::new(Deny::new(503, "sold out").by(Some(rule))))
    );
}

#[test]
fn defaults_are_403_and_a_text() {
    assert_eq!(config("{}"), Config::default());
    assert_eq!(
        (config("{}").status, config("{}").message.as_str()),
        (403, DEFAULT_MESSAGE)
    );
}

#[test]
fn unknown_fields_and_odd_statuses_are_refused() {
    for json in [
        r#"{"stauts": 403}"#,
        r#"{"match": {"svc": "web"}}"#,
        r#"{"match": {"header": {}}}"#,
    ] {
        assert!(serde_json::from_str::<Config>(json).is_err(), "{json}");
    }
    let error = Denier::new("d", config(r#"{"status": 200}"#), None)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "adapter `denier`, field `status`: found `200`, expected an HTTP error status, 400 to 599"
    );
}

/// Each example of the page is a configuration that loads.
#[test]
fn the_examples_of_the_page_load() {
    let page = include_str!("README.md");
    let examples: Vec<&str> = page
        .split("```json\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!examples.is_empty());
    for example in examples {
        Denier::new("d", config(example), None).unwrap();
    }
}
