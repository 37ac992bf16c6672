//! Kind `Adapter` with `backend: wasm`: real modules in the way of real traffic.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use vm_test::{Lab, Nginx, Run, Running, curl, filters::filter, lab_test, poll, process, resources};

/// Looks at the bytes of a connection and closes those that begin with `HEAD`.
const BYTES: &str = r#"(module
  (import "env" "proxy_get_buffer_bytes" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_close_stream" (func $close (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_0"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_new_connection") (param i32) (result i32) (i32.const 0))
  (func (export "proxy_on_downstream_data") (param i32 i32 i32) (result i32)
    (if (i32.lt_u (local.get 1) (i32.const 4)) (then (return (i32.const 1))))
    (drop (call $get (i32.const 2) (i32.const 0) (i32.const 4) (i32.const 512) (i32.const 516)))
    (if (i32.eq (i32.load (i32.const 1024)) (i32.const 0x44414548))
      (then (drop (call $close (i32.const 2)))))
    (i32.const 0)))"#;

/// Holds each request until the next tick: up to 50 ms.
const SLOW: &str = r#"(module
  (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
  (import "env" "proxy_set_effective_context" (func $context (param i32) (result i32)))
  (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
  (memory (export "memory") 1)
  (global $last (mut i32) (i32.const 1))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.eqz (call $tick (i32.const 50))))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (if (i32.gt_u (local.get 0) (global.get $last)) (then (global.set $last (local.get 0))))
    (i32.const 1))
  (func (export "proxy_on_tick") (param i32)
    (local $next i32)
    (local.set $next (i32.const 2))
    (loop $more
      (if (i32.le_u (local.get $next) (global.get $last)) (then
        ;; Those that are over are unknown.
        (if (i32.eqz (call $context (local.get $next))) (then (drop (call $continue (i32.const 0)))))
        (local.set $next (i32.add (local.get $next) (i32.const 1)))
        (br $more))))))"#;
/// Says that it begins, and never ends its start.
const LOOPS: &str = r#"(module
  (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "begins to loop")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    (drop (call $log (i32.const 2) (i32.const 0) (i32.const 14)))
    (loop $again (br $again))
    (i32.const 1)))"#;

/// Applies an Adapter of namespace `default` on service `web`.
fn apply(lab: &Lab, name: &str, module: &Path, rest: &str) -> Result<String> {
    Ok(applied(lab, name, module, rest)?.ok()?.stdout)
}

fn applied(lab: &Lab, name: &str, module: &Path, rest: &str) -> Result<process::Output> {
    let file = lab.work().join(format!("{name}.yaml"));
    fs::write(&file, object(name, module, rest)).context("write a file to apply")?;
    lab.weft(["apply", "-f", &file.to_string_lossy()])
}

fn object(name: &str, module: &Path, rest: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {{name: {name}}}\n\
         spec: {{target: {{services: [web]}}, backend: wasm, {}}}\n",
        with_module(rest, module)
    )
}

/// Unless `rest` says its limits.
fn with_module(rest: &str, module: &Path) -> String {
    // An emulated processor that stands still uses CPU time too.
    let limits = match rest.contains("limits:") {
        true => "",
        false => ", limits: {deadlineMs: 1000}",
    };
    rest.replace("MODULE", &format!("module: {}{limits}", module.display()))
}

/// What `weft adapter list` says of one.
fn shown(lab: &Lab, name: &str) -> Result<Value> {
    let all = lab.weft(["adapter", "list", name, "-o", "json"])?.ok()?.json()?;
    all.get(0).cloned().context("one adapter")
}

fn answers(client: &Run<'_>, flags: &[&str], path: &str, http: u16) -> Result<curl::Answer> {
    let answer = client.curl_with(flags, &format!("http://web{path}"))?;
    ensure!(answer.http == http, "{flags:?} {path}: expected {http}, {answer:?}");
    Ok(answer)
}

