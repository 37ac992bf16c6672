//! Connections that live show what they carry, and what is lost on the way is counted.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{Lab, Running, lab_test, poll, resources};

use crate::{
    client,
    edges::{self, Counts, Edges, Key},
    serve,
};

/// The edge of a client's one connection, told by its source.
fn source_edge(lab: &Lab) -> Result<Value> {
    let view = edges::view(lab)?;
    let edges = view["edges"].as_array().context("edges")?;
    let found = edges.iter().find(|edge| edge["reporter"] == "source");
    found.cloned().with_context(|| format!("no edge by the source: {view}"))
}

fn start(lab: &Lab, words: &[&str]) -> Result<Running> {
    let traffic = lab.traffic()?;
    lab.run("client")
        .start([traffic.as_str()].into_iter().chain(words.iter().copied()))
}

/// A line of `traffic hold`, with its line end.
const LINE: &str = "0123456789";
const LINE_BYTES: u64 = 11;

/// Talks over `held` until its edge shows bytes both ways while the connection lives; how many lines that took.
fn talk_until_seen(lab: &Lab, held: &mut Running) -> Result<u64> {
    held.line(1)?;
    let mut lines = 0;
    poll::until("the edge to show bytes of a living connection", || {
        held.say(LINE)?;
        lines += 1;
        held.line(1 + usize::try_from(lines)?)?;
        let edge = source_edge(lab)?;
        let (sent, received) = (
            edges::total(&edge, "bytes_sent")?,
            edges::total(&edge, "bytes_received")?,
        );
        ensure!(
            edges::total(&edge, "opened")? == 1 && edges::total(&edge, "closed")? == 0,
            "{edge}"
        );
        ensure!(sent > 0 && received > 0, "{edge}");
        ensure!(
            sent <= lines * LINE_BYTES && received <= lines * LINE_BYTES,
            "too many: {edge}"
        );
        Ok(())
    })?;
    Ok(lines)
}

#[test]
fn a_living_connection_shows_its_bytes_and_none_of_them_twice() {
    lab_test("count-living", |lab| {
        lab.daemon()?;
        let server = serve(lab, "bulk", "1:7001", &["serve-echo", "[::]:7001"])?;
        let mut held = start(lab, &["hold", &format!("{}:1", lab.host("bulk", "ahostsv4")?)])?;
        let lines = talk_until_seen(lab, &mut held)?;
        held.finish(poll::PATIENCE)?.ok()?;
        let bytes = (lines * LINE_BYTES, lines * LINE_BYTES);
        ensure!(edges::served(&server, 1)? == bytes, "{lines} lines");
        let counts = Counts::orderly(1, bytes);
        edges::expect(
            lab,
            &Edges::from([
                (Key::source("bulk", 1), counts),
                (Key::destination("client", "bulk", 7001), counts.at_destination()),
            ]),
        )?;
        Ok(())
    });
}

/// Nothing but TCP's own acknowledgements leaves a client that only receives.
#[test]
fn a_living_download_shows_its_bytes_at_the_end_that_only_receives() {
    lab_test("count-download", |lab| {
        lab.daemon()?;
        let mut server = serve(lab, "bulk", "1:7001", &["serve-told", "[::]:7001"])?;
        let download = start(lab, &["download", &format!("{}:1", lab.host("bulk", "ahostsv6")?)])?;
        let mut told = 0;
        poll::until("the edge to show bytes of a living download", || {
            server.say("1001")?;
            told += 1001;
            let edge = source_edge(lab)?;
            let received = edges::total(&edge, "bytes_received")?;
            ensure!(edges::total(&edge, "closed")? == 0 && received <= told, "{edge}");
            ensure!(received > 1001, "{edge}");
            Ok(())
        })?;
        server.finish(poll::PATIENCE)?.ok()?;
        let done = download.finish(poll::PATIENCE)?.ok()?.json()?;
        ensure!(done["received"] == told, "{done}");
        let counts = Counts::orderly(1, (5, told));
        edges::expect(
            lab,
            &Edges::from([
                (Key::source("bulk", 1), counts),
                (Key::destination("client", "bulk", 7001), counts.at_destination()),
            ]),
        )?;
        Ok(())
    });
}

/// Bytes past TCP are no segments that leave: `weft_sk_msg` gives them to the edge.
#[test]
fn a_living_short_circuit_shows_its_bytes_and_none_of_them_twice() {
    lab_test("count-fast-living", |lab| {
        lab.resource("bulk.yaml", &resources::through_proxy("bulk", "proxy"))?;
        lab.daemon_with(&["--short-circuit", "force"])?;
        let server = serve(lab, "bulk", "1:7001", &["serve-echo", "[::]:7001"])?;
        let mut held = start(lab, &["hold", &format!("{}:1", lab.host("bulk", "ahostsv4")?)])?;
        let lines = talk_until_seen(lab, &mut held)?;
        held.finish(poll::PATIENCE)?.ok()?;
        let bytes = (lines * LINE_BYTES, lines * LINE_BYTES);
        ensure!(edges::served(&server, 1)? == bytes, "{lines} lines");
        let counts = Counts::orderly(1, bytes);
        edges::expect(
            lab,
            &Edges::from([
                (Key::source("bulk", 1).http(), counts),
                (
                    Key::destination("weft-proxy", "bulk", 7001).http(),
                    counts.at_destination(),
                ),
            ]),
        )?;
        Ok(())
    });
}

