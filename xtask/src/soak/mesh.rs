//! The mesh of a soak: three hosts, their servers, who may what, and the streams of traffic between them.
//!
//! - `a`: its daemon is killed and replaced all the time; judges at its network device too (`--device eth0`).
//! - `b`: its daemon lives from the start to the end; judges arrivals by sk_lookup too (`--inbound netns`).
//! - `c`: no daemon; its programs are known to `b` by their address, and told apart by the port they ask for.
//!
//! `echo` is reached directly, `tunnel` through the proxy as opaque bytes, `web` through it as HTTP; `far` and `far-tunnel` are
//! `b`'s, as `a` knows them. `fast` and `fast-tunnel` are `a`'s alone, and short-circuited: both ways, and to the proxy.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use vm_test::{
    Host, Hosts, Lab, Nginx, Running, Server, poll, resources,
    soak::{Flow, Kind, PAGE},
};

use super::stream::{Account, Client, Path, Stream};

/// Everything that serves; dropped, it ends.
pub struct Servers {
    _nginx: Vec<Server>,
    _echo: Vec<Running>,
}

/// Flags of each daemon, in the order of the hosts.
pub const FLAGS: [&[&str]; 2] = [
    &[
        "--device",
        "eth0",
        "--drain",
        "5",
        "--access-log",
        "off",
        // Whatever its self-test says of this kernel: programs of a soak ask for nothing that it warns of.
        "--short-circuit",
        "force",
    ],
    &["--inbound", "netns", "--drain", "5", "--access-log", "off"],
];

/// Where echo servers listen: on connections past the proxy, and behind it.
const ECHO: u16 = 7007;
const TUNNEL: u16 = 7107;
const FAST: u16 = 7207;
const FAST_TUNNEL: u16 = 7307;
/// Services whose bytes go past TCP.
const PAST_TCP: [&str; 2] = ["fast", "fast-tunnel"];
/// On `b`, for the programs of `c`: nobody may, and sometimes.
const NEVER: u16 = 7008;
const SOMETIMES: u16 = 7009;
const WEB: u16 = 8080;

/// Starts daemons and servers.
///
/// # Errors
/// Something does not start.
pub fn start(hosts: &Hosts) -> Result<Servers> {
    let [a, b, c] = hosts.all();
    a.resource("fast.yaml", &fast())?;
    for (host, flags) in [a, b].into_iter().zip(FLAGS) {
        host.resource("access.yaml", &access())?;
        host.resource(
            "tunnel.yaml",
            &(service("tunnel", &[("tcp", TUNNEL)], None) + &through_proxy("tunnel")),
        )?;
        host.daemon_with(flags)?;
    }
    a.resource("far.yaml", &far(b))?;
    b.resource("neighbours.yaml", &neighbours(a, c))?;
    Ok(Servers {
        _nginx: [a, b]
            .into_iter()
            .map(|host| host.nginx(Nginx::service("web").port(80, WEB).says(PAGE.trim_end())))
            .collect::<Result<_>>()?,
        _echo: vec![
            echo(a, "echo", &[ECHO])?,
            echo(a, "tunnel", &[TUNNEL])?,
            echo(a, "fast", &[FAST])?,
            echo(a, "fast-tunnel", &[FAST_TUNNEL])?,
            echo(b, "echo", &[ECHO, NEVER, SOMETIMES])?,
            echo(b, "tunnel", &[TUNNEL])?,
        ],
    })
}

/// TCP and UDP echo at `ports`; port 7 of the service is the first of them.
fn echo(lab: &Lab, name: &str, ports: &[u16]) -> Result<Running> {
    let mut run = lab.run(name);
    for (index, port) in ports.iter().enumerate() {
        for protocol in ["tcp", "udp"] {
            run = run.port(&format!("{}:{port}/{protocol}", 7 + index));
        }
    }
    let words = [lab.traffic()?, "serve-soak".to_owned()];
    let mut server = run.start(words.into_iter().chain(ports.iter().map(u16::to_string)))?;
    // Each port is told when TCP listens, and when UDP does.
    server.line(2 * ports.len())?;
    Ok(server)
}

/// Default deny; `friend` may do everything, on both hosts.
fn access() -> String {
    let rules = [
        resources::DENY.to_owned(),
        resources::tcp_route("tcp", &[ECHO, TUNNEL, FAST, FAST_TUNNEL]),
        resources::tcp_route("udp", &[ECHO]).replace("TCPRoute", "UDPRoute"),
        resources::tcp_route("tcp-sometimes", &[SOMETIMES]),
        resources::tcp_route("udp-sometimes", &[SOMETIMES]).replace("TCPRoute", "UDPRoute"),
        resources::route("get", "/", &["GET"]),
        may("friend", "friend"),
    ];
    rules.concat()
}

