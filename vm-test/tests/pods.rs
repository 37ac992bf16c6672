//! Workloads in network namespaces of their own.

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::Value;
use vm_test::{Pods, lab_test};

#[test]
fn the_accepting_end_in_another_namespace_knows_who_dialled() {
    lab_test("pods-conns", |lab| {
        let pods = Pods::new(lab)?;
        let pod = pods.pod(2)?;
        lab.daemon()?;
        let traffic = lab.traffic()?;
        let server = [&traffic, "serve-echo", "[::]:8080"];
        let words = pod.enter().into_iter().chain(server.map(str::to_owned));
        let mut server = lab.run("web").start(words)?;
        server.line(1)?;
        for address in pod.addresses() {
            let target = SocketAddr::new(address, 8080).to_string();
            lab.run("friend").output([&*traffic, "connect", &target])?.ok()?;
            let of = |event: &'static str| {
                let address = address.to_string();
                move |flow: &Value| flow["event"] == event && flow["destination"]["address"] == *address
            };
            let open = lab.flow("open", of("open"))?;
            ensure!(open["source"]["account"] == "friend", "{open}");
            lab.flow("close", of("close"))?;
            // Both ends are in the mesh: the dialling one reports, and the accepting one knows that it does.
            let twice: Vec<Value> = lab.flows()?.into_iter().filter(of("open")).collect();
            ensure!(twice.len() == 1, "reported by each end: {twice:?}");
        }
        Ok(())
    });
}
