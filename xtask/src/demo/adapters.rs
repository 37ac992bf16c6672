//! The act of the demo that loads adapters into running traffic.

use std::{fs, path::Path};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use vm_test::{Lab, Running, filters::filter, poll, process};

use super::{mesh::PUBLIC, screen::Screen};

/// Requests over which 90 to 10 is counted.
const COUNTED: u64 = 1000;
/// Of these, at the generation of 10 %: 100 expected, five standard deviations to each side.
const RANGE: std::ops::RangeInclusive<u64> = 52..=148;
/// Requests at which the new generation traps, if it meets them.
const TRAPPED: usize = 200;

/// A client that asks on and on, over one connection.
struct Client(Running);

// === impl Client ===

impl Client {
    fn start(lab: &Lab) -> Result<Self> {
        let told = "%{stderr}%{http_code} %{exitcode}\n";
        let url = format!("http://shop{PUBLIC}?[1-100000000]");
        let words = ["curl", "-s", "-o", "/dev/null", "-w", told, &url];
        Running::start(lab.run("friend").command(words)).map(Self)
    }

    /// Answers so far that were not 200, and those that were.
    fn counts(&self) -> (Vec<String>, usize) {
        let said = self.0.stderr();
        // The last line may be cut.
        let whole = said.rfind('\n').map_or("", |end| &said[..end]);
        let (good, bad): (Vec<&str>, Vec<&str>) = whole.lines().partition(|line| *line == "200 0");
        (bad.into_iter().map(str::to_owned).collect(), good.len())
    }

    /// Waits for so many more.
    fn more(&mut self, count: usize) -> Result<()> {
        let before = self.counts().1;
        poll::within(process::BULK_BOUND, "more answers", || {
            let (bad, now) = self.counts();
            if !self.0.is_running()? {
                // No patience helps.
                return Ok(Err(anyhow!("the client ended after {now} good answers, and {bad:?}")));
            }
            ensure!(now >= before + count, "{} of {count}", now - before);
            Ok(Ok(()))
        })?
    }
}

pub fn hot_load(lab: &Lab, screen: &mut Screen) -> Result<()> {
    screen.act("Adapters as WebAssembly, loaded into running traffic");
    let mut client = Client::start(lab)?;
    client.more(20)?;
    screen.check("a filter in AssemblyScript", "weft apply -f guard.yaml", || {
        apply(lab, &filter("deny-path")?)?;
        let secret = lab.run("friend").curl(&format!("http://shop{PUBLIC}/secret"))?;
        ensure!(secret.http == 403, "{secret:?}");
        client.more(20)?;
        Ok(format!("{}: `{}`", secret.http, secret.body.trim()))
    })?;
    let next = filter("trap")?;
    screen.check(
        "90 to 10 with a new one in Rust",
        "weft adapter load guard trap.wasm --weight 10",
        || {
            let file = next.to_string_lossy();
            lab.weft(["adapter", "load", "guard", &file, "--weight", "10"])?.ok()?;
            let before = generations(lab)?;
            client.more(usize::try_from(COUNTED)?)?;
            let after = generations(lab)?;
            let seen = |at: usize| -> Result<u64> {
                let of = |all: &Value| all[at]["streams"].as_u64().context("requests of a generation");
                Ok(of(&after)? - of(&before).unwrap_or(0))
            };
            let (old, new) = (seen(0)?, seen(1)?);
            let share = new * COUNTED / (old + new).max(1);
            ensure!(RANGE.contains(&share), "v1 {old}, v2 {new}");
            Ok(format!("v1 {old}, v2 {new}"))
        },
    )?;
    screen.check(
        "the new one traps, and is rolled back",
        &format!("weft run --service friend -- curl -H 'x-trap: 1' 'http://shop{PUBLIC}/secret?[1-{TRAPPED}]'"),
        || {
            // Refused by whoever judges them: the old one only knows how.
            let refused = |all: &Value| all[0]["answers"].as_u64().context("answers of a generation");
            let before = refused(&generations(lab)?)?;
            let url = format!("http://shop{PUBLIC}/secret?[1-{TRAPPED}]");
            let told = "%{stderr}%{http_code}\n";
            let words = ["curl", "-s", "-o", "/dev/null", "-H", "x-trap: 1", "-w", told, &url];
            let asked = lab.run("friend").output(words)?.ok()?;
            let codes: Vec<&str> = asked.stderr.lines().collect();
            ensure!(codes == ["403"; TRAPPED], "{}", asked.stderr);
            let now = generations(lab)?;
            let why = now[1]["rolled_back"].as_str();
            let why = why.with_context(|| format!("it is not rolled back: {now}"))?;
            let by_old = refused(&now)? - before;
            ensure!(usize::try_from(by_old)? == TRAPPED, "v1 judged {by_old}: {now}");
            Ok(format!("v2 {why}; v1 judged all {by_old}"))
        },
    )?;
    let mut listed = String::new();
    screen.check("what is in force", "weft adapter list guard", || {
        listed = lab.weft(["adapter", "list", "guard"])?.ok()?.stdout;
        ensure!(listed.contains("ROLLED BACK"), "{listed}");
        Ok("said in words".to_owned())
    })?;
    screen.quote(&listed);
    screen.check(
        "the client all the while",
        &format!("weft run --service friend -- curl 'http://shop{PUBLIC}?[1-100000000]'"),
        || {
            client.more(20)?;
            client.0.kill();
            let (bad, good) = client.counts();
            ensure!(bad.is_empty(), "{good} good, and {bad:?}");
            lab.weft(["adapter", "remove", "guard"])?.ok()?;
            Ok(format!("{good} requests, not one failed"))
        },
    )
}

/// What no generation judges is refused. Each request has its own instance: one that traps takes no other with it.
fn apply(lab: &Lab, module: &Path) -> Result<()> {
    let file = lab.work().join("guard.yaml");
    let text = format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {{name: guard}}\nspec:\n  \
         target: {{services: [shop]}}\n  backend: wasm\n  failurePolicy: closed\n  \
         params: {{prefixes: [{PUBLIC}/secret]}}\n  wasm: {{module: {}, instances: request}}\n",
        module.display()
    );
    fs::write(&file, text).context("write guard.yaml")?;
    lab.weft(["apply", "-f", &file.to_string_lossy()])?.ok().map(drop)
}

/// What the generations of `guard` did.
fn generations(lab: &Lab) -> Result<Value> {
    let all = lab.weft(["adapter", "stats", "guard", "-o", "json"])?.ok()?.json()?;
    Ok(all[0]["generations"].clone())
}
