//! Maps as the ABI carries them: a count, all lengths, then keys and values, each with a zero byte behind it.

/// Most pairs in a map, as in the reference host.
pub(super) const MAX_PAIRS: usize = 1024;

/// Longest map in bytes, as in the reference host.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// Appends `pairs` to `out`. Costs one pass for lengths and one for bytes.
pub(super) fn encode(pairs: &[(&[u8], &[u8])], out: &mut Vec<u8>) {
    out.extend_from_slice(&length(pairs.len()));
    for (key, value) in pairs {
        out.extend_from_slice(&length(key.len()));
        out.extend_from_slice(&length(value.len()));
    }
    for (key, value) in pairs {
        out.extend_from_slice(key);
        out.push(0);
        out.extend_from_slice(value);
        out.push(0);
    }
}

/// The pairs in `bytes`; `None`: they are cut short, or more than [`MAX_PAIRS`], or longer than [`MAX_BYTES`].
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    if bytes.len() > MAX_BYTES {
        return None;
    }
    let (count, rest) = take_length(bytes)?;
    if count > MAX_PAIRS {
        return None;
    }
    let (mut lengths, mut rest) = rest.split_at_checked(count * 8)?;
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        let (key, after) = take_length(lengths)?;
        let (value, after) = take_length(after)?;
        lengths = after;
        let (key, after) = take_text(rest, key)?;
        let (value, after) = take_text(after, value)?;
        rest = after;
        pairs.push((key, value));
    }
    Some(pairs)
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

fn take_length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*length) as usize, rest))
}

/// Text of this length, without the zero byte behind it.
fn take_text(bytes: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    let (text, rest) = bytes.split_at_checked(length)?;
    Some((text, rest.get(1..)?))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn what_was_encoded_decodes_the_same(pairs in vec((vec(any::<u8>(), 0..12), vec(any::<u8>(), 0..12)), 0..6)) {
            let mut bytes = Vec::new();
            let expected: Vec<_> = pairs.iter().map(|(key, value)| (&key[..], &value[..])).collect();
            encode(&expected, &mut bytes);
            prop_assert_eq!(decode(&bytes), Some(expected));
            for cut in 1..bytes.len() {
                if !pairs.is_empty() {
                    prop_assert_eq!(decode(&bytes[..cut]), None);
                }
            }
        }

        #[test]
        fn any_bytes_are_refused_or_pairs(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn too_many_pairs_are_refused() {
        let pairs = [(&b""[..], &b""[..]); MAX_PAIRS + 1];
        let mut bytes = Vec::new();
        encode(&pairs, &mut bytes);
        assert_eq!(decode(&bytes), None);
    }
}
