//! What generations set for the other filters of a stream, and what they must not.

use bytes::BytesMut;

use super::{
    wasm::{factory, head, info, tcp_generations},
    *,
};
use crate::stream::{Direction, FilterFactory, Step, StreamInfo, TcpStep};

const SETS: &str = "(call $set)";
/// Ends the instance where nobody has set it.
const NEEDS: &str = "(call $need)";
const FAILS: &str = "unreachable";

/// A filter that does this at a request's head, or at a new connection. `user` is what may be set, to `inner`.
fn does(what: &str) -> String {
    format!(
        r#"(module
          (import "env" "proxy_set_property" (func $set_property (param i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_get_property" (func $get_property (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (data (i32.const 16) "userinner")
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "malloc") (param i32) (result i32) (i32.const 1024))
          (func $set
            (drop (call $set_property (i32.const 16) (i32.const 4) (i32.const 20) (i32.const 5))))
          (func $need
            (if (call $get_property (i32.const 16) (i32.const 4) (i32.const 0) (i32.const 4)) (then unreachable)))
          (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) {what} (i32.const 0))
          (func (export "proxy_on_new_connection") (param i32) (result i32) {what} (i32.const 0)))"#
    )
}

fn user(info: &StreamInfo) -> Option<Vec<u8>> {
    info.state.get(b"user")
}

fn set_user(info: &StreamInfo, user: &str) {
    info.state.set(b"user", user.as_bytes(), Box::new(()));
}

/// The filters of a world with these generations, `what` each does with its share.
fn filters(world: &mut World, list: [(&str, &str); 2]) -> Arc<dyn FilterFactory> {
    let folder = tempfile::tempdir().unwrap();
    let texts = list.map(|(what, _)| does(what));
    let [first, second] = &texts;
    let list = [(first.as_str(), list[0].1), (second.as_str(), list[1].1)];
    let text = tcp_generations(folder.path(), &list, "").replace("[tcp]", "[http, tcp]");
    factory(&world.apply("auth", &text)).unwrap()
}

/// Has a stream pass them.
type Pass = fn(&dyn FilterFactory, &Arc<StreamInfo>);

const PASSES: [Pass; 2] = [request, connection];

fn request(filters: &dyn FilterFactory, info: &Arc<StreamInfo>) {
    let mut filter = filters.stream(info).unwrap();
    let step = filter.on_request_headers(&mut head(&[]), true);
    assert!(matches!(step, Step::Continue), "{step:?}");
}

fn connection(filters: &dyn FilterFactory, info: &Arc<StreamInfo>) {
    let mut filter = filters.tcp(info).unwrap();
    assert_eq!(filter.on_connection(), TcpStep::Continue);
    let data = &mut BytesMut::from("a");
    assert_eq!(filter.on_data(Direction::Downstream, data, true), TcpStep::Continue);
}

fn traps(world: &World) -> u64 {
    world.state("auth").generations[1].stats.traps
}

#[test]
fn a_shadow_sees_what_others_set_and_shows_nothing_of_what_it_sets() {
    let needs_and_sets = format!("{NEEDS} {SETS} {NEEDS}");
    for pass in PASSES {
        let mut world = World::new();
        let filters = filters(
            &mut world,
            [("", "weight: 1"), (needs_and_sets.as_str(), "shadow: true")],
        );
        let stream = info(1);
        set_user(&stream, "alice");
        pass(&*filters, &stream);
        assert_eq!((user(&stream).as_deref(), traps(&world)), (Some(&b"alice"[..]), 0));
        pass(&*filters, &info(2));
        assert_eq!(traps(&world), 1, "nobody has set it there");
    }
}

#[test]
fn what_a_generation_set_before_it_failed_has_never_been() {
    let sets_and_fails = format!("{SETS} {FAILS}");
    for pass in PASSES {
        for before in [None, Some("alice")] {
            let mut world = World::new();
            let filters = filters(
                &mut world,
                [("", "weight: 0"), (sets_and_fails.as_str(), "weight: 100")],
            );
            let stream = info(1);
            if let Some(before) = before {
                set_user(&stream, before);
            }
            pass(&*filters, &stream);
            assert_eq!(
                (user(&stream).as_deref(), traps(&world)),
                (before.map(str::as_bytes), 1)
            );
        }
    }
}
