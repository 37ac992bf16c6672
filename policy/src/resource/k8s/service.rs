//! `v1` Service: a name and a virtual IP in front of workloads.

use std::collections::BTreeSet;

use crate::{
    decode::{Fields, Value, shorten},
    labels::Labels,
    names,
    resource::{Body, KindInfo, NameRule, Scope, Spec},
    snapshot::{AppProtocol, Protocol},
};

pub(crate) static SERVICE: KindInfo = KindInfo {
    group: "",
    versions: &["v1"],
    kind: "Service",
    scope: Scope::Namespaced,
    name: NameRule::Label,
    decode,
};

#[derive(Debug)]
pub struct ServiceSpec {
    /// Labels that a workload must have to belong to it; empty: only workloads that name the service join it.
    pub selector: Labels,
    /// Empty: those of the workloads that join it.
    pub ports: Vec<ServicePortSpec>,
}

#[derive(Debug, Clone)]
pub struct ServicePortSpec {
    pub name: Option<String>,
    pub port: u16,
    /// Where workloads listen that do not say otherwise.
    pub target_port: u16,
    pub protocol: Protocol,
    pub app: AppProtocol,
}

/// Words of `appProtocol` and first parts of port names (`http`, `http-admin`), and what they declare.
const APP_PROTOCOLS: &[(&str, AppProtocol)] = &[
    ("http", AppProtocol::Http),
    ("http2", AppProtocol::Http2),
    ("h2c", AppProtocol::Http2),
    ("kubernetes.io/h2c", AppProtocol::Http2),
    ("kubernetes.io/ws", AppProtocol::Http),
    ("ws", AppProtocol::Http),
    ("grpc", AppProtocol::Grpc),
    ("grpc-web", AppProtocol::Http),
    ("https", AppProtocol::Opaque),
    ("tls", AppProtocol::Opaque),
    ("tcp", AppProtocol::Opaque),
    ("udp", AppProtocol::Opaque),
    ("redis", AppProtocol::Opaque),
    ("mysql", AppProtocol::Opaque),
    ("mongo", AppProtocol::Opaque),
    ("postgres", AppProtocol::Opaque),
    ("postgresql", AppProtocol::Opaque),
    ("amqp", AppProtocol::Opaque),
    ("kafka", AppProtocol::Opaque),
    ("kubernetes.io/wss", AppProtocol::Opaque),
];

fn decode(body: &mut Body<'_, '_>) -> Option<Spec> {
    let mut spec = body.spec()?;
    let selector = spec
        .optional("selector")
        .and_then(|value| value.labels())
        .unwrap_or_default();
    let ports = decode_ports(&mut spec);
    type_of(&mut spec);
    if let Some(value) = spec.optional("clusterIP")
        && value.node.as_text() == Some("None")
    {
        value.warn("headless services get a virtual IP all the same", "remove the line");
    }
    // What an API server adds; none of it changes what a node's mesh does.
    spec.tolerate(&[
        "clusterIPs",
        "ipFamilies",
        "ipFamilyPolicy",
        "internalTrafficPolicy",
        "externalTrafficPolicy",
        "allocateLoadBalancerNodePorts",
        "healthCheckNodePort",
        "loadBalancerIP",
        "loadBalancerClass",
        "loadBalancerSourceRanges",
        "publishNotReadyAddresses",
        "trafficDistribution",
    ]);
    if let Some(value) = spec.optional("externalIPs") {
        value.warn("external IPs are not served by the mesh", "remove the line");
    }
    if let Some(value) = spec.optional("sessionAffinity")
        && value.node.as_text() != Some("None")
    {
        value.warn("session affinity has no effect here", "write `sessionAffinity: None`");
    }
    spec.tolerate(&["sessionAffinityConfig"]);
    spec.finish();
    Some(Spec::Service(ServiceSpec {
        selector,
        ports: ports?,
    }))
}

fn type_of(spec: &mut Fields<'_>) {
    let Some(value) = spec.optional("type") else { return };
    match value.text() {
        None | Some("ClusterIP") => {}
        Some("NodePort" | "LoadBalancer") => {
            value.warn(
                "only the inner side of this service is served: name and virtual IP",
                "write `type: ClusterIP`",
            );
        }
        Some("ExternalName") => value.error("services of type ExternalName are not supported", "use the name itself"),
        Some(other) => value.error(format!("unknown type `{}`", shorten(other)), "write `type: ClusterIP`"),
    }
    spec.tolerate(&["externalName"]);
}

