//! How many bytes a mesh takes: every endpoint pays for them, and there may be a hundred thousand.
//!
//! A binary of its own with one test, for what any other thread allocates would count.

#![allow(
    unsafe_code,
    reason = "an allocator that counts; it hands everything to the system's"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use weft_policy::{Allocations, CompileInput, Diagnostic, Store, compile};

const SERVICES: usize = 200;
/// Of each service.
const ENDPOINTS: usize = 10;
/// Objects of a file, where files have several.
const A_FILE: usize = 100;

/// Most that an endpoint may take with its part of its service: objects in force and snapshot. A tenth beyond the 1,261 that were measured.
const MOST: usize = 1_400;
/// The same where each object is a file of its own, as `weft apply` stores them and Kubernetes gives them (1,488).
const MOST_ALONE: usize = 1_650;

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes that are allocated now. What the system's allocator adds to each is not counted.
static LIVE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to `System` as it came; counting touches no memory but `LIVE`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller keeps what `alloc` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LIVE.fetch_add(size, Relaxed);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `pointer` came from `System` with this layout; the caller keeps what `realloc` asks for.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// A service and its workloads, a text each.
fn objects(service: usize) -> Vec<String> {
    let name = format!("svc-{service}");
    let mut texts = vec![format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\n"
    )];
    for number in 0..ENDPOINTS {
        let address = u32::try_from(service * ENDPOINTS + number).expect("few");
        let address = std::net::Ipv4Addr::from(0x0a80_0000 + address);
        texts.push(format!(
            "apiVersion: weft.mesh/v1alpha1\nkind: Workload\n\
             metadata: {{name: {name}-{number}, namespace: default, labels: {{app: {name}}}}}\n\
             spec: {{address: {address}, serviceAccount: {name}}}\n---\n"
        ));
    }
    texts
}

/// Bytes an endpoint of objects and of the snapshot made of them, where files have so many objects.
fn an_endpoint(objects_a_file: usize) -> (usize, usize) {
    let texts: Vec<String> = (0..SERVICES).flat_map(objects).collect();
    let files: Vec<String> = texts.chunks(objects_a_file).map(<[String]>::concat).collect();
    let mut allocations = Allocations::default();
    let before = LIVE.load(Relaxed);
    let mut store = Store::default();
    for (number, file) in files.iter().enumerate() {
        let path = format!("/var/lib/weft/objects/{number:06}.yaml");
        assert_eq!(store.apply_file(&path, file.as_bytes()), Vec::<Diagnostic>::new());
    }
    let stored = LIVE.load(Relaxed);
    let snapshot = compile(&CompileInput::of(&store), &mut allocations).snapshot;
    let compiled = LIVE.load(Relaxed);
    let endpoints = snapshot.services.values().flat_map(|service| &service.ports);
    let endpoints: usize = endpoints.map(|port| port.endpoints.len()).sum();
    assert_eq!(endpoints, SERVICES * ENDPOINTS);
    ((stored - before) / endpoints, (compiled - stored) / endpoints)
}

#[test]
fn an_endpoint_takes_little_memory() {
    for (objects_a_file, most) in [(A_FILE, MOST), (1, MOST_ALONE)] {
        let (stored, compiled) = an_endpoint(objects_a_file);
        println!(
            "{objects_a_file} objects a file: {stored} bytes an endpoint in the store, {compiled} in the snapshot"
        );
        assert!(
            stored + compiled <= most,
            "{objects_a_file} objects a file: an endpoint takes {stored} bytes in the store and {compiled} in the snapshot, \
             together more than {most}"
        );
    }
}
