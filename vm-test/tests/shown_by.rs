//! What the main job is shown by, as one story: open mesh, default deny, an HTTP rule, over IPv4 and IPv6.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use vm_test::{Lab, Nginx, curl, lab_test, poll, resources};

/// A refusal in the kernel sends no packet and waits for nothing. On a real machine; scaled under emulation.
const REFUSED_WITHIN: Duration = Duration::from_millis(10);

/// `web` and `::1` or `127.0.0.1` as an URL's host.
struct Family {
    flag: &'static str,
    loopback: &'static str,
    vip_prefix: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        flag: "-4",
        loopback: "127.0.0.1",
        vip_prefix: "240.240.",
    },
    Family {
        flag: "-6",
        loopback: "[::1]",
        vip_prefix: "2001:2:",
    },
];

#[test]
fn programs_are_meshed_denied_and_allowed_per_request_over_both_families() {
    lab_test("shown-by", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        for family in &FAMILIES {
            open_mesh(lab, family)?;
        }
        lab.resource("mesh.yaml", resources::DENY)?;
        for family in &FAMILIES {
            default_deny(lab, family)?;
        }
        let public = resources::route("public", "/public", &["GET"]);
        let target = resources::allow("client-may-read", "client", "web", ("HTTPRouteGroup", "public"));
        lab.resource("access.yaml", &format!("{public}{target}"))?;
        for family in &FAMILIES {
            http_rule(lab, family)?;
        }
        Ok(())
    });
}

fn open_mesh(lab: &Lab, family: &Family) -> Result<()> {
    let answer = lab.run("client").curl_with(&[family.flag], "http://web/")?;
    ensure!(
        (answer.code, answer.body.as_str()) == (0, "hello from web\n"),
        "{answer:?}"
    );
    ensure!(
        answer.remote.starts_with(family.vip_prefix),
        "curl should see the virtual IP: {answer:?}"
    );
    Ok(())
}

fn default_deny(lab: &Lab, family: &Family) -> Result<()> {
    let client = lab.run("client");
    // One that was begun while the policy came into force may be cut instead.
    poll::until("the same curl to be denied", || {
        let answer = client.curl_with(&[family.flag], "http://web/")?;
        ensure!(
            answer.code == curl::COULD_NOT_CONNECT && answer.told.contains("Operation not permitted"),
            "{answer:?}"
        );
        Ok(())
    })?;
    // The machine may be busy once; a refusal that costs a round trip or a timeout is never quick.
    poll::until("a refusal within 10 ms", || {
        let answer = client.curl_with(&[family.flag], "http://web/")?;
        ensure!(
            answer.code == curl::COULD_NOT_CONNECT && answer.total < poll::scaled(REFUSED_WITHIN),
            "{answer:?}"
        );
        Ok(())
    })?;
    lab.flow("a deny of client that names the MeshConfig", |flow| {
        flow["verdict"] == "deny"
            && flow["rule"]["kind"] == "MeshConfig"
            && flow["rule"]["name"] == "mesh"
            && flow["source"]["service"] == "client"
            && flow["destination"]["service"] == "web"
    })?;
    let endpoint = lab.run("stranger").curl(&format!("http://{}:8080/", family.loopback))?;
    ensure!(
        endpoint.code == curl::COULD_NOT_CONNECT,
        "the endpoint's address must be no way around: {endpoint:?}"
    );
    ensure!(endpoint.told.contains("Operation not permitted"), "{}", endpoint.told);
    Ok(())
}

fn http_rule(lab: &Lab, family: &Family) -> Result<()> {
    let client = lab.run("client");
    for host in ["web".to_owned(), format!("{}:8080", family.loopback)] {
        poll::until("GET /public to be allowed", || {
            let answer = client.curl_with(&[family.flag], &format!("http://{host}/public"))?;
            ensure!((answer.code, answer.http) == (0, 200), "{answer:?}");
            Ok(())
        })?;
        let admin = client.curl_with(&[family.flag], &format!("http://{host}/admin"))?;
        ensure!(admin.http == 403, "GET http://{host}/admin: {admin:?}");
        let post = client.curl_with(&[family.flag, "-X", "POST"], &format!("http://{host}/public"))?;
        ensure!(post.http == 403, "POST http://{host}/public: {post:?}");
        let stranger = lab
            .run("stranger")
            .curl_with(&[family.flag], &format!("http://{host}/public"))?;
        ensure!(
            stranger.code == curl::COULD_NOT_CONNECT,
            "no rule names stranger: {stranger:?}"
        );
    }
    Ok(())
}

#[test]
fn check_tells_file_line_and_column_and_exits_with_2() {
    lab_test("check", |lab| {
        let broken =
            "apiVersion: weft.mesh/v1alpha1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec:\n  accessDefault: maybe\n";
        fs::write(lab.work().join("broken.yaml"), broken)?;
        let output = lab.weft_offline(["check", "-f", "broken.yaml"])?.exits(2)?;
        let said = format!("{}{}", output.stdout, output.stderr);
        ensure!(said.contains("broken.yaml:5:18"), "{said}");
        fs::write(lab.work().join("good.yaml"), resources::DENY)?;
        lab.weft_offline(["check", "-f", "good.yaml"])?.ok()?;
        Ok(())
    });
}
