//! Client processes: started in their accounts, heard line by line, ended by their number.

use std::{
    io::{BufRead, BufReader, PipeReader, pipe},
    process::Stdio,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Sender, channel},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, bail};
use vm_test::{
    Hosts, Running, poll,
    soak::{Flow, Random, Told},
};

use super::{
    judge::Judge,
    stream::{Client, Stream},
};

/// A running client; dropped, it is killed.
pub struct Talking {
    process: Running,
    reader: Option<JoinHandle<Result<Silent>>>,
}

/// Streams on which nothing was tried at all: the client, not the mesh, is broken.
type Silent = Vec<String>;

/// A client outlives its soak by so much if nobody ends it.
const SPARE_SECONDS: u64 = 120;

pub fn lock(judge: &Mutex<Judge>) -> MutexGuard<'_, Judge> {
    judge.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts all clients, and returns when each has said that it runs.
///
/// # Errors
/// One does not start.
pub fn start(
    hosts: &Hosts,
    clients: Vec<Client>,
    seconds: u64,
    random: &mut Random,
    judge: &Arc<Mutex<Judge>>,
) -> Result<Vec<Talking>> {
    let (started, running) = channel();
    let count = clients.len();
    let talking: Vec<Talking> = clients
        .into_iter()
        .map(|client| start_one(hosts, client, seconds, random.draw(), judge, started.clone()))
        .collect::<Result<_>>()?;
    for _ in 0..count {
        poll::until("all clients to run", || running.try_recv().context("not all do"))?;
    }
    Ok(talking)
}

fn start_one(
    hosts: &Hosts,
    client: Client,
    seconds: u64,
    seed: u64,
    judge: &Arc<Mutex<Judge>>,
    started: Sender<()>,
) -> Result<Talking> {
    let host = hosts.host(client.host);
    let flows: Vec<&Flow> = client.streams.iter().map(|stream| &stream.flow).collect();
    let flows = serde_json::to_string(&flows).context("write the flows")?;
    let words = [
        host.traffic()?,
        "soak".to_owned(),
        seed.to_string(),
        (seconds + SPARE_SECONDS).to_string(),
        flows,
    ];
    let command = match client.account {
        Some(account) => host.run(account.name()).command(words),
        None => host.command(words),
    };
    let (lines, out) = pipe().context("make a pipe")?;
    let process = Running::start_logging(command, out.into(), Stdio::inherit())?;
    let judge = Arc::clone(judge);
    let reader = thread::spawn(move || hear(lines, &client.streams, &judge, &started));
    Ok(Talking {
        process,
        reader: Some(reader),
    })
}

fn hear(lines: PipeReader, streams: &[Stream], judge: &Mutex<Judge>, started: &Sender<()>) -> Result<Silent> {
    let mut rounds = vec![0; streams.len()];
    for line in BufReader::new(lines).lines() {
        let line = line.context("listen to a client")?;
        let told: Told = serde_json::from_str(&line).with_context(|| format!("a client said `{line}`"))?;
        if told == Told::Started {
            // Whoever waited may have given up.
            let _ = started.send(());
        }
        if let Told::Counts(counts) = &told {
            let tried = counts.iter().map(|counts| counts.ok + counts.failed);
            rounds
                .iter_mut()
                .zip(tried)
                .for_each(|(rounds, tried)| *rounds += tried);
        }
        lock(judge).take(streams, &told);
    }
    let silent = streams.iter().zip(&rounds).filter(|(_, rounds)| **rounds == 0);
    Ok(silent.map(|(stream, _)| stream.to_string()).collect())
}

// === impl Talking ===

impl Talking {
    /// # Errors
    /// It has ended, or said what nobody understands.
    pub fn check(&mut self) -> Result<()> {
        if self.reader.as_ref().is_some_and(JoinHandle::is_finished) || !self.process.is_running()? {
            self.end()?;
            bail!("a client ended by itself");
        }
        Ok(())
    }

    /// Kills it and waits until all it said is judged; the streams that it never tried.
    ///
    /// # Errors
    /// It said what nobody understands.
    pub fn end(&mut self) -> Result<Silent> {
        self.process.kill();
        match self.reader.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => bail!("the judge panicked"),
            None => Ok(Silent::new()),
        }
    }
}
