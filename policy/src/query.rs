//! What the proxy, DNS and the command line ask a [`Snapshot`].
//!
//! The judge here is the definition: what the kernel tables decide must agree with [`Snapshot::authorize_connection`].

mod network;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use crate::snapshot::{
    AccessDefault, AccessPolicy, AccessRule, Account, Decision, HttpMatch, HttpRequestView, Identity, L7, Listener,
    ObjectRef, ObjectStatus, Protocol, RuleId, Service, ServiceName, ServicePort, Snapshot, Verdict,
};

/// What our DNS says about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsAnswer {
    /// A service: its virtual IPs.
    Service { v4: Ipv4Addr, v6: Ipv6Addr },
    /// No name of the mesh: ask the system's resolver.
    NotOurs,
}

/// Last label of the long form of a service's name, `web.shop.mesh`.
pub const DNS_SUFFIX: &str = "mesh";

// === impl Snapshot ===

impl Snapshot {
    /// The service `namespace/name`.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.services.get(&ServiceName {
            namespace: namespace.into(),
            name: name.into(),
        })
    }

    /// Whether there is a service in this namespace.
    pub fn has_services_in(&self, namespace: &str) -> bool {
        let first = ServiceName {
            namespace: namespace.into(),
            name: "".into(),
        };
        let found = self.services.first_from(&first);
        found.is_some_and(|(name, _)| *name.namespace == *namespace)
    }

    /// Where [`Snapshot::statuses`] has that of an object: they are in the order of their objects.
    pub fn status_index(&self, object: &ObjectRef) -> Option<usize> {
        let by_object = |status: &ObjectStatus| (*status.object).cmp(object);
        self.statuses.binary_search_by(by_object).ok()
    }

    /// The service that has this virtual IP. A v4-mapped IPv6 address counts as its IPv4 address.
    pub fn vip(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.services.get(self.by_vip.get(&address.to_canonical())?)
    }

    /// Who listens on this address, whether or not a service leads there. What is bound to all addresses
    /// is found by loopback ones, and by the unspecified one, which Linux takes for loopback.
    pub fn listener(&self, address: SocketAddr, protocol: Protocol) -> Option<Listener> {
        let ip = address.ip().to_canonical();
        let find = |ip| {
            self.listeners
                .get(&(SocketAddr::new(ip, address.port()), protocol))
                .copied()
        };
        find(ip).or_else(|| {
            if !ip.is_loopback() && !ip.is_unspecified() {
                return None;
            }
            let any4 = ip.is_ipv4().then(|| find(Ipv4Addr::UNSPECIFIED.into())).flatten();
            any4.or_else(|| find(Ipv6Addr::UNSPECIFIED.into()))
        })
    }

    /// The service port whose adapters guard what is connected to there, at whatever address; `None`: none do.
    pub fn guard(&self, destination: Identity, target_port: u16) -> Option<(&Arc<Service>, usize)> {
        let (service, port) = self.guards.get(&(destination, target_port))?;
        Some((self.services.get(service)?, *port))
    }

    /// The object behind a rule number, also of rules that are gone (events about them may still come).
    pub fn rule(&self, rule: RuleId) -> Option<&Arc<ObjectRef>> {
        self.rules.get(&rule)
    }

    /// The service account behind an identity; none for the reserved ones.
    pub fn account(&self, identity: Identity) -> Option<&Account> {
        self.accounts.get(&identity)
    }

    /// The verdict on a connection (or datagram flow) to an endpoint of identity `destination` on its `target_port`.
    ///
    /// - Our proxy passes: it has judged already, or is about to.
    /// - [`Identity::OUTSIDE`] and [`Identity::UNKNOWN_LOCAL`] follow `outboundDefault`; other destinations without a policy are no business of ours.
    /// - What an audited default denies is [`Verdict::Audit`].
    /// - A rule about connections allows at once; if only rules about requests speak of this source and port, the
    ///   requests decide.
    ///
    /// Costs a hash look-up and a walk over the rules of that destination.
    pub fn authorize_connection(
        &self,
        source: Identity,
        destination: Identity,
        protocol: Protocol,
        target_port: u16,
    ) -> Decision {
        let policy = match self.policy_for(source, destination) {
            Ok(policy) => policy,
            Err(decision) => return decision,
        };
        let mut needs_http = None;
        for rule in policy.rules_for(source, protocol, target_port) {
            if rule.http.is_none() {
                return Decision::new(Verdict::Allow, rule.rule);
            }
            needs_http.get_or_insert(rule.rule);
        }
        match needs_http {
            Some(rule) => Decision::new(Verdict::NeedsHttp, rule),
            None => policy.denial(),
        }
    }

    /// Whether some rule is about the requests of a TCP connection, another one allowing them all or not: the kernel's table
    /// hands such a connection to the proxy.
    pub fn wants_requests(&self, source: Identity, destination: Identity, target_port: u16) -> bool {
        let policy = self.policy_for(source, destination);
        policy.is_ok_and(|policy| {
            let mut rules = policy.rules_for(source, Protocol::Tcp, target_port);
            rules.any(|rule| rule.http.is_some())
        })
    }

    /// The verdict on a TCP connection that is known not to carry HTTP, so that rules about requests allow none of it:
    /// never [`Verdict::NeedsHttp`].
    pub fn authorize_opaque(&self, source: Identity, destination: Identity, target_port: u16) -> Decision {
        let decision = self.authorize_connection(source, destination, Protocol::Tcp, target_port);
        match self.access.get(&destination) {
            Some(policy) if decision.verdict == Verdict::NeedsHttp => policy.mismatch(source, target_port),
            _ => decision,
        }
    }

    /// The verdict on one HTTP request; never [`Verdict::NeedsHttp`].
    ///
    /// A denial names the first rule that speaks of this source and port (its routes do not match the request) and is not
    /// audited, else the MeshConfig whose default denies.
    pub fn authorize_request(
        &self,
        source: Identity,
        destination: Identity,
        target_port: u16,
        request: &dyn HttpRequestView,
    ) -> Decision {
        let policy = match self.policy_for(source, destination) {
            Ok(policy) => policy,
            Err(decision) => return decision,
        };
        let allows = |rule: &&AccessRule| match &rule.http {
            None => true,
            Some(matches) => matches.iter().any(|m| m.matches(request)),
        };
        match policy.rules_for(source, Protocol::Tcp, target_port).find(allows) {
            Some(rule) => Decision::new(Verdict::Allow, rule.rule),
            None => policy.mismatch(source, target_port),
        }
    }

    /// What [`Snapshot::authorize_request`] says of all requests alike; `None`: it depends on what is asked.
    pub fn authorize_all_requests(
        &self,
        source: Identity,
        destination: Identity,
        target_port: u16,
    ) -> Option<Decision> {
        let policy = match self.policy_for(source, destination) {
            Ok(policy) => policy,
            Err(decision) => return Some(decision),
        };
        match policy.rules_for(source, Protocol::Tcp, target_port).next() {
            Some(rule) if rule.http.is_none() => Some(Decision::new(Verdict::Allow, rule.rule)),
            Some(_) => None,
            None => Some(policy.denial()),
        }
    }

    /// The decision on a TCP connection on whose way nobody sees requests ([`Service::sees_requests_to`]), if rules about requests
    /// speak of it; `None`: they do not, and [`Snapshot::authorize_connection`] decides.
    pub fn authorize_unseen(&self, source: Identity, destination: Identity, target_port: u16) -> Option<Decision> {
        let policy = self.policy_for(source, destination).ok()?;
        let mut speaking = policy.rules_for(source, Protocol::Tcp, target_port);
        let rule = speaking.find(|rule| rule.http.is_some())?;
        let verdict = if policy.audit { Verdict::Audit } else { Verdict::Deny };
        Some(Decision::new(verdict, rule.rule))
    }

    /// What our DNS answers a workload of `client_namespace` that asks for `name`: `web`, `web.NAMESPACE` and
    /// `web.NAMESPACE.mesh` are services, all else is not ours. Upper case and a trailing dot do not matter.
    pub fn resolve(&self, client_namespace: &str, name: &str) -> DnsAnswer {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let mut labels = name.split('.');
        let (service, namespace, suffix) = (labels.next(), labels.next(), labels.next());
        let found = match (service, namespace, suffix, labels.next()) {
            (Some(service), None, None, None) => self.service(client_namespace, service),
            (Some(service), Some(namespace), None, None) => self.service(namespace, service),
            (Some(service), Some(namespace), Some(DNS_SUFFIX), None) => self.service(namespace, service),
            _ => None,
        };
        match found {
            Some(service) => DnsAnswer::Service {
                v4: service.vip4,
                v6: service.vip6,
            },
            None => DnsAnswer::NotOurs,
        }
    }

    /// The policy whose rules decide, or the decision where no access rule has a say.
    fn policy_for(&self, source: Identity, destination: Identity) -> Result<&AccessPolicy, Decision> {
        if source == Identity::PROXY {
            return Err(Decision::UNRESTRICTED);
        }
        if matches!(destination, Identity::OUTSIDE | Identity::UNKNOWN_LOCAL) {
            return Err(match self.outbound_default {
                Some((AccessDefault::Deny, rule)) if self.outbound_audit => Decision::new(Verdict::Audit, rule),
                Some((AccessDefault::Deny, rule)) => Decision::new(Verdict::Deny, rule),
                Some((AccessDefault::Allow, rule)) => Decision::new(Verdict::Allow, rule),
                None => Decision::UNRESTRICTED,
            });
        }
        let policy = self.access.get(&destination).ok_or(Decision::UNRESTRICTED)?;
        match policy.default {
            AccessDefault::Allow => Err(Decision::new(Verdict::Allow, policy.default_rule)),
            AccessDefault::Deny => Ok(policy),
        }
    }
}

