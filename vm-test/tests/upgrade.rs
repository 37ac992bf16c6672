//! A daemon takes over from another while connections are opened, held and refused: nobody notices.

use std::{collections::BTreeMap, fs, thread, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use vm_test::{Actor, Lab, Nginx, Running, Server, curl, lab_test, poll, process, resources};

/// `web` needs no L7, `api` does, `echo` is opaque bytes through the proxy. Of them, `friend` may use what is public.
fn mesh(lab: &Lab) -> Result<(Vec<Server>, Running)> {
    // Requests alone are split, but for that the proxy has to look; what is no HTTP stays with the service.
    let split = "---\napiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\n\
                 metadata: {name: through-proxy, namespace: default}\nspec:\n  service: echo\n\
                 \x20 matches: [{kind: HTTPRouteGroup, name: public}]\n  backends: [{service: echo-next, weight: 1}]\n";
    let yaml = [
        resources::DENY.to_owned(),
        resources::tcp_route("ports", &[8080, 7007]),
        resources::route("public", "/public$", &["GET"]),
        resources::allow("friend-web", "friend", "web", ("TCPRoute", "ports")),
        resources::allow("friend-echo", "friend", "echo", ("TCPRoute", "ports")),
        resources::allow("friend-api", "friend", "api", ("HTTPRouteGroup", "public")),
        split.to_owned(),
    ];
    lab.resource("mesh.yaml", &yaml.concat())?;
    let servers = vec![
        lab.nginx(Nginx::service("web").port(80, 8080))?,
        lab.nginx(Nginx::service("api").port(80, 8081))?,
    ];
    let traffic = lab.traffic()?;
    let echo = lab.run("echo").port("7:7007");
    let mut echo = echo.start([traffic.as_str(), "serve-echo", "127.0.0.1:7007"])?;
    echo.line(1)?;
    for url in ["http://web/public", "http://api/public"] {
        poll::until("friend alone to be allowed", || {
            let answer = lab.run("friend").curl(url)?;
            ensure!((answer.code, answer.http) == (0, 200), "{url}: {answer:?}");
            let stranger = lab.run("stranger").curl(url)?;
            ensure!(stranger.code == curl::COULD_NOT_CONNECT, "{url}: {stranger:?}");
            Ok(())
        })?;
    }
    Ok((servers, echo))
}

/// Clients that open connection after connection, with the only outcome that each may have.
struct Load(Vec<(Running, &'static str, &'static str)>);

// === impl Load ===

impl Load {
    fn start(lab: &Lab) -> Result<Self> {
        let traffic = lab.traffic()?;
        let mut clients = Vec::new();
        for (account, target, path, outcome) in [
            ("friend", "web:80", "/public", "200"),
            ("friend", "api:80", "/public", "200"),
            ("friend", "api:80", "/admin", "403"),
            ("stranger", "web:80", "/public", "connect: errno 1"),
        ] {
            let mut client = lab.run(account).start([traffic.as_str(), "hammer", target, path])?;
            client.line(1)?;
            clients.push((client, target, outcome));
        }
        Ok(Self(clients))
    }

    /// How many connections there were of each kind; every one as it had to be.
    fn end(self) -> Result<Vec<u64>> {
        let mut counts = Vec::new();
        for (client, target, outcome) in self.0 {
            let told = client.finish(process::BOUND)?.ok()?.json_lines()?;
            let told = told.last().context("an account")?;
            let outcomes: BTreeMap<String, u64> = serde_json::from_value(told["outcomes"].clone())?;
            eprintln!("{target}: {told}");
            let count = outcomes.get(outcome).copied().unwrap_or(0);
            ensure!(
                outcomes.len() == 1 && count > 0,
                "{target}: expected {outcome} alone: {told}"
            );
            counts.push(count);
        }
        Ok(counts)
    }
}

fn descriptors(pid: i32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))
        .context("list descriptors")?
        .count())
}

/// One question to a client that answers a line with a line.
fn told(client: &mut Running, lines: &mut usize, word: &str) -> Result<Value> {
    client.say(word)?;
    *lines += 1;
    Ok(serde_json::from_str(&client.line(*lines)?)?)
}

/// A log line a connection would be the load; and the first daemon waits for its opaque connection however slow the machine.
const FLAGS: [&str; 4] = ["--access-log", "off", "--drain", "600"];

