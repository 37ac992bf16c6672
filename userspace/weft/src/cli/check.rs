use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde::Serialize;
use weft_adapters::native::Catalog;
use weft_policy::{Allocations, CompileInput, Diagnostic, ObjectStatus, Shared, Store, compile};

use super::{
    files,
    output::{Format, print_json},
};
use crate::error::INVALID;

/// Say what is wrong with resource files, without a daemon
///
/// Prints `file:line:col: error: ...` on stderr; exit code 2 if there is any error. What refers to objects that are not
/// among the files is a warning.
#[derive(Debug, Args)]
pub struct Check {
    /// YAML (or JSON) file, folder of YAML files, or `-` for stdin
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Debug, Serialize)]
struct Outcome {
    diagnostics: Vec<Diagnostic>,
    objects: Shared<Vec<ObjectStatus>>,
}

impl Check {
    pub fn exec(self) -> anyhow::Result<ExitCode> {
        let inputs = files::read_all(&self.files)?;
        let mut store = Store::with_adapters(&Catalog);
        for input in &inputs {
            store.apply_file(&input.name, &input.bytes);
        }
        let compiled = compile(&CompileInput::of(&store), &mut Allocations::default());
        // A file says another thing beside the files that came after it.
        let mut diagnostics: Vec<_> = store.diagnostics().chain(compiled.diagnostics).collect();
        diagnostics.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        diagnostics.dedup();
        let outcome = Outcome {
            diagnostics,
            objects: compiled.snapshot.statuses,
        };
        let errors = outcome
            .diagnostics
            .iter()
            .filter(|diagnostic| diagnostic.is_error())
            .count();
        match self.output {
            Format::Json => print_json(&outcome)?,
            Format::Text => {
                for diagnostic in &outcome.diagnostics {
                    eprintln!("{diagnostic}");
                }
                let warnings = outcome.diagnostics.len() - errors;
                eprintln!(
                    "{} in {}: {}, {}",
                    count(store.objects().count(), "object"),
                    count(inputs.len(), "file"),
                    count(errors, "error"),
                    count(warnings, "warning"),
                );
            }
        }
        Ok(if errors > 0 { INVALID.into() } else { ExitCode::SUCCESS })
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
