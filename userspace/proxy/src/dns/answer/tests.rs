use std::sync::Arc;

use hickory_proto::op::{MessageType, Query};
use weft_policy::{Acceleration, L7, Service, ServiceName};

use super::*;

/// `web` and `db` in `default`, `web` in `shop`.
pub(crate) fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot {
        generation: 7,
        ..Snapshot::default()
    };
    for (number, (namespace, name)) in [("default", "web"), ("default", "db"), ("shop", "web")]
        .into_iter()
        .enumerate()
    {
        let name = ServiceName {
            namespace: namespace.into(),
            name: name.into(),
        };
        let service = Service {
            name: name.clone(),
            vip4: [240, 240, 0, number as u8 + 1].into(),
            vip6: [0x2001, 2, 0, 0, 0, 0, 0, number as u16 + 1].into(),
            ports: Vec::new(),
            failure_mode: None,
            acceleration: Acceleration::Off,
            l7: L7::Auto,
        };
        snapshot.services.insert(name, Arc::new(service));
    }
    snapshot
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::new(0x1234, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    query
}

fn ask(namespace: &str, query: &Message) -> Action {
    let search = ["corp.example".to_owned(), "example".to_owned()];
    judge(
        &query.to_vec().unwrap(),
        Asker {
            namespace,
            search: &search,
        },
        &snapshot(),
    )
}

/// `CODE answers...`, or `forward`, or `drop`.
fn short(action: &Action) -> String {
    match action {
        Action::Forward(_) => "forward".to_owned(),
        Action::Drop => "drop".to_owned(),
        Action::Reply(message, _) => {
            let code = format!("{:?}", message.metadata.response_code);
            message
                .answers
                .iter()
                .fold(code, |text, record| format!("{text} {}", record.data))
        }
    }
}

#[test]
fn names_are_answered_as_the_contract_says() {
    use RecordType::{A, AAAA, ANY, HTTPS, MX, SOA, SRV, SVCB, TXT};

    for (namespace, name, kind, expect) in [
        ("default", "web.", A, "NoError 240.240.0.1"),
        ("default", "web.", AAAA, "NoError 2001:2::1"),
        ("default", "WEB.", A, "NoError 240.240.0.1"),
        ("default", "web.default.", A, "NoError 240.240.0.1"),
        ("default", "web.default.mesh.", A, "NoError 240.240.0.1"),
        ("shop", "web.", A, "NoError 240.240.0.3"),
        ("shop", "web.default.", AAAA, "NoError 2001:2::1"),
        ("default", "web.shop.mesh.", A, "NoError 240.240.0.3"),
        ("default", "web.", ANY, "NoError 240.240.0.1 2001:2::1"),
        // An existing name of another type: no data.
        ("default", "web.", MX, "NoError"),
        ("default", "web.", TXT, "NoError"),
        ("default", "web.", SRV, "NoError"),
        ("default", "web.", HTTPS, "NoError"),
        ("default", "web.", SVCB, "NoError"),
        // Names of the mesh that nobody has.
        ("default", "nobody.default.mesh.", A, "NXDomain"),
        ("default", "web.nowhere.mesh.", A, "NXDomain"),
        ("default", "nowhere.mesh.", A, "NXDomain"),
        ("default", "a.web.shop.mesh.", A, "NXDomain"),
        // Names above those that exist do exist.
        ("default", "mesh.", SOA, "NoError"),
        ("default", "shop.mesh.", A, "NoError"),
        // Search domains: at once, and never somebody else's.
        ("default", "web.corp.example.", A, "NXDomain"),
        ("default", "web.example.", AAAA, "NXDomain"),
        ("default", "web.shop.example.", A, "NXDomain"),
        ("default", "web.shop.mesh.corp.example.", A, "NXDomain"),
        ("shop", "db.corp.example.", A, "forward"),
        ("default", "webcorp.example.", A, "forward"),
        ("default", "corp.example.", A, "forward"),
        // Everything else.
        ("default", "nobody.", A, "forward"),
        ("shop", "db.", A, "forward"),
        ("default", "nobody.shop.", A, "forward"),
        ("default", "web.shop.other.", A, "forward"),
        ("default", "example.org.", MX, "forward"),
        ("default", ".", A, "forward"),
        ("default", "1.0.240.240.in-addr.arpa.", RecordType::PTR, "forward"),
        ("default", r"web\.shop.", A, "forward"),
    ] {
        assert_eq!(
            short(&ask(namespace, &query(name, kind))),
            expect,
            "{namespace} {name} {kind}"
        );
    }
}

