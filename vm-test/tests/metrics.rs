//! What an operator sees: Istio's metric names on :15020, health, and flows that read like a conversation.

use anyhow::{Context, Result, ensure};
use vm_test::{Lab, Nginx, lab_test, poll, resources};

fn scrape(lab: &Lab, path: &str) -> Result<String> {
    Ok(lab
        .outside(["curl", "-sS", "--fail", &format!("http://127.0.0.1:15020{path}")])?
        .ok()?
        .stdout)
}

#[test]
fn requests_and_kernel_edges_are_metrics_under_istios_names() {
    lab_test("metrics", |lab| {
        let route = resources::route("public", "/public", &["GET"]);
        let port = resources::tcp_route("raw-port", &[8081]);
        let rules = [
            resources::allow("client-web", "client", "web", ("HTTPRouteGroup", "public")),
            resources::allow("client-raw", "client", "raw", ("TCPRoute", "raw-port")),
        ];
        lab.resource(
            "mesh.yaml",
            &format!("{}{route}{port}{}", resources::DENY, rules.concat()),
        )?;
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let _raw = lab.nginx(Nginx::service("raw").port(80, 8081))?;
        poll::until("both to answer", || {
            for url in ["http://web/public", "http://raw/"] {
                let answer = lab.run("client").curl(url)?;
                ensure!(answer.http == 200, "{answer:?}");
            }
            Ok(())
        })?;
        lab.run("client").curl("http://web/admin")?;
        poll::until("the metrics to tell of all of it", || {
            let text = scrape(lab, "/metrics")?;
            let has = |name: &str, labels: &[&str]| {
                text.lines()
                    .any(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)))
            };
            ensure!(
                has("istio_requests_total", &["response_code=\"200\"", "client", "web"]),
                "{text}"
            );
            ensure!(has("istio_requests_total", &["response_code=\"403\""]), "{text}");
            ensure!(has("istio_request_duration_milliseconds", &[]), "{text}");
            ensure!(has("istio_tcp_connections_opened_total", &["client", "raw"]), "{text}");
            ensure!(
                has("istio_tcp_sent_bytes_total", &[]) && has("istio_tcp_received_bytes_total", &[]),
                "{text}"
            );
            Ok(())
        })
    });
}

fn publications(lab: &Lab) -> Result<u64> {
    let text = scrape(lab, "/metrics")?;
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("weft_publications_total "));
    count.context("a count of publications")?.parse().context("a number")
}

#[test]
fn what_a_start_finds_is_compiled_once() {
    lab_test("compiled-once", |lab| {
        lab.resource("mesh.yaml", resources::DENY)?;
        lab.resource("web.yaml", &resources::service("web", 80, "http"))?;
        let in_force = |name: &str| {
            poll::until("the service to be in force", || {
                let services = lab.status()?["services"].to_string();
                ensure!(services.contains(name), "{services}");
                Ok(())
            })
        };
        lab.daemon()?;
        // The folder's first change waits behind nothing: once the next one is in force, it was dealt with.
        lab.resource("api.yaml", &resources::service("api", 80, "http"))?;
        in_force("api")?;
        ensure!(publications(lab)? == 2, "{}", publications(lab)?);
        // So by the daemon after it, which finds what this one had.
        lab.kill9()?;
        lab.daemon()?;
        in_force("web")?;
        lab.resource("last.yaml", &resources::service("last", 80, "http"))?;
        in_force("last")?;
        ensure!(publications(lab)? == 2, "{}", publications(lab)?);
        Ok(())
    });
}

#[test]
fn health_is_told() {
    lab_test("health", |lab| {
        lab.daemon()?;
        scrape(lab, "/healthz/live")?;
        scrape(lab, "/healthz/ready")?;
        Ok(())
    });
}

#[test]
fn flows_say_who_talked_to_whom_why_and_how_much() {
    lab_test("flows", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        lab.run("client").curl("http://web/")?;
        lab.flow("the closed connection with its bytes", |flow| {
            flow["source"]["service"] == "client"
                && flow["destination"]["service"] == "web"
                && flow["verdict"] == "allow"
                && flow["bytes_sent"].as_u64().is_some_and(|bytes| bytes > 0)
                && flow["bytes_received"].as_u64().is_some_and(|bytes| bytes > 0)
        })?;
        let text = lab.weft(["flows"])?.ok()?.stdout;
        ensure!(text.contains("client") && text.contains("web"), "{text}");
        Ok(())
    });
}
