//! An Envoy that knows the same services: a cluster each, from a file (CDS), and a virtual host each in front of it.

use std::{fs, net::Ipv4Addr};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vm_test::{Lab, envoy};

use super::{
    START, at_rest,
    resources::{Size, TARGET_PORT},
};
use crate::bench::{memory::Held, peers};

const PORT: u16 = 9010;
const ORIGIN: u16 = 9001;

/// What it has in memory once it serves and rests.
///
/// # Errors
/// It does not start, or does not serve.
pub fn held(lab: &Lab, size: &Size) -> Result<Held> {
    let outside = envoy::foreign_cgroup(lab)?;
    let _origin = peers::origin(lab, outside.path(), ORIGIN)?;
    let clusters = lab.work().join("clusters.json");
    fs::write(&clusters, self::clusters(size).to_string()).context("write the clusters of Envoy")?;
    let config = json!({
        "node": {"id": "bench", "cluster": "bench"},
        "stats_config": {"stats_matcher": {"reject_all": true}},
        "dynamic_resources": {"cds_config": {"path_config_source": {"path": clusters}}},
        "static_resources": {"listeners": [peers::listener(PORT, &[], &hosts(size))]},
    });
    let started = peers::start_envoy(lab, outside.path(), PORT, &config)?;
    let running = peers::listening(started, PORT, START)?;
    at_rest(running.pid())?;
    let url = format!("http://127.0.0.1:{PORT}/");
    let words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "5", &url];
    let status = lab.outside(words)?.stdout;
    ensure!(status == "200", "Envoy answered {status:?}: {}", running.stderr());
    Held::at_rest(running.pid())
}

/// As CDS answers.
fn clusters(size: &Size) -> Value {
    let origin = ("origin".to_owned(), vec![Ipv4Addr::LOCALHOST], ORIGIN);
    let others = size.services().map(|(name, addresses)| (name, addresses, TARGET_PORT));
    let resources = others.chain([origin]).map(|(name, addresses, port)| {
        let mut cluster = peers::cluster_of(&name, &addresses, port);
        cluster["@type"] = "type.googleapis.com/envoy.config.cluster.v3.Cluster".into();
        cluster
    });
    json!({"resources": resources.collect::<Vec<_>>()})
}

/// A virtual host a service, and the origin for all others.
fn hosts(size: &Size) -> Vec<Value> {
    let services = size
        .services()
        .map(|(name, _)| peers::virtual_host(&name, &name, &name));
    services.chain([peers::virtual_host("all", "*", "origin")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_knows_every_service_and_endpoint() {
        let size = Size {
            services: 3,
            endpoints: 2,
        };
        let clusters = clusters(&size);
        let clusters = clusters["resources"].as_array().unwrap();
        assert_eq!((clusters.len(), hosts(&size).len()), (4, 4));
        let endpoints = &clusters[2]["load_assignment"]["endpoints"][0]["lb_endpoints"];
        let address = |index: usize| &endpoints[index]["endpoint"]["address"]["socket_address"];
        assert_eq!(address(0)["address"], "10.128.0.4");
        assert_eq!(address(1)["port_value"], 8080);
    }
}
