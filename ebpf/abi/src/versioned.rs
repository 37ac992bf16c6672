//! Two versions of one value, so that many tables change in one instant.

/// A table value under generations (multi-version concurrency, two versions deep).
///
/// A program reads the generation once, at entry, and then takes from every table the version that belongs to it:
/// `current` if `since <= generation`, else `previous`. User space writes all changed values with
/// `since = generation + 1` while everybody still reads the old ones, then flips the generation by one array write.
/// Only changed values are written, so the price of a change is its own size, not the table's.
///
/// Why not a new inner map a generation: a change of one endpoint would copy its whole table, and every look-up
/// would be two. What it needs in return: user space waits until no program runs under generation N-1 before it
/// publishes N+1 (`membarrier`), because the third version would push out the first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Versioned<T> {
    /// First generation under which `current` holds.
    pub since: u64,
    /// The value from `since` on.
    pub current: T,
    /// The value before `since`.
    pub previous: T,
}

impl<T> Versioned<T> {
    /// The version that holds under `generation`.
    #[inline(always)]
    pub const fn at(&self, generation: u64) -> &T {
        if self.since <= generation {
            &self.current
        } else {
            &self.previous
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Versioned;

    #[test]
    fn old_generation_sees_previous_and_new_one_current() {
        let value = Versioned {
            since: 8,
            current: 'n',
            previous: 'o',
        };
        assert_eq!((*value.at(7), *value.at(8), *value.at(9)), ('o', 'n', 'n'));
    }
}
