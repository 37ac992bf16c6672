//! The accepting side: sk_lookup in network namespaces, tc on devices, our inbound listeners.
//!
//! Both kinds of program have the namespace's cookie in read-only data, so the object is loaded once more for each
//! namespace or device; all maps are the pinned ones. Links are pinned below `links/` and updated in place.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, SockHash},
    programs::{
        LinkOrder, ProgramError, SchedClassifier, SkLookup, TcAttachType,
        links::FdLink,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
};

use crate::{
    attach::{refused, to_io},
    error::DataplaneError,
    loader::{Dataplane, OBJECT, load_error, with_pinned_maps},
    sys,
};

/// The program on a network namespace.
pub const SK_LOOKUP: &str = "weft_sk_lookup";
/// What [`Dataplane::capture_netns`] is to call the daemon's own network namespace, the one that the canary is in too.
pub const OWN_NETNS: &str = "own";
/// The programs on a device, by direction.
pub const TC: [(&str, TcAttachType, &str); 2] = [
    ("weft_tc_in", TcAttachType::Ingress, "in"),
    ("weft_tc_out", TcAttachType::Egress, "out"),
];
/// Pins of links to namespaces and devices begin so.
const NETNS_PIN: &str = "netns-";
const DEVICE_PIN: &str = "dev-";
/// Pins of programs that stand for filters of the classic tc, which has no links. The device's index is part of them: what
/// stands on it stays there when it is renamed.
const FILTER_PIN: &str = "tc-";
/// Stands for a dot in the name of a pin.
const DOT: &str = "%";
/// Priority and handle of our filters there. Filters run by priority, and one that decides ends the chain: ours lets others decide
/// what it does not, so it is to be before them. Not what others take (1, 49152), so that nobody deletes ours for theirs; what stands
/// at 1 decides before us, which `weft doctor` sees.
const FILTER: NlOptions = NlOptions {
    priority: 2,
    handle: TcHandle::new(0, 0x5746),
    classid: None,
};
/// Where earlier daemons put them.
const EARLIER_PRIORITY: u16 = 0x5746;
/// ARPHRD_ETHER, ARPHRD_LOOPBACK (include/uapi/linux/if_arp.h): devices whose packets have an Ethernet header.
const WITH_ETHERNET: [u16; 2] = [1, 772];
const ETHERNET: u32 = 14;

// === impl Dataplane ===

impl Dataplane {
    /// Judges what arrives in a network namespace before a socket is chosen, and hands what must be looked at per request to
    /// our inbound listener there ([`Dataplane::listen_inbound`]). `name` tells namespaces apart in pins.
    ///
    /// # Errors
    ///
    /// The kernel refused it (Linux 5.9); what was attached before stays.
    pub fn capture_netns(&self, name: &str, netns: BorrowedFd<'_>, cookie: u64) -> Result<(), DataplaneError> {
        let pin = self.link_pin(NETNS_PIN, name);
        let cookie = cookie as u32;
        let mut ebpf = self.load_again(|loader| {
            loader.override_global("LOOKUP_NETNS", &cookie, true);
        })?;
        let program: &mut SkLookup = program(&mut ebpf, SK_LOOKUP)?;
        program.load().map_err(|source| refused(SK_LOOKUP, source))?;
        let inode = fs::metadata(format!("/proc/self/fd/{}", netns.as_raw_fd()))
            .map_err(|source| attach_error(SK_LOOKUP, name, source))?
            .ino() as u32;
        if let Some(link) = reusable(&pin, inode)? {
            let fd = program.fd().map_err(|source| refused(SK_LOOKUP, source))?;
            return sys::link_update(&link, fd.as_fd()).map_err(|source| attach_error(SK_LOOKUP, name, source));
        }
        let fail = |source| attach_error(SK_LOOKUP, name, to_io(source));
        let id = program.attach(netns).map_err(fail)?;
        let link: FdLink = program.take_link(id).map_err(fail)?.into();
        keep(link, &pin)
    }

