//! One record a connection: the heart of the kernel side.

use crate::Addr;

/// Which end of a connection a socket is.
pub mod role {
    /// Not known yet.
    pub const NONE: u8 = 0;
    /// It dialled.
    pub const ACTIVE: u8 = 1;
    /// It was accepted.
    pub const PASSIVE: u8 = 2;
    /// It listens.
    pub const LISTENER: u8 = 3;
    /// UDP, bound by its program: others can reach it there.
    pub const BOUND: u8 = 4;
}

/// Flags of [`SockRecord`] and [`ConnRecord`].
pub mod sock_flags {
    /// `original` holds what the application asked for; getpeername answers it.
    pub const TRANSLATED: u16 = 1;
    /// The connection was handed to the proxy.
    pub const REDIRECTED: u16 = 2;
    /// The socket belongs to our proxy.
    pub const PROXY: u16 = 4;
    /// This connection may be short-circuited.
    pub const ACCELERATE: u16 = 8;
    /// UDP to port 53 was handed to our DNS listener; recvmsg answers `original`.
    pub const DNS: u16 = 16;
    /// The accepting end has read the record.
    pub const CLAIMED: u16 = 32;
    /// Reached ESTABLISHED: opened was counted.
    pub const ESTABLISHED: u16 = 64;
    /// Never judged: a workload talking to itself, or to the daemon.
    pub const EXEMPT: u16 = 128;
    /// With [`REDIRECTED`]: the proxy is a foreign one. `translated` of the dialling socket's record, and `original` of
    /// all others of the connection, hold the endpoint that was picked for it.
    pub const EXTERNAL: u16 = 256;
    /// With [`ACCELERATE`]: both ends may be handed bytes past TCP, and neither gets a ULP.
    pub const FULL: u16 = 512;
}

/// What a socket is like, whatever it is used for.
pub mod traits {
    /// Never in a sockmap. The record was made late, for a socket that the kernel made itself (an MPTCP subflow); or its
    /// upper layer was changed (TCP_ULP).
    pub const PLAIN: u8 = 1;
    /// Bound to `::` it takes nothing by IPv4 (IPV6_V6ONLY).
    pub const ONLY_V6: u8 = 2;
}

/// How a connection was counted when it opened: what opens on an edge closes there, whatever becomes of its verdict. 0: it was not.
pub mod opened {
    /// It was: the bits of [`VERDICT`] say under which [`crate::action`].
    pub const COUNTED: u8 = 64;
    /// Its edge found no room; all of it is counted on the overflow edge.
    pub const OVERFLOWED: u8 = 128;
    /// See [`COUNTED`].
    pub const VERDICT: u8 = 63;
}

/// Short-circuit state of one direction; decided at its first byte. [`circuit::DIRECT`] may become [`circuit::TCP`], for a reader
/// takes what is in its queue before what came by TCP; never the other way round, which would overtake.
pub mod circuit {
    /// No byte was sent yet.
    pub const UNDECIDED: u8 = 0;
    /// Every byte goes through TCP.
    pub const TCP: u8 = 1;
    /// Every byte goes to the peer's queue.
    pub const DIRECT: u8 = 2;
}

/// Bytes that an application may hand to our proxy past TCP before it hears of it again; then this direction goes on through TCP
/// for good. TCP's windows bound what a reader leaves unread, and a queue beside it has no bound but `tcp_mem` of the whole
/// machine: a proxy that waits for a slow receiver would fill that. Less than a send buffer may grow to (4 MiB, `tcp_wmem`), and more
/// than most messages.
pub const UNHEARD: u64 = 1 << 20;