/// A lab with `web`, which answers.
fn with_web(name: &str, body: impl FnOnce(&Lab, &Run<'_>) -> Result<()>) {
    lab_test(name, |lab| {
        lab.daemon()?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let client = lab.run("client");
        poll::until("the server", || answers(&client, &[], "/", 200).map(drop))?;
        body(lab, &client)
    });
}

const TOKEN: [&str; 2] = ["-H", "authorization: Bearer s3cret"];
const AUTH: &str = "params: {tokens: {s3cret: alice}}, wasm: {MODULE}";

#[test]
fn a_module_guards_a_service_and_what_cannot_run_leaves_the_last_good_in_force() {
    with_web("wasm", |lab, client| {
        let good = filter("header-auth")?;
        let said = apply(lab, "auth", &good, AUTH)?;
        ensure!(said.contains("in force: wasm header-auth.wasm"), "{said}");
        let guarded = || -> Result<()> {
            let refused = answers(client, &[], "/", 401)?;
            ensure!(refused.body.contains("header-auth: no token"), "{refused:?}");
            answers(client, &TOKEN, "/", 200)?;
            // An endpoint's own address is no way around it.
            let answer = client.curl("http://127.0.0.1:8080/")?;
            ensure!(answer.http == 401, "{answer:?}");
            Ok(())
        };
        guarded()?;
        let flow = lab.flow("the refused request", |flow| flow["l7"]["status"] == 401)?;
        ensure!(
            flow["rule"]["kind"] == "Adapter" && flow["rule"]["name"] == "auth",
            "{flow}"
        );

        let garbage = lab.work().join("garbage.wasm");
        fs::write(&garbage, b"\0asm no module").context("write garbage")?;
        let missing = lab.work().join("missing.wasm");
        let other = "params: {tokens: {s3cret: alice}}, wasm: {MODULE, sha256: \
                     0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef}";
        for (module, rest, problem) in [
            (&garbage, AUTH, "not a WebAssembly module"),
            (&missing, AUTH, "No such file"),
            (&good, "params: {}, wasm: {MODULE}", "said no"),
            (&good, other, "was asked for"),
        ] {
            let said = applied(lab, "auth", module, rest)?.exits(2)?.stdout;
            ensure!(said.contains(problem) && said.contains("last good version"), "{said}");
            let shown = shown(lab, "auth")?;
            ensure!(
                shown["earlier"] == true && shown["problem"].as_str().is_some_and(|why| why.contains(problem)),
                "{shown}"
            );
            guarded()?;
        }
        let said = apply(lab, "auth", &good, AUTH)?;
        ensure!(said.contains("in force"), "{said}");
        let counted = &shown(lab, "auth")?["generations"][0];
        // It was the same one all the time.
        ensure!(
            counted["streams"].as_u64() >= Some(15) && counted["answers"].as_u64() >= Some(10) && counted["traps"] == 0,
            "{counted}"
        );

        // A second one, of another compiler, sees what the first one lets pass.
        apply(
            lab,
            "paths",
            &filter("deny-path")?,
            "params: {prefixes: [/admin]}, wasm: {MODULE}",
        )?;
        guarded()?;
        answers(client, &TOKEN, "/admin", 403)?;
        let marked = answers(client, &TOKEN, "/", 200)?;
        ensure!(marked.told.contains("x-adapter: deny-path"), "{marked:?}");
        for name in ["auth", "paths"] {
            lab.weft(["adapter", "remove", name])?.ok()?;
        }
        answers(client, &[], "/admin", 200)?;

        // Nothing good was there before: the failure policy decides.
        let said = apply(lab, "auth", &garbage, AUTH)?;
        ensure!(said.contains("NotEnforced"), "{said}");
        answers(client, &[], "/", 503)?;
        apply(lab, "auth", &garbage, &format!("failurePolicy: open, {AUTH}"))?;
        answers(client, &[], "/", 200)?;
        Ok(())
    });
}

#[test]
fn a_module_calls_the_services_that_it_may_call() {
    with_web("wasm-calls", |lab, client| {
        let call_out = filter("call-out")?;
        let params = "params: {upstream: auth, timeout_ms: 20000}";
        let _auth = lab.nginx(Nginx::service("auth").port(80, 8081))?;
        apply(lab, "ask", &call_out, &format!("{params}, wasm: {{MODULE}}"))?;
        answers(client, &[], "/", 403)?;
        apply(
            lab,
            "ask",
            &call_out,
            &format!("{params}, wasm: {{MODULE, upstreams: [auth]}}"),
        )?;
        answers(client, &[], "/", 200)?;
        let counted = &shown(lab, "ask")?["generations"][0];
        ensure!(counted["calls"] == 1, "{counted}");
        Ok(())
    });
}

#[test]
fn a_module_that_looks_at_bytes_makes_them_visit_the_proxy() {
    lab_test("wasm-bytes", |lab| {
        lab.daemon()?;
        lab.resource(
            "web.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
             spec: {ports: [{port: 80, targetPort: 8080, appProtocol: tcp}]}\n",
        )?;
        let _web = lab.nginx(Nginx::service("web").port(80, 8080))?;
        let client = lab.run("client");
        poll::until("the server", || answers(&client, &["-I"], "/", 200).map(drop))?;
        let module = lab.work().join("bytes.wasm");
        fs::write(&module, wat::parse_str(BYTES)?).context("write a module")?;
        // What looks at requests is none of the business of a port that has none.
        apply(
            lab,
            "auth",
            &filter("header-auth")?,
            "params: {tokens: {s3cret: alice}}, wasm: {MODULE}",
        )?;
        answers(&client, &["-I"], "/", 200)?;
        apply(lab, "bytes", &module, "wasm: {MODULE, protocols: [tcp]}")?;
        answers(&client, &[], "/", 200)?;
        let cut = client.curl_with(&["-I"], "http://web/")?;
        ensure!(cut.http == 0 && cut.code != 0, "{cut:?}");
        let flow = lab.flow("the cut connection", |flow| {
            flow["reason"]
                .as_str()
                .is_some_and(|why| why.contains("reset by adapter default/bytes"))
        })?;
        ensure!(flow["protocol"] == "tcp", "{flow}");
        Ok(())
    });
}

/// A client that asks `http://web/...` on and on over one connection.
struct Asking(Running);

impl Asking {
    fn start(client: &Run<'_>, flags: &[&str], url: &str) -> Result<Self> {
        let told = "%{stderr}%{http_code} %{exitcode}\n";
        let words = ["curl", "-s", "-o", "/dev/null", "-w", told]
            .into_iter()
            .chain(flags.iter().copied());
        let words = words.map(str::to_owned).chain([format!("{url}?[1-100000000]")]);
        Running::start(client.command(words)).map(Self)
    }

    fn count(&self) -> usize {
        self.0.stderr().lines().count()
    }

    fn more(&mut self, count: usize) -> Result<()> {
        let before = self.count();
        poll::until("more answers", || {
            if !self.0.is_running()? {
                // No patience helps.
                return Ok(Err(anyhow!("it ended: {:?}", self.0.stderr())));
            }
            let now = self.count();
            ensure!(now >= before + count, "{} of {count}", now - before);
            Ok(Ok(()))
        })?
    }

    /// Ends it; all answers must have been 200. Gives how many there were.
    fn all_good(mut self) -> Result<usize> {
        ensure!(self.0.is_running()?, "it ended: {}", self.0.stderr());
        self.0.kill();
        let told = self.0.stderr();
        let mut lines: Vec<&str> = told.lines().collect();
        // The last line may have been cut.
        lines.pop();
        let wrong: Vec<&&str> = lines.iter().filter(|line| **line != "200 0").collect();
        ensure!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), lines.len());
        Ok(lines.len())
    }
}

