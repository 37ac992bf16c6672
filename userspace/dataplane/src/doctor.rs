//! Proof that hooks are effective, not merely attached, and the price of each.
//!
//! A process of the canary's ([`canary`]) makes connections of every kind and compares what becomes of them with what the policy
//! table says; the kernel's run counters (BPF_ENABLE_STATS, Linux 5.8) tell which programs ran meanwhile, and how long. Others
//! make them run too, so runs alone prove nothing where a verdict can.

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::UdpSocket,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use aya::{
    maps::MapType,
    programs::{ProgramInfo, ProgramType, loaded_programs},
};
use serde::{Deserialize, Serialize};

use crate::{
    attach,
    canary::{self, Verdict},
    cgroup::Cgroup,
    error::DataplaneError,
    foreign, inbound,
    loader::pin_name,
    lock::Lock,
    sys,
};

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Kernel name.
    pub name: String,
    /// Behind a link (or on the sockmap).
    pub attached: bool,
    /// It ran when the canary did what it watches, or its device had packets, and no verdict was wrong in which it has a part;
    /// `None`: the canary cannot provoke it, and there were none.
    pub effective: Option<bool>,
    /// Nanoseconds a run, measured over the canary's runs, which go all the way, and everybody's meanwhile; `None`: no run.
    pub ns_per_run: Option<u64>,
}

/// One kernel feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// What.
    pub name: String,
    /// Found by loading, never by version.
    pub present: bool,
    /// What of weft needs it.
    pub used_for: String,
}

/// What an examination found.
#[derive(Debug)]
pub struct Examined {
    pub hooks: Vec<Hook>,
    pub verdicts: Vec<Verdict>,
}

/// Another examination is waited for so long. Most take about a second; whoever keeps the lock must not keep a thread of the daemon.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);
/// The canary is ended after so long: each of its waits is bounded, and all of them together take less.
const CANARY_BOUND: Duration = Duration::from_secs(90);
const CANARY_LOOK: Duration = Duration::from_millis(10);
/// A device is waited for so long to have packets: no canary can send through it.
const DEVICE_PATIENCE: Duration = Duration::from_secs(1);
const DEVICE_LOOK: Duration = Duration::from_millis(50);
/// So many packets that a program did not see are no matter of the moment at which they were counted.
const UNSEEN: u64 = 8;

/// Runs the canary (`exe` with `arguments` and a path, with which it must call [`canary::prove`]), and reports every hook and what
/// became of the canary's connections. One at a time on a captured cgroup, whoever examines: others wait.
///
/// # Errors
///
/// Another examination does not end in time, the canary cannot be run, or statistics cannot be switched on.
pub fn examine(cgroup: &Cgroup, bpffs: &Path, exe: &Path, arguments: &[&str]) -> Result<Examined, DataplaneError> {
    let os = |what: &'static str| move |source: io::Error| DataplaneError::Os { what, source };
    let place = canary::place(cgroup);
    // Its ports are the same for all, a daemon that takes over among them.
    let one = File::open(&place).map_err(os("open the canary's cgroup (it is made when a daemon starts)"))?;
    let _one = Lock::within(one, &place, LOCK_PATIENCE)?;
    let _stats = aya::sys::enable_stats(aya::sys::Stats::RunTime).map_err(|error| DataplaneError::Os {
        what: "switch on program statistics (BPF_ENABLE_STATS)",
        source: error.io_error,
    })?;
    let before = runs(bpffs)?;
    let devices_before = DevicePackets::of(&before);
    let proved = run_canary(&place, exe, arguments);
    if let Err(error) = canary::forget(bpffs) {
        tracing::warn!(%error, "what the canary was counted as is left to the next sweep");
    }
    let verdicts = proved.map_err(os("run the canary"))?;
    let (devices, after) = after_traffic(bpffs, &before, &devices_before)?;
    // Where the canary cannot bind it (no IPv6, or none on loopback) it leaves it out.
    let v6 = UdpSocket::bind(("::1", 0)).is_ok();
    let hooks = after
        .into_iter()
        .map(|now| {
            let (count, time_ns) = before
                .iter()
                .find(|old| old.id == now.id)
                .map_or((0, 0), |old| (old.count, old.time_ns));
            let ran = now.count - count;
            let unseen = devices.since(&devices_before, &now.name) >= UNSEEN;
            let proved = ran > 0 && !canary::is_doubtful(&now.name, &verdicts);
            Hook {
                attached: now.id.is_some(),
                effective: (ran > 0 || unseen || provoked(&now.name, v6)).then_some(proved),
                ns_per_run: (ran > 0).then(|| (now.time_ns - time_ns) / ran),
                name: now.name,
            }
        })
        .collect();
    Ok(Examined { hooks, verdicts })
}

