//! What a lab needs of the machine, found by trying, and how a test says that it was skipped.

use std::{
    io::Write,
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use aya::programs::ProgramType;

use crate::cgroup;

/// Kernel program types of the main job, with what each is for.
const PROGRAM_TYPES: &[(ProgramType, &str)] = &[
    (ProgramType::CgroupSock, "cgroup/sock_create: who owns a socket"),
    (ProgramType::CgroupSockAddr, "cgroup/connect: verdicts and capture"),
    (ProgramType::SockOps, "sockops: telemetry and readiness"),
    (ProgramType::SkMsg, "sk_msg: short-circuit"),
];

/// Set by `cargo xtask test`, which has asked [`kernel`] before it started: a test that would be skipped fails.
pub const NO_SKIP: &str = "WEFT_TEST_NO_SKIP";

/// Whether this process may make labs: root, a cgroup v2 mount, and the kernel's program types. Asked once a process.
///
/// # Errors
/// One line that says what is missing, to be read after "needs".
pub fn kernel() -> Result<(), String> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    ANSWER.get_or_init(probe).clone()
}

fn probe() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err(
            "root, to make network namespaces and cgroups and to load kernel programs: run it with sudo".into(),
        );
    }
    let mount = cgroup::mount_point()
        .map_err(|error| format!("a cgroup v2 file system: {error:#}; `mount -t cgroup2 none DIR` makes one"))?;
    writable(&mount)?;
    for (program, what) in PROGRAM_TYPES {
        match aya::sys::is_program_supported(*program) {
            Ok(true) => {}
            Ok(false) => return Err(format!("a kernel with BPF programs of type {program:?} ({what})")),
            Err(error) => return Err(format!("permission to load BPF programs ({what}): {error}")),
        }
    }
    Ok(())
}

fn writable(mount: &std::path::Path) -> Result<(), String> {
    let probe: PathBuf = mount.join(format!("weft-probe-{}", std::process::id()));
    std::fs::create_dir(&probe)
        .and_then(|()| std::fs::remove_dir(&probe))
        .map_err(|error| {
            format!(
                "write access to the cgroup v2 file system at {}: {error}",
                mount.display()
            )
        })
}

/// Says on the terminal, past the capture of libtest, that a test was skipped, and counts it.
///
/// # Panics
/// [`NO_SKIP`] is set.
pub fn skipped(test: &str, needs: &str) {
    assert!(
        std::env::var_os(NO_SKIP).is_none(),
        "{test} must not be skipped, and needs {needs}"
    );
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    let line = format!("skipped: {test} needs {needs} (`cargo xtask test` runs it; {count} skipped so far)\n");
    // Nothing can be done about a terminal that is gone.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Says that this kernel lacks what a test is about, to be followed by the test of the fallback, or by its end where
/// there is none. Not a skip: nothing that anybody could install is missing. `cargo xtask vm-test` shows it in its table.
pub fn absent(test: &str, feature: &str, instead: &str) {
    let line = format!("{ABSENT}{test}: {feature}; instead: {instead}\n");
    // Past the capture of libtest, in one piece. Nothing can be done about a terminal that is gone.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Begins a line of [`absent`].
const ABSENT: &str = "absent: ";

/// The test and what was said of it, if `line` is one of [`absent`].
pub fn absence_of_line(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix(ABSENT)?.split_once(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_read_back() {
        let line = "absent: multipath_tcp_is_seen: no MPTCP in this kernel; instead: nothing";
        let expect = ("multipath_tcp_is_seen", "no MPTCP in this kernel; instead: nothing");
        assert_eq!(absence_of_line(line), Some(expect));
        assert_eq!(absence_of_line("test absent: a ... ok"), None);
    }
}
