//! Names of kernel programs and maps: the kernel cuts them at 15 bytes, and two that are cut to the same are one.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

/// `BPF_OBJ_NAME_LEN` less the terminating zero.
const MAX_NAME_BYTES: usize = 15;

/// Hook macros of aya-ebpf, below which a function is a kernel program.
const HOOKS: &[&str] = &[
    "cgroup_",
    "sk_",
    "sock_",
    "stream_",
    "classifier",
    "xdp",
    "tracepoint",
    "kprobe",
];

/// What is wrong with the names in the sources below `dir`, a line each.
///
/// # Errors
/// A folder that cannot be read.
pub fn check(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    if dir.exists() {
        collect(dir, &mut names)?;
    }
    Ok(judge(&names))
}

fn judge(names: &[(String, String)]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, place) in names {
        if !name.starts_with("weft_") {
            wrong.push(format!(
                "{place}: `{name}` must begin with `weft_`, so that tools and tests find it"
            ));
        }
        if name.len() > MAX_NAME_BYTES {
            wrong.push(format!(
                "{place}: `{name}` has {} bytes, the kernel keeps {MAX_NAME_BYTES}",
                name.len()
            ));
        }
        if let Some(other) = seen.insert(name, place) {
            wrong.push(format!("{place}: `{name}` is also the name of the one at {other}"));
        }
    }
    wrong
}

fn collect(dir: &Path, names: &mut Vec<(String, String)>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        if path.is_dir() {
            collect(&path, names)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let found = in_source(&text);
            names.extend(
                found
                    .into_iter()
                    .map(|(name, line)| (name, format!("{}:{line}", path.display()))),
            );
        }
    }
    Ok(())
}

/// Names of programs (`pub fn` below a hook macro) and maps (`name = ".."` of a map macro) with their lines.
fn in_source(text: &str) -> Vec<(String, usize)> {
    let mut names = Vec::new();
    let mut hook = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(attribute) = line.strip_prefix("#[") {
            if attribute.starts_with("map") || attribute.starts_with("btf_map") {
                let name = attribute
                    .split("name = \"")
                    .nth(1)
                    .and_then(|rest| rest.split('"').next());
                names.extend(name.map(|name| (name.to_owned(), index + 1)));
            } else if HOOKS.iter().any(|macro_name| attribute.starts_with(macro_name)) {
                hook = true;
            }
        } else if let Some((_, rest)) = line.split_once("fn ")
            && std::mem::take(&mut hook)
        {
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            names.push((name, index + 1));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_maps_are_found() {
        let source = "#[map(name = \"weft_conns\")]\nstatic CONNS: u8 = 0;\n\n#[cgroup_sock_addr(connect4)]\npub fn \
                      weft_connect4(ctx: C) -> i32 {\n}\nfn helper() {}\n";
        let names: Vec<_> = in_source(source).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["weft_conns", "weft_connect4"]);
    }

    #[test]
    fn long_foreign_and_double_names_are_refused() {
        let names = [
            ("weft_a_name_too_long", "a"),
            ("connect4", "b"),
            ("weft_x", "c"),
            ("weft_x", "d"),
        ];
        let names = names.map(|(name, place)| (name.to_owned(), place.to_owned()));
        assert_eq!(judge(&names).len(), 3);
    }
}
