use std::{
    fs,
    task::{Context as TaskContext, Poll, Waker},
};

use prometheus_client::registry::Registry;
use weft_policy::{Allocations, CompileInput, Severity, Store, adapter_configs, compile};

use super::*;
use crate::{
    attribute::{Bag, tests::with_bag},
    native::Catalog,
    pipeline::{CheckResult, Checking, Denied, Directives},
    provider::tests::until,
    record::{Flow, Record, samples},
    reporter::ReporterThread,
};

mod beside;
mod prepare;
mod remote;
mod state;
mod waits;
mod wasm;

struct World {
    store: Store,
    allocations: Allocations,
    runtime: AdapterRuntime,
    thread: ReporterThread,
    reporter: crate::reporter::Reporter,
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: split.smi-spec.io/v1alpha4
kind: TrafficSplit
metadata: {name: front, namespace: shop}
spec: {service: front, backends: [{service: web, weight: 1}, {service: v1, weight: 1}]}
";

impl World {
    fn new() -> Self {
        Self::with(WasmHost::default())
    }

    fn with(wasm: WasmHost) -> Self {
        let mut world = Self::at_start(wasm);
        world.apply("services", SERVICES);
        world
    }

    /// Nothing was published yet.
    fn at_start(wasm: WasmHost) -> Self {
        let reports = ReportMetrics::default();
        let (thread, mut reporters) = ReporterThread::start(Vec::new(), 1, reports.clone()).unwrap();
        Self {
            store: Store::with_adapters(&Catalog),
            allocations: Allocations::default(),
            runtime: AdapterRuntime::new(
                thread.control(),
                RuntimeMetrics {
                    reports,
                    ..RuntimeMetrics::default()
                },
                wasm,
            ),
            thread,
            reporter: reporters.remove(0),
        }
    }

    /// The chains after this file has this text.
    fn apply(&mut self, file: &str, text: &str) -> Arc<Chains> {
        self.write(file, text);
        let _ahead = self.prepare();
        self.publish()
    }

    fn write(&mut self, file: &str, text: &str) {
        let found = self.store.apply_file(file, text.as_bytes());
        assert!(found.iter().all(|d| d.severity != Severity::Error), "{found:?}");
    }

    fn prepare(&self) -> Ahead {
        let wanted = adapter_configs(&self.store);
        self.runtime.preparer().prepare(wanted.iter().map(|config| &**config))
    }

    fn publish(&mut self) -> Arc<Chains> {
        let snapshot = self.compile();
        self.runtime.update(&snapshot)
    }

    fn compile(&mut self) -> Snapshot {
        let input = CompileInput::of(&self.store);
        compile(&input, &mut self.allocations).snapshot
    }

    /// Reporters of a request to this service.
    fn tell(&self, service: &str) {
        let mut flow: Flow = samples::request();
        let destination = Arc::make_mut(&mut flow.destination);
        destination.namespace = "shop".into();
        destination.service = Some(service.into());
        self.reporter.record(Record::Flow(Arc::new(flow)));
    }

    fn state(&self, name: &str) -> AdapterState {
        let states = self.runtime.states();
        states.into_iter().find(|state| state.object.name == name).unwrap()
    }
}

fn adapter(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{backend: native, {rest}}}\n---\n"
    )
}

fn service(name: &str) -> ServiceName {
    ServiceName {
        namespace: "shop".into(),
        name: name.into(),
    }
}

/// Names of the checks of a request that was sent to `called` and goes to `backend`.
fn checks(chains: &Chains, called: &str, backend: &str) -> Vec<String> {
    let (called, backend) = (service(called), service(backend));
    let chain = chains.of(Some(&called), Some(&backend));
    chain.map_or(Vec::new(), |chain| {
        let checks = chain.pipeline.checks.iter().chain(&chain.quotas.checks);
        checks.map(|check| check.name().to_owned()).collect()
    })
}

fn ask(chains: &Chains, name: &str) -> Result<Directives, Box<Denied>> {
    ask_for(chains, name, "/")
}

