use http::{HeaderName, HeaderValue};
use serde_json::json;

use super::*;
use crate::{
    attribute::tests::with_bag,
    pipeline::{Directives, HeaderOperation},
};

fn adapter(config: serde_json::Value) -> Opa {
    let config = serde_json::from_value(config).unwrap();
    Opa::new("o", config, None, &CheckMetrics::default()).unwrap()
}

/// With the rule `data.p.r`, and time for the slowest machine.
fn policy(rego: &str) -> Opa {
    adapter(json!({"policy": [format!("package p\n{rego}")], "check_method": "data.p.r", "timeout": "1s"}))
}

fn ask(opa: &Opa, headers: &[(&str, &str)]) -> CheckResult {
    with_bag(headers, |bag| match opa.check(&bag) {
        Checking::Ready(result) => result,
        Checking::Pending(_) => panic!("nothing is asked"),
    })
}

fn refused(reason: &str) -> CheckResult {
    CheckResult::Deny(Box::new(Deny::new(403, reason)))
}

#[test]
fn a_policy_sees_every_attribute_under_its_name() {
    let opa = policy(r#"r := {"allowed": false, "reason": json.marshal(input)}"#);
    let headers = [("X-A", "1"), ("x-a", "2"), ("cookie", "a=1"), ("cookie", "b=2")];
    let told = with_bag(&headers, |mut bag| {
        bag.request.as_mut().unwrap().path = "/a/b?c=d&c=%2F+e&f";
        let Checking::Ready(CheckResult::Deny(deny)) = opa.check(&bag) else {
            panic!("it is refused");
        };
        deny.message
    });
    let expect = json!({
        "source": {"namespace": "default", "principal": "default/client"},
        "destination": {"namespace": "shop", "service": "web", "principal": "shop/web", "ip": "240.240.0.1", "port": 80},
        "request": {
            "method": "GET", "path": "/a/b?c=d&c=%2F+e&f", "url_path": "/a/b", "host": "web",
            "headers": {"x-a": "1,2", "cookie": "a=1; b=2"},
            "query_params": {"c": ["d", "/ e"], "f": [""]},
        },
        "context": {"protocol": "http"},
        "connection": {"mtls": false},
    });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&told).unwrap(), expect);
}

#[test]
fn what_the_rule_says_is_the_verdict() {
    let default = "policy `data.p.r` refuses";
    for (rego, expect) in [
        ("r := true", CheckResult::Allow),
        ("r := false", refused(default)),
        ("r if input.request.method == \"POST\"", refused(default)),
        ("r if input.request.method == \"GET\"", CheckResult::Allow),
        ("r := {\"allowed\": true}", CheckResult::Allow),
        ("r := {\"allowed\": false, \"reason\": \"not you\"}", refused("not you")),
    ] {
        let opa = policy(rego);
        assert_eq!(ask(&opa, &[]), expect, "{rego}");
        assert_eq!(opa.outage.failures.get(), 0);
    }
}

/// As in OPA: no client can make a policy fail by text that a function cannot read.
#[test]
fn what_a_function_cannot_read_is_undefined_and_another_rule_decides() {
    let opa = policy(
        r#"
        r if to_number(input.request.headers["x-level"]) > 5
        r if net.cidr_contains("10.0.0.0/8", input.request.headers["x-ip"])
        r if input.request.headers["x-user"] == "ann"
        "#,
    );
    for (headers, expect) in [
        (&[("x-level", "6")][..], CheckResult::Allow),
        (&[("x-level", "many"), ("x-user", "ann")], CheckResult::Allow),
        (
            &[("x-level", "many"), ("x-user", "bob")],
            refused("policy `data.p.r` refuses"),
        ),
        (&[("x-level", "many"), ("x-ip", "10.1.2.3")], CheckResult::Allow),
        (&[("x-ip", "10.1.2"), ("x-user", "ann")], CheckResult::Allow),
        (
            &[("x-ip", "10.1.2"), ("x-user", "bob")],
            refused("policy `data.p.r` refuses"),
        ),
    ] {
        assert_eq!(ask(&opa, headers), expect, "{headers:?}");
        assert_eq!(opa.outage.failures.get(), 0);
    }
}

