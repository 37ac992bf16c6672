//! tc on a device: what becomes of flows that no socket's own hooks speak for when policies change and packets come again.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use vm_test::{Actor, Host, Output, Running, census, curl, hosts_test, need, others::Place, poll, resources};

const DEVICE: &[&str] = &["--inbound", "netns", "--device", "eth0"];

/// One request of nobody's, which gives up soon.
fn from_outside(host: &Host, url: &str) -> Result<Output> {
    host.outside(["curl", "-s", "-o", "/dev/null", "--max-time", "3", url])
}

/// A program outside any mesh.
fn actor(host: &Host, ports: &[&str]) -> Result<Actor> {
    let traffic = host.traffic()?;
    let words = [&[traffic.as_str(), "actor"], ports].concat();
    Actor::new(Running::start(host.command(words))?)
}

/// Host b has a daemon that knows host a's addresses as account `peer`'s; host a has none.
fn peer(a: &Host, b: &Host) -> Result<Actor> {
    b.resource(
        "peer.yaml",
        &resources::workload("peer", "peer", "peer", &a.addresses()),
    )?;
    b.daemon_with(DEVICE)?;
    actor(a, &[])
}

/// Account `web`'s server on host b, which is outside the mesh: its address alone says whose it is.
fn outside_web(b: &Host) -> Result<Actor> {
    b.apply(&resources::workload("web", "web", "web", &b.addresses()))?;
    actor(b, &["8080"])
}

/// `peer` may connect to web, and nobody sees its requests.
fn any_request() -> String {
    let route = resources::tcp_route("web-port", &[8080]);
    let target = resources::allow("peer-may", "peer", "web", ("TCPRoute", "web-port"));
    format!("{}{route}{target}", resources::DENY)
}

/// `peer` may GET.
fn gets_only() -> String {
    let route = resources::route("get", "/", &["GET"]);
    let target = resources::allow("peer-gets", "peer", "web", ("HTTPRouteGroup", "get"));
    format!("{}{route}{target}", resources::DENY)
}

/// Its server, over IPv4 and IPv6.
fn webs(host: &Host) -> [SocketAddr; 2] {
    host.addresses().map(|ip| SocketAddr::new(ip, 8080))
}

fn ready(peer: &mut Actor, web: SocketAddr) -> Result<()> {
    poll::until("peer's GET to be answered", || {
        let told = peer.step(&format!("open ready tcp {web}"))?;
        ensure!(told["ok"] == true, "{told}");
        let told = peer.step("say ready GET")?;
        peer.step("close ready")?;
        ensure!(told["status"] == 200, "{told}");
        Ok(())
    })
}

#[test]
fn requests_on_a_connection_that_the_proxy_has_are_refused_and_not_left_hanging() {
    hosts_test("device-proxied", 2, |hosts| {
        let [a, b] = hosts.all();
        let mut peer = peer(a, b)?;
        let traffic = b.traffic()?;
        let web = b.run("web").port("80:8080");
        let _web = Actor::new(web.start([traffic.as_str(), "actor", "8080"])?)?;
        for web in webs(b) {
            b.apply(&gets_only())?;
            ready(&mut peer, web)?;
            ensure!(peer.step(&format!("open held tcp {web}"))?["ok"] == true, "open {web}");
            let told = peer.step("say held POST")?;
            ensure!(told["status"] == 403, "requests are seen, {web}: {told}");
            let told = peer.step("say held GET")?;
            ensure!(told["status"] == 200, "before, {web}: {told}");
            b.apply(&gets_only().replace("name: peer, namespace", "name: nobody, namespace"))?;
            let told = peer.step("say held GET")?;
            ensure!(told["status"] == 403, "after, {web}: {told}");
        }
        Ok(())
    });
}

#[test]
fn a_connection_that_the_proxy_would_have_to_have_now_is_cut() {
    hosts_test("device-cut", 2, |hosts| {
        let [a, b] = hosts.all();
        let mut peer = peer(a, b)?;
        let _web = outside_web(b)?;
        b.apply(&any_request())?;
        for web in webs(b) {
            ready(&mut peer, web)?;
            let told = peer.step(&format!("open {web} tcp {web}"))?;
            ensure!(told["ok"] == true, "open {web}: {told}");
            let told = peer.step(&format!("say {web} POST"))?;
            ensure!(told["status"] == 200, "before, {web}: {told}");
        }
        // The route stays where it is, allowing nobody.
        let nobody = any_request().replace("name: peer, namespace", "name: nobody, namespace");
        b.apply(&(nobody + gets_only().trim_start_matches(resources::DENY)))?;
        for web in webs(b) {
            peer.begin(&format!("say {web} POST"))?;
            b.flow("the cut", |flow| {
                flow["verdict"] == "deny"
                    && flow["source"]["account"] == "peer"
                    && flow["destination"]["address"] == web.ip().to_string()
                    && flow["reason"]
                        .as_str()
                        .is_some_and(|reason| reason.contains("denied now"))
            })?;
            let told = peer.end()?;
            ensure!(told["ok"] == false, "after, {web}: {told}");
            ready(&mut peer, web)?;
        }
        Ok(())
    });
}