/// A second network namespace behind a wire of its own, removed when dropped.
struct Far<'lab> {
    lab: &'lab Lab,
    name: String,
}

const NEAR: &str = "10.77.1.1";
const FAR: &str = "10.77.1.2";

impl<'lab> Far<'lab> {
    fn new(lab: &'lab Lab) -> Result<Self> {
        let name = format!("{}-far", lab.netns().name());
        let near = lab.netns().name().to_owned();
        ip(lab, &["netns", "add", &name])?;
        let far = Self { lab, name };
        let name = far.name.as_str();
        ip(lab, &["-n", name, "link", "set", "lo", "up"])?;
        let wire = [
            "link", "add", "wire", "netns", &near, "type", "veth", "peer", "name", "wire", "netns", name,
        ];
        ip(lab, &wire)?;
        for (namespace, address) in [(near.as_str(), NEAR), (name, FAR)] {
            ip(
                lab,
                &["-n", namespace, "addr", "add", &format!("{address}/24"), "dev", "wire"],
            )?;
            ip(lab, &["-n", namespace, "link", "set", "wire", "up"])?;
        }
        Ok(far)
    }

    fn command(&self, words: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg("--")
            .args(words);
        command
    }

    /// Cuts the wire at the far end, or joins it again.
    fn wire(&self, state: &str) -> Result<()> {
        ip(self.lab, &["-n", &self.name, "link", "set", "wire", state])
    }
}

impl Drop for Far<'_> {
    fn drop(&mut self) {
        if let Err(error) = ip(self.lab, &["netns", "del", &self.name]) {
            eprintln!("remove network namespace {} by hand: {error:#}", self.name);
        }
    }
}

fn ip(lab: &Lab, words: &[&str]) -> Result<()> {
    lab.outside(["ip"].iter().chain(words).copied())?.ok().map(drop)
}

#[test]
fn what_a_cut_wire_makes_tcp_send_again_is_counted() {
    lab_test("count-cut", |lab| {
        lab.daemon()?;
        let far = Far::new(lab)?;
        let mut server = Running::start(far.command(&[&lab.traffic()?, "serve-echo", &format!("{FAR}:7001")]))?;
        server.line(1)?;
        let before = edges::retransmits_of_kernel(lab)?;
        let mut held = start(lab, &["hold", &format!("{FAR}:7001")])?;
        held.line(1)?;
        held.say(LINE)?;
        held.line(2)?;
        far.wire("down")?;
        held.say(LINE)?;
        poll::until("TCP to send again", || {
            let again = edges::retransmits_of_kernel(lab)? - before;
            ensure!(again >= 2, "{again} times");
            Ok(())
        })?;
        far.wire("up")?;
        held.line(3)?;
        held.finish(poll::PATIENCE)?.ok()?;
        let bytes = (2 * LINE_BYTES, 2 * LINE_BYTES);
        let wanted = Edges::from([(Key::source("outside", 0), Counts::orderly(1, bytes))]);
        let view = edges::expect(lab, &wanted)?;
        let (told, happened) = (edges::retransmits(&view)?, edges::retransmits_of_kernel(lab)? - before);
        ensure!(told == happened, "{told} told, {happened} happened");
        Ok(())
    });
}

/// Where the kernel can lose packets at random (`sch_netem`), bulk on a bad wire is counted as exactly as on a good one.
#[test]
fn bulk_over_a_wire_that_loses_packets_is_counted_exactly() {
    lab_test("count-loss", |lab| {
        lab.daemon()?;
        let far = Far::new(lab)?;
        let netem = ["tc", "qdisc", "add", "dev", "wire", "root", "netem", "loss", "5%"];
        let lossy = lab.outside(netem)?.code == 0;
        let server = Running::start(far.command(&[&lab.traffic()?, "serve-sink", &format!("{FAR}:7001")]))?;
        let mut server = server;
        server.line(1)?;
        let before = edges::retransmits_of_kernel(lab)?;
        let told = client(lab, &["upload", &format!("{FAR}:7001"), "3000017"])?;
        let carried = (
            told["sent"].as_u64().context("sent")?,
            told["received"].as_u64().context("received")?,
        );
        ensure!(edges::served(&server, 1)? == carried, "{told}");
        let view = edges::expect(
            lab,
            &Edges::from([(Key::source("outside", 0), Counts::orderly(1, carried))]),
        )?;
        let (told, happened) = (edges::retransmits(&view)?, edges::retransmits_of_kernel(lab)? - before);
        ensure!(told == happened, "{told} told, {happened} happened");
        ensure!(!lossy || told > 0, "no packet was lost of thousands: {view}");
        Ok(())
    });
}
