use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout_at},
};

use self::{
    screen::{Key, Screen},
    table::View,
};
use super::{
    Daemon, coded,
    output::{Format, colour},
    runtime,
};
use crate::{
    admin::{Client, ClientError},
    edges::Sample,
};

mod screen;
mod table;

/// Which edges carry what, now: connections and bytes a second, times, losses
///
/// In a terminal it refreshes until `q`; `<` and `>` choose the column that sorts, `r` reverses, the space bar holds. Elsewhere,
/// with --once or as JSON it prints one sample. RETRANS, RESETS and DENIED count since the kernel's
/// tables were made, which outlive the daemon; times are of the sample, or of all that time where it has none. OUT is from source to destination. What only a device (`weft daemon --device`) has
/// seen is counted by whole frames, and OPEN is 0 there, as it is for datagrams.
#[derive(Debug, Args)]
pub struct Top {
    /// Seconds between two looks; the daemon reads the kernel once a second
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
    interval: u32,
    /// Print one sample and end
    #[arg(long)]
    once: bool,
    /// JSON: one object, every edge by each that tells of it (`reporter`: source, destination, device)
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    #[command(flatten)]
    daemon: Daemon,
}

/// How often it is asked whether the daemon has read the kernel again.
const POLL: Duration = Duration::from_millis(50);
/// What a reading may be late.
const PATIENCE: Duration = Duration::from_secs(5);

impl Top {
    pub fn exec(self) -> anyhow::Result<ExitCode> {
        let live = !self.once && self.output == Format::Text && io::stdout().is_terminal();
        runtime()?.block_on(async {
            if live {
                self.watch().await
            } else {
                self.print_once().await
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(self.interval.into())
    }

    async fn print_once(&self) -> anyhow::Result<()> {
        let client = Client::new(&self.daemon.state());
        let sample = self.sample(&client).await.map_err(coded)?;
        let mut out = io::stdout().lock();
        match self.output {
            Format::Json => {
                serde_json::to_writer(&mut out, &sample).map_err(io::Error::from)?;
                writeln!(out)?;
            }
            Format::Text => {
                for line in View::new(colour()).lines(&sample, None) {
                    writeln!(out, "{line}")?;
                }
            }
        }
        Ok(())
    }

    /// Two looks at least an interval of kernel readings apart.
    async fn sample(&self, client: &Client) -> Result<Sample, ClientError> {
        let before = client.edges().await?;
        let deadline = Instant::now() + self.interval() + PATIENCE;
        let interval = u64::from(self.interval) * 1_000_000;
        // A reading comes at its second, give or take what a busy machine delays it.
        let enough = interval - interval / 20;
        let later = async {
            loop {
                sleep(POLL).await;
                let now = client.edges().await?;
                if now.read_us.saturating_sub(before.read_us) >= enough {
                    return Ok(now);
                }
            }
        };
        let now = match timeout_at(deadline, later).await {
            Ok(now) => now?,
            // The daemon lives and does not read: no rates, but what there is.
            Err(_) => client.edges().await?,
        };
        Ok(Sample::between(&before, &now))
    }

    async fn watch(&self) -> anyhow::Result<()> {
        let client = Client::new(&self.daemon.state());
        let mut before = client.edges().await.map_err(coded)?;
        // The first look has no rates yet.
        let mut sample = Sample::between(&before, &before);
        let mut view = View::new(colour());
        let mut screen = Screen::open()?;
        let mut held = false;
        let mut ticks = interval(self.interval());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut term, mut hup, mut int, mut winch) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::window_change())?,
        );
        loop {
            screen.draw(&view, &sample, held)?;
            tokio::select! {
                _ = ticks.tick(), if !held => {
                    let now = client.edges().await.map_err(coded)?;
                    // The same reading says nothing new; what is shown stays.
                    if now.read_us > before.read_us {
                        sample = Sample::between(&before, &now);
                        before = now;
                    }
                }
                key = screen.key() => match key {
                    Key::Quit => return Ok(()),
                    Key::Sort(step) => view.sort_by_next(step),
                    Key::Reverse => view.reverse(),
                    Key::Hold => held = !held,
                    Key::Other => {}
                },
                _ = winch.recv() => {}
                _ = term.recv() => return Ok(()),
                _ = hup.recv() => return Ok(()),
                _ = int.recv() => return Ok(()),
            }
        }
    }
}
