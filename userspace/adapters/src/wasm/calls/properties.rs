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

/// Properties that filters may set on a stream.
const MAX_SET: usize = 64;

/// Longest value of one, bytes.
const MAX_VALUE: u32 = 16 << 10;

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
    if value.1 > MAX_VALUE {
        return Err(Status::BadArgument.into());
    }
    let (path, value) = (slice(memory, path.0, path.1)?, slice(memory, value.0, value.1)?);
    Ok(set(host, path, value)?)
}

/// Sets a property of the stream at hand. Under a name that is the proxy's nobody finds it: SDKs end the module on an error.
pub(super) fn set(host: &mut Host, path: &[u8], value: &[u8]) -> Result<(), Status> {
    let path = path.strip_suffix(b"\0").unwrap_or(path);
    let no_room = |_| Status::InternalFailure;
    let all = host.kept.clone();
    let stream = host.stream_mut().ok_or(Status::NotFound)?;
    let kept = stream.kept.get_or_insert_with(|| all.nothing());
    if let Some((_, old)) = stream.properties.iter_mut().find(|(name, _)| **name == *path) {
        kept.grow(value.len().saturating_sub(old.len())).map_err(no_room)?;
        kept.shrink(old.len().saturating_sub(value.len()));
        *old = value.into();
        return Ok(());
    }
    if stream.properties.len() >= MAX_SET {
        return Err(Status::InternalFailure);
    }
    kept.grow(path.len() + value.len()).map_err(no_room)?;
    stream.properties.push((path.into(), value.into()));
    Ok(())
}
