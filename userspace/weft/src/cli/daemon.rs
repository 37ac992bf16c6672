use std::process::ExitCode;

use clap::Args;

use crate::{
    config::DaemonArgs,
    error::{Code, INVALID},
};

/// Mesh this node: capture, policy, proxy, DNS and metrics, until SIGTERM
#[derive(Debug, Args)]
pub struct Daemon {
    #[command(flatten)]
    args: DaemonArgs,
}

impl Daemon {
    pub fn exec(self) -> anyhow::Result<ExitCode> {
        let config = self.args.config().code(INVALID)?;
        crate::daemon::run(config)?;
        Ok(ExitCode::SUCCESS)
    }
}
