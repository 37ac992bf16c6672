//! Parameters of the access log.

use std::path::PathBuf;

use serde::Deserialize;

use super::template::Template;
use crate::{
    error::AdapterError,
    record::{Flow, FlowEvent, FlowVerdict},
};

/// Line of the text format, unless said otherwise.
pub const DEFAULT_TEMPLATE: &str = "{time} {verdict} {source.namespace}/{source.account} -> \
    {destination.namespace}/{destination.service} {destination.address}:{destination.port} {protocol} \
    {l7.method} {l7.path} {l7.status} {l7.duration_us}us sent={bytes_sent} received={bytes_received} rule={rule} {reason}";

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Default: text.
    pub format: Format,
    /// Line of the text format: words with `{field}`s, named as in the JSON (`{l7.path}`). Default [`DEFAULT_TEMPLATE`].
    pub template: Template,
    /// File to append to, reopened when it was moved away (log rotation). Default: standard output.
    pub path: Option<PathBuf>,
    /// Least severity of what is written. Default: info (everything).
    pub level: Level,
    /// Events that make a line. Default: requests, ends of connections, refusals; beginnings would tell the same twice.
    pub events: Vec<FlowEvent>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Text,
    /// The flow's JSON, as `weft flows -o json` prints it.
    Json,
}

/// How much an operator should care.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    #[default]
    Info,
    /// Refused by policy, or answered 4xx.
    Warning,
    /// Answered 5xx, or a gRPC status that is none of the caller's making.
    Error,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            format: Format::default(),
            template: Template::default(),
            path: None,
            level: Level::default(),
            events: vec![FlowEvent::Request, FlowEvent::Close, FlowEvent::Deny],
        }
    }
}

impl Config {
    pub(super) fn validate(&self) -> Result<(), AdapterError> {
        if !self.events.is_empty() {
            return Ok(());
        }
        Err(AdapterError::Config {
            adapter: "stdio",
            field: "events",
            found: "[]".to_owned(),
            expected: "at least one of open, close, deny, request".to_owned(),
        })
    }

    pub(super) fn wants(&self, flow: &Flow) -> bool {
        self.events.contains(&flow.event) && Level::of(flow) >= self.level
    }
}

// === impl Level ===

impl Level {
    /// Severity of a flow.
    pub fn of(flow: &Flow) -> Self {
        /// UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
        const GRPC_SERVER_FAULTS: [u16; 6] = [2, 4, 12, 13, 14, 15];

        let status = flow.l7.as_ref().map_or(0, |l7| l7.status);
        let grpc = flow.l7.as_ref().and_then(|l7| l7.grpc_status).unwrap_or(0);
        if flow.verdict == FlowVerdict::Deny {
            Self::Warning
        } else if status >= 500 || GRPC_SERVER_FAULTS.contains(&grpc) {
            Self::Error
        } else if status >= 400 || grpc > 0 || flow.verdict == FlowVerdict::Audit {
            Self::Warning
        } else {
            Self::Info
        }
    }
}
