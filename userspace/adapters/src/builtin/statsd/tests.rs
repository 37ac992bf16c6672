use std::{
    net::UdpSocket as StdSocket,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use super::*;
use crate::{
    metrics::ReportMetrics,
    record::{FlowProtocol, Side, samples},
    reporter::Report,
};

const LONG: Duration = Duration::from_secs(20);

/// A real socket, and an adapter that sends to it.
struct Receiver {
    socket: StdSocket,
    metrics: ExportMetrics,
    exporter: Exporter,
}

impl Receiver {
    fn new(json: &str) -> Self {
        let socket = StdSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        let config = Config {
            address: socket.local_addr().unwrap().to_string(),
            ..serde_json::from_str(json).unwrap()
        };
        let metrics = ReportMetrics::default();
        let exporter = start("statsd", config, &metrics).unwrap();
        let metrics = ExportMetrics::of("statsd", &metrics);
        Self {
            socket,
            metrics,
            exporter,
        }
    }

    /// All lines, by datagram.
    fn datagrams(&mut self, records: &[Record]) -> Vec<String> {
        self.exporter.report(records);
        self.exporter.flush();
        self.exporter.wait(StdInstant::now() + LONG);
        // Loopback has delivered what was sent.
        self.socket.set_nonblocking(true).unwrap();
        let mut buffer = vec![0; MAX_FLUSH];
        std::iter::from_fn(|| {
            let length = self.socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
        })
        .collect()
    }

    fn lines(&mut self, records: &[Record]) -> Vec<String> {
        let datagrams = self.datagrams(records);
        datagrams
            .iter()
            .flat_map(|datagram| datagram.lines())
            .map(str::to_owned)
            .collect()
    }
}

const MAX_FLUSH: usize = 65_507;

fn flow(flow: Flow) -> Record {
    Record::Flow(Arc::new(flow))
}

fn edge(edge: EdgeDelta) -> Record {
    Record::Edge(Box::new(edge))
}

#[test]
fn a_request_is_four_lines_whose_labels_are_levels() {
    let labels = "default.client.default.web.http.GET.200";
    assert_eq!(
        Receiver::new(r#"{"prefix": "mesh"}"#).lines(&[flow(samples::request())]),
        [
            format!("mesh.requests.{labels}:1|c"),
            format!("mesh.request_duration.{labels}:1.5|ms"),
            format!("mesh.request_bytes.{labels}:0|ms"),
            format!("mesh.response_bytes.{labels}:612|ms"),
        ]
    );
}

#[test]
fn labels_are_tags_for_a_dogstatsd() {
    let tags = "#source_namespace:default,source_account:client,destination_namespace:default,destination_service:web,\
                protocol:http,method:GET,status:200";
    assert_eq!(
        Receiver::new(r#"{"tags": true}"#).lines(&[flow(samples::request())]),
        [
            format!("requests:1|c|{tags}"),
            format!("request_duration:1.5|ms|{tags}"),
            format!("request_bytes:0|h|{tags}"),
            format!("response_bytes:612|h|{tags}"),
        ]
    );
}

#[test]
fn a_refusal_names_its_rule() {
    let lines = Receiver::new(r#"{"metrics": {"denied": {"type": "COUNTER"}}}"#).lines(&[flow(samples::refused())]);
    assert_eq!(lines, ["denied.default.client.default.web.TrafficTarget.default.t:1|c"]);
}

#[test]
fn connections_that_no_proxy_saw_are_counted_and_gauged() {
    let mut receiver = Receiver::new("{}");
    let labels = "source.default.client.default.web.tcp";
    let closing = EdgeDelta {
        opened: 0,
        closed: 2,
        bytes_sent: 0,
        bytes_received: 0,
        rtt: LatencyHistogram::default(),
        ..samples::edge()
    };
    assert_eq!(
        receiver.lines(&[edge(samples::edge()), edge(closing)]),
        [
            format!("connections_opened.{labels}:3|c"),
            format!("connections_closed.{labels}:1|c"),
            format!("sent_bytes.{labels}:1000|c"),
            format!("received_bytes.{labels}:2000|c"),
            // Two round trips of 50 µs on average: one sample that stands for both.
            format!("rtt.{labels}:0.05|ms|@0.5"),
            format!("connections.{labels}:2|g"),
            format!("connections_closed.{labels}:2|c"),
            format!("connections.{labels}:0|g"),
        ]
    );
}

/// Counters at a restart would else jump by all that there ever was.
#[test]
fn what_was_before_the_daemon_is_gauged_and_not_counted() {
    let before = EdgeDelta {
        history: true,
        ..samples::edge()
    };
    let lines = Receiver::new("{}").lines(&[edge(before)]);
    assert_eq!(lines, ["connections.source.default.client.default.web.tcp:2|g"]);
}

#[test]
fn flows_of_datagrams_are_counted_and_not_gauged() {
    let datagrams = EdgeDelta {
        protocol: FlowProtocol::Udp,
        closed: 0,
        rtt: LatencyHistogram::default(),
        ..samples::edge()
    };
    let packets = EdgeDelta {
        reporter: Side::Device,
        protocol: FlowProtocol::Tcp,
        ..datagrams.clone()
    };
    let lines = |labels: &str| {
        [
            format!("connections_opened.{labels}:3|c"),
            format!("sent_bytes.{labels}:1000|c"),
            format!("received_bytes.{labels}:2000|c"),
        ]
    };
    let expected = [
        lines("source.default.client.default.web.udp"),
        lines("device.default.client.default.web.tcp"),
    ];
    assert_eq!(
        Receiver::new("{}").lines(&[edge(datagrams), edge(packets)]),
        expected.concat()
    );
}

#[test]
fn a_name_is_made_by_its_template() {
    let json = r#"{"metrics": {"requests": {"name_template": "{destination.service}-{grpc_status}.{status}"}}}"#;
    assert_eq!(
        Receiver::new(json).lines(&[flow(samples::request())]),
        ["web-unknown.200:1|c"]
    );
}

#[test]
fn a_client_cannot_forge_a_line_or_make_names_without_end() {
    let mut given = samples::request();
    given.l7.as_mut().unwrap().method = "X:1|c\nadmin".into();
    let mut source = (*given.source).clone();
    source.account = "a.b:1|c\n#x,y".into();
    given.source = Arc::new(source);
    for (json, expect) in [
        ("{}", "requests.default.a_b_1_c__x_y.default.web.http.other.200:1|c"),
        (
            r#"{"tags": true}"#,
            "requests:1|c|#source_namespace:default,source_account:a.b_1_c__x_y,destination_namespace:default,\
             destination_service:web,protocol:http,method:other,status:200",
        ),
    ] {
        let lines = Receiver::new(json).lines(&[flow(given.clone())]);
        assert_eq!((lines.len(), lines[0].as_str()), (4, expect));
    }
}

#[test]
fn lines_share_datagrams_up_to_their_size() {
    let records: Vec<_> = (0..50).map(|_| flow(samples::request())).collect();
    let datagrams = Receiver::new(r#"{"flush_bytes": 512}"#).datagrams(&records);
    assert_eq!(
        datagrams.iter().map(|datagram| datagram.lines().count()).sum::<usize>(),
        200
    );
    assert!(datagrams.iter().all(|datagram| datagram.len() <= 512));
    // Six to eight lines fit.
    assert!(datagrams.len() < 40, "{}", datagrams.len());
}

#[test]
fn a_rate_leaves_lines_out_and_says_so() {
    let records: Vec<_> = (0..4000).map(|_| flow(samples::refused())).collect();
    let json = r#"{"sampling_rate": 0.25, "metrics": {"denied": {}}}"#;
    let mut receiver = Receiver::new(json);
    // In portions that the socket's buffer holds.
    let lines: Vec<_> = records.chunks(500).flat_map(|some| receiver.lines(some)).collect();
    // 1000 are expected; 27 is the standard deviation.
    assert!((800..1200).contains(&lines.len()), "{}", lines.len());
    assert!(lines.iter().all(|line| line.ends_with(":1|c|@0.25")), "{}", lines[0]);
    assert_eq!(receiver.metrics.sent.get(), lines.len() as u64);
}

#[test]
fn lines_that_nobody_receives_are_counted_and_a_receiver_that_comes_is_found() {
    let back = (0..20).find_map(|_| {
        let mut receiver = Receiver::new("{}");
        let address = receiver.socket.local_addr().unwrap();
        receiver.socket = StdSocket::bind("127.0.0.1:0").unwrap();
        let metrics = receiver.metrics.clone();
        let end = StdInstant::now() + LONG;
        while metrics.dropped.get() == 0 {
            assert!(StdInstant::now() < end, "a refused datagram is not noticed");
            receiver.lines(&[flow(samples::request())]);
        }
        assert!(metrics.failures.get() > 0);
        // Somebody else may have taken the port meanwhile.
        receiver.socket = StdSocket::bind(address).ok()?;
        Some(receiver)
    });
    let mut receiver = back.expect("the port is free");
    assert!(
        !receiver
            .lines(&[flow(samples::request()), flow(samples::request())])
            .is_empty()
    );
}

#[test]
fn bad_parameters_say_what_to_write() {
    let metrics = ReportMetrics::default();
    for (json, expect) in [
        (
            r#"{"address": "localhost"}"#,
            "field `address`: found `localhost`, expected `host:port`",
        ),
        (r#"{"prefix": "a b"}"#, "field `prefix`"),
        (r#"{"flush_duration": "0s"}"#, "expected 1ms to 1m"),
        (r#"{"flush_bytes": 20}"#, "expected 64 to 65507"),
        (r#"{"sampling_rate": 0}"#, "more than 0, at most 1"),
        (r#"{"sampling_rate": 2}"#, "more than 0, at most 1"),
        (
            r#"{"metrics": {"requests": {"type": "GAUGE"}}}"#,
            "found `Gauge for requests`, expected Counter, or leave it out",
        ),
    ] {
        let error = start("s", serde_json::from_str(json).unwrap(), &metrics).unwrap_err();
        assert!(error.to_string().contains(expect), "{json}: {error}");
    }
    for (json, expect) in [
        (r#"{"adress": ""}"#, "unknown field `adress`"),
        (r#"{"flush_duration": "5"}"#, "`5` is no duration, expected one such as"),
        (
            r#"{"metrics": {"request": {}}}"#,
            "unknown variant `request`, expected one of `requests`",
        ),
        (
            r#"{"metrics": {"requests": {"name_template": "{colour}"}}}"#,
            "unknown label `{colour}`; there are reporter, source.namespace",
        ),
        (
            r#"{"metrics": {"requests": {"name_template": "{status"}}}"#,
            "`{` without `}`",
        ),
        (r#"{"metrics": {"requests": {"name_template": "a:b"}}}"#, "`:` in `a:b`"),
        (r#"{"metrics": {"requests": {"name_template": ""}}}"#, "an empty name"),
    ] {
        let error = serde_json::from_str::<Config>(json).unwrap_err().to_string();
        assert!(error.contains(expect), "{json}: {error}");
    }
}

#[test]
fn the_page_is_complete_and_its_examples_load() {
    let page = include_str!("README.md");
    for metric in Metric::ALL {
        assert!(page.contains(&format!("`{}`", metric.name())), "{metric:?}");
    }
    for label in Label::NAMES {
        assert!(page.contains(&format!("`{label}`")), "{label}");
    }
    for example in crate::builtin::page_examples(page) {
        serde_json::from_str::<Config>(example).unwrap().validate().unwrap();
    }
}
