//! Every bound of the DNS server in one place, and why it has this value.

use std::time::Duration;

/// A forwarded query is answered within this, if need be with SERVFAIL: the contract says "under a second", and the
/// client's own retry comes after five.
pub const FORWARD_BUDGET: Duration = Duration::from_millis(800);

/// So long before that, a response that came cut is passed on, if the whole one has not come by TCP. Shorter may lose it to the
/// deadline; longer gives TCP less time.
pub(super) const CUT_RESERVE: Duration = Duration::from_millis(50);

/// Another resolver (or the same one again: UDP loses packets) is asked when the first has been silent this long.
/// Shorter doubles the load on resolvers that are merely slow.
pub(super) const HEDGE: Duration = Duration::from_millis(250);

/// Resolvers asked for one query, repetitions included.
pub(super) const MAX_ATTEMPTS: usize = 3;

/// How long clients may keep an answer about a mesh name, in seconds. Virtual IPs are stable while their service exists,
/// so it could be long; but a deleted service should be gone soon, and the question costs a few microseconds. Not 0,
/// which some caches take for an error.
pub const TTL: u32 = 5;

/// Queries forwarded at the same time; each holds a socket. Beyond, SERVFAIL at once.
pub const MAX_IN_FLIGHT: usize = 1024;

/// A client's TCP connection without a query, and a client that does not read its answers.
pub const TCP_IDLE: Duration = Duration::from_secs(10);

/// TCP connections of clients. Beyond, a new one is closed at once.
pub(super) const MAX_TCP_CONNECTIONS: usize = 256;

/// Answers of one TCP connection waiting to be written; its further queries are not read meanwhile.
pub(super) const TCP_PIPELINE: usize = 32;

/// Largest query. Ours are some hundred bytes; even with options a query of more is no query.
pub(super) const MAX_QUERY: usize = 4096;

/// Largest response over UDP, ours or a resolver's; a client's larger offer counts as this much. Larger ones come by TCP.
pub(super) const MAX_UDP_RESPONSE: usize = 4096;

/// Largest response over UDP to a client that offers nothing.
//= RFC 1035, section 2.3.4
//# UDP messages    512 octets or less
pub(super) const PLAIN_UDP_RESPONSE: usize = 512;

/// What we offer in our own answers' EDNS: fits any path without fragments.
pub(super) const EDNS_PAYLOAD: u16 = 1232;

/// Port numbers tried, where any will do (tests), until one is free over UDP, TCP and both families.
pub(super) const MAX_PORT_TRIES: usize = 32;
