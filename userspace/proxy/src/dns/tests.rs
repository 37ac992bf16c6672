//! Real sockets: our server, a resolver beside it, a client.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use arc_swap::ArcSwap;
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};
use weft_policy::{Acceleration, Service, ServiceName, Snapshot};

use super::{DnsConfig, DnsServer, FORWARD_BUDGET, ResolvConf};

const VIP4: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 7);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 7);

fn snapshot() -> Arc<ArcSwap<Snapshot>> {
    let mut snapshot = Snapshot::default();
    let name = ServiceName { namespace: "shop".to_owned(), name: "web".to_owned() };
    let service = Service {
        name: name.clone(),
        vip4: VIP4,
        vip6: VIP6,
        ports: Vec::new(),
        failure_mode: None,
        acceleration: Acceleration::Off,
    };
    snapshot.services.insert(name, Arc::new(service));
    Arc::new(ArcSwap::from_pointee(snapshot))
}

fn server(nameservers: Vec<SocketAddr>) -> DnsServer {
    let config = DnsConfig {
        port: 0,
        resolv_conf: ResolvConf { nameservers, search: vec!["corp.example".to_owned()] },
    };
    let namespaces = Arc::new(|number| if number == 259 { "shop".to_owned() } else { "default".to_owned() });
    DnsServer::start(config, snapshot(), namespaces).unwrap()
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn ask_at(address: SocketAddr, message: &[u8]) -> Message {
    let socket = UdpSocket::bind(SocketAddr::new(
        if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { IpAddr::V6(Ipv6Addr::LOCALHOST) },
        0,
    ))
    .await
    .unwrap();
    socket.connect(address).await.unwrap();
    socket.send(message).await.unwrap();
    let mut buffer = vec![0; 4096];
    let length = socket.recv(&mut buffer).await.unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn ask(server: &DnsServer, from: [u8; 4], name: &str, kind: RecordType) -> Message {
    ask_at((from, server.port()).into(), &question(name, kind).to_vec().unwrap()).await
}

fn ips(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

#[tokio::test]
async fn names_of_a_service_are_its_virtual_ips() {
    let server = server(Vec::new());
    for name in ["web.shop.", "web.shop.mesh.", "WEB.Shop."] {
        let a = ask(&server, [127, 0, 0, 1], name, RecordType::A).await;
        assert_eq!((ips(&a), a.metadata.authoritative), (vec![VIP4.into()], true), "{name}");
        let aaaa = ask(&server, [127, 0, 0, 1], name, RecordType::AAAA).await;
        assert_eq!(ips(&aaaa), [IpAddr::from(VIP6)], "{name}");
    }
}

#[tokio::test]
async fn a_bare_name_is_of_the_namespace_that_the_asked_address_tells() {
    let server = server(Vec::new());
    let shop = ask(&server, [127, 53, 1, 3], "web.", RecordType::A).await;
    assert_eq!(ips(&shop), [IpAddr::from(VIP4)]);
    let default = ask(&server, [127, 53, 0, 0], "web.", RecordType::A).await;
    assert_eq!(default.metadata.response_code, ResponseCode::ServFail, "no such service there, and no resolver");
    let message = question("web.shop.", RecordType::A).to_vec().unwrap();
    let v6 = ask_at((Ipv6Addr::LOCALHOST, server.port()).into(), &message).await;
    assert_eq!(ips(&v6), [IpAddr::from(VIP4)]);
}

#[tokio::test]
async fn another_type_of_a_known_name_has_no_data_and_an_unknown_mesh_name_does_not_exist() {
    let server = server(Vec::new());
    for kind in [RecordType::MX, RecordType::HTTPS, RecordType::TXT] {
        let answer = ask(&server, [127, 0, 0, 1], "web.shop.", kind).await;
        let found = (answer.metadata.response_code, answer.answers.len(), answer.authorities.len());
        assert_eq!(found, (ResponseCode::NoError, 0, 1), "{kind}");
    }
    for name in ["nothing.shop.mesh.", "web.shop.corp.example.", "web.shop.mesh.corp.example."] {
        let answer = ask(&server, [127, 0, 0, 1], name, RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
}

#[tokio::test]
async fn tcp_answers_question_after_question() {
    let server = server(Vec::new());
    let mut stream = TcpStream::connect((Ipv4Addr::new(127, 53, 1, 3), server.port())).await.unwrap();
    for kind in [RecordType::A, RecordType::AAAA] {
        let message = question("web.", kind).to_vec().unwrap();
        stream.write_u16(message.len() as u16).await.unwrap();
        stream.write_all(&message).await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(ips(&Message::from_vec(&answer).unwrap()).len(), 1, "{kind}");
    }
}

#[tokio::test]
async fn everything_else_is_asked_of_the_resolver_and_its_answer_passed_on() {
    let resolver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = resolver.local_addr().unwrap();
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let serve = tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        let (length, from) = resolver.recv_from(&mut buffer).await.unwrap();
        let asked = Message::from_vec(&buffer[..length]).unwrap();
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        answer.add_queries(asked.queries.clone());
        let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 80)));
        answer.add_answer(Record::from_rdata(asked.queries[0].name().clone(), 60, data));
        // A forged answer with another number comes first and is passed over.
        let mut forged = answer.clone();
        forged.metadata.id ^= 1;
        resolver.send_to(&forged.to_vec().unwrap(), from).await.unwrap();
        resolver.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
    });
    let server = server(vec![silent.local_addr().unwrap(), address]);
    let answer = ask(&server, [127, 0, 0, 1], "www.example.com.", RecordType::A).await;
    assert_eq!(ips(&answer), [IpAddr::from([192, 0, 2, 80])]);
    serve.await.unwrap();
}

#[tokio::test]
async fn nobody_to_ask_is_servfail_within_the_budget() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = server(vec![silent.local_addr().unwrap()]);
    let began = Instant::now();
    let answer = ask(&server, [127, 0, 0, 1], "www.example.com.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(began.elapsed() < FORWARD_BUDGET * 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn garbage_gets_a_format_error_or_nothing_and_harms_nobody() {
    let server = server(Vec::new());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = SocketAddr::from(([127, 0, 0, 1], server.port()));
    socket.send_to(b"short", to).await.unwrap();
    // Marked an answer: to answer it could go on for ever.
    socket.send_to(&[0, 1, 0x80, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0xff], to).await.unwrap();
    let answer = ask_at(to, &[0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0xff]).await;
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (1, ResponseCode::FormErr));
    let good = ask(&server, [127, 0, 0, 1], "web.shop.", RecordType::A).await;
    assert_eq!(ips(&good).len(), 1);
}