fn ask_for(chains: &Chains, name: &str, path: &'static str) -> Result<Directives, Box<Denied>> {
    let name = service(name);
    let Some(chain) = chains.of(Some(&name), Some(&name)) else {
        return Ok(Directives::default());
    };
    with_bag(&[], |mut bag| {
        bag.request.as_mut().unwrap().path = path;
        let mut asking = std::pin::pin!(async {
            let directives = chain.pipeline.check(&bag).await?;
            chain.quotas.check(&bag).await?;
            Ok(directives)
        });
        match asking.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())) {
            Poll::Ready(answer) => answer,
            Poll::Pending => panic!("nothing here waits"),
        }
    })
}

fn quota(target: &str) -> String {
    adapter(
        "quota",
        &format!(
            "native: memquota, target: {target}, params: {{quotas: [{{name: q, max_amount: 1, valid_duration: 1h}}]}}"
        ),
    )
}

#[test]
fn quotas_come_after_checks_larger_priorities_first_and_a_split_meets_both_services_adapters_once() {
    let mut world = World::new();
    let text = [
        quota("all"),
        adapter("a", "native: denier, target: {services: [front, web]}"),
        adapter("b", "native: denier, target: {services: [v1]}, priority: -1"),
        adapter("c", "native: denier, target: namespace, priority: 7"),
    ];
    let chains = world.apply("adapters", &text.concat());
    assert_eq!(checks(&chains, "web", "web"), ["shop/c", "shop/a", "shop/quota"]);
    assert_eq!(checks(&chains, "v1", "v1"), ["shop/c", "shop/b", "shop/quota"]);
    assert_eq!(checks(&chains, "front", "web"), ["shop/c", "shop/a", "shop/quota"]);
    assert_eq!(
        checks(&chains, "front", "v1"),
        ["shop/c", "shop/a", "shop/b", "shop/quota"]
    );
    let chains = world.apply("adapters", "");
    assert!(chains.is_empty());
}

#[test]
fn chains_are_made_anew_where_adapters_services_or_splits_are_others() {
    let mut world = World::new();
    let first = world.apply(
        "adapters",
        &adapter("a", "native: denier, target: {services: [front, web]}"),
    );
    let snapshot = world.compile();
    let chains = world.runtime.update(&snapshot);
    assert!(!Arc::ptr_eq(&chains, &first), "other adapters, as far as anybody knows");
    assert!(Arc::ptr_eq(&chains, &world.runtime.update(&snapshot)));

    // The same services, with this one in place of its own.
    let with = |changed: weft_policy::Service| Snapshot {
        services: snapshot
            .services
            .iter()
            .map(|(name, service)| match *name == changed.name {
                true => (name.clone(), Arc::new(changed.clone())),
                false => (name.clone(), Arc::clone(service)),
            })
            .collect(),
        adapters: snapshot.adapters.clone(),
        ..Snapshot::default()
    };
    let front = weft_policy::Service::clone(snapshot.services.get(&service("front")).expect("a service"));
    assert!(Arc::ptr_eq(&chains, &world.runtime.update(&with(front.clone()))));
    assert_eq!(checks(&chains, "front", "web"), ["shop/a"]);
    let mut whole = front;
    whole.ports[0].split = None;
    let whole = world.runtime.update(&with(whole));
    assert_eq!(checks(&whole, "front", "web"), Vec::<String>::new());
    let again = world.runtime.update(&snapshot);
    assert_eq!(checks(&again, "front", "web"), ["shop/a"]);

    let none = world.apply("adapters", "");
    assert!(none.is_empty());
}

#[test]
fn an_adapter_that_did_not_change_remembers_and_one_that_did_begins_anew() {
    let mut world = World::new();
    let chains = world.apply("quota", &quota("{services: [web]}"));
    ask(&chains, "web").unwrap();
    assert_eq!(ask(&chains, "web").unwrap_err().status, 429);
    // Another target and another object: the same adapter.
    world.apply("other", &adapter("other", "native: denier, target: {services: [v1]}"));
    let chains = world.apply("quota", &quota("all"));
    assert_eq!(ask(&chains, "web").unwrap_err().status, 429);
    let counts = world.state("quota").counts;
    assert_eq!((counts.allowed, counts.denied, counts.failed), (1, 2, 0));
    let more = quota("all").replace("max_amount: 1", "max_amount: 2");
    let chains = world.apply("quota", &more);
    ask(&chains, "web").unwrap();
    // Gone and back: its counters are new, too.
    world.apply("quota", "");
    world.apply("quota", &more);
    assert_eq!(world.state("quota").counts, AdapterCounts::default());
}

