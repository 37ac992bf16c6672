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

/// How a connection gets to its server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Proxied,
    /// The same; and the client's socket is in a sockmap, where blocking reads may answer EAGAIN (`traffic` says why).
    ShortCircuited,
}

/// Short-circuits whatever the daemon's self-test says of this kernel.
const FORCE: &[&str] = &["--short-circuit", "force"];

fn bytes() -> Result<u64> {
    match env::var("WEFT_TEST_BYTES") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("WEFT_TEST_BYTES={text} is no number")),
        Err(_) => Ok(DEFAULT_BYTES),
    }
}

/// Upload to a sink that checks, download from a source, half-close, server that speaks first: all of one path.
fn opaque(lab: &Lab, way: Way) -> Result<()> {
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
        let host = lab.host("bulk", database)?;
        let client = |words: &[&str]| -> Result<()> {
            let words = [traffic.as_str()]
                .iter()
                .chain(words)
                .map(ToString::to_string)
                .collect::<Vec<_>>();
            let output = process::output(lab.run("client").command(words), process::BULK_BOUND)?.ok()?;
            let told = output.json()?;
            ensure!(told["ok"] == true, "{told}");
            ensure!(
                way == Way::ShortCircuited || told["spurious_eagain"].as_u64().unwrap_or(0) == 0,
                "{told}"
            );
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
        opaque(lab, Way::Direct)
    });
}

#[test]
fn opaque_bytes_pass_the_proxy_unchanged() {
    lab_test("opaque", |lab| {
        lab.resource("bulk.yaml", &resources::through_proxy("bulk", "off"))?;
        lab.daemon()?;
        opaque(lab, Way::Proxied)
    });
}

#[test]
fn opaque_bytes_pass_the_proxy_unchanged_with_short_circuit() {
    lab_test("opaque-fast", |lab| {
        lab.resource("bulk.yaml", &resources::through_proxy("bulk", "proxy"))?;
        lab.daemon_with(FORCE)?;
        opaque(lab, Way::ShortCircuited)
    });
}

