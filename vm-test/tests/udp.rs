//! Datagrams: connected and unconnected sockets, both families, verdicts on a flow's initiator, answers that follow it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{Actor, Lab, Running, hosts_test, lab_test, need, poll, resources};

const EPERM: i64 = 1;
const ECONNREFUSED: i64 = 111;
const FAMILIES: [&str; 2] = ["127.0.0.1", "[::1]"];

/// `account` may send to port 7007 of `echo`, nobody else may send to anybody.
fn only(account: &str) -> String {
    let route = resources::tcp_route("echo-udp", &[7007]).replace("TCPRoute", "UDPRoute");
    let allow = resources::allow("may-echo", account, "echo", ("UDPRoute", "echo-udp"));
    format!("{}{route}{allow}", resources::DENY)
}

fn echo(lab: &Lab, service: &str, port: &str, address: &str) -> Result<Running> {
    let traffic = lab.traffic()?;
    let mut server = lab
        .run(service)
        .port(port)
        .start([traffic.as_str(), "serve-udp-echo", address])?;
    server.line(1)?;
    Ok(server)
}

/// One datagram from an unconnected socket; what the program was told.
fn unconnected(lab: &Lab, account: &str, target: &str) -> Result<Value> {
    lab.run(account)
        .output([lab.traffic()?, "udp-echo".into(), target.into()])?
        .json()
}

/// One datagram from a connected socket.
fn connected(lab: &Lab, account: &str, target: &str) -> Result<Value> {
    let traffic = lab.traffic()?;
    let mut client = lab.run(account).start([traffic.as_str(), "udp-hold", target])?;
    client.line(1)?;
    client.say("ping")?;
    serde_json::from_str(&client.line(2)?).context("what it told")
}

/// The virtual IPs of service `name`.
fn vips(lab: &Lab, name: &str) -> Result<[String; 2]> {
    let status = lab.status()?;
    let services = status["services"].as_array().context("services")?;
    let service = services
        .iter()
        .find(|service| service["name"] == name)
        .context("the service")?;
    let vip = |field: &str| service[field].as_str().with_context(|| format!("{field} of {service}"));
    Ok([vip("vip4")?.to_owned(), format!("[{}]", vip("vip6")?)])
}

#[test]
fn a_service_is_reached_by_datagrams_of_connected_and_unconnected_sockets() {
    lab_test("udp-vip", |lab| {
        lab.daemon()?;
        let _echo = echo(lab, "echo", "7:7007/udp", "[::]:7007")?;
        for vip in vips(lab, "echo")? {
            let target = format!("{vip}:7");
            poll::until("the endpoint to be there", || {
                let told = unconnected(lab, "friend", &target)?;
                ensure!(told["ok"] == true, "{target}: {told}");
                // The answer comes from whom the question was sent to.
                ensure!(told["from"] == target.as_str(), "{told}");
                Ok(())
            })?;
            let told = connected(lab, "friend", &target)?;
            ensure!(told["ok"] == true, "{target}: {told}");
        }
        lab.flow("the flow with its service", |flow| {
            flow["event"] == "open"
                && flow["protocol"] == "udp"
                && flow["source"]["account"] == "friend"
                && flow["destination"]["service"] == "echo"
                && flow["destination"]["port"] == 7
        })?;
        Ok(())
    });
}

#[test]
fn a_denied_sender_is_told_at_once_on_both_kinds_of_socket() {
    lab_test("udp-deny", |lab| {
        lab.resource("access.yaml", &only("friend"))?;
        lab.daemon()?;
        let _echo = echo(lab, "echo", "7:7007/udp", "[::]:7007")?;
        let mut targets: Vec<String> = FAMILIES.iter().map(|host| format!("{host}:7007")).collect();
        targets.extend(vips(lab, "echo")?.into_iter().map(|vip| format!("{vip}:7")));
        for target in &targets {
            poll::until("friend to be allowed", || {
                let told = unconnected(lab, "friend", target)?;
                ensure!(told["ok"] == true, "{target}: {told}");
                Ok(())
            })?;
            ensure!(connected(lab, "friend", target)?["ok"] == true, "{target}");
            for told in [
                unconnected(lab, "stranger", target)?,
                connected(lab, "stranger", target)?,
            ] {
                ensure!(told["errno"] == EPERM, "{target}: {told}");
            }
        }
        lab.flow("the denial", |flow| {
            flow["verdict"] == "deny"
                && flow["protocol"] == "udp"
                && flow["source"]["account"] == "stranger"
                && flow["rule"]["kind"] == "MeshConfig"
                && flow["errno"] == EPERM
        })?;
        Ok(())
    });
}

