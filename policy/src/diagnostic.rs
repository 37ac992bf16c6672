//! What is wrong with a resource, where, and what to write instead.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::snapshot::ObjectRef;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object is refused; its last good version, if there is one, stays in force.
    Error,
    /// The object is in force, but part of it has no effect or not the likely one.
    Warning,
}

/// One message. Printed as `FILE:LINE:COL: error: Kind ns/name: field: reason; what to write instead`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    pub severity: Severity,
    pub file: String,
    /// 1-based; 0 where the message is about no place in a file.
    pub line: u32,
    /// 1-based, in characters.
    pub column: u32,
    /// `None` where the document does not say which object it is.
    pub object: Option<ObjectRef>,
    /// Path inside the document, `spec.rules[0].kind`; empty where the whole document is meant.
    pub field: String,
    pub reason: String,
    /// What to write instead, where there is something to say.
    pub instead: Option<String>,
}

impl Diagnostic {
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if self.line > 0 {
                write!(f, "{}:{}:", self.line, self.column)?;
            }
            f.write_str(" ")?;
        }
        write!(f, "{}: ", self.severity)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)?;
        match &self.instead {
            Some(instead) => write!(f, "; {instead}"),
            None => Ok(()),
        }
    }
}
