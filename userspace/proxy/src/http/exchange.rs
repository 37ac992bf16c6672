//! What must be known about a request when it is over.
//!
//! Both bodies and the task that forwards hold the [`Exchange`]; whoever lets go last ends the request. So one flow
//! event goes out for each, also for those that broke off, and none before the last byte.

use std::{
    borrow::Cow,
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version, request::Parts};
use hyper::body::Frame;
use tokio::time::Instant;
use weft_adapters::{
    Destination, Flow, FlowEvent, FlowProtocol, FlowVerdict, HeaderOperation, L7, Record, Side, StreamEnd,
    StreamFailure, method_word, told, trace::Trace,
};
use weft_policy::ObjectRef;

use super::{agents::Agents, failure};
use crate::{
    conn::Conn,
    error::FaultSide,
    filter::{Chain, Stop},
    io::ConnClock,
    metrics::RequestOutcome,
    pick::Picked,
    report,
};

/// Content type of gRPC, and what may follow it (`+proto`).
const GRPC: &str = "application/grpc";

/// One request, from its headers to the last byte of its answer.
pub(crate) struct Exchange {
    pub(crate) conn: Rc<Conn>,
    pub(crate) grpc: bool,
    pub(crate) is_http1: bool,
    pub(crate) method: Method,
    clock: Arc<ConnClock>,
    began: Instant,
    path: String,
    user_agent: Option<Arc<str>>,
    request_bytes: Cell<u64>,
    response_bytes: Cell<u64>,
    /// 0: the client got none.
    status: Cell<u16>,
    grpc_status: Cell<Option<u16>>,
    request_broke: Cell<bool>,
    /// There is a body, and its end was not seen yet.
    request_body: Cell<bool>,
    /// Set where filters look at it: they must see its end.
    chain: OnceCell<Chain>,
    outcome: Cell<RequestOutcome>,
    /// What filters are told at the end.
    failure: Cell<Option<StreamFailure>>,
    /// What adapters want changed in the endpoint's answer.
    on_answer: RefCell<Vec<HeaderOperation>>,
    /// Where somebody reports spans.
    trace: Option<Box<Trace>>,
    told: RefCell<Told>,
}

/// What the client asked for, as it is told at the end.
pub(crate) struct Asked {
    pub(crate) method: Method,
    /// With its query.
    pub(crate) path: String,
    pub(crate) user_agent: Option<Arc<str>>,
    pub(crate) grpc: bool,
    pub(crate) is_http1: bool,
    /// Where somebody reports spans.
    pub(crate) trace: Option<Box<Trace>>,
}

struct Told {
    verdict: FlowVerdict,
    reason: Cow<'static, str>,
    rule: Option<Arc<ObjectRef>>,
    /// `None`: no endpoint was picked.
    destination: Option<Arc<Destination>>,
}

// === impl Asked ===

impl Asked {
    pub(crate) fn of(head: &Parts, agents: &Agents) -> Self {
        let content_type = head
            .headers
            .get(http::header::CONTENT_TYPE)
            .map_or(&b""[..], |value| value.as_bytes());
        Self {
            method: head.method.clone(),
            path: head
                .uri
                .path_and_query()
                .map_or_else(|| told(&head.uri.to_string()), |path| told(path.as_str())),
            user_agent: head
                .headers
                .get(http::header::USER_AGENT)
                .map(|value| agents.of(value.as_bytes())),
            grpc: is_grpc(content_type),
            is_http1: head.version < Version::HTTP_2,
            trace: Trace::of(&head.headers).map(Box::new),
        }
    }
}

// === impl Exchange ===

impl Exchange {
    pub(crate) fn new(conn: &Rc<Conn>, clock: &Arc<ConnClock>, asked: Asked) -> Rc<Self> {
        clock.request_began();
        Rc::new(Self {
            conn: Rc::clone(conn),
            grpc: asked.grpc,
            is_http1: asked.is_http1,
            method: asked.method,
            clock: Arc::clone(clock),
            began: Instant::now(),
            path: asked.path,
            user_agent: asked.user_agent,
            request_bytes: Cell::new(0),
            response_bytes: Cell::new(0),
            status: Cell::new(0),
            grpc_status: Cell::new(None),
            request_broke: Cell::new(false),
            request_body: Cell::new(false),
            chain: OnceCell::new(),
            outcome: Cell::new(RequestOutcome::Downstream),
            failure: Cell::new(Some(StreamFailure::Downstream)),
            on_answer: RefCell::default(),
            trace: asked.trace,
            told: RefCell::new(Told {
                verdict: FlowVerdict::Allow,
                reason: Cow::Borrowed("the client went away before it was answered"),
                rule: None,
                destination: None,
            }),
        })
    }

    /// What the request causes belongs to this span.
    pub(crate) fn pass_trace_on(&self, headers: &mut HeaderMap) {
        if let Some(trace) = &self.trace {
            trace.write(headers);
        }
    }

    pub(crate) fn set_destination(&self, destination: &Arc<Destination>) {
        self.told.borrow_mut().destination = Some(Arc::clone(destination));
    }

