//! From parser events to [`Document`]s, without recursion.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use super::{Data, Document, Entry, Node, Position, Problem, limits};

/// The documents of a file.
///
/// # Errors
/// The first thing that makes the file as a whole unreadable, with its position.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<Document>, Problem> {
    let text = readable_text(bytes)?;
    let lines = Lines::of(text);
    let mut builder = Builder::default();
    let mut documents = Vec::new();
    let mut content_from = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| Problem {
            at: position(error.marker()),
            reason: format!("not YAML: {}", error.info()),
            instead: None,
        })?;
        let at = position(&span.start);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd => {}
            Event::DocumentStart(explicit) => {
                if explicit {
                    content_from = lines.after_marker(text, at);
                }
                builder = Builder {
                    spent: builder.spent,
                    ..Builder::default()
                };
            }
            Event::DocumentEnd => {
                let end = lines.start_of(at).max(content_from);
                if let Some(root) = builder.root.take()
                    && !matches!(root.kind(), super::Kind::Null)
                {
                    if documents.len() == limits::MAX_DOCUMENTS {
                        let reason = format!("more than {} documents", limits::MAX_DOCUMENTS);
                        return Err(Problem {
                            at: root.at,
                            reason,
                            instead: Some("split the file"),
                        });
                    }
                    let text = text.get(content_from..end).unwrap_or_default().to_owned();
                    documents.push(Document {
                        root,
                        text,
                        problems: std::mem::take(&mut builder.problems),
                    });
                }
                content_from = end;
            }
            Event::Alias(anchor) => builder.alias(anchor, at)?,
            Event::Scalar(text, style, anchor, tag) => builder.scalar(&text, style, anchor, tag, at)?,
            Event::SequenceStart(anchor, tag) => builder.open(anchor, tag, at, false)?,
            Event::MappingStart(anchor, tag) => builder.open(anchor, tag, at, true)?,
            Event::SequenceEnd | Event::MappingEnd => builder.close()?,
        }
    }
    Ok(documents)
}

/// Size, encoding and characters, before the parser sees anything.
fn readable_text(bytes: &[u8]) -> Result<&str, Problem> {
    if bytes.len() > limits::MAX_FILE_BYTES {
        return Err(Problem {
            at: Position::START,
            reason: format!(
                "the file has {} bytes, more than {}",
                bytes.len(),
                limits::MAX_FILE_BYTES
            ),
            instead: Some("split it"),
        });
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned();
            let reason = format!("byte {} is not UTF-8: this is no text file", error.valid_up_to());
            return Err(Problem {
                at: end_of(&before),
                reason,
                instead: Some("save it as UTF-8"),
            });
        }
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // The parser takes a NUL for the end of the file: what follows would be ignored without a word.
    match text
        .char_indices()
        .find(|&(_, c)| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}'))
    {
        None => Ok(text),
        Some((index, c)) => Err(Problem {
            at: end_of(&text[..index]),
            reason: format!("control character U+{:04X}: this is no text file", u32::from(c)),
            instead: None,
        }),
    }
}

fn position(marker: &Marker) -> Position {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Position {
        line: number(marker.line()).max(1),
        column: number(marker.col()).saturating_add(1),
    }
}

/// The position right after `text`.
fn end_of(text: &str) -> Position {
    let lines = Lines::of(text);
    let last = lines.starts.last().copied().unwrap_or(0);
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Position {
        line: number(lines.starts.len()),
        column: number(text[last..].chars().count()).saturating_add(1),
    }
}

/// Where the lines of a text start, in bytes. YAML breaks lines at LF, CR LF and CR.
struct Lines {
    starts: Vec<usize>,
    len: usize,
}

