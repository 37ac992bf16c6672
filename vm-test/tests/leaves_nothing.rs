//! After a lab with everything in it, the machine has the kernel objects, cgroups, namespaces and mounts it had before.
//!
//! A binary of its own with one test: nothing else of this run makes kernel objects meanwhile.

use anyhow::{Result, ensure};
use vm_test::{Hosts, Lab, Nginx, leak, need, resources};

#[test]
fn nothing_is_left_after_uninstall_kill_9_or_a_crash_of_the_test() -> Result<()> {
    if let Err(needs) = need::kernel() {
        need::skipped("leaves-nothing", &needs);
        return Ok(());
    }
    let before = leak::Snapshot::take()?;
    for ending in [End::Uninstalled, End::Killed, End::Dropped] {
        used_lab(ending)?;
        leak::nothing_since(&before)?;
    }
    used_hosts()?;
    leak::nothing_since(&before)
}

/// Two hosts on a switch, with daemons that still run when they are dropped.
fn used_hosts() -> Result<()> {
    let hosts = Hosts::new("leaves-nothing", 2)?;
    let [a, b] = hosts.all();
    a.daemon()?;
    b.daemon()?;
    let _web = b.nginx(Nginx::service("web").port(80, 8080))?;
    for address in b.addresses() {
        let url = format!("http://{}/", std::net::SocketAddr::new(address, 8080));
        let answer = a.run("client").curl(&url)?;
        ensure!(answer.http == 200, "{answer:?}");
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum End {
    /// Stopped and uninstalled by the operator.
    Uninstalled,
    /// The daemon was killed; the lab cleans up.
    Killed,
    /// The daemon still runs when the lab is dropped.
    Dropped,
}

fn used_lab(ending: End) -> Result<()> {
    let lab = Lab::new("leaves-nothing")?;
    let before = leak::Snapshot::take()?;
    lab.resource("split.yaml", &resources::split("s", "web", &[("web-v1", 1)]))?;
    lab.resource(
        "policy.yaml",
        &resources::service_policy("web-v1", &["acceleration: proxy"]),
    )?;
    lab.daemon()?;
    let now = leak::Snapshot::take()?;
    ensure!(
        now.has_kernel_objects() && !now.since(&before).is_empty(),
        "the snapshot must see what a daemon makes"
    );
    let web = lab.nginx(Nginx::service("web-v1").port(80, 8080))?;
    lab.run("client").curl("http://web-v1/")?;
    match ending {
        End::Uninstalled => {
            web.stop()?;
            lab.stop()?;
            lab.uninstall()?;
            leak::nothing_since(&before)?;
        }
        End::Killed => lab.kill9()?,
        End::Dropped => {}
    }
    Ok(())
}
