use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use weft_policy::{
    Acceleration, Class, Endpoint, HttpMatch, HttpRequestView, Identity, L7, Listener, PathPattern, RuleId,
    ServiceName, Split, SplitBackend,
};

use super::*;
use crate::balance::Random;

const VIP: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 1);

struct Get(&'static str);

impl HttpRequestView for Get {
    fn method(&self) -> &str {
        "GET"
    }
    fn path(&self) -> &str {
        self.0
    }
    fn each_value(&self, _: &str, _: &mut dyn FnMut(Option<&str>)) {}
}

fn name(name: &str) -> ServiceName {
    ServiceName {
        namespace: "default".into(),
        name: name.into(),
    }
}

fn endpoint(port: u16) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        address: (Ipv4Addr::LOCALHOST, port).into(),
        identity: Identity::FIRST,
        class: Class::FIRST,
        workload: "default/web/1".into(),
    })
}

fn service(name_: &str, vip: Ipv4Addr, app: AppProtocol, split: Option<Split>) -> Arc<Service> {
    Arc::new(Service {
        name: name(name_),
        vip4: vip,
        vip6: Ipv6Addr::LOCALHOST,
        ports: vec![ServicePort {
            id: 1,
            name: None,
            port: 80,
            protocol: Protocol::Tcp,
            app,
            http: app.is_http(),
            proxied: None,
            guarded: false,
            endpoints: vec![endpoint(8080)],
            targets: Default::default(),
            pending: false,
            split: split.map(Arc::new),
        }],
        failure_mode: None,
        acceleration: Acceleration::Off,
        l7: L7::Auto,
    })
}

fn split(backends: &[(&str, u32, bool)], matches: Vec<HttpMatch>) -> Split {
    Split {
        rule: RuleId(9),
        object: Arc::new(ObjectRef {
            kind: "TrafficSplit".into(),
            namespace: Some("default".into()),
            name: "web".into(),
        }),
        matches,
        backends: backends
            .iter()
            .map(|(service, weight, exists)| SplitBackend {
                service: name(service),
                weight: *weight,
                port: exists.then_some(0),
            })
            .collect(),
    }
}

fn snapshot(services: Vec<Arc<Service>>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for service in services {
        snapshot.by_vip.insert(service.vip4.into(), service.name.clone());
        snapshot.services.insert(service.name.clone(), service);
    }
    snapshot
}

fn draws(split: Split, request: Option<&dyn HttpRequestView>) -> HashMap<String, u32> {
    let root = service("web", VIP, AppProtocol::Http, Some(split));
    let snapshot = snapshot(vec![
        root.clone(),
        service("v1", Ipv4Addr::new(240, 240, 0, 2), AppProtocol::Http, None),
        service("v2", Ipv4Addr::new(240, 240, 0, 3), AppProtocol::Http, None),
    ]);
    let random = Random::seeded();
    let mut drawn = HashMap::new();
    for _ in 0..1000 {
        let key = match backend(&snapshot, &root, 0, request, &random) {
            Ok(backend) => backend.service.name.name.to_string(),
            Err(error) => error.reason().to_owned(),
        };
        *drawn.entry(key).or_default() += 1;
    }
    drawn
}

/// An address that the kernel knows nothing about.
fn outside(address: SocketAddr) -> Dialled {
    Dialled {
        address,
        destination: Identity::OUTSIDE,
        pods_loopback: false,
    }
}

#[test]
fn weights_are_relative() {
    let drawn = draws(split(&[("v1", 9, true), ("v2", 1, true)], vec![]), Some(&Get("/")));
    assert!((840..960).contains(&drawn["v1"]), "{drawn:?}");
    assert_eq!(drawn["v1"] + drawn["v2"], 1000);
}

#[test]
fn all_weights_zero_is_no_backend_and_never_an_even_split() {
    let drawn = draws(split(&[("v1", 0, true), ("v2", 0, true)], vec![]), Some(&Get("/")));
    assert_eq!(drawn, HashMap::from([("no-backend".to_owned(), 1000)]));
}

#[test]
fn the_share_of_a_missing_backend_fails() {
    let drawn = draws(split(&[("v1", 1, true), ("gone", 1, false)], vec![]), Some(&Get("/")));
    assert!((400..600).contains(&drawn["backend-missing"]), "{drawn:?}");
}

#[test]
fn a_split_with_matches_concerns_matching_requests_only() {
    let matches = || {
        vec![HttpMatch {
            name: "beta".into(),
            methods: vec![],
            path: Some(PathPattern::new(regex::Regex::new("^(?:/beta)").unwrap())),
            headers: vec![],
        }]
    };
    let all_v2 = || split(&[("v2", 1, true)], matches());
    assert_eq!(
        draws(all_v2(), Some(&Get("/beta"))),
        HashMap::from([("v2".to_owned(), 1000)])
    );
    assert_eq!(
        draws(all_v2(), Some(&Get("/"))),
        HashMap::from([("web".to_owned(), 1000)])
    );
    assert_eq!(
        draws(all_v2(), None),
        HashMap::from([("web".to_owned(), 1000)]),
        "opaque connection"
    );
}

