//! Whether this kernel does with sockets in a sockmap what programs expect of sockets.
//!
//! Linux 6.18.44 (and others that have "bpf: Fix FIONREAD and copied_seq issues") answers FIONREAD on such a socket with
//! the bytes of the redirected queue alone: 0, while bytes that came through TCP lie there. A program that trusts the
//! answer under edge-triggered epoll stops reading for good: nginx stalls on every upload that fills its buffer. So what
//! is tested is what the sides see that nobody declared for it: a socket in `weft_tx` that receives through TCP.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use aya::{Ebpf, maps::SockHash};
use weft_abi::{Addr, Tuple};

use crate::{sys, tables::services::addr};

/// Bytes on loopback arrive within microseconds.
const PATIENCE: Duration = Duration::from_secs(2);
const MESSAGE: &[u8] = b"as many as these";

/// `Ok`: short-circuits are safe as far as is known.
///
/// # Errors
///
/// What is wrong with them here.
pub fn short_circuit(ebpf: &mut Ebpf) -> Result<(), String> {
    run(ebpf).map_err(|error| format!("the self-test of short-circuits could not be run: {error}"))?
}

fn run(ebpf: &mut Ebpf) -> io::Result<Result<(), String>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut inside = TcpStream::connect(listener.local_addr()?)?;
    let (mut outside, _) = listener.accept()?;
    let key = tuple(inside.local_addr()?, inside.peer_addr()?);
    let map = ebpf
        .map_mut("weft_tx")
        .ok_or_else(|| io::Error::other("no map weft_tx"))?;
    let mut map = SockHash::<_, Tuple>::try_from(map).map_err(io::Error::other)?;
    map.insert(key, inside.try_clone()?, 0).map_err(io::Error::other)?;
    inside.set_read_timeout(Some(PATIENCE))?;
    outside.set_read_timeout(Some(PATIENCE))?;

    outside.write_all(MESSAGE)?;
    let mut first = [0; 1];
    inside.read_exact(&mut first)?;
    let unread = sys::unread(&inside)?;
    let mut rest = vec![0; MESSAGE.len() - 1];
    inside.read_exact(&mut rest)?;
    if first[..] != MESSAGE[..1] || rest != MESSAGE[1..] {
        return Ok(Err("bytes arrive changed at a socket in a sockmap".to_owned()));
    }
    if unread != rest.len() {
        return Ok(Err(format!(
            "a socket in a sockmap says that {unread} bytes are unread where {} are (FIONREAD): programs that ask, nginx \
             for one, stall on large uploads",
            rest.len()
        )));
    }
    // What it sends with nobody to hand it to must go through TCP.
    inside.write_all(MESSAGE)?;
    let mut back = vec![0; MESSAGE.len()];
    outside.read_exact(&mut back)?;
    Ok(if back == MESSAGE {
        Ok(())
    } else {
        Err("bytes leave changed from a socket in a sockmap".to_owned())
    })
}

/// A key that no connection has: its namespace is none.
fn tuple(local: SocketAddr, remote: SocketAddr) -> Tuple {
    let key = |address: SocketAddr| -> (Addr, u16) { (addr(address.ip()), address.port().to_be()) };
    let ((local, local_port_be), (remote, remote_port_be)) = (key(local), key(remote));
    Tuple {
        local,
        remote,
        local_port_be,
        remote_port_be,
        netns: 0,
    }
}
