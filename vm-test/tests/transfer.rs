//! Big transfers arrive byte for byte on every path: direct, proxied as HTTP, proxied as opaque bytes, with and without
//! short-circuit, over both families.

use std::{env, fs::File, io::Read};

use anyhow::{Context, Result, ensure};
use vm_test::{
    Lab, Nginx, lab_test,
    pattern::{Checker, Pattern},
    poll, process, resources,
};

/// Bytes a transfer: `WEFT_TEST_BYTES`, or this.
const DEFAULT_BYTES: u64 = 64 << 20;

const FAMILIES: [(&str, &str); 2] = [("-4", "ahostsv4"), ("-6", "ahostsv6")];

fn bytes() -> Result<u64> {
    match env::var("WEFT_TEST_BYTES") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("WEFT_TEST_BYTES={text} is no number")),
        Err(_) => Ok(DEFAULT_BYTES),
    }
}

/// Upload to a sink that checks, download from a source, half-close, server that speaks first: all of one path.
fn opaque(lab: &Lab) -> Result<()> {
    let (traffic, bytes) = (lab.traffic()?, bytes()?.to_string());
    let serve = |service: &str, port: &str, words: &[&str]| {
        let words = [traffic.as_str()]
            .iter()
            .chain(words)
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        let mut server = lab.run(service).port(port).start(words)?;
        server.line(1)?;
        anyhow::Ok(server)
    };
    let _servers = [
        serve("bulk", "1:7001", &["serve-sink", "[::]:7001"])?,
        serve("bulk", "2:7002", &["serve-source", "[::]:7002", &bytes])?,
        serve("bulk", "3:7003", &["serve-late", "[::]:7003"])?,
        serve("bulk", "4:7004", &["serve-greeting", "[::]:7004"])?,
    ];
    for (_, database) in FAMILIES {
        let hosts = lab
            .run("client")
            .output(["getent", "--no-addrconfig", database, "bulk"])?
            .ok()?
            .stdout;
        let vip = hosts.split_whitespace().next().context("an address of bulk")?;
        let host = if vip.contains(':') {
            format!("[{vip}]")
        } else {
            vip.to_owned()
        };
        let client = |words: &[&str]| -> Result<()> {
            let words = [traffic.as_str()]
                .iter()
                .chain(words)
                .map(ToString::to_string)
                .collect::<Vec<_>>();
            let output = process::output(lab.run("client").command(words), process::BULK_BOUND)?.ok()?;
            ensure!(output.json()?["ok"] == true, "{}", output.stdout);
            Ok(())
        };
        client(&["upload", &format!("{host}:1"), &bytes])?;
        client(&["download", &format!("{host}:2")])?;
        client(&["half-close", &format!("{host}:3"), "1000000"])?;
        client(&["greeting", &format!("{host}:4")])?;
    }
    Ok(())
}

#[test]
fn direct_connections_carry_every_byte() {
    lab_test("direct", |lab| {
        lab.daemon()?;
        opaque(lab)
    });
}

/// A split with HTTP matches sends a port through the proxy; what is no HTTP passes it as opaque bytes.
fn through_proxy(acceleration: &str) -> String {
    let services = ["bulk"].map(|name| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  ports:\n{}",
            (1..=4)
                .map(|port| format!("  - {{name: p{port}, port: {port}}}\n"))
                .collect::<String>()
        )
    });
    let route = resources::route("any", "/", &["GET"]);
    let split = "---\napiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\n\
                 metadata: {name: through-proxy, namespace: default}\nspec:\n  service: bulk\n\
                 \x20 matches: [{kind: HTTPRouteGroup, name: any}]\n  backends: [{service: bulk-next, weight: 1}]\n";
    let policy = resources::service_policy("bulk", &[&format!("acceleration: {acceleration}")]);
    format!("{}{route}{split}{policy}", services.concat())
}

#[test]
fn opaque_bytes_pass_the_proxy_unchanged() {
    lab_test("opaque", |lab| {
        lab.resource("bulk.yaml", &through_proxy("off"))?;
        lab.daemon()?;
        opaque(lab)
    });
}

#[test]
fn opaque_bytes_pass_the_proxy_unchanged_with_short_circuit() {
    lab_test("opaque-fast", |lab| {
        lab.resource("bulk.yaml", &through_proxy("proxy"))?;
        lab.daemon()?;
        opaque(lab)
    });
}

/// curl uploads a file to nginx and downloads another; both are compared with what they were made of.
fn http(lab: &Lab, acceleration: &str) -> Result<()> {
    let total = bytes()?;
    let service = resources::service("files", 80, "http");
    let route = resources::route("all", "/", &["GET", "PUT"]);
    let access = resources::allow("client-may", "client", "files", ("HTTPRouteGroup", "all"));
    let policy = resources::service_policy("files", &[&format!("acceleration: {acceleration}")]);
    lab.resource(
        "files.yaml",
        &format!("{}{service}{route}{access}{policy}", resources::DENY),
    )?;
    lab.daemon()?;
    let nginx = lab.nginx(Nginx::service("files").port(80, 8080))?;
    let source = nginx.files.join("source");
    let mut file = File::create(&source).context("make the file to transfer")?;
    std::io::copy(&mut Pattern::default().take(total), &mut file).context("fill it")?;

    for (flag, _) in FAMILIES {
        poll::until("the server to answer", || {
            let answer = lab.run("client").curl_with(&[flag], "http://files/")?;
            ensure!(answer.http == 200, "{answer:?}");
            Ok(())
        })?;
        let received = lab.work().join("received");
        let (from, to) = (source.display().to_string(), received.display().to_string());
        let curl = |words: &[&str]| {
            let words = ["curl", "-sS", "--fail", "--max-time", "600", flag]
                .into_iter()
                .chain(words.iter().copied());
            process::output(lab.run("client").command(words), process::BULK_BOUND)?.ok()
        };
        curl(&["-o", &to, "http://files/files/source"])?;
        whole(&received, total)?;
        curl(&["-T", &from, "http://files/files/uploaded"])?;
        whole(&nginx.files.join("uploaded"), total)?;
    }
    Ok(())
}

/// The file is the pattern, all of it and nothing else.
fn whole(file: &std::path::Path, total: u64) -> Result<()> {
    let mut checker = Checker::default();
    let mut input = File::open(file).with_context(|| format!("open {}", file.display()))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = input.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        checker.take(&buffer[..read]);
    }
    let (bytes, wrong) = (checker.bytes(), checker.first_wrong());
    ensure!(
        bytes == total && wrong.is_none(),
        "{}: {bytes} of {total} bytes, first wrong {wrong:?}",
        file.display()
    );
    std::fs::remove_file(file).context("remove the copy")
}

#[test]
fn http_bodies_pass_the_proxy_unchanged() {
    lab_test("http", |lab| http(lab, "off"));
}

#[test]
fn http_bodies_pass_the_proxy_unchanged_with_short_circuit() {
    lab_test("http-fast", |lab| http(lab, "proxy"));
}
