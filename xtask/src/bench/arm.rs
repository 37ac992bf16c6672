//! An arm: a client that sends the same requests some way, and the processes between it and the origin.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, de::IgnoredAny};
use vm_test::Running;

use super::cpu::{self, Spent, Watch};

/// Longer than a load takes by this is an error.
const SLACK: Duration = Duration::from_secs(20);

/// Processor time a request below which the proxy was not on the way, in microseconds. One that it passes on costs 6.6 at the least
/// (short-circuited, as many as are answered, on the fastest machine so far). A daemon that rests runs for a millisecond a second,
/// which is more than this at the lowest rate alone, and every arm has higher ones.
const PROXIED: f64 = 2.0;

/// How often a load is put on before its figures are taken as they are.
const TRIES: usize = 3;

/// One load: what `weft-load` is told beside the target.
#[derive(Debug, Clone)]
pub struct Load {
    /// Requests a second; `None`: as many as there are answers.
    pub rate: Option<u32>,
    pub connections: usize,
    pub seconds: f64,
    /// A connection a request.
    pub short: bool,
}

/// Of a load: what counts, and before it what does not.
#[derive(Debug, Clone, Copy)]
pub struct Seconds {
    pub counted: f64,
    pub warm_up: f64,
}

/// What came of a load, all answers being right.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Right answers, also those while warming up: what processor times are divided by.
    pub requests: u64,
    /// Right answers a second.
    pub rate: f64,
    /// Microseconds.
    pub p50: f64,
    pub p99: f64,
    /// Processor time of the proxies a request, in microseconds.
    pub proxy: f64,
    /// Of that, in user space.
    pub user: f64,
    /// Of the origin.
    pub origin: f64,
    /// Of the whole machine.
    pub machine: f64,
    /// The processors meanwhile.
    pub spent: Spent,
}

#[derive(Deserialize)]
struct Outcome {
    right: u64,
    wrong: u64,
    failed: u64,
    all: u64,
    rate: f64,
    first_fault: Option<String>,
    p50: u64,
    p99: u64,
    #[serde(flatten)]
    _rest: std::collections::BTreeMap<String, IgnoredAny>,
}

/// A client that takes its loads from us, so that it is started (and meshed) once.
pub struct Client {
    running: Running,
    told: usize,
}

/// Processor time so far.
struct Ran {
    proxies: Duration,
    user: Duration,
    origin: Duration,
}

/// A way to the origin.
pub struct Arm {
    pub name: &'static str,
    pub target: SocketAddr,
    pub host: String,
    /// Headers of each request, `NAME: VALUE`.
    pub headers: Vec<String>,
    /// What else `weft-load` is told: to speak something else than HTTP/1.1.
    pub words: &'static [&'static str],
    /// The processes whose price this is.
    pub proxies: Vec<i32>,
    /// Who answers.
    pub origin: i32,
    pub client: Client,
}

/// Measures, and again where the host took too much of it, at most [`TRIES`] times.
///
/// # Errors
/// As `measure`.
pub fn undisturbed(mut measure: impl FnMut() -> Result<Measured>) -> Result<Measured> {
    let mut measured = measure()?;
    for _ in 1..TRIES {
        if measured.spent.disturbed() <= 0.0 {
            break;
        }
        measured = measure()?;
    }
    Ok(measured)
}

// === impl Seconds ===

impl Seconds {
    /// `quick`: short enough for six rounds in the minutes that somebody waits.
    pub fn new(quick: bool) -> Self {
        let (counted, warm_up) = if quick { (0.5, 0.125) } else { (3.0, 0.5) };
        Self { counted, warm_up }
    }
}

// === impl Client ===

impl Client {
    /// `start` starts the words somewhere: outside, in a cgroup, as a workload.
    ///
    /// # Errors
    /// As `start`.
    pub fn start(generator: &Path, start: impl FnOnce([&str; 5]) -> Result<Running>) -> Result<Self> {
        let generator = generator.display().to_string();
        Ok(Self {
            // A connection is a descriptor. The soft limit only: the hard one is not ours to raise everywhere.
            running: start(["prlimit", "--nofile=16384:", "--", &generator, "--serve"])?,
            told: 0,
        })
    }

    fn load(&mut self, words: &[String], bound: Duration) -> Result<Outcome> {
        self.running.say(&serde_json::json!(words).to_string())?;
        self.told += 1;
        let line = self.running.line_within(bound, self.told)?;
        serde_json::from_str(&line).with_context(|| format!("weft-load said {line}"))
    }
}