#[test]
fn a_port_that_another_account_sent_from_before_carries_no_verdict_over() {
    lab_test("udp-port", |lab| {
        lab.resource("access.yaml", &only("friend"))?;
        lab.daemon()?;
        let _echo = echo(lab, "echo", "7:7007/udp", "[::]:7007")?;
        for host in FAMILIES {
            let from = |account: &str, port: &str| -> Result<Value> {
                let words = [lab.traffic()?, "udp-echo".into(), format!("{host}:7007"), port.into()];
                lab.run(account).output(words)?.json()
            };
            poll::until("friend to be answered", || {
                let told = from("friend", "40001")?;
                ensure!(told["ok"] == true, "{told}");
                Ok(())
            })?;
            let told = from("stranger", "40001")?;
            ensure!(told["errno"] == EPERM, "friend's port: {told}");
            let told = from("stranger", "40002")?;
            ensure!(told["errno"] == EPERM, "{told}");
            let told = from("friend", "40002")?;
            ensure!(told["ok"] == true, "a stranger's port: {told}");
        }
        Ok(())
    });
}

#[test]
fn answers_pass_under_default_deny_and_nothing_else_of_the_answering_side() {
    lab_test("udp-answers", |lab| {
        lab.resource("access.yaml", &only("friend"))?;
        lab.daemon()?;
        let _echo = echo(lab, "echo", "7:7007/udp", "[::]:7007")?;
        let _friend = echo(lab, "friend", "8:7008/udp", "[::]:7008")?;
        for host in FAMILIES {
            poll::until("friend to be answered", || {
                let told = unconnected(lab, "friend", &format!("{host}:7007"))?;
                ensure!(told["ok"] == true, "{told}");
                Ok(())
            })?;
            let told = unconnected(lab, "echo", &format!("{host}:7008"))?;
            ensure!(told["errno"] == EPERM, "echo begins a flow of its own: {told}");
        }
        Ok(())
    });
}

#[test]
fn a_sender_on_another_host_is_known_by_its_address() {
    for (name, flags) in [
        ("udp-skb", &[][..]),
        ("udp-lookup", &["--inbound", "netns"]),
        ("udp-tc", &["--device", "eth0"]),
    ] {
        hosts_test(name, 3, |hosts| {
            let [a, b, c] = hosts.all();
            b.daemon_with(flags)?;
            b.resource(
                "peer.yaml",
                &resources::workload("peer", "peer", "peer", &a.addresses()),
            )?;
            b.resource("access.yaml", &only("peer"))?;
            let _echo = echo(b, "echo", "7:7007/udp", "[::]:7007")?;
            let send = |host: &vm_test::Host, target: &str| -> Result<Value> {
                let traffic = host.traffic()?;
                let mut client = Running::start(host.command([traffic.as_str(), "udp-hold", target]))?;
                client.line(1)?;
                client.say("ping")?;
                serde_json::from_str(&client.line(2)?).context("what it told")
            };
            for address in b.addresses() {
                let target = std::net::SocketAddr::new(address, 7007).to_string();
                poll::until("the peer to be answered and the stranger not", || {
                    let (peer, stranger) = (send(a, &target)?, send(c, &target)?);
                    ensure!(peer["ok"] == true, "{target}: {peer} {stranger}");
                    if flags.contains(&"--inbound") {
                        ensure!(stranger["errno"] == ECONNREFUSED, "port unreachable: {stranger}");
                    } else {
                        ensure!(stranger["lost"] == true, "dropped: {stranger}");
                    }
                    Ok(())
                })?;
            }
            b.flow("the refusal", |flow| {
                flow["verdict"] == "deny" && flow["protocol"] == "udp" && flow["source"]["account"] == "unknown"
            })?;
            Ok(())
        });
    }
}

fn actor(lab: &Lab, account: &str, ports: &[&str]) -> Result<Actor> {
    let traffic = lab.traffic()?;
    let words = [&[traffic.as_str(), "actor"], ports].concat();
    Actor::new(lab.run(account).start(words)?)
}

fn strangers_are_denied(lab: &Lab) -> Result<()> {
    poll::until("strangers to be denied", || {
        let told = unconnected(lab, "stranger", "127.0.0.1:7007")?;
        ensure!(told["errno"] == EPERM, "{told}");
        Ok(())
    })
}

