//! Start: load the object with the pinned maps, put the programs behind their links, take over what is in force.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
};
use weft_abi::{Config, LAYOUT};

use crate::{
    attach,
    bpffs::{ensure_bpffs, others},
    canary,
    cgroup::Cgroup,
    default_acceleration::{self, DefaultAcceleration},
    doctor,
    error::DataplaneError,
    foreign::ForeignProxies,
    lock::Lock,
    publish::{Plan, Published, Publisher},
    selftest,
    sizes::{KeptSize, Sizes},
    sys,
    tables::{
        Namespaces, errs,
        errs::KernelError,
        netns::{Netns, local_addresses},
        rules,
        rules::RuleUse,
        telemetry,
        telemetry::{Edge, Listener},
    },
    uninstall,
};

/// The kernel programs, as `cargo xtask build` made them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft.bpf.o"));

/// Maps that outlive the process, by name in the object; pinned without the `weft_` prefix.
pub const PINNED_MAPS: [&str; 21] = [
    "weft_config",
    "weft_workloads",
    "weft_dests",
    "weft_backends",
    "weft_externals",
    "weft_policy",
    "weft_socks",
    "weft_asked",
    "weft_conns",
    "weft_listen",
    "weft_local",
    "weft_netns",
    "weft_addrs",
    "weft_flows",
    "weft_rules",
    "weft_inbound",
    "weft_edges",
    "weft_events",
    "weft_tx",
    "weft_rx",
    "weft_errs",
];

/// What [`Dataplane::start`] needs to know.
#[derive(Debug, Clone)]
pub struct DataplaneConfig {
    /// Directory of the pins; a bpffs is mounted there if there is none.
    pub bpffs: PathBuf,
    /// The captured cgroup.
    pub cgroup: Cgroup,
    /// The daemon's own cgroup id ([`Cgroup::enter_daemon`]).
    pub daemon_cgroup: u64,
    /// Outbound listener.
    pub proxy_port: u16,
    /// Inbound listener.
    pub inbound_port: u16,
    /// DNS listener.
    pub dns_port: u16,
    /// Whether short-circuits may be made at all.
    pub short_circuit: ShortCircuit,
    /// One of so many connections gets its open and its close reported; 1 = all.
    pub flow_sample: u32,
    /// Other sizes of maps ([`SIZED_MAPS`](crate::SIZED_MAPS)). Maps that an earlier daemon made keep theirs
    /// ([`Dataplane::kept_sizes`]).
    pub map_sizes: Vec<(String, u32)>,
}

/// What of `acceleration` in resources is carried out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ShortCircuit {
    /// If the self-test finds this kernel fit for it.
    #[default]
    Auto,
    /// None of it.
    Off,
    /// All of it, whatever the self-test says.
    Force,
}

/// What a running daemon hands over to [`Dataplane::take_over`].
#[derive(Debug)]
pub struct Inherited {
    /// Its lock of the bpffs directory.
    pub bpffs_lock: OwnedFd,
    /// Its lock of the captured cgroup.
    pub cgroup_lock: OwnedFd,
    /// [`Namespaces::names`]: what it answers about numbers must stay true while both answer.
    pub namespaces: Vec<String>,
}

/// The kernel side, loaded and attached.
pub struct Dataplane {
    bpffs: PathBuf,
    adopted: bool,
    unfit: Option<String>,
    default_acceleration: DefaultAcceleration,
    kept_sizes: Vec<KeptSize>,
    fixed: Config,
    cgroup: Cgroup,
    locks: Mutex<Option<Locks>>,
    ebpf: Mutex<Ebpf>,
    publisher: Mutex<Publisher>,
    foreign: Mutex<ForeignProxies>,
    namespaces: Namespaces,
    netns: Mutex<Netns>,
}

/// The programs, verified and tied to the pinned maps; nothing is attached or written yet. Takes most of a start's time.
pub struct Prepared(Ebpf);

/// No other daemon may publish to these maps or attach to this cgroup.
struct Locks {
    bpffs: Lock,
    cgroup: Lock,
}

