//! The part of WASI that modules ask for when they start: output, clock, random numbers, environment. No files, no sockets.

use std::{mem, sync::OnceLock, time::Instant};

use tracing::info;
use wasmtime::{Caller, Linker};

use super::{
    super::{
        error::Stop,
        host::Host,
        memory::{Fail, all, slice, write},
    },
    log::now,
};
use crate::wasm::abi::Status;

/// WASI's modules: the one that was settled on, and the one before, which old compilers name.
pub(super) const MODULES: [&str; 2] = ["wasi_snapshot_preview1", "wasi_unstable"];

/// Calls that do something here; all others answer [`ENOTSUP`].
pub(super) const KNOWN: [&str; 13] = [
    "args_get",
    "args_sizes_get",
    "clock_time_get",
    "environ_get",
    "environ_sizes_get",
    "fd_close",
    "fd_fdstat_get",
    "fd_prestat_get",
    "fd_write",
    "poll_oneoff",
    "proc_exit",
    "random_get",
    "sched_yield",
];

const SUCCESS: u32 = 0;
const EBADF: u32 = 8;
const EFAULT: u32 = 21;
const EINVAL: u32 = 28;
const EIO: u32 = 29;
pub(super) const ENOTSUP: i32 = 58;
pub(super) const ENOTCAPABLE: i32 = 76;

/// Most random bytes a call may ask for.
const MAX_RANDOM: u32 = 64 << 10;

/// Pieces of one write.
const MAX_PIECES: u32 = 1024;

/// Bytes of one write that are logged; the rest is taken and dropped.
const MAX_WRITE: usize = 4096;

/// What a call answers the module: success, an error number, or its end.
type Answer = wasmtime::Result<u32>;

pub(super) fn define(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    for module in MODULES {
        linker.func_wrap(
            module,
            "fd_write",
            |mut caller: Caller<'_, Host>, fd: u32, pieces: u32, count: u32, written: u32| -> Answer {
                errno(fd_write(&mut caller, fd, pieces, count, written))
            },
        )?;
        linker.func_wrap(module, "fd_close", |_: Caller<'_, Host>, fd: u32| open(fd))?;
        // No folder is open. Go asks, and takes no other answer for an end.
        linker.func_wrap(module, "fd_prestat_get", |_: Caller<'_, Host>, _: u32, _: u32| EBADF)?;
        linker.func_wrap(
            module,
            "fd_fdstat_get",
            |mut caller: Caller<'_, Host>, fd: u32, at: u32| -> Answer { errno(fd_stat(&mut caller, fd, at)) },
        )?;
        linker.func_wrap(
            module,
            "clock_time_get",
            |mut caller: Caller<'_, Host>, clock: u32, _precision: u64, at: u32| -> Answer {
                errno(clock_time(&mut caller, clock, at))
            },
        )?;
        linker.func_wrap(
            module,
            "random_get",
            |mut caller: Caller<'_, Host>, at: u32, length: u32| -> Answer { errno(random(&mut caller, at, length)) },
        )?;
        linker.func_wrap(
            module,
            "environ_sizes_get",
            |mut caller: Caller<'_, Host>, count: u32, bytes: u32| -> Answer {
                errno(environment_sizes(&mut caller, count, bytes))
            },
        )?;
        linker.func_wrap(
            module,
            "environ_get",
            |mut caller: Caller<'_, Host>, places: u32, texts: u32| -> Answer {
                errno(environment(&mut caller, places, texts))
            },
        )?;
        linker.func_wrap(
            module,
            "args_sizes_get",
            |mut caller: Caller<'_, Host>, count: u32, bytes: u32| -> Answer {
                errno(numbers(&mut caller, &[(count, 0), (bytes, 0)]))
            },
        )?;
        linker.func_wrap(module, "args_get", |_: Caller<'_, Host>, _: u32, _: u32| SUCCESS)?;
        linker.func_wrap(module, "sched_yield", |_: Caller<'_, Host>| SUCCESS)?;
        // Nothing ever comes, and a callback must not sleep: no event is said to have come.
        linker.func_wrap(
            module,
            "poll_oneoff",
            |mut caller: Caller<'_, Host>, _: u32, _: u32, _: u32, events: u32| -> Answer {
                errno(numbers(&mut caller, &[(events, 0)]))
            },
        )?;
        linker.func_wrap(module, "proc_exit", |code: i32| {
            Err::<(), _>(wasmtime::Error::new(Stop::Exit { code }))
        })?;
    }
    Ok(())
}

/// What a call answers; a place outside the module's memory is `EFAULT`.
fn errno(result: Result<u32, Fail>) -> Answer {
    match result {
        Ok(errno) => Ok(errno),
        Err(Fail::Status(_)) => Ok(EFAULT),
        Err(Fail::Trap(error)) => Err(error),
    }
}

