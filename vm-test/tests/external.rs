//! `l7: {mode: external}`: an unmodified Envoy stands in for our proxy; `l7: {mode: none}`: nobody does.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use vm_test::{
    Lab, Nginx, Running, curl,
    curl::Answer,
    envoy::{self, Envoy},
    lab_test, poll, resources,
};

/// `client` may GET `web` (a rule about requests), nobody else may; both may connect to `plain`.
fn mesh() -> String {
    [
        resources::DENY.to_owned(),
        resources::route("get", "/", &["GET"]),
        resources::allow("client-web", "client", "web", ("HTTPRouteGroup", "get")),
        resources::tcp_route("plain-port", &[8081]),
        resources::allow("client-plain", "client", "plain", ("TCPRoute", "plain-port")),
        resources::allow("stranger-plain", "stranger", "plain", ("TCPRoute", "plain-port")),
    ]
    .concat()
}

fn external(cgroup: &Path, more: &[&str]) -> String {
    let l7 = format!(
        "l7: {{mode: external, address: '127.0.0.1:{}', cgroup: {}}}",
        envoy::PORT,
        cgroup.display()
    );
    let fields: Vec<&str> = [l7.as_str()].iter().chain(more).copied().collect();
    resources::service_policy("web", &fields)
}

fn by_envoy(answer: &Answer) -> bool {
    answer.told.contains("server: envoy") && answer.told.contains("x-envoy-upstream-service-time")
}

fn through_envoy(lab: &Lab) -> Result<()> {
    poll::until("an answer through Envoy", || {
        let answer = lab.run("client").curl("http://web/")?;
        ensure!(
            (answer.http, answer.body.as_str()) == (200, "hello from web\n") && by_envoy(&answer),
            "{answer:?}"
        );
        Ok(())
    })
}

/// Rows of `weft doctor` about the program, whether each is attached.
fn getsockopt_rows(lab: &Lab) -> Result<Vec<bool>> {
    // Exit code 1 tells of problems, which are looked at by those who expect them.
    let report = lab.weft(["doctor", "-o", "json"])?.json()?;
    let hooks = report["hooks"].as_array().context("hooks")?;
    let named = |hook: &&serde_json::Value| {
        hook["name"]
            .as_str()
            .is_some_and(|name| name.starts_with("weft_getsockopt@"))
    };
    let rows = hooks.iter().filter(named);
    Ok(rows.map(|hook| hook["attached"] == true).collect())
}

