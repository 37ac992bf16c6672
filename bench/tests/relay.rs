//! The relay carries bytes both ways, and ends with either side.

mod port;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn bytes_pass_both_ways_and_an_end_ends_both() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_held, free) = port::held();
    let relay = Command::new(env!("CARGO_BIN_EXE_weft-relay"))
        .args([free.to_string(), target.local_addr().unwrap().to_string()])
        .args(["--threads", "2"])
        .spawn()
        .unwrap();
    let _relay = Relay(relay);
    let begin = Instant::now();
    let mut client = loop {
        match TcpStream::connect(free) {
            Ok(client) => break client,
            Err(error) => assert!(begin.elapsed() < Duration::from_secs(10), "{error}"),
        }
        thread::yield_now();
    };
    let (mut server, _) = target.accept().unwrap();
    client.write_all(b"question").unwrap();
    let mut read = [0; 8];
    server.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"question");
    server.write_all(b"answer").unwrap();
    client.read_exact(&mut read[..6]).unwrap();
    assert_eq!(&read[..6], b"answer");
    drop(server);
    assert_eq!(client.read(&mut read).unwrap(), 0);
}
