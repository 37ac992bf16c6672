//! One request to the kernel by netlink(7), answered by an acknowledgement, or by all that there is.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// A datagram of a dump is no longer (`netlink_dump`: 32 KiB).
const DUMPED: usize = 64 << 10;
/// `struct nlmsghdr`.
pub const HEADER: usize = 16;

/// Sends `request`, a whole message with NLM_F_REQUEST and NLM_F_ACK, in the calling thread's network namespace.
///
/// # Errors
///
/// The kernel's answer.
pub fn ask(protocol: SockProtocol, request: &[u8]) -> io::Result<()> {
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    sendto(netlink.as_raw_fd(), request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    answer(&netlink)
}

/// Sends `request`, a whole message with NLM_F_REQUEST and NLM_F_DUMP, and hands each answer's contents, without the header, to
/// `each`; in the calling thread's network namespace.
///
/// # Errors
///
/// The kernel's answer.
pub fn dump(protocol: SockProtocol, request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    sendto(netlink.as_raw_fd(), request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut bytes = vec![0u8; DUMPED];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
        let mut rest = &bytes[..length];
        while let Some((kind, contents, behind)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let errno = contents.first_chunk().map_or(0, |errno| i32::from_ne_bytes(*errno));
                    return Err(io::Error::from_raw_os_error(-errno));
                }
                _ => each(contents),
            }
            rest = behind;
        }
    }
}

/// Kind and contents of the first message, and what is behind it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
    let contents = bytes.get(HEADER..length)?;
    Some((
        kind,
        contents,
        bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

/// Attributes (`struct nlattr`): kind and contents.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (bytes.first_chunk::<2>()?, bytes.get(2..4)?);
        let length = usize::from(u16::from_ne_bytes(*length));
        let kind = u16::from_ne_bytes([kind[0], kind[1]]);
        let contents = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, contents))
    })
}

/// The acknowledgement: `struct nlmsgerr` with 0 or a negative errno.
fn answer(netlink: &OwnedFd) -> io::Result<()> {
    let mut bytes = [0u8; 256];
    let length = recv(netlink.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
    let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
    if length < HEADER + 4 || kind != NLMSG_ERROR {
        return Err(io::Error::other("an answer of netlink that is none"));
    }
    match i32::from_ne_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}
