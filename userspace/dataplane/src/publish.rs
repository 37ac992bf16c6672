//! A snapshot into the kernel's tables, in one instant and at the price of what changed.
//!
//! Steps of one publication, generation G in force:
//!
//! 1. compute the desired tables ([`crate::tables`]), compare with what is there, and refuse what some table has no room for;
//! 2. widen the set of port prefix lengths and dimensions, write every changed value with `since = G + 1` (nobody reads those yet), enrol
//!    new workloads (nobody lives there yet);
//! 3. flip the generation: one write;
//! 4. wait until no program runs under G; remove what is absent now, narrow the prefix set;
//! 5. dismiss workloads that are gone. From 3 on nothing fails.

use std::{collections::HashMap, hash::Hash, time::Duration};

use aya::{
    Ebpf,
    maps::{Array, HashMap as KernelMap, LpmTrie, Map, MapData, MapError},
};
use weft_abi::{
    Addr, AddrOwner, Backend, BackendKey, Config, Dest, DestKey, External, PolicyKey, PolicyValue, Versioned, Workload,
};
use weft_policy::Snapshot;

use crate::{
    canary,
    error::DataplaneError,
    sys,
    tables::{ForeignCgroups, Namespaces, Prefix, Tables},
};

mod mirror;
#[cfg(test)]
mod tests;

use self::mirror::{Backing, Mirror};

/// What a publication did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The generation now in force.
    pub generation: u64,
    /// Values written or removed.
    pub changed: usize,
    /// Whether some established connection may have to be judged again: who may talk to whom changed, or who is who.
    pub rejudge: bool,
}

/// The kernel's tables and what is known to be in them.
pub struct Publisher {
    config_map: Array<MapData, Config>,
    config: Config,
    dests: Mirror<KernelMap<MapData, DestKey, Versioned<Dest>>, DestKey, Dest>,
    backends: Mirror<KernelMap<MapData, BackendKey, Versioned<Backend>>, BackendKey, Backend>,
    policy: Mirror<KernelMap<MapData, PolicyKey, Versioned<PolicyValue>>, PolicyKey, PolicyValue>,
    addrs: Mirror<LpmTrie<MapData, Addr, Versioned<AddrOwner>>, Prefix, AddrOwner>,
    externals: Mirror<KernelMap<MapData, u32, Versioned<External>>, u32, External>,
    workloads_map: KernelMap<MapData, u64, Workload>,
    workloads_room: usize,
    workloads: HashMap<u64, Workload>,
    canary: canary::Cgroups,
}

impl Publisher {
    /// Takes over the tables of the (possibly pinned) maps with what is in them.
    pub fn adopt(ebpf: &mut Ebpf, canary: canary::Cgroups) -> Result<Self, DataplaneError> {
        let config_map: Array<MapData, Config> = take(ebpf, "weft_config")?;
        let config = config_map.get(&0, 0).map_err(map_error("weft_config", "read"))?;
        let workloads_room = room(ebpf, "weft_workloads")?;
        let workloads_map: KernelMap<MapData, u64, Workload> = take(ebpf, "weft_workloads")?;
        let workloads = enrolled(&workloads_map)?;
        Ok(Self {
            dests: take_mirror(ebpf, "weft_dests", config.generation)?,
            backends: take_mirror(ebpf, "weft_backends", config.generation)?,
            policy: take_mirror(ebpf, "weft_policy", config.generation)?,
            addrs: take_mirror(ebpf, "weft_addrs", config.generation)?,
            externals: take_mirror(ebpf, "weft_externals", config.generation)?,
            config_map,
            config,
            workloads_map,
            workloads_room,
            workloads,
            canary,
        })
    }

