//! With real cgroups, below one of the test's own. Without the right to make one: skipped, and said.

use std::{
    io::Write,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

/// Far more than the kernel needs to tell us anything.
const SOON: Duration = Duration::from_secs(20);

struct Ground {
    root: PathBuf,
    state: TempDir,
}

impl Ground {
    /// `None` (and a line that says so) where we may not make cgroups.
    fn new(test: &str) -> Option<Self> {
        let made = cgroup2_mount().map_err(anyhow::Error::from).and_then(|mount| {
            let root = mount.join(format!("weft-registry-{}-{test}", std::process::id()));
            std::fs::create_dir(&root)?;
            Ok(root)
        });
        match made {
            Ok(root) => Some(Self {
                root,
                state: tempfile::tempdir().expect("a directory"),
            }),
            Err(error) => {
                eprintln!("skipped: needs a cgroup2 file system and the right to make a cgroup: {error:#}");
                None
            }
        }
    }

    fn open(&self) -> Arc<Registry> {
        Arc::new(Registry::open(&self.state.path().join("workloads"), &self.root).expect("opened"))
    }

    fn records(&self) -> usize {
        std::fs::read_dir(self.state.path().join("workloads"))
            .expect("made")
            .count()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let (_, left) = prune_empty(&self.root);
        assert!(left.is_empty(), "cgroups with processes in them: {left:?}");
        std::fs::remove_dir(&self.root).expect("empty");
    }
}

/// A process inside a cgroup, until it is told to end.
struct Inside(Child);

impl Inside {
    fn enter(cgroup: &Path) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", "echo 0 > \"$0/cgroup.procs\" && echo in && read line"])
            .arg(cgroup)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh runs");
        let mut said = [0; 3];
        io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut said).expect("it entered");
        Self(child)
    }

    fn end(mut self) {
        self.0
            .stdin
            .take()
            .expect("piped")
            .write_all(b"\n")
            .expect("it listens");
        self.0.wait().expect("it ended");
    }
}

fn request(service: &str) -> RegisterRequest {
    RegisterRequest {
        namespace: "default".into(),
        service: service.into(),
        account: format!("{service}-account"),
        ports: Vec::new(),
        labels: Default::default(),
        command: vec!["sh".into()],
    }
}

async fn until(registry: &Registry, what: &str, holds: impl Fn(&Registry) -> bool) {
    let mut changes = registry.changes();
    let waited = timeout(SOON, async {
        while !holds(registry) {
            changes.changed().await.expect("the registry lives");
        }
    });
    assert!(waited.await.is_ok(), "never came: {what}; {:?}", registry.views());
}

#[tokio::test]
async fn a_workload_lives_as_long_as_its_processes() {
    let Some(ground) = Ground::new("lives") else { return };
    let registry = ground.open();
    let watching = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move { registry.watch().await }
    });
    let record = registry.register(request("web")).expect("registered");
    assert_eq!(record.cgroup, ground.root.join("default/web/web-1"));
    assert_eq!(registry.register(request("web")).expect("registered").instance, "web-2");
    assert_eq!(registry.runtime().len(), 2);

    let inside = Inside::enter(&record.cgroup);
    registry.deregister("default/web/web-2").expect("nobody is in it");
    registry.deregister("default/web/web-1").expect("known");
    assert_eq!(registry.runtime().len(), 1, "what runs keeps its identity");
    inside.end();
    until(&registry, "it is gone", |registry| registry.runtime().is_empty()).await;
    assert!(
        !ground.root.join("default").exists(),
        "cgroups are removed with their empty parents"
    );
    assert_eq!(ground.records(), 0);
    let peer = registry
        .peer_by_cgroup(record.cgroup_id)
        .expect("late events still name it");
    assert_eq!(
        (peer.service.as_deref(), peer.account.as_str()),
        (Some("web"), "web-account")
    );
    watching.abort();
}

#[tokio::test]
async fn a_short_life_is_seen_to_be_over() {
    let Some(ground) = Ground::new("short") else { return };
    let registry = ground.open();
    let record = registry.register(request("job")).expect("registered");
    Inside::enter(&record.cgroup).end();
    // Only now does anybody look: it has been entered and left, so no grace.
    let watching = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move { registry.watch().await }
    });
    until(&registry, "it is gone", |registry| registry.runtime().is_empty()).await;
    watching.abort();
}

#[tokio::test]
async fn the_next_daemon_takes_over_what_runs() {
    let Some(ground) = Ground::new("over") else { return };
    let first = ground.open();
    let running = first.register(request("web")).expect("registered");
    let ended = first.register(request("job")).expect("registered");
    let inside = Inside::enter(&running.cgroup);
    drop(first);
    cgroup::remove(&ground.root, &ended.cgroup);
    std::fs::write(ground.state.path().join("workloads/garbage.json"), b"\xff{").expect("written");

    let second = ground.open();
    let names: Vec<_> = second
        .runtime()
        .into_iter()
        .map(|workload| (workload.name, workload.cgroup))
        .collect();
    assert_eq!(names, [("default/web/web-1".to_owned(), running.cgroup_id)]);
    assert_eq!(ground.records(), 2, "the running one and the garbage");
    let watching = tokio::spawn({
        let second = Arc::clone(&second);
        async move { second.watch().await }
    });
    inside.end();
    until(&second, "it is gone", |registry| registry.runtime().is_empty()).await;
    watching.abort();
}

