//! What modules do beside single requests: ticks, bodies that gather, what they share.

use std::time::Duration;

use bytes::BytesMut;
use http::HeaderMap;

use super::{
    wasm::{PARAMS, TICKS, auth, generations, head, info, module, stream, written},
    *,
};
use crate::stream::Step;

#[test]
fn what_is_in_force_works_before_any_request() {
    let (_folder, file) = written(TICKS);
    let mut world = World::new();
    let chains = world.apply("auth", &auth(&format!("module: {}", file.display()), "priority: 0"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .unwrap();
    runtime.block_on(async {
        chains.warm();
        let ticked = async {
            // Each of its ticks traps.
            while world.state("auth").generations[0].stats.failed_beside == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ticked).await.unwrap();
    });
    assert_eq!(world.state("auth").generations[0].stats.streams, 0);
}

/// Holds bodies, and answers at the trailers where what it held has six bytes.
const GATHERS: &str = r#"(module
  (import "env" "proxy_get_buffer_status" (func $status (param i32 i32 i32) (result i32)))
  (import "env" "proxy_send_local_response" (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_request_trailers") (param i32 i32) (result i32)
    (drop (call $status (i32.const 0) (i32.const 8) (i32.const 12)))
    (if (i32.eq (i32.load (i32.const 8)) (i32.const 6)) (then
      (drop (call $respond (i32.const 200) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
        (i32.const 0) (i32.const -1)))))
    (i32.const 0)))"#;

#[test]
fn a_shadow_that_gathers_a_body_has_it_at_the_trailers() {
    let (_folder, file) = written(GATHERS);
    let mut world = World::new();
    let text = generations(
        &[("v1", "header-auth", "weight: 1"), ("v2", "trap", "shadow: true")],
        PARAMS,
    );
    let text = text.replace(module("trap").to_str().unwrap(), file.to_str().unwrap());
    let chains = world.apply("auth", &text);
    let mut filter = stream(&chains, 1).unwrap();
    for piece in ["abc", "def"] {
        // The one in force holds nothing.
        let mut body = BytesMut::from(piece);
        assert!(matches!(filter.on_request_body(&mut body, false), Step::Continue));
    }
    let step = filter.on_request_trailers(&mut HeaderMap::new(), &mut BytesMut::new());
    assert!(matches!(step, Step::Continue));
    assert_eq!(world.state("auth").generations[1].stats.local_responses, 1);
}

/// Each request adds the configuration's first byte to shared data and is answered with all of it, behind what the VM was
/// configured with and what its environment says.
const SHARING: &str = r#"(module
  (import "env" "proxy_get_buffer_bytes" (func $bytes (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_shared_data" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_shared_data" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_send_local_response" (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 4096))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32)
    (global.get $free) (global.set $free (i32.add (global.get $free) (local.get 0))))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    ;; At 1024: what the VM was configured with, 2 bytes, and `Z=1`.
    (drop (call $bytes (i32.const 6) (i32.const 0) (i32.const 2) (i32.const 0) (i32.const 4)))
    (memory.copy (i32.const 1024) (i32.load (i32.const 0)) (i32.const 2))
    (drop (call $environ (i32.const 8) (i32.const 1026)))
    (i32.const 1))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $length i32)
    (drop (call $bytes (i32.const 7) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 4)))
    (if (i32.eqz (call $get (i32.const 16) (i32.const 1) (i32.const 8) (i32.const 12) (i32.const 20)))
      (then
        (local.set $length (i32.load (i32.const 12)))
        (memory.copy (i32.const 1029) (i32.load (i32.const 8)) (local.get $length))))
    (i32.store8 (i32.add (i32.const 1029) (local.get $length)) (i32.load8_u (i32.load (i32.const 0))))
    (local.set $length (i32.add (local.get $length) (i32.const 1)))
    (drop (call $set (i32.const 16) (i32.const 1) (i32.const 1029) (local.get $length) (i32.const 0)))
    (drop (call $respond (i32.const 200) (i32.const 0) (i32.const 0) (i32.const 1024)
      (i32.add (local.get $length) (i32.const 5)) (i32.const 0) (i32.const 0) (i32.const -1)))
    (i32.const 1)))"#;

#[test]
fn adapters_of_a_namespace_share_data_where_they_name_the_same_vm() {
    let (_folder, module) = written(SHARING);
    let object = |name: &str, namespace: &str, id: &str| {
        format!(
            "apiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{backend: wasm, target: all, params: {name}, wasm: {{module: {}, \
             vm: {{id: {id}, configuration: vm, environment: {{Z: \"1\"}}}}}}}}\n",
            module.display()
        )
    };
    let mut world = World::new();
    let objects = [
        ("a", "shop", "one"),
        ("b", "shop", "one"),
        ("c", "shop", "other"),
        ("d", "bank", "one"),
    ];
    let text = objects
        .map(|(name, namespace, id)| object(name, namespace, id))
        .join("---\n");
    let chains = world.apply("all", &text);
    let name = service("web");
    let filters = &chains.of(Some(&name), Some(&name)).unwrap().filters;
    let said: Vec<String> = ["a", "b", "c", "d", "a"]
        .iter()
        .map(|name| {
            let filter = filters.iter().find(|filter| filter.name().ends_with(name)).unwrap();
            let mut filter = filter.stream(&info(1)).unwrap();
            match filter.on_request_headers(&mut head(&[]), true) {
                Step::Respond(response) => String::from_utf8(response.body().to_vec()).unwrap(),
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(said, ["vmZ=1a", "vmZ=1ab", "vmZ=1c", "vmZ=1d", "vmZ=1aba"]);
}
