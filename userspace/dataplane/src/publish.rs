//! A snapshot into the kernel's tables, in one instant and at the price of what changed.
//!
//! Steps of one publication, generation G in force:
//!
//! 1. compute the desired tables ([`crate::tables`]) and compare with what is there;
//! 2. widen the set of port prefix lengths, write every changed value with `since = G + 1` (nobody reads those yet), enrol
//!    new workloads (nobody lives there yet);
//! 3. flip the generation: one write;
//! 4. wait until no program runs under G; remove what is absent now, narrow the prefix set;
//! 5. dismiss workloads that are gone. From 3 on nothing fails.

use std::{collections::HashMap, time::Duration};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap as KernelMap, MapData, MapError},
};
use weft_abi::{Backend, BackendKey, Config, Dest, DestKey, PolicyKey, PolicyValue, Versioned, Workload};
use weft_policy::Snapshot;

use crate::{
    error::DataplaneError,
    sys,
    tables::{Namespaces, Tables},
};

/// What a publication did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The generation now in force.
    pub generation: u64,
    /// Values written or removed.
    pub changed: usize,
}

/// The kernel's tables and what is known to be in them.
pub struct Publisher {
    config_map: Array<MapData, Config>,
    config: Config,
    dests: Mirror<DestKey, Dest>,
    backends: Mirror<BackendKey, Backend>,
    policy: Mirror<PolicyKey, PolicyValue>,
    workloads_map: KernelMap<MapData, u64, Workload>,
    workloads: HashMap<u64, Workload>,
}

/// One table and its contents under the generation in force.
struct Mirror<K, V> {
    name: &'static str,
    map: KernelMap<MapData, K, Versioned<V>>,
    current: HashMap<K, V>,
}

impl Publisher {
    /// Takes over the tables of the (possibly pinned) maps with what is in them.
    pub fn adopt(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        let config_map: Array<MapData, Config> = take(ebpf, "weft_config")?;
        let config = config_map.get(&0, 0).map_err(map_error("weft_config", "read"))?;
        let workloads_map: KernelMap<MapData, u64, Workload> = take(ebpf, "weft_workloads")?;
        let workloads = workloads_map
            .iter()
            .collect::<Result<_, _>>()
            .map_err(map_error("weft_workloads", "read"))?;
        Ok(Self {
            dests: Mirror::adopt("weft_dests", take(ebpf, "weft_dests")?, config.generation)?,
            backends: Mirror::adopt("weft_backends", take(ebpf, "weft_backends")?, config.generation)?,
            policy: Mirror::adopt("weft_policy", take(ebpf, "weft_policy")?, config.generation)?,
            config_map,
            config,
            workloads_map,
            workloads,
        })
    }

    /// The generation in force.
    pub fn generation(&self) -> u64 {
        self.config.generation
    }

    /// Writes what does not depend on resources; generation and prefixes stay as they are.
    pub fn configure(&mut self, fixed: Config) -> Result<(), DataplaneError> {
        self.config = Config {
            generation: self.config.generation,
            port_prefixes: self.config.port_prefixes,
            ..fixed
        };
        self.write_config()
    }

    /// See the module's words.
    pub fn publish(&mut self, snapshot: &Snapshot, namespaces: &Namespaces) -> Result<Published, DataplaneError> {
        let desired = Tables::of(snapshot, namespaces);
        let next = self.config.generation + 1;
        let prefixes = desired.port_prefixes();
        if self.config.port_prefixes | prefixes != self.config.port_prefixes {
            self.config.port_prefixes |= prefixes;
            self.write_config()?;
        }
        // Backends before the destinations that refer to them; all of it is only read from `next` on.
        let written = self
            .backends
            .stage(desired.backends, next)
            .and_then(|backends| Ok((backends, self.dests.stage(desired.dests, next)?)))
            .and_then(|(backends, dests)| Ok((backends, dests, self.policy.stage(desired.policy, next)?)));
        // Nobody lives in a new workload's cgroup yet, so it may be enrolled before its policy is in force.
        let written = written.and_then(|written| Ok((written, self.enrol(&desired.workloads)?)));
        let ((backends, dests, policy), enrolled) = match written {
            Ok(written) => written,
            Err(error) => {
                // What was staged under `next` must not come into force with a later flip.
                self.backends.unstage(next);
                self.dests.unstage(next);
                self.policy.unstage(next);
                return Err(error);
            }
        };
        let mut changed = enrolled + backends.changed + dests.changed + policy.changed;

        self.config.generation = next;
        self.write_config()?;
        // In force: nothing may fail from here on.
        wait_for_programs();

        self.backends.settle(backends.removed);
        self.dests.settle(dests.removed);
        self.policy.settle(policy.removed);
        if self.config.port_prefixes != prefixes {
            self.config.port_prefixes = prefixes;
            if let Err(error) = self.write_config() {
                tracing::debug!(%error, "a port prefix length too many is looked up until the next publication");
            }
        }
        changed += self.dismiss(desired.workloads);
        Ok(Published {
            generation: next,
            changed,
        })
    }

