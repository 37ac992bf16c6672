//! The kernel's counters say what programs themselves sent and received, exactly, on every path, at both ends.

mod datagrams;
mod edges;
mod full;
mod limits;
mod living;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use edges::{Counts, Edges, Key};
use serde_json::Value;
use vm_test::{Lab, Running, lab_test, poll, process, resources};
use weft_abi::UNHEARD;

/// Bytes a transfer: no multiple of anything that a kernel buffers by.
const BYTES: u64 = 3_000_017;
const FAMILIES: [&str; 2] = ["ahostsv4", "ahostsv6"];

/// Starts a server of `traffic` as one port of a service, and waits until the mesh knows it.
pub fn serve(lab: &Lab, service: &str, port: &str, words: &[&str]) -> Result<Running> {
    let traffic = lab.traffic()?;
    let words = [traffic.as_str()].into_iter().chain(words.iter().copied());
    let mut server = lab.run(service).port(port).start(words)?;
    server.line(1)?;
    lab.endpoint(service, port)?;
    Ok(server)
}

/// Runs a client of `traffic` and returns what it told.
pub fn client(lab: &Lab, words: &[&str]) -> Result<Value> {
    let traffic = lab.traffic()?;
    let words = [traffic.as_str()].into_iter().chain(words.iter().copied());
    let told = process::output(lab.run("client").command(words), process::BULK_BOUND)?
        .ok()?
        .json()?;
    ensure!(told["ok"] == true, "{told}");
    Ok(told)
}

