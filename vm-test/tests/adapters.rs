//! Kind `Adapter`: applied, changed and removed under traffic; refused where it makes no sense.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{EVERY_ADDRESS, Lab, Nginx, Running, curl, lab_test, poll, process};

/// An Adapter of namespace `default` on service `web`.
fn adapter(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {{name: {name}}}\n\
         spec:\n  target: {{services: [web]}}\n  backend: native\n  {}\n",
        rest.replace('\n', "\n  ")
    )
}

/// Applies it, which must do.
fn apply(lab: &Lab, name: &str, rest: &str) -> Result<()> {
    let file = lab.work().join(format!("{name}.yaml"));
    fs::write(&file, adapter(name, rest)).context("write a file to apply")?;
    lab.weft(["apply", "-f", &file.to_string_lossy()])?.ok().map(drop)
}

fn remove(lab: &Lab, name: &str) -> Result<()> {
    lab.weft(["adapter", "remove", name])?.ok().map(drop)
}

/// What `weft adapter stats` says of one.
fn stats(lab: &Lab, name: &str) -> Result<Value> {
    let all = lab.weft(["adapter", "stats", name, "-o", "json"])?.ok()?.json()?;
    all.get(0).cloned().context("one adapter")
}

#[test]
fn an_applied_adapter_holds_for_the_next_request_and_a_removed_one_for_none() {
    lab_test("adapter", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let client = lab.run("client");
        let answers = |path: &str, http: u32| -> Result<curl::Answer> {
            let answer = client.curl(&format!("http://web{path}"))?;
            ensure!(u32::from(answer.http) == http, "{answer:?}");
            Ok(answer)
        };
        poll::until("the server", || answers("/", 200).map(drop))?;
        apply(
            lab,
            "closed",
            "native: denier\nparams: {match: {path_prefix: /admin}, message: not from here}",
        )?;
        let refused = answers("/admin", 403)?;
        let said = format!("{}{}", refused.body, refused.told);
        ensure!(
            said.contains("not from here") && said.contains("Adapter default/closed"),
            "{said}"
        );
        answers("/public", 200)?;
        let flow = lab.flow("the refused request", |flow| flow["l7"]["status"] == 403)?;
        ensure!(
            flow["rule"]["kind"] == "Adapter" && flow["rule"]["name"] == "closed",
            "{flow}"
        );
        let counted = stats(lab, "closed")?;
        ensure!(
            (&counted["denied"], &counted["allowed"]) == (&Value::from(1), &Value::from(1)),
            "{counted}"
        );

        // An endpoint's own address is no way around it.
        let answer = client.curl("http://127.0.0.1:8080/admin")?;
        ensure!(answer.http == 403, "{answer:?}");

        apply(
            lab,
            "closed",
            "native: denier\nparams: {match: {path_prefix: /public}, status: 451}",
        )?;
        answers("/public", 451)?;
        answers("/admin", 200)?;

        // What makes no sense is refused with its place, and the last good version stays.
        let file = lab.work().join("closed.yaml");
        fs::write(&file, adapter("closed", "native: denier\nparams: {status: 200}")).context("write")?;
        let refused = lab.weft(["apply", "-f", &file.to_string_lossy()])?.exits(2)?;
        ensure!(
            refused
                .stderr
                .contains("closed.yaml:8:20: error: Adapter default/closed: spec.params.status"),
            "{refused:?}"
        );
        answers("/public", 451)?;
        remove(lab, "closed")?;
        answers("/public", 200)?;
        ensure!(lab.weft(["adapter", "list", "-o", "json"])?.ok()?.json()? == Value::Array(Vec::new()));
        Ok(())
    });
}

#[test]
fn no_address_of_a_server_is_a_way_around_its_adapters() {
    for (name, flags) in [("around", &[][..]), ("around-inbound", &["--inbound", "netns"])] {
        lab_test(name, |lab| {
            lab.daemon_with(flags)?;
            let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
            let client = lab.run("client");
            poll::until("the server", || {
                ensure!(client.curl("http://web/")?.http == 200, "not there");
                Ok(())
            })?;
            apply(lab, "closed", "native: denier\nparams: {match: {path_prefix: /admin}}")?;
            for address in EVERY_ADDRESS {
                let address = format!("{address}:8080");
                for (path, http) in [("admin", 403), ("public", 200)] {
                    let answer = client.curl(&format!("http://{address}/{path}"))?;
                    ensure!(answer.http == http, "{address}: {answer:?}");
                }
            }
            // Whom nobody captured is looked at where we are asked to, and gets nowhere where we are not.
            let max_time = curl::max_time(if flags.is_empty() { curl::TIMED_OUT } else { 0 });
            for address in ["127.0.0.1:8080", "127.0.0.2:8080", "10.77.0.5:8080", "[::1]:8080"] {
                for (path, http) in [("admin", "403"), ("public", "200")] {
                    let words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time"];
                    let url = format!("http://{address}/{path}");
                    let output = lab.outside(words.into_iter().chain([max_time.as_str(), url.as_str()]))?;
                    if flags.is_empty() {
                        ensure!(output.code == curl::TIMED_OUT, "{url}: {output:?}");
                    } else {
                        ensure!(output.stdout == http, "{url}: {output:?}");
                    }
                }
            }
            Ok(())
        });
    }
}

