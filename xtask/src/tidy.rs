//! `cargo xtask tidy`: what style says and a compiler does not check.

mod kernel_names;
mod sizes;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

pub use self::sizes::Sizes;
use crate::paths;

/// Checks what no compiler checks: READMEs, names of kernel objects, sizes of files, words that must not land.
#[derive(clap::Args)]
pub struct Args {}

/// Longest file of code, in lines; over it, split by concept.
const MAX_LINES: usize = 800;

/// Longest README of a folder below the top, in lines.
const MAX_README_LINES: usize = 60;

/// Files that may be longer, with the reason.
const GENERATED: &[&str] = &["Cargo.lock"];

/// What must not land. In pieces, so that this file passes its own check.
const BANNED: &[(&str, &str)] = &[
    (
        concat!("todo", "!("),
        "finish it, or return an error that says what is missing",
    ),
    (concat!("dbg", "!("), "use tracing"),
    (
        concat!("unimplemented", "!("),
        "finish it, or return an error that says what is missing",
    ),
    (
        concat!("#[", "ignore"),
        "a test runs or says what it needs (vm_test::need)",
    ),
];

pub fn run(_: &Args) -> Result<()> {
    let sizes = check()?;
    println!("{sizes}\ntidy");
    Ok(())
}

/// Checks the whole checkout.
///
/// # Errors
/// All that is wrong at once, a line each, with file and what to do.
pub fn check() -> Result<Sizes> {
    let root = paths::root();
    let mut files = Vec::new();
    walk(&root, &mut files)?;
    let mut wrong = Vec::new();
    missing_readmes(&root, &files, &mut wrong);
    let mut lines = Vec::new();
    for file in &files {
        let shown = file.strip_prefix(&root).unwrap_or(file).display().to_string();
        let Ok(text) = fs::read_to_string(file) else { continue };
        let count = text.lines().count();
        if is_readme(file) && file.parent() != Some(&root) && count > MAX_README_LINES {
            wrong.push(format!(
                "{shown}: {count} lines; a folder's README has at most {MAX_README_LINES}"
            ));
        }
        if file.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        lines.push((count, shown.clone()));
        if count > MAX_LINES && !GENERATED.contains(&shown.as_str()) {
            wrong.push(format!("{shown}: {count} lines, over {MAX_LINES}: split it by concept"));
        }
        for (number, line) in text.lines().enumerate() {
            for (word, instead) in BANNED.iter().filter(|(word, _)| line.contains(word)) {
                wrong.push(format!("{shown}:{}: `{word}` must not land: {instead}", number + 1));
            }
        }
    }
    wrong.extend(kernel_names::check(&root.join("ebpf/programs/src"))?);
    if !wrong.is_empty() {
        bail!("{} things are not tidy:\n  {}", wrong.len(), wrong.join("\n  "));
    }
    Ok(Sizes::of(lines))
}

/// Folders that must have a README: each with a manifest, and each of the layout that holds such folders.
fn missing_readmes(root: &Path, files: &[PathBuf], wrong: &mut Vec<String>) {
    let mut folders: Vec<&Path> = files
        .iter()
        .filter(|file| file.file_name().is_some_and(|name| name == "Cargo.toml"))
        .flat_map(|manifest| manifest.ancestors().skip(1))
        .filter(|folder| folder.starts_with(root))
        .collect();
    let fixed = ["bench", "ebpf", "userspace", "userspace/fleet", "userspace/packaging"].map(|name| root.join(name));
    folders.extend(fixed.iter().map(PathBuf::as_path));
    folders.sort();
    folders.dedup();
    for folder in folders {
        if !folder.join("README.md").exists() {
            let shown = folder.strip_prefix(root).unwrap_or(folder).display();
            wrong.push(format!(
                "{shown}/README.md is missing: what lives here, what never does, read in this order"
            ));
        }
    }
}

fn is_readme(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == "README.md")
}

/// All files of the checkout that are ours: no build output, no version control.
fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        let (path, name) = (entry.path(), entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
            continue;
        } else if path.is_dir() {
            if name != "target" && name != ".git" {
                walk(&path, files)?;
            }
        } else {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checkout_is_tidy() {
        if let Err(error) = super::check() {
            panic!("{error}");
        }
    }
}
