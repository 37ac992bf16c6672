use super::*;
use crate::record::FlowProtocol;

/// A request of `default/client` to `GET /a/b?c=d` of `shop/web`.
pub(crate) fn with_bag<T>(headers: &[(&str, &str)], body: impl FnOnce(Bag<'_>) -> T) -> T {
    body(Bag {
        generation: 1,
        source: PeerView {
            namespace: "default",
            service: None,
            account: "client",
            ip: None,
        },
        destination: DestinationView {
            namespace: "shop",
            service: Some("web"),
            account: Some("web"),
            ip: "240.240.0.1".parse().unwrap(),
            port: 80,
        },
        request: Some(RequestView {
            method: "GET",
            path: "/a/b?c=d",
            host: "web",
            headers: &headers,
        }),
        connection: ConnectionView::default(),
        protocol: FlowProtocol::Http,
    })
}

/// The same request with another path.
pub(crate) fn with_path<T>(path: &str, body: impl FnOnce(Bag<'_>) -> T) -> T {
    with_bag(&[], |bag| {
        let request = bag.request.map(|request| RequestView { path, ..request });
        body(Bag { request, ..bag })
    })
}

/// The same request with a header of these lines, of any bytes.
pub(crate) fn with_lines<T>(name: &str, lines: &[&[u8]], body: impl FnOnce(Bag<'_>) -> T) -> T {
    let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
    let lines = lines.iter().map(|line| http::HeaderValue::from_bytes(line).unwrap());
    let map: http::HeaderMap = lines.map(|line| (name.clone(), line)).collect();
    with_bag(&[], |bag| {
        let request = bag.request.map(|request| RequestView {
            headers: &map,
            ..request
        });
        body(Bag { request, ..bag })
    })
}

#[test]
fn every_name_leads_to_its_slot_and_back() {
    for attribute in Attribute::ALL {
        assert_eq!(Attribute::from_name(attribute.name()), Some(*attribute));
    }
    assert_eq!(Attribute::from_name("source.colour"), None);
}

#[test]
fn slots_have_the_values_of_the_request() {
    let expected = [
        ("source.namespace", Some("default")),
        ("source.service", None),
        ("source.principal", Some("default/client")),
        ("source.ip", None),
        ("destination.namespace", Some("shop")),
        ("destination.service", Some("web")),
        ("destination.principal", Some("shop/web")),
        ("destination.ip", Some("240.240.0.1")),
        ("destination.port", Some("80")),
        ("request.method", Some("GET")),
        ("request.path", Some("/a/b?c=d")),
        ("request.url_path", Some("/a/b")),
        ("request.host", Some("web")),
        ("request.headers", Some("{...}")),
        ("context.protocol", Some("http")),
        ("connection.mtls", Some("false")),
        ("connection.requested_server_name", None),
    ];
    assert_eq!(expected.len(), Attribute::ALL.len());
    with_bag(&[], |bag| {
        for (name, value) in expected {
            let attribute = Attribute::from_name(name).unwrap();
            assert_eq!(
                bag.get(attribute).map(|value| value.to_string()).as_deref(),
                value,
                "{name}"
            );
        }
    });
}

#[test]
fn a_connection_has_no_request_attributes() {
    with_bag(&[("x-a", "1")], |bag| {
        let bag = Bag { request: None, ..bag };
        assert!(bag.get(Attribute::RequestPath).is_none());
        assert!(bag.header("x-a").is_none());
    });
}

#[test]
fn a_header_is_found_by_its_lower_case_name_and_the_first_value_counts() {
    with_bag(&[("X-A", "1"), ("x-a", "2")], |bag| {
        assert_eq!(bag.header("x-a"), Some("1"))
    });
    let mut map = http::HeaderMap::new();
    map.append("X-A", "1".parse().unwrap());
    map.append("x-a", "2".parse().unwrap());
    map.append("x-b", http::HeaderValue::from_bytes(b"\xff").unwrap());
    assert_eq!(Headers::get(&map, "x-a"), Some("1"));
    assert_eq!(Headers::get(&map, "x-b"), None);
}
