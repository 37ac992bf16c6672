//! Text of values without allocation: written into a buffer on the caller's stack.

use std::fmt::{self, Write};

use super::Value;

/// Bytes kept on the stack. Longer texts (a principal of two long names, many quota dimensions) go to the heap.
const INLINE: usize = 192;

/// Somewhere to write a short text to.
pub struct TextBuffer {
    inline: [u8; INLINE],
    used: usize,
    /// Everything, as soon as the text is longer than [`INLINE`].
    long: String,
}

// === impl TextBuffer ===

impl Default for TextBuffer {
    fn default() -> Self {
        Self {
            inline: [0; INLINE],
            used: 0,
            long: String::new(),
        }
    }
}

impl TextBuffer {
    pub fn as_str(&self) -> &str {
        if self.long.is_empty() {
            // Only whole `str`s are written, so this always holds.
            std::str::from_utf8(&self.inline[..self.used]).unwrap_or_default()
        } else {
            &self.long
        }
    }

    pub fn clear(&mut self) {
        self.used = 0;
        self.long.clear();
    }
}

impl Write for TextBuffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.used + text.len();
        if self.long.is_empty() && end <= INLINE {
            self.inline[self.used..end].copy_from_slice(text.as_bytes());
            self.used = end;
            return Ok(());
        }
        if self.long.is_empty() {
            self.long = self.as_str().to_owned();
        }
        self.long.push_str(text);
        Ok(())
    }
}

// === impl Value ===

impl<'a> Value<'a> {
    /// Its text: borrowed where it is text already, else written to `buffer`.
    pub fn text<'b>(&self, buffer: &'b mut TextBuffer) -> &'b str
    where
        'a: 'b,
    {
        if let Value::Str(text) = self {
            return text;
        }
        buffer.clear();
        let _ = write!(buffer, "{self}"); // cannot fail: the buffer grows
        buffer.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_texts_come_out_whole() {
        for pieces in [&["a", "b"][..], &["é"; 95], &["é"; 96], &["é"; 97], &["x"; 500], &[]] {
            let mut buffer = TextBuffer::default();
            for piece in pieces {
                buffer.write_str(piece).unwrap();
            }
            assert_eq!(buffer.as_str(), pieces.concat());
            buffer.clear();
            assert_eq!(buffer.as_str(), "");
        }
    }
}