/// Packets of devices on which programs of ours are, by device. Counted within the window in which runs are, so that no packet is
/// missed there that is counted here.
struct DevicePackets(HashMap<String, [u64; 2]>);

// === impl DevicePackets ===

impl DevicePackets {
    fn of(runs: &[Runs]) -> Self {
        let devices = runs.iter().filter_map(|runs| inbound::device_of(&runs.name));
        let counted = devices.filter_map(|(device, _)| {
            let packets = inbound::packets(device).ok().flatten()?;
            Some((device.to_owned(), packets))
        });
        Self(counted.collect())
    }

    /// Packets that came by this program's device and direction since `before`; 0 for programs elsewhere.
    fn since(&self, before: &Self, program: &str) -> u64 {
        let since = || {
            let (device, side) = inbound::device_of(program)?;
            let (now, then) = (self.0.get(device)?, before.0.get(device)?);
            now[side].checked_sub(then[side])
        };
        since().unwrap_or(0)
    }
}

/// Counts again, once each program on a device has run or its device had packets, or none come.
fn after_traffic(
    bpffs: &Path,
    before: &[Runs],
    devices_before: &DevicePackets,
) -> Result<(DevicePackets, Vec<Runs>), DataplaneError> {
    let deadline = Instant::now() + DEVICE_PATIENCE;
    loop {
        let devices = DevicePackets::of(before);
        let after = runs(bpffs)?;
        let told = after.iter().all(|now| {
            let ran = before.iter().any(|old| old.id == now.id && old.count < now.count);
            inbound::device_of(&now.name).is_none() || ran || devices.since(devices_before, &now.name) >= UNSEEN
        });
        if told || Instant::now() >= deadline {
            return Ok((devices, after));
        }
        thread::sleep(DEVICE_LOOK);
    }
}

/// Whether the canary does what this program watches: it makes no short-circuit, is no foreign proxy, is in the
/// daemon's network namespace alone, and nothing of it passes a device. `v6`: IPv6 too.
fn provoked(name: &str, v6: bool) -> bool {
    match name.split_once('@') {
        Some((program, netns)) => program == inbound::SK_LOOKUP && netns == inbound::OWN_NETNS,
        None => name != attach::SK_MSG && (v6 || !name.ends_with('6')),
    }
}

/// What its process says; it is gone afterwards.
fn run_canary(place: &Path, exe: &Path, arguments: &[&str]) -> io::Result<Vec<Verdict>> {
    let mut child = Command::new(exe)
        .args(arguments)
        .arg(place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + CANARY_BOUND;
    // What it says fits into a pipe.
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            let late = format!("it did not end within {CANARY_BOUND:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, late));
        }
        thread::sleep(CANARY_LOOK);
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(said));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let verdicts: Vec<_> = said.lines().filter_map(Verdict::read).collect();
    if verdicts.is_empty() {
        return Err(io::Error::other("loopback has no address to try it at"));
    }
    Ok(verdicts)
}

/// What the kernel counted of one program so far.
struct Runs {
    name: String,
    /// `None`: not attached.
    id: Option<u32>,
    count: u64,
    time_ns: u64,
}

/// Every program of ours, attached or not.
fn runs(bpffs: &Path) -> Result<Vec<Runs>, DataplaneError> {
    let fail = |source: io::Error| DataplaneError::Os {
        what: "list the kernel's programs",
        source,
    };
    let mut ids: Vec<(String, Option<u32>)> = Vec::new();
    for name in attach::CGROUP_PROGRAMS {
        let id = sys::obj_get(&bpffs.join("links").join(pin_name(name)))
            .and_then(|link| sys::link_program(&link))
            .ok();
        ids.push((name.to_owned(), id));
    }
    ids.extend(inbound::attached_programs(&bpffs.join("links"))?);
    ids.extend(foreign::attached_programs(&bpffs.join("links")));
    let found: Vec<_> = loaded_programs().flatten().collect();
    let named = || {
        found
            .iter()
            .find(|program| program.name_as_str() == Some(attach::SK_MSG))
    };
    // An older kernel does not say which one it is; other daemons have one of that name too.
    let sk_msg = sys::obj_get(&bpffs.join("maps").join(pin_name(attach::SK_MSG_MAP)))
        .and_then(|map| sys::sk_msg_of(&map))
        .unwrap_or_else(|_| named().map(ProgramInfo::id));
    ids.push((attach::SK_MSG.to_owned(), sk_msg));
    ids.into_iter()
        .map(|(name, id)| {
            let program = id.and_then(|id| found.iter().find(|program| program.id() == id));
            let (count, time_ns) = match program {
                Some(program) => {
                    sys::program_runs(&program.fd().map_err(|error| fail(io::Error::other(error)))?).map_err(fail)?
                }
                None => (0, 0),
            };
            Ok(Runs {
                name,
                id,
                count,
                time_ns,
            })
        })
        .collect()
}

