//! A signal in the middle of a test or a demo. A binary of its own: the signal is the whole process's.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, raise};
use vm_test::{Lab, leak, need, poll};

#[test]
fn an_interrupted_lab_ends_its_waits_and_still_cleans_up() -> Result<()> {
    if let Err(needs) = need::kernel() {
        need::skipped("interrupt", &needs);
        return Ok(());
    }
    let before = leak::Snapshot::take()?;
    let lab = Lab::new("interrupt")?;
    lab.daemon()?;
    let sleeper = lab.run("sleeper").start(["sleep", "1000"])?;
    raise(Signal::SIGTERM)?;
    // It is heard by a thread of its own.
    let heard = poll::regardless(poll::PATIENCE, "the signal to be heard", || {
        ensure!(poll::check_interrupt().is_err(), "not yet");
        Ok(())
    });
    heard?;
    let waited = sleeper.finish(poll::PATIENCE);
    let error = waited.err().context("a wait must end with an error")?;
    ensure!(error.to_string().contains("interrupted"), "{error:#}");
    let another = Lab::new("interrupted").err().context("another lab must not begin")?;
    ensure!(another.to_string().contains("interrupted"), "{another:#}");
    drop(lab);
    leak::nothing_since(&before)
}