#[test]
fn a_virtual_address_nobody_has_is_unknown_and_not_outside() {
    let snapshot = snapshot(vec![service("web", VIP, AppProtocol::Http, None)]);
    let ranges = crate::ProxyConfig::default().virtual_ranges;
    let reason = |ip: [u8; 4], port| match target(&snapshot, outside((ip, port).into()), &ranges) {
        Ok(Target::Service { .. }) => "service",
        Ok(Target::Endpoint(_)) => "endpoint",
        Ok(Target::Workload { .. }) => "workload",
        Ok(Target::Outside(_)) => "outside",
        Err(error) => error.reason(),
    };
    assert_eq!(reason([240, 240, 0, 1], 80), "service");
    assert_eq!(reason([240, 240, 0, 1], 81), "port-unknown");
    assert_eq!(reason([240, 240, 9, 9], 80), "service-unknown");
    assert_eq!(reason([192, 0, 2, 1], 80), "outside");
}

#[test]
fn a_port_declared_opaque_is_never_parsed() {
    for (app, expect) in [
        (AppProtocol::Opaque, Hint::Opaque),
        (AppProtocol::Grpc, Hint::Http),
        (AppProtocol::Unknown, Hint::Unknown),
    ] {
        let snapshot = snapshot(vec![service("web", VIP, app, None)]);
        assert_eq!(hint(&snapshot, outside((VIP, 80).into()), Identity::FIRST), expect);
    }
    assert_eq!(
        hint(&Snapshot::default(), outside((VIP, 80).into()), Identity::FIRST),
        Hint::Unknown
    );
}

#[test]
fn a_workloads_undeclared_port_is_the_workloads_and_not_outside() {
    let (exact, any) = (Identity(300), Identity(301));
    let mut snapshot = Snapshot::default();
    for (address, identity) in [("127.0.0.1:9000", exact), ("0.0.0.0:9001", any), ("[::]:9002", any)] {
        let class = Class::FIRST;
        let key = (address.parse().unwrap(), Protocol::Tcp);
        snapshot.listeners.insert(key, Listener { identity, class });
    }
    for (address, expect) in [
        ("127.0.0.1:9000", Some(exact)),
        ("127.0.0.2:9000", None),
        ("127.0.0.2:9001", Some(any)),
        ("0.0.0.0:9001", Some(any)),
        ("[::1]:9001", None),
        ("127.0.0.1:9002", Some(any)),
        ("[::1]:9002", Some(any)),
        ("192.0.2.1:9001", None),
    ] {
        let found = match target(&snapshot, outside(address.parse().unwrap()), &[]) {
            Ok(Target::Workload { identity, .. }) => Some(identity),
            _ => None,
        };
        assert_eq!(found, expect, "{address}");
    }
}

#[test]
fn an_address_that_the_kernel_knows_to_be_a_workloads_is_not_outside() {
    let dialled = Dialled {
        destination: Identity(300),
        ..outside("192.0.2.1:9001".parse().unwrap())
    };
    let found = target(&Snapshot::default(), dialled, &[]);
    assert!(
        matches!(
            found,
            Ok(Target::Workload {
                identity: Identity(300),
                ..
            })
        ),
        "{found:?}"
    );
}

#[test]
fn the_loopback_of_a_pod_is_not_ours() {
    let mut snapshot = Snapshot::default();
    let address: SocketAddr = "127.0.0.1:9000".parse().unwrap();
    let ours = Listener {
        identity: Identity(300),
        class: Class::FIRST,
    };
    snapshot.listeners.insert((address, Protocol::Tcp), ours);
    for (pods_loopback, destination, expect) in [
        (false, Identity::OUTSIDE, Some(Identity(300))),
        (true, Identity::OUTSIDE, None),
        (true, Identity(301), Some(Identity(301))),
    ] {
        let dialled = Dialled {
            destination,
            pods_loopback,
            ..outside(address)
        };
        let found = match target(&snapshot, dialled, &[]) {
            Ok(Target::Workload { identity, .. }) => Some(identity),
            Ok(Target::Outside(_)) => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(found, expect, "{dialled:?}");
    }
}

#[test]
fn a_guarded_port_is_guarded_at_every_address() {
    let mut web = Arc::unwrap_or_clone(service("web", VIP, AppProtocol::Http, None));
    web.ports[0].guarded = true;
    let mut snapshot = snapshot(vec![Arc::new(web)]);
    snapshot.guards.insert((Identity::FIRST, 8080), (name("web"), 0));
    for (address, destination, expect) in [
        ("127.0.0.2:8080", Identity::FIRST, Some(Guard::Requests)),
        ("192.0.2.1:8080", Identity::FIRST, Some(Guard::Requests)),
        ("192.0.2.1:8080", Identity::OUTSIDE, None),
        ("192.0.2.1:8081", Identity::FIRST, None),
        ("192.0.2.1:8080", Identity(300), None),
    ] {
        let dialled = Dialled {
            destination,
            ..outside(address.parse().unwrap())
        };
        assert_eq!(guard(&snapshot, dialled), expect, "{dialled:?}");
        let guarded = match target(&snapshot, dialled, &[]) {
            Ok(Target::Workload { guarded, .. }) => guarded,
            _ => None,
        };
        assert_eq!(guarded, expect.map(|_| name("web")), "{dialled:?}");
        let http = hint(&snapshot, dialled, Identity::FIRST) == Hint::Http;
        assert_eq!(http, expect.is_some(), "{dialled:?}");
    }
}
