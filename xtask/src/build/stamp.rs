//! What something was built from, as a number: it is built again only if that changes.

use std::{
    fs,
    hash::{DefaultHasher, Hasher},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Folders of what compilers and npm leave behind.
const OUTPUT: &[&str] = &["target", "node_modules", "build"];

/// Of names and contents of all files below `dir` that a compiler may read: no build output, no pages.
///
/// # Errors
/// A file cannot be read.
pub fn hash_of_sources(dir: &Path) -> Result<u64> {
    let mut files = Vec::new();
    sources(dir, &mut files)?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in &files {
        hasher.write(file.to_string_lossy().as_bytes());
        hasher.write(&fs::read(file).with_context(|| format!("read {}", file.display()))?);
    }
    Ok(hasher.finish())
}

/// SipHash with fixed keys: a new Rust that changes it costs one needless build.
pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn sources(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        if path.is_dir() {
            if OUTPUT.iter().all(|output| !path.ends_with(output)) {
                sources(&path, files)?;
            }
        } else if path.extension().is_none_or(|extension| extension != "md") {
            files.push(path);
        }
    }
    Ok(())
}
