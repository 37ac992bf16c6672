//! The connections to Redis: some for each worker, made when they are needed.

use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
};

use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult, ScriptInvocation, aio::MultiplexedConnection};
use tokio::sync::Mutex;

use crate::per_thread::PerThread;

pub(super) struct Server {
    client: Client,
    pool_size: usize,
    workers: PerThread<Vec<Slot>>,
    made: AtomicUsize,
    next: AtomicUsize,
}

/// Locked while its connection is made: other requests then wait for that one.
type Slot = Mutex<Option<Connection>>;

/// Requests share it, and are answered in order.
#[derive(Clone)]
struct Connection {
    /// Tells it from the one that comes in its place.
    number: usize,
    connection: MultiplexedConnection,
}

// === impl Server ===

impl Server {
    pub fn new(client: Client, pool_size: usize) -> Self {
        Self {
            client,
            pool_size,
            workers: PerThread::default(),
            made: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
        }
    }

    /// Runs a script. If the connection turns out to be lost, once more on a new one: only for scripts that notice.
    ///
    /// # Errors
    /// Redis cannot be reached, or says no.
    ///
    /// # Cancel safety
    /// The script may have run.
    pub async fn run(&self, script: &ScriptInvocation<'_>) -> RedisResult<(i64, i64)> {
        let slots = self.slots();
        let slot = match &slots[..] {
            // No word that all workers write to where there is no choice.
            [only] => only,
            slots => &slots[self.next.fetch_add(1, Ordering::Relaxed) % slots.len()],
        };
        let (mut connection, reused) = self.connection(slot).await?;
        match script.invoke_async(&mut connection.connection).await {
            Err(error) if reused && is_lost(&error) => {
                let mut slot_now = slot.lock().await;
                if slot_now.as_ref().is_some_and(|now| now.number == connection.number) {
                    *slot_now = None;
                }
                drop(slot_now);
                let (mut connection, _) = self.connection(slot).await?;
                script.invoke_async(&mut connection.connection).await
            }
            answer => answer,
        }
    }

    /// This worker's connections did not answer in time: they may be dead.
    pub fn give_up(&self) {
        for slot in self.slots().iter() {
            // One that is locked is being made.
            if let Ok(mut slot) = slot.try_lock() {
                *slot = None;
            }
        }
    }

    fn slots(&self) -> std::sync::Arc<Vec<Slot>> {
        self.workers
            .get_or(|| (0..self.pool_size.max(1)).map(|_| Mutex::new(None)).collect())
    }

    /// The slot's connection, and whether it was there before.
    async fn connection(&self, slot: &Slot) -> RedisResult<(Connection, bool)> {
        let mut slot = slot.lock().await;
        if let Some(connection) = &*slot {
            return Ok((connection.clone(), true));
        }
        // The adapter's own timeout is for everything.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None);
        let connection = Connection {
            number: self.made.fetch_add(1, Ordering::Relaxed),
            connection: self
                .client
                .get_multiplexed_async_connection_with_config(&config)
                .await?,
        };
        Ok((slot.insert(connection).clone(), false))
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

fn is_lost(error: &RedisError) -> bool {
    error.is_io_error() || error.is_connection_dropped()
}
