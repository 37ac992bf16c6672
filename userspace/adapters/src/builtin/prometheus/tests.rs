use std::time::{Duration, SystemTime};

use weft_abi::{LatencyHistogram, latency_bucket};
use weft_policy::ObjectRef;

use super::*;
use crate::{
    exposition::encode,
    record::{Destination, Peer, Side},
};

fn peer(service: &str) -> Arc<Peer> {
    Arc::new(Peer {
        namespace: "default".into(),
        service: Some(service.into()),
        account: service.into(),
    })
}

fn destination(port: u16) -> Arc<Destination> {
    Arc::new(Destination {
        namespace: "shop".into(),
        service: Some("web".into()),
        account: Some("web".into()),
        address: "127.0.0.1".parse().unwrap(),
        port,
    })
}

fn request(source: &str, status: u16) -> Flow {
    Flow {
        time: SystemTime::UNIX_EPOCH,
        event: FlowEvent::Request,
        reporter: Side::Proxy,
        verdict: FlowVerdict::Allow,
        reason: "".into(),
        rule: None,
        source: peer(source),
        destination: destination(8080),
        protocol: FlowProtocol::Http,
        l7: Some(L7 {
            method: "GET".into(),
            path: "/".into(),
            status,
            duration: Duration::from_millis(3),
            request_bytes: 0,
            response_bytes: 612,
            grpc_status: None,
            user_agent: None,
            trace: None,
        }),
        bytes_sent: 1,
        bytes_received: 2,
        rtt_us: None,
        errno: None,
    }
}

fn edge(protocol: FlowProtocol) -> Box<EdgeDelta> {
    let mut connect = LatencyHistogram {
        sum_us: 5_000_090,
        ..LatencyHistogram::default()
    };
    for us in [30, 60, 5_000_000] {
        connect.buckets[latency_bucket(us)] += 1;
    }
    let mut rtt = LatencyHistogram::default();
    (rtt.sum_us, rtt.buckets[latency_bucket(64)]) = (64, 1);
    Box::new(EdgeDelta {
        reporter: Side::Destination,
        source: peer("client"),
        destination: destination(8080),
        protocol,
        verdict: FlowVerdict::Allow,
        history: false,
        opened: 2,
        closed: 1,
        refused: 3,
        denied: 5,
        reset: 4,
        bytes_sent: 10,
        bytes_received: 20,
        segments_sent: 7,
        segments_received: 8,
        retransmits: 9,
        connect,
        rtt,
    })
}

fn flow(flow: Flow) -> Record {
    Record::Flow(Arc::new(flow))
}

/// Reports the records to a fresh adapter; what a scrape then says.
fn scrape(config: Config, records: &[Record]) -> String {
    let mut registry = Registry::default();
    let mut adapter = Prometheus::new(&config, &mut registry).unwrap();
    adapter.report(records);
    encode(&registry).unwrap()
}

/// Value of the only series whose name and labels contain all of `parts`.
#[track_caller]
fn value(text: &str, parts: &[&str]) -> String {
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)))
        .collect();
    assert_eq!(lines.len(), 1, "{parts:?} in\n{text}");
    lines[0].rsplit_once(' ').unwrap().1.to_owned()
}

