//! One opaque connection: pick, judge, connect, move bytes, tell.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
};

use tokio::task::coop::unconstrained;
use weft_adapters::{FlowEvent, FlowProtocol, FlowVerdict};
use weft_policy::{Decision, Verdict};

use super::{Moved, Outcome, Relay, reset};
use crate::{
    conn::Conn,
    error::{self, DataError},
    filter::{ResetBy, TcpChain},
    io::{Prefixed, Socket},
    judge,
    limits::CONNECT_ATTEMPTS,
    pick::{Picked, pick},
    report::{self, TcpFlow},
    route::{self, Guard},
    upstream::connect,
};

/// Serves a connection that is not HTTP. A refusal is a reset: there is nothing that could carry words.
pub(crate) async fn serve(conn: Rc<Conn>, client: Prefixed<Socket>) {
    match open(&conn).await {
        Ok(opened) => relay(&conn, opened, client).await,
        Err(Refused { flow, reason, denied }) => {
            tracing::debug!(peer = %conn.peer, original = %conn.context.original, reason, "connection refused");
            let (event, verdict) = if denied {
                (FlowEvent::Deny, FlowVerdict::Deny)
            } else {
                (FlowEvent::Close, FlowVerdict::Allow)
            };
            flow.tell(&conn.worker, event, verdict, reason, (0, 0));
            reset(client.into_parts().1);
        }
    }
}

/// A connection to an endpoint, and who looks at what passes.
struct Opened {
    picked: Rc<Picked>,
    server: Socket,
    chain: Option<TcpChain>,
}

struct Refused {
    flow: TcpFlow,
    reason: String,
    denied: bool,
}

async fn open(conn: &Conn) -> Result<Opened, Refused> {
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut failed: Option<(Rc<Picked>, Refused)> = None;
    let mut chain: Option<TcpChain> = None;
    loop {
        let picked = match (pick(&conn.worker, conn.dialled(), None, &tried).await, failed) {
            (Ok(picked), None) => picked,
            (Ok(picked), Some((before, _))) if picked.has_adapters_of(&before) => picked,
            // There is no other, or (a split drew anew) one whose adapters have not looked.
            (_, Some((_, refused))) => return Err(refused),
            (Err(error), None) => return Err(unroutable(conn, &error)),
        };
        let decision = judge::opaque(conn, &picked, &picked.snapshot);
        if !decision.verdict.passes() {
            return Err(denial(conn, &picked, decision));
        }
        if tried.is_empty() {
            chain = filters(conn, &picked).await?;
        }
        match route::guard(&picked.snapshot, conn.dialled()) {
            Some(Guard::Bytes) if chain.is_none() => return Err(unjudged(conn, &picked)),
            Some(Guard::Requests) if chain.is_none() || requires_http(&picked) => {
                return Err(unjudged(conn, &picked));
            }
            _ => {}
        }
        match connect(&conn.upstream(picked.address), &*conn.worker.origin).await {
            Ok(server) => {
                conn.worker.metrics.upstream_opened.inc();
                return Ok(Opened { picked, server, chain });
            }
            Err(source) => {
                conn.worker.metrics.upstream_connect_failed.inc();
                tried.push(picked.address);
                let error = DataError::Connect {
                    address: picked.address,
                    tried: tried.len(),
                    source,
                };
                let refused = Refused {
                    flow: flow(conn, &picked, None),
                    reason: error::chain(&error),
                    denied: false,
                };
                if tried.len() >= CONNECT_ATTEMPTS || tried.contains(&conn.context.original) {
                    return Err(refused);
                }
                failed = Some((picked, refused));
            }
        }
    }
}

/// The filters that look at the connection. They may refuse it before an endpoint is connected to.
async fn filters(conn: &Conn, picked: &Picked) -> Result<Option<TcpChain>, Refused> {
    let pause = conn.worker.config.filter_pause;
    let chain = TcpChain::new(picked, pause, || conn.stream_info(picked, FlowProtocol::Tcp));
    if let Some(chain) = &chain {
        let opened = chain.open().await;
        opened.map_err(|ResetBy(by)| reset_by(conn, picked, &by))?;
    }
    Ok(chain)
}

fn reset_by(conn: &Conn, picked: &Picked, adapter: &str) -> Refused {
    Refused {
        flow: TcpFlow {
            rule: Some(report::adapter(adapter)),
            ..flow(conn, picked, None)
        },
        reason: format!("reset by adapter {adapter}"),
        denied: true,
    }
}

fn flow(conn: &Conn, picked: &Picked, rule: Option<weft_policy::RuleId>) -> TcpFlow {
    TcpFlow {
        source: conn.source.clone(),
        destination: picked.destination.clone(),
        rule: report::rule_object(&picked.snapshot, rule).or_else(|| picked.split.clone()),
    }
}

fn denial(conn: &Conn, picked: &Picked, decision: Decision) -> Refused {
    let flow = flow(conn, picked, decision.rule);
    let why = deny_words(&flow);
    let reason = format!(
        "connection {} denied: {why}",
        report::from_to(&conn.source, &picked.destination)
    );
    Refused {
        flow,
        reason,
        denied: true,
    }
}

/// Checks judge requests; filters may also look at the bytes of a connection.
fn requires_http(picked: &Picked) -> bool {
    picked.chain.as_ref().is_some_and(|chain| {
        let checked = !chain.pipeline.is_empty() || !chain.quotas.is_empty();
        checked || chain.filters.iter().any(|filter| filter.requires_http())
    })
}

