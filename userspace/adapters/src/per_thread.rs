//! A value for each thread that asks: connections stay on the worker whose runtime drives them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, ThreadId},
};

/// Made at a thread's first look. Entries of threads that have ended stay: their number is that of the daemon's workers.
#[derive(Debug)]
pub(crate) struct PerThread<T>(Mutex<HashMap<ThreadId, Arc<T>>>);

// === impl PerThread ===

impl<T> Default for PerThread<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Default> PerThread<T> {
    pub fn get(&self) -> Arc<T> {
        // A look-up under the lock cannot panic.
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(values.entry(thread::current().id()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gets_its_own_again_and_again() {
        let values = PerThread::<Mutex<u32>>::default();
        *values.get().lock().unwrap() = 1;
        thread::scope(|scope| {
            let other = scope.spawn(|| *values.get().lock().unwrap()).join().unwrap();
            assert_eq!(other, 0);
        });
        assert_eq!(*values.get().lock().unwrap(), 1);
    }
}
