//! Values that many objects have alike, each kept once.

use std::{collections::HashSet, hash::Hash, sync::Arc};

use crate::labels::{LabelSet, Labels};

/// Values known before nobody looks for those that are not used any more.
const LEAST: usize = 64;

/// What the objects of a store share: names that many of them say, and sets of labels.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    texts: Pool<str>,
    labels: Pool<LabelSet>,
}

/// One of each value. Those that nobody else has any more are forgotten when there are twice as many as were left the last
/// time, so that a value costs a constant amount of work, and what is gone at most as much memory as what is there.
#[derive(Debug)]
struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// How many there may be before it looks.
    room: usize,
}

// === impl Pools ===

impl Pools {
    pub fn text(&mut self, text: &str) -> Arc<str> {
        match self.texts.known.get(text) {
            Some(known) => known.clone(),
            None => self.texts.share(text.into()),
        }
    }

    pub fn labels(&mut self, labels: Labels) -> Labels {
        labels.shared(|all| self.labels.share(all))
    }
}

// === impl Pool ===

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn share(&mut self, value: Arc<T>) -> Arc<T> {
        if let Some(known) = self.known.get(&*value) {
            return known.clone();
        }
        if self.known.len() >= self.room {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.room = (2 * self.known.len()).max(LEAST);
        }
        self.known.insert(value.clone());
        value
    }
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            room: LEAST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_unused_ones_are_forgotten() {
        let mut pools = Pools::default();
        let first = pools.text("first");
        for round in 0..10 * LEAST {
            pools.text(&round.to_string());
        }
        assert!(Arc::ptr_eq(&first, &pools.text("first")));
        assert!(pools.texts.known.len() <= 2 * LEAST, "{}", pools.texts.known.len());
    }

    #[test]
    fn what_is_used_stays() {
        let mut pools = Pools::default();
        let used: Vec<Arc<str>> = (0..10 * LEAST).map(|i| pools.text(&i.to_string())).collect();
        for text in &used {
            assert!(Arc::ptr_eq(text, &pools.text(text)));
        }
    }
}
