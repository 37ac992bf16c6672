//! Shared data and queues.

use wasmtime::{Caller, Linker};

use super::{
    super::{
        abi::Status,
        host::Host,
        memory::{Fail, all, answer, give, slice, write_u32},
    },
    ENV,
};

pub(super) fn define(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        ENV,
        "proxy_get_shared_data",
        |mut caller: Caller<'_, Host>, key: u32, key_length: u32, at: u32, length: u32, cas: u32| {
            answer(get(&mut caller, (key, key_length), at, length, cas))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_set_shared_data",
        |mut caller: Caller<'_, Host>, key: u32, key_length: u32, at: u32, length: u32, cas: u32| {
            answer(set(&mut caller, (key, key_length), (at, length), cas))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_register_shared_queue",
        |mut caller: Caller<'_, Host>, name: u32, length: u32, place: u32| {
            answer(register(&mut caller, (name, length), place))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_resolve_shared_queue",
        |mut caller: Caller<'_, Host>, vm: u32, vm_length: u32, name: u32, length: u32, place: u32| {
            answer(resolve(&mut caller, (vm, vm_length), (name, length), place))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_enqueue_shared_queue",
        |mut caller: Caller<'_, Host>, queue: u32, at: u32, length: u32| {
            answer(enqueue(&mut caller, queue, at, length))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_dequeue_shared_queue",
        |mut caller: Caller<'_, Host>, queue: u32, at: u32, length: u32| {
            answer(dequeue(&mut caller, queue, at, length))
        },
    )?;
    Ok(())
}

fn get(caller: &mut Caller<'_, Host>, key: (u32, u32), at: u32, length: u32, cas: u32) -> Result<(), Fail> {
    let (memory, host) = all(caller)?;
    let found = host.plugin.shared.get(slice(memory, key.0, key.1)?);
    let (value, version) = found.ok_or(Status::NotFound)?;
    give(caller, &value, at, length)?;
    write_u32(caller, cas, version)
}

fn set(caller: &mut Caller<'_, Host>, key: (u32, u32), value: (u32, u32), cas: u32) -> Result<(), Fail> {
    let (memory, host) = all(caller)?;
    let (key, value) = (slice(memory, key.0, key.1)?, slice(memory, value.0, value.1)?);
    Ok(host.plugin.shared.set(key, value, cas)?)
}

fn register(caller: &mut Caller<'_, Host>, name: (u32, u32), place: u32) -> Result<(), Fail> {
    let (memory, host) = all(caller)?;
    let name = slice(memory, name.0, name.1)?;
    let vm_id = host.plugin.config.vm_id.as_bytes();
    let queue = host.plugin.shared.register_queue(vm_id, name, &host.inbox)?;
    write_u32(caller, place, queue)
}

fn resolve(caller: &mut Caller<'_, Host>, vm_id: (u32, u32), name: (u32, u32), place: u32) -> Result<(), Fail> {
    let (memory, host) = all(caller)?;
    let (vm_id, name) = (slice(memory, vm_id.0, vm_id.1)?, slice(memory, name.0, name.1)?);
    let queue = host.plugin.shared.resolve_queue(vm_id, name).ok_or(Status::NotFound)?;
    write_u32(caller, place, queue)
}

fn enqueue(caller: &mut Caller<'_, Host>, queue: u32, at: u32, length: u32) -> Result<(), Fail> {
    let (memory, host) = all(caller)?;
    Ok(host.plugin.shared.enqueue(queue, slice(memory, at, length)?)?)
}

fn dequeue(caller: &mut Caller<'_, Host>, queue: u32, at: u32, length: u32) -> Result<(), Fail> {
    let message = caller.data().plugin.shared.dequeue(queue)?;
    give(caller, &message, at, length)
}
