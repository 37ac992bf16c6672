//! The calls that modules make: `env.proxy_*`, WASI, and what compilers add.

use wasmtime::{Caller, ExternType, Linker, Module, UnknownImportError, Val, ValType};

use super::{
    abi::{AbiVersion, Status},
    config::Capabilities,
    engine::engine,
    error::{Stop, WasmError},
    host::Host,
};

mod buffers;
mod callouts;
mod foreign;
mod headers;
mod log;
mod metrics;
mod properties;
mod shared;
mod stream;
mod wasi;

/// Module under which proxy-wasm's calls are.
const ENV: &str = "env";

/// Links what `module` imports; what `capabilities` do not allow answers an error.
///
/// # Errors
/// It imports what no proxy-wasm host has, or with another signature.
pub(super) fn linker(module: &Module, abi: AbiVersion, capabilities: &Capabilities) -> Result<Linker<Host>, WasmError> {
    let mut linker = Linker::new(engine()?);
    linker.allow_shadowing(true);
    define(&mut linker, abi).map_err(link_error)?;
    for import in module.imports() {
        let (space, name) = (import.module(), import.name());
        let ExternType::Func(kind) = import.ty() else {
            return Err(unknown(space, name));
        };
        let wasi = wasi::MODULES.contains(&space);
        // What compilers add is no capability: without its `abort` a module would run on.
        let subject = wasi || name.starts_with("proxy_");
        let allowed = !subject || capabilities.allow(name);
        let answer = match (wasi, allowed) {
            (true, true) if !wasi::KNOWN.contains(&name) => wasi::ENOTSUP,
            (_, true) => continue,
            (true, false) => wasi::ENOTCAPABLE,
            (false, false) => Status::InternalFailure as i32,
        };
        if kind.results().len() > 1 || kind.results().any(|result| !matches!(result, ValType::I32)) {
            return Err(unknown(space, name));
        }
        let defined = linker.func_new(space, name, kind, move |caller, _, results| {
            if !allowed {
                caller.data().counters.refused_calls.add(1);
            }
            if let Some(result) = results.first_mut() {
                *result = Val::I32(answer);
            }
            Ok(())
        });
        defined.map_err(link_error)?;
    }
    Ok(linker)
}

/// Why a module does not fit the calls there are.
pub(super) fn link_error(error: wasmtime::Error) -> WasmError {
    match error.downcast_ref::<UnknownImportError>() {
        Some(import) => unknown(import.module(), import.name()),
        None => WasmError::Link {
            reason: format!("{error:#}"),
        },
    }
}

fn unknown(module: &str, name: &str) -> WasmError {
    WasmError::Import {
        module: module.to_owned(),
        name: name.to_owned(),
    }
}

fn define(linker: &mut Linker<Host>, abi: AbiVersion) -> wasmtime::Result<()> {
    log::define(linker)?;
    headers::define(linker)?;
    buffers::define(linker, abi)?;
    stream::define(linker, abi)?;
    properties::define(linker)?;
    shared::define(linker)?;
    metrics::define(linker)?;
    callouts::define(linker)?;
    foreign::define(linker)?;
    wasi::define(linker)?;
    // AssemblyScript ends so; message and file are texts in UTF-16 of its own heap.
    linker.func_wrap(ENV, "abort", |_message: u32, _file: u32, line: u32, column: u32| {
        Err::<(), _>(wasmtime::Error::new(Stop::Abort { line, column }))
    })?;
    // Emscripten's: nothing to do, and one thread only.
    linker.func_wrap(ENV, "emscripten_notify_memory_growth", |_: Caller<'_, Host>, _: u32| {})?;
    linker.func_wrap(ENV, "pthread_equal", |_: Caller<'_, Host>, one: u32, other: u32| {
        u32::from(one == other)
    })?;
    Ok(())
}