#[test]
fn five_upgrades_under_load_fail_no_connection_and_flip_no_verdict() {
    lab_test("upgrade", |lab| {
        lab.daemon_with(&FLAGS)?;
        let _servers = mesh(lab)?;
        let traffic = lab.traffic()?;
        let mut direct = lab
            .run("friend")
            .start([traffic.as_str(), "keep-alive", "web:80", "/public"])?;
        let mut kept = lab
            .run("friend")
            .start([traffic.as_str(), "keep-alive", "api:80", "/public"])?;
        let mut opaque = lab.run("friend").start([traffic.as_str(), "hold", "echo:7"])?;
        for client in [&mut direct, &mut kept, &mut opaque] {
            client.line(1)?;
        }
        let (mut direct_lines, mut kept_lines, mut opaque_lines) = (1, 1, 1);
        let load = Load::start(lab)?;
        let mut before = descriptors(lab.daemon_pid()?)?;
        let mut reconnected = 0;
        let mut earlier = Vec::new();
        for upgrade in 1..=5 {
            earlier.push(lab.take_over_with(&FLAGS)?);
            // `weft run` asks the new one, and nothing of it was lost on the way.
            lab.run("friend").output(["true"])?.ok()?;
            let answer = told(&mut direct, &mut direct_lines, "ask")?;
            ensure!(
                answer["status"] == "200" && answer["again"] == false,
                "L4, upgrade {upgrade}: {answer}"
            );
            let answer = told(&mut kept, &mut kept_lines, "ask")?;
            ensure!(answer["status"] == "200", "kept alive, upgrade {upgrade}: {answer}");
            reconnected += u64::from(answer["again"] == true);
            let answer = told(&mut opaque, &mut opaque_lines, &format!("upgrade {upgrade}"))?;
            ensure!(
                answer["ok"] == true,
                "held by the first daemon, upgrade {upgrade}: {answer}"
            );
            ensure!(lab.status()?["degraded"] == serde_json::json!([]), "{}", lab.status()?);
            if upgrade == 1 {
                before = descriptors(lab.daemon_pid()?)?;
            }
        }
        ensure!(
            reconnected > 0,
            "a connection that is kept alive goes over to the next daemon"
        );
        let counts = load.end()?;
        ensure!(counts.iter().all(|count| *count > 100), "{counts:?}");
        poll::until("descriptors to be as many as before", || {
            let now = descriptors(lab.daemon_pid()?)?;
            ensure!(now <= before, "{now} descriptors, {before} after the first upgrade");
            Ok(())
        })?;
        // The opaque connection is what the first one still waits for; all others are gone.
        drop(opaque.finish(process::BOUND)?.ok()?);
        for daemon in earlier {
            daemon.finish(process::BOUND)?.ok()?;
        }
        Ok(())
    });
}

#[test]
fn a_probe_finds_the_node_ready_throughout_an_upgrade() {
    lab_test("ready", |lab| {
        lab.daemon()?;
        let traffic = lab.traffic()?;
        let mut probe = Running::start(lab.command([traffic.as_str(), "hammer", "127.0.0.1:15020", "/healthz/ready"]))?;
        probe.line(1)?;
        for _ in 0..3 {
            lab.take_over(&[])?.ok()?;
        }
        let told = probe.finish(process::BOUND)?.ok()?.json_lines()?;
        let outcomes = &told.last().context("an account")?["outcomes"];
        ensure!(outcomes["200"].is_u64() && outcomes["503"].is_null(), "{outcomes}");
        Ok(())
    });
}

#[test]
fn who_follows_flows_is_told_by_the_next_daemon_too_and_fails_where_there_is_none() {
    lab_test("follow", |lab| {
        lab.daemon()?;
        lab.resource("mesh.yaml", resources::DENY)?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let mut words = vec![lab.weft_binary().display().to_string()];
        words.extend(["flows", "--follow", "--state-dir"].map(String::from));
        words.push(lab.state().display().to_string());
        let mut follower = Running::start(lab.command(words))?;
        for account in ["early", "late"] {
            poll::until("the follower to be told of a denied connection", || {
                ensure!(follower.is_running()?, "it ended: {}", follower.stderr());
                lab.run(account).curl("http://web/")?;
                let told = follower.stdout();
                let denied = |line: &str| line.contains(&format!("default/{account}")) && line.contains("deny");
                ensure!(told.lines().any(denied), "{account}: {told}");
                Ok(())
            })?;
            if account == "early" {
                lab.take_over(&[])?.ok()?;
            }
        }
        lab.stop()?;
        let ended = follower.finish(process::BOUND)?.exits(1)?;
        ensure!(ended.stderr.contains("the daemon has stopped"), "{ended:?}");
        Ok(())
    });
}

