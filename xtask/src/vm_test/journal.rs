//! What went well in earlier guests, so that a run that was ended, or met something red, need not begin anew (`--resume`).
//!
//! A test binary counts as run where it was green in the same kernel, with the same daemon: files of the same bytes.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hasher},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::event::{Event, Plan, Test};

/// Of one kernel. A file that cannot be read, or is of other files, is an empty one.
pub struct Journal {
    file: PathBuf,
    kept: Kept,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// Hashes of the kernel's image and of the daemon.
    of: (u64, u64),
    /// By name of the test binary.
    green: BTreeMap<String, Green>,
}

/// What a test binary told, from its begin to its end, and the hash of its file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Green {
    executable: u64,
    events: Vec<Event>,
}

// === impl Journal ===

impl Journal {
    /// # Errors
    /// The kernel's image or the daemon cannot be read.
    pub fn open(file: PathBuf, image: &Path, weft: &Path) -> Result<Self> {
        let of = (hash(image)?, hash(weft)?);
        let read = fs::read(&file).ok();
        let kept = read.and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
        let kept = kept
            .filter(|kept| kept.of == of)
            .unwrap_or(Kept { of, ..Kept::default() });
        Ok(Self { file, kept })
    }

    /// Takes those out of the plan that were green, and returns what they told.
    ///
    /// # Errors
    /// A test binary cannot be read.
    pub fn resume(&self, plan: &mut Plan) -> Result<Vec<Event>> {
        let mut told = Vec::new();
        let mut left = Vec::new();
        for test in plan.tests.drain(..) {
            let executable = hash(&test.executable)?;
            match self.kept.green.get(&test.target) {
                Some(green) if green.executable == executable => told.extend(green.events.iter().cloned()),
                _ => left.push(test),
            }
        }
        plan.tests = left;
        Ok(told)
    }

    /// Keeps what a test binary told that was green: from [`Event::Binary`] to [`Event::BinaryEnded`].
    ///
    /// # Errors
    /// The file cannot be written, or the binary not be read.
    pub fn keep(&mut self, test: &Test, events: Vec<Event>) -> Result<()> {
        let executable = hash(&test.executable)?;
        self.kept
            .green
            .insert(test.target.clone(), Green { executable, events });
        let aside = self.file.with_extension("new");
        let text = serde_json::to_vec(&self.kept).context("encode what was green")?;
        fs::write(&aside, text)
            .and_then(|()| fs::rename(&aside, &self.file))
            .with_context(|| format!("write {}", self.file.display()))
    }
}

/// Of a file's bytes.
fn hash(file: &Path) -> Result<u64> {
    let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm_test::event::Outcome;

    #[test]
    fn what_was_green_is_left_out_until_one_of_its_files_is_another() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        for name in ["image", "weft", "a", "b"] {
            fs::write(at(name), name).expect("written");
        }
        let test = |name: &str| Test {
            target: name.to_owned(),
            executable: at(name),
            folder: dir.path().to_path_buf(),
        };
        let open = || Journal::open(at("journal"), &at("image"), &at("weft")).expect("open");
        let resume = || {
            let mut plan = Plan {
                weft: at("weft"),
                tests: vec![test("a"), test("b")],
                filter: None,
                environment: Vec::new(),
            };
            let told = open().resume(&mut plan).expect("resumed");
            let left: Vec<String> = plan.tests.into_iter().map(|test| test.target).collect();
            (told, left)
        };
        assert_eq!(resume(), (Vec::new(), vec!["a".to_owned(), "b".to_owned()]));
        let events = vec![
            Event::Binary { target: "a".to_owned() },
            Event::Test {
                name: "t".to_owned(),
                outcome: Outcome::Absent("no TCX".to_owned()),
            },
            Event::BinaryEnded { code: 0, seconds: 1.5 },
        ];
        open().keep(&test("a"), events.clone()).expect("kept");
        assert_eq!(resume(), (events, vec!["b".to_owned()]));
        for changed in ["a", "weft", "image"] {
            let before = fs::read(at(changed)).expect("read");
            fs::write(at(changed), "other").expect("written");
            assert_eq!(resume().1.len(), 2, "{changed}");
            fs::write(at(changed), before).expect("written");
        }
        fs::write(at("journal"), "torn").expect("written");
        assert_eq!(resume().1.len(), 2);
    }
}
