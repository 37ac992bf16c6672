//! Numbers of the kernel as the names that events and metrics carry.

use std::{net::IpAddr, sync::Arc};

use weft_abi::EdgeKey;
use weft_adapters::{Destination, Peer};
use weft_policy::{Identity, ObjectRef, RuleId};

use super::engine::InForce;

/// Stands in the names of a client or server that is not captured.
pub const UNKNOWN: &str = "unknown";
/// Source of the connections that our proxy makes to servers. Without namespace, as no service can be.
pub const PROXY: &str = "weft-proxy";
/// Both ends of what the kernel's table of edges had no room for.
pub const OVERFLOW: &str = "overflow";

/// The name of an identity that is no workload's but has one.
fn special(identity: u32) -> Option<&'static str> {
    match identity {
        weft_abi::identity::PROXY => Some(PROXY),
        EdgeKey::OVERFLOW => Some(OVERFLOW),
        _ => None,
    }
}

impl InForce {
    /// The peer that an identity stands for; its service is not known by identity alone.
    pub fn peer(&self, identity: u32) -> Arc<Peer> {
        if let Some(name) = special(identity) {
            return Arc::new(Peer {
                namespace: String::new(),
                service: Some(name.to_owned()),
                account: UNKNOWN.to_owned(),
            });
        }
        let (namespace, account) = match self.snapshot.account(Identity(identity)) {
            Some(account) => (account.namespace.clone(), account.name.clone()),
            None => (UNKNOWN.to_owned(), UNKNOWN.to_owned()),
        };
        Arc::new(Peer {
            namespace,
            service: None,
            account,
        })
    }

    /// The workload whose cgroup it is.
    pub fn peer_in(&self, cgroup: u64) -> Option<Arc<Peer>> {
        let workload = self.snapshot.by_cgroup.get(&cgroup)?;
        Some(Arc::new(Peer {
            namespace: workload.namespace.to_string(),
            service: workload.service.as_deref().map(str::to_owned),
            account: workload.account.to_string(),
        }))
    }

    /// The destination as the kernel saw it: service port, identity, and the address that was dialled.
    pub fn destination(&self, service: u32, identity: u32, address: IpAddr, port: u16) -> Arc<Destination> {
        if identity == EdgeKey::OVERFLOW {
            return Arc::new(Destination {
                namespace: String::new(),
                service: Some(OVERFLOW.to_owned()),
                account: None,
                address,
                port,
            });
        }
        let account = self.snapshot.account(Identity(identity));
        let service = self.ports.get(&service).map(|(name, _)| name.clone());
        Arc::new(Destination {
            namespace: service
                .as_ref()
                .map(|service| service.namespace.to_string())
                .or_else(|| account.map(|account| account.namespace.clone()))
                .unwrap_or_else(|| UNKNOWN.to_owned()),
            service: service.map(|service| service.name.to_string()),
            account: account.map(|account| account.name.clone()),
            address,
            port,
        })
    }

    /// The object behind a rule number; 0 is none.
    pub fn rule(&self, rule: u32) -> Option<Arc<ObjectRef>> {
        self.snapshot.rule(RuleId(rule)).cloned()
    }
}
