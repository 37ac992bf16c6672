//! Bytes that the host keeps for an instance beside its linear memory.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::HeaderMap;

/// At most: properties that filters set, and calls to services (what is to be sent, what came back until the module was told),
/// bytes together. More is refused: a module's own memory is limited by the operator, and this must not be a way around it.
pub(super) const MAX_KEPT: usize = 16 << 20;

/// What an instance has of it; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept(Arc<AtomicUsize>);

/// A part of it, given back when dropped.
#[derive(Debug)]
pub(super) struct Hold {
    of: Kept,
    bytes: usize,
}

/// There is no room.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("as much is kept for the instance as may be")]
pub(super) struct Full;

// === impl Kept ===

impl Kept {
    pub fn nothing(&self) -> Hold {
        Hold {
            of: self.clone(),
            bytes: 0,
        }
    }

    pub fn hold(&self, bytes: usize) -> Result<Hold, Full> {
        let mut hold = self.nothing();
        hold.grow(bytes)?;
        Ok(hold)
    }

    fn add(&self, bytes: usize) -> Result<(), Full> {
        let sum = |kept: usize| kept.checked_add(bytes).filter(|sum| *sum <= MAX_KEPT);
        let done = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum);
        done.map(drop).map_err(|_| Full)
    }
}

// === impl Hold ===

impl Hold {
    /// # Errors
    /// It has what it had.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Full> {
        self.of.add(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// So many of them, or all that there are.
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self {
            of: self.of.clone(),
            bytes,
        }
    }

    /// All of them.
    pub fn take(&mut self) -> Self {
        self.split(usize::MAX)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.of.0.fetch_sub(mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

/// Names and values.
pub(super) fn bytes_of(headers: &HeaderMap) -> usize {
    let pairs = headers.iter();
    pairs.map(|(name, value)| name.as_str().len() + value.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_room_again_and_nothing_counts_twice() {
        let kept = Kept::default();
        let mut half = kept.hold(MAX_KEPT / 2).expect("room");
        let other = kept.hold(MAX_KEPT / 2).expect("room");
        assert_eq!(half.grow(1), Err(Full));
        assert_eq!(kept.hold(usize::MAX).err(), Some(Full));
        let part = half.split(10);
        drop(half.take());
        drop(other);
        let all = kept.hold(MAX_KEPT - 10).expect("room again");
        assert!(kept.hold(1).is_err());
        drop((part, half, all));
        kept.hold(MAX_KEPT).expect("all of it");
    }
}
