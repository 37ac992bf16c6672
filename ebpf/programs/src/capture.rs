//! Where a connection goes: the decision of connect and sendmsg, free of hook details.

use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_prandom_u32, bpf_get_socket_cookie,
};
use weft_abi::{
    Addr, Backend, BackendKey, Config, Dest, DestKey, ListenKey, LocalKey, MAX_DEPTH, PolicyValue, SockRecord,
    Workload, action, class, dest_flags, dest_kind, identity, netns_flags, protocol, sock_flags, traits,
};

use crate::{
    context::SockAddr,
    errs::{self, Site},
    external, inbound,
    maps::{BACKENDS, CONFIG, DESTS, LISTEN, LOCAL, NETNS, WORKLOADS},
    telemetry,
    verdict::{self, Party},
};

const DNS_PORT_BE: u16 = 53u16.to_be();

pub const EPERM: u8 = 1;
pub const ECONNREFUSED: u8 = 111;

/// Where a connect or a datagram goes. Address and port are always set (to what was asked, if nothing else), so that
/// writing them back is right in every case.
#[derive(Clone, Copy)]
pub struct Way {
    pub addr: Addr,
    pub port_be: u16,
    /// 0 = go, else refuse with this.
    pub errno: u8,
}

impl Way {
    #[inline(always)]
    pub fn to(addr: Addr, port_be: u16) -> Self {
        Self {
            addr,
            port_be,
            errno: 0,
        }
    }

    #[inline(always)]
    fn refuse(self, errno: u8) -> Self {
        Self { errno, ..self }
    }
}

/// The configuration as one run sees it: the generation is read once, at entry.
#[derive(Clone, Copy)]
pub struct Epoch {
    config: &'static Config,
    /// Every look-up of the run uses this one.
    pub generation: u64,
}

impl core::ops::Deref for Epoch {
    type Target = Config;

    #[inline(always)]
    fn deref(&self) -> &Config {
        self.config
    }
}

/// The configuration; `None` cannot be (an array of one has element 0), but the verifier wants it looked at.
#[inline(always)]
pub fn config() -> Option<Epoch> {
    let config = CONFIG.get(0)?;
    // SAFETY: an aligned read of a live map value; volatile so that it happens once.
    let generation = unsafe { core::ptr::read_volatile(&config.generation) };
    Some(Epoch { config, generation })
}

/// The same under a generation that the run has read before.
#[inline(always)]
pub fn config_of(generation: u64) -> Option<Epoch> {
    let config = CONFIG.get(0)?;
    Some(Epoch { config, generation })
}

#[inline(always)]
pub fn workload(owner: u64) -> Option<Workload> {
    // SAFETY: shared read of a map value.
    unsafe { WORKLOADS.get(&owner) }.copied()
}

#[inline(always)]
fn dest(addr: &Addr, port_be: u16, protocol: u8, generation: u64) -> Option<&'static Dest> {
    let key = DestKey {
        addr: *addr,
        port_be,
        protocol,
        pad: 0,
    };
    // SAFETY: shared read of a map value.
    let found = unsafe { DESTS.get(&key) }?.at(generation);
    if found.kind == dest_kind::ABSENT {
        None
    } else {
        Some(found)
    }
}

/// What the address means: exactly, else as a virtual IP without that port.
#[inline(always)]
pub fn lookup(addr: &Addr, port_be: u16, protocol: u8, generation: u64) -> Option<&'static Dest> {
    match dest(addr, port_be, protocol, generation) {
        Some(found) => Some(found),
        None => dest(addr, 0, 0, generation),
    }
}

/// The same for a socket of any namespace (low half of its cookie): loopback addresses in the tables are the home
/// namespace's, and mean nothing elsewhere.
#[inline(always)]
pub fn lookup_from(config: Epoch, netns: u32, addr: &Addr, port_be: u16, protocol: u8) -> Option<&'static Dest> {
    if netns != config.netns_cookie as u32 && addr.is_loopback() {
        return None;
    }
    lookup(addr, port_be, protocol, config.generation)
}