#[test]
fn a_request_has_istios_name_and_labels() {
    let text = scrape(
        Config::default(),
        &[flow(request("client", 200)), flow(request("client", 200))],
    );
    let expected = concat!(
        r#"istio_requests_total{reporter="waypoint",source_workload="client",source_workload_namespace="default","#,
        r#"source_principal="spiffe://cluster.local/ns/default/sa/client",destination_service="web.shop.mesh","#,
        r#"destination_service_name="web",destination_service_namespace="shop","#,
        r#"destination_principal="spiffe://cluster.local/ns/shop/sa/web",destination_workload="web","#,
        r#"destination_workload_namespace="shop",request_protocol="http",connection_security_policy="none","#,
        r#"response_code="200",response_flags="-"} 2"#
    );
    assert!(text.lines().any(|line| line == expected), "{text}");
    assert!(text.contains("# TYPE istio_requests counter"), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn duration_and_sizes_fall_into_istios_buckets() {
    let text = scrape(Config::default(), &[flow(request("client", 200))]);
    for (name, le, expect) in [
        ("istio_request_duration_milliseconds_bucket", r#"le="1.0""#, "0"),
        ("istio_request_duration_milliseconds_bucket", r#"le="5.0""#, "1"),
        ("istio_response_bytes_bucket", r#"le="500.0""#, "0"),
        ("istio_response_bytes_bucket", r#"le="1000.0""#, "1"),
        ("istio_request_bytes_bucket", r#"le="0.5""#, "1"),
        ("istio_response_bytes_bucket", r#"le="3600000.0""#, "1"),
    ] {
        assert_eq!(value(&text, &[name, le]), expect, "{name} {le}");
    }
    assert_eq!(value(&text, &["istio_response_bytes_sum"]), "612.0");
    assert_eq!(value(&text, &["istio_request_duration_milliseconds_sum"]), "3.0");
}

#[test]
fn kernel_edges_become_istio_tcp_from_the_servers_point_of_view() {
    let text = scrape(
        Config::default(),
        &[
            Record::Edge(edge(FlowProtocol::Tcp)),
            Record::Edge(edge(FlowProtocol::Tcp)),
        ],
    );
    for (name, expect) in [
        ("istio_tcp_sent_bytes_total", "40"),
        ("istio_tcp_received_bytes_total", "20"),
        ("istio_tcp_connections_opened_total", "4"),
        ("istio_tcp_connections_closed_total", "2"),
        ("weft_tcp_connections_refused_total", "6"),
        ("weft_tcp_connections_denied_total", "10"),
        ("weft_tcp_resets_total", "8"),
        ("weft_tcp_retransmits_total", "18"),
        ("weft_tcp_segments_sent_total", "16"),
        ("weft_tcp_segments_received_total", "14"),
    ] {
        assert_eq!(
            value(&text, &[name, r#"reporter="destination""#, r#"request_protocol="tcp""#]),
            expect,
            "{name}"
        );
    }
}

#[test]
fn kernel_histograms_keep_their_bounds_and_their_sum() {
    let text = scrape(
        Config::default(),
        &[
            Record::Edge(edge(FlowProtocol::Tcp)),
            Record::Edge(edge(FlowProtocol::Tcp)),
        ],
    );
    for (name, le, expect) in [
        ("weft_tcp_connect_duration_seconds_bucket", r#"le="0.000016""#, "0"),
        ("weft_tcp_connect_duration_seconds_bucket", r#"le="0.000032""#, "2"),
        ("weft_tcp_connect_duration_seconds_bucket", r#"le="0.000064""#, "4"),
        ("weft_tcp_connect_duration_seconds_bucket", r#"le="4.194304""#, "4"),
        ("weft_tcp_connect_duration_seconds_bucket", r#"le="+Inf""#, "6"),
        ("weft_tcp_rtt_seconds_bucket", r#"le="0.000032""#, "0"),
        ("weft_tcp_rtt_seconds_bucket", r#"le="0.000064""#, "2"),
    ] {
        assert_eq!(value(&text, &[name, le]), expect, "{name} {le}");
    }
    assert_eq!(value(&text, &["weft_tcp_connect_duration_seconds_sum"]), "10.00018");
    assert_eq!(value(&text, &["weft_tcp_connect_duration_seconds_count"]), "6");
    assert_eq!(value(&text, &["weft_tcp_rtt_seconds_sum"]), "0.000128");
}

#[test]
fn an_opaque_connection_through_the_proxy_is_counted_once() {
    let opened = Flow {
        event: FlowEvent::Open,
        protocol: FlowProtocol::Tcp,
        l7: None,
        ..request("client", 0)
    };
    let closed = Flow {
        event: FlowEvent::Close,
        ..opened.clone()
    };
    let text = scrape(
        Config::default(),
        &[flow(opened), Record::Edge(edge(FlowProtocol::Tcp)), flow(closed)],
    );
    assert_eq!(value(&text, &["istio_tcp_connections_opened_total"]), "2");
    assert_eq!(value(&text, &["istio_tcp_sent_bytes_total"]), "20");
}

#[test]
fn flows_of_datagrams_are_counted_from_the_servers_point_of_view() {
    let mut other_port = edge(FlowProtocol::Udp);
    other_port.destination = destination(9090);
    let text = scrape(
        Config::default(),
        &[Record::Edge(edge(FlowProtocol::Udp)), Record::Edge(other_port)],
    );
    for (name, expect) in [
        ("weft_udp_sent_bytes_total", "40"),
        ("weft_udp_received_bytes_total", "20"),
        ("weft_udp_flows_opened_total", "4"),
        ("weft_udp_flows_denied_total", "10"),
    ] {
        let labels = [
            name,
            r#"reporter="destination""#,
            r#"request_protocol="udp""#,
            r#"destination_service="web.shop.mesh""#,
        ];
        assert_eq!(value(&text, &labels), expect, "{name}: both ports in one series");
    }
}

#[test]
fn what_a_device_tells_is_a_series_of_its_own() {
    let by_device = |protocol| {
        let mut edge = edge(protocol);
        edge.reporter = Side::Device;
        Record::Edge(edge)
    };
    let text = scrape(
        Config::default(),
        &[
            Record::Edge(edge(FlowProtocol::Tcp)),
            by_device(FlowProtocol::Tcp),
            by_device(FlowProtocol::Udp),
        ],
    );
    for (name, reporter) in [
        ("istio_tcp_sent_bytes_total", "destination"),
        ("istio_tcp_sent_bytes_total", "device"),
        ("weft_udp_sent_bytes_total", "device"),
    ] {
        assert_eq!(
            value(&text, &[name, &format!(r#"reporter="{reporter}""#)]),
            "20",
            "{name} by the {reporter}"
        );
    }
}

#[test]
fn http_and_udp_edges_are_no_istio_tcp() {
    for (protocol, connections) in [
        (FlowProtocol::Http, true),
        (FlowProtocol::Grpc, true),
        (FlowProtocol::Udp, false),
    ] {
        let text = scrape(Config::default(), &[Record::Edge(edge(protocol))]);
        let has = |name: &str| text.lines().any(|line| line.starts_with(&format!("{name}{{")));
        assert!(
            !has("istio_tcp_sent_bytes_total") && !has("istio_tcp_connections_opened_total"),
            "{text}"
        );
        assert_eq!(has("weft_tcp_retransmits_total"), connections, "{text}");
        assert_eq!(has("weft_tcp_rtt_seconds_count"), connections, "{text}");
        assert_eq!(has("weft_udp_flows_opened_total"), !connections, "{text}");
    }
}

#[test]
fn an_edge_without_name_is_one_word() {
    let mut overflow = edge(FlowProtocol::Tcp);
    overflow.source = Arc::new(Peer {
        namespace: String::new(),
        service: Some("overflow".into()),
        account: "unknown".into(),
    });
    overflow.destination = Arc::new(Destination {
        namespace: String::new(),
        service: Some("overflow".into()),
        account: None,
        address: "0.0.0.0".parse().unwrap(),
        port: 0,
    });
    let text = scrape(Config::default(), &[Record::Edge(overflow)]);
    value(
        &text,
        &[
            "istio_tcp_sent_bytes_total",
            r#"source_workload="overflow""#,
            r#"source_principal="unknown""#,
            r#"destination_service="overflow""#,
        ],
    );
}

#[test]
fn a_deny_names_its_rule() {
    let rule = Arc::new(ObjectRef {
        kind: "MeshConfig".into(),
        namespace: None,
        name: "mesh".into(),
    });
    let deny = Flow {
        event: FlowEvent::Deny,
        verdict: FlowVerdict::Deny,
        protocol: FlowProtocol::Tcp,
        reporter: Side::Source,
        l7: None,
        rule: Some(rule.clone()),
        ..request("client", 0)
    };
    let refused = Flow {
        verdict: FlowVerdict::Deny,
        rule: Some(rule),
        ..request("client", 403)
    };
    let text = scrape(Config::default(), &[flow(deny), flow(refused)]);
    let expected = concat!(
        r#"weft_flow_denied_total{reporter="source",source_namespace="default",source_service="client","#,
        r#"source_account="client",destination_namespace="shop",destination_service="web",protocol="tcp","#,
        r#"rule_kind="MeshConfig",rule_namespace="",rule_name="mesh"} 1"#
    );
    assert!(text.lines().any(|line| line == expected), "{text}");
    assert_eq!(
        value(
            &text,
            &["weft_flow_denied_total", r#"protocol="http""#, r#"rule_name="mesh""#]
        ),
        "1"
    );
    assert_eq!(
        value(
            &text,
            &[
                "istio_requests_total",
                r#"response_code="403""#,
                r#"response_flags="UAEX""#
            ]
        ),
        "1"
    );
}

#[test]
fn an_audited_request_counts_as_any_other_and_names_the_rule_that_would_deny_it() {
    let audited = || Flow {
        verdict: FlowVerdict::Audit,
        rule: Some(Arc::new(ObjectRef {
            kind: "NetworkPolicy".into(),
            namespace: Some("shop".into()),
            name: "closed".into(),
        })),
        ..request("client", 200)
    };
    let connection = |event| Flow {
        event,
        protocol: FlowProtocol::Tcp,
        l7: None,
        ..audited()
    };
    let records = [
        flow(audited()),
        flow(connection(FlowEvent::Open)),
        flow(connection(FlowEvent::Close)),
    ];
    let text = scrape(Config::default(), &records);
    let closed = r#"rule_name="closed""#;
    for protocol in [r#"protocol="http""#, r#"protocol="tcp""#] {
        assert_eq!(
            value(&text, &["weft_flow_audited_total", protocol, closed]),
            "1",
            "{text}"
        );
    }
    assert!(!text.contains("weft_flow_denied_total{"), "{text}");
    let answered = [r#"response_code="200""#, r#"response_flags="-""#];
    assert_eq!(value(&text, &["istio_requests_total", answered[0], answered[1]]), "1");
}

#[test]
fn the_port_is_no_label_and_makes_no_series() {
    let other = Flow {
        destination: destination(9090),
        ..request("client", 200)
    };
    let text = scrape(Config::default(), &[flow(request("client", 200)), flow(other)]);
    assert_eq!(value(&text, &["istio_requests_total"]), "2");
}

#[test]
fn requests_in_a_row_count_each_by_its_own_labels() {
    let (client, other) = (request("client", 200), request("other", 200));
    let like = |first: &Flow, status: u16, verdict: FlowVerdict| {
        flow(Flow {
            source: Arc::clone(&first.source),
            destination: Arc::clone(&first.destination),
            verdict,
            ..request("client", status)
        })
    };
    let (allow, deny) = (FlowVerdict::Allow, FlowVerdict::Deny);
    let records: Vec<Record> = [
        (&client, 200, allow),
        (&client, 200, allow),
        (&client, 200, allow),
        (&client, 403, allow),
        (&client, 403, allow),
        (&client, 403, deny),
        (&other, 200, allow),
        (&other, 200, allow),
        (&client, 200, allow),
    ]
    .map(|(first, status, verdict)| like(first, status, verdict))
    .into();
    let mut registry = Registry::default();
    let mut adapter = Prometheus::new(&Config::default(), &mut registry).unwrap();
    adapter.report(&records);
    adapter.report(&records);
    let text = encode(&registry).unwrap();
    for (source, code, flags, count) in [
        ("client", 200, "-", "8"),
        ("client", 403, "-", "4"),
        ("client", 403, "UAEX", "2"),
        ("other", 200, "-", "4"),
    ] {
        let source = format!(r#"source_workload="{source}""#);
        let (code, flags) = (
            format!(r#"response_code="{code}""#),
            format!(r#"response_flags="{flags}""#),
        );
        assert_eq!(value(&text, &["istio_requests_total", &source, &code, &flags]), count);
    }
}

#[test]
fn what_is_not_known_is_unknown() {
    let stranger = Flow {
        source: Arc::new(Peer {
            namespace: "unknown".into(),
            service: None,
            account: "unknown".into(),
        }),
        destination: Arc::new(Destination {
            service: None,
            account: None,
            ..(*destination(1)).clone()
        }),
        ..request("client", 200)
    };
    let text = scrape(Config::default(), &[flow(stranger)]);
    for label in [
        "source_workload",
        "source_principal",
        "destination_service",
        "destination_service_name",
        "destination_principal",
    ] {
        value(&text, &["istio_requests_total", &format!(r#"{label}="unknown""#)]);
    }
}

#[test]
fn a_grpc_status_is_a_label_of_grpc_only() {
    let mut grpc = request("client", 200);
    grpc.protocol = FlowProtocol::Grpc;
    grpc.l7.as_mut().unwrap().grpc_status = Some(14);
    let text = scrape(Config::default(), &[flow(grpc), flow(request("client", 200))]);
    assert_eq!(
        value(&text, &["istio_requests_total", r#"grpc_response_status="14""#]),
        "1"
    );
    assert!(
        !text
            .lines()
            .any(|line| line.contains(r#"protocol="http""#) && line.contains("grpc_response")),
        "{text}"
    );
}

#[test]
fn series_beyond_the_cap_are_not_made_but_counted() {
    let config = Config {
        max_series: 4,
        ..Config::default()
    };
    let text = scrape(
        config,
        &[
            flow(request("a", 200)),
            flow(request("b", 200)),
            flow(request("b", 200)),
            flow(request("a", 200)),
        ],
    );
    assert_eq!(value(&text, &["istio_requests_total", r#"source_workload="a""#]), "2");
    assert!(!text.contains(r#"source_workload="b""#), "{text}");
    assert_eq!(value(&text, &["weft_metrics_series"]), "4");
    assert_eq!(value(&text, &["weft_metrics_overflow_total"]), "8");
}

/// Else nothing new would be counted after many services have come and gone.
#[test]
fn what_is_idle_makes_room_for_what_is_new_where_there_is_none() {
    let by = |source: &str, protocol| {
        let mut edge = edge(protocol);
        edge.source = peer(source);
        Record::Edge(edge)
    };
    let connection = |source: &str| by(source, FlowProtocol::Tcp);
    let datagrams = |source: &str| by(source, FlowProtocol::Udp);
    let refusal = |source: &str| {
        flow(Flow {
            event: FlowEvent::Deny,
            verdict: FlowVerdict::Deny,
            l7: None,
            ..request(source, 0)
        })
    };
    let answer = |source: &str| flow(request(source, 200));
    type Make<'m> = &'m dyn Fn(&str) -> Record;
    let cases: [(&str, usize, Make<'_>); 4] = [
        ("istio_requests_total", 4, &answer),
        ("istio_tcp_sent_bytes_total", 12, &connection),
        ("weft_udp_sent_bytes_total", 4, &datagrams),
        ("weft_flow_denied_total", 1, &refusal),
    ];
    for (name, series, record) in cases {
        let mut registry = Registry::default();
        let config = Config {
            max_series: series,
            ..Config::default()
        };
        let mut adapter = Prometheus::new(&config, &mut registry).unwrap();
        let begin = Instant::now();
        let mut told = |source: &str, after: Duration| {
            adapter.report_at(&[record(source)], begin + after);
            encode(&registry).unwrap()
        };
        let has = |text: &str, source: &str| {
            let source = format!("=\"{source}\"");
            text.lines()
                .any(|line| line.starts_with(name) && line.contains(&source))
        };
        let text = told("old", Duration::ZERO);
        assert!(has(&text, "old"), "{text}");
        // Still in use.
        let text = told("old", LOOK_EVERY);
        assert!(has(&text, "old"), "{text}");
        let text = told("new", IDLE);
        assert!(has(&text, "old") && !has(&text, "new"), "{text}");
        assert_eq!(value(&text, &["weft_metrics_overflow_total"]), series.to_string());
        let text = told("new", IDLE + LOOK_EVERY);
        assert!(!has(&text, "old") && has(&text, "new"), "{text}");
        assert_eq!(value(&text, &["weft_metrics_series"]), series.to_string());
    }
}

/// A server makes no series by numbers that it makes up.
#[test]
fn numbers_that_no_protocol_knows_are_one_series() {
    let grpc = |status| {
        let mut grpc = request("client", 200);
        grpc.protocol = FlowProtocol::Grpc;
        grpc.l7.as_mut().unwrap().grpc_status = Some(status);
        flow(grpc)
    };
    let http = |status| flow(request("client", status));
    let records = [grpc(16), grpc(17), grpc(999), http(599), http(600), http(999), http(99)];
    let text = scrape(Config::default(), &records);
    for (label, expect) in [
        (r#"grpc_response_status="16""#, "1"),
        (r#"grpc_response_status="other""#, "2"),
        (r#"response_code="599""#, "1"),
        (r#"response_code="other""#, "3"),
    ] {
        assert_eq!(value(&text, &["istio_requests_total", label]), expect, "{label}");
    }
}

#[test]
fn names_that_hold_quotes_cannot_break_the_exposition() {
    let odd = Flow {
        source: peer("a\"b\\c\nd"),
        ..request("client", 200)
    };
    let text = scrape(Config::default(), &[flow(odd)]);
    value(&text, &["istio_requests_total", r#"source_workload="a\"b\\c\nd""#]);
}

/// What makes a series in every family, 22 of them.
fn everything() -> Vec<Record> {
    let denied = Flow {
        verdict: FlowVerdict::Deny,
        ..request("client", 403)
    };
    let audited = Flow {
        event: FlowEvent::Open,
        verdict: FlowVerdict::Audit,
        l7: None,
        ..request("client", 0)
    };
    vec![
        flow(denied),
        flow(audited),
        Record::Edge(edge(FlowProtocol::Tcp)),
        Record::Edge(edge(FlowProtocol::Udp)),
    ]
}

#[test]
fn every_registered_metric_is_used() {
    let config = Config {
        max_series: 22,
        ..Config::default()
    };
    let mut records = everything();
    records.push(flow(request("other", 200)));
    let text = scrape(config, &records);
    for name in text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
    {
        let moved = text
            .lines()
            .any(|line| line.starts_with(name) && !line.ends_with(" 0") && !line.ends_with(" 0.0"));
        assert!(moved, "{name} did not move\n{text}");
    }
}

#[test]
fn parameters_are_checked() {
    let mut registry = Registry::default();
    let error = Prometheus::new(
        &Config {
            max_series: MAX_SERIES + 1,
            ..Config::default()
        },
        &mut registry,
    )
    .unwrap_err();
    assert!(error.to_string().contains("max_series"), "{error}");
    assert!(serde_json::from_str::<Config>(r#"{"serie": 1}"#).is_err());
}

/// The page's example loads, and its table names every metric.
#[test]
fn the_page_is_complete() {
    let page = include_str!("README.md");
    for example in page
        .split("```json\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
    {
        serde_json::from_str::<Config>(example).unwrap();
    }
    // A family without series is not in the text.
    for line in scrape(Config::default(), &everything())
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
    {
        let (name, kind) = line.split_once(' ').unwrap();
        let name = if kind == "counter" {
            format!("{name}_total")
        } else {
            name.to_owned()
        };
        assert!(page.contains(&format!("`{name}`")), "{name} is not on the page");
    }
}
