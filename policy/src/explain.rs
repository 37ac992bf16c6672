//! `weft explain`: which object decides about a connection or a request, and which way it goes.
//!
//! Every answer is taken from the same functions that decide about real traffic; this only tells the story.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::snapshot::{
    Account, Decision, HttpRequestView, Identity, ObjectRef, Protocol, Service, ServiceName, ServicePort, Snapshot,
    Verdict,
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
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What was looked at, in order, a sentence each.
    pub steps: Vec<String>,
    /// Of several endpoints that are decided about differently: the strictest.
    pub verdict: Verdict,
    /// The object that decided.
    pub rule: Option<ObjectRef>,
    pub path: DataPath,
    /// Why this verdict, on this path.
    pub why: String,
}

/// Whom a connection may reach: an identity on a target port, and for messages where.
type Candidate = (Identity, u16, String);

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
        let port = match &input.to {
            ExplainTarget::Service(name) => match self.services.get(name) {
                Some(service) => self.find_port(service, input, &mut steps),
                None => return self.nowhere(format!("there is no service {name}"), steps),
            },
            ExplainTarget::Address(address) => match self.vip(*address) {
                Some(service) => self.find_port(service, input, &mut steps),
                None => return self.explain_address(source, address.to_canonical(), input, steps),
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
        self.judge(source, candidates, port.proxied.as_deref(), port.http, input, steps)
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
        let mut reached: Vec<(&ServiceName, &ServicePort)> = Vec::new();
        if let Some(split) = &port.split {
            let per = if port.http { "request" } else { "connection" };
            let total: u64 = split.backends.iter().map(|backend| u64::from(backend.weight)).sum();
            steps.push(format!("{} splits per {per}", split.object));
            for backend in &split.backends {
                let found = self
                    .services
                    .get(&backend.service)
                    .zip(backend.port)
                    .and_then(|(s, i)| s.ports.get(i).map(|port| (&s.name, port)));
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
                reached.push((&service.name, port));
            }
        } else {
            reached.push((&service.name, port));
        }
        let mut candidates = Vec::new();
        for (name, port) in reached {
            for endpoint in &port.endpoints {
                let place = format!("{} ({}, service {name})", endpoint.address, endpoint.workload);
                candidates.push((endpoint.identity, endpoint.address.port(), place));
            }
            if port.pending {
                steps.push(format!(
                    "service {name}: no endpoint listens yet, callers wait in the proxy"
                ));
                let starting = port.targets.iter();
                candidates.extend(starting.map(|(identity, target)| (*identity, *target, "starting".to_owned())));
            }
        }
        candidates
    }

    fn explain_address(
        &self,
        source: Identity,
        address: IpAddr,
        input: &ExplainInput,
        mut steps: Vec<String>,
    ) -> Explanation {
        let key = (SocketAddr::new(address, input.port), input.protocol);
        if let Some(owner) = self.by_endpoint.get(&key) {
            steps.push(format!(
                "{} is an endpoint of service {}: {}",
                key.0, owner.service, owner.endpoint.workload
            ));
            let http = self
                .services
                .get(&owner.service)
                .and_then(|s| s.ports.get(owner.port))
                .is_some_and(|p| p.http);
            let candidate = (owner.endpoint.identity, input.port, key.0.to_string());
            return self.judge(source, vec![candidate], None, http, input, steps);
        }
        if let Some(identity) = self.listener(key.0, key.1) {
            let account = self.account(identity).map(Account::to_string).unwrap_or_default();
            steps.push(format!(
                "a workload of account {account} listens on {}; no service leads there",
                key.0
            ));
            return self.judge(
                source,
                vec![(identity, input.port, key.0.to_string())],
                None,
                false,
                input,
                steps,
            );
        }
        if address.is_loopback() {
            steps.push(format!("{} is on this machine and no workload's", key.0));
            return self.judge(
                source,
                vec![(Identity::UNKNOWN_LOCAL, input.port, key.0.to_string())],
                None,
                false,
                input,
                steps,
            );
        }
        steps.push(format!(
            "{} is neither a virtual IP nor an endpoint: it is outside the mesh",
            key.0
        ));
        self.judge(
            source,
            vec![(Identity::OUTSIDE, input.port, key.0.to_string())],
            None,
            false,
            input,
            steps,
        )
    }

    fn judge(
        &self,
        source: Identity,
        candidates: Vec<Candidate>,
        proxied: Option<&str>,
        http: bool,
        input: &ExplainInput,
        mut steps: Vec<String>,
    ) -> Explanation {
        let request = Request::of(input);
        let mut strictest: Option<(Decision, DataPath)> = None;
        let mut classes = BTreeSet::new();
        for (destination, target, place) in candidates {
            if !classes.insert((destination, target)) {
                continue;
            }
            let connection = self.authorize_connection(source, destination, input.protocol, target);
            let by_proxy =
                proxied.is_some() && connection.verdict != Verdict::Deny || connection.verdict == Verdict::NeedsHttp;
            let (decision, path) = match &request {
                Some(request) if by_proxy && (http || connection.verdict == Verdict::NeedsHttp) => (
                    self.authorize_request(source, destination, target, request),
                    DataPath::Proxy,
                ),
                _ if by_proxy => (connection, DataPath::Proxy),
                _ => (connection, DataPath::Kernel),
            };
            let account = match self.account(destination) {
                Some(account) => format!("account {account}"),
                None => "no account".to_owned(),
            };
            steps.push(format!(
                "{place}: {account}, target port {target}: {}",
                self.say(decision)
            ));
            let stricter = strictest
                .as_ref()
                .is_none_or(|(old, _)| rank(decision.verdict) > rank(old.verdict));
            if stricter {
                strictest = Some((decision, path));
            }
        }
        let Some((decision, path)) = strictest else {
            return self.nowhere("nobody is there".to_owned(), steps);
        };
        let way = match (path, proxied) {
            (DataPath::Kernel, _) => "the kernel decides at connect".to_owned(),
            (DataPath::Proxy, Some(reason)) => format!("through the proxy: {reason}"),
            (DataPath::Proxy, None) => "through the proxy: an access rule speaks about requests".to_owned(),
        };
        Explanation {
            why: format!("{}; {way}", self.say(decision)),
            verdict: decision.verdict,
            rule: decision.rule.and_then(|rule| self.rule(rule)).cloned(),
            path,
            steps,
        }
    }

    fn say(&self, decision: Decision) -> String {
        let Some(object) = decision.rule.and_then(|rule| self.rule(rule)) else {
            return match decision.verdict {
                Verdict::Deny => "denied",
                _ => "allowed: no access rule has a say",
            }
            .to_owned();
        };
        let by_default = object.kind == "MeshConfig";
        match (decision.verdict, by_default) {
            (Verdict::Allow, true) => format!("allowed by the default of {object}"),
            (Verdict::Allow, false) => format!("allowed by {object}"),
            (Verdict::Deny, true) => format!("denied by the default of {object}: no rule allows it"),
            (Verdict::Deny, false) => format!("denied: the request matches no route of {object}"),
            (Verdict::NeedsHttp, _) => format!("{object} decides about each request"),
        }
    }

    /// A connection that reaches nobody; no rule decided.
    fn nowhere(&self, why: String, steps: Vec<String>) -> Explanation {
        Explanation {
            steps,
            verdict: Verdict::Deny,
            rule: None,
            path: DataPath::Kernel,
            why,
        }
    }
}

fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Allow => 0,
        Verdict::NeedsHttp => 1,
        Verdict::Deny => 2,
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

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}
