//! After `101 Switching Protocols`: bytes both ways, by the same relay as any opaque connection, and judged again as these are.

use std::rc::Rc;

use http::request::Parts;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use weft_adapters::StreamFailure;

use super::{exchange::Exchange, forward::judge_both, view::View};
use crate::{
    balance::InFlight,
    io::{Prefixed, Socket, Watched},
    pick::Picked,
    report,
    tcp::{Outcome, Relay},
};

/// The client's socket as the HTTP server has it.
pub(crate) type ClientIo = TokioIo<Watched<Prefixed<Socket>>>;

/// A client that asked to change the protocol.
pub(crate) struct Upgrading {
    pub(crate) client: OnUpgrade,
    /// What rules judge it by, as it came.
    pub(crate) asked: Box<Parts>,
}

/// Runs the tunnel in a task of the worker's, until it ends, or rules deny what it was asked with; `exchange` ends with it.
pub(crate) fn spawn(exchange: &Rc<Exchange>, picked: Rc<Picked>, client: Upgrading, server: OnUpgrade, load: InFlight) {
    let exchange = Rc::clone(exchange);
    let worker = Rc::clone(&exchange.conn.worker);
    worker.spawn_connection(async move {
        let _load = load;
        let Upgrading { client, asked } = client;
        let (Ok(client), Ok(server)) = tokio::join!(client, server) else {
            tracing::debug!("upgrade broke off");
            return;
        };
        let (Some(client), Some(server)) = (client_stream(client), server_stream(server)) else {
            tracing::error!("upgraded connection of unknown kind");
            return;
        };
        let mut relay = Relay::new(client, server);
        let moved = Rc::clone(relay.moved());
        let ended = tokio::select! {
            outcome = relay.run() => Some(outcome),
            () = denied_later(&exchange, &picked, &asked) => None,
        };
        match ended {
            Some(Outcome::Broken(error)) => {
                tracing::debug!(%error, "tunnel broke off");
                exchange.failed(StreamFailure::Other);
            }
            Some(_) => exchange.response_ended(),
            None => relay.reset(),
        }
        let (sent, received) = moved.bytes();
        exchange.tunnelled(sent, received);
    });
}

/// Returns when a later snapshot denies what an earlier one allowed, and has told the exchange.
async fn denied_later(exchange: &Exchange, picked: &Picked, asked: &Parts) {
    let conn = &exchange.conn;
    let mut snapshots = conn.worker.snapshots.clone();
    let view = View::new(asked);
    loop {
        snapshots.mark();
        let now = snapshots.load_full();
        if now.generation != picked.snapshot.generation {
            let picked = Picked {
                snapshot: now,
                ..picked.clone()
            };
            let decision = judge_both(conn, &picked, asked, &view);
            if !decision.verdict.passes() {
                let rule = report::rule_object(&picked.snapshot, decision.rule);
                let why = report::deny_words(rule.as_deref(), &picked.destination);
                exchange.denied_later(rule, &why);
                return;
            }
        }
        snapshots.changed().await;
    }
}

fn client_stream(upgraded: Upgraded) -> Option<Prefixed<Socket>> {
    let parts = upgraded.downcast::<ClientIo>().ok()?;
    let mut stream = parts.io.into_inner().into_inner();
    stream.prepend(parts.read_buf);
    Some(stream)
}

fn server_stream(upgraded: Upgraded) -> Option<Prefixed<Socket>> {
    let parts = upgraded.downcast::<TokioIo<Socket>>().ok()?;
    let stream = parts.io.into_inner();
    // As an opaque connection: see `UNREAD_TIMEOUT`.
    if let Err(error) = SockRef::from(&stream).set_tcp_user_timeout(None) {
        tracing::debug!(%error, "unset TCP_USER_TIMEOUT");
    }
    Some(Prefixed::new(parts.read_buf, stream))
}
