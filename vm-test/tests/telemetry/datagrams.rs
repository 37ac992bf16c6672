//! Datagrams, at both ends of them and where a device sees them; and what only a device sees.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{Host, Lab, Running, hosts_test, lab_test, poll, process, resources};

use crate::{
    FAMILIES, client,
    edges::{self, Counts, Edges, Key},
    metric, scrape, serve,
};

const KINDS: [&str; 2] = ["connected", "unconnected"];
/// Datagrams a flow, and the payload of each.
const COUNT: u64 = 7;
const SIZE: u64 = 1009;
/// Ports of clients: below those that the kernel gives out, so that each flow has one that nobody had before.
const PORTS: std::ops::Range<u16> = 20_001..20_005;
/// Headers of Ethernet and UDP in a frame.
const ETHERNET_UDP: u64 = 14 + 8;

/// A flow of datagrams, each echoed; bytes sent and received as the program that is `run` tells them.
fn echoes(kind: &str, target: &str, port: u16, run: impl Fn(&[&str]) -> Result<Value>) -> Result<(u64, u64)> {
    let [port, count, size] = [u64::from(port), COUNT, SIZE].map(|number| number.to_string());
    let told = run(&["udp-echoes", kind, target, &port, &count, &size])?;
    let number = |name: &str| told[name].as_u64().with_context(|| format!("{name}: {told}"));
    Ok((number("sent")?, number("received")?))
}

/// A client of `traffic` outside any mesh; what it told.
fn outside(host: &Host, words: &[&str]) -> Result<Value> {
    let traffic = host.traffic()?;
    let words = [&[traffic.as_str()], words].concat();
    let told = process::output(host.command(words), process::BULK_BOUND)?
        .ok()?
        .json()?;
    ensure!(told["ok"] == true, "{told}");
    Ok(told)
}

/// `/metrics` says of the edge what `counts` does, from the server's point of view.
fn metrics_say(lab: &Lab, labels: &[&str], counts: &Counts) -> Result<()> {
    let text = scrape(lab)?;
    for (name, wanted) in [
        ("weft_udp_received_bytes_total", counts.sent),
        ("weft_udp_sent_bytes_total", counts.received),
        ("weft_udp_flows_opened_total", counts.opened),
    ] {
        let found = metric(&text, name, labels)?;
        ensure!(
            found == wanted as f64,
            "{name}{labels:?}: {found}, expected {wanted}\n{text}"
        );
    }
    Ok(())
}

#[test]
fn flows_of_datagrams_are_counted_exactly_at_both_ends() {
    lab_test("count-udp", |lab| {
        lab.daemon()?;
        let _echo = serve(lab, "echo", "7:7007/udp", &["serve-udp-echo", "[::]:7007"])?;
        let mut counts = Counts::default();
        let mut ports = PORTS;
        for database in FAMILIES {
            let target = format!("{}:7", lab.host("echo", database)?);
            // Not by the client, all of whose datagrams count.
            poll::until("the endpoint to be there", || {
                let words = [lab.traffic()?, "udp-echo".into(), target.clone()];
                let told = lab.run("friend").output(words)?.json()?;
                ensure!(told["ok"] == true, "{told}");
                Ok(())
            })?;
            for kind in KINDS {
                let port = ports.next().context("a port for each flow")?;
                let (sent, received) = echoes(kind, &target, port, |words| client(lab, words))?;
                counts.opened += 1;
                counts.sent += sent;
                counts.received += received;
            }
        }
        ensure!(
            counts.sent == 4 * COUNT * SIZE && counts.sent == counts.received,
            "{counts:?}"
        );
        let wanted = Edges::from([
            (Key::source("echo", 7).udp(), counts),
            (Key::destination("client", "echo", 7).udp(), counts),
        ]);
        edges::expect_where(lab, &wanted, |key| key.source == "client")?;
        for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
            let labels = [reporter, "/sa/client\"", "destination_service_name=\"echo\""];
            metrics_say(lab, &labels, &counts)?;
        }
        Ok(())
    });
}

/// Host b's daemon knows host a's addresses as account `peer`'s.
fn device_of(a: &Host, b: &Host, more: &str) -> Result<()> {
    let peer = resources::workload("peer", "peer", "peer", &a.addresses());
    b.resource("known.yaml", &format!("{peer}{more}"))?;
    b.daemon_with(&["--device", "eth0"])
}

/// The same bytes in frames: what the device counts.
fn in_frames(bytes: u64, address: IpAddr) -> u64 {
    let ip = if address.is_ipv4() { 20 } else { 40 };
    bytes + COUNT * (ETHERNET_UDP + ip)
}

/// Flows from host a to `port` of host b, connected and not, over both families: as sockets count them, and as a device does.
fn flows(a: &Host, b: &Host, port: u16) -> Result<(Counts, Counts)> {
    let (mut by_sockets, mut by_device) = (Counts::default(), Counts::default());
    let mut ports = PORTS;
    for address in b.addresses() {
        let target = SocketAddr::new(address, port).to_string();
        for kind in KINDS {
            let from = ports.next().context("a port for each flow")?;
            let (sent, received) = echoes(kind, &target, from, |words| outside(a, words))?;
            by_sockets.opened += 1;
            by_sockets.sent += sent;
            by_sockets.received += received;
            by_device.opened += 1;
            by_device.sent += in_frames(sent, address);
            by_device.received += in_frames(received, address);
        }
    }
    Ok((by_sockets, by_device))
}

