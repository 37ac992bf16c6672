use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{client, rt::Executor, server, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::UnixStream,
    task::{LocalSet, yield_now},
    time::timeout,
};

use super::*;

/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs hyper's tasks on this thread.
#[derive(Clone)]
struct LocalExec;

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// A stream that counts the calls that write to it.
struct Counted<S> {
    stream: S,
    writes: Rc<Cell<usize>>,
}

impl<S> Counted<S> {
    fn new(stream: S) -> (Self, Rc<Cell<usize>>) {
        let writes = Rc::<Cell<usize>>::default();
        let counts = Rc::clone(&writes);
        (Self { stream, writes }, counts)
    }

    fn count<T>(&self, written: Poll<T>) -> Poll<T> {
        self.writes.set(self.writes.get() + usize::from(written.is_ready()));
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A well-known sequence without a pattern (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

fn write<S: AsyncWrite + Unpin>(gather: &mut Gather<S>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    Pin::new(gather).poll_write(cx, bytes)
}

fn holds<S>(gather: &Gather<S>) -> (usize, usize) {
    let gathering = gather.0.borrow();
    (gathering.left(), gathering.held.capacity())
}

#[tokio::test]
async fn one_turn_is_one_write() {
    let (near, mut far) = duplex(1024);
    let (near, writes) = Counted::new(near);
    let (mut gather, outlet) = gather(near);
    let turn = outlet.drive(poll_fn(|cx| {
        for piece in ["head ", "data ", "trailers"] {
            assert!(matches!(write(&mut gather, cx, piece.as_bytes()), Poll::Ready(Ok(count)) if count == piece.len()));
            assert!(matches!(Pin::new(&mut gather).poll_flush(cx), Poll::Ready(Ok(()))));
        }
        assert_eq!(writes.get(), 0);
        Poll::Ready(())
    }));
    turn.await;
    assert_eq!(writes.get(), 1);
    assert_eq!(holds(&gather), (0, 0), "no buffer where nothing is left");
    drop(gather);
    let mut read = String::new();
    far.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "head data trailers");
}

/// Of h2, in hyper's server: answers of one turn go out together, whatever their number.
#[tokio::test]
async fn answers_of_one_turn_are_one_write() {
    const STREAMS: usize = 20;
    let all = async {
        let (near, far) = UnixStream::pair().unwrap();
        let (near, writes) = Counted::new(near);
        let (near, outlet) = gather(near);
        let service =
            service_fn(|_| async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![b'x'; 1024])))) });
        let mut served =
            pin!(server::conn::http2::Builder::new(LocalExec).serve_connection(TokioIo::new(near), service));
        let turns = Cell::new(0);
        let served = outlet.drive(poll_fn(|cx| {
            turns.set(turns.get() + 1);
            served.as_mut().poll(cx)
        }));
        let asking = async {
            let io = TokioIo::new(far);
            let (mut sender, connection) = client::conn::http2::handshake(LocalExec, io).await.unwrap();
            tokio::task::spawn_local(connection);
            let asked: Vec<_> = (0..STREAMS)
                .map(|_| sender.send_request(Request::get("http://web/").body(Full::<Bytes>::default()).unwrap()))
                .collect();
            for answer in asked {
                let body = answer.await.unwrap().into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, vec![b'x'; 1024]);
            }
        };
        tokio::select! {
            _ = served => panic!("it ended"),
            () = asking => {}
        }
        let (writes, turns) = (writes.get(), turns.get());
        assert!(writes <= turns, "{writes} writes in {turns} turns");
        assert!(writes < STREAMS, "{writes} writes for {STREAMS} answers");
    };
    timeout(PATIENCE, LocalSet::new().run_until(all)).await.unwrap();
}

