//! The acts of the demo while its daemon runs.

use anyhow::{Context, Result, ensure};
use vm_test::{Lab, Running, curl, poll, process};

use super::{
    mesh::{self, FAST, PLAIN, PUBLIC},
    screen::{Screen, millis},
};
use crate::wrk::Answered;

/// Requests that the split is counted over.
const SPLIT_REQUESTS: usize = 1000;
/// Of these, at the version of 10 %: 100 expected, five standard deviations to each side.
const SPLIT_RANGE: std::ops::RangeInclusive<usize> = 52..=148;
/// Rounds with and without short-circuit, one after the other, so that a busy moment hits both.
const ROUNDS: usize = 3;
/// A round that is short-circuited carries less than this share of the bytes over the loopback device: of four legs of a
/// request, the client's question and the server's answer are handed over.
const SHORT_CIRCUIT_LEAVES: f64 = 0.85;
/// Seconds a round.
const ROUND_SECONDS: &str = "2s";

pub fn capture(lab: &Lab, screen: &mut Screen) -> Result<()> {
    screen.act("Programs as they are, meshed by name");
    screen.check(
        "nginx behind a name",
        "weft run --service web --port 80:8080 -- nginx",
        || {
            let endpoints = poll::until("the endpoint to be ready", || {
                let status = lab.status()?;
                let services = status["services"].as_array().context("services in weft status")?;
                let web = services
                    .iter()
                    .find(|service| service["name"] == "web")
                    .context("service web")?;
                let endpoints = web["ports"][0]["endpoints"].as_array().context("endpoints")?;
                ensure!(!endpoints.is_empty(), "no endpoint yet");
                Ok(endpoints
                    .iter()
                    .filter_map(|one| one["address"].as_str())
                    .collect::<Vec<_>>()
                    .join(", "))
            })?;
            Ok(format!("ready at {endpoints}, seen by the kernel"))
        },
    )?;
    for flag in ["-4", "-6"] {
        screen.check(
            "the name, a virtual IP, the answer",
            &format!("weft run --service friend -- curl -s {flag} http://web/"),
            || {
                let answer = lab.run("friend").curl_with(&[flag], "http://web/")?;
                ensure!(answer.code == 0 && answer.body.trim() == "hello from web", "{answer:?}");
                Ok(format!(
                    "`{}` from {} in {}",
                    answer.body.trim(),
                    answer.remote.replace(' ', " port "),
                    millis(answer.total)
                ))
            },
        )?;
    }
    Ok(())
}

pub fn deny_in_the_kernel(lab: &Lab, screen: &mut Screen) -> Result<()> {
    screen.act("Default deny: refused by the kernel at connect(), no packet sent");
    mesh::deny_by_default(lab)?;
    screen.check(
        "allowed by a TrafficTarget",
        "weft run --service friend -- curl -s http://web/",
        || {
            // Both: a mesh that is not closed yet would also answer.
            poll::until("the policy to be in force", || {
                let stranger = lab.run("stranger").curl("http://web/")?;
                ensure!(stranger.code != 0, "stranger still gets an answer");
                let friend = lab.run("friend").curl("http://web/")?;
                ensure!(friend.http == 200, "{friend:?}");
                Ok(format!("{} in {}", friend.http, millis(friend.total)))
            })
        },
    )?;
    for (what, url) in [
        ("by name", "http://web/"),
        ("at the endpoint itself", "http://127.0.0.1:8080/"),
    ] {
        screen.check(
            &format!("denied {what}"),
            &format!("weft run --service stranger -- curl -sv {url}"),
            || {
                let answer = lab.run("stranger").curl(url)?;
                ensure!(answer.code == curl::COULD_NOT_CONNECT, "{answer:?}");
                ensure!(answer.told.contains("Operation not permitted"), "{}", answer.told);
                Ok(format!(
                    "exit {}, `Operation not permitted` after {}",
                    answer.code,
                    millis(answer.total)
                ))
            },
        )?;
    }
    screen.check("who, rule, errno", "weft flows -o json", || {
        let flow = lab.flow("stranger's denial", |flow| {
            flow["verdict"] == "deny" && flow["source"]["service"] == "stranger"
        })?;
        ensure!(flow["rule"]["kind"] == "MeshConfig", "{flow}");
        Ok(format!(
            "account {} -> {}:{}, denied by {} {}, errno {}",
            text(&flow["source"]["account"]),
            text(&flow["destination"]["service"]),
            flow["destination"]["port"],
            text(&flow["rule"]["kind"]),
            text(&flow["rule"]["name"]),
            flow["errno"]
        ))
    })
}