fn decode_ports(spec: &mut Fields<'_>) -> Option<Vec<ServicePortSpec>> {
    let Some(list) = spec.optional("ports") else {
        return Some(Vec::new());
    };
    let mut ports = Vec::new();
    let mut whole = true;
    let mut numbers = BTreeSet::new();
    let mut names = BTreeSet::new();
    for item in list.items()? {
        let Some(port) = decode_port(item.clone()) else {
            whole = false;
            continue;
        };
        if !numbers.insert((port.port, port.protocol)) {
            item.error(
                format!("port {}/{} is listed twice", port.port, port.protocol),
                "keep one of them",
            );
        }
        if let Some(name) = &port.name
            && !names.insert(name.clone())
        {
            item.error(format!("two ports are named `{name}`"), "give each its own name");
        }
        ports.push(port);
    }
    ports.shrink_to_fit();
    whole.then_some(ports)
}

fn decode_port(item: Value<'_>) -> Option<ServicePortSpec> {
    let mut fields = item.fields()?;
    let name = fields
        .optional("name")
        .and_then(|value| value.dns_label())
        .map(str::to_owned);
    let port = fields.required("port").and_then(|value| value.port());
    let target = match fields.optional("targetPort") {
        None => port,
        Some(value) if value.node.as_text().is_some() => {
            value.error("named target ports are not supported", "write the port's number");
            None
        }
        Some(value) => value.port(),
    };
    let protocol = protocol(&mut fields);
    let declared = fields.optional("appProtocol").and_then(|value| declared(&value));
    fields.tolerate(&["nodePort"]);
    fields.finish();
    let protocol = protocol?;
    let app = match (protocol, declared) {
        (Protocol::Udp, _) => AppProtocol::Opaque,
        (Protocol::Tcp, Some(app)) => app,
        (Protocol::Tcp, None) => name.as_deref().map_or(AppProtocol::Unknown, by_name),
    };
    Some(ServicePortSpec {
        name,
        port: port?,
        target_port: target?,
        protocol,
        app,
    })
}

/// `protocol: TCP|UDP`, TCP if it is not said.
pub(crate) fn protocol(fields: &mut Fields<'_>) -> Option<Protocol> {
    match fields.optional("protocol") {
        None => Some(Protocol::Tcp),
        Some(value) => value.choice(&[("TCP", Protocol::Tcp), ("UDP", Protocol::Udp)]),
    }
}

fn declared(value: &Value<'_>) -> Option<AppProtocol> {
    let word = value.text()?.to_ascii_lowercase();
    if let Some((_, app)) = APP_PROTOCOLS.iter().find(|(known, _)| *known == word) {
        return Some(*app);
    }
    if let Some(near) = names::nearest(&word, APP_PROTOCOLS.iter().map(|(known, _)| *known)) {
        value.warn(
            format!("`{}` is not parsed: its bytes are opaque", shorten(&word)),
            format!("did you mean `{near}`?"),
        );
    }
    Some(AppProtocol::Opaque)
}

fn by_name(name: &str) -> AppProtocol {
    APP_PROTOCOLS
        .iter()
        .filter(|(word, _)| name == *word || name.strip_prefix(word).is_some_and(|rest| rest.starts_with('-')))
        .max_by_key(|(word, _)| word.len())
        .map_or(AppProtocol::Unknown, |(_, app)| *app)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_names_declare_the_protocol() {
        for (name, app) in [
            ("http", AppProtocol::Http),
            ("http-admin", AppProtocol::Http),
            ("http2-x", AppProtocol::Http2),
            ("httpx", AppProtocol::Unknown),
            ("grpc", AppProtocol::Grpc),
            ("grpc-web", AppProtocol::Http),
            ("tcp-thing", AppProtocol::Opaque),
            ("web", AppProtocol::Unknown),
        ] {
            assert_eq!(by_name(name), app, "{name}");
        }
    }
}
