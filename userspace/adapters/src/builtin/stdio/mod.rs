//! Report adapter that writes the access log: one line a request (and, where asked for, a connection).
//!
//! Lines of a batch are written at once, by a thread of the log's own. A log that cannot be written, or not as fast as lines
//! come, loses lines, which are counted, and nothing else.

use std::time::Instant;

use prometheus_client::{metrics::counter::Counter, registry::Registry};

use crate::{
    error::AdapterError,
    export::ExportMetrics,
    native::{Context, Native, Part, Role},
    record::{Flow, Record},
    reporter::Report,
};

mod config;
mod template;
mod writer;

pub use config::{Config, DEFAULT_TEMPLATE, Format, Level};
pub use template::{Template, TemplateError};
pub use writer::MAX_QUEUED;
use writer::{Output, Writer};

/// Longest line. What comes from clients (path, user agent) may be long; a log is no place to store it.
pub const MAX_LINE: usize = 8 * 1024;

/// The adapter.
#[derive(Debug)]
pub struct Stdio {
    name: String,
    config: Config,
    writer: Writer,
    /// Lines of the batch at hand.
    buffer: String,
    lines: u64,
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

    /// Makes the adapter `name`, opens its file and starts its thread; counts lines that were written and that could not
    /// be.
    ///
    /// # Errors
    /// [`AdapterError::OpenLog`], [`AdapterError::LogThread`], or [`AdapterError::Config`]: a parameter makes no sense.
    pub fn open(name: &str, config: Config, written: Counter, lost: Counter) -> Result<Self, AdapterError> {
        config.validate()?;
        let output = Output::open(config.path.as_deref())?;
        Ok(Self {
            name: name.to_owned(),
            config,
            writer: Writer::start(output, written, lost)?,
            buffer: String::new(),
            lines: 0,
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
        if self.lines > 0 {
            self.writer
                .write(std::mem::take(&mut self.buffer), std::mem::take(&mut self.lines));
        }
    }

    fn flush(&mut self) {
        self.writer.flush();
    }

    fn wait(&mut self, deadline: Instant) {
        self.writer.wait(deadline);
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
