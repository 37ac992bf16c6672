//! Sizes of the kernel tables: one that is there keeps its own, and what a table has no room for is refused as a whole.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use aya::maps::{MapData, MapInfo};
use vm_test::{Actor, Lab, friends, lab_test, poll, process, resources};

/// What the tables were made with before they were made smaller.
const FORMER: [(&str, u32); 7] = [
    ("backends", 1 << 20),
    ("dests", 1 << 19),
    ("policy", 1 << 19),
    ("conns", 1 << 18),
    ("flows", 1 << 18),
    ("listen", 1 << 16),
    ("workloads", 1 << 16),
];

/// Connections whose events fill a ring of 8 KiB several times.
const BURST: usize = 200;

/// Entries that a pinned table has room for.
fn size(lab: &Lab, map: &str) -> Result<u32> {
    let pin = lab.bpffs().join("maps").join(map);
    let info = MapInfo::from_pin(&pin).with_context(|| format!("look at {}", pin.display()))?;
    Ok(info.max_entries())
}

/// What of `weft status` is about sizes.
fn told(lab: &Lab) -> Result<Vec<String>> {
    let status = lab.status()?;
    let degraded = status["degraded"].as_array().context("degraded")?;
    let what = degraded.iter().filter_map(|one| one["what"].as_str());
    Ok(what
        .filter(|what| what.contains("map-size"))
        .map(str::to_owned)
        .collect())
}

