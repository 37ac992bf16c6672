//! Bounds on what one file may cost. Each is far above what people write by hand or generate for one machine.

/// Bytes of a file: about 10,000 services. A larger one is refused unread.
pub(crate) const MAX_FILE_BYTES: usize = 4 << 20;

/// Levels of nesting. Resource kinds use fewer than 10; everything downstream may recurse this deep.
pub(crate) const MAX_DEPTH: usize = 64;

/// Nodes (scalars, lists, maps) of a file, aliases expanded. A node costs about 100 bytes.
pub(crate) const MAX_NODES: usize = 200_000;

/// Bytes of text of a file, aliases expanded: an alias repeats the text of its anchor.
pub(crate) const MAX_TEXT_BYTES: usize = 2 * MAX_FILE_BYTES;

/// Documents of a file.
pub(crate) const MAX_DOCUMENTS: usize = 10_000;

/// Duplicate keys that are listed for one document; one is enough to refuse it.
pub(crate) const MAX_PROBLEMS: usize = 20;
