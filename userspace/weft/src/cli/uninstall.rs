use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use clap::Args;
use weft_dataplane::OWN_CGROUPS;

use super::Daemon;
use crate::{
    admin::{ClientError, api::Status},
    config::DEFAULT_BPFFS,
    daemon::hand_over::absolute,
    error::{Coded, FAILED, INVALID},
    registry::{CgroupError, default_cgroup, is_populated, named_cgroup, prune_empty, read_records, remove_cgroup},
    state_dir::{StateDir, StateError, StateLock},
};

/// A daemon that was asked to stop has so long; its own drain deadline is shorter.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// Its process gets so long to end after its last word; one that has handed over and still drains is not waited for
/// longer.
const END_PATIENCE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(50);

/// Remove what weft left on this machine: kernel programs and maps, rules in pods, cgroups, state
///
/// Stops a running daemon. Processes that were started with `weft run` go on, unmeshed.
#[derive(Debug, Args)]
pub struct Uninstall {
    /// Where kernel programs and maps are pinned [default: where the last daemon of the state directory had them, else
    /// /sys/fs/bpf/weft]
    #[arg(long, value_name = "DIR")]
    bpffs: Option<PathBuf>,
    /// The captured cgroup [default: that of the last daemon of the state directory, else weft.slice below the cgroup2 mount]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Also remove the resources that were stored with `weft apply`
    #[arg(long)]
    purge: bool,
    /// Remove only what is in the kernel: registered workloads, virtual IPs and resources are kept for the next daemon
    ///
    /// For an upgrade that changes the layout of the kernel's tables. Nothing is enforced until the next daemon runs. Workloads
    /// are in the mesh again then with what they open from then on; what they listen at by now is not, until they are started again.
    #[arg(long, conflicts_with = "purge")]
    kernel_only: bool,
    #[command(flatten)]
    daemon: Daemon,
}

/// What is to be removed.
struct Target {
    bpffs: PathBuf,
    /// `None`: nobody named one, and the last daemon's, or the default one, is not there.
    cgroup: Option<PathBuf>,
}