/// The first request fails while everybody is valid.
#[test]
fn what_a_failed_request_replaced_is_as_before_for_the_next() {
    let opa = policy(
        r#"
        valid(user) if user == "ann"
        everybody(_) := true
        items(text) := ["a"] if text == "conflict"
        items(text) := ["b"] if text == "conflict"
        r if valid(input.request.headers["x-user"])
        r if items(input.request.headers["x-items"])[_] == "c" with valid as everybody
        "#,
    );
    let failing = [("x-user", "bob"), ("x-items", "conflict")];
    assert!(matches!(ask(&opa, &failing), CheckResult::Unjudged(_)));
    assert_eq!(ask(&opa, &[("x-user", "bob")]), refused("policy `data.p.r` refuses"));
    assert_eq!(ask(&opa, &[("x-user", "ann")]), CheckResult::Allow);
    assert_eq!(opa.outage.failures.get(), 1);
}

#[test]
fn a_decision_changes_headers_and_makes_the_answer() {
    let opa = policy(
        r#"
        r := {"allowed": true, "headers": {"x-user": "ann", "x-role": ["a", "b"]}, "request_headers_to_remove": ["x-key"],
            "response_headers_to_add": {"x-seen": "1"}} if input.request.headers["x-key"] == data.key
        else := {"allowed": false, "http_status": 302, "headers": {"location": "/login"}, "body": "log in", "reason": "no key"}
        "#,
    );
    let opa = Opa {
        compiled: {
            let engine = opa.compiled;
            let data = json!({"key": "k"});
            lock(&engine).add_data(Value::from(data)).unwrap();
            engine
        },
        ..opa
    };
    let pair = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
    let replace = |(name, value)| HeaderOperation::Replace(name, value);
    let append = |(name, value)| HeaderOperation::Append(name, value);
    let expect = Directives {
        request: vec![
            replace(pair("x-role", "a")),
            append(pair("x-role", "b")),
            replace(pair("x-user", "ann")),
            HeaderOperation::Remove(HeaderName::from_static("x-key")),
        ],
        response: vec![append(pair("x-seen", "1"))],
    };
    assert_eq!(ask(&opa, &[("x-key", "k")]), CheckResult::AllowWith(Box::new(expect)));
    let (location, login) = pair("location", "/login");
    let mut expect = Deny::new(302, "no key").with_header(location, login);
    expect.body = Some("log in".into());
    assert_eq!(ask(&opa, &[]), CheckResult::Deny(Box::new(expect)));
}

