//! `spec.wasm` of an Adapter: the module, what it looks at, and what it may do.

use std::{collections::BTreeSet, path::PathBuf};

use crate::{
    decode::{Fields, Value, one_of, shorten},
    snapshot::{WasmBackend, WasmGeneration, WasmLimits, WasmModule, WasmProtocols},
};

/// Name of the generation of `wasm: {module: PATH}`.
const ONLY: &str = "only";
/// Of an instance; there is one a worker and generation.
const MEMORY_MIB: std::ops::RangeInclusive<u64> = 1..=4096;
/// Of a callback. A worker serves nobody else meanwhile.
const DEADLINE_MS: std::ops::RangeInclusive<u64> = 1..=10_000;
/// Of each callback of a start.
const START_MS: std::ops::RangeInclusive<u64> = 1..=60_000;

pub(super) fn decode(value: Value<'_>) -> Option<WasmBackend> {
    let mut fields = value.fields()?;
    let module = match fields.required("module") {
        Some(path) => module(&path, fields.optional("sha256")),
        None => None,
    };
    let root = match fields.optional("root") {
        Some(value) => value.text().map(str::to_owned),
        None => Some(String::new()),
    };
    let protocols = match fields.optional("protocols") {
        Some(value) => protocols(&value),
        None => Some(WasmProtocols { http: true, tcp: false }),
    };
    let limits = match fields.optional("limits") {
        Some(value) => limits(value),
        None => Some(WasmLimits::default()),
    };
    let upstreams = match fields.optional("upstreams") {
        Some(value) => texts(&value),
        None => Some(BTreeSet::new()),
    };
    let capabilities = match fields.optional("capabilities") {
        Some(value) => texts(&value).map(Some),
        None => Some(None),
    };
    fields.finish();
    Some(WasmBackend {
        generations: vec![WasmGeneration {
            name: ONLY.to_owned(),
            module: module?,
            weight: 1,
        }],
        root: root?,
        protocols: protocols?,
        limits: limits?,
        upstreams: upstreams?,
        capabilities: capabilities?,
    })
}

fn module(path: &Value<'_>, sha256: Option<Value<'_>>) -> Option<WasmModule> {
    let sha256 = match sha256 {
        Some(value) => digest(&value).map(Some),
        None => Some(None),
    };
    let text = path.text()?;
    let found = PathBuf::from(text);
    if !found.is_absolute() || found.file_name().is_none() {
        path.error(
            format!("`{}` is no absolute path of a file", shorten(text)),
            "write where the module is on this machine, as /etc/weft/filters/auth.wasm",
        );
        return None;
    }
    Some(WasmModule {
        path: found,
        sha256: sha256?,
    })
}

/// 64 hexadecimal digits, as `sha256sum` prints them; `sha256:` may be before them.
fn digest(value: &Value<'_>) -> Option<[u8; 32]> {
    let text = value.text()?;
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let read = || {
        let mut digest = [0; 32];
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (index, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(hex.get(2 * index..2 * index + 2)?, 16).ok()?;
        }
        Some(digest)
    };
    let found = read();
    if found.is_none() {
        value.error(
            format!("`{}` is no SHA-256", shorten(text)),
            "write the 64 hexadecimal digits that `sha256sum FILE` prints",
        );
    }
    found
}

fn protocols(value: &Value<'_>) -> Option<WasmProtocols> {
    let mut found = WasmProtocols {
        http: false,
        tcp: false,
    };
    for item in value.items()? {
        match item.text()? {
            "http" => found.http = true,
            "tcp" => found.tcp = true,
            other => {
                item.error(
                    format!("unknown value `{}`", shorten(other)),
                    one_of(&["http", "tcp"], other),
                );
                return None;
            }
        }
    }
    if !found.http && !found.tcp {
        value.error("an empty list", "write `[http]`, `[tcp]` or `[http, tcp]`");
        return None;
    }
    Some(found)
}

fn limits(value: Value<'_>) -> Option<WasmLimits> {
    let default = WasmLimits::default();
    let mut fields = value.fields()?;
    let memory_mib = number(&mut fields, "memoryMiB", MEMORY_MIB, default.memory_mib);
    let deadline_ms = number(&mut fields, "deadlineMs", DEADLINE_MS, default.deadline_ms);
    let start_ms = number(&mut fields, "startMs", START_MS, default.start_ms);
    fields.finish();
    Some(WasmLimits {
        memory_mib: memory_mib?,
        deadline_ms: deadline_ms?,
        start_ms: start_ms?,
    })
}

fn number(
    fields: &mut Fields<'_>,
    name: &'static str,
    range: std::ops::RangeInclusive<u64>,
    default: u64,
) -> Option<u64> {
    match fields.optional(name) {
        Some(value) => value.integer(range),
        None => Some(default),
    }
}

fn texts(value: &Value<'_>) -> Option<BTreeSet<String>> {
    let items = value.items()?;
    items.iter().map(|item| item.text().map(str::to_owned)).collect()
}