/// Whether a connect can be refused with an errno of our choice (Linux 5.18).
pub fn has_set_retval() -> bool {
    aya::sys::is_helper_supported(ProgramType::CgroupSockAddr, aya::sys::BpfHelper::BPF_FUNC_set_retval)
        .unwrap_or(false)
}

/// Kinds of programs without which no daemon starts.
const PROGRAMS: [(&str, ProgramType); 6] = [
    ("cgroup/connect", ProgramType::CgroupSockAddr),
    ("cgroup/sock_create", ProgramType::CgroupSock),
    ("cgroup/skb", ProgramType::CgroupSkb),
    ("cgroup/sockopt", ProgramType::CgroupSockopt),
    ("sockops", ProgramType::SockOps),
    ("sk_msg", ProgramType::SkMsg),
];
/// The same of maps.
const MAPS: [(&str, MapType); 3] = [
    ("sockhash", MapType::SockHash),
    ("sk_storage", MapType::SkStorage),
    ("ring buffer", MapType::RingBuf),
];

/// What this kernel does not have of that without which no daemon starts, by probing.
pub fn lacking() -> Vec<&'static str> {
    absent(&PROGRAMS, &MAPS)
}

/// What cannot be probed now (no memory, no privileges) is not among them.
fn absent(programs: &[(&'static str, ProgramType)], maps: &[(&'static str, MapType)]) -> Vec<&'static str> {
    let programs = programs
        .iter()
        .map(|(name, kind)| (*name, aya::sys::is_program_supported(*kind).ok()));
    let maps = maps
        .iter()
        .map(|(name, kind)| (*name, aya::sys::is_map_supported(*kind).ok()));
    let absent = programs.chain(maps).filter(|(_, present)| *present == Some(false));
    absent.map(|(name, _)| name).collect()
}

/// Features by probing.
pub fn features() -> Vec<Feature> {
    let program = |kind| aya::sys::is_program_supported(kind).unwrap_or(false);
    let map = |kind| aya::sys::is_map_supported(kind).unwrap_or(false);
    let feature = |name: &str, present: bool, used_for: &str| Feature {
        name: name.to_owned(),
        present,
        used_for: used_for.to_owned(),
    };
    vec![
        feature(
            "cgroup/connect",
            program(ProgramType::CgroupSockAddr),
            "capture, L4 verdicts, balancing",
        ),
        feature(
            "cgroup/sock_create",
            program(ProgramType::CgroupSock),
            "whose a socket is",
        ),
        feature(
            "sockops",
            program(ProgramType::SockOps),
            "records, telemetry, readiness",
        ),
        feature("sk_msg", program(ProgramType::SkMsg), "short-circuit"),
        feature("sockhash", map(MapType::SockHash), "short-circuit"),
        feature("sk_storage", map(MapType::SkStorage), "one record a connection"),
        feature("ring buffer", map(MapType::RingBuf), "flow events"),
        feature(
            "sk_lookup",
            program(ProgramType::SkLookup),
            "inbound capture, refusals with a reset (else dropped)",
        ),
        feature(
            "tc",
            program(ProgramType::SchedClassifier),
            "packets of what has no socket here",
        ),
        feature(
            "cgroup/sockopt",
            program(ProgramType::CgroupSockopt),
            "foreign proxies (l7: external), kernel TLS beside short-circuits",
        ),
        feature(
            "tcx",
            sys::has_tcx().unwrap_or(false),
            "links on devices, in order with others' (else a filter of clsact)",
        ),
        feature(
            "bpf_set_retval",
            has_set_retval(),
            "ECONNREFUSED where nobody answers (else EPERM)",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use aya::programs::ProgramError;

    use super::*;

    #[test]
    fn a_refusal_is_the_kernels_only_where_it_lacks_something() {
        let refused = DataplaneError::Refused {
            program: "weft_connect4".to_owned(),
            log_tail: String::new(),
            source: Box::new(ProgramError::NotAttached),
        };
        // This one runs the mesh, or may not be asked.
        assert_eq!((lacking(), refused.is_environment()), (Vec::new(), false));
        let without = absent(
            &[("program", ProgramType::Unspecified)],
            &[("map", MapType::Unspecified)],
        );
        assert_eq!(without, ["program", "map"]);
    }

    #[test]
    fn only_what_the_canary_does_can_be_missed() {
        for (name, with_v6, without) in [
            ("weft_connect4", true, true),
            ("weft_connect6", true, false),
            ("weft_sockops", true, true),
            ("weft_sk_msg", false, false),
            ("weft_getsockopt@16", false, false),
            ("weft_sk_lookup@own", true, true),
            ("weft_sk_lookup@4026532198", false, false),
            ("weft_tc_in@own", false, false),
        ] {
            assert_eq!(
                (provoked(name, true), provoked(name, false)),
                (with_v6, without),
                "{name}"
            );
        }
    }
}
