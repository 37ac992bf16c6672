//! `weft explain`: which object decides about a connection or a request, and which way it goes.
//!
//! Every answer is taken from the same functions that decide about real traffic; this only tells the story.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::snapshot::{
    Account, AppProtocol, Class, Decision, HttpRequestView, Identity, L7, ObjectRef, Protocol, Service, ServiceName,
    ServicePort, Snapshot, Verdict, Workload,
};

/// What somebody wants to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainInput {
    /// The client's service account.
    pub from: Account,
    pub to: ExplainTarget,
    /// Service port for a service or virtual IP, port of the endpoint for an endpoint's address.
    pub port: u16,
    pub protocol: Protocol,
    pub method: Option<String>,
    /// Path of the request; a query is cut off.
    pub path: Option<String>,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExplainTarget {
    Service(ServiceName),
    Address(IpAddr),
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataPath {
    Kernel,
    Proxy,
    /// A foreign proxy (`l7: {mode: external}`).
    External,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What was looked at, in order, a sentence each.
    pub steps: Vec<String>,
    /// Of several endpoints that are decided about differently: the strictest.
    pub verdict: Verdict,
    /// The object that decided.
    pub rule: Option<ObjectRef>,
    /// The NetworkPolicy that decided in its dimension; `None`: none isolates either end there.
    pub network: Option<ObjectRef>,
    /// The object that decided about access by account.
    pub access: Option<ObjectRef>,
    pub path: DataPath,
    /// Why this verdict, on this path.
    pub why: String,
}

/// Whom a connection may reach.
struct Candidate {
    identity: Identity,
    class: Class,
    target: u16,
    /// For messages.
    place: String,
    /// Nobody on the way there sees requests ([`Service::sees_requests_to`]).
    unseen: bool,
}

/// What is known of the way before the access rules are asked.
#[derive(Clone, Copy)]
struct Road<'s> {
    /// [`ServicePort::proxied`]
    proxied: Option<&'s str>,
    /// [`ServicePort::http`]
    http: bool,
    l7: &'s L7,
}

/// Who asks. An account's workloads may be of several classes.
struct Source {
    identity: Identity,
    classes: BTreeSet<Class>,
}

/// What both dimensions said, and which way that goes.
struct Judged<'s> {
    decision: Decision,
    network: Decision,
    access: Decision,
    /// The latter in words.
    said: String,
    path: DataPath,
    /// Why connections visit the proxy, whatever the access rules say.
    proxied: Option<&'s str>,
}

impl Snapshot {
    /// Tells what would happen. Costs what a connection costs for each endpoint of the service.
    pub fn explain(&self, input: &ExplainInput) -> Explanation {
        let mut steps = Vec::new();
        let source = match self.identities.get(&input.from) {
            Some(identity) => {
                steps.push(format!("{} has identity {}", input.from, identity.0));
                *identity
            }
            None => {
                steps.push(format!(
                    "nothing is known of account {}: its workloads would be new here",
                    input.from
                ));
                Identity::UNKNOWN
            }
        };
        let source = Source {
            identity: source,
            classes: self.classes_of(&input.from),
        };
        let port = match &input.to {
            ExplainTarget::Service(name) => match self.services.get(name) {
                Some(service) => self.find_port(service, input, &mut steps),
                None => return self.nowhere(format!("there is no service {name}"), steps),
            },
            ExplainTarget::Address(address) => match self.vip(*address) {
                Some(service) => self.find_port(service, input, &mut steps),
                None => return self.explain_address(&source, address.to_canonical(), input, steps),
            },
        };
        let Some((service, port)) = port else {
            return self.nowhere(
                "connections to a port that a service does not have are refused".to_owned(),
                steps,
            );
        };
        let candidates = self.candidates(service, port, &mut steps);
        if candidates.is_empty() {
            return self.nowhere("there is no endpoint: the connection is refused".to_owned(), steps);
        }
        let road = Road {
            proxied: port.proxied.as_deref(),
            http: port.http,
            l7: &service.l7,
        };
        self.judge(&source, candidates, road, input, steps)
    }