impl Dataplane {
    /// Loads and attaches, or re-adopts what an earlier daemon left, without a gap.
    ///
    /// Nothing is in force for a workload before the first [`Dataplane::publish`]; what an earlier daemon published stays.
    ///
    /// # Errors
    ///
    /// Kernel or privileges do not suffice; pins of another layout. What was in force stays in force.
    pub fn start(config: &DataplaneConfig) -> Result<Self, DataplaneError> {
        if OBJECT.is_empty() {
            return Err(DataplaneError::NoObject);
        }
        ensure_bpffs(&config.bpffs)?;
        let locks = Locks {
            bpffs: Lock::exclusive(&config.bpffs)?,
            cgroup: config.cgroup.lock()?,
        };
        Self::start_locked(config, locks, Namespaces::default(), None)
    }

    /// What of [`Dataplane::take_over`] can be done before a daemon is asked to hand over. `None`: nothing is pinned there.
    /// The words are those of [`DataplaneConfig`].
    ///
    /// # Errors
    ///
    /// Pins of another layout or shape, or the kernel does not take these programs. Nothing has changed.
    pub fn prepare(
        bpffs: &Path,
        flow_sample: u32,
        map_sizes: &[(String, u32)],
    ) -> Result<Option<Prepared>, DataplaneError> {
        check_pins(bpffs)?;
        let maps = bpffs.join("maps");
        if !maps.join("config").exists() {
            return Ok(None);
        }
        let sizes = Sizes::of(&maps, map_sizes)?;
        load_programs(&maps, flow_sample, &sizes).map(Prepared).map(Some)
    }

    /// The same in the place of a daemon that still serves, and goes on serving until it is told otherwise; it must write
    /// no table meanwhile ([`Dataplane::reclaim`] puts things right for it if this one gives up).
    ///
    /// # Errors
    ///
    /// As [`Dataplane::start`].
    pub fn take_over(
        config: &DataplaneConfig,
        inherited: Inherited,
        prepared: Option<Prepared>,
    ) -> Result<Self, DataplaneError> {
        let locks = Locks {
            bpffs: Lock::handed_over(&config.bpffs, inherited.bpffs_lock)?,
            cgroup: Lock::handed_over(&config.cgroup.daemon(), inherited.cgroup_lock)?,
        };
        // An uninstall in between would have left us with maps that nobody else sees.
        let still = prepared.filter(|prepared| prepared.is_of(&config.bpffs.join("maps/config")));
        Self::start_locked(config, locks, Namespaces::known(inherited.namespaces), still)
    }

    fn start_locked(
        config: &DataplaneConfig,
        locks: Locks,
        namespaces: Namespaces,
        prepared: Option<Prepared>,
    ) -> Result<Self, DataplaneError> {
        let maps = config.bpffs.join("maps");
        refuse_others(&config.bpffs)?;
        for folder in [&maps, &config.bpffs.join("links")] {
            fs::create_dir_all(folder).map_err(|source| DataplaneError::Pin {
                path: folder.clone(),
                source,
            })?;
        }
        check_pins(&config.bpffs)?;
        let adopted = maps.join("config").exists();
        let sizes = Sizes::of(&maps, &config.map_sizes)?;
        sizes.tell();
        let programs = match prepared {
            Some(Prepared(programs)) => Ok(programs),
            None => load_programs(&maps, config.flow_sample, &sizes),
        };
        let loaded =
            programs.and_then(|programs| Self::attach(config, programs, adopted, sizes.kept, locks, namespaces));
        if loaded.is_err() && !adopted {
            // Half of the hooks would be worse than none, and the next start would take them for a daemon's.
            let _ = uninstall::remove_pins(&config.bpffs);
        }
        loaded
    }

