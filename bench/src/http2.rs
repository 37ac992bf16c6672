//! HTTP/2 with prior knowledge, and gRPC over it: several requests at a time on each connection.
//!
//! Every stream takes the next request and waits until it is due; a request that is due while all are busy is late, and its
//! latency counts from then all the same. The runtime's timers are of a millisecond: what is due within one goes together, and a
//! latency may be one longer. What this is for is CPU a request.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    runtime,
    task::{self, JoinSet, LocalSet},
    time,
};

use crate::{
    load::GRACE,
    tally::{Outcome, Tally},
};

pub struct Load {
    pub target: SocketAddr,
    pub request: Request<Full<Bytes>>,
    /// Answers end with `grpc-status`, which must be 0.
    pub grpc: bool,
    /// A second; `None`: closed loop.
    pub rate: Option<f64>,
    pub connections: usize,
    /// Requests at a time on each connection.
    pub streams: usize,
    pub warm_up: Duration,
    pub counted: Duration,
    pub status: u16,
    pub body: Option<Vec<u8>>,
}

struct Run {
    load: Load,
    begin: Instant,
    /// Requests that streams have taken.
    taken: Cell<u64>,
    tally: RefCell<Tally>,
}

struct Answer {
    status: u16,
    body: Bytes,
    /// `grpc-status`.
    grpc: Option<String>,
}

/// A message of so many bytes (`google.protobuf.BytesValue`) as gRPC frames it: not compressed, its length, itself.
pub fn framed(bytes: usize) -> Result<Bytes> {
    let message = prost::Message::encode_to_vec(&vec![b'x'; bytes]);
    let length = u32::try_from(message.len()).context("a message is to be shorter")?;
    Ok([&[0_u8][..], &length.to_be_bytes(), &message].concat().into())
}

// === impl Load ===

impl Load {
    /// # Errors
    /// The target cannot be reached, or does not speak HTTP/2.
    pub fn run(self) -> Result<Outcome> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        LocalSet::new().block_on(&runtime.context("start a runtime")?, self.drive())
    }

    async fn drive(self) -> Result<Outcome> {
        let mut senders = Vec::with_capacity(self.connections);
        for _ in 0..self.connections {
            senders.push(connect(self.target).await?);
        }
        let (begin, counted, streams) = (Instant::now(), self.counted, self.streams);
        let tally = Tally::new(begin + self.warm_up, self.status, self.body.clone())?;
        let run = Rc::new(Run {
            load: self,
            begin,
            taken: Cell::new(0),
            tally: RefCell::new(tally),
        });
        let mut running = JoinSet::new();
        for sender in senders {
            for _ in 0..streams {
                running.spawn_local(stream(Rc::clone(&run), sender.clone()));
            }
        }
        let end = time::Instant::from_std(run.end() + GRACE);
        while let Ok(Some(ended)) = time::timeout_at(end, running.join_next()).await {
            ended.context("a stream")?;
        }
        let unanswered = running.len() as u64 + run.untaken();
        running.shutdown().await;
        let run = Rc::into_inner(run).context("a stream that has not ended")?;
        let mut tally = run.tally.into_inner();
        if unanswered > 0 {
            tally.failed(unanswered, || format!("{unanswered} requests without an answer"));
        }
        Ok(tally.finish(counted))
    }
}

// === impl Run ===

impl Run {
    fn end(&self) -> Instant {
        self.begin + self.load.warm_up + self.load.counted
    }

    /// When the next request is due; `None`: none is any more.
    fn take(&self) -> Option<Instant> {
        let taken = self.taken.get();
        let due = match self.load.rate {
            Some(rate) => self.begin + Duration::from_secs_f64(taken as f64 / rate),
            None => Instant::now(),
        };
        (due < self.end()).then(|| {
            self.taken.set(taken + 1);
            due
        })
    }

    /// Requests of an open loop that no stream came to.
    fn untaken(&self) -> u64 {
        let mut untaken = 0;
        while self.load.rate.is_some() && self.take().is_some() {
            untaken += 1;
        }
        untaken
    }

    async fn exchange(&self, sender: &mut SendRequest<Full<Bytes>>) -> Result<Answer> {
        sender.ready().await.context("wait for the connection")?;
        let response = sender.send_request(self.load.request.clone()).await.context("send")?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.context("receive")?;
        // An answer without a body has it in its only headers.
        let grpc = body.trailers().and_then(grpc_status).or(grpc_status(&head.headers));
        Ok(Answer {
            status: head.status.as_u16(),
            body: body.to_bytes(),
            grpc,
        })
    }

    fn judge(&self, due: Instant, answer: &Answer) {
        let mut tally = self.tally.borrow_mut();
        if self.load.grpc && answer.grpc.as_deref() != Some("0") {
            tally.wrong(due, || format!("grpc-status {:?}", answer.grpc));
        } else {
            tally.answered(due, answer.status, &answer.body);
        }
    }
}

/// One request after the other, until none is due any more or one fails: a load with a failure is worth nothing.
async fn stream(run: Rc<Run>, mut sender: SendRequest<Full<Bytes>>) {
    while let Some(due) = run.take() {
        time::sleep_until(time::Instant::from_std(due)).await;
        match run.exchange(&mut sender).await {
            Ok(answer) => run.judge(due, &answer),
            Err(error) => {
                run.tally.borrow_mut().failed(1, || format!("{error:#}"));
                return;
            }
        }
    }
}

async fn connect(target: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(target)
        .await
        .with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.with_context(|| format!("speak HTTP/2 to {target}"))?;
    task::spawn_local(async move {
        // How it ended, its requests tell.
        let _ = connection.await;
    });
    Ok(sender)
}

fn grpc_status(headers: &HeaderMap) -> Option<String> {
    headers.get("grpc-status")?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_framed_as_grpc_frames_it() {
        // Field 1, three bytes.
        let expected = [&[0, 0, 0, 0, 5, 0x0a, 3][..], b"xxx"].concat();
        assert_eq!(framed(3).unwrap(), expected);
    }
}
