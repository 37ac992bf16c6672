//! `weft doctor` proves that the programs decide as the tables say: it finds what is missing there, and leaves nothing.

use std::fs;

use anyhow::{Context, Result, ensure};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use serde_json::Value;
use vm_test::{Lab, Nginx, Running, Server, census, hosts_test, lab_test, poll, process, resources};
use weft_abi::{PolicyKey, PolicyValue, Versioned, Workload};

/// In each family.
const VERDICTS: [&str; 10] = [
    "tcp4 denied",
    "tcp4 allowed",
    "udp4 connected",
    "udp4 unconnected",
    "udp4 denied",
    "tcp6 denied",
    "tcp6 allowed",
    "udp6 connected",
    "udp6 unconnected",
    "udp6 denied",
];

/// A daemon whose policy has defaults and a rule about a port.
fn mesh(lab: &Lab) -> Result<Server> {
    let yaml = [
        resources::DENY.to_owned(),
        resources::tcp_route("web-port", &[8080]),
        resources::allow("friend-web", "friend", "web", ("TCPRoute", "web-port")),
    ];
    lab.resource("mesh.yaml", &yaml.concat())?;
    lab.daemon()?;
    let web = lab.nginx(Nginx::service("web").port(80, 8080))?;
    friend_is_let_in(lab)?;
    Ok(web)
}

fn friend_is_let_in(lab: &Lab) -> Result<()> {
    poll::until("friend to be let in", || {
        let answer = lab.run("friend").curl("http://web/")?;
        ensure!(answer.http == 200, "{answer:?}");
        Ok(())
    })
}

/// Verdicts of a report, with whether each is as it should be.
fn verdicts(report: &Value) -> Result<Vec<(&str, bool)>> {
    let verdicts = report["verdicts"].as_array().context("verdicts")?.iter();
    let read = verdicts.map(|verdict| Some((verdict["name"].as_str()?, verdict["ok"].as_bool()?)));
    read.collect::<Option<_>>().context("names, and whether they are ok")
}

fn all_are_ok(report: &Value) -> Result<()> {
    ensure!(verdicts(report)? == VERDICTS.map(|name| (name, true)), "{report:#}");
    Ok(())
}

fn healthy(lab: &Lab) -> Result<()> {
    all_are_ok(&lab.weft(["doctor", "-o", "json"])?.ok()?.json()?)
}

#[test]
fn verdicts_of_a_healthy_daemon_are_ok_and_nobody_sees_the_canary() {
    lab_test("doctor", |lab| {
        // Without any rule of the mesh, and with some.
        lab.daemon()?;
        healthy(lab)?;
        lab.stop()?;
        let _web = mesh(lab)?;
        healthy(lab)?;
        let text = lab.weft(["doctor"])?.ok()?.stdout;
        for name in VERDICTS {
            let is_ok = |line: &str| line.starts_with(name) && line.ends_with("  ok");
            ensure!(text.lines().any(is_ok), "{name} in\n{text}");
        }
        // Events come in order: once this one is kept, so were the canary's.
        lab.run("later").curl("http://web/")?;
        lab.flow("what came later", |flow| flow["source"]["service"] == "later")?;
        for flow in lab.flows()? {
            let to = flow["destination"]["address"].as_str().unwrap_or_default();
            ensure!(!["192.0.0.8", "100::1"].contains(&to), "{flow}");
        }
        let status = lab.status()?;
        let workloads = status["workloads"].as_array().context("workloads")?;
        ensure!(workloads.iter().all(|one| one["namespace"] == "default"), "{status:#}");
        let top = lab.weft(["top"])?.ok()?.stdout;
        ensure!(!top.contains("unknown"), "nobody here is: {top}");
        Ok(())
    });
}

/// Takes entries out of a pinned table, behind the daemon's back; how many.
fn take_out<K: Pod, V: Pod>(lab: &Lab, map: &str, goes: impl Fn(&K) -> bool) -> Result<usize> {
    let pin = lab.bpffs().join("maps").join(map);
    let data = MapData::from_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
    let mut map: HashMap<MapData, K, V> = Map::HashMap(data).try_into()?;
    let keys: Vec<K> = map.keys().filter_map(Result::ok).filter(|key| goes(key)).collect();
    for key in &keys {
        map.remove(key)?;
    }
    Ok(keys.len())
}

#[test]
fn damaged_tables_are_problems_until_a_restart_mends_them() {
    type Damage = fn(&Lab) -> Result<usize>;
    let damages: [(&str, Damage, &str, &str); 3] = [
        (
            "defaults",
            |lab| take_out::<PolicyKey, Versioned<PolicyValue>>(lab, "policy", |key| key.protocol == 0),
            "tcp4 denied",
            "let through",
        ),
        (
            "rules",
            |lab| take_out::<PolicyKey, Versioned<PolicyValue>>(lab, "policy", |key| key.protocol != 0),
            "tcp6 allowed",
            "connect",
        ),
        (
            "workloads",
            |lab| take_out::<u64, Workload>(lab, "workloads", |_| true),
            "tcp4 denied",
            "expected EPERM",
        ),
    ];
    lab_test("doctor-damage", |lab| {
        let _web = mesh(lab)?;
        for (what, damage, verdict, why) in damages {
            healthy(lab)?;
            ensure!(damage(lab)? > 0, "no {what} to take out");
            let report = lab.weft(["doctor", "-o", "json"])?.exits(1)?.json()?;
            ensure!(verdicts(&report)?.contains(&(verdict, false)), "{what}: {report:#}");
            let mut problems = report["problems"].as_array().context("problems")?.iter();
            let told = problems.find(|problem| problem["what"] == format!("verdict {verdict}"));
            let told = told.with_context(|| format!("{what}: no problem of it in {report:#}"))?;
            ensure!(told["why"].as_str().is_some_and(|told| told.contains(why)), "{told}");
            let program = if verdict.starts_with("tcp4") {
                "weft_connect4"
            } else {
                "weft_connect6"
            };
            let mut hooks = report["hooks"].as_array().context("hooks")?.iter();
            let hook = hooks.find(|hook| hook["name"] == program).context("its program")?;
            ensure!(hook["effective"] == false, "that it ran proves nothing: {hook}");
            let text = lab.weft(["doctor"])?.exits(1)?.stdout;
            let is_told = |line: &str| line.starts_with(verdict) && line.ends_with("  PROBLEM");
            ensure!(text.lines().any(is_told), "{text}");
            lab.stop()?;
            lab.daemon()?;
        }
        healthy(lab)?;
        friend_is_let_in(lab)
    });
}