// === impl AccessPolicy ===

impl AccessPolicy {
    fn rules_for(&self, source: Identity, protocol: Protocol, target_port: u16) -> impl Iterator<Item = &AccessRule> {
        self.allow
            .iter()
            .filter(move |rule| rule.speaks_of(source, protocol, target_port))
    }

    /// No rule speaks of it.
    fn denial(&self) -> Decision {
        let verdict = if self.audit { Verdict::Audit } else { Verdict::Deny };
        Decision::new(verdict, self.default_rule)
    }

    /// No rule allows what a TCP connection carries. Rules that speak of its source and port are all about requests then:
    /// the first that enforces denies, and if all are audited, the first of them reports.
    fn mismatch(&self, source: Identity, target_port: u16) -> Decision {
        let speaking = || self.rules_for(source, Protocol::Tcp, target_port);
        let (verdict, rule) = match (speaking().find(|rule| !rule.audit), speaking().next()) {
            (Some(enforcing), _) if self.audit => (Verdict::Audit, enforcing),
            (Some(enforcing), _) => (Verdict::Deny, enforcing),
            (None, Some(audited)) => (Verdict::Audit, audited),
            (None, None) => return self.denial(),
        };
        Decision::new(verdict, rule.rule)
    }
}

// === impl Service ===

