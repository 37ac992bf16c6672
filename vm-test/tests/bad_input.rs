//! Bad input: refused by object, told with its place, survived.

use std::{
    fs::{self, File},
    io::Write,
};

use anyhow::{Context, Result, ensure};
use vm_test::{Lab, Nginx, curl, lab_test, poll, process, resources};

/// Puts `yaml` into `file` beside a policy that denies, and waits until status tells of `told`; then the daemon is the
/// same, the policy holds, and a good object in a file of its own still gets in.
fn survives(lab: &Lab, file: &str, yaml: &[u8], told: &str) -> Result<()> {
    let pid = lab.daemon_pid()?;
    fs::write(lab.resources().join(file), yaml).with_context(|| format!("write {file}"))?;
    poll::until(&format!("status to tell of {told} in {file}"), || {
        let status = lab.status()?;
        let diagnostics = status["diagnostics"].to_string();
        ensure!(
            diagnostics.contains(file) && diagnostics.contains(told),
            "{diagnostics}"
        );
        Ok(())
    })?;
    still_denies(lab)?;
    ensure!(
        lab.daemon_lives()? && lab.daemon_pid()? == pid,
        "the daemon is the same"
    );
    let good = file.replace('.', "-");
    lab.resource(
        "good.yaml",
        &resources::service(&format!("good-{}", good.trim_end_matches("-yaml")), 80, "http"),
    )?;
    poll::until("a good object to get in", || {
        let status = lab.status()?["services"].to_string();
        ensure!(status.contains("good-"), "{status}");
        Ok(())
    })?;
    lab.remove_resource("good.yaml")?;
    lab.remove_resource(file)?;
    poll::until("status to forget it", || {
        let diagnostics = lab.status()?["diagnostics"].to_string();
        ensure!(!diagnostics.contains(file), "{diagnostics}");
        Ok(())
    })
}

fn still_denies(lab: &Lab) -> Result<()> {
    let answer = lab.run("client").curl("http://web/")?;
    ensure!(
        answer.code == curl::COULD_NOT_CONNECT,
        "the last good policy must hold: {answer:?}"
    );
    Ok(())
}

/// A daemon, `web` behind nginx, and a policy that denies.
fn denying(lab: &Lab) -> Result<vm_test::Server> {
    lab.resource("mesh.yaml", resources::DENY)?;
    lab.daemon()?;
    let web = lab.nginx(Nginx::service("web").port(80, 8080))?;
    poll::until("the mesh to deny", || still_denies(lab))?;
    Ok(web)
}

#[test]
fn every_kind_of_bad_object_is_refused_by_itself() {
    lab_test("bad-objects", |lab| {
        let _web = denying(lab)?;
        let split_of_nothing = resources::split("nothing", "web", &[("web-v1", 0)]);
        let dangling = resources::allow("dangling", "client", "web", ("HTTPRouteGroup", "missing-group"));
        let double = resources::service("twice", 80, "http").repeat(2);
        let cases: [(&str, &str, &str); 7] = [
            (
                "kind.yaml",
                "apiVersion: weft.mesh/v1alpha1\nkind: Tapestry\nmetadata: {name: x}\n",
                "Tapestry",
            ),
            (
                "field.yaml",
                "apiVersion: weft.mesh/v1alpha1\nkind: MeshConfig\nmetadata: {name: x, namespace: y}\nspec: {acessDefault: deny}\n",
                "acessDefault",
            ),
            ("regex.yaml", &resources::route("bad", "/(", &["GET"]), "pathRegex"),
            ("dangling.yaml", &dangling, "missing-group"),
            ("double.yaml", &double, "twice"),
            ("zero.yaml", &split_of_nothing, "zero"),
            ("unparseable.yaml", "spec: [\nkind: }", "unparseable.yaml"),
        ];
        for (file, yaml, told) in cases {
            survives(lab, file, yaml.as_bytes(), told).with_context(|| format!("case {file}"))?;
        }
        Ok(())
    });
}

#[test]
fn binary_garbage_and_a_huge_file_are_refused_whole() {
    lab_test("garbage", |lab| {
        let _web = denying(lab)?;
        let mut garbage = vec![0; 4096];
        vm_test::pattern::Pattern::default().fill(&mut garbage);
        survives(lab, "garbage.yaml", &garbage, "garbage.yaml")?;

        // Written aside, so that the daemon sees it whole.
        let aside = lab.work().join("huge.yaml");
        let mut file = File::create(&aside).context("make a huge file")?;
        let line = "- 0123456789012345678901234567890123456789012345678901234567890\n".repeat(16 * 1024);
        for _ in 0..100 {
            file.write_all(line.as_bytes()).context("fill it")?;
        }
        drop(file);
        fs::rename(&aside, lab.resources().join("huge.yaml")).context("put it into the resources")?;
        poll::until("status to tell of the huge file", || {
            let diagnostics = lab.status()?["diagnostics"].to_string();
            ensure!(diagnostics.contains("huge.yaml"), "{diagnostics}");
            Ok(())
        })?;
        still_denies(lab)?;
        ensure!(lab.daemon_lives()?, "the daemon lives");
        Ok(())
    });
}

#[test]
fn a_bad_edit_keeps_the_last_good_version_and_a_deleted_file_takes_its_objects_along() {
    lab_test("last-good", |lab| {
        let _web = denying(lab)?;
        lab.resource("mesh.yaml", &resources::DENY.replace("deny", "dney"))?;
        poll::until("status to tell of the edit", || {
            let told = &lab.status()?["diagnostics"][0];
            ensure!(
                told["file"].as_str().is_some_and(|file| file.ends_with("/mesh.yaml")),
                "{told}"
            );
            ensure!(told["line"] == 4 && told["field"] == "spec.accessDefault", "{told}");
            Ok(())
        })?;
        still_denies(lab)?;
        lab.remove_resource("mesh.yaml")?;
        poll::until("the mesh to be open again", || {
            let answer = lab.run("client").curl("http://web/")?;
            ensure!(answer.http == 200, "{answer:?}");
            Ok(())
        })
    });
}