#[test]
fn what_does_not_end_is_cut_at_the_drain_deadline_and_counted() {
    lab_test("drain", |lab| {
        lab.daemon_with(&["--drain", "1"])?;
        let _servers = mesh(lab)?;
        let traffic = lab.traffic()?;
        let mut opaque = lab.run("friend").start([traffic.as_str(), "hold", "echo:7"])?;
        opaque.line(1)?;
        lab.take_over(&[])?.ok()?;
        ensure!(
            lab.log().contains("connections cut at the drain deadline cut=1"),
            "{}",
            lab.log()
        );
        let answer = told(&mut opaque, &mut 1, "anybody?")?;
        ensure!(answer["ok"] == false, "{answer}");
        let flow = lab.flow("what the earlier daemon saw", |flow| {
            flow["event"] == "open" && flow["destination"]["service"] == "echo"
        })?;
        ensure!(flow["verdict"] == "allow", "{flow}");
        Ok(())
    });
}

#[test]
fn a_running_daemon_with_a_connection_that_lives_is_uninstalled_in_one_go() {
    lab_test("uninstall-live", |lab| {
        lab.daemon()?;
        let _servers = mesh(lab)?;
        let traffic = lab.traffic()?;
        let mut opaque = lab.run("friend").start([traffic.as_str(), "hold", "echo:7"])?;
        opaque.line(1)?;
        // It drains meanwhile: the connection is cut at the end of that.
        let said = lab.uninstall()?.stdout;
        ensure!(
            said.contains("stopping the daemon") && !lab.bpffs().join("maps").exists(),
            "{said}"
        );
        ensure!(!lab.cgroup().join(".daemon").exists(), "{said}");
        lab.stop()
    });
}

#[test]
fn a_kill_9_under_load_drops_no_l4_connection_and_flips_no_verdict() {
    lab_test("kill-load", |lab| {
        lab.daemon()?;
        let _servers = mesh(lab)?;
        let traffic = lab.traffic()?;
        let vip = lab.run("friend").output(["getent", "ahostsv4", "web"])?.ok()?.stdout;
        let vip = vip.split_whitespace().next().context("an address")?.to_owned();
        let target = format!("{vip}:80");
        let mut clients = Vec::new();
        for (account, outcome) in [("friend", "200"), ("stranger", "connect: errno 1")] {
            let mut client = lab
                .run(account)
                .start([traffic.as_str(), "hammer", &target, "/public"])?;
            client.line(1)?;
            clients.push((client, "web", outcome));
        }
        let mut held = lab
            .run("friend")
            .start([traffic.as_str(), "keep-alive", &target, "/public"])?;
        held.line(1)?;
        let mut lines = 1;
        for _ in 0..3 {
            lab.kill9()?;
            let answer = told(&mut held, &mut lines, "ask")?;
            ensure!(
                answer["status"] == "200" && answer["again"] == false,
                "without a daemon: {answer}"
            );
            lab.daemon()?;
            let answer = told(&mut held, &mut lines, "ask")?;
            ensure!(
                answer["status"] == "200" && answer["again"] == false,
                "with the next: {answer}"
            );
        }
        let counts = Load(clients).end()?;
        ensure!(counts.iter().all(|count| *count > 100), "{counts:?}");
        Ok(())
    });
}

#[test]
fn with_no_daemon_there_it_is_an_ordinary_start() {
    lab_test("no-daemon", |lab| {
        lab.daemon_with(&["--take-over"])?;
        let refused = lab.daemon_refused(&[])?;
        ensure!(refused.code == 1 && refused.stderr.contains("in use"), "{refused:?}");
        ensure!(lab.daemon_lives()?, "the first one goes on");
        Ok(())
    });
}

/// Offset of `layout` in the value of `weft_config`.
const LAYOUT_AT: usize = std::mem::offset_of!(weft_abi::Config, layout);

