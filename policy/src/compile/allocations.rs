//! Numbers and addresses that must not change: virtual IPs, identities, classes, service port ids, rule ids.
//!
//! The daemon keeps them as JSON across restarts. Nothing is ever taken back by itself: an entry costs about a hundred
//! bytes, and an application may hold on to a virtual IP, an event to a rule, long after the resource went. Only a
//! virtual IP range that is full gives addresses of services that are gone to new ones.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::snapshot::{Account, Class, ClassName, Identity, ObjectRef, Protocol, RuleId, ServiceName};

/// Virtual IPs unless the operator says otherwise: class E, which no network routes.
pub const DEFAULT_VIP4: Ipv4Net = match Ipv4Net::new(Ipv4Addr::new(240, 240, 0, 0), 16) {
    Ok(net) => net,
    Err(_) => panic!("16 is a prefix length"),
};
/// Virtual IPs unless the operator says otherwise: the benchmarking range (RFC 5180).
pub const DEFAULT_VIP6: Ipv6Net = match Ipv6Net::new(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48) {
    Ok(net) => net,
    Err(_) => panic!("48 is a prefix length"),
};

/// Places of an IPv6 range that are used: more services than this do not fit into anything else either.
const MAX_HOSTS6: u32 = 24;

/// Keys are `NAMESPACE/NAME` (`NAMESPACE/NAME/PORT/PROTOCOL` of ports); rules and classes are in lists, as what they stand
/// for is no text.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Allocations {
    vips: BTreeMap<String, Vips>,
    identities: BTreeMap<String, Identity>,
    ports: BTreeMap<String, u32>,
    rules: Vec<(Arc<ObjectRef>, RuleId)>,
    classes: Vec<(ClassName, Class)>,
    /// Grows with everything that is given or taken back.
    #[serde(skip)]
    changes: u64,
    /// Made from the lists above when it is first needed.
    #[serde(skip)]
    index: Option<Index>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Vips {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

#[derive(Debug, Clone, Default)]
struct Index {
    used: HashSet<IpAddr>,
    next_identity: u32,
    next_port: u32,
    next_rule: u32,
    next_class: u32,
    rules: BTreeMap<Arc<ObjectRef>, RuleId>,
    classes: BTreeMap<ClassName, Class>,
}

// === impl Allocations ===

impl Allocations {
    /// A number that grows with every change: under the same one there is nothing to be written to disk. It begins anew with what
    /// was read, which a file that was edited makes differ from what is here.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The virtual IPs of a service; `None` if the ranges are full. `in_use` tells whether a service still exists.
    pub(crate) fn vips(
        &mut self,
        service: &ServiceName,
        nets4: &[Ipv4Net],
        nets6: &[Ipv6Net],
        in_use: &dyn Fn(&str) -> bool,
    ) -> Option<Vips> {
        self.index();
        let key = service.to_string();
        let old = self.vips.get(&key).copied();
        let kept4 = old
            .map(|vips| vips.v4)
            .filter(|ip| nets4.iter().any(|net| net.contains(ip)));
        let kept6 = old
            .map(|vips| vips.v6)
            .filter(|ip| nets6.iter().any(|net| net.contains(ip)));
        if let (Some(v4), Some(v6)) = (kept4, kept6) {
            return Some(Vips { v4, v6 });
        }
        let hash = hash(&key);
        loop {
            let used = &self.index().used;
            let v4 = kept4.or_else(|| free4(nets4, hash, used));
            let v6 = kept6.or_else(|| free6(nets6, hash, used));
            if let (Some(v4), Some(v6)) = (v4, v6) {
                let vips = Vips { v4, v6 };
                self.changes += 1;
                self.vips.insert(key, vips);
                self.index().used.extend([IpAddr::V4(v4), IpAddr::V6(v6)]);
                return Some(vips);
            }
            let gone = self.vips.keys().find(|name| **name != key && !in_use(name)).cloned()?;
            if let Some(vips) = self.vips.remove(&gone) {
                self.changes += 1;
                let used = &mut self.index().used;
                used.remove(&IpAddr::V4(vips.v4));
                used.remove(&IpAddr::V6(vips.v6));
            }
        }
    }

    /// The identity of a service account.
    pub(crate) fn identity(&mut self, account: &Account) -> Identity {
        self.index();
        let key = account.to_string();
        if let Some(identity) = self.identities.get(&key) {
            return *identity;
        }
        let index = self.index();
        let identity = Identity(index.next_identity);
        index.next_identity += 1;
        self.changes += 1;
        self.identities.insert(key, identity);
        identity
    }

    /// All accounts that ever had an identity.
    pub(crate) fn accounts(&self) -> impl Iterator<Item = (Account, Identity)> {
        self.identities.iter().filter_map(|(key, identity)| {
            let (namespace, name) = key.split_once('/')?;
            Some((
                Account {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                },
                *identity,
            ))
        })
    }

    /// The number of a service port.
    pub(crate) fn port(&mut self, service: &ServiceName, port: u16, protocol: Protocol) -> u32 {
        self.index();
        let key = format!("{service}/{port}/{protocol}");
        if let Some(id) = self.ports.get(&key) {
            return *id;
        }
        let index = self.index();
        let id = index.next_port;
        index.next_port += 1;
        self.changes += 1;
        self.ports.insert(key, id);
        id
    }

    /// The number of a rule.
    pub(crate) fn rule(&mut self, object: &ObjectRef) -> RuleId {
        let index = self.index();
        if let Some(rule) = index.rules.get(object) {
            return *rule;
        }
        let rule = RuleId(index.next_rule);
        index.next_rule += 1;
        let object = Arc::new(object.clone());
        index.rules.insert(object.clone(), rule);
        self.changes += 1;
        self.rules.push((object, rule));
        rule
    }

    /// All objects that ever had a rule number.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &(Arc<ObjectRef>, RuleId)> {
        self.rules.iter()
    }

    /// The class of workloads with the same labels, or of an address range.
    pub(crate) fn class(&mut self, name: &ClassName) -> Class {
        let index = self.index();
        if let Some(class) = index.classes.get(name) {
            return *class;
        }
        let class = Class(index.next_class);
        index.next_class += 1;
        index.classes.insert(name.clone(), class);
        self.changes += 1;
        self.classes.push((name.clone(), class));
        class
    }

    /// All that ever had a class.
    pub(crate) fn classes(&self) -> impl Iterator<Item = &(ClassName, Class)> {
        self.classes.iter()
    }

    /// The index; what was read from a file is mended first, for a file may have been edited.
    fn index(&mut self) -> &mut Index {
        self.index.get_or_insert_with(|| {
            let mut index = Index::default();
            self.vips.retain(|_, vips| {
                let both = [IpAddr::V4(vips.v4), IpAddr::V6(vips.v6)];
                let free = both.iter().all(|ip| !index.used.contains(ip));
                if free {
                    index.used.extend(both);
                }
                free
            });
            let mut seen = HashSet::new();
            let given = Identity::FIRST.0..Identity::OWN.0;
            self.identities
                .retain(|_, identity| given.contains(&identity.0) && seen.insert(identity.0));
            index.next_identity = seen.iter().max().map_or(Identity::FIRST.0, |n| n.saturating_add(1));
            let mut seen = HashSet::new();
            self.ports.retain(|_, id| *id > 0 && seen.insert(*id));
            index.next_port = seen.iter().max().map_or(1, |n| n.saturating_add(1));
            let mut seen = HashSet::new();
            self.rules.retain(|(object, rule)| {
                let fresh = rule.0 > 0 && !index.rules.contains_key(object) && seen.insert(rule.0);
                if fresh {
                    index.rules.insert(object.clone(), *rule);
                }
                fresh
            });
            index.next_rule = seen.iter().max().map_or(1, |n| n.saturating_add(1));
            let mut seen = HashSet::new();
            self.classes.retain(|(name, class)| {
                let fresh = *class >= Class::FIRST && !index.classes.contains_key(name) && seen.insert(class.0);
                if fresh {
                    index.classes.insert(name.clone(), *class);
                }
                fresh
            });
            index.next_class = seen.iter().max().map_or(Class::FIRST.0, |n| n.saturating_add(1));
            index
        })
    }
}

