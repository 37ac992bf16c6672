//! sockops: the record of a connection before its SYN leaves, its end, its listeners.

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr::{addr_of, addr_of_mut, read_volatile},
};

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::sock_ops, programs::SockOpsContext};
use weft_abi::{
    ConnRecord, EdgeKey, EventKind, ListenKey, ListenValue, SockRecord, Tuple, action, identity, protocol, reporter,
    role, sock_flags,
};

use crate::{
    capture,
    context::{record, record_or_insert, sockops_tuple},
    errs::{self, Site},
    maps::{CONNS, LISTEN, RX, TX},
    telemetry,
};

const TCP_CONNECT_CB: u32 = 3;
const ACTIVE_ESTABLISHED_CB: u32 = 4;
const PASSIVE_ESTABLISHED_CB: u32 = 5;
const STATE_CB: u32 = 10;
const TCP_LISTEN_CB: u32 = 11;
/// `BPF_SOCK_OPS_STATE_CB_FLAG`
const STATE_CB_FLAG: i32 = 1 << 2;

const BPF_NOEXIST: u64 = 1;

const TCP_CLOSE: u32 = 7;
/// States in which our FIN was acknowledged.
const FIN_ACKED: [u32; 4] = [5, 6, 9, 11]; // FIN_WAIT2 TIME_WAIT LAST_ACK CLOSING
/// States in which the peer's FIN was received.
const FIN_RECEIVED: [u32; 4] = [6, 8, 9, 11]; // TIME_WAIT CLOSE_WAIT LAST_ACK CLOSING
const TCP_FIN_WAIT2: u32 = 5;

#[sock_ops]
pub fn weft_sockops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        TCP_CONNECT_CB => on_connect(&ctx),
        ACTIVE_ESTABLISHED_CB => on_active(&ctx),
        PASSIVE_ESTABLISHED_CB => on_passive(&ctx),
        TCP_LISTEN_CB => on_listen(&ctx),
        STATE_CB => on_state(&ctx),
        _ => {}
    }
    1
}

#[inline(always)]
fn sock_record(ctx: &SockOpsContext) -> Option<&'static mut SockRecord> {
    // SAFETY: `sk` of the context, looked at before use as the verifier wants.
    unsafe {
        let sk = read_volatile(addr_of!((*ctx.ops).__bindgen_anon_2.sk));
        if sk.is_null() { None } else { record(sk) }
    }
}

#[inline(always)]
fn want_states(ctx: &SockOpsContext) {
    if let Err(errno) = ctx.set_cb_flags(STATE_CB_FLAG) {
        errs::count(Site::CallbackFlags, errno);
    }
}

/// The local port is chosen, the SYN has not left: the accepting end will find who dials.
#[inline(always)]
fn on_connect(ctx: &SockOpsContext) {
    let Some(record) = sock_record(ctx) else { return };
    if record.role != role::ACTIVE {
        return;
    }
    want_states(ctx);
    let tuple = sockops_tuple(ctx.ops);
    let conn = ConnRecord {
        owner: record.owner,
        generation: record.generation,
        started_ns: record.started_ns,
        original: record.original,
        original_port_be: record.original_port_be,
        verdict: record.verdict,
        flags: record.flags,
        source: record.source,
        destination: record.destination,
        service: record.service,
        rule: record.rule,
        pad: 0,
    };
    if let Err(errno) = CONNS.insert(&tuple, &conn, 0) {
        errs::count(Site::ConnsInsert, errno);
    }
}

#[inline(always)]
fn on_active(ctx: &SockOpsContext) {
    let Some(record) = sock_record(ctx) else { return };
    if record.role != role::ACTIVE {
        return;
    }
    record.flags |= sock_flags::ESTABLISHED;
    // SAFETY: a context load at a constant offset.
    record.acked_base = unsafe { read_volatile(addr_of!((*ctx.ops).bytes_acked)) };
    if record.flags & sock_flags::ACCELERATE != 0 && record.acked_base <= 1 {
        // More than the SYN acknowledged: data went with it (TCP Fast Open), so this direction began on TCP.
        join_circuit(ctx, record, record.flags & sock_flags::PROXY != 0);
    }
    if record.flags & sock_flags::PROXY != 0 {
        return;
    }
    telemetry::edge(&edge_key(record, reporter::SOURCE), |counters| counters.opened += 1);
    if record.flags & sock_flags::REDIRECTED == 0 {
        report(ctx, record, EventKind::OPEN, reporter::SOURCE, 0, 0);
    }
}