/// Adds up what clients sent and received, by what they did.
#[derive(Default)]
struct Told(BTreeMap<&'static str, (u64, u64)>);

impl Told {
    fn by(&mut self, what: &'static str, told: &Value) -> Result<()> {
        let sum = self.0.entry(what).or_default();
        sum.0 += told["sent"].as_u64().with_context(|| format!("sent: {told}"))?;
        sum.1 += told["received"].as_u64().with_context(|| format!("received: {told}"))?;
        Ok(())
    }
}

/// Connections that [`transfers`] makes in each family.
const TRANSFERS: usize = 4;

/// Uploads, downloads, half-closes and echoes over both families. What clients and servers say they did must be what
/// their edges say; `edge` names these for a port and what listens there.
fn transfers(lab: &Lab, reset: bool, edge: impl Fn(u16, u16) -> (Key, Key)) -> Result<Value> {
    let bytes = BYTES.to_string();
    let servers = [
        ("upload", serve(lab, "bulk", "1:7001", &["serve-sink", "[::]:7001"])?),
        (
            "download",
            serve(lab, "bulk", "2:7002", &["serve-source", "[::]:7002", &bytes])?,
        ),
        (
            "half-close",
            serve(lab, "bulk", "3:7003", &["serve-late", "[::]:7003"])?,
        ),
        ("echo", serve(lab, "bulk", "4:7004", &["serve-echo", "[::]:7004"])?),
    ];
    let mut told = Told::default();
    for database in FAMILIES {
        let host = lab.host("bulk", database)?;
        let to = |port: u16| format!("{host}:{port}");
        told.by("upload", &client(lab, &["upload", &to(1), &bytes])?)?;
        told.by("download", &client(lab, &["download", &to(2)])?)?;
        told.by("half-close", &client(lab, &["half-close", &to(3), &bytes])?)?;
        let how = if reset { "reset" } else { "half-close" };
        told.by("echo", &client(lab, &[how, &to(4), "5003"])?)?;
    }
    let connections = FAMILIES.len();
    let mut wanted = Edges::new();
    for (port, (what, server)) in (1..).zip(&servers) {
        let carried = told.0[what];
        let served = edges::served(server, connections)?;
        ensure!(
            carried == served,
            "{what}: clients say {carried:?}, the server {served:?}"
        );
        let resets = if reset && *what == "echo" {
            connections as u64
        } else {
            0
        };
        let counts = Counts::orderly(connections as u64, carried).with_resets(resets);
        let (source, destination) = edge(port, 7000 + port);
        wanted.insert(source, counts);
        wanted.insert(destination, counts.at_destination());
    }
    edges::expect(lab, &wanted)
}

/// The proxy's own ends of its connections tell nothing; what servers see of it they tell.
fn by_proxy(port: u16, listening: u16) -> (Key, Key) {
    (
        Key::source("bulk", port).http(),
        Key::destination("weft-proxy", "bulk", listening).http(),
    )
}

#[test]
fn direct_connections_are_counted_exactly_at_both_ends() {
    lab_test("count-direct", |lab| {
        lab.daemon()?;
        let (before, sent_before) = (
            edges::retransmits_of_kernel(lab)?,
            edges::tcp_of_kernel(lab, "OutSegs")?,
        );
        let view = transfers(lab, true, |port, listening| {
            (Key::source("bulk", port), Key::destination("client", "bulk", listening))
        })?;
        // Nobody else speaks TCP in this namespace, and both ends of everything tell.
        let resent = edges::retransmits_of_kernel(lab)? - before;
        ensure!(
            edges::retransmits(&view)? == resent,
            "{resent} segments sent again: {view}"
        );
        // All segments but those that no connection sends: the answer to a SYN, what TIME_WAIT answers, a reset. OutSegs
        // leaves out those sent again.
        let (told, sent) = (
            edges::segments(&view)?,
            edges::tcp_of_kernel(lab, "OutSegs")? - sent_before + resent,
        );
        let others = 4 * (TRANSFERS * FAMILIES.len()) as u64;
        ensure!(
            told <= sent && sent - told <= others,
            "{told} segments told, {sent} sent: {view}"
        );
        metrics_agree(lab, &view)
    });
}

#[test]
fn opaque_connections_through_the_proxy_are_counted_exactly() {
    lab_test("count-opaque", |lab| {
        lab.resource("bulk.yaml", &resources::through_proxy("bulk", "off"))?;
        lab.daemon()?;
        transfers(lab, false, by_proxy).map(drop)
    });
}

#[test]
fn short_circuited_bytes_are_counted_exactly() {
    lab_test("count-fast", |lab| {
        lab.resource("bulk.yaml", &resources::through_proxy("bulk", "proxy"))?;
        lab.daemon_with(&["--short-circuit", "force"])?;
        let before = lab.loopback_bytes()?;
        let view = transfers(lab, false, by_proxy)?;
        let carried = lab.loopback_bytes()? - before;
        // Otherwise this test would prove nothing of short-circuits. Over TCP the device carries every byte to the proxy and from
        // it. Four of the streams in a family are longer than what goes past it; a fourth of that is for headers.
        let mut payload = 0;
        for edge in view["edges"].as_array().context("edges")? {
            if edge["reporter"] == "source" {
                payload += edges::total(edge, "bytes_sent")? + edges::total(edge, "bytes_received")?;
            }
        }
        let past = 3 * FAMILIES.len() as u64 * UNHEARD;
        ensure!(
            carried + past < 2 * payload,
            "it went through TCP: {carried} bytes on the device, of {payload}: {view}"
        );
        Ok(())
    });
}

/// No edge has as many segments as its transfers take over TCP: 3 MB are a hundred of 64 KiB and more.
fn past_tcp(view: &Value) -> Result<()> {
    for edge in view["edges"].as_array().context("edges")? {
        let segments = edges::total(edge, "segments_sent")?;
        ensure!(segments < 60, "it went through TCP: {edge}");
    }
    Ok(())
}

/// What comes past TCP is counted by its sender, for both ends.
#[test]
fn bytes_short_circuited_both_ways_are_counted_exactly_at_both_ends() {
    lab_test("count-full", |lab| {
        lab.resource("bulk.yaml", &resources::service_policy("bulk", &["acceleration: full"]))?;
        lab.daemon_with(&["--short-circuit", "force"])?;
        let view = transfers(lab, false, |port, listening| {
            (Key::source("bulk", port), Key::destination("client", "bulk", listening))
        })?;
        past_tcp(&view)?;
        let closes = poll::until("a close of every connection", || {
            let flows = lab.flows()?.into_iter().filter(|flow| flow["event"] == "close");
            let closes: Vec<Value> = flows.collect();
            ensure!(closes.len() >= TRANSFERS * FAMILIES.len(), "{}", closes.len());
            Ok(closes)
        })?;
        for flow in closes {
            let received = flow["bytes_received"].as_u64().context("bytes_received")?;
            ensure!(received > 0, "a close without the bytes that came past TCP: {flow}");
        }
        Ok(())
    });
}

/// The proxy's ends count for the workloads' what they hand over, and tell nothing of their own.
#[test]
fn bytes_short_circuited_both_ways_through_the_proxy_are_counted_exactly_at_both_ends() {
    lab_test("count-full-proxied", |lab| {
        lab.resource("bulk.yaml", &resources::through_proxy("bulk", "full"))?;
        lab.daemon_with(&["--short-circuit", "force"])?;
        let view = transfers(lab, false, by_proxy)?;
        past_tcp(&view)
    });
}

#[test]
fn requests_through_the_proxy_are_counted_exactly_byte_for_byte() {
    lab_test("count-http", |lab| {
        let route = resources::route("all", "/", &["PUT"]);
        let access = resources::allow("client-may", "client", "sink", ("HTTPRouteGroup", "all"));
        lab.resource("sink.yaml", &format!("{}{route}{access}", resources::DENY))?;
        lab.daemon()?;
        let sink = serve(lab, "sink", "80:7001", &["serve-http-sink", "[::]:7001"])?;
        let body = lab.work().join("body");
        std::fs::write(&body, vec![7; usize::try_from(BYTES)?]).context("make a body")?;
        let (mut sent, mut received) = (0, 0);
        for flag in ["-4", "-6"] {
            let words = [
                "curl",
                "-sS",
                "--fail",
                flag,
                "-o",
                "/dev/null",
                "-w",
                r#"{"sent":[%{size_request},%{size_upload}],"received":[%{size_header},%{size_download}],"interim":%{http_code}}"#,
                // No interim response, whose size curl does not tell.
                "-H",
                "Expect:",
                "-T",
                &body.display().to_string(),
                "http://sink/",
            ];
            let told = process::output(lab.run("client").command(words), process::BULK_BOUND)?
                .ok()?
                .json()?;
            let sum = |name: &str| -> Option<u64> { told[name].as_array()?.iter().map(Value::as_u64).sum() };
            sent += sum("sent").context("what curl sent")?;
            received += sum("received").context("what curl received")?;
        }
        let served = edges::served(&sink, 2)?;
        let wanted = Edges::from([
            (Key::source("sink", 80).http(), Counts::orderly(2, (sent, received))),
            (
                Key::destination("weft-proxy", "sink", 7001).http(),
                Counts::orderly(2, served).at_destination(),
            ),
        ]);
        edges::expect(lab, &wanted).map(drop)
    });
}

#[test]
fn refused_and_denied_connections_are_counted_and_none_of_them_as_opened() {
    lab_test("count-refused", |lab| {
        let tcp = resources::tcp_route("port", &[7001]);
        let access = resources::allow("friend-may", "friend", "web", ("TCPRoute", "port"));
        lab.resource("web.yaml", &format!("{}{tcp}{access}", resources::DENY))?;
        lab.daemon()?;
        let _web = serve(lab, "web", "80:7001", &["serve-echo", "[::]:7001"])?;
        let traffic = lab.traffic()?;
        for database in FAMILIES {
            let target = format!("{}:80", lab.host("web", database)?);
            let told = lab
                .run("client")
                .output([&traffic, "connect", &target])?
                .exits(1)?
                .json()?;
            ensure!(told["errno"] == 1, "{told}");
        }
        // Nobody listens there, which only TCP finds out.
        for target in ["127.0.0.1:9", "[::1]:9", "127.0.0.1:9"] {
            let told = lab
                .run("client")
                .output([&traffic, "connect", target])?
                .exits(1)?
                .json()?;
            ensure!(told["errno"] == 111, "{told}");
        }
        let denied = Counts {
            denied: 2,
            ..Counts::default()
        };
        let refused = Counts {
            refused: 3,
            ..Counts::default()
        };
        let wanted = Edges::from([
            (Key::source("web", 80).denied(), denied),
            (Key::source("outside", 0), refused),
        ]);
        edges::expect(lab, &wanted)?;
        let text = scrape(lab)?;
        ensure!(
            metric(&text, "weft_tcp_connections_denied_total", &[])? == 2.0
                && metric(&text, "weft_tcp_connections_refused_total", &[])? == 3.0
                && metric(&text, "istio_tcp_connections_opened_total", &[])? == 0.0,
            "{text}"
        );
        Ok(())
    });
}

pub fn scrape(lab: &Lab) -> Result<String> {
    Ok(lab
        .outside(["curl", "-sS", "--fail", "http://127.0.0.1:15020/metrics"])?
        .ok()?
        .stdout)
}

/// Sum of all series of a metric that have these labels.
pub fn metric(text: &str, name: &str, labels: &[&str]) -> Result<f64> {
    let lines = text.lines().filter(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['{', ' ']) && labels.iter().all(|label| rest.contains(label)))
    });
    lines
        .map(|line| {
            let value = line.rsplit(' ').next().context("a value")?;
            value.parse::<f64>().with_context(|| format!("a number: {line}"))
        })
        .sum()
}