/// The namespace of this machine in which a connect from namespace `netns` to this address ends; `None`: none of those
/// that the daemon knows. Namespaces by the low half of their cookies.
#[inline(always)]
pub fn ends_in(addr: &Addr, netns: u32) -> Option<u32> {
    match namespace_with(addr, netns) {
        0 => None,
        found => Some(found as u32),
    }
}

/// Whether it is an address of this namespace itself.
#[inline(always)]
pub fn is_local(addr: &Addr, netns: u32) -> bool {
    ends_in(addr, netns) == Some(netns)
}

/// Not inlined: each use would cost the callers' stack a key and the verifier all its paths again. Cookies begin at 1, and
/// bit 32 tells one whose low half is 0 from none.
#[inline(never)]
fn namespace_with(addr: &Addr, netns: u32) -> u64 {
    const SOME: u64 = 1 << 32;
    if addr.is_loopback() {
        return SOME | u64::from(netns);
    }
    let mut key = LocalKey { addr: *addr, netns };
    // SAFETY: shared reads of map values.
    unsafe {
        if LOCAL.get(&key).is_some() {
            return SOME | u64::from(netns);
        }
        key.netns = 0;
        match LOCAL.get(&key) {
            Some(found) => SOME | u64::from(*found),
            None => 0,
        }
    }
}

/// The address a connect really goes to: Linux takes the unspecified one for loopback (`ip_route_output_key_hash_rcu`,
/// `tcp_v6_connect`).
#[inline(always)]
fn reached(addr: Addr) -> Addr {
    if addr == Addr::UNSPECIFIED_V4 {
        Addr::LOCALHOST_V4
    } else if addr == Addr::UNSPECIFIED_V6 {
        Addr::LOCALHOST_V6
    } else {
        addr
    }
}

/// Who listens somewhere.
#[derive(Clone, Copy)]
pub struct Listener {
    /// cgroup id of the workload, or of the daemon.
    pub owner: u64,
}

/// Who listens at an address: bound to it, or to the unspecified address of its family, or dual-stack.
#[inline(always)]
pub fn listener(addr: &Addr, port_be: u16, protocol: u8, netns: u32) -> Option<Listener> {
    match owner_of(addr, u32::from(protocol) << 16 | u32::from(port_be), netns) {
        0 => None,
        owner => Some(Listener { owner }),
    }
}

/// Not inlined, as `namespace_with`. 0 = nobody.
#[inline(never)]
fn owner_of(addr: &Addr, protocol_port: u32, netns: u32) -> u64 {
    let mut key = ListenKey {
        addr: *addr,
        netns,
        port_be: protocol_port as u16,
        protocol: (protocol_port >> 16) as u8,
        only_v6: 0,
    };
    // SAFETY: shared reads of map values.
    unsafe {
        if let Some(found) = LISTEN.get(&key) {
            return found.owner;
        }
        if addr.is_v4() {
            key.addr = Addr::UNSPECIFIED_V4;
            if let Some(found) = LISTEN.get(&key) {
                return found.owner;
            }
        }
        key.addr = Addr::UNSPECIFIED_V6;
        if let Some(found) = LISTEN.get(&key) {
            return found.owner;
        }
        if addr.is_v4() {
            return 0;
        }
        key.only_v6 = 1;
        LISTEN.get(&key).map_or(0, |found| found.owner)
    }
}

/// Two random numbers.
#[inline(always)]
fn random() -> [u32; 2] {
    // SAFETY: the helper has no precondition.
    unsafe { [bpf_get_prandom_u32(), bpf_get_prandom_u32()] }
}

