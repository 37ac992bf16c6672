//! From [`Node`]s to typed values: every refusal has line, column, field, reason and what to write instead.
//!
//! Decoding goes on after an error, so that one run shows all that is wrong. A function that returns `None` has said why.

mod free;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    sync::Arc,
};

use crate::{
    diagnostic::{Diagnostic, Severity},
    labels::Labels,
    names,
    pool::Pools,
    snapshot::{AdapterCatalog, ObjectRef},
    yaml::{Data, Kind, Node, Position, Problem},
};

/// Messages kept of one file; what comes after them is counted.
pub(crate) const MAX_DIAGNOSTICS: usize = 1000;

/// Regular expressions of one file. Each may take [`REGEX_SIZE`] bytes.
const MAX_REGEXES: usize = 1000;
/// Bytes of one compiled regular expression: enough for a dozen Unicode classes.
const REGEX_SIZE: usize = 256 << 10;
/// Bytes of one regular expression as written.
const MAX_REGEX_TEXT: usize = 1024;

/// What decoding a file has found so far, and which object it is at.
pub(crate) struct Context {
    pub file: Arc<str>,
    /// `None`: any adapter may be one, with any parameters.
    pub adapters: Option<&'static dyn AdapterCatalog>,
    object: RefCell<Option<Arc<ObjectRef>>>,
    found: RefCell<Vec<Diagnostic>>,
    dropped: Cell<usize>,
    errors: Cell<usize>,
    regexes: Cell<usize>,
    pools: RefCell<Pools>,
}

/// A node and the path that led to it.
#[derive(Clone)]
pub(crate) struct Value<'a> {
    pub cx: &'a Context,
    pub node: &'a Node,
    pub path: String,
}

/// A map whose fields are taken one by one; [`Fields::finish`] refuses those that nobody asked for.
pub(crate) struct Fields<'a> {
    pub value: Value<'a>,
    asked: Vec<&'static str>,
}

/// A decoded value that may be spoken about later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    pub value: T,
    /// 1-based, in the object's file.
    pub line: u32,
    /// 1-based, in characters.
    pub column: u32,
    /// Path inside the document.
    pub field: String,
}

// === impl Context ===

impl Context {
    pub fn new(file: &str, adapters: Option<&'static dyn AdapterCatalog>, mut pools: Pools) -> Self {
        Self {
            file: pools.text(file),
            adapters,
            object: RefCell::default(),
            found: RefCell::default(),
            dropped: Cell::default(),
            errors: Cell::default(),
            regexes: Cell::default(),
            pools: RefCell::new(pools),
        }
    }

    /// Messages from now on are about this object.
    pub fn set_object(&self, object: Option<Arc<ObjectRef>>) {
        *self.object.borrow_mut() = object;
    }

    /// How many errors there were, those that were not kept included.
    pub fn errors(&self) -> usize {
        self.errors.get()
    }

    pub fn push(&self, severity: Severity, at: Position, field: &str, reason: String, instead: Option<String>) {
        if severity == Severity::Error {
            self.errors.set(self.errors.get() + 1);
        }
        let mut found = self.found.borrow_mut();
        if found.len() >= MAX_DIAGNOSTICS {
            self.dropped.set(self.dropped.get() + 1);
            return;
        }
        found.push(Diagnostic {
            severity,
            file: self.file.to_string(),
            line: at.line,
            column: at.column,
            object: self.object.borrow().as_deref().cloned(),
            field: field.to_owned(),
            reason,
            instead,
        });
    }

    pub fn problem(&self, problem: Problem) {
        self.push(
            Severity::Error,
            problem.at,
            "",
            problem.reason,
            problem.instead.map(str::to_owned),
        );
    }

    /// This text, one for all objects that have it.
    pub fn shared_text(&self, text: &str) -> Arc<str> {
        self.pools.borrow_mut().text(text)
    }

    /// What was found, and the pools.
    pub fn finish(self) -> (Vec<Diagnostic>, Pools) {
        let mut found = self.found.into_inner();
        found.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
        let dropped = self.dropped.get();
        if dropped > 0 {
            found.push(Diagnostic {
                severity: Severity::Error,
                file: self.file.to_string(),
                line: 0,
                column: 0,
                object: None,
                field: String::new(),
                reason: format!("{dropped} more messages about this file are not shown"),
                instead: None,
            });
        }
        (found, self.pools.into_inner())
    }
}

// === impl Value ===

