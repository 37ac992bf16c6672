//! The border between a source, the policy's store and the daemon.

use weft_policy::{Diagnostic, Store};

/// What a source feeds: files (or what stands for one) by name. Implemented by the policy's `Store`.
pub trait Sink {
    /// The file has these bytes now. Objects that it does not have any more are removed, refused ones keep their last
    /// good version.
    fn apply_file(&mut self, path: &str, bytes: &[u8]) -> Vec<Diagnostic>;

    /// The file is gone, and its objects with it.
    fn remove_file(&mut self, path: &str);

    /// Files that it has: a source knows by them what an earlier daemon had read.
    fn files(&self) -> Vec<String>;
}

/// A place resources come from. Dropping it ends its work; what it has put into the sink stays.
pub trait Source: Send {
    /// Kind and place, for messages.
    fn name(&self) -> String;

    fn status(&self) -> SourceStatus;

    /// Look again now, and try again what was refused (something else may have changed).
    fn nudge(&self);
}

/// What changed in the sink, in one go under its lock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Files that were read.
    pub applied: Vec<String>,
    /// Files whose objects were removed.
    pub removed: Vec<String>,
    /// What is wrong with the files read now, and with the source itself. A message is not repeated while it stays true.
    pub diagnostics: Vec<Diagnostic>,
}

/// How a source is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// Files in force.
    pub files: usize,
    /// Files among them (or beside them) with errors.
    pub refused: usize,
    /// What is wrong with files that could not be handed to the sink, which therefore cannot know it.
    pub unread: Vec<Diagnostic>,
    /// What keeps the source itself from working; nothing is removed meanwhile.
    pub problem: Option<String>,
}

// === impl Sink ===

impl Sink for Store {
    fn apply_file(&mut self, path: &str, bytes: &[u8]) -> Vec<Diagnostic> {
        Self::apply_file(self, path, bytes)
    }

    fn remove_file(&mut self, path: &str) {
        Self::remove_file(self, path);
    }

    fn files(&self) -> Vec<String> {
        Self::files(self).map(str::to_owned).collect()
    }
}

// === impl Change ===

impl Change {
    pub fn is_empty(&self) -> bool {
        self.applied.is_empty() && self.removed.is_empty() && self.diagnostics.is_empty()
    }
}
