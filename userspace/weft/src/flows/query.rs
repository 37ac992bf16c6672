use std::net::IpAddr;

use weft_adapters::{Flow, FlowVerdict};

/// Which flows are asked for; all that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowQuery {
    /// At most so many of the kept ones: the newest.
    pub last: Option<usize>,
    pub verdict: Option<FlowVerdict>,
    pub from: Option<Party>,
    pub to: Option<Party>,
}

/// One side of a flow: `NAME`, `NAMESPACE/NAME`, `NAMESPACE/`, `ADDRESS` or `ADDRESS:PORT`. A name is that of a service
/// or an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Party {
    Named {
        namespace: Option<String>,
        name: Option<String>,
    },
    Address {
        address: IpAddr,
        port: Option<u16>,
    },
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QueryError {
    #[error("verdict `{found}`: expected `allow`, `deny` or `audit`")]
    Verdict { found: String },
    #[error("last `{found}`: expected a number of flows")]
    Last { found: String },
    #[error("query parameter `{name}` is unknown; known: follow, last, verdict, from, to")]
    Unknown { name: String },
}

// === impl FlowQuery ===

impl FlowQuery {
    /// Reads one query parameter (or flag) into the query.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), QueryError> {
        match name {
            "last" => {
                self.last = Some(value.parse().map_err(|_| QueryError::Last {
                    found: value.to_owned(),
                })?);
            }
            "verdict" => {
                self.verdict = Some(match value {
                    "allow" => FlowVerdict::Allow,
                    "deny" => FlowVerdict::Deny,
                    "audit" => FlowVerdict::Audit,
                    _ => {
                        return Err(QueryError::Verdict {
                            found: value.to_owned(),
                        });
                    }
                });
            }
            "from" => self.from = Some(Party::parse(value)),
            "to" => self.to = Some(Party::parse(value)),
            _ => return Err(QueryError::Unknown { name: name.to_owned() }),
        }
        Ok(())
    }

    pub fn matches(&self, flow: &Flow) -> bool {
        let source = &flow.source;
        let destination = &flow.destination;
        self.verdict.is_none_or(|verdict| flow.verdict == verdict)
            && self.from.as_ref().is_none_or(|party| {
                party.is_named(&source.namespace, [source.service.as_deref(), Some(&source.account)])
            })
            && self.to.as_ref().is_none_or(|party| {
                party.is_named(
                    &destination.namespace,
                    [destination.service.as_deref(), destination.account.as_deref()],
                ) || party.is_address(destination.address, destination.port)
            })
    }
}

// === impl Party ===

impl Party {
    pub fn parse(text: &str) -> Self {
        if let Ok(address) = text.parse() {
            return Self::Address { address, port: None };
        }
        if let Ok(socket) = text.parse::<std::net::SocketAddr>() {
            return Self::Address {
                address: socket.ip(),
                port: Some(socket.port()),
            };
        }
        let some = |part: &str| (!part.is_empty()).then(|| part.to_owned());
        match text.split_once('/') {
            Some((namespace, name)) => Self::Named {
                namespace: some(namespace),
                name: some(name),
            },
            None => Self::Named {
                namespace: None,
                name: some(text),
            },
        }
    }

    fn is_named(&self, in_namespace: &str, names: [Option<&str>; 2]) -> bool {
        match self {
            Self::Named { namespace, name } => {
                namespace.as_ref().is_none_or(|namespace| namespace == in_namespace)
                    && name.as_ref().is_none_or(|name| names.contains(&Some(name)))
            }
            Self::Address { .. } => false,
        }
    }

    fn is_address(&self, of: IpAddr, at: u16) -> bool {
        match self {
            Self::Named { .. } => false,
            Self::Address { address, port } => {
                address.to_canonical() == of.to_canonical() && port.is_none_or(|port| port == at)
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        net::Ipv4Addr,
        sync::Arc,
        time::{Duration, SystemTime},
    };

    use weft_adapters::{Destination, FlowEvent, FlowProtocol, Peer, Side};
    use weft_policy::ObjectRef;

    use super::*;

    /// A closed, allowed connection from default/client to default/web.
    pub fn flow() -> Arc<Flow> {
        Arc::new(Flow {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_031),
            event: FlowEvent::Close,
            reporter: Side::Source,
            verdict: FlowVerdict::Allow,
            reason: "access rule".into(),
            rule: Some(object("TrafficTarget", Some("default"), "web-clients")),
            source: Arc::new(Peer {
                namespace: "default".into(),
                service: Some("client".into()),
                account: "client-account".into(),
            }),
            destination: Arc::new(Destination {
                namespace: "default".into(),
                service: Some("web".into()),
                account: Some("web-account".into()),
                address: Ipv4Addr::new(240, 240, 7, 9).into(),
                port: 80,
            }),
            protocol: FlowProtocol::Tcp,
            l7: None,
            bytes_sent: 512,
            bytes_received: 1_300_000,
            rtt_us: Some(87),
            errno: None,
        })
    }

    /// A denied one.
    pub fn denied() -> Arc<Flow> {
        Arc::new(Flow {
            event: FlowEvent::Deny,
            verdict: FlowVerdict::Deny,
            reason: "accessDefault deny".into(),
            rule: Some(object("MeshConfig", None, "mesh")),
            bytes_sent: 0,
            bytes_received: 0,
            rtt_us: None,
            errno: Some(1),
            ..(*flow()).clone()
        })
    }

    fn object(kind: &str, namespace: Option<&str>, name: &str) -> Arc<ObjectRef> {
        Arc::new(ObjectRef {
            kind: kind.to_owned().into(),
            namespace: namespace.map(Into::into),
            name: name.into(),
        })
    }

    #[track_caller]
    fn check(parameters: &[(&str, &str)], matches_flow: bool, matches_denied: bool) {
        let mut query = FlowQuery::default();
        for (name, value) in parameters {
            query.set(name, value).expect("a good parameter");
        }
        assert_eq!(
            (query.matches(&flow()), query.matches(&denied())),
            (matches_flow, matches_denied),
            "{parameters:?}"
        );
    }

    #[test]
    fn filters_by_verdict_and_party() {
        check(&[], true, true);
        check(&[("verdict", "deny")], false, true);
        check(&[("from", "client")], true, true);
        check(&[("from", "default/client-account")], true, true);
        check(&[("from", "other/client")], false, false);
        check(&[("from", "default/")], true, true);
        check(&[("from", "web")], false, false);
        check(&[("to", "default/web"), ("verdict", "allow")], true, false);
        check(&[("to", "240.240.7.9")], true, true);
        check(&[("to", "::ffff:240.240.7.9")], true, true);
        check(&[("to", "240.240.7.9:80")], true, true);
        check(&[("to", "240.240.7.9:81")], false, false);
    }

    #[test]
    fn a_bad_parameter_says_what_was_expected() {
        let mut query = FlowQuery::default();
        let error = query.set("verdict", "no").expect_err("no verdict");
        assert_eq!(error.to_string(), "verdict `no`: expected `allow`, `deny` or `audit`");
        assert!(query.set("last", "-1").is_err());
        assert!(query.set("lats", "1").is_err());
    }
}