/// What a socket carries (`weft_socks`, SK_STORAGE): who made it, where it wanted to go, what was decided.
///
/// Made by `weft_sock_create` for every socket of a captured cgroup; for accepted sockets at PASSIVE_ESTABLISHED.
/// The proxy reads the record of an accepted socket by its descriptor: nothing to race, nothing to clean.
///
/// First what every packet looks at, and every send past TCP: 56 bytes, for in the cache line where the kernel begins a record
/// 8 are its own (`bpf_local_storage_data`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SockRecord {
    /// cgroup id of the workload that made the socket; the daemon's own for the proxy; 0 = none.
    pub owner: u64,
    /// Generation the verdict was taken under.
    pub generation: u64,
    /// Bytes this socket sent past TCP (short-circuit).
    pub direct_bytes: u64,
    /// What of `direct_bytes` was sent before the other end was heard of last ([`UNHEARD`]).
    pub heard_direct: u64,
    /// [`sock_flags`].
    pub flags: u16,
    /// [`role`].
    pub role: u8,
    /// [`traits`].
    pub traits: u8,
    /// [`crate::action`].
    pub verdict: u8,
    /// [`circuit`].
    pub circuit: u8,
    /// [`crate::protocol`] of the socket; others as IANA numbers them (raw sockets: what they were made with).
    pub protocol: u8,
    /// [`opened`].
    pub opened: u8,
    /// When its TCP counts went to its edge last, in units of 2^20 ns (wraps after 52 days).
    pub flushed_at: u32,
    /// The same of `direct_bytes`.
    pub direct_flushed_at: u32,
    /// Low half of the network namespace cookie: packet hooks before Linux 6.15 cannot ask for it.
    pub netns: u32,
    /// Service port number, 0 = none.
    pub service: u32,
    /// Accepted sockets: cgroup id of the workload that dialled, if it is one of this node.
    pub peer_owner: u64,
    /// `bpf_ktime_get_ns` at TCP_CONNECT_CB (active) or at PASSIVE_ESTABLISHED.
    pub started_ns: u64,
    /// What of `direct_bytes` its edge has already.
    pub flushed_direct: u64,
    /// Payload acknowledged by the peer that its edge has already.
    pub flushed_acked: u64,
    /// Payload received that its edge has already.
    pub flushed_received: u64,
    /// What `bytes_acked` counts that is not this connection's payload: the SYN's own sequence number (active).
    pub acked_base: u64,
    /// `bytes_received` on entering FIN_WAIT2: tells whether the peer's FIN came before the end.
    pub received_base: u64,
    /// What the application asked for.
    pub original: Addr,
    /// What a datagram went to instead: an answer from there seems to come from `original`. Of a connection, the other end:
    /// who dialled, or the endpoint that was picked (also where a foreign proxy has it; not where ours has).
    pub translated: Addr,
    /// [`role::BOUND`]: the address the program bound; the entry in `weft_listen` goes with the socket.
    pub bound: Addr,
    /// Its port, wire order. Of an accepted socket that is short-circuited both ways: the port that the client asked for.
    pub translated_port_be: u16,
    /// Port of `original`, wire order.
    pub original_port_be: u16,
    /// Source identity.
    pub source: u32,
    /// Destination identity.
    pub destination: u32,
    /// Rule that decided, 0 = none.
    pub rule: u32,
    /// Source class.
    pub source_class: u32,
    /// Destination class.
    pub destination_class: u32,
    /// The port that was judged: the endpoint's, wire order.
    pub target_port_be: u16,
    /// Port of `bound`, wire order.
    pub bound_port_be: u16,
    /// Segments sent that its edge has already.
    pub flushed_segments_sent: u32,
    /// Segments received that its edge has already.
    pub flushed_segments_received: u32,
    /// Retransmits that its edge has already.
    pub flushed_retransmits: u32,
}

// === impl SockRecord ===

impl SockRecord {
    /// A connection begins, of which nothing went past TCP; the socket may have had another one before.
    #[inline(always)]
    pub fn begin_circuit(&mut self) {
        self.circuit = circuit::UNDECIDED;
        (self.direct_bytes, self.heard_direct) = (0, 0);
    }
}

/// The same in short for hooks that have no socket (`weft_conns`, HASH by the dialling end's [`crate::Tuple`]).
///
/// Written by `weft_sockops` at TCP_CONNECT_CB: the local port is chosen, the SYN has not left.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnRecord {
    /// cgroup id of the workload that dialled.
    pub owner: u64,
    /// Generation the verdict was taken under.
    pub generation: u64,
    /// `bpf_ktime_get_ns` at connect.
    pub started_ns: u64,
    /// What the application asked for.
    pub original: Addr,
    /// Its port, wire order.
    pub original_port_be: u16,
    /// [`sock_flags`].
    pub flags: u16,
    /// Source identity.
    pub source: u32,
    /// Destination identity.
    pub destination: u32,
    /// Service port number.
    pub service: u32,
    /// Rule that decided.
    pub rule: u32,
    /// Source class.
    pub source_class: u32,
    /// Destination class.
    pub destination_class: u32,
    /// [`role`] of the end that wrote this: the dialling one, or the accepting one where nobody of this machine's workloads
    /// dialled.
    pub writer: u8,
    /// [`crate::action`].
    pub verdict: u8,
    /// Explicit padding, zero.
    pub pad: u16,
    /// Cookie of that end's socket (`SO_COOKIE`): whom to reset when it is denied later.
    pub cookie: u64,
    /// Bytes that the accepting end of a direct connection sent past TCP to the dialling one ([`sock_flags::FULL`]), which has no
    /// count of them.
    pub direct: u64,
}

/// Services that a datagram socket's answers are known of: the one its record names, and so many before it. With more, answers of
/// the service that was remembered first come from its endpoint's own address.
pub const MAX_ASKED: usize = 8;

/// What a datagram was meant for, and where it went instead.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// What the application asked for.
    pub original: Addr,
    /// Where it went.
    pub translated: Addr,
    /// Port of `original`, wire order.
    pub original_port_be: u16,
    /// Port of `translated`, wire order.
    pub translated_port_be: u16,
}

/// Whom a datagram socket asked before whom its [`SockRecord`] names (`weft_asked`, SK_STORAGE). Only sockets that talk to
/// several have one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Told apart by where they went; those never used are zero.
    pub translations: [Translation; MAX_ASKED],
    /// How many were remembered; the place of the next one, modulo their number.
    pub count: u32,
}

const _: () = assert!(size_of::<Asked>() == 292);
const _: () = assert!(size_of::<SockRecord>() == 200);
const _: () = assert!(core::mem::offset_of!(SockRecord, peer_owner) == 56);
const _: () = assert!(size_of::<ConnRecord>() == 88);