    pub(crate) fn destination(&self) -> Arc<Destination> {
        let picked = self.told.borrow().destination.clone();
        picked.unwrap_or_else(|| self.conn.unpicked())
    }

    pub(crate) fn set_rule(&self, rule: Option<Arc<ObjectRef>>) {
        self.told.borrow_mut().rule = rule;
    }

    /// The endpoint that was picked may be asked.
    pub(crate) fn allowed(&self, rule: Option<Arc<ObjectRef>>) {
        let mut told = self.told.borrow_mut();
        (told.verdict, told.rule) = (FlowVerdict::Allow, rule);
    }

    /// It may be asked all the same: what would have denied it is audited.
    pub(crate) fn audited(&self, rule: Option<Arc<ObjectRef>>, why: &str) {
        let mut told = self.told.borrow_mut();
        (told.verdict, told.rule) = (FlowVerdict::Audit, rule);
        told.reason = report::audit_words(why).into();
    }

    /// Changes to the endpoint's answer, when it comes.
    pub(crate) fn on_answer(&self, operations: Vec<HeaderOperation>) {
        self.on_answer.replace(operations);
    }

    /// Whether there are any.
    pub(crate) fn changes_answer(&self) -> bool {
        !self.on_answer.borrow().is_empty()
    }

    pub(crate) fn change_answer(&self, headers: &mut HeaderMap) {
        for operation in self.on_answer.borrow().iter() {
            operation.apply(headers);
        }
    }

    /// The answer's head goes to the client.
    pub(crate) fn answered(&self, status: StatusCode) {
        self.status.set(status.as_u16());
        self.outcome.set(RequestOutcome::Forwarded);
        let mut told = self.told.borrow_mut();
        if told.verdict != FlowVerdict::Audit {
            told.reason = Cow::Borrowed("answered");
        }
    }

    /// The client gets an answer of ours.
    pub(crate) fn refused(&self, status: StatusCode, grpc: Option<u16>, outcome: RequestOutcome, reason: &str) {
        self.status.set(status.as_u16());
        self.grpc_status.set(grpc);
        self.outcome.set(outcome);
        self.failure.set(None);
        let mut told = self.told.borrow_mut();
        told.reason = Cow::Owned(reason.to_owned());
        if outcome == RequestOutcome::Denied {
            told.verdict = FlowVerdict::Deny;
        }
    }

    /// It is for this that the client gets an answer of ours, or none.
    pub(crate) fn failed(&self, failure: StreamFailure) {
        self.failure.set(Some(failure));
    }

    /// Nothing of the answer is left to be sent to the client, who was there up to now.
    pub(crate) fn response_ended(&self) {
        if self.failure.get() == Some(StreamFailure::Downstream) {
            self.failure.set(None);
        }
    }

    /// A piece of the request comes in.
    pub(crate) fn request_frame(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        count(&self.request_bytes, &frame);
        frame
    }

    /// A piece of the response goes out.
    pub(crate) fn response_frame(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        count(&self.response_bytes, &frame);
        if let Some(trailers) = frame.trailers_ref() {
            self.note_grpc_status(trailers);
        }
        frame
    }

    /// Bytes of the response's body go out.
    pub(crate) fn response_data(&self, count: usize) {
        self.response_bytes.set(self.response_bytes.get() + count as u64);
    }

    /// Bytes of a tunnel after an upgrade.
    pub(crate) fn tunnelled(&self, sent: u64, received: u64) {
        self.request_bytes.set(self.request_bytes.get() + sent);
        self.response_bytes.set(self.response_bytes.get() + received);
    }

    /// The request has a body.
    pub(crate) fn request_body_began(&self) {
        self.request_body.set(true);
        self.clock.body_began();
    }

    /// The end of its body was read, if it has one.
    pub(crate) fn request_body_ended(&self) {
        if self.request_body.replace(false) {
            self.clock.body_ended();
        }
    }

    /// Somebody else reads its body to the end, if it has one, and then tells the returned clock.
    pub(crate) fn leave_request_body(&self) -> Option<Arc<ConnClock>> {
        self.request_body.replace(false).then(|| Arc::clone(&self.clock))
    }

    /// The client's body was malformed or cut.
    pub(crate) fn request_broke(&self) {
        self.request_broke.set(true);
    }

    pub(crate) fn has_request_broken(&self) -> bool {
        self.request_broke.get()
    }