/// The module with a custom section, so that it is another one each time.
fn variant(lab: &Lab, name: &str, number: u32) -> Result<PathBuf> {
    let mut bytes = fs::read(filter(name)?)?;
    bytes.extend_from_slice(b"\0\x09\x04swap");
    bytes.extend_from_slice(&number.to_le_bytes());
    let file = lab.work().join("variant.wasm");
    fs::write(&file, bytes)?;
    Ok(file)
}

fn adapter(lab: &Lab, words: &[&str]) -> Result<String> {
    let words = ["adapter"].into_iter().chain(words.iter().copied());
    Ok(lab.weft(words)?.ok()?.stdout)
}

/// How many swaps there are, unless `WEFT_TEST_SWAPS` says: all that the project promises, or few where a processor is emulated.
fn swaps() -> Result<u32> {
    match std::env::var("WEFT_TEST_SWAPS") {
        Ok(text) => text.parse().context("WEFT_TEST_SWAPS"),
        Err(_) if std::env::var_os(poll::SCALE).is_some() => Ok(10),
        Err(_) => Ok(1000),
    }
}

/// Of these swaps one in so many loads a module that was never compiled; the others load one of three that were.
const FRESH: u32 = 50;

#[test]
fn modules_are_swapped_under_load_without_a_failed_request() {
    with_web("wasm-swaps", |lab, client| {
        apply(lab, "auth", &filter("header-auth")?, AUTH)?;
        poll::until("the filter", || answers(client, &[], "/", 401).map(drop))?;
        let mut asking = Asking::start(client, &TOKEN, "http://web/")?;
        let new = Asking::start(client, &["-H", "connection: close", TOKEN[0], TOKEN[1]], "http://web/")?;
        let swaps = swaps()?;
        for number in 1..=swaps {
            let fresh = number % FRESH == 1;
            let file = variant(lab, "header-auth", if fresh { FRESH + number } else { number % 3 })?;
            let said = adapter(lab, &["load", "auth", &file.to_string_lossy()])?;
            let expect = format!("v{number} 0, v{} 100", number + 1);
            ensure!(said.contains(&expect), "{said}");
            asking.more(1)?;
        }
        // It is the last one that judges.
        answers(client, &[], "/", 401)?;
        let shown = shown(lab, "auth")?;
        let generations = shown["generations"].as_array().context("generations")?;
        let last = generations.last().context("a generation")?;
        ensure!(
            generations.len() == 2 && last["name"] == format!("v{}", swaps + 1) && last["answers"] == 1,
            "{shown}"
        );
        let modules = fs::read_dir(lab.state().join("modules"))?.count();
        ensure!(modules == 2, "{modules} modules are kept");
        let asked = (asking.all_good()?, new.all_good()?);
        ensure!(asked.0 > 10 && asked.1 > 10, "{asked:?}");
        Ok(())
    });
}

