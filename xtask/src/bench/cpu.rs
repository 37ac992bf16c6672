//! Time that processors spent: on one process, on the whole machine, and stolen from it by the host.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

/// Milliseconds of a tick of /proc/stat: USER_HZ is 100 on every architecture Linux runs on here.
const TICK: u64 = 10;

/// Share of the processors' time that a host may take from a load before its figures are worth nothing.
const STOLEN: f64 = 0.03;

/// The processors of this machine, watched from now on.
pub struct Watch {
    began: Instant,
    before: Counters,
}

/// What they did while they were watched.
#[derive(Debug, Clone, Copy)]
pub struct Spent {
    /// All but idling and what was stolen; too little by what was stolen of processors about to wake, which counts as idle as well.
    /// By the time they were idle, which the kernel measures (and tells in ticks of 10 ms): what they were busy with it samples once a
    /// tick, which sees nothing of a load that is due between ticks.
    pub busy: Duration,
    /// Taken by the host for others.
    pub stolen: Duration,
    /// Of how much that there was.
    pub all: Duration,
}

/// Of `/proc/stat`, since the machine started.
#[derive(Debug, Clone, Copy)]
struct Counters {
    /// Of how many processors.
    processors: u32,
    idle: Duration,
    stolen: Duration,
}

/// User and system time of a process, in nanoseconds of the scheduler, threads that have ended among them: ticks of 10 ms are too
/// coarse for a proxy that is idle most of the time.
///
/// # Errors
/// The process is gone.
pub fn of_process(pid: i32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid)).with_context(|| format!("find the clock of process {pid}"))?;
    let ran = clock_gettime(clock).with_context(|| format!("read the clock of process {pid}"))?;
    Ok(ran.into())
}

/// The same of a process and its children (nginx's workers).
///
/// # Errors
/// The process is gone.
pub fn of_family(pid: i32) -> Result<Duration> {
    let file = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let mut total = of_process(pid)?;
    for child in children.split_whitespace() {
        total += of_process(child.parse().context("a child's number")?)?;
    }
    Ok(total)
}

/// Time of a process in user space, in ticks (`utime` of `/proc/PID/stat`).
///
/// # Errors
/// The process is gone.
pub fn in_user_space(pid: i32) -> Result<Duration> {
    let file = format!("/proc/{pid}/stat");
    user_of(&fs::read_to_string(&file).with_context(|| format!("read {file}"))?)
}

/// The fourteenth field of proc(5)'s stat; the second, a name in brackets, may hold anything.
fn user_of(stat: &str) -> Result<Duration> {
    let rest = stat.rsplit_once(')').map(|(_, rest)| rest);
    let utime = rest.and_then(|rest| rest.split_whitespace().nth(11)?.parse().ok());
    Ok(ticks(utime.context("utime in /proc/PID/stat")?))
}

/// `/proc/stat` (proc(5)): `cpu USER NICE SYSTEM IDLE IOWAIT IRQ SOFTIRQ STEAL ...`, and the same of each processor, `cpu0 ...`.
fn counters_of(stat: &str) -> Result<Counters> {
    let mut lines = stat.lines();
    let line = lines.next().unwrap_or_default();
    let fields: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .map(|field| field.parse().with_context(|| format!("{field:?} in /proc/stat")))
        .collect::<Result<_>>()?;
    let [_, _, _, idle, waiting, _, _, stolen] = *fields else {
        bail!("{line:?} is not the first line of /proc/stat");
    };
    let processors = lines.take_while(|line| line.starts_with("cpu")).count();
    Ok(Counters {
        processors: u32::try_from(processors).context("count processors")?,
        idle: ticks(idle + waiting),
        stolen: ticks(stolen),
    })
}

/// [`counters_of`] now.
fn counters() -> Result<Counters> {
    counters_of(&fs::read_to_string("/proc/stat").context("read /proc/stat")?)
}

fn ticks(count: u64) -> Duration {
    Duration::from_millis(TICK * count)
}

/// Keeps every processor from halting while it lives: a halted virtual one takes 25 to 40 µs to wake, and that is not what a
/// latency on one connection should be of. Runs only where nothing else wants to (SCHED_IDLE).
pub struct Awake {
    spinners: Vec<vm_test::Running>,
}

// === impl Watch ===

impl Watch {
    /// # Errors
    /// `/proc/stat` cannot be read.
    pub fn begin() -> Result<Self> {
        Ok(Self {
            before: counters()?,
            began: Instant::now(),
        })
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// What happened since it began.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn spent(&self) -> Result<Spent> {
        Ok(Spent::between(self.before, counters()?, self.elapsed()))
    }
}

// === impl Spent ===

impl Spent {
    fn between(before: Counters, after: Counters, elapsed: Duration) -> Self {
        let all = elapsed * after.processors;
        let idle = after.idle.saturating_sub(before.idle);
        let stolen = after.stolen.saturating_sub(before.stolen);
        Self {
            busy: all.saturating_sub(idle).saturating_sub(stolen),
            stolen,
            all,
        }
    }

    /// Processor seconds that the host took, where they are more than [`STOLEN`] of all; else 0.
    pub fn disturbed(&self) -> f64 {
        let stolen = self.stolen.as_secs_f64();
        if stolen > STOLEN * self.all.as_secs_f64() {
            stolen
        } else {
            0.0
        }
    }
}

// === impl Awake ===

impl Awake {
    /// # Errors
    /// `chrt` (util-linux) cannot be started.
    pub fn new() -> Result<Self> {
        let spinners = (0..counters()?.processors).map(|_| {
            let mut command = std::process::Command::new("chrt");
            command.args(["--idle", "0", "sh", "-c", "while :; do :; done"]);
            vm_test::Running::start(command)
        });
        Ok(Self {
            spinners: spinners.collect::<Result<_>>()?,
        })
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.spinners.iter_mut().for_each(vm_test::Running::kill);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_idle_nor_stolen_is_busy() -> Result<()> {
        let stat = |total: &str| counters_of(&format!("{total}\ncpu0 50 5 25\ncpu1 50 5 25\nintr 7\n"));
        let before = stat("cpu  100 10 50 9000 7 3 2 5 0 0")?;
        let after = stat("cpu  100 10 50 9100 17 3 2 6 0 0")?;
        let spent = Spent::between(before, after, Duration::from_secs(1));
        assert_eq!(spent.busy, Duration::from_millis(890));
        assert_eq!(spent.stolen, Duration::from_millis(10));
        counters_of("cpu 1 2").unwrap_err();
        Ok(())
    }

    #[test]
    fn a_host_that_takes_more_than_its_share_disturbs() {
        let stolen = |millis| Spent {
            busy: Duration::ZERO,
            stolen: Duration::from_millis(millis),
            all: Duration::from_secs(10),
        };
        assert_eq!(stolen(290).disturbed(), 0.0);
        assert_eq!(stolen(310).disturbed(), 0.31);
    }

    #[test]
    fn time_in_user_space_is_the_fourteenth_field_whatever_the_name() -> Result<()> {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 94 0 0 0 12 34 0 0 20 0 1 0 100 0 0";
        assert_eq!(user_of(stat)?, Duration::from_millis(120));
        user_of("7 (a) S 1").unwrap_err();
        Ok(())
    }

    #[test]
    fn a_process_that_works_is_seen_to() -> Result<()> {
        let before = of_process(std::process::id().cast_signed())?;
        let mut sum = 0_u64;
        while of_process(std::process::id().cast_signed())? < before + Duration::from_millis(5) {
            sum = std::hint::black_box(sum + 1);
        }
        Ok(())
    }
}