#[test]
fn a_syn_that_comes_again_goes_to_the_proxy_again() {
    hosts_test("device-syn", 2, |hosts| {
        let [a, b] = hosts.all();
        let mut peer = peer(a, b)?;
        let _web = outside_web(b)?;
        b.apply(&gets_only())?;
        let begun = || -> Result<usize> {
            let flows = b.flows()?;
            Ok(flows
                .iter()
                .filter(|flow| {
                    flow["event"] == "open" && flow["reporter"] == "device" && flow["destination"]["port"] == 8080
                })
                .count())
        };
        for (from, web) in a.addresses().into_iter().zip(webs(b)) {
            ready(&mut peer, web)?;
            let before = begun()?;
            // No answer to its first SYN finds a way back.
            let hole = |verb: &str| -> Result<()> {
                let from = from.to_string();
                b.outside(["ip", "route", verb, "blackhole", &from])?.ok().map(drop)
            };
            hole("add")?;
            peer.begin(&format!("open {web} tcp {web}"))?;
            poll::until("its SYN to have come", || {
                let now = begun()?;
                ensure!(now > before, "{now} flows, {before} before");
                Ok(())
            })?;
            hole("del")?;
            let told = peer.end()?;
            ensure!(told["ok"] == true, "its next SYN is answered, {web}: {told}");
            let told = peer.step(&format!("say {web} POST"))?;
            ensure!(told["ok"] == true, "and its request, {web}: {told}");
            b.flow("the request, seen by the proxy", |flow| {
                flow["event"] == "request"
                    && flow["l7"]["method"] == "POST"
                    && flow["destination"]["address"] == web.ip().to_string()
            })?;
        }
        Ok(())
    });
}

#[test]
fn without_a_daemon_what_it_would_have_to_look_at_gets_through_only_where_that_is_declared() {
    hosts_test("device-death", 2, |hosts| {
        let [a, b] = hosts.all();
        let mut peer = peer(a, b)?;
        let _web = outside_web(b)?;
        b.apply(&(gets_only() + &resources::selecting_service("web", (80, 8080), "http")))?;
        let mut killed = |code: i32, what: &str| -> Result<()> {
            for web in webs(b) {
                ready(&mut peer, web)?;
            }
            b.kill9()?;
            for web in webs(b) {
                let told = from_outside(a, &format!("http://{web}/"))?;
                ensure!(told.code == code, "{what}: {told:?}");
            }
            b.daemon_with(DEVICE)
        };
        killed(curl::TIMED_OUT, "nothing declared")?;
        b.apply(&resources::service_policy("web", &["failureMode: open"]))?;
        killed(0, "open")
    });
}

#[test]
fn a_connection_that_ended_leaves_no_flow_behind() {
    hosts_test("device-flows", 2, |hosts| {
        let [a, b] = hosts.all();
        let mut peer = peer(a, b)?;
        let _web = outside_web(b)?;
        b.apply(&any_request())?;
        ready(&mut peer, webs(b)[0])?;
        let traffic = b.traffic()?;
        let inside = b.run("inside").port("80:8081");
        let _inside = Actor::new(inside.start([traffic.as_str(), "actor", "8081"])?)?;
        let route = resources::tcp_route("inside-port", &[8081]);
        let allow = resources::allow("peer-inside", "peer", "inside", ("TCPRoute", "inside-port"));
        b.apply(&(route + &allow))?;
        for ip in b.addresses() {
            let target = SocketAddr::new(ip, 8081);
            for number in 0..20 {
                poll::until("a connection to a captured server", || {
                    let told = peer.step(&format!("open c{number} tcp {target}"))?;
                    ensure!(told["ok"] == true, "{told}");
                    let told = peer.step(&format!("say c{number} GET"))?;
                    peer.step(&format!("close c{number}"))?;
                    ensure!(told["status"] == 200, "{told}");
                    Ok(())
                })?;
            }
        }
        // Those to the server outside the mesh are tc's own, and stay until they are idle.
        poll::until("the flows to go", || {
            let flows = census::entries(&b.bpffs(), "flows")?;
            ensure!(flows < 20, "{flows} flows");
            Ok(())
        })
    });
}

/// What a device has of ours, whichever way: the kernel shows links by their pins alone, filters of the classic tc here.
fn filters(host: &Host, device: &str) -> Result<String> {
    let mut all = String::new();
    for side in ["ingress", "egress"] {
        all += &host
            .outside(["tc", "filter", "show", "dev", device, side])?
            .ok()?
            .stdout;
    }
    Ok(all)
}

