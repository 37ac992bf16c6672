//! Every bound of the data path in one place: what it bounds, and what goes wrong when it is larger or smaller.

use std::{ops::RangeInclusive, time::Duration};

/// Connections waiting to be accepted, a listener. Smaller: connects are dropped and retried after a second in bursts.
pub const LISTEN_BACKLOG: i32 = 4096;

/// How long a connection to a port of unknown protocol may stay silent before it is taken for a protocol in which the
/// server speaks first. Longer delays every such connection by as much; shorter takes slow HTTP clients for opaque.
/// Only connections to ports that nobody declared pay it.
pub const DETECT_DEADLINE: Duration = Duration::from_millis(100);

/// The same where a route speaks of requests but nobody declared the port to be HTTP. An HTTP client that opens its
/// connection early has this long to begin (else it is served as opaque bytes: declare the port, `appProtocol: http`);
/// a protocol in which the server speaks first pays it once a connection.
pub const INFERRED_DETECT_DEADLINE: Duration = Duration::from_secs(1);

/// Bytes looked at to tell protocols apart: an HTTP/1 request line, method to version. A longer one is HTTP all the
/// same and gets its 414 there.
pub const DETECT_BYTES: usize = 8 * 1024;

/// Header block of one message, in bytes. Larger lets a client hold more memory, smaller refuses large cookies.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Header lines of one message.
pub const MAX_HEADERS: usize = 100;

/// Read buffer of an HTTP/1 connection: a header block and a little.
pub const HTTP1_BUFFER: usize = MAX_HEADER_BYTES + 16 * 1024;

/// Buffers of either kind that a worker keeps for its next requests; those of more requests that are read or written at once are
/// made and given back.
pub const SPARE_BUFFERS: usize = 16;

/// Names of clients (`User-Agent`) that a worker remembers, to tell of each without a copy of its own. More are compared with each
/// request; fewer are copied where many kinds of clients take turns.
pub const AGENTS_KEPT: usize = 16;

/// Longest piece of an answer's body that is copied beside what goes with it, to be written with one call. Longer ones are written
/// from where they were read.
pub const LEAN_COPY: usize = 16 * 1024;

/// From the first byte of a request to the end of its headers. Bounds slow-header attacks.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A client connection without a request. As Envoy's: clients keep pools, and closing under them costs a retry.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// How often a worker looks for connections that have waited for [`IDLE_TIMEOUT`]: they may wait longer by this. An HTTP/2 client
/// that was told to leave has so long for it. More often costs a look at each of ten thousands.
pub const IDLE_SWEEP: Duration = Duration::from_secs(60);

/// After this without a request an HTTP/1 connection gives its parser and buffers (20 KB and more) back until the next one
/// comes. Shorter makes them anew more often, which costs a microsecond or two; longer keeps them for clients that have nothing
/// to say.
pub const REST_AFTER: Duration = Duration::from_millis(250);

/// How often an HTTP/1 connection that hyper serves looks within a request whether the slow headers or the idle time above have
/// passed; between requests it does so at every [`REST_AFTER`].
pub const IDLE_TICK: Duration = Duration::from_secs(5);

/// Concurrent streams a client may open on one HTTP/2 connection.
pub const H2_MAX_STREAMS: u32 = 250;

/// Flow-control windows of HTTP/2: bytes in flight a stream, both sides, and a client's connection. Bound what a slow reader
/// makes us buffer.
pub const H2_STREAM_WINDOW: u32 = 256 * 1024;
/// See [`H2_STREAM_WINDOW`].
pub const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Of a connection to an endpoint: as much as its streams have together, for they are of different clients, and those that do not
/// read would keep the rest from the others.
pub const H2_UPSTREAM_WINDOW: u32 = H2_UPSTREAM_STREAMS as u32 * H2_STREAM_WINDOW;

/// What small DATA frames of an endpoint may take of our memory beside their bytes, all of a connection together: h2 counts what each
/// has less than 256 bytes, until it is read. More ends the connection with all its streams, so larger lets an endpoint take more, and
/// smaller lets fewer clients that do not read cut the others (with messages of 24 bytes: 26). h2's own choice would be a fifth.
pub const H2_UPSTREAM_FRAMES: usize = 64 * 1024 * 1024;

/// The same of a client's requests, on its connection: 8 MiB, or 33,000 frames of one byte (36,000 of 24: 3 of its streams that wait
/// for endpoints that do not take them), beside at most [`H2_CONNECTION_WINDOW`] of bytes. It shares them with nobody. Larger lets a
/// client with many connections take more of our memory, smaller ends connections of clients that stream small messages.
pub const H2_FRAMES: usize = 8 * 1024 * 1024;

/// Bytes buffered for sending, a stream.
pub const H2_SEND_BUFFER: usize = 256 * 1024;

/// Bytes that an HTTP/2 connection gathers in one turn, to write them with one call. What the other side does not take stays, so a slow
/// reader makes us keep so much beside the above. Larger keeps more, smaller writes more often.
pub const GATHER_BUFFER: usize = 64 * 1024;

/// Longest piece that is copied there. Longer ones are written from where they are: a full DATA frame with its head is longer.
pub const GATHER_COPY: usize = 16 * 1024;

/// DATA frames that carry nothing and end nothing, in a row on one connection, that cost it nothing. More are counted by h2, which ends
/// a connection after 100. Larger lets a peer keep us busy (CVE-2019-9518), smaller cuts those that send some: with many streams at a
/// time they come one after the other. Envoy takes 1, netty 10.
pub const H2_EMPTY_IN_A_ROW: u32 = 100;

