//! After `101 Switching Protocols`: bytes both ways, by the same relay as any opaque connection.

use std::rc::Rc;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::exchange::Exchange;
use crate::{
    balance::InFlight,
    io::{Prefixed, Socket, Watched},
    tcp::{Outcome, Relay},
};

/// The client's socket as the HTTP server has it.
pub(crate) type ClientIo = TokioIo<Watched<Prefixed<Socket>>>;

/// Runs the tunnel in a task of the worker's; `exchange` ends with it.
pub(crate) fn spawn(exchange: &Rc<Exchange>, client: OnUpgrade, server: OnUpgrade, load: InFlight) {
    let exchange = Rc::clone(exchange);
    let worker = Rc::clone(&exchange.conn.worker);
    worker.spawn_connection(async move {
        let _load = load;
        let (Ok(client), Ok(server)) = tokio::join!(client, server) else {
            tracing::debug!("upgrade broke off");
            return;
        };
        let (Some(client), Some(server)) = (client_stream(client), server_stream(server)) else {
            tracing::error!("upgraded connection of unknown kind");
            return;
        };
        let mut relay = Relay::new(client, server);
        if let Outcome::Broken(error) = relay.run().await {
            tracing::debug!(%error, "tunnel broke off");
        }
        let (sent, received) = relay.moved().bytes();
        exchange.tunnelled(sent, received);
    });
}

fn client_stream(upgraded: Upgraded) -> Option<Prefixed<Socket>> {
    let parts = upgraded.downcast::<ClientIo>().ok()?;
    let mut stream = parts.io.into_inner().into_inner();
    stream.prepend(parts.read_buf);
    Some(stream)
}

fn server_stream(upgraded: Upgraded) -> Option<Prefixed<Socket>> {
    let parts = upgraded.downcast::<TokioIo<Socket>>().ok()?;
    Some(Prefixed::new(parts.read_buf, parts.io.into_inner()))
}