/// Standard input, output and error are open, nothing else.
fn open(fd: u32) -> u32 {
    if fd <= 2 { SUCCESS } else { EBADF }
}

fn numbers(caller: &mut Caller<'_, Host>, numbers: &[(u32, u32)]) -> Result<u32, Fail> {
    let (memory, _) = all(caller)?;
    for (at, number) in numbers {
        write(memory, *at, &number.to_le_bytes())?;
    }
    Ok(SUCCESS)
}

/// What a module prints goes into the log, and into the reason of its failure.
fn fd_write(caller: &mut Caller<'_, Host>, fd: u32, pieces: u32, count: u32, written: u32) -> Result<u32, Fail> {
    if !(fd == 1 || fd == 2) {
        return Ok(EBADF);
    }
    if count > MAX_PIECES {
        return Ok(EINVAL);
    }
    let (memory, host) = all(caller)?;
    let mut text = mem::take(&mut host.scratch);
    text.clear();
    let mut total = 0_u32;
    for piece in slice(memory, pieces, count * 8)?.chunks_exact(8) {
        let number = |at: usize| u32::from_le_bytes([piece[at], piece[at + 1], piece[at + 2], piece[at + 3]]);
        let bytes = slice(memory, number(0), number(4))?;
        let room = MAX_WRITE.saturating_sub(text.len());
        text.extend_from_slice(&bytes[..bytes.len().min(room)]);
        total = total.wrapping_add(number(4));
    }
    let shown = String::from_utf8_lossy(&text);
    let shown = shown.trim_end();
    if !shown.is_empty() {
        info!(plugin = &*host.plugin.config.name, "{shown}");
        if fd == 2 {
            host.keep_words(shown);
        }
    }
    host.scratch = text;
    write(memory, written, &total.to_le_bytes())?;
    Ok(SUCCESS)
}

/// A character device without rights beyond what its number says.
fn fd_stat(caller: &mut Caller<'_, Host>, fd: u32, at: u32) -> Result<u32, Fail> {
    /// `filetype::character_device`.
    const CHARACTER_DEVICE: u8 = 2;
    if open(fd) != SUCCESS {
        return Ok(EBADF);
    }
    let mut stat = [0; 24];
    stat[0] = CHARACTER_DEVICE;
    write(all(caller)?.0, at, &stat)?;
    Ok(SUCCESS)
}

fn clock_time(caller: &mut Caller<'_, Host>, clock: u32, at: u32) -> Result<u32, Fail> {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let time = match clock {
        0 => now(),
        // Monotonic, and the two that count CPU time: the same will do.
        1..=3 => {
            let since = BEGAN.get_or_init(Instant::now).elapsed();
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        }
        _ => return Ok(EINVAL),
    };
    write(all(caller)?.0, at, &time.to_le_bytes())?;
    Ok(SUCCESS)
}

fn random(caller: &mut Caller<'_, Host>, at: u32, length: u32) -> Result<u32, Fail> {
    if length > MAX_RANDOM {
        return Ok(EINVAL);
    }
    let (memory, _) = all(caller)?;
    let place = memory
        .get_mut(at as usize..)
        .and_then(|rest| rest.get_mut(..length as usize));
    let place = place.ok_or(Status::InvalidMemoryAccess)?;
    Ok(getrandom::fill(place).map_or(EIO, |()| SUCCESS))
}

fn environment_sizes(caller: &mut Caller<'_, Host>, count: u32, bytes: u32) -> Result<u32, Fail> {
    let environment = &caller.data().plugin.config.environment;
    let size: usize = environment
        .iter()
        .map(|(name, value)| name.len() + value.len() + 2)
        .sum();
    let entries = [(count, number(environment.len())), (bytes, number(size))];
    numbers(caller, &entries)
}

/// Places of the texts, then the texts: `NAME=VALUE` with a zero byte behind it.
fn environment(caller: &mut Caller<'_, Host>, places: u32, texts: u32) -> Result<u32, Fail> {
    let (memory, host) = all(caller)?;
    let (mut place, mut text) = (places, texts);
    for (name, value) in &host.plugin.config.environment {
        let entry = format!("{name}={value}\0");
        write(memory, place, &text.to_le_bytes())?;
        write(memory, text, entry.as_bytes())?;
        place = place.checked_add(4).ok_or(Status::InvalidMemoryAccess)?;
        text = text
            .checked_add(number(entry.len()))
            .ok_or(Status::InvalidMemoryAccess)?;
    }
    Ok(SUCCESS)
}

fn number(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
