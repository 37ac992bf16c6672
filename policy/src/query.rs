//! What the proxy, DNS and the command line ask a [`Snapshot`].
//!
//! The judge here is the definition: what the kernel tables decide must agree with [`Snapshot::authorize_connection`].

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use crate::snapshot::{
    AccessDefault, AccessRule, Account, Decision, HttpMatch, HttpRequestView, Identity, ObjectRef, Protocol, RuleId,
    Service, ServiceName, ServicePort, Snapshot, Verdict,
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
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    /// The service that has this virtual IP. A v4-mapped IPv6 address counts as its IPv4 address.
    pub fn vip(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.services.get(self.by_vip.get(&address.to_canonical())?)
    }

    /// The object behind a rule number, also of rules that are gone (events about them may still come).
    pub fn rule(&self, rule: RuleId) -> Option<&ObjectRef> {
        self.rules.get(&rule)
    }

    /// The service account behind an identity; none for the reserved ones.
    pub fn account(&self, identity: Identity) -> Option<&Account> {
        self.accounts.get(&identity)
    }

    /// The verdict on a connection (or datagram flow) to an endpoint of identity `destination` on its `target_port`.
    ///
    /// - Our proxy passes: it has judged already, or is about to.
    /// - [`Identity::OUTSIDE`] follows `outboundDefault`; other destinations without a policy are no business of ours.
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
        let (default, default_rule) = match self.default_for(source, destination) {
            Ok(default) => default,
            Err(decision) => return decision,
        };
        if default == AccessDefault::Allow {
            return Decision {
                verdict: Verdict::Allow,
                rule: Some(default_rule),
            };
        }
        let mut needs_http = None;
        for rule in self.rules_for(source, destination, protocol, target_port) {
            if rule.http.is_none() {
                return Decision {
                    verdict: Verdict::Allow,
                    rule: Some(rule.rule),
                };
            }
            needs_http.get_or_insert(rule.rule);
        }
        match needs_http {
            Some(rule) => Decision {
                verdict: Verdict::NeedsHttp,
                rule: Some(rule),
            },
            None => Decision {
                verdict: Verdict::Deny,
                rule: Some(default_rule),
            },
        }
    }

    /// The verdict on one HTTP request; never [`Verdict::NeedsHttp`].
    ///
    /// A denial names the first rule that speaks of this source and port (its routes do not match the request), else
    /// the MeshConfig whose default denies.
    pub fn authorize_request(
        &self,
        source: Identity,
        destination: Identity,
        target_port: u16,
        request: &dyn HttpRequestView,
    ) -> Decision {
        let (default, default_rule) = match self.default_for(source, destination) {
            Ok(default) => default,
            Err(decision) => return decision,
        };
        if default == AccessDefault::Allow {
            return Decision {
                verdict: Verdict::Allow,
                rule: Some(default_rule),
            };
        }
        let mut speaks = None;
        for rule in self.rules_for(source, destination, Protocol::Tcp, target_port) {
            let allows = match &rule.http {
                None => true,
                Some(matches) => matches.iter().any(|m| m.matches(request)),
            };
            if allows {
                return Decision {
                    verdict: Verdict::Allow,
                    rule: Some(rule.rule),
                };
            }
            speaks.get_or_insert(rule.rule);
        }
        Decision {
            verdict: Verdict::Deny,
            rule: Some(speaks.unwrap_or(default_rule)),
        }
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

    /// The default of the destination, or the decision where no access rule has a say.
    fn default_for(&self, source: Identity, destination: Identity) -> Result<(AccessDefault, RuleId), Decision> {
        if source == Identity::PROXY {
            return Err(Decision {
                verdict: Verdict::Allow,
                rule: None,
            });
        }
        if destination == Identity::OUTSIDE {
            return Err(match self.outbound_default {
                Some((AccessDefault::Deny, rule)) => Decision {
                    verdict: Verdict::Deny,
                    rule: Some(rule),
                },
                Some((AccessDefault::Allow, rule)) => Decision {
                    verdict: Verdict::Allow,
                    rule: Some(rule),
                },
                None => Decision {
                    verdict: Verdict::Allow,
                    rule: None,
                },
            });
        }
        match self.access.get(&destination) {
            Some(policy) => Ok((policy.default, policy.default_rule)),
            None => Err(Decision {
                verdict: Verdict::Allow,
                rule: None,
            }),
        }
    }

    fn rules_for(
        &self,
        source: Identity,
        destination: Identity,
        protocol: Protocol,
        target_port: u16,
    ) -> impl Iterator<Item = &AccessRule> {
        self.access
            .get(&destination)
            .into_iter()
            .flat_map(|policy| &policy.allow)
            .filter(move |rule| rule.speaks_of(source, protocol, target_port))
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
}

// === impl AccessRule ===

impl AccessRule {
    /// Whether source, protocol and port are those of this rule, whatever it says about requests.
    pub fn speaks_of(&self, source: Identity, protocol: Protocol, target_port: u16) -> bool {
        self.protocol == protocol
            && self.sources.contains(&source)
            && self.ports.as_ref().is_none_or(|ports| ports.contains(&target_port))
    }
}

// === impl HttpMatch ===

impl HttpMatch {
    /// Whether all that is set holds for this request.
    pub fn matches(&self, request: &dyn HttpRequestView) -> bool {
        (self.methods.is_empty() || self.methods.iter().any(|m| m == request.method()))
            && self.path.as_ref().is_none_or(|path| path.is_match(request.path()))
            && self
                .headers
                .iter()
                .all(|(name, value)| request.header(name).is_some_and(|found| value.is_match(found)))
    }
}