/// Two numbers that look random, and are the same for all datagrams of a socket: what is one conversation to its program meets
/// one backend.
#[inline(always)]
fn of_socket(hook: &SockAddr) -> [u32; 2] {
    // SAFETY: the helper takes this context.
    let cookie = unsafe { bpf_get_socket_cookie(hook.raw().cast()) };
    // Cookies count up: the finalizer of splitmix64 (Steele, Lea, Flood 2014).
    let mut mixed = cookie.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    [mixed as u32, (mixed >> 32) as u32]
}

/// One backend of a set, by weight.
#[inline(always)]
fn pick(set: u32, count: u32, generation: u64, random: [u32; 2]) -> Option<&'static Backend> {
    // Multiply-shift maps 32 random bits evenly onto 0..count.
    let slot = ((u64::from(random[0]) * u64::from(count)) >> 32) as u32;
    let first = backend(set, slot, generation)?;
    if random[1] <= first.threshold {
        Some(first)
    } else {
        backend(set, first.alias, generation)
    }
}

#[inline(always)]
fn backend(set: u32, slot: u32, generation: u64) -> Option<&'static Backend> {
    // SAFETY: shared read of a map value.
    match unsafe { BACKENDS.get(&BackendKey { set, slot }) } {
        Some(found) => Some(found.at(generation)),
        None => {
            // Cannot be: sets are written before the generation that refers to them.
            errs::count(Site::BackendMissing, 0);
            None
        }
    }
}

/// Where our listener is for a socket of this kind that dials `addr`; `None`: nobody of ours listens there.
#[inline(always)]
fn ours(config: Epoch, hook: &SockAddr, addr: &Addr, port_be: u16) -> Option<Addr> {
    let netns = hook.netns_cookie();
    if netns != config.netns_cookie {
        // SAFETY: shared read of a map value.
        let flags = unsafe { NETNS.get(&netns) }.copied().unwrap_or(0);
        if flags & netns_flags::LISTENERS == 0 {
            return None;
        }
    }
    if hook.is_v6() && !addr.is_v4() && alive(config, &Addr::LOCALHOST_V6, port_be, netns as u32) {
        return Some(Addr::LOCALHOST_V6);
    }
    if alive(config, &Addr::LOCALHOST_V4, port_be, netns as u32) {
        Some(Addr::LOCALHOST_V4)
    } else {
        None
    }
}

#[inline(always)]
fn alive(config: Epoch, addr: &Addr, port_be: u16, netns: u32) -> bool {
    matches!(listener(addr, port_be, protocol::TCP, netns), Some(found) if found.owner == config.daemon_cgroup)
}

/// Whether our proxy lives, by its outbound listener at home: it has one wherever it has others.
#[inline(always)]
pub fn daemon_lives(config: Epoch) -> bool {
    let home = config.netns_cookie as u32;
    alive(config, &Addr::LOCALHOST_V4, config.proxy_port_be, home)
}

