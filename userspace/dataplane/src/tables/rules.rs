//! Reading `weft_rules`: how often each rule decided; removing what is of no use any more.

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
    let fail = fail("read");
    open(pin)
        .map_err(fail)?
        .iter()
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

/// Removes rules from the pinned table; one that decides again begins anew.
pub fn forget(pin: &Path, rules: &[u32]) -> Result<(), DataplaneError> {
    let mut map = open(pin).map_err(fail("open"))?;
    for rule in rules {
        // Gone already is as good.
        let _ = map.remove(rule);
    }
    Ok(())
}

fn open(pin: &Path) -> Result<PerCpuHashMap<MapData, u32, RuleCounters>, MapError> {
    Map::PerCpuHashMap(MapData::from_pin(pin)?).try_into()
}

fn fail(what: &'static str) -> impl Fn(MapError) -> DataplaneError + Copy {
    move |source| DataplaneError::Map {
        map: "weft_rules",
        what,
        source: Box::new(source),
    }
}
