//! A daemon takes over from another under load: no new connection fails, no verdict flips, what runs goes on.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{Lab, Nginx, Running, Server, lab_test, poll, process, resources};

const UPGRADES: usize = 3;

/// `web` needs no L7, `shop` does (GET of friend); strangers may do nothing.
fn mesh(lab: &Lab) -> Result<[Server; 2]> {
    let yaml = [
        resources::DENY.to_owned(),
        resources::tcp_route("ports", &[8080, 7007]),
        resources::allow("friend-web", "friend", "web", ("TCPRoute", "ports")),
        resources::allow("friend-echo", "friend", "echo", ("TCPRoute", "ports")),
        resources::route("get", "/", &["GET"]),
        resources::allow("friend-shop", "friend", "shop", ("HTTPRouteGroup", "get")),
    ];
    lab.resource("mesh.yaml", &yaml.concat())?;
    let servers = [
        lab.nginx(Nginx::service("web").port(80, 8080))?,
        lab.nginx(Nginx::service("shop").port(80, 8081))?,
    ];
    for service in ["web", "shop"] {
        poll::until("friend to be allowed", || {
            let answer = lab.run("friend").curl(&format!("http://{service}/"))?;
            ensure!(answer.http == 200, "{service}: {answer:?}");
            Ok(())
        })?;
    }
    Ok(servers)
}

fn start(lab: &Lab, account: &str, words: &[&str]) -> Result<Running> {
    let traffic = lab.traffic()?;
    let mut running = lab
        .run(account)
        .start([traffic.as_str()].iter().chain(words).copied())?;
    running.line(1)?;
    Ok(running)
}

/// What a client that dials until told has counted.
fn counted(client: Running) -> Result<(u64, Value)> {
    let output = client.finish(process::BOUND)?;
    let last: Value = serde_json::from_str(output.stdout.lines().last().context("a line")?)?;
    Ok((last["count"].as_u64().context("a count")?, last["failed"].clone()))
}

#[test]
fn no_new_connection_fails_and_no_verdict_flips_while_daemons_take_over() {
    lab_test("take-over", |lab| {
        lab.daemon()?;
        let _servers = mesh(lab)?;
        let _echo = {
            let traffic = lab.traffic()?;
            let mut server =
                lab.run("echo")
                    .port("7:7007")
                    .start([traffic.as_str(), "serve-echo", "127.0.0.1:7007"])?;
            server.line(1)?;
            server
        };
        let mut held = poll::until("echo to be reached", || {
            start(lab, "friend", &["hold", "127.0.0.1:7007"])
        })?;
        let direct = start(lab, "friend", &["dial", "web:80"])?;
        let proxied = start(lab, "friend", &["dial", "shop:80"])?;
        let denied = [
            start(lab, "stranger", &["dial", "web:80"])?,
            start(lab, "stranger", &["dial", "shop:80"])?,
        ];
        for number in 0..UPGRADES {
            let old = lab.daemon_pid()?;
            let said = lab.take_over(&[])?;
            ensure!(said.code == 0, "the old daemon ended with {}", said.code);
            ensure!(lab.daemon_pid()? != old && lab.daemon_lives()?, "another daemon runs");
            let word = format!("after {number}");
            held.say(&word)?;
            let told: Value = serde_json::from_str(&held.line(number + 2)?)?;
            ensure!(told["ok"] == true, "a direct connection goes on: {told}");
        }
        for (what, client) in [("direct", direct), ("proxied", proxied)] {
            let (count, failed) = counted(client)?;
            ensure!(
                count > 0 && failed.as_array().is_some_and(Vec::is_empty),
                "{what}: of {count}: {failed}"
            );
        }
        for client in denied {
            let (count, failed) = counted(client)?;
            let failures = failed.as_array().map_or(0, Vec::len) as u64;
            ensure!(
                count > 0 && failures == count,
                "a stranger got through: {count} dialled, {failures} failed"
            );
        }
        Ok(())
    });
}

#[test]
fn without_the_flag_a_second_daemon_is_refused_and_with_it_a_first_one_simply_starts() {
    lab_test("take-over-none", |lab| {
        lab.daemon_with(&["--take-over"])?;
        let refused = lab.daemon_refused(&[])?;
        ensure!(refused.code == 1, "{refused:?}");
        ensure!(lab.daemon_lives()?, "the first one goes on");
        Ok(())
    });
}
