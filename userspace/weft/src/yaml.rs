//! YAML (and JSON, which is YAML) as a tree that knows its lines: for our own config file, and to print resources as
//! JSON. Resources themselves are read by `weft_policy`.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// Levels of nesting; recursion below is no deeper.
const MAX_DEPTH: usize = 64;
/// Nodes of a text, aliases expanded.
const MAX_NODES: usize = 200_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    pub data: Data,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// `plain`: without quotes, so it may be a number, a boolean or null.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    /// Keys are nodes, too, to know where they stand; they are scalars.
    Map(Vec<(Node, Node)>),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{line}:{column}: {reason}")]
pub struct YamlError {
    pub line: usize,
    pub column: usize,
    pub reason: String,
}

/// The documents of a text; empty ones are left out.
pub fn parse(text: &str) -> Result<Vec<Node>, YamlError> {
    let mut builder = Builder::default();
    let mut documents = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| at(error.marker(), format!("not YAML: {}", error.info())))?;
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {}
            Event::DocumentEnd => {
                documents.extend(builder.root.take().filter(|root| root.to_json() != Value::Null));
                builder = Builder {
                    nodes: builder.nodes,
                    ..Builder::default()
                };
            }
            Event::Scalar(text, style, anchor, _) => {
                let data = Data::Scalar {
                    text: text.into_owned(),
                    plain: style == ScalarStyle::Plain,
                };
                builder.open(&span.start, anchor, data)?;
                builder.close(&span.start)?;
            }
            Event::SequenceStart(anchor, _) => builder.open(&span.start, anchor, Data::List(Vec::new()))?,
            Event::MappingStart(anchor, _) => builder.open(&span.start, anchor, Data::Map(Vec::new()))?,
            Event::SequenceEnd | Event::MappingEnd => builder.close(&span.start)?,
            Event::Alias(anchor) => builder.alias(&span.start, anchor)?,
        }
    }
    Ok(documents)
}

fn at(marker: &Marker, reason: String) -> YamlError {
    YamlError {
        line: marker.line().max(1),
        column: marker.col() + 1,
        reason,
    }
}

#[derive(Default)]
struct Builder {
    /// Collections that are not closed yet, with the key that waits for its value.
    open: Vec<Open>,
    root: Option<Node>,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
}

struct Open {
    node: Node,
    anchor: usize,
    key: Option<Node>,
    nodes_before: usize,
}

// === impl Builder ===

impl Builder {
    fn open(&mut self, marker: &Marker, anchor: usize, data: Data) -> Result<(), YamlError> {
        if self.open.len() == MAX_DEPTH {
            return Err(at(marker, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let nodes_before = self.nodes;
        self.spend(marker, 1)?;
        let node = Node {
            line: marker.line().max(1),
            column: marker.col() + 1,
            data,
        };
        self.open.push(Open {
            node,
            anchor,
            key: None,
            nodes_before,
        });
        Ok(())
    }

    fn close(&mut self, marker: &Marker) -> Result<(), YamlError> {
        let Some(Open {
            node,
            anchor,
            nodes_before,
            ..
        }) = self.open.pop()
        else {
            return Err(at(marker, "not YAML: nothing to close here".to_owned()));
        };
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), self.nodes - nodes_before));
        }
        self.place(marker, node)
    }

    fn alias(&mut self, marker: &Marker, anchor: usize) -> Result<(), YamlError> {
        let Some((node, nodes)) = self.anchors.get(&anchor).cloned() else {
            return Err(at(marker, "an alias of something that is not complete".to_owned()));
        };
        if self.open.len() + depth(&node) > MAX_DEPTH {
            return Err(at(marker, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.spend(marker, nodes)?;
        self.place(marker, node)
    }

    fn spend(&mut self, marker: &Marker, nodes: usize) -> Result<(), YamlError> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            Err(at(marker, format!("more than {MAX_NODES} values")))
        } else {
            Ok(())
        }
    }

    fn place(&mut self, marker: &Marker, node: Node) -> Result<(), YamlError> {
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut parent.node.data, parent.key.take()) {
            (Data::List(items), _) => items.push(node),
            (Data::Map(entries), Some(key)) => entries.push((key, node)),
            (Data::Map(entries), None) => {
                let Data::Scalar { text, .. } = &node.data else {
                    return Err(at(marker, "a key must be text".to_owned()));
                };
                if entries.iter().any(|(key, _)| key.text() == Some(text)) {
                    return Err(at(marker, format!("`{text}` is here twice")));
                }
                parent.key = Some(node);
            }
            (Data::Scalar { .. }, _) => return Err(at(marker, "not YAML: a value inside a value".to_owned())),
        }
        Ok(())
    }
}