// === impl Arm ===

impl Arm {
    /// # Errors
    /// It has a proxy, and requests went past that.
    pub fn went_through(&self, measured: &Measured) -> Result<()> {
        ensure!(
            self.proxies.is_empty() || measured.proxy > PROXIED,
            "arm `{}`: its proxy ran {:.1} µs a request: requests went past it",
            self.name,
            measured.proxy
        );
        Ok(())
    }

    /// Puts a load on it.
    ///
    /// # Errors
    /// A response was wrong or missing: no figure is worth anything then.
    pub fn measure(&mut self, load: &Load, warm_up: f64) -> Result<Measured> {
        let mut words = vec![self.target.to_string(), "--host".to_owned(), self.host.clone()];
        for header in &self.headers {
            words.extend(["--header".to_owned(), header.clone()]);
        }
        words.extend(self.words.iter().map(|word| (*word).to_owned()));
        let pair = |name: &str, value: String| [name.to_owned(), value];
        words.extend(pair("--connections", load.connections.to_string()));
        words.extend(pair("--seconds", load.seconds.to_string()));
        words.extend(pair("--warm-up", warm_up.to_string()));
        if let Some(rate) = load.rate {
            words.extend(pair("--rate", rate.to_string()));
        }
        if load.short {
            words.push("--short".to_owned());
        }

        let (before, watch) = (self.ran()?, Watch::begin()?);
        let bound = Duration::from_secs_f64(load.seconds + warm_up) + SLACK;
        let outcome = self.client.load(&words, bound);
        let outcome = outcome.with_context(|| format!("arm `{}`", self.name))?;
        let (after, spent) = (self.ran()?, watch.spent()?);
        ensure!(
            outcome.wrong == 0 && outcome.failed == 0 && outcome.right > 0,
            "arm `{}`: of {} answers {} were wrong and {} missing after {:.1} s: {}",
            self.name,
            outcome.all + outcome.wrong + outcome.failed,
            outcome.wrong,
            outcome.failed,
            watch.elapsed().as_secs_f64(),
            outcome.first_fault.as_deref().unwrap_or("no fault told"),
        );
        let a_request = |time: Duration| time.as_secs_f64() * 1e6 / outcome.all as f64;
        Ok(Measured {
            requests: outcome.all,
            rate: outcome.rate,
            p50: outcome.p50 as f64 / 1e3,
            p99: outcome.p99 as f64 / 1e3,
            proxy: a_request(after.proxies.saturating_sub(before.proxies)),
            user: a_request(after.user.saturating_sub(before.user)),
            origin: a_request(after.origin.saturating_sub(before.origin)),
            machine: a_request(spent.busy),
            spent,
        })
    }

    fn ran(&self) -> Result<Ran> {
        Ok(Ran {
            proxies: self
                .proxies
                .iter()
                .map(|pid| cpu::of_process(*pid))
                .sum::<Result<_>>()?,
            user: self
                .proxies
                .iter()
                .map(|pid| cpu::in_user_space(*pid))
                .sum::<Result<_>>()?,
            origin: cpu::of_family(self.origin)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of ten processor seconds.
    fn measured(stolen: f64) -> Measured {
        Measured {
            requests: 1,
            rate: 1.0,
            p50: 1.0,
            p99: 1.0,
            proxy: 1.0,
            user: 1.0,
            origin: 1.0,
            machine: 1.0,
            spent: Spent {
                busy: Duration::ZERO,
                stolen: Duration::from_secs_f64(stolen),
                all: Duration::from_secs(10),
            },
        }
    }

    #[test]
    fn what_the_host_disturbed_is_measured_again_but_not_for_ever() -> Result<()> {
        let of = |stolen: &[f64]| {
            let mut tries = stolen.iter();
            let kept = undisturbed(|| tries.next().map(|stolen| measured(*stolen)).context("one try too many"))?;
            Ok::<_, anyhow::Error>((kept.spent.stolen.as_secs_f64(), tries.len()))
        };
        assert_eq!(of(&[0.2, 5.0])?, (0.2, 1));
        assert_eq!(of(&[5.0, 0.0, 5.0])?, (0.0, 1));
        assert_eq!(of(&[5.0, 4.0, 3.0, 0.0])?, (3.0, 1));
        Ok(())
    }
}
