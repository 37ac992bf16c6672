//! One opaque connection: pick, judge, connect, move bytes, tell.

use std::{net::SocketAddr, rc::Rc};

use weft_adapters::{FlowEvent, FlowVerdict};
use weft_policy::{Decision, Verdict};

use super::{Outcome, Relay, reset};
use crate::{
    conn::Conn,
    error::{DataError, chain},
    io::{Prefixed, Socket},
    judge,
    limits::CONNECT_ATTEMPTS,
    pick::{Picked, pick},
    report::{self, TcpFlow},
    upstream::connect,
};

/// Serves a connection that is not HTTP. A refusal is a reset: there is nothing that could carry words.
pub(crate) async fn serve(conn: Rc<Conn>, client: Prefixed<Socket>) {
    match open(&conn).await {
        Ok((picked, server)) => relay(&conn, &picked, client, server).await,
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

struct Refused {
    flow: TcpFlow,
    reason: String,
    denied: bool,
}

async fn open(conn: &Conn) -> Result<(Picked, Socket), Refused> {
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut failed: Option<Refused> = None;
    loop {
        let picked = match pick(&conn.worker, conn.dialled(), None, &tried).await {
            Ok(picked) => picked,
            Err(error) => return Err(failed.unwrap_or_else(|| unroutable(conn, &error))),
        };
        let decision = judge::opaque(conn, &picked, &picked.snapshot);
        if !decision.verdict.passes() {
            return Err(denial(conn, &picked, decision));
        }
        match connect(&conn.upstream(picked.address)).await {
            Ok(server) => return Ok((picked, server)),
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
                    reason: chain(&error),
                    denied: false,
                };
                if tried.len() >= CONNECT_ATTEMPTS || tried.contains(&conn.context.original) {
                    return Err(refused);
                }
                failed = Some(refused);
            }
        }
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

/// A TrafficTarget denies no connection by itself, but what is no request to rules about requests.
fn deny_words(flow: &TcpFlow) -> String {
    match &flow.rule {
        Some(rule) if rule.kind == "TrafficTarget" => {
            "no rule kind for the protocol seen: the rules speak of HTTP requests, this is not HTTP".to_owned()
        }
        rule => report::deny_words(rule.as_ref(), &flow.destination),
    }
}

fn unroutable(conn: &Conn, error: &DataError) -> Refused {
    let flow = TcpFlow {
        source: conn.source.clone(),
        destination: report::bare_destination(conn.context.original),
        rule: None,
    };
    Refused {
        flow,
        reason: chain(&error),
        denied: false,
    }
}

async fn relay(conn: &Conn, picked: &Picked, client: Prefixed<Socket>, server: Socket) {
    let _load = conn.worker.loads.begin(picked.address);
    let decision = judge::opaque(conn, picked, &picked.snapshot);
    let told = flow(conn, picked, decision.rule);
    let (verdict, opened) = match decision.verdict {
        Verdict::Audit => (FlowVerdict::Audit, report::audit_words(&deny_words(&told))),
        _ => (FlowVerdict::Allow, "opened".to_owned()),
    };
    told.tell(&conn.worker, FlowEvent::Open, verdict, opened, (0, 0));
    let mut relay = Relay::new(client, Prefixed::new(bytes::Bytes::new(), server));
    let ended = tokio::select! {
        outcome = relay.run() => Ended::Itself(outcome),
        denied = denied_later(conn, picked) => Ended::Denied(denied),
    };
    let bytes = relay.bytes();
    match ended {
        Ended::Itself(outcome) => {
            let reason = match outcome {
                Outcome::Finished => "closed".to_owned(),
                Outcome::Broken(error) => format!("reset: {error}"),
            };
            told.tell(&conn.worker, FlowEvent::Close, verdict, reason, bytes);
        }
        Ended::Denied(Refused { flow, reason, .. }) => {
            relay.reset();
            flow.tell(&conn.worker, FlowEvent::Deny, FlowVerdict::Deny, reason, bytes);
        }
    }
}

enum Ended {
    Itself(Outcome),
    Denied(Refused),
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