#[test]
fn a_device_that_was_renamed_has_nothing_of_ours_after_uninstall() {
    hosts_test("device-renamed", 1, |hosts| {
        let [host] = hosts.all();
        host.daemon_with(DEVICE)?;
        let before = filters(host, "eth0")?;
        for words in [
            &["set", "eth0", "down"][..],
            &["set", "eth0", "name", "wan0"],
            &["set", "wan0", "up"],
        ] {
            host.outside([&["ip", "link"], words].concat())?.ok()?;
        }
        ensure!(filters(host, "wan0")? == before, "a name changes no filter: {before}");
        host.stop()?;
        host.uninstall()?;
        let after = filters(host, "wan0")?;
        ensure!(after.is_empty(), "before: {before}; after: {after}");
        Ok(())
    });
}

/// Host b's device alone judges who reaches the server there, which is outside the mesh.
fn judged_by_the_device(b: &Host) -> Result<Actor> {
    b.daemon_with(&["--device", "eth0"])?;
    let web = outside_web(b)?;
    b.apply(resources::DENY)?;
    Ok(web)
}

/// Nobody's connection to the server on host b does not come about.
fn refused(a: &Host, b: &Host) -> Result<()> {
    for web in webs(b) {
        let answer = from_outside(a, &format!("http://{web}/"))?;
        ensure!(
            [curl::TIMED_OUT, curl::COULD_NOT_CONNECT].contains(&answer.code),
            "it should be refused: {answer:?}"
        );
    }
    Ok(())
}

#[test]
fn a_program_of_somebody_else_that_was_there_first_switches_no_verdict_off() {
    hosts_test("device-others", 2, |hosts| {
        let [a, b] = hosts.all();
        let _other = b.other_program("eth0", Place::Usual)?;
        let _web = judged_by_the_device(b)?;
        refused(a, b)?;
        // Nor does one of the classic tc, which takes all packets for its own.
        let all = ["bpf", "bytecode", "1,6 0 0 4294967295,"];
        let _ = b.outside(["tc", "qdisc", "add", "dev", "eth0", "clsact"])?;
        b.outside(
            [
                &["tc", "filter", "add", "dev", "eth0", "ingress", "prio", "3"],
                &all[..],
            ]
            .concat(),
        )?
        .ok()?;
        refused(a, b)
    });
}

#[test]
fn a_program_that_somebody_puts_before_ours_is_told_by_doctor_and_is_behind_after_a_restart() {
    hosts_test("device-shadowed", 2, |hosts| {
        let [a, b] = hosts.all();
        let _web = judged_by_the_device(b)?;
        refused(a, b)?;
        let other = b.other_program("eth0", Place::First)?;
        let url = format!("http://{}/", webs(b)[0]);
        // Packets enough while doctor looks.
        let _load = Running::start(a.command([
            "sh",
            "-c",
            &format!("while :; do curl -s -m 1 -o /dev/null {url}; done"),
        ]))?;
        let doctor = || b.weft(["doctor", "-o", "json"])?.json();
        let is_told = || -> Result<()> {
            let problems = doctor()?["problems"].as_array().cloned().unwrap_or_default();
            let about = |problem: &&serde_json::Value| problem["what"] == "weft_tc_in@eth0";
            let told = problems.iter().find(about);
            ensure!(
                told.is_some_and(|problem| problem["why"].as_str().is_some_and(|why| why.contains("before it"))),
                "{problems:?}"
            );
            Ok(())
        };
        // The load may have yet to begin when doctor looks.
        poll::until("doctor to tell", is_told)?;
        b.stop()?;
        b.daemon_with(&["--device", "eth0"])?;
        if !other.by_tcx {
            need::absent(
                "a_program_that_somebody_puts_before_ours_is_told_by_doctor_and_is_behind_after_a_restart",
                "no TCX in this kernel, where a filter at priority 1 decides before ours",
                "weft doctor goes on telling of it",
            );
            return poll::until("doctor to tell again", is_told);
        }
        refused(a, b)?;
        let problems = doctor()?["problems"].clone();
        ensure!(problems.as_array().is_some_and(Vec::is_empty), "{problems}");
        drop(other);
        Ok(())
    });
}

#[test]
fn a_device_that_is_made_again_is_captured_again() {
    hosts_test("device-again", 2, |hosts| {
        let [a, b] = hosts.all();
        let _web = judged_by_the_device(b)?;
        refused(a, b)?;
        b.apply(resources::ALLOW)?;
        hosts.plug_again(b)?;
        for web in webs(b) {
            let url = format!("http://{web}/");
            poll::until("the new device to carry", || from_outside(a, &url)?.ok())?;
        }
        b.apply(resources::DENY)?;
        poll::until("the new device to be captured", || refused(a, b))?;
        ensure!(b.log().matches("captured again").count() == 1, "one line says so");
        Ok(())
    });
}