/// A TCP connect of a captured workload.
///
/// Steps: what is the address (service, endpoint, a workload's undeclared port, outside)? pick a backend; judge its
/// identity and port; deny, go direct, or go to the proxy; no proxy: the declared failure mode.
#[inline(always)]
pub fn connect_tcp(config: Epoch, hook: &SockAddr, record: &mut SockRecord, source: &Workload) -> Way {
    let asked = Way::to(reached(hook.addr()), hook.port_be());
    let mut way = asked;
    record.original = asked.addr;
    record.original_port_be = asked.port_be;
    record.source = source.identity;
    record.source_class = source.class;
    record.generation = config.generation;
    record.destination = identity::OUTSIDE;
    record.destination_class = class::OUTSIDE;
    record.protocol = protocol::TCP;
    record.target_port_be = asked.port_be;
    record.service = 0;
    record.rule = 0;
    record.verdict = action::ALLOW;
    record.flags = 0;
    record.begin_circuit();

    let netns = hook.netns_cookie() as u32;
    record.netns = netns;
    let mut flags = 0u8;
    let mut reachable = true;
    let mut backend_flag = 0u16;
    match lookup_from(config, netns, &asked.addr, asked.port_be, protocol::TCP) {
        Some(found) if found.kind == dest_kind::SERVICE => {
            flags = found.flags;
            record.service = found.service;
            record.destination = found.identity;
            record.destination_class = found.class;
            record.flags = sock_flags::TRANSLATED;
            let v6 = hook.is_v6() && !asked.addr.is_v4() && external::takes_v6(config, hook, found);
            let (set, count) = if v6 {
                (found.set6, found.count6)
            } else {
                (found.set4, found.count4)
            };
            match if count == 0 {
                None
            } else {
                pick(set, count, config.generation, random())
            } {
                // Port 0: a share of a split that leads nowhere.
                Some(backend) if backend.port_be != 0 => {
                    way = Way::to(backend.addr, backend.port_be);
                    record.destination = backend.identity;
                    record.destination_class = backend.class;
                    record.target_port_be = backend.port_be;
                    backend_flag = backend.flags;
                    if netns != config.netns_cookie as u32 && backend.addr.is_loopback() {
                        // On the loopback of the home namespace, where the proxy can connect and this socket cannot.
                        flags |= dest_flags::PROXIED;
                        reachable = false;
                    }
                }
                // Our proxy waits for a backend; a foreign one could not be told any.
                _ if flags & (dest_flags::PROXIED | dest_flags::EXTERNAL) == dest_flags::PROXIED => reachable = false,
                _ => return asked.refuse(ECONNREFUSED),
            }
        }
        Some(found) if found.kind == dest_kind::ENDPOINT => {
            // Its own address says nothing about routing: only access rules and adapters that guard it send it to the proxy.
            flags = found.flags;
            record.service = found.service;
            record.destination = found.identity;
            record.destination_class = found.class;
            if is_local(&asked.addr, netns)
                && let Some(found) = listener(&asked.addr, asked.port_be, protocol::TCP, netns)
                && found.owner == record.owner
            {
                // A workload talking to itself stays within itself.
                record.flags = sock_flags::EXEMPT;
                return asked;
            }
        }
        Some(_) => return asked.refuse(ECONNREFUSED),
        None => {
            if asked.port_be == DNS_PORT_BE
                && let Some(way) = dns(config, hook, record, asked)
            {
                return way;
            }
            let there = ends_in(&asked.addr, netns);
            if there.is_some() && !external::may_use(config, asked.port_be, record.owner) {
                record.verdict = action::DENY;
                return asked.refuse(EPERM);
            }
            let whose = match there.and_then(|there| listener(&asked.addr, asked.port_be, protocol::TCP, there)) {
                Some(found) if found.owner == record.owner || found.owner == config.daemon_cgroup => {
                    record.flags = sock_flags::EXEMPT;
                    return asked;
                }
                // Another port of a foreign proxy is no workload's.
                Some(found) if external::is_proxy(found.owner) => None,
                // A workload's port that no service declares, or another address of it, is still a workload.
                Some(found) => {
                    if inbound::fails_open(found.owner) {
                        flags = dest_flags::FAIL_OPEN_ACCESS;
                    }
                    Some(inbound::party_of(found.owner))
                }
                // Also one that listened before we came: the address tells, if a Workload says it.
                None => inbound::by_prefix(&asked.addr, config.generation),
            };
            if let Some(whose) = whose {
                record.destination = whose.identity;
                record.destination_class = whose.class;
            }
        }
    }

    let ruling = if record.destination < identity::FIRST && record.service != 0 {
        // A service whose workload is starting: the proxy waits for it and judges then.
        PolicyValue::new(0, action::ALLOW, 0, false)
    } else {
        verdict::judge(
            config,
            Party {
                identity: source.identity,
                class: source.class,
            },
            Party {
                identity: record.destination,
                class: record.destination_class,
            },
            protocol::TCP,
            u16::from_be(way.port_be),
        )
    };
    let ruling = external::unseen(ruling, backend_flag);
    record.rule = ruling.rule;
    record.verdict = ruling.action();
    if record.verdict == action::DENY {
        let proxy_judges = dest_flags::PROXIED | dest_flags::MIXED;
        if flags & proxy_judges != proxy_judges {
            telemetry::decided(ruling);
            return asked.refuse(EPERM);
        }
        record.verdict = action::REDIRECT;
    }
    telemetry::decided(ruling);
    if record.verdict == action::AUDIT {
        telemetry::audit(record);
    }
    let by_access = record.verdict == action::REDIRECT;
    if by_access || flags & dest_flags::PROXIED != 0 {
        if flags & dest_flags::EXTERNAL != 0 {
            if let Some(proxy) = external::proxy(config, hook, record.service, way.addr.is_v4()) {
                record.flags = sock_flags::TRANSLATED | sock_flags::REDIRECTED | sock_flags::EXTERNAL;
                (record.translated, record.translated_port_be) = (way.addr, way.port_be);
                return proxy;
            }
        } else if let Some(proxy) = ours(config, hook, &asked.addr, config.proxy_port_be) {
            record.flags = sock_flags::TRANSLATED | sock_flags::REDIRECTED;
            record.flags |= circuit_flags(config, record, flags);
            return Way::to(proxy, config.proxy_port_be);
        }
        let open = if by_access {
            dest_flags::FAIL_OPEN_ACCESS
        } else {
            dest_flags::FAIL_OPEN_ROUTE
        };
        if flags & open == 0 || !reachable {
            return asked.refuse(ECONNREFUSED);
        }
    }
    if flags & dest_flags::FULL != 0 && is_local(&way.addr, netns) {
        record.flags |= circuit_flags(config, record, flags);
    }
    record.translated = way.addr;
    way
}

