//! The whole server on real sockets, with real resolvers (built here) behind it.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, TXT},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};
use weft_policy::Snapshot;

use super::{
    answer::tests::snapshot,
    metrics::{QueryLabels, QueryResult},
    *,
};

/// Long enough for the slowest machine; passing tests never wait for it.
const LONG: Duration = Duration::from_secs(20);

/// The contract's bound on a query that nobody answers.
const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    server: DnsServer,
    metrics: DnsMetrics,
    snapshot: Arc<ArcSwap<Snapshot>>,
}

impl Bench {
    /// Namespace 258 (127.53.1.2) is `shop`.
    fn new(upstreams: &[SocketAddr]) -> Self {
        let resolv_conf = ResolvConf {
            nameservers: upstreams.to_vec(),
            search: vec!["corp.example".to_owned()],
        };
        let names = |number| {
            if number == 0x0102 {
                "shop".to_owned()
            } else {
                "default".to_owned()
            }
        };
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot()));
        let server = DnsServer::start(DnsConfig { port: 0, resolv_conf }, snapshot.clone(), Arc::new(names)).unwrap();
        Self {
            metrics: server.metrics().clone(),
            server,
            snapshot,
        }
    }

    fn at(&self, ip: [u8; 4]) -> SocketAddr {
        (Ipv4Addr::from(ip), self.server.port()).into()
    }

    fn v6(&self) -> SocketAddr {
        (Ipv6Addr::LOCALHOST, self.server.port()).into()
    }

    fn count(&self, result: QueryResult) -> u64 {
        self.metrics.queries.get_or_create(&QueryLabels { result }).get()
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::new(0x4321, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    query
}

fn with_payload(name: &str, payload: u16) -> Message {
    let mut query = query(name, RecordType::TXT);
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    query.set_edns(edns);
    query
}

async fn ask_udp(server: SocketAddr, query: &Message) -> Message {
    let any = if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let client = UdpSocket::bind(any).await.unwrap();
    client.connect(server).await.unwrap();
    client.send(&query.to_vec().unwrap()).await.unwrap();
    let mut response = vec![0; 65535];
    let size = timeout(LONG, client.recv(&mut response)).await.unwrap().unwrap();
    let response = Message::from_vec(&response[..size]).unwrap();
    assert_eq!(response.metadata.id, query.metadata.id);
    assert_eq!(response.queries, query.queries);
    response
}

async fn send_tcp(stream: &mut TcpStream, bytes: &[u8]) {
    stream
        .write_all(&[&(bytes.len() as u16).to_be_bytes(), bytes].concat())
        .await
        .unwrap();
}

async fn read_tcp(stream: &mut TcpStream) -> Message {
    let size = timeout(LONG, stream.read_u16()).await.unwrap().unwrap();
    let mut response = vec![0; size.into()];
    timeout(LONG, stream.read_exact(&mut response)).await.unwrap().unwrap();
    Message::from_vec(&response).unwrap()
}

async fn ask_tcp(server: SocketAddr, query: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    send_tcp(&mut stream, &query.to_vec().unwrap()).await;
    read_tcp(&mut stream).await
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

/// A resolver on loopback, UDP and TCP of one port; says what it was asked how often.
struct Resolver {
    address: SocketAddr,
    udp: Arc<AtomicUsize>,
    tcp: Arc<AtomicUsize>,
}

/// What a resolver does over UDP and over TCP.
type Behaviour = fn(Message, Over) -> Vec<Vec<u8>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Udp,
    Tcp,
}

impl Resolver {
    async fn new(behaviour: Behaviour) -> Self {
        Self::start(behaviour, true).await
    }

    /// Nobody accepts its TCP connections.
    async fn deaf_over_tcp(behaviour: Behaviour) -> Self {
        Self::start(behaviour, false).await
    }

    async fn start(behaviour: Behaviour, accepts: bool) -> Self {
        // The same number may be taken over the other protocol: then the next one.
        let (listener, socket) = loop {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(socket) = UdpSocket::bind(listener.local_addr().unwrap()).await {
                break (listener, socket);
            }
        };
        let this = Self {
            address: listener.local_addr().unwrap(),
            udp: Arc::default(),
            tcp: Arc::default(),
        };
        let (udp, tcp) = (this.udp.clone(), this.tcp.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((size, client)) = socket.recv_from(&mut buffer).await {
                udp.fetch_add(1, Ordering::SeqCst);
                for response in behaviour(Message::from_vec(&buffer[..size]).unwrap(), Over::Udp) {
                    socket.send_to(&response, client).await.unwrap();
                }
            }
        });
        tokio::spawn(async move {
            if !accepts {
                std::future::pending::<()>().await;
            }
            while let Ok((mut stream, _)) = listener.accept().await {
                tcp.fetch_add(1, Ordering::SeqCst);
                let query = read_tcp(&mut stream).await;
                for response in behaviour(query, Over::Tcp) {
                    send_tcp(&mut stream, &response).await;
                }
            }
        });
        this
    }

    fn asked(&self) -> (usize, usize) {
        (self.udp.load(Ordering::SeqCst), self.tcp.load(Ordering::SeqCst))
    }

    /// Whether at all, over UDP and over TCP. Where the machine stalls for [`limits::HEDGE`], it is asked once more.
    fn was_asked(&self) -> (bool, bool) {
        let (udp, tcp) = self.asked();
        (udp > 0, tcp > 0)
    }
}

