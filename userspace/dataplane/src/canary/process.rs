//! What the canary's process does. It moves through its three cgroups, for whose a socket is, is noted where it is made.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    time::Duration,
};

use socket2::SockRef;

use super::{ALLOWED, CLIENT_CGROUP, DENIED, Server, VIP4, VIP6, Verdict};

/// How often everything is done, so that nanoseconds a run mean something. What went wrong is not tried again.
const ROUNDS: usize = 50;
/// What takes longer on loopback was dropped by somebody's filter, or has gone elsewhere.
const PATIENCE: Duration = Duration::from_secs(2);
const TOKEN: &[u8] = b"weft doctor";

struct Family {
    /// As programs' names end.
    number: char,
    host: IpAddr,
    vip: IpAddr,
}

static FAMILIES: [Family; 2] = [
    Family {
        number: '4',
        host: IpAddr::V4(Ipv4Addr::LOCALHOST),
        vip: IpAddr::V4(VIP4),
    },
    Family {
        number: '6',
        host: IpAddr::V6(Ipv6Addr::LOCALHOST),
        vip: IpAddr::V6(VIP6),
    },
];

/// One thing that is done in each family.
struct Check {
    protocol: &'static str,
    outcome: &'static str,
    /// Programs that have a part in it; those of one family without its number.
    programs: &'static [&'static str],
    run: fn(&Scene) -> Result<(), String>,
}

static CHECKS: [Check; 5] = [
    Check {
        protocol: "tcp",
        outcome: "denied",
        programs: &["weft_connect"],
        run: Scene::tcp_denied,
    },
    Check {
        protocol: "tcp",
        outcome: "allowed",
        programs: &["weft_connect", "weft_getpeer"],
        run: Scene::tcp_allowed,
    },
    Check {
        protocol: "udp",
        outcome: "connected",
        programs: &["weft_connect", "weft_getpeer"],
        run: Scene::udp_connected,
    },
    Check {
        protocol: "udp",
        outcome: "unconnected",
        programs: &["weft_sendmsg", "weft_recvmsg"],
        run: Scene::udp_unconnected,
    },
    Check {
        protocol: "udp",
        outcome: "denied",
        programs: &["weft_sendmsg", "weft_skb_out"],
        run: Scene::udp_denied,
    },
];

/// A server's sockets of one family.
struct Sockets {
    tcp: TcpListener,
    udp: UdpSocket,
}

/// The servers of one family, as the client sees them.
struct Scene {
    family: &'static Family,
    allowed: Sockets,
    /// Held: by whose it is, a datagram is judged.
    _denied: Sockets,
}

// === impl Check ===

impl Check {
    fn name(&self, family: &Family) -> String {
        format!("{}{} {}", self.protocol, family.number, self.outcome)
    }
}

/// Programs that have a part in the verdict of this name.
pub(super) fn programs_of(verdict: &str) -> Vec<String> {
    let of = |check: &Check, family: &Family| -> Vec<String> {
        let names = check.programs.iter();
        names
            .map(|name| match *name {
                "weft_skb_out" => (*name).to_owned(),
                name => format!("{name}{}", family.number),
            })
            .collect()
    };
    let all = CHECKS
        .iter()
        .flat_map(|check| FAMILIES.iter().map(move |family| (check, family)));
    all.filter(|(check, family)| check.name(family) == verdict)
        .flat_map(|(check, family)| of(check, family))
        .collect()
}

/// Does it all, [`ROUNDS`] times, in the cgroups below `place`. Each wait is bounded by [`PATIENCE`], and there are three at most
/// in each thing that is done. A family that loopback does not have is left out.
///
/// # Errors
///
/// A cgroup cannot be entered, or a server's port is taken.
pub fn prove(place: &Path) -> io::Result<Vec<Verdict>> {
    let allowed = serve(place, &ALLOWED)?;
    let denied = serve(place, &DENIED)?;
    enter(&place.join(CLIENT_CGROUP))?;
    let scenes: Vec<Scene> = FAMILIES
        .iter()
        .zip(allowed.into_iter().zip(denied))
        .filter_map(|(family, servers)| {
            Some(Scene {
                family,
                allowed: servers.0?,
                _denied: servers.1?,
            })
        })
        .collect();
    let mut tried: Vec<(&Scene, &Check, Option<String>)> = scenes
        .iter()
        .flat_map(|scene| CHECKS.iter().map(move |check| (scene, check, None)))
        .collect();
    for _ in 0..ROUNDS {
        for (scene, check, wrong) in &mut tried {
            if wrong.is_none() {
                *wrong = (check.run)(scene).err();
            }
        }
    }
    let verdicts = tried.into_iter().map(|(scene, check, wrong)| Verdict {
        name: check.name(scene.family),
        wrong,
    });
    Ok(verdicts.collect())
}

fn enter(cgroup: &Path) -> io::Result<()> {
    let entered = fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string());
    entered.map_err(|error| io::Error::new(error.kind(), format!("enter cgroup {}: {error}", cgroup.display())))
}