    /// Detaches from a namespace. One that was never captured, or is gone, is no error.
    ///
    /// # Errors
    ///
    /// The pin cannot be removed.
    pub fn release_netns(&self, name: &str) -> Result<(), DataplaneError> {
        unpin(&self.link_pin(NETNS_PIN, name))
    }

    /// Tells the kernel our inbound listener of a namespace and family. It leaves the table by itself when it closes.
    ///
    /// # Errors
    ///
    /// Not a listening TCP socket, or the table is full.
    pub fn listen_inbound(&self, cookie: u64, v6: bool, listener: BorrowedFd<'_>) -> Result<(), DataplaneError> {
        let fail = |source| DataplaneError::Map {
            map: "weft_inbound",
            what: "tell our inbound listener",
            source: Box::new(source),
        };
        let map = MapData::from_pin(self.bpffs().join("maps/inbound")).map_err(fail)?;
        let mut map: SockHash<MapData, [u32; 2]> = Map::SockHash(map).try_into().map_err(fail)?;
        let key = [cookie as u32, if v6 { 6 } else { 4 }];
        // A socket in its place (an older daemon's) gives way.
        map.insert(key, listener, 0).map_err(fail)
    }

    /// Judges the packets of a device of the calling thread's network namespace, both directions.
    ///
    /// # Errors
    ///
    /// No such device, or the kernel refused it; what was attached before stays.
    pub fn capture_device(&self, device: &str, cookie: u64) -> Result<(), DataplaneError> {
        let (index, link_header) = look_at(device).map_err(|source| attach_error(TC[0].0, device, source))?;
        let cookie = cookie as u32;
        let mut ebpf = self.load_again(|loader| {
            loader.override_global("DEVICE_NETNS", &cookie, true);
            loader.override_global("DEVICE_LINK", &link_header, true);
        })?;
        for (name, direction, suffix) in TC {
            let pin = |kind| self.link_pin(kind, &format!("{device}-{suffix}"));
            let program: &mut SchedClassifier = program(&mut ebpf, name)?;
            program.load().map_err(|source| refused(name, source))?;
            let fail = |source: ProgramError| attach_error(name, device, to_io(source));
            let earlier = reusable(&pin(DEVICE_PIN), index)?;
            if let Some(link) = &earlier
                && is_first(link, device, direction)
            {
                let fd = program.fd().map_err(|source| refused(name, source))?;
                sys::link_update(link, fd.as_fd()).map_err(|source| attach_error(name, device, source))?;
                continue;
            }
            // Before others', for what decides ends the chain; ours lets others decide what it does not.
            let order = TcAttachOptions::TcxOrder(LinkOrder::first());
            match program.attach_with_options(device, direction, order) {
                Ok(id) => {
                    let link = program.take_link(id).map_err(fail)?;
                    let link = FdLink::try_from(link)
                        .map_err(|source| attach_error(name, device, io::Error::other(source)))?;
                    // No link changes its place: one that others have got before gives way to the new one.
                    unpin(&pin(DEVICE_PIN))?;
                    keep(link, &pin(DEVICE_PIN))?;
                    drop(earlier);
                }
                // Before Linux 6.6 there are no links on devices.
                Err(error) if is_unknown(&error) => {
                    let pin = self.link_pin(FILTER_PIN, &format!("{device}-{index}-{suffix}"));
                    filter(program, name, device, direction, &pin)?;
                    self.forget_earlier(device, direction, &pin)?;
                }
                Err(error) => return Err(fail(error)),
            }
        }
        Ok(())
    }

    /// Whether the device of this name is another one than [`Dataplane::capture_device`] found: it was removed and made again,
    /// and nothing of ours is on it. False while there is none. Costs a few system calls.
    pub fn device_is_another(&self, device: &str) -> bool {
        let Ok(index) = nix::net::if_::if_nametoindex(device) else {
            return false;
        };
        let ours = |suffix: &str| {
            let link = sys::obj_get(&self.link_pin(DEVICE_PIN, &format!("{device}-{suffix}")));
            let behind_link = link.and_then(sys::link_target).is_ok_and(|target| target == index);
            behind_link
                || self
                    .link_pin(FILTER_PIN, &format!("{device}-{index}-{suffix}"))
                    .exists()
        };
        !TC.iter().all(|(.., suffix)| ours(suffix))
    }

