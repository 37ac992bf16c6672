//! What host and guest say to each other: the plan as a file, and events as JSON lines over a virtio serial port.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vm_test::torture::Cell;

/// Name of the virtio serial port that carries events.
pub const PORT: &str = "weft.events";

/// What a guest is to do. Paths are the host's: the guest sees the same files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The binary under test.
    pub weft: PathBuf,
    /// Test binaries, run in order.
    pub tests: Vec<Test>,
    /// Run only tests whose name contains this.
    pub filter: Option<String>,
    /// Set for every test binary.
    pub environment: Vec<(String, String)>,
}

/// One test binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Test {
    pub target: String,
    pub executable: PathBuf,
    /// Folder of its package's manifest.
    pub folder: PathBuf,
}

/// What happened in a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The root file system is up.
    Booted {
        /// `uname -r`
        release: String,
        /// `uname -v`
        version: String,
        /// Seconds since the kernel started.
        uptime: f64,
    },
    /// What `weft __verify` printed.
    Verified { report: Report },
    /// A test binary starts.
    Binary { target: String },
    /// A test ended.
    Test { name: String, outcome: Outcome },
    /// A result of the torture suite.
    Tortured { cell: Cell },
    /// A line that is nobody's result: a panic, a daemon's log.
    Words { line: String },
    /// The binary's end.
    BinaryEnded { code: i32, seconds: f64 },
    /// Something could not be done at all: the guest gives up.
    Broken { why: String },
    /// Everything of the plan was run.
    Done,
}

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Passed,
    Failed,
    /// This kernel lacks what it is about: `need::absent` said what, and what is tested instead.
    Absent(String),
}

/// What `weft __verify` prints (`weft_dataplane::Verification`; xtask builds that crate, so it cannot depend on it).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub programs: Vec<Program>,
    pub features: Vec<Feature>,
    pub unfit_for_short_circuit: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub name: String,
    pub instructions: Option<u32>,
    pub refused: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    pub name: String,
    pub present: bool,
    pub used_for: String,
}
