use http::Request;

use super::*;

const ORIGINAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(240, 240, 0, 1)), 80);

fn head(version: Version, target: &str, headers: &[(&str, &str)]) -> request::Parts {
    let mut request = Request::builder().version(version).uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn prepared(version: Version, wire: Wire, target: &str, headers: &[(&str, &str)]) -> request::Parts {
    let mut head = head(version, target, headers);
    let upgrade = upgrade(&head);
    prepare_request(
        &mut head,
        wire,
        ORIGINAL,
        forwarded_for(([127, 0, 0, 1], 5).into()).as_ref(),
        upgrade,
    )
    .unwrap();
    head
}

#[test]
fn heads_that_read_in_two_ways_are_refused() {
    for (version, target, headers, refused) in [
        (Version::HTTP_11, "/", &[("host", "web")][..], false),
        (Version::HTTP_11, "/", &[("host", "")], false),
        (Version::HTTP_10, "/", &[], false),
        (Version::HTTP_11, "/", &[], true),
        (Version::HTTP_11, "/", &[("host", "a"), ("host", "b")], true),
        (Version::HTTP_11, "/", &[("host", "a/b")], true),
        (Version::HTTP_11, "/", &[("host", "u@web")], true),
        (Version::HTTP_2, "http://web/", &[("host", "web")], false),
        (Version::HTTP_2, "http://web/", &[("host", "other")], true),
        (
            Version::HTTP_11,
            "/",
            &[("host", "a"), ("transfer-encoding", "chunked")],
            false,
        ),
        (
            Version::HTTP_11,
            "/",
            &[("host", "a"), ("transfer-encoding", "gzip, chunked")],
            true,
        ),
        (
            Version::HTTP_11,
            "/",
            &[
                ("host", "a"),
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "chunked"),
            ],
            true,
        ),
    ] {
        assert_eq!(
            check(&head(version, target, headers)).is_err(),
            refused,
            "{target} {headers:?}"
        );
    }
}

#[test]
fn before_anybody_looks_a_head_says_everything_once() {
    let settled = |version, target: &str, headers: &[(&str, &str)]| {
        let mut head = head(version, target, headers);
        settle(&mut head).map(|()| head)
    };
    let listed = [
        ("host", "liar"),
        ("connection", "X-A, te, Host"),
        ("connection", "upgrade, close, x-b"),
        ("x-a", "1"),
        ("x-b", "2"),
        ("te", "trailers"),
        ("upgrade", "websocket"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
    ];
    let head = settled(Version::HTTP_11, "http://shop/", &listed).unwrap();
    for (name, value) in [
        ("host", "shop"),
        ("connection", "close, te, upgrade"),
        ("te", "trailers"),
        ("upgrade", "websocket"),
        ("cookie", "a=1; b=2"),
    ] {
        assert_eq!(head.headers[name], value, "{name}");
    }
    assert_eq!(head.headers.len(), 5, "{:?}", head.headers);
    let head = settled(
        Version::HTTP_11,
        "/",
        &[("host", "web"), ("connection", "x-a"), ("x-a", "1")],
    )
    .unwrap();
    assert_eq!(
        (head.headers.len(), &head.headers["host"]),
        (1, &HeaderValue::from_static("web"))
    );
    let head = settled(Version::HTTP_2, "http://web/", &[]).unwrap();
    assert_eq!(head.headers["host"], "web");
    assert!(settled(Version::HTTP_2, "http://user@web/", &[]).is_err());
}

#[test]
fn connection_headers_stay_on_their_connection() {
    let head = prepared(
        Version::HTTP_11,
        Wire::Http1,
        "/",
        &[
            ("host", "web"),
            ("connection", "close, X-Only-Here, Host, content-length"),
            ("x-only-here", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip"),
            ("content-length", "3"),
            ("x-stays", "1"),
        ],
    );
    for gone in ["connection", "x-only-here", "keep-alive", "proxy-connection", "te"] {
        assert!(!head.headers.contains_key(gone), "{gone}");
    }
    for stays in ["host", "content-length", "x-stays"] {
        assert!(head.headers.contains_key(stays), "{stays}");
    }
    assert_eq!(head.headers["x-forwarded-for"], "127.0.0.1");
}

#[test]
fn trailers_and_upgrades_are_named_again() {
    let asked = [
        ("host", "web"),
        ("te", "trailers"),
        ("connection", "TE, Upgrade"),
        ("upgrade", "websocket"),
    ];
    let head = prepared(Version::HTTP_11, Wire::Http1, "/", &asked);
    assert_eq!(head.headers["connection"], "te, upgrade");
    assert_eq!(head.headers["te"], "trailers");
    assert_eq!(head.headers["upgrade"], "websocket");
}

#[test]
fn an_upgrade_to_http2_is_not_passed_on() {
    for protocol in ["h2c", "websocket, h2c", "HTTP/2.0"] {
        let asked = [
            ("host", "web"),
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", protocol),
            ("http2-settings", "AAMAAABk"),
        ];
        let head = prepared(Version::HTTP_11, Wire::Http1, "/", &asked);
        for gone in ["upgrade", "http2-settings", "connection"] {
            assert!(!head.headers.contains_key(gone), "{protocol}: {gone}");
        }
    }
}

#[test]
fn targets_take_the_form_of_the_wire() {
    for (version, wire, target, headers, uri, host) in [
        (
            Version::HTTP_11,
            Wire::Http1,
            "http://shop/a?b",
            &[("host", "liar")][..],
            "/a?b",
            Some("shop"),
        ),
        (Version::HTTP_10, Wire::Http1, "/a", &[], "/a", Some("240.240.0.1:80")),
        (Version::HTTP_11, Wire::Http1, "*", &[("host", "web")], "*", Some("web")),
        (
            Version::HTTP_2,
            Wire::Http2,
            "http://web/a",
            &[("host", "web")],
            "http://web/a",
            None,
        ),
        (
            Version::HTTP_2,
            Wire::Http2,
            "/a",
            &[("host", "web")],
            "http://web/a",
            None,
        ),
        (Version::HTTP_2, Wire::Http2, "/a", &[], "http://240.240.0.1:80/a", None),
    ] {
        let head = prepared(version, wire, target, headers);
        assert_eq!(head.uri.to_string(), uri);
        assert_eq!(
            head.headers.get("host").map(|host| host.to_str().unwrap()),
            host,
            "{target}"
        );
    }
}

#[test]
fn what_was_prepared_tells_what_was_received() {
    let asked = [
        ("host", "web"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-for", "5.6.7.8"),
        ("x-stays", "1"),
    ];
    let client = forwarded_for(([127, 0, 0, 1], 5).into());
    for (version, wire, target) in [
        (Version::HTTP_11, Wire::Http1, "/a?b"),
        (Version::HTTP_2, Wire::Http2, "http://web/a?b"),
    ] {
        let told = received(&prepared(version, wire, target, &asked), client.as_ref());
        let came = head(version, target, &asked);
        assert_eq!(told.headers, came.headers, "{target}");
        assert_eq!(told.uri, came.uri);
    }
}
