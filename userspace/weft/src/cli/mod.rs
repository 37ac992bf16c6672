//! The commands: one file a verb, each with its flags and what it does.

mod adapter;
mod apply;
mod check;
mod daemon;
mod delete;
mod doctor;
mod explain;
mod files;
mod flows;
mod get;
mod output;
mod run;
mod status;
mod top;
mod uninstall;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use http::StatusCode;

use crate::{
    admin::{Client, ClientError},
    error::{Coded, FAILED, INVALID, UNSUPPORTED},
    state_dir::StateDir,
};

/// A transparent service mesh for one node: unchanged programs, meshed by the kernel.
#[derive(Debug, Parser)]
#[command(name = "weft", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage or invalid resources, 3 needs privileges or kernel features.\n\
                          weft run: those of the command; 125 it was not started, 126 not executable, 127 not found.";

#[derive(Debug, Subcommand)]
enum Verb {
    Daemon(daemon::Daemon),
    Run(run::Run),
    Apply(apply::Apply),
    Get(get::Get),
    Delete(delete::Delete),
    Check(check::Check),
    Status(status::StatusArgs),
    Flows(flows::Flows),
    Top(top::Top),
    Explain(explain::Explain),
    Adapter(adapter::Adapter),
    Doctor(doctor::Doctor),
    Uninstall(uninstall::Uninstall),
    /// What `weft doctor` runs to prove the hooks
    #[command(name = crate::daemon::doctor::CANARY, hide = true)]
    Canary {
        /// Directory of its cgroups
        cgroups: PathBuf,
    },
    /// What `cargo xtask vm-test` runs in each kernel: loads every program, attaches none, prints JSON
    #[command(name = "__verify", hide = true)]
    Verify,
}

/// Which daemon to talk to.
#[derive(Debug, Clone, Args)]
struct Daemon {
    /// State directory of the daemon [default: /run/weft for its socket, /var/lib/weft for its state]
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
}

// === impl Cli ===

impl Cli {
    /// Does what the command line asks for.
    pub fn dispatch(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Daemon(verb) => verb.exec(),
            Verb::Run(verb) => verb.exec(),
            Verb::Apply(verb) => verb.exec(),
            Verb::Get(verb) => verb.exec(),
            Verb::Delete(verb) => verb.exec(),
            Verb::Check(verb) => verb.exec(),
            Verb::Status(verb) => verb.exec(),
            Verb::Flows(verb) => verb.exec(),
            Verb::Top(verb) => verb.exec(),
            Verb::Explain(verb) => verb.exec(),
            Verb::Adapter(verb) => verb.exec(),
            Verb::Doctor(verb) => verb.exec(),
            Verb::Uninstall(verb) => verb.exec(),
            Verb::Verify => {
                output::print_json(&weft_dataplane::verify()?)?;
                Ok(ExitCode::SUCCESS)
            }
            Verb::Canary { cgroups } => {
                for verdict in weft_dataplane::prove(&cgroups)? {
                    println!("{verdict}");
                }
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

// === impl Daemon ===

impl Daemon {
    fn state(&self) -> StateDir {
        StateDir::new(self.state_dir.as_deref())
    }

    /// Asks the daemon something and waits for the answer.
    fn ask<T>(&self, question: impl AsyncFnOnce(Client) -> Result<T, ClientError>) -> anyhow::Result<T> {
        let client = Client::new(&self.state());
        runtime()?.block_on(question(client)).map_err(coded)
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// The exit code that the contract gives what a daemon answers.
fn coded(error: ClientError) -> anyhow::Error {
    let code = match &error {
        ClientError::NotAllowed { .. } => UNSUPPORTED,
        ClientError::Refused {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            ..
        } => INVALID,
        _ => FAILED,
    };
    Coded::error(code, error)
}
