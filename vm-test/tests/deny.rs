//! L4 denial in the kernel: at once, with a reason, whatever the way.

use anyhow::ensure;
use vm_test::{EVERY_ADDRESS, Nginx, curl, lab_test, poll, resources};

/// How often a policy goes back and forth under load.
const FLIPS: usize = 10;
/// `EPERM`.
const EPERM: i64 = 1;

#[test]
fn of_two_clients_one_is_allowed_and_one_is_denied_with_the_rule_named() {
    lab_test("two-clients", |lab| {
        let route = resources::tcp_route("web-port", &[8080]);
        let target = resources::allow("friend-may", "friend", "web", ("TCPRoute", "web-port"));
        lab.resource("access.yaml", &format!("{}{route}{target}", resources::DENY))?;
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        poll::until("friend to be allowed", || {
            let friend = lab.run("friend").curl("http://web/")?;
            ensure!((friend.code, friend.http) == (0, 200), "{friend:?}");
            Ok(())
        })?;
        let stranger = lab.run("stranger").curl("http://web/")?;
        ensure!(stranger.code == curl::COULD_NOT_CONNECT, "{stranger:?}");
        ensure!(stranger.told.contains("Operation not permitted"), "{}", stranger.told);
        lab.flow("the denial with its errno", |flow| {
            flow["verdict"] == "deny"
                && flow["source"]["service"] == "stranger"
                && flow["rule"]["kind"] == "MeshConfig"
                && flow["errno"] == EPERM
                && flow["destination"]["port"].is_u64()
        })?;
        lab.flow("the allowed connection with its rule", |flow| {
            flow["verdict"] == "allow"
                && flow["source"]["service"] == "friend"
                && flow["rule"]["kind"] == "TrafficTarget"
                && flow["rule"]["name"] == "friend-may"
        })?;
        Ok(())
    });
}

#[test]
fn the_account_decides_and_not_the_service_name() {
    lab_test("account", |lab| {
        let route = resources::tcp_route("web-port", &[8080]);
        let target = resources::allow("reader-may", "reader", "web", ("TCPRoute", "web-port"));
        lab.resource("access.yaml", &format!("{}{route}{target}", resources::DENY))?;
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        poll::until("account reader to be allowed", || {
            let answer = lab.run("client").account("reader").curl("http://web/")?;
            ensure!(answer.http == 200, "{answer:?}");
            Ok(())
        })?;
        let other = lab.run("client").account("writer").curl("http://web/")?;
        ensure!(other.code == curl::COULD_NOT_CONNECT, "{other:?}");
        Ok(())
    });
}

#[test]
fn every_address_of_the_endpoint_meets_the_same_verdict() {
    lab_test("endpoint", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        lab.resource("mesh.yaml", resources::DENY)?;
        poll::until("the mesh to deny", || {
            let answer = lab.run("stranger").curl("http://web/")?;
            ensure!(answer.code == curl::COULD_NOT_CONNECT, "{answer:?}");
            Ok(())
        })?;
        for address in EVERY_ADDRESS {
            let address = format!("{address}:8080");
            let output = lab
                .run("stranger")
                .output([lab.traffic()?, "connect".into(), address.clone()])?
                .exits(1)?;
            ensure!(output.json()?["errno"] == EPERM, "{address}: {}", output.stdout);
        }
        Ok(())
    });
}

#[test]
fn a_tcp_route_allows_its_port_and_no_other() {
    lab_test("ports", |lab| {
        let route = resources::tcp_route("one-port", &[8081]);
        let target = resources::allow("client-may", "client", "web", ("TCPRoute", "one-port"));
        lab.resource("access.yaml", &format!("{}{route}{target}", resources::DENY))?;
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(81, 8081).port(82, 8082))?;
        poll::until("port 81 to be allowed", || {
            let answer = lab.run("client").curl("http://web:81/")?;
            ensure!(answer.http == 200, "{answer:?}");
            Ok(())
        })?;
        let other = lab.run("client").curl("http://web:82/")?;
        ensure!(other.code == curl::COULD_NOT_CONNECT, "{other:?}");
        Ok(())
    });
}

#[test]
fn explain_says_what_the_kernel_does() {
    lab_test("explain", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        lab.resource("mesh.yaml", resources::DENY)?;
        let ask = [
            "explain",
            "--from",
            "default/client",
            "--to",
            "web",
            "--port",
            "80",
            "-o",
            "json",
        ];
        poll::until("explain to name the MeshConfig", || {
            let said = lab.weft(ask)?.ok()?.stdout;
            ensure!(said.contains("MeshConfig") && said.contains("deny"), "{said}");
            Ok(())
        })?;
        ensure!(
            lab.run("client").curl("http://web/")?.code == curl::COULD_NOT_CONNECT,
            "as explained"
        );
        Ok(())
    });
}

#[test]
fn every_denial_names_its_rule_also_while_the_policy_flips() {
    lab_test("flips", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let (traffic, client) = (lab.traffic()?, lab.run("client"));
        let script = format!("while :; do {traffic} connect web:80 > /dev/null; done");
        let _dialler = client.start(["sh", "-c", &script])?;
        let denials = || -> anyhow::Result<Vec<serde_json::Value>> {
            Ok(lab
                .flows()?
                .into_iter()
                .filter(|flow| flow["verdict"] == "deny")
                .collect())
        };
        for _ in 0..FLIPS {
            let before = denials()?.len();
            lab.resource("mesh.yaml", resources::DENY)?;
            poll::until("a denial under the new policy", || {
                ensure!(denials()?.len() > before, "{before} so far");
                Ok(())
            })?;
            lab.resource("mesh.yaml", resources::ALLOW)?;
            poll::until("a connection under the old policy", || {
                ensure!(client.curl("http://web/")?.http == 200, "still denied");
                Ok(())
            })?;
        }
        for denial in denials()? {
            ensure!(denial["rule"]["kind"] == "MeshConfig", "{denial}");
        }
        Ok(())
    });
}

#[test]
fn multipath_tcp_meets_the_same_verdict() {
    lab_test("mptcp", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let dial = || {
            lab.run("stranger")
                .output([lab.traffic()?, "connect-mptcp".into(), "127.0.0.1:8080".into()])
        };
        let open = dial()?.json()?;
        ensure!(open["ok"] == true, "nothing denies yet: {open}");
        lab.resource("mesh.yaml", resources::DENY)?;
        poll::until("the mesh to deny", || {
            let denied = dial()?.json()?;
            ensure!(denied["errno"] == EPERM, "{denied}");
            Ok(())
        })
    });
}

#[test]
fn no_workload_joins_the_proxys_port() {
    lab_test("join", |lab| {
        lab.daemon()?;
        for port in ["127.0.0.1:15001", "[::1]:15001"] {
            let told = lab
                .run("thief")
                .output([lab.traffic()?, "join".into(), port.into()])?
                .json()?;
            ensure!(told["errno"] == EPERM, "{port}: {told}");
        }
        Ok(())
    });
}
