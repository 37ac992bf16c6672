use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::bail;
use clap::Args;

use super::{
    Daemon, files,
    output::{Format, print_json},
};
use crate::{
    admin::{MAX_YAML_BYTES, api::ApplyOutcome},
    error::{Code, INVALID},
};

/// Store resources in the daemon, where they survive a restart
///
/// Each object is accepted or refused by itself; exit code 2 if any was refused, or is stored and not in force.
#[derive(Debug, Args)]
pub struct Apply {
    /// YAML (or JSON) file, folder of YAML files, or `-` for stdin
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    #[command(flatten)]
    daemon: Daemon,
}

impl Apply {
    pub fn exec(self) -> anyhow::Result<ExitCode> {
        let inputs = files::read_all(&self.files)?;
        let mut total = ApplyOutcome::default();
        for input in inputs {
            let size = input.bytes.len();
            if size > MAX_YAML_BYTES {
                let refused: anyhow::Result<()> =
                    (|| bail!("apply {}: {size} bytes are too many; split it", input.name))();
                refused.code(INVALID)?;
            }
            let outcome = self
                .daemon
                .ask(async |client| client.apply(&input.name, input.bytes).await)?;
            if self.output == Format::Text {
                print(&outcome)?;
            }
            total.generation = outcome.generation;
            total.objects.extend(outcome.objects);
            total.diagnostics.extend(outcome.diagnostics);
        }
        if self.output == Format::Json {
            print_json(&total)?;
        }
        Ok(if total.has_errors() {
            INVALID.into()
        } else {
            ExitCode::SUCCESS
        })
    }
}

fn print(outcome: &ApplyOutcome) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for object in &outcome.objects {
        write!(out, "{} {}", object.key, object.action)?;
        match &object.state {
            Some(state) if !object.reason.is_empty() => writeln!(out, " ({state:?}: {})", object.reason)?,
            _ => writeln!(out)?,
        }
    }
    for diagnostic in &outcome.diagnostics {
        eprintln!("{diagnostic}");
    }
    Ok(())
}