/// Sockets of a server, family by family; `None`: loopback does not have this one.
fn serve(place: &Path, server: &Server) -> io::Result<Vec<Option<Sockets>>> {
    enter(&place.join(server.cgroup))?;
    let sockets = FAMILIES.iter().map(|family| {
        let at = SocketAddr::new(family.host, server.target);
        match Sockets::open(at) {
            Ok(sockets) => Ok(Some(sockets)),
            Err(error)
                if error.kind() == io::ErrorKind::AddrNotAvailable
                    || error.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
            {
                Ok(None)
            }
            Err(error) => Err(io::Error::new(error.kind(), format!("listen at {at}: {error}"))),
        }
    });
    sockets.collect()
}

// === impl Sockets ===

impl Sockets {
    fn open(at: SocketAddr) -> io::Result<Self> {
        let (tcp, udp) = (TcpListener::bind(at)?, UdpSocket::bind(at)?);
        // accept(2) keeps to it (socket(7)).
        SockRef::from(&tcp).set_read_timeout(Some(PATIENCE))?;
        udp.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { tcp, udp })
    }

    /// Hears one datagram and answers it.
    fn echo(&self) -> io::Result<()> {
        let mut heard = [0; TOKEN.len()];
        let (count, client) = self.udp.recv_from(&mut heard)?;
        self.udp.send_to(&heard[..count], client).map(drop)
    }
}

// === impl Scene ===

impl Scene {
    fn vip(&self, server: &Server) -> SocketAddr {
        SocketAddr::new(self.family.vip, server.port)
    }

    fn tcp_denied(&self) -> Result<(), String> {
        denied(TcpStream::connect_timeout(&self.vip(&DENIED), PATIENCE).map(drop))
    }

    fn tcp_allowed(&self) -> Result<(), String> {
        let vip = self.vip(&ALLOWED);
        let mut client = TcpStream::connect_timeout(&vip, PATIENCE).map_err(failed("connect"))?;
        same("getpeername", client.peer_addr(), vip)?;
        client.write_all(TOKEN).map_err(failed("write"))?;
        let (mut server, _) = self.allowed.tcp.accept().map_err(failed("accept"))?;
        server
            .set_read_timeout(Some(PATIENCE))
            .map_err(failed("set a timeout"))?;
        let mut heard = [0; TOKEN.len()];
        server.read_exact(&mut heard).map_err(failed("read at the server"))?;
        // Who closes first keeps the port for a minute: not the server.
        drop(client);
        is_token(&heard)
    }

    fn udp_connected(&self) -> Result<(), String> {
        let (client, vip) = (self.udp_client()?, self.vip(&ALLOWED));
        client.connect(vip).map_err(failed("connect"))?;
        same("getpeername", client.peer_addr(), vip)?;
        client.send(TOKEN).map_err(failed("send"))?;
        self.allowed.echo().map_err(failed("receive at the server"))?;
        let mut heard = [0; TOKEN.len()];
        client.recv(&mut heard).map_err(failed("receive the answer"))?;
        is_token(&heard)
    }

    fn udp_unconnected(&self) -> Result<(), String> {
        let (client, vip) = (self.udp_client()?, self.vip(&ALLOWED));
        client.send_to(TOKEN, vip).map_err(failed("sendto"))?;
        self.allowed.echo().map_err(failed("receive at the server"))?;
        let mut heard = [0; TOKEN.len()];
        let (_, from) = client.recv_from(&mut heard).map_err(failed("receive the answer"))?;
        same("recvfrom", Ok(from), vip)?;
        is_token(&heard)
    }

    fn udp_denied(&self) -> Result<(), String> {
        denied(self.udp_client()?.send_to(TOKEN, self.vip(&DENIED)).map(drop))
    }

    fn udp_client(&self) -> Result<UdpSocket, String> {
        let client = UdpSocket::bind((self.family.host, 0)).map_err(failed("bind"))?;
        client
            .set_read_timeout(Some(PATIENCE))
            .map_err(failed("set a timeout"))?;
        Ok(client)
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> String {
    move |error| format!("{what}: {error}")
}

fn denied(tried: io::Result<()>) -> Result<(), String> {
    match tried {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        Err(error) => Err(format!("expected EPERM: {error}")),
        Ok(()) => Err("expected EPERM: it was let through".to_owned()),
    }
}

fn same(what: &str, told: io::Result<SocketAddr>, asked: SocketAddr) -> Result<(), String> {
    match told {
        Ok(told) if told == asked => Ok(()),
        Ok(told) => Err(format!("{what} says {told}, {asked} was asked for")),
        Err(error) => Err(format!("{what}: {error}")),
    }
}

fn is_token(heard: &[u8]) -> Result<(), String> {
    if heard == TOKEN {
        Ok(())
    } else {
        Err("other bytes arrived than were sent".to_owned())
    }
}