#[test]
fn an_unmodified_envoy_serves_a_service_and_nobody_elses() {
    lab_test("external", |lab| {
        lab.daemon()?;
        let cgroup = envoy::foreign_cgroup(lab)?;
        let envoy = Envoy::start(lab, cgroup.path())?;
        lab.resource("mesh.yaml", &mesh())?;
        let web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let _plain = lab.nginx(Nginx::service("plain").port(80, 8081))?;
        ensure!(
            getsockopt_rows(lab)?.is_empty(),
            "attached before any policy asks for it"
        );
        lab.resource("policy.yaml", &external(cgroup.path(), &[]))?;
        through_envoy(lab)?;

        for family in ["-4", "-6"] {
            let (connections, requests) = (envoy.connections()?, envoy.requests()?);
            let answer = lab.run("client").curl_with(&[family], "http://web/")?;
            ensure!(
                answer.body == "hello from web\n" && by_envoy(&answer),
                "{family}: {answer:?}"
            );
            ensure!(
                !answer.remote.contains("15101"),
                "the client sees whom it asked for: {answer:?}"
            );
            ensure!(
                envoy.connections()? == connections + 1,
                "{family}: one connection to Envoy"
            );
            ensure!(envoy.requests()? == requests + 1, "{family}: Envoy counted the request");
            // Request rules are Envoy's business now, and it has none.
            let body: String = (0..100_000).map(|n| format!("{n} ")).collect();
            let (from, name) = (lab.work().join("body"), format!("put{family}"));
            fs::write(&from, &body).context("write the body")?;
            let (from, url) = (from.display().to_string(), format!("http://web/files/{name}"));
            let answer = lab.run("client").curl_with(&[family, "-T", &from], &url)?;
            ensure!(answer.http == 201 && by_envoy(&answer), "{family}: {answer:?}");
            let stored = fs::read_to_string(web.files.join(&name)).context("read what was stored")?;
            ensure!(stored == body, "{family}: {} of {} bytes", stored.len(), body.len());
        }
        let _second = lab.nginx(Nginx::service("web").says("hello from another").port(80, 8082))?;
        poll::until("Envoy to reach either endpoint, as the kernel picks", || {
            let answer = lab.run("client").curl("http://web/")?;
            ensure!(by_envoy(&answer) && answer.body == "hello from another\n", "{answer:?}");
            Ok(())
        })?;
        through_envoy(lab)?;
        lab.flow("the connection, of the client to web", |flow| {
            flow["source"]["account"] == "client"
                && flow["destination"]["service"] == "web"
                && flow["reason"].as_str().is_some_and(|why| why.contains("foreign proxy"))
        })?;

        let connections = envoy.connections()?;
        for url in ["http://web/", "http://127.0.0.1:8080/", "http://127.0.0.1:15101/"] {
            let stranger = lab.run("stranger").curl_with(&["-H", "Host: web"], url)?;
            ensure!(stranger.code == curl::COULD_NOT_CONNECT, "{url}: {stranger:?}");
        }
        for account in ["client", "stranger"] {
            let plain = lab.run(account).curl("http://plain/")?;
            ensure!(
                plain.body == "hello from plain\n" && !by_envoy(&plain),
                "{account}: {plain:?}"
            );
        }
        ensure!(
            envoy.connections()? == connections,
            "neither the denied nor other services' connections reached Envoy"
        );

        a_policy_that_denies_cuts_what_runs_through_envoy(lab)?;
        ensure!(getsockopt_rows(lab)? == [true], "attached once");
        ensure!(attached_to(lab, cgroup.path())?, "to Envoy's cgroup");
        ensure!(!attached_to(lab, lab.cgroup())?, "not to the captured one");
        lab.remove_resource("policy.yaml")?;
        poll::until("our own proxy to judge again", || {
            let answer = lab.run("client").curl_with(&["-X", "POST"], "http://web/")?;
            ensure!(answer.http == 403 && !by_envoy(&answer), "{answer:?}");
            Ok(())
        })?;
        let answer = lab.run("client").curl("http://web/")?;
        ensure!(answer.http == 200 && !by_envoy(&answer), "{answer:?}");
        ensure!(getsockopt_rows(lab)?.is_empty(), "gone with the policy");
        ensure!(!attached_to(lab, cgroup.path())?, "and from the cgroup");
        Ok(())
    });
}

/// One connection, five requests a second: reset when its account may not connect any more.
fn a_policy_that_denies_cuts_what_runs_through_envoy(lab: &Lab) -> Result<()> {
    let told = "%{stderr}%{http_code} %{num_connects}\\n";
    let url = "http://web/?[1-60]";
    let words = ["curl", "-s", "--rate", "5/s", "-o", "/dev/null", "-w", told, url];
    let requests = Running::start(lab.run("client").command(words))?;
    poll::until("answers on one connection", || {
        let lines = requests.stderr();
        ensure!(lines.matches("200 0").count() >= 2, "{lines}");
        Ok(())
    })?;
    lab.resource("mesh.yaml", resources::DENY)?;
    poll::until("the connection to be cut, and refused anew", || {
        let lines = requests.stderr();
        ensure!(
            lines.lines().filter(|line| line.starts_with("000")).count() >= 2,
            "{lines}"
        );
        Ok(())
    })?;
    lab.resource("mesh.yaml", &mesh())?;
    through_envoy(lab)
}

