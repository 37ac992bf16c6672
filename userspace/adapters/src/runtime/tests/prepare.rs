//! What is made ahead, and what publications make of it: nothing themselves.

use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{
    wasm::{PARAMS, TOKEN, auth, module, status, written},
    *,
};
use crate::upstreams::NoUpstreams;

/// Its start never ends.
const LOOPS: &str = r#"(module
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (loop $again (br $again)) (i32.const 1)))"#;

/// A world that counts the attempts to make a plugin.
fn counting() -> (World, impl Fn() -> usize) {
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let host = WasmHost::new(
        move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Arc::new(NoUpstreams)
        },
        NonZeroUsize::MIN,
    );
    (World::with(host), move || made.load(Ordering::Relaxed))
}

fn lacks(world: &World) -> bool {
    let wanted = adapter_configs(&world.store);
    world.runtime.preparer().lacks(wanted.iter().map(|config| &**config))
}

fn good(params: &str) -> String {
    auth(&format!("module: {}", module("header-auth").display()), params)
}

#[test]
fn what_cannot_run_is_tried_ahead_once_and_never_by_a_publication() {
    let (_folder, loops) = written(LOOPS);
    let loops = format!("module: {}, limits: {{startMs: 20}}", loops.display());
    for (wasm, problem) in [
        (loops.as_str(), "CPU time"),
        ("module: /etc/hostname", "not a WebAssembly"),
    ] {
        let (mut world, made) = counting();
        world.write("auth", &auth(wasm, PARAMS));
        let ahead = world.prepare();
        assert_eq!(made(), 1, "{wasm}");
        for _ in 0..2 {
            let chains = world.publish();
            assert!(ask(&chains, "web").is_err(), "{wasm}: closed");
            let state = world.state("auth");
            let told = state.problem.as_ref().is_some_and(|told| told.contains(problem));
            assert!(told && !state.pending, "{state:?}");
        }
        drop(ahead);
        // By whoever publishes next, with or without a look at modules, and by somebody who applies it again.
        world.publish();
        assert!(!lacks(&world), "{wasm}");
        world.apply("auth", &auth(wasm, PARAMS));
        assert_eq!(made(), 1, "{wasm}");
        // It may do with another configuration.
        world.apply("auth", &auth(wasm, "params: {}"));
        assert_eq!(made(), 2, "{wasm}");
    }
}

#[test]
fn a_publication_waits_for_no_module_and_leaves_what_was_until_it_is_ready() {
    let (mut world, made) = counting();
    world.write("auth", &good(PARAMS));
    let chains = world.publish();
    assert!(ask(&chains, "web").is_ok(), "closed, but it was open before");
    assert_eq!(status(&chains, 1, &[]), 200);
    let state = world.state("auth");
    assert!(
        state.pending && !state.earlier && state.problem.is_some() && made() == 0,
        "{state:?}"
    );
    assert!(world.runtime.awaits_modules() && lacks(&world));

    let ahead = world.prepare();
    assert!(!lacks(&world));
    let chains = world.publish();
    drop(ahead);
    let state = world.state("auth");
    assert!(!state.pending && state.problem.is_none() && made() == 1, "{state:?}");
    assert!(!world.runtime.awaits_modules());
    assert_eq!((status(&chains, 2, &[]), status(&chains, 3, &[TOKEN])), (401, 200));

    // The next version of it.
    world.write("auth", &good("params: {tokens: {other: bob}}"));
    let chains = world.publish();
    let state = world.state("auth");
    assert!(state.pending && state.earlier && made() == 1, "{state:?}");
    assert_eq!((status(&chains, 4, &[]), status(&chains, 5, &[TOKEN])), (401, 200));
    let chains = world.apply("auth", &good("params: {tokens: {other: bob}}"));
    assert_eq!((status(&chains, 6, &[TOKEN]), made()), (403, 2));
}

/// Nobody made its module ready: as when a file changes while the daemon publishes for the first time.
#[test]
fn at_the_start_a_guard_that_is_not_ready_refuses_unless_it_is_open() {
    for (policy, passes) in [("closed", false), ("open", true)] {
        let mut world = World::at_start(WasmHost::default());
        world.write("services", SERVICES);
        let guard = good(&format!("failurePolicy: {policy}, {PARAMS}"));
        world.write("auth", &guard);
        for _ in 0..2 {
            let chains = world.publish();
            let answer = ask(&chains, "web");
            assert_eq!(answer.is_ok(), passes, "{policy}");
            assert!(answer.is_ok() || answer.is_err_and(|denied| denied.status == 503));
            assert!(ask(&chains, "v1").is_ok(), "it does not guard that");
            let state = world.state("auth");
            assert!(state.pending && !state.earlier, "{state:?}");
        }
        let chains = world.apply("auth", &guard);
        ask(&chains, "web").unwrap();
        assert_eq!((status(&chains, 1, &[]), status(&chains, 2, &[TOKEN])), (401, 200));
    }
}

