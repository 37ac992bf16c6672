//! NetworkPolicy beside access rules, in the kernel: labels, both directions, address ranges, audit.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use vm_test::{Actor, Host, Lab, Nginx, Running, curl, hosts_test, lab_test, poll, resources};

const EPERM: i64 = 1;
const ECONNABORTED: i64 = 103;
const ECONNRESET: i64 = 104;
const ECONNREFUSED: i64 = 111;

fn policy(name: &str, annotations: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: {name}, namespace: default, annotations: {{{annotations}}}}}\nspec: {spec}\n"
    )
}

/// Only workloads of service `friend` may connect to those of `web`, and only to ports 8080 to 8083.
fn only_friends(annotations: &str) -> String {
    policy(
        "web-in",
        annotations,
        "{podSelector: {matchLabels: {weft.mesh/service: web}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: \
         {matchLabels: {weft.mesh/service: friend}}}], ports: [{port: 8080, endPort: 8083}]}]}",
    )
}

fn reached(lab: &Lab, account: &str, url: &str) -> Result<bool> {
    let answer = lab.run(account).curl(url)?;
    ensure!(
        answer.http == 200 || answer.code == curl::COULD_NOT_CONNECT,
        "{answer:?}"
    );
    Ok(answer.http == 200)
}

#[test]
fn labels_decide_beside_the_access_rules_and_the_denial_names_the_policy() {
    lab_test("network", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080).port(90, 8090))?;
        lab.resource("network.yaml", &only_friends(""))?;
        poll::until("strangers to be denied and friends not", || {
            ensure!(
                !reached(lab, "stranger", "http://web/")? && reached(lab, "friend", "http://web/")?,
                "not yet"
            );
            Ok(())
        })?;
        ensure!(
            !reached(lab, "friend", "http://web:90/")?,
            "another port than those allowed"
        );
        ensure!(
            !reached(lab, "stranger", "http://127.0.0.1:8080/")?,
            "the endpoint itself"
        );
        lab.flow("the denial with the policy", |flow| {
            flow["verdict"] == "deny"
                && flow["source"]["account"] == "stranger"
                && flow["rule"]["kind"] == "NetworkPolicy"
                && flow["rule"]["name"] == "web-in"
        })?;
        // Network AND identity: what one allows the other may deny.
        lab.resource("mesh.yaml", resources::DENY)?;
        poll::until("friends to be denied by the access default", || {
            ensure!(!reached(lab, "friend", "http://web/")?, "not yet");
            Ok(())
        })?;
        let route = resources::tcp_route("all-web", &[8080, 8090]);
        let grants = ["friend", "stranger"]
            .map(|account| resources::allow(account, account, "web", ("TCPRoute", "all-web")))
            .concat();
        lab.resource("access.yaml", &format!("{route}{grants}"))?;
        poll::until("friends to be allowed by both", || {
            ensure!(reached(lab, "friend", "http://web/")?, "not yet");
            Ok(())
        })?;
        ensure!(
            !reached(lab, "stranger", "http://web/")?,
            "access alone lets nobody past the network policy"
        );
        Ok(())
    });
}

#[test]
fn egress_is_the_senders_and_cuts_what_runs() {
    lab_test("network-egress", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let traffic = lab.traffic()?;
        poll::until("web to be reached", || {
            ensure!(reached(lab, "client", "http://web/")?, "not yet");
            Ok(())
        })?;
        let mut held = lab.run("client").start([traffic.as_str(), "hold", "127.0.0.1:8080"])?;
        held.line(1)?;
        let nothing = "{podSelector: {matchLabels: {weft.mesh/service: client}}, policyTypes: [Egress]}";
        lab.resource("network.yaml", &policy("client-out", "", nothing))?;
        poll::until("the client to be denied", || {
            ensure!(!reached(lab, "client", "http://web/")?, "not yet");
            Ok(())
        })?;
        ensure!(reached(lab, "other", "http://web/")?, "another sender is not isolated");
        held.say("GET / HTTP/1.0")?;
        let told: serde_json::Value = serde_json::from_str(&held.line(2)?)?;
        ensure!(told["ok"] == false && told["errno"].is_i64(), "cut: {told}");
        Ok(())
    });
}

#[test]
fn an_audited_policy_reports_and_denies_nothing() {
    lab_test("network-audit", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        lab.resource("network.yaml", &only_friends("weft.mesh/audit: 'true'"))?;
        lab.flow_while(
            "what would be denied",
            |flow| {
                flow["verdict"] == "audit"
                    && flow["source"]["account"] == "stranger"
                    && flow["rule"]["name"] == "web-in"
            },
            || {
                ensure!(reached(lab, "stranger", "http://web/")?, "denied under audit");
                Ok(())
            },
        )?;
        Ok(())
    });
}

#[test]
fn a_mesh_under_audit_reports_what_its_default_would_deny() {
    lab_test("audit", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        lab.resource(
            "mesh.yaml",
            &resources::DENY.replace("accessDefault: deny", "accessDefault: deny, enforcement: audit"),
        )?;
        lab.flow_while(
            "what would be denied",
            |flow| {
                flow["verdict"] == "audit"
                    && flow["source"]["account"] == "stranger"
                    && flow["rule"]["kind"] == "MeshConfig"
            },
            || {
                ensure!(reached(lab, "stranger", "http://web/")?, "denied under audit");
                Ok(())
            },
        )?;
        Ok(())
    });
}

