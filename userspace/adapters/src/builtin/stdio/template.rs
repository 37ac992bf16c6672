//! Lines of text with any field of a flow in them.

use std::fmt::{self, Write};

use serde::{Deserialize, Deserializer, de::Error};

use super::config::DEFAULT_TEMPLATE;
use crate::record::{Flow, format_time};

/// A template, checked and cut into pieces when it is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Words(String),
    Field(Field),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("unknown field `{{{name}}}`; there are {}", known())]
    UnknownField { name: String },
    #[error("`{{` without `}}` in `{text}`; write `{{field}}`")]
    Unclosed { text: String },
}

macro_rules! fields {
    ($($variant:ident = $name:literal => |$flow:ident, $out:ident| $write:expr,)+) => {
        /// One field of a flow.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Field {
            $($variant,)+
        }

        impl Field {
            const NAMES: &'static [&'static str] = &[$($name,)+];

            fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// Writes the value; `-` where there is none.
            fn write(self, flow: &Flow, out: &mut String) -> fmt::Result {
                match self {
                    $(Self::$variant => { let ($flow, $out) = (flow, out); $write })+
                }
            }
        }
    };
}

fields! {
    Time = "time" => |flow, out| out.write_str(&format_time(flow.time)),
    Event = "event" => |flow, out| out.write_str(flow.event.as_str()),
    Reporter = "reporter" => |flow, out| out.write_str(flow.reporter.as_str()),
    Verdict = "verdict" => |flow, out| out.write_str(flow.verdict.as_str()),
    Reason = "reason" => |flow, out| text(out, Some(&flow.reason)),
    Rule = "rule" => |flow, out| match &flow.rule {
        Some(rule) => text(out, Some(&rule.to_string())),
        None => text(out, None),
    },
    RuleKind = "rule.kind" => |flow, out| text(out, flow.rule.as_ref().map(|rule| &*rule.kind)),
    RuleNamespace = "rule.namespace" => |flow, out| text(out, flow.rule.as_ref().and_then(|rule| rule.namespace.as_deref())),
    RuleName = "rule.name" => |flow, out| text(out, flow.rule.as_ref().map(|rule| rule.name.as_str())),
    SourceNamespace = "source.namespace" => |flow, out| text(out, Some(&flow.source.namespace)),
    SourceService = "source.service" => |flow, out| text(out, flow.source.service.as_deref()),
    SourceAccount = "source.account" => |flow, out| text(out, Some(&flow.source.account)),
    DestinationNamespace = "destination.namespace" => |flow, out| text(out, Some(&flow.destination.namespace)),
    DestinationService = "destination.service" => |flow, out| text(out, flow.destination.service.as_deref()),
    DestinationAccount = "destination.account" => |flow, out| text(out, flow.destination.account.as_deref()),
    DestinationAddress = "destination.address" => |flow, out| write!(out, "{}", flow.destination.address),
    DestinationPort = "destination.port" => |flow, out| write!(out, "{}", flow.destination.port),
    Protocol = "protocol" => |flow, out| out.write_str(flow.protocol.as_str()),
    Method = "l7.method" => |flow, out| text(out, flow.l7.as_ref().map(|l7| &*l7.method)),
    Path = "l7.path" => |flow, out| text(out, flow.l7.as_ref().map(|l7| l7.path.as_str())),
    Status = "l7.status" => |flow, out| number(out, flow.l7.as_ref().map(|l7| l7.status)),
    Duration = "l7.duration_us" => |flow, out| number(out, flow.l7.as_ref().map(|l7| l7.duration.as_micros())),
    RequestBytes = "l7.request_bytes" => |flow, out| number(out, flow.l7.as_ref().map(|l7| l7.request_bytes)),
    ResponseBytes = "l7.response_bytes" => |flow, out| number(out, flow.l7.as_ref().map(|l7| l7.response_bytes)),
    GrpcStatus = "l7.grpc_status" => |flow, out| number(out, flow.l7.as_ref().and_then(|l7| l7.grpc_status)),
    UserAgent = "l7.user_agent" => |flow, out| text(out, flow.l7.as_ref().and_then(|l7| l7.user_agent.as_deref())),
    BytesSent = "bytes_sent" => |flow, out| write!(out, "{}", flow.bytes_sent),
    BytesReceived = "bytes_received" => |flow, out| write!(out, "{}", flow.bytes_received),
    Rtt = "rtt_us" => |flow, out| number(out, flow.rtt_us),
    Errno = "errno" => |flow, out| number(out, flow.errno),
}

// === impl Template ===

impl Template {
    /// # Errors
    /// A field that does not exist, or a brace that does not close.
    pub fn parse(template: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut rest = template;
        while let Some((words, after)) = rest.split_once('{') {
            let Some((name, after)) = after.split_once('}') else {
                return Err(TemplateError::Unclosed {
                    text: template.to_owned(),
                });
            };
            if !words.is_empty() {
                pieces.push(Piece::Words(words.to_owned()));
            }
            let field = Field::from_name(name).ok_or_else(|| TemplateError::UnknownField { name: name.to_owned() })?;
            pieces.push(Piece::Field(field));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Words(rest.to_owned()));
        }
        Ok(Self { pieces })
    }

    /// Appends the line of a flow, without line end.
    pub fn write(&self, flow: &Flow, out: &mut String) {
        for piece in &self.pieces {
            match piece {
                Piece::Words(words) => out.push_str(words),
                // Writing to a `String` cannot fail.
                Piece::Field(field) => drop(field.write(flow, out)),
            }
        }
    }
}

impl Default for Template {
    /// [`DEFAULT_TEMPLATE`], which a test parses.
    fn default() -> Self {
        Self::parse(DEFAULT_TEMPLATE).unwrap_or(Self { pieces: Vec::new() })
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

fn known() -> String {
    Field::NAMES.join(", ")
}

/// Texts come from clients: control characters, which could forge a line, are written as escapes.
fn text(out: &mut String, value: Option<&str>) -> fmt::Result {
    let Some(value) = value else {
        return out.write_str("-");
    };
    value.chars().try_for_each(|c| {
        if c.is_control() {
            write!(out, "{}", c.escape_default())
        } else {
            out.write_char(c)
        }
    })
}

fn number<T: fmt::Display>(out: &mut String, value: Option<T>) -> fmt::Result {
    match value {
        Some(value) => write!(out, "{value}"),
        None => out.write_str("-"),
    }
}
