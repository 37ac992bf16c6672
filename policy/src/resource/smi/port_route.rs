//! TCPRoute and UDPRoute: connections, by port.
//!
//! Up to v1alpha3 a TCPRoute has no fields: it means every port. UDPRoute came with v1alpha4.

use std::collections::BTreeSet;

use crate::resource::{Body, KindInfo, NameRule, Scope, Spec};

pub(crate) static TCP_ROUTE: KindInfo = KindInfo {
    group: super::SPECS,
    versions: &["v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"],
    kind: "TCPRoute",
    scope: Scope::Namespaced,
    name: NameRule::Subdomain,
    decode: |body| decode(body).map(Spec::TcpRoute),
};

pub(crate) static UDP_ROUTE: KindInfo = KindInfo {
    group: super::SPECS,
    versions: &["v1alpha4"],
    kind: "UDPRoute",
    scope: Scope::Namespaced,
    name: NameRule::Subdomain,
    decode: |body| decode(body).map(Spec::UdpRoute),
};

#[derive(Debug)]
pub struct PortRouteSpec {
    /// Name of its only match.
    pub name: Option<String>,
    /// `None`: every port.
    pub ports: Option<BTreeSet<u16>>,
}

fn decode(body: &mut Body<'_, '_>) -> Option<PortRouteSpec> {
    let every_port = PortRouteSpec {
        name: None,
        ports: None,
    };
    if body.is_version(&["v1alpha1", "v1alpha2"]) {
        return Some(every_port);
    }
    let Some(mut spec) = body.optional_spec() else {
        return Some(every_port);
    };
    let matches = if body.is_version(&["v1alpha3"]) {
        None
    } else {
        spec.optional("matches")
    };
    spec.finish();
    let Some(matches) = matches else {
        return Some(every_port);
    };
    let mut matches = matches.fields()?;
    let name = matches
        .optional("name")
        .and_then(|value| value.text())
        .map(str::to_owned);
    let list = match matches.optional("ports") {
        Some(list) => list.items()?,
        None => Vec::new(),
    };
    matches.finish();
    let ports: BTreeSet<u16> = list.iter().map(|value| value.port()).collect::<Option<_>>()?;
    Some(PortRouteSpec {
        name,
        ports: (!ports.is_empty()).then_some(ports),
    })
}
