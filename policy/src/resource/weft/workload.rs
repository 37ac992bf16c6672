//! Workload: a running instance that nobody registers, written by hand: a peer on another machine, a process outside.
//!
//! Services pick it by the labels in its metadata. It counts as ready as long as it is written.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    decode::{Value, shorten},
    resource::{Body, KindInfo, NameRule, Scope, Spec, k8s},
    snapshot::Protocol,
};

pub(crate) static WORKLOAD: KindInfo = KindInfo {
    group: super::GROUP,
    versions: &["v1alpha1"],
    kind: "Workload",
    scope: Scope::Namespaced,
    name: NameRule::Subdomain,
    decode,
};

/// The account of a workload that does not say one, as in Kubernetes.
const DEFAULT_ACCOUNT: &str = "default";

#[derive(Debug)]
pub struct WorkloadSpec {
    /// At least one, each once.
    pub addresses: Vec<IpAddr>,
    /// Where service ports are served that it does not serve on the service's targetPort.
    pub ports: Vec<WorkloadPort>,
    pub service_account: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkloadPort {
    /// Port of the service.
    pub port: u16,
    /// Where the workload listens for it.
    pub target_port: u16,
    pub protocol: Protocol,
}

fn decode(body: &mut Body<'_, '_>) -> Option<Spec> {
    let mut spec = body.spec()?;
    let one = spec.optional("address");
    let several = spec.optional("addresses");
    let addresses = match (one, several) {
        (Some(value), None) => address(&value).map(|address| vec![address]),
        (None, Some(list)) => addresses(&list),
        (Some(value), Some(_)) => {
            value.error("both `address` and `addresses` are written", "keep `addresses`");
            None
        }
        (None, None) => {
            spec.value.error(
                "the field `address` is missing",
                "add `address: 192.0.2.1`, or `addresses: [...]`",
            );
            None
        }
    };
    let ports = match spec.optional("ports") {
        Some(list) => ports(&list),
        None => Some(Vec::new()),
    };
    let account = match spec.optional("serviceAccount") {
        Some(value) => value.dns_subdomain(),
        None => Some(DEFAULT_ACCOUNT),
    };
    spec.finish();
    Some(Spec::Workload(WorkloadSpec {
        addresses: addresses?,
        ports: ports?,
        service_account: account?.to_owned(),
    }))
}

fn addresses(list: &Value<'_>) -> Option<Vec<IpAddr>> {
    let items = list.items()?;
    if items.is_empty() {
        list.error("a workload without an address", "add one");
        return None;
    }
    let mut seen = BTreeSet::new();
    items
        .iter()
        .map(|item| {
            let found = address(item)?;
            if seen.insert(found) {
                return Some(found);
            }
            item.error(format!("{found} is listed twice"), "keep one of them");
            None
        })
        .collect()
}

fn address(value: &Value<'_>) -> Option<IpAddr> {
    let text = value.text()?;
    match text.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(address) if address.is_unspecified() || address.is_multicast() => {
            value.error(
                format!("{address} is no address of a machine"),
                "write the one to connect to",
            );
            None
        }
        Ok(address) => Some(address),
        Err(_) => {
            value.error(
                format!("`{}` is no IP address", shorten(text)),
                "write it as 192.0.2.1 or 2001:db8::1",
            );
            None
        }
    }
}

fn ports(list: &Value<'_>) -> Option<Vec<WorkloadPort>> {
    let mut seen = BTreeSet::new();
    list.items()?
        .into_iter()
        .map(|item| {
            let at = item.clone();
            let mut fields = item.fields()?;
            let port = fields.required("port").and_then(|value| value.port());
            let target_port = match fields.optional("targetPort") {
                Some(value) => value.port(),
                None => port,
            };
            let protocol = k8s::protocol(&mut fields);
            fields.finish();
            let found = WorkloadPort {
                port: port?,
                target_port: target_port?,
                protocol: protocol?,
            };
            if seen.insert((found.port, found.protocol)) {
                return Some(found);
            }
            at.error(
                format!("port {}/{} is listed twice", found.port, found.protocol),
                "keep one of them",
            );
            None
        })
        .collect()
}