impl<'a> Value<'a> {
    pub fn error(&self, reason: impl Into<String>, instead: impl Into<String>) {
        self.cx.push(
            Severity::Error,
            self.node.at,
            &self.path,
            reason.into(),
            Some(instead.into()),
        );
    }

    pub fn warn(&self, reason: impl Into<String>, instead: impl Into<String>) {
        self.cx.push(
            Severity::Warning,
            self.node.at,
            &self.path,
            reason.into(),
            Some(instead.into()),
        );
    }

    pub fn is_null(&self) -> bool {
        self.node.kind() == Kind::Null
    }

    pub fn locate<T>(&self, value: T) -> Located<T> {
        Located {
            value,
            line: self.node.at.line,
            column: self.node.at.column,
            field: self.path.clone(),
        }
    }

    pub fn fields(self) -> Option<Fields<'a>> {
        match self.node.data {
            Data::Mapping(_) => Some(Fields {
                value: self,
                asked: Vec::new(),
            }),
            _ => self.mismatch("a map", "write `field: value` lines below it"),
        }
    }

    pub fn items(&self) -> Option<Vec<Value<'a>>> {
        match &self.node.data {
            Data::Sequence(items) => Some(
                items
                    .iter()
                    .enumerate()
                    .map(|(i, node)| Value {
                        cx: self.cx,
                        node,
                        path: format!("{}[{i}]", self.path),
                    })
                    .collect(),
            ),
            _ => self.mismatch("a list", "write it as `[a, b]` or as lines that start with `- `"),
        }
    }

    /// Text. Whatever YAML reads as a number, a boolean or nothing is refused, as Kubernetes does.
    pub fn text(&self) -> Option<&'a str> {
        match &self.node.data {
            Data::Scalar { text, .. } if self.node.kind() == Kind::Text => Some(text),
            Data::Scalar { text, .. } if !text.is_empty() => {
                let reason = format!(
                    "expected text, found {} `{}`",
                    self.node.kind().describe(),
                    shorten(text)
                );
                self.error(reason, format!("write it in quotes, \"{}\"", shorten(text)));
                None
            }
            _ => self.mismatch("text", "write a word or a quoted string"),
        }
    }

    /// A whole number of this range.
    pub fn integer(&self, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let written = match &self.node.data {
            Data::Scalar { text, .. } if self.node.kind() == Kind::Integer => text,
            _ => {
                let instead = format!(
                    "write a number from {} to {}, without quotes",
                    range.start(),
                    range.end()
                );
                return self.mismatch("a whole number", &instead);
            }
        };
        match parse_integer(written).filter(|n| range.contains(n)) {
            Some(number) => Some(number),
            None => {
                let instead = format!("write {} to {}", range.start(), range.end());
                self.error(format!("{} is out of range", shorten(written)), instead);
                None
            }
        }
    }

    pub fn port(&self) -> Option<u16> {
        self.integer(1..=u64::from(u16::MAX))
            .and_then(|n| u16::try_from(n).ok())
    }

    /// One of the listed words.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let found = self.text()?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == found) {
            return Some(*value);
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        self.error(format!("unknown value `{}`", shorten(found)), one_of(&words, found));
        None
    }

    /// Text that is a DNS-1123 label: names of services and namespaces.
    pub fn dns_label(&self) -> Option<&'a str> {
        let name = self.text()?;
        if names::is_dns_label(name) {
            return Some(name);
        }
        self.error(
            format!("`{}` is no valid name", shorten(name)),
            "use at most 63 lower-case letters, digits and `-`, a letter or digit at both ends",
        );
        None
    }

    /// Text that is a DNS-1123 subdomain: names of all else.
    pub fn dns_subdomain(&self) -> Option<&'a str> {
        let name = self.text()?;
        if names::is_dns_subdomain(name) {
            return Some(name);
        }
        self.error(
            format!("`{}` is no valid name", shorten(name)),
            "use lower-case letters, digits, `-` and `.`, a letter or digit at both ends",
        );
        None
    }

    /// A map from text to text, for those who change it.
    pub fn string_map(&self) -> Option<BTreeMap<String, String>> {
        let Data::Mapping(entries) = &self.node.data else {
            return self.mismatch("a map", "write `key: value` lines below it");
        };
        let mut map = BTreeMap::new();
        let mut whole = true;
        for entry in entries {
            let value = Value {
                cx: self.cx,
                node: &entry.value,
                path: format!("{}.{}", self.path, shorten(&entry.key)),
            };
            match value.text() {
                Some(text) => {
                    map.insert(entry.key.clone(), text.to_owned());
                }
                None => whole = false,
            }
        }
        whole.then_some(map)
    }

    /// A map from text to text, one for all objects that have the same.
    pub fn labels(&self) -> Option<Labels> {
        let labels = self.string_map()?.into();
        Some(self.cx.pools.borrow_mut().labels(labels))
    }

    /// A regular expression, anchored at its start only.
    pub fn regex_anchored_at_start(&self) -> Option<regex::Regex> {
        let pattern = self.text()?;
        if pattern.len() > MAX_REGEX_TEXT {
            self.error(
                format!("longer than {MAX_REGEX_TEXT} bytes"),
                "split it into several matches",
            );
            return None;
        }
        if self.cx.regexes.get() >= MAX_REGEXES {
            self.error(
                format!("more than {MAX_REGEXES} regular expressions in one file"),
                "split the file",
            );
            return None;
        }
        self.cx.regexes.set(self.cx.regexes.get() + 1);
        // The pattern is checked by itself: `a)(b` must not become well-formed inside our group.
        let built = regex_syntax_check(pattern).and_then(|()| {
            regex::RegexBuilder::new(&format!("^(?:{pattern})"))
                .size_limit(REGEX_SIZE)
                .dfa_size_limit(REGEX_SIZE)
                .build()
        });
        match built {
            Ok(regex) => Some(regex),
            Err(error) => {
                let instead = "use the syntax of the Rust crate `regex` (RE2's, without look-around and references)";
                self.error(
                    format!("bad regular expression: {}", last_line(&error.to_string())),
                    instead,
                );
                None
            }
        }
    }

    fn mismatch<T>(&self, expected: &str, instead: &str) -> Option<T> {
        self.error(
            format!("expected {expected}, found {}", self.node.kind().describe()),
            instead,
        );
        None
    }
}

