use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::PermissionsExt,
    },
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Control, handlers::Handlers, stall::StallGuard};
use crate::state_dir::{StateDir, StateLock};

/// Connections served at once; more wait in the socket's backlog. Commands are few, this bounds what a bug can cost.
const MAX_CONNECTIONS: usize = 256;
/// A client that has not sent the head of a request for so long is hung up on.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// So is one that has not read a byte of its answer for so long.
const READER_PATIENCE: Duration = Duration::from_secs(30);
/// What may still be answered after the stop.
const DRAIN: Duration = Duration::from_secs(2);
/// After a failed accept (no descriptors left, mostly) before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The bound admin socket. Connections are served by [`Server::serve`].
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// The file of the socket is another daemon's, and stays when this one ends.
    anothers: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

// === impl Server ===

impl Server {
    /// Binds the socket of a state directory, mode 0600. One that a dead daemon left is replaced, which the lock makes
    /// safe: it proves that no daemon lives.
    ///
    /// # Errors
    ///
    /// If the socket cannot be made; among the reasons, a path of more than 107 bytes.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn bind(state: &StateDir, _lock: &StateLock) -> Result<Self, ServerError> {
        let path = state.socket();
        // Bound under another name, so that nobody can connect before the mode is right.
        let temporary = path.with_extension("new");
        let during = |doing| {
            let path = path.clone();
            move |source| ServerError::Io { doing, path, source }
        };
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(during("clear the way for socket")(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&temporary).map_err(during("bind admin socket"))?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600)).map_err(during("protect admin socket"))?;
        fs::rename(&temporary, &path).map_err(during("publish admin socket"))?;
        Ok(Self::on(listener, path, false))
    }

    /// Serves the socket that an earlier daemon bound, with who waits in its queue.
    ///
    /// # Errors
    ///
    /// The descriptor is no such socket.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn handed_over(
        state: &StateDir,
        listener: std::os::unix::net::UnixListener,
        _lock: &StateLock,
    ) -> Result<Self, ServerError> {
        let path = state.socket();
        let during = |doing| {
            let path = path.clone();
            move |source| ServerError::Io { doing, path, source }
        };
        listener
            .set_nonblocking(true)
            .map_err(during("take over admin socket"))?;
        let listener = UnixListener::from_std(listener).map_err(during("take over admin socket"))?;
        Ok(Self::on(listener, path, true))
    }

    fn on(listener: UnixListener, path: PathBuf, anothers: bool) -> Self {
        Self {
            listener,
            path,
            anothers: Arc::new(AtomicBool::new(anothers)),
        }
    }

    /// Whether the file of the socket is another daemon's, and stays when this one ends: set for one that was handed over,
    /// until the earlier daemon has let go; to be set again when this one has.
    pub fn anothers(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.anothers)
    }

    /// Serves until `stop`; then what is being answered gets [`DRAIN`], followers are hung up, the socket is removed.
    pub async fn serve(self, control: Arc<dyn Control>, stop: CancellationToken) {
        let handlers = Arc::new(Handlers::new(control, stop.clone()));
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let permit = tokio::select! {
                permit = Arc::clone(&room).acquire_owned() => permit,
                () = stop.cancelled() => break,
            };
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let connection = serve_connection(stream, Arc::clone(&handlers), stop.clone());
                        connections.spawn(async move {
                            let _permit = permit;
                            connection.await;
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "admin socket: accept");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                () = stop.cancelled() => break,
            }
            while connections.try_join_next().is_some() {}
        }
        let drained = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::info!(connections = connections.len(), "admin connections cut at the stop");
        }
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // We hold the lock as long as we serve, so the socket of this name is ours, unless it was passed on.
        if !self.anothers.load(Ordering::Acquire) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn serve_connection(stream: UnixStream, handlers: Arc<Handlers>, stop: CancellationToken) {
    let service = service_fn(|request| {
        let handlers = Arc::clone(&handlers);
        async move { Ok::<_, std::convert::Infallible>(handlers.answer(request).await) }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(StallGuard::new(stream, READER_PATIENCE)), service)
            .with_upgrades()
    );
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "admin connection");
    }
}
