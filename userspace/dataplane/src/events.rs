//! The ring buffer of open, close, deny and listen events.

use std::io;

use aya::maps::RingBuf;
use weft_abi::Event;

use crate::{error::DataplaneError, loader::Dataplane, sys};

pub use crate::sys::monotonic_ns;

/// Reader of `weft_events`. Events of the time without a daemon are still there, as many as the ring holds (1 MiB).
pub struct Events {
    ring: sys::EventRing,
}

impl Events {
    /// The one reader of a [`Dataplane`].
    ///
    /// # Errors
    ///
    /// Taken already, or no reactor in this thread.
    pub fn open(dataplane: &Dataplane) -> Result<Self, DataplaneError> {
        let map = dataplane.take_map("weft_events")?;
        let ring = RingBuf::try_from(map).map_err(|source| DataplaneError::Map {
            map: "weft_events",
            what: "open",
            source: Box::new(source),
        })?;
        let ring = sys::watch(ring).map_err(|source| DataplaneError::Os {
            what: "watch the event ring",
            source,
        })?;
        Ok(Self { ring })
    }

    /// Waits for events and hands over what is there, at most `limit`.
    ///
    /// # Errors
    ///
    /// The descriptor cannot be waited on.
    ///
    /// # Cancel safety
    ///
    /// Nothing is taken from the ring before the last await.
    pub async fn next(&mut self, limit: usize) -> io::Result<Vec<Event>> {
        loop {
            let mut guard = self.ring.readable_mut().await?;
            let ring = guard.get_inner_mut();
            let mut events = Vec::new();
            while events.len() < limit
                && let Some(item) = ring.next()
            {
                if let Some(event) = decode(&item) {
                    events.push(event);
                }
            }
            if events.len() < limit {
                guard.clear_ready();
            }
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}

/// An event out of a record's bytes; `None` for a record of another size (a program of another build).
fn decode(bytes: &[u8]) -> Option<Event> {
    if bytes.len() != size_of::<Event>() {
        return None;
    }
    Some(sys::read_event(bytes))
}
