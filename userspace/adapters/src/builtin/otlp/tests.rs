use std::{
    convert::Infallible,
    net::TcpListener,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::runtime;

use super::{
    proto::{AnyValue, Data, Metric, PartialSuccess, Value},
    *,
};
use crate::{
    record::{EdgeDelta, Flow, FlowVerdict, samples},
    reporter::Report,
    trace::{SpanId, Trace, TraceId},
};

mod messages;

const LONG: Duration = Duration::from_secs(20);

/// What came: path, `authorization`, message.
type Came = (String, Option<String>, Vec<u8>);

/// A receiver of OTLP: over gRPC it is tonic's server, over HTTP hyper's. `rejected` is what it says of each message.
fn receiver(protocol: Protocol, rejected: i64) -> (String, mpsc::Receiver<Came>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, came) = mpsc::channel();
    thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (stream, sender) = (TokioIo::new(stream), sender.clone());
                match protocol {
                    Protocol::Grpc => {
                        let service = service_fn(move |request| grpc(request, sender.clone(), rejected));
                        let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        tokio::spawn(async move { http.serve_connection(stream, service).await });
                    }
                    Protocol::Http => {
                        let service = service_fn(move |request| http(request, sender.clone(), rejected));
                        let http = hyper::server::conn::http1::Builder::new();
                        tokio::spawn(async move { http.serve_connection(stream, service).await });
                    }
                }
            }
        });
    });
    (endpoint, came)
}

struct Collect {
    path: String,
    authorization: Option<String>,
    sender: mpsc::Sender<Came>,
    rejected: i64,
}

impl tonic::server::UnaryService<ExportTraces> for Collect {
    type Response = ExportResponse;
    type Future = std::future::Ready<Result<tonic::Response<ExportResponse>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<ExportTraces>) -> Self::Future {
        self.take(request.into_inner().encode_to_vec())
    }
}

impl tonic::server::UnaryService<ExportMetricsRequest> for Collect {
    type Response = ExportResponse;
    type Future = std::future::Ready<Result<tonic::Response<ExportResponse>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<ExportMetricsRequest>) -> Self::Future {
        self.take(request.into_inner().encode_to_vec())
    }
}

impl Collect {
    fn take(&self, message: Vec<u8>) -> std::future::Ready<Result<tonic::Response<ExportResponse>, tonic::Status>> {
        let _ = self
            .sender
            .send((self.path.clone(), self.authorization.clone(), message));
        std::future::ready(Ok(tonic::Response::new(partly(self.rejected))))
    }
}

fn partly(rejected: i64) -> ExportResponse {
    ExportResponse {
        partial_success: Some(PartialSuccess {
            rejected,
            error_message: String::new(),
        }),
    }
}

fn authorization<B>(request: &Request<B>) -> Option<String> {
    Some(request.headers().get("authorization")?.to_str().unwrap().to_owned())
}

async fn grpc(
    request: Request<Incoming>,
    sender: mpsc::Sender<Came>,
    rejected: i64,
) -> Result<Response<tonic::body::Body>, Infallible> {
    let collect = Collect {
        path: request.uri().path().to_owned(),
        authorization: authorization(&request),
        sender,
        rejected,
    };
    Ok(match request.uri().path() {
        TRACES => {
            let codec = tonic_prost::ProstCodec::<ExportResponse, ExportTraces>::default();
            tonic::server::Grpc::new(codec).unary(collect, request).await
        }
        _ => {
            let codec = tonic_prost::ProstCodec::<ExportResponse, ExportMetricsRequest>::default();
            tonic::server::Grpc::new(codec).unary(collect, request).await
        }
    })
}

async fn http(
    request: Request<Incoming>,
    sender: mpsc::Sender<Came>,
    rejected: i64,
) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
    let (path, authorization) = (request.uri().path().to_owned(), authorization(&request));
    let message = request.into_body().collect().await.unwrap().to_bytes().to_vec();
    let _ = sender.send((path, authorization, message));
    Ok(Response::new(Full::new(partly(rejected).encode_to_vec().into())))
}

fn exporter(mut config: serde_json::Value) -> (Exporter, ExportMetrics) {
    // A flush sends; nothing waits for that long.
    config["flush_duration"] = json!("1m");
    config["timeout"] = json!("20s");
    let metrics = ReportMetrics::default();
    let exporter = start("otlp", serde_json::from_value(config).unwrap(), &metrics).unwrap();
    (exporter, ExportMetrics::of("otlp", &metrics))
}

