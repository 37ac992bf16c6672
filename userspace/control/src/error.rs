//! What can go wrong with a place resources come from.

use std::{io, path::PathBuf};

use weft_policy::ObjectRef;

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("read resources folder `{}`: it must be a readable folder when the daemon starts", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("start the thread that watches `{}`", path.display())]
    Thread {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{action} `{}`", path.display())]
    State {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{object}: its {part} `{found}` cannot be part of a file name; use letters, digits, `-` and `.`, \
         at most {max} bytes in all"
    )]
    Name {
        object: ObjectRef,
        part: &'static str,
        found: String,
        max: usize,
    },
    #[error("{object}: {size} bytes are too many; at most {max}")]
    TooLarge { object: ObjectRef, size: u64, max: u64 },
}
