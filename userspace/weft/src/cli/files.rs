//! The `-f FILE|DIR` of several commands.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::Context;

use crate::error::{Code, INVALID};

/// More is read of no file; policy refuses much smaller ones, with a better message.
const MAX_READ_BYTES: u64 = 256 << 20;

/// The text of a file and the name that messages give it.
pub struct Input {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// Reads files, `-` (stdin), and the YAML files of folders, in the order of their names. Folders below, and names that
/// begin with a dot, are left out, as the daemon's `--resources` does.
pub fn read_all(paths: &[PathBuf]) -> anyhow::Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            inputs.push(read("stdin", io::stdin().lock()).context("read stdin")?);
        } else if path.is_dir() {
            let found = files_of(path)
                .with_context(|| format!("read folder {}", path.display()))
                .code(INVALID)?;
            for file in found {
                inputs.push(open(&file)?);
            }
        } else {
            inputs.push(open(path)?);
        }
    }
    Ok(inputs)
}

fn open(path: &Path) -> anyhow::Result<Input> {
    File::open(path)
        .and_then(|file| read(&path.to_string_lossy(), file))
        .with_context(|| format!("read {}", path.display()))
        .code(INVALID)
}

fn read(name: &str, from: impl Read) -> io::Result<Input> {
    let mut bytes = Vec::new();
    from.take(MAX_READ_BYTES).read_to_end(&mut bytes)?;
    Ok(Input {
        name: name.to_owned(),
        bytes,
    })
}

fn files_of(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let known = path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml");
        if known && !hidden && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_means_its_yaml_files_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["b.yaml", "a.json", "c.yml", ".hidden.yaml", "notes.txt", "a.yaml"] {
            fs::write(dir.path().join(name), name).expect("written");
        }
        fs::create_dir(dir.path().join("d.yaml")).expect("made");
        let inputs = read_all(&[dir.path().to_owned()]).expect("read");
        let texts: Vec<_> = inputs
            .iter()
            .map(|input| String::from_utf8_lossy(&input.bytes))
            .collect();
        assert_eq!(texts, ["a.yaml", "b.yaml", "c.yml"]);
    }
}