fn traced(sampled: bool) -> Flow {
    let mut flow = samples::request();
    flow.l7.as_mut().unwrap().trace = Some(Box::new(Trace {
        trace_id: TraceId(0xabc),
        span_id: SpanId(0xd),
        parent_id: Some(SpanId(0xe)),
        sampled,
    }));
    flow
}

fn send(exporter: &mut Exporter, records: &[Record]) {
    exporter.report(records);
    exporter.flush();
    exporter.wait(Instant::now() + LONG);
}

fn flow(flow: Flow) -> Record {
    Record::Flow(Arc::new(flow))
}

/// As `key=value`, in order of the keys.
fn shown(attributes: &[KeyValue]) -> Vec<String> {
    let mut shown: Vec<String> = attributes
        .iter()
        .map(|pair| match &pair.value {
            Some(AnyValue {
                value: Some(Value::String(text)),
            }) => format!("{}={text}", pair.key),
            Some(AnyValue {
                value: Some(Value::Int(number)),
            }) => format!("{}=#{number}", pair.key),
            _ => panic!("{pair:?}"),
        })
        .collect();
    shown.sort();
    shown
}

fn spans(message: &[u8]) -> (Resource, Vec<Span>) {
    let message = ExportTraces::decode(message).unwrap();
    let one = &message.resource_spans[0];
    assert_eq!(one.scope_spans[0].scope, Some(scope()));
    (one.resource.clone().unwrap(), one.scope_spans[0].spans.clone())
}

fn metrics(message: &[u8]) -> Vec<Metric> {
    let message = ExportMetricsRequest::decode(message).unwrap();
    message.resource_metrics[0].scope_metrics[0].metrics.clone()
}

#[test]
fn sampled_requests_are_spans_over_both_protocols() {
    for (protocol, name, path) in [(Protocol::Grpc, "grpc", TRACES), (Protocol::Http, "http", "/v1/traces")] {
        let (endpoint, came) = receiver(protocol, 0);
        let (mut exporter, counted) = exporter(json!({"endpoint": endpoint, "protocol": name, "signals": ["traces"],
            "headers": {"authorization": "Bearer x"}, "resource": {"zone": "a"}}));
        let refused = Flow {
            verdict: FlowVerdict::Deny,
            rule: samples::refused().rule,
            reason: "not you".into(),
            ..traced(true)
        };
        send(
            &mut exporter,
            &[
                flow(traced(true)),
                flow(traced(false)),
                flow(samples::request()),
                flow(refused),
            ],
        );
        let (to, authorization, message) = came.recv_timeout(LONG).unwrap();
        assert_eq!((to.as_str(), authorization.as_deref()), (path, Some("Bearer x")));
        let (resource, spans) = spans(&message);
        assert_eq!(shown(&resource.attributes), ["service.name=weft", "zone=a"]);
        assert_eq!(spans.len(), 2);
        let span = &spans[0];
        assert_eq!(span.trace_id, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa, 0xbc]);
        assert_eq!(span.span_id, [0, 0, 0, 0, 0, 0, 0, 0xd]);
        assert_eq!(span.parent_span_id, [0, 0, 0, 0, 0, 0, 0, 0xe]);
        assert_eq!((span.name.as_str(), span.kind, span.flags), ("GET", 3, 1));
        let end = 1_700_000_000_000_000_000;
        assert_eq!(
            (span.start_time_unix_nano, span.end_time_unix_nano),
            (end - 1_500_000, end)
        );
        assert_eq!(span.status, None);
        let common = [
            "http.request.body.size=#0",
            "http.request.method=GET",
            "http.response.body.size=#612",
            "http.response.status_code=#200",
            "network.peer.address=10.0.0.7",
            "network.peer.port=#8080",
            "server.address=web",
            "server.port=#8080",
            "url.path=/a",
            "url.query=b=c",
            "user_agent.original=curl/8",
            "weft.destination.namespace=default",
        ];
        let ends = [
            "weft.source.account=client",
            "weft.source.namespace=default",
            "weft.source.service=shop",
        ];
        assert_eq!(shown(&span.attributes), [&common[..], &ends].concat());
        let verdict = ["weft.verdict=deny"];
        let rule = ["weft.rule=TrafficTarget default/t"];
        assert_eq!(
            shown(&spans[1].attributes),
            [&common[..], &rule, &ends, &verdict].concat()
        );
        let status = spans[1].status.as_ref().unwrap();
        assert_eq!((status.code, status.message.as_str()), (2, "not you"));
        assert_eq!((counted.sent.get(), counted.dropped.get()), (2, 0));
    }
}