    /// The endpoint's body was malformed or cut, after the head had gone to the client.
    pub(crate) fn response_broke(&self, error: &(dyn std::error::Error + 'static)) {
        self.outcome.set(RequestOutcome::Upstream);
        self.failed(failure::of_answer(error));
        self.told.borrow_mut().reason = format!("the endpoint broke off its answer: {error}").into();
    }

    /// The filters that look at it, to its end.
    pub(crate) fn chain(&self) -> Option<&Chain> {
        self.chain.get()
    }

    /// Makes the filters that look at requests to `picked`, if any do.
    pub(crate) fn begin_filters(&self, picked: &Picked) -> Option<&Chain> {
        let pause = self.conn.worker.config.filter_pause;
        let chain = Chain::new(picked, pause, || self.conn.stream_info(picked, self.protocol()))?;
        Some(self.chain.get_or_init(|| chain))
    }

    /// A filter answers in the endpoint's place. An error of its choosing is a deny.
    pub(crate) fn answered_by(&self, adapter: &str, status: StatusCode, told: StatusCode, grpc: Option<u16>) {
        if status.is_client_error() || status.is_server_error() {
            let reason = format!("denied by adapter {adapter}: {status}");
            self.refused(told, grpc, RequestOutcome::Denied, &reason);
            self.set_rule(Some(report::adapter(adapter)));
        } else {
            let reason = format!("answered by adapter {adapter}");
            self.refused(told, grpc, RequestOutcome::Forwarded, &reason);
            let mut told = self.told.borrow_mut();
            if told.verdict == FlowVerdict::Deny {
                // It answers in place of a refusal.
                (told.verdict, told.rule) = (FlowVerdict::Allow, Some(report::adapter(adapter)));
            }
        }
    }

    /// Rules deny now what they allowed, and it is cut.
    pub(crate) fn denied_later(&self, rule: Option<Arc<ObjectRef>>, why: &str) {
        self.outcome.set(RequestOutcome::Denied);
        self.failed(StreamFailure::Other);
        let mut told = self.told.borrow_mut();
        (told.verdict, told.rule) = (FlowVerdict::Deny, rule);
        told.reason = format!("cut, denied by now: {why}").into();
    }

    /// A filter changed the status of an answer of ours.
    pub(crate) fn set_status(&self, status: StatusCode) {
        self.status.set(status.as_u16());
    }

    /// A filter ends the stream without an answer, or after its head.
    pub(crate) fn cut_by(&self, stop: &Stop) {
        self.outcome.set(RequestOutcome::Denied);
        self.failed(match stop {
            Stop::Late { .. } => StreamFailure::Held,
            _ => StreamFailure::Other,
        });
        let mut told = self.told.borrow_mut();
        told.reason = stop.cut_words().into();
        told.verdict = FlowVerdict::Deny;
        told.rule = Some(report::adapter(stop.by()));
    }

    fn protocol(&self) -> FlowProtocol {
        if self.grpc {
            FlowProtocol::Grpc
        } else {
            FlowProtocol::Http
        }
    }

    /// Where the answer's headers, or its trailers, say how a gRPC call ended.
    pub(crate) fn note_grpc_status(&self, headers: &HeaderMap) {
        if self.grpc
            && let Some(status) = headers.get("grpc-status")
        {
            self.grpc_status
                .set(status.to_str().ok().and_then(|text| text.parse().ok()));
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let now = Instant::now();
        let duration = now.duration_since(self.began);
        self.clock.request_ended(now);
        let worker = &self.conn.worker;
        if let Some(chain) = self.chain.get_mut() {
            chain.end(&StreamEnd {
                status: self.status.get(),
                duration,
                request_bytes: self.request_bytes.get(),
                response_bytes: self.response_bytes.get(),
                failure: self.failure.get(),
            });
        }
        worker.count_request(self.outcome.get());
        let protocol = self.protocol();
        let told = self.told.get_mut();
        worker.reporter.record(Record::Flow(Arc::new(Flow {
            time: SystemTime::now(),
            event: FlowEvent::Request,
            reporter: Side::Proxy,
            verdict: told.verdict,
            reason: std::mem::take(&mut told.reason),
            rule: told.rule.take(),
            source: Arc::clone(&self.conn.source),
            destination: told.destination.take().unwrap_or_else(|| self.conn.unpicked()),
            protocol,
            l7: Some(L7 {
                method: method_word(self.method.as_str()),
                path: std::mem::take(&mut self.path),
                status: self.status.get(),
                duration,
                request_bytes: self.request_bytes.get(),
                response_bytes: self.response_bytes.get(),
                grpc_status: self.grpc_status.get(),
                user_agent: self.user_agent.take(),
                trace: self.trace.take(),
            }),
            bytes_sent: self.request_bytes.get(),
            bytes_received: self.response_bytes.get(),
            rtt_us: None,
            errno: None,
        })));
    }
}

/// Which side's fault counts as which outcome.
pub(crate) fn outcome_of(side: FaultSide) -> RequestOutcome {
    match side {
        FaultSide::Downstream => RequestOutcome::Downstream,
        FaultSide::Upstream => RequestOutcome::Upstream,
        FaultSide::Ours => RequestOutcome::Ours,
    }
}

fn count(counter: &Cell<u64>, frame: &Frame<Bytes>) {
    if let Some(data) = frame.data_ref() {
        counter.set(counter.get() + data.len() as u64);
    }
}

fn is_grpc(content_type: &[u8]) -> bool {
    let (word, rest) = content_type.split_at(content_type.len().min(GRPC.len()));
    word.eq_ignore_ascii_case(GRPC.as_bytes()) && matches!(rest.first(), None | Some(b'+' | b';'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_told_by_its_content_type_only() {
        for (content_type, expect) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(is_grpc(content_type.as_bytes()), expect, "{content_type}");
        }
    }
}
