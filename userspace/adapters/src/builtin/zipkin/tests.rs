use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use weft_policy::ObjectRef;

use super::*;
use crate::{
    record::{Flow, FlowProtocol, FlowVerdict, samples},
    reporter::Report,
    trace::{SpanId, Trace, TraceId},
};

const LONG: Duration = Duration::from_secs(20);

/// What was posted: path, content type, body; and the number of the connection.
type Posted = (String, String, Value, usize);

/// An HTTP server that takes what is posted and answers with these statuses, the last one for ever.
fn receiver(statuses: &'static [u16]) -> (String, mpsc::Receiver<Posted>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/api/v2/spans", listener.local_addr().unwrap());
    let (sender, posted) = mpsc::channel();
    thread::spawn(move || {
        let mut left = statuses;
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = BufReader::new(stream.unwrap());
            while let Some((path, kind, body)) = read(&mut stream) {
                let status = left[0];
                left = if left.len() > 1 { &left[1..] } else { left };
                let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 2\r\n\r\nok");
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
                if sender.send((path, kind, body, number)).is_err() {
                    return;
                }
            }
        }
    });
    (url, posted)
}

fn read(stream: &mut BufReader<TcpStream>) -> Option<(String, String, Value)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
        match line.trim() {
            "" => break,
            line => lines.push(line.to_lowercase()),
        }
    }
    let header = |name: &str| {
        let line = lines.iter().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    let path = lines[0].split(' ').nth(1).unwrap().to_owned();
    let mut body = vec![0; header("content-length:").parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    Some((path, header("content-type:"), serde_json::from_slice(&body).unwrap()))
}

fn exporter(url: &str) -> (Exporter, ExportMetrics) {
    let metrics = ReportMetrics::default();
    // A flush sends; nothing waits for that long.
    let config = serde_json::from_value(json!({"url": url, "flush_duration": "1m"})).unwrap();
    let exporter = start("zipkin", config, &metrics).unwrap();
    (exporter, ExportMetrics::of("zipkin", &metrics))
}

fn traced(flow: Flow, parent: Option<u64>, sampled: bool) -> Flow {
    let mut flow = flow;
    flow.l7.as_mut().unwrap().trace = Some(Box::new(Trace {
        trace_id: TraceId(0xabc),
        span_id: SpanId(0xd),
        parent_id: parent.map(SpanId),
        sampled,
    }));
    flow
}

fn send(exporter: &mut Exporter, flows: Vec<Flow>) {
    let records: Vec<_> = flows.into_iter().map(|flow| Record::Flow(Arc::new(flow))).collect();
    exporter.report(&records);
    exporter.flush();
    exporter.wait(Instant::now() + LONG);
}

#[test]
fn a_request_is_a_span_from_service_to_service() {
    let (url, posted) = receiver(&[202]);
    let (mut exporter, metrics) = exporter(&url);
    let grpc = Flow {
        protocol: FlowProtocol::Grpc,
        verdict: FlowVerdict::Deny,
        reason: "denied: not you".into(),
        rule: Some(Arc::new(ObjectRef {
            kind: "Adapter".into(),
            namespace: None,
            name: "a".into(),
        })),
        ..traced(samples::request(), None, true)
    };
    let grpc = {
        let mut grpc = grpc;
        let l7 = grpc.l7.as_mut().unwrap();
        (l7.path, l7.grpc_status, l7.user_agent) = ("/pkg.Service/Call".into(), Some(7), None);
        grpc
    };
    send(
        &mut exporter,
        vec![
            traced(samples::request(), Some(0xe), true),
            samples::request(),
            traced(samples::request(), Some(0xe), false),
            grpc,
        ],
    );
    let (path, kind, body, _) = posted.recv_timeout(LONG).unwrap();
    assert_eq!((path.as_str(), kind.as_str()), ("/api/v2/spans", "application/json"));
    let both = json!({
        "traceId": "00000000000000000000000000000abc", "id": "000000000000000d", "kind": "CLIENT",
        "timestamp": 1_699_999_999_998_500_u64, "duration": 1500,
        "localEndpoint": {"serviceName": "shop"},
        "remoteEndpoint": {"serviceName": "web", "ipv4": "10.0.0.7", "port": 8080},
    });
    let tags = json!({
        "http.method": "GET", "http.status_code": "200", "http.request.size": "0", "http.response.size": "612",
        "source.principal": "default/client", "destination.namespace": "default",
    });
    let with = |base: &Value, more: Value| {
        let mut value = base.clone();
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        value
    };
    let first = with(&tags, json!({"http.path": "/a", "http.user_agent": "curl/8"}));
    let second = with(
        &tags,
        json!({"http.path": "/pkg.Service/Call", "grpc.status_code": "7", "weft.verdict": "deny", "weft.rule": "Adapter a",
            "error": "denied: not you"}),
    );
    let expect = json!([
        with(
            &both,
            json!({"parentId": "000000000000000e", "name": "get", "tags": first})
        ),
        with(&both, json!({"name": "pkg.service/call", "tags": second})),
    ]);
    assert_eq!(body, expect);
    assert_eq!((metrics.sent.get(), metrics.dropped.get()), (2, 0));
}

#[test]
fn a_connection_is_kept_and_what_is_refused_is_counted() {
    let (url, posted) = receiver(&[202, 500, 202]);
    let (mut exporter, metrics) = exporter(&url);
    for (sent, dropped) in [(1, 0), (1, 1), (2, 1)] {
        send(&mut exporter, vec![traced(samples::request(), None, true)]);
        posted.recv_timeout(LONG).unwrap();
        assert_eq!((metrics.sent.get(), metrics.dropped.get()), (sent, dropped));
    }
    send(&mut exporter, vec![traced(samples::request(), None, true)]);
    // Given up after the failure, and the new one kept.
    assert_eq!(posted.recv_timeout(LONG).unwrap().3, 1);
    assert_eq!(metrics.failures.get(), 1);
}

#[test]
fn spans_that_nobody_takes_are_counted() {
    let (mut exporter, metrics) = exporter("http://127.0.0.1:1/api/v2/spans");
    send(&mut exporter, vec![traced(samples::request(), None, true); 3]);
    assert_eq!(
        (metrics.sent.get(), metrics.dropped.get(), metrics.failures.get()),
        (0, 3, 1)
    );
}

#[test]
fn parameters_are_checked() {
    for (config, expect) in [
        (
            json!({"url": "ftp://a/b"}),
            "field `url`: found `ftp://a/b`, expected `http[s]://host[:port]/api/v2/spans`",
        ),
        (
            json!({"url": "zipkin:9411"}),
            "field `url`: found `zipkin:9411`, expected `http[s]://host[:port]/api/v2/spans`",
        ),
        (
            json!({"url": "http://a/b", "sample_probability": 1.5}),
            "field `sample_probability`: found `1.5`, expected 0 to 1",
        ),
        (
            json!({"url": "http://a/b", "flush_duration": "2m"}),
            "field `flush_duration`: found `120s`, expected 1ms to 1m",
        ),
    ] {
        let config: Config = serde_json::from_value(config).unwrap();
        let error = config.validate().unwrap_err();
        assert_eq!(error.to_string(), format!("adapter `zipkin`, {expect}"));
    }
    assert!(serde_json::from_value::<Config>(json!({"url": "http://a/b", "service": "x"})).is_err());
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