/// Whether a pinned link of the lab's daemon holds the getsockopt program at this cgroup.
fn attached_to(lab: &Lab, cgroup: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let id = fs::metadata(cgroup).context("look at the cgroup")?.ino();
    let links = lab.bpffs().join("links");
    let pinned: Vec<String> = fs::read_dir(&links)
        .context("list the links")?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with("getsockopt"))
        .collect();
    Ok(pinned.iter().any(|name| name.contains(&format!("-{id}-"))))
}

#[test]
fn without_its_proxy_a_service_gets_its_failure_mode() {
    lab_test("external-dead", |lab| {
        lab.daemon()?;
        let cgroup = envoy::foreign_cgroup(lab)?;
        lab.resource("mesh.yaml", &mesh())?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let expect = |what: &str, code: i32| {
            poll::until(what, || {
                let answer = lab.run("client").curl("http://web/")?;
                ensure!(answer.code == code && !by_envoy(&answer), "{answer:?}");
                Ok(())
            })
        };
        expect("our own proxy to serve", 0)?;
        for (mode, code) in [
            (None, curl::COULD_NOT_CONNECT),
            (Some("failureMode: open"), 0),
            (Some("failureMode: closed"), curl::COULD_NOT_CONNECT),
        ] {
            let more: Vec<&str> = mode.into_iter().collect();
            lab.resource("policy.yaml", &external(cgroup.path(), &more))?;
            expect(&format!("{mode:?} without Envoy"), code)?;
        }
        let envoy = Envoy::start(lab, cgroup.path())?;
        through_envoy(lab)?;

        // Killed: its listener is gone at once. A workload that takes its place gets nothing.
        drop(envoy);
        let traffic = lab.traffic()?;
        let mut thief = lab
            .run("thief")
            .start([traffic.as_str(), "serve-sink", "127.0.0.1:15101"])
            .map_err(|error| error.to_string());
        expect("refused after Envoy's death", curl::COULD_NOT_CONNECT)?;
        if let Ok(thief) = &mut thief {
            ensure!(thief.line(1).is_err(), "a workload bound the foreign proxy's port");
        }

        // As a service manager does it: the cgroup is made again and has another id.
        cgroup.remove()?;
        poll::until("weft doctor to miss the cgroup", || {
            let report = lab.weft(["doctor", "-o", "json"])?.exits(1)?.json()?;
            let problems = report["problems"].to_string();
            ensure!(
                problems.contains("does not exist") && problems.contains("-foreign"),
                "{report}"
            );
            Ok(())
        })?;
        fs::create_dir(cgroup.path()).context("make the cgroup again")?;
        let _envoy = Envoy::start(lab, cgroup.path())?;
        through_envoy(lab)?;
        ensure!(getsockopt_rows(lab)? == [true], "attached to the new cgroup alone");
        Ok(())
    });
}