#[test]
fn a_file_that_breaks_while_no_daemon_runs_keeps_its_last_good_version() {
    lab_test("restart-broken", |lab| {
        let _web = denying(lab)?;
        lab.kill9()?;
        lab.resource("mesh.yaml", &resources::DENY.replace("deny", "dney"))?;
        lab.daemon()?;
        still_denies(lab)
    });
}

#[test]
fn a_folder_that_vanishes_removes_nothing_and_is_watched_again_when_it_is_back() {
    lab_test("folder", |lab| {
        let _web = denying(lab)?;
        let aside = lab.work().join("resources-aside");
        fs::rename(lab.resources(), &aside).context("move the resources away")?;
        poll::until("status to tell of the folder", || {
            let degraded = lab.status()?["degraded"].to_string();
            ensure!(degraded.contains("folder cannot be read"), "{degraded}");
            Ok(())
        })?;
        still_denies(lab)?;
        fs::rename(&aside, lab.resources()).context("move the resources back")?;
        lab.resource("mesh.yaml", resources::ALLOW)?;
        poll::until("an edit in the folder that is back to hold", || {
            let answer = lab.run("client").curl("http://web/")?;
            ensure!(answer.http == 200, "{answer:?}");
            Ok(())
        })
    });
}

/// The daemon must end by itself, with a code, in one line that has `words`.
fn refuses(lab: &Lab, flags: &[&str], words: &[&str]) -> Result<()> {
    let output = lab.daemon_refused(flags)?;
    let said = output.stderr.trim();
    let last = said.lines().last().unwrap_or_default();
    ensure!(output.code != 0 && output.code < 126, "{output:?}");
    ensure!(
        words.iter().all(|word| last.contains(word)),
        "one line with {words:?}, said:\n{said}"
    );
    ensure!(!said.contains("panicked"), "{said}");
    Ok(())
}

/// The lab's own flags with another cgroup: a flag given twice is a usage error.
fn refuses_cgroup(lab: &Lab) -> Result<()> {
    let missing = lab.cgroup().join("there-is-none").display().to_string();
    let mut command = lab.command([lab.weft_binary().display().to_string()]);
    command
        .arg("daemon")
        .arg("--state-dir")
        .arg(lab.state())
        .arg("--bpffs")
        .arg(lab.bpffs());
    command.arg("--cgroup").arg(&missing);
    let output = process::output(command, poll::PATIENCE)?;
    ensure!(
        output.code != 0 && output.stderr.contains("there-is-none"),
        "{output:?}"
    );
    ensure!(output.stderr.trim().lines().count() == 1, "one line: {}", output.stderr);
    Ok(())
}

#[test]
fn what_keeps_a_daemon_from_starting_is_told_in_one_line() {
    lab_test("refusals", |lab| {
        refuses_cgroup(lab)?;
        let mut squatter =
            vm_test::Running::start(lab.command([lab.traffic()?, "serve-echo".into(), "127.0.0.1:15001".into()]))?;
        squatter.line(1)?;
        refuses(lab, &[], &["15001"])?;
        drop(squatter);
        lab.daemon()?;
        let state = lab.state().display().to_string();
        refuses(lab, &[], &[&state])?;
        ensure!(lab.daemon_lives()?, "the first one is not disturbed");
        lab.status()?;
        Ok(())
    });
}

/// The file that virtual addresses are kept in cannot be written.
#[test]
fn what_cannot_come_into_force_is_not_stored_and_the_next_daemon_starts() {
    lab_test("unpublished", |lab| {
        lab.daemon()?;
        lab.apply(&resources::service("first", 80, "http"))?;
        let in_the_way = lab.state().join("allocations.json.new");
        fs::create_dir(&in_the_way).context("put a folder in the way")?;
        let second = lab.work().join("second.yaml");
        fs::write(&second, resources::service("second", 80, "http")).context("write a file to apply")?;
        let refused = lab.weft(["apply", "-f", &second.display().to_string()])?;
        ensure!(
            refused.code != 0 && refused.stderr.contains("allocations.json"),
            "{refused:?}"
        );
        let services = |lab: &Lab| Ok::<_, anyhow::Error>(lab.status()?["services"].to_string());
        let known = services(lab)?;
        ensure!(known.contains("first") && !known.contains("second"), "{known}");
        // Nothing of this needs an address.
        lab.apply(&resources::service_policy("first", &["acceleration: off"]))?;
        lab.stop()?;
        lab.daemon()?;
        let known = services(lab)?;
        ensure!(known.contains("first") && !known.contains("second"), "{known}");
        fs::remove_dir(&in_the_way).context("clear the way")?;
        lab.weft(["apply", "-f", &second.display().to_string()])?.ok()?;
        Ok(())
    });
}

#[test]
fn an_object_of_the_resources_folder_is_not_applied_beside_it_and_both_places_are_named() {
    lab_test("both", |lab| {
        lab.resource("mesh.yaml", resources::DENY)?;
        lab.daemon()?;
        let mine = lab.work().join("mine.yaml");
        fs::write(&mine, resources::DENY).context("write a file to apply")?;
        let mine = mine.display().to_string();
        let refused = lab.weft(["apply", "-f", &mine])?.exits(2)?;
        let folder = lab.resources().join("mesh.yaml").display().to_string();
        ensure!(
            refused.stderr.contains(&mine) && refused.stderr.contains(&folder),
            "{}",
            refused.stderr
        );
        Ok(())
    });
}
