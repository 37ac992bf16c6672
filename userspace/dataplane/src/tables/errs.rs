//! `weft_errs`: what the programs could not do, by site and errno.

use std::path::Path;

use aya::maps::{MapData, PerCpuHashMap};
use serde::Serialize;

use crate::error::DataplaneError;

/// Names of `ebpf/programs/src/errs.rs`, `Site`, from 1.
const SITES: [&str; 12] = [
    "events_full",
    "edges_full",
    "conns_insert",
    "listen_insert",
    "circuit_insert",
    "sock_storage",
    "backend_missing",
    "callback_flags",
    "flows_full",
    "rules_full",
    "malformed_packet",
    "assign",
];

/// One site and errno.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KernelError {
    /// Where in the programs.
    pub site: &'static str,
    /// Positive errno; 0 where the helper gives none.
    pub errno: u32,
    /// How often since the map was made.
    pub count: u64,
}

/// Reads the pinned table.
pub fn read(pin: &Path) -> Result<Vec<KernelError>, DataplaneError> {
    let fail = |source| DataplaneError::Map {
        map: "weft_errs",
        what: "read",
        source: Box::new(source),
    };
    let map = aya::maps::Map::PerCpuHashMap(MapData::from_pin(pin).map_err(fail)?);
    let map: PerCpuHashMap<MapData, [u32; 2], u64> = map.try_into().map_err(fail)?;
    let mut found = Vec::new();
    for entry in map.iter() {
        let ([site, errno], values) = entry.map_err(fail)?;
        let site = SITES.get((site as usize).wrapping_sub(1)).copied().unwrap_or("unknown");
        found.push(KernelError {
            site,
            errno,
            count: values.iter().sum(),
        });
    }
    Ok(found)
}
