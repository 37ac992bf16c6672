//! The short way of requests without a body that are written as everybody writes them. Most are.
//!
//! hyper's two connections, the maps of headers between them and the channels that join these cost several times what the
//! rules do. Here a head is read where it lies, judged, and written on with what is ours left out; the answer follows it. What a
//! request meets is the same: the same pick, the same rules, the same adapters, the same report at its end. Whatever is unusual,
//! and what the rules do not allow, is handed to hyper as it came, before anything of it has gone anywhere; [`request_lines`] says
//! what that is.
//!
//! ```text
//!  client --> Head::read --> pick, rules ---> Head::write --> endpoint                 plain.rs
//!               |                  |   +-> checks -+     |                             looked_at.rs
//!               |                  |         +-> filters --> write_shown
//!               | hyper is to look | no
//!               +------------------+--> server.rs, forward.rs
//!  client <-- response::read (head), Body::next (framing said anew) <-- endpoint
//! ```
//! Header names go on as they were written there (where adapters may change something, in lower case, as hyper writes them).
//! Answers' trailers reach filters and not the client, which has not asked for any; interim heads reach nobody. Whoever waits has no
//! buffer ([`buffers`]).

mod answer;
mod ask;
pub(crate) mod buffers;
mod chunks;
mod lines;
mod looked_at;
mod plain;
mod request_lines;
mod response;
mod write;

use std::{
    future::poll_fn,
    mem::MaybeUninit,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use tokio::{io::AsyncWriteExt, task::coop::unconstrained};
use weft_adapters::trace;
use weft_policy::{ObjectRef, Verdict};

pub(crate) use self::{
    answer::LeanAnswer,
    response::{AnswerError, number},
};
use self::{buffers::Buffer, looked_at::Shown, request_lines::Head};
use super::exchange::Exchange;
use crate::{
    conn::Conn,
    io::{ConnClock, Prefixed, Socket},
    judge,
    limits::{CHEAP_BOX, MAX_HEADERS},
    listen::stop::Phase,
    metrics::ProxyMetrics,
    pick::{Picked, pick_now},
    report,
};

/// How [`serve`] ended.
pub(crate) enum Ended {
    /// The connection is over.
    Over,
    /// hyper is to go on with it.
    Handed,
}

/// What becomes of a connection after a request.
enum Next {
    Request,
    Close,
    /// Nothing of the request was used up.
    Hyper,
}

/// Why it may be asked.
enum Allowed {
    /// By this object.
    By(Option<Arc<ObjectRef>>),
    /// Only because what would deny it is audited: that object, and why.
    Audited(Option<Arc<ObjectRef>>, String),
}

/// A request that may go the short way.
struct Admitted {
    exchange: Rc<Exchange>,
    picked: Rc<Picked>,
    /// Bytes of its head.
    length: usize,
    /// The head for adapters, if any look.
    shown: Option<Box<Shown>>,
}

/// Serves requests that go the short way, one after the other, until one does not. `stream` is the caller's: whatever is moved, every
/// connection that waits has twice.
#[expect(clippy::manual_async_fn, reason = "an async fn has what it is given twice")]
pub(crate) fn serve<'a>(
    conn: &'a Rc<Conn>,
    clock: &'a Arc<ConnClock>,
    stream: &'a mut Prefixed<Socket>,
) -> impl Future<Output = Ended> + 'a {
    async move {
        let mut input = Buffer::default();
        if stream.has_prefix() {
            input = conn.worker.buffers.input();
            if !input.put(stream.prefix()) {
                conn.worker.buffers.give_input(input);
                return Ended::Handed;
            }
            stream.forget_prefix();
        }
        let mut stop = conn.stop.clone();
        // It wakes this task, once it has polled it, and needs no poll before: that takes locks. Past tokio's budget, for one that is
        // used up would put the first poll off.
        let mut draining = pin!(unconstrained(stop.reached(Phase::Drain)));
        let mut idle = conn.worker.idlers.join(clock);
        let mut polled = false;
        loop {
            if input.is_empty() {
                let _resting = Resting::new(&conn.worker.metrics);
                let more = poll_fn(|cx| {
                    if let Poll::Ready(read) = conn.worker.buffers.poll_more(&mut input, stream.stream_mut(), cx) {
                        return Poll::Ready(matches!(read, Ok(1..)));
                    }
                    if idle.has_waited(cx) {
                        return Poll::Ready(false);
                    }
                    // A phase before the drain has used the wake-up.
                    let told = !polled || conn.stop.has_reached(Phase::Retire);
                    polled = true;
                    match told && draining.as_mut().poll(cx).is_ready() {
                        true => Poll::Ready(false),
                        false => Poll::Pending,
                    }
                });
                if !more.await {
                    break;
                }
            }
            // In a box: a connection that waits has nothing of it.
            match boxed(exchange(conn, clock, stream.stream_mut(), &mut input)).await {
                Next::Request => conn.worker.buffers.take_back(&mut input),
                Next::Close => break,
                Next::Hyper => {
                    stream.prepend(Bytes::copy_from_slice(input.unread()));
                    conn.worker.buffers.give_input(input);
                    return Ended::Handed;
                }
            }
        }
        conn.worker.buffers.give_input(input);
        let _gone = stream.shutdown().await;
        Ended::Over
    }
}