pub fn judge_requests(lab: &Lab, screen: &mut Screen) -> Result<()> {
    screen.act("A rule on requests: the connection visits the proxy, and only then");
    mesh::allow_get(lab, PUBLIC)?;
    let friend = lab.run("friend");
    screen.check(
        "GET /public",
        "weft run --service friend -- curl http://shop/public",
        || {
            poll::until("the rule to be in force", || {
                let answer = friend.curl("http://shop/public")?;
                ensure!(answer.http == 200, "{answer:?}");
                Ok(format!("{} in {}", answer.http, millis(answer.total)))
            })
        },
    )?;
    screen.check(
        "GET /admin",
        "weft run --service friend -- curl http://shop/admin",
        || {
            let answer = friend.curl("http://shop/admin")?;
            ensure!(answer.http == 403, "{answer:?}");
            Ok(format!("{}: `{}`", answer.http, answer.body.trim()))
        },
    )?;
    screen.check(
        "another account",
        "weft run --service stranger -- curl http://shop/public",
        || {
            let answer = lab.run("stranger").curl("http://shop/public")?;
            ensure!(answer.code == curl::COULD_NOT_CONNECT, "{answer:?}");
            Ok(format!(
                "exit {} in {}, never seen by the proxy",
                answer.code,
                millis(answer.total)
            ))
        },
    )
}

pub fn split(lab: &Lab, screen: &mut Screen) -> Result<()> {
    screen.act("A split of 90 to 10");
    let url = format!("http://api/?[1-{SPLIT_REQUESTS}]");
    screen.check(
        "counted",
        &format!("weft run --service friend -- curl -s '{url}' | sort | uniq -c"),
        || {
            poll::until("both versions to answer", || {
                let probe = lab.run("friend").curl("http://api/")?;
                ensure!(probe.http == 200, "{probe:?}");
                Ok(())
            })?;
            let answer = lab.run("friend").curl(&url)?;
            let count = |version: &str| answer.body.lines().filter(|line| *line == version).count();
            let (v1, v2) = (count("v1"), count("v2"));
            ensure!(
                v1 + v2 == SPLIT_REQUESTS && SPLIT_RANGE.contains(&v2),
                "v1 {v1}, v2 {v2} of {SPLIT_REQUESTS}"
            );
            Ok(format!("v1 {v1}, v2 {v2}"))
        },
    )
}

pub fn edit_under_a_running_connection(lab: &Lab, screen: &mut Screen) -> Result<()> {
    screen.act("A policy edited on disk, while a client keeps its connection");
    let url = "http://shop/public?[1-200]";
    screen.check(
        "next request, same connection",
        &format!("weft run --service friend -- curl --rate 20/s '{url}'"),
        || {
            let told = "%{stderr}%{http_code} %{num_connects}\\n";
            let words = ["curl", "-s", "--rate", "20/s", "-o", "/dev/null", "-w", told, url];
            let client = Running::start(lab.run("friend").command(words))?;
            let codes = || {
                client
                    .stderr()
                    .lines()
                    .filter_map(|line| line.split(' ').next().map(str::to_owned))
                    .collect::<Vec<_>>()
            };
            let wait_for = |code: &str, behind: usize| {
                poll::until(&format!("a {code}"), || {
                    let codes = codes();
                    let at = codes.iter().skip(behind).position(|one| one == code);
                    at.map(|at| at + behind)
                        .with_context(|| format!("answers so far: {}", codes.join(" ")))
                })
            };
            let first = wait_for("200", 0)?;
            mesh::allow_get(lab, "/elsewhere")?;
            let refused = wait_for("403", first)?;
            mesh::allow_get(lab, PUBLIC)?;
            let again = wait_for("200", refused)?;
            let connects: usize = client
                .stderr()
                .lines()
                .filter_map(|line| line.split(' ').nth(1)?.parse::<usize>().ok())
                .sum();
            ensure!(connects == 1, "{connects} connections: {}", client.stderr());
            Ok(format!(
                "200 x {refused}, then 403 x {}, then 200 again; {connects} connection",
                again - refused
            ))
        },
    )
}

