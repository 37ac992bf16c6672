//! The accepting side: clients that nobody judged before, with and without sk_lookup and tc.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use vm_test::{Host, Lab, Nginx, Output, Remote, Running, curl, friends, hosts_test, lab_test, poll, resources};

const ECONNABORTED: i64 = 103;
/// An address of the endpoint that is not loopback (every lab has it).
const OWN_ADDRESS: &str = "http://10.77.0.5:8080/";

/// An uncaptured curl that should end with `code`.
fn outside(lab: &Lab, code: i32, url: &str) -> Result<Output> {
    lab.outside([
        "curl",
        "-s",
        "--max-time",
        &curl::max_time(code),
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        url,
    ])
}

fn is_refusal(flow: &serde_json::Value, account: &str) -> bool {
    flow["verdict"] == "deny"
        && flow["reporter"] == "destination"
        && flow["source"]["account"] == account
        && flow["destination"]["account"] == "web"
        && flow["rule"]["kind"] == "MeshConfig"
}

/// Takes the connect hooks away, as a foreign program that answers before them would.
fn without_connect_hooks(lab: &Lab) -> Result<()> {
    for name in ["connect4", "connect6"] {
        std::fs::remove_file(lab.bpffs().join("links").join(name))?;
    }
    Ok(())
}

#[test]
fn two_accounts_on_one_loopback_address_are_told_apart_by_the_accepting_side_alone() {
    for (name, flags, denied) in [
        ("accept-skb", &[][..], curl::TIMED_OUT),
        ("accept-lookup", &["--inbound", "netns"], curl::COULD_NOT_CONNECT),
    ] {
        lab_test(name, |lab| {
            lab.daemon_with(flags)?;
            lab.resource("access.yaml", &friends::rules())?;
            let _web = friends::web(lab)?;
            without_connect_hooks(lab)?;
            for address in ["http://127.0.0.1:8080/", "http://[::1]:8080/", OWN_ADDRESS] {
                let friend = lab.run("friend").curl(address)?;
                ensure!(friend.http == 200, "{address}: {friend:?}");
                let flags = ["--max-time", &curl::max_time(denied)];
                let stranger = lab.run("stranger").curl_with(&flags, address)?;
                ensure!(stranger.code == denied, "{address}: {stranger:?}");
            }
            lab.flow("the refusal of the accepting side", |flow| is_refusal(flow, "stranger"))?;
            Ok(())
        });
    }
}

#[test]
fn a_client_outside_the_mesh_is_dropped_at_the_socket_or_reset_before_it() {
    for (name, flags, denied) in [
        ("outside-skb", &[][..], curl::TIMED_OUT),
        ("outside-lookup", &["--inbound", "netns"], curl::COULD_NOT_CONNECT),
    ] {
        lab_test(name, |lab| {
            lab.daemon_with(flags)?;
            let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
            for address in ["http://127.0.0.1:8080/", "http://[::1]:8080/", OWN_ADDRESS] {
                ensure!(
                    outside(lab, 0, address)?.ok()?.stdout == "200",
                    "nothing denies yet: {address}"
                );
            }
            lab.resource("mesh.yaml", resources::DENY)?;
            poll::until("the mesh to deny", || {
                ensure!(outside(lab, denied, OWN_ADDRESS)?.code == denied, "still answered");
                Ok(())
            })?;
            for address in ["http://127.0.0.1:8080/", "http://[::1]:8080/"] {
                let output = outside(lab, denied, address)?;
                ensure!(output.code == denied, "{address}: {output:?}");
            }
            lab.flow("the refusal", |flow| is_refusal(flow, "unknown"))?;
            Ok(())
        });
    }
}

const WEB: Remote<'_> = Remote {
    service: "web",
    port: 80,
    target_port: 8080,
    account: "web",
    app: "http",
};

/// Host a runs no daemon; its addresses are known on b as a workload of account `peer`.
fn know_as_peer(a: &Host, b: &Host) -> Result<()> {
    b.resource(
        "peer.yaml",
        &resources::workload("peer", "peer", "peer", &a.addresses()),
    )
}

fn endpoints(host: &Host) -> impl Iterator<Item = String> {
    host.addresses()
        .into_iter()
        .map(|ip| format!("http://{}/", SocketAddr::new(ip, WEB.target_port)))
}

