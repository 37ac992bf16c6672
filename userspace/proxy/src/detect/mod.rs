//! What a connection speaks, from its first bytes.
//!
//! [`judge`] is pure and looks at a prefix; [`detect`] reads until it knows or until waiting longer would hurt. What
//! was read is given back and replayed, never peeked at (see `io`).

mod judge;

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

pub use judge::{Judgement, Spoken, judge};

use crate::limits::{DETECT_BYTES, HEADER_READ_TIMEOUT};

/// How a silent or hesitating client is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// The port is known to be HTTP: the client speaks first, so wait that long for it to begin.
    Http(Duration),
    /// Nobody said: after that long it is a protocol in which the server speaks first, or one we do not know.
    Unknown(Duration),
}

/// What was found.
#[derive(Debug)]
pub enum Found {
    Spoke(Spoken, Bytes),
    /// The client closed, or said nothing on a port where it must begin.
    Nothing,
}

/// Reads from `stream` until it is clear what it speaks.
///
/// # Errors
/// The client reset the connection.
pub async fn detect(stream: &mut (impl AsyncRead + Unpin), patience: Patience) -> io::Result<Found> {
    let mut read = BytesMut::with_capacity(DETECT_BYTES);
    let (first, rest, declared) = match patience {
        Patience::Http(limit) => (limit, HEADER_READ_TIMEOUT, true),
        Patience::Unknown(limit) => (limit, limit, false),
    };
    match timeout(first, stream.read_buf(&mut read)).await {
        // Whoever has nothing to say may still want to hear what the server says.
        Ok(Ok(0)) if !declared => return Ok(Found::Spoke(Spoken::Opaque, Bytes::new())),
        Ok(Ok(0)) => return Ok(Found::Nothing),
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(error),
        Err(_elapsed) if declared => return Ok(Found::Nothing),
        Err(_elapsed) => return Ok(Found::Spoke(Spoken::Opaque, Bytes::new())),
    }
    let decided = timeout(rest, read_until_clear(stream, &mut read)).await;
    match decided {
        Ok(Ok(Some(spoken))) => Ok(Found::Spoke(spoken, read.freeze())),
        // The client said all it had to say (it may still be waiting for an answer), or takes its time.
        Ok(Ok(None)) | Err(_) => Ok(Found::Spoke(at_deadline(&read), read.freeze())),
        Ok(Err(error)) => Err(error),
    }
}

/// `None`: the client closed its side before it was clear.
async fn read_until_clear(stream: &mut (impl AsyncRead + Unpin), read: &mut BytesMut) -> io::Result<Option<Spoken>> {
    loop {
        if let Judgement::Clear(spoken) = judge(read) {
            return Ok(Some(spoken));
        }
        if stream.read_buf(read).await? == 0 {
            return Ok(None);
        }
    }
}

/// The best guess when no more is to come.
fn at_deadline(read: &[u8]) -> Spoken {
    match judge(read) {
        Judgement::Clear(spoken) | Judgement::Unclear { best: spoken } => spoken,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn silence_on_an_undeclared_port_is_opaque() {
        let (_client, mut server) = duplex(64);
        let found = detect(&mut server, Patience::Unknown(LIMIT)).await.unwrap();
        assert!(matches!(found, Found::Spoke(Spoken::Opaque, read) if read.is_empty()));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_on_a_declared_port_is_nothing() {
        let (_client, mut server) = duplex(64);
        assert!(matches!(
            detect(&mut server, Patience::Http(LIMIT)).await.unwrap(),
            Found::Nothing
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_line_byte_by_byte_is_http() {
        let (mut client, mut server) = duplex(64);
        let line = b"GET /a HTTP/1.1\r\n";
        let write = async {
            for byte in line {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (found, ()) = tokio::join!(detect(&mut server, Patience::Unknown(LIMIT)), write);
        assert!(matches!(found.unwrap(), Found::Spoke(Spoken::Http1, read) if line.starts_with(&read)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_stops_in_the_middle_is_decided_at_the_deadline() {
        let (mut client, mut server) = duplex(64);
        client.write_all(b"GET /slow").await.unwrap();
        let found = detect(&mut server, Patience::Unknown(LIMIT)).await.unwrap();
        assert!(matches!(found, Found::Spoke(Spoken::Http1, read) if &read[..] == b"GET /slow"));
    }
}
