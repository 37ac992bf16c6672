//! Requests and connections in flight to each endpoint, of one worker.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
};

/// The counts. An endpoint without anything in flight needs no entry.
#[derive(Debug, Default)]
pub struct Loads(RefCell<HashMap<SocketAddr, Rc<Cell<u32>>>>);

/// The count of one endpoint, for who begins more than once there.
#[derive(Debug, Clone)]
pub struct Load(Rc<Cell<u32>>);

/// Counts as one in flight until it is dropped.
#[derive(Debug)]
pub struct InFlight(Rc<Cell<u32>>);

// === impl Loads ===

impl Loads {
    /// In flight to `endpoint` now.
    pub fn get(&self, endpoint: SocketAddr) -> u32 {
        self.0.borrow().get(&endpoint).map_or(0, |count| count.get())
    }

    /// The count of `endpoint`.
    pub fn of(&self, endpoint: SocketAddr) -> Load {
        Load(Rc::clone(self.0.borrow_mut().entry(endpoint).or_default()))
    }

    /// One more to `endpoint`.
    pub fn begin(&self, endpoint: SocketAddr) -> InFlight {
        self.of(endpoint).begin()
    }

    /// Forgets endpoints that nothing is in flight to, and whose count nobody has.
    pub(crate) fn reap(&self) {
        self.0.borrow_mut().retain(|_, count| Rc::strong_count(count) > 1);
    }
}

// === impl Load ===

impl Load {
    /// One more there.
    pub fn begin(&self) -> InFlight {
        self.0.set(self.0.get() + 1);
        InFlight(Rc::clone(&self.0))
    }
}

// === impl InFlight ===

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_counts_until_it_is_dropped_also_across_a_reap() {
        let loads = Loads::default();
        let address = ([127, 0, 0, 1], 80).into();
        let (first, second) = (loads.begin(address), loads.begin(address));
        assert_eq!(loads.get(address), 2);
        drop(first);
        loads.reap();
        assert_eq!(loads.get(address), 1);
        drop(second);
        loads.reap();
        assert_eq!(loads.get(address), 0);
        assert!(loads.0.borrow().is_empty());
    }

    #[test]
    fn a_count_that_somebody_has_is_the_endpoints_also_after_a_reap() {
        let loads = Loads::default();
        let address = ([127, 0, 0, 1], 80).into();
        let load = loads.of(address);
        loads.reap();
        let (_here, _there) = (load.begin(), loads.begin(address));
        assert_eq!(loads.get(address), 2);
    }
}