impl Lines {
    fn of(text: &str) -> Self {
        let bytes = text.as_bytes();
        let breaks = bytes.iter().enumerate().filter_map(|(i, &b)| match b {
            b'\n' => Some(i + 1),
            b'\r' if bytes.get(i + 1) != Some(&b'\n') => Some(i + 1),
            _ => None,
        });
        Self {
            starts: std::iter::once(0).chain(breaks).collect(),
            len: bytes.len(),
        }
    }

    /// Offset of the line of `at`; the end of the text where `at` is inside a line, which only the last marker is.
    fn start_of(&self, at: Position) -> usize {
        if at.column > 1 {
            return self.len;
        }
        self.starts.get(at.line as usize - 1).copied().unwrap_or(self.len)
    }

    /// Where the content of a document starts whose `---` is at `at`.
    fn after_marker(&self, text: &str, at: Position) -> usize {
        let start = self.starts.get(at.line as usize - 1).copied().unwrap_or(self.len);
        let next = self.starts.get(at.line as usize).copied().unwrap_or(self.len);
        let rest = text
            .get(start..next)
            .unwrap_or_default()
            .trim_start_matches("---")
            .trim();
        if rest.is_empty() || rest.starts_with('#') {
            next
        } else {
            (start + 3).min(self.len)
        }
    }
}

/// What has been used up of the limits of a file.
#[derive(Default, Clone, Copy)]
struct Spent {
    nodes: usize,
    text: usize,
}

#[derive(Default)]
struct Builder {
    stack: Vec<Frame>,
    root: Option<Node>,
    anchors: HashMap<usize, Anchored>,
    problems: Vec<Problem>,
    spent: Spent,
}

/// A list or map that is still open.
struct Frame {
    at: Position,
    anchor: usize,
    children: Children,
    /// Levels below, this one included.
    height: usize,
    before: Spent,
}

enum Children {
    Sequence(Vec<Node>),
    Mapping {
        entries: Vec<Entry>,
        keys: HashSet<String>,
        key: Option<(String, Position)>,
    },
}

struct Anchored {
    node: Node,
    height: usize,
    size: Spent,
}