/// Found by `tests/judge`: what a server was not allowed to send made its client's own flow be denied for minutes.
#[test]
fn a_datagram_that_was_denied_is_no_begin_of_the_other_ends_flow() {
    lab_test("udp-begin", |lab| {
        lab.daemon()?;
        let (mut echo, mut friend) = (actor(lab, "echo", &["7007"])?, actor(lab, "friend", &[])?);
        lab.resource("access.yaml", &only("friend"))?;
        strangers_are_denied(lab)?;
        let told = friend.step("open a udp 127.0.0.1:7007")?;
        let push = format!("push 7007 {}", told["local"].as_str().context("an address")?);
        let told = echo.step(&push)?;
        ensure!(told["errno"] == EPERM, "echo may send to nobody: {told}");
        let told = friend.step("say a GET")?;
        ensure!(told["ok"] == true, "the client's own: {told}");
        let told = echo.step(&push)?;
        ensure!(told["ok"] == true, "an answer now: {told}");
        ensure!(friend.step("hear a")?["ok"] == true, "an answer is heard");
        Ok(())
    });
}

#[test]
fn a_flow_that_was_cut_is_not_begun_anew_by_what_its_server_still_sends() {
    lab_test("udp-cut", |lab| {
        lab.daemon()?;
        let (mut echo, mut friend) = (actor(lab, "echo", &["7007"])?, actor(lab, "friend", &[])?);
        // Echo may send to its client by itself, whoever may send to echo.
        let to_friend = resources::tcp_route("friend-udp", &[]).replace("TCPRoute", "UDPRoute");
        let to_friend = to_friend + &resources::allow("echo-may", "echo", "friend", ("UDPRoute", "friend-udp"));
        lab.resource("access.yaml", &(only("friend") + &to_friend))?;
        strangers_are_denied(lab)?;
        let told = friend.step("open a udp 127.0.0.1:7007")?;
        let push = format!("push 7007 {}", told["local"].as_str().context("an address")?);
        ensure!(friend.step("say a GET")?["ok"] == true, "before");
        lab.resource("access.yaml", &(only("nobody") + &to_friend))?;
        poll::until("friend to be denied", || {
            let told = unconnected(lab, "friend", "127.0.0.1:7007")?;
            ensure!(told["errno"] == EPERM, "{told}");
            Ok(())
        })?;
        let told = echo.step(&push)?;
        ensure!(told["errno"] == EPERM, "the flow is cut both ways: {told}");
        let told = friend.step("say a GET")?;
        ensure!(told["errno"] == EPERM, "after: {told}");
        Ok(())
    });
}

#[test]
fn whoever_has_a_clients_port_next_gets_none_of_its_answers() {
    lab_test("udp-next-client", |lab| {
        lab.daemon()?;
        let mut echo = actor(lab, "echo", &["7007"])?;
        lab.resource("access.yaml", &only("friend"))?;
        strangers_are_denied(lab)?;
        let mut friend = actor(lab, "friend", &["7009"])?;
        let told = friend.step("push 7009 127.0.0.1:7007")?;
        ensure!(told["ok"] == true, "{told}");
        drop(friend);
        let _stranger = actor(lab, "stranger", &["7009"])?;
        echo.step("push 7007 127.0.0.1:7009")?;
        lab.flow("the refusal of what stranger did not ask for", |flow| {
            flow["verdict"] == "deny"
                && flow["protocol"] == "udp"
                && flow["destination"]["account"] == "stranger"
                && flow["destination"]["port"] == 7009
        })?;
        Ok(())
    });
}

#[test]
fn whoever_has_a_servers_port_next_gets_nothing_of_its_clients() {
    lab_test("udp-next-server", |lab| {
        lab.daemon()?;
        let echo = actor(lab, "echo", &["7007"])?;
        lab.resource("access.yaml", &only("friend"))?;
        strangers_are_denied(lab)?;
        let mut friend = actor(lab, "friend", &["7009"])?;
        let told = friend.step("push 7009 127.0.0.1:7007")?;
        ensure!(told["ok"] == true, "{told}");
        drop(echo);
        let mut other = actor(lab, "other", &["7007"])?;
        let told = other.step("push 7007 127.0.0.1:7009")?;
        ensure!(told["errno"] == EPERM, "no answer, for nobody asked other: {told}");
        poll::until("friend to be told that it may not send to other", || {
            let told = friend.step("push 7009 127.0.0.1:7007")?;
            ensure!(told["errno"] == EPERM, "{told}");
            Ok(())
        })
    });
}

/// Sends 20 datagrams from one unconnected socket and prints who answered, each once.
const CONVERSATION: &str = "import socket, sys\n\
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
    s.settimeout(5)\n\
    who = set()\n\
    for n in range(20):\n\
    \x20   s.sendto(b'%d' % n, (sys.argv[1], 7))\n\
    \x20   who.add('%s:%d' % s.recvfrom(99)[1])\n\
    print(*who)\n";

