//! Messages with descriptors over a unix socket: one JSON line each, descriptors beside its first bytes.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::UnixStream,
    time::timeout,
};

/// Descriptors beside one message; the kernel allows 253 (SCM_MAX_FD).
pub const MAX_DESCRIPTORS: usize = 128;
/// A longer line is not from a daemon.
const MAX_LINE_BYTES: usize = 8 << 20;
const CHUNK: usize = 64 * 1024;

/// One end.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

// === impl Channel ===

impl Channel {
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            bytes: Vec::new(),
            descriptors: VecDeque::new(),
        }
    }

    /// The process at the other end, as the kernel knows it; `None`: not of our process number namespace.
    pub fn peer_pid(&self) -> Option<i32> {
        self.stream.peer_cred().ok()?.pid().filter(|pid| *pid > 0)
    }

    /// Sends a message; returns when the socket has taken it.
    ///
    /// # Errors
    ///
    /// The other end is gone, or does not read for `patience`.
    pub async fn send(
        &mut self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let written = async {
            let first = self
                .stream
                .async_io(Interest::WRITABLE, || send_with(&self.stream, &line, descriptors))
                .await?;
            self.stream.write_all(&line[first..]).await
        };
        timeout(patience, written).await.map_err(io::Error::from)?
    }

    /// The next message; `None` at the end.
    ///
    /// # Errors
    ///
    /// It is no message, or none came for `patience`.
    pub async fn receive<T: DeserializeOwned>(&mut self, patience: Duration) -> io::Result<Option<T>> {
        timeout(patience, self.next()).await.map_err(io::Error::from)?
    }

    /// The same without a bound.
    ///
    /// # Cancel safety
    ///
    /// Loses nothing.
    pub async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.bytes[searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=searched + end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            searched = self.bytes.len();
            if searched > MAX_LINE_BYTES {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a message without end"));
            }
            let (stream, bytes, descriptors) = (&self.stream, &mut self.bytes, &mut self.descriptors);
            let count = stream
                .async_io(Interest::READABLE, || receive_with(stream, bytes, descriptors))
                .await?;
            if count == 0 {
                return if searched == 0 {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// The next `count` descriptors that came; they are here before their message is.
    ///
    /// # Errors
    ///
    /// There are not so many.
    pub fn descriptors(&mut self, count: usize) -> io::Result<Vec<OwnedFd>> {
        if count > self.descriptors.len() {
            let text = format!("{count} descriptors were announced, {} came", self.descriptors.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(self.descriptors.drain(..count).collect())
    }
}

impl Channel {
    /// Says that nothing more comes, and waits until the other end is gone too, for at most `patience`.
    pub async fn hang_up(mut self, patience: Duration) {
        let _ = self.stream.shutdown().await;
        let mut rest = [0; 1024];
        let gone = async { while matches!(self.stream.read(&mut rest).await, Ok(1..)) {} };
        if timeout(patience, gone).await.is_err() {
            tracing::warn!("the other end of a hand-over does not hang up");
        }
    }
}

fn send_with(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors in a message",
        ));
    }
    Ok(sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

fn receive_with(stream: &UnixStream, bytes: &mut Vec<u8>, descriptors: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    let mut chunk = [0; CHUNK];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut chunk)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        // The limit of open files, for one.
        return Err(io::Error::other("the kernel could not deliver all descriptors"));
    }
    bytes.extend_from_slice(&chunk[..received.bytes]);
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Seek as _, Write as _},
        os::fd::AsFd as _,
    };

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn pair() -> (Channel, Channel) {
        let (one, other) = UnixStream::pair().expect("a pair");
        (Channel::new(one), Channel::new(other))
    }

    #[tokio::test]
    async fn descriptors_arrive_with_their_message_however_long() {
        let (mut from, mut to) = pair();
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"passed").expect("written");
        // Larger than the socket's buffer: the sender has to wait for the reader.
        let long = "x".repeat(1 << 20);
        let sent = async {
            from.send(&long, &[file.as_fd(), file.as_fd()], SOON).await?;
            from.send(&"second", &[], SOON).await
        };
        let received = async {
            let first: Option<String> = to.receive(SOON).await?;
            let second: Option<String> = to.receive(SOON).await?;
            io::Result::Ok((first, second))
        };
        let (sent, received) = tokio::join!(sent, received);
        sent.expect("sent");
        let (first, second) = received.expect("received");
        assert_eq!(
            (first.expect("one").len(), second.as_deref()),
            (1 << 20, Some("second"))
        );
        let descriptors = to.descriptors(2).expect("both");
        let mut same = File::from(descriptors.into_iter().next().expect("two"));
        let mut text = String::new();
        same.rewind().expect("a file");
        same.read_to_string(&mut text).expect("text");
        assert_eq!(text, "passed");
        assert!(to.descriptors(1).is_err());
    }

    #[tokio::test]
    async fn an_end_within_a_message_and_a_silent_peer_are_errors() {
        let (mut from, mut to) = pair();
        let silent = to
            .receive::<String>(Duration::from_millis(10))
            .await
            .expect_err("nothing");
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
        from.stream.write_all(b"\"half").await.expect("written");
        drop(from);
        let broken = to.receive::<String>(SOON).await.expect_err("half");
        assert_eq!(broken.kind(), io::ErrorKind::UnexpectedEof);
        let (from, mut to) = pair();
        drop(from);
        assert!(to.receive::<String>(SOON).await.expect("an end").is_none());
    }
}