impl Builder {
    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<Cow<'_, Tag>>,
        at: Position,
    ) -> Result<(), Problem> {
        let tagged_text = check_tag(tag.as_deref(), at)? == Some("str");
        let before = self.spent;
        self.charge(
            Spent {
                nodes: 1,
                text: text.len(),
            },
            at,
        )?;
        let plain = style == ScalarStyle::Plain && !tagged_text;
        self.finish(
            Node {
                at,
                data: Data::Scalar {
                    text: text.to_owned(),
                    plain,
                },
            },
            anchor,
            1,
            before,
        )
    }

    fn open(&mut self, anchor: usize, tag: Option<Cow<'_, Tag>>, at: Position, mapping: bool) -> Result<(), Problem> {
        check_tag(tag.as_deref(), at)?;
        if self.stack.len() >= limits::MAX_DEPTH {
            return Err(too_deep(at));
        }
        let before = self.spent;
        self.charge(Spent { nodes: 1, text: 0 }, at)?;
        let children = if mapping {
            Children::Mapping {
                entries: Vec::new(),
                keys: HashSet::new(),
                key: None,
            }
        } else {
            Children::Sequence(Vec::new())
        };
        self.stack.push(Frame {
            at,
            anchor,
            children,
            height: 1,
            before,
        });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Problem> {
        let Some(Frame {
            at,
            anchor,
            children,
            height,
            before,
        }) = self.stack.pop()
        else {
            return Ok(());
        };
        let data = match children {
            Children::Sequence(items) => Data::Sequence(items),
            Children::Mapping { entries, .. } => Data::Mapping(entries),
        };
        self.finish(Node { at, data }, anchor, height, before)
    }

    fn alias(&mut self, anchor: usize, at: Position) -> Result<(), Problem> {
        let Some(anchored) = self.anchors.get(&anchor) else {
            let reason = "an alias inside its own anchor".to_owned();
            return Err(Problem {
                at,
                reason,
                instead: Some("write the part out"),
            });
        };
        let (size, height) = (anchored.size, anchored.height);
        if self.stack.len() + height > limits::MAX_DEPTH {
            return Err(too_deep(at));
        }
        let before = self.spent;
        self.charge(size, at)?;
        let Some(anchored) = self.anchors.get(&anchor) else {
            return Ok(());
        };
        let node = Node {
            at,
            data: anchored.node.data.clone(),
        };
        self.finish(node, 0, height, before)
    }

    /// Hangs a finished node into what is open.
    fn finish(&mut self, node: Node, anchor: usize, height: usize, before: Spent) -> Result<(), Problem> {
        if anchor != 0 {
            let size = Spent {
                nodes: self.spent.nodes - before.nodes,
                text: self.spent.text - before.text,
            };
            self.charge(size, node.at)?; // the copy that is kept for aliases
            self.anchors.insert(
                anchor,
                Anchored {
                    node: node.clone(),
                    height,
                    size,
                },
            );
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        frame.height = frame.height.max(height + 1);
        match &mut frame.children {
            Children::Sequence(items) => items.push(node),
            Children::Mapping { entries, keys, key } => match key.take() {
                None => *key = Some(self::key(node)?),
                Some((name, key_at)) => {
                    if keys.insert(name.clone()) {
                        entries.push(Entry {
                            key: name,
                            key_at,
                            value: node,
                        });
                    } else if self.problems.len() < limits::MAX_PROBLEMS {
                        let reason = format!("the key `{name}` is written twice in one map");
                        self.problems.push(Problem {
                            at: key_at,
                            reason,
                            instead: Some("keep one of them"),
                        });
                    }
                }
            },
        }
        Ok(())
    }

    fn charge(&mut self, size: Spent, at: Position) -> Result<(), Problem> {
        self.spent.nodes = self.spent.nodes.saturating_add(size.nodes);
        self.spent.text = self.spent.text.saturating_add(size.text);
        let instead = Some("split the file, or write aliases out in several");
        if self.spent.nodes > limits::MAX_NODES {
            let reason = format!("more than {} values in one file, aliases expanded", limits::MAX_NODES);
            return Err(Problem { at, reason, instead });
        }
        if self.spent.text > limits::MAX_TEXT_BYTES {
            let reason = format!(
                "more than {} bytes of text in one file, aliases expanded",
                limits::MAX_TEXT_BYTES
            );
            return Err(Problem { at, reason, instead });
        }
        Ok(())
    }
}

fn key(node: Node) -> Result<(String, Position), Problem> {
    match node.data {
        Data::Scalar { text, plain: true } if text == "<<" => Err(Problem {
            at: node.at,
            reason: "merge keys (`<<`) are no part of YAML 1.2".to_owned(),
            instead: Some("write the fields out"),
        }),
        Data::Scalar { text, .. } => Ok((text, node.at)),
        _ => Err(Problem {
            at: node.at,
            reason: "a list or map as a key".to_owned(),
            instead: Some("use text as key; a value that starts with { or [ needs quotes"),
        }),
    }
}

/// The suffix of a tag of the core schema.
fn check_tag(tag: Option<&Tag>, at: Position) -> Result<Option<&str>, Problem> {
    match tag {
        None => Ok(None),
        Some(tag) if tag.is_yaml_core_schema() => Ok(Some(&tag.suffix)),
        Some(tag) => Err(Problem {
            at,
            reason: format!("the tag `{tag}` means nothing here"),
            instead: Some("remove it"),
        }),
    }
}

fn too_deep(at: Position) -> Problem {
    Problem {
        at,
        reason: format!("nested deeper than {} levels", limits::MAX_DEPTH),
        instead: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> (u32, u32, String) {
        let problem = parse(text.as_bytes()).expect_err(text);
        (problem.at.line, problem.at.column, problem.reason)
    }

    #[test]
    fn positions_are_one_based() {
        let documents = parse(b"a: 1\nbb:\n  - x\n  - {y: z}\n").unwrap();
        let root = &documents[0].root;
        let bb = root.entry("bb").unwrap();
        assert_eq!((bb.key_at.line, bb.key_at.column), (2, 1));
        let Data::Sequence(items) = &bb.value.data else {
            panic!("{bb:?}")
        };
        assert_eq!((items[0].at.line, items[0].at.column), (3, 5));
        let y = items[1].entry("y").unwrap();
        assert_eq!((y.value.at.line, y.value.at.column), (4, 9));
    }

    #[test]
    fn documents_keep_their_own_text() {
        let documents = parse(b"# head\na: 1\n---\n# two\nb: 2\n...\n---\n---\n--- {c: 3}\n").unwrap();
        let texts: Vec<_> = documents.iter().map(|d| d.text.as_str()).collect();
        assert_eq!(texts, ["# head\na: 1\n", "# two\nb: 2\n", " {c: 3}\n"]);
    }

    #[test]
    fn a_duplicate_key_spoils_its_document_only() {
        let documents = parse(b"a: 1\na: 2\n---\nb: 1\n").unwrap();
        assert_eq!(documents[0].problems[0].at, Position { line: 2, column: 1 });
        assert!(documents[1].problems.is_empty());
    }

    #[test]
    fn aliases_are_expanded_within_bounds() {
        let documents = parse(b"a: &x {k: v}\nb: *x\n").unwrap();
        assert_eq!(
            documents[0]
                .root
                .entry("b")
                .unwrap()
                .value
                .entry("k")
                .unwrap()
                .value
                .as_text(),
            Some("v")
        );

        let mut bomb = String::from("a0: &a0 [x, x]\n");
        for i in 1..40 {
            bomb += &format!("a{i}: &a{i} [*a{0}, *a{0}]\n", i - 1);
        }
        assert!(refused(&bomb).2.contains("aliases expanded"));

        let long = format!(
            "a: &a \"{}\"\nb: [{}]\n",
            "x".repeat(100_000),
            vec!["*a"; 1000].join(",")
        );
        assert!(refused(&long).2.contains("bytes of text"));
    }

    #[test]
    fn an_alias_to_itself_is_refused() {
        assert!(refused("a: &a [*a]\n").2.contains("own anchor"));
    }

    #[test]
    fn depth_is_bounded() {
        let nested = format!("{}{}", "[".repeat(65), "]".repeat(65));
        assert!(refused(&nested).2.contains("nested deeper"));
        let nested = format!("{}x", "- ".repeat(100_000));
        assert!(refused(&nested).2.contains("nested deeper"));
        let mut chain = String::from("a0: &a0 [x]\n");
        for i in 1..100 {
            chain += &format!("a{i}: &a{i} [*a{}]\n", i - 1);
        }
        assert!(refused(&chain).2.contains("nested deeper"));
    }

    #[test]
    fn what_is_no_text_is_refused_with_a_position() {
        let problem = parse(b"a: 1\nb: \xff\n").unwrap_err();
        assert_eq!((problem.at.line, problem.at.column), (2, 4));
        let (line, column, reason) = refused("a: 1\nb: x\0y\n");
        assert_eq!((line, column), (2, 5));
        assert!(reason.contains("U+0000"), "{reason}");
        assert!(parse(&vec![b'a'; limits::MAX_FILE_BYTES + 1]).is_err());
    }

    #[test]
    fn tags_merge_keys_and_complex_keys_are_refused() {
        assert!(refused("a: !foo 1\n").2.contains("tag"));
        assert!(refused("a: {<<: {b: 1}}\n").2.contains("merge"));
        assert!(refused("{a: b}: c\n").2.contains("as a key"));
        let documents = parse(b"a: !!str 1\n").unwrap();
        assert_eq!(documents[0].root.entry("a").unwrap().value.as_text(), Some("1"));
    }
}
