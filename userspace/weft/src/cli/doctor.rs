use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;

use super::{
    Daemon,
    output::{Format, Table, dash, print_json},
};
use crate::{admin::api::DoctorReport, error::FAILED};

/// Prove that the kernel hooks decide as they should, and say what they cost and which kernel features are missing
///
/// Exit code 1 if something does not work as it should.
#[derive(Debug, Args)]
pub struct Doctor {
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    #[command(flatten)]
    daemon: Daemon,
}

impl Doctor {
    pub fn exec(self) -> anyhow::Result<ExitCode> {
        let report = self.daemon.ask(async |client| client.doctor().await)?;
        match self.output {
            Format::Json => print_json(&report)?,
            Format::Text => print(&report)?,
        }
        Ok(if report.problems.is_empty() {
            ExitCode::SUCCESS
        } else {
            FAILED.into()
        })
    }
}

fn print(report: &DoctorReport) -> io::Result<()> {
    let out = &mut io::stdout().lock();
    let yes = |yes: bool| if yes { "yes" } else { "NO" }.to_owned();
    let mut hooks = Table::new(["HOOK", "ATTACHED", "EFFECTIVE", "NS/RUN"]);
    for hook in &report.hooks {
        let cost = hook.ns_per_run.map(|ns| format!("{ns:.0}"));
        hooks.row([
            hook.name.clone(),
            yes(hook.attached),
            hook.effective.map_or_else(|| "-".to_owned(), yes),
            dash(cost),
        ]);
    }
    hooks.write(out, 0)?;
    let mut verdicts = Table::new(["VERDICT", "RESULT"]);
    for verdict in &report.verdicts {
        let result = if verdict.ok { "ok" } else { "PROBLEM" };
        verdicts.row([verdict.name.clone(), result.to_owned()]);
    }
    if !verdicts.is_empty() {
        writeln!(out)?;
        verdicts.write(out, 0)?;
    }
    let mut features = Table::new(["FEATURE", "PRESENT", "USED FOR"]);
    for feature in &report.features {
        features.row([feature.name.clone(), yes(feature.present), feature.used_for.clone()]);
    }
    if !features.is_empty() {
        writeln!(out)?;
        features.write(out, 0)?;
    }
    writeln!(out)?;
    for (which, cut) in [("last", &report.cuts.last), ("slowest", &report.cuts.slowest)] {
        if let Some(cut) = cut {
            writeln!(
                out,
                "{which} change that cut connections: {} of them, dropped after {:.1} ms, all reset {:.1} ms later",
                cut.connections, cut.in_force_ms, cut.reset_ms
            )?;
        }
    }
    for problem in &report.problems {
        writeln!(out, "PROBLEM  {}: {}; {}", problem.what, problem.why, problem.instead)?;
    }
    if report.problems.is_empty() {
        writeln!(out, "no problems")?;
    }
    Ok(())
}
