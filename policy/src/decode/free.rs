//! Values whose shape others know: parameters of adapters.

use super::{Value, parse_integer, shorten};
use crate::yaml::{Data, Kind, Node};

impl<'a> Value<'a> {
    /// A whole number of this range, which may be negative.
    pub fn signed(&self, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let found = match &self.node.data {
            Data::Scalar { text, .. } if self.node.kind() == Kind::Integer => signed(text),
            _ => return self.mismatch("a whole number", &format!("write {} to {}", range.start(), range.end())),
        };
        let found = found.filter(|number| range.contains(number));
        if found.is_none() {
            self.error("out of range", format!("write {} to {}", range.start(), range.end()));
        }
        found
    }

    /// As JSON. YAML can say infinity, and numbers that no 64 bits hold; JSON cannot.
    pub fn json(&self) -> Option<serde_json::Value> {
        Some(match &self.node.data {
            Data::Sequence(_) => {
                let items: Vec<_> = self.items()?.iter().map(Value::json).collect();
                items.into_iter().collect::<Option<Vec<_>>>()?.into()
            }
            Data::Mapping(entries) => {
                let pairs: Vec<_> = entries
                    .iter()
                    .map(|entry| Some((entry.key.clone(), self.child(&entry.key, &entry.value).json()?)))
                    .collect();
                serde_json::Value::Object(pairs.into_iter().collect::<Option<_>>()?)
            }
            Data::Scalar { text, .. } => match self.node.kind() {
                Kind::Null => serde_json::Value::Null,
                Kind::Boolean => text.eq_ignore_ascii_case("true").into(),
                Kind::Integer => match (parse_integer(text), signed(text)) {
                    (Some(number), _) => number.into(),
                    (None, Some(number)) => number.into(),
                    (None, None) => return self.no_number(text),
                },
                Kind::Float => match text.parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
                    Some(number) => number.into(),
                    None => return self.no_number(text),
                },
                Kind::Text | Kind::Sequence | Kind::Mapping => text.as_str().into(),
            },
        })
    }

    /// What a path like `quotas[0].max_amount` leads to, or as much of it as there is: the path is kept whole.
    pub fn inside(&self, path: &str) -> Value<'a> {
        let mut node = self.node;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            match down(node, step) {
                Some(next) => node = next,
                None => break,
            }
        }
        let path = match path.strip_prefix('.').unwrap_or(path) {
            "" => self.path.clone(),
            path if path.starts_with('[') => format!("{}{path}", self.path),
            path => format!("{}.{path}", self.path),
        };
        Value {
            cx: self.cx,
            node,
            path,
        }
    }

    fn child(&self, key: &str, node: &'a Node) -> Value<'a> {
        Value {
            cx: self.cx,
            node,
            path: format!("{}.{key}", self.path),
        }
    }

    fn no_number<T>(&self, text: &str) -> Option<T> {
        self.error(
            format!("`{}` is a number that JSON does not have", shorten(text)),
            "write a smaller one, or text in quotes",
        );
        None
    }
}

fn down<'a>(node: &'a Node, step: &str) -> Option<&'a Node> {
    match (&node.data, step.strip_suffix(']')) {
        (Data::Sequence(items), Some(index)) => items.get(index.parse::<usize>().ok()?),
        (Data::Mapping(_), None) => node.entry(step).map(|entry| &entry.value),
        _ => None,
    }
}

fn signed(text: &str) -> Option<i64> {
    match text.strip_prefix('-') {
        Some(_) => text.parse().ok(),
        None => parse_integer(text).and_then(|number| number.try_into().ok()),
    }
}
