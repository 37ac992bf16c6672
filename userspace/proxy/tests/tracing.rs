//! Traces through the proxy. A process of their own: that somebody reports spans is known to all of it.

use std::sync::Arc;

use http::{HeaderMap, Request};
use tokio::sync::mpsc;
use weft_adapters::{
    Flow,
    trace::{Demand, Trace},
};

use self::support::{H1, Mesh, Port, Spec, Text, client::empty, server};

#[allow(dead_code, unused_imports, reason = "shared with the other tests, which use more")]
#[path = "proxy/support/mod.rs"]
mod support;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// What the endpoint got, and what was reported.
async fn through(headers: &[(&str, &str)]) -> (HeaderMap, Arc<Flow>) {
    let (told, mut got) = mpsc::unbounded_channel();
    let server = server::Server::http1(move |request| {
        told.send(request.headers().clone()).unwrap();
        async { server::text("web") }
    })
    .await;
    let mut mesh = Mesh::start(&Spec::of([Port::http("web", [server.address])]));
    let mut request = Request::get("/").header("host", "web");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(empty()).unwrap();
    let answer = H1::new(mesh.dial(0).await).await.send(request).await;
    assert_eq!(Text::read(answer).await.body, "web");
    (got.recv().await.unwrap(), mesh.flow().await)
}

fn trace(flow: &Flow) -> Option<Trace> {
    flow.l7.as_ref().unwrap().trace.as_deref().copied()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

/// One test, because the demand is the process's.
#[tokio::test]
async fn a_request_is_a_span_between_its_caller_and_what_it_causes_while_somebody_reports_spans() {
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let w3c = [("traceparent", parent.as_str()), ("tracestate", "a=1")];

    // Nobody reports spans: nothing is touched.
    let (headers, flow) = through(&w3c).await;
    assert_eq!(text(&headers, "traceparent"), Some(parent.as_str()));
    assert_eq!(trace(&flow), None);
    let (headers, _) = through(&[]).await;
    assert_eq!(text(&headers, "traceparent"), None);

    let demand = Demand::new(0.0);
    let (headers, flow) = through(&w3c).await;
    let span = trace(&flow).unwrap();
    assert_eq!(
        (span.trace_id.to_string(), span.parent_id.unwrap().to_string()),
        (TRACE.into(), SPAN.into())
    );
    assert!(span.sampled);
    let passed = format!("00-{TRACE}-{}-01", span.span_id);
    assert_eq!(text(&headers, "traceparent"), Some(passed.as_str()));
    assert_eq!(text(&headers, "tracestate"), Some("a=1"));

    let (headers, flow) = through(&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "0")]).await;
    let span = trace(&flow).unwrap();
    assert!(!span.sampled);
    let own = span.span_id.to_string();
    for (name, expect) in [
        ("x-b3-traceid", Some(TRACE)),
        ("x-b3-spanid", Some(own.as_str())),
        ("x-b3-parentspanid", Some(SPAN)),
        ("x-b3-sampled", Some("0")),
        ("traceparent", None),
    ] {
        assert_eq!(text(&headers, name), expect, "{name}");
    }

    // A request without a trace begins one, which is not sampled here.
    let (headers, flow) = through(&[]).await;
    let span = trace(&flow).unwrap();
    assert_eq!((span.parent_id, span.sampled), (None, false));
    let passed = format!("00-{}-{}-00", span.trace_id, span.span_id);
    assert_eq!(text(&headers, "traceparent"), Some(passed.as_str()));

    // The largest share counts.
    let all = Demand::new(1.0);
    assert!(trace(&through(&[]).await.1).unwrap().sampled);
    drop(all);
    assert!(!trace(&through(&[]).await.1).unwrap().sampled);
    drop(demand);
    assert_eq!(trace(&through(&w3c).await.1), None);
}
