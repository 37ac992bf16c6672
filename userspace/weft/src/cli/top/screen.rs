//! The terminal: its other screen, its keys one by one, and everything as it was at the end, however that comes.

use std::{
    io::{self, IsTerminal, Read, Write},
    thread,
};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

use super::table::View;
use crate::edges::Sample;

/// The other screen, without cursor and without wrapping lines.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
/// Of a terminal that does not say.
const ROWS: usize = 24;
const COLUMNS: usize = 80;

/// What a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Quit,
    /// To the column so many to the right.
    Sort(isize),
    Reverse,
    Hold,
    Other,
}

/// The terminal while it is ours.
pub struct Screen {
    /// As it was; `None`: keys come from elsewhere.
    keyboard: Option<Termios>,
    keys: mpsc::Receiver<u8>,
    keys_end: bool,
}

// === impl Screen ===

impl Screen {
    /// Takes the terminal that stdout is.
    ///
    /// # Errors
    ///
    /// It cannot be set up, and is as it was.
    pub fn open() -> io::Result<Self> {
        let stdin = io::stdin();
        let keyboard = if stdin.is_terminal() {
            let before = tcgetattr(&stdin)?;
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(&stdin, OptionalActions::Now, &raw)?;
            Some(before)
        } else {
            None
        };
        let (sender, keys) = mpsc::channel(16);
        let screen = Self {
            keyboard,
            keys,
            keys_end: false,
        };
        // A read of a terminal cannot be taken back: the thread ends with the process.
        thread::Builder::new().name("weft-keys".to_owned()).spawn(move || {
            for byte in io::stdin().lock().bytes() {
                let Ok(byte) = byte else { return };
                if sender.blocking_send(byte).is_err() {
                    return;
                }
            }
        })?;
        let mut out = io::stdout().lock();
        out.write_all(ENTER.as_bytes())?;
        out.flush()?;
        Ok(screen)
    }

    /// The next key.
    ///
    /// # Cancel safety
    ///
    /// No key is lost, but one of several bytes (an arrow) may be taken for its parts, which mean nothing.
    pub async fn key(&mut self) -> Key {
        if self.keys_end {
            return std::future::pending().await;
        }
        match self.keys.recv().await {
            Some(byte) => meaning(byte),
            None => {
                self.keys_end = true;
                Key::Other
            }
        }
    }

    /// Shows a sample, as much of it as there is room for.
    pub fn draw(&self, view: &View, sample: &Sample, held: bool) -> io::Result<()> {
        let (rows, columns) = size();
        let mut lines = vec![view.title(sample, held)];
        lines.extend(view.lines(sample, Some(columns)));
        lines.truncate(rows);
        let mut text = String::from(HOME);
        for (number, line) in lines.iter().enumerate() {
            if number > 0 {
                text += "\r\n";
            }
            text += line;
            text += CLEAR_LINE;
        }
        text += CLEAR_BELOW;
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        if let Some(before) = &self.keyboard {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
        let mut out = io::stdout().lock();
        let _ = out.write_all(LEAVE.as_bytes());
        let _ = out.flush();
    }
}

fn size() -> (usize, usize) {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row.into(), size.ws_col.into()),
        _ => (ROWS, COLUMNS),
    }
}

/// Ctrl-C comes as a byte: a raw terminal makes no signal of it.
fn meaning(byte: u8) -> Key {
    const CTRL_C: u8 = 3;
    match byte {
        b'q' | b'Q' | CTRL_C => Key::Quit,
        b'<' | b',' => Key::Sort(-1),
        b'>' | b'.' => Key::Sort(1),
        b'r' | b'R' => Key::Reverse,
        b' ' => Key::Hold,
        _ => Key::Other,
    }
}
