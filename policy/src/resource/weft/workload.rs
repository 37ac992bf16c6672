//! Workload: a running instance that nobody registers, written by hand: a peer on another machine, a process outside, or
//! with `capture` a pod of this machine, whose processes then are in the mesh.
//!
//! Services pick it by the labels in its metadata. It counts as ready as long as it is written.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Component, Path},
    sync::Arc,
};

use crate::{
    decode::{Located, Value, shorten},
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

/// Longest path that Linux takes (PATH_MAX).
const MAX_PATH: usize = 4096;

/// The account of a workload that does not say one, as in Kubernetes.
const DEFAULT_ACCOUNT: &str = "default";

#[derive(Debug)]
pub struct WorkloadSpec {
    /// Each once. At least one, unless it is captured: a client need not be reached.
    pub addresses: Arc<[IpAddr]>,
    /// Where service ports are served that it does not serve on the service's targetPort.
    pub ports: Box<[WorkloadPort]>,
    pub service_account: Arc<str>,
    /// Few have one.
    pub capture: Option<Box<CaptureSpec>>,
}

/// Whose processes these are. Paths of this machine, as written; nobody has looked whether they are there.
#[derive(Debug)]
pub struct CaptureSpec {
    /// Directory of its cgroup: below the cgroup2 mount, or relative to the captured cgroup.
    pub cgroup: Located<String>,
    /// File that stands for its network namespace; `None`: the daemon's own.
    pub netns: Option<Located<String>>,
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
    let capture = spec.optional("capture").map(|value| capture(value));
    let one = spec.optional("address");
    let several = spec.optional("addresses");
    let addresses = match (one, several) {
        (Some(value), None) => address(&value).map(|address| [address].into()),
        (None, Some(list)) => addresses(&list),
        (Some(value), Some(_)) => {
            value.error("both `address` and `addresses` are written", "keep `addresses`");
            None
        }
        (None, None) if capture.is_some() => Some(Arc::default()),
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
        None => Some(Box::default()),
    };
    let account = match spec.optional("serviceAccount") {
        Some(value) => value.dns_subdomain(),
        None => Some(DEFAULT_ACCOUNT),
    };
    let cx = spec.value.cx;
    spec.finish();
    Some(Spec::Workload(WorkloadSpec {
        addresses: addresses?,
        ports: ports?,
        service_account: cx.shared_text(account?),
        capture: match capture {
            Some(capture) => Some(Box::new(capture?)),
            None => None,
        },
    }))
}

fn capture(value: Value<'_>) -> Option<CaptureSpec> {
    let mut fields = value.fields()?;
    let cgroup = fields.required("cgroup").and_then(|value| path(&value));
    let netns = fields.optional("netns").map(|value| {
        let found = path(&value)?;
        if Path::new(&found.value).is_absolute() {
            return Some(found);
        }
        value.error(
            format!("`{}` is no absolute path", shorten(&found.value)),
            "write the file of the namespace, /run/netns/NAME or /proc/PID/ns/net",
        );
        None
    });
    fields.finish();
    Some(CaptureSpec {
        cgroup: cgroup?,
        netns: match netns {
            Some(netns) => Some(netns?),
            None => None,
        },
    })
}

/// A path without turns.
fn path(value: &Value<'_>) -> Option<Located<String>> {
    let text = value.text()?;
    let straight = Path::new(text)
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if text.is_empty() || text.len() > MAX_PATH || text.contains('\0') || !straight {
        value.error(
            format!("`{}` is no path that can be used here", shorten(text)),
            "write it without `.`, `..` and NUL, at most 4096 bytes",
        );
        return None;
    }
    Some(value.locate(text.to_owned()))
}

fn addresses(list: &Value<'_>) -> Option<Arc<[IpAddr]>> {
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

fn ports(list: &Value<'_>) -> Option<Box<[WorkloadPort]>> {
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
