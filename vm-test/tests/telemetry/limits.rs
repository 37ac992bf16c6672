//! What finds no room is counted where one can see it.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{Lab, Running, lab_test, poll, process, resources};

use crate::{client, edges, metric, scrape, serve};

type Sums = BTreeMap<&'static str, u64>;

/// The sums over all edges of a reporter, and over those that found no room.
fn sums(view: &Value, reporter: &str) -> Result<(Sums, Sums)> {
    let names = ["opened", "closed", "bytes_sent", "bytes_received"];
    let (mut all, mut overflow) = (Sums::from(names.map(|name| (name, 0))), Sums::new());
    for edge in view["edges"].as_array().context("edges")? {
        if edge["reporter"] != reporter {
            continue;
        }
        for name in names {
            let n = edges::total(edge, name)?;
            *all.entry(name).or_default() += n;
            if edge["source"]["service"] == "overflow" {
                ensure!(edge["destination"]["service"] == "overflow", "{edge}");
                *overflow.entry(name).or_default() += n;
            }
        }
    }
    Ok((all, overflow))
}

#[test]
fn what_a_full_table_has_no_room_for_is_on_the_overflow_edge() {
    lab_test("count-overflow", |lab| {
        // Twelve overflow edges, and room for three.
        lab.daemon_with(&["--map-size", "edges=15"])?;
        let ports = 1..=6u16;
        let servers: Vec<Running> = ports
            .clone()
            .map(|port| {
                let (map, listen) = (format!("{port}:{}", 7000 + port), format!("[::]:{}", 7000 + port));
                serve(lab, "bulk", &map, &["serve-late", &listen])
            })
            .collect::<Result<_>>()?;
        let host = lab.host("bulk", "ahostsv4")?;
        for port in ports {
            client(lab, &["half-close", &format!("{host}:{port}"), "1009"])?;
        }
        for server in &servers {
            edges::served(server, 1)?;
        }
        let view = poll::until("all of it to be counted somewhere", || {
            let view = edges::view(lab)?;
            for reporter in ["source", "destination"] {
                let (all, _) = sums(&view, reporter)?;
                let wanted = [
                    ("opened", 6),
                    ("closed", 6),
                    ("bytes_sent", 6 * 1009),
                    ("bytes_received", 6 * 1009),
                ];
                ensure!(all == Sums::from(wanted), "{reporter}: {all:?}");
            }
            Ok(view)
        })?;
        // Twelve edges want three places.
        let (mut homeless, mut lived) = (0, 0);
        for reporter in ["source", "destination"] {
            let (_, overflow) = sums(&view, reporter)?;
            let opened = overflow.get("opened").copied().unwrap_or(0);
            homeless += opened;
            lived += 6 - opened;
            ensure!(
                overflow.get("closed").copied().unwrap_or(0) == opened
                    && overflow.get("bytes_sent").copied().unwrap_or(0) == opened * 1009,
                "what opened there closes there: {overflow:?}"
            );
        }
        ensure!(
            (homeless, lived) == (9, 3),
            "{homeless} on the overflow edges, {lived} on their own: {view}"
        );
        let text = scrape(lab)?;
        let opened = metric(
            &text,
            "istio_tcp_connections_opened_total",
            &["source_workload=\"overflow\""],
        )?;
        ensure!(opened == 9.0, "{text}");
        ensure!(
            metric(&text, "weft_kernel_errors_total", &["edges_full"])? > 0.0,
            "{text}"
        );
        let shown = lab.weft(["top", "--once"])?.ok()?.stdout;
        ensure!(shown.lines().any(|line| line.starts_with("overflow ")), "{shown}");
        Ok(())
    });
}

/// A client that waits for a word and then connects `times` times, however the daemon is.
fn bursts(lab: &Lab, times: usize) -> Result<(Running, Running)> {
    let server = serve(lab, "bulk", "1:7001", &["serve-echo", "[::]:7001"])?;
    let target = format!("{}:1", lab.host("bulk", "ahostsv4")?);
    let mut burst = lab
        .run("client")
        .start([&lab.traffic()?, "connects", &target, &times.to_string()])?;
    burst.line(1)?;
    Ok((server, burst))
}

