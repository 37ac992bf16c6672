//! What services get whose policy says nothing of `acceleration`: short-circuits towards our proxy, but only in a kernel
//! in which the torture suite found nothing wrong with them, and if the self-test passes; else none.

use std::fs;

use weft_policy::Acceleration;

use crate::{error::DataplaneError, loader::ShortCircuit, recorded::RECORDS};

/// What the torture suite (`vm-test/tests/torture.rs`) found in a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// `6.1`: all that begin so are taken for it, for stable kernels get fixes and not features.
    pub series: &'static str,
    /// The one that was tested.
    pub version: &'static str,
    /// Cases that go wrong with `acceleration: proxy`.
    pub wrong: &'static [&'static str],
}

/// The default, and why it is that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultAcceleration {
    /// [`Acceleration::Off`] or [`Acceleration::Proxy`].
    pub acceleration: Acceleration,
    /// In words, to follow "because".
    pub why: String,
}

/// In this kernel, with what the operator and the self-test said.
///
/// # Errors
///
/// The kernel does not say what it is.
pub fn here(wanted: ShortCircuit, unfit: Option<&str>) -> Result<DefaultAcceleration, DataplaneError> {
    if wanted == ShortCircuit::Off {
        return Ok(DefaultAcceleration {
            acceleration: Acceleration::Off,
            why: "the daemon runs with --short-circuit off".to_owned(),
        });
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").map_err(|source| DataplaneError::Os {
        what: "read the kernel's release",
        source,
    })?;
    Ok(decide(RECORDS, release.trim(), unfit))
}

fn decide(records: &[Record], release: &str, unfit: Option<&str>) -> DefaultAcceleration {
    let series = series_of(release);
    let off = |why| DefaultAcceleration {
        acceleration: Acceleration::Off,
        why,
    };
    let Some(record) = records.iter().find(|record| record.series == series) else {
        return off(format!(
            "no run of the torture suite is recorded of Linux {series} (vm-test/README.md)"
        ));
    };
    if !record.wrong.is_empty() {
        return off(format!(
            "the torture suite found this wrong with it in Linux {}: {} (vm-test/README.md)",
            record.version,
            record.wrong.join(", ")
        ));
    }
    if let Some(unfit) = unfit {
        return off(unfit.to_owned());
    }
    DefaultAcceleration {
        acceleration: Acceleration::Proxy,
        why: format!(
            "the torture suite found nothing wrong with it in Linux {}",
            record.version
        ),
    }
}

/// `6.1.0-50-amd64` -> `6.1`
fn series_of(release: &str) -> &str {
    let dots = release.char_indices().filter(|(_, c)| !c.is_ascii_digit());
    dots.map(|(at, _)| at).nth(1).map_or(release, |end| &release[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDS: &[Record] = &[
        Record {
            series: "6.1",
            version: "6.1.192-2",
            wrong: &[],
        },
        Record {
            series: "6.12",
            version: "6.12.95-1",
            wrong: &["splice", "peek"],
        },
    ];

    #[test]
    fn only_a_recorded_kernel_with_nothing_wrong_that_passes_the_self_test_gets_it() {
        let green = decide(RECORDS, "6.1.0-50-amd64", None);
        assert_eq!(green.acceleration, Acceleration::Proxy, "{green:?}");
        for (release, unfit, why) in [
            ("6.1.0-50-amd64", Some("it stalls"), "it stalls"),
            ("6.12.95+deb12-amd64", None, "6.12.95-1: splice, peek"),
            ("6.18.44-fc", None, "of Linux 6.18"),
            ("6.10", None, "of Linux 6.10"),
        ] {
            let found = decide(RECORDS, release, unfit);
            assert_eq!(found.acceleration, Acceleration::Off, "{release}");
            assert!(found.why.contains(why), "{release}: {}", found.why);
        }
    }
}
