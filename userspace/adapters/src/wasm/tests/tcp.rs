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
    // The same about what the service says: buffer 3, stream 3.
    let upstream = TCP
        .replace("proxy_on_downstream_data", "proxy_on_upstream_data")
        .replace("(i32.const 2)", "(i32.const 3)");
    for (from, other, module) in [
        (Direction::Downstream, Direction::Upstream, TCP),
        (Direction::Upstream, Direction::Downstream, &*upstream),
    ] {
        let module = Module::compile(&text(module)).expect("a filter");
        let plugin = plugin(&module, config(""));
        let mut filter = plugin.tcp(&info()).expect("a filter");
        assert_eq!(filter.on_connection(), TcpStep::Continue);
        let mut data = BytesMut::from("ab");
        assert_eq!(filter.on_data(from, &mut data, false), TcpStep::Pause);
        data.extend_from_slice(b"cd");
        assert_eq!(filter.on_data(from, &mut data, false), TcpStep::Continue);
        assert_eq!(data, "hi|abcd");
        let mut answer = BytesMut::from("untouched");
        assert_eq!(filter.on_data(other, &mut answer, true), TcpStep::Continue);
        assert_eq!(answer, "untouched");
        let mut data = BytesMut::from("quit");
        assert_eq!(filter.on_data(from, &mut data, false), TcpStep::Reset);
        filter.on_close(Direction::Downstream);
        filter.on_end();
        assert_eq!((plugin.stats().traps, plugin.stats().streams), (0, 1));
    }
}

/// Keeps of each side who closed it, and whether that is the end of what it said.
const CLOSES: &str = r#"(module
  (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_record_metric" (func $record (param i32 i64) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "downstreamupstreamends")
  (func (export "proxy_abi_version_0_2_1"))
  (func $keep (param i32 i32)
    (if (call $record (i32.load (local.get 0)) (i64.extend_i32_u (local.get 1))) (then unreachable)))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    (drop (call $define (i32.const 1) (i32.const 0) (i32.const 10) (i32.const 512)))
    (drop (call $define (i32.const 1) (i32.const 10) (i32.const 8) (i32.const 516)))
    (drop (call $define (i32.const 0) (i32.const 18) (i32.const 4) (i32.const 520)))
    (i32.const 1))
  (func (export "proxy_on_downstream_data") (param i32 i32 i32) (result i32)
    (call $keep (i32.const 520) (local.get 2)) (i32.const 0))
  (func (export "proxy_on_upstream_data") (param i32 i32 i32) (result i32)
    (call $keep (i32.const 520) (local.get 2)) (i32.const 0))
  (func (export "proxy_on_downstream_connection_close") (param i32 i32)
    (call $keep (i32.const 512) (local.get 1)))
  (func (export "proxy_on_upstream_connection_close") (param i32 i32)
    (call $keep (i32.const 516) (local.get 1))))"#;

#[test]
fn each_side_ends_and_closes_for_itself() {
    /// A peer, in the ABI: not this proxy.
    const REMOTE: i64 = 2;
    for (by, closed) in [(Direction::Downstream, (REMOTE, 0)), (Direction::Upstream, (0, REMOTE))] {
        let plugin = plugin(&Module::compile(&text(CLOSES)).expect("a filter"), config(""));
        let told = |name| beside::metric(&plugin, name);
        let mut filter = plugin.tcp(&info()).expect("a filter");
        assert_eq!(filter.on_connection(), TcpStep::Continue);
        for (end, ends) in [(false, 0), (true, 1)] {
            assert_eq!(filter.on_data(by, &mut BytesMut::from("bytes"), end), TcpStep::Continue);
            assert_eq!(told("ends"), ends);
        }
        assert_eq!((told("downstream"), told("upstream")), (0, 0));
        filter.on_close(by);
        assert_eq!((told("downstream"), told("upstream")), closed);
        filter.on_end();
        assert_eq!(plugin.stats().traps, 0);
    }
}
