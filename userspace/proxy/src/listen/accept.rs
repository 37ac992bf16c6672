//! The accept loop of one listener.

use std::{rc::Rc, sync::Arc};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::stop::{Phase, StopWatch};
use crate::{conn, limits::ACCEPT_PAUSE, netns::Netns, worker::Worker};

/// Accepts until the end begins; what the kernel had completed by then is still taken, so that nobody who was let
/// in by the handshake is reset. The same where its namespace is left. `netns`: where it listens, if not at home.
pub(crate) async fn accept(
    worker: Rc<Worker>,
    listener: TcpListener,
    netns: Option<Arc<Netns>>,
    left: CancellationToken,
    stop: StopWatch,
) {
    let mut draining = stop.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            () = draining.reached(Phase::Retire) => break,
            () = left.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => conn::spawn(&worker, stream, peer, netns.as_ref(), stop.clone()),
            Err(error) => {
                worker.metrics.accept_failed.inc();
                tracing::warn!(%error, "accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, peer)) = listener.accept() {
            let converted = stream
                .set_nonblocking(true)
                .and_then(|()| tokio::net::TcpStream::from_std(stream));
            if let Ok(stream) = converted {
                conn::spawn(&worker, stream, peer, netns.as_ref(), stop.clone());
            }
        }
    }
}
