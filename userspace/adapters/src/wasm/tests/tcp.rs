//! Connections that are no HTTP.

use bytes::BytesMut;

use super::*;
use crate::stream::{Direction, TcpStep};

/// Holds bytes until there are four, then puts `hi|` before them; closes when the client says `quit`.
const TCP: &str = r#"(module
  (import "env" "proxy_set_buffer_bytes" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_buffer_bytes" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_close_stream" (func $close (param i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "hi|")
  (func (export "proxy_abi_version_0_2_0"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_new_connection") (param i32) (result i32) (i32.const 0))
  (func (export "proxy_on_downstream_data") (param i32 i32 i32) (result i32)
    (if (i32.lt_u (local.get 1) (i32.const 4)) (then (return (i32.const 1))))
    (drop (call $get (i32.const 2) (i32.const 0) (i32.const 4) (i32.const 512) (i32.const 516)))
    (if (i32.eq (i32.load (i32.const 1024)) (i32.const 0x74697571))
      (then (drop (call $close (i32.const 2)))))
    (drop (call $set (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 3)))
    (i32.const 0)))"#;

#[test]
fn bytes_of_a_connection_are_held_changed_and_the_connection_closed() {
    let module = Module::compile(&text(TCP)).expect("a filter");
    let plugin = plugin(&module, config(""));
    let mut filter = plugin.tcp(&info()).expect("a filter");
    assert_eq!(filter.on_connection(), TcpStep::Continue);
    let mut data = BytesMut::from("ab");
    assert_eq!(filter.on_data(Direction::Downstream, &mut data, false), TcpStep::Pause);
    data.extend_from_slice(b"cd");
    assert_eq!(
        filter.on_data(Direction::Downstream, &mut data, false),
        TcpStep::Continue
    );
    assert_eq!(data, "hi|abcd");
    let mut answer = BytesMut::from("upstream");
    assert_eq!(
        filter.on_data(Direction::Upstream, &mut answer, true),
        TcpStep::Continue
    );
    assert_eq!(answer, "upstream");
    let mut data = BytesMut::from("quit");
    assert_eq!(filter.on_data(Direction::Downstream, &mut data, false), TcpStep::Reset);
    filter.on_close(Direction::Downstream);
    filter.on_end();
    assert_eq!((plugin.stats().traps, plugin.stats().streams), (0, 1));
}
