//! Numbers and virtual IPs on disk.

use std::{fs, io, path::PathBuf};

use anyhow::Context as _;
use weft_policy::Allocations;

use crate::state_dir;

/// The file of allocations.
pub struct Saved {
    path: PathBuf,
    /// What we last read or wrote there.
    bytes: Vec<u8>,
    /// [`Allocations::changes`] of what is there; `None`: to be compared.
    changes: Option<u64>,
    /// Another daemon may have written the file since.
    is_stale: bool,
}

// === impl Saved ===

impl Saved {
    /// The file, and what is in it.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn read(path: PathBuf) -> anyhow::Result<(Self, Allocations)> {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let saved = Self {
            path,
            bytes,
            changes: None,
            is_stale: false,
        };
        let allocations = saved.allocations().with_context(|| {
            format!(
                "{} is damaged; removing it gives every service a new virtual IP",
                saved.path.display()
            )
        })?;
        Ok((saved, allocations))
    }

    /// Another daemon may have written the file: it is written in any case.
    pub fn look_again(&mut self) {
        self.is_stale = true;
    }

    /// To be called before anybody can see a new virtual IP. Costs nothing where nothing was allocated. What cannot be written is
    /// taken back: else the next publication, which may allocate nothing, would have to write it.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn save(&mut self, allocations: &mut Allocations) -> anyhow::Result<()> {
        let changes = Some(allocations.changes());
        if !self.is_stale && self.changes == changes {
            return Ok(());
        }
        let bytes = serde_json::to_vec(allocations).context("write allocations")?;
        if self.is_stale || bytes != self.bytes {
            if let Err(error) = state_dir::write_atomically(&self.path, &bytes) {
                self.changes = None;
                if let Ok(before) = self.allocations() {
                    *allocations = before;
                }
                return Err(error).with_context(|| format!("write {}", self.path.display()));
            }
            self.bytes = bytes;
        }
        (self.changes, self.is_stale) = (changes, false);
        Ok(())
    }

    fn allocations(&self) -> serde_json::Result<Allocations> {
        match self.bytes.is_empty() {
            true => Ok(Allocations::default()),
            false => serde_json::from_slice(&self.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_policy::{CompileInput, Store, compile};

    use super::*;

    /// Compiles so many services, which allocates what they need.
    fn allocate(allocations: &mut Allocations, services: usize) {
        let mut store = Store::default();
        for number in 0..services {
            let text = format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}}}\nspec: {{ports: [{{port: 80}}]}}\n"
            );
            store.apply_file(&format!("{number}.yaml"), text.as_bytes());
        }
        let input = CompileInput::of(&store);
        compile(&input, allocations);
    }

    #[test]
    fn it_is_written_when_something_was_allocated_or_another_may_have_written_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("allocations.json");
        let (mut saved, mut allocations) = Saved::read(path.clone()).expect("none yet");
        allocate(&mut allocations, 1);
        saved.save(&mut allocations).expect("written");
        let (_, read) = Saved::read(path.clone()).expect("read");
        assert!(read == allocations);
        fs::write(&path, "another's").expect("written");
        allocate(&mut allocations, 1);
        saved.save(&mut allocations).expect("nothing to write");
        assert_eq!(fs::read(&path).expect("read"), b"another's");
        saved.look_again();
        saved.save(&mut allocations).expect("written");
        allocate(&mut allocations, 2);
        saved.save(&mut allocations).expect("written");
        assert!(Saved::read(path).expect("read").1 == allocations);
    }

    #[test]
    fn what_cannot_be_written_is_not_allocated() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = dir.path().join("state");
        fs::create_dir(&folder).expect("made");
        let path = folder.join("allocations.json");
        let (mut saved, mut allocations) = Saved::read(path.clone()).expect("none yet");
        allocate(&mut allocations, 1);
        saved.save(&mut allocations).expect("written");
        let before = allocations.clone();
        fs::remove_dir_all(&folder).expect("removed");
        allocate(&mut allocations, 2);
        saved.save(&mut allocations).expect_err("nowhere to write");
        assert!(allocations == before);
        // One that allocates nothing has nothing to write, and one that does, again.
        allocate(&mut allocations, 1);
        saved.save(&mut allocations).expect("nothing to write");
        fs::create_dir(&folder).expect("made");
        allocate(&mut allocations, 2);
        saved.save(&mut allocations).expect("written");
        assert!(Saved::read(path).expect("read").1 == allocations);
    }
}
