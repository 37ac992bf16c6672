//! One request to the kernel by netlink(7), answered by an acknowledgement.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

const NLMSG_ERROR: u16 = 2;
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
