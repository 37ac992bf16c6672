//! Tables of connections and flows that have no room: what goes on, what is refused, and where one sees it.

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use serde_json::Value;
use vm_test::{Actor, Lab, Nginx, curl, lab_test, poll, resources};
use weft_abi::{ConnRecord, Tuple};

use crate::{client, edges, metric, scrape, serve};

/// The smallest that the daemon takes.
const ROOM: usize = 16;
const CONNS: &str = "conns=16";
const FLOWS: &str = "flows=16";

/// What a program holds open until it is told otherwise.
struct Held(Actor);

// === impl Held ===

impl Held {
    /// As many connections of `account` to `target` as the table has room for, once those before are gone.
    fn connections(lab: &Lab, account: &str, target: &str) -> Result<Self> {
        poll::until("earlier connections to be gone", || {
            let left = records(lab)?;
            ensure!(left == 0, "{left} are there");
            Ok(())
        })?;
        let traffic = lab.traffic()?;
        let mut actor = Actor::new(lab.run(account).start([traffic.as_str(), "actor"])?)?;
        for number in 0..ROOM {
            let told = actor.step(&format!("open c{number} tcp {target}"))?;
            ensure!(told["ok"] == true, "{number} of {ROOM}: {told}");
        }
        let found = records(lab)?;
        ensure!(found == ROOM, "{found} records of {ROOM} connections");
        Ok(Self(actor))
    }

    fn let_go(&mut self) -> Result<()> {
        for number in 0..ROOM {
            self.0.step(&format!("close c{number}"))?;
        }
        Ok(())
    }
}

/// Connections in the kernel's table.
fn records(lab: &Lab) -> Result<usize> {
    let data = MapData::from_pin(lab.bpffs().join("maps/conns")).context("open the pinned table")?;
    let map: HashMap<MapData, Tuple, ConnRecord> = Map::HashMap(data).try_into()?;
    Ok(map.keys().filter_map(Result::ok).count())
}

/// Waits until the programs have said that a table had no room, and `weft doctor` with them.
fn is_told(lab: &Lab, site: &str, table: &str) -> Result<()> {
    poll::until("the metric to tell of a full table", || {
        let text = scrape(lab)?;
        ensure!(metric(&text, "weft_kernel_errors_total", &[site])? > 0.0, "{text}");
        Ok(())
    })?;
    let report = lab.weft(["doctor", "-o", "json"])?.exits(1)?.json()?;
    let problems = report["problems"].as_array().context("problems")?;
    let told = problems
        .iter()
        .any(|one| one["what"] == format!("kernel table {table}"));
    ensure!(told, "{report:#}");
    Ok(())
}

/// Connections to `bulk` that its end has counted, by the account that the source is known as.
fn opened_by(lab: &Lab, account: &str) -> Result<u64> {
    let view = edges::view(lab)?;
    let all = view["edges"].as_array().context("edges")?.iter();
    let counted = |edge: &&Value| {
        edge["reporter"] == "destination"
            && edge["source"]["account"] == account
            && edge["destination"]["account"] == "bulk"
    };
    all.filter(counted).map(|edge| edges::total(edge, "opened")).sum()
}

#[test]
fn direct_connections_beyond_a_full_table_go_on_and_their_source_is_unknown() {
    lab_test("full-direct", |lab| {
        lab.daemon_with(&["--map-size", CONNS])?;
        let _server = serve(lab, "bulk", "1:7001", &["serve-echo", "[::]:7001"])?;
        let target = format!("{}:1", lab.host("bulk", "ahostsv4")?);
        let mut held = Held::connections(lab, "client", &target)?;
        client(lab, &["half-close", &target, "1009"])?;
        poll::until("the connection without record to be counted", || {
            let (known, unknown) = (opened_by(lab, "client")?, opened_by(lab, "unknown")?);
            ensure!((known, unknown) == (ROOM as u64, 1), "{known} known, {unknown} unknown");
            Ok(())
        })?;
        is_told(lab, "conns_insert", "conns")?;
        held.let_go()?;
        poll::until("connections to be known again", || {
            let before = opened_by(lab, "client")?;
            client(lab, &["half-close", &target, "1009"])?;
            poll::until("it to be counted", || {
                let known = opened_by(lab, "client")?;
                ensure!(known > before, "{known}");
                Ok(())
            })
        })
    });
}

#[test]
fn connections_through_the_proxy_beyond_a_full_table_are_refused_and_misrouted_nowhere() {
    lab_test("full-proxied", |lab| {
        lab.resource("bulk.yaml", &resources::through_proxy("bulk", "off"))?;
        lab.daemon_with(&["--map-size", CONNS])?;
        let _proxied = serve(lab, "bulk", "1:7001", &["serve-echo", "[::]:7001"])?;
        let _direct = serve(lab, "direct", "2:7002", &["serve-echo", "[::]:7002"])?;
        let proxied = format!("{}:1", lab.host("bulk", "ahostsv4")?);
        let direct = format!("{}:2", lab.host("direct", "ahostsv4")?);
        client(lab, &["half-close", &proxied, "1009"])?;
        let mut held = Held::connections(lab, "client", &direct)?;
        let words = [lab.traffic()?, "half-close".into(), proxied.clone(), "1009".into()];
        let told = lab.run("client").output(words)?;
        ensure!(told.code != 0 && !told.stdout.contains("\"ok\":true"), "{told:?}");
        held.let_go()?;
        is_told(lab, "conns_insert", "conns")?;
        poll::until("the proxy to serve again", || {
            client(lab, &["half-close", &proxied, "1009"]).map(drop)
        })
    });
}