#[test]
fn a_service_that_comes_with_its_guard_is_not_open_before_that_is_ready() {
    let late = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: 80}}]}}\n"
        )
    };
    let guard = |services: &str| good(PARAMS).replace("[web]", services);
    let mut world = World::new();
    world.write("late", &late("late"));
    world.write("auth", &guard("[web, late]"));
    let passes = |chains: &Chains| ["web", "v1", "late", "later"].map(|name| ask(chains, name).is_ok());
    // Not the first publication only: there are others before it is ready.
    for _ in 0..2 {
        assert_eq!(passes(&world.publish()), [true, true, false, true]);
    }
    // Others that it is to guard too: one that was open, and one that comes now.
    world.write("later", &late("later"));
    world.write("auth", &guard("[web, v1, late, later]"));
    for _ in 0..2 {
        assert_eq!(passes(&world.publish()), [true, true, false, false]);
    }
    let chains = world.apply("auth", &guard("[web, v1, late, later]"));
    assert_eq!(passes(&chains), [true; 4], "the module judges now");
    assert_eq!((status(&chains, 1, &[]), status(&chains, 2, &[TOKEN])), (401, 200));
}

#[test]
fn a_guard_under_another_name_does_not_open_its_service_before_it_is_ready() {
    let (mut world, _) = counting();
    let chains = world.apply("auth", &good(PARAMS));
    assert_eq!(status(&chains, 1, &[]), 401);
    let other = good("params: {tokens: {other: bob}}").replace("name: auth", "name: auth2");
    world.write("auth", "");
    world.write("auth2", &other);
    for _ in 0..2 {
        let chains = world.publish();
        assert!(world.state("auth2").pending);
        assert_eq!(ask(&chains, "web").unwrap_err().status, 503);
    }
    let chains = world.apply("auth2", &other);
    assert_eq!((status(&chains, 2, &[]), status(&chains, 3, &[TOKEN])), (401, 403));
}

#[test]
fn who_was_refused_for_a_module_that_cannot_run_is_until_the_next_one_is_ready() {
    let (mut world, _) = counting();
    world.apply("auth", &auth("module: /etc/hostname", PARAMS));
    world.write("auth", &good(PARAMS));
    for _ in 0..2 {
        let chains = world.publish();
        assert!(world.state("auth").pending);
        assert_eq!(ask(&chains, "web").unwrap_err().status, 503);
    }
}

#[test]
fn two_who_prepare_one_adapter_share_it_and_what_nobody_puts_in_force_goes() {
    let (mut world, made) = counting();
    world.write("auth", &good(PARAMS));
    let (first, second) = (world.prepare(), world.prepare());
    assert_eq!(made(), 1);
    // Who made it could not store it.
    drop(first);
    world.publish();
    drop(second);
    assert!(!world.state("auth").pending);

    let other = good("params: {tokens: {other: bob}}");
    world.write("auth", &other);
    drop(world.prepare());
    world.publish();
    assert!(world.state("auth").pending, "it was thrown away");
    let ahead = world.prepare();
    assert_eq!(made(), 3);
    // Deleted meanwhile.
    world.write("auth", "");
    let chains = world.publish();
    drop(ahead);
    assert!(chains.is_empty() && world.runtime.states().is_empty());
    world.apply("auth", &other);
    assert_eq!(made(), 4);
}

#[test]
fn a_module_whose_file_changed_is_read_again_and_one_in_force_is_not() {
    let (folder, file) = written(LOOPS);
    let bytes = fs::read(module("header-auth")).unwrap();
    let replace = |bytes: &[u8]| {
        let new = folder.path().join("new");
        fs::write(&new, bytes).unwrap();
        fs::rename(new, &file).unwrap();
    };
    let text = auth(&format!("module: {}, limits: {{startMs: 200}}", file.display()), PARAMS);
    let (mut world, made) = counting();
    world.apply("auth", &text);
    assert!(world.state("auth").problem.is_some());
    replace(&bytes);
    assert!(lacks(&world));
    world.publish();
    assert!(world.state("auth").pending);
    let chains = world.apply("auth", &text);
    assert_eq!((status(&chains, 1, &[]), made()), (401, 2));
    replace(b"garbage");
    assert!(!lacks(&world));
    let chains = world.apply("auth", &text);
    assert_eq!((status(&chains, 2, &[]), made()), (401, 2));
    assert_eq!(world.state("auth").problem, None);
}

/// Older kernels count a file's times in ticks of milliseconds.
#[test]
fn a_module_that_is_written_again_in_place_at_once_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("module.wasm");
    let text = auth(&format!("module: {}", file.display()), PARAMS);
    let (mut world, _) = counting();
    world.write("auth", &text);
    for bytes in [b"garbage", b"rubbish"] {
        fs::write(&file, bytes).unwrap();
        assert!(lacks(&world), "{bytes:?}");
        let ahead = world.prepare();
        assert!(!lacks(&world), "{bytes:?}");
        world.publish();
        drop(ahead);
    }
}

#[test]
fn a_good_generation_beside_a_refused_one_is_not_made_again() {
    let (_folder, loops) = written(LOOPS);
    let text = auth(
        &format!(
            "limits: {{startMs: 200}}, generations: [{{name: v1, module: {}, weight: 0}}, {{name: v2, module: {}, weight: 1}}]",
            module("header-auth").display(),
            loops.display(),
        ),
        PARAMS,
    );
    let (mut world, made) = counting();
    world.apply("auth", &text);
    for _ in 0..2 {
        world.publish();
        let state = world.state("auth");
        let told = state.problem.as_ref().is_some_and(|told| told.contains("CPU time"));
        assert!(told && !state.pending, "{state:?}");
        assert!(!lacks(&world));
    }
    assert_eq!(made(), 2);
}
