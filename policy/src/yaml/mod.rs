//! YAML as a tree in which every node knows its line and column.
//!
//! [`saphyr_parser`] reads the syntax; [`parse`](fn@parse) builds the tree under the limits of [`limits`], so that no file,
//! however made, costs more than a bounded amount of memory and time, and nothing downstream recurses deeper than
//! [`limits::MAX_DEPTH`]. What is not plain data (tags of an application, merge keys, complex keys) is refused.

pub(crate) mod limits;
mod parse;

pub(crate) use self::parse::parse;

/// A place in a file: line and column, both 1-based, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub line: u32,
    pub column: u32,
}

impl Position {
    pub const START: Self = Self { line: 1, column: 1 };
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub at: Position,
    pub data: Data,
}

#[derive(Debug, Clone)]
pub(crate) enum Data {
    Scalar {
        text: String,
        /// Written without quotes: may be a null, a boolean or a number.
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub key: String,
    pub key_at: Position,
    pub value: Node,
}

/// One document of a file.
#[derive(Debug)]
pub(crate) struct Document {
    pub root: Node,
    /// The document as it was written, without `---`.
    pub text: String,
    /// What is wrong with this document only (duplicate keys): its neighbours are fine.
    pub problems: Vec<Problem>,
}

/// Something that YAML, or our limits, do not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub at: Position,
    pub reason: String,
    pub instead: Option<&'static str>,
}

/// What a plain scalar is in the YAML 1.2 core schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Null,
    Boolean,
    Integer,
    Float,
    Text,
    Sequence,
    Mapping,
}

impl Kind {
    /// The word for messages: "expected a list, found {}".
    pub fn describe(self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Boolean => "a boolean",
            Self::Integer => "a whole number",
            Self::Float => "a number",
            Self::Text => "text",
            Self::Sequence => "a list",
            Self::Mapping => "a map",
        }
    }
}

// === impl Node ===

impl Node {
    pub fn kind(&self) -> Kind {
        match &self.data {
            Data::Sequence(_) => Kind::Sequence,
            Data::Mapping(_) => Kind::Mapping,
            Data::Scalar { text, plain: true } => plain_kind(text),
            Data::Scalar { .. } => Kind::Text,
        }
    }

    /// The entry of a mapping with this key.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.data {
            Data::Mapping(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The text of a scalar that is neither null nor boolean nor number.
    pub fn as_text(&self) -> Option<&str> {
        match &self.data {
            Data::Scalar { text, .. } if self.kind() == Kind::Text => Some(text),
            _ => None,
        }
    }
}

fn plain_kind(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => return Kind::Boolean,
        ".inf" | "-.inf" | "+.inf" | ".nan" | ".Inf" | ".NaN" => return Kind::Float,
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Kind::Integer;
    }
    let radix = |prefix: &str, valid: fn(&u8) -> bool| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.as_bytes().iter().all(valid))
    };
    if radix("0x", u8::is_ascii_hexdigit) || radix("0o", |b| (b'0'..=b'7').contains(b)) {
        return Kind::Integer;
    }
    let numeric = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().any(|b| b.is_ascii_digit())
        && text.parse::<f64>().is_ok();
    if numeric { Kind::Float } else { Kind::Text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_have_the_types_of_the_core_schema() {
        for (text, kind) in [
            ("", Kind::Null),
            ("~", Kind::Null),
            ("true", Kind::Boolean),
            ("yes", Kind::Text),
            ("12", Kind::Integer),
            ("-12", Kind::Integer),
            ("0x1f", Kind::Integer),
            ("0o17", Kind::Integer),
            ("1.5", Kind::Float),
            ("1e3", Kind::Float),
            ("1.2.3.4", Kind::Text),
            ("nan", Kind::Text),
            ("infinity", Kind::Text),
            ("-", Kind::Text),
            ("web", Kind::Text),
        ] {
            assert_eq!(plain_kind(text), kind, "{text:?}");
        }
    }
}
