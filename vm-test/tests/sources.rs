//! Servers in pods see their clients' addresses, also through the proxy; and what that needs goes again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{Lab, Nginx, Pod, Pods, Running, curl, lab_test, poll, process::Output, resources};

/// Ports of the proxy's connections with a client's address (`weft_proxy::limits::SOURCE_PORTS`): who comes from another one
/// went past the proxy.
const PROXYS: RangeInclusive<u16> = 20_000..=32_767;

/// A pod that is captured and two clients elsewhere, which account friend has; friend's requests are looked at.
struct Mesh<'lab> {
    lab: &'lab Lab,
    web: Pod<'lab>,
    clients: [Pod<'lab>; 2],
}

// === impl Mesh ===

impl<'lab> Mesh<'lab> {
    fn new(lab: &'lab Lab) -> Result<Self> {
        let pods = Pods::new(lab)?;
        let [web, first, second] = [pods.pod(3)?, pods.pod(5)?, pods.pod(6)?];
        lab.resource("web.yaml", &web.workload("web", "web"))?;
        let clients = [first, second];
        let yaml: Vec<String> = clients
            .iter()
            .map(|client| client.declared("friend", "friend"))
            .collect();
        lab.resource("clients.yaml", &yaml.concat())?;
        let yaml = [
            resources::DENY.to_owned(),
            resources::route("public", "/public", &["GET"]),
            resources::allow("friend-gets", "friend", "web", ("HTTPRouteGroup", "public")),
            resources::tcp_route("opaque", &[9000]),
            resources::allow("friend-talks", "friend", "web", ("TCPRoute", "opaque")),
        ];
        lab.resource("access.yaml", &yaml.concat())?;
        Ok(Self { lab, web, clients })
    }