#[test]
fn a_new_generation_that_traps_is_rolled_back_and_stays_out() {
    with_web("wasm-rollback", |lab, client| {
        apply(
            lab,
            "guard",
            &filter("deny-path")?,
            // A trap takes all requests of its instance with it, and those whose head has passed are refused then. One
            // is enough: a busy machine may take longer than a look of the watcher for several.
            "failurePolicy: closed, params: {prefixes: [/admin]}, \
             wasm: {MODULE, instances: request, rollback: {failures: 1}}",
        )?;
        poll::until("the filter", || answers(client, &[], "/admin", 403).map(drop))?;
        let garbage = lab.work().join("garbage.wasm");
        fs::write(&garbage, b"\0asm no module")?;
        let refused = lab.weft(["adapter", "load", "guard", &garbage.to_string_lossy()])?;
        ensure!(
            refused.code != 0 && refused.stderr.contains("not a WebAssembly module"),
            "{refused:?}"
        );
        let mut asking = Asking::start(client, &[], "http://web/")?;
        let trap = filter("trap")?;
        let said = adapter(lab, &["load", "guard", &trap.to_string_lossy(), "--weight", "10"])?;
        ensure!(said.contains("v1 90, v2 10"), "{said}");
        asking.more(300)?;
        let count = |at: usize, of: &str| -> Result<u64> {
            let count = &shown(lab, "guard")?["generations"][at][of];
            count.as_u64().context("a count of a generation")
        };
        let (old, new) = (count(0, "streams")?, count(1, "streams")?);
        // Far beyond six standard deviations.
        ensure!(new * 100 / (old + new) < 30 && new > 0, "{old} {new}");

        let told = "%{stderr}%{http_code}\n";
        let words = ["curl", "-s", "-o", "/dev/null", "-H", "x-trap: 1", "-w", told];
        // Refused by v1, which alone knows that it is to be: also what v2 was to judge, and trapped at.
        let before = count(0, "answers")?;
        let asked = client.output(words.iter().copied().chain(["http://web/admin?[1-200]"]))?;
        let codes: Vec<&str> = asked.stderr.lines().collect();
        ensure!(codes == ["403"; 200], "{asked:?}");
        let (answered, failed) = (count(0, "answers")? - before, count(1, "failed")?);
        ensure!(answered == 200 && failed >= 1, "v1 {answered}, v2 failed {failed}");
        let v2 = || -> Result<Value> { Ok(shown(lab, "guard")?["generations"][1].clone()) };
        ensure!(
            v2()?["rolled_back"]
                .as_str()
                .is_some_and(|why| why.starts_with("failed on 1 ")),
            "{}",
            v2()?
        );
        let listed = adapter(lab, &["list", "guard"])?;
        ensure!(listed.contains("generation v2 ROLLED BACK: failed on 1 "), "{listed}");
        asking.more(20)?;
        asking.all_good()?;

        // A restart forgets neither the generations nor who is out.
        poll::until("it is kept", || {
            ensure!(lab.state().join("rolled-back.json").exists());
            Ok(())
        })?;
        lab.stop()?;
        lab.daemon()?;
        poll::until("the server", || answers(client, &[], "/admin", 403).map(drop))?;
        ensure!(v2()?["rolled_back"].is_string() && v2()?["streams"] == 0, "{}", v2()?);
        // By hand it may be tried again, and taken out again.
        let said = adapter(lab, &["weight", "guard", "v2=50"])?;
        ensure!(said.contains("v1 90, v2 50"), "{said}");
        ensure!(v2()?["rolled_back"].is_null(), "{}", v2()?);
        let said = adapter(lab, &["rollback", "guard"])?;
        ensure!(said.contains("v2 rolled back; now v1 90, v2 out"), "{said}");
        let alone = lab.weft(["adapter", "rollback", "guard"])?.exits(1)?;
        ensure!(alone.stderr.contains("no other generation"), "{alone:?}");

        let said = adapter(
            lab,
            &["load", "guard", &filter("header-auth")?.to_string_lossy(), "--shadow"],
        );
        ensure!(said.is_err(), "it refuses the configuration of another module");
        let said = adapter(lab, &["load", "guard", &filter("loop")?.to_string_lossy(), "--shadow"])?;
        ensure!(said.contains("v3 shadow"), "{said}");
        answers(client, &[], "/admin", 403)?;
        // Last, for it rolls the shadow back.
        answers(client, &["-H", "x-loop: 1"], "/", 200)?;
        let shadow = &shown(lab, "guard")?["generations"][2];
        ensure!(
            shadow["streams"] == 2 && shadow["traps"] == 1 && shadow["disagreed"] == 1,
            "{shadow}"
        );
        Ok(())
    });
}