    /// Detaches from every device that is not in `kept`.
    ///
    /// # Errors
    ///
    /// A pin cannot be removed.
    pub fn release_devices(&self, kept: &[String]) -> Result<(), DataplaneError> {
        for pin in device_pins(&self.bpffs().join("links"))? {
            if !kept.contains(&pin.device) {
                pin.release()?;
            }
        }
        Ok(())
    }

    /// Pins of filters on a device that had this name before.
    fn forget_earlier(&self, device: &str, direction: TcAttachType, kept: &Path) -> Result<(), DataplaneError> {
        for pin in device_pins(&self.bpffs().join("links"))? {
            if pin.device == device && pin.index.is_some() && TC[pin.side].1 == direction && pin.path != kept {
                pin.release()?;
            }
        }
        Ok(())
    }

    fn link_pin(&self, kind: &str, name: &str) -> PathBuf {
        // bpffs takes no dots in names (of VLAN devices: eth0.100), and nobody takes slashes.
        let name = name.replace('/', "_").replace('.', DOT);
        self.bpffs().join("links").join(format!("{kind}{name}"))
    }

    /// The object once more, with other read-only data and the same maps.
    fn load_again<'a>(&self, set: impl FnOnce(&mut EbpfLoader<'a>)) -> Result<Ebpf, DataplaneError> {
        let mut loader = EbpfLoader::new();
        set(&mut loader);
        with_pinned_maps(&mut loader, &self.bpffs().join("maps"));
        loader.load(OBJECT).map_err(load_error)
    }
}

/// Programs on namespaces and devices, `PROGRAM@NAME`, with their numbers; `None`: the link is there, its target is gone.
pub fn attached_programs(links: &Path) -> Result<Vec<(String, Option<u32>)>, DataplaneError> {
    let mut found = Vec::new();
    for name in pin_names(links)? {
        let program = match name.strip_prefix(NETNS_PIN) {
            Some(netns) => format!("{SK_LOOKUP}@{netns}"),
            None => match DevicePin::of(links, &name) {
                Some(pin) => format!("{}@{}", TC[pin.side].0, pin.device),
                None => continue,
            },
        };
        let pin = links.join(&name);
        let id = sys::obj_get(&pin).and_then(|object| {
            if name.starts_with(FILTER_PIN) {
                return sys::program_id(&object).map(Some);
            }
            let lives = sys::link_target(&object)? != 0;
            Ok(if lives { Some(sys::link_program(&object)?) } else { None })
        });
        found.push((program, id.ok().flatten()));
    }
    Ok(found)
}

/// The device and the direction of a program as [`attached_programs`] names it: 0 in, 1 out.
pub fn device_of(program: &str) -> Option<(&str, usize)> {
    let (name, device) = program.split_once('@')?;
    let side = TC.iter().position(|(tc, ..)| *tc == name)?;
    Some((device, side))
}

/// Packets that a device of the calling thread's network namespace took in and sent out so far; `None`: there is no such device.
pub fn packets(device: &str) -> io::Result<Option<[u64; 2]>> {
    let text = fs::read_to_string("/proc/thread-self/net/dev")?;
    Ok(text.lines().find_map(|line| {
        let (name, counts) = line.split_once(':')?;
        let mut counts = counts.split_whitespace().map(str::parse::<u64>);
        // Received: bytes, packets, and six more; then the same of what was sent.
        let (received, sent) = (counts.nth(1)?.ok()?, counts.nth(7)?.ok()?);
        (name.trim() == device).then_some([received, sent])
    }))
}

/// Removes what stands on devices for the pins below `links`; before the pins themselves go.
pub fn release_all_devices(links: &Path) -> Result<(), DataplaneError> {
    device_pins(links)?.iter().try_for_each(DevicePin::release)
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, DataplaneError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let missing = DataplaneError::Missing { what: "program", name };
    match ebpf.program_mut(name) {
        Some(program) => program.try_into().map_err(|_| missing),
        None => Err(missing),
    }
}

