use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use super::*;

/// A small HTTP server whose answer can be changed. It ends with the test process.
#[derive(Clone)]
pub(crate) struct Server {
    pub address: SocketAddr,
    /// Bytes of the whole answer, head included.
    answer: Arc<Mutex<Vec<u8>>>,
    pub asked: Arc<AtomicU64>,
}

impl Server {
    pub fn start(body: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            answer: Arc::default(),
            asked: Arc::default(),
        };
        server.serve(200, body);
        let serving = server.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read_exact(&mut byte).is_err() {
                        break;
                    }
                    head.push(byte[0]);
                }
                serving.asked.fetch_add(1, Ordering::Relaxed);
                let answer = serving.answer.lock().unwrap().clone();
                let _ = stream.write_all(&answer);
            }
        });
        server
    }

    pub fn serve(&self, status: u16, body: &str) {
        let length = body.len();
        *self.answer.lock().unwrap() =
            format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}").into_bytes();
    }

    pub fn url(&self) -> String {
        format!("http://{}/list?x=1", self.address)
    }

    pub fn wait_until_asked_again(&self) {
        let before = self.asked.load(Ordering::Relaxed);
        // Two more: the first may have been under way.
        until("the server is asked again", || {
            self.asked.load(Ordering::Relaxed) >= before + 2
        });
    }
}

/// Polls; panics after ten seconds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(10), "waited in vain until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn fetch(provider: &str) -> Result<Bytes, FetchError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(provider.parse::<Provider>().unwrap().source(None).unwrap().fetch())
}

#[test]
fn files_and_urls_are_fetched() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a\nb").unwrap();
    let path = file.path().to_str().unwrap();
    assert_eq!(fetch(path).unwrap(), "a\nb");
    assert_eq!(fetch(&format!("file://{path}")).unwrap(), "a\nb");
    assert_eq!(fetch(&Server::start("c").url()).unwrap(), "c");
}

#[test]
fn failures_say_what_failed() {
    let server = Server::start("c");
    server.serve(404, "gone");
    let url = server.url();
    assert_eq!(
        fetch(&url).unwrap_err().to_string(),
        format!("fetch {url}: answered 404 Not Found, expected 200")
    );
    assert_eq!(
        fetch("/nowhere/list").unwrap_err().to_string(),
        "read `/nowhere/list`: No such file or directory (os error 2)"
    );
    *server.answer.lock().unwrap() = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort".to_vec();
    assert!(matches!(fetch(&url), Err(FetchError::Body { .. })));
    server.serve(200, &"x".repeat(MAX_CONTENT + 1));
    assert!(matches!(fetch(&url), Err(FetchError::TooLarge { .. })));
}

#[test]
fn what_is_no_provider_is_refused() {
    for text in ["", "list.txt", "ftp://a/b", "https://", "http://", "http:///a"] {
        let error = text.parse::<Provider>().unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("`{text}` is no provider, expected")),
            "{error}"
        );
    }
}
