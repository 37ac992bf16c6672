//! Values whose shape others know: parameters of adapters.

use serde_json::Value as Json;

use super::{Value, parse_integer, shorten};
use crate::yaml::{Data, Kind, Node};

/// One level down.
#[derive(Clone, Copy)]
enum Step<'a> {
    Key(&'a str),
    Item(usize),
}

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
    pub fn json(&self) -> Option<Json> {
        self.json_of(self.node, &mut Vec::new())
    }

    /// `way` leads to the node. It becomes a path only where a number is refused: a long key may have many values below it.
    fn json_of(&self, node: &'a Node, way: &mut Vec<Step<'a>>) -> Option<Json> {
        Some(match &node.data {
            Data::Sequence(items) => {
                let items: Vec<_> = items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| self.json_below(Step::Item(index), item, way))
                    .collect();
                items.into_iter().collect::<Option<Vec<_>>>()?.into()
            }
            Data::Mapping(entries) => {
                let pairs: Vec<_> = entries
                    .iter()
                    .map(|entry| {
                        let value = self.json_below(Step::Key(&entry.key), &entry.value, way)?;
                        Some((entry.key.clone(), value))
                    })
                    .collect();
                Json::Object(pairs.into_iter().collect::<Option<_>>()?)
            }
            Data::Scalar { text, .. } => match node.kind() {
                Kind::Null => Json::Null,
                Kind::Boolean => text.eq_ignore_ascii_case("true").into(),
                Kind::Integer => match (parse_integer(text), signed(text)) {
                    (Some(number), _) => number.into(),
                    (None, Some(number)) => number.into(),
                    (None, None) => return self.no_number(node, way, text),
                },
                Kind::Float => match text.parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
                    Some(number) => number.into(),
                    None => return self.no_number(node, way, text),
                },
                Kind::Text | Kind::Sequence | Kind::Mapping => text.as_str().into(),
            },
        })
    }

    fn json_below(&self, step: Step<'a>, node: &'a Node, way: &mut Vec<Step<'a>>) -> Option<Json> {
        way.push(step);
        let found = self.json_of(node, way);
        way.pop();
        found
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

    fn no_number<T>(&self, node: &'a Node, way: &[Step<'a>], text: &str) -> Option<T> {
        let value = Value {
            cx: self.cx,
            node,
            path: path(&self.path, way),
        };
        value.error(
            format!("`{}` is a number that JSON does not have", shorten(text)),
            "write a smaller one, or text in quotes",
        );
        None
    }
}

/// For messages: long keys, and what is far down, are cut short.
fn path(from: &str, way: &[Step<'_>]) -> String {
    /// Bytes, about.
    const MAX_SHOWN: usize = 1024;
    let mut path = from.to_owned();
    for step in way {
        if path.len() > MAX_SHOWN {
            return path + "...";
        }
        path += &match step {
            Step::Key(key) => format!(".{}", shorten(key)),
            Step::Item(index) => format!("[{index}]"),
        };
    }
    path
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