fn attach_error(program: &'static str, target: &str, source: io::Error) -> DataplaneError {
    DataplaneError::Attach {
        program,
        target: target.to_owned(),
        source,
    }
}

/// Whether nobody's program runs before that of our link.
fn is_first(link: &OwnedFd, device: &str, direction: TcAttachType) -> bool {
    let (Ok(ours), Ok((_, programs))) = (sys::link_program(link), SchedClassifier::query_tcx(device, direction)) else {
        return false;
    };
    programs.first().is_some_and(|first| first.id() == ours)
}

/// The pinned link if it is still attached to this inode or index. One that is not is dropped.
fn reusable(pin: &Path, target: u32) -> Result<Option<OwnedFd>, DataplaneError> {
    if !pin.exists() {
        return Ok(None);
    }
    let fail = |source| DataplaneError::Pin {
        path: pin.to_path_buf(),
        source,
    };
    let link = sys::obj_get(pin).map_err(fail)?;
    if sys::link_target(&link).map_err(fail)? == target {
        return Ok(Some(link));
    }
    fs::remove_file(pin).map_err(fail)?;
    Ok(None)
}

fn keep(link: FdLink, pin: &Path) -> Result<(), DataplaneError> {
    link.pin(pin).map(drop).map_err(|source| DataplaneError::Pin {
        path: pin.to_path_buf(),
        source: io::Error::other(source),
    })
}

fn unpin(pin: &Path) -> Result<(), DataplaneError> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DataplaneError::Pin {
            path: pin.to_path_buf(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Index of a device and the length of its link header.
fn look_at(device: &str) -> io::Result<(u32, u32)> {
    let link = nix::ifaddrs::getifaddrs()?
        .filter(|interface| interface.interface_name == device)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "there is no such device in this network namespace",
            )
        })?;
    let header = if WITH_ETHERNET.contains(&link.hatype()) {
        ETHERNET
    } else {
        0
    };
    Ok((link.ifindex() as u32, header))
}

/// What a kernel without TCX says to an attach type that it does not know.
fn is_unknown(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error)
        if matches!(error.io_error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)))
}

/// What the kernel says to a change of a filter that is not there.
fn is_no_filter(error: &ProgramError) -> bool {
    matches!(error, ProgramError::TcError(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::ENOENT))
}

/// A filter of the classic tc, in the place of an older one of ours.
fn filter(
    program: &mut SchedClassifier,
    name: &'static str,
    device: &str,
    direction: TcAttachType,
    pin: &Path,
) -> Result<(), DataplaneError> {
    let fail = |source: ProgramError| attach_error(name, device, to_io(source));
    match tc::qdisc_add_clsact(device) {
        Ok(()) => {}
        // It is there already: by the other direction, or somebody else's.
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(source) => return Err(attach_error(name, device, io::Error::other(source))),
    }
    // Ours by priority and handle, whatever the pin says: the device may have been made anew, an earlier daemon killed in between.
    let there = attached(device, direction, FILTER.priority).map_err(|source| attach_error(name, device, source))?;
    let id = match program.attach_to_link(there) {
        Err(error) if is_no_filter(&error) => {
            program.attach_with_options(device, direction, TcAttachOptions::Netlink(FILTER))
        }
        attached => attached,
    }
    .map_err(fail)?;
    // Detaching is what the drop would do; it is what an earlier daemon's gets.
    std::mem::forget(program.take_link(id).map_err(fail)?);
    drop(attached(device, direction, EARLIER_PRIORITY));
    unpin(pin)?;
    program.pin(pin).map_err(|source| DataplaneError::Pin {
        path: pin.to_path_buf(),
        source: io::Error::other(source),
    })
}

fn attached(device: &str, direction: TcAttachType, priority: u16) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(device, direction, priority, FILTER.handle, None)
}