#[test]
fn an_upgrade_from_larger_tables_keeps_them_and_what_is_in_them_under_load() {
    lab_test("sizes-upgrade", |lab| {
        lab.resource("mesh.yaml", &friends::rules())?;
        let sizes: Vec<String> = FORMER.iter().map(|(map, size)| format!("{map}={size}")).collect();
        // A ring of another size too: it is read by its own.
        let former = sizes.iter().map(String::as_str).chain(["events=2097152"]);
        let flags: Vec<&str> = former.flat_map(|size| ["--map-size", size]).collect();
        lab.daemon_with(&flags)?;
        let _web = friends::web(lab)?;
        let traffic = lab.traffic()?;
        let mut load = Vec::new();
        for (account, outcome) in [("friend", "200"), ("stranger", "connect: errno 1")] {
            let mut client = lab.run(account).start([traffic.as_str(), "hammer", "web:80", "/"])?;
            client.line(1)?;
            load.push((client, outcome));
        }
        let mut held = Actor::new(lab.run("friend").start([traffic.as_str(), "actor"])?)?;
        let target = format!("{}:80", lab.host("web", "ahostsv4")?);
        ensure!(held.step(&format!("open a tcp {target}"))?["ok"] == true, "not open");

        lab.take_over(&[])?.ok()?;
        for (map, former) in FORMER {
            ensure!(size(lab, map)? == former, "{map}: {}", size(lab, map)?);
        }
        let log = lab.log();
        ensure!(
            log.contains("keep their size") && log.contains("backends=1048576 (not 131072)"),
            "{log}"
        );
        ensure!(told(lab)?.is_empty(), "nobody asked for another size: {:?}", told(lab)?);
        ensure!(held.step("say a GET")?["ok"] == true, "the connection that was open");
        // Whom nobody was before the upgrade: the new daemon reads the ring, and enrols.
        lab.run("later").curl("http://web/")?;
        lab.flow("an event of after the upgrade", |flow| {
            flow["source"]["account"] == "later" && flow["verdict"] == "deny"
        })?;
        for (client, outcome) in load {
            let lines = client.finish(process::BOUND)?.ok()?.json_lines()?;
            let last = lines.last().context("an account")?;
            let outcomes: BTreeMap<String, u64> = serde_json::from_value(last["outcomes"].clone())?;
            ensure!(
                outcomes.len() == 1 && outcomes.contains_key(outcome),
                "expected {outcome} alone: {last}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_size_that_is_asked_for_in_vain_is_told_until_the_tables_are_made_anew() {
    lab_test("sizes-asked", |lab| {
        let asked = ["--map-size", "events=8192", "--map-size", "conns=64"];
        lab.daemon()?;
        ensure!(told(lab)?.is_empty(), "{:?}", told(lab)?);
        lab.take_over(&asked)?.ok()?;
        let both = ["--map-size conns=64", "--map-size events=8192"];
        ensure!(told(lab)? == both, "{:?}", told(lab)?);
        let report = lab.weft(["doctor", "-o", "json"])?.exits(1)?.json()?;
        let problems = report["problems"].as_array().context("problems")?;
        for one in both {
            let problem = problems.iter().find(|problem| problem["what"] == one);
            let instead = problem.context(one)?["instead"].as_str().unwrap_or_default();
            ensure!(instead.contains("weft uninstall --kernel-only"), "{report:#}");
        }
        ensure!(
            lab.log().contains("--map-size counts when they are made"),
            "{}",
            lab.log()
        );
        // Events go through the ring as it is.
        let traffic = lab.traffic()?;
        let server = lab.run("bulk").port("1:7001");
        let mut server = server.start([traffic.as_str(), "serve-echo", "[::]:7001"])?;
        server.line(1)?;
        let target = format!("{}:1", lab.host("bulk", "ahostsv4")?);
        let mut burst = lab
            .run("client")
            .start([traffic.as_str(), "connects", &target, &BURST.to_string()])?;
        burst.line(1)?;
        burst.say("go")?;
        ensure!(burst.line(2)?.contains("\"ok\":true"), "{}", burst.stdout());
        poll::until("each connection's open to be kept", || {
            let opens = lab.flows()?.into_iter().filter(|flow| flow["event"] == "open");
            let (count, status) = (opens.count(), lab.status()?);
            ensure!(
                count >= BURST && status["flows"]["dropped"] == 0,
                "{count}: {}",
                status["flows"]
            );
            Ok(())
        })?;
        lab.stop()?;
        lab.uninstall_with(&["--kernel-only"])?;
        lab.daemon_with(&asked)?;
        ensure!((size(lab, "conns")?, size(lab, "events")?) == (64, 8192), "sizes");
        ensure!(told(lab)?.is_empty(), "{:?}", told(lab)?);
        Ok(())
    });
}

#[test]
fn a_first_start_makes_its_tables_large_enough_for_its_resources() {
    lab_test("sizes-first", |lab| {
        // More entries than the table has by default: one for each of so many sources and ports.
        const SOURCES: usize = 150;
        let ports: Vec<u16> = (20_001..=21_000).collect();
        let sources: String = (0..SOURCES)
            .map(|number| format!("  - {{kind: ServiceAccount, name: source-{number}, namespace: default}}\n"))
            .collect();
        let target = format!(
            "---\napiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\n\
             metadata: {{name: many, namespace: default}}\nspec:\n\
             \x20 destination: {{kind: ServiceAccount, name: web, namespace: default}}\n\
             \x20 sources:\n{sources}\x20 rules:\n  - {{kind: TCPRoute, name: many}}\n"
        );
        let many = format!("{}{}{target}", friends::rules(), resources::tcp_route("many", &ports));
        lab.resource("mesh.yaml", &many)?;
        lab.daemon()?;
        ensure!(size(lab, "policy")? == 262_144, "{}", size(lab, "policy")?);
        ensure!(lab.log().contains("starting again with it"), "{}", lab.log());
        ensure!(told(lab)?.is_empty(), "{:?}", told(lab)?);
        let _web = friends::web(lab)?;
        Ok(())
    });
}

#[test]
fn a_table_of_another_shape_is_refused_in_words_and_changes_nothing() {
    lab_test("sizes-shape", |lab| {
        lab.resource("mesh.yaml", &friends::rules())?;
        lab.daemon()?;
        let _web = friends::web(lab)?;
        lab.kill9()?;
        // What another version made of it: here, the table of something else.
        let maps = lab.bpffs().join("maps");
        let other = MapData::from_pin(maps.join("netns")).context("open a table")?;
        std::fs::rename(maps.join("edges"), maps.join("edges-kept")).context("put it aside")?;
        other.pin(maps.join("edges")).context("pin another in its place")?;
        let refused = lab.daemon_refused(&[])?;
        let last = refused.stderr.lines().last().unwrap_or_default();
        ensure!(
            refused.code == 1 && last.contains("maps/edges is pinned with") && last.contains("--kernel-only"),
            "{refused:?}"
        );
        std::fs::remove_file(maps.join("edges")).context("take the other away")?;
        std::fs::rename(maps.join("edges-kept"), maps.join("edges")).context("put it back")?;
        lab.daemon()?;
        let answer = lab.run("friend").curl("http://web/")?;
        ensure!(answer.http == 200, "{answer:?}");
        Ok(())
    });
}

#[test]
fn what_a_table_has_no_room_for_is_refused_before_anything_is_written() {
    lab_test("sizes-full", |lab| {
        lab.resource("mesh.yaml", &friends::rules())?;
        lab.daemon_with(&["--map-size", "policy=16"])?;
        let _web = friends::web(lab)?;
        let traffic = lab.traffic()?;
        let actor = |account: &str| Actor::new(lab.run(account).start([traffic.as_str(), "actor"])?);
        let (mut friend, mut stranger) = (actor("friend")?, actor("stranger")?);
        let open = format!("open a tcp {}:80", lab.host("web", "ahostsv4")?);
        // An entry each, beside those that are there.
        let ports: Vec<u16> = (9001..=9016).collect();
        let many = format!(
            "{}{}",
            resources::tcp_route("many", &ports),
            resources::allow("stranger-many", "stranger", "web", ("TCPRoute", "many"))
        );
        let log = lab.work().join("log");
        let told = format!(
            "---\napiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {{name: log, namespace: default}}\n\
             spec: {{backend: native, native: stdio, target: all, params: {{path: {}, format: json}}}}\n",
            log.display()
        );
        lab.resource("many.yaml", &told)?;
        let lines = || std::fs::read_to_string(&log).unwrap_or_default().lines().count();
        poll::until("the adapter to be told", || {
            lab.run("friend").curl("http://web/")?;
            ensure!(lines() > 0, "nothing yet");
            Ok(())
        })?;
        // What takes the adapter away is refused as a whole.
        lab.resource("many.yaml", &many)?;
        let why = poll::until("the refusal to be told", || {
            let status = lab.status()?;
            let degraded = status["degraded"].as_array().context("degraded")?;
            let publication = degraded.iter().find(|one| one["what"] == "publication");
            let why = publication.context("it is not refused yet")?["why"].as_str();
            Ok(why.context("a reason")?.to_owned())
        })?;
        for said in [
            "weft_policy has room for 16",
            "--map-size policy=32",
            "weft uninstall --kernel-only",
        ] {
            ensure!(why.contains(said), "{said}: {why}");
        }
        ensure!(lab.log().contains("weft_policy has room for 16"), "{}", lab.log());
        let before = lines();
        for step in [open.as_str(), "say a GET", "close a"] {
            let told = friend.step(step)?;
            ensure!(told["ok"] == true, "the last good state, {step}: {told}");
        }
        poll::until("the adapter to be told as before", || {
            ensure!(lines() > before, "{} lines", lines());
            Ok(())
        })?;
        let told = stranger.step(&open)?;
        ensure!(told["errno"] == nix::libc::EPERM, "the last good state: {told}");
        lab.remove_resource("many.yaml")?;
        poll::until("what fits to be in force", || {
            ensure!(lab.status()?["degraded"] == serde_json::json!([]), "{}", lab.status()?);
            Ok(())
        })
    });
}
