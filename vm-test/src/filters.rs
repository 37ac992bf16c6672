//! The filters of `userspace/adapters/filters`, as WebAssembly.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// Where `cargo xtask build --filters` left this one.
///
/// # Errors
/// It did not.
pub fn filter(name: &str) -> Result<PathBuf> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/wasm/{name}.wasm"));
    ensure!(
        file.is_file(),
        "{} is missing: run `cargo xtask build --filters`",
        file.display()
    );
    Ok(file.canonicalize()?)
}