fn response(query: &Message, code: ResponseCode) -> Message {
    let mut response = Message::response(query.metadata.id, OpCode::Query);
    response.metadata.response_code = code;
    response.add_queries(query.queries.iter().cloned());
    response
}

fn good(query: Message, _: Over) -> Vec<Vec<u8>> {
    let mut response = response(&query, ResponseCode::NoError);
    let name = query.queries[0].name().clone();
    response.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::new(192, 0, 2, 1)))));
    vec![response.to_vec().unwrap()]
}

fn silent(_: Message, _: Over) -> Vec<Vec<u8>> {
    Vec::new()
}

fn failing(query: Message, _: Over) -> Vec<Vec<u8>> {
    vec![response(&query, ResponseCode::ServFail).to_vec().unwrap()]
}

/// About `size` bytes of text; over UDP no more than the client's limit, else the TC bit.
fn text(query: Message, over: Over, size: usize) -> Vec<Vec<u8>> {
    let mut response = response(&query, ResponseCode::NoError);
    let strings = vec!["x".repeat(200); size.div_ceil(200)];
    let name = query.queries[0].name().clone();
    response.add_answer(Record::from_rdata(name, 60, RData::TXT(TXT::new(strings))));
    let bytes = response.to_vec().unwrap();
    if over == Over::Udp && bytes.len() > usize::from(query.max_payload()) {
        return vec![response.truncate().to_vec().unwrap()];
    }
    vec![bytes]
}

/// An address where nobody listens, and nobody can while this lives: its UDP socket hears one peer only, and its TCP socket
/// does not listen.
struct Nobody {
    address: SocketAddr,
    _held: (UdpSocket, TcpSocket),
}

impl Nobody {
    async fn new() -> Self {
        loop {
            let tcp = TcpSocket::new_v4().unwrap();
            tcp.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let address = tcp.local_addr().unwrap();
            if let Ok(udp) = UdpSocket::bind(address).await {
                udp.connect("127.0.0.1:9").await.unwrap();
                return Self {
                    address,
                    _held: (udp, tcp),
                };
            }
        }
    }
}

#[tokio::test]
async fn a_service_is_found_over_udp_and_tcp_and_both_families() {
    let bench = Bench::new(&[]);
    for (kind, expect) in [(RecordType::A, "240.240.0.1"), (RecordType::AAAA, "2001:2::1")] {
        let query = query("web.", kind);
        for server in [bench.at([127, 0, 0, 1]), bench.v6()] {
            assert_eq!(addresses(&ask_udp(server, &query).await), [expect], "udp {server}");
        }
        for server in [bench.at([127, 0, 0, 1]), bench.v6()] {
            assert_eq!(addresses(&ask_tcp(server, &query).await), [expect], "tcp {server}");
        }
    }
    assert_eq!(bench.count(QueryResult::Mesh), 8);
}

#[tokio::test]
async fn the_local_address_says_the_clients_namespace() {
    let bench = Bench::new(&[]);
    let query = query("web.", RecordType::A);
    for (ip, expect) in [
        ([127, 0, 0, 1], "240.240.0.1"),
        ([127, 53, 0, 0], "240.240.0.1"),
        ([127, 53, 1, 2], "240.240.0.3"),
        ([127, 53, 9, 9], "240.240.0.1"),
        ([127, 54, 1, 2], "240.240.0.1"),
    ] {
        assert_eq!(addresses(&ask_udp(bench.at(ip), &query).await), [expect], "udp {ip:?}");
        assert_eq!(addresses(&ask_tcp(bench.at(ip), &query).await), [expect], "tcp {ip:?}");
    }
}