#[test]
fn two_doctors_at_once_are_told_the_same_and_leave_nothing() {
    lab_test("doctors", |lab| {
        let _web = mesh(lab)?;
        let census = || -> Result<Vec<(&'static str, usize)>> {
            let counts = census::MAPS.into_iter();
            counts
                .map(|map| Ok((map, census::entries(&lab.bpffs(), map)?)))
                .collect()
        };
        poll::until("the last client to be gone", || {
            let enrolled = census::entries(&lab.bpffs(), "workloads")?;
            let connections = census::entries(&lab.bpffs(), "conns")?;
            ensure!(
                (enrolled, connections) == (4, 0),
                "{enrolled} enrolled, {connections} connections"
            );
            Ok(())
        })?;
        let before = census()?;
        let doctor = || {
            let state = lab.state().display().to_string();
            let binary = lab.weft_binary().display().to_string();
            let words = [
                binary,
                "doctor".into(),
                "--state-dir".into(),
                state,
                "-o".into(),
                "json".into(),
            ];
            Running::start(lab.command(words))
        };
        for doctor in [doctor()?, doctor()?] {
            all_are_ok(&doctor.finish(process::BOUND)?.ok()?.json()?)?;
        }
        poll::until("nothing of the canary to be left", || {
            let now = census()?;
            ensure!(now == before, "{now:?}, before {before:?}");
            Ok(())
        })?;
        for name in ["client", "allowed", "denied"] {
            let procs = lab.cgroup().join(".canary").join(name).join("cgroup.procs");
            let inside = fs::read_to_string(&procs).with_context(|| format!("read {}", procs.display()))?;
            ensure!(inside.is_empty(), "{name}: {inside}");
        }
        Ok(())
    });
}

#[test]
fn doctor_waits_for_no_lock_for_good() {
    lab_test("doctor-locked", |lab| {
        lab.daemon()?;
        let canary = lab.cgroup().join(".canary").display().to_string();
        let words = ["flock", &canary, "sh", "-c", "echo held; exec cat"];
        let mut held = Running::start(lab.command(words))?;
        held.line(1)?;
        let report = lab.weft(["doctor", "-o", "json"])?.exits(1)?.json()?;
        let why = report["problems"][0]["why"].as_str().unwrap_or_default();
        ensure!(why.contains("locked") && why.contains(&canary), "{report:#}");
        drop(held);
        healthy(lab)
    });
}

#[test]
fn every_program_is_effective_where_it_has_something_to_do() {
    hosts_test("doctor-whole", 2, |hosts| {
        let [a, b] = hosts.all();
        let access = resources::allow("friend-may", "friend", "web", ("HTTPRouteGroup", "all"));
        let route = resources::route("all", "/", &["GET"]);
        let policy = resources::service_policy("web", &["acceleration: proxy"]);
        b.resource("web.yaml", &format!("{}{route}{access}{policy}", resources::DENY))?;
        b.daemon_with(&["--inbound", "netns", "--device", "eth0", "--short-circuit", "force"])?;
        let _web = b.nginx(Nginx::service("web").port(80, 8080))?;
        friend_is_let_in(b)?;
        // What the canary does not do: requests through the proxy, packets on the device.
        let ceaselessly = format!(
            "while :; do curl -s -m 1 -o /dev/null http://web/; curl -s -m 1 -o /dev/null http://{}:9/; done",
            a.v4()
        );
        let _busy = b.run("friend").start(["sh", "-c", &ceaselessly])?;
        // The load may have yet to begin when doctor looks.
        poll::until("every program to be effective", || {
            let report = b.weft(["doctor", "-o", "json"])?.ok()?.json()?;
            all_are_ok(&report)?;
            let hooks = report["hooks"].as_array().context("hooks")?;
            let idle =
                |hook: &&Value| hook["effective"] != true || hook["ns_per_run"].as_f64().is_none_or(|ns| ns <= 0.0);
            ensure!(!hooks.iter().any(|hook| idle(&hook)), "{hooks:#?}");
            let names: Vec<&str> = hooks.iter().filter_map(|hook| hook["name"].as_str()).collect();
            for name in ["weft_sk_msg", "weft_tc_in@eth0", "weft_tc_out@eth0"] {
                ensure!(names.contains(&name), "{name}: {names:?}");
            }
            ensure!(
                names.iter().any(|name| name.starts_with("weft_sk_lookup@")),
                "{names:?}"
            );
            Ok(())
        })
    });
}