/// `/metrics` is made of the same deltas, from the server's point of view as Istio's names have it.
fn metrics_agree(lab: &Lab, view: &Value) -> Result<()> {
    let text = scrape(lab)?;
    for reporter in ["source", "destination"] {
        let label = format!("reporter=\"{reporter}\"");
        let edges = view["edges"].as_array().context("edges")?;
        let edges: Vec<&Value> = edges.iter().filter(|edge| edge["reporter"] == reporter).collect();
        for (name, total) in [
            ("istio_tcp_sent_bytes_total", "bytes_received"),
            ("istio_tcp_received_bytes_total", "bytes_sent"),
            ("istio_tcp_connections_opened_total", "opened"),
            ("istio_tcp_connections_closed_total", "closed"),
            ("weft_tcp_segments_sent_total", "segments_received"),
            ("weft_tcp_segments_received_total", "segments_sent"),
            ("weft_tcp_resets_total", "resets"),
            ("weft_tcp_retransmits_total", "retransmits"),
        ] {
            let wanted: u64 = edges.iter().map(|edge| edges::total(edge, total)).sum::<Result<_>>()?;
            let found = metric(&text, name, &[&label])?;
            ensure!(
                found == wanted as f64,
                "{name} by the {reporter}: {found}, expected {wanted}\n{text}"
            );
        }
        for (name, histogram) in [
            ("weft_tcp_connect_duration_seconds_count", "connect"),
            ("weft_tcp_rtt_seconds_count", "rtt"),
        ] {
            let wanted: u64 = edges
                .iter()
                .map(|edge| edges::samples(edge, histogram))
                .sum::<Result<_>>()?;
            let found = metric(&text, name, &[&label])?;
            ensure!(
                found == wanted as f64,
                "{name} by the {reporter}: {found}, expected {wanted}\n{text}"
            );
        }
    }
    ensure!(
        metric(&text, "weft_tcp_connect_duration_seconds_sum", &[])? > 0.0,
        "{text}"
    );
    Ok(())
}