/// What a socket handed over in a connection of before does not count in its next one.
#[test]
fn a_socket_that_connects_again_is_short_circuited_again() {
    lab_test("again-fast", |lab| {
        lab.resource("bulk.yaml", &resources::through_proxy("bulk", "proxy"))?;
        lab.daemon_with(FORCE)?;
        let traffic = lab.traffic()?;
        let words = [traffic.as_str(), "serve-echo", "[::]:7001"];
        let mut server = lab.run("bulk").port("1:7001").start(words)?;
        server.line(1)?;
        let host = format!("{}:1", lab.host("bulk", "ahostsv4")?);
        let mut client = lab.run("client").start([traffic.as_str(), "hold-again", &host])?;
        client.line(1)?;
        let (word, times) = ("0123456789".repeat(1600), 16);
        let before = lab.loopback_bytes()?;
        for said in 0..times {
            client.say(&word)?;
            let told = client.line(said + 2)?;
            ensure!(told.contains(r#""ok":true"#), "{told}");
        }
        let (carried, said) = (lab.loopback_bytes()? - before, (times * word.len()) as u64);
        // From the proxy they go through TCP, to the server and back to the client; to the proxy they do not.
        ensure!(
            2 * carried < 5 * said,
            "it went through TCP: {said} bytes said, {carried} carried"
        );
        Ok(())
    });
}

#[test]
fn opaque_bytes_pass_the_proxy_unchanged_short_circuited_both_ways() {
    lab_test("opaque-full", |lab| {
        lab.resource("bulk.yaml", &resources::through_proxy("bulk", "full"))?;
        lab.daemon_with(FORCE)?;
        opaque(lab, Way::ShortCircuited)
    });
}

#[test]
fn direct_connections_carry_every_byte_short_circuited_both_ways() {
    lab_test("direct-fast", |lab| {
        let policy = resources::service_policy("bulk", &["acceleration: full"]);
        lab.resource("bulk.yaml", &policy)?;
        lab.daemon_with(FORCE)?;
        opaque(lab, Way::ShortCircuited)
    });
}

/// curl uploads a file to nginx and downloads another; both are compared with what they were made of.
fn http(lab: &Lab, acceleration: &str, flags: &[&str]) -> Result<()> {
    let total = bytes()?;
    let service = resources::service("files", 80, "http");
    let route = resources::route("all", "/", &["GET", "PUT"]);
    let access = resources::allow("client-may", "client", "files", ("HTTPRouteGroup", "all"));
    let policy = resources::service_policy("files", &[&format!("acceleration: {acceleration}")]);
    lab.resource(
        "files.yaml",
        &format!("{}{service}{route}{access}{policy}", resources::DENY),
    )?;
    lab.daemon_with(flags)?;
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
        // nginx asks how much is unread (FIONREAD), which some kernels answer wrongly for a socket in a sockmap.
        if flags != FORCE {
            curl(&["-T", &from, "http://files/files/uploaded"])?;
            whole(&nginx.files.join("uploaded"), total)?;
        }
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
    lab_test("http", |lab| http(lab, "off", &[]));
}

#[test]
fn http_bodies_pass_unchanged_where_acceleration_is_asked_for() {
    lab_test("http-auto", |lab| http(lab, "proxy", &[]));
}

#[test]
fn http_downloads_pass_unchanged_with_short_circuit() {
    lab_test("http-fast", |lab| http(lab, "proxy", FORCE));
}

#[test]
fn http_downloads_pass_unchanged_short_circuited_both_ways() {
    lab_test("http-full", |lab| http(lab, "full", FORCE));
}

#[test]
fn http_uploads_pass_unchanged_with_short_circuit() {
    uploads("http-fast-up", "proxy");
}

#[test]
fn http_uploads_pass_unchanged_short_circuited_both_ways() {
    uploads("http-full-up", "full");
}

/// curl uploads a file to a server that compares it with what it was made of.
fn uploads(name: &str, acceleration: &str) {
    lab_test(name, |lab| {
        let total = bytes()?;
        let policy = resources::service_policy("sink", &[&format!("acceleration: {acceleration}")]);
        let access = resources::allow("client-may", "client", "sink", ("HTTPRouteGroup", "all"));
        let route = resources::route("all", "/", &["PUT"]);
        lab.resource("sink.yaml", &format!("{}{route}{access}{policy}", resources::DENY))?;
        lab.daemon_with(FORCE)?;
        let source = lab.work().join("source");
        let mut file = File::create(&source).context("make the file to transfer")?;
        std::io::copy(&mut Pattern::default().take(total), &mut file).context("fill it")?;
        let words = [lab.traffic()?, "serve-http-sink".into(), "[::]:7001".into()];
        let mut sink = lab.run("sink").port("80:7001").start(words)?;
        sink.line(1)?;
        let from = source.display().to_string();
        for (flag, _) in FAMILIES {
            let words = [
                "curl",
                "-sS",
                "--fail",
                "--max-time",
                "600",
                flag,
                "-T",
                &from,
                "http://sink/",
            ];
            let told = process::output(lab.run("client").command(words), process::BULK_BOUND)?
                .ok()?
                .json()?;
            ensure!(
                told["bytes"] == total && told["first_wrong"].is_null(),
                "{flag}: {told}"
            );
        }
        Ok(())
    });
}

/// With `--short-circuit auto`, a program is never told wrongly what it can read, on any kernel.
#[test]
fn an_accelerated_client_is_told_how_much_it_can_read() {
    lab_test("unread", |lab| {
        let policy = resources::service_policy("web", &["acceleration: proxy"]);
        let access = resources::allow("client-may", "client", "web", ("HTTPRouteGroup", "all"));
        let route = resources::route("all", "/", &["GET"]);
        lab.resource("web.yaml", &format!("{}{route}{access}{policy}", resources::DENY))?;
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        poll::until("the server to answer", || {
            let answer = lab.run("client").curl("http://web/")?;
            ensure!(answer.http == 200, "{answer:?}");
            Ok(())
        })?;
        lab.run("client")
            .output([lab.traffic()?, "unread".into(), "web:80".into()])?
            .ok()?;
        Ok(())
    });
}
