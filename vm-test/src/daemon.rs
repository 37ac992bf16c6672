//! The daemon of a lab: started, killed, started again.

use std::{
    fs::{self, File},
    process::{Command, Stdio},
    sync::PoisonError,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    Lab, poll,
    process::{self, Output, Running},
};

/// A running `weft daemon`.
pub struct Daemon(Running);

/// A daemon that stands still while this lives.
pub struct Held(Pid);

// === impl Lab ===

impl Lab {
    /// Starts `weft daemon` in the lab and waits until it answers `weft status`.
    ///
    /// # Errors
    /// It ends or does not answer in time: the text has its log.
    pub fn daemon(&self) -> Result<()> {
        self.daemon_with(&[])
    }

    /// The same with more flags.
    ///
    /// # Errors
    /// As [`Lab::daemon`].
    pub fn daemon_with(&self, flags: &[&str]) -> Result<()> {
        self.daemon_as(self.daemon_command(flags))
    }

    /// The same by this command, one of [`Lab::daemon_command`] or [`Lab::daemon_command_behind`].
    ///
    /// # Errors
    /// As [`Lab::daemon`].
    pub fn daemon_as(&self, command: Command) -> Result<()> {
        let mut slot = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_some() {
            bail!("lab {} has a daemon already", self.name());
        }
        // Its log goes to a file: it must outlive the daemon and must not depend on a reader.
        let mut daemon = Running::start_logging(command, self.append_log()?, self.append_log()?)?;
        let ready = poll::until("the daemon to answer `weft status`", || {
            if !daemon.is_running()? {
                return Ok(None);
            }
            self.weft(["status"])?.ok().map(Some)
        })
        .with_context(|| format!("the daemon's log:\n{}", self.log()))?;
        if ready.is_none() {
            bail!("the daemon ended at once; its log:\n{}", self.log());
        }
        *slot = Some(Daemon(daemon));
        Ok(())
    }

