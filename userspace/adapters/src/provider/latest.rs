//! What a provider said last, parsed, for the request path to read.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwapOption, Guard};
use bytes::Bytes;
use tracing::warn;

use super::{FetchError, Source};
use crate::{
    background::{self, Task},
    error::AdapterError,
};

/// The last good content. Reading it neither waits nor allocates.
pub struct Latest<T> {
    shared: Arc<Shared<T>>,
    /// `None`: it never changes.
    _following: Option<Task>,
}

struct Shared<T> {
    value: ArcSwapOption<T>,
    begin: Instant,
    /// Milliseconds from `begin` to the last good fetch.
    fetched: AtomicU64,
}

// === impl Latest ===

impl<T: Send + Sync + 'static> Latest<T> {
    pub fn fixed(value: T) -> Self {
        Self {
            shared: Arc::new(Shared::new(Some(value))),
            _following: None,
        }
    }

    /// Follows a source in the background for as long as this lives. Content that did not change is not parsed again.
    ///
    /// `first` is what is known already (a file that was read when the adapter was made); `adapter` names it in logs.
    ///
    /// # Errors
    /// [`AdapterError::Background`].
    pub fn follow(
        adapter: &str,
        source: Source,
        interval: Duration,
        first: Option<T>,
        parse: impl Fn(&[u8]) -> Result<T, String> + Send + 'static,
    ) -> Result<Self, AdapterError> {
        let shared = Arc::new(Shared::new(first));
        let (adapter, place, sink) = (adapter.to_owned(), source.to_string(), shared.clone());
        let mut before: Option<Bytes> = None;
        let take = move |content: Result<Bytes, FetchError>| {
            let parsed = match content {
                Ok(content) if before.as_ref() == Some(&content) => Ok(None),
                Ok(content) => parse(&content).map(|value| {
                    before = Some(content);
                    Some(value)
                }),
                Err(error) => Err(error.to_string()),
            };
            match parsed {
                Ok(changed) => {
                    sink.put(changed);
                    true
                }
                Err(error) => {
                    warn!(adapter, place, error, "nothing new; the last good content stays");
                    false
                }
            }
        };
        Ok(Self {
            _following: Some(background::spawn(source.follow(interval, take))?),
            shared,
        })
    }

    /// `None`: nothing good has come yet.
    pub fn load(&self) -> Guard<Option<Arc<T>>> {
        self.shared.value.load()
    }

    /// Time since it was last known to be current.
    pub fn age(&self) -> Duration {
        let fetched = Duration::from_millis(self.shared.fetched.load(Ordering::Relaxed));
        self.shared.begin.elapsed().saturating_sub(fetched)
    }
}

impl<T: fmt::Debug> fmt::Debug for Latest<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Latest").field(&*self.shared.value.load()).finish()
    }
}

// === impl Shared ===

impl<T> Shared<T> {
    fn new(value: Option<T>) -> Self {
        Self {
            value: ArcSwapOption::from_pointee(value),
            begin: Instant::now(),
            fetched: AtomicU64::new(0),
        }
    }

    fn put(&self, changed: Option<T>) {
        if let Some(value) = changed {
            self.value.store(Some(Arc::new(value)));
        }
        let now = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.fetched.store(now, Ordering::Relaxed);
    }
}
