//! curl as the client of a lab: what it said, as a test asks for it.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::{poll, process::Output, workload::Run};

/// Exit code of curl when connect() fails.
pub const COULD_NOT_CONNECT: i32 = 7;
/// Exit code of curl when nobody answers in time.
pub const TIMED_OUT: i32 = 28;
/// Exit code of curl when a name is not resolved.
pub const COULD_NOT_RESOLVE: i32 = 6;

/// Longest run of curl, on a real machine: longer than any answer takes, shorter than the bound on its process.
const MAX_TIME: Duration = Duration::from_secs(30);

/// `--max-time` of a curl that should end with `code`: short where nothing is to come; else longer than any answer takes, and
/// short enough for another look ([`poll::until`]).
pub fn max_time(code: i32) -> String {
    match code {
        TIMED_OUT => "1".to_owned(),
        _ => (poll::scaled(poll::PATIENCE) / 2).as_secs().to_string(),
    }
}

/// One run of curl. Where its URL stands for several requests, all but the bodies is that of the last one.
#[derive(Debug, Clone)]
pub struct Answer {
    /// curl's exit code.
    pub code: i32,
    /// Status of the response; 0 without one.
    pub http: u16,
    /// Of all requests, one behind the other.
    pub body: String,
    /// `%{time_total}`: from curl's start of the transfer to its end.
    pub total: Duration,
    /// `%{remote_ip}` and `%{remote_port}`: whom curl believes to talk to (getpeername).
    pub remote: String,
    /// What `-v` told.
    pub told: String,
}

/// Printed by curl behind each body, between separators that no body of ours has.
const TRAILER: &str = "\u{1e}%{http_code} %{time_total} %{remote_ip} %{remote_port}\u{1e}";
const SEPARATOR: char = '\u{1e}';

// === impl Run ===

impl Run<'_> {
    /// `curl -sv URL` in the mesh.
    ///
    /// # Errors
    /// curl does not end. A request that fails is an [`Answer`].
    pub fn curl(&self, url: &str) -> Result<Answer> {
        self.curl_with(&[], url)
    }

    /// The same with more flags.
    ///
    /// # Errors
    /// As [`Run::curl`].
    pub fn curl_with(&self, flags: &[&str], url: &str) -> Result<Answer> {
        Answer::of(self.output(words(flags, url))?)
    }
}

/// curl's command line, for [`Answer::of`] to read what it prints.
pub(crate) fn words(flags: &[&str], url: &str) -> Vec<String> {
    let max_time = poll::scaled(MAX_TIME).as_secs().to_string();
    let head = ["curl", "-sv", "--max-time", max_time.as_str(), "-w", TRAILER];
    head.iter()
        .chain(flags)
        .chain([&url])
        .map(|word| (*word).to_owned())
        .collect()
}

// === impl Answer ===

impl Answer {
    /// Reads what curl printed with our trailer.
    ///
    /// # Errors
    /// It is not there: curl was killed or not started.
    pub fn of(output: Output) -> Result<Self> {
        let Output {
            line,
            code,
            stdout,
            stderr,
            ..
        } = output;
        let read = || {
            let (bodies, trailers): (Vec<_>, Vec<_>) =
                stdout.split(SEPARATOR).enumerate().partition(|(at, _)| at % 2 == 0);
            let mut words = trailers.last()?.1.split(' ');
            let http = words.next()?.parse().ok()?;
            let total = Duration::try_from_secs_f64(words.next()?.parse().ok()?).ok()?;
            let remote = words.collect::<Vec<_>>().join(" ");
            let body = bodies.into_iter().map(|(_, body)| body).collect();
            Some(Self {
                code,
                http,
                body,
                total,
                remote,
                told: stderr.clone(),
            })
        };
        read().with_context(|| format!("`{line}` ended with {code} and printed:\n{stdout}\n{stderr}"))
    }
}
