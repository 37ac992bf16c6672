//! The capabilities in `userspace/packaging` are what the daemon needs: it runs with them, and with none of them missing.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vm_test::{Lab, Nginx, curl, filters::filter, lab_test, poll, process, resources};

/// `EX_UNSUPPORTED` of weft: privileges or kernel features are missing.
const UNSUPPORTED: i32 = 3;
const UNIT: &str = "weft.service";
const MANIFEST: &str = "daemonset.yaml";
/// Switches of setpriv(1).
const BOUNDING: &str = "--bounding-set";
const INHERITABLE: &str = "--inh-caps";

fn packaging(file: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../userspace/packaging");
    PathBuf::from(folder).join(file)
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(packaging(file)).with_context(|| format!("read {file}"))
}

/// Names as capabilities(7) writes them.
type Capabilities = BTreeSet<String>;

/// Values of a setting of the unit, in the order of the lines.
fn settings<'a>(unit: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let setting = unit.lines().filter_map(|line| line.split_once('='));
    setting.filter(move |(key, _)| *key == name).map(|(_, value)| value)
}

fn of_unit() -> Result<Capabilities> {
    let unit = read(UNIT)?;
    let lists: Vec<&str> = settings(&unit, "CapabilityBoundingSet").collect();
    let [list] = lists[..] else {
        anyhow::bail!("{UNIT} has {} bounding sets", lists.len());
    };
    Ok(list.split_whitespace().map(str::to_owned).collect())
}

/// The words before `weft` in the manifest's command.
fn command_of_manifest() -> Result<Vec<String>> {
    let text = read(MANIFEST)?;
    let words = text.lines().skip_while(|line| line.trim() != "command:").skip(1);
    let words = words.map_while(|line| line.trim().strip_prefix("- "));
    let mut words: Vec<String> = words.map(str::to_owned).collect();
    let last = words.pop().context("a command")?;
    ensure!(last == "/usr/bin/weft", "{MANIFEST} starts `{last}`");
    Ok(words)
}

/// What a switch of that command leaves.
fn of_manifest(switch: &str) -> Result<Capabilities> {
    let command = command_of_manifest()?;
    let list = command
        .iter()
        .find_map(|word| word.strip_prefix(switch)?.strip_prefix("=-all"))
        .with_context(|| format!("{command:?} has no {switch}"))?;
    let names = list.split(",+").filter(|name| !name.is_empty());
    Ok(names.map(|name| format!("CAP_{}", name.to_uppercase())).collect())
}

/// setpriv(1) that leaves only these, as root's, and lets nothing be gained.
fn restricted<'a>(capabilities: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let mut list = "-all".to_owned();
    for name in capabilities {
        list.push_str(",+");
        list.push_str(&name.trim_start_matches("CAP_").to_lowercase());
    }
    vec![
        "setpriv".to_owned(),
        format!("{BOUNDING}={list}"),
        format!("{INHERITABLE}={list}"),
        "--no-new-privs".to_owned(),
        "--".to_owned(),
    ]
}

/// What makes a program start under what the unit restricts for memory; no words if it restricts nothing. prctl(2) by perl, since
/// neither setpriv(1) nor a shell knows this one.
fn restricted_memory(unit: &str) -> Result<Vec<String>> {
    match settings(unit, "MemoryDenyWriteExecute").collect::<Vec<_>>()[..] {
        [] | [.., "no"] => Ok(Vec::new()),
        [.., "yes"] => {
            use nix::libc::{PR_MDWE_REFUSE_EXEC_GAIN, PR_SET_MDWE, SYS_prctl};
            let call = format!("syscall({SYS_prctl}, {PR_SET_MDWE}, {PR_MDWE_REFUSE_EXEC_GAIN}, 0, 0, 0)");
            let code = format!("{call} == 0 or die qq(prctl: $!\n); exec {{$ARGV[0]}} @ARGV or die qq(exec: $!\n)");
            Ok(["perl", "-e", &code, "--"].map(str::to_owned).to_vec())
        }
        [.., other] => anyhow::bail!("MemoryDenyWriteExecute={other}"),
    }
}

/// What the lab's daemon says that it lacks when it is started behind `prefix`: it must say so and end.
fn lacks(lab: &Lab, prefix: &[String]) -> Result<Capabilities> {
    let output = process::output(lab.daemon_command_behind(prefix, &[]), process::BOUND)?;
    ensure!(output.code == UNSUPPORTED, "{output:?}");
    let told = output.stderr.split_once("the daemon lacks ");
    let (_, told) = told.with_context(|| output.stderr.clone())?;
    let words = told.split(|letter: char| !letter.is_ascii_uppercase() && letter != '_');
    let names = words.filter(|word| word.starts_with("CAP_"));
    Ok(names.map(str::to_owned).collect())
}

/// CapEff of a process, by number (proc(5)).
fn effective(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    Ok(u64::from_str_radix(set.context("CapEff")?.trim(), 16)?)
}