#[test]
fn a_new_generation_that_keeps_requests_waiting_is_rolled_back() {
    with_web("wasm-slow", |lab, client| {
        let params = "params: {prefixes: [/admin]}, wasm: {MODULE}";
        apply(lab, "guard", &filter("deny-path")?, params)?;
        poll::until("the filter", || answers(client, &[], "/admin", 403).map(drop))?;
        let slow = lab.work().join("slow.wasm");
        fs::write(&slow, wat::parse_str(SLOW)?).context("write a module")?;
        let said = adapter(lab, &["load", "guard", &slow.to_string_lossy(), "--weight", "50"])?;
        ensure!(said.contains("v1 50, v2 50"), "{said}");
        let told = "%{http_code}\n";
        // Its meter goes to standard error, also where it is to be silent.
        let many = ["-Z", "--parallel-max", "50", "http://web/?[1-400]"];
        let words = ["curl", "-s", "-o", "/dev/null", "-w", told].into_iter().chain(many);
        poll::until("it is rolled back", || {
            let asked = client.output(words.clone())?.ok()?;
            if asked.stdout.lines().any(|code| code != "200") {
                // No patience helps.
                return Ok(Err(anyhow!("{asked:?}")));
            }
            let v2 = shown(lab, "guard")?["generations"][1].clone();
            let why = v2["rolled_back"].as_str();
            ensure!(
                why.is_some_and(|why| why.starts_with("keeps a request waiting for ")),
                "{v2}"
            );
            Ok(Ok(()))
        })??;
        let listed = adapter(lab, &["list", "guard"])?;
        ensure!(
            listed.contains("generation v2 ROLLED BACK: keeps a request"),
            "{listed}"
        );
        answers(client, &[], "/admin", 403).map(drop)
    });
}