#[test]
fn a_remote_workload_is_known_by_its_address() {
    for (name, flags, denied) in [
        ("remote-skb", &[][..], curl::TIMED_OUT),
        ("remote-lookup", &["--inbound", "netns"], curl::COULD_NOT_CONNECT),
        ("remote-tc", &["--device", "eth0"], curl::TIMED_OUT),
    ] {
        hosts_test(name, 3, |hosts| {
            let [a, b, c] = hosts.all();
            know_as_peer(a, b)?;
            let route = resources::tcp_route("web-port", &[8080]);
            let target = resources::allow("peer-may", "peer", "web", ("TCPRoute", "web-port"));
            b.resource("access.yaml", &format!("{}{route}{target}", resources::DENY))?;
            b.daemon_with(flags)?;
            let _web = b.nginx(Nginx::service("web").port(80, 8080))?;
            for url in endpoints(b) {
                poll::until("the peer to be allowed", || {
                    ensure!(outside(a, 0, &url)?.stdout == "200", "{url}");
                    Ok(())
                })?;
                let stranger = outside(c, denied, &url)?;
                ensure!(stranger.code == denied, "{url}: {stranger:?}");
            }
            b.flow("the peer's connection with its account and its rule", |flow| {
                flow["event"] == "open"
                    && flow["source"]["account"] == "peer"
                    && flow["destination"]["account"] == "web"
                    && flow["rule"]["name"] == "peer-may"
            })?;
            b.flow("the stranger's refusal", |flow| {
                flow["verdict"] == "deny"
                    && flow["source"]["account"] == "unknown"
                    && flow["destination"]["account"] == "web"
            })?;
            Ok(())
        });
    }
}

#[test]
fn requests_of_clients_outside_are_looked_at_where_inbound_capture_is_on() {
    hosts_test("inbound-l7", 2, |hosts| {
        let [a, b] = hosts.all();
        b.daemon_with(&["--inbound", "netns"])?;
        know_as_peer(a, b)?;
        let route = resources::route("get", "/", &["GET"]);
        let target = resources::allow("peer-gets", "peer", "web", ("HTTPRouteGroup", "get"));
        b.resource("access.yaml", &format!("{}{route}{target}", resources::DENY))?;
        let _web = b.nginx(Nginx::service("web").port(80, 8080))?;
        for url in endpoints(b) {
            poll::until("GET to be allowed and POST to be denied", || {
                let answer = outside(a, 0, &url)?;
                ensure!(answer.stdout == "200", "{url}: {answer:?}");
                let words = [
                    "curl",
                    "-s",
                    "-o",
                    "/dev/null",
                    "-w",
                    "%{http_code}",
                    "--max-time",
                    &curl::max_time(0),
                    "-X",
                    "POST",
                    &url,
                ];
                let post = a.outside(words)?.ok()?;
                ensure!(post.stdout == "403", "{url}: {post:?}");
                Ok(())
            })?;
        }
        b.flow("the request with who asked", |flow| {
            flow["event"] == "request" && flow["source"]["account"] == "peer" && flow["l7"]["status"] == 403
        })?;
        Ok(())
    });
}

#[test]
fn without_inbound_capture_a_rule_on_requests_lets_no_client_outside_past() {
    hosts_test("inbound-off", 2, |hosts| {
        let [a, b] = hosts.all();
        b.daemon()?;
        know_as_peer(a, b)?;
        let route = resources::route("get", "/", &["GET"]);
        let target = resources::allow("peer-gets", "peer", "web", ("HTTPRouteGroup", "get"));
        b.resource("access.yaml", &format!("{}{route}{target}", resources::DENY))?;
        let _web = b.nginx(Nginx::service("web").port(80, 8080))?;
        let url = endpoints(b).next().unwrap_or_default();
        poll::until("the rule to be in force", || {
            ensure!(
                outside(a, curl::TIMED_OUT, &url)?.code == curl::TIMED_OUT,
                "not dropped"
            );
            Ok(())
        })?;
        b.flow("what could not be looked at", |flow| {
            flow["verdict"] == "deny"
                && flow["reason"]
                    .as_str()
                    .is_some_and(|reason| reason.contains("--inbound"))
        })?;
        Ok(())
    });
}

#[test]
fn what_no_connect_hook_saw_is_judged_when_it_leaves_the_machine() {
    hosts_test("undecided", 2, |hosts| {
        let [a, b] = hosts.all();
        let traffic = a.traffic()?;
        let server = format!("{}:7007", b.v4());
        let mut echo = Running::start(b.command([traffic.as_str(), "serve-echo", "0.0.0.0:7007"]))?;
        echo.line(1)?;
        a.daemon()?;
        without_connect_hooks(a)?;
        let connect = || a.run("client").output([traffic.as_str(), "connect", server.as_str()]);
        ensure!(connect()?.code == 0, "nothing denies yet");
        a.apply(
            "apiVersion: weft.mesh/v1alpha1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec: {outboundDefault: deny}\n",
        )?;
        let denied = connect()?.exits(1)?;
        ensure!(denied.json()?["errno"] == ECONNABORTED, "{denied:?}");
        a.flow("the denial with its rule", |flow| {
            flow["verdict"] == "deny" && flow["source"]["account"] == "client" && flow["rule"]["kind"] == "MeshConfig"
        })?;
        Ok(())
    });
}
