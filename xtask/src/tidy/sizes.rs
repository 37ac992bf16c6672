//! How long our files are, against what style aims at.

use std::fmt;

/// Distribution of lines over the Rust files of the checkout.
pub struct Sizes {
    files: usize,
    lines: usize,
    median: usize,
    p90: usize,
    longest: Vec<(usize, String)>,
}

/// What style aims at: median and 90th percentile, in lines.
const AIM: (usize, usize) = (150, 450);

// === impl Sizes ===

impl Sizes {
    pub fn of(mut lines: Vec<(usize, String)>) -> Self {
        lines.sort();
        let at = |percent: usize| {
            lines
                .get((lines.len().saturating_sub(1)) * percent / 100)
                .map_or(0, |file| file.0)
        };
        Self {
            files: lines.len(),
            lines: lines.iter().map(|file| file.0).sum(),
            median: at(50),
            p90: at(90),
            longest: lines.iter().rev().take(3).cloned().collect(),
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            files,
            lines,
            median,
            p90,
            longest,
        } = self;
        write!(
            f,
            "{files} Rust files, {lines} lines: median {median} (aim {}), p90 {p90} (aim {})",
            AIM.0, AIM.1
        )?;
        for (lines, file) in longest {
            write!(f, "\n  {lines:>5} {file}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_p90_are_those_of_the_sorted_files() {
        let sizes = Sizes::of((1..=10).rev().map(|lines| (lines * 10, lines.to_string())).collect());
        assert_eq!((sizes.median, sizes.p90, sizes.lines), (50, 90, 550));
    }
}
