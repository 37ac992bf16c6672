//! Questions in datagrams. Answers leave from the address that was asked.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsRawFd as _,
    sync::Arc,
};

use nix::{
    cmsg_space,
    libc::{in_addr, in_pktinfo},
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg},
};
use tokio::{io::Interest, net::UdpSocket};

use super::{MAX_UDP, Server, Transport};

/// Where a datagram came from and which of our addresses it was sent to.
struct Received {
    from: SocketAddr,
    asked: IpAddr,
    length: usize,
}

/// Serves until it is dropped.
pub async fn serve(server: Arc<Server>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; MAX_UDP];
    loop {
        let received = match receive(&socket, &mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // An ICMP error of an earlier answer shows here; it says nothing about the next question.
                tracing::debug!(%error, "DNS over UDP");
                tokio::task::yield_now().await;
                continue;
            }
        };
        if !received.asked.to_canonical().is_loopback() {
            continue;
        }
        let (server, socket) = (Arc::clone(&server), Arc::clone(&socket));
        let question = buffer[..received.length].to_vec();
        tokio::spawn(async move {
            if let Some(answer) = server.answer(&question, received.asked, Transport::Udp).await
                && let Err(error) = send(&socket, &answer, &received).await
            {
                tracing::debug!(%error, to = %received.from, "DNS answer not sent");
            }
        });
    }
}

async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Received> {
    socket
        .async_io(Interest::READABLE, || {
            let mut control = cmsg_space!(in_pktinfo);
            let mut slices = [IoSliceMut::new(buffer)];
            let message = recvmsg::<SockaddrStorage>(
                socket.as_raw_fd(),
                &mut slices,
                Some(&mut control),
                MsgFlags::MSG_DONTWAIT,
            )?;
            let from = message.address.as_ref().and_then(to_std).ok_or(io::ErrorKind::InvalidData)?;
            let asked = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr))))
                }
                _ => None,
            });
            // IPv6 is bound to ::1 alone and needs no such word.
            let asked = asked.unwrap_or(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST));
            Ok(Received { from, asked, length: message.bytes })
        })
        .await
}

async fn send(socket: &UdpSocket, answer: &[u8], to: &Received) -> io::Result<()> {
    let IpAddr::V4(source) = to.asked else {
        return socket.send_to(answer, to.from).await.map(drop);
    };
    let info = in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: in_addr { s_addr: u32::from(source).to_be() },
        ipi_addr: in_addr { s_addr: 0 },
    };
    socket
        .async_io(Interest::WRITABLE, || {
            let address = SockaddrStorage::from(to.from);
            sendmsg(
                socket.as_raw_fd(),
                &[IoSlice::new(answer)],
                &[ControlMessage::Ipv4PacketInfo(&info)],
                MsgFlags::MSG_DONTWAIT,
                Some(&address),
            )?;
            Ok(())
        })
        .await
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port()))))
}
