//! The judge: what the rules say, read one by one, with no table and no memory.
//!
//! Access AND network; access by account, network by labels, both about the initiator and the port of the endpoint. The
//! precedence of the tables (deny over requests over the longer prefix over the exact identity over any over the default)
//! is not in here: it must come out.

use super::world::{
    ACTORS, HOME, LABELS, Method, NAMESPACES, Network, OFFSETS, OUTSIDER, Peer, Rule, SERVICE_PORTS, Selector, Target,
    Transport, World, account, base,
};

/// What becomes of a new flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    Pass,
    /// Whoever sees its requests decides on each.
    Requests,
    Deny,
}

/// Who to whom, at which port of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub source: usize,
    pub destination: usize,
    pub transport: Transport,
    pub port: u16,
}

// === impl World ===

impl World {
    /// A connection, or the first datagram of a flow.
    pub fn judge(&self, call: Call) -> Ruling {
        if !self.network_allows(call) {
            Ruling::Deny
        } else {
            self.access(call, None)
        }
    }

    /// A request on a connection whose requests are seen.
    pub fn judge_request(&self, call: Call, method: Method) -> Ruling {
        if !self.network_allows(call) {
            Ruling::Deny
        } else {
            self.access(call, Some(method))
        }
    }

    // --- access ---

    fn access(&self, call: Call, request: Option<Method>) -> Ruling {
        if !said(&self.denies, HOME[call.destination]) {
            return Ruling::Pass;
        }
        let speaking: Vec<&Target> = self.targets.iter().filter(|target| self.speaks(target, call)).collect();
        let audited = said(&self.audits, HOME[call.destination]);
        if speaking.is_empty() {
            return passes_if(audited);
        }
        let is_about_requests = |target: &Target| call.transport == Transport::Tcp && target.http.is_some();
        let Some(method) = request else {
            // What one allows and another wants to see visits the proxy, which allows it.
            let seen = speaking.iter().any(|target| is_about_requests(target));
            return if seen { Ruling::Requests } else { Ruling::Pass };
        };
        let allows = |target: &&Target| {
            let methods = target.http.as_deref().unwrap_or_default();
            methods.is_empty() || methods.contains(&method)
        };
        let reported = speaking.iter().all(|target| target.audit);
        passes_if(speaking.iter().any(allows) || audited || reported)
    }

    /// Whether a target may allow it, whatever is requested.
    fn speaks(&self, target: &Target, call: Call) -> bool {
        let about = target.destination == call.destination && target.sources.contains(&call.source);
        let meant = |ports: &Vec<u16>| {
            let service_port = served(call).map(|index| SERVICE_PORTS[index]);
            ports.is_empty() || ports.contains(&call.port) || service_port.is_some_and(|port| ports.contains(&port))
        };
        let allowed = match call.transport {
            Transport::Udp => target.udp.as_ref().is_some_and(meant),
            Transport::Tcp => {
                // Nobody sees the requests there: what is about them allows nothing.
                let unseen = target.http.is_some() && self.unseen[call.destination] && served(call).is_some();
                (target.tcp.is_some() || target.http.is_some()) && target.tcp.as_ref().is_none_or(meant) && !unseen
            }
        };
        about && allowed
    }

    // --- network ---

    fn network_allows(&self, call: Call) -> bool {
        self.isolation_allows(call.source, call.destination, false, call)
            && self.isolation_allows(call.destination, call.source, true, call)
    }

    /// What is decided at one end.
    fn isolation_allows(&self, own: usize, other: usize, is_ingress: bool, call: Call) -> bool {
        if own == OUTSIDER {
            return true;
        }
        let isolates = |network: &&Network| {
            let typed = match (network.types, is_ingress) {
                (0, true) => true,
                (0, false) => !network.egress.is_empty(),
                (types, true) => types & 1 != 0,
                (types, false) => types & 2 != 0,
            };
            typed && network.namespace == HOME[own] && selects(network.pods, own)
        };
        let isolating: Vec<&Network> = self.networks.iter().filter(isolates).collect();
        let allowed = isolating.iter().any(|network| {
            let rules = if is_ingress { &network.ingress } else { &network.egress };
            rules
                .iter()
                .any(|rule| rule_allows(rule, network.namespace, other, call))
        });
        let audited = isolating
            .iter()
            .all(|network| network.audit || said(&self.audits, network.namespace));
        allowed || audited
    }
}

/// What the namespace says, else the mesh, else no.
fn said(what: &[Option<bool>; 3], namespace: usize) -> bool {
    what[namespace + 1].or(what[0]).unwrap_or(false)
}

fn passes_if(allowed: bool) -> Ruling {
    if allowed { Ruling::Pass } else { Ruling::Deny }
}

/// Which service port leads to the port of the call.
fn served(call: Call) -> Option<usize> {
    (0..SERVICE_PORTS.len()).find(|index| base(call.destination) + OFFSETS[*index] == call.port)
}

fn rule_allows(rule: &Rule, namespace: usize, other: usize, call: Call) -> bool {
    let peer = |peer: &Peer| match peer {
        _ if other >= ACTORS => false,
        Peer::Pods(pods) => HOME[other] == namespace && selects(*pods, other),
        Peer::Namespace(of, pods) => HOME[other] == *of && selects(*pods, other),
        Peer::Block => false,
    };
    let port = |(transport, range): &(Transport, Option<std::ops::RangeInclusive<u16>>)| {
        *transport == call.transport && range.as_ref().is_none_or(|range| range.contains(&call.port))
    };
    (rule.peers.is_empty() || rule.peers.iter().any(peer)) && (rule.ports.is_empty() || rule.ports.iter().any(port))
}

fn selects(pods: Selector, actor: usize) -> bool {
    let Some((key, value)) = pods else { return true };
    if key == "weft.mesh/service" {
        return value == account(actor);
    }
    LABELS[actor].contains(&(key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The judge itself, on what a person can check.
    #[test]
    fn the_judge_knows_the_rules() {
        let mut world = World {
            denies: [Some(true), None, None],
            audits: [None; 3],
            targets: Vec::new(),
            networks: Vec::new(),
            unseen: [false; ACTORS],
        };
        let call = Call {
            source: 0,
            destination: 1,
            transport: Transport::Tcp,
            port: base(1) + 1,
        };
        assert_eq!(world.judge(call), Ruling::Deny, "the default");
        world.targets.push(Target {
            destination: 1,
            sources: vec![0],
            tcp: None,
            udp: None,
            http: Some(vec![Method::Get]),
            audit: false,
        });
        assert_eq!(world.judge(call), Ruling::Requests);
        assert_eq!(world.judge_request(call, Method::Get), Ruling::Pass);
        assert_eq!(world.judge_request(call, Method::Post), Ruling::Deny);
        world.unseen[1] = true;
        assert_eq!(world.judge(call), Ruling::Deny, "nobody sees requests");
        world.targets[0].http = None;
        world.targets[0].tcp = Some(vec![SERVICE_PORTS[0]]);
        assert_eq!(world.judge(call), Ruling::Pass, "the service port leads there");
        world.networks.push(Network {
            namespace: HOME[1],
            audit: false,
            pods: Some(("app", "y")),
            types: 0,
            ingress: Vec::new(),
            egress: Vec::new(),
        });
        assert_eq!(world.judge(call), Ruling::Deny, "isolated: {}", NAMESPACES[HOME[1]]);
        let source = OUTSIDER;
        assert_eq!(world.judge(Call { source, ..call }), Ruling::Deny);
    }
}
