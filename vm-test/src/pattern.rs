//! Bytes that say where they belong: a stream whose byte at offset N depends on N alone, so that a receiver finds the
//! first byte that was lost, doubled or moved without having the original.

use std::io::{self, Read};

/// The endless stream, from an offset on.
#[derive(Debug, Clone, Default)]
pub struct Pattern {
    offset: u64,
}

/// Compares a received stream with [`Pattern`].
#[derive(Debug, Clone, Default)]
pub struct Checker {
    expected: Pattern,
    first_wrong: Option<u64>,
}

/// Eight bytes of the stream: splitmix64 of their index, so that no two windows of the stream look alike.
fn word(index: u64) -> [u8; 8] {
    mix(index.wrapping_add(MIX_STEP)).to_le_bytes()
}

/// What splitmix64 adds from one number to the next.
pub(crate) const MIX_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of splitmix64.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

// === impl Pattern ===

impl Pattern {
    /// Goes on from `bytes` later.
    pub fn skip(&mut self, bytes: u64) {
        self.offset += bytes;
    }

    /// Fills all of `buffer` with the next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let mut rest = buffer;
        while !rest.is_empty() {
            let bytes = word(self.offset / 8);
            let skip = (self.offset % 8) as usize;
            let take = rest.len().min(8 - skip);
            let (now, later) = rest.split_at_mut(take);
            now.copy_from_slice(&bytes[skip..skip + take]);
            self.offset += take as u64;
            rest = later;
        }
    }
}

impl Read for Pattern {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill(buffer);
        Ok(buffer.len())
    }
}

// === impl Checker ===

impl Checker {
    /// Takes the next bytes that arrived.
    pub fn take(&mut self, bytes: &[u8]) {
        let mut expected = [0; 16 * 1024];
        for chunk in bytes.chunks(expected.len()) {
            let start = self.expected.offset;
            let expected = &mut expected[..chunk.len()];
            self.expected.fill(expected);
            if self.first_wrong.is_none() && chunk != expected {
                let at = chunk
                    .iter()
                    .zip(&*expected)
                    .position(|(found, expected)| found != expected)
                    .unwrap_or(0);
                self.first_wrong = Some(start + at as u64);
            }
        }
    }

    /// Bytes taken so far.
    pub fn bytes(&self) -> u64 {
        self.expected.offset
    }

    /// Offset of the first byte that differs.
    pub fn first_wrong(&self) -> Option<u64> {
        self.first_wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_of_the_stream_is_the_same_stream() {
        let mut whole = [0; 1000];
        Pattern::default().fill(&mut whole);
        for step in [1, 3, 7, 8, 64, 999] {
            let (mut pieces, mut pattern) = (vec![0; 1000], Pattern::default());
            pieces.chunks_mut(step).for_each(|piece| pattern.fill(piece));
            assert_eq!(pieces, whole, "step {step}");
        }
    }

    #[test]
    fn the_first_wrong_byte_is_found() {
        let mut bytes = [0; 100_000];
        Pattern::default().fill(&mut bytes);
        let mut checker = Checker::default();
        checker.take(&bytes);
        assert_eq!((checker.bytes(), checker.first_wrong()), (100_000, None));
        bytes[70_001] ^= 1;
        let mut checker = Checker::default();
        checker.take(&bytes);
        assert_eq!(checker.first_wrong(), Some(70_001));
    }
}