fn depth(node: &Node) -> usize {
    match &node.data {
        Data::Scalar { .. } => 1,
        Data::List(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Data::Map(entries) => 1 + entries.iter().map(|(_, value)| depth(value)).max().unwrap_or(0),
    }
}

// === impl Node ===

impl Node {
    /// The text of a scalar, whatever its type.
    pub fn text(&self) -> Option<&str> {
        match &self.data {
            Data::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Plain scalars become what the core schema of YAML 1.2 says.
    pub fn to_json(&self) -> Value {
        match &self.data {
            Data::Scalar { text, plain: true } => plain_scalar(text),
            Data::Scalar { text, plain: false } => Value::String(text.clone()),
            Data::List(items) => items.iter().map(Self::to_json).collect(),
            Data::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|(key, value)| (key.text().unwrap_or_default().to_owned(), value.to_json()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }
}

fn plain_scalar(text: &str) -> Value {
    let integer = |digits: &str, radix| i64::from_str_radix(digits, radix).ok().map(|n| Value::Number(n.into()));
    let number = || {
        if let Some(hex) = text.strip_prefix("0x") {
            return integer(hex, 16);
        }
        if let Some(octal) = text.strip_prefix("0o") {
            return integer(octal, 8);
        }
        if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.')) {
            return None; // `inf` and `nan` are words
        }
        integer(text, 10).or_else(|| Number::from_f64(text.parse().ok()?).map(Value::Number))
    };
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number().unwrap_or_else(|| Value::String(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Value) {
        let documents: Value = parse(text).expect("good YAML").iter().map(Node::to_json).collect();
        assert_eq!(documents, expected, "{text}");
    }

    #[test]
    fn becomes_the_json_that_it_means() {
        check(
            "a: 1\nb: [x, \"2\", 0x1f, -3, 1.5, ~, true]\n",
            json!([{"a": 1, "b": ["x", "2", 31, -3, 1.5, null, true]}]),
        );
        check("{\"a\": {\"b\": []}}", json!([{"a": {"b": []}}]));
        check("a: &x {b: 1}\nc: *x\n", json!([{"a": {"b": 1}, "c": {"b": 1}}]));
        check("a: 1\n---\n---\nb: 2\n", json!([{"a": 1}, {"b": 2}]));
        check(
            "v: 240.240.0.0/16\nw: infinity\nx: 1.2.3\n",
            json!([{"v": "240.240.0.0/16", "w": "infinity", "x": "1.2.3"}]),
        );
        check("", json!([]));
    }

    #[test]
    fn refuses_with_line_and_column() {
        for (text, expected) in [
            ("a: 1\na: 2\n", "2:1: `a` is here twice"),
            ("a: [1\n", "2:1: not YAML"),
            ("? [x]\n: 1\n", "1:5: a key must be text"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn depth_and_aliases_are_bounded() {
        assert!(parse(&"[".repeat(100_000)).is_err());
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let below = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb += &format!("a{level}: &a{level} [{below}]\n");
        }
        assert!(parse(&bomb).is_err_and(|error| error.reason.contains("values")));
    }
}
