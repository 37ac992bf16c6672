//! Unary gRPC calls to one server, in HTTP/2, over a connection that each thread keeps.
//!
//! Written on hyper because that is here already: what a client of unary calls needs of gRPC is a frame of five bytes and
//! two trailers (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use std::{fmt, io, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header, uri::PathAndQuery};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::timeout,
};

use crate::{
    dial::Dialer,
    per_thread::{CONNECT_WAIT, PerThread},
};

/// Largest answer, in bytes, as gRPC's libraries have it.
pub const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// How often a connection is asked for a sign of life. One that gives none within [`PING_WAIT`] is given up, so that a
/// server that vanished without a word costs that long, and not as long as TCP would wait.
pub const PING_EVERY: Duration = Duration::from_secs(10);

/// See [`PING_EVERY`].
pub const PING_WAIT: Duration = Duration::from_secs(5);

/// In front of each message: compressed or not, and its length.
pub(crate) const FRAME: usize = 5;

/// A server that is called, by all threads.
pub struct Channel {
    server: Dialer,
    /// The lock is held while a thread's connection is made: its other calls then wait for that one.
    connections: PerThread<Mutex<Option<Sender>>>,
}

type Sender = SendRequest<Full<Bytes>>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("connect: {0}")]
    Connect(io::Error),
    #[error("the connection failed: {0}")]
    Exchange(hyper::Error),
    #[error("the server answered {0}, expected 200")]
    Http(StatusCode),
    #[error("the server answered gRPC status {code}: {message}")]
    Status { code: u16, message: String },
    #[error("the answer is malformed: {0}")]
    Malformed(String),
}

// === impl Channel ===

impl Channel {
    /// Connects when it is first called.
    pub fn new(server: Dialer) -> Self {
        Self {
            server,
            connections: PerThread::default(),
        }
    }

    /// Calls `method`, like `/package.Service/Method`, with headers beside gRPC's own. A connection that turns out to be
    /// broken is replaced, and the call repeated once: only for calls that may arrive twice.
    ///
    /// # Errors
    /// [`CallError`].
    ///
    /// # Cancel safety
    /// The call is reset; the connection stays.
    pub async fn call<A: Message + Default>(
        &self,
        method: &'static str,
        headers: &HeaderMap,
        message: &impl Message,
        deadline: Duration,
    ) -> Result<A, CallError> {
        let frame = frame(message);
        let calling = async {
            let (sender, reused) = self.sender(deadline).await?;
            match self.exchange(sender, method, headers, frame.clone(), deadline).await {
                Err(CallError::Exchange(_)) if reused => {
                    let (sender, _) = self.sender(deadline).await?;
                    self.exchange(sender, method, headers, frame, deadline).await
                }
                answer => answer,
            }
        };
        let answer = timeout(deadline, calling)
            .await
            .unwrap_or(Err(CallError::Timeout(deadline)))?;
        A::decode(answer).map_err(|error| CallError::Malformed(error.to_string()))
    }

