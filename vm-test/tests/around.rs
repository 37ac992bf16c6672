//! Ways around a verdict, each of which was one: addresses that nobody lists, sockets that another's port is found by, what was
//! noted of somebody who is gone.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{Lab, Nginx, Running, curl, friends, lab_test, poll, process, resources};

const EPERM: i64 = 1;

/// On loopback with all of its net: each of those addresses is this machine's, and only this one is listed.
const LISTED: &str = "10.78.0.5/24";
const UNLISTED: &str = "10.78.0.9";

/// Prints what it gets, and answers.
const ECHO: &str = "import socket\n\
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
    s.bind(('0.0.0.0', 7007))\n\
    print('listening', flush=True)\n\
    while True:\n\
    \x20   said, sender = s.recvfrom(99)\n\
    \x20   print(said.decode(), flush=True)\n\
    \x20   try: s.sendto(said, sender)\n\
    \x20   except OSError: pass\n";

/// Sends its second argument to its first, by broadcast as well; fails where that is refused.
const SEND: &str = "import socket, sys\n\
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\n\
    for n in range(3): s.sendto(sys.argv[2].encode(), (sys.argv[1], 7007))\n";

/// Listens at the port of both protocols by IPv6 alone; then connects there by IPv4 and prints how that ends, twice.
const ONLY_V6: &str = "import socket, sys\n\
    kept = []\n\
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n\
    \x20   s = socket.socket(socket.AF_INET6, kind)\n\
    \x20   s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)\n\
    \x20   s.bind(('::', 7007))\n\
    \x20   if kind == socket.SOCK_STREAM: s.listen()\n\
    \x20   kept.append(s)\n\
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n\
    \x20   s = socket.socket(socket.AF_INET, kind)\n\
    \x20   try:\n\
    \x20       s.connect(('127.0.0.1', 7007))\n\
    \x20       s.send(b'x')\n\
    \x20       print('sent', flush=True)\n\
    \x20   except OSError as error: print(error.errno, flush=True)\n\
    sys.stdin.readline()\n";

fn only_friend() -> String {
    let route = resources::tcp_route("echo-udp", &[7007]).replace("TCPRoute", "UDPRoute");
    let allow = resources::allow("may-echo", "friend", "echo", ("UDPRoute", "echo-udp"));
    format!("{}{route}{allow}", resources::DENY)
}

fn python(lab: &Lab, account: &str, script: &str, rest: &[&str]) -> Result<Running> {
    let words = ["python3", "-uc", script].into_iter().chain(rest.iter().copied());
    lab.run(account).start(words)
}

fn echo(lab: &Lab) -> Result<Running> {
    let words = ["python3", "-uc", ECHO];
    let mut echo = lab.run("echo").port("7:7007/udp").start(words)?;
    echo.line(1)?;
    Ok(echo)
}

/// One datagram on a socket that is kept; what the program was told.
fn say(held: &mut Running, count: &mut usize) -> Result<Value> {
    held.say("ping")?;
    *count += 1;
    serde_json::from_str(&held.line(*count)?).context("what it told")
}

fn friend(lab: &Lab) -> Result<(Running, usize)> {
    let traffic = lab.traffic()?;
    let mut held = lab
        .run("friend")
        .start([traffic.as_str(), "udp-hold", "127.0.0.1:7007"])?;
    held.line(1)?;
    Ok((held, 1))
}

fn with_a_net(lab: &Lab) -> Result<()> {
    lab.outside(["ip", "address", "add", LISTED, "brd", "+", "dev", "lo"])?
        .ok()?;
    Ok(())
}

#[test]
fn datagrams_to_addresses_of_several_or_of_nobody_are_judged_where_they_arrive() {
    lab_test("around-udp", |lab| {
        with_a_net(lab)?;
        lab.resource("access.yaml", &only_friend())?;
        lab.daemon()?;
        let mut echo = echo(lab)?;
        for address in [UNLISTED, "10.78.0.255"] {
            python(lab, "stranger", SEND, &[address, "stranger"])?.finish(process::BOUND)?;
        }
        // What is let in comes by the same ways.
        let mut lines = 1;
        poll::until("friend's to arrive", || {
            python(lab, "friend", SEND, &[UNLISTED, "friend"])?
                .finish(process::BOUND)?
                .ok()?;
            lines += 1;
            ensure!(echo.line(lines)? == "friend", "{}", echo.stdout());
            Ok(())
        })?;
        ensure!(!echo.stdout().contains("stranger"), "{}", echo.stdout());
        Ok(())
    });
}

