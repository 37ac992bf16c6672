//! `weft run`, the real binary, with real cgroups and the real admin API; only the kernel programs are missing.
//! Without the right to make a cgroup: skipped, and said.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use weft::{
    admin::{
        Control, ControlError, Server,
        api::{
            AdapterChange, AdapterChanged, AdapterView, ApplyOutcome, ApplyRequest, DeleteOutcome, DoctorReport,
            EdgesView, ExplainRequest, ObjectQuery, ObjectView, RegisterRequest, RegisterResponse, Status,
            WorkloadView,
        },
    },
    flows::FlowStore,
    registry::{Registry, cgroup2_mount, own_netns, prune_empty},
    state_dir::StateDir,
};
use weft_policy::{Explanation, ObjectRef};

/// Where it says that its kernel side is.
const ELSEWHERE: &str = "/sys/fs/bpf/there-is-none";

/// A daemon that registers workloads and does nothing else.
struct Registrar {
    registry: Registry,
    cgroup: PathBuf,
    flows: FlowStore,
    netns: AtomicU64,
}

impl Control for Registrar {
    fn register_workload(&self, request: RegisterRequest) -> Result<RegisterResponse, ControlError> {
        let record = self.registry.register(request)?;
        Ok(RegisterResponse {
            name: record.name(),
            instance: record.instance,
            cgroup: record.cgroup,
            netns: self.netns.load(Ordering::Relaxed),
            daemon_pid: std::process::id(),
        })
    }

    fn deregister_workload(&self, name: &str) -> Result<(), ControlError> {
        Ok(self.registry.deregister(name)?)
    }

    fn workloads(&self) -> Vec<WorkloadView> {
        self.registry.views()
    }

    fn adapters(&self) -> Vec<AdapterView> {
        Vec::new()
    }

    fn change_adapter(&self, change: AdapterChange) -> Result<AdapterChanged, ControlError> {
        Err(ControlError::NotFound { what: change.name })
    }

    fn status(&self) -> Status {
        Status {
            bpffs: ELSEWHERE.into(),
            cgroup: self.cgroup.clone(),
            workloads: self.registry.views(),
            ..Status::default()
        }
    }

    fn objects(&self, _: &ObjectQuery) -> Vec<ObjectView> {
        Vec::new()
    }

    fn apply(&self, _: ApplyRequest) -> Result<ApplyOutcome, ControlError> {
        Ok(ApplyOutcome::default())
    }

    fn delete(&self, object: &ObjectRef) -> Result<DeleteOutcome, ControlError> {
        Err(ControlError::NotFound {
            what: object.to_string(),
        })
    }

    fn edges(&self) -> EdgesView {
        EdgesView::default()
    }

    fn flows(&self) -> &FlowStore {
        &self.flows
    }

    fn explain(&self, _: &ExplainRequest) -> Result<Explanation, ControlError> {
        Err(ControlError::Unavailable {
            reason: "no snapshot".into(),
        })
    }

    fn doctor(&self) -> DoctorReport {
        DoctorReport::default()
    }

    fn snapshot(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    fn hand_over(&self, _: tokio::net::UnixStream) {}

    fn shutdown(&self) {}
}

struct Daemon {
    control: Arc<Registrar>,
    state: TempDir,
    root: PathBuf,
    stop: CancellationToken,
    serving: Option<JoinHandle<()>>,
}

impl Daemon {
    fn start(test: &str) -> Option<Self> {
        let made = cgroup2_mount().map_err(anyhow::Error::from).and_then(|mount| {
            let root = mount.join(format!("weft-run-{}-{test}", std::process::id()));
            fs::create_dir(&root)?;
            Ok(root)
        });
        let root = match made {
            Ok(root) => root,
            Err(error) => {
                eprintln!("skipped: needs a cgroup2 file system and the right to make a cgroup: {error:#}");
                return None;
            }
        };
        let state = tempfile::tempdir().expect("a directory");
        let dir = StateDir::new(Some(state.path()));
        let control = Arc::new(Registrar {
            registry: Registry::open(&dir.workloads(), &root).expect("opened"),
            cgroup: root.clone(),
            flows: FlowStore::default(),
            netns: AtomicU64::new(own_netns().expect("ours")),
        });
        let stop = CancellationToken::new();
        let (bound, is_bound) = std::sync::mpsc::channel();
        let serving = std::thread::spawn({
            let (control, stop) = (Arc::clone(&control), stop.clone());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime");
                runtime.block_on(async {
                    let lock = dir.lock().expect("alone here");
                    let server = Server::bind(&dir, &lock).expect("bound");
                    bound.send(()).expect("awaited");
                    let watched = Arc::clone(&control);
                    let watching = tokio::spawn(async move { watched.registry.watch().await });
                    server.serve(control, stop).await;
                    watching.abort();
                });
            }
        });
        is_bound.recv().expect("it is bound");
        Some(Self {
            control,
            state,
            root,
            stop,
            serving: Some(serving),
        })
    }