    /// Looks again at tables that another process may have written meanwhile.
    pub fn adopt_again(&mut self) -> Result<(), DataplaneError> {
        self.config = self.config_map.get(&0, 0).map_err(map_error("weft_config", "read"))?;
        self.dests.read(self.config.generation)?;
        self.backends.read(self.config.generation)?;
        self.policy.read(self.config.generation)?;
        self.addrs.read(self.config.generation)?;
        self.externals.read(self.config.generation)?;
        self.workloads = enrolled(&self.workloads_map)?;
        Ok(())
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
            network: self.config.network,
            ..fixed
        };
        self.write_config()
    }

    /// Whether a publication of this snapshot would change no table. Costs the computing of the tables, and no system call.
    pub fn holds(&self, snapshot: &Snapshot, namespaces: &Namespaces, foreign: &ForeignCgroups) -> bool {
        let desired = Tables::of(snapshot, namespaces, foreign, self.canary);
        self.dests.is(&desired.dests)
            && self.backends.is(&desired.backends)
            && self.policy.is(&desired.policy)
            && self.addrs.is(&desired.addrs)
            && self.externals.is(&desired.externals)
            && self.workloads == desired.workloads
    }

    /// See the module's words.
    pub fn publish(
        &mut self,
        snapshot: &Snapshot,
        namespaces: &Namespaces,
        foreign: &ForeignCgroups,
    ) -> Result<Published, DataplaneError> {
        let desired = Tables::of(snapshot, namespaces, foreign, self.canary);
        self.fits(&desired)?;
        let next = self.config.generation + 1;
        let (prefixes, network) = (desired.port_prefixes(), u8::from(desired.network()));
        let wider = (self.config.port_prefixes | prefixes, self.config.network | network);
        if wider != (self.config.port_prefixes, self.config.network) {
            (self.config.port_prefixes, self.config.network) = wider;
            self.write_config()?;
        }
        // Backends before the destinations that refer to them; all of it is only read from `next` on.
        let written = self
            .backends
            .stage(desired.backends, next)
            .and_then(|backends| Ok((backends, self.dests.stage(desired.dests, next)?)))
            .and_then(|(backends, dests)| Ok((backends, dests, self.policy.stage(desired.policy, next)?)))
            .and_then(|written| Ok((written, self.addrs.stage(desired.addrs, next)?)))
            .and_then(|written| Ok((written, self.externals.stage(desired.externals, next)?)));
        // Nobody lives in a new workload's cgroup yet, so it may be enrolled before its policy is in force.
        let written = written.and_then(|written| Ok((written, self.enrol(&desired.workloads)?)));
        let ((((backends, dests, policy), addrs), externals), enrolled) = match written {
            Ok(written) => written,
            Err(error) => {
                // What was staged under `next` must not come into force with a later flip.
                self.backends.unstage(next);
                self.dests.unstage(next);
                self.policy.unstage(next);
                self.addrs.unstage(next);
                self.externals.unstage(next);
                return Err(error);
            }
        };
        let mut changed = enrolled + backends.changed + dests.changed + policy.changed + addrs.changed;
        changed += externals.changed;
        let rejudge = policy.changed + addrs.changed + enrolled > 0;

        self.config.generation = next;
        self.write_config()?;
        // In force: nothing may fail from here on.
        wait_for_programs();

        self.backends.settle(backends.removed);
        self.dests.settle(dests.removed);
        self.policy.settle(policy.removed);
        self.addrs.settle(addrs.removed);
        self.externals.settle(externals.removed);
        if (self.config.port_prefixes, self.config.network) != (prefixes, network) {
            (self.config.port_prefixes, self.config.network) = (prefixes, network);
            if let Err(error) = self.write_config() {
                tracing::debug!(%error, "a port prefix length too many is looked up until the next publication");
            }
        }
        changed += self.dismiss(desired.workloads);
        Ok(Published {
            generation: next,
            changed,
            rejudge,
        })
    }

    /// Whether every table has room for this, beside what is there. Writes nothing.
    fn fits(&self, desired: &Tables) -> Result<(), DataplaneError> {
        self.backends.fits(&desired.backends)?;
        self.dests.fits(&desired.dests)?;
        self.policy.fits(&desired.policy)?;
        self.addrs.fits(&desired.addrs)?;
        self.externals.fits(&desired.externals)?;
        let room = self.workloads_room;
        mirror::fits("weft_workloads", room, &self.workloads, &desired.workloads)
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

/// Takes a table over with what is in it.
fn take_mirror<M, K, V>(ebpf: &mut Ebpf, name: &'static str, generation: u64) -> Result<Mirror<M, K, V>, DataplaneError>
where
    M: Backing<K, V> + TryFrom<Map, Error = MapError>,
    K: Copy + Eq + Hash,
    V: Copy + Default + PartialEq,
{
    let room = room(ebpf, name)?;
    Mirror::adopt(name, take(ebpf, name)?, room, generation)
}

/// How many entries a table holds at most: what the kernel says, for a pinned one keeps its size.
pub(crate) fn room(ebpf: &Ebpf, name: &'static str) -> Result<usize, DataplaneError> {
    let size = |data: &MapData| {
        let info = data.info().map_err(map_error(name, "ask for the size"))?;
        Ok(info.max_entries() as usize)
    };
    match ebpf.map(name) {
        Some(Map::HashMap(data)) => size(data),
        // A trie that is full takes no other value for a key that it has, before Linux 6.13 (`trie_update_elem`).
        Some(Map::LpmTrie(data)) => Ok(size(data)?.saturating_sub(1)),
        _ => Err(DataplaneError::Missing { what: "map", name }),
    }
}

fn enrolled(map: &KernelMap<MapData, u64, Workload>) -> Result<HashMap<u64, Workload>, DataplaneError> {
    map.iter()
        .collect::<Result<_, _>>()
        .map_err(map_error("weft_workloads", "read"))
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

pub(crate) fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, DataplaneError>
where
    T: TryFrom<Map, Error = MapError>,
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