#[tokio::test]
async fn a_new_snapshot_is_answered_from_at_once() {
    let bench = Bench::new(&[]);
    bench.snapshot.store(Arc::new(Snapshot::default()));
    let missing = ask_udp(bench.at([127, 0, 0, 1]), &query("web.default.mesh.", RecordType::A)).await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn a_name_below_a_search_domain_does_not_reach_the_resolver() {
    let resolver = Resolver::new(good).await;
    let bench = Bench::new(&[resolver.address]);
    let response = ask_udp(bench.at([127, 0, 0, 1]), &query("web.corp.example.", RecordType::A)).await;
    assert_eq!(response.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(resolver.asked(), (0, 0));
}

#[tokio::test]
async fn everything_else_is_forwarded_the_way_it_came() {
    let query = query("example.org.", RecordType::A);
    for over in [Over::Udp, Over::Tcp] {
        let resolver = Resolver::new(good).await;
        let bench = Bench::new(&[resolver.address]);
        let server = bench.at([127, 0, 0, 1]);
        let response = match over {
            Over::Udp => ask_udp(server, &query).await,
            Over::Tcp => ask_tcp(server, &query).await,
        };
        assert_eq!(addresses(&response), ["192.0.2.1"]);
        assert_eq!(resolver.was_asked(), (over == Over::Udp, over == Over::Tcp));
        assert_eq!(
            (bench.count(QueryResult::Forwarded), bench.metrics.upstream_failed.get()),
            (1, 0)
        );
    }
}

#[tokio::test]
async fn a_new_resolv_conf_is_used_at_once() {
    let (old, new) = (Resolver::new(good).await, Resolver::new(good).await);
    let bench = Bench::new(&[old.address]);
    bench.server.set_resolv_conf(ResolvConf {
        nameservers: vec![new.address],
        search: Vec::new(),
    });
    ask_udp(bench.at([127, 0, 0, 1]), &query("example.org.", RecordType::A)).await;
    assert_eq!((old.was_asked(), new.was_asked()), ((false, false), (true, false)));
}

#[tokio::test]
async fn no_resolver_or_a_silent_or_unreachable_one_is_servfail_within_a_second() {
    let (silent, nobody) = (Resolver::new(silent).await, Nobody::new().await);
    for upstreams in [
        &[][..],
        &[nobody.address],
        &[silent.address],
        &[nobody.address, silent.address],
    ] {
        let bench = Bench::new(upstreams);
        let query = query("example.org.", RecordType::A);
        // The machine may stall; hardly five times.
        let mut took = Duration::MAX;
        let mut tries = 0;
        while took >= SECOND {
            assert!(tries < 5, "{upstreams:?}: {took:?}");
            tries += 1;
            let began = Instant::now();
            let (udp, tcp) = tokio::join!(
                ask_udp(bench.at([127, 0, 0, 1]), &query),
                ask_tcp(bench.at([127, 0, 0, 1]), &query)
            );
            took = began.elapsed();
            for response in [udp, tcp] {
                assert_eq!(response.metadata.response_code, ResponseCode::ServFail);
                assert!(response.metadata.recursion_available);
            }
            assert_eq!(bench.count(QueryResult::Servfail), 2 * tries);
        }
    }
}

#[tokio::test]
async fn the_next_resolver_is_asked_when_one_fails_or_is_silent() {
    for first in [failing as Behaviour, silent] {
        let (first, second) = (Resolver::new(first).await, Resolver::new(good).await);
        let bench = Bench::new(&[first.address, second.address]);
        let response = ask_udp(bench.at([127, 0, 0, 1]), &query("example.org.", RecordType::A)).await;
        assert_eq!(addresses(&response), ["192.0.2.1"]);
        assert_eq!((first.was_asked(), second.was_asked()), ((true, false), (true, false)));
    }
}

#[tokio::test]
async fn a_lost_packet_is_sent_again() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let resolver = Resolver::new(|query, over| {
        if ASKED.fetch_add(1, Ordering::SeqCst) == 0 {
            Vec::new()
        } else {
            good(query, over)
        }
    })
    .await;
    let bench = Bench::new(&[resolver.address]);
    let response = ask_udp(bench.at([127, 0, 0, 1]), &query("example.org.", RecordType::A)).await;
    assert_eq!(addresses(&response), ["192.0.2.1"]);
    let (udp, tcp) = resolver.asked();
    assert!(udp >= 2 && tcp == 0, "{udp}, {tcp}");
}

#[tokio::test]
async fn the_resolvers_own_error_is_passed_on_if_nobody_does_better() {
    let resolver = Resolver::new(|query, _| vec![response(&query, ResponseCode::Refused).to_vec().unwrap()]).await;
    let bench = Bench::new(&[resolver.address]);
    let response = ask_udp(bench.at([127, 0, 0, 1]), &query("example.org.", RecordType::A)).await;
    assert_eq!(response.metadata.response_code, ResponseCode::Refused);
    let (udp, tcp) = resolver.asked();
    // Whoever has failed is not asked again.
    assert!((1..limits::MAX_ATTEMPTS).contains(&udp) && tcp == 0, "{udp}, {tcp}");
    assert_eq!(bench.metrics.upstream_failed.get(), udp as u64);
}

#[tokio::test]
async fn a_forged_response_is_passed_over() {
    let resolver = Resolver::new(|query, over| {
        let mut other_id = response(&query, ResponseCode::NXDomain);
        other_id.metadata.id ^= 1;
        let mut other_question = response(&query, ResponseCode::NXDomain);
        other_question.queries[0].set_name(Name::from_ascii("example.net.").unwrap());
        let mut no_response = response(&query, ResponseCode::NXDomain);
        no_response.metadata.message_type = MessageType::Query;
        let forged = [other_id, other_question, no_response].map(|message| message.to_vec().unwrap());
        forged
            .into_iter()
            .chain([b"garbage".to_vec()])
            .chain(good(query, over))
            .collect()
    })
    .await;
    let bench = Bench::new(&[resolver.address]);
    let response = ask_udp(bench.at([127, 0, 0, 1]), &query("example.org.", RecordType::A)).await;
    assert_eq!(addresses(&response), ["192.0.2.1"]);
}

#[tokio::test]
async fn the_resolver_sees_another_id_than_the_client_sent() {
    static SEEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let resolver = Resolver::new(|query, over| {
        SEEN.lock().unwrap().push(query.metadata.id);
        good(query, over)
    })
    .await;
    let bench = Bench::new(&[resolver.address]);
    let query = query("example.org.", RecordType::A);
    for _ in 0..4 {
        assert_eq!(
            addresses(&ask_udp(bench.at([127, 0, 0, 1]), &query).await),
            ["192.0.2.1"]
        );
    }
    // One may be the client's own by chance; four never are.
    assert!(SEEN.lock().unwrap().iter().any(|id| *id != query.metadata.id));
}

#[tokio::test]
async fn a_large_response_is_cut_to_what_the_client_takes() {
    let resolver = Resolver::new(|query, over| text(query, over, 2000)).await;
    let bench = Bench::new(&[resolver.address]);
    let server = bench.at([127, 0, 0, 1]);
    for (query, truncated) in [
        (query("example.org.", RecordType::TXT), true),
        (with_payload("example.org.", 1232), true),
        (with_payload("example.org.", 4096), false),
    ] {
        let response = ask_udp(server, &query).await;
        assert_eq!(
            (response.metadata.truncation, response.answers.is_empty()),
            (truncated, truncated),
            "{query}"
        );
    }
    let whole = ask_tcp(bench.at([127, 0, 0, 1]), &query("example.org.", RecordType::TXT)).await;
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 1));
}