const BURST: usize = 200;

#[test]
fn events_that_the_ring_has_no_room_for_are_counted_where_one_looks() {
    lab_test("count-dropped", |lab| {
        // 39 events, and nobody who reads them.
        lab.daemon_with(&["--map-size", "events=4096"])?;
        let (_server, mut burst) = bursts(lab, BURST)?;
        let mut words = vec![lab.weft_binary().display().to_string()];
        words.extend(["flows", "--follow", "--state-dir"].map(String::from));
        words.push(lab.state().display().to_string());
        let follower = Running::start(lab.command(words))?;
        // It is told of what is lost from when it follows.
        let target = format!("{}:1", lab.host("bulk", "ahostsv4")?);
        lab.run("early").output([&lab.traffic()?, "connect", &target])?.ok()?;
        poll::until("the follower to be there", || {
            let told = follower.stdout();
            ensure!(told.contains("default/early"), "{told}");
            Ok(())
        })?;
        let held = lab.hold_daemon()?;
        burst.say("go")?;
        ensure!(burst.line(2)?.contains("\"ok\":true"), "{}", burst.stdout());
        drop(held);

        let dropped = poll::until("the status to tell of lost events", || {
            let status = lab.status()?;
            let dropped = status["flows"]["dropped"].as_u64().context("dropped")?;
            // An open and a close each. While nobody reads, the ring takes at most 39; closes may come when the daemon reads again.
            ensure!(dropped >= BURST as u64, "{}", status["flows"]);
            let text = scrape(lab)?;
            ensure!(
                metric(&text, "weft_flow_events_dropped_total", &[])? == dropped as f64,
                "{text}"
            );
            Ok(dropped)
        })?;
        let shown = lab.weft(["status"])?.ok()?.stdout;
        ensure!(shown.contains(&format!("{dropped} dropped")), "{shown}");
        poll::until("the follower to be told", || {
            let told = follower.stderr();
            ensure!(told.contains("flows were lost"), "{told}");
            Ok(())
        })?;
        // Counters do not go through the ring.
        poll::until("every connection to be counted", || {
            let (all, _) = sums(&edges::view(lab)?, "source")?;
            let connections = BURST as u64 + 1;
            ensure!(all["opened"] == connections && all["closed"] == connections, "{all:?}");
            Ok(())
        })
    });
}

#[test]
fn who_stops_listening_while_events_are_lost_is_no_endpoint_any_more() {
    lab_test("count-listeners", |lab| {
        lab.daemon_with(&["--map-size", "events=4096"])?;
        let (_server, mut burst) = bursts(lab, BURST)?;
        // The workload lives on without its server.
        let script =
            "\"$0\" serve-echo [::]:7002 & server=$!; read -r _; kill $server; wait $server; echo gone; read -r _";
        let words = ["sh", "-c", script, &lab.traffic()?];
        let mut short = lab.run("short").port("2:7002").start(words)?;
        short.line(1)?;
        lab.endpoint("short", "2:7002")?;
        let held = lab.hold_daemon()?;
        burst.say("go")?;
        burst.line(2)?;
        short.say("end")?;
        short.line(2)?;
        drop(held);
        poll::until("its endpoint to be gone", || {
            let status = lab.status()?;
            let services = status["services"].as_array().context("services")?;
            let found = services.iter().find(|service| service["name"] == "short");
            let endpoints = &found.context("it is still a service")?["ports"][0]["endpoints"];
            ensure!(endpoints.as_array().is_some_and(Vec::is_empty), "{endpoints}");
            Ok(())
        })
    });
}

