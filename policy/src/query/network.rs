//! The network dimension: classes of workloads and addresses, and who may connect to whom.

use std::{
    cmp::Reverse,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use crate::snapshot::{Class, ClassName, Decision, Identity, Isolation, Protocol, Snapshot, Verdict};

// === impl Snapshot ===

impl Snapshot {
    /// The verdict of all NetworkPolicies on a connection (or datagram flow) from a workload or address of class `source` to
    /// `destination` on its `target_port`: `source`'s egress and `destination`'s ingress must both allow.
    ///
    /// Our proxy passes: it has judged already, or is about to. What both ends deny names a policy that isolates the
    /// source; what they allow or report, one of the destination. Never [`Verdict::NeedsHttp`].
    ///
    /// Costs two hash look-ups and a walk over the rules of both ends.
    pub fn authorize_network(
        &self,
        source: Class,
        destination: Class,
        protocol: Protocol,
        target_port: u16,
    ) -> Decision {
        if source == Class::PROXY {
            return Decision::UNRESTRICTED;
        }
        let of = |class| self.network.isolation.get(&class);
        let egress = of(source).and_then(|policy| policy.egress.as_ref());
        let ingress = of(destination).and_then(|policy| policy.ingress.as_ref());
        let decide = |isolation: Option<&Isolation>, peer| {
            isolation.map_or(Decision::UNRESTRICTED, |found| {
                found.decide(peer, protocol, target_port)
            })
        };
        let egress = decide(egress, destination);
        if egress.verdict == Verdict::Deny {
            return egress;
        }
        egress.and(decide(ingress, source))
    }

    /// The class of the workload that lives in this cgroup.
    pub fn class_of_workload_cgroup(&self, cgroup: u64) -> Option<Class> {
        self.by_cgroup.get(&cgroup).map(|workload| workload.class)
    }

    /// The class of whoever has this address: a workload's on another machine, else the longest range that has it. A
    /// loopback address is in no range: any workload of this machine may have it.
    pub fn class_of_address(&self, address: IpAddr) -> Class {
        let address = address.to_canonical();
        if address.is_loopback() || address.is_unspecified() {
            return Class::UNKNOWN_LOCAL;
        }
        match self.by_address.get(&address) {
            Some(class) => *class,
            None => self.range_of(address).unwrap_or(Class::OUTSIDE),
        }
    }

    /// The class that a connection to this address reaches: of the endpoint or the listener there, else
    /// [`Self::class_of_address`]. `identity` is whom the destination was taken for: only the kernel knows that an address
    /// beyond loopback is this machine's, where a workload that is bound to all addresses is reached too.
    pub fn class_of_destination(&self, address: SocketAddr, protocol: Protocol, identity: Identity) -> Class {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if let Some(owner) = self.by_endpoint.get(&(address, protocol)) {
            return owner.endpoint.class;
        }
        let everywhere = || {
            let local = SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), address.port());
            self.listener(local, protocol)
                .filter(|found| identity >= Identity::FIRST && found.identity == identity)
        };
        match self.listener(address, protocol).or_else(everywhere) {
            Some(listener) => listener.class,
            None => self.class_of_address(address.ip()),
        }
    }

    /// What a class stands for, for messages.
    pub fn describe_class(&self, class: Class) -> String {
        match (self.classes.get(&class), class) {
            (Some(ClassName::Workloads { .. }), _) => self.classes[&class].to_string(),
            (Some(ClassName::Range(net)), _) => format!("addresses of {net}"),
            (None, Class::UNKNOWN_LOCAL) => "something on this machine".to_owned(),
            (None, Class::PROXY) => "the proxy".to_owned(),
            (None, Class::OUTSIDE) => "an address outside the mesh".to_owned(),
            (None, _) => "somebody unknown".to_owned(),
        }
    }

    fn range_of(&self, address: IpAddr) -> Option<Class> {
        let ranges = &self.network.ranges;
        if ranges.is_empty() {
            return None;
        }
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (0..=longest).rev().find_map(|length| {
            let net = IpNet::new(address, length).ok()?.trunc();
            let key = (Reverse(length), net);
            let found = ranges.binary_search_by_key(&key, |(net, _)| (Reverse(net.prefix_len()), *net));
            found.ok().map(|index| ranges[index].1)
        })
    }
}

// === impl Isolation ===

impl Isolation {
    fn decide(&self, peer: Class, protocol: Protocol, target_port: u16) -> Decision {
        let allows = self.allow.iter().find(|rule| rule.matches(peer, protocol, target_port));
        match allows {
            Some(rule) => Decision::new(Verdict::Allow, rule.rule),
            None if self.audit => Decision::new(Verdict::Audit, self.default_rule),
            None => Decision::new(Verdict::Deny, self.default_rule),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::snapshot::{Endpoint, EndpointOwner, Listener, ServiceName, range_key};

    fn snapshot() -> Snapshot {
        let mut ranges: Vec<(IpNet, Class)> = ["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "2001:db8::/32"]
            .iter()
            .zip(300..)
            .map(|(net, class)| (net.parse().unwrap(), Class(class)))
            .collect();
        ranges.sort_by_key(|(net, _)| range_key(net));
        let mut snapshot = Snapshot::default();
        snapshot.network.ranges = ranges;
        snapshot.by_address.insert("10.1.0.7".parse().unwrap(), Class(256));
        snapshot
    }

    #[test]
    fn the_longest_range_has_an_address_that_no_workload_has() {
        let snapshot = snapshot();
        for (address, class) in [
            ("10.1.0.7", 256),
            ("::ffff:10.1.0.7", 256),
            ("10.1.0.8", 301),
            ("10.2.0.8", 300),
            ("192.0.2.1", 302),
            ("2001:db8::1", 303),
            ("2001:db9::1", Class::OUTSIDE.0),
            ("127.0.0.1", Class::UNKNOWN_LOCAL.0),
            ("::1", Class::UNKNOWN_LOCAL.0),
        ] {
            assert_eq!(
                snapshot.class_of_address(address.parse().unwrap()),
                Class(class),
                "{address}"
            );
        }
    }

    #[test]
    fn endpoints_and_listeners_go_before_addresses() {
        let mut snapshot = snapshot();
        let endpoint: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let owner = EndpointOwner {
            service: Arc::new(ServiceName {
                namespace: "shop".into(),
                name: "web".into(),
            }),
            port: 0,
            endpoint: Arc::new(Endpoint {
                address: endpoint,
                identity: Identity(256),
                class: Class(257),
                workload: "shop/web/1".into(),
            }),
        };
        snapshot.by_endpoint.insert((endpoint, Protocol::Tcp), owner);
        let listener = Listener {
            identity: Identity(258),
            class: Class(259),
        };
        snapshot
            .listeners
            .insert(("0.0.0.0:9000".parse().unwrap(), Protocol::Tcp), listener);
        for (address, identity, class) in [
            ("127.0.0.1:8080", Identity::OUTSIDE, Class(257)),
            ("127.0.0.1:9000", Identity::OUTSIDE, Class(259)),
            // The kernel knows that this is the machine's own address.
            ("10.2.0.1:9000", Identity(258), Class(259)),
            ("10.2.0.1:9000", Identity::OUTSIDE, Class(300)),
            ("10.2.0.1:9001", Identity(258), Class(300)),
        ] {
            let found = snapshot.class_of_destination(address.parse().unwrap(), Protocol::Tcp, identity);
            assert_eq!(found, class, "{address} {identity:?}");
        }
    }
}