    /// Writes new and changed workloads.
    fn enrol(&mut self, desired: &HashMap<u64, Workload>) -> Result<usize, DataplaneError> {
        let mut changed = 0;
        for (cgroup, workload) in desired {
            if self.workloads.get(cgroup) != Some(workload) {
                self.workloads_map
                    .insert(cgroup, workload, 0)
                    .map_err(map_error("weft_workloads", "enrol a workload"))?;
                self.workloads.insert(*cgroup, *workload);
                changed += 1;
            }
        }
        Ok(changed)
    }

    /// Removes those that are gone.
    fn dismiss(&mut self, desired: HashMap<u64, Workload>) -> usize {
        let gone: Vec<u64> = self
            .workloads
            .keys()
            .filter(|cgroup| !desired.contains_key(cgroup))
            .copied()
            .collect();
        for cgroup in &gone {
            // Gone already is as good.
            let _ = self.workloads_map.remove(cgroup);
        }
        self.workloads = desired;
        gone.len()
    }

    fn write_config(&mut self) -> Result<(), DataplaneError> {
        self.config_map
            .set(0, self.config, 0)
            .map_err(map_error("weft_config", "write"))
    }
}

/// Waits until no program runs under an older generation.
fn wait_for_programs() {
    /// Longer than any program runs, should the kernel have no membarrier (`nohz_full` switches it off).
    const BOUND: Duration = Duration::from_millis(20);
    if let Err(error) = sys::wait_for_programs() {
        tracing::debug!(%error, "membarrier; waiting instead");
        std::thread::sleep(BOUND);
    }
}

/// What staging did: values written, keys that are absent from the next generation on.
struct Staged<K> {
    changed: usize,
    removed: Vec<K>,
}

impl<K, V> Mirror<K, V>
where
    K: Pod + Eq + std::hash::Hash,
    V: Copy + Default + PartialEq,
    Versioned<V>: Pod,
{
    fn adopt(
        name: &'static str,
        map: KernelMap<MapData, K, Versioned<V>>,
        generation: u64,
    ) -> Result<Self, DataplaneError> {
        let mut current = HashMap::new();
        let mut stale = Vec::new();
        for entry in map.iter() {
            let (key, value) = entry.map_err(map_error(name, "read"))?;
            let now = *value.at(generation);
            // A daemon that died between staging and flipping, or before it removed what was absent.
            if now == V::default() || value.since > generation {
                stale.push((key, now));
            }
            if now != V::default() {
                current.insert(key, now);
            }
        }
        let mut mirror = Self { name, map, current };
        for (key, now) in stale {
            if now == V::default() {
                mirror.settle(vec![key]);
            } else {
                let value = Versioned {
                    since: generation,
                    current: now,
                    previous: now,
                };
                mirror.map.insert(key, value, 0).map_err(map_error(name, "write"))?;
            }
        }
        Ok(mirror)
    }

    /// Writes what differs, to hold from `next` on. An absent value is all zero.
    fn stage(&mut self, desired: HashMap<K, V>, next: u64) -> Result<Staged<K>, DataplaneError> {
        let mut changed = 0;
        for (key, value) in &desired {
            let before = self.current.get(key);
            if before != Some(value) {
                let versions = Versioned {
                    since: next,
                    current: *value,
                    previous: before.copied().unwrap_or_default(),
                };
                self.map
                    .insert(key, versions, 0)
                    .map_err(map_error(self.name, "write (is the table full?)"))?;
                changed += 1;
            }
        }
        let removed: Vec<K> = self
            .current
            .keys()
            .filter(|key| !desired.contains_key(key))
            .copied()
            .collect();
        for key in &removed {
            let before = self.current.get(key).copied().unwrap_or_default();
            let versions = Versioned {
                since: next,
                current: V::default(),
                previous: before,
            };
            self.map
                .insert(key, versions, 0)
                .map_err(map_error(self.name, "write"))?;
            changed += 1;
        }
        self.current = desired;
        Ok(Staged { changed, removed })
    }

    /// Takes back what was staged for a generation that will not come: the kernel's values are read and put right.
    fn unstage(&mut self, next: u64) {
        let staged: Vec<(K, Versioned<V>)> = self
            .map
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, value)| value.since == next)
            .collect();
        for (key, value) in staged {
            if value.previous == V::default() {
                let _ = self.map.remove(&key);
            } else {
                let _ = self.map.insert(
                    key,
                    Versioned {
                        since: 0,
                        current: value.previous,
                        previous: value.previous,
                    },
                    0,
                );
            }
        }
        self.current = self
            .map
            .iter()
            .filter_map(Result::ok)
            .map(|(key, value)| (key, value.current))
            .filter(|(_, value)| *value != V::default())
            .collect();
    }

    /// Removes keys that no generation in force needs.
    fn settle(&mut self, removed: Vec<K>) {
        for key in removed {
            // Gone already is as good.
            let _ = self.map.remove(&key);
        }
    }
}

fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, DataplaneError>
where
    T: TryFrom<aya::maps::Map, Error = MapError>,
{
    let map = ebpf
        .take_map(name)
        .ok_or(DataplaneError::Missing { what: "map", name })?;
    T::try_from(map).map_err(map_error(name, "open"))
}

fn map_error(map: &'static str, what: &'static str) -> impl Fn(MapError) -> DataplaneError {
    move |source| DataplaneError::Map {
        map,
        what,
        source: Box::new(source),
    }
}
