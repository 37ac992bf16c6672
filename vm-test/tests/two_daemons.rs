//! Two daemons on one machine, with folders, cgroups and network namespaces of their own, do not see each other.

use anyhow::{Result, ensure};
use vm_test::{Lab, Nginx, curl, lab_test, poll, process, resources};

#[test]
fn two_daemons_mesh_their_own_workloads_only() {
    lab_test("one", |one| {
        let other = Lab::new("other")?;
        one.daemon()?;
        other.daemon()?;
        let _web_of_one = one.nginx(Nginx::service("web").port(80, 8080).says("one"))?;
        let _web_of_other = other.nginx(Nginx::service("web").port(80, 8080).says("other"))?;
        let _only = other.nginx(Nginx::service("only").port(80, 8090))?;
        for (lab, body) in [(one, "one\n"), (&other, "other\n")] {
            let answer = lab.run("client").curl("http://web/")?;
            ensure!(answer.body == body, "{answer:?}");
        }
        let foreign = one.run("client").curl("http://only/")?;
        ensure!(foreign.code == curl::COULD_NOT_RESOLVE, "{foreign:?}");

        one.resource("mesh.yaml", resources::DENY)?;
        poll::until("the first mesh to deny", || {
            let answer = one.run("client").curl("http://web/")?;
            ensure!(answer.code == curl::COULD_NOT_CONNECT, "{answer:?}");
            Ok(())
        })?;
        let answer = other.run("client").curl("http://web/")?;
        ensure!(answer.http == 200, "the second mesh is open: {answer:?}");

        one.stop()?;
        one.uninstall()?;
        still_meshed(&other)
    });
}

fn still_meshed(lab: &Lab) -> Result<()> {
    let answer = lab.run("client").curl("http://web/")?;
    ensure!(
        answer.http == 200 && answer.remote.starts_with("240.240."),
        "uninstalling the other: {answer:?}"
    );
    Ok(())
}

#[test]
fn a_second_daemon_on_the_same_kernel_side_is_refused_and_changes_nothing() {
    lab_test("same-pins", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let other = lab.work().join("other-state").display().to_string();
        let (bpffs, cgroup) = (lab.bpffs().display().to_string(), lab.cgroup().display().to_string());
        let words = ["daemon", "--state-dir", &other, "--bpffs", &bpffs, "--cgroup", &cgroup];
        let mut command = lab.command([lab.weft_binary().display().to_string()]);
        command.args(words);
        let refused = process::output(command, poll::PATIENCE)?;
        ensure!(
            refused.code == 1
                && refused
                    .stderr
                    .lines()
                    .last()
                    .is_some_and(|line| line.contains("in use")),
            "{}: {}",
            refused.code,
            refused.stderr
        );
        still_meshed(lab)
    });
}
