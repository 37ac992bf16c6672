//! The ring buffer of open, close, deny and listen events.

use std::{io, time::Duration};

use aya::maps::{MapData, RingBuf};
use tokio::time::sleep;
use weft_abi::Event;

use crate::{error::DataplaneError, loader::Dataplane, sys};

pub use crate::sys::monotonic_ns;

/// How long a program is given that has begun an event: it takes less than a microsecond, unless somebody takes its processor.
const SUBMITTED: Duration = Duration::from_millis(1);

/// Reader of `weft_events`. Events of the time without a daemon are still there, as many as the ring holds (1 MiB).
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    /// The one reader of a [`Dataplane`].
    ///
    /// # Errors
    ///
    /// Taken already.
    pub fn open(dataplane: &Dataplane) -> Result<Self, DataplaneError> {
        let map = dataplane.take_map("weft_events")?;
        let ring = RingBuf::try_from(map).map_err(|source| DataplaneError::Map {
            map: "weft_events",
            what: "open",
            source: Box::new(source),
        })?;
        Ok(Self { ring })
    }

    /// Puts what is there behind what `events` holds, at most `limit`; waits where nothing is there.
    ///
    /// # Errors
    ///
    /// The ring cannot be waited on.
    ///
    /// # Panics
    ///
    /// Outside a runtime of tokio.
    ///
    /// # Cancel safety
    ///
    /// Nothing is taken from the ring before the last await.
    pub async fn next(&mut self, events: &mut Vec<Event>, limit: usize) -> io::Result<()> {
        while self.take(events, limit) == 0 {
            // Watched no longer than it is waited for: whoever watches is woken at each event that finds the ring read to its
            // end, also while he lets events gather.
            sys::watch(&self.ring)?.readable().await?.retain_ready();
            if self.take(events, limit) > 0 {
                break;
            }
            // Readable, and not to be had: a program has reserved and not yet submitted.
            sleep(SUBMITTED).await;
        }
        Ok(())
    }

    /// How many it took.
    fn take(&mut self, events: &mut Vec<Event>, limit: usize) -> usize {
        let mut taken = 0;
        while taken < limit
            && let Some(item) = self.ring.next()
        {
            taken += 1;
            events.extend(decode(&item));
        }
        taken
    }
}

/// An event out of a record's bytes; `None` for a record of another size (a program of another build).
fn decode(bytes: &[u8]) -> Option<Event> {
    if bytes.len() != size_of::<Event>() {
        return None;
    }
    Some(sys::read_event(bytes))
}