#[test]
fn bad_modules_harm_nobody_else() {
    with_web("wasm-bad", |lab, client| {
        let _other = lab.nginx(Nginx::service("other").port(80, 8081))?;
        poll::until("the other server", || {
            let answer = client.curl("http://other/")?;
            ensure!(answer.http == 200, "{answer:?}");
            Ok(())
        })?;
        let good = lab.work().join("good.yaml");
        fs::write(
            &good,
            format!(
                "apiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {{name: good}}\n\
                 spec: {{target: {{services: [other]}}, backend: wasm, {}}}\n",
                with_module(AUTH, &filter("header-auth")?)
            ),
        )?;
        lab.weft(["apply", "-f", &good.to_string_lossy()])?.ok()?;
        let mut other = Asking::start(client, &TOKEN, "http://other/")?;
        for bad in ["trap", "loop", "eat"] {
            apply(lab, "bad", &filter(bad)?, "wasm: {MODULE}")?;
            answers(client, &[], "/", 200)?;
            let header = format!("x-{bad}: 1");
            for _ in 0..3 {
                let failed = answers(client, &["-H", &header], "/", 503)?;
                ensure!(failed.body.contains("adapter default/bad failed"), "{failed:?}");
                answers(client, &[], "/", 200)?;
            }
            let traps = &shown(lab, "bad")?["generations"][0]["traps"];
            ensure!(*traps == 3, "{bad}: {traps}");
            other.more(5)?;
        }
        let asked = other.all_good()?;
        ensure!(asked > 15, "{asked}");
        let metrics = lab.outside(["curl", "-sS", "--fail", "http://127.0.0.1:15020/metrics"])?;
        let metrics = metrics.ok()?.stdout;
        for line in [
            r#"weft_adapter_generation_traps_total{adapter="default/bad",generation="v1"} 3"#,
            r#"weft_adapter_generation_traps_total{adapter="default/good",generation="v1"} 0"#,
        ] {
            ensure!(metrics.contains(line), "{line}: {metrics}");
        }
        Ok(())
    });
}

/// The CPU time that this takes is long for all that a test does meanwhile.
const LONG_START: &str = "wasm: {MODULE, limits: {startMs: 15000, deadlineMs: 1000}}";

/// A module that loops at its start.
fn looping(lab: &Lab) -> Result<PathBuf> {
    let module = lab.work().join("loops.wasm");
    fs::write(&module, wat::parse_str(LOOPS)?).context("write a module")?;
    Ok(module)
}

/// Waits until it runs.
fn has_begun(lab: &Lab) -> Result<()> {
    poll::until("the module to begin", || {
        ensure!(lab.log().contains("begins to loop"), "it does not");
        Ok(())
    })
}

/// `weft apply` of a file, under way.
fn applying(lab: &Lab, file: &Path) -> Result<Running> {
    Running::start(lab.command([
        lab.weft_binary().display().to_string(),
        "apply".to_owned(),
        "--state-dir".to_owned(),
        lab.state().display().to_string(),
        "-f".to_owned(),
        file.display().to_string(),
    ]))
}

