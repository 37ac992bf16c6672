//! Weighted splits: per request where a port speaks HTTP, per connection elsewhere.

use anyhow::{Result, ensure};
use vm_test::{Lab, Nginx, Server, lab_test, poll, resources};

/// Requests that are counted.
const REQUESTS: usize = 1000;

fn versions(lab: &Lab, app: &str, weights: (u32, u32)) -> Result<[Server; 2]> {
    let services = ["web", "web-v1", "web-v2"]
        .map(|name| resources::service(name, 80, app))
        .concat();
    let split = resources::split("canary", "web", &[("web-v1", weights.0), ("web-v2", weights.1)]);
    lab.resource("split.yaml", &format!("{services}{split}"))?;
    let v1 = lab.nginx(Nginx::service("web-v1").port(80, 8081).says("v1"))?;
    let v2 = lab.nginx(Nginx::service("web-v2").port(80, 8082).says("v2"))?;
    poll::until("the split to answer", || {
        let answer = lab.run("client").curl("http://web/")?;
        ensure!(answer.http == 200, "{answer:?}");
        Ok(())
    })?;
    Ok([v1, v2])
}

/// How many of [`REQUESTS`] requests v2 answered; none may fail.
fn share_of_v2(lab: &Lab, flags: &[&str]) -> Result<usize> {
    let answer = lab
        .run("client")
        .curl_with(flags, &format!("http://web/?[1-{REQUESTS}]"))?;
    let count = |version: &str| answer.body.lines().filter(|line| *line == version).count();
    let (v1, v2) = (count("v1"), count("v2"));
    ensure!(
        answer.code == 0 && v1 + v2 == REQUESTS,
        "{v1} + {v2} of {REQUESTS} answered: {answer:?}"
    );
    Ok(v2)
}

#[test]
fn on_an_http_port_the_requests_of_one_connection_are_split() {
    lab_test("split-http", |lab| {
        lab.daemon()?;
        let _servers = versions(lab, "http", (90, 10))?;
        let v2 = share_of_v2(lab, &[])?;
        // 100 expected, standard deviation below 9.5: five of them.
        ensure!(
            (52..=148).contains(&v2),
            "{v2} of {REQUESTS} went to the version of 10 %"
        );
        Ok(())
    });
}

#[test]
fn on_an_opaque_port_connections_are_split() {
    lab_test("split-tcp", |lab| {
        lab.daemon()?;
        let _servers = versions(lab, "tcp", (70, 30))?;
        let v2 = share_of_v2(lab, &["-H", "Connection: close"])?;
        // 300 expected, standard deviation below 14.5: five of them.
        ensure!(
            (227..=373).contains(&v2),
            "{v2} of {REQUESTS} went to the version of 30 %"
        );
        let one = share_of_v2(lab, &[])?;
        ensure!(
            one == 0 || one == REQUESTS,
            "one connection stays with one version: {one}"
        );
        Ok(())
    });
}

#[test]
fn weights_all_zero_are_no_backend_and_never_an_even_split() {
    lab_test("split-zero", |lab| {
        lab.daemon()?;
        let _servers = versions(lab, "http", (1, 1))?;
        let split = resources::split("canary", "web", &[("web-v1", 0), ("web-v2", 0)]);
        let services = ["web", "web-v1", "web-v2"]
            .map(|name| resources::service(name, 80, "http"))
            .concat();
        lab.resource("split.yaml", &format!("{services}{split}"))?;
        poll::until("no backend to answer", || {
            let answer = lab.run("client").curl("http://web/")?;
            ensure!(
                answer.http == 500 && answer.body.contains("canary"),
                "a 500 that names the split: {answer:?}"
            );
            Ok(())
        })
    });
}

#[test]
fn a_missing_backend_gets_no_traffic_and_the_rest_keeps_its_share() {
    lab_test("split-missing", |lab| {
        lab.daemon()?;
        let services = ["web", "web-v1"]
            .map(|name| resources::service(name, 80, "http"))
            .concat();
        let split = resources::split("canary", "web", &[("web-v1", 50), ("web-v9", 50)]);
        lab.resource("split.yaml", &format!("{services}{split}"))?;
        let _v1 = lab.nginx(Nginx::service("web-v1").port(80, 8081).says("v1"))?;
        poll::until("the split to be Pending", || {
            let objects = lab.weft(["get", "TrafficSplit", "-o", "json"])?.ok()?.stdout;
            ensure!(objects.to_lowercase().contains("pending"), "{objects}");
            Ok(())
        })?;
        let answer = lab.run("client").curl("http://web/?[1-50]")?;
        let elsewhere = answer.body.lines().filter(|line| line.starts_with("hello")).count();
        ensure!(elsewhere == 0, "{answer:?}");
        Ok(())
    });
}