/// Also where the failure policy is open.
#[test]
fn what_is_unfit_about_a_refusal_is_left_out() {
    let default = "policy `data.p.r` refuses";
    let why = |deny: Deny| deny.with_header(HeaderName::from_static("x-why"), HeaderValue::from_static("7"));
    for (rest, expect) in [
        (r#""http_status": 200"#, Deny::new(403, default)),
        (r#""http_status": -1"#, Deny::new(403, default)),
        (r#""http_status": "404", "reason": "no""#, Deny::new(403, "no")),
        (r#""http_status": 404, "dynamic_metadata": {}"#, Deny::new(404, default)),
        (r#""reason": ["no"], "body": 1"#, Deny::new(403, default)),
        (
            r#""headers": {"Content-Length": "0", "x-a": "1\n2", "a b": "1", "x-n": 1, "x-why": "7"}"#,
            why(Deny::new(403, default)),
        ),
        (r#""headers": {"x-why": ["7", "\n"]}"#, why(Deny::new(403, default))),
        (r#""headers": "x-why", "http_status": 404"#, Deny::new(404, default)),
    ] {
        let opa = adapter(
            json!({"policy": [format!("package p\nr := {{\"allowed\": false, {rest}}}")], "check_method": "data.p.r",
            "timeout": "1s", "failure_policy": "open"}),
        );
        assert_eq!(ask(&opa, &[]), CheckResult::Deny(Box::new(expect)), "{rest}");
        assert_eq!(opa.outage.failures.get(), 0);
    }
}

#[test]
fn where_the_policy_fails_the_failure_policy_applies() {
    let endless = "r if { input.request.method == \"GET\"; count([1 | some i in numbers.range(1, 5000); some j in numbers.range(1, 5000); i + j > 0]) > 0 }";
    for rego in [
        "r := 1",
        "r := \"yes\"",
        "r := {\"allow\": true}",
        "r := {\"allowed\": \"false\"}",
        "r := {\"allowed\": true, \"dynamic_metadata\": {}}",
        "r := {\"allowed\": true, \"headers\": {\"Content-Length\": \"0\"}}",
        "r := {\"allowed\": true, \"headers\": {\"x-a\": \"1\\n2\"}}",
        "r := {\"allowed\": true, \"request_headers_to_remove\": [\"host\"]}",
        "r := input.request.method\n r := \"another\"",
        endless,
    ] {
        let unavailable = Box::new(Deny::new(500, UNAVAILABLE));
        for (failure_policy, refusal) in [("open", None), ("closed", Some(unavailable))] {
            let opa = adapter(
                json!({"policy": [format!("package p\n{rego}")], "check_method": "data.p.r",
                "timeout": "50ms", "failure_policy": failure_policy}),
            );
            assert_eq!(ask(&opa, &[]), CheckResult::Unjudged(refusal), "{rego}");
            assert_eq!(opa.outage.failures.get(), 1);
        }
    }
}

#[test]
fn modules_of_both_languages_and_of_files_are_compiled() {
    let old = adapter(
        json!({"policy": ["package p\n r { input.request.method == \"GET\" }"], "rego_version": "v0",
        "check_method": "data.p.r", "timeout": "1s"}),
    );
    assert_eq!(ask(&old, &[]), CheckResult::Allow);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lib.rego");
    std::fs::write(&file, "package lib\n is_get if input.request.method == data.method").unwrap();
    let split = adapter(
        json!({"policy": ["package p\n import data.lib\n r if lib.is_get"], "policy_files": [file],
        "data": {"method": "GET"}, "check_method": "data.p.r", "timeout": "1s"}),
    );
    assert_eq!(ask(&split, &[]), CheckResult::Allow);
}

#[test]
fn workers_do_not_see_each_others_requests() {
    let opa = policy("r := {\"allowed\": false, \"reason\": input.request.headers[\"x-user\"]}");
    std::thread::scope(|scope| {
        for user in ["ann", "bob"] {
            let opa = &opa;
            scope.spawn(move || {
                for _ in 0..100 {
                    assert_eq!(ask(opa, &[("x-user", user)]), refused(user));
                }
            });
        }
    });
    // Nor what was there before.
    assert_eq!(ask(&opa, &[]), refused("policy `data.p.r` refuses"));
}

#[test]
fn parameters_are_checked() {
    let with = |rego: &str| json!({"policy": [rego], "check_method": "data.p.r"});
    for (config, expect) in [
        (
            json!({"check_method": "data.p.r"}),
            "field `policy`: found `[]`, expected a module in Rego, here or in policy_files",
        ),
        (
            json!({"policy": ["package p"], "check_method": "p.r"}),
            "field `check_method`: found `p.r`, expected the path of a rule, like data.authz.allow",
        ),
        (
            json!({"policy": ["package p"], "check_method": "data.p.r", "timeout": "2s"}),
            "field `timeout`: found `2s`, expected 1ms to 1s",
        ),
        (
            json!({"policy_files": ["p.rego"], "check_method": "data.p.r"}),
            "field `policy_files`: found `p.rego`, expected absolute paths",
        ),
        (
            json!({"policy_files": ["/nowhere/p.rego"], "check_method": "data.p.r"}),
            "field `policy_files`: found `/nowhere/p.rego`, expected a file that can be read (No such file",
        ),
        (with("package p\n r {"), "field `policy`: found `policy[0]:2:"),
        (with("package p\n r { true }"), "field `policy`: found `policy[0]:2:"),
        (with("package p\n q := true"), "field `check_method`: found `"),
        (
            with("package p\n r if undefined_function(1)"),
            "field `check_method`: found `",
        ),
    ] {
        let shown = config.to_string();
        let config = serde_json::from_value(config).unwrap();
        let error = Opa::new("o", config, None, &CheckMetrics::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(&format!("adapter `opa`, {expect}")),
            "{shown}: {error}"
        );
        assert!(!error.contains('\n'), "{shown}: {error}");
    }
    for config in [
        json!({"policy": ["package p"]}),
        json!({"policy": [], "check_method": "a", "fail_close": true}),
    ] {
        assert!(serde_json::from_value::<Config>(config.clone()).is_err(), "{config}");
    }
}

#[test]
fn an_error_is_one_line_that_says_where_and_what() {
    for (text, expect) in [
        (
            "\n--> p.rego:2:1\n  |\n2 | r {\n  | ^\nerror: no",
            "p.rego:2:1: error: no",
        ),
        ("data must be object", "data must be object"),
        ("", ""),
    ] {
        assert_eq!(one_line(&text), expect);
    }
    let opa = policy("r := input.request.method\n r := \"another\"");
    let why = with_bag(&[], |bag| opa.judge(&bag)).unwrap_err();
    assert!(why.starts_with("policy[0]:3:") && !why.contains('\n'), "{why}");
}

/// Each example of the page is a configuration that loads.
#[test]
fn the_examples_of_the_page_load() {
    let examples = crate::builtin::page_examples(include_str!("README.md"));
    assert_eq!(examples.len(), 2);
    for example in examples {
        adapter(serde_json::from_str(example).unwrap());
    }
}
