//! The torture suite (`vm_test::torture`) on every path of this kernel: what a short-circuit must not change.
//!
//! With nothing short-circuited everything must be right. With it, some of it is for the kernel to decide, and known to be
//! wrong in some: that is told, recorded by `cargo xtask vm-test` and looked up by the daemon, and no failure here.

use std::{collections::BTreeMap, env, fs};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vm_test::{
    Lab, lab_test, poll, process, resources,
    torture::{BLOCKING, BUFFERS, CASES, Cell, MANY, MEMORY, MOST_UNREAD, Mode, Outcome},
};

/// Bytes of a huge write: `WEFT_TEST_BYTES`, or this.
const DEFAULT_BYTES: &str = "67108864";

/// Short-circuits whatever the daemon's self-test says of this kernel: that is what is tested.
const FORCE: &[&str] = &["--short-circuit", "force"];

/// Where kernels differ with short-circuits: programs that do this must not be short-circuited there. The rest must be right
/// in every kernel that we know.
const KERNEL: &[&str] = &["splice", "peek", "unread", "sendfile", "ktls", BLOCKING];

/// The outcome of each case.
type Cells = BTreeMap<String, Outcome>;

/// All cases on one path, over both families.
fn run(lab: &Lab, direct: bool) -> Result<Cells> {
    let mut cells = run_over(lab, direct, "ahostsv4")?;
    worst(&mut cells, run_over(lab, direct, "ahostsv6")?, "over IPv6");
    Ok(cells)
}

/// What is wrong in `others` alone takes the place of what is right.
fn worst(cells: &mut Cells, others: Cells, whose: &str) {
    for (case, outcome) in others {
        if let Outcome::Wrong(why) = outcome
            && cells.get(&case).is_none_or(Outcome::is_green)
        {
            cells.insert(case, Outcome::Wrong(format!("{whose}: {why}")));
        }
    }
}

fn run_over(lab: &Lab, direct: bool, database: &str) -> Result<Cells> {
    for (name, sizes) in BUFFERS {
        let write = format!("echo '{sizes}' > /proc/sys/net/ipv4/{name}");
        lab.outside(["sh", "-c", &write])?.ok()?;
    }
    let traffic = lab.traffic()?;
    let bytes = env::var("WEFT_TEST_BYTES").unwrap_or_else(|_| DEFAULT_BYTES.to_owned());
    let folder = lab.work().join("torture");
    fs::create_dir(&folder).context("make a folder of both ends")?;
    let dir = folder.display().to_string();
    let mut served = lab.run("bulk");
    for number in 1..=CASES.len() + 1 {
        served = served.port(&format!("{number}:{}", 7100 + number));
    }
    let mut server = served.start([&traffic, "serve-torture", "[::]", "7101", &dir, &bytes])?;
    server.line(1)?;
    let host = lab.host("bulk", database)?;
    let client = lab.run("client").command([&traffic, "torture", &host, &dir, &bytes]);
    let mut told = process::output(client, process::BULK_BOUND)?.ok()?.json_lines()?;
    let done = told.pop().context("the client says what it did")?;
    let connections = CASES.len() as u64 + done["short"].as_u64().with_context(|| format!("{done}"))?;
    // What the server's ends never say is told by those that are missing.
    let _ = poll::until("the server's ends", || {
        let lines = server.stdout().lines().count() as u64 - 1;
        ensure!(lines >= connections, "{lines} of {connections}");
        Ok(())
    });
    for line in server.stdout().lines().skip(1) {
        told.push(serde_json::from_str(line).with_context(|| format!("the server said {line}"))?);
    }
    drop(server);
    fs::remove_dir_all(folder).context("remove the folder of both ends")?;
    let mut cells: Cells = CASES
        .into_iter()
        .map(|case| (case.to_owned(), one(case, &of(&told, case), direct)))
        .collect();
    cells.insert(
        MANY.to_owned(),
        many(&of(&told, MANY), connections - CASES.len() as u64),
    );
    cells.insert(MEMORY.to_owned(), memory(&told));
    cells.insert(BLOCKING.to_owned(), blocking(&told));
    Ok(cells)
}

fn of<'a>(told: &'a [Value], case: &str) -> Vec<&'a Value> {
    told.iter().filter(|line| line["case"] == case).collect()
}

