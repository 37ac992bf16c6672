//! A UDP socket that knows which of its addresses a datagram came to, and answers from just that one.
//!
//! A client whose query was redirected sees the answer come from where the kernel says it should; an answer from another
//! address would be dropped. Bound to 0.0.0.0 a socket would choose the source by itself, hence `IP_PKTINFO` both ways.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
};

use nix::{
    cmsg_space,
    libc::{in_addr, in_pktinfo},
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
        sockopt::Ipv4PacketInfo,
    },
};
use tokio::{io::Interest, net::UdpSocket};

#[derive(Debug)]
pub(super) struct Udp {
    socket: UdpSocket,
    local: SocketAddr,
}

/// One datagram's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    pub client: SocketAddr,
    /// Our address it came to.
    pub local: IpAddr,
}

// === impl Udp ===

impl Udp {
    /// Takes a bound, non-blocking socket.
    pub fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let local = socket.local_addr()?;
        if local.is_ipv4() {
            setsockopt(&socket, Ipv4PacketInfo, &true)?;
        }
        Ok(Self {
            socket: UdpSocket::from_std(socket)?,
            local,
        })
    }

    #[cfg(test)]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Receives one datagram; what does not fit into the buffer is cut off.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<(usize, Path)> {
        if self.local.is_ipv6() {
            let (size, client) = self.socket.recv_from(buffer).await?;
            return Ok((
                size,
                Path {
                    client,
                    local: self.local.ip(),
                },
            ));
        }
        self.socket.async_io(Interest::READABLE, || self.recv_v4(buffer)).await
    }

    pub async fn send(&self, bytes: &[u8], path: Path) -> io::Result<()> {
        match (path.client, path.local) {
            (SocketAddr::V4(client), IpAddr::V4(local)) => {
                self.socket
                    .async_io(Interest::WRITABLE, || self.send_v4(bytes, client, local))
                    .await
            }
            _ => self.socket.send_to(bytes, path.client).await.map(drop),
        }
    }

    fn recv_v4(&self, buffer: &mut [u8]) -> io::Result<(usize, Path)> {
        let mut control = cmsg_space!(in_pktinfo);
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrIn>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let local = message.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr))),
            _ => None,
        });
        let missing = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let client = message.address.ok_or_else(|| missing("a datagram without sender"))?;
        let local = local.ok_or_else(|| missing("a datagram without IP_PKTINFO"))?;
        Ok((
            message.bytes,
            Path {
                client: SocketAddrV4::from(client).into(),
                local: local.into(),
            },
        ))
    }

    fn send_v4(&self, bytes: &[u8], client: SocketAddrV4, local: Ipv4Addr) -> io::Result<()> {
        let info = in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: in_addr {
                s_addr: u32::from(local).to_be(),
            },
            ipi_addr: in_addr { s_addr: 0 },
        };
        sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &[ControlMessage::Ipv4PacketInfo(&info)],
            MsgFlags::MSG_DONTWAIT,
            Some(&SockaddrIn::from(client)),
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_comes_from_the_address_that_was_asked() {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let server = Udp::new(socket).unwrap();
        for local in [[127, 0, 0, 1], [127, 53, 1, 2]] {
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client
                .connect((Ipv4Addr::from(local), server.local().port()))
                .await
                .unwrap();
            client.send(b"ping").await.unwrap();
            let mut buffer = [0; 16];
            let (size, path) = server.recv(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..size], path.local), (&b"ping"[..], IpAddr::from(local)));
            assert_eq!(path.client, client.local_addr().unwrap());
            server.send(b"pong", path).await.unwrap();
            // A connected socket takes it only from the address it asked.
            assert_eq!(client.recv(&mut buffer).await.unwrap(), 4);
        }
    }
}
