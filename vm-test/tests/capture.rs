//! Capture: programs stay as they are, and see the addresses they asked for.

use anyhow::{Context, Result, ensure};
use vm_test::{Lab, Nginx, Run, lab_test, poll, resources};

/// Virtual IPv4 address of a service as its clients resolve it.
fn vip4(client: &Run<'_>, name: &str) -> Result<String> {
    let hosts = client.output(["getent", "ahostsv4", name])?.ok()?.stdout;
    Ok(hosts.split_whitespace().next().context("an address")?.to_owned())
}

fn echo(lab: &Lab, service: &str, port: &str, address: &str) -> Result<vm_test::Running> {
    let mut server = lab
        .run(service)
        .port(port)
        .start([lab.traffic()?, "serve-echo".into(), address.into()])?;
    server.line(1)?;
    Ok(server)
}

#[test]
fn the_client_sees_the_address_it_asked_for() {
    lab_test("getpeername", |lab| {
        lab.daemon()?;
        let _echo = echo(lab, "echo", "7:7007", "127.0.0.1:7007")?;
        let client = lab.run("client");
        let vip = vip4(&client, "echo")?;
        for target in [format!("{vip}:7"), format!("[::ffff:{vip}]:7")] {
            let told = client
                .output([lab.traffic()?, "connect".into(), target.clone()])?
                .ok()?
                .json()?;
            ensure!(told["peer"] == told["target"], "dialled {target}: {told}");
        }
        Ok(())
    });
}

#[test]
fn an_ipv6_only_server_is_reached_by_name() {
    lab_test("v6-only", |lab| {
        lab.daemon()?;
        let _echo = echo(lab, "echo", "7:7007", "[::1]:7007")?;
        let client = lab.run("client");
        let hosts = client
            .output(["getent", "--no-addrconfig", "ahostsv6", "echo"])?
            .ok()?
            .stdout;
        let vip = hosts.split_whitespace().next().context("an address")?;
        ensure!(vip.starts_with("2001:2:"), "{hosts}");
        client
            .output([lab.traffic()?, "connect".into(), format!("[{vip}]:7")])?
            .ok()?;
        Ok(())
    });
}

#[test]
fn a_client_that_starts_before_its_server_listens_waits_for_it() {
    lab_test("pending", |lab| {
        lab.daemon()?;
        let traffic = lab.traffic()?;
        // Listens only when it is told to.
        let script = format!("read go; exec {traffic} serve-greeting 127.0.0.1:7007");
        let mut late = lab.run("late").port("7:7007").start(["sh", "-c", &script])?;
        let client = vm_test::Running::start(lab.run("client").command([traffic, "greeting".into(), "late:7".into()]))?;
        late.say("go")?;
        let told = client.finish(poll::PATIENCE)?.ok()?.json()?;
        ensure!(told["greeting"] == "220 hello", "{told}");
        Ok(())
    });
}

#[test]
fn new_connections_spread_over_the_endpoints_of_a_service() {
    lab_test("balance", |lab| {
        lab.daemon()?;
        lab.resource("svc.yaml", &resources::service("web", 80, "tcp"))?;
        let _a = lab.nginx(Nginx::service("web").port(80, 8081).says("a"))?;
        let _b = lab.nginx(Nginx::service("web").port(80, 8082).says("b"))?;
        poll::until("both endpoints to answer", || {
            let flags = ["-H", "Connection: close"];
            let answer = lab.run("client").curl_with(&flags, "http://web/[1-40]")?;
            let count = |body: &str| answer.body.lines().filter(|line| *line == body).count();
            ensure!(answer.code == 0 && count("a") >= 5 && count("b") >= 5, "{answer:?}");
            Ok(())
        })
    });
}

#[test]
fn programs_outside_and_destinations_outside_are_left_alone() {
    lab_test("outside", |lab| {
        lab.daemon()?;
        lab.resource("mesh.yaml", resources::DENY)?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        // Not a mesh workload, not a mesh destination: accessDefault does not speak of it.
        let mut plain =
            vm_test::Running::start(lab.command([lab.traffic()?, "serve-echo".into(), "127.0.0.1:9009".into()]))?;
        plain.line(1)?;
        let connect = [lab.traffic()?, "connect".into(), "127.0.0.1:9009".into()];
        lab.outside(connect.clone())?.ok()?;
        lab.run("client").output(connect)?.ok()?;
        Ok(())
    });
}

#[test]
fn a_service_of_another_namespace_is_reached_by_its_full_name_only() {
    lab_test("namespaces", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").namespace("shop").port(80, 8080))?;
        let client = lab.run("client").namespace("office");
        for name in ["web.shop", "web.shop.mesh"] {
            let answer = client.curl(&format!("http://{name}/"))?;
            ensure!(answer.body == "hello from web\n", "{name}: {answer:?}");
        }
        let bare = client.curl("http://web/")?;
        ensure!(bare.code == vm_test::curl::COULD_NOT_RESOLVE, "{bare:?}");
        Ok(())
    });
}

/// Answers every connection at 127.0.0.1:8080, which others may have too.
const SHARES: &str = "import socket\n\
    s = socket.socket()\n\
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n\
    s.bind(('127.0.0.1', 8080))\n\
    s.listen()\n\
    print('listens', flush=True)\n\
    while True:\n\
    \x20   c = s.accept()[0]\n\
    \x20   c.recv(4096)\n\
    \x20   c.sendall(b'HTTP/1.1 200 OK\\r\\nconnection: close\\r\\ncontent-length: 2\\r\\n\\r\\nok')\n\
    \x20   c.close()\n";

#[test]
fn a_port_that_instances_share_is_the_others_when_the_first_ends() {
    lab_test("share", |lab| {
        lab.daemon()?;
        let start = || {
            let mut server = lab.run("web").port("80:8080").start(["python3", "-c", SHARES])?;
            server.line(1)?;
            Ok::<_, anyhow::Error>(server)
        };
        let answers = |what: &str| {
            poll::until(what, || {
                let answer = lab.run("client").curl("http://web/")?;
                ensure!(answer.http == 200, "{answer:?}");
                Ok(())
            })
        };
        let mut instances = vec![start()?];
        answers("the first to answer")?;
        for _ in 0..2 {
            instances.push(start()?);
        }
        // Two rolling restarts of three, the oldest first: whoever is left has it.
        for _ in 0..6 {
            instances.push(start()?);
            drop(instances.remove(0));
            answers("another to answer")?;
        }
        // The latest go first: nobody inherits from whoever is gone.
        while instances.len() > 1 {
            instances.pop();
            answers("the oldest to answer")?;
        }
        Ok(())
    });
}
