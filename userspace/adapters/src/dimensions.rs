//! What a quota counts apart, and whose limit is another: shared by the adapters that keep quotas.

use std::{collections::BTreeMap, fmt::Write};

use crate::attribute::{Bag, Selector, TextBuffer};

/// The dimensions of a quota and its limits, of whatever kind.
#[derive(Debug)]
pub(crate) struct Dimensions<L> {
    selectors: Vec<Selector>,
    limit: L,
    overrides: Vec<Override<L>>,
}

#[derive(Debug)]
struct Override<L> {
    /// In the order of the dimensions; `None`: any.
    values: Vec<Option<String>>,
    limit: L,
}

/// A dimension that an override names and the quota does not have; and those that there are.
pub(crate) fn unknown<'a>(
    dimensions: &BTreeMap<String, Selector>,
    mut named: impl Iterator<Item = &'a String>,
) -> Option<(String, String)> {
    let unknown = named.find(|name| !dimensions.contains_key(*name))?;
    let known: Vec<&str> = dimensions.keys().map(String::as_str).collect();
    Some((unknown.clone(), known.join(", ")))
}

// === impl Dimensions ===

impl<L: Copy> Dimensions<L> {
    /// `overrides` have values by the names of dimensions; the first that applies counts.
    pub fn new(
        dimensions: BTreeMap<String, Selector>,
        limit: L,
        overrides: impl Iterator<Item = (BTreeMap<String, String>, L)>,
    ) -> Self {
        let overrides = overrides
            .map(|(values, limit)| Override {
                values: dimensions.keys().map(|name| values.get(name).cloned()).collect(),
                limit,
            })
            .collect();
        Self {
            selectors: dimensions.into_values().collect(),
            limit,
            overrides,
        }
    }

    /// Appends the request's values, all of each name: no two combinations have one key.
    pub fn key(&self, bag: &Bag<'_>, key: &mut impl Write) {
        for dimension in &self.selectors {
            dimension.write_key(bag, key);
        }
    }

    /// An override applies where the request has its values and no others beside them.
    pub fn limit(&self, bag: &Bag<'_>) -> L {
        let applies = |other: &&Override<L>| {
            other.values.iter().zip(&self.selectors).all(|(wanted, dimension)| {
                let Some(wanted) = wanted else { return true };
                let (mut equal, mut others) = (false, false);
                dimension.each(bag, &mut |found, _| {
                    let is_wanted = found.text(&mut TextBuffer::default()) == wanted;
                    equal |= is_wanted;
                    others |= !is_wanted;
                });
                equal && !others
            })
        };
        self.overrides
            .iter()
            .find(applies)
            .map_or(self.limit, |other| other.limit)
    }
}
