//! Memory of a module, as host calls reach it. Every place that a module names is checked.

use wasmtime::{Caller, Extern, Memory};

use super::{abi::Status, error::Stop, host::Host};

/// Why a host call does not succeed.
#[derive(Debug)]
pub(super) enum Fail {
    /// The module is told.
    Status(Status),
    /// The module is ended.
    Trap(wasmtime::Error),
}

/// What a host call answers the module.
pub(super) fn answer(result: Result<(), Fail>) -> wasmtime::Result<u32> {
    match result {
        Ok(()) => Ok(Status::Ok as u32),
        Err(Fail::Status(status)) => Ok(status as u32),
        Err(Fail::Trap(error)) => Err(error),
    }
}

/// All of its memory, and the host's data beside it.
pub(super) fn all<'a>(caller: &'a mut Caller<'_, Host>) -> Result<(&'a mut [u8], &'a mut Host), Fail> {
    let memory = match caller.data().memory {
        Some(memory) => memory,
        None => during_start(caller)?,
    };
    Ok(memory.data_and_store_mut(caller))
}

/// A module's start function runs before the host has seen its exports.
fn during_start(caller: &mut Caller<'_, Host>) -> Result<Memory, Fail> {
    match caller.get_export("memory") {
        Some(Extern::Memory(memory)) => Ok(memory),
        _ => Err(Status::InvalidMemoryAccess.into()),
    }
}

/// Bytes that the module points to.
pub(super) fn slice(memory: &[u8], at: u32, length: u32) -> Result<&[u8], Status> {
    let (at, length) = (at as usize, length as usize);
    memory
        .get(at..)
        .and_then(|rest| rest.get(..length))
        .ok_or(Status::InvalidMemoryAccess)
}

/// Writes to where the module points.
pub(super) fn write(memory: &mut [u8], at: u32, bytes: &[u8]) -> Result<(), Status> {
    let place = memory
        .get_mut(at as usize..)
        .and_then(|rest| rest.get_mut(..bytes.len()));
    place.ok_or(Status::InvalidMemoryAccess)?.copy_from_slice(bytes);
    Ok(())
}

pub(super) fn write_u32(caller: &mut Caller<'_, Host>, at: u32, number: u32) -> Result<(), Fail> {
    Ok(write(all(caller)?.0, at, &number.to_le_bytes())?)
}

/// Hands `bytes` over: asks the module for memory, and says where they are and how many. The module frees them.
pub(super) fn give(caller: &mut Caller<'_, Host>, bytes: &[u8], at_place: u32, length_place: u32) -> Result<(), Fail> {
    let length = u32::try_from(bytes.len()).map_err(|_| Status::InternalFailure)?;
    let at = if length == 0 { 0 } else { allocate(caller, length)? };
    let (memory, _) = all(caller)?;
    write(memory, at, bytes)?;
    write(memory, at_place, &at.to_le_bytes())?;
    write(memory, length_place, &length.to_le_bytes())?;
    Ok(())
}

fn allocate(caller: &mut Caller<'_, Host>, length: u32) -> Result<u32, Fail> {
    let Some(allocate) = caller.data().allocate.clone() else {
        return Err(Fail::Trap(wasmtime::Error::new(Stop::NoAllocator)));
    };
    match allocate.call(caller, length)? {
        0 => Err(Fail::Trap(wasmtime::Error::new(Stop::NoMemory {
            bytes: length as usize,
        }))),
        at => Ok(at),
    }
}

// === impl Fail ===

impl From<Status> for Fail {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<wasmtime::Error> for Fail {
    fn from(error: wasmtime::Error) -> Self {
        Self::Trap(error)
    }
}
