//! `weft run`: registers a workload, becomes it, and is gone. What stays is the command itself, as our process.

mod port;
mod user;

use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, anyhow};
use clap::Args;
use tokio::time::{Instant, sleep};

use super::{Daemon, explain::key_value, runtime};
use crate::{
    admin::{
        Client, ClientError,
        api::{RegisterRequest, RegisterResponse},
    },
    error::{Code, Coded, NOT_EXECUTABLE, NOT_FOUND, RUN_FAILED},
    registry::{enter_cgroup, own_netns},
};
use port::PortSpec;
use user::User;

/// How long the daemon may take to come up: it starts beside us in scripts and demos.
const DAEMON_PATIENCE: Duration = Duration::from_secs(5);
/// We wait so long without a word.
const SILENT_WAIT: Duration = Duration::from_millis(500);
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(20);

/// Run a command, unchanged, as a meshed workload
///
/// The command replaces weft: exit code and signals are its own. 125: it was not started, 126: it is not executable,
/// 127: it was not found.
#[derive(Debug, Args)]
pub struct Run {
    /// Service that it joins; made if no resource defines it
    #[arg(long, value_name = "NAME")]
    service: String,
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// Port of the service, and the port that the command listens on where that is another; may be repeated
    #[arg(long = "port", value_name = "SERVICE_PORT[:TARGET_PORT][/tcp|/udp]")]
    ports: Vec<PortSpec>,
    /// Service account [default: name of the service]
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// May be repeated
    #[arg(long = "label", value_name = "K=V", value_parser = key_value)]
    labels: Vec<(String, String)>,
    /// Drop privileges to this user (name or number), and hide the cgroup and bpf file systems
    #[arg(long, value_name = "U")]
    user: Option<String>,
    #[command(flatten)]
    daemon: Daemon,
    #[arg(
        value_name = "CMD",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<OsString>,
}

impl Run {
    pub fn exec(self) -> anyhow::Result<ExitCode> {
        // The user is looked up before anything is done that would have to be undone.
        let user = self.user.as_deref().map(User::find).transpose().code(RUN_FAILED)?;
        self.enter(user.as_ref()).context("run").code(RUN_FAILED)?;

        let (program, args) = self.command.split_first().context("a command is required")?;
        let mut command = Command::new(program);
        command.args(args);
        if let Some(user) = &user {
            user.set_environment(&mut command);
        }
        // Only returns if it failed; our exit then empties the cgroup, which is how the daemon learns of it.
        let error = command.exec();
        let code = if error.kind() == io::ErrorKind::NotFound {
            NOT_FOUND
        } else {
            NOT_EXECUTABLE
        };
        let program = program.to_string_lossy().into_owned();
        Err(Coded::error(
            code,
            anyhow::Error::new(error).context(format!("run {program}")),
        ))
    }

    /// Makes this process the workload; all but the command itself.
    fn enter(&self, user: Option<&User>) -> anyhow::Result<()> {
        let netns = own_netns()?;
        let client = Client::new(&self.daemon.state());
        // Its threads must be gone before the process becomes another: it has none but ours, and ends here.
        runtime()?.block_on(async {
            let workload = self.register(&client).await?;
            let entered = check_netns(netns, &workload)
                .and_then(|()| enter_cgroup(&workload.cgroup).map_err(anyhow::Error::from));
            if entered.is_err() {
                // Else the daemon would wait for us. What fails now is less than what failed before.
                let _ = client.deregister(&workload.name).await;
            }
            entered
        })?;
        match user {
            Some(user) => user.become_them(),
            None => Ok(()),
        }
    }

    async fn register(&self, client: &Client) -> anyhow::Result<RegisterResponse> {
        let request = self.request();
        let started = Instant::now();
        let mut said = false;
        loop {
            match client.register(&request).await {
                Err(ClientError::NoDaemon { .. }) if started.elapsed() < DAEMON_PATIENCE => {
                    if !said && started.elapsed() >= SILENT_WAIT {
                        eprintln!("weft: waiting for the daemon");
                        said = true;
                    }
                    sleep(RETRY).await;
                }
                result => return Ok(result?),
            }
        }
    }

    fn request(&self) -> RegisterRequest {
        RegisterRequest {
            namespace: self.namespace.clone(),
            service: self.service.clone(),
            account: self.account.clone().unwrap_or_else(|| self.service.clone()),
            ports: self.ports.iter().flat_map(PortSpec::ports).collect(),
            labels: self.labels.iter().cloned().collect(),
            command: self
                .command
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
        }
    }
}

/// Only in the daemon's network namespace do its listeners and virtual IPs mean anything.
fn check_netns(ours: u64, workload: &RegisterResponse) -> anyhow::Result<()> {
    if ours == workload.netns {
        return Ok(());
    }
    let pid = workload.daemon_pid;
    Err(anyhow!(
        "this is not the daemon's network namespace; enter it first: nsenter --net=/proc/{pid}/ns/net weft run ..."
    ))
}
