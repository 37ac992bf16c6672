//! Asking the system's resolvers, for a client that must not wait long.
//!
//! A query travels as the bytes the client sent, with another id, from a socket of its own (so that a forged response
//! has to guess port and id, and come from the resolver's address). The next resolver is asked as soon as one
//! fails, or has been silent for [`HEDGE`]; the first good response wins, and in the end there is the deadline.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    config::ResolvConf,
    limits::{CUT_RESERVE, FORWARD_BUDGET, HEDGE, MAX_ATTEMPTS, MAX_IN_FLIGHT, MAX_UDP_RESPONSE},
    message::{self, HEADER},
    metrics::DnsMetrics,
};

/// Response codes that another resolver may do better than: SERVFAIL, NOTIMP, REFUSED.
const POOR: [u8; 3] = [2, 4, 5];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

#[derive(Debug)]
pub(super) struct Forwarder {
    resolv: Arc<ArcSwap<ResolvConf>>,
    /// Our own listeners, which are never asked.
    own: Vec<SocketAddr>,
    in_flight: Arc<Semaphore>,
    metrics: DnsMetrics,
}

// === impl Forwarder ===

impl Forwarder {
    pub fn new(resolv: Arc<ArcSwap<ResolvConf>>, own: Vec<SocketAddr>, metrics: DnsMetrics) -> Self {
        Self {
            resolv,
            own,
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            metrics,
        }
    }

    /// The right to forward one query; `None`: too many are under way.
    pub fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.in_flight.clone().try_acquire_owned().ok()
    }

    /// A resolver's response to the query, with the query's id. `None`: there was none in time.
    ///
    /// # Cancel safety
    /// Dropping it ends all attempts.
    pub async fn ask(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let upstreams: Vec<SocketAddr> = self
            .resolv
            .load()
            .nameservers
            .iter()
            .copied()
            .filter(|upstream| !self.is_own(*upstream))
            .collect();
        let client_id = message::id(query)?;
        let mut response = self.race(&upstreams, query, transport).await?;
        message::set_id(&mut response, client_id);
        Some(response)
    }

    async fn race(&self, upstreams: &[SocketAddr], query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let deadline = Instant::now() + FORWARD_BUDGET;
        let mut running = JoinSet::new();
        // Whoever has failed is not asked again; whoever is merely silent may have lost the packet.
        let mut failed = vec![false; upstreams.len()];
        let mut order = (0..upstreams.len())
            .cycle()
            .take(if upstreams.is_empty() { 0 } else { MAX_ATTEMPTS });
        let mut poor = None;
        loop {
            let next = order.find(|index| !failed[*index]);
            if let Some(index) = next {
                let asking = attempt(
                    index,
                    upstreams[index],
                    query.to_vec(),
                    transport,
                    deadline - CUT_RESERVE,
                );
                running.spawn(asking);
            }
            let hedge = if next.is_some() {
                deadline.min(Instant::now() + HEDGE)
            } else {
                deadline
            };
            tokio::select! {
                ended = running.join_next() => match ended {
                    Some(Ok((_, Ok(response)))) if !is_poor(&response) => return Some(response),
                    Some(Ok((index, outcome))) => {
                        self.metrics.upstream_failed.inc();
                        failed[index] = true;
                        poor = outcome.ok().or(poor);
                    }
                    Some(Err(_)) => {}
                    None => return poor,
                },
                () = sleep_until(hedge) => if hedge == deadline {
                    self.metrics.upstream_failed.inc_by(running.len() as u64);
                    return poor;
                },
            }
        }
    }

    /// Asking ourselves would go round until the deadline. The same port of the other family is somebody else's.
    fn is_own(&self, upstream: SocketAddr) -> bool {
        let (asked, port) = (upstream.ip().to_canonical(), upstream.port());
        self.own.iter().any(|own| {
            let listening = own.ip();
            own.port() == port
                && listening.is_ipv4() == asked.is_ipv4()
                && (listening == asked
                    || listening.is_unspecified() && asked.is_loopback()
                    // Connecting to the unspecified address leads to the loopback address.
                    || asked.is_unspecified() && (listening.is_loopback() || listening.is_unspecified()))
        })
    }
}

fn is_poor(response: &[u8]) -> bool {
    message::response_code(response).is_none_or(|code| POOR.contains(&code))
}

/// `patience`: until then the whole of a response that was cut may come.
async fn attempt(
    index: usize,
    upstream: SocketAddr,
    mut query: Vec<u8>,
    transport: Transport,
    patience: Instant,
) -> (usize, io::Result<Vec<u8>>) {
    message::set_id(&mut query, random_id());
    let outcome = match transport {
        Transport::Tcp => over_tcp(upstream, &query).await,
        Transport::Udp => match over_udp(upstream, &query).await {
            // The whole response, if it can be had; else the part that says so.
            Ok(cut) if message::is_truncated(&cut) => match timeout_at(patience, over_tcp(upstream, &query)).await {
                Ok(Ok(whole)) => Ok(whole),
                Ok(Err(_)) | Err(_) => Ok(cut),
            },
            outcome => outcome,
        },
    };
    (index, outcome)
}

