//! What to answer: a pure function of the query, the snapshot, and where the query came from.

use hickory_proto::{
    op::{Edns, Message, OpCode, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, SOA},
    },
};
use weft_policy::{DNS_SUFFIX, DnsAnswer, Snapshot};

use super::{
    limits::{EDNS_PAYLOAD, TTL},
    message::{self, response_to},
    metrics::QueryResult,
};

/// What is to be done about a query.
#[derive(Debug)]
pub(super) enum Action {
    Reply(Message, QueryResult),
    /// Ask the system's resolvers.
    Forward(Message),
    Drop,
}

/// Where a query came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker<'a> {
    pub namespace: &'a str,
    /// Search domains of the system.
    pub search: &'a [String],
}

/// How a mesh name stands.
enum Standing {
    Service(DnsAnswer),
    /// No data of its own, but names below it.
    Inner,
    Missing,
    NotOurs,
}

/// Judges the bytes of a query.
pub(super) fn judge(bytes: &[u8], asker: Asker<'_>, snapshot: &Snapshot) -> Action {
    // A response here is a mistake or a loop; answering it would make it one for sure.
    if bytes.len() < message::HEADER || message::is_response(bytes) {
        return Action::Drop;
    }
    let Ok(query) = Message::from_vec(bytes) else {
        // The header is all that may be relied on; opcode and flags are left at their defaults.
        let id = message::id(bytes).unwrap_or_default();
        let response = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
        return Action::Reply(response, QueryResult::Refused);
    };
    if query.metadata.op_code != OpCode::Query {
        return refuse(&query, ResponseCode::NotImp);
    }
    if query.version() > 0 {
        return refuse(&query, ResponseCode::BADVERS);
    }
    let (1, Some(asked), Some(_)) = (query.queries.len(), query.queries.first(), message::question(bytes)) else {
        return refuse(&query, ResponseCode::FormErr);
    };
    if asked.query_class() != DNSClass::IN {
        return Action::Forward(query);
    }
    let name = asked.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    match standing(&name, asker, snapshot) {
        Standing::Service(DnsAnswer::Service { v4, v6 }) => {
            let (name, kind) = (asked.name().clone(), asked.query_type());
            let mut records = Vec::new();
            if matches!(kind, RecordType::A | RecordType::ANY) {
                records.push(Record::from_rdata(name.clone(), TTL, RData::A(A(v4))));
            }
            if matches!(kind, RecordType::AAAA | RecordType::ANY) {
                records.push(Record::from_rdata(name, TTL, RData::AAAA(AAAA(v6))));
            }
            if records.is_empty() {
                return negative(&query, ResponseCode::NoError, snapshot);
            }
            let mut response = authoritative(&query);
            response.add_answers(records);
            Action::Reply(response, QueryResult::Mesh)
        }
        Standing::Inner => negative(&query, ResponseCode::NoError, snapshot),
        Standing::Missing => negative(&query, ResponseCode::NXDomain, snapshot),
        Standing::Service(DnsAnswer::NotOurs) | Standing::NotOurs => Action::Forward(query),
    }
}

/// The response if no resolver answered.
pub(super) fn servfail(query: &Message) -> Message {
    let mut response = response_to(query);
    response.metadata.response_code = ResponseCode::ServFail;
    with_edns(query, response)
}

fn standing(name: &str, asker: Asker<'_>, snapshot: &Snapshot) -> Standing {
    match snapshot.resolve(asker.namespace, name) {
        DnsAnswer::NotOurs => {}
        found => return Standing::Service(found),
    }
    if let Some(above) = name.strip_suffix(DNS_SUFFIX).and_then(|above| above.strip_suffix('.')) {
        //= RFC 8020, section 2
        //# an NXDOMAIN response for a domain name means that no child domains underneath the queried name exist
        return match snapshot.has_services_in(above) {
            true => Standing::Inner,
            false => Standing::Missing,
        };
    }
    if name == DNS_SUFFIX {
        return Standing::Inner;
    }
    // A resolver library tries `web.<search domain>` before `web`: it should move on at once, and must not find somebody
    // else's `web` there.
    let below_search = asker.search.iter().any(|domain| {
        name.strip_suffix(domain.as_str())
            .and_then(|rest| rest.strip_suffix('.'))
            .is_some_and(|rest| snapshot.resolve(asker.namespace, rest) != DnsAnswer::NotOurs)
    });
    if below_search {
        Standing::Missing
    } else {
        Standing::NotOurs
    }
}

fn refuse(query: &Message, code: ResponseCode) -> Action {
    let mut response = response_to(query);
    response.metadata.response_code = code;
    Action::Reply(with_edns(query, response), QueryResult::Refused)
}

fn authoritative(query: &Message) -> Message {
    let mut response = with_edns(query, response_to(query));
    response.metadata.authoritative = true;
    response
}

/// No data, or no name; with the SOA that says for how long.
fn negative(query: &Message, code: ResponseCode, snapshot: &Snapshot) -> Action {
    let mut response = authoritative(query);
    response.metadata.response_code = code;
    let zone = Name::root().append_label(DNS_SUFFIX).ok();
    let asked = query.queries.first().map(|query| query.name().clone());
    // The zone of `web.shop.mesh` is `mesh`; a short name, and a mesh name below a search domain, is its own.
    let owner = zone
        .clone()
        .filter(|zone| asked.as_ref().is_some_and(|asked| zone.zone_of(asked)))
        .or(asked);
    if let (Some(owner), Some(zone)) = (owner, zone) {
        let serial = snapshot.generation as u32;
        let ttl = TTL.cast_signed();
        let soa = SOA::new(zone.clone(), zone, serial, ttl, ttl, ttl, TTL);
        response.add_authority(Record::from_rdata(owner, TTL, RData::SOA(soa)));
    }
    let result = if code == ResponseCode::NXDomain {
        QueryResult::Nxdomain
    } else {
        QueryResult::Nodata
    };
    Action::Reply(response, result)
}

//= RFC 6891, section 6.1.1
//# If an OPT record is present in a received request, compliant responders MUST include an OPT record in their
//# respective responses.
fn with_edns(query: &Message, mut response: Message) -> Message {
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_PAYLOAD);
        response.set_edns(edns);
    }
    response
}

#[cfg(test)]
pub(super) mod tests;