    /// As nobody's workload: no hook runs where it dials.
    fn outside<'a>(&self, client: &Pod<'_>, words: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let words = words.into_iter().map(str::to_owned);
        client.enter().into_iter().chain(words).collect()
    }

    /// `curl`, all URLs on one connection.
    fn curl(&self, client: &Pod<'_>, urls: &[String]) -> Result<Output> {
        let flags = ["curl", "-sg", "--max-time", &curl::max_time(0), "-w", "%{http_code}\n"];
        let words = flags.into_iter().chain(urls.iter().map(String::as_str));
        self.lab.outside(self.outside(client, words))
    }

    fn url(&self, to: IpAddr, path: &str) -> String {
        format!("http://{}{path}", SocketAddr::new(to, 8080))
    }

    /// Requests are looked at where the server is.
    fn judged(&self) -> Result<()> {
        for to in self.web.addresses() {
            for (path, status) in [("/public", "200"), ("/admin", "403")] {
                poll::until("requests to be judged", || {
                    let answer = self.curl(&self.clients[0], &[self.url(to, path)])?;
                    ensure!(answer.stdout.ends_with(&format!("{status}\n")), "{path}: {answer:?}");
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    fn captured(&self) -> Result<()> {
        poll::until("the pod to be captured", || {
            let status = self.lab.status()?;
            let workloads = status["workloads"].as_array().context("workloads")?;
            let found = workloads.iter().find(|found| found["name"] == "default/p3");
            ensure!(found.is_some_and(|found| found["state"] == "captured"), "{status}");
            Ok(())
        })
    }

    /// Rules, the routes of our table, and the setting, in the server's namespace.
    fn namespace(&self) -> Result<String> {
        let script = "for f in -4 -6; do ip $f rule; ip $f route show table 15006 2>/dev/null; done; \
                      cat /proc/sys/net/ipv4/tcp_fwmark_accept";
        Ok(self.lab.outside(self.outside(&self.web, ["sh", "-c", script]))?.stdout)
    }

    /// One that our rule comes after.
    fn add_rule(&self, action: &str) -> Result<()> {
        let script = format!("for f in -4 -6; do ip $f rule add fwmark 0x77656674 priority 100 {action}; done");
        self.lab
            .outside(self.outside(&self.web, ["sh", "-c", &script]))?
            .ok()
            .map(drop)
    }

    /// What `weft status` says is missing there.
    fn degraded(&self) -> Result<String> {
        let text = self.lab.weft(["status"])?.ok()?.stdout;
        let path = self.web.path().display().to_string();
        let said = text
            .lines()
            .find(|line| line.starts_with("DEGRADED") && line.contains(&path));
        said.map(str::to_owned).with_context(|| text.clone())
    }

    fn is_prepared(&self) -> Result<()> {
        let state = self.namespace()?;
        let rules = state.matches("fwmark 0x77656674 lookup 15006").count();
        let routes = state.matches("local default dev lo").count();
        ensure!((rules, routes) == (2, 2) && state.ends_with("1\n"), "{state}");
        Ok(())
    }
}

#[test]
fn a_server_sees_its_clients_and_none_gets_anothers_connection() {
    lab_test("sources-http", |lab| {
        let mesh = Mesh::new(lab)?;
        lab.daemon()?;
        let says = "$remote_addr $remote_port $connection $http_x_forwarded_for";
        let _nginx = mesh.web.nginx(&Nginx::service("web").port(80, 8080).says(says))?;
        mesh.judged()?;
        // Whose each of nginx's connections was.
        let mut connections = BTreeMap::<String, BTreeSet<IpAddr>>::new();
        let mut requests = 0;
        for _ in 0..8 {
            for client in &mesh.clients {
                for (from, to) in client.addresses().into_iter().zip(mesh.web.addresses()) {
                    let urls = vec![mesh.url(to, "/public"); 3];
                    let answer = mesh.curl(client, &urls)?.ok()?;
                    for line in answer.stdout.lines().filter(|line| *line != "200") {
                        let words: Vec<&str> = line.split(' ').collect();
                        let [address, port, connection, forwarded] = words[..] else {
                            anyhow::bail!("{answer:?}");
                        };
                        let port: u16 = port.parse().context("a port")?;
                        ensure!(address.parse() == Ok(from) && PROXYS.contains(&port), "{from}: {line}");
                        ensure!(forwarded.parse() == Ok(from), "{from}: {line}");
                        connections.entry(connection.to_owned()).or_default().insert(from);
                        requests += 1;
                    }
                }
            }
        }
        ensure!(requests == 8 * 2 * 2 * 3, "{requests}");
        ensure!(connections.len() < requests, "connections are used again");
        ensure!(
            connections.values().all(|clients| clients.len() == 1),
            "{connections:?}"
        );
        let status = lab.status()?;
        ensure!(status["degraded"] == serde_json::json!([]), "{}", status["degraded"]);
        Ok(())
    });
}

#[test]
fn a_server_that_speaks_no_http_sees_its_clients() {
    lab_test("sources-opaque", |lab| {
        let mesh = Mesh::new(lab)?;
        lab.daemon()?;
        let traffic = lab.traffic()?;
        let mut server = mesh.web.start([&*traffic, "serve-peer", "[::]:9000"])?;
        server.line(1)?;
        mesh.captured()?;
        for client in &mesh.clients {
            for (from, to) in client.addresses().into_iter().zip(mesh.web.addresses()) {
                let target = SocketAddr::new(to, 9000).to_string();
                poll::until("the client to be let in and seen", || {
                    let words = mesh.outside(client, [&*traffic, "hold", &target]);
                    let mut held = Running::start(lab.command(words))?;
                    held.line(1)?;
                    held.say("who am I?")?;
                    let told: Value = serde_json::from_str(&held.line(2)?)?;
                    let reply = told["reply"].as_str().unwrap_or_default();
                    let seen: SocketAddr = reply.parse().with_context(|| format!("{from}: {told}"))?;
                    let (address, port) = (seen.ip().to_canonical(), seen.port());
                    ensure!(address == from && PROXYS.contains(&port), "{from}: {told}");
                    Ok(())
                })?;
            }
        }
        Ok(())
    });
}

#[test]
fn what_it_needs_is_taken_back_however_the_daemon_ends() {
    lab_test("sources-ends", |lab| {
        let mesh = Mesh::new(lab)?;
        let before = mesh.namespace()?;
        let prepared = |what: &str| poll::until(what, || mesh.is_prepared());
        let as_before = |what: &str| {
            poll::until(what, || {
                let state = mesh.namespace()?;
                ensure!(state == before, "before:\n{before}now:\n{state}");
                Ok(())
            })
        };
        lab.daemon()?;
        prepared("what clients' addresses need")?;
        // Somebody else's hand.
        let rules = "ip rule del fwmark 0x77656674; ip -6 route flush table 15006; \
                     echo 0 > /proc/sys/net/ipv4/tcp_fwmark_accept";
        lab.outside(mesh.outside(&mesh.web, ["sh", "-c", rules]))?.ok()?;
        prepared("it to be put there again")?;

        lab.remove_resource("web.yaml")?;
        as_before("the namespace to be left")?;
        lab.resource("web.yaml", &mesh.web.workload("web", "web"))?;
        prepared("the namespace to be entered again")?;

        lab.take_over(&[])?.ok()?;
        mesh.is_prepared().context("after the earlier daemon's end")?;
        lab.stop()?;
        ensure!(mesh.namespace()? == before, "after a clean end: {}", mesh.namespace()?);

        lab.daemon()?;
        prepared("the next daemon")?;
        lab.kill9()?;
        mesh.is_prepared().context("nobody took it back")?;
        lab.remove_resource("web.yaml")?;
        lab.daemon()?;
        as_before("the next daemon to take back what nobody wants")?;

        lab.resource("web.yaml", &mesh.web.workload("web", "web"))?;
        prepared("once more")?;
        lab.kill9()?;
        let told = lab.uninstall()?;
        ensure!(mesh.namespace()? == before, "{told:?}\n{}", mesh.namespace()?);
        let path = mesh.web.path().display().to_string();
        ensure!(told.stdout.contains(&path), "{told:?}");
        Ok(())
    });
}

#[test]
fn where_it_cannot_be_had_the_server_sees_its_own_address_and_that_is_said() {
    lab_test("sources-lost", |lab| {
        let mesh = Mesh::new(lab)?;
        // A rule before ours drops the answers.
        mesh.add_rule("unreachable")?;
        lab.daemon()?;
        let _nginx = mesh
            .web
            .nginx(&Nginx::service("web").port(80, 8080).says("$remote_addr"))?;
        mesh.judged()?;
        for to in mesh.web.addresses() {
            let answer = mesh.curl(&mesh.clients[0], &[mesh.url(to, "/public")])?;
            ensure!(answer.stdout == format!("{to}\n200\n"), "{answer:?}");
        }
        let said = mesh.degraded()?;
        ensure!(said.contains("V4") && said.contains("V6"), "{said}");
        let logged = lab.log().matches("do not see their clients' addresses").count();
        ensure!(logged == 1, "once in the log: {}", lab.log());
        // Once the reason is gone, new connections have their clients' addresses.
        let rules = "for f in -4 -6; do ip $f rule del priority 100; done";
        lab.outside(mesh.outside(&mesh.web, ["sh", "-c", rules]))?.ok()?;
        for (from, to) in mesh.clients[0].addresses().into_iter().zip(mesh.web.addresses()) {
            poll::until("the server to see its client", || {
                let answer = mesh.curl(&mesh.clients[0], &[mesh.url(to, "/public")])?;
                ensure!(answer.stdout == format!("{from}\n200\n"), "{answer:?}");
                Ok(())
            })?;
        }
        let status = lab.status()?;
        ensure!(status["degraded"] == serde_json::json!([]), "{}", status["degraded"]);
        Ok(())
    });
}

#[test]
fn a_connection_whose_answers_go_astray_is_made_again_without_its_clients_address() {
    lab_test("sources-astray", |lab| {
        let mesh = Mesh::new(lab)?;
        lab.daemon()?;
        let _nginx = mesh
            .web
            .nginx(&Nginx::service("web").port(80, 8080).says("$remote_addr"))?;
        mesh.judged()?;
        // To the clients, past the proxy; the self-test had nothing to find.
        mesh.add_rule("lookup main")?;
        let to = mesh.web.addresses()[0];
        let answer = mesh.curl(&mesh.clients[1], &[mesh.url(to, "/public")])?;
        ensure!(answer.stdout == format!("{to}\n200\n"), "{answer:?}");
        let said = mesh.degraded()?;
        let client = mesh.clients[1].v4().to_string();
        ensure!(said.contains(&client) && said.contains("timed out"), "{said}");
        Ok(())
    });
}
