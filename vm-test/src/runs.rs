//! How often a lab's kernel programs ran, and how long that took, as the kernel counts it.

use std::{os::fd::OwnedFd, path::Path, time::Duration};

use anyhow::{Context, Result};
use aya::{
    programs::{
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
    sys::{Stats, enable_stats},
};

/// The kernel counts runs while this lives (BPF_ENABLE_STATS, Linux 5.8): those of every program of the machine.
pub struct Counting {
    _stats: OwnedFd,
}

/// Of one program, since it was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Runs {
    pub count: u64,
    pub time: Duration,
}

// === impl Counting ===

impl Counting {
    /// # Errors
    /// Not root, or an older kernel.
    pub fn new() -> Result<Self> {
        let stats = enable_stats(Stats::RunTime).context("switch on program statistics (BPF_ENABLE_STATS)")?;
        Ok(Self { _stats: stats })
    }

    /// Of the program that is attached by `link`, the name of a pin (`connect4`), of the daemon whose bpffs this is.
    ///
    /// # Errors
    /// No such pin; or the program is gone.
    pub fn runs(&self, bpffs: &Path, link: &str) -> Result<Runs> {
        let pin = bpffs.join("links").join(link);
        let opened = PinnedLink::from_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
        let id = FdLink::from(opened)
            .info()
            .context("ask what it attaches")?
            .program_id();
        let program = loaded_programs().find_map(|program| program.ok().filter(|program| program.id() == id));
        let program = program.with_context(|| format!("{} attaches program {id}, which is gone", pin.display()))?;
        Ok(Runs {
            count: program.run_count(),
            time: program.run_time(),
        })
    }

    /// Of all programs of this name that are loaded, whoever's they are.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn named(&self, name: &str) -> Result<Runs> {
        let mut all = Runs::default();
        for program in loaded_programs() {
            let program = program.context("list the kernel's programs")?;
            if program.name_as_str() == Some(name) {
                all.count += program.run_count();
                all.time += program.run_time();
            }
        }
        Ok(all)
    }
}

// === impl Runs ===

impl Runs {
    /// What came since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            count: self.count.saturating_sub(before.count),
            time: self.time.saturating_sub(before.time),
        }
    }
}
