use std::collections::VecDeque;

use tokio::io::AsyncReadExt;

use super::*;

/// Gives its pieces one by one, and waits between them.
struct Pieces {
    pieces: VecDeque<Vec<u8>>,
    waited: bool,
}

impl Pieces {
    fn new(pieces: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self {
            pieces: pieces.into_iter().collect(),
            waited: false,
        }
    }

    /// `bytes` in pieces of up to `most`.
    fn of(bytes: &[u8], most: usize, numbers: &mut Numbers) -> Self {
        let mut rest = bytes;
        Self::new(std::iter::from_fn(|| {
            let (piece, behind) = rest.split_at(rest.len().min(1 + numbers.below(most)));
            rest = behind;
            (!piece.is_empty()).then(|| piece.to_vec())
        }))
    }
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.waited = !self.waited;
        if self.waited {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(piece) = self.pieces.front_mut() {
            let count = piece.len().min(buf.remaining());
            buf.put_slice(&piece[..count]);
            piece.drain(..count);
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        Poll::Ready(Ok(()))
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

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, stream]);
    frame.extend(payload);
    frame
}

async fn sifted(mut stream: Sifted<Pieces>) -> Vec<u8> {
    let mut read = Vec::new();
    stream.read_to_end(&mut read).await.unwrap();
    read
}

#[tokio::test]
async fn what_stays_is_the_same_whatever_the_pieces_and_the_room() {
    for seed in 1..=40 {
        let mut numbers = Numbers(seed);
        let (mut all, mut expect) = (Vec::new(), Vec::<u8>::new());
        for _ in 0..200 {
            let stream = 1 + 2 * numbers.below(5) as u8;
            if numbers.below(3) == 0 {
                all.extend(frame(DATA, 0, stream, b""));
                continue;
            }
            // Zeros look like heads of empty frames.
            let payload = vec![0; numbers.below(40)];
            let frame = match numbers.below(4) {
                0 => frame(HEADERS, END_HEADERS, stream, &payload),
                1 => frame(DATA, END_STREAM, stream, &payload),
                2 => frame(DATA, 0, stream, &[&[1][..], &payload[..]].concat()),
                _ => frame(8, 0, 0, &[0, 0, 1, 0]),
            };
            all.extend(&frame);
            expect.extend(&frame);
        }
        let most = [1, 5, 30, 5000][numbers.below(4)];
        let mut stream = Sifted::of_server(Pieces::of(&all, most, &mut numbers));
        let (mut read, mut buffer) = (Vec::new(), [0; 100]);
        loop {
            let most = [8, 12, 100][numbers.below(3)];
            let room = 1 + numbers.below(most);
            match stream.read(&mut buffer[..room]).await.unwrap() {
                0 => break,
                count => read.extend_from_slice(&buffer[..count]),
            }
        }
        assert_eq!(read, expect, "seed {seed}");
    }
}

#[tokio::test]
async fn frames_that_mean_something_stay() {
    for (stays, what) in [
        (frame(DATA, END_STREAM, 1, b""), "it ends its stream"),
        (frame(DATA, PADDED, 1, b"\0"), "padding weighs on flow control"),
        (frame(DATA, PADDED, 1, b""), "padding without its length is an error"),
        (frame(DATA, 0, 0, b""), "stream 0 is an error"),
        (frame(4, 0, 0, b""), "SETTINGS"),
        (frame(HEADERS, END_HEADERS, 1, b""), "HEADERS"),
    ] {
        let read = sifted(Sifted::of_server(Pieces::new([stays.clone()]))).await;
        assert_eq!(read, stays, "{what}");
    }
}

#[tokio::test]
async fn a_header_block_with_a_frame_between_stays_an_error() {
    let block = [
        frame(HEADERS, 0, 1, b"\x88"),
        frame(DATA, 0, 1, b""),
        frame(CONTINUATION, END_HEADERS, 1, b""),
    ];
    let behind = frame(DATA, 0, 1, b"");
    let read = sifted(Sifted::of_server(Pieces::new([block.concat(), behind]))).await;
    assert_eq!(read, block.concat());
}

#[tokio::test]
async fn what_a_client_begins_with_is_no_frame() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let (empty, ends) = (frame(DATA, 0, 1, b""), frame(DATA, END_STREAM, 1, b""));
    let came = Pieces::new([preface.clone(), empty, ends.clone()]);
    assert_eq!(sifted(Sifted::of_client(came)).await, [preface, ends].concat());
}

#[tokio::test]
async fn a_flood_is_for_the_reader() {
    let flood = |count: u32| (0..count).map(|_| frame(DATA, 0, 1, b"")).collect::<Vec<_>>().concat();
    let other = frame(DATA, 0, 1, b"data");
    let came = [flood(H2_EMPTY_IN_A_ROW), other.clone(), flood(H2_EMPTY_IN_A_ROW + 3)];
    let read = sifted(Sifted::of_server(Pieces::new(came))).await;
    assert_eq!(read, [other, flood(3)].concat());
}

#[tokio::test]
async fn an_end_within_a_head_is_told_as_it_came() {
    let came = [frame(DATA, 0, 1, b""), b"\0\0\0\0".to_vec()];
    assert_eq!(sifted(Sifted::of_server(Pieces::new(came))).await, b"\0\0\0\0");
}