/// Pieces of all sizes, some of them in several slices, over a socket with small buffers to a reader that takes its time.
#[tokio::test]
async fn every_byte_arrives_in_order_whatever_the_pieces_and_however_slow_the_reader() {
    const LENGTH: usize = 4 << 20;
    for seed in 1..=4 {
        let sent = pattern(LENGTH);
        let (near, mut far) = UnixStream::pair().unwrap();
        let (mut gather, outlet) = gather(near);
        let (mut numbers, mut at) = (Numbers(seed), 0);
        let mut most = 0;
        let writing = outlet.drive(poll_fn(|cx| {
            for _ in 0..numbers.below(20) {
                let limit = [100, 2_000, 20_000, 200_000][numbers.below(4)];
                let rest = &sent[at..];
                let piece = &rest[..rest.len().min(1 + numbers.below(limit))];
                let (one, other) = piece.split_at(numbers.below(piece.len() + 1));
                let bufs = [IoSlice::new(one), IoSlice::new(other)];
                match Pin::new(&mut gather).poll_write_vectored(cx, &bufs) {
                    Poll::Ready(count) => at += count.unwrap(),
                    Poll::Pending => return Poll::Pending,
                }
                most = most.max(holds(&gather).0);
                if at == sent.len() {
                    return Pin::new(&mut gather).poll_shutdown(cx);
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }));
        let reading = async {
            let (mut numbers, mut read, mut buffer) = (Numbers(seed + 100), Vec::new(), vec![0; 50_000]);
            loop {
                let size = 1 + numbers.below(buffer.len());
                let count = far.read(&mut buffer[..size]).await.unwrap();
                if count == 0 {
                    return read;
                }
                read.extend_from_slice(&buffer[..count]);
                for _ in 0..numbers.below(3) {
                    yield_now().await;
                }
            }
        };
        let (written, read) = timeout(PATIENCE, async { tokio::join!(writing, reading) })
            .await
            .unwrap();
        written.unwrap();
        assert!(read == sent, "seed {seed}");
        assert!(most <= GATHER_BUFFER, "seed {seed}: {most} bytes held");
    }
}

/// Whoever writes waits when the buffer is full, and is woken when the reader has made room.
#[tokio::test]
async fn no_more_is_held_than_the_limit() {
    const PIECE: usize = 1000;
    const ROOM: usize = 10;
    let (near, mut far) = duplex(ROOM);
    let (mut gather, outlet) = gather(near);
    let accepted = Cell::new(0);
    let filled = Cell::new(false);
    let mut writing = pin!(outlet.drive(poll_fn(|cx| {
        while accepted.get() < 3 * GATHER_BUFFER {
            match write(&mut gather, cx, &[7; PIECE]) {
                Poll::Ready(count) => accepted.set(accepted.get() + count.unwrap()),
                Poll::Pending => {
                    filled.set(true);
                    return Poll::Pending;
                }
            }
        }
        Pin::new(&mut gather).poll_shutdown(cx)
    })));
    let waits = poll_fn(|cx| Poll::Ready(writing.as_mut().poll(cx).is_pending())).await;
    assert!(waits);
    assert!(filled.get());
    let at_first = accepted.get();
    assert!(
        (GATHER_BUFFER - PIECE..=GATHER_BUFFER + ROOM).contains(&at_first),
        "{at_first} bytes"
    );
    let mut read = Vec::new();
    let both = async { tokio::join!(writing, far.read_to_end(&mut read)) };
    let (written, _) = timeout(PATIENCE, both).await.unwrap();
    written.unwrap();
    assert_eq!(read.len(), accepted.get());
}

/// A large piece behind small ones is not copied, goes out after them, and with the same call.
#[tokio::test]
async fn large_pieces_are_written_from_where_they_are() {
    let (near, mut far) = duplex(4 * GATHER_COPY);
    let (near, writes) = Counted::new(near);
    let (mut gather, outlet) = gather(near);
    let large = pattern(GATHER_COPY + 1);
    let turn = outlet.drive(poll_fn(|cx| {
        assert!(matches!(write(&mut gather, cx, &large), Poll::Ready(Ok(count)) if count == large.len()));
        assert_eq!((writes.get(), holds(&gather)), (1, (0, 0)));
        assert!(write(&mut gather, cx, b"small").is_ready());
        assert_eq!(holds(&gather).0, 5);
        assert!(matches!(write(&mut gather, cx, &large), Poll::Ready(Ok(count)) if count == large.len()));
        assert_eq!((writes.get(), holds(&gather)), (2, (0, 0)));
        Poll::Ready(())
    }));
    turn.await;
    drop(gather);
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.unwrap();
    assert!(read == [&large[..], b"small", &large[..]].concat());
}

#[tokio::test]
async fn an_error_after_a_turn_is_heard_in_the_next() {
    let (near, far) = UnixStream::pair().unwrap();
    drop(far);
    let (mut gather, outlet) = gather(near);
    let failing = outlet.drive(poll_fn(|cx| match write(&mut gather, cx, b"lost") {
        Poll::Ready(Err(error)) => Poll::Ready(error.kind()),
        // Nobody wakes it but the error.
        _ => Poll::Pending,
    }));
    let kind = timeout(PATIENCE, failing).await.unwrap();
    assert_eq!(kind, io::ErrorKind::BrokenPipe);
    assert_eq!(holds(&gather), (0, 0));
}

#[tokio::test]
async fn what_is_held_goes_out_before_the_end_and_the_other_direction_stays_open() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let (mut gather, outlet) = gather(near);
    let near_side = outlet.drive(async {
        gather.write_all(b"the last words").await.unwrap();
        gather.shutdown().await.unwrap();
        let mut heard = String::new();
        gather.read_to_string(&mut heard).await.unwrap();
        heard
    });
    let far_side = async {
        let mut read = String::new();
        far.read_to_string(&mut read).await.unwrap();
        far.write_all(b"an answer").await.unwrap();
        drop(far);
        read
    };
    let both = async { tokio::join!(near_side, far_side) };
    let (heard, read) = timeout(PATIENCE, both).await.unwrap();
    assert_eq!((heard.as_str(), read.as_str()), ("an answer", "the last words"));
}

#[tokio::test]
async fn outside_a_turn_a_flush_writes() {
    let (near, mut far) = duplex(64);
    let (mut gather, _outlet) = gather(near);
    gather.write_all(b"preface").await.unwrap();
    assert_eq!(holds(&gather).0, 7);
    gather.flush().await.unwrap();
    assert_eq!(holds(&gather), (0, 0));
    let mut read = [0; 7];
    far.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"preface");
}

#[tokio::test]
async fn a_connection_that_is_dropped_closes_its_stream() {
    let (near, mut far) = duplex(64);
    let (gather, outlet): (Gather<DuplexStream>, _) = gather(near);
    drop(gather);
    assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(outlet.drive(async { "others go on" }).await, "others go on");
}
