use std::{
    error::Error,
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use weft_policy::ObjectRef;

use super::*;
use crate::record::{Destination, FlowEvent, FlowProtocol, FlowVerdict, L7, Peer, Side};

const LONG: Duration = Duration::from_secs(20);

fn request(status: u16) -> Flow {
    Flow {
        time: SystemTime::UNIX_EPOCH,
        event: FlowEvent::Request,
        reporter: Side::Proxy,
        verdict: FlowVerdict::Allow,
        reason: "allowed".into(),
        rule: Some(Arc::new(ObjectRef {
            kind: "TrafficTarget".into(),
            namespace: Some("default".into()),
            name: "t".into(),
        })),
        source: Arc::new(Peer {
            namespace: "default".into(),
            service: None,
            account: "client".into(),
        }),
        destination: Arc::new(Destination {
            namespace: "shop".into(),
            service: Some("web".into()),
            account: None,
            address: "::1".parse().unwrap(),
            port: 80,
        }),
        protocol: FlowProtocol::Http,
        l7: Some(L7 {
            method: "GET".into(),
            path: "/a".into(),
            status,
            duration: Duration::from_micros(1500),
            request_bytes: 0,
            response_bytes: 612,
            grpc_status: None,
            user_agent: None,
            trace: None,
        }),
        bytes_sent: 75,
        bytes_received: 850,
        rtt_us: Some(42),
        errno: None,
    }
}

fn connection(event: FlowEvent) -> Flow {
    let verdict = if event == FlowEvent::Deny {
        FlowVerdict::Deny
    } else {
        FlowVerdict::Allow
    };
    Flow {
        event,
        verdict,
        protocol: FlowProtocol::Tcp,
        l7: None,
        ..request(0)
    }
}

/// Tells the adapter, and waits until it is written.
fn tell(adapter: &mut Stdio, batch: &[Record]) {
    adapter.report(batch);
    adapter.flush();
    adapter.wait(Instant::now() + LONG);
}

/// What a log of these parameters holds after the flows.
fn log(json: &str, flows: impl IntoIterator<Item = Flow>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let config = Config {
        path: Some(path.clone()),
        ..serde_json::from_str(json).unwrap()
    };
    let mut adapter = Stdio::new(config, &mut Registry::default()).unwrap();
    let batch: Vec<_> = flows.into_iter().map(|flow| Record::Flow(Arc::new(flow))).collect();
    tell(&mut adapter, &batch);
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_request_is_one_line_of_text() {
    assert_eq!(
        log("{}", [request(200)]),
        "1970-01-01T00:00:00.000000Z allow default/client -> shop/web ::1:80 http GET /a 200 1500us sent=75 received=850 \
         rule=TrafficTarget default/t allowed\n"
    );
}

#[test]
fn a_request_is_one_line_of_the_contracts_json() {
    let text = log(r#"{"format": "json"}"#, [request(200), request(404)]);
    let flows: Vec<Flow> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(flows, [request(200), request(404)]);
}

#[test]
fn any_field_can_be_in_the_line() {
    for (template, expect) in [
        ("{event} {reporter} {rtt_us} {errno}", "request proxy 42 -"),
        ("{rule.kind}/{rule.namespace}/{rule.name}", "TrafficTarget/default/t"),
        (
            "{source.service} {destination.account} {l7.grpc_status} {l7.user_agent}",
            "- - - -",
        ),
        ("[{l7.request_bytes}|{l7.response_bytes}]", "[0|612]"),
        ("nothing", "nothing"),
    ] {
        assert_eq!(
            log(&format!(r#"{{"template": "{template}"}}"#), [request(200)]),
            format!("{expect}\n")
        );
    }
}

#[test]
fn every_leaf_of_the_json_is_a_field_of_the_template() {
    fn leaves(prefix: &str, value: &serde_json::Value, out: &mut Vec<String>) {
        match value.as_object() {
            Some(object) => {
                for (key, value) in object {
                    let name = if prefix.is_empty() {
                        key.clone()
                    } else {
                        format!("{prefix}.{key}")
                    };
                    leaves(&name, value, out);
                }
            }
            None => out.push(prefix.to_owned()),
        }
    }
    let mut full = request(200);
    full.errno = Some(1);
    let l7 = full.l7.as_mut().unwrap();
    (l7.grpc_status, l7.user_agent) = (Some(0), Some("curl".into()));
    let mut names = Vec::new();
    leaves("", &serde_json::to_value(&full).unwrap(), &mut names);
    for name in names {
        Template::parse(&format!("{{{name}}}")).unwrap();
    }
}

#[test]
fn a_client_cannot_forge_a_line() {
    let mut flow = request(200);
    flow.l7.as_mut().unwrap().path = "/\n1970 allow admin\u{1b}[2J".into();
    for format in ["text", "json"] {
        let text = log(&format!(r#"{{"format": "{format}"}}"#), [flow.clone()]);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}

#[test]
fn a_long_line_is_cut() {
    let mut flow = request(200);
    flow.l7.as_mut().unwrap().path = "ä".repeat(MAX_LINE);
    // Every `ä` is two bytes, and none is cut in half.
    assert_eq!(
        log(r#"{"template": "x{l7.path}"}"#, [flow.clone()]).len(),
        MAX_LINE - 1 + "\n".len()
    );
    assert_eq!(log(r#"{"template": "{l7.path}"}"#, [flow]).len(), MAX_LINE + "\n".len());
}

#[test]
fn the_level_leaves_out_what_is_less() {
    let refused = Flow {
        verdict: FlowVerdict::Deny,
        ..request(403)
    };
    let mut grpc = request(200);
    grpc.l7.as_mut().unwrap().grpc_status = Some(14);
    let flows = [
        request(200),
        request(404),
        request(503),
        refused,
        connection(FlowEvent::Deny),
        grpc,
    ];
    for (level, lines) in [("info", 6), ("warning", 5), ("error", 2)] {
        let text = log(&format!(r#"{{"level": "{level}"}}"#), flows.clone());
        assert_eq!(text.lines().count(), lines, "{level}\n{text}");
    }
}

#[test]
fn only_wanted_events_make_lines() {
    let flows = [FlowEvent::Open, FlowEvent::Close, FlowEvent::Deny].map(connection);
    assert_eq!(log(r#"{"template": "{event}"}"#, flows.clone()), "close\ndeny\n");
    assert_eq!(log(r#"{"template": "{event}", "events": ["open"]}"#, flows), "open\n");
}

#[test]
fn a_rotated_log_is_reopened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let config = Config {
        path: Some(path.clone()),
        template: Template::parse("{l7.status}").unwrap(),
        ..Config::default()
    };
    let mut adapter = Stdio::new(config, &mut Registry::default()).unwrap();
    tell(&mut adapter, &[Record::Flow(Arc::new(request(200)))]);
    fs::rename(&path, folder.path().join("access.log.1")).unwrap();
    tell(&mut adapter, &[Record::Flow(Arc::new(request(404)))]);
    assert_eq!(fs::read_to_string(folder.path().join("access.log.1")).unwrap(), "200\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "404\n");
}

#[test]
fn lines_that_cannot_be_written_are_counted() {
    let config = Config {
        path: Some("/dev/full".into()),
        ..Config::default()
    };
    let (written, lost) = (Counter::default(), Counter::default());
    let mut adapter = Stdio::open("log", config, written.clone(), lost.clone()).unwrap();
    let record = Record::Flow(Arc::new(request(200)));
    tell(&mut adapter, &[record.clone(), record]);
    assert_eq!((lost.get(), written.get()), (2, 0));
}

/// Its reader takes nothing; other adapters are told meanwhile.
#[test]
fn a_log_that_stalls_loses_its_own_lines_and_nobody_waits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let config = Config {
        path: Some(path.clone()),
        ..Config::default()
    };
    let (written, lost) = (Counter::default(), Counter::default());
    let open = || Stdio::open("log", config.clone(), written.clone(), lost.clone());
    let error = open().unwrap_err();
    assert_eq!(
        error.source().unwrap().to_string(),
        "it is a pipe that nobody reads, or a socket"
    );

    // Opened for both, it needs no writer.
    let reader = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut adapter = open().unwrap();
    let mut long = request(200);
    long.l7.as_mut().unwrap().path = "x".repeat(MAX_LINE);
    // Three of them are more than the queue and the pipe hold.
    let batch = vec![Record::Flow(Arc::new(long)); MAX_QUEUED / MAX_LINE / 2];
    for _ in 0..3 {
        adapter.report(&batch);
    }
    assert!(lost.get() >= batch.len() as u64, "{}", lost.get());
    adapter.flush();
    adapter.wait(Instant::now());
    assert_eq!(written.get(), 0);
    // What waited fails now, and the thread goes on.
    drop(reader);
    adapter.flush();
    adapter.wait(Instant::now() + LONG);
    assert_eq!(written.get() + lost.get(), 3 * batch.len() as u64);
}

#[test]
fn bad_parameters_say_what_to_write() {
    for (json, expect) in [
        (
            r#"{"template": "{l7.colour}"}"#,
            "unknown field `{l7.colour}`; there are time, event",
        ),
        (
            r#"{"template": "{time"}"#,
            "`{` without `}` in `{time`; write `{field}`",
        ),
        (r#"{"fromat": "json"}"#, "unknown field `fromat`"),
    ] {
        let error = serde_json::from_str::<Config>(json).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    }
    let error = Stdio::new(
        Config {
            events: Vec::new(),
            ..Config::default()
        },
        &mut Registry::default(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("events"), "{error}");
    let path = Some("/nonexistent/folder/log".into());
    let error = Stdio::new(
        Config {
            path,
            ..Config::default()
        },
        &mut Registry::default(),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "open access log `/nonexistent/folder/log` for appending"
    );
}

#[test]
fn the_default_template_parses_and_the_pages_examples_load() {
    assert_eq!(Template::default(), Template::parse(DEFAULT_TEMPLATE).unwrap());
    for example in include_str!("README.md")
        .split("```json\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
    {
        serde_json::from_str::<Config>(example).unwrap();
    }
}
