//! SIGHUP: this daemon starts the binary that is now in its place, to take over from it.

use std::{
    env,
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::Context as _;

use crate::config::TAKE_OVER;

/// What the kernel appends to the path of a binary that was replaced while it ran.
const REPLACED: &[u8] = b" (deleted)";

/// Starts it, with the words this process was started with. It asks over the admin socket like any other; if it fails this
/// daemon goes on.
///
/// # Errors
///
/// It cannot be started.
pub fn start() -> anyhow::Result<()> {
    let binary = binary(env::current_exe().context("find this program's file")?);
    let flag = format!("--{TAKE_OVER}");
    let mut words: Vec<_> = env::args_os().skip(1).collect();
    if !words.iter().any(|word| word.as_bytes().starts_with(flag.as_bytes())) {
        words.push(flag.into());
    }
    let mut child = Command::new(&binary)
        .args(words)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", binary.display()))?;
    tracing::info!(pid = child.id(), binary = %binary.display(), "successor started");
    // Nobody else would reap one that fails. One that succeeds outlives us.
    std::thread::spawn(move || match child.wait() {
        Ok(status) => tracing::warn!(%status, "the successor ended"),
        Err(error) => tracing::warn!(%error, "wait for the successor"),
    });
    Ok(())
}

/// Where the binary was, and by now its successor is.
pub fn binary(running: PathBuf) -> PathBuf {
    match running.as_os_str().as_bytes().strip_suffix(REPLACED) {
        Some(path) => OsStr::from_bytes(path).to_owned().into(),
        None => running,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_binary_is_found_by_its_old_name() {
        for (running, found) in [
            ("/usr/bin/weft", "/usr/bin/weft"),
            ("/usr/bin/weft (deleted)", "/usr/bin/weft"),
        ] {
            assert_eq!(binary(running.into()), PathBuf::from(found));
        }
    }
}
