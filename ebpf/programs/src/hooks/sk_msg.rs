//! sk_msg on `weft_tx`: the short-circuit from an application to the proxy beside it, or to another application; with
//! `acceleration: full` from the proxy to an application as well.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::sk_action::{SK_DROP, SK_PASS},
    helpers::bpf_msg_redirect_hash,
    macros::sk_msg,
    programs::SkMsgContext,
};
use weft_abi::{SockRecord, UNHEARD, circuit, role, sock_flags};

use crate::{
    capture,
    context::{msg_tuple, record},
    maps::{CONNS, RX},
    progress, telemetry, verdict,
};

const BPF_F_INGRESS: u64 = 1;

/// Steps: decided for TCP -> leave it; else look for the socket at the other end, if it may receive. Found: hand the bytes over
/// and count them (TCP does not see them). Not found at the first byte: this direction stays on TCP for good, for a
/// later change from TCP to the queue would overtake bytes in flight.
///
/// What our proxy does not answer goes on through TCP after [`UNHEARD`] bytes.
///
/// Else always SK_PASS: the helper answers SK_DROP for a miss, and returning that would lose the application's bytes.
#[sk_msg]
pub fn weft_sk_msg(ctx: SkMsgContext) -> u32 {
    // SAFETY: `sk` of the context, looked at before use as the verifier wants.
    let found = unsafe {
        let sk = read_volatile(addr_of!((*ctx.msg).__bindgen_anon_3.sk));
        if sk.is_null() { None } else { record(sk) }
    };
    let Some(record) = found else {
        return SK_PASS;
    };
    if record.circuit == circuit::TCP {
        return SK_PASS;
    }
    let Some(config) = capture::config() else {
        return SK_PASS;
    };
    // What the proxy sends it judges by itself.
    if record.flags & sock_flags::PROXY == 0 && !verdict::may_go_on(config, record) {
        // Bytes that go past TCP meet no packet hook.
        return SK_DROP;
    }
    if config.short_circuit == 0 && record.circuit == circuit::UNDECIDED {
        record.circuit = circuit::TCP;
        return SK_PASS;
    }
    let mut peer = msg_tuple(ctx.msg).reversed();
    // SAFETY: map and key live; the helper takes this context.
    let result = unsafe {
        bpf_msg_redirect_hash(
            ctx.as_ptr().cast(),
            core::ptr::from_ref(&RX).cast_mut().cast(),
            core::ptr::from_mut(&mut peer).cast(),
            BPF_F_INGRESS,
        )
    };
    if result == i64::from(SK_PASS) {
        record.circuit = circuit::DIRECT;
        let bytes = u64::from(ctx.size());
        record.direct_bytes += bytes;
        if record.role == role::PASSIVE
            && record.flags & sock_flags::PROXY == 0
            && progress::tells_far_end(record)
            && let Some(conn) = CONNS.get_ptr_mut(&peer.conn_key())
        {
            // SAFETY: a live map value; the socket that sends is locked, so nobody else writes this field.
            unsafe { (*conn).direct += bytes };
        }
        flush(record);
        // The proxy reads until there is nothing in its queue and nothing in TCP's. An application may take a short answer as the end
        // of both, so what it is handed (`full`) has to keep coming this way.
        if record.flags & sock_flags::FULL == 0 && record.direct_bytes - record.heard_direct >= UNHEARD {
            record.circuit = circuit::TCP;
        }
    } else {
        // From DIRECT a safe change: the peer is gone, and its queue is read before TCP's.
        record.circuit = circuit::TCP;
    }
    SK_PASS
}

/// A connection that lives shows its bytes: no callback of TCP comes where TCP carries nothing.
#[inline(always)]
fn flush(record: &mut SockRecord) {
    if !telemetry::due(&mut record.direct_flushed_at) {
        return;
    }
    let grown = record.direct_bytes - record.flushed_direct;
    record.flushed_direct = record.direct_bytes;
    if progress::tells_far_end(record) {
        telemetry::handed_over(record, grown);
    }
    if record.flags & sock_flags::PROXY == 0 {
        telemetry::edge(&telemetry::edge_key(record), |counters| {
            telemetry::add(&mut counters.bytes_sent, grown);
        });
    }
}
