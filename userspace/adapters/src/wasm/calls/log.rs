//! Logging, clock, ticks, and who the calls are about.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::{debug, error, info, trace, warn};
use wasmtime::{Caller, Linker};

use super::{
    super::{
        abi::Status,
        host::{Host, ROOT},
        memory::{Fail, all, answer, slice, write_u32},
    },
    ENV,
};

/// Longest message that is logged in bytes; the rest is cut off.
const MAX_MESSAGE: usize = 4096;

/// Shortest time between two ticks: a module that asks for less gets this.
const MIN_TICK: Duration = Duration::from_millis(1);

/// Level `info` of the ABI.
const INFO: u32 = 2;

pub(super) fn define(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        ENV,
        "proxy_log",
        |mut caller: Caller<'_, Host>, level: u32, at: u32, length: u32| answer(log(&mut caller, level, at, length)),
    )?;
    linker.func_wrap(
        ENV,
        "proxy_get_log_level",
        |mut caller: Caller<'_, Host>, place: u32| answer(write_u32(&mut caller, place, enabled_level())),
    )?;
    linker.func_wrap(
        ENV,
        "proxy_get_current_time_nanoseconds",
        |mut caller: Caller<'_, Host>, place: u32| answer(current_time(&mut caller, place)),
    )?;
    linker.func_wrap(
        ENV,
        "proxy_set_tick_period_milliseconds",
        |mut caller: Caller<'_, Host>, period: u32| {
            let period = Duration::from_millis(u64::from(period));
            let host = caller.data_mut();
            host.tick = (!period.is_zero()).then(|| period.max(MIN_TICK));
            host.tick_changed = true;
            Status::Ok as u32
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_set_effective_context",
        |mut caller: Caller<'_, Host>, context: u32| {
            let host = caller.data_mut();
            if context != ROOT && !host.streams.contains_key(&context) {
                return Status::BadArgument as u32;
            }
            host.effective = context;
            Status::Ok as u32
        },
    )?;
    linker.func_wrap(ENV, "proxy_done", |mut caller: Caller<'_, Host>| {
        let host = caller.data_mut();
        let context = host.effective;
        if let (ROOT, Some(done)) = (context, &mut host.root_done) {
            *done = true;
            return Status::Ok as u32;
        }
        if !host.streams.get(&context).is_some_and(|stream| stream.closing) {
            return Status::NotFound as u32;
        }
        host.done.push(context);
        Status::Ok as u32
    })?;
    Ok(())
}

fn log(caller: &mut Caller<'_, Host>, level: u32, at: u32, length: u32) -> Result<(), Fail> {
    let (memory, host) = all(caller)?;
    let message = slice(memory, at, length)?;
    let message = String::from_utf8_lossy(&message[..message.len().min(MAX_MESSAGE)]);
    let plugin = &*host.plugin.config.name;
    match level {
        0 => trace!(plugin, "{message}"),
        1 => debug!(plugin, "{message}"),
        2 => info!(plugin, "{message}"),
        3 => warn!(plugin, "{message}"),
        4 | 5 => error!(plugin, "{message}"),
        _ => return Err(Status::BadArgument.into()),
    }
    if level > INFO {
        host.keep_words(&message);
    }
    Ok(())
}

/// The lowest level that is written.
fn enabled_level() -> u32 {
    let enabled = [
        tracing::enabled!(tracing::Level::TRACE),
        tracing::enabled!(tracing::Level::DEBUG),
        tracing::enabled!(tracing::Level::INFO),
        tracing::enabled!(tracing::Level::WARN),
    ];
    let level = enabled.iter().position(|enabled| *enabled).unwrap_or(enabled.len());
    u32::try_from(level).unwrap_or(INFO)
}

fn current_time(caller: &mut Caller<'_, Host>, place: u32) -> Result<(), Fail> {
    let (memory, _) = all(caller)?;
    Ok(super::super::memory::write(memory, place, &now().to_le_bytes())?)
}

/// Nanoseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
