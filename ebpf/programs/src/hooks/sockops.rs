//! sockops: the record of a connection before its SYN leaves, its end, its listeners.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::bpf_sock_ops,
    helpers::{bpf_get_socket_cookie, bpf_ktime_get_ns},
    macros::sock_ops,
    programs::SockOpsContext,
};
use weft_abi::{
    ConnRecord, EdgeCounters, EventKind, FlowKey, ListenKey, SockRecord, Tuple, action, class, identity, opened,
    protocol, reporter, role, sock_flags, traits,
};

use crate::{
    capture::{self, Epoch},
    context::{record, sockops_tuple},
    errs::{self, Site},
    external, inbound, listening,
    maps::{CONNS, FLOWS, RX, TX},
    progress::{Progress, ending, settle, settle_far_end},
    telemetry,
    verdict::Party,
};

const TCP_CONNECT_CB: u32 = 3;
const ACTIVE_ESTABLISHED_CB: u32 = 4;
const PASSIVE_ESTABLISHED_CB: u32 = 5;
const STATE_CB: u32 = 10;
const TCP_LISTEN_CB: u32 = 11;
/// No generation: what was judged under it is to be judged.
const NEVER: u64 = 0;
/// `BPF_SOCK_OPS_STATE_CB_FLAG`
const STATE_CB_FLAG: i32 = 1 << 2;

const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;
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

/// A workload's connection that no connect hook saw (it is not attached, or somebody else's program let it pass before):
/// the accepting side shall know who dials all the same.
#[inline(always)]
fn undecided(record: &mut SockRecord, tuple: &Tuple) -> bool {
    let Some(config) = capture::config() else { return false };
    let Some(own) = capture::workload(record.owner) else {
        return false;
    };
    record.role = role::ACTIVE;
    // Who is dialled on this machine is known where the connection arrives; any other is judged when the first packet leaves.
    record.generation = match capture::ends_in(&tuple.remote, tuple.netns) {
        Some(_) => config.generation,
        None => NEVER,
    };
    record.original = tuple.remote;
    record.translated = tuple.remote;
    record.original_port_be = tuple.remote_port_be;
    record.target_port_be = tuple.remote_port_be;
    record.netns = tuple.netns;
    (record.source, record.source_class) = (own.identity, own.class);
    (record.destination, record.destination_class) = (identity::OUTSIDE, class::OUTSIDE);
    (record.service, record.rule, record.flags) = (0, 0, 0);
    record.verdict = action::ALLOW;
    true
}

/// The local port is chosen, the SYN has not left: the accepting end will find who dials.
#[inline(always)]
fn on_connect(ctx: &SockOpsContext) {
    let Some(record) = sock_record(ctx) else { return };
    let tuple = sockops_tuple(ctx.ops);
    if record.role != role::ACTIVE && !undecided(record, &tuple) {
        return;
    }
    want_states(ctx);
    // A socket whose last connect failed goes on counting from there.
    // SAFETY: context loads at constant offsets; the helper has no precondition.
    unsafe {
        record.started_ns = bpf_ktime_get_ns();
        record.acked_base = read_volatile(addr_of!((*ctx.ops).bytes_acked));
        record.flushed_segments_sent = read_volatile(addr_of!((*ctx.ops).segs_out));
        record.flushed_segments_received = read_volatile(addr_of!((*ctx.ops).segs_in));
        record.flushed_retransmits = read_volatile(addr_of!((*ctx.ops).total_retrans));
    }
    (record.flushed_acked, record.flushed_received, record.flushed_direct) = (0, 0, 0);
    record.opened = 0;
    note(ctx.ops, record, &tuple.conn_key(), role::ACTIVE);
}

