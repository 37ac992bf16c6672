//! The API over a real unix socket, with a daemon that only remembers.

use std::{
    os::unix::fs::{FileTypeExt, PermissionsExt},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use http::StatusCode;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use weft_adapters::Side;
use weft_policy::{DataPath, Diagnostic, Explanation, ObjectRef, ObjectState, Severity, Verdict};

use super::{
    api::{
        AdapterChange, AdapterChanged, AdapterView, AppliedObject, ApplyAction, ApplyOutcome, ApplyRequest,
        DeleteOutcome, DoctorReport, EdgesView, ExplainRequest, ObjectQuery, ObjectView, RegisterRequest,
        RegisterResponse, Status, WorkloadView,
    },
    *,
};
use crate::{
    edges::sample::tests::{delta, view},
    flows::{
        FlowStore,
        query::tests::{denied, flow},
    },
    state_dir::StateDir,
};

#[derive(Default)]
struct Memory {
    flows: FlowStore,
    objects: Mutex<Vec<ObjectView>>,
    workloads: Mutex<Vec<String>>,
    stopped: AtomicBool,
}

impl Control for Memory {
    fn register_workload(&self, request: RegisterRequest) -> Result<RegisterResponse, ControlError> {
        if request.service.contains('/') {
            let details = vec!["a-z".to_owned()];
            return Err(ControlError::Invalid {
                reason: "service: no name".to_owned(),
                details,
            });
        }
        let instance = format!("{}-1", request.service);
        let name = format!("{}/{}/{instance}", request.namespace, request.service);
        self.workloads.lock().expect("whole").push(name.clone());
        Ok(RegisterResponse {
            name,
            instance,
            cgroup: "/c".into(),
            netns: 7,
            daemon_pid: 1,
        })
    }

    fn deregister_workload(&self, name: &str) -> Result<(), ControlError> {
        let mut workloads = self.workloads.lock().expect("whole");
        let found = workloads.iter().position(|known| known == name);
        let found = found.ok_or_else(|| ControlError::NotFound {
            what: format!("workload `{name}`"),
        })?;
        workloads.remove(found);
        Ok(())
    }

    fn workloads(&self) -> Vec<WorkloadView> {
        Vec::new()
    }

    fn status(&self) -> Status {
        Status {
            version: "test".into(),
            flows: self.flows.counts(),
            ..Status::default()
        }
    }

    fn objects(&self, query: &ObjectQuery) -> Vec<ObjectView> {
        self.objects
            .lock()
            .expect("whole")
            .iter()
            .filter(|object| query.matches(&object.key))
            .cloned()
            .collect()
    }

    fn apply(&self, request: ApplyRequest) -> Result<ApplyOutcome, ControlError> {
        let key = ObjectRef {
            kind: "Service".into(),
            namespace: Some("default".into()),
            name: request.yaml,
        };
        self.objects.lock().expect("whole").push(ObjectView {
            key: key.clone(),
            state: ObjectState::Accepted,
            reason: String::new(),
            source: "applied".into(),
            manifest: "kind: Service\n".into(),
        });
        let warning = Diagnostic {
            severity: Severity::Warning,
            file: request.file,
            line: 1,
            column: 2,
            object: None,
            field: String::new(),
            reason: "odd".into(),
            instead: None,
        };
        let object = AppliedObject {
            key,
            action: ApplyAction::Created,
            state: Some(ObjectState::Accepted),
            reason: String::new(),
        };
        Ok(ApplyOutcome {
            generation: 2,
            objects: vec![object],
            diagnostics: vec![warning],
        })
    }

    fn delete(&self, object: &ObjectRef) -> Result<DeleteOutcome, ControlError> {
        let mut objects = self.objects.lock().expect("whole");
        let found = objects.iter().position(|known| known.key == *object);
        let found = found.ok_or_else(|| ControlError::NotFound {
            what: object.to_string(),
        })?;
        objects.remove(found);
        Ok(DeleteOutcome {
            generation: 3,
            object: object.clone(),
        })
    }

    fn edges(&self) -> EdgesView {
        let mut odd = delta("\x1b[2J", 3);
        odd.reporter = Side::Destination;
        view(7, &[delta("client", 2), odd])
    }

    fn flows(&self) -> &FlowStore {
        &self.flows
    }

    fn explain(&self, request: &ExplainRequest) -> Result<Explanation, ControlError> {
        Ok(Explanation {
            steps: vec![request.to.clone()],
            verdict: Verdict::Allow,
            rule: None,
            network: None,
            access: None,
            path: DataPath::Kernel,
            why: String::new(),
        })
    }

    fn adapters(&self) -> Vec<AdapterView> {
        Vec::new()
    }

    fn change_adapter(&self, change: AdapterChange) -> Result<AdapterChanged, ControlError> {
        Err(ControlError::NotFound { what: change.name })
    }

    fn doctor(&self) -> DoctorReport {
        panic!("a bug in the daemon")
    }

    fn snapshot(&self) -> serde_json::Value {
        serde_json::json!({ "generation": 1 })
    }

    fn hand_over(&self, _connection: UnixStream) {}

    fn shutdown(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

struct Daemon {
    _dir: TempDir,
    state: StateDir,
    client: Client,
    memory: Arc<Memory>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

fn daemon() -> Daemon {
    let dir = tempfile::tempdir().expect("a directory");
    let state = StateDir::new(Some(dir.path()));
    let memory = Arc::new(Memory::default());
    let stop = CancellationToken::new();
    let lock = state.lock().expect("alone here");
    let server = Server::bind(&state, &lock).expect("bound");
    let serving = tokio::spawn({
        let (memory, stop) = (Arc::clone(&memory), stop.clone());
        async move {
            server.serve(memory, stop).await;
            drop(lock);
        }
    });
    Daemon {
        client: Client::new(&state),
        _dir: dir,
        state,
        memory,
        stop,
        serving,
    }
}

/// Sends bytes as they are and reads until the daemon hangs up or the head of the answer is there.
async fn raw(daemon: &Daemon, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(daemon.state.socket()).await.expect("connected");
    // The daemon may answer, and hang up, before it has read all.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[track_caller]
fn refused(result: Result<impl std::fmt::Debug, ClientError>) -> (StatusCode, String) {
    match result.expect_err("refused") {
        error @ ClientError::Refused { status, .. } => (status, error.to_string()),
        error => panic!("{error:?}"),
    }
}

fn request(service: &str) -> RegisterRequest {
    RegisterRequest {
        namespace: "default".into(),
        service: service.into(),
        account: service.into(),
        ports: Vec::new(),
        labels: Default::default(),
        command: Vec::new(),
    }
}

#[tokio::test]
async fn the_socket_is_for_its_owner_only() {
    let daemon = daemon();
    let meta = std::fs::metadata(daemon.state.socket()).expect("it is there");
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn workloads_come_and_go() {
    let daemon = daemon();
    let workload = daemon.client.register(&request("web")).await.expect("registered");
    assert_eq!((workload.name.as_str(), workload.netns), ("default/web/web-1", 7));
    daemon.client.deregister(&workload.name).await.expect("known");
    let (status, text) = refused(daemon.client.deregister(&workload.name).await);
    assert_eq!(
        (status, text.as_str()),
        (StatusCode::NOT_FOUND, "workload `default/web/web-1` is not known here")
    );
    let (status, text) = refused(daemon.client.register(&request("a/b")).await);
    assert_eq!(
        (status, text.as_str()),
        (StatusCode::UNPROCESSABLE_ENTITY, "service: no name; a-z")
    );
}

#[tokio::test]
async fn objects_are_applied_listed_and_deleted() {
    let daemon = daemon();
    let outcome = daemon
        .client
        .apply("dir/a b&c.yaml", b"web".to_vec())
        .await
        .expect("applied");
    assert_eq!(outcome.diagnostics[0].to_string(), "dir/a b&c.yaml:1:2: warning: odd");
    assert!(!outcome.has_errors());
    let all = daemon.client.objects(&ObjectQuery::default()).await.expect("listed");
    assert_eq!(all.len(), 1);
    let query = ObjectQuery {
        kind: Some("services".into()),
        namespace: Some("default".into()),
        name: Some("web".into()),
    };
    assert_eq!(daemon.client.objects(&query).await.expect("listed"), all);
    let none = ObjectQuery {
        namespace: Some("other".into()),
        ..query
    };
    assert!(daemon.client.objects(&none).await.expect("listed").is_empty());
    assert_eq!(daemon.client.delete(&all[0].key).await.expect("deleted").generation, 3);
    assert_eq!(
        refused(daemon.client.delete(&all[0].key).await).0,
        StatusCode::NOT_FOUND
    );
}

#[test]
fn what_is_stored_and_not_in_force_is_an_error_and_no_refusal() {
    for (action, state, refusals, errors) in [
        (ApplyAction::Created, Some(ObjectState::Accepted), false, false),
        (ApplyAction::Created, Some(ObjectState::Pending), false, false),
        (ApplyAction::Created, Some(ObjectState::Rejected), false, true),
        (ApplyAction::Unchanged, Some(ObjectState::Rejected), false, true),
        (ApplyAction::Refused, None, true, true),
    ] {
        let object = AppliedObject {
            key: ObjectRef {
                kind: "Service".into(),
                namespace: Some("default".into()),
                name: "web".to_owned(),
            },
            action,
            state,
            reason: String::new(),
        };
        let outcome = ApplyOutcome {
            objects: vec![object],
            ..ApplyOutcome::default()
        };
        assert_eq!(
            (outcome.has_refusals(), outcome.has_errors()),
            (refusals, errors),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn edges_come_with_the_time_of_their_reading() {
    let daemon = daemon();
    let view = daemon.client.edges().await.expect("edges");
    assert_eq!(view, daemon.memory.edges());
    assert_eq!((view.read_us, view.edges.len()), (7_000_000, 2));
}

#[tokio::test]
async fn flows_are_queried_and_followed() {
    let daemon = daemon();
    daemon.memory.flows.push(flow());
    daemon.memory.flows.push(denied());
    let mut kept = daemon
        .client
        .flows(&[("verdict", "deny"), ("from", "default/client")])
        .await
        .expect("a stream");
    let Some(FlowLine::Flow { flow: first, json }) = kept.next().await.expect("a line") else {
        panic!("no flow")
    };
    assert_eq!(*first.rule.as_ref().expect("a rule").kind, *"MeshConfig");
    assert!(json.contains("\"errno\":1"), "{json}");
    assert_eq!(kept.next().await.expect("the end"), None);

    let mut followed = daemon
        .client
        .flows(&[("follow", "1"), ("last", "1")])
        .await
        .expect("a stream");
    let Some(FlowLine::Flow { flow: last, .. }) = followed.next().await.expect("kept") else {
        panic!("no flow")
    };
    assert_eq!(last.errno, Some(1));
    daemon.memory.flows.push(flow());
    let Some(FlowLine::Flow { flow: new, .. }) = followed.next().await.expect("new") else {
        panic!("no flow")
    };
    assert_eq!(new.errno, None);
    daemon.stop.cancel();
    assert_eq!(followed.next().await.expect("the end"), None);
    daemon.serving.await.expect("stopped");
    assert!(!daemon.state.socket().exists(), "the socket is removed");
}

#[tokio::test]
async fn bad_requests_get_an_answer_each() {
    let daemon = daemon();
    let yaml = format!(
        "PUT /v1/objects HTTP/1.1\r\nhost: weft\r\ncontent-length: {}\r\n\r\n",
        100 << 20
    );
    let mut large = yaml.into_bytes();
    large.resize(large.len() + MAX_YAML_BYTES + 1, b'a');
    for (sent, expected) in [
        (&b"GET /nothing HTTP/1.1\r\nhost: weft\r\n\r\n"[..], "HTTP/1.1 404"),
        (b"PATCH /v1/status HTTP/1.1\r\nhost: weft\r\n\r\n", "HTTP/1.1 404"),
        (
            b"GET /v1/flows?verdict=no HTTP/1.1\r\nhost: weft\r\n\r\n",
            "HTTP/1.1 422",
        ),
        (b"GET /v1/flows?lats=1 HTTP/1.1\r\nhost: weft\r\n\r\n", "HTTP/1.1 422"),
        (b"GET /v1/objects?knid=a HTTP/1.1\r\nhost: weft\r\n\r\n", "HTTP/1.1 422"),
        (
            b"POST /v1/workloads HTTP/1.1\r\nhost: weft\r\ncontent-length: 3\r\n\r\n{\"a",
            "HTTP/1.1 400",
        ),
        (
            b"POST /v1/explain HTTP/1.1\r\nhost: weft\r\ncontent-length: 9\r\n\r\n{\"zzz\":1}",
            "HTTP/1.1 400",
        ),
        (
            b"PUT /v1/objects HTTP/1.1\r\nhost: weft\r\ncontent-length: 2\r\n\r\n\xff\xfe",
            "HTTP/1.1 422",
        ),
        (b"\x00\x01\x02 not http at all\r\n\r\n", "HTTP/1.1 400"),
        (&large, "HTTP/1.1 413"),
    ] {
        let answer = raw(&daemon, sent).await;
        let shown = String::from_utf8_lossy(&sent[..sent.len().min(60)]);
        assert!(answer.starts_with(expected), "{shown:?}: {answer}");
    }
    daemon.client.status().await.expect("it lives");
}

#[tokio::test]
async fn a_panic_in_the_daemon_is_an_answer_and_the_daemon_lives() {
    let daemon = daemon();
    let (status, text) = refused(daemon.client.doctor().await);
    assert_eq!(
        (status, text.as_str()),
        (StatusCode::INTERNAL_SERVER_ERROR, "the daemon failed; see its log")
    );
    assert_eq!(daemon.client.status().await.expect("it lives").version, "test");
    daemon.client.shutdown().await.expect("taken");
    assert!(daemon.memory.stopped.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_socket_that_a_dead_daemon_left_is_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = StateDir::new(Some(dir.path()));
    let dead = std::os::unix::net::UnixListener::bind(state.socket()).expect("bound");
    drop(dead);
    let error = Client::new(&state).status().await.expect_err("nobody there");
    assert!(matches!(error, ClientError::NoDaemon { .. }), "{error:?}");
    let lock = state.lock().expect("alone here");
    let server = Server::bind(&state, &lock).expect("in its place");
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(Arc::new(Memory::default()), stop.clone()));
    Client::new(&state).status().await.expect("it answers");
    stop.cancel();
    serving.await.expect("stopped");
}

#[tokio::test]
async fn a_follower_that_went_away_gives_its_place_back() {
    let daemon = daemon();
    for _ in 0..200 {
        let reader = daemon
            .client
            .flows(&[("follow", "1")])
            .await
            .expect("there is room again");
        drop(reader);
        // The daemon sees the end of the connection when it next looks; a request on another connection lets it.
        while daemon.client.status().await.is_err() {}
    }
}