/// Streams reset by the peer that were not yet accepted (rapid reset, CVE-2023-44487): more ends the connection.
pub const H2_MAX_PENDING_RESETS: usize = 20;

/// Streams that we reset for the peer's errors: more ends the connection (CVE-2025-8671, "MadeYouReset").
pub const H2_MAX_LOCAL_RESETS: usize = 1024;

/// Streams put on one upstream HTTP/2 connection before another is opened. Servers allow 100 and more; above what they
/// allow a request waits for another to end (`upstream/http2/slots.rs`), which a stream of days never does.
pub const H2_UPSTREAM_STREAMS: usize = 100;

/// Establishing one upstream connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection on which nothing comes is probed after this, whoever opened it: who only waits never learns that the other side's
/// node lost its power, and an application's own probes end at the proxy. Longer keeps what waits for the dead; shorter costs
/// each idle connection a packet and its answer more often.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// Then so often.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// So many probes without an answer end it. Fewer would end connections over a network that loses packets for some seconds.
pub const KEEPALIVE_PROBES: u32 = 6;

/// An endpoint that takes nothing of a request for so long has gone (TCP_USER_TIMEOUT): while bytes are unacknowledged there are no
/// probes, and Linux sends them again for a quarter of an hour. As long as the probes take, for it then bounds these too: less would
/// end an idle connection with the first probe that is lost. Linux also ends a connection whose endpoint acknowledges and does not
/// read. Opaque connections, tunnels and clients go without: what they carry may stand still.
pub const UNREAD_TIMEOUT: Duration = KEEPALIVE_IDLE.saturating_add(KEEPALIVE_INTERVAL.saturating_mul(KEEPALIVE_PROBES));

/// Local ports of connections that have a client's address: as many may be open at a time to one pod for each client. Below
/// the range that clients choose theirs from (Linux: 32768 and up; IANA: 49152 and up): a client's new connection from
/// a port that the proxy uses for it would be taken for the proxy's.
pub const SOURCE_PORTS: RangeInclusive<u16> = 20_000..=32_767;

/// How often such a connection is tried, each time from another port.
pub const SOURCE_ATTEMPTS: usize = 8;

/// How long it may take: it goes over loopback. After that the client's own connection may have the port, answers may go
/// astray (a server that sets SO_MARK itself), or nobody listens (that answer goes to the client, who does not know of it):
/// it is tried once without the client's address.
pub const SOURCE_TIMEOUT: Duration = Duration::from_secs(1);

/// So many such connections in a row that did not come about in time are no accident: the endpoint then gets none for
/// [`SOURCE_PAUSE`], and its clients do not wait. Fewer would hide clients' addresses after one port that a client had taken.
pub const SOURCE_LOSSES: u32 = 2;

/// See [`SOURCE_LOSSES`].
pub const SOURCE_PAUSE: Duration = Duration::from_secs(60);

/// Endpoints tried for one request or connection when connecting fails.
pub const CONNECT_ATTEMPTS: usize = 3;

/// An idle upstream connection is closed after this. Servers close theirs after a minute or so (nginx: 75 s); losing
/// the race against them costs a retry, or a failed request where that is not safe.
pub const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Idle HTTP/1 connections kept a worker and endpoint; where an endpoint sees its clients' addresses, also a client's address.
pub const POOL_IDLE_PER_ENDPOINT: usize = 128;

/// How often a worker closes what has idled too long. Set once, in a timer of the kernel's: as long as the runtime has one of its own, each of
/// its waits sets one.
pub const POOL_TICK: Duration = Duration::from_secs(5);

/// Buffer of one direction of an opaque connection.
pub const RELAY_BUFFER: usize = 64 * 1024;

/// After `Expect: 100-continue` went upstream: how long the body waits for an answer. RFC 9110 10.1.1 forbids to wait
/// without end, as old servers never answer.
pub const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the rest of a request body is read and thrown away after an early answer (a refusal, mostly). Closing at
/// once would reset the connection, and the reset takes the answer with it that the client has not read yet.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(10);

/// When another process has taken the listeners over: how long before the deadline idle connections are closed and streams
/// are told to end. Longer closes connections earlier on which a request may be on its way; shorter leaves those that are
/// about to end no time for it.
pub const RETIRED_DRAIN: Duration = Duration::from_secs(1);

/// Bytes of one body that paused filters may hold back, all filters together: as Envoy's default. Larger lets a client
/// make us keep more; smaller refuses bodies that filters want to see whole. A request that exceeds it is answered 413; an
/// answer whose head has gone to the client is cut. Of an opaque connection nothing more is read in that direction, and
/// its sender waits, until a filter lets something pass: it may exceed this by one [`RELAY_BUFFER`].
pub const FILTER_BODY_BUFFER: usize = 1024 * 1024;

/// Largest allocation, in bytes, that glibc keeps at hand for a thread (its tcache). A request that needs larger ones takes the slow
/// way through the allocator, which also gathers what others left: a tenth of the CPU time of a request that filters look at went there.
pub const CHEAP_BOX: usize = 1032;

/// How long a filter may hold a head, the rest of a body, or a connection, while it is shown nothing new: as long as Envoy lets a
/// stream stand still (`stream_idle_timeout`), and several times the longest call that a module can wait for. Longer lets a filter
/// that forgets to go on, and whoever makes it do so, keep more requests; shorter ends those that ask slow services one after the
/// other. The request is answered 504; an answer whose head has gone to the client is cut, and a connection reset.
pub const FILTER_PAUSE: Duration = Duration::from_secs(300);

/// Pause of an accept loop after the process ran out of descriptors or memory.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