#[test]
fn requests_and_connections_are_metrics_over_both_protocols() {
    for (protocol, name, path) in [
        (Protocol::Grpc, "grpc", METRICS),
        (Protocol::Http, "http", "/v1/metrics"),
    ] {
        let (endpoint, came) = receiver(protocol, 0);
        let (mut exporter, counted) = exporter(json!({"endpoint": endpoint, "protocol": name, "signals": ["metrics"]}));
        let slow = {
            let mut slow = samples::request();
            slow.l7.as_mut().unwrap().duration = Duration::from_secs(60);
            slow
        };
        let edge = || Record::Edge(Box::new(samples::edge()));
        send(&mut exporter, &[flow(samples::request()), flow(slow), edge(), edge()]);
        let (to, _, message) = came.recv_timeout(LONG).unwrap();
        assert_eq!(to, path);
        let metrics = metrics(&message);
        let names: Vec<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "http.client.request.duration",
                "weft.connections.opened",
                "weft.connections.closed",
                "weft.connections.sent",
                "weft.connections.received",
            ]
        );
        let Some(Data::Histogram(histogram)) = &metrics[0].data else {
            panic!("{:?}", metrics[0]);
        };
        assert_eq!((histogram.aggregation_temporality, histogram.data_points.len()), (1, 1));
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.sum), (2, Some(60.0015)));
        assert_eq!(point.bucket_counts, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert!(point.start_time_unix_nano > 0 && point.time_unix_nano >= point.start_time_unix_nano);
        assert_eq!(
            shown(&point.attributes),
            [
                "http.request.method=GET",
                "http.response.status_code=#200",
                "server.address=web",
                "weft.destination.namespace=default",
                "weft.protocol=http",
                "weft.source.account=client",
                "weft.source.namespace=default",
                "weft.verdict=allow",
            ]
        );
        let Some(Data::Sum(sum)) = &metrics[3].data else {
            panic!("{:?}", metrics[3]);
        };
        assert_eq!((sum.aggregation_temporality, sum.is_monotonic), (1, true));
        assert_eq!(sum.data_points[0].as_int, Some(2 * 1000));
        assert_eq!(
            shown(&sum.data_points[0].attributes),
            [
                "server.address=web",
                "weft.destination.namespace=default",
                "weft.protocol=tcp",
                "weft.reporter=source",
                "weft.source.account=client",
                "weft.source.namespace=default",
            ]
        );
        // A delta: what was sent is not sent again, and the next begins where this one ended.
        let ended = point.time_unix_nano;
        send(&mut exporter, &[flow(samples::request())]);
        let (.., message) = came.recv_timeout(LONG).unwrap();
        let next = self::metrics(&message);
        let Some(Data::Histogram(histogram)) = &next[0].data else {
            panic!("{next:?}");
        };
        assert_eq!((next.len(), histogram.data_points[0].count), (1, 1));
        assert_eq!(histogram.data_points[0].start_time_unix_nano, ended);
        assert_eq!((counted.sent.get(), counted.dropped.get()), (5, 0));
    }
}

#[test]
fn what_the_receiver_rejects_or_never_gets_is_counted() {
    for (protocol, name) in [(Protocol::Grpc, "grpc"), (Protocol::Http, "http")] {
        let (endpoint, came) = receiver(protocol, 1);
        let (mut exporter, counted) = exporter(json!({"endpoint": endpoint, "protocol": name, "signals": ["traces"]}));
        send(
            &mut exporter,
            &[flow(traced(true)), flow(traced(true)), flow(traced(true))],
        );
        came.recv_timeout(LONG).unwrap();
        assert_eq!(
            (counted.sent.get(), counted.dropped.get(), counted.failures.get()),
            (2, 1, 0),
            "{name}"
        );
    }

    // Nobody listens there.
    for protocol in ["grpc", "http"] {
        let endpoint = "http://127.0.0.1:1";
        let (mut exporter, counted) = exporter(json!({"endpoint": endpoint, "protocol": protocol}));
        send(&mut exporter, &[flow(traced(true)), flow(traced(false))]);
        // One as a span, one as a number; two attempts.
        assert_eq!(
            (counted.sent.get(), counted.dropped.get(), counted.failures.get()),
            (0, 2, 2)
        );
    }
}