/// A server of `traffic` on a host, outside the mesh.
fn serve_outside(host: &Host, words: &[&str]) -> Result<Running> {
    let traffic = host.traffic()?;
    let mut server = Running::start(host.command([&[traffic.as_str()], words].concat()))?;
    server.line(1)?;
    Ok(server)
}

/// Rows of `weft top` whose source is `peer`.
fn rows_of_peer(lab: &Lab) -> Result<Vec<String>> {
    let text = lab.weft(["top", "--once"])?.ok()?.stdout;
    let rows = text.lines().filter(|line| line.starts_with("default/peer "));
    Ok(rows.map(str::to_owned).collect())
}

#[test]
fn what_only_a_device_sees_is_told_by_the_device() {
    hosts_test("count-device", 2, |hosts| {
        let [a, b] = hosts.all();
        // A server that is not captured: its address alone says whose it is.
        device_of(a, b, &resources::workload("web", "web", "web", &b.addresses()))?;
        let _echo = serve_outside(b, &["serve-udp-echo", "[::]:8080"])?;
        let (_, counts) = flows(a, b, 8080)?;
        let udp = Key::destination("peer", "web", 8080).by_device().udp();
        edges::expect(b, &Edges::from([(udp, counts)]))?;
        metrics_say(b, &["reporter=\"device\"", "/sa/peer\"", "/sa/web\""], &counts)?;
        let rows = rows_of_peer(b)?;
        ensure!(
            rows.len() == 1 && rows[0].contains("default/web:8080 udp by device"),
            "{rows:?}"
        );
        tcp_by_device(a, b)
    });
}

/// Bytes of an upload in each family.
const UPLOAD: u64 = 1_000_003;

/// How many frames TCP makes of it cannot be known beforehand; no byte of it is missing, and none is counted twice.
fn tcp_by_device(a: &Host, b: &Host) -> Result<()> {
    let _sink = serve_outside(b, &["serve-sink", "[::]:8081"])?;
    for address in b.addresses() {
        let target = SocketAddr::new(address, 8081).to_string();
        outside(a, &["upload", &target, &UPLOAD.to_string()])?;
    }
    let bytes = 2 * UPLOAD;
    poll::until("the device to tell of both connections", || {
        let view = edges::view(b)?;
        let all = view["edges"].as_array().context("edges")?;
        let found = all.iter().find(|edge| edge["destination"]["port"] == 8081);
        let edge = found.with_context(|| format!("no edge: {view}"))?;
        let (sent, received) = (edges::total(edge, "bytes_sent")?, edges::total(edge, "bytes_received")?);
        ensure!(
            edge["reporter"] == "device" && edges::total(edge, "opened")? == 2,
            "{edge}"
        );
        ensure!((bytes..2 * bytes).contains(&sent) && received > 0, "{edge}");
        let text = scrape(b)?;
        let told = |name| metric(&text, name, &["reporter=\"device\"", "/sa/peer\"", "/sa/web\""]);
        ensure!(
            told("istio_tcp_received_bytes_total")? == sent as f64
                && told("istio_tcp_sent_bytes_total")? == received as f64
                && told("istio_tcp_connections_opened_total")? == 2.0,
            "{edge}\n{text}"
        );
        Ok(())
    })?;
    b.flow("the connection, told by the device", |flow| {
        flow["event"] == "open" && flow["reporter"] == "device" && flow["destination"]["port"] == 8081
    })
    .map(drop)
}

#[test]
fn what_a_device_and_an_end_see_is_told_by_both_and_shown_once() {
    hosts_test("count-both", 3, |hosts| {
        let [a, b, c] = hosts.all();
        device_of(a, b, "")?;
        let _echo = serve(b, "inside", "80:8082/udp", &["serve-udp-echo", "[::]:8082"])?;
        // Somebody else's flows, until the device knows whose the port is.
        let target = SocketAddr::new(b.v4().into(), 8082).to_string();
        poll::until("the device to know the server", || {
            outside(c, &["udp-echo", &target])?;
            let view = edges::view(b)?;
            let all = view["edges"].as_array().context("edges")?;
            let known = |edge: &Value| edge["reporter"] == "device" && edge["destination"]["account"] == "inside";
            ensure!(all.iter().any(known), "{view}");
            Ok(())
        })?;
        let (by_sockets, by_device) = flows(a, b, 8082)?;
        let told = Key::destination("peer", "inside", 8082).udp();
        let wanted = Edges::from([(told.clone(), by_sockets), (told.by_device(), by_device)]);
        edges::expect_where(b, &wanted, |key| key.source == "peer")?;
        metrics_say(b, &["reporter=\"destination\"", "/sa/peer\""], &by_sockets)?;
        metrics_say(b, &["reporter=\"device\"", "/sa/peer\""], &by_device)?;
        let rows = rows_of_peer(b)?;
        ensure!(rows.len() == 1 && !rows[0].contains("by device"), "{rows:?}");
        Ok(())
    });
}
