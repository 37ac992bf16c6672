use super::*;
use crate::{
    attribute::tests::{with_bag, with_lines, with_path},
    pipeline::CheckResult,
    provider::tests::{Server, until},
};

fn list(json: &str) -> List {
    List::new("l", serde_json::from_str(json).unwrap(), None).unwrap()
}

fn status(list: &List, bag: &Bag<'_>) -> Option<u16> {
    match list.check(bag) {
        Checking::Ready(CheckResult::Allow) => None,
        Checking::Ready(CheckResult::Deny(deny) | CheckResult::Unjudged(Some(deny))) => Some(deny.status),
        _ => panic!("a list asks nobody and changes nothing"),
    }
}

/// Status of the refusal of a request whose `x-a` is the value; `None`: allowed.
fn refused(list: &List, value: &str) -> Option<u16> {
    let headers = [("x-a", value)];
    with_bag(&headers[usize::from(value.is_empty())..], |bag| status(list, &bag))
}

fn whitelists(kind: &str, entries: &str, value: &str) -> bool {
    let json = |blacklist| {
        format!(
            r#"{{"value": "request.headers[x-a]", "entry_type": "{kind}", "entries": {entries}, "blacklist": {blacklist}}}"#
        )
    };
    let allowed = refused(&list(&json(false)), value).is_none();
    // A blacklist says the opposite of every value that can be on it.
    assert_eq!(
        refused(&list(&json(true)), value).is_none(),
        !allowed,
        "{kind} {entries} {value}"
    );
    allowed
}

