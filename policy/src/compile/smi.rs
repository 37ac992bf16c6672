//! SMI's words put into common ones: TrafficTargets become [`Grant`]s.

use std::collections::BTreeSet;

use super::{
    access::Grant,
    report::Report,
    sources::{Name, Sources},
};
use crate::{
    resource::{
        Object,
        smi::{PortRouteSpec, RouteKind, TargetRule, TrafficTargetSpec},
    },
    snapshot::{HttpMatch, Protocol},
};

/// What a TrafficTarget allows.
pub(super) struct Lowered<'a> {
    /// At most one for TCP (and HTTP) and one for UDP.
    pub grants: Vec<Grant<'a>>,
    /// References that lead nowhere, in words.
    pub missing: Vec<String>,
}

/// What the routes of one kind that a target names allow together.
struct Ports {
    /// `None`: every port.
    ports: Option<BTreeSet<u16>>,
}

/// Lowers one target.
///
/// Inside a kind of route any may match (OR). HTTPRouteGroups and TCPRoutes in one target must both match (AND): the
/// request one of the groups' matches, the port one of the routes'. What is missing never makes the rest allow more: a
/// kind that is named, but of which nothing is there, allows nothing.
pub(super) fn lower<'a>(
    object: &'a Object,
    spec: &'a TrafficTargetSpec,
    sources: &Sources<'a>,
    report: &mut Report,
) -> Lowered<'a> {
    let namespace = object.namespace();
    let mut missing = Vec::new();
    let mut dangling = |rule: &TargetRule, report: &mut Report| {
        let text = format!("{} {namespace}/{}", rule.kind.name(), rule.name.value);
        report.warn(
            object,
            &rule.name,
            format!("there is no {text}"),
            "define it, or correct the name",
        );
        missing.push(text);
    };
    let mut http: Option<Vec<HttpMatch>> = None;
    let mut tcp: Option<Option<Ports>> = None;
    let mut udp: Option<Option<Ports>> = None;
    let mut missing_matches = Vec::new();
    for rule in &spec.rules {
        let name: Name<'_> = (namespace, &rule.name.value);
        match rule.kind {
            RouteKind::Http => {
                let found = http.get_or_insert_default();
                match sources.http_groups.get(&name) {
                    Some(group) => found.extend(matches_of(object, rule, &group.matches, report, &mut missing_matches)),
                    None => dangling(rule, report),
                }
            }
            RouteKind::Tcp => {
                let found = tcp.get_or_insert_default();
                match sources.tcp_routes.get(&name) {
                    Some(route) => add_ports(found, object, rule, route, report, &mut missing_matches),
                    None => dangling(rule, report),
                }
            }
            RouteKind::Udp => {
                let found = udp.get_or_insert_default();
                match sources.udp_routes.get(&name) {
                    Some(route) => add_ports(found, object, rule, route, report, &mut missing_matches),
                    None => dangling(rule, report),
                }
            }
        }
    }
    missing.extend(missing_matches);

    let mut grants = Vec::new();
    let grant = |protocol, ports, http| Grant {
        object: &object.id,
        destination: &spec.destination.value,
        sources: spec.sources.iter().map(|source| &source.value).collect(),
        protocol,
        ports,
        only: spec.port,
        http,
    };
    let named_nothing_there = matches!(tcp, Some(None)) || http.as_ref().is_some_and(|matches| matches.is_empty());
    if (tcp.is_some() || http.is_some()) && !named_nothing_there {
        let ports = tcp.flatten().and_then(|found| found.ports);
        grants.push(grant(Protocol::Tcp, ports, http));
    }
    if let Some(Some(found)) = udp {
        grants.push(grant(Protocol::Udp, found.ports, None));
    }
    Lowered { grants, missing }
}

/// The matches of a group that a rule names: all of them if it names none.
pub(super) fn matches_of(
    object: &Object,
    rule: &TargetRule,
    matches: &[HttpMatch],
    report: &mut Report,
    missing: &mut Vec<String>,
) -> Vec<HttpMatch> {
    if rule.matches.is_empty() {
        return matches.to_vec();
    }
    let mut found = Vec::new();
    for wanted in &rule.matches {
        match matches.iter().find(|m| m.name == wanted.value) {
            Some(known) => found.push(known.clone()),
            None => missing_match(object, rule, wanted, report, missing),
        }
    }
    found
}

fn add_ports(
    found: &mut Option<Ports>,
    object: &Object,
    rule: &TargetRule,
    route: &PortRouteSpec,
    report: &mut Report,
    missing: &mut Vec<String>,
) {
    // A route has one match; a rule that names others only does not mean it.
    for wanted in rule
        .matches
        .iter()
        .filter(|wanted| Some(&wanted.value) != route.name.as_ref())
    {
        missing_match(object, rule, wanted, report, missing);
    }
    if !rule.matches.is_empty()
        && !rule
            .matches
            .iter()
            .any(|wanted| Some(&wanted.value) == route.name.as_ref())
    {
        return;
    }
    let merged = match (found.take(), &route.ports) {
        (Some(Ports { ports: None }), _) | (_, None) => None,
        (Some(Ports { ports: Some(mut ports) }), Some(more)) => {
            ports.extend(more);
            Some(ports)
        }
        (None, Some(ports)) => Some(ports.clone()),
    };
    *found = Some(Ports { ports: merged });
}

fn missing_match(
    object: &Object,
    rule: &TargetRule,
    wanted: &crate::decode::Located<String>,
    report: &mut Report,
    missing: &mut Vec<String>,
) {
    let text = format!("match `{}` of {} {}", wanted.value, rule.kind.name(), rule.name.value);
    report.warn(
        object,
        wanted,
        format!("there is no {text}"),
        "define it, or correct the name",
    );
    missing.push(text);
}
