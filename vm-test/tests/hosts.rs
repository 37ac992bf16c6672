//! Several hosts, each with a daemon of its own or none: peers on other hosts are Workload files.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use serde_json::Value;
use vm_test::{Host, Hosts, Nginx, Remote, curl, hosts_test, need, poll, resources};

const WEB: Remote<'_> = Remote {
    service: "web",
    port: 80,
    target_port: 8080,
    account: "web",
    app: "http",
};

/// `EPERM`.
const EPERM: i64 = 1;

const FAMILIES: [&str; 2] = ["-4", "-6"];

fn url(address: IpAddr) -> String {
    format!("http://{}/", std::net::SocketAddr::new(address, WEB.target_port))
}

/// The service is known there and answers under `flags`.
fn answers(client: &Host, flags: &str) -> Result<curl::Answer> {
    poll::until("the service on the other host to answer", || {
        let answer = client.run("client").curl_with(&[flags], "http://web/")?;
        ensure!(answer.body == "hello from web\n", "{flags}: {answer:?}");
        Ok(answer)
    })
}

/// A connection to the web workload was established, as either host tells it: the accepting one knows no service.
fn is_open_of_web(flow: &Value) -> bool {
    flow["event"] == "open" && flow["destination"]["account"] == "web"
}

#[test]
fn hosts_reach_each_other_and_nothing_else() {
    hosts_test("hosts", 3, |hosts| {
        let [a, b, c] = hosts.all();
        for (from, to) in [(a, b), (b, a), (c, a)] {
            let _server = to.traffic().and_then(|traffic| {
                let mut server = vm_test::Running::start(to.command([traffic, "serve-echo".into(), "[::]:7".into()]))?;
                server.line(1)?;
                Ok(server)
            })?;
            for address in to.addresses() {
                let target = std::net::SocketAddr::new(address, 7).to_string();
                from.outside([from.traffic()?, "connect".into(), target])?.ok()?;
            }
        }
        let routes = a.outside(["ip", "-o", "route"])?.ok()?.stdout;
        ensure!(!routes.contains("default"), "a way out: {routes}");
        Ok(())
    });
}

