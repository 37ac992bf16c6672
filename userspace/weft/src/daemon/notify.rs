//! What the service manager is told (sd_notify(3)): one datagram to the socket in `$NOTIFY_SOCKET`, if there is one.

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// This process serves, and is the unit's main process from here on.
pub fn ready() {
    tell(&format!("READY=1\nMAINPID={}\nSTATUS=meshing", std::process::id()));
}

/// Another process is the unit's main process from here on; this one will end.
pub fn successor(pid: i32) {
    tell(&format!("MAINPID={pid}"));
}

/// An orderly stop has begun.
pub fn stopping() {
    tell("STOPPING=1");
}

fn tell(text: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, text) {
        tracing::warn!(%error, socket = %socket.display(), "the service manager was not told");
    }
}

fn send(socket: &OsStr, text: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?
        .send_to_addr(text.as_bytes(), &address)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_address_are_reached() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let name = format!("weft-notify-{}", std::process::id());
        let by_name = SocketAddr::from_abstract_name(&name).expect("a name");
        for (socket, address) in [
            (UnixDatagram::bind(&path), path.into_os_string()),
            (UnixDatagram::bind_addr(&by_name), format!("@{name}").into()),
        ] {
            let socket = socket.expect("bound");
            send(&address, "READY=1").expect("sent");
            let mut buffer = [0; 16];
            let count = socket.recv(&mut buffer).expect("received");
            assert_eq!(&buffer[..count], b"READY=1");
        }
    }
}