/// Equal if the same would be written to disk.
impl PartialEq for Allocations {
    fn eq(&self, other: &Self) -> bool {
        self.vips == other.vips
            && self.identities == other.identities
            && self.ports == other.ports
            && self.rules == other.rules
            && self.classes == other.classes
    }
}

impl Eq for Allocations {}

/// FNV-1a: the same on every machine and in every release.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The first free address at or after the hash, never one that looks like a network's or a broadcast address.
fn free4(nets: &[Ipv4Net], hash: u64, used: &HashSet<IpAddr>) -> Option<Ipv4Addr> {
    nets.iter().find_map(|net| {
        let size = 1u64 << (32 - net.prefix_len());
        let plain = |ip: &Ipv4Addr| net.prefix_len() >= 31 || !matches!(ip.octets()[3], 0 | 255);
        let inner = |ip: &Ipv4Addr| net.prefix_len() >= 31 || (*ip != net.network() && *ip != net.broadcast());
        (0..size)
            .map(|step| Ipv4Addr::from(u32::from(net.network()) + ((hash.wrapping_add(step)) % size) as u32))
            .find(|ip| plain(ip) && inner(ip) && !used.contains(&IpAddr::V4(*ip)))
    })
}

/// As [`free4`]; the all-zero host is the subnet-router anycast address (RFC 4291).
fn free6(nets: &[Ipv6Net], hash: u64, used: &HashSet<IpAddr>) -> Option<Ipv6Addr> {
    nets.iter().find_map(|net| {
        let size = 1u64 << u32::from(128 - net.prefix_len()).min(MAX_HOSTS6);
        (0..size)
            .map(|step| hash.wrapping_add(step) % size)
            .filter(|host| *host != 0 || net.prefix_len() >= 127)
            .map(|host| Ipv6Addr::from(u128::from(net.network()) + u128::from(host)))
            .find(|ip| !used.contains(&IpAddr::V6(*ip)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ServiceName {
        ServiceName {
            namespace: "default".into(),
            name: name.into(),
        }
    }

    fn class(app: &str) -> ClassName {
        ClassName::Workloads {
            namespace: "shop".into(),
            labels: BTreeMap::from([("app".into(), app.into())]).into(),
        }
    }

    const NETS: (&[Ipv4Net], &[Ipv6Net]) = (&[DEFAULT_VIP4], &[DEFAULT_VIP6]);

    #[test]
    fn everything_survives_a_restart() {
        let mut before = Allocations::default();
        let account = Account {
            namespace: "shop".into(),
            name: "web".into(),
        };
        let object = ObjectRef {
            kind: "TrafficTarget".into(),
            namespace: Some("shop".into()),
            name: "t".into(),
        };
        let given = |a: &mut Allocations| {
            let vips = a.vips(&name("web"), NETS.0, NETS.1, &|_| true).unwrap();
            (
                vips,
                a.identity(&account),
                a.port(&name("web"), 80, Protocol::Tcp),
                a.rule(&object),
                a.class(&class("web")),
                a.class(&ClassName::Range("10.0.0.0/8".parse().unwrap())),
            )
        };
        let first = given(&mut before);
        before.identity(&Account {
            namespace: "a".into(),
            name: "a".into(),
        });
        before.class(&class("api"));
        let json = serde_json::to_string(&before).unwrap();
        let mut after: Allocations = serde_json::from_str(&json).unwrap();
        assert_eq!(given(&mut after), first);
        assert_ne!(
            after.identity(&Account {
                namespace: "b".into(),
                name: "b".into()
            }),
            first.1
        );
        assert_eq!(first.1, Identity(256));
        assert_eq!(
            (first.4, first.5, after.class(&class("new"))),
            (Class(256), Class(257), Class(259))
        );
    }

    #[test]
    fn whatever_is_to_be_written_is_counted_as_a_change() {
        let mut allocations = Allocations::default();
        let text = |allocations: &Allocations| serde_json::to_string(allocations).unwrap();
        let account = Account {
            namespace: "shop".into(),
            name: "web".into(),
        };
        let object = ObjectRef {
            kind: "TrafficTarget".into(),
            namespace: Some("shop".into()),
            name: "t".into(),
        };
        let narrow: &[Ipv4Net] = &["10.0.0.0/32".parse().unwrap()];
        let gives: [&dyn Fn(&mut Allocations); 6] = [
            &|a| _ = a.vips(&name("web"), narrow, NETS.1, &|_| true),
            // In the place of that one.
            &|a| _ = a.vips(&name("api"), narrow, NETS.1, &|_| false),
            &|a| _ = a.identity(&account),
            &|a| _ = a.port(&name("web"), 80, Protocol::Tcp),
            &|a| _ = a.rule(&object),
            &|a| _ = a.class(&class("web")),
        ];
        for give in gives {
            let before = (text(&allocations), allocations.changes());
            give(&mut allocations);
            let after = (text(&allocations), allocations.changes());
            assert!(before.0 != after.0 && before.1 < after.1, "{before:?}, then {after:?}");
            give(&mut allocations);
            assert_eq!((text(&allocations), allocations.changes()), after, "it had it already");
        }
    }

    #[test]
    fn virtual_ips_differ_and_never_look_like_networks() {
        let mut allocations = Allocations::default();
        let net: Ipv4Net = "10.0.0.0/22".parse().unwrap();
        let mut seen = HashSet::new();
        let mut given = 0;
        for i in 0..1100 {
            let Some(vips) = allocations.vips(&name(&format!("s{i}")), &[net], NETS.1, &|_| true) else {
                break;
            };
            assert!(!matches!(vips.v4.octets()[3], 0 | 255), "{}", vips.v4);
            assert!(net.contains(&vips.v4));
            assert!(seen.insert(vips.v4) && DEFAULT_VIP6.contains(&vips.v6));
            given += 1;
        }
        assert_eq!(given, 4 * 254);
    }

    #[test]
    fn a_full_range_reuses_what_is_gone_and_nothing_else() {
        let mut allocations = Allocations::default();
        let nets: &[Ipv4Net] = &["10.0.0.0/30".parse().unwrap()];
        let a = allocations.vips(&name("a"), nets, NETS.1, &|_| true).unwrap();
        let b = allocations.vips(&name("b"), nets, NETS.1, &|_| true).unwrap();
        assert_ne!(a.v4, b.v4);
        assert_eq!(allocations.vips(&name("c"), nets, NETS.1, &|_| true), None);
        let c = allocations
            .vips(&name("c"), nets, NETS.1, &|key| key != "default/a")
            .unwrap();
        assert_eq!(c.v4, a.v4);
    }

    #[test]
    fn a_changed_range_moves_the_address_of_that_family_only() {
        let mut allocations = Allocations::default();
        let old = allocations.vips(&name("a"), NETS.0, NETS.1, &|_| true).unwrap();
        let nets: &[Ipv4Net] = &["10.9.0.0/16".parse().unwrap()];
        let new = allocations.vips(&name("a"), nets, NETS.1, &|_| true).unwrap();
        assert!(nets[0].contains(&new.v4));
        assert_eq!(old.v6, new.v6);
    }

    #[test]
    fn an_edited_file_with_doubles_and_with_numbers_of_wefts_own_is_mended() {
        let json =
            r#"{"identities": {"a/a": 256, "a/b": 256, "a/c": 3, "a/d": 4294967040}, "ports": {"x": 7, "y": 7}}"#;
        let mut allocations: Allocations = serde_json::from_str(json).unwrap();
        let account = |name: &str| Account {
            namespace: "a".into(),
            name: name.into(),
        };
        let ids: HashSet<_> = ["a", "b", "c", "d"]
            .iter()
            .map(|name| allocations.identity(&account(name)))
            .collect();
        assert_eq!(ids.len(), 4);
        assert!(ids.iter().all(|id| (Identity::FIRST..Identity::OWN).contains(id)));
    }
}
