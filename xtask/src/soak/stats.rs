//! Least, median, 99th percentile and greatest; and whether a gauge is flat.

use std::fmt;

/// Order statistics of durations, in milliseconds. A duration may be negative: it ended before what it is counted from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub count: usize,
    pub min: f64,
    pub median: f64,
    pub p99: f64,
    pub max: f64,
}

/// How much a gauge may have grown and still be flat: a share of what it was, and a constant for what is small.
#[derive(Debug, Clone, Copy)]
pub struct Slack {
    pub share: f64,
    pub plus: u64,
}

// === impl Spread ===

impl Spread {
    /// `None` where there are none.
    pub fn of(mut millis: Vec<f64>) -> Option<Self> {
        millis.sort_by(f64::total_cmp);
        Some(Self {
            count: millis.len(),
            min: *millis.first()?,
            median: nearest_rank(&millis, 50)?,
            p99: nearest_rank(&millis, 99)?,
            max: *millis.last()?,
        })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            count,
            min,
            median,
            p99,
            max,
        } = self;
        write!(f, "{count:>7} {min:>9.1} {median:>9.1} {p99:>9.1} {max:>9.1}")
    }
}

/// The smallest of `sorted` that at least so many percent do not exceed.
fn nearest_rank<T: Copy>(sorted: &[T], percent: usize) -> Option<T> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

// === impl Slack ===

impl Slack {
    /// Medians of the first and of the last third of `samples`; `None` where there are less than three.
    pub fn thirds(samples: &[u64]) -> Option<(u64, u64)> {
        let third = samples.len() / 3;
        let median = |part: &[u64]| {
            let mut part = part.to_vec();
            part.sort_unstable();
            nearest_rank(&part, 50)
        };
        Some((median(&samples[..third])?, median(&samples[samples.len() - third..])?))
    }

    pub fn allows(self, first: u64, last: u64) -> bool {
        last as f64 <= first as f64 * (1.0 + self.share) + self.plus as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_members_of_the_sample() {
        let spread = Spread::of((1..=200).rev().map(f64::from).collect());
        let expect = Spread {
            count: 200,
            min: 1.0,
            median: 100.0,
            p99: 198.0,
            max: 200.0,
        };
        assert_eq!(spread, Some(expect));
        let one = Spread {
            count: 1,
            min: -2.0,
            median: -2.0,
            p99: -2.0,
            max: -2.0,
        };
        assert_eq!(Spread::of(vec![-2.0]), Some(one));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn a_gauge_is_flat_when_its_last_third_is_like_its_first() {
        let slack = Slack { share: 0.1, plus: 5 };
        let flat = |samples: &[u64]| Slack::thirds(samples).map(|(first, last)| slack.allows(first, last));
        assert_eq!(flat(&[100, 900, 100, 100, 100, 115, 115, 115, 0]), Some(true));
        assert_eq!(flat(&[100, 100, 100, 0, 0, 0, 116, 116, 116]), Some(false));
        assert_eq!(flat(&[0, 0, 5]), Some(true));
        assert_eq!(flat(&[1, 2]), None);
    }
}