/// TrafficTargets named after `name`, for account `source`.
fn may(name: &str, source: &str) -> String {
    let targets = [
        ("echo", "TCPRoute", "tcp"),
        ("echo", "UDPRoute", "udp"),
        ("tunnel", "TCPRoute", "tcp"),
        ("fast", "TCPRoute", "tcp"),
        ("fast-tunnel", "TCPRoute", "tcp"),
        ("far", "TCPRoute", "tcp"),
        ("far", "UDPRoute", "udp"),
        ("web", "HTTPRouteGroup", "get"),
    ];
    let target = |(to, kind, route): (&str, &str, &str)| {
        resources::allow(&format!("{name}-{to}-{route}"), source, to, (kind, route))
    };
    targets.into_iter().map(target).collect()
}

/// What is applied on a host to allow or deny the account `flapper`; denied, the same objects speak of somebody else.
pub fn flapper(host: usize, allowed: bool) -> String {
    let who = |account| if allowed { account } else { "nobody" };
    let own = may("flapper", who("flapper"));
    if host == 0 {
        return own;
    }
    let plain = |kind, route| resources::allow(&format!("plain-{route}"), who("plain"), "echo", (kind, route));
    own + &plain("TCPRoute", "tcp-sometimes") + &plain("UDPRoute", "udp-sometimes")
}

/// What is short-circuited on `a`.
fn fast() -> String {
    let [full, proxy] = PAST_TCP;
    [
        resources::service_policy(full, &["acceleration: full"]),
        service(proxy, &[("tcp", FAST_TUNNEL)], None),
        through_proxy(proxy),
        resources::service_policy(proxy, &["acceleration: proxy"]),
    ]
    .concat()
}

/// `b`'s servers, as `a` knows them.
fn far(b: &Host) -> String {
    let selector = Some("far");
    [
        service("far", &[("tcp", ECHO), ("udp", ECHO)], selector),
        service("far-tunnel", &[("tcp", TUNNEL)], selector),
        through_proxy("far-tunnel"),
        resources::workload("far-on-b", "far", "far", &b.addresses()),
    ]
    .concat()
}

/// Who asks `b` from elsewhere: `a`, which has judged by itself, and `c`.
fn neighbours(a: &Host, c: &Host) -> String {
    let allow = |source: &str, to: &str, kind: &str, route: &str| {
        resources::allow(&format!("{source}-{to}-{route}"), source, to, (kind, route))
    };
    [
        resources::workload("a", "neighbour", "neighbour", &a.addresses()),
        resources::workload("c", "plain", "plain", &c.addresses()),
        allow("neighbour", "echo", "TCPRoute", "tcp"),
        allow("neighbour", "echo", "UDPRoute", "udp"),
        allow("neighbour", "tunnel", "TCPRoute", "tcp"),
        allow("plain", "echo", "TCPRoute", "tcp"),
        allow("plain", "echo", "UDPRoute", "udp"),
    ]
    .concat()
}

/// A Service whose port 7 is `target` by each protocol.
fn service(name: &str, ports: &[(&str, u16)], selector: Option<&str>) -> String {
    let selector = selector.map_or(String::new(), |app| format!("  selector: {{app: {app}}}\n"));
    let port = |(protocol, target): &(&str, u16)| {
        let upper = protocol.to_uppercase();
        format!("  - {{name: {protocol}, port: 7, targetPort: {target}, protocol: {upper}}}\n")
    };
    let ports: String = ports.iter().map(port).collect();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n{selector}  ports:\n{ports}"
    )
}

/// A split with HTTP matches sends a service's connections through the proxy; what is no HTTP passes it as opaque bytes.
fn through_proxy(service: &str) -> String {
    format!(
        "---\napiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\n\
         metadata: {{name: {service}-through-proxy, namespace: default}}\nspec:\n  service: {service}\n\
         \x20 matches: [{{kind: HTTPRouteGroup, name: get}}]\n  backends: [{{service: {service}-next, weight: 1}}]\n"
    )
}

/// All clients with their streams.
///
/// # Errors
/// A service has no virtual IP.
pub fn clients(hosts: &Hosts) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for (host, accounts) in [
        (0, &[Account::Friend, Account::Stranger, Account::Flapper][..]),
        (1, &[Account::Friend, Account::Flapper]),
    ] {
        for account in accounts {
            let streams = meshed(hosts.host(host), host, *account)?;
            clients.push(Client {
                host,
                account: Some(*account),
                streams,
            });
        }
    }
    clients.push(Client {
        host: 2,
        account: None,
        streams: plain(hosts.host(1)),
    });
    Ok(clients)
}