#[test]
fn a_conversation_on_an_unconnected_socket_is_with_one_endpoint() {
    lab_test("udp-same", |lab| {
        lab.daemon()?;
        let _first = echo(lab, "echo", "7:7007/udp", "0.0.0.0:7007")?;
        let _second = echo(lab, "echo", "7:7008/udp", "0.0.0.0:7008")?;
        let [vip, _] = vips(lab, "echo")?;
        for _ in 0..5 {
            poll::until("a conversation", || {
                let told = lab.run("friend").output(["python3", "-c", CONVERSATION, &vip])?.ok()?;
                ensure!(told.stdout.trim() == format!("{vip}:7"), "{told:?}");
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// Asks each service by the address given, all before the first answer is looked at, from one unconnected socket; then
/// again from one that is connected to the first. Prints who answered, and whom the second socket takes for its peer.
const SEVERAL: &str = "import socket, sys\n\
    to = [(a.rsplit(':', 1)[0].strip('[]'), int(a.rsplit(':', 1)[1])) for a in sys.argv[1:]]\n\
    family = socket.AF_INET6 if ':' in to[0][0] else socket.AF_INET\n\
    def told(pair):\n\
    \x20   return ('[%s]:%d' if ':' in pair[0] else '%s:%d') % pair[:2]\n\
    s = socket.socket(family, socket.SOCK_DGRAM)\n\
    s.settimeout(5)\n\
    for _ in range(3):\n\
    \x20   for address in to:\n\
    \x20       s.sendto(b'x', address)\n\
    \x20   print(*sorted(told(s.recvfrom(99)[1]) for _ in to))\n\
    s = socket.socket(family, socket.SOCK_DGRAM)\n\
    s.connect(to[0])\n\
    for address in to[1:]:\n\
    \x20   s.sendto(b'x', address)\n\
    print(told(s.getpeername()))\n";

#[test]
fn each_answer_seems_to_come_from_whom_its_question_was_sent_to() {
    lab_test("udp-several", |lab| {
        lab.daemon()?;
        // As many as are remembered: the last one, and those before it.
        let services: Vec<(String, u16)> = (0..=weft_abi::MAX_ASKED as u16)
            .map(|n| (format!("echo{n}"), 7100 + n))
            .collect();
        let _servers = services
            .iter()
            .map(|(name, port)| echo(lab, name, &format!("7:{port}/udp"), &format!("[::]:{port}")))
            .collect::<Result<Vec<_>>>()?;
        for family in 0..2 {
            let mut targets = Vec::new();
            for (name, _) in &services {
                let target = format!("{}:7", vips(lab, name)?[family]);
                poll::until("the endpoint to be there", || {
                    let told = unconnected(lab, "friend", &target)?;
                    ensure!(told["ok"] == true, "{target}: {told}");
                    Ok(())
                })?;
                targets.push(target);
            }
            let words = [
                vec!["python3", "-c", SEVERAL],
                targets.iter().map(String::as_str).collect(),
            ]
            .concat();
            let told = lab.run("friend").output(words)?.ok()?;
            let mut sorted = targets.clone();
            sorted.sort();
            let answered = format!("{}\n", sorted.join(" "));
            ensure!(
                told.stdout == format!("{answered}{answered}{answered}{}\n", targets[0]),
                "{targets:?}: {told:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_service_without_endpoint_is_not_whoever_has_its_port_here() {
    lab_test("udp-nobody", |lab| {
        lab.daemon()?;
        let yaml = "---\napiVersion: v1\nkind: Service\nmetadata: {name: void, namespace: default}\n\
                    spec: {ports: [{name: echo, port: 7007, protocol: UDP}]}\n";
        lab.apply(yaml)?;
        let traffic = lab.traffic()?;
        let mut strange = Running::start(lab.command([traffic.as_str(), "serve-udp-echo", "[::]:7007"]))?;
        strange.line(1)?;
        for vip in vips(lab, "void")? {
            let target = format!("{vip}:7007");
            for told in [unconnected(lab, "friend", &target)?, connected(lab, "friend", &target)?] {
                ensure!(told["ok"] == false && told["errno"] == EPERM, "{target}: {told}");
            }
        }
        lab.flow("the refusal", |flow| {
            flow["verdict"] == "deny"
                && flow["protocol"] == "udp"
                && flow["source"]["account"] == "friend"
                && flow["destination"]["service"] == "void"
                && flow["reason"] == "default/void has no endpoint on port 7007"
                && flow["errno"] == EPERM
        })?;
        Ok(())
    });
}

/// The kernel carries no IPv6 socket's datagram to an IPv4 address that the socket did not name itself.
#[test]
fn an_unconnected_ipv6_socket_is_told_that_a_service_has_ipv4_endpoints_alone() {
    lab_test("udp-only4", |lab| {
        lab.daemon()?;
        let _echo = echo(lab, "echo", "7:7007/udp", "0.0.0.0:7007")?;
        let [target4, target6] = vips(lab, "echo")?.map(|vip| format!("{vip}:7"));
        poll::until("the endpoint to be there", || {
            let told = unconnected(lab, "friend", &target4)?;
            ensure!(told["ok"] == true, "{target4}: {told}");
            Ok(())
        })?;
        // A connected one becomes an IPv4 socket.
        let told = connected(lab, "friend", &target6)?;
        ensure!(told["ok"] == true, "{target6}: {told}");
        let told = unconnected(lab, "friend", &target6)?;
        ensure!(told["errno"] == EPERM, "{target6}: {told}");
        lab.flow("the refusal", |flow| {
            let reason = flow["reason"].as_str().unwrap_or_default();
            flow["verdict"] == "deny"
                && flow["protocol"] == "udp"
                && flow["source"]["account"] == "friend"
                && flow["destination"]["service"] == "echo"
                && reason.contains("has IPv4 endpoints alone")
        })?;
        Ok(())
    });
}

/// Prints what the kernel says to one datagram of UDP-Lite.
const LITE: &str = "import socket\n\
    try:\n\
    \x20   s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)\n\
    except OSError:\n\
    \x20   print('none')\n\
    else:\n\
    \x20   try:\n\
    \x20       s.sendto(b'x', ('127.0.0.1', 7007))\n\
    \x20       print('sent')\n\
    \x20   except OSError as error:\n\
    \x20       print(error.errno)\n";

#[test]
fn udp_lite_is_judged_as_udp() {
    lab_test("udp-lite", |lab| {
        lab.resource("access.yaml", &only("friend"))?;
        lab.daemon()?;
        let _echo = echo(lab, "echo", "7:7007/udp", "[::]:7007")?;
        let told = |account: &str| {
            let output = lab.run(account).output(["python3", "-c", LITE])?.ok()?;
            Ok::<_, anyhow::Error>(output.stdout.trim().to_owned())
        };
        if told("friend")? == "none" {
            need::absent("udp_lite_is_judged_as_udp", "no UDP-Lite in this kernel", "nothing");
            return Ok(());
        }
        poll::until("friend to be allowed", || {
            let friend = told("friend")?;
            ensure!(friend == "sent", "{friend}");
            Ok(())
        })?;
        let stranger = told("stranger")?;
        ensure!(stranger == EPERM.to_string(), "{stranger}");
        Ok(())
    });
}

/// Sends twelve bytes that begin as SCTP does: ports 5000 and 7007, then a tag.
const SCTP: &str = "import socket, struct, sys\n\
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)\n\
    s.sendto(struct.pack('!HHII', 5000, 7007, int(sys.argv[1]), 0), ('127.0.0.1', 0))\n";
/// Prints the tags of such packets.
const SCTP_SERVER: &str = "import socket, struct\n\
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)\n\
    while True:\n\
    \x20   print(struct.unpack('!HHII', s.recv(2048)[20:32])[2], flush=True)\n";

#[test]
fn what_is_not_carried_but_has_ports_is_judged_by_the_default() {
    lab_test("sctp", |lab| {
        lab.daemon()?;
        let server = lab.run("echo").start(["python3", "-c", SCTP_SERVER])?;
        let send = |tag: &str| lab.run("friend").output(["python3", "-c", SCTP, tag])?.ok();
        let arrives = |tag: &str| {
            poll::until("a packet where nothing protects the server", || {
                send(tag)?;
                ensure!(server.stdout().lines().any(|line| line == tag), "none");
                Ok(())
            })
        };
        arrives("1")?;
        lab.resource("access.yaml", &only("friend"))?;
        poll::until("a packet to be denied", || {
            send("2")?;
            let denied = |flow: &Value| flow["verdict"] == "deny" && flow["protocol"] == "sctp";
            ensure!(lab.flows()?.iter().any(denied), "none");
            Ok(())
        })?;
        send("3")?;
        lab.resource("access.yaml", "")?;
        arrives("4")?;
        ensure!(!server.stdout().lines().any(|line| line == "3"), "it got through");
        Ok(())
    });
}
