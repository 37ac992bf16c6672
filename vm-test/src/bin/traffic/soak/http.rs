//! Requests on a kept HTTP/1.1 connection, written and read by hand: what is on the wire is what is judged.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use vm_test::soak::{Outcome, PAGE};

use super::{Round, Stream, failure, session::Kept};

pub struct Client {
    connection: Option<Connection>,
}

struct Connection {
    stream: BufReader<TcpStream>,
    asked: u64,
}

/// A connection is given up by us after so many requests, so that new ones come about too.
const REQUESTS: u64 = 100;
/// No answer of a soak is longer.
const MAX_BODY: usize = 64 * 1024;

// === impl Client ===

impl Kept for Client {
    const CONNECTS: bool = true;

    fn open(stream: &mut Stream<'_>) -> Result<Self, Outcome> {
        Ok(Self {
            connection: Some(Connection::new(stream.dial()?)),
        })
    }

    fn round(&mut self, stream: &mut Stream<'_>) -> Round {
        let used = self.connection.take().filter(|connection| connection.asked < REQUESTS);
        let mut connection = match used {
            Some(connection) => connection,
            None => Connection::new(stream.dial()?),
        };
        let asked = connection.asked;
        let mut answer = connection.ask();
        if asked > 0 && matches!(answer, Err(Gone::Between)) {
            // The server may close a kept connection at any time between two requests; a client asks again.
            stream.teller.reconnected(stream.index);
            connection = Connection::new(stream.dial()?);
            answer = connection.ask();
        }
        let closes = answer.map_err(|gone| match gone {
            Gone::Between => Outcome::Closed,
            Gone::Failed(outcome) => outcome,
        })?;
        if !closes {
            self.connection = Some(connection);
        }
        Ok(PAGE.len() as u64)
    }

    fn idle(&mut self, pause: Duration) -> Result<(), Outcome> {
        thread::sleep(pause);
        Ok(())
    }
}

/// Why there is no right answer.
enum Gone {
    /// Closed or reset before the first byte of the answer.
    Between,
    Failed(Outcome),
}

// === impl Connection ===

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream: BufReader::new(stream),
            asked: 0,
        }
    }

    /// Whether the server is about to close.
    fn ask(&mut self) -> Result<bool, Gone> {
        self.asked += 1;
        let closed = |outcome| matches!(outcome, Outcome::Closed | Outcome::Errno(ECONNRESET | EPIPE));
        let between = |outcome| {
            if closed(outcome) {
                Gone::Between
            } else {
                Gone::Failed(outcome)
            }
        };
        let request = b"GET /soak HTTP/1.1\r\nHost: soak\r\n\r\n";
        let written = self.stream.get_mut().write_all(request);
        written.map_err(|error| between(failure(error)))?;
        match self.stream.fill_buf() {
            Ok([]) => return Err(Gone::Between),
            Ok(_) => {}
            Err(error) => return Err(between(failure(error))),
        }
        self.answer().map_err(Gone::Failed)
    }

    fn answer(&mut self) -> Result<bool, Outcome> {
        let status = self.line()?;
        let status: u16 = status
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .ok_or(Outcome::Wrong(0))?;
        let (mut length, mut closes) = (0, false);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(|_| Outcome::Wrong(0))?;
            }
            closes |= line.starts_with("connection:") && line.contains("close");
        }
        let mut body = vec![0; MAX_BODY.min(length)];
        self.stream.read_exact(&mut body).map_err(failure)?;
        if status != 200 {
            return Err(Outcome::Status(status));
        }
        if body == PAGE.as_bytes() {
            return Ok(closes);
        }
        let same = body
            .iter()
            .zip(PAGE.as_bytes())
            .take_while(|(found, sent)| found == sent)
            .count();
        Err(Outcome::Wrong(same as u64))
    }

    fn line(&mut self) -> Result<String, Outcome> {
        let mut line = String::new();
        match (&mut self.stream).take(MAX_BODY as u64).read_line(&mut line) {
            Ok(0) => Err(Outcome::Closed),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(failure(error)),
        }
    }
}

const EPIPE: i32 = 32;
const ECONNRESET: i32 = 104;
