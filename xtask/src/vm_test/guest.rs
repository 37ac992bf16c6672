//! The guest's side: runs the plan and tells what happens.
//!
//! The initramfs has made the host's files the root by then (`initramfs.rs`), and starts this xtask with the hidden verb
//! `__vm-guest`.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{Sender, channel},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use vm_test::{need, torture::Cell};

use super::event::{Event, Outcome, PORT, Plan, Test};
use crate::test::{Line, test_name};

/// Runs a plan in a guest kernel. Started by `cargo xtask vm-test` and nobody else.
#[derive(clap::Args)]
pub struct GuestArgs {
    plan: PathBuf,
}

/// The way to the host.
struct Host(File);

/// Folder of the virtio serial ports.
const PORTS: &str = "/sys/class/virtio-ports";

/// # Errors
/// The host cannot be told: nothing else is left to do.
pub fn run(args: &GuestArgs) -> Result<()> {
    let mut host = Host::find()?;
    match run_plan(&mut host, &args.plan) {
        Ok(()) => host.tell(&Event::Done),
        Err(error) => host.tell(&Event::Broken {
            why: format!("{error:#}"),
        }),
    }
}

fn run_plan(host: &mut Host, plan: &Path) -> Result<()> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let uptime = read("/proc/uptime")?;
    host.tell(&Event::Booted {
        release: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        version: read("/proc/sys/kernel/version")?.trim().to_owned(),
        uptime: uptime
            .split(' ')
            .next()
            .and_then(|seconds| seconds.parse().ok())
            .unwrap_or(0.0),
    })?;
    let plan: Plan = serde_json::from_str(&read(&plan.display().to_string())?).context("read the plan")?;
    let output = Command::new(&plan.weft)
        .arg("__verify")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", plan.weft.display()))?;
    let Ok(report) = serde_json::from_slice(&output.stdout) else {
        bail!(
            "load the kernel programs: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    };
    host.tell(&Event::Verified { report })?;
    for test in &plan.tests {
        run_binary(host, &plan, test).with_context(|| format!("run test binary {}", test.target))?;
    }
    Ok(())
}

fn run_binary(host: &mut Host, plan: &Plan, test: &Test) -> Result<()> {
    host.tell(&Event::Binary {
        target: test.target.clone(),
    })?;
    let start = Instant::now();
    let mut child = Command::new(&test.executable)
        .args(&plan.filter)
        .current_dir(&test.folder)
        .env("CARGO_MANIFEST_DIR", &test.folder)
        .env("WEFT_BIN", &plan.weft)
        .env(need::NO_SKIP, "1")
        .envs(plan.environment.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", test.executable.display()))?;
    let (lines, heard) = channel();
    let readers = [
        child.stdout.take().map(|pipe| forward(pipe, lines.clone())),
        child.stderr.take().map(|pipe| forward(pipe, lines)),
    ];
    let mut absent = Vec::new();
    // Ends when both pipes are closed: a test that leaves a child behind would hold them, and the host's patience ends it.
    for line in heard {
        if let Some((name, why)) = need::absence_of_line(&line) {
            absent.push(name.to_owned());
            host.tell(&Event::Test {
                name: name.to_owned(),
                outcome: Outcome::Absent(why.to_owned()),
            })?;
            continue;
        }
        if let Some(cell) = Cell::of_line(&line) {
            host.tell(&Event::Tortured { cell })?;
            continue;
        }
        let outcome = match Line::of(&line) {
            Line::Passed => Outcome::Passed,
            Line::Failed => Outcome::Failed,
            Line::Noise => continue,
            Line::Words => {
                host.tell(&Event::Words { line })?;
                continue;
            }
        };
        let name = test_name(&line).to_owned();
        // libtest calls it passed: it returned without having tested anything.
        if !(outcome == Outcome::Passed && absent.contains(&name)) {
            host.tell(&Event::Test { name, outcome })?;
        }
    }
    readers.into_iter().flatten().for_each(|reader| drop(reader.join()));
    let status = child.wait().context("wait for it")?;
    host.tell(&Event::BinaryEnded {
        code: status.code().unwrap_or(-1),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Sends each line of `pipe`, whatever bytes it has.
fn forward(pipe: impl Read + Send + 'static, lines: Sender<String>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let Ok(line) = line else { break };
            if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    })
}

// === impl Host ===

impl Host {
    /// Opens the port by its name: without udev there is no link with it.
    fn find() -> Result<Self> {
        for entry in fs::read_dir(PORTS).with_context(|| format!("list {PORTS}"))?.flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == PORT {
                let device = Path::new("/dev").join(entry.file_name());
                let file = File::options().write(true).open(&device);
                return Ok(Self(file.with_context(|| format!("open {}", device.display()))?));
            }
        }
        bail!("no virtio port {PORT} in {PORTS}")
    }

    fn tell(&mut self, event: &Event) -> Result<()> {
        let mut line = serde_json::to_string(event).context("encode an event")?;
        line.push('\n');
        self.0.write_all(line.as_bytes()).context("tell the host")
    }
}