    fn attach(
        config: &DataplaneConfig,
        mut ebpf: Ebpf,
        adopted: bool,
        kept_sizes: Vec<KeptSize>,
        locks: Locks,
        namespaces: Namespaces,
    ) -> Result<Self, DataplaneError> {
        // What the programs must know before the first of them runs.
        let netns_cookie = sys::netns_cookie().map_err(|source| DataplaneError::Os {
            what: "ask for the network namespace's cookie",
            source,
        })?;
        let netns = Netns::adopt(&mut ebpf, netns_cookie)?;
        let unfit = attach::attach_sk_msg(&mut ebpf).map(|()| selftest::short_circuit(&mut ebpf).err())?;
        let default_acceleration = default_acceleration::here(config.short_circuit, unfit.as_deref())?;
        let mut publisher = Publisher::adopt(&mut ebpf, canary::Cgroups::make(&config.cgroup)?)?;
        let fixed = Config {
            generation: 0,
            daemon_cgroup: config.daemon_cgroup,
            netns_cookie,
            layout: LAYOUT,
            port_prefixes: 0,
            level: config.cgroup.level(),
            proxy_port_be: config.proxy_port.to_be(),
            dns_port_be: config.dns_port.to_be(),
            short_circuit: u8::from(match config.short_circuit {
                ShortCircuit::Auto => unfit.is_none(),
                ShortCircuit::Off => false,
                ShortCircuit::Force => true,
            }),
            network: 0,
            inbound_port_be: config.inbound_port.to_be(),
            pad: 0,
        };
        publisher.configure(fixed)?;
        telemetry::make_overflow_edges(&config.bpffs.join("maps/edges"))?;
        let links = config.bpffs.join("links");
        attach::attach_all(&mut ebpf, &config.cgroup, &links)?;
        tracing::info!(adopted, generation = publisher.generation(), "kernel side in place");
        Ok(Self {
            bpffs: config.bpffs.clone(),
            adopted,
            default_acceleration,
            unfit,
            kept_sizes,
            fixed,
            cgroup: config.cgroup.clone(),
            locks: Mutex::new(Some(locks)),
            ebpf: Mutex::new(ebpf),
            publisher: Mutex::new(publisher),
            foreign: Mutex::new(ForeignProxies::new(config.cgroup.clone(), links)),
            namespaces,
            netns: Mutex::new(netns),
        })
    }

    /// Takes back what [`Dataplane::take_over`] of another process began and did not finish: our programs behind the links,
    /// our settings, and what is really in the tables. To be followed by a publication.
    ///
    /// # Errors
    ///
    /// The kernel refused one of them; what is in force is then the other's or ours, program by program, of one layout.
    pub fn reclaim(&self) -> Result<(), DataplaneError> {
        let mut ebpf = self.ebpf.lock().expect("no panic under this lock");
        let mut publisher = self.publisher.lock().expect("no panic under this lock");
        publisher.adopt_again()?;
        publisher.configure(self.fixed)?;
        self.netns().adopt_again()?;
        attach::attach_sk_msg(&mut ebpf)?;
        self.foreign.lock().expect("no panic under this lock").reclaim();
        attach::attach_all(&mut ebpf, &self.cgroup, &self.bpffs.join("links"))
    }

    /// Copies of the locks, to be handed over: of the bpffs directory, of the captured cgroup. `None` after
    /// [`Dataplane::let_go`].
    ///
    /// # Errors
    ///
    /// No descriptor is free.
    pub fn locks(&self) -> std::io::Result<Option<(OwnedFd, OwnedFd)>> {
        let locks = self.locks.lock().expect("no panic under this lock");
        let copy = |lock: &Lock| lock.as_fd().try_clone_to_owned();
        locks
            .as_ref()
            .map(|locks| Ok((copy(&locks.bpffs)?, copy(&locks.cgroup)?)))
            .transpose()
    }

    /// Others may have the locks; from here on this process must write no table.
    pub fn let_go(&self) {
        self.locks.lock().expect("no panic under this lock").take();
    }

    /// Whether an earlier daemon's kernel side was taken over.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Maps that have another size than a new one would get, because they were there.
    pub fn kept_sizes(&self) -> &[KeptSize] {
        &self.kept_sizes
    }

    /// Why short-circuits are not safe in this kernel; `None`: the self-test found nothing.
    pub fn unfit_for_short_circuit(&self) -> Option<&str> {
        self.unfit.as_deref()
    }

    /// What services get whose policy says nothing of `acceleration`, and why.
    pub fn default_acceleration(&self) -> &DefaultAcceleration {
        &self.default_acceleration
    }

    /// Where the pins are.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The generation the next snapshot should be compiled under.
    pub fn next_generation(&self) -> u64 {
        self.publisher.lock().expect("no panic under this lock").generation() + 1
    }

