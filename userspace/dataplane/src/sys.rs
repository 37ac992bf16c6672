//! The system calls that no crate of ours wraps. The only unsafe code of user space.
#![allow(unsafe_code, reason = "raw system calls; every block says why it holds")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use tokio::io::{Interest, unix::AsyncFd};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_SK_MSG_VERDICT: u32 = 7;
const BPF_CGROUP_GETSOCKOPT: u32 = 21;
const BPF_CGROUP_SETSOCKOPT: u32 = 22;
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// `union bpf_attr` as BPF_LINK_CREATE reads it (include/uapi/linux/bpf.h).
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    /// A cgroup's descriptor, a device's index.
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// `union bpf_attr` as BPF_LINK_UPDATE reads it (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The same as BPF_OBJ_GET_INFO_BY_FD reads it.
#[repr(C)]
struct ObjInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of `struct bpf_link_info` for cgroup links.
#[repr(C)]
#[derive(Default)]
struct CgroupLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    cgroup_id: u64,
    attach_type: u32,
    pad2: u32,
}

/// The same as BPF_PROG_QUERY reads it.
#[repr(C)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_count: u32,
}

/// The same as BPF_OBJ_GET and BPF_OBJ_PIN read it.
#[repr(C)]
struct ObjGet {
    path: u64,
    bpf_fd: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a live, initialised, properly sized prefix of `union bpf_attr`; the kernel takes what is beyond
    // the given size for zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Opens a pinned object.
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjGet {
        path: path.as_ptr() as u64,
        bpf_fd: 0,
        flags: 0,
    };
    let fd = bpf(BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// Which of the two a program on socket options sees.
#[derive(Clone, Copy)]
pub enum Sockopt {
    Get,
    Set,
}

/// Attaches a program on socket options to a cgroup, behind a link pinned at `pin` (Linux 5.7). aya makes no pinnable link of
/// this kind.
pub fn pin_sockopt(program: impl AsFd, cgroup: impl AsFd, kind: Sockopt, pin: &Path) -> io::Result<()> {
    let mut create = LinkCreate {
        prog_fd: program.as_fd().as_raw_fd().cast_unsigned(),
        target_fd: cgroup.as_fd().as_raw_fd().cast_unsigned(),
        attach_type: match kind {
            Sockopt::Get => BPF_CGROUP_GETSOCKOPT,
            Sockopt::Set => BPF_CGROUP_SETSOCKOPT,
        },
        flags: 0,
    };
    let fd = bpf(BPF_LINK_CREATE, &mut create)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let link = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attr = ObjGet {
        path: path.as_ptr() as u64,
        bpf_fd: link.as_raw_fd().cast_unsigned(),
        flags: 0,
    };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Puts another program behind a link, without a moment in which there is none (Linux 5.7).
pub fn link_update(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link_fd: link.as_fd().as_raw_fd().cast_unsigned(),
        new_prog_fd: program.as_fd().as_raw_fd().cast_unsigned(),
        ..LinkUpdate::default()
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// The head of it as BPF_PROG_LOAD reads it.
#[repr(C)]
struct ProgLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
}

/// Whether programs on devices can have links (TCX, Linux 6.6): a kernel that has them misses the device that does not
/// exist, another one does not know the attach type. Nothing is attached.
pub fn has_tcx() -> io::Result<bool> {
    const SCHED_CLS: u32 = 3;
    const TCX_INGRESS: u32 = 46;
    // r0 = 0; exit
    let instructions: [u64; 2] = [0xb7, 0x95];
    let mut program = ProgLoad {
        kind: SCHED_CLS,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    let fd = bpf(BPF_PROG_LOAD, &mut program)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let program = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
    let mut link = LinkCreate {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_fd: i32::MAX.cast_unsigned(),
        attach_type: TCX_INGRESS,
        flags: 0,
    };
    match bpf(BPF_LINK_CREATE, &mut link) {
        Ok(fd) => {
            // SAFETY: as above. Closing it takes the link away.
            drop(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) });
            Ok(true)
        }
        Err(error) => Ok(error.raw_os_error() == Some(libc::ENODEV)),
    }
}

/// The id of the program that sees what sockets of a sockhash send (Linux 5.17).
pub fn sk_msg_of(map: impl AsFd) -> io::Result<Option<u32>> {
    let mut id = 0_u32;
    let mut query = ProgQuery {
        target_fd: map.as_fd().as_raw_fd().cast_unsigned(),
        attach_type: BPF_SK_MSG_VERDICT,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: std::ptr::from_mut(&mut id) as u64,
        prog_count: 1,
    };
    // `id` outlives the call, which writes one number there at most.
    bpf(BPF_PROG_QUERY, &mut query)?;
    Ok((query.prog_count > 0).then_some(id))
}

/// The id of the cgroup a link is attached to; 0 if that cgroup is gone.
pub fn link_cgroup(link: impl AsFd) -> io::Result<u64> {
    let mut info = CgroupLinkInfo::default();
    object_info(link, &mut info)?;
    Ok(info.cgroup_id)
}

/// What a link to a network namespace or a device is attached to: the namespace's inode number, the device's index; 0 if it
/// is gone.
pub fn link_target(link: impl AsFd) -> io::Result<u32> {
    // `struct bpf_link_info` has its union where cgroup links have their id; both of these begin with 32 bits.
    link_cgroup(link).map(|id| id as u32)
}

/// BPF_OBJ_GET_INFO_BY_FD into `info`, a plain-integer prefix of the object's info struct, all zero before.
fn object_info<T>(object: impl AsFd, info: &mut T) -> io::Result<()> {
    let mut attr = ObjInfo {
        bpf_fd: object.as_fd().as_raw_fd().cast_unsigned(),
        info_len: size_of::<T>() as u32,
        info: std::ptr::from_mut(info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// Waits until every program that runs now has ended: MEMBARRIER_CMD_GLOBAL waits for an RCU grace period.
pub fn wait_for_programs() -> io::Result<()> {
    // SAFETY: no pointers are passed.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Cookie of the calling thread's network namespace (SO_NETNS_COOKIE, Linux 5.14).
pub fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).or_else(|_| std::net::UdpSocket::bind(("::1", 0)))?;
    option(socket, SO_NETNS_COOKIE)
}

/// A socket's cookie (SO_COOKIE, Linux 4.12): unlike its address, never another socket's.
#[cfg(test)]
pub fn socket_cookie(socket: impl AsFd) -> io::Result<u64> {
    option(socket, libc::SO_COOKIE)
}

/// Reads a 64-bit option of the socket level.
fn option(socket: impl AsFd, name: libc::c_int) -> io::Result<u64> {
    let mut value = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the socket is open, `value` and `length` are live and of the sizes said.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            std::ptr::from_mut(&mut value).cast(),
            &mut length,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// CLOCK_MONOTONIC in nanoseconds: what `bpf_ktime_get_ns` counts.
pub fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| {
        now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned()
    })
}

/// An event out of exactly its bytes.
///
/// # Panics
///
/// If the length is not that of an event; the caller has checked.
pub fn read_event(bytes: &[u8]) -> weft_abi::Event {
    assert_eq!(bytes.len(), size_of::<weft_abi::Event>(), "checked by the caller");
    // SAFETY: the length is right, any bytes are an event (plain integers), and the read does not need alignment.
    unsafe { bytes.as_ptr().cast::<weft_abi::Event>().read_unaligned() }
}

/// The program behind a link.
pub fn link_program(link: impl AsFd) -> io::Result<u32> {
    let mut info = CgroupLinkInfo::default();
    object_info(link, &mut info)?;
    Ok(info.prog_id)
}

/// The number of a program.
pub fn program_id(program: impl AsFd) -> io::Result<u32> {
    // The head of `struct bpf_prog_info`: type, id.
    let mut info = [0u32; 2];
    object_info(program, &mut info)?;
    Ok(info[1])
}

/// Run count and run time in nanoseconds of a program, counted while BPF_ENABLE_STATS is on.
pub fn program_runs(program: impl AsFd) -> io::Result<(u64, u64)> {
    // The head of `struct bpf_prog_info`: run_time_ns at byte 192, run_cnt at 200 (include/uapi/linux/bpf.h, Linux 5.1).
    // All counts of arrays are zero, so the kernel writes through no pointer of it.
    let mut info = [0u64; 26];
    object_info(program, &mut info)?;
    Ok((info[25], info[24]))
}

/// Watches whether `file` can be read, on this thread's reactor.
pub fn watch(file: &impl AsFd) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: a borrowed descriptor stays open as long as it is borrowed, and is always the same one.
    unsafe { AsyncFd::register_with_interest(file.as_fd(), Interest::READABLE) }.map_err(io::Error::from)
}

/// Bytes that a read would find (FIONREAD).
pub fn unread(socket: impl AsFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the descriptor is open and FIONREAD writes one int to the live place it is given.
    let result = unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::FIONREAD,
            std::ptr::from_mut(&mut count),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

/// Takes the pages of a mapping out of this process: whoever needs one again reads it from its file. `start` and `end` are
/// addresses of whole pages.
///
/// # Safety
///
/// They are a mapping of a file, private, not writable, and without pages of its own (`Anonymous: 0 kB` in `smaps`), which
/// would be lost.
unsafe fn forget_pages(start: usize, end: usize) -> io::Result<()> {
    // SAFETY: what is read there afterwards is what the file says, as it was before: the caller vouches for it.
    let result = unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Gives code and constants back that this process has in memory; what is used again is found in the page cache. Costs
/// milliseconds.
///
/// # Errors
///
/// `/proc` cannot be read.
pub fn give_code_back() -> io::Result<()> {
    let program = std::fs::read_link("/proc/self/exe")?;
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    for (start, end) in clean_mappings(&smaps, &program.to_string_lossy()) {
        // SAFETY: it is one of the program's own file, which nobody writes to while it runs (ETXTBSY), nor makes writable:
        // the dynamic loader is done with it.
        unsafe { forget_pages(start, end)? };
    }
    Ok(())
}

/// Mappings of `program`'s file in which this process has written nothing and cannot write.
fn clean_mappings(smaps: &str, program: &str) -> Vec<(usize, usize)> {
    let mut clean = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        // `55d0-55e0 r-xp 00001000 fe:00 1234    /usr/bin/weft`, then lines of `Name:  value`.
        let mut words = line.splitn(6, ' ');
        let range = words.next().and_then(|word| word.split_once('-'));
        if let Some((start, end)) = range
            && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        {
            let rights = words.next().unwrap_or_default().as_bytes();
            let path = words.nth(3).unwrap_or_default().trim();
            let fits = path == program && matches!(rights, [b'r', b'-', _, b'p']);
            current = fits.then_some((start, end));
        } else if let Some(size) = line.strip_prefix("Anonymous:")
            && let Some(mapping) = current.take()
            && size.trim() == "0 kB"
        {
            clean.push(mapping);
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0000-55d1000 r--p 00000000 fe:00 12                         /usr/bin/we ft\n\
Size:                  4 kB\n\
Anonymous:             0 kB\n\
VmFlags: rd mr mw me\n\
55d1000-55d3000 r-xp 00001000 fe:00 12                         /usr/bin/we ft\n\
Anonymous:             4 kB\n\
55d3000-55d4000 rw-p 00003000 fe:00 12                         /usr/bin/we ft\n\
Anonymous:             0 kB\n\
55d4000-55d5000 r--s 00003000 fe:00 12                         /usr/bin/we ft\n\
Anonymous:             0 kB\n\
55d5000-55d8000 r-xp 00001000 fe:00 13                         /usr/lib/libc.so\n\
Anonymous:             0 kB\n\
55d8000-55d9000 r-xp 00000000 00:00 0\n\
Anonymous:             0 kB\n\
55da000-55dd000 r-xp 00001000 fe:00 12                         /usr/bin/we ft\n\
Anonymous:             0 kB\n";

    #[test]
    fn only_what_the_file_has_is_taken_out() {
        let clean = clean_mappings(SMAPS, "/usr/bin/we ft");
        assert_eq!(clean, [(0x55d_0000, 0x55d_1000), (0x55d_a000, 0x55d_d000)]);
    }

    #[test]
    fn code_that_is_not_used_is_given_back_and_found_again() {
        let resident = || {
            let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
            let program = std::fs::read_link("/proc/self/exe").expect("a program");
            let code = smaps
                .split("VmFlags")
                .find(|mapping| mapping.contains(" r-xp ") && mapping.contains(&*program.to_string_lossy()));
            let line = code.and_then(|code| code.lines().find_map(|line| line.strip_prefix("Rss:")));
            let size = line.and_then(|line| line.trim().strip_suffix(" kB"));
            size.and_then(|size| size.parse::<usize>().ok()).expect("its size")
        };
        let name = |error: io::Error| error.to_string();
        // Runs code that nothing here runs later.
        let words: Vec<String> = (1..130)
            .map(|errno| name(io::Error::from_raw_os_error(errno)))
            .collect();
        let before = resident();
        give_code_back().expect("code given back");
        let after = resident();
        assert!(after < before, "{before} kB, then {after} kB");
        let again: Vec<String> = (1..130)
            .map(|errno| name(io::Error::from_raw_os_error(errno)))
            .collect();
        assert_eq!(words, again);
    }
}
