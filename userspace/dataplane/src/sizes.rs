//! How large the maps are: which of them the operator sizes, and what becomes of one that is pinned with another size.
//!
//! A map that is pinned keeps its size. Programs that run hold on to it (`weft_sk_msg` of sockets that are in a sockmap cannot
//! be replaced at all), and connections, flows and counters live in it: one of another size beside it would be a second truth.

use std::{fmt, path::Path};

use aya::{
    EbpfError,
    maps::{MapError, MapInfo, MapType},
};
use aya_obj::Object;
use weft_abi::capacity;

use crate::{
    error::DataplaneError,
    loader::{OBJECT, PINNED_MAPS, load_error, pin_name},
};

/// The canary of `weft doctor` and the daemon's own listeners need some.
const LEAST_ENTRIES: u32 = 16;
/// The overflow edges, and one more.
const LEAST_EDGES: u32 = 13;
/// The kernel makes a ring buffer of whole pages, of which there is a power of two.
const LEAST_BYTES: u32 = 4_096;
/// 256 MiB while it is empty: more is a slip.
const MOST_ENTRIES: u32 = 1 << 24;
const MOST_BYTES: u32 = 1 << 30;

/// A map whose size is for the operator to choose: `--map-size NAME=N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizedMap {
    /// Without the prefix.
    pub name: &'static str,
    /// What it is made with where nobody chooses.
    pub default: u32,
    least: u32,
}

/// The one that is measured in bytes.
const EVENTS: &str = "events";

/// All of them; the rest have one entry, or as many as there are sites that can fail.
pub const SIZED_MAPS: [SizedMap; 17] = [
    SizedMap::of("addrs", capacity::ADDRS),
    SizedMap::of("backends", capacity::BACKENDS),
    SizedMap::of("conns", capacity::CONNS),
    SizedMap::of("dests", capacity::DESTS),
    SizedMap {
        least: LEAST_EDGES,
        ..SizedMap::of("edges", capacity::EDGES)
    },
    SizedMap {
        least: LEAST_BYTES,
        ..SizedMap::of(EVENTS, capacity::EVENT_BYTES)
    },
    SizedMap::of("externals", capacity::EXTERNALS),
    SizedMap::of("flows", capacity::FLOWS),
    SizedMap::of("inbound", capacity::INBOUND),
    SizedMap::of("listen", capacity::LISTEN),
    SizedMap::of("local", capacity::LOCAL),
    SizedMap::of("netns", capacity::NETNS),
    SizedMap::of("policy", capacity::POLICY),
    SizedMap::of("rules", capacity::RULES),
    SizedMap::of("rx", capacity::CIRCUITS),
    SizedMap::of("tx", capacity::CIRCUITS),
    SizedMap::of("workloads", capacity::WORKLOADS),
];

/// A pinned map that has another size than a new one would get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptSize {
    /// Without the prefix.
    pub map: &'static str,
    /// What it has.
    pub size: u32,
    /// What it would get.
    pub wanted: u32,
    /// The operator wants it; else it is what this version makes of its own accord.
    pub asked: bool,
}

/// The sizes that hold: of maps that are pinned their own, of others what they are to be made with.
#[derive(Debug, Default)]
pub struct Sizes {
    /// By name in the object; those that differ from what stands there.
    pub overrides: Vec<(&'static str, u32)>,
    pub kept: Vec<KeptSize>,
}

/// What a map is beside its size, as kernel and object both tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// `enum bpf_map_type`.
    pub kind: u32,
    pub key: u32,
    pub value: u32,
    pub flags: u32,
}

// === impl SizedMap ===

impl SizedMap {
    const fn of(name: &'static str, default: u32) -> Self {
        Self {
            name,
            default,
            least: LEAST_ENTRIES,
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SIZED_MAPS.iter().find(|map| map.name == name)
    }

    /// Whether it can be made with this size.
    pub fn takes(&self, size: u32) -> bool {
        if self.name == EVENTS {
            size.is_power_of_two() && (self.least..=MOST_BYTES).contains(&size)
        } else {
            (self.least..=MOST_ENTRIES).contains(&size)
        }
    }

    /// Which sizes it takes, in words.
    pub fn expected(&self) -> String {
        if self.name == EVENTS {
            format!("bytes, a power of two from {} to {MOST_BYTES}", self.least)
        } else {
            format!("a number of entries from {} to {MOST_ENTRIES}", self.least)
        }
    }
}

// === impl Sizes ===

impl Sizes {
    /// What is to hold for the maps below `maps`, of which some or all may be pinned. Changes nothing.
    ///
    /// # Errors
    ///
    /// A pinned map is of another shape than this binary's programs work with, or cannot be read.
    pub fn of(maps: &Path, asked: &[(String, u32)]) -> Result<Self, DataplaneError> {
        if OBJECT.is_empty() {
            return Err(DataplaneError::NoObject);
        }
        let object = Object::parse(OBJECT).map_err(|error| load_error(EbpfError::from(error)))?;
        let mut sizes = Self::default();
        for name in PINNED_MAPS {
            let missing = DataplaneError::Missing { what: "map", name };
            let made = object.maps.get(name).ok_or(missing)?;
            let map = pin_name(name);
            // The last word counts, as with every setting.
            let said = asked
                .iter()
                .rev()
                .find(|(asked, _)| asked == map)
                .map(|(_, size)| *size);
            let wanted = said.unwrap_or(made.max_entries());
            let pin = maps.join(map);
            let size = if pin.exists() {
                pinned_size(name, &pin, Shape::of_object(made))?
            } else {
                wanted
            };
            if size != made.max_entries() {
                sizes.overrides.push((name, size));
            }
            if size != wanted {
                sizes.kept.push(KeptSize {
                    map,
                    size,
                    wanted,
                    asked: said.is_some(),
                });
            }
        }
        Ok(sizes)
    }