    /// Namespace numbers as the kernel's DNS redirection encodes them.
    pub fn namespaces(&self) -> Namespaces {
        self.namespaces.clone()
    }

    /// Computes what [`Dataplane::publish`] of this snapshot would bring. Costs as much as what changed: from the one in force, where
    /// both share what is the same (`Arc`); else all tables are computed. Writes nothing.
    ///
    /// # Errors
    ///
    /// A table has no room for it ([`DataplaneError::Full`]).
    pub fn plan(&self, snapshot: &weft_policy::Snapshot) -> Result<Plan, DataplaneError> {
        let publisher = self.publisher.lock().expect("no panic under this lock");
        let foreign = self.foreign.lock().expect("no panic under this lock");
        publisher.plan(snapshot, &self.namespaces, foreign.present())
    }

    /// Puts a snapshot in force in one instant, as planned.
    ///
    /// # Errors
    ///
    /// The kernel refused a write, or a foreign proxy came or went and a table has no room for that: the generation in force stays in
    /// force.
    pub fn publish(&self, snapshot: &Arc<weft_policy::Snapshot>, mut plan: Plan) -> Result<Published, DataplaneError> {
        let mut publisher = self.publisher.lock().expect("no panic under this lock");
        let mut foreign = self.foreign.lock().expect("no panic under this lock");
        // Attached before connections are handed over, detached after the last one was.
        let cgroups = {
            let mut ebpf = self.ebpf.lock().expect("no panic under this lock");
            foreign.attach(&mut ebpf, snapshot)
        };
        if !publisher.fits_still(&plan, &cgroups) {
            plan = publisher.plan(snapshot, &self.namespaces, cgroups)?;
        }
        let published = publisher.publish(snapshot, plan)?;
        foreign.settle();
        Ok(published)
    }

    /// Whether the kernel has what was planned: publishing it would change nothing but the generation, under which
    /// every established flow would be judged again.
    pub fn holds(&self, plan: &Plan) -> bool {
        let publisher = self.publisher.lock().expect("no panic under this lock");
        let foreign = self.foreign.lock().expect("no panic under this lock");
        foreign.is_settled() && publisher.fits_still(plan, &foreign.present()) && publisher.holds(plan)
    }

    /// Says that a snapshot of which [`Dataplane::holds`] was true is the one in force: the next one is compared with it, and the one
    /// before is let go.
    pub fn rest_on(&self, snapshot: &Arc<weft_policy::Snapshot>) {
        let mut publisher = self.publisher.lock().expect("no panic under this lock");
        let foreign = self.foreign.lock().expect("no panic under this lock");
        publisher.rest_on(snapshot, &foreign.present());
    }

    /// Whether the cgroup of a foreign proxy came, went or was made again: what is in force is to be published again. To be
    /// called now and then; costs a look at each cgroup that policies name.
    pub fn foreign_proxies_moved(&self) -> bool {
        self.foreign.lock().expect("no panic under this lock").moved()
    }

    /// Cgroups of foreign proxies that are not there or could not be attached to, and why.
    pub fn foreign_proxy_problems(&self) -> Vec<(PathBuf, String)> {
        self.foreign.lock().expect("no panic under this lock").problems()
    }

    /// Takes a map out of the object (each can be taken once): events and connections have their own readers.
    pub(crate) fn take_map(&self, name: &'static str) -> Result<Map, DataplaneError> {
        self.ebpf
            .lock()
            .expect("no panic under this lock")
            .take_map(name)
            .ok_or(DataplaneError::Missing { what: "map", name })
    }

    /// All edges with their counters since they were made.
    ///
    /// # Errors
    ///
    /// The kernel refused the read.
    pub fn edges(&self) -> Result<Vec<Edge>, DataplaneError> {
        telemetry::edges(&self.bpffs.join("maps/edges"))
    }

    /// Removes edges; their counters begin anew with the next traffic.
    ///
    /// # Errors
    ///
    /// The kernel refused the table.
    pub fn forget_edges(&self, keys: &[weft_abi::EdgeKey]) -> Result<(), DataplaneError> {
        if keys.is_empty() {
            Ok(())
        } else {
            telemetry::forget_edges(&self.bpffs.join("maps/edges"), keys)
        }
    }

