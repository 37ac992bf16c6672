//! Foreign functions: Envoy's additions that modules call by name.

use bytes::Bytes;
use prost::Message;
use wasmtime::{Caller, Linker};

use super::{
    super::{
        abi::Status,
        host::Host,
        memory::{Fail, all, answer, slice, write},
    },
    ENV, properties,
};

/// `envoy.source.extensions.common.wasm.SetEnvoyFilterStateArguments`, as far as it matters here.
#[derive(Clone, PartialEq, Message)]
struct SetFilterState {
    /// A text there.
    #[prost(bytes = "bytes", tag = "1")]
    path: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

pub(super) fn define(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        ENV,
        "proxy_call_foreign_function",
        |mut caller: Caller<'_, Host>, name: u32, name_length: u32, at: u32, length: u32, result: u32, size: u32| {
            let (name, arguments) = ((name, name_length), (at, length));
            answer(call(&mut caller, name, arguments, result, size))
        },
    )?;
    Ok(())
}

/// All known functions answer nothing.
fn call(
    caller: &mut Caller<'_, Host>,
    name: (u32, u32),
    arguments: (u32, u32),
    result: u32,
    size: u32,
) -> Result<(), Fail> {
    let (memory, host) = all(caller)?;
    let (name, arguments) = (slice(memory, name.0, name.1)?, slice(memory, arguments.0, arguments.1)?);
    match name {
        // Filters run after routing; and a property needs no declaration here.
        b"clear_route_cache" | b"declare_property" => {}
        b"set_envoy_filter_state" => {
            let state = SetFilterState::decode(arguments).map_err(|_| Status::BadArgument)?;
            if state.path.is_empty() {
                return Err(Status::BadArgument.into());
            }
            properties::set(host, &state.path, &state.value)?;
        }
        _ => return Err(Status::NotFound.into()),
    }
    for place in [result, size] {
        // Some modules want no result and say so by a zero.
        if place != 0 {
            write(memory, place, &0_u32.to_le_bytes())?;
        }
    }
    Ok(())
}