    fn run(&self, flags: &[&str], command: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(["run", "--service", "web", "--state-dir"])
            .arg(self.state.path())
            .args(flags)
            .arg("--")
            .args(command)
            .output()
            .expect("the binary runs")
    }

    /// Waits until no workload is registered.
    fn all_gone(&self) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let mut changes = self.control.registry.changes();
        let gone = async {
            while !self.control.registry.runtime().is_empty() {
                changes.changed().await.expect("the registry lives");
            }
        };
        runtime
            .block_on(async { tokio::time::timeout(std::time::Duration::from_secs(20), gone).await })
            .is_ok()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.cancel();
        let served = self.serving.take().map(JoinHandle::join);
        let (_, left) = prune_empty(&self.root);
        let removed = fs::remove_dir(&self.root);
        if !std::thread::panicking() {
            assert!(
                matches!(served, Some(Ok(()))) && left.is_empty() && removed.is_ok(),
                "left behind: {left:?}"
            );
        }
    }
}

#[track_caller]
fn check(output: &Output, code: i32, says: &str) {
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(says), "expected {says:?} in: {said}");
}

#[test]
fn the_command_runs_in_its_own_cgroup_and_its_exit_is_ours() {
    let Some(daemon) = Daemon::start("exit") else { return };
    let output = daemon.run(
        &["--port", "80:8080/tcp", "--label", "a=b"],
        &["sh", "-c", "cat /proc/self/cgroup; exit 7"],
    );
    check(&output, 7, "/default/web/web-1");
    let output = daemon.run(&[], &["sh", "-c", "kill -TERM $$"]);
    assert_eq!(output.status.signal(), Some(15));
    let output = daemon.run(&[], &["sh", "-c", "kill -PIPE $$"]);
    assert_eq!(
        output.status.signal(),
        Some(13),
        "the command has the default signal actions"
    );
    assert!(daemon.all_gone());
    assert!(!daemon.root.join("default").exists());
}

#[test]
fn a_command_that_is_not_there_or_not_executable_is_told_apart() {
    let Some(daemon) = Daemon::start("codes") else { return };
    check(
        &daemon.run(&[], &["/no/such/program"]),
        127,
        "weft: run /no/such/program: No such file",
    );
    check(&daemon.run(&[], &["/etc"]), 126, "weft: run /etc: Permission denied");
    check(
        &daemon.run(&["--namespace", "No"], &["true"]),
        125,
        "namespace `No`: expected 1 to 63 of a-z",
    );
    assert!(daemon.all_gone());
}

#[test]
fn another_network_namespace_is_refused_with_the_way_in() {
    let Some(daemon) = Daemon::start("netns") else { return };
    daemon.control.netns.store(1, Ordering::Relaxed);
    check(
        &daemon.run(&[], &["true"]),
        125,
        &format!("nsenter --net=/proc/{}/ns/net", std::process::id()),
    );
    assert!(
        daemon.control.registry.runtime().is_empty(),
        "deregistered before it exits"
    );
}

#[test]
fn a_user_has_no_privileges_and_sees_no_cgroups() {
    let Some(daemon) = Daemon::start("user") else { return };
    let mount = cgroup2_mount().expect("found before");
    let script = "id -u; id -G; grep CapEff /proc/self/status; ls -A \"$0\" | wc -l; echo $HOME; \
                  echo 0 > \"$0/cgroup.procs\"";
    let output = daemon.run(
        &["--user", "nobody"],
        &["sh", "-c", script, mount.to_str().expect("plain path")],
    );
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[0], "65534", "{said}");
    assert!(!lines[1].split(' ').any(|group| group == "0"), "{said}");
    assert_eq!(lines[2].split_whitespace().last(), Some("0000000000000000"), "{said}");
    assert_eq!(lines[3], "0", "{said}");
    assert_ne!(lines[4], "/root", "{said}");
    assert!(!output.status.success(), "nothing there to write to");
    assert!(
        mount.join("cgroup.procs").exists(),
        "only the command's view is changed"
    );
}

#[test]
fn a_daemon_whose_kernel_side_is_elsewhere_is_not_stopped_for_an_uninstall() {
    let Some(daemon) = Daemon::start("uninstall") else {
        return;
    };
    let output = Command::new(env!("CARGO_BIN_EXE_weft"))
        .arg("uninstall")
        .arg("--state-dir")
        .arg(daemon.state.path())
        .arg("--bpffs")
        .arg(daemon.state.path().join("bpf"))
        .arg("--cgroup")
        .arg(&daemon.root)
        .output()
        .expect("the binary runs");
    let flags = format!("say --bpffs {ELSEWHERE} --cgroup {}", daemon.root.display());
    check(&output, 2, &flags);
    assert!(output.stdout.is_empty(), "nothing was done: {output:?}");
    check(&daemon.run(&[], &["true"]), 0, "");
    assert!(daemon.all_gone());
}