#[test]
fn nothing_counts_on_for_an_adapter_that_is_gone() {
    let mut world = World::new();
    let metrics = world.runtime.metrics.clone();
    let mut registry = Registry::default();
    metrics.adapters.register(&mut registry);
    metrics.checks.register(&mut registry);
    metrics.reports.register(&mut registry);
    let shown = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    };
    let check = adapter(
        "check",
        "native: ext_authz, target: all, params: {address: \"localhost:1\"}",
    );
    let report = adapter("report", "native: statsd, target: all");
    world.apply("both", &[check.as_str(), report.as_str()].concat());
    for series in [
        "weft_adapter_checks_total{adapter=\"shop/check\"",
        "weft_check_failures_total{adapter=\"shop/check\"",
        "weft_report_sent_total{adapter=\"shop/report\"",
    ] {
        assert!(shown().contains(series), "{series}: {}", shown());
    }
    world.apply("both", "");
    assert!(!shown().contains("shop/"), "{}", shown());
}

#[test]
fn one_that_cannot_be_made_refuses_unless_it_is_open_and_leaves_the_last_good_one_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list");
    let list = |policy: &str| {
        adapter(
            "list",
            &format!(
                "native: list, target: all, failurePolicy: {policy}, params: {{value: source.ip, blacklist: true, provider_url: {}}}",
                path.display()
            ),
        )
    };
    let mut world = World::new();
    let chains = world.apply("list", &list("closed"));
    let denied = ask(&chains, "web").unwrap_err();
    assert_eq!(
        (denied.status, denied.rule.to_string().as_str()),
        (503, "Adapter shop/list")
    );
    let state = world.state("list");
    assert!(state.problem.as_ref().unwrap().contains("No such file"), "{state:?}");
    assert!(!state.earlier);
    let chains = world.apply("list", &list("open"));
    ask(&chains, "web").unwrap();
    // The next publication of anything tries again.
    fs::write(&path, "10.0.0.1\n").unwrap();
    world.apply("list", &list("closed"));
    assert_eq!(world.state("list").problem, None);
    let missing = list("closed").replace("/list}", "/missing}");
    let chains = world.apply("list", &missing);
    ask(&chains, "web").unwrap();
    let state = world.state("list");
    assert!(state.problem.is_some() && state.earlier, "{state:?}");
    // Taken back: what is in force is what is wanted.
    world.apply("list", &list("closed"));
    let state = world.state("list");
    assert_eq!((state.problem, state.earlier), (None, false));
}

#[test]
fn a_reporter_does_not_stand_in_for_a_check_that_cannot_be_made() {
    let mut world = World::new();
    world.apply("a", &adapter("a", "native: statsd, target: all"));
    let list = |policy: &str| {
        adapter(
            "a",
            &format!(
                "native: list, target: all, failurePolicy: {policy}, params: {{value: source.ip, provider_url: /nowhere/list}}"
            ),
        )
    };
    let chains = world.apply("a", &list("closed"));
    assert_eq!(ask(&chains, "web").unwrap_err().status, 503);
    let state = world.state("a");
    assert!(state.problem.is_some() && !state.earlier, "{state:?}");
    let chains = world.apply("a", &list("open"));
    ask(&chains, "web").unwrap();
}

/// Panics at once, or when it is waited for.
struct Bad {
    later: bool,
}

impl Check for Bad {
    fn name(&self) -> &str {
        "bad"
    }

    fn check<'a>(&'a self, _bag: &'a Bag<'_>) -> Checking<'a> {
        if self.later {
            return Checking::Pending(Box::pin(async { panic!("later") }));
        }
        panic!("at once")
    }
}

