//! Memory that the daemon gives back: what is free, and code that only its start needed.

use tikv_jemalloc_ctl::{Access, AsName, Result, background_thread, max_background_threads};
use tokio::task::spawn_blocking;

/// What has been free for so many milliseconds goes back to the kernel (jemalloc's default: 10,000). Publications that follow each
/// other use it again; a wave of connections, or of publications, is not remembered for long.
const DECAY_MS: isize = 1_000;

/// Has a thread of the allocator's own give back what is free. To be called before there are other threads: each may get a part of
/// the allocator for itself, which would keep the default.
///
/// # Errors
///
/// The allocator refuses: all goes on, and takes more memory.
pub fn give_back_what_is_free() -> Result<()> {
    for name in [&b"arenas.dirty_decay_ms\0"[..], b"arena.0.dirty_decay_ms\0"] {
        name.name().write(DECAY_MS)?;
    }
    max_background_threads::write(1)?;
    background_thread::write(true)
}

/// Gives back code and constants that only the start needed.
pub async fn give_back_code() {
    // A runtime that ends needs none of it.
    if let Ok(Err(error)) = spawn_blocking(weft_dataplane::give_code_back).await {
        tracing::debug!(%error, "code of the start is not given back");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allocator_is_told_by_names_that_it_knows() {
        give_back_what_is_free().expect("settings that the allocator has");
        let decay = |name: &'static [u8]| -> isize { name.name().read().expect("a setting") };
        assert_eq!(decay(b"arenas.dirty_decay_ms\0"), DECAY_MS);
        assert_eq!(decay(b"arena.0.dirty_decay_ms\0"), DECAY_MS);
        assert!(background_thread::read().expect("a setting"));
    }
}