/// The hosts' addresses of both families, as peers of a NetworkPolicy.
const SWITCH: &str = "{ipBlock: {cidr: 10.77.1.0/24}}, {ipBlock: {cidr: 'fd77::/64'}}";

/// The same without those of one host.
fn switch_without(host: &Host) -> String {
    format!(
        "{{ipBlock: {{cidr: 10.77.1.0/24, except: [{}/32]}}}}, {{ipBlock: {{cidr: 'fd77::/64', except: ['{}/128']}}}}",
        host.v4(),
        host.v6()
    )
}

#[test]
fn address_ranges_with_exceptions_tell_clients_outside_apart() {
    hosts_test("network-range", 3, |hosts| {
        let [a, b, c] = hosts.all();
        b.daemon_with(&["--inbound", "netns"])?;
        let _web = b.nginx(Nginx::service("web").port(80, 8080))?;
        let spec = format!(
            "{{podSelector: {{matchLabels: {{weft.mesh/service: web}}}}, ingress: [{{from: [{}]}}]}}",
            switch_without(c)
        );
        b.resource("network.yaml", &policy("web-in", "", &spec))?;
        for ip in b.addresses() {
            let url = format!("http://{}/", SocketAddr::new(ip, 8080));
            let ask = |host: &Host| {
                host.outside([
                    "curl",
                    "-s",
                    "--max-time",
                    &curl::max_time(0),
                    "-o",
                    "/dev/null",
                    "-w",
                    "%{http_code}",
                    &url,
                ])
            };
            poll::until("the excepted address to be denied", || {
                let answer = ask(c)?;
                ensure!(answer.code == curl::COULD_NOT_CONNECT, "{answer:?}");
                Ok(())
            })?;
            ensure!(ask(a)?.ok()?.stdout == "200", "an address of the range, {url}");
        }
        Ok(())
    });
}

/// The ranges that policies tell apart come and go: what is established is judged by those of now.
#[test]
fn a_range_that_is_new_judges_what_was_there_before_it() {
    hosts_test("network-new-range", 2, |hosts| {
        let [a, b] = hosts.all();
        b.daemon_with(&["--inbound", "netns"])?;
        let traffic = a.traffic()?;
        // Outside the mesh on host a, and two workloads on host b.
        let mut outside = Actor::new(Running::start(a.command([traffic.as_str(), "actor", "7007"]))?)?;
        let mut client = Actor::new(b.run("client").start([traffic.as_str(), "actor"])?)?;
        let _web = Actor::new(b.run("web").start([traffic.as_str(), "actor", "7008"])?)?;
        let apply = |ranges: &str| -> Result<()> {
            let select = |service: &str| format!("podSelector: {{matchLabels: {{weft.mesh/service: {service}}}}}");
            let egress = format!(
                "{{{}, policyTypes: [Egress], egress: [{{to: [{ranges}]}}]}}",
                select("client")
            );
            let ingress = format!(
                "{{{}, policyTypes: [Ingress], ingress: [{{from: [{ranges}]}}]}}",
                select("web")
            );
            b.apply(&(policy("out", "", &egress) + &policy("in", "", &ingress)))
        };
        let flows = || {
            let families = a.addresses().into_iter().zip(b.addresses());
            families.flat_map(|(out, back)| {
                let (out, back) = (SocketAddr::new(out, 7007), SocketAddr::new(back, 7008));
                [("tcp", out, back), ("udp", out, back)]
            })
        };
        for (transport, out, back) in flows() {
            for (actor, target) in [(&mut client, out), (&mut outside, back)] {
                let told = actor.step(&format!("open {transport}-{out} {transport} {target}"))?;
                ensure!(told["ok"] == true, "{target}: {told}");
                let told = actor.step(&format!("say {transport}-{out} GET"))?;
                ensure!(told["ok"] == true, "{target}: {told}");
            }
        }
        apply(SWITCH)?;
        for (transport, out, back) in flows() {
            for (actor, target) in [(&mut client, out), (&mut outside, back)] {
                let told = actor.step(&format!("say {transport}-{out} GET"))?;
                ensure!(told["ok"] == true, "in the range, {transport} to {target}: {told}");
            }
        }
        apply(&switch_without(a))?;
        for (transport, out, _) in flows() {
            let say = format!("say {transport}-{out} GET");
            let told = client.step(&say)?;
            let errno = if transport == "tcp" { ECONNABORTED } else { EPERM };
            ensure!(told["errno"] == errno, "excepted, {transport} to {out}: {told}");
            let told = outside.step(&say)?;
            let refused = match transport {
                "tcp" => told["errno"] == ECONNRESET || told["closed"] == true,
                _ => told["errno"] == ECONNREFUSED,
            };
            ensure!(refused, "excepted, {transport} beside {out}: {told}");
        }
        Ok(())
    });
}