    /// Failed kernel calls so far, by site.
    ///
    /// # Errors
    ///
    /// The kernel refused the read.
    pub fn kernel_errors(&self) -> Result<Vec<KernelError>, DataplaneError> {
        errs::read(&self.bpffs.join("maps/errs"))
    }

    /// Tells the kernel which addresses are this machine's, in the calling thread's network namespace. To be called when
    /// they may have changed; costs a read of the interfaces and what changed.
    ///
    /// # Errors
    ///
    /// Interfaces cannot be read, or the table is full: then the rest counts as outside the mesh.
    pub fn refresh_local_addresses(&self) -> Result<(), DataplaneError> {
        let addresses = local_addresses()?;
        let mut netns = self.netns();
        let home = netns.home();
        netns.set_addresses(home, addresses)
    }

    /// Cookie of the network namespace the daemon was started in.
    pub fn home(&self) -> u64 {
        self.netns().home()
    }

    /// Tells the kernel that our outbound and DNS listeners are open on another namespace's loopback, and which addresses
    /// are its own. Cheap if nothing changed, so to be called now and then.
    ///
    /// # Errors
    ///
    /// As [`Dataplane::refresh_local_addresses`].
    pub fn enter_netns(&self, cookie: u64, addresses: BTreeSet<IpAddr>) -> Result<(), DataplaneError> {
        let mut netns = self.netns();
        netns.set_addresses(cookie, addresses)?;
        netns.set_listening(cookie)
    }

    /// Takes that back. To be called before the listeners close.
    pub fn leave_netns(&self, cookie: u64) {
        self.netns().forget(cookie);
    }

    /// Other namespaces that the kernel was told of, also by an earlier daemon.
    pub fn entered_netns(&self) -> Vec<u64> {
        self.netns().listening()
    }

    fn netns(&self) -> MutexGuard<'_, Netns> {
        self.netns.lock().expect("no panic under this lock")
    }

    /// Removes connection records that nobody will ever read, flows that are idle, and what a daemon that died left of `weft
    /// doctor`; how many of the former. To be called now and then.
    ///
    /// # Errors
    ///
    /// The kernel refused the read.
    pub fn sweep(&self) -> Result<usize, DataplaneError> {
        canary::forget(&self.bpffs)?;
        let conns = telemetry::sweep_conns(&self.bpffs.join("maps/conns"))?;
        Ok(conns + telemetry::sweep_flows(&self.bpffs.join("maps/flows"))?)
    }

    /// How often each rule decided.
    ///
    /// # Errors
    ///
    /// The kernel refused the read.
    pub fn rules(&self) -> Result<Vec<RuleUse>, DataplaneError> {
        rules::read(&self.bpffs.join("maps/rules"))
    }

    /// Removes rules from that table: it has room for so many, and those that are gone would fill it.
    ///
    /// # Errors
    ///
    /// The kernel refused the table.
    pub fn forget_rules(&self, rules: &[u32]) -> Result<(), DataplaneError> {
        if rules.is_empty() {
            Ok(())
        } else {
            rules::forget(&self.bpffs.join("maps/rules"), rules)
        }
    }

    /// Every listening address of the home namespace that the kernel knows, with its owner's cgroup id: what a restarted
    /// daemon starts from.
    ///
    /// # Errors
    ///
    /// The kernel refused the read.
    pub fn listeners(&self) -> Result<Vec<Listener>, DataplaneError> {
        self.listeners_in(self.home())
    }

    /// The same of any namespace, by its cookie.
    pub(crate) fn listeners_in(&self, netns: u64) -> Result<Vec<Listener>, DataplaneError> {
        telemetry::listeners(&self.bpffs.join("maps/listen"), netns as u32)
    }
}

/// Names the pin of every map that outlives the process.
pub fn with_pinned_maps(loader: &mut EbpfLoader<'_>, maps: &Path) {
    for name in PINNED_MAPS {
        loader.map_pin_path(name, maps.join(pin_name(name)));
    }
}