/// Names of all pins of links, in order; none if there is no such folder.
fn pin_names(links: &Path) -> Result<Vec<String>, DataplaneError> {
    let fail = |source| DataplaneError::Pin {
        path: links.to_path_buf(),
        source,
    };
    let entries = match fs::read_dir(links) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(fail)?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// A pin of a link or filter on a device.
struct DevicePin {
    path: PathBuf,
    /// What the device was called.
    device: String,
    /// Of a filter: the device's.
    index: Option<u32>,
    /// Index into [`TC`].
    side: usize,
}

// === impl DevicePin ===

impl DevicePin {
    fn of(links: &Path, name: &str) -> Option<Self> {
        let filter = name.strip_prefix(FILTER_PIN);
        let (mut device, suffix) = filter.or_else(|| name.strip_prefix(DEVICE_PIN))?.rsplit_once('-')?;
        let side = TC.iter().position(|(_, _, side)| *side == suffix)?;
        let mut index = None;
        if filter.is_some() {
            let (name, number) = device.rsplit_once('-')?;
            (device, index) = (name, Some(number.parse().ok()?));
        }
        Some(Self {
            path: links.join(name),
            device: device.replace(DOT, "."),
            index,
            side,
        })
    }

    /// Takes what stands on the device, and the pin. A device that is gone, or in another namespace now, took its filters
    /// along (`dev_shutdown`).
    fn release(&self) -> Result<(), DataplaneError> {
        if let Some(index) = self.index
            && let Ok(device) = nix::net::if_::if_indextoname(index)
        {
            for priority in [FILTER.priority, EARLIER_PRIORITY] {
                drop(attached(&device.to_string_lossy(), TC[self.side].1, priority));
            }
        }
        unpin(&self.path)
    }
}

/// Pins of links and filters on devices.
fn device_pins(links: &Path) -> Result<Vec<DevicePin>, DataplaneError> {
    let names = pin_names(links)?;
    Ok(names.iter().filter_map(|name| DevicePin::of(links, name)).collect())
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::{bpffs::ensure_bpffs, loader::open_object, uninstall::uninstall};

    fn run(words: &[&str]) -> String {
        let output = Command::new("tc").args(words).output().expect("iproute2 is there");
        assert!(output.status.success(), "tc {words:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    #[test]
    fn a_filter_of_the_classic_tc_is_before_others_and_in_the_place_of_an_earlier_daemons() {
        if !nix::unistd::geteuid().is_root() || OBJECT.is_empty() {
            println!("skipped: needs root (cargo xtask test)");
            return;
        }
        let bpffs = std::env::temp_dir().join(format!("weft-tc-{}", std::process::id()));
        ensure_bpffs(&bpffs).expect("a bpffs");
        // A thread in a namespace of its own, which ends with it.
        let at = bpffs.clone();
        let tested = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            run(&["qdisc", "add", "dev", "lo", "clsact"]);
            let all = ["bpf", "bytecode", "1,6 0 0 4294967295,"];
            run(&[&["filter", "add", "dev", "lo", "ingress", "prio", "10"], &all[..]].concat());
            let mut ebpf = open_object(|_| {}).expect("the object");
            let (name, direction, _) = TC[0];
            let ours: &mut SchedClassifier = program(&mut ebpf, name).expect("there");
            ours.load().expect("loaded");
            let earlier = NlOptions {
                priority: EARLIER_PRIORITY,
                ..FILTER
            };
            let id = ours.attach_with_options("lo", direction, TcAttachOptions::Netlink(earlier));
            std::mem::forget(ours.take_link(id.expect("attached")).expect("there"));
            for _ in ["a first start", "a second one"] {
                filter(ours, name, "lo", direction, &at.join("pin")).expect("attached");
                let shown = run(&["filter", "show", "dev", "lo", "ingress"]);
                let mut priorities: Vec<&str> = shown
                    .lines()
                    .filter_map(|line| line.split(" pref ").nth(1)?.split(' ').next())
                    .collect();
                priorities.dedup();
                assert_eq!(priorities, ["2", "10"], "{shown}");
            }
            fs::remove_file(at.join("pin")).expect("removed");
        });
        let tested = tested.join();
        uninstall(&bpffs).expect("unmounted");
        tested.expect("as the assertions say");
    }
}
