//! A snapshot into the kernel's tables, in one instant and at the price of what changed.
//!
//! Steps of one publication, generation G in force:
//!
//! 1. compute what the tables shall hold ([`crate::tables`]): what differs from the snapshot in force, and where that does not tell
//!    (other policies, services that come or go, the first one) all of it, compared with what is there; refuse what some table
//!    has no room for ([`Publisher::plan`]: nobody has seen anything of it);
//! 2. widen the set of port prefix lengths and dimensions, write every changed value with `since = G + 1` (nobody reads those yet), enrol
//!    new workloads (nobody lives there yet);
//! 3. flip the generation: one write;
//! 4. wait until no program runs under G; remove what is absent now, narrow the prefix set;
//! 5. dismiss workloads that are gone. From 3 on nothing fails.
//!
//! What was begun and failed, and what another process may have written, leaves no snapshot to differ from.

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};

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
    tables::{self, Basis, Changes, ForeignCgroups, Namespaces, Prefix, Tables},
};

mod mirror;
#[cfg(test)]
mod tests;

use self::mirror::{Backing, Mirror, Staged};

/// What a publication did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The generation now in force.
    pub generation: u64,
    /// Values written or removed.
    pub changed: usize,
    /// Whether some established connection may have to be judged again: who may talk to whom changed, or who is who.
    pub rejudge: bool,
    /// All tables were computed and compared: what differs could not be told from the snapshot before.
    pub whole: bool,
}

/// What the tables shall hold, but for the workloads.
enum Desired {
    Whole(Tables),
    Changes(Changes),
}

/// What a publication would bring: computed, with room for it everywhere, and not written.
pub struct Plan {
    desired: Desired,
    workloads: HashMap<u64, Workload>,
    foreign: ForeignCgroups,
    /// [`Publisher::revision`] of what it differs from.
    revision: u64,
}