/// Whom the accepted socket belongs to is the listener's owner; who dialled stands in `weft_conns`.
#[inline(always)]
fn on_passive(ctx: &SockOpsContext) {
    let tuple = sockops_tuple(ctx.ops);
    let Some(listener) = capture::listener(&tuple.local, tuple.local_port_be, tuple.netns) else {
        return;
    };
    let Some(config) = capture::config() else { return };
    let ours = listener.owner == config.daemon_cgroup;
    let destination = match capture::workload(listener.owner) {
        Some(workload) => workload.identity,
        None if ours => identity::PROXY,
        None => return,
    };
    let dialled = tuple.reversed();
    // SAFETY: shared read of a map value, copied below.
    let conn = unsafe { CONNS.get(&dialled) };
    let mut fresh = SockRecord {
        owner: listener.owner,
        role: role::PASSIVE,
        flags: sock_flags::ESTABLISHED | if ours { sock_flags::PROXY } else { 0 },
        destination,
        original: tuple.local,
        original_port_be: tuple.local_port_be,
        generation: config.generation,
        verdict: action::ALLOW,
        ..SockRecord::default()
    };
    // SAFETY: the helper has no precondition; a context load at a constant offset.
    unsafe {
        fresh.started_ns = bpf_ktime_get_ns();
        fresh.acked_base = read_volatile(addr_of!((*ctx.ops).bytes_acked));
    }
    match conn {
        Some(conn) => {
            fresh.peer_owner = conn.owner;
            fresh.source = conn.source;
            fresh.service = conn.service;
            fresh.rule = conn.rule;
            fresh.verdict = conn.verdict;
            fresh.generation = conn.generation;
            fresh.flags |= conn.flags & (sock_flags::REDIRECTED | sock_flags::ACCELERATE);
            if ours && conn.flags & sock_flags::REDIRECTED != 0 {
                fresh.original = conn.original;
                fresh.original_port_be = conn.original_port_be;
                fresh.destination = conn.destination;
                fresh.flags |= sock_flags::CLAIMED;
            }
        }
        None => {
            fresh.source = if tuple.remote.is_loopback() {
                identity::UNKNOWN_LOCAL
            } else {
                identity::UNKNOWN
            }
        }
    }
    let claimed = fresh.flags & sock_flags::CLAIMED != 0;
    let accelerate = fresh.flags & sock_flags::ACCELERATE != 0;
    // SAFETY: `sk` of the context, looked at before use as the verifier wants.
    let record = unsafe {
        let sk = read_volatile(addr_of!((*ctx.ops).__bindgen_anon_2.sk));
        if sk.is_null() {
            None
        } else {
            record_or_insert(sk, &mut fresh)
        }
    };
    let Some(record) = record else {
        errs::count(Site::SockStorage, 0);
        return;
    };
    if claimed {
        // From here on the record is with the socket; the proxy reads it by descriptor.
        let _ = CONNS.remove(&dialled);
    }
    // Towards the proxy only: its own accepted sockets receive, a server it dialled sends.
    if accelerate && (ours || record.source == identity::PROXY) {
        join_circuit(ctx, record, ours);
    }
    want_states(ctx);
    if ours {
        return;
    }
    telemetry::edge(&edge_key(record, reporter::DESTINATION), |counters| {
        counters.opened += 1
    });
    if record.peer_owner == 0 {
        // Nobody else reports it.
        report(ctx, record, EventKind::OPEN, reporter::DESTINATION, 0, 0);
    }
}