#[test]
fn a_panic_harms_one_request_as_the_failure_policy_says() {
    for later in [false, true] {
        for (failure_policy, expect) in [(AdapterFailure::Open, None), (AdapterFailure::Closed, Some(500))] {
            let config = AdapterConfig {
                object: ObjectRef {
                    kind: "Adapter".into(),
                    namespace: Some("shop".into()),
                    name: "bad".into(),
                },
                role: AdapterRole::Check,
                backend: AdapterBackend::Native { name: "bad".into() },
                params: serde_json::Value::Null,
                failure_policy,
            };
            let counters = CheckCounters::default();
            let guarded = Guarded::new(Arc::new(Bad { later }), &config, counters.clone());
            let found = with_bag(&[], |bag| match guarded.check(&bag) {
                Checking::Ready(result) => result,
                Checking::Pending(mut answer) => {
                    match answer.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())) {
                        Poll::Ready(result) => result,
                        Poll::Pending => panic!("nothing here waits"),
                    }
                }
            });
            let status = match found {
                CheckResult::Unjudged(deny) => deny.map(|deny| deny.status),
                verdict => panic!("it gives no verdict, not {verdict:?}"),
            };
            assert_eq!(status, expect, "later: {later}, {failure_policy:?}");
            assert_eq!(counters.failed.get(), 1);
        }
    }
}

/// Nobody listens there: neither list nor keys are ever fetched.
#[test]
fn what_gives_no_verdict_counts_as_failed_and_is_open_where_the_object_says_so() {
    for (native, rest) in [
        (
            "list",
            "target: all, params: {value: source.ip, provider_url: \"http://127.0.0.1:1/list\"}",
        ),
        (
            "jwt",
            "target: all, params: {jwks_uri: \"http://127.0.0.1:1/jwks\", from: [{query: a}]}",
        ),
    ] {
        for (failure_policy, expect) in [("open", None), ("closed", Some(503))] {
            let mut world = World::new();
            let text = adapter(
                "a",
                &format!("native: {native}, failurePolicy: {failure_policy}, {rest}"),
            );
            let chains = world.apply("a", &text);
            let status = ask_for(&chains, "web", "/?a=b").err().map(|denied| denied.status);
            assert_eq!(status, expect, "{native}, {failure_policy}");
            let counts = world.state("a").counts;
            assert_eq!((counts.allowed, counts.denied, counts.failed), (0, 0, 1), "{native}");
        }
    }
}

#[test]
fn a_reporter_is_told_of_its_services_comes_and_goes_and_loses_nothing_that_was_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let log = |target: &str| {
        let path = path.display();
        adapter(
            "log",
            &format!(
                "native: stdio, target: {target}, params: {{path: {path}, template: \"{{destination.service}}\"}}"
            ),
        )
    };
    let mut world = World::new();
    world.apply("log", &log("{services: [web]}"));
    world.tell("web");
    world.tell("v1");
    world.apply("log", "");
    // Taken in after the adapter was told to go.
    world.apply("other", &adapter("counts", "native: statsd, target: all"));
    assert_eq!(world.runtime.states().len(), 1);
    world.thread.shutdown(Duration::from_secs(20)).unwrap();
    let written = || fs::read_to_string(&path).unwrap_or_default();
    until("it is written", || !written().is_empty());
    assert_eq!(written(), "web\n");
}

impl Report for Bad {
    fn name(&self) -> &str {
        "shop/log"
    }

    fn report(&mut self, _batch: &[Record]) {
        panic!("of a report")
    }
}

#[test]
fn a_reporter_that_panicked_is_shown_as_not_in_force() {
    let log = adapter("log", "native: statsd, target: {services: [web]}");
    let mut world = World::new();
    world.apply("log", &log);
    let reporters = world.thread.control();
    let live = world.runtime.live.values_mut().next().unwrap();
    live.part = LivePart::Report(Told::new(
        Box::new(Bad { later: false }),
        &live.adapter.target,
        &reporters,
        None,
    ));
    world.tell("v1");
    assert_eq!(world.state("log").problem, None);
    world.tell("web");
    until("it has panicked", || world.state("log").problem.is_some());
    let state = world.state("log");
    assert_eq!((state.problem.as_deref(), state.earlier), (Some(PANICKED), false));
    world.apply("log", &log.replace("[web]}", "[web]}, params: {prefix: a}"));
    assert_eq!(world.state("log").problem, None);
}
