//! Adapters as WebAssembly: real modules, as `cargo xtask build --filters` made them.

use std::{net::SocketAddr, path::PathBuf, rc::Rc, time::SystemTime};

use http::{Request, request};

use super::*;
use crate::{
    record::{Destination, FlowProtocol, Peer},
    stream::{Step, StreamFilter, StreamInfo},
};

fn module(name: &str) -> PathBuf {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../target/wasm/{name}.wasm"));
    assert!(
        file.is_file(),
        "{} is missing: run `cargo xtask build --filters`",
        file.display()
    );
    file
}

fn auth(wasm: &str, rest: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {{name: auth, namespace: shop}}\n\
         spec: {{backend: wasm, target: {{services: [web]}}, wasm: {{{wasm}}}, {rest}}}\n"
    )
}

/// The filter of request number `id` to `web`.
pub(super) fn stream(chains: &Chains, id: u64) -> Option<Box<dyn StreamFilter>> {
    let name = service("web");
    let chain = chains.of(Some(&name), Some(&name))?;
    let address = SocketAddr::from(([10, 0, 0, 1], 80));
    let info = Rc::new(StreamInfo {
        id,
        began: SystemTime::now(),
        source: Arc::new(Peer {
            namespace: "shop".into(),
            service: None,
            account: "client".into(),
        }),
        source_address: address,
        destination: Arc::new(Destination {
            namespace: "shop".into(),
            service: Some("web".into()),
            account: None,
            address: address.ip(),
            port: 80,
        }),
        original: address,
        protocol: FlowProtocol::Http,
    });
    chain.filters.first()?.stream(&info)
}

pub(super) fn head(headers: &[(&str, &str)]) -> request::Parts {
    let mut request = Request::builder().uri("/").header("host", "web");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// What a request of these headers is answered; 200: it passes.
fn status(chains: &Chains, id: u64, headers: &[(&str, &str)]) -> u16 {
    let Some(mut filter) = stream(chains, id) else {
        return 200;
    };
    match filter.on_request_headers(&mut head(headers), true) {
        Step::Continue => 200,
        Step::Respond(response) => response.status().as_u16(),
        other => panic!("{other:?}"),
    }
}

const TOKEN: (&str, &str) = ("authorization", "Bearer s3cret");
const PARAMS: &str = "params: {tokens: {s3cret: alice}}";

#[test]
fn an_unchanged_module_goes_on_and_one_that_cannot_run_leaves_it_in_force() {
    let mut world = World::new();
    let good = format!("module: {}", module("header-auth").display());
    let chains = world.apply("auth", &auth(&good, PARAMS));
    assert_eq!((status(&chains, 1, &[]), status(&chains, 2, &[TOKEN])), (401, 200));
    // Other priority, other object text: the same plugin.
    let chains = world.apply("auth", &auth(&good, &format!("{PARAMS}, priority: 3")));
    assert_eq!(status(&chains, 3, &[]), 401);
    assert_eq!(world.state("auth").generations[0].stats.streams, 3);

    for (wasm, params, problem) in [
        (
            "module: /nowhere.wasm".to_owned(),
            PARAMS,
            "read module `/nowhere.wasm`: No such file",
        ),
        ("module: /etc".to_owned(), PARAMS, "it is no regular file"),
        ("module: /etc/hostname".to_owned(), PARAMS, "not a WebAssembly module"),
        (good.clone(), "params: {}", "said no"),
        (
            format!("{good}, sha256: {}", "ab".repeat(32)),
            PARAMS,
            "and sha256:abababab",
        ),
    ] {
        let chains = world.apply("auth", &auth(&wasm, params));
        let state = world.state("auth");
        assert!(
            state.problem.as_ref().is_some_and(|found| found.contains(problem)) && state.earlier,
            "{wasm}: {state:?}"
        );
        assert_eq!(status(&chains, 4, &[]), 401, "{wasm}");
    }
    let chains = world.apply("auth", &auth(&good, PARAMS));
    let state = world.state("auth");
    assert_eq!((state.problem, state.generations[0].stats.traps), (None, 0));
    assert_eq!(status(&chains, 5, &[]), 401);
    assert_eq!(world.state("auth").generations[0].stats.streams, 9);

    let chains = world.apply("auth", "");
    assert_eq!(status(&chains, 6, &[]), 200);
}

#[test]
fn what_never_ran_is_decided_by_the_failure_policy() {
    let mut world = World::new();
    let chains = world.apply("auth", &auth("module: /nowhere.wasm", PARAMS));
    assert!(ask(&chains, "web").is_err());
    let chains = world.apply(
        "auth",
        &auth("module: /nowhere.wasm", &format!("{PARAMS}, failurePolicy: open")),
    );
    assert!(ask(&chains, "web").is_ok());
    assert!(!world.state("auth").earlier);
}
