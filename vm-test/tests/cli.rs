//! The command line: exit codes and outputs that scripts rely on.

use anyhow::{Context, Result, ensure};
use vm_test::{Nginx, lab_test, poll, resources};

#[test]
fn run_ends_as_its_command_does() {
    lab_test("codes", |lab| {
        let unreachable = lab.run("job").output(["true"])?.exits(125)?;
        ensure!(!unreachable.stderr.is_empty(), "125 says why");
        lab.daemon()?;
        let job = lab.run("job");
        job.output(["true"])?.exits(0)?;
        job.output(["sh", "-c", "exit 42"])?.exits(42)?;
        job.output(["sh", "-c", "kill -9 $$"])?.exits(128 + 9)?;
        job.output(["there-is-no-such-program"])?.exits(127)?;
        job.output(["/etc/passwd"])?.exits(126)?;
        let mut sleeper = job.start(["sleep", "1000"])?;
        ensure!(sleeper.is_running()?, "it runs");
        sleeper.signal(nix::sys::signal::Signal::SIGTERM)?;
        sleeper.finish(poll::PATIENCE)?.exits(128 + 15)?;
        Ok(())
    });
}

#[test]
fn usage_errors_exit_with_2_and_failures_with_1() {
    lab_test("usage", |lab| {
        lab.weft_offline(["no-such-verb"])?.exits(2)?;
        lab.weft_offline(["run", "--no-such-flag"])?.exits(2)?;
        lab.weft(["status"])?.exits(1)?;
        lab.daemon()?;
        lab.weft(["status"])?.exits(0)?;
        lab.weft(["get", "TrafficSplit", "there-is-none"])?.exits(1)?;
        Ok(())
    });
}

#[test]
fn applied_objects_are_listed_outlive_a_restart_and_can_be_deleted() {
    lab_test("apply", |lab| {
        lab.daemon()?;
        let file = lab.work().join("mesh.yaml");
        std::fs::write(&file, resources::DENY)?;
        let path = file.display().to_string();
        lab.weft(["apply", "-f", &path])?.ok()?;
        let listed = |lab: &vm_test::Lab| -> Result<bool> {
            let output = lab.weft(["get", "MeshConfig", "-o", "json"])?.ok()?;
            output.json()?;
            Ok(output.stdout.contains("accessDefault"))
        };
        ensure!(listed(lab)?, "listed");
        lab.stop()?;
        lab.daemon()?;
        ensure!(listed(lab)?, "listed after a restart");

        lab.resource("again.yaml", resources::DENY)?;
        poll::until("the same object from two places to be told of", || {
            let diagnostics = lab.status()?["diagnostics"].to_string();
            ensure!(diagnostics.contains("again.yaml"), "{diagnostics}");
            Ok(())
        })?;
        lab.remove_resource("again.yaml")?;
        lab.weft(["delete", "MeshConfig", "mesh"])?.ok()?;
        ensure!(!listed(lab)?, "deleted");
        std::fs::write(&file, resources::DENY.replace("deny", "perhaps"))?;
        lab.weft(["apply", "-f", &path])?.exits(2)?;
        Ok(())
    });
}

#[test]
fn an_applied_object_that_is_not_in_force_is_told_listed_and_can_be_deleted() {
    lab_test("rejected", |lab| {
        lab.daemon()?;
        lab.apply(&resources::split("first", "web", &[("web-v1", 1)]))?;
        let file = lab.work().join("second.yaml");
        std::fs::write(&file, resources::split("second", "web", &[("web-v2", 1)]))?;
        let said = lab.weft(["apply", "-f", &file.display().to_string()])?.exits(2)?;
        ensure!(
            said.stdout.contains("created (Rejected: ") && said.stdout.contains("first"),
            "{said:?}"
        );
        let rejected = || -> Result<Vec<(String, bool)>> {
            let listed = lab.weft(["get", "TrafficSplit", "-o", "json"])?.ok()?.json()?;
            let items = listed["items"].as_array().context("items")?.iter();
            let mut splits: Vec<_> = items
                .map(|item| {
                    let name = item["metadata"]["name"].as_str().unwrap_or_default();
                    (name.to_owned(), item["status"]["state"] == "Rejected")
                })
                .collect();
            splits.sort_unstable();
            Ok(splits)
        };
        let both = [("first".to_owned(), false), ("second".to_owned(), true)];
        ensure!(rejected()? == both, "{:?}", rejected()?);
        lab.stop()?;
        lab.daemon()?;
        ensure!(rejected()? == both, "after a restart: {:?}", rejected()?);
        lab.weft(["delete", "TrafficSplit", "second"])?.ok()?;
        ensure!(rejected()? == both[..1], "{:?}", rejected()?);
        Ok(())
    });
}

#[test]
fn read_commands_print_json() {
    lab_test("json", |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        lab.run("client").curl("http://web/")?;
        let status = lab.status()?;
        ensure!(
            status["generation"].is_u64() && status["services"].is_array() && status["workloads"].is_array(),
            "{status}"
        );
        let doctor = lab.weft(["doctor", "-o", "json"])?.ok()?.json()?;
        let hooks = doctor["hooks"].as_array().context("hooks")?;
        ensure!(!hooks.is_empty(), "{doctor}");
        for hook in hooks {
            ensure!(hook["attached"] == true, "{hook}");
            // Nothing is short-circuited in this lab: sk_msg has nothing to prove.
            ensure!(hook["effective"] == true || hook["name"] == "weft_sk_msg", "{hook}");
        }
        ensure!(doctor["features"].is_array(), "{doctor}");
        let flow = lab.flow("the request", |flow| flow["source"]["service"] == "client")?;
        for field in [
            "time",
            "verdict",
            "reason",
            "source",
            "destination",
            "protocol",
            "bytes_sent",
            "bytes_received",
        ] {
            ensure!(!flow[field].is_null(), "{field} of {flow}");
        }
        lab.weft([
            "explain",
            "--from",
            "default/client",
            "--to",
            "web",
            "--port",
            "80",
            "-o",
            "json",
        ])?
        .ok()?
        .json()?;
        Ok(())
    });
}
