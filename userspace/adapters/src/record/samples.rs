//! Records for tests.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use weft_abi::LatencyHistogram;
use weft_policy::ObjectRef;

use super::*;

pub(crate) fn source() -> Arc<Peer> {
    Arc::new(Peer {
        namespace: "default".into(),
        service: Some("shop".into()),
        account: "client".into(),
    })
}

pub(crate) fn destination() -> Arc<Destination> {
    Arc::new(Destination {
        namespace: "default".into(),
        service: Some("web".into()),
        account: Some("web".into()),
        address: "10.0.0.7".parse().unwrap(),
        port: 8080,
    })
}

/// `GET /a?b=c`, 1.5 ms, 200.
pub(crate) fn request() -> Flow {
    Flow {
        time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        event: FlowEvent::Request,
        reporter: Side::Proxy,
        verdict: FlowVerdict::Allow,
        reason: "answered".into(),
        rule: None,
        source: source(),
        destination: destination(),
        protocol: FlowProtocol::Http,
        l7: Some(L7 {
            method: "GET".into(),
            path: "/a?b=c".into(),
            status: 200,
            duration: Duration::from_micros(1500),
            request_bytes: 0,
            response_bytes: 612,
            grpc_status: None,
            user_agent: Some("curl/8".into()),
            trace: None,
        }),
        bytes_sent: 0,
        bytes_received: 612,
        rtt_us: None,
        errno: None,
    }
}

/// The same, refused by a TrafficTarget.
pub(crate) fn refused() -> Flow {
    let mut flow = request();
    flow.verdict = FlowVerdict::Deny;
    flow.reason = "TrafficTarget default/t allows other requests only".into();
    flow.rule = Some(Arc::new(ObjectRef {
        kind: "TrafficTarget".into(),
        namespace: Some("default".into()),
        name: "t".into(),
    }));
    if let Some(l7) = &mut flow.l7 {
        l7.status = 403;
    }
    flow
}

/// Three connections opened, one closed, 1,000 bytes there and 2,000 back; two round trip times of 100 µs together.
pub(crate) fn edge() -> EdgeDelta {
    let mut rtt = LatencyHistogram {
        sum_us: 100,
        ..LatencyHistogram::default()
    };
    rtt.buckets[6] = 2;
    EdgeDelta {
        reporter: Side::Source,
        source: source(),
        destination: destination(),
        protocol: FlowProtocol::Tcp,
        verdict: FlowVerdict::Allow,
        history: false,
        opened: 3,
        closed: 1,
        refused: 0,
        denied: 0,
        reset: 0,
        bytes_sent: 1000,
        bytes_received: 2000,
        segments_sent: 9,
        segments_received: 9,
        retransmits: 0,
        connect: LatencyHistogram::default(),
        rtt,
    }
}
