use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, ValueEnum};

use super::{
    Daemon, coded,
    output::{Format, colour},
    runtime,
};
use crate::{
    admin::{Client, ClientError, FlowLine, FlowReader},
    flows::FlowPrinter,
};

/// A follower whose daemon is gone asks so often, after such a pause, for another: 5 s in all, which a restart takes.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Who talked to whom, what the verdict was, and which rule said so
///
/// One line an event: time (UTC), source -> destination, what, verdict, then error or status, bytes, round trip time, the
/// rule and its reason.
#[derive(Debug, Args)]
pub struct Flows {
    /// Go on with what happens from now on
    #[arg(long)]
    follow: bool,
    /// JSON: one object a line
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// At most so many of the kept ones: the newest
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    #[arg(long, value_enum)]
    verdict: Option<Verdict>,
    /// Only from this service or account: NAME or NAMESPACE/NAME
    #[arg(long, value_name = "WHO")]
    from: Option<String>,
    /// Only to this service, account or address: NAME, NAMESPACE/NAME, ADDRESS or ADDRESS:PORT
    #[arg(long, value_name = "WHOM")]
    to: Option<String>,
    #[command(flatten)]
    daemon: Daemon,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Verdict {
    Allow,
    Deny,
    /// Let through, but a policy under audit would deny it
    Audit,
}

impl Flows {
    pub fn exec(self) -> anyhow::Result<ExitCode> {
        runtime()?.block_on(self.print())
    }

    async fn print(self) -> anyhow::Result<ExitCode> {
        let mut lines = self.ask(self.last).await.map_err(coded)?;
        let mut printer = FlowPrinter::new(colour());
        let mut kept = Vec::new();
        loop {
            let Some(line) = lines.next().await.map_err(coded)? else {
                if !self.follow {
                    break;
                }
                lines = self.ask_the_next().await?;
                continue;
            };
            match line {
                FlowLine::Lagged(missed) => eprintln!("weft: {missed} flows passed by unseen: too slow"),
                FlowLine::Dropped(lost) => {
                    eprintln!("weft: {lost} flows were lost before the daemon saw them (counters have them)");
                }
                FlowLine::Flow { json, .. } if self.output == Format::Json => say(&json)?,
                FlowLine::Flow { flow, .. } if self.follow => say(&printer.line(&flow))?,
                FlowLine::Flow { flow, .. } => {
                    printer.measure(&flow);
                    kept.push(flow);
                }
            }
        }
        for flow in &kept {
            say(&printer.line(flow))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn ask(&self, last: Option<usize>) -> Result<FlowReader, ClientError> {
        let parameters = self.parameters(last);
        let parameters: Vec<_> = parameters.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Client::new(&self.daemon.state()).flows(&parameters).await
    }

    /// The daemon stopped or handed over: whoever answers next goes on, without what was told already.
    async fn ask_the_next(&self) -> anyhow::Result<FlowReader> {
        let mut tries = 1;
        loop {
            tokio::time::sleep(PAUSE).await;
            match self.ask(Some(0)).await {
                Ok(lines) => {
                    eprintln!("weft: another daemon answers; flows of the moment in between are not shown");
                    return Ok(lines);
                }
                Err(_) if tries < TRIES => tries += 1,
                Err(error) => return Err(coded(error).context("follow flows: the daemon has stopped")),
            }
        }
    }

    fn parameters(&self, last: Option<usize>) -> Vec<(&'static str, String)> {
        let verdict = self.verdict.map(|verdict| match verdict {
            Verdict::Allow => "allow".to_owned(),
            Verdict::Deny => "deny".to_owned(),
            Verdict::Audit => "audit".to_owned(),
        });
        let last = last.map(|last| last.to_string());
        let follow = self.follow.then(|| "1".to_owned());
        [
            ("follow", follow),
            ("last", last),
            ("verdict", verdict),
            ("from", self.from.clone()),
            ("to", self.to.clone()),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

/// stdout is line buffered, so a follower's reader sees each line at once.
fn say(line: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{line}")
}