#[test]
fn a_foreign_proxy_outlives_the_daemon_and_may_live_in_the_captured_cgroup() {
    lab_test("external-inside", |lab| {
        lab.daemon()?;
        let cgroup = lab.cgroup().join("edge/envoy");
        fs::create_dir_all(&cgroup).context("make Envoy's cgroup")?;
        lab.resource("mesh.yaml", &mesh())?;
        lab.resource("policy.yaml", &external(Path::new("edge/envoy"), &[]))?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let envoy = Envoy::start(lab, &cgroup)?;
        through_envoy(lab)?;
        // Meshed before the daemon dies, for `weft run` needs one: asks once a line.
        let script = "while read family; do curl -s $family -o /dev/null -w '%{http_code} %header{server}\\n' http://$VIP/; done";
        let vip = lab.run("client").output(["getent", "ahostsv4", "web"])?.ok()?.stdout;
        let vip = vip.split_whitespace().next().context("an address")?.to_owned();
        let mut client = lab.run("client").start(["sh", "-c", &script.replace("$VIP", &vip)])?;
        let mut asked = 0;
        let mut ask = |client: &mut Running, when: &str| -> Result<()> {
            client.say("-4")?;
            asked += 1;
            let line = client.line(asked)?;
            ensure!(line == "200 envoy", "{when}: {line}");
            Ok(())
        };
        ask(&mut client, "before")?;
        lab.kill9()?;
        ask(&mut client, "the daemon is dead")?;
        lab.daemon()?;
        ask(&mut client, "the daemon is back")?;
        through_envoy(lab)?;
        ensure!(getsockopt_rows(lab)? == [true], "adopted");
        lab.take_over(&[])?;
        ask(&mut client, "another daemon has taken over")?;
        ensure!(getsockopt_rows(lab)? == [true], "adopted by it as well");
        let requests = envoy.requests()?;
        lab.run("client").curl("http://web/")?;
        ensure!(envoy.requests()? == requests + 1, "the same Envoy");
        Ok(())
    });
}

/// What a proxy's socket calls see: each option with buffers that are too small, right, and beyond a page.
const ASK: &str = r#"
import ctypes, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def ask(fd, level, name, size):
    buffer, length = ctypes.create_string_buffer(size), ctypes.c_uint32(size)
    failed = libc.getsockopt(fd, level, name, buffer, ctypes.byref(length))
    return ctypes.get_errno() if failed else buffer.raw[:length.value].hex()
def loop(family, address):
    server = socket.socket(family); server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, 15101)); server.listen()
    return server
v4, v6 = loop(socket.AF_INET, "127.0.0.1"), loop(socket.AF_INET6, "::1")
print("listening", flush=True)
for line in sys.stdin:
    server = v4 if line.strip() == "v4" else v6
    connection, _ = server.accept()
    fd = connection.fileno()
    print(*[ask(fd, level, 80, size) for level in (0, 41) for size in (8, 16, 28, 128, 8192)],
          ask(fd, socket.SOL_SOCKET, socket.SO_TYPE, 4), ask(fd, socket.SOL_SOCKET, socket.SO_TYPE, 8192),
          ask(server.fileno(), 0, 80, 16), flush=True)
    connection.close()
"#;

#[test]
fn so_original_dst_is_answered_as_behind_iptables() {
    lab_test("external-sockopt", |lab| {
        lab.daemon()?;
        let cgroup = envoy::foreign_cgroup(lab)?;
        let python = envoy::environment()?.join("bin/python3").display().to_string();
        let mut proxy = Running::start(envoy::in_cgroup(lab, cgroup.path(), &[&python, "-c", ASK]))?;
        ensure!(proxy.line(1)? == "listening", "the proxy listens");
        lab.resource("mesh.yaml", &mesh())?;
        lab.resource("policy.yaml", &external(cgroup.path(), &[]))?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        poll::until("the program to be attached", || {
            ensure!(attached_to(lab, cgroup.path())?, "it is not");
            Ok(())
        })?;
        lab.endpoint("web", "80:8080")?;

        let traffic = lab.traffic()?;
        let mut line = 1;
        let mut accept = |family: &str, from: &str, target: &str| -> Result<Vec<String>> {
            let connected = lab.run(from).output([traffic.as_str(), "connect", target])?;
            ensure!(
                connected.stdout.contains("\"ok\":true"),
                "{from} to {target}: {connected:?}"
            );
            proxy.say(family)?;
            line += 1;
            Ok(proxy.line(line)?.split(' ').map(str::to_owned).collect())
        };
        let status = lab.status()?;
        let services = status["services"].as_array().context("services")?;
        let web = services
            .iter()
            .find(|service| service["name"] == "web")
            .context("web")?;
        let vip = |family: &str| web[family].as_str().context("a virtual IP");
        // The client has closed before the proxy accepts: what it wanted must still be known.
        let v4 = "02001f907f000001".to_owned() + &"0".repeat(16);
        let found = accept("v4", "client", &format!("{}:80", vip("vip4")?))?;
        ensure!(found[1..5].iter().all(|answer| *answer == v4), "{found:?}");
        let mapped = "0a001f90".to_owned() + "00000000" + &"0".repeat(20) + "ffff7f000001" + "00000000";
        ensure!(found[7..10].iter().all(|answer| *answer == mapped), "{found:?}");
        for small in [&found[0], &found[5], &found[6], &found[12]] {
            ensure!(small.len() < 4, "an errno, not an answer: {found:?}");
        }
        ensure!(
            found[10] == "01000000" && found[11] == "01000000",
            "SO_TYPE is untouched: {found:?}"
        );

        let found = accept("v6", "client", &format!("[{}]:80", vip("vip6")?))?;
        let v6 = "0a001f90".to_owned() + "00000000" + &"0".repeat(31) + "1" + "00000000";
        ensure!(found[7..10].iter().all(|answer| *answer == v6), "{found:?}");
        ensure!(
            found[..5].iter().all(|answer| answer.len() < 4),
            "SOL_IP has no room for it: {found:?}"
        );
        Ok(())
    });
}

