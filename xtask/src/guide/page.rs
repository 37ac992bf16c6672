//! What a page says to do: its fenced blocks.
//!
//! - ```` ```console ````: commands after `$ ` (going on after `> `), each with what it prints below it. `...` stands for any
//!   text, alone on a line for any number of lines; a command below which nothing stands may print what it likes.
//! - ```` ```LANGUAGE FILE ````: the whole of a file, below the folder that the commands before have gone to.
//! - other blocks are to be read.

use anyhow::{Context, Result, bail};

/// One thing to do, and where the page says it.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// Line of the page, from 1.
    pub line: usize,
    pub what: What,
}

#[derive(Debug, PartialEq, Eq)]
pub enum What {
    Write {
        file: String,
        text: String,
    },
    Run {
        command: String,
        /// Empty: anything.
        prints: Vec<String>,
    },
}

/// # Errors
/// A block has no end, or a console block does not begin with a command.
pub fn steps(page: &str) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut lines = page.lines().zip(1..);
    while let Some((fence, line)) = lines.next() {
        let Some(info) = fence.strip_prefix("```") else {
            continue;
        };
        let mut block = Vec::new();
        loop {
            let (text, at) = lines
                .next()
                .with_context(|| format!("line {line}: a block without end"))?;
            if text == "```" {
                break;
            }
            block.push((text, at));
        }
        match info.split_once(' ') {
            None if info == "console" => console(&block, &mut steps)?,
            None => {}
            Some((_, file)) => steps.push(Step {
                line,
                what: What::Write {
                    file: file.to_owned(),
                    text: block.iter().map(|(text, _)| format!("{text}\n")).collect(),
                },
            }),
        }
    }
    Ok(steps)
}

fn console(block: &[(&str, usize)], steps: &mut Vec<Step>) -> Result<()> {
    let mut first = true;
    for (text, line) in block {
        if let Some(command) = text.strip_prefix("$ ") {
            let what = What::Run {
                command: command.to_owned(),
                prints: Vec::new(),
            };
            steps.push(Step { line: *line, what });
            first = false;
            continue;
        }
        match steps.last_mut().map(|step| &mut step.what) {
            Some(What::Run { command, prints }) if !first => match text.strip_prefix('>') {
                Some(more) if prints.is_empty() => {
                    command.push('\n');
                    command.push_str(more.strip_prefix(' ').unwrap_or(more));
                }
                _ => prints.push((*text).to_owned()),
            },
            _ => bail!("line {line}: a console block begins with `$ ` and a command"),
        }
    }
    Ok(())
}

/// Whether what was printed is what the page shows.
pub fn is_shown(shown: &[String], printed: &[&str]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((any, rest)) if any == "..." => (0..=printed.len()).any(|skipped| {
            let left = printed.get(skipped..).unwrap_or_default();
            is_shown(rest, left)
        }),
        Some((line, rest)) => printed
            .split_first()
            .is_some_and(|(first, left)| is_like(line, first.trim_end()) && is_shown(rest, left)),
    }
}

/// `...` is any text.
fn is_like(shown: &str, printed: &str) -> bool {
    let Some((before, after)) = shown.split_once("...") else {
        return shown == printed;
    };
    let Some(rest) = printed.strip_prefix(before) else {
        return false;
    };
    let mut starts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    starts.any(|at| is_like(after, rest.get(at..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_files_and_commands_with_what_they_print() -> Result<()> {
        let page = "# Page\n\n```console\n$ cat <<END\n> a\n>  b\n> END\na\n b\n$ true\n```\n\
                    Text.\n```rust src/lib.rs\nfn main() {}\n\n```\n```yaml\nnot: run\n```\n";
        let run = |line, command: &str, prints: &[&str]| Step {
            line,
            what: What::Run {
                command: command.into(),
                prints: prints.iter().map(|line| (*line).to_owned()).collect(),
            },
        };
        let write = Step {
            line: 13,
            what: What::Write {
                file: "src/lib.rs".into(),
                text: "fn main() {}\n\n".into(),
            },
        };
        assert_eq!(
            steps(page)?,
            [
                run(4, "cat <<END\na\n b\nEND", &["a", " b"]),
                run(10, "true", &[]),
                write
            ]
        );
        steps("```console\nno command\n```\n").unwrap_err();
        steps("```console\n$ true\n").unwrap_err();
        Ok(())
    }

    #[test]
    fn dots_stand_for_any_text() {
        let shown = |shown: &str, printed: &str| {
            let shown: Vec<String> = shown.lines().map(str::to_owned).collect();
            is_shown(&shown, &printed.lines().collect::<Vec<_>>())
        };
        for (page, printed, expect) in [
            ("a", "a", true),
            ("a", "a  ", true),
            ("a", "b", false),
            ("a", "a\nb", false),
            ("a\n...", "a\nb\nc", true),
            ("...\nc", "a\nb\nc", true),
            ("...\nc", "a\nb", false),
            ("a ... c", "a b c", true),
            ("a ... c", "a c", false),
            ("...ms", "12 ms", true),
            ("...ms", "12 s", false),
            ("1...2...3", "1x2y3", true),
        ] {
            assert_eq!(shown(page, printed), expect, "{page:?} and {printed:?}");
        }
    }
}