impl Uninstall {
    pub fn exec(self) -> anyhow::Result<ExitCode> {
        let state = self.daemon.state();
        // Before anything is stopped or removed: a cgroup that was named wrongly is a reason to stop.
        let target = self.target(&state)?;
        let lock = if state.dirs()[0].exists() {
            Some(self.stop_daemon(&state, &target)?)
        } else {
            None
        };
        let Target { bpffs, cgroup } = target;
        if let Some(cgroup) = &cgroup {
            wait_for_the_end(cgroup);
        }
        if bpffs.join("maps").try_exists().is_ok_and(|pinned| !pinned) {
            println!("nothing is pinned at {}", bpffs.display());
        }
        for line in crate::daemon::uninstall(&bpffs, state.namespaces()).context("remove kernel programs")? {
            println!("removed {line}");
        }
        if self.kernel_only {
            let mut dirs = state.dirs().to_vec();
            dirs.dedup();
            for dir in dirs.into_iter().filter(|dir| dir.exists()) {
                println!("kept    {} (workloads, virtual IPs, resources)", dir.display());
            }
            println!(
                "nothing is enforced until the next daemon runs; what workloads listen at by now is in the mesh again only when they \
                 are started again (`weft status` names them)"
            );
            return Ok(ExitCode::SUCCESS);
        }
        let is_default = |cgroup: &PathBuf| self.cgroup.is_none() && default_cgroup().is_ok_and(|ours| ours == *cgroup);
        let mut left = match cgroup {
            Some(ours) if is_default(&ours) => remove_cgroups(&ours),
            Some(named) => remove_own_cgroups(&named, &state),
            None => Vec::new(),
        };
        left.extend(self.remove_state(&state)?);
        drop(lock);
        for line in &left {
            println!("left    {line}");
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What was named, else what the last daemon had, else the default places.
    fn target(&self, state: &StateDir) -> anyhow::Result<Target> {
        let named = self.cgroup.as_deref().map(named_cgroup).transpose()?;
        if let Some(last) = state.places()? {
            let target = Target {
                bpffs: self.bpffs.clone().unwrap_or_else(|| last.bpffs.clone()),
                cgroup: Some(named.unwrap_or_else(|| last.cgroup.clone())),
            };
            target.check(&last.bpffs, &last.cgroup, "the last daemon of this state directory")?;
            let cgroup = target.cgroup.filter(|path| path.exists());
            return Ok(Target { cgroup, ..target });
        }
        let default = || match default_cgroup() {
            Ok(cgroup) => Ok(Some(cgroup).filter(|path| path.exists())),
            Err(CgroupError::NotMounted) => Ok(None),
            Err(error) => Err(error),
        };
        Ok(Target {
            bpffs: self.bpffs.clone().unwrap_or_else(|| DEFAULT_BPFFS.into()),
            cgroup: named.map_or_else(default, |named| Ok(Some(named)))?,
        })
    }

    /// Holding the lock proves that no daemon runs.
    fn stop_daemon(&self, state: &StateDir, target: &Target) -> anyhow::Result<StateLock> {
        let deadline = Instant::now() + STOP_PATIENCE;
        let (mut said, mut asked) = (false, false);
        loop {
            match state.lock() {
                Ok(lock) => return Ok(lock),
                Err(StateError::InUse { pid, .. }) => {
                    // It fails while the daemon starts, and when it is stopping already.
                    if !asked && let Ok(status) = self.status() {
                        if let Some(status) = status {
                            let who = format!("the running daemon (process {})", status.pid);
                            target.check(&status.bpffs, &status.cgroup, &who)?;
                        }
                        asked = self.daemon.ask(async |client| client.shutdown().await).is_ok();
                    }
                    if !said {
                        println!("stopping the daemon (process {pid})");
                        said = true;
                    }
                    if Instant::now() > deadline {
                        let error = anyhow!("the daemon (process {pid}) does not stop; stop it, then run this again");
                        return Err(Coded::error(FAILED, error));
                    }
                    sleep(RETRY);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What the running daemon says of itself; `None`: it is of a version whose words are others.
    fn status(&self) -> anyhow::Result<Option<Status>> {
        self.daemon.ask(async |client| match client.status().await {
            Err(ClientError::Unreadable { .. }) => Ok(None),
            told => told.map(Some),
        })
    }

    fn remove_state(&self, state: &StateDir) -> anyhow::Result<Vec<String>> {
        let mut ours = vec![
            state.socket(),
            state.workloads(),
            state.namespaces(),
            state.places_file(),
            state.allocations(),
            state.last_good(),
            state.last_good_file(),
        ];
        if self.purge {
            ours.extend([state.applied(), state.modules(), state.rolled_back()]);
        }
        ours.push(state.lock_file());
        for path in ours {
            if remove(&path).with_context(|| format!("remove {}", path.display()))? {
                println!("removed {}", path.display());
            }
        }
        let mut left = Vec::new();
        if fs::read_dir(state.applied()).is_ok_and(|mut entries| entries.next().is_some()) {
            left.push(format!(
                "{} (applied resources and their modules; --purge removes them)",
                state.applied().display()
            ));
        } else {
            let _ = fs::remove_dir(state.applied());
        }
        for dir in state.dirs() {
            match fs::remove_dir(dir) {
                Ok(()) => println!("removed {}", dir.display()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) => left.push(format!("{} (not empty)", dir.display())),
            }
        }
        left.dedup();
        Ok(left)
    }
}

// === impl Target ===

impl Target {
    /// What would be removed is what this daemon has, or had; else its kernel side would stay when its state is gone.
    fn check(&self, bpffs: &Path, cgroup: &Path, who: &str) -> anyhow::Result<()> {
        let (bpffs, cgroup) = (absolute(bpffs), absolute(cgroup));
        if absolute(&self.bpffs) == bpffs && self.cgroup.as_deref().map(absolute).as_ref() == Some(&cgroup) {
            return Ok(());
        }
        let error = anyhow!(
            "nothing is stopped or removed: {who} has its kernel side elsewhere; say --bpffs {} --cgroup {}",
            bpffs.display(),
            cgroup.display()
        );
        Err(Coded::error(INVALID, error))
    }
}

/// A process that is ending holds the kernel side, and its cgroup, for a moment after it let go of the state.
fn wait_for_the_end(cgroup: &Path) {
    let deadline = Instant::now() + END_PATIENCE;
    let lives = || OWN_CGROUPS.iter().any(|own| is_populated(&cgroup.join(own)));
    while lives() && Instant::now() < deadline {
        sleep(RETRY);
    }
}

/// The default cgroup, which is ours with all that is below it. Cgroups with processes in them stay; they are said.
fn remove_cgroups(cgroup: &Path) -> Vec<String> {
    let (removed, busy) = prune_empty(cgroup);
    if removed > 0 {
        println!("removed {removed} empty cgroups below {}", cgroup.display());
    }
    let mut left: Vec<_> = busy.iter().map(|path| busy_cgroup(path)).collect();
    match fs::remove_dir(cgroup) {
        Ok(()) => println!("removed {}", cgroup.display()),
        Err(_) => left.push(format!("cgroup {}", cgroup.display())),
    }
    left
}

/// One that somebody named was there before, and holds others' cgroups: only what weft made goes.
fn remove_own_cgroups(cgroup: &Path, state: &StateDir) -> Vec<String> {
    // Without a folder no workload was ever registered.
    let workloads = read_records(&state.workloads()).unwrap_or_default();
    let workloads = workloads.into_iter().map(|record| record.cgroup);
    let own = OWN_CGROUPS.into_iter().map(|name| cgroup.join(name));
    let made = own.chain(workloads.filter(|path| path.starts_with(cgroup) && path != cgroup));
    let (mut removed, mut left) = (0, Vec::new());
    for path in made.filter(|path| path.exists()) {
        match remove_cgroup(cgroup, &path) {
            true => removed += 1,
            false => left.push(busy_cgroup(&path)),
        }
    }
    if removed > 0 {
        println!("removed {removed} empty cgroups below {}", cgroup.display());
    }
    left
}

fn busy_cgroup(path: &Path) -> String {
    format!("cgroup {} (processes are in it)", path.display())
}

/// A file, or a folder with all that is in it; false if there was none.
fn remove(path: &Path) -> io::Result<bool> {
    let result = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        thread,
    };

    use super::*;
    use crate::{error::code_of, state_dir::Places};

    fn uninstall(dir: &Path, purge: bool) -> (Uninstall, StateDir) {
        let verb = Uninstall {
            bpffs: None,
            cgroup: None,
            purge,
            kernel_only: false,
            daemon: Daemon {
                state_dir: Some(dir.to_owned()),
            },
        };
        let state = verb.daemon.state();
        (verb, state)
    }

    #[test]
    fn only_the_places_of_the_running_daemon_are_removed_with_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let bpffs = dir.path().join("bpf");
        fs::create_dir(&bpffs).expect("made");
        let cgroup = Path::new("/sys/fs/cgroup/weft.slice");
        let target = |cgroup: Option<&Path>| Target {
            bpffs: bpffs.clone(),
            cgroup: cgroup.map(Path::to_owned),
        };
        // By another way to the same place.
        let same = dir.path().join("bpf/../bpf");
        let fits = target(Some(cgroup)).check(&same, cgroup, "it");
        fits.expect("the same places");
        let elsewhere = Path::new("/sys/fs/bpf/there-is-none");
        let other = Path::new("/sys/fs/cgroup/other.slice");
        for (has, named) in [(elsewhere, Some(cgroup)), (&same, Some(other)), (&same, None)] {
            let error = target(named).check(has, cgroup, "it").expect_err("other places");
            let flags = format!("--bpffs {} --cgroup {}", absolute(has).display(), cgroup.display());
            assert!(error.to_string().ends_with(&flags), "{error}");
            assert_eq!(code_of(&error), INVALID);
        }
    }

    #[test]
    fn without_a_daemon_the_places_of_the_last_one_are_meant_and_no_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut verb, state) = uninstall(dir.path(), false);
        let target = verb.target(&state).expect("the default places");
        assert_eq!(target.bpffs, Path::new(DEFAULT_BPFFS));
        let last = Places {
            bpffs: dir.path().join("bpf"),
            cgroup: dir.path().join("cgroup"),
        };
        fs::create_dir(&last.cgroup).expect("made");
        state.keep_places(&last).expect("kept");
        let target = verb.target(&state).expect("the last daemon's");
        assert_eq!(
            (&target.bpffs, &target.cgroup),
            (&last.bpffs, &Some(last.cgroup.clone()))
        );
        verb.bpffs = Some(last.bpffs.clone());
        assert_eq!(verb.target(&state).expect("the same").bpffs, last.bpffs);
        verb.bpffs = Some(dir.path().join("other"));
        let error = verb.target(&state).err().expect("another place");
        assert!(error.to_string().contains(&*last.bpffs.to_string_lossy()), "{error}");
        assert_eq!(code_of(&error), INVALID);
        // A cgroup that is gone has nothing that could be removed.
        fs::remove_dir(&last.cgroup).expect("removed");
        verb.bpffs = None;
        assert_eq!(verb.target(&state).expect("the rest").cgroup, None);
    }

    #[test]
    fn a_process_that_is_ending_is_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let own = dir.path().join(OWN_CGROUPS[0]);
        fs::create_dir(&own).expect("made");
        fs::write(own.join("cgroup.events"), "populated 1\nfrozen 0\n").expect("written");
        let gone = Arc::new(AtomicBool::new(false));
        let waiting = thread::spawn({
            let (cgroup, gone) = (dir.path().to_owned(), Arc::clone(&gone));
            move || {
                wait_for_the_end(&cgroup);
                gone.load(Ordering::SeqCst)
            }
        });
        gone.store(true, Ordering::SeqCst);
        fs::write(own.join("cgroup.events"), "populated 0\nfrozen 0\n").expect("written");
        assert!(waiting.join().expect("no panic"), "the process was there still");
        wait_for_the_end(&dir.path().join("there-is-none"));
    }

    #[test]
    fn state_goes_and_what_the_operator_wrote_stays_unless_purged() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = dir.path().join("state");
        let (verb, state) = uninstall(&place, false);
        drop(state.lock().expect("made"));
        fs::create_dir(state.workloads()).expect("made");
        fs::create_dir(state.applied()).expect("made");
        fs::write(state.allocations(), "{}").expect("written");
        fs::write(state.places_file(), "{}").expect("written");
        fs::create_dir(state.last_good()).expect("made");
        fs::write(state.last_good().join("a.json"), "{}").expect("written");
        fs::write(state.last_good_file(), "{}").expect("written");
        fs::write(state.applied().join("a.yaml"), "").expect("written");

        let left = verb.remove_state(&state).expect("removed");
        assert!(left.len() == 2 && left[0].contains("--purge removes them"), "{left:?}");
        assert!(!state.lock_file().exists() && !state.allocations().exists() && state.applied().exists());
        assert!(!state.places_file().exists());
        assert!(!state.last_good().exists() && !state.last_good_file().exists());

        let (verb, state) = uninstall(&place, true);
        assert_eq!(verb.remove_state(&state).expect("removed"), Vec::<String>::new());
        assert!(!place.exists());
        assert_eq!(
            verb.remove_state(&state).expect("nothing is no error"),
            Vec::<String>::new()
        );
    }
}
