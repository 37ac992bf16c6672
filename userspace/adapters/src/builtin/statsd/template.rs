//! Names of metrics, and what statsd's line format does not let into them.

use serde::{Deserialize, Deserializer, de::Error};

use super::metric::{Label, Metric, Subject};

/// Stands for a label without value, as in Istio's metrics.
const UNKNOWN: &str = "unknown";

/// Longest name that a label's value may add to, in bytes. Kubernetes' own names are shorter; a file of Graphite's is called
/// by it.
const MAX_VALUE: usize = 128;

/// Words with `{label}`s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameTemplate {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Words(String),
    Label(Label),
}

// === impl NameTemplate ===

impl NameTemplate {
    /// # Errors
    /// A label that does not exist, a brace that does not close, a character that a name cannot have.
    pub fn parse(template: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = template;
        while !rest.is_empty() {
            let (words, label) = match rest.split_once('{') {
                None => (std::mem::take(&mut rest), None),
                Some((words, after)) => {
                    let (name, after) = after
                        .split_once('}')
                        .ok_or_else(|| format!("`{{` without `}}` in `{template}`; write `{{label}}`"))?;
                    rest = after;
                    (words, Some(name))
                }
            };
            if let Some(bad) = words.chars().find(|&c| c != '.' && !is_plain(c)) {
                return Err(format!(
                    "`{bad}` in `{template}`: a name has letters, digits, `.`, `_` and `-`"
                ));
            }
            if !words.is_empty() {
                pieces.push(Piece::Words(words.to_owned()));
            }
            if let Some(name) = label {
                let label = Label::from_name(name)
                    .ok_or_else(|| format!("unknown label `{{{name}}}`; there are {}", Label::NAMES.join(", ")))?;
                pieces.push(Piece::Label(label));
            }
        }
        if pieces.is_empty() {
            return Err("an empty name; leave name_template out for the metric's own".to_owned());
        }
        Ok(Self { pieces })
    }

    /// The metric's name; without tags its labels are levels of it.
    pub fn default_of(metric: Metric, tags: bool) -> Self {
        let mut pieces = vec![Piece::Words(metric.name().to_owned())];
        if !tags {
            for label in metric.labels() {
                pieces.push(Piece::Words(".".to_owned()));
                pieces.push(Piece::Label(*label));
            }
        }
        Self { pieces }
    }

    pub fn write(&self, subject: &Subject<'_>, out: &mut String) {
        for piece in &self.pieces {
            match piece {
                Piece::Words(words) => out.push_str(words),
                Piece::Label(label) => push_value(out, label.value(subject).as_deref(), is_plain),
            }
        }
    }
}

impl<'de> Deserialize<'de> for NameTemplate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Dogstatsd's `|#key:value,key:value`. Its keys have no dots.
pub fn write_tags(labels: &[Label], subject: &Subject<'_>, out: &mut String) {
    for (index, label) in labels.iter().enumerate() {
        out.push_str(if index == 0 { "|#" } else { "," });
        out.extend(label.name().chars().map(|c| if c == '.' { '_' } else { c }));
        out.push(':');
        push_value(out, label.value(subject).as_deref(), |c| {
            is_plain(c) || matches!(c, '.' | '/')
        });
    }
}

/// A value must not end its line, or its part of it: what is not allowed becomes `_`.
fn push_value(out: &mut String, value: Option<&str>, allowed: impl Fn(char) -> bool) {
    let value = value.filter(|value| !value.is_empty()).unwrap_or(UNKNOWN);
    out.extend(value.chars().take(MAX_VALUE).map(|c| if allowed(c) { c } else { '_' }));
}

/// A dot would be a level of its own.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}
