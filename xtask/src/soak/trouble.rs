//! What is done to a mesh while it carries traffic: policies change every second, a daemon is killed and replaced.

use std::{
    fs,
    process::Stdio,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use vm_test::{Host, poll, soak::Random};

use super::{
    client::lock,
    judge::{Judge, Trouble, TroubleKind},
    mesh,
    timeline::End,
};

/// Ends all threads of a soak.
#[derive(Default)]
pub struct Stop(AtomicBool);

/// What was done so far.
#[derive(Default)]
pub struct Done {
    pub flaps: AtomicU64,
    /// Changes that met no daemon.
    pub unheard: AtomicU64,
    pub kills: AtomicU64,
    pub upgrades: AtomicU64,
}

/// Pause between two changes of a policy.
const FLAP: Duration = Duration::from_secs(1);
/// Pause between two troubles of a daemon, about, and how much it varies.
const TROUBLE: Duration = Duration::from_secs(20);
const TROUBLE_VARIES_MS: u64 = 4_000;
/// Longest that a host is without daemon, beside what its start takes.
const GAP_MS: u64 = 2_000;
/// `weft apply` is given up after this; a hand-over under way makes it wait.
const APPLY: Duration = Duration::from_secs(60);
/// Between two looks whether it has ended: small beside what is measured.
const LOOK: Duration = Duration::from_micros(300);

// === impl Stop ===

impl Stop {
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst) || poll::check_interrupt().is_err()
    }

    /// Waits, unless told to end: whether to go on.
    fn wait_until(&self, at: Instant) -> bool {
        while !self.is_set() {
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(Duration::from_millis(100)));
        }
        false
    }
}

/// Allows the flapper on `host` for the first time, before the judge begins.
///
/// # Errors
/// The daemon does not take it.
pub fn allow(host: &Host, index: usize) -> Result<()> {
    for allowed in [false, true] {
        fs::write(policy_file(host, allowed), mesh::flapper(index, allowed)).context("write a policy")?;
    }
    match apply(host, true)? {
        Applied::Done => Ok(()),
        Applied::Failed(said) | Applied::NoDaemon(said) => bail!("apply the first policy: {said}"),
    }
}

/// Denies and allows the flapper in turn until told to stop.
///
/// # Errors
/// `weft apply` cannot be run.
pub fn flap(host: &Host, index: usize, judge: &Mutex<Judge>, done: &Done, stop: &Stop) -> Result<()> {
    let mut allowed = true;
    let mut next = Instant::now() + FLAP;
    while stop.wait_until(next) {
        next = next.max(Instant::now().checked_sub(FLAP).unwrap_or(next)) + FLAP;
        allowed = !allowed;
        let start = {
            // Nothing that ends after this moment is judged before the change is known.
            let mut judge = lock(judge);
            let start = vm_test::soak::now();
            judge.hosts[index].timeline.begin(start, allowed);
            start
        };
        let applied = apply(host, allowed)?;
        let end = vm_test::soak::now();
        let mut judge = lock(judge);
        let timeline = &mut judge.hosts[index].timeline;
        match applied {
            Applied::Done => {
                timeline.end(End::At(end));
                done.flaps.fetch_add(1, Ordering::Relaxed);
            }
            Applied::NoDaemon(said) => {
                timeline.withdraw();
                allowed = !allowed;
                done.unheard.fetch_add(1, Ordering::Relaxed);
                judge.change_failed(index, start, end, &said);
            }
            Applied::Failed(said) => {
                timeline.end(End::Unknown);
                judge.change_failed(index, start, end, &said);
            }
        }
    }
    Ok(())
}

enum Applied {
    Done,
    /// It was heard by nobody.
    NoDaemon(String),
    /// It may be in force or not.
    Failed(String),
}

fn apply(host: &Host, allowed: bool) -> Result<Applied> {
    let state = host.state().display().to_string();
    let weft = host.weft_binary().display().to_string();
    let file = policy_file(host, allowed).display().to_string();
    let mut command = host.command([weft, "apply".into(), "--state-dir".into(), state, "-f".into(), file]);
    // Not by `Lab::weft`, which looks every 10 ms: the moment of return is measured.
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start `weft apply`")?;
    let start = Instant::now();
    let status = loop {
        match child.try_wait().context("wait for `weft apply`")? {
            Some(status) => break status,
            None if start.elapsed() > APPLY => {
                let _ = child.kill();
                let _ = child.wait();
                return Ok(Applied::Failed(format!("no end after {APPLY:?}")));
            }
            None => thread::sleep(LOOK),
        }
    };
    if status.success() {
        return Ok(Applied::Done);
    }
    let said = match child.stderr.take() {
        Some(pipe) => std::io::read_to_string(pipe).context("read what `weft apply` said")?,
        None => String::new(),
    };
    let said = said.trim().to_owned();
    Ok(if said.contains("no daemon answers") {
        Applied::NoDaemon(said)
    } else {
        Applied::Failed(said)
    })
}

fn policy_file(host: &Host, allowed: bool) -> std::path::PathBuf {
    host.work().join(if allowed { "allow.yaml" } else { "deny.yaml" })
}

/// Kills and replaces the daemon of `host` in turn until told to stop.
///
/// # Errors
/// A daemon does not start, or does not take over.
pub fn trouble(
    host: &Host,
    index: usize,
    upgrade: bool,
    random: &mut Random,
    judge: &Mutex<Judge>,
    done: &Done,
    stop: &Stop,
) -> Result<()> {
    let mut number = 0u64;
    let pause = |random: &mut Random| {
        let varies = random.between(0, 2 * TROUBLE_VARIES_MS);
        Instant::now() + TROUBLE + Duration::from_millis(varies) - Duration::from_millis(TROUBLE_VARIES_MS)
    };
    while stop.wait_until(pause(random)) {
        number += 1;
        let kind = if upgrade && number.is_multiple_of(2) {
            TroubleKind::TakenOver
        } else {
            TroubleKind::Killed
        };
        let start = {
            let mut judge = lock(judge);
            let start = vm_test::soak::now();
            judge.hosts[index].troubles.push(Trouble { kind, start, end: None });
            start
        };
        let worked = match kind {
            TroubleKind::Killed => {
                let gap = Duration::from_millis(random.between(0, GAP_MS));
                host.kill9()?;
                done.kills.fetch_add(1, Ordering::Relaxed);
                stop.wait_until(Instant::now() + gap);
                host.daemon_with(mesh::FLAGS[index])
            }
            TroubleKind::TakenOver => {
                done.upgrades.fetch_add(1, Ordering::Relaxed);
                let ended = host.take_over(mesh::FLAGS[index]);
                ended.and_then(|old| old.ok()).map(drop)
            }
        };
        let mut judge = lock(judge);
        worked.with_context(|| format!("{kind:?} at {}", judge.since_begin(start)))?;
        if let Some(trouble) = judge.hosts[index].troubles.last_mut() {
            trouble.end = Some(vm_test::soak::now());
        }
    }
    Ok(())
}
