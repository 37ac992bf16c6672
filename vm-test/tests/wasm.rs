//! Kind `Adapter` with `backend: wasm`: real modules in the way of real traffic.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_test::{Lab, Nginx, Run, curl, filters::filter, lab_test, poll};

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

/// Applies an Adapter of namespace `default` on service `web`.
fn apply(lab: &Lab, name: &str, module: &Path, rest: &str) -> Result<String> {
    let file = lab.work().join(format!("{name}.yaml"));
    let text = format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {{name: {name}}}\n\
         spec: {{target: {{services: [web]}}, backend: wasm, {}}}\n",
        rest.replace("MODULE", &format!("module: {}", module.display()))
    );
    fs::write(&file, text).context("write a file to apply")?;
    Ok(lab.weft(["apply", "-f", &file.to_string_lossy()])?.ok()?.stdout)
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
            let said = apply(lab, "auth", module, rest)?;
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