#[test]
fn a_sample_of_flows_has_whole_connections_and_every_denial() {
    lab_test("count-sample", |lab| {
        let tcp = resources::tcp_route("port", &[7001]);
        let access = resources::allow("client-may", "client", "bulk", ("TCPRoute", "port"));
        lab.resource("bulk.yaml", &format!("{}{tcp}{access}", resources::DENY))?;
        lab.daemon_with(&["--flow-sample", "4"])?;
        let (_server, mut burst) = bursts(lab, BURST)?;
        let denied = format!("{}:1", lab.host("bulk", "ahostsv4")?);
        burst.say("go")?;
        ensure!(burst.line(2)?.contains("\"ok\":true"), "{}", burst.stdout());
        for _ in 0..5 {
            lab.run("stranger")
                .output([&lab.traffic()?, "connect", &denied])?
                .exits(1)?;
        }
        poll::until("every connection to be counted", || {
            let (all, _) = sums(&edges::view(lab)?, "source")?;
            ensure!(
                all["opened"] == BURST as u64 && all["closed"] == BURST as u64,
                "{all:?}"
            );
            Ok(())
        })?;
        let flows = poll::until("all denials to be told", || {
            let flows = lab.flows()?;
            let denials = flows.iter().filter(|flow| flow["event"] == "deny").count();
            ensure!(denials == 5, "{denials} denials");
            Ok(flows)
        })?;
        let count = |event: &str| flows.iter().filter(|flow| flow["event"] == event).count();
        let (opens, closes) = (count("open"), count("close"));
        // One in four of 200: beyond these bounds once in ten billion times.
        ensure!(
            opens == closes && (15..=95).contains(&opens),
            "{opens} opens, {closes} closes"
        );
        ensure!(
            lab.weft(["status"])?.ok()?.stdout.contains("1 in 4 connections"),
            "status"
        );
        Ok(())
    });
}

#[test]
fn top_prints_one_sample_where_there_is_no_terminal() {
    lab_test("top", |lab| {
        lab.daemon()?;
        let (_server, mut burst) = bursts(lab, 3)?;
        burst.say("go")?;
        burst.line(2)?;
        poll::until("the connections to be in the table", || {
            let text = lab.weft(["top"])?.ok()?.stdout;
            let row = text.lines().find(|line| line.starts_with("default/client "));
            let row = row.with_context(|| text.clone())?;
            ensure!(
                row.contains("default/bulk:1") && row.contains("allow") && !text.contains('\x1b'),
                "{text}"
            );
            Ok(())
        })?;
        let json = lab.weft(["top", "--once", "-o", "json"])?.ok()?.json()?;
        let seconds = json["seconds"].as_f64().context("seconds")?;
        let longest = poll::scaled(Duration::from_secs(5)).as_secs_f64();
        ensure!((0.9..longest).contains(&seconds), "{json}");
        let edges = json["edges"].as_array().context("edges")?;
        let row = edges
            .iter()
            .find(|row| row["reporter"] == "source")
            .context("the source's edge")?;
        ensure!(
            row["total"]["opened"] == 3 && row["total"]["connect_samples"] == 3 && row["open"] == 0,
            "{row}"
        );
        let (p50, p99) = (row["connect_us"]["p50"].as_u64(), row["connect_us"]["p99"].as_u64());
        ensure!(p50.is_some() && p50 <= p99, "{row}");
        // A terminal, made by script(1): live, until `q`, and left as it was.
        let line = format!(
            "{} top --state-dir {}",
            lab.weft_binary().display(),
            lab.state().display()
        );
        let mut live = Running::start(lab.command(["script", "-qefc", &line, "/dev/null"]))?;
        poll::until("the live table", || {
            let shown = live.stdout();
            ensure!(
                shown.contains("\x1b[?1049h") && shown.contains("default/client"),
                "{shown:?}"
            );
            Ok(())
        })?;
        live.say("q")?;
        let left = live.finish(process::BOUND)?.ok()?.stdout;
        ensure!(left.trim_end().ends_with("\x1b[?1049l"), "{left:?}");
        Ok(())
    });
}