#[test]
fn entries_are_compared_as_their_type_says() {
    let long = "X".repeat(300);
    for (kind, entries, value, expect) in [
        ("STRINGS", r#"["a", "b"]"#, "b", true),
        ("STRINGS", r#"["a", "b"]"#, "B", false),
        ("STRINGS", r#"["ab"]"#, "a", false),
        ("CASE_INSENSITIVE_STRINGS", r#"["Ann"]"#, "aNN", true),
        ("CASE_INSENSITIVE_STRINGS", r#"["Ann"]"#, "Anna", false),
        ("CASE_INSENSITIVE_STRINGS", r#"["ÄNN"]"#, "änn", true),
        (
            "CASE_INSENSITIVE_STRINGS",
            &format!(r#"["{}"]"#, long.to_lowercase()),
            &long,
            true,
        ),
        (
            "IP_ADDRESSES",
            r#"["10.0.0.0/8", "10.1.0.0/16", "192.168.1.1"]"#,
            "10.255.255.255",
            true,
        ),
        ("IP_ADDRESSES", r#"["10.0.0.0/8", "192.168.1.1"]"#, "11.0.0.0", false),
        (
            "IP_ADDRESSES",
            r#"["10.0.0.0/8", "192.168.1.1"]"#,
            "9.255.255.255",
            false,
        ),
        ("IP_ADDRESSES", r#"["192.168.1.1"]"#, "192.168.1.1", true),
        ("IP_ADDRESSES", r#"["192.168.1.1"]"#, "::ffff:192.168.1.1", true),
        ("IP_ADDRESSES", r#"["192.168.1.1"]"#, "192.168.1.2", false),
        ("IP_ADDRESSES", r#"["2001:db8::/32"]"#, "2001:db8::1", true),
        ("IP_ADDRESSES", r#"["2001:db8::/32"]"#, "2001:db9::", false),
        ("REGEX", r#"["^a+$", "b"]"#, "aaa", true),
        ("REGEX", r#"["^a+$", "b"]"#, "xbx", true),
        ("REGEX", r#"["^a+$"]"#, "aax", false),
    ] {
        assert_eq!(whitelists(kind, entries, value), expect, "{kind} {entries} {value}");
    }
}

#[test]
fn what_is_missing_is_on_no_list_and_what_is_no_address_gets_nowhere() {
    let with = |rest: &str| {
        list(&format!(
            r#"{{"value": "request.headers[x-a]", "entry_type": "IP_ADDRESSES", "entries": ["::1"], {rest}}}"#
        ))
    };
    assert_eq!(refused(&with(r#""blacklist": true"#), ""), None);
    assert_eq!(refused(&with(r#""blacklist": false"#), ""), Some(403));
    assert_eq!(refused(&with(r#""blacklist": true"#), "1.2.3"), Some(403));
    assert_eq!(refused(&with(r#""blacklist": false"#), "1.2.3"), Some(403));
}

/// One byte that is no text, or a line before it, hides nothing from a blacklist and gets nobody onto a whitelist.
#[test]
fn every_line_of_a_header_is_looked_up() {
    for (what, kind, entry, lines, blacklisted, whitelisted) in [
        (
            "headers[x-a]",
            "REGEX",
            "sqlmap",
            &[&b"sqlmap/1\xff"[..]][..],
            true,
            false,
        ),
        ("headers[x-a]", "REGEX", "sqlmap", &[b"curl", b"sqlmap"], true, false),
        ("headers[x-a]", "STRINGS", "bad", &[b"good", b"bad"], true, false),
        ("headers[x-a]", "STRINGS", "bad", &[b"bad", b"good"], true, false),
        ("headers[x-a]", "STRINGS", "bad", &[b"bad", b"bad"], true, false),
        ("headers[x-a]", "STRINGS", "bad", &[b"bad"], true, true),
        ("headers[x-a]", "STRINGS", "bad", &[b"\xff"], false, false),
        (
            "headers[x-a]",
            "IP_ADDRESSES",
            "10.0.0.0/8",
            &[b"11.0.0.1", b"10.0.0.1"],
            true,
            false,
        ),
        (
            "headers[x-a]",
            "IP_ADDRESSES",
            "10.0.0.0/8",
            &[b"11.0.0.1", b"10.0.0.1\xff"],
            true,
            false,
        ),
        ("headers[x-a]", "STRINGS", "bad", &[], false, false),
        ("cookies[s]", "STRINGS", "bad", &[b"s=good", b"t=1; s=bad"], true, false),
        ("cookies[s]", "STRINGS", "bad", &[b"s=good; s=\"bad\""], true, false),
        ("cookies[s]", "STRINGS", "bad", &[b"t=\xff; s=bad"], true, true),
        ("cookies[s]", "STRINGS", "bad", &[b"t=bad"], false, false),
    ] {
        let header = if what.starts_with("cookies") { "cookie" } else { "x-a" };
        let found = [true, false].map(|blacklist| {
            let list = list(&format!(
                r#"{{"value": "request.{what}", "entry_type": "{kind}", "entries": ["{entry}"], "blacklist": {blacklist}}}"#
            ));
            with_lines(header, lines, |bag| status(&list, &bag).is_some() == blacklist)
        });
        assert_eq!(found, [blacklisted, whitelisted], "{what} {kind} {lines:?}");
    }
}

#[test]
fn every_query_parameter_of_a_name_is_looked_up() {
    for (path, blacklisted, whitelisted) in [
        ("/?k=bad", true, true),
        ("/?k=good&k=bad", true, false),
        ("/?k=bad&k=good", true, false),
        ("/?k=%62ad", true, true),
        ("/?%6b=bad", true, true),
        ("/?k=good&%6B=b%61d", true, false),
        ("/?k=ba%64+", false, false),
        ("/?k=bad%ff", false, false),
        ("/?k", false, false),
        ("/", false, false),
    ] {
        let found = [true, false].map(|blacklist| {
            let list = list(&format!(
                r#"{{"value": "request.query_params[k]", "entries": ["bad"], "blacklist": {blacklist}}}"#
            ));
            with_path(path, |bag| status(&list, &bag).is_some() == blacklist)
        });
        assert_eq!(found, [blacklisted, whitelisted], "{path}");
    }
}

/// The source of the request is 10.1.2.3.
#[test]
fn attributes_are_looked_up_too_and_the_deny_says_which_and_names_the_rule() {
    let rule = ObjectRef {
        kind: "Adapter".into(),
        namespace: Some("shop".into()),
        name: "closed".into(),
    };
    for (value, kind, entry) in [
        ("source.ip", "IP_ADDRESSES", "10.1.0.0/16"),
        ("source.ip", "STRINGS", "10.1.2.3"),
        ("source.principal", "STRINGS", "default/client"),
        ("destination.port", "STRINGS", "80"),
        ("request.path", "REGEX", "^/a/"),
    ] {
        let json =
            format!(r#"{{"value": "{value}", "entry_type": "{kind}", "entries": ["{entry}"], "blacklist": true}}"#);
        let list = List::new("l", serde_json::from_str(&json).unwrap(), Some(rule.clone())).unwrap();
        with_bag(&[], |mut bag| {
            bag.source.ip = Some("10.1.2.3".parse().unwrap());
            let Checking::Ready(CheckResult::Deny(deny)) = list.check(&bag) else {
                panic!("{json} refuses");
            };
            assert_eq!(
                *deny,
                Deny::new(403, format!("{value} is blacklisted")).by(Some(rule.clone()))
            );
        });
    }
}

#[test]
fn a_url_is_followed_and_the_last_good_list_stays() {
    let server = Server::start("a\n# b\n\n c \n");
    let list = list(&format!(
        r#"{{"value": "request.headers[x-a]", "entries": ["own"], "provider_url": "{}", "refresh_interval": "100ms"}}"#,
        server.url()
    ));
    until("the list is there", || list.len().is_some());
    let on = |value| refused(&list, value).is_none();
    assert_eq!(
        (on("a"), on("b"), on("# b"), on("c"), on("own")),
        (true, false, false, true, true)
    );
    server.serve(200, "b");
    until("the change arrives", || on("b"));
    assert_eq!((on("a"), on("own")), (false, true));
    server.serve(500, "a");
    server.wait_until_asked_again();
    assert_eq!((on("a"), on("b")), (false, true));
    server.serve(200, "a");
    until("the server is trusted again", || on("a"));
}

#[test]
fn a_list_that_was_never_fetched_or_is_too_old_refuses_with_503() {
    let server = Server::start("");
    server.serve(500, "");
    let json = |rest: &str| {
        format!(
            r#"{{"value": "request.headers[x-a]", "provider_url": "{}", "refresh_interval": "100ms", {rest}}}"#,
            server.url()
        )
    };
    for kind in [r#""blacklist": true"#, r#""blacklist": false"#] {
        let list = list(&json(kind));
        server.wait_until_asked_again();
        assert_eq!(refused(&list, "a"), Some(503));
    }
    let list = list(&json(r#""ttl": "200ms""#));
    server.serve(200, "a");
    until("the list is there", || refused(&list, "a").is_none());
    server.serve(500, "a");
    until("the list is too old", || refused(&list, "a") == Some(503));
    assert_eq!(list.len(), None);
}

#[test]
fn a_file_is_there_at_once_and_followed() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "10.0.0.0/8").unwrap();
    let list = list(&format!(
        r#"{{"value": "request.headers[x-a]", "entry_type": "IP_ADDRESSES", "provider_url": "{}", "refresh_interval": "100ms"}}"#,
        file.path().display()
    ));
    assert_eq!(refused(&list, "10.0.0.1"), None);
    std::fs::write(file.path(), "11.0.0.0/8").unwrap();
    until("the change arrives", || refused(&list, "11.0.0.1").is_none());
    assert_eq!(refused(&list, "10.0.0.1"), Some(403));
}

#[test]
fn a_list_with_one_bad_entry_changes_nothing() {
    let server = Server::start("10.0.0.0/8");
    let list = list(&format!(
        r#"{{"value": "request.headers[x-a]", "entry_type": "IP_ADDRESSES", "provider_url": "{}", "refresh_interval": "100ms"}}"#,
        server.url()
    ));
    until("the list is there", || list.len().is_some());
    server.serve(200, "11.0.0.0/8\nnonsense");
    server.wait_until_asked_again();
    assert_eq!(refused(&list, "10.0.0.1"), None);
    assert_eq!(refused(&list, "11.0.0.1"), Some(403));
}

#[test]
fn bad_parameters_are_refused_with_the_field() {
    for (json, expect) in [
        (
            r#"{"value": "source.ip"}"#,
            "field `entries`: found `[]`, expected entries, or a `provider_url`",
        ),
        (
            r#"{"value": "source.ip", "entries": ["a"], "refresh_interval": "1ms"}"#,
            "field `refresh_interval`: found `1ms`, expected 100ms or more",
        ),
        (
            r#"{"value": "source.ip", "entries": ["a"], "ttl": "1s"}"#,
            "field `ttl`: found `1s`, expected at least `refresh_interval`, better twice as much",
        ),
        (
            r#"{"value": "source.ip", "entries": ["1.2.3.4", "1.2.3.4/33"], "entry_type": "IP_ADDRESSES"}"#,
            "field `entries`: found `1.2.3.4/33`, expected an entry of the list's `entry_type` (no address or prefix)",
        ),
        (
            r#"{"value": "source.ip", "entries": ["ok", "a("], "entry_type": "REGEX"}"#,
            "field `entries`: found `a(`, expected an entry of the list's `entry_type` (error: unclosed group)",
        ),
        (
            r#"{"value": "source.ip", "provider_url": "/nowhere/list"}"#,
            "field `provider_url`: found `/nowhere/list`, expected a file that can be read (No such file or directory (os error 2))",
        ),
    ] {
        let error = List::new("l", serde_json::from_str(json).unwrap(), None).unwrap_err();
        assert_eq!(error.to_string(), format!("adapter `list`, {expect}"));
    }
    for json in [
        r#"{"entries": ["a"]}"#,
        r#"{"value": "source.colour", "entries": ["a"]}"#,
        r#"{"value": "source.ip", "entries": ["a"], "entry_type": "NUMBERS"}"#,
        r#"{"value": "source.ip", "entries": ["a"], "whitelist": true}"#,
        r#"{"value": "source.ip", "provider_url": "list.txt"}"#,
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
        list(example);
    }
}