#[test]
fn a_changed_layout_is_refused_in_words_and_changes_nothing() {
    lab_test("layout", |lab| {
        lab.daemon()?;
        let _servers = mesh(lab)?;
        let pid = lab.daemon_pid()?;
        let config = lab.bpffs().join("maps/config");
        let set_layout = |layout: u32| -> Result<u32> {
            let data = aya::maps::MapData::from_pin(&config).context("open the pinned config")?;
            let map = aya::maps::Map::Array(data);
            let mut array: aya::maps::Array<_, [u8; size_of::<weft_abi::Config>()]> = map.try_into()?;
            let mut value = array.get(&0, 0)?;
            let before = u32::from_ne_bytes(value[LAYOUT_AT..LAYOUT_AT + 4].try_into()?);
            value[LAYOUT_AT..LAYOUT_AT + 4].copy_from_slice(&layout.to_ne_bytes());
            array.set(0, value, 0)?;
            Ok(before)
        };
        let refused_with = |flags: &[&str]| -> Result<()> {
            let layout = set_layout(4242)?;
            let refused = lab.daemon_refused(flags);
            let after = set_layout(layout)?;
            ensure!(
                (layout, after) == (weft_abi::LAYOUT, 4242),
                "{flags:?}: {layout}, then {after}"
            );
            let refused = refused?;
            let last = refused.stderr.lines().last().unwrap_or_default();
            ensure!(
                refused.code == 1
                    && last.contains("layout 4242")
                    && last.contains("weft uninstall --kernel-only")
                    && last.contains("started again"),
                "{flags:?}: {refused:?}"
            );
            Ok(())
        };
        // The running daemon would write its own layout again with the next change; and it is not needed for this answer.
        let held = lab.hold_daemon()?;
        refused_with(&["--take-over"])?;
        drop(held);
        ensure!(lab.status()?["pid"] == pid, "the daemon goes on");
        lab.kill9()?;
        refused_with(&[])?;
        lab.daemon()?;
        let answer = lab.run("friend").curl("http://api/public")?;
        ensure!(answer.http == 200, "{answer:?}");
        Ok(())
    });
}

/// What the refusal over another layout advises.
#[test]
fn after_the_kernel_side_alone_is_uninstalled_the_next_daemon_has_the_workloads_and_addresses_of_before() {
    lab_test("kernel-only", |lab| {
        lab.daemon()?;
        let (mut servers, _echo) = mesh(lab)?;
        let traffic = lab.traffic()?;
        let workloads = || -> Result<Vec<String>> {
            let status = lab.status()?;
            let all = status["workloads"].as_array().context("workloads")?;
            let names = all.iter().filter_map(|workload| workload["name"].as_str());
            // Those that ask for an address come and go.
            let names = names.filter(|name| !name.starts_with("default/client/"));
            Ok(names.map(str::to_owned).collect())
        };
        poll::until("those of the mesh's first requests to be gone", || {
            let listed = workloads()?;
            let gone = |account: &str| !listed.iter().any(|name| name.starts_with(account));
            ensure!(gone("default/friend/") && gone("default/stranger/"), "{listed:?}");
            Ok(())
        })?;
        let actor = |account: &str| Actor::new(lab.run(account).start([traffic.as_str(), "actor"])?);
        let (mut friend, mut stranger) = (actor("friend")?, actor("stranger")?);
        let vip = lab.host("web", "ahostsv4")?;
        let before = workloads()?;
        ensure!(
            before.iter().any(|name| name == "default/stranger/stranger-1"),
            "{before:?}"
        );
        lab.stop()?;
        let said = lab.uninstall_with(&["--kernel-only"])?.stdout;
        ensure!(said.contains("removed") && said.contains("kept"), "{said}");
        ensure!(!lab.bpffs().join("maps").exists(), "{said}");

        lab.daemon()?;
        let after = workloads()?;
        ensure!(after == before, "before: {before:?}; after: {after:?}");
        ensure!(lab.host("web", "ahostsv4")? == vip, "another virtual IP");
        // Who listens since before the uninstall must be started again; who dials is meshed as before.
        servers.remove(0).stop()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let target = format!("tcp {vip}:80");
        poll::until("friend to be allowed", || {
            let told = friend.step(&format!("open a {target}"))?;
            ensure!(told["ok"] == true, "{told}");
            Ok(())
        })?;
        ensure!(friend.step("say a GET")?["ok"] == true, "friend is answered");
        let told = stranger.step(&format!("open a {target}"))?;
        ensure!(told["errno"] == nix::libc::EPERM, "stranger: {told}");
        Ok(())
    });
}

