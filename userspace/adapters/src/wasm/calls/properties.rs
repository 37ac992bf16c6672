//! Properties, read and set.

use wasmtime::{Caller, Linker};

use super::{
    super::{
        abi::Status,
        host::Host,
        memory::{Fail, all, answer, give, slice},
        property,
    },
    ENV,
};

/// Properties that a filter may add to those of a stream. Each has its own: one that sets too many takes none from the others.
const MAX_SET: usize = 64;

/// Longest value of one, bytes.
const MAX_VALUE: usize = 16 << 10;

pub(super) fn define(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        ENV,
        "proxy_get_property",
        |mut caller: Caller<'_, Host>, path: u32, path_length: u32, at: u32, length: u32| {
            answer(get(&mut caller, (path, path_length), at, length))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_set_property",
        |mut caller: Caller<'_, Host>, path: u32, path_length: u32, at: u32, length: u32| {
            answer(set_property(&mut caller, (path, path_length), (at, length)))
        },
    )?;
    Ok(())
}

fn get(caller: &mut Caller<'_, Host>, path: (u32, u32), at: u32, length: u32) -> Result<(), Fail> {
    let (memory, host) = all(caller)?;
    let value = property::get(host, slice(memory, path.0, path.1)?).ok_or(Status::NotFound)?;
    give(caller, &value, at, length)
}

fn set_property(caller: &mut Caller<'_, Host>, path: (u32, u32), value: (u32, u32)) -> Result<(), Fail> {
    let (memory, host) = all(caller)?;
    let (path, value) = (slice(memory, path.0, path.1)?, slice(memory, value.0, value.1)?);
    Ok(set(host, path, value)?)
}

/// Sets a property of the stream at hand, for all its filters. Under a name that is the proxy's nobody finds it: SDKs end the module
/// on an error.
pub(super) fn set(host: &mut Host, path: &[u8], value: &[u8]) -> Result<(), Status> {
    let path = path.strip_suffix(b"\0").unwrap_or(path);
    if value.len() > MAX_VALUE {
        return Err(Status::BadArgument);
    }
    let kept = host.kept.clone();
    let stream = host.stream_mut().ok_or(Status::NotFound)?;
    let state = &stream.info.state;
    let adds = !state.has(path);
    if adds && stream.properties >= MAX_SET {
        return Err(Status::InternalFailure);
    }
    let room = kept.hold(path.len() + value.len());
    state.set(path, value, Box::new(room.map_err(|_| Status::InternalFailure)?));
    stream.properties += usize::from(adds);
    Ok(())
}
