//! `spec.wasm` of an Adapter: the module, what it looks at, and what it may do.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use crate::{
    decode::{Fields, Value, one_of, shorten},
    snapshot::{
        MAX_GENERATIONS, ONLY_GENERATION, WasmBackend, WasmGeneration, WasmInstances, WasmLimits, WasmModule,
        WasmProtocols, WasmRollback, WasmVm,
    },
};

const WEIGHT: std::ops::RangeInclusive<u64> = 0..=1_000_000;
/// Of an instance; there is one a worker and generation, or one a request.
const MEMORY_MIB: std::ops::RangeInclusive<u64> = 1..=4096;
/// Of a callback. A worker serves nobody else meanwhile.
const DEADLINE_MS: std::ops::RangeInclusive<u64> = 1..=10_000;
/// Of each callback of a start.
const START_MS: std::ops::RangeInclusive<u64> = 1..=60_000;

pub(super) fn decode(value: Value<'_>) -> Option<WasmBackend> {
    let whole = value.clone();
    let mut fields = value.fields()?;
    let generations = match (fields.optional("generations"), fields.optional("module")) {
        (Some(list), None) => generations(&list),
        (None, Some(path)) => module(&path, fields.optional("sha256")).map(|module| {
            let (name, weight) = (ONLY_GENERATION.0.to_owned(), ONLY_GENERATION.1);
            vec![WasmGeneration {
                name,
                module,
                weight,
                shadow: false,
            }]
        }),
        (found, _) => {
            let reason = match found {
                Some(_) => "both `module` and `generations`",
                None => "nothing says which module",
            };
            whole.error(
                reason,
                "write `module: /path/to/filter.wasm`, or `generations: [{name: v1, module: ..., weight: 90}, ...]`",
            );
            None
        }
    };
    let root = match fields.optional("root") {
        Some(value) => value.text().map(str::to_owned),
        None => Some(String::new()),
    };
    let vm = match fields.optional("vm") {
        Some(value) => vm(value),
        None => Some(WasmVm::default()),
    };
    let protocols = match fields.optional("protocols") {
        Some(value) => protocols(&value),
        None => Some(WasmProtocols { http: true, tcp: false }),
    };
    let instances = match fields.optional("instances") {
        Some(value) => value.choice(&[("worker", WasmInstances::Worker), ("request", WasmInstances::Request)]),
        None => Some(WasmInstances::default()),
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
    let rollback = match fields.optional("rollback") {
        Some(value) => rollback(value),
        None => Some(Some(WasmRollback::default())),
    };
    fields.finish();
    Some(WasmBackend {
        generations: generations?,
        root: root?,
        vm: vm?,
        protocols: protocols?,
        instances: instances?,
        limits: limits?,
        upstreams: upstreams?,
        capabilities: capabilities?,
        rollback: rollback?,
    })
}

fn generations(list: &Value<'_>) -> Option<Vec<WasmGeneration>> {
    let items = list.items()?;
    if items.is_empty() || items.len() > MAX_GENERATIONS {
        list.error(
            format!("{} generations", items.len()),
            format!("write 1 to {MAX_GENERATIONS} of them"),
        );
        return None;
    }
    let mut seen = BTreeSet::new();
    let decoded: Vec<_> = items.into_iter().map(|item| generation(item, &mut seen)).collect();
    let found = decoded.into_iter().collect::<Option<Vec<_>>>()?;
    if found.iter().all(|generation| generation.weight == 0) && !found.iter().all(|generation| generation.shadow) {
        list.error(
            "all weights are zero",
            "give one of them a weight, or remove the object",
        );
        return None;
    }
    Some(found)
}

fn generation(item: Value<'_>, seen: &mut BTreeSet<String>) -> Option<WasmGeneration> {
    let mut fields = item.fields()?;
    let name = fields.required("name").and_then(|value| {
        let name = value.dns_label()?.to_owned();
        if !seen.insert(name.clone()) {
            value.error(
                format!("there is a generation `{name}` already"),
                "give it another name",
            );
            return None;
        }
        Some(name)
    });
    let module = match fields.required("module") {
        Some(path) => module(&path, fields.optional("sha256")),
        None => None,
    };
    let shadow = match fields.optional("shadow") {
        Some(value) => flag(&value),
        None => Some(false),
    };
    let weight = match (shadow, fields.optional("weight")) {
        (Some(true), Some(weight)) => {
            weight.error("a shadow gets no requests of its own", "remove it, or `shadow`");
            None
        }
        (Some(true), None) => Some(0),
        (_, Some(weight)) => weight.integer(WEIGHT).and_then(|weight| u32::try_from(weight).ok()),
        (_, None) => {
            fields
                .value
                .error("the field `weight` is missing", "add `weight:`, or `shadow: true`");
            None
        }
    };
    fields.finish();
    Some(WasmGeneration {
        name: name?,
        module: module?,
        weight: weight?,
        shadow: shadow?,
    })
}

fn vm(value: Value<'_>) -> Option<WasmVm> {
    let mut fields = value.fields()?;
    let id = match fields.optional("id") {
        Some(value) => value.text().map(str::to_owned),
        None => Some(String::new()),
    };
    let configuration = match fields.optional("configuration") {
        Some(value) => value.json(),
        None => Some(serde_json::Value::Null),
    };
    let environment = match fields.optional("environment") {
        Some(value) => environment(&value),
        None => Some(BTreeMap::new()),
    };
    fields.finish();
    Some(WasmVm {
        id: id?,
        configuration: configuration?,
        environment: environment?,
    })
}

/// Names and values as a process has them: POSIX.1-2017, 8.1.
fn environment(value: &Value<'_>) -> Option<BTreeMap<String, String>> {
    let found = value.string_map()?;
    let unfit = found
        .iter()
        .find(|(name, text)| name.is_empty() || name.contains(['=', '\0']) || text.contains('\0'));
    if let Some((name, _)) = unfit {
        value.error(
            format!("`{}` is no variable", shorten(name)),
            "write names without `=`, and no zero bytes",
        );
        return None;
    }
    Some(found)
}

/// `manual`, or thresholds.
fn rollback(value: Value<'_>) -> Option<Option<WasmRollback>> {
    if value.node.as_text().is_some() {
        return value.choice(&[("manual", None)]);
    }
    let default = WasmRollback::default();
    let mut fields = value.fields()?;
    let failures = number(&mut fields, "failures", 1..=1_000_000, default.failures);
    let slower_percent = number(&mut fields, "slowerPercent", 1..=1_000_000, default.slower_percent);
    let denies_percent = number(&mut fields, "deniesPercent", 1..=100, default.denies_percent);
    fields.finish();
    Some(Some(WasmRollback {
        failures: failures?,
        slower_percent: slower_percent?,
        denies_percent: denies_percent?,
    }))
}

fn flag(value: &Value<'_>) -> Option<bool> {
    let found = value.json()?.as_bool();
    if found.is_none() {
        value.error("expected true or false", "write `true` or `false`");
    }
    found
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