    /// Starts `weft daemon` in the lab and asks it nothing: what `weft status` of a large mesh takes would stay with it. Whoever
    /// starts it so waits for an effect.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn daemon_unasked(&self, flags: &[&str]) -> Result<()> {
        let mut slot = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_some() {
            bail!("lab {} has a daemon already", self.name());
        }
        let command = self.daemon_command(flags);
        let daemon = Running::start_logging(command, self.append_log()?, self.append_log()?)?;
        *slot = Some(Daemon(daemon));
        Ok(())
    }

    /// As [`Lab::take_over_with`]; returns when the earlier daemon has ended, with what it said.
    ///
    /// # Errors
    /// It does not take over, or the old one does not end: the text has their log.
    pub fn take_over(&self, flags: &[&str]) -> Result<Output> {
        let ended = self.take_over_with(flags)?.finish(process::BOUND);
        ended.with_context(|| format!("the daemons' log:\n{}", self.log()))
    }

    /// Starts `weft daemon --take-over` beside the running one and waits until it is in charge; returns the earlier one, which
    /// drains.
    ///
    /// # Errors
    /// No daemon runs, or the successor ends: the text has both logs.
    pub fn take_over_with(&self, flags: &[&str]) -> Result<Running> {
        let mut slot = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        let flags: Vec<&str> = ["--take-over"].iter().chain(flags).copied().collect();
        let mut next = Running::start_logging(self.daemon_command(&flags), self.append_log()?, self.append_log()?)?;
        let in_charge = poll::until("the successor to be in charge", || {
            if !next.is_running()? {
                return Ok(false);
            }
            let pid = self.status()?["pid"].as_i64();
            if pid != Some(next.pid().into()) {
                bail!("process {pid:?} answers, not {}", next.pid());
            }
            Ok(true)
        })
        .with_context(|| format!("the daemons' log:\n{}", self.log()))?;
        if !in_charge {
            bail!("the successor ended; the daemons' log:\n{}", self.log());
        }
        let earlier = slot.replace(Daemon(next)).context("no daemon ran")?;
        Ok(earlier.0)
    }

    /// Runs `weft daemon` with the lab's folders and the given flags to its end: for daemons that must refuse to start.
    ///
    /// # Errors
    /// It does not end.
    pub fn daemon_refused(&self, flags: &[&str]) -> Result<Output> {
        process::output(self.daemon_command(flags), poll::PATIENCE)
    }

    /// `weft daemon` as this lab starts it.
    pub fn daemon_command(&self, flags: &[&str]) -> Command {
        self.daemon_command_behind(&[], flags)
    }

    /// The same behind the words of a program that becomes it (setpriv and its switches).
    pub fn daemon_command_behind(&self, prefix: &[String], flags: &[&str]) -> Command {
        let binary = self.weft_binary().display().to_string();
        let mut command = self.command(prefix.iter().cloned().chain([binary]));
        command.arg("daemon").arg("--resources").arg(self.resources());
        command
            .arg("--state-dir")
            .arg(self.state())
            .arg("--bpffs")
            .arg(self.bpffs());
        command.arg("--cgroup").arg(self.cgroup()).args(flags);
        command
    }

    /// SIGKILL: the daemon does nothing more, its pins stay.
    ///
    /// # Errors
    /// No daemon runs.
    pub fn kill9(&self) -> Result<()> {
        let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).take();
        daemon.context("no daemon runs")?.0.kill();
        Ok(())
    }

    /// SIGTERM, and waits for its end. Nothing happens where no daemon runs.
    ///
    /// # Errors
    /// It does not end in time (and is killed).
    pub fn stop(&self) -> Result<()> {
        let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(daemon) = daemon {
            daemon.0.stop().context("stop the daemon")?;
        }
        Ok(())
    }

    /// Process number of the daemon.
    ///
    /// # Errors
    /// No daemon runs.
    pub fn daemon_pid(&self) -> Result<i32> {
        let slot = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(slot.as_ref().context("no daemon runs")?.0.pid())
    }

    /// Stops the daemon in its tracks (SIGSTOP) until what is returned is dropped. When this returns every thread of it stands: the
    /// signal alone reaches those that are in the middle of something later.
    ///
    /// # Errors
    /// No daemon runs, or it does not stop.
    pub fn hold_daemon(&self) -> Result<Held> {
        let pid = self.daemon_pid()?;
        let held = Held(Pid::from_raw(pid));
        kill(held.0, Signal::SIGSTOP).context("hold the daemon")?;
        poll::until("every thread of the daemon to stand", || {
            for task in fs::read_dir(format!("/proc/{pid}/task")).context("list the daemon's threads")? {
                let file = task?.path().join("stat");
                let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
                // proc(5): the state is behind the name, which is in parentheses.
                let state = text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
                ensure!(state == Some('T'), "{text}");
            }
            Ok(())
        })?;
        Ok(held)
    }

    /// Whether the daemon still runs.
    ///
    /// # Errors
    /// The system cannot say.
    pub fn daemon_lives(&self) -> Result<bool> {
        let mut slot = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_mut().map_or(Ok(false), |daemon| daemon.0.is_running())
    }

    /// `weft uninstall` with the lab's folders, interrupted or not.
    ///
    /// # Errors
    /// It fails; what it left is swept by the lab.
    pub fn uninstall(&self) -> Result<Output> {
        self.uninstall_with(&[])
    }

    /// The same with more flags.
    ///
    /// # Errors
    /// As [`Lab::uninstall`].
    pub fn uninstall_with(&self, flags: &[&str]) -> Result<Output> {
        let mut command = self.command([self.weft_binary().display().to_string()]);
        command.arg("uninstall").arg("--state-dir").arg(self.state());
        command
            .arg("--bpffs")
            .arg(self.bpffs())
            .arg("--cgroup")
            .arg(self.cgroup())
            .args(flags);
        Running::start(command)?.finish_regardless(process::BOUND)?.ok()
    }

    fn append_log(&self) -> Result<Stdio> {
        let file = File::options().create(true).append(true).open(self.log_file());
        Ok(file.context("open the daemon's log")?.into())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}