#[test]
fn under_default_deny_who_finds_no_room_is_refused_and_nobody_else_is_let_in() {
    lab_test("full-deny", |lab| {
        let route = resources::tcp_route("web-port", &[8080]);
        let allow = resources::allow("friend-web", "friend", "web", ("TCPRoute", "web-port"));
        lab.resource("mesh.yaml", &format!("{}{route}{allow}", resources::DENY))?;
        lab.daemon_with(&["--map-size", CONNS])?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let friend = || lab.run("friend").curl_with(&["--max-time", "1"], "http://web/");
        poll::until("friend to be let in", || {
            let answer = friend()?;
            ensure!(answer.http == 200, "{answer:?}");
            Ok(())
        })?;
        let target = format!("{}:80", lab.host("web", "ahostsv4")?);
        let mut held = Held::connections(lab, "friend", &target)?;
        let (known, stranger) = (friend()?, lab.run("stranger").curl("http://web/")?);
        ensure!(
            stranger.code == curl::COULD_NOT_CONNECT,
            "whom the dialling end denies: {stranger:?}"
        );
        ensure!(
            known.code == curl::TIMED_OUT,
            "whom the accepting end does not know: {known:?}"
        );
        held.let_go()?;
        poll::until("friend to be let in again", || {
            let answer = friend()?;
            ensure!(answer.http == 200, "{answer:?}");
            Ok(())
        })
    });
}

/// A program that has as many flows of datagrams as the table has room for, and more, each of which has said something; how
/// many were answered.
fn flows(lab: &Lab, account: &str, target: &str) -> Result<(Actor, usize)> {
    let traffic = lab.traffic()?;
    let mut actor = Actor::new(lab.run(account).start([traffic.as_str(), "actor"])?)?;
    let mut answered = 0;
    for number in 0..=ROOM {
        let told = actor.step(&format!("open u{number} udp {target}"))?;
        ensure!(told["ok"] == true, "{told}");
        answered += usize::from(actor.step(&format!("say u{number} ping"))?["ok"] == true);
    }
    Ok((actor, answered))
}

#[test]
fn datagrams_beyond_a_full_table_go_on() {
    lab_test("full-udp", |lab| {
        lab.daemon_with(&["--map-size", FLOWS])?;
        let _echo = serve(lab, "echo", "7:7007/udp", &["serve-udp-echo", "[::]:7007"])?;
        let target = format!("{}:7", lab.host("echo", "ahostsv4")?);
        poll::until("the endpoint to be there", || {
            let words = [lab.traffic()?, "udp-echo".into(), target.clone()];
            let told = lab.run("friend").output(words)?.json()?;
            ensure!(told["ok"] == true, "{told}");
            Ok(())
        })?;
        let (mut actor, answered) = flows(lab, "client", &target)?;
        ensure!(answered == ROOM + 1, "{answered} were answered");
        is_told(lab, "flows_full", "flows")?;
        for number in [0, ROOM] {
            let told = actor.step(&format!("say u{number} again"))?;
            ensure!(told["ok"] == true, "{number}: {told}");
        }
        Ok(())
    });
}

#[test]
fn under_default_deny_a_full_table_cuts_no_flow_that_is_in_it_and_lets_nobody_in() {
    lab_test("full-udp-deny", |lab| {
        let route = resources::tcp_route("echo-udp", &[7007]).replace("TCPRoute", "UDPRoute");
        let allow = resources::allow("may-echo", "client", "echo", ("UDPRoute", "echo-udp"));
        lab.resource("mesh.yaml", &format!("{}{route}{allow}", resources::DENY))?;
        lab.daemon_with(&["--map-size", FLOWS])?;
        let _echo = serve(lab, "echo", "7:7007/udp", &["serve-udp-echo", "[::]:7007"])?;
        let target = format!("{}:7", lab.host("echo", "ahostsv4")?);
        let once = |account: &str| -> Result<Value> {
            let words = [lab.traffic()?, "udp-echo".into(), target.clone()];
            lab.run(account).output(words)?.json()
        };
        poll::until("client to be allowed", || {
            let told = once("client")?;
            ensure!(told["ok"] == true, "{told}");
            Ok(())
        })?;
        let traffic = lab.traffic()?;
        let mut kept = Actor::new(lab.run("client").start([traffic.as_str(), "actor"])?)?;
        for step in [format!("open kept udp {target}"), "say kept ping".to_owned()] {
            let told = kept.step(&step)?;
            ensure!(told["ok"] == true, "{step}: {told}");
        }
        let _crowd = flows(lab, "client", &target)?;
        is_told(lab, "flows_full", "flows")?;
        let told = kept.step("say kept again")?;
        ensure!(told["ok"] == true, "{told}");
        let told = once("stranger")?;
        ensure!(told["errno"] == nix::libc::EPERM, "{told}");
        Ok(())
    });
}