    /// This thread's connection, and whether it was there before. One attempt serves all calls that wait, and goes on
    /// when the one that began it is given up.
    async fn sender(&self, deadline: Duration) -> Result<(Sender, bool), CallError> {
        let place = self.connections.get_or(Mutex::default).lock_owned().await;
        if let Some(sender) = place.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok((sender.clone(), true));
        }
        let connecting = tokio::spawn(connect(self.server.clone(), place, deadline.max(CONNECT_WAIT)));
        let sender = connecting
            .await
            .map_err(|error| CallError::Connect(io::Error::other(error)))??;
        Ok((sender, false))
    }

    /// One exchange; the message in the answer.
    async fn exchange(
        &self,
        mut sender: Sender,
        method: &'static str,
        headers: &HeaderMap,
        frame: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let mut request = Request::post(self.uri(method)?);
        if let Some(own) = request.headers_mut() {
            own.extend(headers.clone());
            own.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            own.insert(header::TE, HeaderValue::from_static("trailers"));
            if let Ok(value) = HeaderValue::try_from(format!("{}m", deadline.as_millis().max(1))) {
                own.insert("grpc-timeout", value);
            }
        }
        let request = request
            .body(Full::new(frame))
            .map_err(|error| CallError::Malformed(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(CallError::Exchange)?;
        if response.status() != StatusCode::OK {
            return Err(CallError::Http(response.status()));
        }
        // A status among the headers means that there is nothing else.
        if let Some(status) = status(response.headers()) {
            status?;
        }
        let body = match Limited::new(response.into_body(), MAX_ANSWER + FRAME).collect().await {
            Ok(body) => body,
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(error) => return Err(CallError::Exchange(*error)),
                Err(error) => return Err(CallError::Malformed(error.to_string())),
            },
        };
        body.trailers()
            .and_then(status)
            .ok_or_else(|| CallError::Malformed("it has no grpc-status".to_owned()))??;
        unframe(body.to_bytes())
    }

    fn uri(&self, method: &'static str) -> Result<Uri, CallError> {
        Uri::builder()
            .scheme(self.server.scheme())
            .authority(self.server.address.to_string())
            .path_and_query(PathAndQuery::from_static(method))
            .build()
            .map_err(|error| CallError::Malformed(error.to_string()))
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// Connects, and puts the connection into its place, which stays locked meanwhile.
async fn connect(
    server: Dialer,
    mut place: OwnedMutexGuard<Option<Sender>>,
    wait: Duration,
) -> Result<Sender, CallError> {
    let connecting = async {
        let stream = server.connect().await.map_err(CallError::Connect)?;
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WAIT)
            .keep_alive_while_idle(true)
            .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(CallError::Exchange)
    };
    let (sender, driver) = timeout(wait, connecting)
        .await
        .unwrap_or(Err(CallError::Timeout(wait)))?;
    // Ends with the last sender, or the connection. What went wrong those learn whose calls it was.
    tokio::spawn(async move { _ = driver.await });
    *place = Some(sender.clone());
    Ok(sender)
}

fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(FRAME + length);
    frame.put_u8(0);
    // Beyond 4 GiB the server would see a broken frame; messages here are some kilobytes.
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // A buffer that grows has room.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

/// The one message that an answer is.
pub(crate) fn unframe(mut body: Bytes) -> Result<Bytes, CallError> {
    if body.len() < FRAME {
        return Err(CallError::Malformed("it has no message".to_owned()));
    }
    let (compressed, length) = (body.get_u8(), body.get_u32() as usize);
    match (compressed, body.len().checked_sub(length)) {
        (0, Some(0)) => Ok(body),
        (0, _) => Err(CallError::Malformed(format!(
            "a message of {length} bytes in {} bytes",
            body.len()
        ))),
        _ => Err(CallError::Malformed(
            "it is compressed, which nobody asked for".to_owned(),
        )),
    }
}

/// What the headers or trailers say; `None`: nothing.
fn status(headers: &HeaderMap) -> Option<Result<(), CallError>> {
    let code = headers.get("grpc-status")?;
    let code = code.to_str().ok().and_then(|code| code.parse().ok());
    Some(match code {
        Some(0) => Ok(()),
        Some(code) => {
            let message = headers.get("grpc-message").map(HeaderValue::as_bytes);
            let message = String::from_utf8_lossy(message.unwrap_or_default()).into_owned();
            Err(CallError::Status { code, message })
        }
        None => Err(CallError::Malformed("its grpc-status is no number".to_owned())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_frames_are_refused() {
        for body in [
            &b""[..],
            &[0, 0, 0, 0],
            &[0, 0, 0, 0, 2, 1],
            &[0, 0, 0, 0, 1, 1, 1],
            &[1, 0, 0, 0, 0],
            &[0, 255, 255, 255, 255],
        ] {
            assert!(unframe(Bytes::copy_from_slice(body)).is_err(), "{body:?}");
        }
        assert_eq!(unframe(Bytes::from_static(&[0, 0, 0, 0, 1, 7])).unwrap(), &[7][..]);
    }
}