#[inline(always)]
fn on_active(ctx: &SockOpsContext) {
    let Some(record) = sock_record(ctx) else { return };
    if record.role != role::ACTIVE {
        return;
    }
    record.flags |= sock_flags::ESTABLISHED;
    // SAFETY: a context load at a constant offset.
    let acked = unsafe { read_volatile(addr_of!((*ctx.ops).bytes_acked)) };
    record.acked_base += 1;
    if record.flags & sock_flags::ACCELERATE != 0 && acked <= record.acked_base {
        // More than the SYN acknowledged: data went with it (TCP Fast Open), so this direction began on TCP.
        join_circuit(ctx, record);
    }
    if record.flags & sock_flags::PROXY != 0 {
        record.direct_flushed_at = telemetry::ticks();
        return;
    }
    // SAFETY: the helper has no precondition.
    let took_us = (unsafe { bpf_ktime_get_ns() } - record.started_ns) / 1_000;
    let took_us = if took_us > u64::from(u32::MAX) {
        u32::MAX
    } else {
        took_us as u32
    };
    begin(record, |counters| telemetry::observe(&mut counters.connect, took_us));
    if reported_here(record) {
        report(ctx, record, EventKind::OPEN, 0, 0);
    }
}

/// Counts a connection that reached ESTABLISHED. Its first flush comes a second later.
#[inline(always)]
fn begin(record: &mut SockRecord, more: impl FnOnce(&mut EdgeCounters)) {
    record.flushed_at = telemetry::ticks();
    record.direct_flushed_at = record.flushed_at;
    let room = telemetry::edge(&telemetry::edge_key(record), |counters| {
        telemetry::add(&mut counters.opened, 1);
        more(counters);
    });
    record.opened = opened::COUNTED | record.verdict | if room { 0 } else { opened::OVERFLOWED };
}

/// Whom the accepted socket belongs to stands in the record that it has from its listener; who dialled in `weft_conns`.
#[inline(always)]
fn on_passive(ctx: &SockOpsContext) {
    let Some(record) = sock_record(ctx) else { return };
    let Some(config) = capture::config() else { return };
    let tuple = sockops_tuple(ctx.ops);
    let ours = record.owner == config.daemon_cgroup;
    let proxy = ours || external::is_proxy(record.owner);
    if !proxy && capture::workload(record.owner).is_none() {
        return;
    }
    let assigned =
        ours && record.original_port_be == config.inbound_port_be && tuple.local_port_be != config.inbound_port_be;
    accepted(ctx, config, record, &tuple, (ours, proxy), assigned);
    want_states(ctx);
    if proxy {
        return;
    }
    begin(record, |_| {});
    if record.peer_owner == 0 && record.verdict != action::DENY {
        // Nobody else reports it.
        report(ctx, record, EventKind::OPEN, 0, 0);
    }
}