/// What was written of it.
#[derive(Default)]
struct Written {
    backends: Staged<BackendKey>,
    dests: Staged<DestKey>,
    policy: Staged<PolicyKey>,
    addrs: Staged<Prefix>,
    externals: Staged<u32>,
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
    /// What the tables were made of; `None`: nobody knows, or they may have been written since.
    basis: Option<Basis>,
    /// Grows with all that is written or read.
    revision: u64,
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
            basis: None,
            revision: 0,
        })
    }

    /// Looks again at tables that another process may have written meanwhile.
    pub fn adopt_again(&mut self) -> Result<(), DataplaneError> {
        self.revision += 1;
        self.basis = None;
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
        self.revision += 1;
        self.basis = None;
        self.config = Config {
            generation: self.config.generation,
            port_prefixes: self.config.port_prefixes,
            network: self.config.network,
            ..fixed
        };
        self.write_config()
    }

    /// Computes what a publication would bring, and refuses what some table has no room for. Writes nothing.
    pub fn plan(
        &self,
        snapshot: &Snapshot,
        namespaces: &Namespaces,
        foreign: ForeignCgroups,
    ) -> Result<Plan, DataplaneError> {
        let desired = self.desired(snapshot, &foreign);
        let workloads = tables::workloads(snapshot, namespaces, &foreign, self.canary);
        self.fits(&desired, &workloads)?;
        Ok(Plan {
            desired,
            workloads,
            foreign,
            revision: self.revision,
        })
    }

    /// Whether it can be put in force as it is: nothing was written or read since, and these foreign proxies are there.
    pub fn fits_still(&self, plan: &Plan, foreign: &ForeignCgroups) -> bool {
        plan.revision == self.revision && plan.foreign == *foreign
    }

    /// Whether it would change no table.
    pub fn holds(&self, plan: &Plan) -> bool {
        let same = match &plan.desired {
            Desired::Whole(desired) => {
                self.dests.is(&desired.dests)
                    && self.backends.is(&desired.backends)
                    && self.policy.is(&desired.policy)
                    && self.addrs.is(&desired.addrs)
                    && self.externals.is(&desired.externals)
            }
            Desired::Changes(changes) => {
                self.dests.is_after(&changes.dests)
                    && self.backends.is_after(&changes.backends)
                    && self.addrs.is_after(&changes.addrs)
            }
        };
        same && self.workloads == plan.workloads
    }

    /// Takes a snapshot of which [`Publisher::holds`] is true for the one that is in force.
    pub fn rest_on(&mut self, snapshot: &Arc<Snapshot>, foreign: &ForeignCgroups) {
        self.revision += 1;
        self.basis = Some(Basis::of(Arc::clone(snapshot), foreign));
    }

    /// See the module's words.
    pub fn publish(&mut self, snapshot: &Arc<Snapshot>, plan: Plan) -> Result<Published, DataplaneError> {
        let Plan {
            desired,
            workloads,
            foreign,
            revision: _,
        } = plan;
        self.revision += 1;
        // Until this one is in force there is none to differ from.
        let basis = self.basis.take();
        let next = self.config.generation + 1;
        let in_use = (self.config.port_prefixes, self.config.network);
        let (whole, (prefixes, network)) = match &desired {
            Desired::Whole(tables) => (true, (tables.port_prefixes(), u8::from(tables.network()))),
            Desired::Changes(_) => (false, in_use),
        };
        let wider = (in_use.0 | prefixes, in_use.1 | network);
        if wider != in_use {
            (self.config.port_prefixes, self.config.network) = wider;
            self.write_config()?;
        }
        // Nobody lives in a new workload's cgroup yet, so it may be enrolled before its policy is in force.
        let written = self
            .stage(desired, next)
            .and_then(|written| Ok((written, self.enrol(&workloads)?)));
        let (written, enrolled) = match written {
            Ok(written) => written,
            Err(error) => {
                // What was staged under `next` must not come into force with a later flip.
                self.unstage(next);
                return Err(error);
            }
        };
        let mut changed = enrolled + written.changed();
        let rejudge = written.policy.changed + written.addrs.changed + enrolled > 0;

        self.config.generation = next;
        self.write_config()?;
        // In force: nothing may fail from here on.
        wait_for_programs();

        self.settle(written);
        if (self.config.port_prefixes, self.config.network) != (prefixes, network) {
            (self.config.port_prefixes, self.config.network) = (prefixes, network);
            if let Err(error) = self.write_config() {
                tracing::debug!(%error, "a port prefix length too many is looked up until the next publication");
            }
        }
        changed += self.dismiss(workloads);
        self.basis = Some(match basis {
            Some(basis) if !whole => basis.follow(Arc::clone(snapshot)),
            _ => Basis::of(Arc::clone(snapshot), &foreign),
        });
        Ok(Published {
            generation: next,
            changed,
            rejudge,
            whole,
        })
    }

    fn desired(&self, snapshot: &Snapshot, foreign: &ForeignCgroups) -> Desired {
        let basis = self.basis.as_ref();
        match basis.and_then(|basis| basis.changes(snapshot, foreign)) {
            Some(changes) => Desired::Changes(changes),
            None => Desired::Whole(Tables::of(snapshot, foreign)),
        }
    }

    /// Whether every table has room for this, beside what is there.
    fn fits(&self, desired: &Desired, workloads: &HashMap<u64, Workload>) -> Result<(), DataplaneError> {
        match desired {
            Desired::Whole(desired) => {
                self.backends.fits(&desired.backends)?;
                self.dests.fits(&desired.dests)?;
                self.policy.fits(&desired.policy)?;
                self.addrs.fits(&desired.addrs)?;
                self.externals.fits(&desired.externals)?;
            }
            Desired::Changes(changes) => {
                self.backends.fits_delta(&changes.backends)?;
                self.dests.fits_delta(&changes.dests)?;
                self.addrs.fits_delta(&changes.addrs)?;
            }
        }
        mirror::fits("weft_workloads", self.workloads_room, &self.workloads, workloads)
    }

    /// Writes what is only read from `next` on: backends before the destinations that refer to them.
    fn stage(&mut self, desired: Desired, next: u64) -> Result<Written, DataplaneError> {
        match desired {
            Desired::Whole(desired) => Ok(Written {
                backends: self.backends.stage(desired.backends, next)?,
                dests: self.dests.stage(desired.dests, next)?,
                policy: self.policy.stage(desired.policy, next)?,
                addrs: self.addrs.stage(desired.addrs, next)?,
                externals: self.externals.stage(desired.externals, next)?,
            }),
            Desired::Changes(changes) => Ok(Written {
                backends: self.backends.stage_delta(changes.backends, next)?,
                dests: self.dests.stage_delta(changes.dests, next)?,
                addrs: self.addrs.stage_delta(changes.addrs, next)?,
                ..Written::default()
            }),
        }
    }

    fn unstage(&mut self, next: u64) {
        self.backends.unstage(next);
        self.dests.unstage(next);
        self.policy.unstage(next);
        self.addrs.unstage(next);
        self.externals.unstage(next);
    }

    /// Removes what is absent now.
    fn settle(&mut self, written: Written) {
        self.backends.settle(written.backends.removed);
        self.dests.settle(written.dests.removed);
        self.policy.settle(written.policy.removed);
        self.addrs.settle(written.addrs.removed);
        self.externals.settle(written.externals.removed);
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

impl Written {
    fn changed(&self) -> usize {
        self.backends.changed + self.dests.changed + self.policy.changed + self.addrs.changed + self.externals.changed
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