/// How a connection to what has these `dest_flags` may go past TCP, as `sock_flags`, if its other end is in this namespace.
#[inline(always)]
pub fn circuit_flags(config: Epoch, record: &SockRecord, flags: u8) -> u16 {
    if config.short_circuit == 0 || record.traits & traits::PLAIN != 0 || flags & dest_flags::ACCELERATE == 0 {
        0
    } else if flags & dest_flags::FULL != 0 {
        sock_flags::ACCELERATE | sock_flags::FULL
    } else {
        sock_flags::ACCELERATE
    }
}

/// Where UDP goes: DNS to our server, a service to one of its backends, all else where it was meant to.
///
/// No verdict here: getaddrinfo connects a datagram socket to every candidate without sending, to sort them, so a
/// connect must neither fail nor be reported; what is sent is judged by `weft_skb_out`. An address of ours that cannot be
/// reached is answered with loopback.
#[inline(always)]
pub fn route_udp(config: Epoch, hook: &SockAddr, record: &mut SockRecord) -> Way {
    let asked = Way::to(reached(hook.addr()), hook.port_be());
    record.flags = 0;
    record.destination = identity::OUTSIDE;
    record.service = 0;
    record.verdict = action::ALLOW;
    let netns = hook.netns_cookie() as u32;
    let way = match lookup_from(config, netns, &asked.addr, asked.port_be, protocol::UDP) {
        Some(found) if found.kind == dest_kind::ENDPOINT => {
            record.destination = found.identity;
            record.service = found.service;
            return asked;
        }
        Some(found) => {
            record.service = found.service;
            record.flags = sock_flags::TRANSLATED;
            let v6 = hook.is_v6() && !asked.addr.is_v4();
            let (set, count) = if v6 {
                (found.set6, found.count6)
            } else {
                (found.set4, found.count4)
            };
            if found.kind == dest_kind::SERVICE
                && count != 0
                && let Some(backend) = pick(set, count, config.generation, of_socket(hook))
                && backend.port_be != 0
                && (netns == config.netns_cookie as u32 || !backend.addr.is_loopback())
            {
                record.destination = backend.identity;
                Way::to(backend.addr, backend.port_be)
            } else {
                record.destination = identity::UNKNOWN_LOCAL;
                // Not to whoever has that port there.
                record.verdict = action::DENY;
                Way::to(if v6 { Addr::LOCALHOST_V6 } else { Addr::LOCALHOST_V4 }, asked.port_be)
            }
        }
        None if asked.port_be == DNS_PORT_BE => match dns(config, hook, record, asked) {
            Some(way) => way,
            None => return asked,
        },
        None => return asked,
    };
    record.original = asked.addr;
    record.original_port_be = asked.port_be;
    record.translated = way.addr;
    record.translated_port_be = way.port_be;
    way
}

