//! The lab itself: what all other tests stand on.

use std::fs;

use anyhow::{Context, Result, ensure};
use vm_test::{Lab, Nginx, census, lab_test, need, process, runs::Counting};

#[test]
fn a_lab_has_a_loopback_of_its_own_and_sees_the_cgroup_file_system() {
    lab_test("lab", |lab| {
        let links = lab.outside(["ip", "-o", "link"])?.ok()?.stdout;
        ensure!(
            links.lines().count() == 1 && links.contains("lo:"),
            "only loopback: {links}"
        );
        let cgroup = lab.cgroup().display().to_string();
        lab.outside(["test", "-d", &cgroup])?.ok()?;
        Ok(())
    });
}

#[test]
fn the_entries_of_a_daemons_maps_are_counted() {
    lab_test("census", |lab| {
        lab.daemon()?;
        let count = |map: &str| census::entries(&lab.bpffs(), map);
        let before = count("workloads")?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        ensure!(count("workloads")? == before + 1, "{before} and one more");
        for map in census::MAPS {
            count(map)?;
        }
        ensure!(count("nothing").is_err(), "a map that is not there");
        Ok(())
    });
}

#[test]
fn the_runs_of_a_daemons_program_are_counted() {
    lab_test("runs", |lab| {
        lab.daemon()?;
        let counting = Counting::new()?;
        let runs = || counting.runs(&lab.bpffs(), "connect4");
        let before = runs()?;
        // Nobody listens there.
        let words = [lab.traffic()?, "connect".into(), "127.0.0.1:9".into()];
        lab.run("client").output(words)?.exits(1)?;
        let ran = runs()?.since(before);
        ensure!(ran.count == 1, "{ran:?}");
        ensure!(
            counting.runs(&lab.bpffs(), "nothing").is_err(),
            "a pin that is not there"
        );
        Ok(())
    });
}

#[test]
fn a_dropped_lab_takes_its_processes_cgroups_and_folders_along() -> Result<()> {
    if let Err(needs) = need::kernel() {
        need::skipped("lab", &needs);
        return Ok(());
    }
    let lab = Lab::new("drop")?;
    let nested = lab.cgroup().join("default/web/1");
    fs::create_dir_all(&nested).context("make a nested cgroup")?;
    let script = format!("echo 0 > {}/cgroup.procs; echo in; exec sleep 1000", nested.display());
    let mut sleeper = vm_test::Running::start(lab.command(["sh", "-c", &script]))?;
    sleeper.line(1)?;
    let (cgroup, folder, netns) = (lab.cgroup().to_path_buf(), lab.work(), lab.netns().path());
    drop(lab);
    for path in [cgroup, folder, netns] {
        ensure!(!path.exists(), "{} is left", path.display());
    }
    ensure!(!sleeper.is_running()?, "the process in its cgroup is left");
    Ok(())
}

#[test]
fn a_kept_lab_runs_on_until_its_script_removes_it() -> Result<()> {
    if let Err(needs) = need::kernel() {
        need::skipped("keep", &needs);
        return Ok(());
    }
    let lab = Lab::new("keep")?;
    lab.daemon()?;
    let pid = lab.daemon_pid()?;
    let (cgroup, folder, netns) = (lab.cgroup().to_path_buf(), lab.work(), lab.netns().path());
    let script = lab.keep()?;
    ensure!(
        std::path::Path::new("/proc").join(pid.to_string()).exists(),
        "the daemon goes on"
    );
    let mut remove = std::process::Command::new("sh");
    remove.arg(script);
    process::output(remove, process::BOUND)?.ok()?;
    for path in [cgroup, folder, netns] {
        ensure!(!path.exists(), "{} is left", path.display());
    }
    Ok(())
}