/// As [`Box::pin`], for what every request needs: no larger than what the allocator keeps at hand for a thread.
fn boxed<F: Future>(future: F) -> Pin<Box<F>> {
    const { assert!(size_of::<F>() <= CHEAP_BOX) }
    Box::pin(future)
}

/// One request, from its head in `input` to the last byte of its answer.
async fn exchange(conn: &Rc<Conn>, clock: &Arc<ConnClock>, client: &mut Socket, input: &mut Buffer) -> Next {
    let worker = &conn.worker;
    let mut out = worker.buffers.output();
    let next = match admit(conn, clock, input.unread(), &mut out) {
        None => Next::Hyper,
        Some(Admitted {
            exchange,
            picked,
            length,
            shown,
        }) => match shown {
            Some(shown) => {
                input.consume(length);
                worker.buffers.take_back(input);
                // In a box: it is several times what those have that nobody looks at.
                boxed(looked_at::forward(&exchange, picked, shown, client, &mut out)).await
            }
            None => plain::forward(&exchange, picked, client, input, length, &mut out).await,
        },
    };
    worker.buffers.give_output(out);
    next
}

/// Picks and judges as [`super::forward`] does; appends the head that goes to the endpoint to `out`, unless filters are to see it.
/// `None`: hyper is to look.
fn admit(conn: &Rc<Conn>, clock: &Arc<ConnClock>, bytes: &[u8], out: &mut Vec<u8>) -> Option<Admitted> {
    if trace::is_wanted() {
        return None;
    }
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let head = Head::read(bytes, &mut lines)?;
    let picked = pick_now(conn, &head)?;
    let verdict = match conn.last.allowed(&picked) {
        Some(rule) => Allowed::By(rule),
        None => allowed(conn, &picked, &head)?,
    };
    let shown = match picked.is_looked_at() {
        true => Some(Box::new(Shown::new(&head, bytes, &picked)?)),
        false => None,
    };
    // Where filters look, it is written when they have.
    if !picked.is_filtered() {
        head.write(conn.forwarded_for.as_ref(), out);
    }
    let exchange = Exchange::new(conn, clock, head.asked(&conn.worker.agents));
    verdict.note(&exchange, &picked);
    Some(Admitted {
        exchange,
        picked,
        length: head.length,
        shown,
    })
}

/// `None`: it may not be asked. What is said of all requests to `picked` alike, the connection remembers.
fn allowed(conn: &Conn, picked: &Rc<Picked>, head: &Head<'_, '_>) -> Option<Allowed> {
    let all = judge::all_requests(conn, picked);
    let decision = match all {
        Some(decision) => decision,
        None => judge::request(conn, picked, head),
    };
    let rule = report::rule_object(&picked.snapshot, decision.rule);
    match decision.verdict {
        Verdict::Allow => {
            let rule = rule.or_else(|| picked.split.clone());
            if all.is_some() {
                conn.last.all_allowed(picked, rule.clone());
            }
            Some(Allowed::By(rule))
        }
        Verdict::Audit => {
            let why = report::deny_words(rule.as_deref(), &picked.destination);
            Some(Allowed::Audited(rule, why))
        }
        Verdict::Deny | Verdict::NeedsHttp => None,
    }
}

// === impl Allowed ===

impl Allowed {
    fn note(self, exchange: &Exchange, picked: &Picked) {
        exchange.set_destination(&picked.destination);
        match self {
            Self::By(rule) => exchange.allowed(rule),
            Self::Audited(rule, why) => exchange.audited(rule, &why),
        }
    }
}

/// Counts a connection as resting for as long as it lives.
struct Resting<'a>(&'a ProxyMetrics);

// === impl Resting ===

impl<'a> Resting<'a> {
    fn new(metrics: &'a ProxyMetrics) -> Self {
        metrics.connections_resting.inc();
        Self(metrics)
    }
}

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.0.connections_resting.dec();
    }
}