#[test]
fn without_anybody_to_ask_request_rules_deny_and_connection_rules_hold() {
    lab_test("l7-none", |lab| {
        lab.daemon()?;
        let more = [
            mesh(),
            resources::tcp_route("web-port", &[8080]),
            resources::allow("friend-web", "friend", "web", ("TCPRoute", "web-port")),
            resources::allow("friend-web-get", "friend", "web", ("HTTPRouteGroup", "get")),
            resources::service_policy("web", &["l7: {mode: none}"]),
            // By way of `front` nobody sees the requests to `api`.
            resources::allow("friend-api", "friend", "api", ("HTTPRouteGroup", "get")),
            resources::service("front", 80, "http"),
            resources::split("front", "front", &[("api", 1)]),
            resources::service_policy("front", &["l7: {mode: none}"]),
            "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: client}\n".to_owned(),
        ];
        lab.resource("mesh.yaml", &more.concat())?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        poll::until("friend to be allowed to connect", || {
            let answer = lab.run("friend").curl_with(&["-X", "POST"], "http://web/")?;
            ensure!(
                answer.http == 200,
                "its rule about connections allows any request: {answer:?}"
            );
            Ok(())
        })?;
        for url in ["http://web/", "http://127.0.0.1:8080/", "http://[::1]:8080/"] {
            let answer = lab.run("client").curl(url)?;
            ensure!(answer.code == curl::COULD_NOT_CONNECT, "{url}: {answer:?}");
        }
        let _api = lab.nginx(Nginx::service("api").port(80, 8083))?;
        poll::until("api to be served by our proxy", || {
            let answer = lab.run("friend").curl("http://api/")?;
            ensure!(answer.http == 200, "{answer:?}");
            Ok(())
        })?;
        let answer = lab.run("friend").curl("http://front/")?;
        ensure!(answer.code == curl::COULD_NOT_CONNECT, "{answer:?}");
        let flow = lab.flow("the denial by way of front", |flow| {
            flow["verdict"] == "deny" && flow["destination"]["service"] == "front" && flow["errno"] == 1
        })?;
        ensure!(flow["rule"]["name"] == "friend-api", "{flow}");
        let target = lab
            .weft(["get", "TrafficTarget", "client-web", "-o", "json"])?
            .ok()?
            .json()?;
        let target = &target["items"][0]["status"];
        ensure!(target["state"] == "NotEnforced", "{target}");

        lab.resource("mesh.yaml", &mesh())?;
        poll::until("our proxy to judge", || {
            let answer = lab.run("client").curl("http://web/")?;
            ensure!(answer.http == 200, "{answer:?}");
            Ok(())
        })
    });
}
