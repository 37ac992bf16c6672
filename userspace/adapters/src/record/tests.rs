use super::*;

fn denied() -> Flow {
    Flow {
        time: SystemTime::UNIX_EPOCH + Duration::from_micros(1_790_000_000_123_456),
        event: FlowEvent::Deny,
        reporter: Side::Source,
        verdict: FlowVerdict::Deny,
        reason: "no rule allows it".into(),
        rule: Some(Arc::new(ObjectRef {
            kind: "MeshConfig".into(),
            namespace: None,
            name: "mesh".into(),
        })),
        source: Arc::new(Peer {
            namespace: "default".into(),
            service: Some("client".into()),
            account: "client".into(),
        }),
        destination: Arc::new(Destination {
            namespace: "default".into(),
            service: Some("web".into()),
            account: None,
            address: "240.240.0.1".parse().unwrap(),
            port: 80,
        }),
        protocol: FlowProtocol::Tcp,
        l7: None,
        bytes_sent: 0,
        bytes_received: 0,
        rtt_us: None,
        errno: Some(1),
    }
}

fn request() -> Flow {
    Flow {
        event: FlowEvent::Request,
        reporter: Side::Proxy,
        verdict: FlowVerdict::Allow,
        reason: "allowed".into(),
        rule: Some(Arc::new(ObjectRef {
            kind: "TrafficTarget".into(),
            namespace: Some("default".into()),
            name: "t".into(),
        })),
        protocol: FlowProtocol::Http,
        l7: Some(L7 {
            method: "GET".into(),
            path: "/public?a=1".into(),
            status: 200,
            duration: Duration::from_micros(1500),
            request_bytes: 0,
            response_bytes: 612,
            grpc_status: None,
            user_agent: Some("curl/8".into()),
            trace: None,
        }),
        bytes_sent: 75,
        bytes_received: 850,
        rtt_us: Some(42),
        errno: None,
        ..denied()
    }
}

#[test]
fn a_deny_is_the_json_of_the_contract() {
    assert_eq!(
        serde_json::to_string(&denied()).unwrap(),
        concat!(
            r#"{"time":"2026-09-21T14:13:20.123456Z","event":"deny","reporter":"source","verdict":"deny","#,
            r#""reason":"no rule allows it","rule":{"kind":"MeshConfig","namespace":null,"name":"mesh"},"#,
            r#""source":{"namespace":"default","service":"client","account":"client"},"#,
            r#""destination":{"namespace":"default","service":"web","account":null,"address":"240.240.0.1","port":80},"#,
            r#""protocol":"tcp","bytes_sent":0,"bytes_received":0,"errno":1}"#
        )
    );
}

#[test]
fn a_request_is_the_json_of_the_contract() {
    assert_eq!(
        serde_json::to_string(&request()).unwrap(),
        concat!(
            r#"{"time":"2026-09-21T14:13:20.123456Z","event":"request","reporter":"proxy","verdict":"allow","#,
            r#""reason":"allowed","rule":{"kind":"TrafficTarget","namespace":"default","name":"t"},"#,
            r#""source":{"namespace":"default","service":"client","account":"client"},"#,
            r#""destination":{"namespace":"default","service":"web","account":null,"address":"240.240.0.1","port":80},"#,
            r#""protocol":"http","l7":{"method":"GET","path":"/public?a=1","status":200,"duration_us":1500,"#,
            r#""request_bytes":0,"response_bytes":612,"user_agent":"curl/8"},"#,
            r#""bytes_sent":75,"bytes_received":850,"rtt_us":42}"#
        )
    );
}

#[test]
fn what_was_written_reads_back_the_same() {
    for flow in [
        denied(),
        request(),
        Flow {
            rule: None,
            ..request()
        },
    ] {
        let text = serde_json::to_string(&flow).unwrap();
        assert_eq!(serde_json::from_str::<Flow>(&text).unwrap(), flow, "{text}");
    }
}

#[test]
fn a_flow_without_rule_says_null() {
    let text = serde_json::to_string(&Flow { rule: None, ..denied() }).unwrap();
    assert!(text.contains(r#""rule":null"#), "{text}");
}

#[test]
fn a_bad_time_is_an_error_that_shows_it() {
    let text = serde_json::to_string(&denied())
        .unwrap()
        .replace("2026-09-21T", "yesterday ");
    let error = serde_json::from_str::<Flow>(&text).unwrap_err().to_string();
    assert!(error.contains("yesterday 14:13"), "{error}");
}

#[test]
fn the_names_in_code_are_those_of_the_json() {
    fn json<T: Serialize>(value: T) -> String {
        serde_json::to_value(value).unwrap().as_str().unwrap().to_owned()
    }
    for event in [FlowEvent::Open, FlowEvent::Close, FlowEvent::Deny, FlowEvent::Request] {
        assert_eq!(event.as_str(), json(event));
    }
    for side in [Side::Source, Side::Destination, Side::Device, Side::Proxy] {
        assert_eq!(side.as_str(), json(side));
    }
    for verdict in [FlowVerdict::Allow, FlowVerdict::Deny, FlowVerdict::Audit] {
        assert_eq!(verdict.as_str(), json(verdict));
    }
    for protocol in [
        FlowProtocol::Tcp,
        FlowProtocol::Udp,
        FlowProtocol::Dccp,
        FlowProtocol::Sctp,
        FlowProtocol::Http,
        FlowProtocol::Grpc,
    ] {
        assert_eq!(protocol.as_str(), json(protocol));
    }
}

#[test]
fn only_the_ends_of_a_connection_see_it_end() {
    for side in [Side::Source, Side::Destination] {
        assert!(
            side.sees_ends(FlowProtocol::Tcp) && side.sees_ends(FlowProtocol::Http),
            "{side:?}"
        );
        assert!(!side.sees_ends(FlowProtocol::Udp), "{side:?}");
    }
    assert!(!Side::Device.sees_ends(FlowProtocol::Tcp));
}

#[test]
fn only_made_up_methods_are_copied() {
    assert!(matches!(method_word("GET"), Cow::Borrowed("GET")));
    assert!(matches!(method_word("get"), Cow::Owned(word) if word == "get"));
    let long = "ä".repeat(MAX_TOLD);
    assert_eq!(told(&long[..MAX_TOLD]), long[..MAX_TOLD]);
    assert_eq!(told(&format!("a{long}")), format!("a{}…", &long[..MAX_TOLD - 2]));
}