impl Service {
    /// The service port with this number, and its index in [`Service::ports`].
    pub fn port(&self, port: u16, protocol: Protocol) -> Option<(usize, &ServicePort)> {
        self.ports
            .iter()
            .enumerate()
            .find(|(_, p)| p.port == port && p.protocol == protocol)
    }

    /// Whether somebody sees the requests to a backend of this service (itself, or one that it is split to) on the way there,
    /// and may judge them: our proxy, or the foreign one that both of them name.
    pub fn sees_requests_to(&self, backend: &Service) -> bool {
        match self.l7 {
            L7::Auto => true,
            L7::None => false,
            L7::External { .. } => self.l7 == backend.l7,
        }
    }
}

// === impl AccessRule ===

impl AccessRule {
    /// Whether source, protocol and port are those of this rule, whatever it says about requests.
    pub fn speaks_of(&self, source: Identity, protocol: Protocol, target_port: u16) -> bool {
        self.protocol == protocol
            && self.sources.contains(&source)
            && self.ports.as_ref().is_none_or(|ports| ports.contains(&target_port))
            && !self.except.contains(&target_port)
    }
}

// === impl HttpMatch ===

impl HttpMatch {
    /// Whether all that is set holds for this request.
    pub fn matches(&self, request: &dyn HttpRequestView) -> bool {
        (self.methods.is_empty() || self.methods.iter().any(|m| m == request.method()))
            && self.path.as_ref().is_none_or(|path| path.is_match(request.path()))
            && self.headers.iter().all(|(name, value)| {
                let (mut some, mut all) = (false, true);
                request.each_value(name, &mut |found| {
                    some = true;
                    all &= found.is_some_and(|found| value.is_match(found));
                });
                some && all
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        let name = ServiceName {
            namespace: "shop".into(),
            name: "web".into(),
        };
        let service = Service {
            name: name.clone(),
            vip4: Ipv4Addr::new(240, 240, 0, 1),
            vip6: Ipv6Addr::LOCALHOST,
            ports: Vec::new(),
            failure_mode: None,
            acceleration: crate::snapshot::Acceleration::Off,
            l7: L7::Auto,
        };
        let mut snapshot = Snapshot::default();
        snapshot.by_vip.insert(service.vip4.into(), name.clone());
        snapshot.services.insert(name, service.into());
        snapshot
    }

    #[test]
    fn names_of_services_resolve_in_three_forms_and_nothing_else_does() {
        let snapshot = snapshot();
        let found = |namespace, name| snapshot.resolve(namespace, name) != DnsAnswer::NotOurs;
        for name in ["web", "web.", "WEB", "web.shop", "web.shop.mesh", "Web.Shop.Mesh."] {
            assert!(found("shop", name), "{name}");
        }
        for name in [
            "",
            ".",
            "api",
            "web.other",
            "web.shop.svc",
            "web.shop.mesh.x",
            "web..",
            "x.web.shop.mesh",
        ] {
            assert!(!found("shop", name), "{name}");
        }
        assert!(!found("other", "web"));
    }

    #[test]
    fn a_v4_mapped_address_is_its_ipv4_address() {
        let snapshot = snapshot();
        let mapped = Ipv4Addr::new(240, 240, 0, 1).to_ipv6_mapped();
        assert!(snapshot.vip(mapped.into()).is_some());
        assert!(snapshot.vip(Ipv4Addr::new(240, 240, 0, 2).into()).is_none());
    }

    #[test]
    fn outside_follows_the_outbound_default_and_our_proxy_passes() {
        let mut snapshot = snapshot();
        let verdict = |snapshot: &Snapshot, source| {
            let decision = snapshot.authorize_connection(source, Identity::OUTSIDE, Protocol::Tcp, 443);
            (decision.verdict, decision.rule)
        };
        assert_eq!(verdict(&snapshot, Identity::FIRST), (Verdict::Allow, None));
        snapshot.outbound_default = Some((AccessDefault::Deny, RuleId(7)));
        assert_eq!(verdict(&snapshot, Identity::FIRST), (Verdict::Deny, Some(RuleId(7))));
        assert_eq!(verdict(&snapshot, Identity::PROXY), (Verdict::Allow, None));
    }

    #[test]
    fn what_is_bound_to_all_addresses_is_found_on_loopback() {
        let mut snapshot = snapshot();
        let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, 80).into();
        let listener = Listener {
            identity: Identity::FIRST,
            class: crate::snapshot::Class::FIRST,
        };
        snapshot.listeners.insert((any, Protocol::Tcp), listener);
        for (address, expect) in [("127.0.0.2:80", true), ("[::1]:80", true), ("192.0.2.1:80", false)] {
            let found = snapshot.listener(address.parse().unwrap(), Protocol::Tcp).is_some();
            assert_eq!(found, expect, "{address}");
        }
    }
}
