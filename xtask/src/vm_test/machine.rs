//! One guest: started, heard, ended. QEMU emulates the processor (TCG), so that it runs where there is no KVM.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use vm_test::poll;

use super::{
    event::{Event, PORT},
    initramfs,
    kernel::Kernel,
};

/// From QEMU's start to the first event: 4 to 10 s on two busy cores.
const BOOT: Duration = Duration::from_secs(180);
/// Between two events: the longest test takes about a minute, all cases of the torture suite on one path some more.
const SILENCE: Duration = Duration::from_secs(1500);
/// How soon an interrupt is seen.
const LOOK: Duration = Duration::from_secs(1);
/// From the last event to QEMU's end.
const POWER_OFF: Duration = Duration::from_secs(30);
/// MiB of memory. Tests use about a quarter of it.
const MEMORY: u32 = 2048;
/// Virtual processors, each a thread: more than two bring nothing on two cores, and tests want two.
const PROCESSORS: u32 = 2;
/// How the kernel names a breakpoint that nobody set.
const STRAY_BREAKPOINT: &str = "int3: 0000 [#";
/// Lines of the console that a failure shows.
const CONSOLE_TAIL: usize = 40;

/// A running guest. Dropped, it is killed.
pub struct Machine {
    qemu: Child,
    events: Receiver<String>,
    console: PathBuf,
    started: Instant,
    booted: bool,
    bound: Duration,
}

// === impl Machine ===

impl Machine {
    /// Boots `kernel` with the initramfs of [`initramfs::write`]; its console goes to `console`. Ends within `bound`.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub fn boot(kernel: &Kernel, initrd: &Path, console: &Path, bound: Duration) -> Result<Self> {
        File::create(console).with_context(|| format!("make {}", console.display()))?;
        // Whatever ends us ends it too.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", QEMU]);
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
        command.args(["-smp", &PROCESSORS.to_string(), "-m", &MEMORY.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initrd);
        command.args(["-append", APPEND]);
        command.arg("-serial").arg(option("file:", console));
        // Not `-chardev stdio`: with nothing on standard input the emulator stops serving the host's files.
        command.args([
            "-device",
            "virtio-serial-pci",
            "-chardev",
            "file,id=events,path=/dev/stdout",
        ]);
        command
            .arg("-device")
            .arg(format!("virtserialport,chardev=events,name={PORT}"));
        // The host's files, to be read only: the guest writes to an overlay in its memory.
        command.args([
            "-fsdev",
            "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
        ]);
        command
            .arg("-device")
            .arg(format!("virtio-9p-pci,fsdev=host,mount_tag={}", initramfs::HOST_TAG));
        let mut qemu = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start QEMU (package qemu-system-x86: `cargo xtask setup`)")?;
        let (lines, events) = channel();
        if let Some(stdout) = qemu.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines() {
                    let Ok(line) = line else { break };
                    if lines.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self {
            qemu,
            events,
            console: console.to_path_buf(),
            started: Instant::now(),
            booted: false,
            bound,
        })
    }

    /// The next event; waits for it.
    ///
    /// # Errors
    /// None comes in time, the run was interrupted, or the guest ended without [`Event::Done`].
    pub fn event(&mut self) -> Result<Event> {
        let patience = if self.booted { SILENCE } else { BOOT };
        let left = self.bound.saturating_sub(self.started.elapsed());
        let until = Instant::now() + patience.min(left);
        let told = loop {
            poll::check_interrupt()?;
            let wait = LOOK.min(until.saturating_duration_since(Instant::now()));
            match self.events.recv_timeout(wait) {
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => {}
                told => break told,
            }
        };
        match told {
            Ok(line) => {
                self.booted = true;
                serde_json::from_str(&line).with_context(|| format!("read an event of the guest: {line}"))
            }
            Err(RecvTimeoutError::Timeout) if left < patience => {
                bail!(
                    "the guest was not done after {:?}, the bound on a whole run",
                    self.bound
                )
            }
            Err(RecvTimeoutError::Timeout) if self.booted => bail!("the guest said nothing for {SILENCE:?}"),
            Err(RecvTimeoutError::Timeout) => bail!("the guest was not up after {BOOT:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the guest ended before it was done"),
        }
    }

    /// Waits for the guest to switch itself off, and kills it if it does not.
    pub fn power_off(self) {
        // Its end closes the pipe; whatever comes before is nobody's.
        while self.events.recv_timeout(POWER_OFF).is_ok() {}
    }

    /// Whether what ended the guest is the emulator's doing, and another guest may well get through: its kernel met the
    /// breakpoint that stands for an instant in code that it patches (static keys). The other processor is told to forget that
    /// before the breakpoint is taken for a stray one; QEMU's threads now and then run an old translation once more.
    pub fn failed_by_emulator(&self) -> bool {
        self.console().contains(STRAY_BREAKPOINT)
    }

    /// The end of what the guest's kernel and initramfs printed.
    pub fn console_tail(&self) -> String {
        let text = self.console();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(CONSOLE_TAIL)..].join("\n")
    }

    fn console(&self) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";

/// Kernel parameters: a panic ends QEMU (`-no-reboot`); what only costs time under emulation is off. All virtual processors
/// count the host's ticks: without `reliable` Linux 6.1 finds them unequal and reads a slow emulated clock instead.
const APPEND: &str = "console=ttyS0 panic=-1 mitigations=off nokaslr init_on_alloc=0 audit=0 tsc=reliable";

/// `PREFIX PATH` as QEMU reads it in an option: commas doubled.
fn option(prefix: &str, path: &Path) -> String {
    format!("{prefix}{}", path.display().to_string().replace(',', ",,"))
}