#[tokio::test]
async fn a_resolver_that_cuts_is_asked_again_by_tcp_for_a_client_that_takes_more() {
    // Cuts everything over UDP, whatever the client takes.
    let resolver = Resolver::new(|query, over| match over {
        Over::Udp => vec![response(&query, ResponseCode::NoError).truncate().to_vec().unwrap()],
        Over::Tcp => text(query, over, 600),
    })
    .await;
    let bench = Bench::new(&[resolver.address]);
    let response = ask_udp(bench.at([127, 0, 0, 1]), &with_payload("example.org.", 4096)).await;
    assert_eq!((response.metadata.truncation, response.answers.len()), (false, 1));
    assert_eq!(resolver.was_asked(), (true, true));
}

#[tokio::test]
async fn a_response_that_was_cut_is_passed_on_where_the_whole_one_does_not_come() {
    let resolver = Resolver::deaf_over_tcp(|query, over| text(query, over, 2000)).await;
    let bench = Bench::new(&[resolver.address]);
    let response = ask_udp(bench.at([127, 0, 0, 1]), &query("example.org.", RecordType::TXT)).await;
    assert_eq!(
        (response.metadata.response_code, response.metadata.truncation),
        (ResponseCode::NoError, true)
    );
}

#[tokio::test]
async fn a_response_beyond_any_datagram_comes_by_tcp() {
    let resolver = Resolver::new(|query, over| text(query, over, 30_000)).await;
    let bench = Bench::new(&[resolver.address]);
    let query = with_payload("example.org.", 65535);
    assert!(ask_udp(bench.at([127, 0, 0, 1]), &query).await.metadata.truncation);
    assert_eq!(ask_tcp(bench.at([127, 0, 0, 1]), &query).await.answers.len(), 1);
}

