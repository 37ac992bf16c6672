use super::*;
use crate::builtin::ext_authz::tests::service::Service;

fn object(backend: &str, address: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {{name: a, namespace: shop}}\nspec:\n  target: all\n  \
         backend: {backend}\n  native: denier\n  remote: {{protocol: ext_authz, address: \"{address}\", timeout: 20s}}\n"
    )
}

fn ask_and_wait(chains: &Chains) -> Result<Directives, Box<Denied>> {
    let chain = chains.of(Some(&service("web")), Some(&service("web"))).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap();
    with_bag(&[], |bag| runtime.block_on(async { chain.pipeline.check(&bag).await }))
}

#[test]
fn an_object_moves_between_backends_by_one_word() {
    let server = Service::allowing();
    let mut world = World::new();
    let chains = world.apply("a", &object("native", &server.address));
    assert_eq!(ask_and_wait(&chains).unwrap_err().status, 403);
    assert_eq!(server.requests(), 0);
    let chains = world.apply("a", &object("remote", &server.address));
    ask_and_wait(&chains).unwrap();
    assert_eq!(server.requests(), 1);
    let state = world.state("a");
    let backend = format!("remote ext_authz at {}", server.address);
    assert_eq!(
        (state.backend.to_string(), state.counts.allowed, state.counts.denied),
        (backend, 1, 1)
    );
}

#[test]
fn a_server_is_told_what_the_adapter_is_configured_with() {
    let server = Service::allowing();
    let mut world = World::new();
    let text = object("remote", &server.address) + "  params: {realm: shop, limits: [1, 2]}\n";
    ask_and_wait(&world.apply("a", &text)).unwrap();
    let mut told: Vec<_> = server.last().context_extensions.into_iter().collect();
    told.sort();
    let expect = [("limits", "[1,2]"), ("realm", "shop")];
    assert_eq!(told, expect.map(|(name, text)| (name.to_owned(), text.to_owned())));
}

#[test]
fn a_server_that_is_not_there_is_for_the_failure_policy() {
    for (failure_policy, passes) in [("open", true), ("closed", false)] {
        let mut world = World::new();
        let text = object("remote", "127.0.0.1:1") + &format!("  failurePolicy: {failure_policy}\n");
        let answer = ask_and_wait(&world.apply("a", &text));
        assert_eq!(answer.is_ok(), passes, "{failure_policy}");
        assert_eq!(world.state("a").counts.failed, 1);
    }
}
