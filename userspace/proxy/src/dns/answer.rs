//! What a question gets, without asking anybody.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, SOA},
    },
};
use weft_policy::{DNS_SUFFIX, DnsAnswer, Snapshot};

use super::TTL;

/// What we take over UDP ourselves (RFC 9715: avoids fragmentation).
const EDNS_PAYLOAD: u16 = 1232;
/// A DNS header; less is no message, and an answer could not even carry its number.
const HEADER: usize = 12;

#[derive(Debug, PartialEq, Eq)]
pub enum Decided {
    /// Not a question, or not even a message.
    Ignore,
    Reply(Vec<u8>),
    /// Somebody else's; `failure` is the SERVFAIL for when nobody answers.
    Forward { failure: Vec<u8> },
}

/// Decides for a client of `namespace`; `search` are the suffixes that resolvers append.
pub fn decide(question: &[u8], namespace: &str, snapshot: &Snapshot, search: &[String]) -> Decided {
    if question.len() < HEADER {
        return Decided::Ignore;
    }
    let Ok(message) = Message::from_vec(question) else {
        // The bit that tells an answer from a question; answering an answer could go on for ever.
        let is_answer = question[2] & 0x80 != 0;
        let id = u16::from_be_bytes([question[0], question[1]]);
        return if is_answer { Decided::Ignore } else { reply(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)) };
    };
    if message.metadata.message_type != MessageType::Query {
        return Decided::Ignore;
    }
    if message.metadata.op_code != OpCode::Query {
        return reply(answer_to(&message, ResponseCode::NotImp));
    }
    let [query] = message.queries.as_slice() else {
        return reply(answer_to(&message, ResponseCode::FormErr));
    };
    if query.query_class() != DNSClass::IN {
        return forward(&message);
    }
    let name = text(query.name());
    match snapshot.resolve(namespace, &name) {
        DnsAnswer::Service { v4, v6 } => reply(addresses(&message, query, &[v4.into(), v6.into()])),
        DnsAnswer::NotOurs if below(&name, DNS_SUFFIX).is_some() => {
            let mut answer = answer_to(&message, ResponseCode::NXDomain);
            answer.metadata.authoritative = true;
            answer.add_authority(soa(Name::from_ascii(DNS_SUFFIX).unwrap_or_else(|_| Name::root())));
            reply(answer)
        }
        DnsAnswer::NotOurs if suffixed(&name, namespace, snapshot, search) => {
            reply(answer_to(&message, ResponseCode::NXDomain))
        }
        DnsAnswer::NotOurs => forward(&message),
    }
}

/// A name of the mesh with a search suffix behind it: no such name may leave this machine, nor cost its round trip.
fn suffixed(name: &str, namespace: &str, snapshot: &Snapshot, search: &[String]) -> bool {
    search
        .iter()
        .filter_map(|suffix| below(name, suffix))
        .any(|rest| matches!(snapshot.resolve(namespace, rest), DnsAnswer::Service { .. }))
}

/// `a.b` of `a.b.suffix`.
fn below<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    name.strip_suffix(suffix)?.strip_suffix('.')
}

/// Lower case, without the root's dot.
fn text(name: &Name) -> String {
    let text = name.to_lowercase().to_ascii();
    text.strip_suffix('.').map(str::to_owned).unwrap_or(text)
}

fn addresses(message: &Message, query: &Query, ips: &[IpAddr]) -> Message {
    let mut answer = answer_to(message, ResponseCode::NoError);
    answer.metadata.authoritative = true;
    for ip in ips {
        let (kind, data) = match ip {
            IpAddr::V4(v4) => (RecordType::A, RData::A(A(*v4))),
            IpAddr::V6(v6) => (RecordType::AAAA, RData::AAAA(AAAA(*v6))),
        };
        if query.query_type() == kind || query.query_type() == RecordType::ANY {
            answer.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
        }
    }
    if answer.answers.is_empty() {
        answer.add_authority(soa(query.name().clone()));
    }
    answer
}

/// Tells resolvers how long they may remember that there is nothing (RFC 2308): as long as they may remember something.
fn soa(zone: Name) -> Record {
    let server = Name::from_ascii("weft.mesh.").unwrap_or_else(|_| Name::root());
    let refresh = TTL.cast_signed();
    Record::from_rdata(zone, TTL, RData::SOA(SOA::new(server.clone(), server, 1, refresh, refresh, refresh, TTL)))
}

fn answer_to(message: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::response(message.metadata.id, message.metadata.op_code);
    answer.metadata.recursion_desired = message.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = code;
    answer.add_queries(message.queries.iter().cloned());
    if message.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_PAYLOAD).set_version(0);
        answer.set_edns(edns);
    }
    answer
}

fn forward(message: &Message) -> Decided {
    match answer_to(message, ResponseCode::ServFail).to_vec() {
        Ok(failure) => Decided::Forward { failure },
        Err(_) => Decided::Ignore,
    }
}

fn reply(message: Message) -> Decided {
    // What cannot be written was never a sensible question.
    message.to_vec().map_or(Decided::Ignore, Decided::Reply)
}