/// Adapters look at requests there, and this has none that could be read.
fn unjudged(conn: &Conn, picked: &Picked) -> Refused {
    let first = picked.chain.as_ref().and_then(|chain| {
        let mut checks = chain.pipeline.checks.iter().chain(&chain.quotas.checks);
        let check = checks.next().map(|check| check.name());
        check.or_else(|| chain.filters.first().map(|filter| filter.name()))
    });
    Refused {
        flow: TcpFlow {
            rule: first.map(report::adapter),
            ..flow(conn, picked, None)
        },
        reason: format!(
            "connection {} denied: adapters look at the requests there, and this is no HTTP that can be read",
            report::from_to(&conn.source, &picked.destination)
        ),
        denied: true,
    }
}

/// A TrafficTarget denies no connection by itself, but what is no request to rules about requests.
fn deny_words(flow: &TcpFlow) -> String {
    match &flow.rule {
        Some(rule) if rule.kind == "TrafficTarget" => {
            "no rule kind for the protocol seen: the rules speak of HTTP requests, this is not HTTP".to_owned()
        }
        rule => report::deny_words(rule.as_deref(), &flow.destination),
    }
}

fn unroutable(conn: &Conn, error: &DataError) -> Refused {
    let flow = TcpFlow {
        source: conn.source.clone(),
        destination: conn.unpicked(),
        rule: None,
    };
    Refused {
        flow,
        reason: error::chain(&error),
        denied: false,
    }
}

async fn relay(conn: &Conn, opened: Opened, client: Prefixed<Socket>) {
    let Opened { picked, server, chain } = opened;
    let picked = &picked;
    let _load = picked.load.begin();
    let decision = judge::opaque(conn, picked, &picked.snapshot);
    let told = flow(conn, picked, decision.rule);
    let (verdict, words) = match decision.verdict {
        Verdict::Audit => (FlowVerdict::Audit, report::audit_words(&deny_words(&told))),
        _ => (FlowVerdict::Allow, "opened".to_owned()),
    };
    told.tell(&conn.worker, FlowEvent::Open, verdict, words, (0, 0));
    let mut relay = Relay::new(client, Prefixed::new(bytes::Bytes::new(), server));
    let close = Close {
        conn,
        flow: told,
        verdict,
        moved: Rc::clone(relay.moved()),
        reason: Some("cut: the proxy stopped".to_owned()),
    };
    let ended = {
        let running = pin!(async {
            match &chain {
                Some(chain) => relay.run_filtered(chain).await,
                None => relay.run().await,
            }
        });
        unless_denied(conn, picked, running).await
    };
    match ended {
        Ended::Itself(Outcome::Finished) => close.because("closed".to_owned()),
        Ended::Itself(Outcome::Broken(error)) => close.because(format!("reset: {error}")),
        Ended::Itself(Outcome::Reset { by }) => close.denied(reset_by(conn, picked, &by)),
        Ended::Denied(refused) => {
            relay.reset();
            close.denied(refused);
        }
    }
}

/// Tells of the end of a connection when it is dropped: one that is cut with its worker ends there.
struct Close<'a> {
    conn: &'a Conn,
    flow: TcpFlow,
    verdict: FlowVerdict,
    moved: Rc<Moved>,
    /// `None`: something else was told.
    reason: Option<String>,
}

// === impl Close ===

impl Close<'_> {
    fn because(mut self, reason: String) {
        self.reason = Some(reason);
    }

    fn denied(mut self, Refused { flow, reason, .. }: Refused) {
        self.reason = None;
        let (event, verdict) = (FlowEvent::Deny, FlowVerdict::Deny);
        flow.tell(&self.conn.worker, event, verdict, reason, self.moved.bytes());
    }
}

impl Drop for Close<'_> {
    fn drop(&mut self) {
        if let Some(reason) = self.reason.take() {
            let bytes = self.moved.bytes();
            self.flow
                .tell(&self.conn.worker, FlowEvent::Close, self.verdict, reason, bytes);
        }
    }
}

enum Ended {
    Itself(Outcome),
    Denied(Refused),
}

/// `running` to its end, or until it is denied.
async fn unless_denied(conn: &Conn, picked: &Picked, mut running: Pin<&mut impl Future<Output = Outcome>>) -> Ended {
    // It wakes this task, once it was polled, and needs no poll before there is something new: that takes a lock which all workers
    // share. Past tokio's budget, for one that is used up would put the first poll off.
    let mut denied = pin!(unconstrained(denied_later(conn, picked)));
    let mut changes = conn.worker.snapshots.clone();
    let mut is_polled = false;
    poll_fn(|cx| {
        if let Poll::Ready(outcome) = running.as_mut().poll(cx) {
            return Poll::Ready(Ended::Itself(outcome));
        }
        if is_polled && !changes.has_changed() {
            return Poll::Pending;
        }
        is_polled = true;
        changes.mark();
        denied.as_mut().poll(cx).map(Ended::Denied)
    })
    .await
}

/// Returns when a later snapshot denies what an earlier one allowed.
async fn denied_later(conn: &Conn, picked: &Picked) -> Refused {
    let mut snapshots = conn.worker.snapshots.clone();
    loop {
        snapshots.mark();
        let now = snapshots.load_full();
        if now.generation != picked.snapshot.generation {
            let decision = judge::opaque(conn, picked, &now);
            if !decision.verdict.passes() {
                return denial(
                    conn,
                    &Picked {
                        snapshot: now,
                        ..picked.clone()
                    },
                    decision,
                );
            }
        }
        snapshots.changed().await;
    }
}
