//! Filters that tests write down as closures, and what they saw.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode, request};
use tokio::sync::{mpsc, watch};
use weft_adapters::{
    Chain, Chains, Direction, FilterFactory, Lent, ResponseHead, Step, StreamEnd, StreamFilter, StreamInfo, TcpFilter,
    TcpStep,
};

type Act = Arc<dyn Fn(Lent<'_>, bool) -> Step + Send + Sync>;
type TcpAct = Arc<dyn Fn(Direction, &mut BytesMut, bool) -> TcpStep + Send + Sync>;

/// An adapter that notes every call as `NAME POINT [DETAIL] [end]`, the last as `NAME end STATUS SENT RECEIVED [FAILURE]`, and
/// does what the test says.
#[derive(Clone)]
pub struct Script {
    name: &'static str,
    act: Act,
    /// What a pause ends with, once the gate opens.
    resume: Act,
    /// What it does to opaque connections: to a new one, to bytes, and what a pause ends with.
    tcp: Option<(TcpStep, TcpAct, TcpAct)>,
    gate: watch::Receiver<bool>,
    events: mpsc::UnboundedSender<String>,
}

/// What scripts saw, in order.
pub struct Events(mpsc::UnboundedReceiver<String>, mpsc::UnboundedSender<String>);

/// One connection's.
struct TcpScripted {
    script: Script,
    open: TcpStep,
    act: TcpAct,
    resume: TcpAct,
    waiting: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

/// One request's.
struct Scripted {
    script: Script,
    waiting: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

// === impl Events ===

impl Events {
    pub fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self(receiver, sender)
    }

    /// A script that lets everything pass.
    pub fn script(&self, name: &'static str) -> Script {
        Script {
            name,
            act: Arc::new(|_, _| Step::Continue),
            resume: Arc::new(|_, _| Step::Continue),
            tcp: None,
            gate: watch::channel(false).1,
            events: self.1.clone(),
        }
    }

    pub async fn next(&mut self) -> String {
        self.0.recv().await.unwrap()
    }

    /// All up to the end that filter `name` saw.
    pub async fn until_end_of(&mut self, name: &str) -> Vec<String> {
        let mut seen = Vec::new();
        let end = format!("{name} end ");
        loop {
            let event = self.next().await;
            let ended = event.starts_with(&end);
            seen.push(event);
            if ended {
                return seen;
            }
        }
    }

    /// What was seen and not asked for yet.
    pub fn rest(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.0.try_recv().ok()).collect()
    }
}

// === impl Script ===

impl Script {
    pub fn act(mut self, act: impl Fn(Lent<'_>, bool) -> Step + Send + Sync + 'static) -> Self {
        self.act = Arc::new(act);
        self
    }

    pub fn resume(mut self, resume: impl Fn(Lent<'_>, bool) -> Step + Send + Sync + 'static) -> Self {
        self.resume = Arc::new(resume);
        self
    }

    /// Looks at opaque connections: `open` is what becomes of a new one.
    pub fn tcp(
        mut self,
        open: TcpStep,
        act: impl Fn(Direction, &mut BytesMut, bool) -> TcpStep + Send + Sync + 'static,
        resume: impl Fn(Direction, &mut BytesMut, bool) -> TcpStep + Send + Sync + 'static,
    ) -> Self {
        self.tcp = Some((open, Arc::new(act), Arc::new(resume)));
        self
    }

    /// Pauses end when `true` is sent.
    pub fn gated(mut self) -> (Self, watch::Sender<bool>) {
        let (gate, opens) = watch::channel(false);
        self.gate = opens;
        (self, gate)
    }

    /// Gathers the whole of the bodies in upper case.
    pub fn shouting(self) -> Self {
        self.act(|lent, end| match lent {
            Lent::RequestHeaders(head) => {
                head.headers.remove("content-length");
                Step::Continue
            }
            Lent::ResponseHeaders(head) => {
                head.headers.map_mut().remove("content-length");
                Step::Continue
            }
            Lent::RequestBody(body) | Lent::ResponseBody(body) => {
                body.make_ascii_uppercase();
                if end { Step::Continue } else { Step::Pause }
            }
            _ => Step::Continue,
        })
    }

    /// Alone, for every service.
    pub fn chains(self) -> Chains {
        chains([self])
    }

    fn wait(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        let mut gate = self.gate.clone();
        Box::pin(async move {
            if gate.wait_for(|open| *open).await.is_err() {
                // No gate: the next piece decides.
                std::future::pending::<()>().await;
            }
        })
    }

    fn note(&self, what: &str) {
        let _test_is_over = self.events.send(format!("{} {what}", self.name));
    }
}

/// In this order, for every service.
pub fn chains(scripts: impl IntoIterator<Item = Script>) -> Chains {
    Chains::everywhere(chain(scripts))
}

pub fn chain(scripts: impl IntoIterator<Item = Script>) -> Chain {
    Chain {
        filters: scripts.into_iter().map(Script::factory).collect(),
        ..Chain::default()
    }
}

impl Script {
    fn factory(self) -> Arc<dyn FilterFactory> {
        Arc::new(self)
    }
}

/// An answer for [`Step::Respond`].
pub fn respond(status: u16, body: &'static str) -> Step {
    let mut response = Response::new(Bytes::from_static(body.as_bytes()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert("x-by", "filter".parse().unwrap());
    Step::Respond(Box::new(response))
}

impl FilterFactory for Script {
    fn name(&self) -> &str {
        self.name
    }

    fn stream(&self, _: &Arc<StreamInfo>) -> Option<Box<dyn StreamFilter>> {
        Some(Box::new(Scripted {
            script: self.clone(),
            waiting: None,
        }))
    }

    fn tcp(&self, _: &Arc<StreamInfo>) -> Option<Box<dyn TcpFilter>> {
        let (open, act, resume) = self.tcp.clone()?;
        Some(Box::new(TcpScripted {
            script: self.clone(),
            open,
            act,
            resume,
            waiting: None,
        }))
    }
}

// === impl Scripted ===

impl Scripted {
    fn run(&mut self, what: &str, lent: Lent<'_>, end: bool) -> Step {
        self.script.note(&format!("{what}{}", if end { " end" } else { "" }));
        (self.script.act)(lent, end)
    }
}

impl StreamFilter for Scripted {
    fn on_request_headers(&mut self, head: &mut request::Parts, end: bool) -> Step {
        self.run(
            &format!("request-head {}", head.uri.path()),
            Lent::RequestHeaders(head),
            end,
        )
    }

    fn on_request_body(&mut self, body: &mut BytesMut, end: bool) -> Step {
        self.run(&format!("request-body {}", body.len()), Lent::RequestBody(body), end)
    }

    fn on_request_trailers(&mut self, trailers: &mut HeaderMap, body: &mut BytesMut) -> Step {
        self.run("request-trailers", Lent::RequestTrailers(trailers, body), false)
    }

    fn on_response_headers(&mut self, head: &mut ResponseHead, end: bool) -> Step {
        self.run(
            &format!("response-head {}", head.status.as_u16()),
            Lent::ResponseHeaders(head),
            end,
        )
    }

    fn on_response_body(&mut self, body: &mut BytesMut, end: bool) -> Step {
        self.run(&format!("response-body {}", body.len()), Lent::ResponseBody(body), end)
    }

    fn on_response_trailers(&mut self, trailers: &mut HeaderMap, body: &mut BytesMut) -> Step {
        self.run("response-trailers", Lent::ResponseTrailers(trailers, body), false)
    }

    fn poll_resume(&mut self, cx: &mut Context<'_>, lent: Lent<'_>) -> Poll<Step> {
        let waiting = self.waiting.get_or_insert_with(|| self.script.wait());
        ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready((self.script.resume)(lent, false))
    }

    fn on_end(&mut self, end: &StreamEnd) {
        let (sent, received) = (end.request_bytes, end.response_bytes);
        let failure = end.failure.map_or_else(String::new, |failure| format!(" {failure:?}"));
        self.script
            .note(&format!("end {} {sent} {received}{failure}", end.status));
    }
}

// === impl TcpScripted ===

impl TcpFilter for TcpScripted {
    fn on_connection(&mut self) -> TcpStep {
        self.script.note("connection");
        self.open
    }

    fn on_data(&mut self, from: Direction, data: &mut BytesMut, end: bool) -> TcpStep {
        let end_word = if end { " end" } else { "" };
        self.script.note(&format!("{from:?} {}{end_word}", data.len()));
        (self.act)(from, data, end)
    }

    fn poll_resume(&mut self, cx: &mut Context<'_>, from: Direction, data: &mut BytesMut) -> Poll<TcpStep> {
        let waiting = self.waiting.get_or_insert_with(|| self.script.wait());
        ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready((self.resume)(from, data, false))
    }

    fn on_close(&mut self, by: Direction) {
        self.script.note(&format!("{by:?} closed"));
    }

    fn on_end(&mut self) {
        self.script.note("end ");
    }
}