#[tokio::test(start_paused = true)]
async fn what_nobody_enters_is_dropped_after_the_grace() {
    let Some(ground) = Ground::new("grace") else { return };
    let registry = ground.open();
    registry.register(request("web")).expect("registered");
    // With a paused clock the grace is over as soon as there is nothing else to do.
    let watching = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move { registry.watch().await }
    });
    let begun = Instant::now();
    let mut changes = registry.changes();
    while !registry.runtime().is_empty() {
        changes.changed().await.expect("the registry lives");
    }
    assert!(begun.elapsed() >= ENTER_GRACE, "{:?}", begun.elapsed());
    watching.abort();
}

/// A registry that has taken over a workload which inotify refuses to watch: a folder stands for its cgroup, with a
/// link to itself where it would be told of processes.
fn unwatched(dir: &Path) -> (Arc<Registry>, PathBuf) {
    let (records, root) = (dir.join("workloads"), dir.join("root"));
    let cgroup = root.join("default/web/web-1");
    std::fs::create_dir_all(&cgroup).expect("made");
    std::fs::create_dir(&records).expect("made");
    std::os::unix::fs::symlink("cgroup.events", cgroup::events_file(&cgroup)).expect("made");
    let id = cgroup::id(&cgroup).expect("there");
    let record = Record::new(request("web"), "web-1".to_owned(), cgroup.clone(), id);
    let text = serde_json::to_vec(&record).expect("text");
    std::fs::write(entry::file(&records, &record), text).expect("written");
    let registry = Arc::new(Registry::open(&records, &root).expect("opened"));
    assert!(registry.lock().watched.is_empty(), "it cannot be watched");
    (registry, cgroup)
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_cannot_be_watched_is_taken_over_and_its_end_is_seen() {
    let dir = tempfile::tempdir().expect("a directory");
    let (registry, cgroup) = unwatched(dir.path());
    let watching = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move { registry.watch().await }
    });
    let mut changes = registry.changes();
    let changed = timeout(10 * LOOK, changes.changed()).await;
    assert!(changed.is_err() && registry.runtime().len() == 1, "it lives");
    std::fs::remove_dir_all(&cgroup).expect("removed");
    until(&registry, "it is gone", |registry| registry.runtime().is_empty()).await;
    watching.abort();
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_could_not_be_watched_is_watched_once_it_can_be() {
    let dir = tempfile::tempdir().expect("a directory");
    let (registry, cgroup) = unwatched(dir.path());
    let watching = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move { registry.watch().await }
    });
    std::fs::remove_file(cgroup::events_file(&cgroup)).expect("removed");
    std::fs::write(cgroup::events_file(&cgroup), "populated 1\n").expect("written");
    let watched = timeout(SOON, async {
        while registry.lock().watched.is_empty() {
            tokio::time::sleep(LOOK).await;
        }
    });
    assert!(watched.await.is_ok(), "{:?}", registry.views());
    assert_eq!(registry.runtime().len(), 1);
    watching.abort();
}

#[test]
fn listening_is_news_once() {
    let Some(ground) = Ground::new("listen") else { return };
    let registry = ground.open();
    let record = registry.register(request("web")).expect("registered");
    let listening = vec![(([0, 0, 0, 0], 80).into(), Protocol::Tcp)];
    assert!(registry.set_listening(record.cgroup_id, listening.clone()));
    assert!(!registry.set_listening(record.cgroup_id, [listening.clone(), listening.clone()].concat()));
    assert!(!registry.set_listening(0, listening.clone()));
    assert_eq!(registry.runtime()[0].listening, listening);
    registry.deregister("default/web/web-1").expect("known");
}

#[test]
fn a_request_that_could_leave_its_folder_is_refused() {
    let Some(ground) = Ground::new("names") else { return };
    let registry = ground.open();
    for (service, namespace) in [
        ("../x", "default"),
        ("web", ".."),
        ("", "default"),
        ("web", "a/b"),
        ("Web", "default"),
    ] {
        let asked = RegisterRequest {
            namespace: namespace.into(),
            ..request(service)
        };
        let error = registry.register(asked).expect_err(service).to_string();
        assert!(error.contains("expected 1 to 63 of a-z"), "{error}");
    }
    let twice = weft_policy::RuntimePort {
        port: 80,
        target: 80,
        protocol: Protocol::Tcp,
    };
    let asked = RegisterRequest {
        ports: vec![twice, twice],
        ..request("web")
    };
    assert_eq!(
        registry.register(asked).expect_err("twice").to_string(),
        "port `80/tcp`: expected every service port once"
    );
    assert_eq!(
        std::fs::read_dir(&ground.root)
            .expect("there")
            .filter(|e| e.as_ref().is_ok_and(|e| e.path().is_dir()))
            .count(),
        0
    );
}