/// A case of one connection: both ends are content, and what one sent the other received.
fn one(case: &str, ends: &[&Value], direct: bool) -> Outcome {
    let wrong: Vec<String> = ends
        .iter()
        .filter_map(|end| Some(format!("{}: {}", end["side"].as_str()?, end["wrong"].as_str()?)))
        .collect();
    if !wrong.is_empty() {
        return Outcome::Wrong(wrong.join("; "));
    }
    let [a, b] = ends else {
        return Outcome::Wrong(format!("{} of 2 ends came to an end", ends.len()));
    };
    if a["sent"] != b["received"] || a["received"] != b["sent"] {
        return Outcome::Wrong(format!("sent and received differ: {a} {b}"));
    }
    let note = |words: &str| a["note"] == words || b["note"] == words;
    if direct && case.starts_with("reset") && !note("reset") {
        return Outcome::Wrong("a reset came as an end".to_owned());
    }
    if note("absent") {
        return Outcome::Absent("no kernel TLS".to_owned());
    }
    if note("refused") { Outcome::Refused } else { Outcome::Ok }
}

fn many(ends: &[&Value], connections: u64) -> Outcome {
    let wrong: Vec<&Value> = ends.iter().filter(|end| !end["wrong"].is_null()).copied().collect();
    match wrong.first() {
        Some(first) => Outcome::Wrong(format!("{} of {} ends, the first: {first}", wrong.len(), ends.len())),
        None if ends.len() as u64 != 2 * connections => {
            Outcome::Wrong(format!("{} of {} ends", ends.len(), 2 * connections))
        }
        None => Outcome::Ok,
    }
}

fn memory(told: &[Value]) -> Outcome {
    let most = told.iter().filter_map(|end| end["filled"].as_u64()).max().unwrap_or(0);
    if most < MOST_UNREAD {
        Outcome::Ok
    } else {
        Outcome::Wrong(format!("a sender got rid of {} MiB that nobody read", most >> 20))
    }
}

fn blocking(told: &[Value]) -> Outcome {
    match told.iter().filter_map(|end| end["eagain"].as_u64()).sum::<u64>() {
        0 => Outcome::Ok,
        _ => Outcome::Wrong("blocking reads said EAGAIN before their time was up".to_owned()),
    }
}

fn through_the_proxy(lab: &Lab) -> Result<()> {
    poll::until("connections to visit the proxy", || {
        let status = lab.status()?;
        let ports = status["services"][0]["ports"].as_array().context("ports")?;
        ensure!(
            !ports.is_empty() && ports.iter().all(|port| port["path"] == "proxy"),
            "{status}"
        );
        Ok(())
    })
}

/// Tells every cell; what must be right is.
fn judge(mode: Mode, cells: Cells) -> Result<()> {
    let mut wrong = Vec::new();
    for (case, outcome) in cells {
        let may_be = match mode {
            Mode::Off => false,
            Mode::Proxy => KERNEL.contains(&case.as_str()),
            // Nothing bounds what a program leaves unread (`weft_abi::UNHEARD` says what does for our proxy).
            Mode::Full => case == MEMORY || KERNEL.contains(&case.as_str()),
        };
        if let Outcome::Wrong(why) = &outcome
            && !may_be
        {
            wrong.push(format!("{case}: {why}"));
        }
        // What is refused is ours to say, not the kernel's: a ULP, of a connection that is handed bytes both ways.
        let as_we_say = match mode {
            Mode::Off => outcome != Outcome::Refused,
            Mode::Full if case == "ktls" => outcome == Outcome::Refused,
            Mode::Proxy | Mode::Full => true,
        };
        if !as_we_say {
            wrong.push(format!("{case}: {outcome:?}"));
        }
        Cell { mode, case, outcome }.tell();
    }
    if !wrong.is_empty() {
        bail!("mode {mode}:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

#[test]
fn nothing_is_wrong_without_short_circuits() {
    lab_test("torture-off", |lab| {
        lab.daemon()?;
        let direct = run(lab, true)?;
        lab.resource("bulk.yaml", &resources::through_proxy("bulk", "off"))?;
        through_the_proxy(lab)?;
        let mut cells = run(lab, false)?;
        worst(&mut cells, direct, "directly");
        judge(Mode::Off, cells)
    });
}

#[test]
fn what_the_proxy_is_handed_past_tcp_is_right() {
    lab_test("torture-proxy", |lab| {
        lab.resource("bulk.yaml", &resources::through_proxy("bulk", "proxy"))?;
        lab.daemon_with(FORCE)?;
        through_the_proxy(lab)?;
        judge(Mode::Proxy, run(lab, false)?)
    });
}

#[test]
fn what_programs_hand_one_another_past_tcp_is_right() {
    lab_test("torture-full", |lab| {
        lab.resource("bulk.yaml", &resources::service_policy("bulk", &["acceleration: full"]))?;
        lab.daemon_with(FORCE)?;
        let direct = run(lab, true)?;
        lab.resource("bulk.yaml", &resources::through_proxy("bulk", "full"))?;
        through_the_proxy(lab)?;
        let mut cells = run(lab, false)?;
        worst(&mut cells, direct, "directly");
        judge(Mode::Full, cells)
    });
}
