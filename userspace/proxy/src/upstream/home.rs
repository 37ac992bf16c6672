//! Where idle connections are, by endpoint.

use std::{
    cell::{RefCell, RefMut},
    collections::HashMap,
    rc::{Rc, Weak},
};

use super::Upstream;
use crate::{limits::POOL_IDLE_PER_ENDPOINT, netns::Netns};

/// Those of a worker, of one protocol.
pub(super) struct Homes<T>(RefCell<HashMap<Upstream, Home<T>>>);

/// Idle connections to one endpoint, the last used one on top. Whoever uses one has it, to give the connection back without
/// another look-up, and without effect once its namespace was left.
pub(crate) struct Home<T>(Rc<RefCell<Vec<T>>>);

/// A [`Home`] that somebody knows of, and does not keep.
pub(crate) struct HomeRef<T>(Weak<RefCell<Vec<T>>>);

// === impl Homes ===

impl<T> Homes<T> {
    pub(super) fn of(&self, upstream: &Upstream) -> Home<T> {
        let mut all = self.0.borrow_mut();
        match all.get(upstream) {
            Some(home) => home.clone(),
            None => all.entry(upstream.clone()).or_default().clone(),
        }
    }

    /// `None`: nothing is idle there or in use.
    pub(super) fn find(&self, upstream: &Upstream) -> Option<Home<T>> {
        self.0.borrow().get(upstream).cloned()
    }

    /// Keeps no idle connection from that namespace: those that are in use are not kept either.
    pub(super) fn forget(&self, netns: &Netns) {
        self.0
            .borrow_mut()
            .retain(|upstream, _| upstream.netns.as_deref() != Some(netns));
    }

    /// Closes those that need not be kept.
    pub(super) fn retain(&self, mut keep: impl FnMut(&mut T) -> bool) {
        self.0.borrow_mut().retain(|_, home| {
            let mut idle = home.idle();
            idle.retain_mut(&mut keep);
            // What is in use comes back to it.
            !idle.is_empty() || Rc::strong_count(&home.0) > 1
        });
    }
}

impl<T> Default for Homes<T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

// === impl Home ===

impl<T> Home<T> {
    pub(super) fn idle(&self) -> RefMut<'_, Vec<T>> {
        self.0.borrow_mut()
    }

    /// Keeps one, unless there are as many as may be.
    pub(super) fn put(&self, connection: T) {
        let mut idle = self.idle();
        if idle.len() < POOL_IDLE_PER_ENDPOINT {
            idle.push(connection);
        }
    }

    pub(crate) fn downgrade(&self) -> HomeRef<T> {
        HomeRef(Rc::downgrade(&self.0))
    }
}

impl<T> Clone for Home<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> Default for Home<T> {
    fn default() -> Self {
        Self(Rc::default())
    }
}

// === impl HomeRef ===

impl<T> HomeRef<T> {
    /// `None`: nothing is idle there or in use, or its namespace was left.
    pub(crate) fn upgrade(&self) -> Option<Home<T>> {
        self.0.upgrade().map(Home)
    }
}

impl<T> Default for HomeRef<T> {
    fn default() -> Self {
        Self(Weak::default())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, sync::Arc};

    use super::*;

    #[test]
    fn what_was_in_use_is_kept_unless_its_namespace_was_left() {
        let homes = Homes::<u8>::default();
        let netns = Netns::new(7, File::open("/dev/null").unwrap().into()).unwrap();
        let at_home = Upstream::at_home(([127, 0, 0, 1], 80).into());
        let inside = Upstream {
            netns: Some(Arc::clone(&netns)),
            ..at_home.clone()
        };
        let (one, other) = (homes.of(&at_home), homes.of(&inside));
        homes.retain(|_| true);
        homes.forget(&netns);
        one.put(1);
        other.put(2);
        drop((one, other));
        assert_eq!(homes.of(&at_home).idle().pop(), Some(1));
        assert!(homes.find(&inside).is_none() && homes.of(&inside).idle().is_empty());
        homes.retain(|_| true);
        assert!(homes.0.borrow().is_empty(), "nothing is idle there, or in use");
    }

    #[test]
    fn no_more_are_kept_than_may_be() {
        let home = Home::default();
        (0..POOL_IDLE_PER_ENDPOINT + 1).for_each(|number| home.put(number));
        assert_eq!(home.idle().pop(), Some(POOL_IDLE_PER_ENDPOINT - 1));
    }
}