/// As the conventions say it: clients make no series, and no names, by methods that they make up.
#[test]
fn methods_that_nobody_knows_are_one() {
    let with = |method: &str| {
        let mut flow = traced(true);
        flow.l7.as_mut().unwrap().method = method.to_owned().into();
        flow
    };
    let span = |method: &str| {
        let flow = with(method);
        let (l7, trace) = (
            flow.l7.as_ref().unwrap(),
            flow.l7.as_ref().unwrap().trace.as_ref().unwrap(),
        );
        let span = spans::span(&flow, l7, trace);
        let methods = shown(&span.attributes)
            .into_iter()
            .filter(|pair| pair.contains("method"));
        (span.name, methods.collect::<Vec<_>>())
    };
    assert_eq!(
        span("PATCH"),
        ("PATCH".to_owned(), vec!["http.request.method=PATCH".to_owned()])
    );
    let (name, methods) = span("BREW");
    assert_eq!(name, "HTTP");
    assert_eq!(
        methods,
        ["http.request.method=_OTHER", "http.request.method_original=BREW"]
    );
    let mut numbers = Numbers::default();
    for method in ["BREW", "get", "MOO"] {
        let flow = with(method);
        assert!(numbers.on_request(&flow, flow.l7.as_ref().unwrap()));
    }
    let metrics = numbers.take(0, 1);
    let Some(Data::Histogram(histogram)) = &metrics[0].data else {
        panic!("{metrics:?}");
    };
    assert_eq!((histogram.data_points.len(), histogram.data_points[0].count), (1, 3));
    assert!(shown(&histogram.data_points[0].attributes).contains(&"http.request.method=_OTHER".to_owned()));
}

#[test]
fn what_was_before_the_daemon_is_no_difference() {
    let mut numbers = Numbers::default();
    let before = EdgeDelta {
        history: true,
        ..samples::edge()
    };
    assert!(numbers.on_edge(&before));
    assert_eq!(numbers.take(0, 1).len(), 0);
    assert!(numbers.on_edge(&samples::edge()));
    assert!(!numbers.take(1, 2).is_empty());
}

#[test]
fn series_are_bounded() {
    let mut numbers = Numbers::default();
    let (mut request, edge) = (
        samples::request(),
        EdgeDelta {
            opened: 1,
            ..samples::edge()
        },
    );
    for number in 0..numbers::MAX_SERIES + 5 {
        request.l7.as_mut().unwrap().status = u16::try_from(number).unwrap();
        let taken = numbers.on_request(&request, request.l7.as_ref().unwrap());
        assert_eq!(taken, number < numbers::MAX_SERIES);
    }
    // Those that there are go on, and connections are another matter.
    request.l7.as_mut().unwrap().status = 0;
    assert!(numbers.on_request(&request, request.l7.as_ref().unwrap()));
    assert!(numbers.on_edge(&edge));
}

#[test]
fn parameters_are_checked() {
    for (config, expect) in [
        (
            json!({"endpoint": "collector:4317"}),
            "field `endpoint`: found `collector:4317`, expected `http[s]://host:port`, like http://localhost:4317",
        ),
        (
            json!({"endpoint": "ftp://collector", "protocol": "http"}),
            "field `endpoint`: found `ftp://collector`, expected `http[s]://host[:port][/path]`, like http://localhost:4318",
        ),
        (
            json!({"endpoint": "http://a:1", "signals": []}),
            "field `signals`: found `[]`, expected `traces`, `metrics` or both",
        ),
        (
            json!({"endpoint": "http://a:1", "sample_probability": -1}),
            "field `sample_probability`: found `-1`, expected 0 to 1",
        ),
        (
            json!({"endpoint": "http://a:1", "timeout": "2m"}),
            "field `timeout`: found `120s`, expected 1ms to 1m",
        ),
        (
            json!({"endpoint": "http://a:1", "headers": {"a b": "secret"}}),
            "field `headers`: found `a b`, expected names and values of headers",
        ),
    ] {
        let config: Config = serde_json::from_value(config).unwrap();
        let error = config.validate().unwrap_err();
        assert_eq!(error.to_string(), format!("adapter `otlp`, {expect}"));
    }
    for config in [
        json!({}),
        json!({"endpoint": "http://a:1", "signals": ["logs"]}),
        json!({"endpoint": "http://a:1", "tls": true}),
    ] {
        assert!(serde_json::from_value::<Config>(config.clone()).is_err(), "{config}");
    }
}

/// Each example of the page is a configuration that loads.
#[test]
fn the_examples_of_the_page_load() {
    let examples = crate::builtin::page_examples(include_str!("README.md"));
    assert_eq!(examples.len(), 2);
    for example in examples {
        serde_json::from_str::<Config>(example).unwrap().validate().unwrap();
    }
}
