//! The kernel's events: flows for the reporter, listeners for the registry.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{sync::Notify, task::yield_now, time::sleep};
use weft_abi::{Event, EventKind, action, protocol, reporter, sock_flags};
use weft_adapters::{Flow, FlowEvent, FlowProtocol, FlowVerdict, Record, Reporter, Side};
use weft_dataplane::{Events, Listener, ip_addr, is_canary, monotonic_ns};
use weft_policy::{ObjectRef, Protocol};

use super::{
    engine::{Engine, InForce},
    hand_over::Gate,
};

/// Events taken from the ring in one go.
const BATCH: usize = 1024;
/// How long events gather after some were read. The first one after a rest is read at once; in a busy mesh each would else wake
/// the daemon, which costs more than its event does (some 40 µs a wake-up, with nothing in the caches). Longer: flows,
/// endpoints and late cuts are told of later (a cut is promised within 100 ms). The ring holds what comes meanwhile, some ten
/// thousand.
const GATHER: Duration = Duration::from_millis(20);
const EPERM: u8 = 1;

/// Reads the ring until the daemon stops.
///
/// # Cancel safety
///
/// What was taken from the ring is handed on before the next wait.
pub async fn read(engine: Arc<Engine>, gate: Arc<Gate>, events: Arc<tokio::sync::Mutex<Events>>, reporter: Reporter) {
    let mut events = events.lock().await;
    let cuts = Notify::new();
    let reading = async {
        let (mut batch, mut told) = (Vec::new(), false);
        loop {
            batch.clear();
            match events.next(&mut batch, BATCH).await {
                Ok(()) => {
                    told = false;
                    if handle(&engine, &batch, &reporter) {
                        cuts.notify_one();
                    }
                }
                // It takes before it waits: without that it is looked at again and again.
                Err(error) => {
                    if !told {
                        tracing::error!(%error, "the ring of kernel events cannot be waited on; it is looked at every {GATHER:?}");
                    }
                    told = true;
                }
            }
            if batch.len() < BATCH {
                sleep(GATHER).await;
            } else {
                yield_now().await;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = reset_late(&engine, &gate, &cuts) => {}
    }
}

/// Beside the reading, which must not wait for a publication: the ring would run over.
async fn reset_late(engine: &Arc<Engine>, gate: &Arc<Gate>, cuts: &Notify) {
    loop {
        cuts.notified().await;
        let (engine, gate) = (Arc::clone(engine), Arc::clone(gate));
        let cut = move || {
            // By the policy of who is in charge.
            if let Ok(_pass) = gate.enter() {
                engine.cut_late();
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(cut).await {
            tracing::error!(%error, "connections that are denied now are not reset; their packets are dropped");
        }
    }
}

/// Whether the kernel cut connections.
fn handle(engine: &Engine, batch: &[Event], reporter: &Reporter) -> bool {
    let mut listeners = BTreeSet::new();
    let in_force = engine.in_force();
    let clock = Clock::now();
    let mut cut = false;
    for event in batch {
        cut |= event.kind == EventKind::CUT && event.protocol == protocol::TCP;
        match event.kind {
            EventKind::LISTEN | EventKind::UNLISTEN => {
                if matters(
                    engine,
                    event.owner,
                    protocol_of(event.protocol),
                    u16::from_be(event.port_be),
                ) {
                    listeners.insert(event.owner);
                }
            }
            _ => {
                if let Some(flow) = flow(engine, &in_force, &clock, event) {
                    reporter.record(Record::Flow(Arc::new(flow)));
                }
            }
        }
    }
    if !listeners.is_empty() {
        tokio::task::block_in_place(|| refresh_listeners(engine, Some(&listeners)));
    }
    cut
}

/// Ports that the kernel hands out by itself (net.ipv4.ip_local_port_range, its default): a datagram socket bound there is
/// a client's, as long as nobody declares the port.
const FIRST_EPHEMERAL: u16 = 32_768;

/// Whether anybody may want to reach it: every client of UDP that binds would else be a change of the mesh.
fn matters(engine: &Engine, owner: u64, protocol: Protocol, port: u16) -> bool {
    protocol == Protocol::Tcp || port < FIRST_EPHEMERAL || engine.registry.declares(owner, protocol, port)
}

/// What the kernel saw, as records name it.
pub fn flow_protocol(number: u8) -> FlowProtocol {
    match number {
        protocol::UDP => FlowProtocol::Udp,
        protocol::DCCP => FlowProtocol::Dccp,
        protocol::SCTP => FlowProtocol::Sctp,
        _ => FlowProtocol::Tcp,
    }
}

/// Who told of it.
pub fn side(number: u8) -> Side {
    match number {
        reporter::SOURCE => Side::Source,
        reporter::DEVICE => Side::Device,
        _ => Side::Destination,
    }
}

fn protocol_of(number: u8) -> Protocol {
    if number == protocol::UDP {
        Protocol::Udp
    } else {
        Protocol::Tcp
    }
}

/// Tells the registry where workloads listen: those named, or all.
pub fn refresh_listeners(engine: &Engine, owners: Option<&BTreeSet<u64>>) {
    let _last = engine.listening.lock().unwrap_or_else(PoisonError::into_inner);
    let found = match engine.dataplane.listeners() {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(%error, "listeners cannot be read; endpoints may be missing");
            return;
        }
    };
    // Also of who listens nowhere any more.
    let mut by_owner: BTreeMap<u64, Vec<(SocketAddr, Protocol)>> = match owners {
        Some(owners) => owners.iter().map(|owner| (*owner, Vec::new())).collect(),
        None => {
            let workloads = engine.registry.runtime();
            workloads.iter().map(|workload| (workload.cgroup, Vec::new())).collect()
        }
    };
    for listener in found {
        let Listener {
            owner,
            address,
            protocol,
        } = listener;
        if let Some(listening) = by_owner.get_mut(&owner)
            && matters(engine, owner, protocol, address.port())
        {
            listening.push((address, protocol));
        }
    }
    for (owner, listening) in by_owner {
        engine.registry.set_listening(owner, listening);
    }
}

/// What the kernel's clock says as time of day.
struct Clock {
    now: SystemTime,
    now_ns: u64,
}

// === impl Clock ===

impl Clock {
    fn now() -> Self {
        Self {
            now: SystemTime::now(),
            now_ns: monotonic_ns(),
        }
    }

    fn time(&self, at_ns: u64) -> SystemTime {
        self.now - Duration::from_nanos(self.now_ns.saturating_sub(at_ns))
    }
}

fn flow(engine: &Engine, in_force: &InForce, clock: &Clock, event: &Event) -> Option<Flow> {
    if is_canary(event.source) {
        return None;
    }
    let kind = match event.kind {
        // Told when it was judged.
        EventKind::OPEN if event.verdict == action::AUDIT => return None,
        EventKind::OPEN | EventKind::AUDIT => FlowEvent::Open,
        EventKind::CLOSE => FlowEvent::Close,
        // A flow that was cut is one that was denied, later.
        EventKind::DENY | EventKind::CUT => FlowEvent::Deny,
        _ => return None,
    };
    let at_source = event.reporter == reporter::SOURCE;
    let by_cgroup = |cgroup| {
        engine
            .registry
            .peer_by_cgroup(cgroup)
            .or_else(|| in_force.peer_in(cgroup))
    };
    let source = if at_source {
        by_cgroup(event.owner)
    } else {
        by_cgroup(event.peer_owner)
    };
    let address: IpAddr = ip_addr(&event.address);
    let rule = in_force.rule(event.rule);
    let denied = kind == FlowEvent::Deny;
    Some(Flow {
        time: clock.time(event.time_ns),
        event: kind,
        reporter: side(event.reporter),
        verdict: match (denied, event.verdict) {
            (true, _) => FlowVerdict::Deny,
            (false, action::AUDIT) => FlowVerdict::Audit,
            (false, _) => FlowVerdict::Allow,
        },
        reason: reason(in_force, rule.as_deref(), event),
        rule,
        source: source.unwrap_or_else(|| in_force.peer(event.source)),
        destination: in_force.destination(event.service, event.destination, address, u16::from_be(event.port_be)),
        protocol: flow_protocol(event.protocol),
        l7: None,
        bytes_sent: event.bytes_sent,
        bytes_received: event.bytes_received,
        rtt_us: (event.rtt_us > 0).then_some(event.rtt_us),
        errno: (denied && event.errno != 0).then_some(i32::from(event.errno)),
    })
}

/// Why, in an operator's words.
fn reason(in_force: &InForce, rule: Option<&ObjectRef>, event: &Event) -> Cow<'static, str> {
    if event.kind == EventKind::CUT {
        return "it was allowed when it was opened and is denied now".into();
    }
    if event.kind != EventKind::DENY {
        if event.flags & sock_flags::EXTERNAL != 0 && event.kind != EventKind::AUDIT {
            return "handed to the foreign proxy, which decides about requests".into();
        }
        return match (event.verdict, rule) {
            (action::AUDIT, rule) => format!("let through and reported (audit): {}", deny_words(rule, event)).into(),
            (action::REDIRECT, Some(_)) => {
                "it is to be looked at per request and the proxy is away; the service's failure mode is open".into()
            }
            (_, Some(rule)) if rule.kind == "MeshConfig" => "allowed by default".into(),
            (_, Some(_)) => "allowed".into(),
            (_, None) => "nothing restricts it".into(),
        };
    }
    let by_destination = event.verdict == action::DENY && event.reporter != reporter::SOURCE;
    // A datagram to a service that is nowhere for its socket: no rule had a part in it.
    let nowhere = event.protocol != protocol::TCP && event.service != 0 && event.rule == 0;
    if (event.errno == EPERM && !nowhere) || by_destination {
        return deny_words(rule, event).into();
    }
    if event.verdict == action::REDIRECT && event.reporter != reporter::SOURCE {
        return "its requests would have to be looked at, and no proxy is there to do it for clients outside the mesh \
                (weft daemon --inbound)"
            .into();
    }
    if event.verdict == action::REDIRECT {
        return "it is to be looked at per request and the proxy is away; the service's failure mode is closed".into();
    }
    match in_force
        .ports
        .get(&event.service)
        .and_then(|(name, port)| Some((name, in_force.snapshot.services.get(name)?.ports.get(*port)?)))
    {
        Some((name, port)) if port.endpoints.is_empty() => {
            format!("{name} has no endpoint on port {}", port.port).into()
        }
        Some((name, port))
            if nowhere
                && !event.address.is_v4()
                && port.endpoints.iter().all(|endpoint| endpoint.address.is_ipv4()) =>
        {
            format!(
                "{name} port {} has IPv4 endpoints alone, which an unconnected IPv6 socket cannot send to",
                port.port
            )
            .into()
        }
        Some((name, port)) if port.split.is_some() => format!("{name} port {} splits to no backend", port.port).into(),
        Some((name, port)) if port.proxied.is_some() => format!(
            "{name} port {} works per request and the proxy is away; its failure mode is closed",
            port.port
        )
        .into(),
        Some((name, port)) => format!("this share of the split of {name} port {} leads nowhere", port.port).into(),
        None => "the service has no such port".into(),
    }
}

/// What a rule says that denies a connection.
fn deny_words(rule: Option<&ObjectRef>, event: &Event) -> &'static str {
    match rule {
        Some(rule) if rule.kind == "MeshConfig" && event.destination < weft_abi::identity::FIRST => {
            "destinations outside the mesh are denied (outboundDefault: deny)"
        }
        Some(rule) if rule.kind == "MeshConfig" => "no rule allows it (accessDefault: deny)",
        Some(rule) if rule.kind == "NetworkPolicy" => "it isolates, and no NetworkPolicy allows it",
        Some(rule) if rule.kind == "TrafficTarget" => {
            "its rule works per request, and nobody sees requests on this way"
        }
        Some(_) | None => "denied",
    }
}
