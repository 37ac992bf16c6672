//! What a pod's network namespace needs so that a server in it sees its clients' addresses through the proxy.
//!
//! ```text
//! client --> eth0 --> sk_lookup --> proxy ==> socket with the client's address, SO_MARK --> lo --> server
//!                                                  ^                                                 |
//!                                                  +---- lo <-- table 15006 <-- rule: our mark <-----+
//! ```
//!
//! The server's answer is addressed to the client. It must come back to the proxy's socket instead of leaving by eth0: the
//! server's end of the connection has the mark of the SYN (`net.ipv4.tcp_fwmark_accept`, both families), a rule sends what
//! is so marked to a table of our own, and all that table knows is that every address is local (`ip-rule(8)`, and
//! Documentation/networking/tproxy.rst of the kernel).
//!
//! Everything here acts on the calling thread's network namespace, which must be a pod's own, never the machine's.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    time::Duration,
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage},
};
use nix::{net::if_::if_nametoindex, sys::socket::SockProtocol};
use socket2::{Domain, SockRef, Socket, Type};

use crate::netlink;

/// SO_MARK of the proxy's sockets with a client's address: "weft" in ASCII. Programs in a pod cannot set it (CAP_NET_ADMIN).
pub const MARK: u32 = 0x7765_6674;
/// Number of our routing table and priority of our rule: before the main table, behind the local one.
const TABLE: u32 = 15_006;
/// A namespace's own value is seen and written by whoever stands in it.
const INHERIT: &str = "/proc/sys/net/ipv4/tcp_fwmark_accept";
/// The self-test's connection crosses loopback only.
const SELF_TEST: Duration = Duration::from_secs(1);

/// In which families servers see their clients' addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sources {
    pub v4: bool,
    pub v6: bool,
    /// Why not in those that the namespace has; empty: all is well.
    pub problem: String,
}

/// What `net.ipv4.tcp_fwmark_accept` says, to be given to [`take_back`] later.
///
/// # Errors
///
/// The kernel does not have it, or /proc is not there.
pub fn inherits_mark() -> io::Result<String> {
    Ok(fs::read_to_string(INHERIT)?.trim().to_owned())
}

/// Puts there what is needed, in each family that the namespace has, and proves that it works. Once more does no harm.
pub fn put() -> Sources {
    let mut sources = put_again();
    for (family, works) in [(Family::V4, sources.v4), (Family::V6, sources.v6)] {
        if works && let Err(error) = family.prove() {
            sources.lost(family, &format!("a connection was tried: {error}"));
        }
    }
    sources
}

/// The same without the proof: for what somebody else may have taken away meanwhile.
pub fn put_again() -> Sources {
    let mut sources = Sources::default();
    if let Err(error) = write_inherit("1") {
        sources.problem = format!("set {INHERIT}: {error}");
        return sources;
    }
    for family in [Family::V4, Family::V6].into_iter().filter(Family::is_there) {
        match family.put() {
            Ok(()) => *sources.works(family) = true,
            Err(error) => sources.lost(family, &format!("add a rule and a route: {error}")),
        }
    }
    sources
}

/// Takes it all away; `inherited`: what [`inherits_mark`] had said before. What is gone already is as good.
///
/// # Errors
///
/// The kernel refuses it; as much as possible is taken away.
pub fn take_back(inherited: &str) -> io::Result<()> {
    let families = Family::V4.take_back().and(Family::V6.take_back());
    families.and(write_inherit(inherited))
}

fn write_inherit(value: &str) -> io::Result<()> {
    if inherits_mark()? == value {
        return Ok(());
    }
    fs::write(INHERIT, value)
}

// === impl Sources ===

impl Sources {
    fn works(&mut self, family: Family) -> &mut bool {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    fn lost(&mut self, family: Family, why: &str) {
        *self.works(family) = false;
        let separator = if self.problem.is_empty() { "" } else { "; " };
        self.problem = format!("{}{separator}{family:?}: {why}", self.problem);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

// === impl Family ===

impl Family {
    fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// An address that nobody has: for documentation (RFC 5737, RFC 3849).
    fn nobodys(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        }
    }

    fn number(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }

    fn socket(self) -> io::Result<Socket> {
        Socket::new(Domain::for_address((self.loopback(), 0).into()), Type::STREAM, None)
    }

    /// Whether the namespace has addresses of this family at all: else nobody arrives by it either.
    fn is_there(&self) -> bool {
        let loopback: SocketAddr = (self.loopback(), 0).into();
        self.socket().and_then(|socket| socket.bind(&loopback.into())).is_ok()
    }

    fn put(self) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let there = |result: io::Result<()>| match result {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        };
        there(ask(RouteNetlinkMessage::NewRoute(self.route()?), flags))?;
        there(ask(RouteNetlinkMessage::NewRule(self.rule()), flags))
    }

    fn take_back(self) -> io::Result<()> {
        // No such rule, no such route; no such family.
        const GONE: [i32; 4] = [libc::ENOENT, libc::ESRCH, libc::EAFNOSUPPORT, libc::EOPNOTSUPP];
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.raw_os_error().is_some_and(|errno| GONE.contains(&errno)) => Ok(()),
            other => other,
        };
        let rule = gone(ask(RouteNetlinkMessage::DelRule(self.rule()), 0));
        let route = gone(
            self.route()
                .and_then(|route| ask(RouteNetlinkMessage::DelRoute(route), 0)),
        );
        rule.and(route)
    }

