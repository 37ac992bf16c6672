//! The daemon is killed with -9: what the kernel goes on doing, and that everything is as before afterwards.

use std::{fs, io, path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use vm_test::{Lab, Nginx, Running, Server, curl, hosts_test, lab_test, poll, process, resources};
use weft_abi::{FlowKey, FlowRecord};

/// `web` needs no L7 (friend may, stranger may not); `strict` and `loose` need it, with declared failure modes.
fn mesh(lab: &Lab) -> Result<[Server; 3]> {
    let yaml = [
        resources::DENY.to_owned(),
        resources::tcp_route("web-port", &[8080]),
        resources::allow("friend-web", "friend", "web", ("TCPRoute", "web-port")),
        resources::route("get", "/", &["GET"]),
        resources::allow("friend-strict", "friend", "strict", ("HTTPRouteGroup", "get")),
        resources::allow("friend-loose", "friend", "loose", ("HTTPRouteGroup", "get")),
        resources::service_policy("strict", &["failureMode: closed"]),
        resources::service_policy("loose", &["failureMode: open"]),
    ];
    lab.resource("mesh.yaml", &yaml.concat())?;
    let servers = [
        lab.nginx(Nginx::service("web").port(80, 8080))?,
        lab.nginx(Nginx::service("strict").port(80, 8081))?,
        lab.nginx(Nginx::service("loose").port(80, 8082))?,
    ];
    for service in ["web", "strict", "loose"] {
        poll::until("friend alone to be allowed everywhere", || {
            let url = format!("http://{service}/");
            let answer = lab.run("friend").curl(&url)?;
            ensure!((answer.code, answer.http) == (0, 200), "{service}: {answer:?}");
            let stranger = lab.run("stranger").curl(&url)?;
            ensure!(stranger.code == curl::COULD_NOT_CONNECT, "{service}: {stranger:?}");
            Ok(())
        })?;
    }
    Ok(servers)
}

/// A workload that outlives the daemon and connects when told to: `weft run` itself needs a daemon.
struct Client(Running, usize);

// === impl Client ===

impl Client {
    fn new(lab: &Lab, account: &str) -> Result<Self> {
        let traffic = lab.traffic()?;
        let script = format!("while read target; do {traffic} connect \"$target\"; done");
        Ok(Self(lab.run(account).start(["sh", "-c", &script])?, 0))
    }

    /// Whether a connection comes about; else its errno.
    fn connect(&mut self, target: &str) -> Result<Result<(), i64>> {
        self.0.say(target)?;
        self.1 += 1;
        let told: serde_json::Value = serde_json::from_str(&self.0.line(self.1)?)?;
        Ok(if told["ok"] == true {
            Ok(())
        } else {
            Err(told["errno"].as_i64().context("an errno")?)
        })
    }
}

/// Where clients of the mesh find `web`, `strict` and `loose`.
fn vips(lab: &Lab, database: &str) -> Result<[String; 3]> {
    let vip = |service| anyhow::Ok(format!("{}:80", lab.host(service, database)?));
    Ok([vip("web")?, vip("strict")?, vip("loose")?])
}

#[test]
fn without_a_daemon_verdicts_hold_and_failure_modes_are_as_declared() {
    lab_test("death", |lab| {
        lab.daemon()?;
        let _servers = mesh(lab)?;
        // With the loopback addresses at which the servers are reached as well.
        let families = [
            (vips(lab, "ahostsv4")?, ["127.0.0.1", "127.0.0.2"]),
            (vips(lab, "ahostsv6")?, ["[::1]", "[::1]"]),
        ];
        let (mut friend, mut stranger) = (Client::new(lab, "friend")?, Client::new(lab, "stranger")?);
        for ([web, _, _], _) in &families {
            ensure!(
                friend.connect(web)?.is_ok() && stranger.connect(web)? == Err(1),
                "before, {web}"
            );
        }

        lab.kill9()?;
        for ([web, strict, loose], [endpoint, other]) in &families {
            ensure!(friend.connect(web)?.is_ok(), "L4-allowed connects, {web}");
            ensure!(stranger.connect(web)? == Err(1), "denied is denied, {web}");
            ensure!(
                stranger.connect(&format!("{endpoint}:8080"))? == Err(1),
                "also at the endpoint, {endpoint}"
            );
            ensure!(friend.connect(strict)?.is_err(), "closed: refused, {strict}");
            ensure!(
                friend.connect(loose)?.is_ok(),
                "open: straight to the endpoint, {loose}"
            );
            ensure!(
                friend.connect(&format!("{other}:8082"))?.is_ok() && friend.connect(&format!("{other}:8081"))?.is_err(),
                "the same at any address of the server, {other}"
            );
            ensure!(
                stranger.connect(loose)? == Err(1),
                "open opens nothing to those whom L4 denies, {loose}"
            );
        }

        lab.daemon()?;
        for service in ["web", "strict", "loose"] {
            let answer = lab.run("friend").curl(&format!("http://{service}/"))?;
            ensure!(answer.http == 200, "after, {service}: {answer:?}");
        }
        let answer = lab.run("friend").curl_with(&["-X", "POST"], "http://strict/")?;
        ensure!(answer.http == 403, "L7 rules are back: {answer:?}");
        for ([web, _, _], _) in &families {
            ensure!(
                stranger.connect(web)? == Err(1) && friend.connect(web)?.is_ok(),
                "after, {web}"
            );
        }
        ensure!(
            [vips(lab, "ahostsv4")?, vips(lab, "ahostsv6")?] == families.map(|(vips, _)| vips),
            "virtual IPs are stable"
        );
        Ok(())
    });
}

/// The status that a client on another host gets; 0 and curl's exit code where there is none.
fn outside(lab: &Lab, method: &str, url: &str) -> Result<(String, i32)> {
    let words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time"];
    let output = lab.outside(words.into_iter().chain([&curl::max_time(0), "-X", method, url]))?;
    Ok((output.stdout, output.code))
}

#[test]
fn without_a_daemon_clients_outside_get_what_the_service_declares() {
    hosts_test("death-outside", 3, |hosts| {
        let [a, b, c] = hosts.all();
        b.daemon_with(&["--inbound", "netns"])?;
        let yaml = [
            resources::DENY.to_owned(),
            resources::route("get", "/", &["GET"]),
            resources::allow("peer-strict", "peer", "strict", ("HTTPRouteGroup", "get")),
            resources::allow("peer-loose", "peer", "loose", ("HTTPRouteGroup", "get")),
            resources::service_policy("strict", &["failureMode: closed"]),
            resources::service_policy("loose", &["failureMode: open"]),
            resources::workload("peer", "peer", "peer", &a.addresses()),
        ];
        b.resource("mesh.yaml", &yaml.concat())?;
        let _servers = [
            b.nginx(Nginx::service("strict").port(80, 8081))?,
            b.nginx(Nginx::service("loose").port(80, 8082))?,
        ];
        let url = |ip: &std::net::IpAddr, port: u16| format!("http://{}/", std::net::SocketAddr::new(*ip, port));
        let refused = ("000".to_owned(), curl::COULD_NOT_CONNECT);
        let looked_at = || {
            for (ip, port) in b.addresses().iter().flat_map(|ip| [(ip, 8081), (ip, 8082)]) {
                poll::until("GET to be allowed and POST to be denied", || {
                    let url = url(ip, port);
                    let (get, post) = (outside(a, "GET", &url)?, outside(a, "POST", &url)?);
                    ensure!((&*get.0, &*post.0) == ("200", "403"), "{url}: {get:?} {post:?}");
                    Ok(())
                })?;
            }
            Ok(())
        };
        looked_at()?;
        b.kill9()?;
        for ip in &b.addresses() {
            let (strict, loose) = (url(ip, 8081), url(ip, 8082));
            let open = outside(a, "POST", &loose)?;
            ensure!(open.0 == "200", "open, {loose}: {open:?}");
            ensure!(outside(a, "GET", &strict)? == refused, "closed, {strict}");
            ensure!(
                outside(c, "GET", &loose)? == refused,
                "open opens nothing to others, {loose}"
            );
        }
        b.daemon_with(&["--inbound", "netns"])?;
        looked_at()
    });
}

#[test]
fn a_direct_connection_outlives_the_daemon() {
    lab_test("survive", |lab| {
        lab.daemon()?;
        let traffic = lab.traffic()?;
        let mut server = lab
            .run("echo")
            .port("7:7007")
            .start([traffic.as_str(), "serve-echo", "[::]:7007"])?;
        server.line(1)?;
        lab.endpoint("echo", "7:7007")?;
        let open = |database: &str| -> Result<Running> {
            let target = format!("{}:7", lab.host("echo", database)?);
            let mut held = lab.run("client").start([traffic.as_str(), "hold", target.as_str()])?;
            held.line(1)?;
            Ok(held)
        };
        let mut all = [open("ahostsv4")?, open("ahostsv6")?];
        for (number, event) in ["before", "killed", "back"].into_iter().enumerate() {
            match event {
                "killed" => lab.kill9()?,
                "back" => lab.daemon()?,
                _ => {}
            }
            for (held, family) in all.iter_mut().zip(["IPv4", "IPv6"]) {
                held.say(event)?;
                let told: serde_json::Value = serde_json::from_str(&held.line(number + 2)?)?;
                ensure!(told["ok"] == true, "{event}, {family}: {told}");
            }
        }
        Ok(())
    });
}

#[test]
fn what_is_stale_is_removed_soon_after_a_start() {
    lab_test("stale", |lab| {
        lab.daemon()?;
        lab.kill9()?;
        // A flow whose last packet was at the machine's start.
        let pin = lab.bpffs().join("maps/flows");
        let map = Map::HashMap(MapData::from_pin(&pin).context("open the flows")?);
        let mut map: HashMap<MapData, FlowKey, FlowRecord> = map.try_into()?;
        let key = FlowKey {
            protocol: u32::from(weft_abi::protocol::UDP),
            ..FlowKey::default()
        };
        map.insert(key, FlowRecord::default(), 0)?;
        // Daemons that are killed within a minute each must not let it stay for good.
        lab.daemon()?;
        poll::until("the flow to be forgotten", || {
            ensure!(map.get(&key, 0).is_err(), "it is there");
            Ok(())
        })
    });
}

/// Who may only read holds every lock that it can get.
#[test]
fn a_user_without_privileges_keeps_no_daemon_from_starting() {
    lab_test("foreign-lock", |lab| {
        lab.daemon()?;
        lab.kill9()?;
        let locked = |path: &Path| {
            let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
            let path = path.display().to_string();
            let held = ["flock", &path, "sh", "-c", "echo held; exec cat"];
            Running::start(lab.command(nobody.into_iter().chain(held)))
        };
        let mut cgroup = locked(lab.cgroup())?;
        ensure!(cgroup.line(1)? == "held", "{}", cgroup.stdout());
        for own in [".daemon", ".canary"] {
            let refused = locked(&lab.cgroup().join(own))?.finish(process::BOUND)?;
            ensure!(refused.code != 0 && refused.stdout.is_empty(), "{refused:?}");
        }
        lab.daemon()?;
        lab.take_over(&[])?.ok()?;
        ensure!(cgroup.is_running()?, "it was locked all the time");
        Ok(())
    });
}

#[test]
fn uninstall_leaves_what_is_others() {
    lab_test("others", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let theirs = [lab.cgroup().join("slice/pod"), lab.bpffs().join("theirs")];
        for path in &theirs {
            fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
        }
        lab.stop()?;
        let told = lab.uninstall()?;
        ensure!(theirs.iter().all(|path| path.is_dir()), "{told:?}");
        let ours = [".daemon", "default"].map(|name| lab.cgroup().join(name));
        // nginx still runs in its own.
        ensure!(!ours[0].exists() && ours[1].exists(), "{told:?}");
        ensure!(told.stdout.contains("processes are in it"), "{told:?}");
        ensure!(!lab.bpffs().join("maps").exists(), "{told:?}");
        let refused = lab.daemon_refused(&[])?;
        ensure!(
            refused.code != 0 && refused.stderr.contains("`theirs` in it is not weft's"),
            "{refused:?}"
        );
        for path in [&theirs[0], &lab.cgroup().join("slice"), &theirs[1]] {
            fs::remove_dir(path).with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    });
}

#[test]
fn an_access_log_that_nobody_reads_is_no_reason_to_take_the_kernel_side_away() {
    lab_test("unread-log", |lab| {
        let yaml = [
            resources::DENY.to_owned(),
            resources::route("get", "/", &["GET"]),
            resources::allow("client-web", "client", "web", ("HTTPRouteGroup", "get")),
        ];
        lab.resource("mesh.yaml", &yaml.concat())?;
        let (unread, full) = io::pipe().context("a pipe")?;
        let errors = fs::File::create(lab.log_file()).context("the daemon's log")?;
        let daemon = Running::start_logging(lab.daemon_command(&[]), full.into(), errors.into())?;
        poll::until("the daemon", || lab.weft(["status"])?.ok())?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        // 200 lines of more than 1,000 bytes are more than a pipe holds (65,536).
        let url = format!("http://web/{}", "x".repeat(1000));
        poll::until("requests to be answered", || {
            let answer = lab.run("client").curl(&url)?;
            ensure!(answer.http == 200, "{answer:?}");
            Ok(())
        })?;
        let script = format!("for i in $(seq 200); do curl -s -o /dev/null '{url}'; done");
        lab.run("client")
            .start(["sh", "-c", &script])?
            .finish(process::BOUND)?
            .ok()?;
        let pins = lab.bpffs().join("maps/config");
        ensure!(pins.exists(), "before");
        daemon.stop()?;
        ensure!(pins.exists(), "the kernel side is gone: {}", lab.log());
        ensure!(lab.log().contains("the last records are lost"), "{}", lab.log());
        drop(unread);
        Ok(())
    });
}

#[test]
fn a_log_that_cannot_be_written_is_no_reason_to_stop_reading_resources_and_publishing() {
    lab_test("full-log", |lab| {
        let full = fs::File::options().write(true).open("/dev/full");
        let full = full.context("open /dev/full")?;
        let daemon = Running::start_logging(lab.daemon_command(&[]), Stdio::null(), full.into())?;
        poll::until("the daemon", || lab.weft(["status"])?.ok())?;
        // Whoever reads it says so in the log, and goes on.
        lab.resource("broken.yaml", "kind: [")?;
        poll::until("status to tell of it", || {
            let diagnostics = lab.status()?["diagnostics"].to_string();
            ensure!(diagnostics.contains("broken.yaml"), "{diagnostics}");
            Ok(())
        })?;
        lab.resource("mesh.yaml", resources::DENY)?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        poll::until("the mesh to deny", || {
            let answer = lab.run("client").curl("http://web/")?;
            ensure!(answer.code == curl::COULD_NOT_CONNECT, "{answer:?}");
            Ok(())
        })?;
        daemon.stop()?.ok()?;
        Ok(())
    });
}

#[test]
fn a_stopped_daemon_leaves_the_kernel_side_and_uninstall_takes_it_away() {
    lab_test("uninstall", |lab| {
        lab.daemon()?;
        lab.resource("mesh.yaml", resources::DENY)?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        poll::until("the mesh to deny", || {
            let answer = lab.run("client").curl("http://web/")?;
            ensure!(answer.code == curl::COULD_NOT_CONNECT, "{answer:?}");
            Ok(())
        })?;
        let mut client = Client::new(lab, "client")?;
        lab.stop()?;
        ensure!(
            client.connect("127.0.0.1:8080")? == Err(1),
            "denied after an orderly stop"
        );
        lab.uninstall()?;
        ensure!(
            client.connect("127.0.0.1:8080")?.is_ok(),
            "nothing is left that could deny"
        );
        Ok(())
    });
}

#[test]
fn uninstall_beside_a_stopped_daemon_finds_its_places_and_takes_no_others_for_them() {
    lab_test("places", |lab| {
        lab.daemon()?;
        lab.stop()?;
        let (bpffs, cgroup) = (lab.bpffs().display().to_string(), lab.cgroup().display().to_string());
        let other = lab.work().join("other").display().to_string();
        let refused = lab
            .weft(["uninstall", "--bpffs", &other, "--cgroup", &cgroup])?
            .exits(2)?;
        let flags = format!("say --bpffs {bpffs} --cgroup {cgroup}");
        ensure!(refused.stderr.contains(&flags), "{refused:?}");
        let pins = lab.bpffs().join("maps");
        ensure!(pins.exists() && lab.state().join("lock").exists(), "{refused:?}");

        let told = lab.weft(["uninstall"])?.ok()?;
        ensure!(!pins.exists() && !lab.state().exists(), "{told:?}");
        ensure!(!lab.cgroup().join(".daemon").exists(), "{told:?}");
        Ok(())
    });
}