#[tokio::test]
async fn queries_of_one_tcp_connection_do_not_wait_for_each_other() {
    let silent = Resolver::new(silent).await;
    let bench = Bench::new(&[silent.address]);
    let mut stream = TcpStream::connect(bench.at([127, 53, 1, 2])).await.unwrap();
    for (id, name) in [(1, "example.org."), (2, "web.")] {
        let mut query = query(name, RecordType::A);
        query.metadata.id = id;
        send_tcp(&mut stream, &query.to_vec().unwrap()).await;
    }
    stream.shutdown().await.unwrap();
    let (first, second) = (read_tcp(&mut stream).await, read_tcp(&mut stream).await);
    assert_eq!(
        (first.metadata.id, addresses(&first)),
        (2, vec!["240.240.0.3".to_owned()])
    );
    assert_eq!(
        (second.metadata.id, second.metadata.response_code),
        (1, ResponseCode::ServFail)
    );
    assert_eq!(timeout(LONG, stream.read(&mut [0])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn garbage_is_answered_with_formerr_or_not_at_all() {
    let bench = Bench::new(&[]);
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(bench.at([127, 0, 0, 1])).await.unwrap();
    let mut responded = query("web.", RecordType::A);
    responded.metadata.message_type = MessageType::Response;
    let broken = [&[9, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &[0xff; 40]].concat();
    for bytes in [&b""[..], b"x", &responded.to_vec().unwrap(), &broken] {
        client.send(bytes).await.unwrap();
    }
    // Datagrams keep their order here: the first thing that comes back is the answer to the last one.
    let mut buffer = [0; 512];
    let size = timeout(LONG, client.recv(&mut buffer)).await.unwrap().unwrap();
    let response = Message::from_vec(&buffer[..size]).unwrap();
    assert_eq!(
        (response.metadata.id, response.metadata.response_code),
        (0x0909, ResponseCode::FormErr)
    );
    assert_eq!(
        (bench.count(QueryResult::Dropped), bench.count(QueryResult::Refused)),
        (3, 1)
    );
}

#[tokio::test]
async fn a_tcp_connection_that_speaks_no_dns_is_closed() {
    let bench = Bench::new(&[]);
    for bytes in [&b"\x00\x03abc"[..], b"\xff\xff", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = TcpStream::connect(bench.at([127, 0, 0, 1])).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        // A reset, where bytes were left unread, is an end as well.
        let end = timeout(LONG, stream.read(&mut [0])).await.unwrap();
        assert!(end.is_err() || end.unwrap() == 0, "{bytes:?}");
    }
}

#[tokio::test]
async fn shutdown_answers_what_is_under_way_and_frees_the_ports() {
    let silent = Resolver::new(silent).await;
    let bench = Bench::new(&[silent.address]);
    let (udp, tcp) = (bench.at([127, 0, 0, 1]), bench.at([127, 0, 0, 1]));
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(udp).await.unwrap();
    client
        .send(&query("example.org.", RecordType::A).to_vec().unwrap())
        .await
        .unwrap();
    let asked = async {
        while silent.asked().0 == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, asked).await.unwrap();
    timeout(LONG, bench.server.shutdown()).await.unwrap();
    let mut buffer = [0; 512];
    let size = timeout(LONG, client.recv(&mut buffer)).await.unwrap().unwrap();
    let response = Message::from_vec(&buffer[..size]).unwrap();
    assert_eq!(response.metadata.response_code, ResponseCode::ServFail);
    UdpSocket::bind(("127.0.0.1", udp.port())).await.unwrap();
    assert!(TcpStream::connect(tcp).await.is_err());
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_line() {
    let first = Bench::new(&[]);
    let config = DnsConfig {
        port: first.server.port(),
        resolv_conf: ResolvConf::default(),
    };
    let error = DnsServer::start(config, Arc::default(), Arc::new(|_| "default".to_owned())).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "listen on 0.0.0.0:{} for DNS over TCP; is another daemon running in this network namespace?",
            first.server.port()
        )
    );
}
