//! Bodies, bytes of connections, configurations.

use std::mem;

use bytes::BytesMut;
use wasmtime::{Caller, Linker};

use super::{
    super::{
        abi::{AbiVersion, BufferKind, Status},
        host::Host,
        memory::{Fail, all, answer, give, slice, write_u32},
    },
    ENV,
};

/// Longest body, or piece of a connection, that a module may make of one, bytes. A longer one it may still cut.
const MAX_BUFFER: usize = 16 << 20;

pub(super) fn define(linker: &mut Linker<Host>, abi: AbiVersion) -> wasmtime::Result<()> {
    linker.func_wrap(
        ENV,
        "proxy_get_buffer_bytes",
        |mut caller: Caller<'_, Host>, buffer: u32, start: u32, most: u32, at: u32, length: u32| {
            answer(get(&mut caller, buffer, (start, most), at, length))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_set_buffer_bytes",
        |mut caller: Caller<'_, Host>, buffer: u32, start: u32, size: u32, at: u32, length: u32| {
            answer(set(&mut caller, buffer, (start, size), at, length))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_get_buffer_status",
        |mut caller: Caller<'_, Host>, buffer: u32, length: u32, flags: u32| {
            answer(status(&mut caller, buffer, length, flags))
        },
    )?;
    if abi == AbiVersion::V0_1_0 {
        linker.func_wrap(
            ENV,
            "proxy_get_configuration",
            |mut caller: Caller<'_, Host>, at: u32, length: u32| {
                let configuration = caller.data().plugin.config.configuration.clone();
                answer(give(&mut caller, &configuration, at, length))
            },
        )?;
    }
    Ok(())
}

fn get(caller: &mut Caller<'_, Host>, buffer: u32, range: (u32, u32), at: u32, length: u32) -> Result<(), Fail> {
    let kind = BufferKind::from_abi(buffer)?;
    let host = caller.data_mut();
    // Out first: the module's allocator needs the whole store.
    let mut copy = mem::take(&mut host.scratch);
    copy.clear();
    let found = host.buffer(kind).map(|bytes| {
        let start = (range.0 as usize).min(bytes.len());
        let end = start.saturating_add(range.1 as usize).min(bytes.len());
        copy.extend_from_slice(&bytes[start..end]);
    });
    let given = match found {
        Some(()) => give(caller, &copy, at, length),
        None => Err(Status::NotFound.into()),
    };
    caller.data_mut().scratch = copy;
    given
}

fn set(caller: &mut Caller<'_, Host>, buffer: u32, range: (u32, u32), at: u32, length: u32) -> Result<(), Fail> {
    let kind = BufferKind::from_abi(buffer)?;
    let (memory, host) = all(caller)?;
    let bytes = slice(memory, at, length)?;
    let buffer = host.buffer_mut(kind).ok_or(Status::NotFound)?;
    Ok(replace(buffer, range.0 as usize, range.1 as usize, bytes)?)
}

/// Puts `bytes` in place of `size` bytes from `start`; what is beyond the end is the end.
fn replace(buffer: &mut BytesMut, start: usize, size: usize, bytes: &[u8]) -> Result<(), Status> {
    let start = start.min(buffer.len());
    let end = start.saturating_add(size).min(buffer.len());
    let gone = end - start;
    if bytes.len() > gone && buffer.len() - gone + bytes.len() > MAX_BUFFER {
        return Err(Status::BadArgument);
    }
    let rest = buffer.split_off(end);
    buffer.truncate(start);
    buffer.extend_from_slice(bytes);
    if !rest.is_empty() {
        buffer.unsplit(rest);
    }
    Ok(())
}

fn status(caller: &mut Caller<'_, Host>, buffer: u32, length: u32, flags: u32) -> Result<(), Fail> {
    let kind = BufferKind::from_abi(buffer)?;
    let bytes = caller.data().buffer(kind).ok_or(Status::NotFound)?.len();
    write_u32(caller, length, u32::try_from(bytes).unwrap_or(u32::MAX))?;
    write_u32(caller, flags, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_put_before_after_within_and_instead() {
        for (start, size, expected) in [
            (0, 0, "new|abcdef"),
            (0, 6, "new|"),
            (0, usize::MAX, "new|"),
            (6, 0, "abcdefnew|"),
            (99, 5, "abcdefnew|"),
            (2, 2, "abnew|ef"),
            (3, 0, "abcnew|def"),
        ] {
            let mut buffer = BytesMut::from("abcdef");
            replace(&mut buffer, start, size, b"new|").expect("room");
            assert_eq!(buffer, expected, "{start} {size}");
        }
    }

    #[test]
    fn a_buffer_does_not_grow_without_end() {
        let mut buffer = BytesMut::new();
        let half = vec![0; MAX_BUFFER / 2];
        for _ in 0..2 {
            replace(&mut buffer, 0, 0, &half).expect("room");
        }
        assert_eq!(replace(&mut buffer, 0, 0, b"x"), Err(Status::BadArgument));
        assert_eq!(buffer.len(), MAX_BUFFER);
        replace(&mut buffer, 0, 1, b"x").expect("no longer than it was");
    }
}
