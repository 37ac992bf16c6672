//! Maps of headers and trailers. A map that is not there reads as empty, and what is written to it, or fits into no head, is
//! dropped: SDKs end the module on any other answer.

use std::mem;

use wasmtime::{Caller, Linker};

use super::{
    super::{
        abi::{MapKind, Status},
        host::Host,
        memory::{Fail, all, answer, give, slice, write_u32},
        pairs,
    },
    ENV,
};

pub(super) fn define(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        ENV,
        "proxy_get_header_map_size",
        |mut caller: Caller<'_, Host>, map: u32, place: u32| answer(size(&mut caller, map, place)),
    )?;
    linker.func_wrap(
        ENV,
        "proxy_get_header_map_pairs",
        |mut caller: Caller<'_, Host>, map: u32, at: u32, length: u32| answer(get_pairs(&mut caller, map, at, length)),
    )?;
    linker.func_wrap(
        ENV,
        "proxy_set_header_map_pairs",
        |mut caller: Caller<'_, Host>, map: u32, at: u32, length: u32| answer(set_pairs(&mut caller, map, at, length)),
    )?;
    linker.func_wrap(
        ENV,
        "proxy_get_header_map_value",
        |mut caller: Caller<'_, Host>, map: u32, key: u32, key_length: u32, at: u32, length: u32| {
            answer(get(&mut caller, map, (key, key_length), at, length))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_add_header_map_value",
        |mut caller: Caller<'_, Host>, map: u32, key: u32, key_length: u32, at: u32, length: u32| {
            answer(change(&mut caller, map, (key, key_length), Change::Add(at, length)))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_replace_header_map_value",
        |mut caller: Caller<'_, Host>, map: u32, key: u32, key_length: u32, at: u32, length: u32| {
            answer(change(&mut caller, map, (key, key_length), Change::Replace(at, length)))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_remove_header_map_value",
        |mut caller: Caller<'_, Host>, map: u32, key: u32, key_length: u32| {
            answer(change(&mut caller, map, (key, key_length), Change::Remove))
        },
    )?;
    Ok(())
}

/// What is done to a key; values as place and length.
enum Change {
    Add(u32, u32),
    Replace(u32, u32),
    Remove,
}

fn size(caller: &mut Caller<'_, Host>, map: u32, place: u32) -> Result<(), Fail> {
    let kind = MapKind::from_abi(map)?;
    let bytes: usize = caller.data().map(kind).map_or(0, |map| {
        let pairs = map.pairs();
        pairs.iter().map(|(name, value)| name.len() + value.len()).sum()
    });
    write_u32(caller, place, u32::try_from(bytes).unwrap_or(u32::MAX))
}

fn get_pairs(caller: &mut Caller<'_, Host>, map: u32, at: u32, length: u32) -> Result<(), Fail> {
    let kind = MapKind::from_abi(map)?;
    let host = caller.data_mut();
    let mut encoded = mem::take(&mut host.scratch);
    encoded.clear();
    let map = host.map(kind);
    pairs::encode(&map.map(|map| map.pairs()).unwrap_or_default(), &mut encoded);
    let given = give(caller, &encoded, at, length);
    caller.data_mut().scratch = encoded;
    given
}

fn set_pairs(caller: &mut Caller<'_, Host>, map: u32, at: u32, length: u32) -> Result<(), Fail> {
    let kind = MapKind::from_abi(map)?;
    let (memory, host) = all(caller)?;
    let pairs = pairs::decode(slice(memory, at, length)?).ok_or(Status::BadArgument)?;
    let unfit = host.map_mut(kind).map_or(0, |mut map| map.set_all(&pairs));
    host.counters.unfit_headers.add(unfit);
    Ok(())
}

fn get(caller: &mut Caller<'_, Host>, map: u32, key: (u32, u32), at: u32, length: u32) -> Result<(), Fail> {
    let kind = MapKind::from_abi(map)?;
    let (memory, host) = all(caller)?;
    let key = slice(memory, key.0, key.1)?;
    // Out first: the module's allocator needs the whole store.
    let mut copy = mem::take(&mut host.scratch);
    copy.clear();
    let found = host.map(kind).and_then(|map| map.get(key));
    let found = found.map(|value| copy.extend_from_slice(value));
    let given = match found {
        Some(()) => give(caller, &copy, at, length),
        None => Err(Status::NotFound.into()),
    };
    caller.data_mut().scratch = copy;
    given
}

fn change(caller: &mut Caller<'_, Host>, map: u32, key: (u32, u32), change: Change) -> Result<(), Fail> {
    let kind = MapKind::from_abi(map)?;
    let (memory, host) = all(caller)?;
    let key = slice(memory, key.0, key.1)?;
    let Some(mut map) = host.map_mut(kind) else {
        return Ok(());
    };
    let done = match change {
        Change::Add(at, length) => map.add(key, slice(memory, at, length)?),
        Change::Replace(at, length) => map.replace(key, slice(memory, at, length)?),
        Change::Remove => {
            map.remove(key);
            Ok(())
        }
    };
    host.counters.unfit_headers.add(u64::from(done.is_err()));
    Ok(())
}
