//! Questions and answers on a UDP socket, connected or not.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use vm_test::{pattern::Pattern, soak::Outcome};

use super::{Round, Stream, failure, session::Kept};

pub struct Echo<const CONNECTED: bool> {
    socket: UdpSocket,
    /// Of this socket, so that no two datagrams of it are alike.
    sent: Pattern,
}

// === impl Echo ===

impl<const CONNECTED: bool> Kept for Echo<CONNECTED> {
    const CONNECTS: bool = false;

    fn open(stream: &mut Stream<'_>) -> Result<Self, Outcome> {
        let target = stream.flow.target;
        let any: SocketAddr = match target {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).map_err(failure)?;
        if CONNECTED {
            socket.connect(target).map_err(failure)?;
        }
        socket.set_read_timeout(Some(stream.patience())).map_err(failure)?;
        Ok(Self {
            socket,
            sent: Pattern::default(),
        })
    }

    fn round(&mut self, stream: &mut Stream<'_>) -> Round {
        let size = stream.size();
        let mut question = vec![0; usize::try_from(size).unwrap_or(1)];
        self.sent.fill(&mut question);
        let mut answer = vec![0; question.len() + 1];
        let read = if CONNECTED {
            self.socket.send(&question).map_err(failure)?;
            self.socket.recv(&mut answer).map_err(failure)?
        } else {
            let target = stream.flow.target;
            self.socket.send_to(&question, target).map_err(failure)?;
            let (read, from) = self.socket.recv_from(&mut answer).map_err(failure)?;
            if (from.ip(), from.port()) != (target.ip(), target.port()) {
                return Err(Outcome::Wrong(0));
            }
            read
        };
        if answer[..read] == question {
            return Ok(size);
        }
        let same = answer
            .iter()
            .zip(&question)
            .take_while(|(found, sent)| found == sent)
            .count();
        Err(Outcome::Wrong(same as u64))
    }

    fn idle(&mut self, pause: Duration) -> Result<(), Outcome> {
        thread::sleep(pause);
        Ok(())
    }
}
