//! Ctrl-C in the middle of a demo. A binary of its own: the interrupt is the whole process's.

use anyhow::{Context, Result, ensure};
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
    poll::interrupt();
    let waited = sleeper.finish(poll::PATIENCE);
    let error = waited.err().context("a wait must end with an error")?;
    ensure!(error.to_string().contains("interrupted"), "{error:#}");
    drop(lab);
    leak::nothing_since(&before)
}