/// The kernel's word for a short-circuit that works: bytes handed from socket to socket never pass the loopback device.
pub fn short_circuit(lab: &Lab, screen: &mut Screen) -> Result<()> {
    screen.act("Short-circuit: bytes to the proxy handed from socket to socket, past TCP");
    let command =
        format!("weft run --service friend -- wrk -t1 -c16 -d{ROUND_SECONDS} http://plain/   # and http://fast/");
    let (mut off, mut on) = (Vec::new(), Vec::new());
    screen.check("requests/s off and on, in turns", &command, || {
        for _ in 0..ROUNDS {
            off.push(Round::at(lab, PLAIN)?);
            on.push(Round::at(lab, FAST)?);
        }
        let (off, on) = (median(&off, |round| round.rate), median(&on, |round| round.rate));
        Ok(format!("off {off:.0}/s, on {on:.0}/s: {:.2} times", on / off))
    })?;
    screen.check("bytes a request over the loopback device", "cat /proc/net/dev", || {
        let (off, on) = (
            median(&off, |round| round.device_bytes),
            median(&on, |round| round.device_bytes),
        );
        ensure!(
            on < off * SHORT_CIRCUIT_LEAVES,
            "off {off:.0}, on {on:.0}: nothing was short-circuited"
        );
        Ok(format!("off {off:.0}, on {on:.0}"))
    })
}

/// One run of wrk.
struct Round {
    /// Requests per second.
    rate: f64,
    /// Bytes the loopback device carried for a request.
    device_bytes: f64,
}

// === impl Round ===

impl Round {
    /// Runs wrk once against a service.
    fn at(lab: &Lab, service: &str) -> Result<Self> {
        let before = lab.loopback_bytes()?;
        let words = [
            "wrk",
            "-t1",
            "-c16",
            &format!("-d{ROUND_SECONDS}"),
            &format!("http://{service}/"),
        ];
        let said = lab.run("friend").output(words)?.ok()?.stdout;
        let carried = (lab.loopback_bytes()? - before) as f64;
        let answered = Answered::read(&said)?;
        Ok(Self {
            rate: answered.rate,
            device_bytes: carried / answered.requests,
        })
    }
}

fn median(rounds: &[Round], of: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

pub fn what_was_seen(lab: &Lab, screen: &mut Screen) -> Result<()> {
    screen.act("What was seen of it");
    screen.check(
        "metrics under Istio's names",
        "curl -s http://127.0.0.1:15020/metrics",
        || {
            poll::until("metrics of requests and connections", || {
                let words = ["curl", "-sS", "--fail", "http://127.0.0.1:15020/metrics"];
                let text = process::output(lab.command(words), process::BOUND)?.ok()?.stdout;
                let sum = |name: &str| -> f64 {
                    let values = text
                        .lines()
                        .filter(|line| line.starts_with(name))
                        .filter_map(|line| line.rsplit(' ').next());
                    values.filter_map(|value| value.parse::<f64>().ok()).sum()
                };
                let (requests, opened) = (sum("istio_requests_total{"), sum("istio_tcp_connections_opened_total{"));
                ensure!(
                    requests > 0.0 && opened > 0.0,
                    "requests {requests}, connections {opened}"
                );
                Ok(format!(
                    "istio_requests_total {requests}, istio_tcp_connections_opened_total {opened}"
                ))
            })
        },
    )?;
    for verdict in ["deny", "allow"] {
        let mut lines = String::new();
        screen.check(verdict, &format!("weft flows --verdict {verdict} --last 4"), || {
            lines = lab.weft(["flows", "--verdict", verdict, "--last", "4"])?.ok()?.stdout;
            ensure!(!lines.trim().is_empty(), "no such flow was kept");
            Ok("who talked to whom, and which rule said so".to_owned())
        })?;
        screen.quote(&lines);
    }
    Ok(())
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or("?")
}
