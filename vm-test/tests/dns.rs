//! Names: by glibc, by a static musl client, and question by question over UDP and TCP.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{Lab, Nginx, census, lab_test, musl, poll};

/// An answer that waits for nobody: well below the resolver's timeout of five seconds.
const AT_ONCE: Duration = Duration::from_secs(1);

/// All the names `web` of namespace `default` has.
const NAMES: [&str; 3] = ["web", "web.default", "web.default.mesh"];

/// Asks the machine's resolver, as captured workloads do, and returns `rcode` and `answers`.
fn ask(lab: &Lab, name: &str, kind: &str, transport: &str) -> Result<Value> {
    let server = resolver()?;
    let words = [
        lab.traffic()?,
        "dns".into(),
        transport.into(),
        server,
        name.into(),
        kind.into(),
    ];
    lab.run("client").output(words)?.ok()?.json()
}

/// The first nameserver of this machine: what a captured program sends its questions to.
fn resolver() -> Result<String> {
    let text = std::fs::read_to_string("/etc/resolv.conf").context("read /etc/resolv.conf")?;
    let server = text
        .lines()
        .find_map(|line| line.strip_prefix("nameserver "))
        .unwrap_or("127.0.0.1")
        .trim();
    Ok(if server.contains(':') {
        format!("[{server}]:53")
    } else {
        format!("{server}:53")
    })
}

/// `--no-addrconfig`: a lab has loopback addresses only, for which glibc else asks no AAAA.
#[test]
fn glibc_resolves_every_name_of_a_service_to_one_virtual_ip_a_family() {
    lab_test("glibc", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        for (database, prefix) in [("ahostsv4", "240.240."), ("ahostsv6", "2001:2:")] {
            let mut seen = Vec::new();
            for name in NAMES {
                let output = lab
                    .run("client")
                    .output(["getent", "--no-addrconfig", database, name])?
                    .ok()?;
                let address = output
                    .stdout
                    .split_whitespace()
                    .next()
                    .context("an address")?
                    .to_owned();
                ensure!(address.starts_with(prefix), "{name}: {}", output.stdout);
                seen.push(address);
            }
            ensure!(seen.iter().all(|address| *address == seen[0]), "{seen:?}");
        }
        Ok(())
    });
}

#[test]
fn a_static_musl_client_resolves_the_same() {
    lab_test("musl", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let resolve = musl::resolver(lab)?;
        for (family, prefix) in [("4", "240.240."), ("6", "2001:2:")] {
            for name in NAMES {
                let output = lab.run("client").output([resolve.as_str(), name, family])?.ok()?;
                ensure!(output.stdout.starts_with(prefix), "{name}: {}", output.stdout);
            }
        }
        let output = lab.run("client").output([resolve.as_str(), "web"])?.ok()?;
        ensure!(output.stdout.lines().count() == 2, "both families: {}", output.stdout);
        Ok(())
    });
}

#[test]
fn questions_are_answered_over_udp_and_tcp() {
    lab_test("questions", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        for transport in ["udp", "tcp"] {
            let a = ask(lab, "web.default", "A", transport)?;
            ensure!(
                a["rcode"] == 0 && a["answers"][0].as_str().is_some_and(|ip| ip.starts_with("240.240.")),
                "{a}"
            );
            let aaaa = ask(lab, "web.default", "AAAA", transport)?;
            ensure!(
                aaaa["answers"][0].as_str().is_some_and(|ip| ip.starts_with("2001:2:")),
                "{aaaa}"
            );
            let upper = ask(lab, "WEB.Default", "A", transport)?;
            ensure!(upper["answers"] == a["answers"], "names have no case: {upper}");
            let mx = ask(lab, "web.default", "MX", transport)?;
            ensure!(
                mx["rcode"] == 0 && mx["answers"] == Value::Array(Vec::new()),
                "NOERROR without data: {mx}"
            );
        }
        Ok(())
    });
}

#[test]
fn an_unknown_name_of_the_mesh_is_nxdomain_at_once() {
    lab_test("nxdomain", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let answer = ask(lab, "nothing.default.mesh", "A", "udp")?;
        ensure!(answer["rcode"] == 3, "NXDOMAIN: {answer}");
        ensure!(
            answer["millis"]
                .as_u64()
                .is_some_and(|millis| millis < poll::scaled(AT_ONCE).as_millis() as u64),
            "{answer}"
        );
        Ok(())
    });
}

#[test]
fn a_foreign_name_is_servfail_within_a_second_where_no_resolver_is_reachable() {
    lab_test("servfail", |lab| {
        lab.daemon()?;
        // The lab has no way out.
        let answer = poll::until("an answer within a second", || {
            let answer = ask(lab, "www.example.org", "A", "udp")?;
            ensure!(
                answer["millis"]
                    .as_u64()
                    .is_some_and(|millis| millis < poll::scaled(AT_ONCE).as_millis() as u64),
                "{answer}"
            );
            Ok(answer)
        })?;
        ensure!(answer["rcode"] == 2, "SERVFAIL: {answer}");
        Ok(())
    });
}

#[test]
fn sorting_addresses_makes_no_flow_and_no_denial() {
    lab_test("sorting", |lab| {
        lab.daemon()?;
        lab.resource("mesh.yaml", vm_test::resources::DENY)?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        poll::until("the mesh to deny", || {
            let answer = lab.run("prober").curl("http://web/")?;
            ensure!(answer.code == vm_test::curl::COULD_NOT_CONNECT, "{answer:?}");
            Ok(())
        })?;
        // getaddrinfo connects a UDP socket to each address to sort them; nothing is sent.
        lab.run("sorter").output(["getent", "ahosts", "web"])?.ok()?;
        lab.flow("prober's denial", |flow| flow["source"]["service"] == "prober")?;
        let of_sorter = lab
            .flows()?
            .into_iter()
            .filter(|flow| flow["source"]["service"] == "sorter" && flow["destination"]["service"] == "web");
        ensure!(
            of_sorter.count() == 0,
            "looking up a name is no connection: {:?}",
            lab.flows()?
        );
        Ok(())
    });
}

#[test]
fn forwarded_questions_leave_no_port_behind_as_the_daemons() {
    lab_test("dns-ports", |lab| {
        lab.daemon()?;
        let ports = || census::entries(&lab.bpffs(), "listen");
        ask(lab, "www.example.org", "A", "udp")?;
        let before = ports()?;
        for number in 0..20 {
            ask(lab, &format!("n{number}.example.org"), "A", "udp")?;
        }
        poll::until("the ports to be given back", || {
            let now = ports()?;
            ensure!(now <= before, "{before} before, {now} now");
            Ok(())
        })
    });
}
