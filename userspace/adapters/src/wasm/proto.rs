//! As much of protocol buffers as messages of the ABI need: fields that are bytes.

/// The fields of `message` that are texts, bytes or messages, with their numbers; `None`: it is no message.
pub(super) fn fields(mut message: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    /// Wire type: a number.
    const VARINT: u64 = 0;
    /// Wire type: eight bytes.
    const EIGHT: u64 = 1;
    /// Wire type: a length, and so many bytes.
    const BYTES: u64 = 2;
    /// Wire type: four bytes.
    const FOUR: u64 = 5;
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let length = match key & 7 {
            VARINT => {
                varint(&mut message)?;
                continue;
            }
            EIGHT => 8,
            FOUR => 4,
            BYTES => usize::try_from(varint(&mut message)?).ok()?,
            _ => return None,
        };
        let (bytes, rest) = message.split_at_checked(length)?;
        message = rest;
        if key & 7 == BYTES {
            fields.push((key >> 3, bytes));
        }
    }
    Some(fields)
}

/// The last field of this number.
pub(super) fn field(message: &[u8], number: u64) -> Option<&[u8]> {
    let fields = fields(message)?;
    fields
        .into_iter()
        .rev()
        .find_map(|(found, bytes)| (found == number).then_some(bytes))
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_found_and_what_is_cut_short_is_refused() {
        let message = [&[0x18, 1, 0x0a, 1][..], b"p", &[0x12, 3], b"val"].concat();
        assert_eq!(fields(&message), Some(vec![(1, &b"p"[..]), (2, &b"val"[..])]));
        assert_eq!(field(&message, 2), Some(&b"val"[..]));
        assert_eq!(field(&message, 3), None);
        assert_eq!(fields(&message[..message.len() - 1]), None);
        assert_eq!(fields(&[0xff; 12]), None);
        assert_eq!(fields(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_fields(bytes: Vec<u8>) {
            let _ = fields(&bytes);
        }
    }
}
