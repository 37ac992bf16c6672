//! A value for each thread that asks: connections stay on the worker whose runtime drives them.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    thread::{self, ThreadId},
    time::Duration,
};

/// How long connecting may take at least, however short requests wait. Shorter: under load, or where a server answers
/// slowly, no attempt ever succeeds. Longer: requests wait for as long for a server that vanished meanwhile.
pub(crate) const CONNECT_WAIT: Duration = Duration::from_secs(3);

/// Made at a thread's first look, while the others go on: only putting it in its place excludes them. Entries of threads that
/// have ended stay: their number is that of the daemon's workers.
#[derive(Debug)]
pub(crate) struct PerThread<T>(RwLock<HashMap<ThreadId, Arc<T>>>);

// === impl PerThread ===

impl<T> Default for PerThread<T> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<T> PerThread<T> {
    pub fn get_or(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let thread = thread::current().id();
        // Nothing panics under the lock but a failed allocation.
        let values = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = values.get(&thread) {
            return Arc::clone(value);
        }
        drop(values);
        let value = Arc::new(make());
        let mut values = self.0.write().unwrap_or_else(PoisonError::into_inner);
        values.insert(thread, Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, Mutex};

    use super::*;

    #[test]
    fn a_thread_gets_its_own_again_and_again() {
        let values = PerThread::<Mutex<u32>>::default();
        *values.get_or(Mutex::default).lock().unwrap() = 1;
        thread::scope(|scope| {
            let other = scope
                .spawn(|| *values.get_or(Mutex::default).lock().unwrap())
                .join()
                .unwrap();
            assert_eq!(other, 0);
        });
        assert_eq!(*values.get_or(Mutex::default).lock().unwrap(), 1);
    }

    /// Each is made only once the other one is being made.
    #[test]
    fn nobody_waits_while_another_makes_its_own() {
        let values = PerThread::<()>::default();
        let both = Barrier::new(2);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| values.get_or(|| _ = both.wait()));
            }
        });
    }
}