#[inline(always)]
fn join_circuit(ctx: &SockOpsContext, record: &mut SockRecord, receives: bool) {
    let tuple = sockops_tuple(ctx.ops);
    // SAFETY: the context pointer is valid for the run.
    let ops = unsafe { &mut *ctx.ops };
    let result = if receives {
        RX.update(tuple, ops, 0)
    } else {
        TX.update(tuple, ops, 0)
    };
    if let Err(errno) = result {
        errs::count(Site::CircuitInsert, errno);
        record.flags &= !sock_flags::ACCELERATE;
    }
}

#[inline(always)]
fn listen_key(tuple: &Tuple) -> ListenKey {
    ListenKey {
        addr: tuple.local,
        netns: tuple.netns,
        port_be: tuple.local_port_be,
        pad: 0,
    }
}

/// Atomic addition (members of a SO_REUSEPORT group listen from several CPUs). `core::sync::atomic` has no
/// read-modify-write for this target.
///
/// # Safety
///
/// `counter` points into a live map value.
#[inline(always)]
unsafe fn add(counter: *mut u64, n: u64) {
    // SAFETY: the caller vouches for the pointer; map values are aligned to 8.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, n) };
}

#[inline(always)]
fn on_listen(ctx: &SockOpsContext) {
    let Some(record) = sock_record(ctx) else { return };
    record.role = role::LISTENER;
    want_states(ctx);
    let tuple = sockops_tuple(ctx.ops);
    let key = listen_key(&tuple);
    // Members of a SO_REUSEPORT group listen from several CPUs: one makes the entry, all add to it. Its owner is the
    // first: who joins later does not take the address over.
    let _ = LISTEN.insert(
        &key,
        &ListenValue {
            owner: record.owner,
            count: 0,
        },
        BPF_NOEXIST,
    );
    match LISTEN.get_ptr_mut(&key) {
        // SAFETY: the value is valid for the run (RCU).
        Some(found) => unsafe { add(addr_of_mut!((*found).count), 1) },
        None => errs::count(Site::ListenInsert, 0),
    }
    listening(record, &tuple, EventKind::LISTEN);
}

#[inline(always)]
fn on_unlisten(ctx: &SockOpsContext, record: &SockRecord) {
    let tuple = sockops_tuple(ctx.ops);
    let key = listen_key(&tuple);
    if let Some(found) = LISTEN.get_ptr_mut(&key) {
        // SAFETY: as in `on_listen`.
        let left = unsafe {
            add(addr_of_mut!((*found).count), u64::MAX);
            read_volatile(addr_of!((*found).count))
        };
        if left == 0 {
            let _ = LISTEN.remove(&key);
        }
    }
    listening(record, &tuple, EventKind::UNLISTEN);
}

#[inline(always)]
fn listening(record: &SockRecord, tuple: &Tuple, kind: u8) {
    telemetry::event(|event| {
        event.kind = kind;
        event.owner = record.owner;
        event.address = tuple.local;
        event.port_be = tuple.local_port_be;
        event.protocol = protocol::TCP;
    });
}

#[inline(always)]
fn on_state(ctx: &SockOpsContext) {
    let (old, new) = (ctx.arg(0), ctx.arg(1));
    if new == TCP_FIN_WAIT2
        && let Some(record) = sock_record(ctx)
    {
        // SAFETY: a context load at a constant offset.
        record.received_base = unsafe { read_volatile(addr_of!((*ctx.ops).bytes_received)) };
    }
    if new != TCP_CLOSE {
        return;
    }
    let Some(record) = sock_record(ctx) else { return };
    match record.role {
        role::LISTENER => on_unlisten(ctx, record),
        role::ACTIVE => on_active_close(ctx, record, old),
        role::PASSIVE => on_passive_close(ctx, record, old),
        _ => {}
    }
    record.role = role::NONE;
}

