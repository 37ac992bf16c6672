//! Parameters of the denier.

use serde::Deserialize;

use crate::error::AdapterError;

/// HTTP status of a refusal, unless said otherwise.
pub const DEFAULT_STATUS: u16 = 403;

/// Text of a refusal, unless said otherwise.
pub const DEFAULT_MESSAGE: &str = "denied by the operator";

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which requests to refuse. Everything that is set must hold; nothing set: every request.
    #[serde(rename = "match")]
    pub matches: Match,
    /// HTTP status for the client, 400 to 599. Default [`DEFAULT_STATUS`].
    pub status: u16,
    /// Text for the client. Default [`DEFAULT_MESSAGE`].
    pub message: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// Namespace of the called service.
    pub namespace: Option<String>,
    /// Name of the called service.
    pub service: Option<String>,
    /// HTTP method, in capitals.
    pub method: Option<String>,
    /// How the path begins (query left out).
    pub path_prefix: Option<String>,
    pub header: Option<HeaderMatch>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderMatch {
    /// Name, in any case.
    pub name: String,
    /// The header's whole value. Default: the header only has to be there.
    #[serde(default)]
    pub value: Option<String>,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            matches: Match::default(),
            status: DEFAULT_STATUS,
            message: DEFAULT_MESSAGE.to_owned(),
        }
    }
}

impl Config {
    pub(super) fn validate(&self) -> Result<(), AdapterError> {
        if (400..600).contains(&self.status) {
            return Ok(());
        }
        Err(AdapterError::Config {
            adapter: "denier",
            field: "status",
            found: self.status.to_string(),
            expected: "an HTTP error status, 400 to 599".to_owned(),
        })
    }
}