#[test]
fn a_deny_is_in_force_while_an_adapter_is_applied_that_takes_long() {
    with_web("wasm-slow", |lab, client| {
        let file = lab.work().join("slow.yaml");
        fs::write(&file, object("slow", &looping(lab)?, LONG_START)).context("write a file to apply")?;
        let mut slow = applying(lab, &file)?;
        has_begun(lab)?;
        // Nobody waits, and nobody is refused.
        answers(client, &[], "/", 200)?;
        lab.apply(resources::DENY)?;
        let denied = client.curl("http://web/")?;
        ensure!(denied.code == curl::COULD_NOT_CONNECT, "{denied:?}");
        ensure!(slow.is_running()?, "the deny came after it: {}", slow.stdout());
        lab.apply(resources::ALLOW)?;
        answers(client, &[], "/", 200)?;
        ensure!(slow.is_running()?, "it came before: {}", slow.stdout());

        let said = slow.finish(process::BULK_BOUND)?.ok()?.stdout;
        ensure!(said.contains("NotEnforced") && said.contains("CPU time"), "{said}");
        // Now it is what the failure policy decides.
        answers(client, &[], "/", 503)?;
        // It is known: no change tries it once more.
        lab.apply(resources::DENY)?;
        let begun = lab.log().matches("begins to loop").count();
        ensure!(begun == 1, "it began {begun} times");
        Ok(())
    });
}

#[test]
fn a_stop_waits_for_no_module_that_starts() {
    with_web("wasm-stop", |lab, _client| {
        let looping = looping(lab)?;
        let longest = "wasm: {MODULE, limits: {startMs: 60000, deadlineMs: 1000}}";
        lab.resource("slow.yaml", &object("slow", &looping, longest))?;
        has_begun(lab)?;
        // Somebody waits for one more: they are made one after the other.
        let file = lab.work().join("slower.yaml");
        fs::write(&file, object("slower", &looping, longest)).context("write a file to apply")?;
        let waiting = applying(lab, &file)?;
        lab.stop()?;
        ensure!(!lab.log().contains("CPU time"), "it waited for the end of the start");
        let told = waiting.finish(process::BOUND)?;
        ensure!(told.code != 0, "{told:?}");
        Ok(())
    });
}

#[test]
fn a_daemon_that_starts_with_such_a_module_is_stopped_too() {
    lab_test("wasm-stop-first", |lab| {
        let longest = "wasm: {MODULE, limits: {startMs: 60000, deadlineMs: 1000}}";
        lab.resource("slow.yaml", &object("slow", &looping(lab)?, longest))?;
        let mut daemon = Running::start(lab.daemon_command(&[]))?;
        poll::until("the module to begin", || {
            ensure!(daemon.stderr().contains("begins to loop"), "{}", daemon.stderr());
            Ok(())
        })?;
        ensure!(daemon.is_running()?, "it ended: {}", daemon.stderr());
        let said = daemon.stop()?.ok()?.stderr;
        ensure!(!said.contains("CPU time"), "it waited for the end of the start: {said}");
        ensure!(
            !lab.bpffs().join("links").exists(),
            "it never ran, and left programs: {said}"
        );
        Ok(())
    });
}

#[test]
fn a_deny_is_in_force_while_a_resource_file_brings_an_adapter_that_takes_long() {
    with_web("wasm-slow-file", |lab, client| {
        let state = || -> Result<(String, String)> {
            let listed = lab.weft(["get", "Adapter", "slow", "-o", "json"])?.ok()?.json()?;
            let status = &listed["items"][0]["status"];
            let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
            Ok((text("state"), text("reason")))
        };
        lab.resource("slow.yaml", &object("slow", &looping(lab)?, LONG_START))?;
        has_begun(lab)?;
        lab.resource("mesh.yaml", resources::DENY)?;
        poll::until("the deny", || {
            let denied = client.curl("http://web/")?;
            ensure!(denied.http != 200, "{denied:?}");
            Ok(())
        })?;
        let pending = state()?;
        ensure!(pending.0 == "Pending", "the deny came after it: {pending:?}");
        poll::within(process::BULK_BOUND, "the adapter to be refused", || {
            let refused = state()?;
            ensure!(
                refused.0 == "NotEnforced" && refused.1.contains("CPU time"),
                "{refused:?}"
            );
            Ok(())
        })
    });
}
