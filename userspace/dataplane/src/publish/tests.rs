//! What a mesh of the size that is promised needs of each table.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use weft_abi::capacity;
use weft_policy::{
    Acceleration, AccessDefault, AccessPolicy, AccessRule, AppProtocol, Class, Endpoint, Identity, L7, ObjectRef,
    Protocol, RuleId, Service, ServiceName, ServicePort,
};

use super::*;

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 100_000;
/// Sources times ports of one rule: 100,000 entries.
const SOURCES: u32 = 100;
const PORTS: u16 = 1_000;

/// Endpoint `number` of all in a network of its own.
type Place = fn(u8, u32) -> IpAddr;

fn v4(network: u8, number: u32) -> IpAddr {
    let [_, a, b, c] = number.to_be_bytes();
    Ipv4Addr::new(network, a, b, c).into()
}

fn v6(network: u8, number: u32) -> IpAddr {
    let [_, a, b, c] = number.to_be_bytes().map(u16::from);
    Ipv6Addr::new(0xfd00, u16::from(network), 0, 0, 0, a, b, c).into()
}

fn both(network: u8, number: u32) -> IpAddr {
    if number.is_multiple_of(2) {
        v4(network, number)
    } else {
        v6(network, number)
    }
}

fn mesh(place: Place, network: u8) -> Tables {
    let mut snapshot = Snapshot::default();
    let each = ENDPOINTS / SERVICES;
    for service in 0..SERVICES {
        let identity = Identity(256 + service);
        let endpoint = |number| Endpoint {
            address: SocketAddr::new(place(network, number), 8080),
            identity,
            class: Class(256 + service),
            workload: Arc::default(),
        };
        let port = ServicePort {
            id: service + 1,
            name: None,
            port: 80,
            protocol: Protocol::Tcp,
            app: AppProtocol::Unknown,
            http: false,
            proxied: None,
            guarded: false,
            endpoints: (service * each..(service + 1) * each)
                .map(endpoint)
                .map(Arc::new)
                .collect(),
            targets: BTreeSet::new(),
            pending: false,
            split: None,
        };
        let name = ServiceName {
            namespace: "default".into(),
            name: format!("service-{service}").into(),
        };
        let service = Service {
            name: name.clone(),
            vip4: Ipv4Addr::from_bits(0xf0f0_0000 | service),
            vip6: Ipv6Addr::from_bits(0x2001_0002 << 96 | u128::from(service)),
            ports: vec![port],
            failure_mode: None,
            acceleration: Acceleration::Off,
            l7: L7::Auto,
        };
        snapshot.services.insert(name, Arc::new(service));
        // Each has an account of its own, so a default of its own.
        let policy = AccessPolicy {
            default: AccessDefault::Deny,
            default_rule: RuleId(1),
            audit: false,
            allow: Vec::new(),
        };
        snapshot.access.insert(identity, Arc::new(policy));
    }
    let rule = AccessRule {
        rule: RuleId(2),
        object: ObjectRef {
            kind: "TrafficTarget".into(),
            namespace: None,
            name: "many".to_owned(),
        },
        audit: false,
        sources: (0..SOURCES).map(|source| Identity(256 + source)).collect(),
        protocol: Protocol::Tcp,
        ports: Some((1..=PORTS).collect()),
        except: BTreeSet::new(),
        http: None,
    };
    let policy = AccessPolicy {
        default: AccessDefault::Deny,
        default_rule: RuleId(1),
        audit: false,
        allow: vec![rule],
    };
    snapshot.access.insert(Identity(256), Arc::new(policy));
    Tables::of(&snapshot, &ForeignCgroups::new())
}

#[test]
fn the_mesh_that_is_promised_fits_by_default_also_while_all_its_endpoints_are_replaced() {
    let room = |size: u32| size as usize;
    let places: [(&str, Place); 3] = [("IPv4", v4), ("IPv6", v6), ("both", both)];
    for (families, place) in places {
        let (none, before, after) = (Tables::default(), mesh(place, 10), mesh(place, 11));
        assert!(
            before.policy.len() > 100_000 && before.dests.len() > 140_000,
            "{families}"
        );
        for (from, to) in [(&none, &before), (&before, &after)] {
            let fits = [
                mirror::fits("weft_dests", room(capacity::DESTS), &from.dests, &to.dests),
                mirror::fits("weft_backends", room(capacity::BACKENDS), &from.backends, &to.backends),
                mirror::fits("weft_policy", room(capacity::POLICY), &from.policy, &to.policy),
            ];
            for table in fits {
                table.unwrap_or_else(|error| panic!("{families}: {error}"));
            }
        }
    }
}

#[test]
fn sockets_of_both_families_share_the_backends_of_a_service_that_one_family_serves() {
    let tables = mesh(v4, 10);
    // Those of the canary are apart.
    let services = tables.dests.values().filter(|dest| dest.service > 0 && dest.set4 > 0);
    let mut sets = BTreeSet::new();
    for dest in services {
        assert_eq!((dest.set4, dest.count4), (dest.set6, dest.count6));
        assert_eq!(dest.count4, ENDPOINTS / SERVICES);
        sets.insert(dest.set4);
    }
    assert_eq!(sets.len(), SERVICES as usize);
    let native = mesh(v6, 10);
    assert!(
        native
            .dests
            .values()
            .all(|dest| dest.set4 == 0 || dest.set4 != dest.set6)
    );
    assert_eq!(native.backends.len(), tables.backends.len());
}