#[test]
fn a_successor_that_fails_leaves_the_running_daemon_as_it_was() {
    lab_test("failed", |lab| {
        lab.daemon()?;
        let _servers = mesh(lab)?;
        let load = Load::start(lab)?;
        let pid = lab.daemon_pid()?;
        // Both fail after they have replaced programs and settings.
        let allocations = lab.state().join("allocations.json");
        let good = fs::read(&allocations).context("read allocations")?;
        fs::write(&allocations, "damaged").context("damage allocations")?;
        for (flags, why) in [
            (&["--take-over"][..], "is damaged"),
            (&["--take-over", "--device", "no-such-device"], "no-such-device"),
        ] {
            let refused = lab.daemon_refused(flags)?;
            ensure!(
                refused.code == 1 && refused.stderr.contains(why),
                "{flags:?}: {}",
                refused.stderr
            );
            ensure!(lab.status()?["pid"] == pid, "the daemon goes on");
            lab.run("friend").output(["true"])?.ok()?;
            ensure!(
                fs::read(&allocations).context("read allocations")? == good,
                "its file is its own again"
            );
        }
        let without = lab.daemon_refused(&[])?;
        ensure!(
            without.code == 1 && without.stderr.contains("in use"),
            "{}",
            without.stderr
        );
        // What changes afterwards comes into force: the tables are the first daemon's again.
        load.end()?;
        lab.resource("mesh.yaml", resources::DENY)?;
        poll::until("the edit to be in force", || {
            let answer = lab.run("friend").curl("http://web/public")?;
            ensure!(answer.code == curl::COULD_NOT_CONNECT, "{answer:?}");
            Ok(())
        })?;
        lab.take_over(&[])?.ok()?;
        let answer = lab.run("friend").curl("http://web/public")?;
        ensure!(answer.code == curl::COULD_NOT_CONNECT, "{answer:?}");
        Ok(())
    });
}

#[test]
fn doctor_proves_the_hooks_of_a_daemon_whose_binary_is_not_there_any_more() {
    lab_test("replaced", |lab| {
        let binary = lab.work().join("weft-of-before");
        fs::copy(lab.weft_binary(), &binary).context("copy the binary")?;
        let start = format!("exec '{}' \"$@\"", binary.display());
        let before = ["sh".to_owned(), "-c".to_owned(), start];
        lab.daemon_as(lab.daemon_command_behind(&before, &[]))?;
        fs::remove_file(&binary).context("remove the binary")?;
        let doctor = lab.weft(["doctor", "-o", "json"])?.json()?;
        ensure!(doctor["problems"] == serde_json::json!([]), "{doctor:#}");
        Ok(())
    });
}

#[test]
fn sighup_starts_the_successor_and_the_service_manager_is_told() {
    lab_test("sighup", |lab| {
        let path = lab.work().join("notify");
        let socket = std::os::unix::net::UnixDatagram::bind(&path).context("bind")?;
        socket.set_read_timeout(Some(poll::scaled(poll::PATIENCE)))?;
        let hear = || -> Result<String> {
            let mut buffer = [0; 256];
            let count = socket.recv(&mut buffer).context("hear from the daemon")?;
            Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
        };
        let mut command = lab.daemon_command(&[]);
        command.env("NOTIFY_SOCKET", &path);
        let first = Running::start(command)?;
        let ready = hear()?;
        ensure!(
            ready.contains("READY=1") && ready.contains(&format!("MAINPID={}", first.pid())),
            "{ready}"
        );
        first.signal(Signal::SIGHUP)?;
        let told = hear()?;
        let Some(successor) = told
            .strip_prefix("MAINPID=")
            .and_then(|pid| pid.trim().parse::<i32>().ok())
        else {
            bail!("{told}; {}", first.stderr());
        };
        ensure!(successor != first.pid(), "{told}");
        let ready = hear()?;
        ensure!(
            ready.contains("READY=1") && ready.contains(&format!("MAINPID={successor}")),
            "{ready}"
        );
        first.finish(Duration::from_secs(20))?.ok()?;
        ensure!(lab.status()?["pid"] == successor, "{}", lab.status()?);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(successor), Signal::SIGTERM)?;
        ensure!(hear()?.contains("STOPPING=1"), "an orderly stop");
        poll::until("the successor to end", || {
            ensure!(lab.status().is_err(), "it answers");
            thread::yield_now();
            Ok(())
        })
    });
}
