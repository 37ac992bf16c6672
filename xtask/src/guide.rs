//! `cargo xtask guide`: does what the guide to adapters says, word by word.

mod page;

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use vm_test::{Lab, Running, poll};

use self::page::{Step, What, steps};
use crate::{
    build, paths, preflight,
    setup::{self, Scope, filters::WasmToolchain},
};

/// Does what userspace/adapters/GUIDE.md says: writes its files, types its commands and compares what they print.
///
/// In a network namespace, a cgroup and a folder of its own, with a daemon of its own, all of which is removed. Needs root, and
/// the registries of cargo and npm. `WEFT_BIN` names a weft to use instead of the one that is built.
#[derive(clap::Args, Default)]
pub struct Args {}

/// A step may compile, on a machine that has more to do.
const BOUND: Duration = Duration::from_secs(600);

pub fn run(_: &Args) -> Result<()> {
    preflight::kernel("guide")?;
    let tools = setup::ensure(Scope::Traffic)?;
    let filters = setup::filters::ensure()?;
    // Leaves a std for WebAssembly behind where it has to be compiled: no reader waits for that.
    build::filters(&filters)?;
    if env::var_os("WEFT_BIN").is_none() {
        build::release(&tools)?;
    }

    let file = paths::root().join("userspace/adapters/GUIDE.md");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let steps = steps(&text).with_context(|| file.display().to_string())?;
    ensure!(!steps.is_empty(), "{} says nothing to do", file.display());

    let lab = Lab::new("guide")?;
    lab.daemon()?;
    let mut reader = Reader::new(&lab, &filters.rust)?;
    for step in &steps {
        let at = || format!("{}:{}", file.display(), step.line);
        if let Err(error) = reader.follow(step).with_context(at) {
            lab.print_log();
            return Err(error);
        }
    }
    println!("{} steps of {} done as it says", steps.len(), file.display());
    Ok(())
}

/// Somebody at a shell.
struct Reader {
    shell: Running,
    /// Commands so far.
    typed: usize,
}

// === impl Reader ===

impl Reader {
    fn new(lab: &Lab, wasm: &WasmToolchain) -> Result<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths([weft_of(lab)?].into_iter().chain(env::split_paths(&path)))?;
        // Not in the lab's network namespace, from which no registry can be reached; its `weft` enters it.
        let mut command = Command::new("bash");
        command
            .args(["--noprofile", "--norc"])
            .current_dir(lab.work())
            .env("PATH", path)
            .envs(wasm.environment())
            .env("CARGO_BUILD_BUILD_DIR", paths::filters_build())
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("CARGO_BUILD_TARGET")
            .env_remove("RUSTFLAGS");
        let mut shell = Running::start(command)?;
        // As a terminal has it.
        shell.say("exec 2>&1")?;
        Ok(Self { shell, typed: 0 })
    }

    fn follow(&mut self, step: &Step) -> Result<()> {
        match &step.what {
            What::Write { file, text } => {
                println!("   {file}");
                let here = fs::read_link(format!("/proc/{}/cwd", self.shell.pid())).context("where the shell is")?;
                let file = here.join(file);
                let folder = file.parent().unwrap_or(&here);
                fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
                fs::write(&file, text).with_context(|| format!("write {}", file.display()))
            }
            What::Run { command, prints } => {
                println!(" $ {command}");
                let (code, printed) = self.type_in(command)?;
                let lines: Vec<&str> = printed.lines().collect();
                ensure!(code == 0, "`{command}` ended with {code}:\n{printed}");
                ensure!(
                    prints.is_empty() || page::is_shown(prints, &lines),
                    "`{command}` should print\n{}\nand printed\n{printed}",
                    prints.join("\n")
                );
                Ok(())
            }
        }
    }

    /// Runs a command; its exit code, and what it and those in the background printed meanwhile.
    fn type_in(&mut self, command: &str) -> Result<(i32, String)> {
        let mark = |number: usize| format!("--- end of command {number}:");
        let (before, after) = (mark(self.typed), mark(self.typed + 1));
        self.typed += 1;
        self.shell.say(command)?;
        self.shell.say(&format!("printf '%s %s\\n' '{after}' $?"))?;
        let told = poll::within(BOUND, &format!("the end of `{command}`"), || {
            let alive = self.shell.is_running()?;
            let all = self.shell.stdout();
            if let Some((printed, code)) = all.split_once(&after)
                && code.contains('\n')
            {
                let code = code.lines().next().unwrap_or_default().trim().parse();
                let since = printed.split_once(&before).map_or(printed, |(_, since)| since);
                // Behind the code of the one before.
                let printed = match self.typed {
                    1 => since,
                    _ => since.split_once('\n').map_or("", |(_, printed)| printed),
                };
                return Ok(Some((code.context("the exit code")?, printed.to_owned())));
            }
            if alive {
                bail!("it printed so far:\n{all}")
            }
            Ok(None)
        })?;
        told.with_context(|| format!("the shell ended: {}", self.shell.stdout()))
    }
}

/// A folder with a `weft` that talks to the daemon of this lab.
fn weft_of(lab: &Lab) -> Result<PathBuf> {
    let folder = lab.work().join("bin");
    fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
    let file = folder.join("weft");
    let quoted = |path: &Path| format!("'{}'", path.display());
    let script = format!(
        "#!/bin/sh\nverb=$1\nshift\nexec nsenter --net={} {} \"$verb\" --state-dir {} \"$@\"\n",
        quoted(&lab.netns().path()),
        quoted(lab.weft_binary()),
        quoted(&lab.state())
    );
    fs::write(&file, script).with_context(|| format!("write {}", file.display()))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).context("make it a program")?;
    Ok(folder)
}