/// DNS of a captured workload goes to our server; `None`: it does not live, so to whom it was meant for, like any other.
///
/// The server learns the asking namespace from the address it was asked at, `127.53.X.Y` with the namespace's number
/// in X.Y: at connect the kernel has not chosen the local port yet, so no record by tuple could tell it. An IPv6
/// socket gets the v4-mapped form; `sendmsg` on one may not be turned into IPv4 (`udpv6_sendmsg` answers ENOTSUPP),
/// so there it is `::1`, which the server takes for the namespace `default`.
#[inline(always)]
fn dns(config: Epoch, hook: &SockAddr, record: &mut SockRecord, asked: Way) -> Option<Way> {
    ours(config, hook, &Addr::LOCALHOST_V4, config.dns_port_be)?;
    let workload = workload(record.owner)?;
    record.original = asked.addr;
    record.original_port_be = asked.port_be;
    record.flags = sock_flags::TRANSLATED | sock_flags::DNS;
    if hook.protocol() == u32::from(protocol::TCP) {
        // Of datagrams the socket's records say nothing.
        record.flags |= sock_flags::EXEMPT;
    }
    Some(Way::to(
        Addr::v4((0x7f35_0000 | u32::from(workload.namespace)).to_be()),
        config.dns_port_be,
    ))
}

/// The workload (or the daemon) whose cgroup the calling task is in or below, the nearest of them; 0 = neither.
#[inline(always)]
pub fn owner_of_task(config: Epoch) -> u64 {
    // SAFETY: the helpers have no precondition.
    unsafe {
        let current = bpf_get_current_cgroup_id();
        if current == config.daemon_cgroup || workload(current).is_some() {
            return current;
        }
        // A workload may make cgroups of its own below the one it has.
        let mut nearest = 0;
        let mut depth = 1;
        while depth <= MAX_DEPTH {
            let above = bpf_get_current_ancestor_cgroup_id((config.level + depth) as i32);
            if above == 0 {
                break;
            }
            if workload(above).is_some() {
                nearest = above;
            }
            depth += 1;
        }
        nearest
    }
}

/// The record of a socket that a hook in the caller's context looks at, with an owner that is enrolled.
///
/// Without one: the socket was not made by a task of a captured cgroup, as far as sock_create saw. The kernel makes
/// sockets itself (MPTCP subflows), for which that hook does not run; then, and for a socket whose owner is gone and whose
/// descriptor was handed on, it is the calling task's.
#[inline(always)]
pub fn owned_record(config: Epoch, hook: &SockAddr) -> Option<&'static mut SockRecord> {
    if let Some(record) = hook.record() {
        if record.owner != config.daemon_cgroup && workload(record.owner).is_none() {
            record.owner = owner_of_task(config);
        }
        return Some(record);
    }
    let owner = owner_of_task(config);
    if owner == 0 {
        return None;
    }
    hook.insert_record(&mut SockRecord {
        owner,
        traits: traits::PLAIN,
        protocol: hook.protocol() as u8,
        netns: hook.netns_cookie() as u32,
        ..SockRecord::default()
    })
}
