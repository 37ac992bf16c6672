//! Report adapter that writes the access log: one line a request (and, where asked for, a connection).
//!
//! Lines of a batch are written at once. A log that cannot be written loses lines, which are counted, and nothing else.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tracing::warn;

use crate::{
    error::AdapterError,
    export::ExportMetrics,
    native::{Context, Native, Part, Role},
    record::{Flow, Record},
    reporter::Report,
};

mod config;
mod template;

pub use config::{Config, DEFAULT_TEMPLATE, Format, Level};
pub use template::{Template, TemplateError};

/// Longest line. What comes from clients (path, user agent) may be long; a log is no place to store it.
pub const MAX_LINE: usize = 8 * 1024;

/// The adapter.
#[derive(Debug)]
pub struct Stdio {
    name: String,
    config: Config,
    output: Output,
    /// Lines of the batch at hand.
    buffer: String,
    lines: u64,
    written: Counter,
    lost: Counter,
    /// The last write failed: said once, not for every batch.
    failing: bool,
}

#[derive(Debug)]
enum Output {
    Stdout,
    File { path: PathBuf, file: File },
}

// === impl Stdio ===

impl Stdio {
    /// The daemon's own access log: makes the adapter, opens its file and registers its counters.
    ///
    /// # Errors
    /// As [`Stdio::open`].
    pub fn new(config: Config, registry: &mut Registry) -> Result<Self, AdapterError> {
        let (written, lost) = (Counter::default(), Counter::default());
        registry.register(
            "weft_access_log_lines",
            "Lines written to the access log",
            written.clone(),
        );
        registry.register(
            "weft_access_log_lost",
            "Lines the access log could not write",
            lost.clone(),
        );
        Self::open("stdio", config, written, lost)
    }

    /// Makes the adapter `name` and opens its file; counts lines that were written and that could not be.
    ///
    /// # Errors
    /// [`AdapterError::OpenLog`], or [`AdapterError::Config`]: a parameter makes no sense.
    pub fn open(name: &str, config: Config, written: Counter, lost: Counter) -> Result<Self, AdapterError> {
        config.validate()?;
        let output = match &config.path {
            None => Output::Stdout,
            Some(path) => Output::File {
                path: path.clone(),
                file: open(path).map_err(|source| AdapterError::OpenLog {
                    path: path.clone(),
                    source,
                })?,
            },
        };
        Ok(Self {
            name: name.to_owned(),
            config,
            output,
            buffer: String::new(),
            lines: 0,
            written,
            lost,
            failing: false,
        })
    }

    fn push(&mut self, flow: &Flow) {
        if !self.config.wants(flow) {
            return;
        }
        let start = self.buffer.len();
        match self.config.format {
            Format::Text => self.config.template.write(flow, &mut self.buffer),
            // A flow has nothing that JSON cannot say.
            Format::Json => self.buffer.push_str(&serde_json::to_string(flow).unwrap_or_default()),
        }
        if self.config.format == Format::Text && self.buffer.len() - start > MAX_LINE {
            self.buffer.truncate(self.buffer.floor_char_boundary(start + MAX_LINE));
        }
        self.buffer.push('\n');
        self.lines += 1;
    }

    fn write_out(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        match self.output.write(self.buffer.as_bytes()) {
            Ok(()) => {
                self.written.inc_by(self.lines);
                self.failing = false;
            }
            Err(error) => {
                self.lost.inc_by(self.lines);
                if !self.failing {
                    warn!(%error, output = ?self.output, "access log: lines are lost until it can be written again");
                }
                self.failing = true;
            }
        }
        self.buffer.clear();
        self.lines = 0;
    }
}

impl Report for Stdio {
    fn name(&self) -> &str {
        &self.name
    }

    fn report(&mut self, batch: &[Record]) {
        for record in batch {
            if let Record::Flow(flow) = record {
                self.push(flow);
            }
        }
        self.write_out();
    }
}

// === impl Output ===

impl Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            Self::File { path, file } => {
                if moved(path, file) {
                    *file = open(path)?;
                }
                file.write_all(bytes)
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// The path does not lead to the open file any more.
fn moved(path: &Path, file: &File) -> bool {
    match (std::fs::metadata(path), file.metadata()) {
        (Ok(there), Ok(here)) => (there.dev(), there.ino()) != (here.dev(), here.ino()),
        (Err(error), _) => error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

impl Native for Stdio {
    const NAME: &'static str = "stdio";
    const ABOUT: &'static str = "writes an access log";
    const PAGE: &'static str = include_str!("README.md");
    const ROLE: Role = Role::Report;

    type Config = Config;

    fn validate(config: &Config) -> Result<(), AdapterError> {
        config.validate()
    }

    fn make(config: Config, context: &Context<'_>) -> Result<Part, AdapterError> {
        let metrics = ExportMetrics::of(context.name, context.reports);
        let stdio = Self::open(context.name, config, metrics.sent, metrics.dropped)?;
        Ok(Part::Report(Box::new(stdio)))
    }
}

#[cfg(test)]
mod tests;
