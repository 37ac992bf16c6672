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

impl<T> PerThread<T> {
    /// `make` must not ask for another.
    pub fn get_or(&self, make: impl FnOnce() -> T) -> Arc<T> {
        // If making one panics, the others are as good as before.
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let value = values.entry(thread::current().id()).or_insert_with(|| Arc::new(make()));
        Arc::clone(value)
    }
}

#[cfg(test)]
mod tests {
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
}
