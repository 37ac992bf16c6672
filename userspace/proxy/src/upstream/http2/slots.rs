//! How many streams an endpoint takes at a time on one connection, and who waits until it takes another.
//!
//! h2 would take them all and keep those waiting itself. But what h2 has taken does not come back when the connection leaves; and of
//! what its client gave up in the meantime h2 sends the head and a reset, which servers take for an attack (rapid reset,
//! CVE-2023-44487) and end the connection of all for. Of who waits here nothing is sent.
//!
//! A slot is taken until the answer was read, or given up: a little longer than the endpoint counts its stream.

use std::cell::Cell;

use tokio::sync::Semaphore;

pub(super) struct Slots {
    /// Those that nobody has. Closed once the connection takes no more. Who came first gets the first, or leaves it to the next.
    free: Semaphore,
    /// How many there are, free or not.
    count: Cell<usize>,
    /// How many there are to be: fewer, while more are taken.
    limit: Cell<usize>,
}

// === impl Slots ===

impl Slots {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            free: Semaphore::new(limit),
            count: Cell::new(limit),
            limit: Cell::new(limit),
        }
    }

    pub(super) fn resize(&self, limit: usize) {
        self.limit.set(limit);
        let count = self.count.get();
        if limit > count {
            self.free.add_permits(limit - count);
            self.count.set(limit);
        } else {
            self.count.set(count - self.free.forget_permits(count - limit));
        }
    }

    /// Waits for one, to be given back. Returns whether there is one: the connection may leave.
    pub(super) async fn take(&self) -> bool {
        match self.free.acquire().await {
            Ok(slot) => {
                slot.forget();
                true
            }
            Err(_closed) => false,
        }
    }

    pub(super) fn give_back(&self) {
        let count = self.count.get();
        if count > self.limit.get() {
            self.count.set(count - 1);
        } else {
            self.free.add_permits(1);
        }
    }

    /// Only then may somebody wait.
    pub(super) fn are_taken(&self) -> bool {
        self.free.available_permits() == 0
    }

    /// Nobody gets another one, nor waits for it.
    pub(super) fn close(&self) {
        self.free.close();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.free.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Takes one where nobody has to wait.
    fn takes(slots: &Slots) -> Option<bool> {
        slots.take().now_or_never()
    }

    #[test]
    fn fewer_slots_count_those_that_are_taken() {
        let slots = Slots::new(3);
        assert_eq!([takes(&slots), takes(&slots)], [Some(true); 2]);
        slots.resize(1);
        assert!(slots.are_taken());
        slots.give_back();
        assert_eq!(takes(&slots), None);
        slots.give_back();
        assert_eq!([takes(&slots), takes(&slots)], [Some(true), None]);
        slots.resize(0);
        slots.give_back();
        assert_eq!(takes(&slots), None);
        slots.resize(2);
        assert_eq!(
            [takes(&slots), takes(&slots), takes(&slots)],
            [Some(true), Some(true), None]
        );
    }

    #[test]
    fn who_waits_is_woken_by_more_slots_and_by_the_end() {
        let slots = Slots::new(0);
        let (mut first, mut second) = (Box::pin(slots.take()), Box::pin(slots.take()));
        assert_eq!([(&mut first).now_or_never(), (&mut second).now_or_never()], [None; 2]);
        slots.resize(1);
        assert_eq!([first.now_or_never(), (&mut second).now_or_never()], [Some(true), None]);
        slots.close();
        assert_eq!([second.now_or_never(), takes(&slots)], [Some(false); 2]);
    }

    #[test]
    fn who_leaves_leaves_the_slot_to_the_next() {
        let slots = Slots::new(0);
        let (mut first, mut second) = (Box::pin(slots.take()), Box::pin(slots.take()));
        assert_eq!([(&mut first).now_or_never(), (&mut second).now_or_never()], [None; 2]);
        slots.resize(1);
        drop(first);
        assert_eq!(second.now_or_never(), Some(true));
    }
}