async fn over_udp(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if upstream.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Connected: the kernel lets only this resolver's datagrams through, and tells when nobody listens there.
    socket.connect(upstream).await?;
    socket.send(query).await?;
    let mut response = vec![0; MAX_UDP_RESPONSE + 1];
    loop {
        let size = socket.recv(&mut response).await?;
        if answers(query, &response[..size]) {
            response.truncate(size);
            return Ok(message::fit(response, MAX_UDP_RESPONSE));
        }
    }
}

async fn over_tcp(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let size = u16::try_from(query.len()).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(upstream).await?;
    let mut framed = Vec::with_capacity(2 + query.len());
    framed.extend_from_slice(&size.to_be_bytes());
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let size = stream.read_u16().await?;
    let mut response = vec![0; size.into()];
    stream.read_exact(&mut response).await?;
    if answers(query, &response) {
        Ok(response)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the response is to another query",
        ))
    }
}

/// Whether these bytes are a response to that query.
fn answers(query: &[u8], response: &[u8]) -> bool {
    if response.len() < HEADER || !message::is_response(response) || message::id(query) != message::id(response) {
        return false;
    }
    match (message::question(query), message::question(response)) {
        (Some(asked), Some(answered)) => message::same_question(asked, answered),
        // An error may leave the question out.
        (_, None) => response[4..6] == [0, 0] && message::response_code(response) != Some(0),
        (None, Some(_)) => false,
    }
}

/// Not to be guessed: a keyed hash whose key std takes from the system's randomness.
fn random_id() -> u16 {
    RandomState::new().hash_one(()) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(flags: [u8; 2], question: &[u8]) -> Vec<u8> {
        let count = u8::from(!question.is_empty());
        let mut bytes = vec![1, 2, flags[0], flags[1], 0, count, 0, 0, 0, 0, 0, 0];
        bytes.extend_from_slice(question);
        bytes
    }

    #[test]
    fn only_a_response_to_the_question_is_one() {
        let (a, aaaa) = (
            b"\x03web\x00\x00\x01\x00\x01".as_slice(),
            b"\x03web\x00\x00\x1c\x00\x01".as_slice(),
        );
        let query = message([1, 0], a);
        for (response, expect) in [
            (message([0x81, 0], a), true),
            (message([0x81, 0], b"\x03WeB\x00\x00\x01\x00\x01"), true),
            (message([0x81, 0], aaaa), false),
            (message([0x01, 0], a), false),
            (message([0x81, 0], b""), false),
            (message([0x81, 1], b""), true),
            (message([0x81, 0], b"\x03web\x00\x00\x01\x00"), false),
            (vec![1, 2, 0x81], false),
            (
                {
                    let mut other = message([0x81, 0], a);
                    other[0] = 9;
                    other
                },
                false,
            ),
        ] {
            assert_eq!(answers(&query, &response), expect, "{response:?}");
        }
    }

    /// 65 is HTTPS and 97 another type, although `A` and `a` are one letter.
    #[test]
    fn the_case_of_letters_matters_not_in_the_name_but_in_the_type() {
        assert!(!message::same_question(
            b"\x01a\x00\x00\x41\x00\x01",
            b"\x01a\x00\x00\x61\x00\x01"
        ));
        assert!(message::same_question(
            b"\x01a\x00\x00\x41\x00\x01",
            b"\x01A\x00\x00\x41\x00\x01"
        ));
    }

    #[test]
    fn we_never_ask_ourselves() {
        let own = ["0.0.0.0:15053", "[::1]:15053", "127.0.0.1:15054"];
        let own = own.map(|text| text.parse().unwrap()).to_vec();
        let forwarder = Forwarder::new(Arc::default(), own, DnsMetrics::default());
        for (upstream, own) in [
            ("127.0.0.1:15053", true),
            ("127.53.0.1:15053", true),
            ("0.0.0.0:15053", true),
            ("[::ffff:127.0.0.1]:15053", true),
            ("[::1]:15053", true),
            ("[::]:15053", true),
            ("127.0.0.1:15054", true),
            ("127.0.0.2:15054", false),
            ("[::1]:15054", false),
            ("127.0.0.53:53", false),
            ("10.0.0.1:15053", false),
            ("[2001:db8::1]:15053", false),
        ] {
            assert_eq!(forwarder.is_own(upstream.parse().unwrap()), own, "{upstream}");
        }
    }

    #[test]
    fn no_more_than_the_limit_is_forwarded_at_once() {
        let forwarder = Forwarder::new(Arc::default(), Vec::new(), DnsMetrics::default());
        let mut held: Vec<_> = (0..MAX_IN_FLIGHT).map(|_| forwarder.permit().unwrap()).collect();
        assert!(forwarder.permit().is_none());
        held.pop();
        assert!(forwarder.permit().is_some());
    }

    #[test]
    fn ids_differ() {
        let ids: std::collections::HashSet<u16> = (0..100).map(|_| random_id()).collect();
        assert!(ids.len() > 90, "{ids:?}");
    }
}
