//! The connections to Redis: some for each worker, made when they are needed.

use std::{
    cell::Cell,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, ErrorKind, RedisConnectionInfo, RedisError, RedisResult, ScriptInvocation, ServerErrorKind,
    aio::MultiplexedConnection,
};
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    task::JoinError,
    time::timeout,
};

use crate::{
    dial::Dialer,
    per_thread::{CONNECT_WAIT, PerThread},
};

/// Where Redis is, and who we are to it.
#[derive(Clone)]
pub(super) struct Login {
    pub server: Dialer,
    pub settings: RedisConnectionInfo,
}

pub(super) struct Server {
    login: Login,
    pool_size: usize,
    /// Longest that connecting may take.
    connect_wait: Duration,
    workers: PerThread<Vec<Slot>>,
    made: AtomicUsize,
    next: AtomicUsize,
}

/// Locked while its connection is made: other requests then wait for that one.
type Slot = Arc<Mutex<Option<Connection>>>;

/// Requests share it, and are answered in order.
#[derive(Clone)]
struct Connection {
    /// Tells it from the one that comes in its place.
    number: usize,
    connection: MultiplexedConnection,
}

/// The connection that a question went over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    slot: usize,
    number: usize,
}

// === impl Server ===

impl Server {
    /// `timeout` is that of requests.
    pub fn new(login: Login, pool_size: usize, timeout: Duration) -> Self {
        Self {
            login,
            pool_size,
            connect_wait: timeout.max(CONNECT_WAIT),
            workers: PerThread::default(),
            made: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
        }
    }

    /// Runs a script. If the connection turns out to be lost, or to lead to a server that is no primary any more, once
    /// more on a new one: only for scripts that notice. Meanwhile `used` says which connection the question is on.
    ///
    /// # Errors
    /// Redis cannot be reached, or says no.
    ///
    /// # Cancel safety
    /// The script may have run.
    pub async fn run(&self, script: &ScriptInvocation<'_>, used: &Cell<Option<Used>>) -> RedisResult<(i64, i64)> {
        used.set(None);
        let slots = self.slots();
        let index = match slots.len() {
            // No word that all workers write to where there is no choice.
            1 => 0,
            several => self.next.fetch_add(1, Ordering::Relaxed) % several,
        };
        let slot = &slots[index];
        let (mut connection, reused) = self.connection(slot).await?;
        let number = connection.number;
        used.set(Some(Used { slot: index, number }));
        match script.invoke_async(&mut connection.connection).await {
            Err(error) if reused && is_lost(&error) => {
                used.set(None);
                forget(&mut *slot.lock().await, number);
                let (mut connection, _) = self.connection(slot).await?;
                let number = connection.number;
                used.set(Some(Used { slot: index, number }));
                script.invoke_async(&mut connection.connection).await
            }
            answer => answer,
        }
    }

    /// This worker's connection did not answer in time: it may be dead.
    pub fn give_up(&self, used: Used) {
        let slots = self.slots();
        // One that is locked is being made: it is another one.
        if let Ok(mut slot) = slots[used.slot].try_lock() {
            forget(&mut slot, used.number);
        }
    }

    /// How many connections there have been.
    #[cfg(test)]
    pub fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    fn slots(&self) -> Arc<Vec<Slot>> {
        self.workers
            .get_or(|| (0..self.pool_size.max(1)).map(|_| Slot::default()).collect())
    }

    /// The slot's connection, and whether it was there before. One attempt serves all requests that wait, and goes on
    /// when the one that began it is given up.
    async fn connection(&self, slot: &Slot) -> RedisResult<(Connection, bool)> {
        let place = Arc::clone(slot).lock_owned().await;
        if let Some(connection) = place.as_ref() {
            return Ok((connection.clone(), true));
        }
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let connecting = tokio::spawn(connect(self.login.clone(), number, place, self.connect_wait));
        let ended = |error: JoinError| RedisError::from((ErrorKind::Io, "connecting ended", error.to_string()));
        Ok((connecting.await.map_err(ended)??, false))
    }
}

/// No address, which may have a password beside it.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("pool_size", &self.pool_size)
            .finish_non_exhaustive()
    }
}

/// Connects, and puts the connection into its place, which stays locked meanwhile.
async fn connect(
    login: Login,
    number: usize,
    mut place: OwnedMutexGuard<Option<Connection>>,
    wait: Duration,
) -> RedisResult<Connection> {
    // For answers the adapter's own timeout holds.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let connecting = async {
        let stream = login.server.connect().await?;
        MultiplexedConnection::new_with_config(&login.settings, stream, config).await
    };
    let late = || RedisError::from((ErrorKind::Io, "no connection in time"));
    let (connection, driver) = timeout(wait, connecting).await.map_err(|_| late())??;
    // Ends with the connection; what went wrong those learn who ask over it.
    tokio::spawn(driver);
    let connection = Connection { number, connection };
    *place = Some(connection.clone());
    Ok(connection)
}

/// Unless there is another one in its place already.
fn forget(slot: &mut Option<Connection>, number: usize) {
    if slot.as_ref().is_some_and(|now| now.number == number) {
        *slot = None;
    }
}

/// A new connection may do better. A primary that was demoted stays where it is and refuses to write; its name, or the
/// address before it, leads to another one.
fn is_lost(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
        || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
        // As Redis before 7 says it of a script.
        || error.detail().is_some_and(|detail| detail.contains("READONLY"))
}