#[test]
fn a_rule_about_requests_holds_at_addresses_that_nobody_lists() {
    lab_test("around-l7", |lab| {
        with_a_net(lab)?;
        lab.resource("mesh.yaml", &friends::rules())?;
        let route = resources::route("public", "/public.*", &["GET"]);
        let rule = resources::allow("friend-reads", "friend", "pages", ("HTTPRouteGroup", "public"));
        lab.resource("pages.yaml", &format!("{route}{rule}"))?;
        lab.daemon()?;
        let _pages = lab.nginx(Nginx::service("pages").port(80, 8080))?;
        let ask = |url: &str| lab.run("friend").curl_with(&["--max-time", "1"], url);
        poll::until("the rule to be in force", || {
            let (public, secret) = (ask("http://pages/public")?, ask("http://10.77.0.5:8080/secret")?);
            ensure!(public.code == 0 && secret.http == 403, "{public:?} {secret:?}");
            Ok(())
        })?;
        let secret = ask(&format!("http://{UNLISTED}:8080/secret"))?;
        ensure!(secret.code == curl::TIMED_OUT && secret.http == 0, "{secret:?}");
        Ok(())
    });
}

#[test]
fn who_listens_by_ipv6_alone_has_nobodys_ipv4_port() {
    lab_test("around-v6only", |lab| {
        lab.resource(
            "mesh.yaml",
            &resources::DENY.replace("accessDefault: deny", "outboundDefault: deny"),
        )?;
        lab.daemon()?;
        let traffic = lab.traffic()?;
        let mut servers = Vec::new();
        for mode in ["serve-echo", "serve-udp-echo"] {
            let mut server = Running::start(lab.command([traffic.as_str(), mode, "127.0.0.1:7007"]))?;
            server.line(1)?;
            servers.push(server);
        }
        let mut held = python(lab, "stranger", ONLY_V6, &[])?;
        for line in [1, 2] {
            ensure!(held.line(line)? == EPERM.to_string(), "{}", held.stdout());
        }
        Ok(())
    });
}

#[test]
fn clients_of_a_datagram_server_that_starts_again_go_on() {
    lab_test("around-restart", |lab| {
        lab.resource("access.yaml", &only_friend())?;
        lab.daemon_with(&["--inbound", "netns"])?;
        let first = echo(lab)?;
        let (mut held, mut lines) = friend(lab)?;
        poll::until("friend to be answered", || {
            let told = say(&mut held, &mut lines)?;
            ensure!(told["ok"] == true, "{told}");
            Ok(())
        })?;
        drop(first);
        let _second = echo(lab)?;
        poll::until("friend to be answered by the next one", || {
            let told = say(&mut held, &mut lines)?;
            ensure!(told["ok"] == true, "{told}");
            Ok(())
        })
    });
}

#[test]
fn a_datagram_that_was_refused_for_nobody_is_let_through_once_somebody_is_there() {
    lab_test("around-later", |lab| {
        let outbound = resources::DENY.replace("accessDefault: deny", "accessDefault: deny, outboundDefault: deny");
        ensure!(outbound != resources::DENY, "{outbound}");
        lab.resource("access.yaml", &only_friend().replace(resources::DENY, &outbound))?;
        lab.daemon()?;
        let (mut held, mut lines) = friend(lab)?;
        let told = say(&mut held, &mut lines)?;
        ensure!(told["errno"] == EPERM, "nobody is there: {told}");
        let _echo = echo(lab)?;
        poll::until("friend to be answered", || {
            let told = say(&mut held, &mut lines)?;
            ensure!(told["ok"] == true, "{told}");
            Ok(())
        })
    });
}