    /// `ip rule add fwmark MARK lookup TABLE priority TABLE`
    fn rule(self) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header = RuleHeader {
            family: self.number(),
            action: RuleAction::ToTable,
            ..RuleHeader::default()
        };
        rule.attributes = vec![
            RuleAttribute::Priority(TABLE),
            RuleAttribute::FwMark(MARK),
            RuleAttribute::FwMask(u32::MAX),
            RuleAttribute::Table(TABLE),
        ];
        rule
    }

    /// `ip route add local default dev lo table TABLE`
    fn route(self) -> io::Result<RouteMessage> {
        let mut route = RouteMessage::default();
        route.header = RouteHeader {
            address_family: self.number(),
            protocol: RouteProtocol::Static,
            scope: RouteScope::Host,
            kind: RouteType::Local,
            ..RouteHeader::default()
        };
        let loopback = if_nametoindex("lo")?;
        route.attributes = vec![RouteAttribute::Table(TABLE), RouteAttribute::Oif(loopback)];
        Ok(route)
    }

    /// A connection from an address that nobody has comes about, and its server sees that address.
    fn prove(self) -> io::Result<()> {
        let listener = TcpListener::bind((self.loopback(), 0))?;
        let client = self.socket()?;
        match self {
            Self::V4 => client.set_ip_transparent_v4(true)?,
            Self::V6 => client.set_ip_transparent_v6(true)?,
        }
        client.set_mark(MARK)?;
        client.bind(&SocketAddr::new(self.nobodys(), 0).into())?;
        client.connect_timeout(&listener.local_addr()?.into(), SELF_TEST)?;
        let peer = accept(&listener, SELF_TEST)?;
        if peer.ip() != self.nobodys() {
            return Err(io::Error::other(format!("the server sees {peer}")));
        }
        Ok(())
    }
}

/// Whose connection arrives. Its client may think that there is one where the last packet of the handshake was dropped.
fn accept(listener: &TcpListener, patience: Duration) -> io::Result<SocketAddr> {
    // Of a listener it bounds accept (socket(7)).
    SockRef::from(listener).set_read_timeout(Some(patience))?;
    listener
        .accept()
        .map(|(_, peer)| peer)
        .map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("its client was connected, but its server had accepted nothing after {patience:?}"),
            ),
            _ => error,
        })
}

/// `flags` beyond those of any request.
fn ask(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    netlink::ask(SockProtocol::NetlinkRoute, &bytes)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, process::Command, thread};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn output(words: &[&str]) -> String {
        let output = Command::new(words[0])
            .args(&words[1..])
            .output()
            .expect("iproute2 is there");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Rules, our routes and the setting, in the calling thread's namespace.
    fn state() -> String {
        let list = |family| {
            let routes = output(&["ip", family, "route", "show", "table", "15006"]);
            output(&["ip", family, "rule"]) + &routes
        };
        format!("{}{}{}", list("-4"), list("-6"), inherits_mark().expect("/proc"))
    }

    #[test]
    fn a_listener_to_which_nobody_comes_is_not_waited_for() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let patience = Duration::from_millis(20);
        let error = accept(&listener, patience).expect_err("nobody comes");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().ends_with("accepted nothing after 20ms"), "{error}");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let peer = accept(&listener, SELF_TEST).expect("somebody comes");
        assert_eq!(peer, client.local_addr().expect("bound"));
    }

    #[test]
    fn what_is_put_works_and_is_taken_back_whole() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root (cargo xtask test)");
            return;
        }
        // A thread in a namespace of its own, which ends with it.
        let tested = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            output(&["ip", "link", "set", "lo", "up"]);
            let before = state();
            for _ in 0..2 {
                let sources = put();
                assert_eq!((sources.v4, sources.v6, &*sources.problem), (true, true, ""));
            }
            assert_eq!(put_again(), put());
            assert_eq!(
                state().matches("fwmark 0x77656674 lookup 15006").count(),
                2,
                "{}",
                state()
            );
            assert_eq!(state().matches("local default dev lo").count(), 2, "{}", state());
            for _ in 0..2 {
                take_back("0").expect("taken back");
                assert_eq!(state(), before);
            }
        });
        tested.join().expect("the assertions hold");
    }
}