    /// Says in the log what was kept.
    pub fn tell(&self) {
        let list = |asked: bool| {
            let kept = self.kept.iter().filter(|kept| kept.asked == asked);
            kept.map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        let (against, by_itself) = (list(true), list(false));
        if !against.is_empty() {
            tracing::warn!(
                maps = against,
                "kernel tables that are there keep their size; --map-size counts when they are made"
            );
        }
        if !by_itself.is_empty() {
            tracing::info!(
                maps = by_itself,
                "kernel tables that an earlier daemon made keep their size"
            );
        }
    }
}

/// The size of a pinned map, which must be of this shape.
fn pinned_size(name: &'static str, pin: &Path, expected: Shape) -> Result<u32, DataplaneError> {
    let fail = |source: MapError| DataplaneError::Map {
        map: name,
        what: "open the pinned map",
        source: Box::new(source),
    };
    let info = MapInfo::from_pin(pin).map_err(fail)?;
    let found = Shape {
        kind: info.map_type().map_err(fail)? as u32,
        key: info.key_size(),
        value: info.value_size(),
        flags: info.map_flags(),
    };
    if found == expected {
        Ok(info.max_entries())
    } else {
        Err(DataplaneError::Shape {
            path: pin.to_path_buf(),
            found,
            expected,
        })
    }
}

// === impl Shape ===

impl Shape {
    fn of_object(map: &aya_obj::Map) -> Self {
        Self {
            kind: map.map_type(),
            key: map.key_size(),
            // The type of what a ring carries stands in the object, and is nothing that the kernel is told.
            value: if map.map_type() == MapType::RingBuf as u32 {
                0
            } else {
                map.value_size()
            },
            flags: map.map_flags(),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            key,
            value,
            flags,
        } = self;
        write!(f, "type {kind}, key {key} bytes, value {value} bytes, flags {flags:#x}")
    }
}

// === impl KeptSize ===

impl fmt::Display for KeptSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={} (not {})", self.map, self.size, self.wanted)
    }
}

#[cfg(test)]
mod tests {
    use weft_abi::EdgeKey;

    use super::*;

    #[test]
    fn every_default_is_a_size_that_may_be_asked_for_and_the_least_hold_what_is_always_there() {
        for map in &SIZED_MAPS {
            assert!(map.takes(map.default), "{map:?}");
            assert!(!map.takes(0) && !map.takes(map.least - 1), "{map:?}");
            assert!(map.takes(map.least) && !map.takes(u32::MAX), "{map:?}");
            assert_eq!(SizedMap::named(map.name), Some(map));
        }
        assert_eq!(LEAST_EDGES as usize, EdgeKey::overflows().count() + 1);
        let events = SizedMap::named(EVENTS).expect("it is in the list");
        assert!(events.takes(8_192) && !events.takes(8_193));
        assert_eq!(SizedMap::named("config"), None);
    }

    #[test]
    fn maps_are_as_large_as_the_list_says_where_nothing_is_pinned_or_asked_for() {
        if OBJECT.is_empty() {
            println!("skipped: needs the kernel programs (cargo xtask build)");
            return;
        }
        let object = Object::parse(OBJECT).expect("the object");
        for map in &SIZED_MAPS {
            let made = &object.maps[&format!("weft_{}", map.name)];
            assert_eq!(made.max_entries(), map.default, "{}", map.name);
        }
        let nowhere = Path::new("/does/not/exist");
        let sizes = Sizes::of(nowhere, &[]).expect("the object");
        assert_eq!((sizes.overrides, sizes.kept), (Vec::new(), Vec::new()));
        let asked = [("edges", 64), ("conns", 128), ("edges", 32)].map(|(name, size)| (name.to_owned(), size));
        let sizes = Sizes::of(nowhere, &asked).expect("the object");
        assert_eq!(sizes.kept, Vec::new());
        assert_eq!(sizes.overrides, [("weft_conns", 128), ("weft_edges", 32)]);
    }
}