#[test]
fn no_byte_and_no_line_hides_a_header_from_a_check() {
    lab_test("adapter-lines", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let client = lab.run("client");
        let answers = |headers: &str, http: &str| -> Result<()> {
            let script = format!("curl -s -o /dev/null -w '%{{http_code}}' {headers} http://web/");
            let answer = process::output(client.command(["bash", "-c", &script]), process::BOUND)?;
            ensure!(answer.stdout == http, "{headers}: {answer:?}");
            Ok(())
        };
        poll::until("the server", || answers("", "200"))?;
        apply(
            lab,
            "debug",
            "native: denier\nparams: {match: {header: {name: x-debug}}}",
        )?;
        apply(
            lab,
            "agents",
            "native: list\nparams: {value: 'request.headers[user-agent]', entry_type: REGEX, entries: [sqlmap], blacklist: true}",
        )?;
        apply(
            lab,
            "users",
            "native: list\nparams: {value: 'request.headers[x-user]', entries: [mallory], blacklist: true}",
        )?;
        for (headers, http) in [
            ("", "200"),
            (r"-H $'x-debug: \xff'", "403"),
            (r"-H $'user-agent: sqlmap\xff'", "403"),
            (r"-H $'user-agent: curl\xff'", "200"),
            ("-H 'x-user: ann' -H 'x-user: mallory'", "403"),
            ("-H 'x-user: ann' -H 'x-user: bob'", "200"),
            // Another path through the proxy.
            (r"--http2-prior-knowledge -H $'user-agent: sqlmap\xff'", "403"),
            ("--http2-prior-knowledge -H 'x-user: ann' -H 'x-user: mallory'", "403"),
        ] {
            answers(headers, http)?;
        }
        Ok(())
    });
}

#[test]
fn adapters_come_and_go_under_load_and_no_request_fails_that_should_not() {
    lab_test("adapter-load", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let client = lab.run("client");
        let log = lab.work().join("access");
        // Open: connections past the proxy that were there before go on.
        apply(
            lab,
            "first",
            "native: denier\nfailurePolicy: open\nparams: {match: {path_prefix: /never}}",
        )?;
        poll::until("the server", || {
            let answer = client.curl("http://web/")?;
            ensure!(answer.http == 200, "{answer:?}");
            Ok(())
        })?;
        let words = |url: &str| {
            let told = "%{stderr}%{http_code} %{exitcode}\n";
            ["curl", "-s", "-o", "/dev/null", "-w", told, url].map(str::to_owned)
        };
        let mut kept = Running::start(client.command(words("http://web/kept?[1-100000000]")))?;
        let seen = |running: &Running| running.stderr().lines().count();
        for round in 0..12 {
            apply(
                lab,
                "quota",
                &format!(
                    "native: memquota\nparams: {{quotas: [{{name: q, max_amount: {}, valid_duration: 1h}}]}}",
                    1_000_000 + round / 2
                ),
            )?;
            apply(
                lab,
                "list",
                "native: list\npriority: 3\nparams: {value: request.method, entries: [GET]}",
            )?;
            apply(
                lab,
                "log",
                &format!("native: stdio\nparams: {{path: {}, format: json}}", log.display()),
            )?;
            let before = seen(&kept);
            poll::until("requests under these", || {
                ensure!(seen(&kept) >= before + 10, "{} of {}", seen(&kept), before + 10);
                Ok(())
            })?;
            ensure!(stats(lab, "list")?["allowed"].as_u64() > Some(0));
            for name in ["quota", "list", "log"] {
                remove(lab, name)?;
            }
            // New connections, under whatever is in force now.
            let answer = client.curl("http://web/new")?;
            ensure!(answer.http == 200, "{answer:?}");
        }
        ensure!(kept.is_running()?, "{}", kept.stderr());
        kept.kill();
        let told = kept.stderr();
        // The last line may have been cut.
        let mut lines: Vec<&str> = told.lines().collect();
        lines.pop();
        ensure!(lines.len() > 120, "{}", lines.len());
        let wrong: Vec<&&str> = lines.iter().filter(|line| **line != "200 0").collect();
        ensure!(wrong.is_empty(), "{wrong:?}");
        let logged = fs::read_to_string(&log).context("the access log")?;
        ensure!(
            logged.lines().all(|line| line.contains("\"service\":\"web\"")),
            "{logged}"
        );
        ensure!(logged.lines().count() > 10, "{logged}");
        Ok(())
    });
}

#[test]
fn a_quota_is_one_for_all_and_what_is_no_http_does_not_slip_through() {
    lab_test("adapter-quota", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let client = lab.run("client");
        poll::until("the server", || {
            let answer = client.curl("http://web/")?;
            ensure!(answer.http == 200, "{answer:?}");
            Ok(())
        })?;
        apply(
            lab,
            "quota",
            "native: memquota\nparams: {quotas: [{name: few, max_amount: 5, valid_duration: 1h}]}",
        )?;
        let told = "%{stderr}%{http_code} %header{retry-after}\n";
        let output = client.output(["curl", "-s", "-o", "/dev/null", "-w", told, "http://web/?[1-9]"])?;
        let codes: Vec<&str> = output
            .stderr
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        ensure!(
            codes == [["200"; 5].as_slice(), ["429"; 4].as_slice()].concat(),
            "{output:?}"
        );
        ensure!(
            output
                .stderr
                .lines()
                .last()
                .is_some_and(|line| line.len() > "429 ".len()),
            "{output:?}"
        );
        let script = "exec 3<>/dev/tcp/web/80 && printf '\\0\\1\\2\\3nonsense\\r\\n' >&3 && cat <&3";
        let answer = process::output(client.command(["bash", "-c", script]), process::BOUND)?;
        ensure!(answer.stdout.is_empty(), "{answer:?}");
        let flow = lab.flow("the refused connection", |flow| {
            flow["event"] == "deny" && flow["rule"]["name"] == "quota"
        })?;
        ensure!(
            flow["reason"].as_str().is_some_and(|why| why.contains("no HTTP")),
            "{flow}"
        );
        Ok(())
    });
}