/// The object in this kernel, no program loaded yet; `set` says what is not as it stands in the object.
pub fn open_object<'a>(set: impl FnOnce(&mut EbpfLoader<'a>)) -> Result<Ebpf, DataplaneError> {
    if OBJECT.is_empty() {
        return Err(DataplaneError::NoObject);
    }
    // The loader borrows what it is told for as long as `set`'s values live.
    static NO_YES: [u8; 2] = [0, 1];
    let mut loader = EbpfLoader::new();
    loader.override_global("HAS_SET_RETVAL", &NO_YES[usize::from(doctor::has_set_retval())], true);
    set(&mut loader);
    loader.load(OBJECT).map_err(load_error)
}

/// The object with the pinned maps (made if they are not there), every program verified: what the kernel refuses, it refuses
/// before anything is changed.
fn load_programs(maps: &Path, flow_sample: u32, sizes: &Sizes) -> Result<Ebpf, DataplaneError> {
    let mut ebpf = open_object(|loader| {
        loader.override_global("FLOW_SAMPLE", &flow_sample, true);
        // Also of maps that are pinned: aya maps a ring by the size that it is told, not by the one that the ring has.
        for (name, size) in &sizes.overrides {
            loader.map_max_entries(name, *size);
        }
        with_pinned_maps(loader, maps);
    })?;
    attach::load_all(&mut ebpf)?;
    Ok(ebpf)
}

// === impl Prepared ===

impl Prepared {
    /// Whether its maps are the ones that are pinned now.
    fn is_of(&self, pin: &Path) -> bool {
        let pinned = MapData::from_pin(pin).and_then(|pinned| pinned.info());
        let ours = match self.0.map("weft_config") {
            Some(Map::Array(ours)) => ours.info(),
            _ => return false,
        };
        matches!((pinned, ours), (Ok(pinned), Ok(ours)) if pinned.id() == ours.id())
    }
}

/// Pin name of a map or program: without the prefix.
pub fn pin_name(name: &str) -> &str {
    name.strip_prefix("weft_").unwrap_or(name)
}

/// Whether this binary can adopt what is pinned below `bpffs`, if anything is. Changes nothing.
///
/// # Errors
///
/// [`DataplaneError::Layout`], in words; or the pin cannot be read.
fn check_pins(bpffs: &Path) -> Result<(), DataplaneError> {
    let config = bpffs.join("maps/config");
    if config.exists() { check_layout(&config) } else { Ok(()) }
}

/// A directory with others' pins is none to make ours in, and to remove later.
fn refuse_others(bpffs: &Path) -> Result<(), DataplaneError> {
    let fail = |source| DataplaneError::Bpffs {
        path: bpffs.to_path_buf(),
        what: "use the directory",
        source,
    };
    match others(bpffs).map_err(fail)? {
        Some(name) => Err(fail(std::io::Error::other(format!(
            "`{name}` in it is not weft's; give --bpffs a directory of its own, as /sys/fs/bpf/weft"
        )))),
        None => Ok(()),
    }
}

fn check_layout(path: &Path) -> Result<(), DataplaneError> {
    let map_error = |source| DataplaneError::Map {
        map: "weft_config",
        what: "open the pinned map",
        source: Box::new(source),
    };
    let data = MapData::from_pin(path).map_err(map_error)?;
    let value_size = data.info().map_err(map_error)?.value_size();
    let found = if value_size as usize == size_of::<Config>() {
        let array: aya::maps::Array<MapData, Config> = Map::Array(data).try_into().map_err(map_error)?;
        array.get(&0, 0).map_err(map_error)?.layout
    } else {
        // Not even the head of it is ours to read.
        0
    };
    // Zero with the right size: made by a daemon that died before it wrote anything.
    if found == LAYOUT || (found == 0 && value_size as usize == size_of::<Config>()) {
        Ok(())
    } else {
        Err(DataplaneError::Layout {
            path: path.to_path_buf(),
            found,
            expected: LAYOUT,
        })
    }
}

pub fn load_error(source: aya::EbpfError) -> DataplaneError {
    if let Some(io) = find_io(&source)
        && io.raw_os_error() == Some(libc::EPERM)
    {
        return DataplaneError::Privilege {
            what: "privileges to load kernel programs",
        };
    }
    DataplaneError::Load {
        reason: source.to_string(),
        source: Box::new(source),
    }
}

fn find_io<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        next = error.source();
    }
    None
}