#[test]
fn unit_and_manifest_give_exactly_what_the_daemon_asks_for_and_each_is_asked_for() {
    lab_test("capabilities", |lab| {
        // One that has none names the whole list.
        let asked = lacks(lab, &restricted([]))?;
        ensure!(!asked.is_empty(), "nothing is asked for");
        ensure!(of_unit()? == asked, "{UNIT}: {:?}, asked for: {asked:?}", of_unit()?);
        for switch in [BOUNDING, INHERITABLE] {
            let given = of_manifest(switch)?;
            ensure!(given == asked, "{MANIFEST} {switch}: {given:?}, asked for: {asked:?}");
        }
        ensure!(
            command_of_manifest()? == restricted(&asked),
            "the manifest's command is the one tested: {:?}",
            command_of_manifest()?
        );
        for one in &asked {
            let lacking = lacks(lab, &restricted(asked.iter().filter(|name| *name != one)))?;
            ensure!(
                lacking == Capabilities::from([one.clone()]),
                "without {one}: {lacking:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn with_exactly_the_capabilities_of_the_packaging_the_daemon_judges_proves_itself_and_is_reloaded() {
    lab_test("exactly", |lab| {
        lab.daemon_as(lab.daemon_command_behind(&command_of_manifest()?, &["--inbound", "netns"]))?;
        let first = lab.daemon_pid()?;
        let held = effective(first)?;
        ensure!(held.count_ones() as usize == of_unit()?.len(), "CapEff {held:x}");

        let yaml = [
            resources::DENY.to_owned(),
            resources::tcp_route("port", &[8080]),
            resources::allow("friend-web", "friend", "web", ("TCPRoute", "port")),
            resources::route("get", "/public", &["GET"]),
            resources::allow("friend-shop", "friend", "shop", ("HTTPRouteGroup", "get")),
        ];
        lab.resource("mesh.yaml", &yaml.concat())?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let _shop = lab.nginx(Nginx::service("shop").port(80, 8081))?;
        judged(lab)?;

        let doctor = lab.weft(["doctor", "-o", "json"])?.ok()?.json()?;
        ensure!(doctor["problems"].as_array().is_some_and(Vec::is_empty), "{doctor:#}");

        // ExecReload: the successor is a child, which gains nothing.
        kill(Pid::from_raw(first), Signal::SIGHUP)?;
        let second = poll::until("the successor to answer", || {
            let pid = lab.status()?["pid"].as_i64().context("a process number")?;
            ensure!(pid != i64::from(first), "process {pid} answers");
            Ok(i32::try_from(pid)?)
        })?;
        ensure!(effective(second)? == held, "CapEff {:x}", effective(second)?);
        judged(lab)?;
        // It is no child of the test's: ended here, awaited by what it leaves.
        kill(Pid::from_raw(second), Signal::SIGTERM)?;
        poll::until("the successor to end", || {
            let left = fs::read_to_string(lab.cgroup().join(".daemon/cgroup.procs"))?;
            ensure!(left.is_empty(), "processes {left}");
            Ok(())
        })
    });
}

#[test]
fn under_what_the_unit_restricts_for_memory_an_adapter_as_webassembly_runs() {
    lab_test("memory", |lab| {
        let prefix = [restricted_memory(&read(UNIT)?)?, restricted(&of_unit()?)].concat();
        lab.daemon_as(lab.daemon_command_behind(&prefix, &[]))?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let module = filter("header-auth")?;
        let adapter = format!(
            "apiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {{name: auth}}\n\
             spec: {{target: {{services: [web]}}, backend: wasm, params: {{tokens: {{s3cret: alice}}}}, \
             wasm: {{module: {}}}}}\n",
            module.display()
        );
        let file = lab.work().join("auth.yaml");
        fs::write(&file, adapter).context("write a file to apply")?;
        let said = lab.weft(["apply", "-f", &file.to_string_lossy()])?.ok()?.stdout;
        ensure!(said.contains("in force: wasm header-auth.wasm"), "{said}");
        let client = lab.run("client");
        poll::until("the module to answer", || {
            let answer = client.curl("http://web/")?;
            ensure!(answer.http == 401, "{answer:?}");
            Ok(())
        })
    });
}

/// Verdicts of the kernel and of the proxy.
fn judged(lab: &Lab) -> Result<()> {
    poll::until("friend to be allowed", || {
        for (url, http) in [
            ("http://web/", 200),
            ("http://shop/public", 200),
            ("http://shop/admin", 403),
        ] {
            let answer = lab.run("friend").curl(url)?;
            ensure!(answer.http == http, "{url}: {answer:?}");
        }
        Ok(())
    })?;
    for url in ["http://web/", "http://shop/public"] {
        let stranger = lab.run("stranger").curl(url)?;
        ensure!(stranger.code == curl::COULD_NOT_CONNECT, "{url}: {stranger:?}");
        ensure!(stranger.told.contains("Operation not permitted"), "{}", stranger.told);
    }
    Ok(())
}

#[test]
fn systemd_takes_every_line_of_the_unit() -> Result<()> {
    let unit = read(UNIT)?;
    let dir = tempfile::tempdir()?;
    // Its program need not be installed here.
    let installed = unit.replace("=/usr/bin/weft ", "=/bin/true ");
    ensure!(installed != unit, "ExecStart is /usr/bin/weft");
    let file = dir.path().join(UNIT);
    fs::write(&file, installed)?;
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]).arg(&file);
    // It exits with 0 over a line that it ignores, and says so.
    let output = process::output(command, process::BOUND)?.ok()?;
    ensure!(output.stderr.is_empty(), "{}", output.stderr);
    Ok(())
}
