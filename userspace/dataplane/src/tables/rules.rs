//! Reading `weft_rules`: how often each rule decided.

use std::path::Path;

use aya::maps::{Map, MapData, MapError, PerCpuHashMap};
use weft_abi::RuleCounters;

use crate::error::DataplaneError;

/// One rule and its totals since the map was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleUse {
    /// As in [`weft_policy::RuleId`].
    pub rule: u32,
    /// Connections and datagram flows.
    pub counters: RuleCounters,
}

/// Reads the pinned table.
pub fn read(pin: &Path) -> Result<Vec<RuleUse>, DataplaneError> {
    let fail = |source: MapError| DataplaneError::Map {
        map: "weft_rules",
        what: "read",
        source: Box::new(source),
    };
    let map = Map::PerCpuHashMap(MapData::from_pin(pin).map_err(fail)?);
    let map: PerCpuHashMap<MapData, u32, RuleCounters> = map.try_into().map_err(fail)?;
    map.iter()
        .map(|entry| {
            let (rule, values) = entry.map_err(fail)?;
            let mut counters = RuleCounters::default();
            for cpu in values.iter() {
                counters.allowed += cpu.allowed;
                counters.denied += cpu.denied;
                counters.audited += cpu.audited;
            }
            Ok(RuleUse { rule, counters })
        })
        .collect()
}