// === impl Fields ===

impl<'a> Fields<'a> {
    /// The field; `None` where it is absent or null.
    pub fn optional(&mut self, name: &'static str) -> Option<Value<'a>> {
        self.asked.push(name);
        let entry = self.value.node.entry(name)?;
        let path = if self.value.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.value.path)
        };
        Some(Value {
            cx: self.value.cx,
            node: &entry.value,
            path,
        })
        .filter(|value| !value.is_null())
    }

    /// The field; its absence is an error.
    pub fn required(&mut self, name: &'static str) -> Option<Value<'a>> {
        let found = self.optional(name);
        if found.is_none() {
            self.value
                .error(format!("the field `{name}` is missing"), format!("add `{name}:`"));
        }
        found
    }

    /// Fields that others write and that mean nothing here.
    pub fn tolerate(&mut self, names: &[&'static str]) {
        self.asked.extend_from_slice(names);
    }

    /// Refuses fields that nobody asked for.
    pub fn finish(self) {
        let Data::Mapping(entries) = &self.value.node.data else {
            return;
        };
        for entry in entries.iter().filter(|entry| !self.asked.contains(&entry.key.as_str())) {
            let path = match self.value.path.as_str() {
                "" => shorten(&entry.key),
                path => format!("{path}.{}", shorten(&entry.key)),
            };
            let reason = "unknown field".to_owned();
            let instead = one_of(&self.asked, &entry.key);
            self.value
                .cx
                .push(Severity::Error, entry.key_at, &path, reason, Some(instead));
        }
    }
}

/// "did you mean `x`?", else the choice.
pub(crate) fn one_of(known: &[&str], found: &str) -> String {
    match names::nearest(found, known.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None if known.is_empty() => "remove it".to_owned(),
        None if known.len() == 1 => format!("write `{}`", known[0]),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// At most 60 characters of what somebody wrote, for messages.
pub(crate) fn shorten(text: &str) -> String {
    const MAX_SHOWN: usize = 60;
    match text.char_indices().nth(MAX_SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

fn parse_integer(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x") {
        u64::from_str_radix(hex, 16).ok()
    } else if let Some(octal) = text.strip_prefix("0o") {
        u64::from_str_radix(octal, 8).ok()
    } else {
        text.parse().ok()
    }
}

fn regex_syntax_check(pattern: &str) -> Result<(), regex::Error> {
    regex::RegexBuilder::new(pattern)
        .size_limit(REGEX_SIZE)
        .dfa_size_limit(REGEX_SIZE)
        .build()
        .map(|_| ())
}

/// The parser of `regex` draws its errors over several lines; the last one is the sentence.
fn last_line(text: &str) -> String {
    let line = text.lines().last().unwrap_or_default();
    line.strip_prefix("error: ")
        .unwrap_or(line)
        .trim_end_matches('.')
        .to_owned()
}