/// Makes the listener's record the connection's.
#[inline(always)]
fn accepted(
    ctx: &SockOpsContext,
    config: Epoch,
    record: &mut SockRecord,
    tuple: &Tuple,
    (ours, proxy): (bool, bool),
    assigned: bool,
) {
    record.role = role::PASSIVE;
    record.flags = sock_flags::ESTABLISHED | if proxy { sock_flags::PROXY } else { 0 };
    record.original = tuple.local;
    record.original_port_be = tuple.local_port_be;
    record.translated = tuple.remote;
    record.target_port_be = tuple.local_port_be;
    record.netns = tuple.netns;
    record.generation = config.generation;
    record.verdict = action::ALLOW;
    // SAFETY: the helper has no precondition; a context load at a constant offset.
    unsafe {
        record.started_ns = bpf_ktime_get_ns();
        record.acked_base = read_volatile(addr_of!((*ctx.ops).bytes_acked));
    }
    // The listener's socket may have dialled before it listened.
    (record.flushed_acked, record.flushed_received, record.flushed_direct) = (0, 0, 0);
    (record.flushed_segments_sent, record.flushed_segments_received) = (0, 0);
    (record.flushed_retransmits, record.opened) = (0, 0);
    record.begin_circuit();
    record.direct_flushed_at = telemetry::ticks();
    let whose = if assigned {
        // Whom the client dialled, not us.
        let listener = capture::listener(&tuple.local, tuple.local_port_be, protocol::TCP, tuple.netns);
        record.flags |= sock_flags::REDIRECTED | sock_flags::CLAIMED;
        inbound::party_of(listener.map_or(0, |found| found.owner))
    } else if proxy {
        Party {
            identity: identity::PROXY,
            class: class::PROXY,
        }
    } else {
        inbound::party_of(record.owner)
    };
    record.destination = whose.identity;
    record.destination_class = whose.class;
    let Some(conn) = inbound::dialled(tuple) else {
        let source = inbound::by_address(&tuple.remote, tuple.netns, config.generation);
        record.source = source.identity;
        record.source_class = source.class;
        if !proxy {
            judge(record);
            let key = tuple.reversed().conn_key();
            note(ctx.ops, record, &key, role::PASSIVE);
            forget_flow(&key);
        }
        return;
    };
    record.peer_owner = conn.owner;
    record.source = conn.source;
    record.source_class = conn.source_class;
    record.service = conn.service;
    record.rule = conn.rule;
    record.verdict = conn.verdict;
    record.generation = conn.generation;
    // A proxy that was dialled as somebody's endpoint, or that a packet hook gave the connection: who dialled knows of none, and
    // counts by himself.
    if !proxy || conn.flags & sock_flags::REDIRECTED != 0 {
        let passed_on = sock_flags::REDIRECTED | sock_flags::ACCELERATE | sock_flags::FULL | sock_flags::EXTERNAL;
        record.flags |= conn.flags & passed_on;
    }
    if conn.owner == record.owner {
        // Whoever listens when the SYN comes need not be who listened when it was sent.
        record.flags |= conn.flags & sock_flags::EXEMPT;
    }
    if proxy && conn.flags & sock_flags::REDIRECTED != 0 {
        record.original = conn.original;
        record.original_port_be = conn.original_port_be;
        record.destination = conn.destination;
        record.destination_class = conn.destination_class;
        record.flags |= sock_flags::CLAIMED;
    }
    if record.flags & sock_flags::CLAIMED != 0 && !assigned {
        // From here on the record is with the socket; the proxy reads it by descriptor.
        let key = tuple.reversed().conn_key();
        if ours {
            let _ = CONNS.remove(&key);
        } else {
            external::claim(&key);
        }
    }
    // Our proxy's own sockets, a server that it dialled, and both ways: a server dialled directly.
    if record.flags & sock_flags::FULL != 0 {
        record.translated_port_be = conn.original_port_be;
    }
    if record.flags & sock_flags::ACCELERATE != 0
        && record.traits & traits::PLAIN == 0
        && (ours || record.source == identity::PROXY || record.flags & sock_flags::FULL != 0)
    {
        join_circuit(ctx, record);
    }
}

/// The verdict on a connection that nobody of this machine's workloads dialled: that on its SYN was taken where no socket
/// could keep it, and the policy may have moved since. It was counted then.
#[inline(always)]
fn judge(record: &mut SockRecord) {
    let parties = |identity: u32, class: u32| u64::from(class) << 32 | u64::from(identity);
    let packed = inbound::weft_admit(
        record.generation,
        parties(record.source, record.source_class),
        parties(record.destination, record.destination_class),
        u32::from(protocol::TCP) << 16 | u32::from(u16::from_be(record.target_port_be)),
        record.owner,
    );
    (record.rule, record.verdict) = (packed as u32, (packed >> 32) as u8);
    if record.verdict == action::DENY {
        telemetry::cut(record);
    }
}

