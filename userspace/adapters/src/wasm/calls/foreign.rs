//! Foreign functions: Envoy's additions that modules call by name. Source: Envoy, `source/extensions/common/wasm/foreign.cc`
//! and `ext/*.proto`.

use bytes::Bytes;
use prost::Message;
use wasmtime::{Caller, Linker};

use super::{
    super::{
        abi::Status,
        host::Host,
        memory::{Fail, all, answer, give, slice},
        signature::PublicKey,
    },
    ENV, properties,
};

/// Longest arguments of a function, bytes: what it does with them takes the worker's time.
const MAX_ARGUMENTS: usize = 1 << 20;

/// `envoy.source.extensions.common.wasm.SetEnvoyFilterStateArguments`, as far as it matters here.
#[derive(Clone, PartialEq, Message)]
struct SetFilterState {
    /// A text there.
    #[prost(bytes = "bytes", tag = "1")]
    path: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `envoy.source.extensions.common.wasm.VerifySignatureArguments`, but for keys in PEM.
#[derive(Clone, PartialEq, Message)]
struct VerifySignature {
    #[prost(string, tag = "1")]
    hash_function: String,
    /// `SubjectPublicKeyInfo` in DER.
    #[prost(bytes = "bytes", tag = "2")]
    public_key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    signature: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    text: Bytes,
}

/// `envoy.source.extensions.common.wasm.VerifySignatureResult`.
#[derive(Clone, PartialEq, Message)]
struct VerifySignatureResult {
    #[prost(bool, tag = "1")]
    result: bool,
    #[prost(string, tag = "2")]
    error: String,
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

fn call(
    caller: &mut Caller<'_, Host>,
    name: (u32, u32),
    arguments: (u32, u32),
    result: u32,
    size: u32,
) -> Result<(), Fail> {
    let (memory, host) = all(caller)?;
    let (name, arguments) = (slice(memory, name.0, name.1)?, slice(memory, arguments.0, arguments.1)?);
    if arguments.len() > MAX_ARGUMENTS {
        return Err(Status::BadArgument.into());
    }
    let found = match name {
        // Filters run after routing; and a property needs no declaration here.
        b"clear_route_cache" | b"declare_property" => Vec::new(),
        b"set_envoy_filter_state" => {
            let state = SetFilterState::decode(arguments).map_err(|_| Status::BadArgument)?;
            if state.path.is_empty() {
                return Err(Status::BadArgument.into());
            }
            properties::set(host, &state.path, &state.value)?;
            Vec::new()
        }
        b"verify_signature" => verify_signature(arguments)?,
        _ => return Err(Status::NotFound.into()),
    };
    match (result, size) {
        // Some modules want no result and say so by a zero.
        (0, _) | (_, 0) => Ok(()),
        (result, size) => give(caller, &found, result, size),
    }
}

/// Only what cannot be read is an error: why a signature is none is an answer.
fn verify_signature(arguments: &[u8]) -> Result<Vec<u8>, Status> {
    let asked = VerifySignature::decode(arguments).map_err(|_| Status::BadArgument)?;
    let key = PublicKey::from_der(&asked.public_key).ok_or(Status::BadArgument)?;
    let verified = key.verify(&asked.hash_function, &asked.signature, &asked.text);
    let answer = VerifySignatureResult {
        result: verified.is_ok(),
        error: verified.err().map(|why| why.to_string()).unwrap_or_default(),
    };
    Ok(answer.encode_to_vec())
}
