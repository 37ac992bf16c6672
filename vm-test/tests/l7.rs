//! L7 access in the proxy: per request, with a reason, changed under a running connection.

use anyhow::ensure;
use vm_test::{Nginx, Running, curl, lab_test, poll, resources};

fn access(path: &str) -> String {
    let route = resources::route("open-paths", path, &["GET"]);
    let target = resources::allow("client-may-read", "client", "web", ("HTTPRouteGroup", "open-paths"));
    format!("{}{route}{target}", resources::DENY)
}

#[test]
fn a_request_is_answered_or_refused_with_403_that_names_the_rule() {
    lab_test("l7", |lab| {
        lab.resource("access.yaml", &access("/public"))?;
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let client = lab.run("client");
        poll::until("GET /public to be allowed", || {
            let answer = client.curl("http://web/public")?;
            ensure!(
                (answer.http, answer.body.as_str()) == (200, "hello from web\n"),
                "{answer:?}"
            );
            Ok(())
        })?;
        let refused = client.curl("http://web/admin")?;
        ensure!(refused.http == 403, "{refused:?}");
        let said = format!("{}{}", refused.body, refused.told);
        ensure!(
            said.contains("MeshConfig") || said.contains("client-may-read"),
            "a 403 names what denied: {said}"
        );
        let flow = lab.flow("the refused request", |flow| flow["l7"]["status"] == 403)?;
        ensure!(
            flow["l7"]["path"] == "/admin" && flow["l7"]["method"] == "GET" && flow["verdict"] == "deny",
            "{flow}"
        );
        ensure!(flow["rule"]["kind"].is_string(), "{flow}");
        lab.flow("the allowed request", |flow| {
            flow["l7"]["status"] == 200 && flow["rule"]["name"] == "client-may-read" && flow["l7"]["path"] == "/public"
        })?;
        Ok(())
    });
}

#[test]
fn http2_without_tls_is_judged_by_the_same_rules() {
    lab_test("h2c", |lab| {
        lab.resource("access.yaml", &access("/public"))?;
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080).http2())?;
        let client = lab.run("client");
        poll::until("HTTP/2 to be allowed", || {
            let answer = client.curl_with(&["--http2-prior-knowledge"], "http://web/public")?;
            ensure!(
                (answer.code, answer.http) == (0, 200) && answer.told.contains("HTTP/2 200"),
                "{answer:?}"
            );
            Ok(())
        })?;
        let refused = client.curl_with(&["--http2-prior-knowledge"], "http://web/admin")?;
        ensure!(refused.http == 403, "{refused:?}");
        Ok(())
    });
}

#[test]
fn an_edited_policy_holds_for_the_next_request_of_a_running_connection() {
    lab_test("reload", |lab| {
        lab.resource("access.yaml", &access("/public"))?;
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let client = lab.run("client");
        poll::until("GET /public to be allowed", || {
            let answer = client.curl("http://web/public")?;
            ensure!(answer.http == 200, "{answer:?}");
            Ok(())
        })?;
        // One connection, five requests a second, a line each on standard error, which is not buffered.
        let told = "%{stderr}%{http_code} %{num_connects}\\n";
        let words = [
            "curl",
            "-s",
            "--rate",
            "5/s",
            "-o",
            "/dev/null",
            "-w",
            told,
            "http://web/public?[1-60]",
        ];
        let requests = Running::start(client.command(words))?;
        let seen = |code: &str| requests.stderr().lines().filter(|line| line.starts_with(code)).count();
        poll::until("two answers", || {
            ensure!(seen("200") >= 2, "{}", requests.stderr());
            Ok(())
        })?;
        lab.resource("access.yaml", &access("/elsewhere"))?;
        poll::until("a refusal on the same connection", || {
            ensure!(seen("403") >= 1, "{}", requests.stderr());
            Ok(())
        })?;
        lab.resource("access.yaml", &access("/public"))?;
        poll::until("answers again", || {
            let lines = requests.stderr();
            let after: Vec<&str> = lines.lines().skip_while(|line| line.starts_with("200")).collect();
            ensure!(after.iter().any(|line| line.starts_with("200")), "{lines}");
            Ok(())
        })?;
        let connects = requests
            .stderr()
            .lines()
            .skip(1)
            .filter(|line| line.ends_with(" 1"))
            .count();
        ensure!(connects == 0, "one connection all the time: {}", requests.stderr());
        Ok(())
    });
}

#[test]
fn an_http_rule_does_not_open_the_port_to_other_protocols() {
    lab_test("not-http", |lab| {
        lab.resource("access.yaml", &access("/public"))?;
        lab.daemon()?;
        let traffic = lab.traffic()?;
        let mut server =
            lab.run("web")
                .port("80:8080")
                .start([traffic.clone(), "serve-sink".into(), "127.0.0.1:8080".into()])?;
        server.line(1)?;
        // The pattern's first bytes are no request line.
        let output = lab
            .run("client")
            .output([traffic, "upload".into(), "web:80".into(), "100000".into()])?;
        ensure!(
            output.code != 0,
            "bytes that are no HTTP got through an HTTP rule: {output:?}"
        );
        let stranger = lab.run("stranger").curl("http://web/public")?;
        ensure!(stranger.code == curl::COULD_NOT_CONNECT, "{stranger:?}");
        Ok(())
    });
}