/// Payload this end sent and received. `bytes_acked` and `bytes_received` count the sequence numbers of SYN and FIN
/// (RFC 4898 says octets; `tcp_snd_una_update`, `tcp_rcv_nxt_update` count what moves the window).
#[inline(always)]
fn payload(ctx: &SockOpsContext, record: &SockRecord, old: u32) -> (u64, u64) {
    // SAFETY: context loads at constant offsets.
    let (acked, received) = unsafe {
        (
            read_volatile(addr_of!((*ctx.ops).bytes_acked)),
            read_volatile(addr_of!((*ctx.ops).bytes_received)),
        )
    };
    let fin_acked = u64::from(FIN_ACKED[0] == old || FIN_ACKED[1] == old || FIN_ACKED[2] == old || FIN_ACKED[3] == old);
    // FIN_WAIT2 ends by the peer's FIN, or (an orphan, `tcp_time_wait` early) without it: then nothing came since.
    let fin_received = u64::from(
        FIN_RECEIVED[0] == old
            || FIN_RECEIVED[1] == old
            || FIN_RECEIVED[2] == old
            || FIN_RECEIVED[3] == old
            || (old == TCP_FIN_WAIT2 && received > record.received_base),
    );
    let sent = acked.saturating_sub(record.acked_base).saturating_sub(fin_acked) + record.direct_bytes;
    (sent, received.saturating_sub(fin_received))
}

#[inline(always)]
fn on_active_close(ctx: &SockOpsContext, record: &mut SockRecord, old: u32) {
    let established = record.flags & sock_flags::ESTABLISHED != 0;
    // A connection handed to the proxy may close before it is accepted: its record waits for the accepting end.
    if record.flags & sock_flags::REDIRECTED == 0 || !established {
        let _ = CONNS.remove(&sockops_tuple(ctx.ops));
    }
    if record.flags & sock_flags::PROXY != 0 {
        return;
    }
    let (sent, received) = payload(ctx, record, old);
    let orderly = orderly(old);
    telemetry::edge(&edge_key(record, reporter::SOURCE), |counters| {
        if established {
            counters.closed += 1;
            counters.reset += u64::from(!orderly);
            counters.bytes_sent += sent;
            counters.bytes_received += received;
        } else {
            counters.refused += 1;
        }
    });
    if record.flags & sock_flags::REDIRECTED == 0 {
        report(ctx, record, EventKind::CLOSE, reporter::SOURCE, sent, received);
    }
}

#[inline(always)]
fn on_passive_close(ctx: &SockOpsContext, record: &mut SockRecord, old: u32) {
    if record.flags & sock_flags::PROXY != 0 {
        return;
    }
    let (sent, received) = payload(ctx, record, old);
    let orderly = orderly(old);
    telemetry::edge(&edge_key(record, reporter::DESTINATION), |counters| {
        counters.closed += 1;
        counters.reset += u64::from(!orderly);
        counters.bytes_sent += sent;
        counters.bytes_received += received;
    });
    if record.peer_owner == 0 {
        // Seen from the dialling end: what we received, it sent.
        report(ctx, record, EventKind::CLOSE, reporter::DESTINATION, received, sent);
    }
}

#[inline(always)]
fn orderly(old: u32) -> bool {
    FIN_ACKED[0] == old || FIN_ACKED[1] == old || FIN_ACKED[2] == old || FIN_ACKED[3] == old
}

#[inline(always)]
fn edge_key(record: &SockRecord, side: u8) -> EdgeKey {
    EdgeKey {
        source: record.source,
        destination: record.destination,
        service: record.service,
        port: telemetry::edge_port(record),
        protocol: protocol::TCP,
        verdict: record.verdict,
        reporter: side,
        pad: [0; 3],
    }
}

#[inline(always)]
fn report(ctx: &SockOpsContext, record: &SockRecord, kind: u8, side: u8, sent: u64, received: u64) {
    // SAFETY: a context load at a constant offset. The kernel keeps eight times the smoothed value.
    let rtt_us = unsafe { read_volatile(addr_of!((*ctx.ops).srtt_us)) } >> 3;
    telemetry::event(|event| {
        event.kind = kind;
        event.owner = record.owner;
        event.peer_owner = record.peer_owner;
        event.generation = record.generation;
        event.bytes_sent = sent;
        event.bytes_received = received;
        event.address = record.original;
        event.port_be = record.original_port_be;
        event.protocol = protocol::TCP;
        event.reporter = side;
        event.verdict = record.verdict;
        event.flags = record.flags;
        event.source = record.source;
        event.destination = record.destination;
        event.service = record.service;
        event.rule = record.rule;
        event.rtt_us = rtt_us;
    });
}
