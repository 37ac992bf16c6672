//! Where resources come from.
//!
//! A [`Source`] keeps a [`Sink`] (the policy's `Store`) in step with some place outside, and tells the daemon by a
//! [`Change`] that it is time to compile again. There are [`files`], a watched folder; Kubernetes, xDS and etcd have
//! their places beside it. [`state`] is the folder in which `weft apply` keeps objects.
//!
//! Nothing here understands resources: bytes go to the sink, messages come back.

#![forbid(unsafe_code)]

mod error;
pub mod files;
mod read;
mod source;
pub mod state;

pub use error::SourceError;
pub use files::FilesSource;
pub use read::MAX_FILE_BYTES;
pub use source::{Change, Sink, Source, SourceStatus};
pub use state::AppliedObjects;
