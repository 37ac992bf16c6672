//! What this kernel's verifier says of every program, with nothing attached and nothing left behind.
//!
//! `cargo xtask vm-test` asks it in each guest kernel: a program that one kernel takes and another refuses, or whose
//! verification gets expensive, is found before a user finds it.

use aya::programs::Program;
use serde::{Deserialize, Serialize};

use crate::{
    attach,
    doctor::{self, Feature},
    error::DataplaneError,
    loader, selftest,
};

/// All that [`verify`] finds in a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Every program of the object, by name.
    pub programs: Vec<VerifiedProgram>,
    /// As `weft doctor` lists them.
    pub features: Vec<Feature>,
    /// Why short-circuits are not safe in this kernel; `None`: the self-test found nothing.
    pub unfit_for_short_circuit: Option<String>,
}

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedProgram {
    /// Kernel name.
    pub name: String,
    /// Instructions the verifier walked through, all branches counted; `None`: refused, or Linux before 5.16.
    pub instructions: Option<u32>,
    /// The error with the tail of the verifier's log; `None`: loaded.
    pub refused: Option<String>,
}

/// Loads every program of the object as [`crate::Dataplane::start`] does, one after the other, whether one is refused or
/// not, and runs the self-test of short-circuits. Maps and programs are gone when it returns. Takes as long as a start.
///
/// # Errors
///
/// The object as a whole is not loaded: privileges, or a kernel without the maps it needs. A refused program is a result.
pub fn verify() -> Result<Verification, DataplaneError> {
    let mut ebpf = loader::open_object(|_| {})?;
    let mut programs: Vec<VerifiedProgram> = ebpf
        .programs_mut()
        .map(|(name, program)| {
            let loaded = attach::load(name, program);
            VerifiedProgram {
                name: name.to_owned(),
                instructions: loaded.as_ref().ok().and_then(|()| instructions_of(program)),
                // Its source's text is the whole log, whose tail is in ours.
                refused: loaded.err().map(|error| error.to_string()),
            }
        })
        .collect();
    // On the sockmap before the self-test, as a start has it.
    let unfit_for_short_circuit = match attach::attach_sk_msg(&mut ebpf) {
        Ok(()) => selftest::short_circuit(&mut ebpf).err(),
        Err(error) => Some(error.to_string()),
    };
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Verification {
        programs,
        features: doctor::features(),
        unfit_for_short_circuit,
    })
}

fn instructions_of(program: &Program) -> Option<u32> {
    program.info().ok()?.verified_instruction_count()
}