    fn find_port<'s>(
        &self,
        service: &'s Service,
        input: &ExplainInput,
        steps: &mut Vec<String>,
    ) -> Option<(&'s Service, &'s ServicePort)> {
        let ExplainInput { port, protocol, .. } = input;
        match service.port(*port, *protocol) {
            Some((_, found)) => {
                let http = if found.http { ", works per request (HTTP)" } else { "" };
                let vips = format!("{} and {}", service.vip4, service.vip6);
                steps.push(format!(
                    "service {} at {vips}: port {port}/{protocol}{http}",
                    service.name
                ));
                let looks = |adapter: &&std::sync::Arc<crate::snapshot::Adapter>| {
                    adapter.config.role.sees_requests() && adapter.target.services.contains(&service.name)
                };
                let opaque = found.app == AppProtocol::Opaque && *protocol == Protocol::Tcp;
                for adapter in self.adapters.iter().filter(looks) {
                    let config = &adapter.config;
                    if found.http || (opaque && config.backend.sees_bytes()) {
                        steps.push(format!("- {}: {}, {}", config.object, config.backend, config.role));
                    }
                }
                Some((service, found))
            }
            None => {
                steps.push(format!("service {} has no port {port}/{protocol}", service.name));
                None
            }
        }
    }

    /// Whom a connection to this port may be given to.
    fn candidates(&self, service: &Service, port: &ServicePort, steps: &mut Vec<String>) -> Vec<Candidate> {
        let mut reached: Vec<(&Service, &ServicePort)> = Vec::new();
        if let Some(split) = &port.split {
            let per = if port.http { "request" } else { "connection" };
            let total: u64 = split.backends.iter().map(|backend| u64::from(backend.weight)).sum();
            steps.push(format!("{} splits per {per}", split.object));
            for backend in &split.backends {
                let found = self
                    .services
                    .get(&backend.service)
                    .zip(backend.port)
                    .and_then(|(s, i)| s.ports.get(i).map(|port| (&**s, port)));
                let lost = if found.is_none() {
                    ", which is missing: its share goes nowhere"
                } else {
                    ""
                };
                steps.push(format!(
                    "- {} of {total} to service {}{lost}",
                    backend.weight, backend.service
                ));
                reached.extend(found.filter(|_| backend.weight > 0));
            }
            if !split.matches.is_empty() {
                steps.push(format!(
                    "- what matches none of its routes to service {} itself",
                    service.name
                ));
                reached.push((service, port));
            }
        } else {
            reached.push((service, port));
        }
        let mut candidates = Vec::new();
        for (backend, port) in reached {
            let (name, unseen) = (&backend.name, !service.sees_requests_to(backend));
            for endpoint in &port.endpoints {
                let place = format!("{} ({}, service {name})", endpoint.address, endpoint.workload);
                candidates.push(Candidate {
                    identity: endpoint.identity,
                    class: endpoint.class,
                    target: endpoint.address.port(),
                    place,
                    unseen,
                });
            }
            if port.pending && service.l7 == L7::Auto && port.protocol == Protocol::Tcp {
                steps.push(format!(
                    "service {name}: no endpoint listens yet, callers wait in the proxy"
                ));
                for (identity, target) in &port.targets {
                    let workloads = self.workloads.iter().filter(|w| w.identity == *identity);
                    candidates.extend(workloads.map(|workload| Candidate {
                        identity: *identity,
                        class: workload.class,
                        target: *target,
                        place: "starting".to_owned(),
                        unseen,
                    }));
                }
            }
        }
        candidates
    }

    fn explain_address(
        &self,
        source: &Source,
        address: IpAddr,
        input: &ExplainInput,
        mut steps: Vec<String>,
    ) -> Explanation {
        let key = (SocketAddr::new(address, input.port), input.protocol);
        let mut road = Road {
            proxied: None,
            http: false,
            l7: &L7::Auto,
        };
        let identity = if let Some(owner) = self.by_endpoint.get(&key) {
            steps.push(format!(
                "{} is an endpoint of service {}: {}",
                key.0, owner.service, owner.endpoint.workload
            ));
            if let Some(service) = self.services.get(&owner.service) {
                let port = service.ports.get(owner.port);
                road.http = port.is_some_and(|p| p.http);
                road.proxied = port.filter(|p| p.guarded).and_then(|p| p.proxied.as_deref());
                road.l7 = &service.l7;
            }
            owner.endpoint.identity
        } else if let Some(listener) = self.listener(key.0, key.1) {
            let account = self
                .account(listener.identity)
                .map(Account::to_string)
                .unwrap_or_default();
            steps.push(format!(
                "a workload of account {account} listens on {}; no service leads there",
                key.0
            ));
            listener.identity
        } else if let Some(workload) = self.workload_at(address) {
            steps.push(format!(
                "{} is an address of workload {}; no service leads to this port",
                key.0, workload.name
            ));
            workload.identity
        } else if address.is_loopback() {
            steps.push(format!("{} is on this machine and no workload's", key.0));
            Identity::UNKNOWN_LOCAL
        } else {
            steps.push(format!(
                "{} is neither a virtual IP nor an endpoint: it is outside the mesh",
                key.0
            ));
            Identity::OUTSIDE
        };
        if !self.by_endpoint.contains_key(&key)
            && input.protocol == Protocol::Tcp
            && let Some((service, port)) = self.guard(identity, input.port)
        {
            steps.push(format!(
                "service {} leads to that port at another address",
                service.name
            ));
            road.http = service.ports[port].http;
        }
        let candidate = Candidate {
            identity,
            class: self.class_of_destination(key.0, key.1, identity),
            target: input.port,
            place: key.0.to_string(),
            unseen: false,
        };
        self.judge(source, vec![candidate], road, input, steps)
    }

    /// The first workload with this address, as the kernel has it; loopback is nobody's.
    fn workload_at(&self, address: IpAddr) -> Option<&Workload> {
        let has = |workload: &&std::sync::Arc<Workload>| workload.addresses.contains(&address);
        let found = self.workloads.iter().find(has);
        found.map(|workload| &**workload).filter(|_| !address.is_loopback())
    }

    /// Classes of an account's workloads; of one that has none: nobody's.
    fn classes_of(&self, account: &Account) -> BTreeSet<Class> {
        let own = |w: &&std::sync::Arc<Workload>| *w.namespace == *account.namespace && *w.account == *account.name;
        let found: BTreeSet<Class> = self.workloads.iter().filter(own).map(|w| w.class).collect();
        if found.is_empty() {
            BTreeSet::from([Class::UNKNOWN])
        } else {
            found
        }
    }

    fn judge(
        &self,
        source: &Source,
        candidates: Vec<Candidate>,
        road: Road<'_>,
        input: &ExplainInput,
        mut steps: Vec<String>,
    ) -> Explanation {
        let Road { proxied, http, l7 } = road;
        let external = matches!(l7, L7::External { .. });
        let request = Request::of(input);
        let mut strictest: Option<Judged<'_>> = None;
        let mut seen = BTreeSet::new();
        for candidate in candidates {
            let (identity, target) = (candidate.identity, candidate.target);
            if !seen.insert((identity, candidate.class, target, candidate.unseen)) {
                continue;
            }
            let connection = self.authorize_connection(source.identity, identity, input.protocol, target);
            let reached = input.protocol == Protocol::Tcp && connection.verdict != Verdict::Deny;
            let guard = self.guard(identity, target).filter(|_| reached);
            let guarded = guard.and_then(|(service, port)| service.ports[port].proxied.as_deref());
            let proxied = proxied.or(guarded);
            let by_proxy = reached && (proxied.is_some() || self.wants_requests(source.identity, identity, target));
            let unseen = match reached && candidate.unseen {
                true => self
                    .authorize_unseen(source.identity, identity, target)
                    .or_else(|| guarded.map(|_| self.unasked(identity, connection))),
                false => None,
            };
            let (access, path) = match (unseen, &request) {
                (Some(decision), _) if external && decision.verdict == Verdict::Audit => (decision, DataPath::External),
                (Some(decision), _) => (decision, DataPath::Kernel),
                _ if by_proxy && external => (connection, DataPath::External),
                (None, Some(request)) if by_proxy && (http || connection.verdict == Verdict::NeedsHttp) => (
                    self.authorize_request(source.identity, identity, target, request),
                    DataPath::Proxy,
                ),
                _ if by_proxy => (connection, DataPath::Proxy),
                _ => (connection, DataPath::Kernel),
            };
            let account = match self.account(identity) {
                Some(account) => format!("account {account}"),
                None => "no account".to_owned(),
            };
            let said = match access.rule.and_then(|rule| self.rule(rule)) {
                Some(rule) if unseen.is_some() => {
                    let denied = match access.verdict {
                        Verdict::Audit => "let through and reported (audit); else denied by",
                        _ => "denied by",
                    };
                    let looked_at = guarded.map(|reason| format!("for {reason}"));
                    let why = looked_at.as_deref().unwrap_or("which speaks of requests");
                    format!("{denied} {rule}, {why}: nobody sees them on this way")
                }
                Some(rule) if path == DataPath::External && access.verdict == Verdict::NeedsHttp => {
                    format!("{rule} lets connections through")
                }
                _ => self.say(access),
            };
            let place = candidate.place;
            steps.push(format!("{place}: {account}, target port {target}: {said}"));
            for class in &source.classes {
                let network = self.authorize_network(*class, candidate.class, input.protocol, target);
                if network.rule.is_some() {
                    steps.push(format!(
                        "- network, {} to {}: {}",
                        self.describe_class(*class),
                        self.describe_class(candidate.class),
                        self.say(network)
                    ));
                }
                let judged = Judged {
                    decision: network.and(access),
                    network,
                    access,
                    said: said.clone(),
                    // What the network denies is denied before it gets anywhere.
                    path: if network.verdict == Verdict::Deny {
                        DataPath::Kernel
                    } else {
                        path
                    },
                    proxied,
                };
                let strictness = |judged: &Judged<'_>| judged.decision.verdict.strictness();
                if strictest
                    .as_ref()
                    .is_none_or(|old| strictness(&judged) > strictness(old))
                {
                    strictest = Some(judged);
                }
            }
        }
        let Some(judged) = strictest else {
            return self.nowhere("nobody is there".to_owned(), steps);
        };
        let way = match (judged.path, judged.proxied) {
            (DataPath::External, Some(reason)) => format!("handed over: {reason}"),
            (DataPath::External, None) => "handed over: the foreign proxy decides about requests".to_owned(),
            (DataPath::Kernel, _) => "the kernel decides at connect".to_owned(),
            (DataPath::Proxy, Some(reason)) => format!("through the proxy: {reason}"),
            (DataPath::Proxy, None) => "through the proxy: an access rule speaks about requests".to_owned(),
        };
        let said = match judged.decision == judged.access {
            true => judged.said,
            false => self.say(judged.decision),
        };
        let object = |decision: Decision| {
            let object = decision.rule.and_then(|rule| self.rule(rule));
            object.map(|object| (**object).clone())
        };
        Explanation {
            why: format!("{said}; {way}"),
            verdict: judged.decision.verdict,
            rule: object(judged.decision),
            network: object(judged.network),
            access: object(judged.access),
            path: judged.path,
            steps,
        }
    }

    /// What becomes of a connection to a guarded port where nobody is there to look.
    fn unasked(&self, destination: Identity, connection: Decision) -> Decision {
        let audit = self.access.get(&destination).is_some_and(|policy| policy.audit);
        let verdict = if audit { Verdict::Audit } else { Verdict::Deny };
        Decision { verdict, ..connection }
    }

    fn say(&self, decision: Decision) -> String {
        let Some(object) = decision.rule.and_then(|rule| self.rule(rule)) else {
            return match decision.verdict {
                Verdict::Deny => "denied",
                _ => "allowed: no access rule has a say",
            }
            .to_owned();
        };
        let refusal = match &*object.kind {
            "MeshConfig" => format!("the default of {object}: no rule allows it"),
            "NetworkPolicy" => format!("{object}, which isolates: no NetworkPolicy allows it"),
            _ => format!("{object}: the request matches none of its routes"),
        };
        match decision.verdict {
            Verdict::Allow if object.kind == "MeshConfig" => format!("allowed by the default of {object}"),
            Verdict::Allow => format!("allowed by {object}"),
            Verdict::Audit => format!("let through and reported (audit); else denied by {refusal}"),
            Verdict::Deny => format!("denied by {refusal}"),
            Verdict::NeedsHttp => format!("{object} decides about each request"),
        }
    }

    /// A connection that reaches nobody; no rule decided.
    fn nowhere(&self, why: String, steps: Vec<String>) -> Explanation {
        Explanation {
            steps,
            verdict: Verdict::Deny,
            rule: None,
            network: None,
            access: None,
            path: DataPath::Kernel,
            why,
        }
    }
}

/// The request that is asked about; `None` where only a connection is.
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    fn of(input: &ExplainInput) -> Option<Self> {
        if input.method.is_none() && input.path.is_none() && input.headers.is_empty() {
            return None;
        }
        let path = input.path.as_deref().unwrap_or("/");
        Some(Self {
            method: input.method.clone().unwrap_or_else(|| "GET".to_owned()),
            path: path.split_once('?').map_or(path, |(path, _)| path).to_owned(),
            headers: input
                .headers
                .iter()
                .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
                .collect(),
        })
    }
}

impl HttpRequestView for Request {
    fn method(&self) -> &str {
        &self.method
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn each_value(&self, name: &str, visit: &mut dyn FnMut(Option<&str>)) {
        if let Some(value) = self.headers.get(name) {
            visit(Some(value));
        }
    }
}