#[test]
fn an_answer_is_authoritative_short_lived_and_repeats_the_question() {
    let Action::Reply(message, QueryResult::Mesh) = ask("default", &query("WeB.", RecordType::A)) else {
        panic!()
    };
    let metadata = &message.metadata;
    assert_eq!((metadata.id, metadata.message_type), (0x1234, MessageType::Response));
    assert!(metadata.authoritative && metadata.recursion_desired && metadata.recursion_available);
    assert_eq!(message.queries[0].name().to_ascii(), "WeB.");
    assert_eq!(
        (message.answers[0].name.to_ascii().as_str(), message.answers[0].ttl),
        ("WeB.", TTL)
    );
    assert!(message.edns.is_none());
}

#[test]
fn a_negative_answer_carries_the_soa_that_bounds_its_life() {
    for (name, owner) in [
        ("web.", "web."),
        ("nobody.shop.mesh.", "mesh."),
        ("web.corp.example.", "web.corp.example."),
        ("mesh.", "mesh."),
    ] {
        let Action::Reply(message, _) = ask("default", &query(name, RecordType::TXT)) else {
            panic!("{name}")
        };
        let [record] = &message.authorities[..] else {
            panic!("{name}: {message}")
        };
        let RData::SOA(soa) = &record.data else {
            panic!("{name}: {message}")
        };
        assert_eq!(
            (record.name.to_ascii().as_str(), record.ttl, soa.minimum, soa.serial),
            (owner, 5, 5, 7),
            "{name}"
        );
        assert!(message.metadata.authoritative);
    }
}

#[test]
fn edns_is_answered_with_edns() {
    let mut with = query("web.", RecordType::A);
    with.set_edns(Edns::new());
    let Action::Reply(message, _) = ask("default", &with) else {
        panic!()
    };
    assert_eq!(message.edns.unwrap().max_payload(), EDNS_PAYLOAD);
}

#[test]
fn what_is_not_understood_is_refused_with_the_right_code() {
    let mut update = query("web.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    let mut notify = query("web.", RecordType::A);
    notify.metadata.op_code = OpCode::Notify;
    let mut two = query("web.", RecordType::A);
    two.add_query(Query::query(Name::from_ascii("db.").unwrap(), RecordType::A));
    let none = Message::new(1, MessageType::Query, OpCode::Query);
    let mut newer = query("web.", RecordType::A);
    newer.set_edns(Edns::new()).edns.as_mut().unwrap().set_version(1);
    for (message, expect) in [
        (&notify, "NotImp"),
        (&two, "FormErr"),
        (&none, "FormErr"),
        (&newer, "BADVERS"),
        (&update, "NotImp"),
    ] {
        assert_eq!(short(&ask("default", message)), expect, "{message}");
    }
    // The high bits of BADVERS travel in the EDNS record.
    let Action::Reply(message, _) = ask("default", &newer) else {
        panic!()
    };
    let read = Message::from_vec(&message.to_vec().unwrap()).unwrap();
    assert_eq!(
        read.metadata.response_code.low() | read.edns.unwrap().rcode_high() << 4,
        16
    );
}

#[test]
fn another_class_is_not_ours() {
    let mut chaos = query("web.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(short(&ask("default", &chaos)), "forward");
}

#[test]
fn responses_and_fragments_of_headers_are_dropped() {
    let mut response = query("web.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    assert_eq!(short(&ask("default", &response)), "drop");
    let asker = Asker {
        namespace: "default",
        search: &[],
    };
    for size in 0..12 {
        assert_eq!(short(&judge(&vec![0; size], asker, &snapshot())), "drop", "{size}");
    }
}

/// Every cut and every changed byte of a query with everything in it: answered or dropped, never a panic.
#[test]
fn mangled_queries_are_survived() {
    let mut whole = query("web.shop.mesh.", RecordType::A);
    whole.set_edns(Edns::new());
    let whole = whole.to_vec().unwrap();
    let asker = Asker {
        namespace: "default",
        search: &["example".to_owned()],
    };
    let judged = |bytes: &[u8]| {
        let action = judge(bytes, asker, &snapshot());
        if let Action::Reply(message, _) = &action {
            let reply = message.to_vec().unwrap();
            assert!(message::is_response(&reply));
            assert_eq!(message::id(&reply), message::id(bytes));
        }
        action
    };
    for end in 0..whole.len() {
        let action = judged(&whole[..end]);
        assert!(end < 12 || short(&action) == "FormErr", "{end}: {action:?}");
    }
    for at in 0..whole.len() {
        for value in 0..=255 {
            let mut changed = whole.clone();
            changed[at] = value;
            judged(&changed);
        }
    }
}