/// Of one account in the mesh, to everything its host knows.
fn meshed(host: &Host, index: usize, account: Account) -> Result<Vec<Stream>> {
    let mut streams = Vec::new();
    let mut add = |service: &str, port: u16, path: Path, kinds: &[Kind]| -> Result<()> {
        for address in virtual_ips(host, service)? {
            let target = SocketAddr::new(address, port);
            streams.extend(
                kinds
                    .iter()
                    .map(|kind| stream(index, account, service, path, *kind, target)),
            );
        }
        Ok(())
    };
    let bulk = if account == Account::Friend {
        &[Kind::Bulk][..]
    } else {
        &[]
    };
    let all = |kinds: &[Kind]| [kinds, bulk].concat();
    let echo = [Kind::Held, Kind::Short, Kind::Udp, Kind::Unconnected];
    add("echo", 7, Path::Direct, &all(&echo))?;
    add("tunnel", 7, Path::Proxied, &all(&[Kind::Held, Kind::Short]))?;
    add("web", 80, Path::Proxied, &[Kind::Http])?;
    if index == 0 {
        add("far", 7, Path::Direct, &all(&[Kind::Held, Kind::Short, Kind::Udp]))?;
        add("far-tunnel", 7, Path::Proxied, &[Kind::Held])?;
        add("fast", 7, Path::Direct, &all(&[Kind::Held, Kind::Short]))?;
        add("fast-tunnel", 7, Path::Proxied, &all(&[Kind::Held]))?;
    }
    Ok(streams)
}

/// Of programs outside the mesh, to `b`'s endpoints.
fn plain(b: &Host) -> Vec<Stream> {
    let mut streams = Vec::new();
    for (account, port) in [
        (Account::Friend, ECHO),
        (Account::Stranger, NEVER),
        (Account::Flapper, SOMETIMES),
    ] {
        for address in b.addresses() {
            for kind in [Kind::Held, Kind::Short, Kind::Udp] {
                let mut stream = stream(1, account, "b", Path::Direct, kind, SocketAddr::new(address, port));
                stream.outside = true;
                // Nobody tells a program outside that it is denied: silence does.
                if account != Account::Friend {
                    stream.flow.patience_ms = SILENT_MS;
                }
                streams.push(stream);
            }
        }
    }
    streams
}

/// What a friend waits for an answer, on a machine with more to do than two cores can.
const PATIENT_MS: u64 = 10_000;
/// What one waits who expects to be denied by silence; well below the second between two changes.
const SILENT_MS: u64 = 300;

fn stream(host: usize, account: Account, service: &str, path: Path, kind: Kind, target: SocketAddr) -> Stream {
    // Two cores carry all of it and the daemons: some 3,500 rounds a second in all.
    let every_ms = match (kind, account) {
        (Kind::Bulk, _) => 2_000,
        (_, Account::Stranger) => 200,
        (Kind::Short, _) => 100,
        (Kind::Udp, Account::Flapper) => 10,
        (Kind::Unconnected, _) => 50,
        (_, _) => 25,
    };
    let bytes = match kind {
        Kind::Bulk => 256 * 1024,
        Kind::Udp | Kind::Unconnected => 1_200,
        _ => 4_096,
    };
    let flow = Flow {
        kind,
        target,
        every_ms,
        bytes,
        patience_ms: PATIENT_MS,
        tell_all: account != Account::Friend,
    };
    Stream {
        host,
        account,
        service: service.to_owned(),
        path,
        past_tcp: PAST_TCP.contains(&service),
        outside: false,
        flow,
    }
}

fn virtual_ips(host: &Host, name: &str) -> Result<[IpAddr; 2]> {
    poll::until(&format!("the virtual IPs of {name}"), || {
        let status = host.status()?;
        let services = status["services"].as_array().context("services")?;
        let service = services
            .iter()
            .find(|service| service["name"] == name)
            .context("not there")?;
        let vip = |field: &str| -> Result<IpAddr> { Ok(service[field].as_str().context("an address")?.parse()?) };
        Ok([vip("vip4")?, vip("vip6")?])
    })
}

/// Waits until everybody who may is served, on every stream.
///
/// # Errors
/// Somebody is not, in time.
pub fn await_served(hosts: &Hosts, clients: &[Client]) -> Result<()> {
    for client in clients {
        let host = hosts.host(client.host);
        for stream in client
            .streams
            .iter()
            .filter(|stream| stream.account != Account::Stranger)
        {
            let target = stream.flow.target.to_string();
            let words = match stream.flow.kind {
                Kind::Held => vec![host.traffic()?, "half-close".into(), target, "100".into()],
                Kind::Udp | Kind::Unconnected => vec![host.traffic()?, "udp-echo".into(), target],
                Kind::Http => {
                    let service = host.run(stream.account.name());
                    poll::until(&format!("{stream} to be served"), || {
                        let answer = service.curl(&format!("http://{target}/"))?;
                        ensure!(answer.http == 200 && answer.body == PAGE, "{answer:?}");
                        Ok(())
                    })?;
                    continue;
                }
                Kind::Short | Kind::Bulk => continue,
            };
            poll::until(&format!("{stream} to be served"), || {
                let output = if client.account.is_some() {
                    host.run(stream.account.name()).output(words.clone())?
                } else {
                    host.outside(words.clone())?
                };
                output.ok().map(drop)
            })?;
        }
    }
    Ok(())
}