/// Puts a connection into `weft_conns`, by the dialling end's key. The dialling end does; one that nobody of this machine's
/// workloads dialled gets its entry by the accepting end, so that every connection stands there: what is denied later is
/// found by it.
///
/// Not inlined: twice in the program, its values took a third of the stack that a call chain has on Linux 6.1.
#[inline(never)]
fn note(ops: *mut bpf_sock_ops, record: &SockRecord, key: &Tuple, writer: u8) {
    // Of a connection handed to a foreign proxy: the endpoint that was picked is what it is to learn.
    let external = writer == role::ACTIVE && record.flags & sock_flags::EXTERNAL != 0;
    let conn = ConnRecord {
        owner: if writer == role::ACTIVE { record.owner } else { 0 },
        generation: record.generation,
        started_ns: record.started_ns,
        original: if external { record.translated } else { record.original },
        original_port_be: if external {
            record.translated_port_be
        } else {
            record.original_port_be
        },
        verdict: record.verdict,
        flags: record.flags,
        source: record.source,
        destination: record.destination,
        service: record.service,
        rule: record.rule,
        source_class: record.source_class,
        destination_class: record.destination_class,
        writer,
        pad: 0,
        // SAFETY: the helper takes this context.
        cookie: unsafe { bpf_get_socket_cookie(ops.cast()) },
        direct: 0,
    };
    if let Err(errno) = CONNS.insert(key, &conn, 0) {
        errs::count(Site::ConnsInsert, errno);
    }
}

/// From here on a connection speaks for itself: what tc noted at its SYN would stay for hours.
///
/// Not inlined: as `note`.
#[inline(never)]
fn forget_flow(key: &Tuple) {
    let _ = FLOWS.remove(&FlowKey::of(key, protocol::TCP));
}

/// Our proxy's sockets receive past TCP, others send; all do both where that is declared. The receiving side first: the peer may
/// send from then on.
///
/// Not inlined: two callers, and a stack of its own.
#[inline(never)]
fn join_circuit(ctx: &SockOpsContext, record: &mut SockRecord) {
    let tuple = sockops_tuple(ctx.ops);
    // SAFETY: the context pointer is valid for the run.
    let ops = unsafe { &mut *ctx.ops };
    let (ours, full) = (
        record.flags & sock_flags::PROXY != 0,
        record.flags & sock_flags::FULL != 0,
    );
    let mut result = Ok(());
    let mut without = sock_flags::ACCELERATE | sock_flags::FULL;
    if ours || full {
        result = RX.update(tuple, &mut *ops, 0);
    }
    if (!ours || full) && result.is_ok() {
        // It is handed bytes already: FULL stays, and with it that it gets no ULP.
        without = sock_flags::ACCELERATE;
        result = TX.update(tuple, ops, 0);
    }
    if let Err(errno) = result {
        errs::count(Site::CircuitInsert, errno);
        record.flags &= !without;
    }
}

#[inline(always)]
fn listen_key(record: &SockRecord, tuple: &Tuple) -> ListenKey {
    ListenKey {
        addr: tuple.local,
        netns: tuple.netns,
        port_be: tuple.local_port_be,
        protocol: protocol::TCP,
        only_v6: listening::only_v6(record, &tuple.local),
    }
}

#[inline(always)]
fn on_listen(ctx: &SockOpsContext) {
    let Some(record) = sock_record(ctx) else { return };
    want_states(ctx);
    let tuple = sockops_tuple(ctx.ops);
    record.role = role::LISTENER;
    // Where it listens: what it accepts has another local address if a packet hook assigned it.
    record.original = tuple.local;
    record.original_port_be = tuple.local_port_be;
    listening::begin(record.owner, &listen_key(record, &tuple));
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
        // A socket that is being accepted has its listener's record.
        role::LISTENER if old == TCP_LISTEN => {
            listening::end(record.owner, &listen_key(record, &sockops_tuple(ctx.ops)));
        }
        role::LISTENER => return,
        role::ACTIVE => on_active_close(ctx, record, old),
        role::PASSIVE => on_passive_close(ctx, record, old),
        _ => {}
    }
    record.role = role::NONE;
}

/// What TCP counts of the context's connection.
#[inline(always)]
fn progress(ctx: &SockOpsContext) -> Progress {
    // SAFETY: context loads at constant offsets.
    unsafe {
        Progress {
            acked: read_volatile(addr_of!((*ctx.ops).bytes_acked)),
            received: read_volatile(addr_of!((*ctx.ops).bytes_received)),
            segments_sent: read_volatile(addr_of!((*ctx.ops).segs_out)),
            segments_received: read_volatile(addr_of!((*ctx.ops).segs_in)),
            retransmits: read_volatile(addr_of!((*ctx.ops).total_retrans)),
            rtt_us_8: read_volatile(addr_of!((*ctx.ops).srtt_us)),
        }
    }
}

