//! Parameters of the opa adapter; `policy` and `check_method` are named as Mixer's `opa` names them.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{duration, error::AdapterError, outage::FailurePolicy};

/// How long a policy may take, unless said otherwise. The worker does nothing else meanwhile.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(10);

/// Longest timeout.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Modules in Rego.
    #[serde(default)]
    pub policy: Vec<String>,
    /// Files with such modules, by absolute path; read when the adapter is made.
    #[serde(default)]
    pub policy_files: Vec<PathBuf>,
    /// The rule that decides, like `data.authz.allow`.
    pub check_method: String,
    /// The language of the modules. Default: v1.
    #[serde(default)]
    pub rego_version: RegoVersion,
    /// What policies see under `data`. Default: nothing.
    #[serde(default)]
    pub data: serde_json::Map<String, serde_json::Value>,
    /// Default [`DEFAULT_TIMEOUT`]; 1 ms to [`MAX_TIMEOUT`].
    #[serde(default = "default_timeout", deserialize_with = "duration::deserialize")]
    pub timeout: Duration,
    /// What happens when the policy fails. Default: closed.
    #[serde(default)]
    pub failure_policy: FailurePolicy,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RegoVersion {
    /// Without `if` and `contains`, as in Mixer's time.
    V0,
    #[default]
    V1,
}

fn default_timeout() -> Duration {
    DEFAULT_TIMEOUT
}

// === impl Config ===

impl Config {
    pub(super) fn validate(&self) -> Result<(), AdapterError> {
        if self.policy.is_empty() && self.policy_files.is_empty() {
            return Err(wrong(
                "policy",
                "[]".to_owned(),
                "a module in Rego, here or in policy_files",
            ));
        }
        if !self.check_method.starts_with("data.") {
            let expected = "the path of a rule, like data.authz.allow";
            return Err(wrong("check_method", self.check_method.clone(), expected));
        }
        if !(Duration::from_millis(1)..=MAX_TIMEOUT).contains(&self.timeout) {
            return Err(wrong("timeout", format!("{:?}", self.timeout), "1ms to 1s"));
        }
        if let Some(relative) = self.policy_files.iter().find(|path| !path.is_absolute()) {
            return Err(wrong("policy_files", relative.display().to_string(), "absolute paths"));
        }
        Ok(())
    }
}

pub(super) fn wrong(field: &'static str, found: String, expected: &str) -> AdapterError {
    AdapterError::Config {
        adapter: "opa",
        field,
        found,
        expected: expected.to_owned(),
    }
}
