//! Foreign functions: Envoy's additions that modules call by name. Source: Envoy, `source/extensions/common/wasm/foreign.cc`
//! and `ext/*.proto`.

use bytes::Bytes;
use miniz_oxide::{deflate::compress_to_vec_zlib, inflate::decompress_to_vec_zlib_with_limit};
use prost::Message;
use wasmtime::{Caller, Linker};

use super::{
    super::{
        abi::Status,
        host::Host,
        memory::{Fail, all, answer, give, slice},
        signature::{PrivateKey, PublicKey, der_of},
    },
    ENV, properties,
};

/// Longest arguments of a function, bytes: what it does with them takes the worker's time.
const MAX_ARGUMENTS: usize = 1 << 20;

/// Longest text that `uncompress` gives, bytes: a small one may stand for any number of them.
const MAX_UNCOMPRESSED: usize = 4 << 20;

/// How hard `compress` tries, of zlib's levels: its own default.
const LEVEL: u8 = 6;

/// `envoy.source.extensions.common.wasm.SetEnvoyFilterStateArguments`, as far as it matters here.
#[derive(Clone, PartialEq, Message)]
struct SetFilterState {
    /// A text there.
    #[prost(bytes = "bytes", tag = "1")]
    path: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `envoy.source.extensions.common.wasm.DeclarePropertyArguments`, as far as it matters here.
#[derive(Clone, PartialEq, Message)]
struct DeclareProperty {
    /// A text there.
    #[prost(bytes = "bytes", tag = "1")]
    name: Bytes,
}

/// `envoy.source.extensions.common.wasm.VerifySignatureArguments`.
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
    /// In place of the other one.
    #[prost(string, tag = "5")]
    public_key_pem: String,
}

/// `envoy.source.extensions.common.wasm.VerifySignatureResult`.
#[derive(Clone, PartialEq, Message)]
struct VerifySignatureResult {
    #[prost(bool, tag = "1")]
    result: bool,
    #[prost(string, tag = "2")]
    error: String,
}

/// `envoy.source.extensions.common.wasm.SignArguments`.
#[derive(Clone, PartialEq, Message)]
struct Sign {
    #[prost(string, tag = "1")]
    hash_function: String,
    /// PKCS #8 in DER.
    #[prost(bytes = "bytes", tag = "2")]
    private_key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    text: Bytes,
    /// In place of the other one.
    #[prost(string, tag = "4")]
    private_key_pem: String,
}

/// `envoy.source.extensions.common.wasm.SignResult`.
#[derive(Clone, PartialEq, Message)]
struct SignResult {
    #[prost(bool, tag = "1")]
    result: bool,
    #[prost(bytes = "vec", tag = "2")]
    signature: Vec<u8>,
    #[prost(string, tag = "3")]
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
        // Filters run after routing.
        b"clear_route_cache" => Vec::new(),
        // A property needs no declaration here.
        b"declare_property" => {
            DeclareProperty::decode(arguments).map_err(|_| Status::BadArgument)?;
            Vec::new()
        }
        b"set_envoy_filter_state" => {
            let state = SetFilterState::decode(arguments).map_err(|_| Status::BadArgument)?;
            if state.path.is_empty() {
                return Err(Status::BadArgument.into());
            }
            properties::set(host, &state.path, &state.value)?;
            Vec::new()
        }
        b"verify_signature" => verify_signature(arguments)?,
        b"sign" => sign(arguments)?,
        b"compress" => compress_to_vec_zlib(arguments, LEVEL),
        b"uncompress" => {
            decompress_to_vec_zlib_with_limit(arguments, MAX_UNCOMPRESSED).map_err(|_| Status::SerializationFailure)?
        }
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
    let key = key(&asked.public_key, &asked.public_key_pem, PublicKey::from_der)?;
    let verified = key.verify(&asked.hash_function, &asked.signature, &asked.text);
    let answer = VerifySignatureResult {
        result: verified.is_ok(),
        error: verified.err().map(|why| why.to_string()).unwrap_or_default(),
    };
    Ok(answer.encode_to_vec())
}

/// Likewise.
fn sign(arguments: &[u8]) -> Result<Vec<u8>, Status> {
    let asked = Sign::decode(arguments).map_err(|_| Status::BadArgument)?;
    let key = key(&asked.private_key, &asked.private_key_pem, PrivateKey::from_der)?;
    let answer = match key.sign(&asked.hash_function, &asked.text) {
        Ok(signature) => SignResult {
            result: true,
            signature,
            ..SignResult::default()
        },
        Err(why) => SignResult {
            error: why.to_string(),
            ..SignResult::default()
        },
    };
    Ok(answer.encode_to_vec())
}

/// A key in one of its two forms, not in both.
fn key<K>(der: &[u8], pem: &str, read: impl Fn(&[u8]) -> Option<K>) -> Result<K, Status> {
    let key = match (der, pem) {
        (der, "") => read(der),
        ([], pem) => der_of(pem).and_then(|der| read(der.as_bytes())),
        _ => None,
    };
    key.ok_or(Status::BadArgument)
}