/// The last settlement, and the event of it. `seen_by_us`: the event is ours to report. `handed`: bytes that came past TCP.
#[inline(always)]
fn end(ctx: &SockOpsContext, record: &mut SockRecord, old: u32, seen_by_us: bool, handed: u64) {
    let mut progress = progress(ctx);
    let fin_acked = fin_acked(old);
    // FIN_WAIT2 ends by the peer's FIN, or (an orphan, `tcp_time_wait` early) without it: then nothing came since.
    let fin_received = FIN_RECEIVED[0] == old
        || FIN_RECEIVED[1] == old
        || FIN_RECEIVED[2] == old
        || FIN_RECEIVED[3] == old
        || (old == TCP_FIN_WAIT2 && progress.received > record.received_base);
    progress.payload_of(record, fin_acked, fin_received);
    let how = if record.flags & sock_flags::ESTABLISHED == 0 {
        ending::REFUSED
    } else if fin_acked {
        ending::ORDERLY
    } else {
        ending::RESET
    };
    settle_far_end(record);
    settle(record, &progress, how);
    if seen_by_us {
        report(
            ctx,
            record,
            EventKind::CLOSE,
            progress.acked + record.direct_bytes,
            progress.received + handed,
        );
    }
}

#[inline(always)]
fn on_active_close(ctx: &SockOpsContext, record: &mut SockRecord, old: u32) {
    let established = record.flags & sock_flags::ESTABLISHED != 0;
    // A connection handed to the proxy may close before it is accepted: its record waits for the accepting end.
    let key = sockops_tuple(ctx.ops).conn_key();
    let proxy = record.flags & sock_flags::PROXY != 0;
    let handed = if record.flags & sock_flags::FULL != 0 && !proxy {
        // SAFETY: shared read of a map value.
        unsafe { CONNS.get(&key) }.map_or(0, |conn| conn.direct)
    } else {
        0
    };
    if record.flags & sock_flags::REDIRECTED == 0 || !established || external::is_settled(record, &key) {
        let _ = CONNS.remove(&key);
    }
    if proxy {
        settle_far_end(record);
        return;
    }
    end(ctx, record, old, reported_here(record), handed);
}

/// Our proxy reports what was handed to it itself.
#[inline(always)]
fn reported_here(record: &SockRecord) -> bool {
    record.flags & (sock_flags::REDIRECTED | sock_flags::EXTERNAL) != sock_flags::REDIRECTED
}

#[inline(always)]
fn on_passive_close(ctx: &SockOpsContext, record: &mut SockRecord, old: u32) {
    if record.flags & sock_flags::PROXY != 0 {
        settle_far_end(record);
        return;
    }
    if record.peer_owner == 0 {
        let _ = CONNS.remove(&sockops_tuple(ctx.ops).reversed().conn_key());
    }
    // Where the dialling end is of this node, it reports.
    end(ctx, record, old, record.peer_owner == 0, 0);
}

/// Whether the peer had acknowledged our FIN.
#[inline(always)]
fn fin_acked(old: u32) -> bool {
    FIN_ACKED[0] == old || FIN_ACKED[1] == old || FIN_ACKED[2] == old || FIN_ACKED[3] == old
}

/// An open or a close, with bytes as this end counted them; the event tells them as the dialling end sees them.
#[inline(always)]
fn report(ctx: &SockOpsContext, record: &SockRecord, kind: u8, sent: u64, received: u64) {
    if !telemetry::sampled(record) {
        return;
    }
    let (side, sent, received) = if record.role == role::ACTIVE {
        (reporter::SOURCE, sent, received)
    } else {
        (reporter::DESTINATION, received, sent)
    };
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