#[test]
fn a_client_reaches_a_service_on_another_host_by_name_over_both_families() {
    hosts_test("remote", 2, |hosts| {
        let [a, b] = hosts.all();
        b.daemon()?;
        a.daemon()?;
        a.knows(&WEB, b)?;
        let _web = b.nginx(Nginx::service("web").port(80, 8080))?;
        for (flags, vip) in FAMILIES.into_iter().zip(["240.240.", "2001:2:"]) {
            let answer = answers(a, flags)?;
            ensure!(answer.remote.starts_with(vip), "sees the virtual IP: {answer:?}");
        }
        let closed = |host: &Host, reporter: &str| {
            host.flow(&format!("the connection's end as told by its {reporter}"), |flow| {
                flow["event"] == "close" && flow["reporter"] == reporter && flow["destination"]["account"] == "web"
            })
        };
        let (dialled, accepted) = (closed(a, "source")?, closed(b, "destination")?);
        ensure!(dialled["source"]["service"] == "client", "{dialled}");
        ensure!(dialled["destination"]["service"] == "web", "{dialled}");
        for bytes in ["bytes_sent", "bytes_received"] {
            ensure!(
                dialled[bytes] == accepted[bytes] && dialled[bytes] != 0,
                "{dialled} and {accepted}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_denial_is_on_the_dialling_host_and_no_packet_leaves_it() {
    hosts_test("remote-deny", 2, |hosts| {
        let [a, b] = hosts.all();
        a.daemon()?;
        b.daemon()?;
        let route = resources::tcp_route("web-port", &[WEB.target_port]);
        let target = resources::allow("client-may", "client", WEB.account, ("TCPRoute", "web-port"));
        a.resource("access.yaml", &format!("{}{route}{target}", resources::DENY))?;
        a.knows(&WEB, b)?;
        let _web = b.nginx(Nginx::service("web").port(80, 8080))?;
        FAMILIES.into_iter().try_for_each(|flags| answers(a, flags).map(drop))?;

        let seen = |host: &Host| anyhow::Ok(host.flows()?.iter().filter(|flow| is_open_of_web(flow)).count());
        // The last of these may have yet to be told.
        let before = poll::until("both to be seen", || {
            let seen = seen(b)?;
            ensure!(seen >= FAMILIES.len(), "{seen} so far");
            Ok(seen)
        })?;
        for address in b.addresses() {
            let stranger = a.run("stranger").curl(&url(address))?;
            ensure!(stranger.code == curl::COULD_NOT_CONNECT, "its endpoint: {stranger:?}");
        }
        for flags in FAMILIES {
            let stranger = a.run("stranger").curl_with(&[flags], "http://web/")?;
            ensure!(stranger.code == curl::COULD_NOT_CONNECT, "{flags}: {stranger:?}");
            ensure!(stranger.told.contains("Operation not permitted"), "{}", stranger.told);
        }
        let denial = a.flow("the denial", |flow| {
            flow["verdict"] == "deny" && flow["source"]["service"] == "stranger"
        })?;
        ensure!(
            denial["errno"] == EPERM && denial["rule"]["kind"] == "MeshConfig",
            "{denial}"
        );
        // A further connection is seen behind them: whatever came before it has been told.
        answers(a, "-4")?;
        poll::until("the further connection to be seen", || {
            ensure!(seen(b)? > before, "{before} so far");
            Ok(())
        })?;
        ensure!(seen(b)? == before + 1, "{} and {before} before", seen(b)?);
        Ok(())
    });
}

#[test]
fn a_program_on_a_host_without_daemon_reaches_the_endpoint_and_is_seen() {
    hosts_test("remote-plain", 3, |hosts| {
        let [a, b, c] = hosts.all();
        a.daemon()?;
        b.daemon()?;
        a.knows(&WEB, b)?;
        let _web = b.nginx(Nginx::service("web").port(80, 8080))?;
        for address in b.addresses() {
            let answer = c.outside(["curl", "-s", "--max-time", "30", &url(address)])?.ok()?;
            ensure!(answer.stdout == "hello from web\n", "{address}: {}", answer.stdout);
        }
        b.flow("the plain client", |flow| {
            is_open_of_web(flow) && flow["source"]["service"].is_null()
        })?;
        Ok(())
    });
}

#[test]
fn a_workload_that_moves_takes_new_connections_with_it() {
    hosts_test("moves", 3, |hosts| {
        let [a, b, c] = hosts.all();
        let servers = [b, c].map(|host| {
            let (traffic, name) = (host.traffic()?, host.name().to_string());
            let words = [traffic.as_str(), "serve-says", "0.0.0.0:7007", &name];
            let mut server = vm_test::Running::start(host.command(words))?;
            server.line(1)?;
            anyhow::Ok(server)
        });
        let _servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
        let on = |host: &Host| resources::workload("moving", "moving", "moving", &[host.v4().into()]);
        a.resource(
            "service.yaml",
            &resources::selecting_service("moving", (7, 7007), "tcp"),
        )?;
        a.resource("endpoint.yaml", &on(b))?;
        a.daemon_unasked(&[])?;
        let traffic = a.traffic()?;
        poll::until("the service to be known", || {
            a.run("client").output([traffic.as_str(), "connect", "moving:7"])?.ok()
        })?;
        let mut client = a.run("client").start([traffic.as_str(), "until-says", "moving:7"])?;
        client.line(1)?;
        for (number, host) in [b, c, b].into_iter().enumerate() {
            a.resource("endpoint.yaml", &on(host))?;
            client.say(&host.name().to_string())?;
            let told: Value = serde_json::from_str(&client.line(number + 2)?)?;
            ensure!(told["ok"] == true && told["failed"] == 0, "{told}");
        }
        Ok(())
    });
}

#[test]
fn nothing_is_left_of_hosts() -> Result<()> {
    if let Err(needs) = need::kernel() {
        need::skipped("hosts-leave-nothing", &needs);
        return Ok(());
    }
    let hosts = Hosts::new("gone", 2)?;
    let [a, b] = hosts.all();
    b.daemon()?;
    let _web = b.nginx(Nginx::service("web").port(80, 8080))?;
    let places: Vec<_> = [a, b]
        .into_iter()
        .flat_map(|host| [host.netns().path(), host.cgroup().to_path_buf(), host.work()])
        .chain([hosts.switch().path()])
        .collect();
    drop(hosts);
    for place in places {
        ensure!(!place.exists(), "{} is left", place.display());
    }
    Ok(())
}
