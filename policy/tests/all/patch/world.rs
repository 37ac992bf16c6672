//! Random small meshes with workloads written by hand, and what is edited in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use proptest::prelude::*;
use weft_policy::{Allocations, Captured, CompileInput, Compiled, RuntimeWorkload, Store, compile};

use crate::support;

/// Also this machine's own, and loopback.
pub const ADDRESSES: [&str; 11] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "10.0.0.5",
    "10.0.0.6",
    "10.0.0.9",
    "2001:db8::1",
    "2001:db8::2",
    "127.0.0.1",
    "::1",
];
const LISTENING: [&str; 3] = [
    "listen=0.0.0.0:8080/tcp",
    "listen=10.0.0.9:8080/tcp",
    "listen=127.0.0.1:8080/tcp",
];

/// Services that share workloads and target ports, and of every kind of resource one that looks at them.
const BASE: &str = r#"apiVersion: v1
kind: Service
metadata: {name: web, namespace: n0}
spec:
  selector: {app: a}
  ports: [{name: http, port: 80, targetPort: 8080}, {port: 81, targetPort: 8080}, {port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: also, namespace: n0}
spec: {selector: {app: a, tier: x}, ports: [{port: 80, targetPort: 8080}, {port: 90}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: n0}
spec: {selector: {app: b}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: own, namespace: n0}
spec: {selector: {tier: x}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: n1}
spec: {selector: {app: a}, ports: [{port: 80}]}
---
apiVersion: weft.mesh/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
spec: {accessDefault: deny}
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: routes, namespace: n0}
spec: {matches: [{name: get, methods: [GET], pathRegex: /a}]}
---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: to-a0, namespace: n0}
spec:
  destination: {kind: ServiceAccount, name: a0}
  sources: [{kind: ServiceAccount, name: a1, namespace: n1}]
  rules: [{kind: HTTPRouteGroup, name: routes}]
---
apiVersion: split.smi-spec.io/v1alpha4
kind: TrafficSplit
metadata: {name: web, namespace: n0}
spec: {service: web, backends: [{service: api, weight: 1}, {service: missing, weight: 1}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: into-a, namespace: n0}
spec:
  podSelector: {matchLabels: {app: a}}
  ingress:
    - from:
        - ipBlock: {cidr: 10.0.0.0/28, except: [10.0.0.4/32]}
        - podSelector: {matchLabels: {app: b}}
      ports: [{port: http}]
---
apiVersion: weft.mesh/v1alpha1
kind: Adapter
metadata: {name: denier, namespace: n0}
spec: {backend: native, native: denier, target: {services: [api]}}
"#;

/// A second split of a root that has one: it waits.
const RIVAL: &str = "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\n\
                     metadata: {name: rival, namespace: n0}\nspec: {service: web, backends: [{service: api, weight: 1}]}\n";

#[derive(Debug, Clone)]
pub struct Mesh {
    pub far: Vec<Far>,
    /// All of them in one file, else each in its own.
    pub one_file: bool,
    /// Comments in front of them.
    lines: usize,
    /// What a service selects.
    selects: &'static str,
    rival: bool,
    listening: Vec<&'static str>,
    /// Something was found of what `far0` wants to have captured.
    found: bool,
}

/// A workload written by hand.
#[derive(Debug, Clone)]
pub struct Far {
    pub namespace: &'static str,
    pub app: Option<&'static str>,
    pub tier: bool,
    pub account: &'static str,
    /// Where it serves port 80, if it says so.
    pub port: Option<u16>,
    pub addresses: Vec<&'static str>,
    pub note: bool,
    pub captured: bool,
    pub absent: bool,
    pub broken: bool,
}

#[derive(Debug, Clone)]
pub enum Edit {
    Addresses(usize, Vec<&'static str>),
    App(usize, Option<&'static str>),
    Tier(usize),
    Account(usize, &'static str),
    Port(usize, Option<u16>),
    Note(usize),
    Captured(usize),
    Absent(usize),
    Broken(usize),
    Lines,
    Selects(&'static str),
    Rival,
    Listening(Vec<&'static str>),
    Found,
    /// The same files again.
    Nothing,
}

/// A mesh in a store, and what it was compiled with.
pub struct World {
    pub mesh: Mesh,
    pub store: Store,
    files: BTreeMap<String, String>,
    running: Vec<RuntimeWorkload>,
    captured: BTreeMap<String, Captured>,
    generation: u64,
}

// === random meshes ===

fn addresses() -> impl Strategy<Value = Vec<&'static str>> {
    prop::sample::subsequence(&ADDRESSES[..], 0..3).prop_shuffle()
}

fn app() -> impl Strategy<Value = Option<&'static str>> {
    prop::sample::select(vec![Some("a"), Some("a"), Some("b"), None])
}

fn account() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a0", "a1"])
}

fn port() -> impl Strategy<Value = Option<u16>> {
    prop::sample::select(vec![None, None, Some(8080), Some(8081)])
}

fn listening() -> impl Strategy<Value = Vec<&'static str>> {
    prop::sample::subsequence(&LISTENING[..], 0..=LISTENING.len())
}

pub fn mesh() -> impl Strategy<Value = Mesh> {
    let flags = (any::<bool>(), prop::bool::weighted(0.1));
    let namespace = prop::sample::select(vec!["n0", "n0", "n1"]);
    let far = (namespace, app(), account(), port(), addresses(), flags).prop_map(
        |(namespace, app, account, port, addresses, (tier, captured))| Far {
            namespace,
            app,
            tier,
            account,
            port,
            addresses,
            note: false,
            captured,
            absent: false,
            broken: false,
        },
    );
    (prop::collection::vec(far, 1..5), any::<bool>(), listening()).prop_map(|(far, one_file, listening)| Mesh {
        far,
        one_file,
        lines: 0,
        selects: "a",
        rival: false,
        listening,
        found: false,
    })
}

pub fn edit() -> impl Strategy<Value = Edit> {
    let at = 0..4usize;
    prop_oneof![
        16 => (at.clone(), addresses()).prop_map(|(at, addresses)| Edit::Addresses(at, addresses)),
        1 => (at.clone(), app()).prop_map(|(at, app)| Edit::App(at, app)),
        1 => at.clone().prop_map(Edit::Tier),
        1 => (at.clone(), account()).prop_map(|(at, account)| Edit::Account(at, account)),
        1 => (at.clone(), port()).prop_map(|(at, port)| Edit::Port(at, port)),
        1 => at.clone().prop_map(Edit::Note),
        1 => at.clone().prop_map(Edit::Captured),
        1 => at.clone().prop_map(Edit::Absent),
        2 => at.prop_map(Edit::Broken),
        1 => Just(Edit::Lines),
        1 => prop::sample::select(vec!["a", "b"]).prop_map(Edit::Selects),
        1 => Just(Edit::Rival),
        1 => listening().prop_map(Edit::Listening),
        1 => Just(Edit::Found),
        1 => Just(Edit::Nothing),
    ]
}

// === impl Mesh ===

impl Mesh {
    fn edit(&mut self, edit: &Edit) {
        match edit {
            Edit::Addresses(at, addresses) => self.with(*at, |far| far.addresses.clone_from(addresses)),
            Edit::App(at, app) => self.with(*at, |far| far.app = *app),
            Edit::Tier(at) => self.with(*at, |far| far.tier ^= true),
            Edit::Account(at, account) => self.with(*at, |far| far.account = account),
            Edit::Port(at, port) => self.with(*at, |far| far.port = *port),
            Edit::Note(at) => self.with(*at, |far| far.note ^= true),
            Edit::Captured(at) => self.with(*at, |far| far.captured ^= true),
            Edit::Absent(at) => self.with(*at, |far| far.absent ^= true),
            Edit::Broken(at) => self.with(*at, |far| far.broken ^= true),
            Edit::Lines => self.lines += 1,
            Edit::Selects(app) => self.selects = app,
            Edit::Rival => self.rival ^= true,
            Edit::Listening(listening) => self.listening.clone_from(listening),
            Edit::Found => self.found ^= true,
            Edit::Nothing => {}
        }
    }

    fn with(&mut self, at: usize, edit: impl FnOnce(&mut Far)) {
        let at = at % self.far.len();
        edit(&mut self.far[at]);
    }

    /// Whether this edit leaves all as it is but for addresses that nobody else has.
    pub fn is_plain(&self, edit: &Edit) -> bool {
        if self.far.iter().any(|far| !far.absent && far.is_refused()) {
            return false;
        }
        let Edit::Addresses(at, to) = edit else {
            // What waits for another is said to, again.
            return matches!(edit, Edit::Nothing) && !self.rival;
        };
        let at = at % self.far.len();
        let own = &self.far[at];
        if own.absent || own.captured || to.is_empty() {
            return false;
        }
        let others = self.far.iter().enumerate().filter(|(i, far)| *i != at && !far.absent);
        let mut taken: BTreeSet<&str> = others.flat_map(|(_, far)| far.addresses.iter().copied()).collect();
        taken.extend(["10.0.0.9", "127.0.0.1", "::1"]);
        own.addresses.iter().chain(to).all(|address| !taken.contains(address))
    }

    fn files(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::from([("base".to_owned(), BASE.to_owned())]);
        files.insert(
            "moving".to_owned(),
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: moving, namespace: n0}}\n\
                 spec: {{selector: {{app: {}}}, ports: [{{port: 70, targetPort: 8080}}]}}\n",
                self.selects
            ),
        );
        if self.rival {
            files.insert("rival".to_owned(), RIVAL.to_owned());
        }
        for (i, far) in self.far.iter().enumerate().filter(|(_, far)| !far.absent) {
            let file = if self.one_file {
                "far".to_owned()
            } else {
                format!("far{i}")
            };
            let text = files.entry(file).or_insert_with(|| "# far\n".repeat(self.lines));
            text.push_str(&far.yaml(i));
        }
        files
    }
}

// === impl Far ===

impl Far {
    fn is_refused(&self) -> bool {
        self.broken || (self.addresses.is_empty() && !self.captured)
    }

    fn yaml(&self, number: usize) -> String {
        let mut labels: Vec<String> = self.app.iter().map(|app| format!("app: {app}")).collect();
        labels.extend(self.tier.then(|| "tier: x".to_owned()));
        let mut spec = vec![format!("serviceAccount: {}", self.account)];
        if !self.addresses.is_empty() {
            spec.push(format!("addresses: [\"{}\"]", self.addresses.join("\", \"")));
        }
        spec.extend(
            self.port
                .map(|port| format!("ports: [{{port: 80, targetPort: {port}}}]")),
        );
        spec.extend(self.captured.then(|| format!("capture: {{cgroup: pods/far{number}}}")));
        spec.extend(self.broken.then(|| "nonsense: 1".to_owned()));
        let note = if self.note { "one" } else { "two" };
        let mut out = String::new();
        let _ = writeln!(
            out,
            "apiVersion: weft.mesh/v1alpha1\nkind: Workload\nmetadata: {{name: far{number}, namespace: {}, labels: {{{}}}, \
             annotations: {{note: {note}}}}}\nspec: {{{}}}\n---",
            self.namespace,
            labels.join(", "),
            spec.join(", ")
        );
        out
    }
}

// === impl World ===

impl World {
    pub fn new(mesh: Mesh) -> Self {
        let mut world = Self {
            mesh,
            store: Store::with_adapters(&support::Known),
            files: BTreeMap::new(),
            running: Vec::new(),
            captured: BTreeMap::new(),
            generation: 0,
        };
        world.take();
        world
    }

    pub fn edit(&mut self, edit: &Edit) {
        self.mesh.edit(edit);
        if matches!(edit, Edit::Nothing) {
            self.files.clear();
        }
        self.take();
    }

    /// Has the store read what is new in the files.
    fn take(&mut self) {
        let files = self.mesh.files();
        for (name, text) in &files {
            if self.files.get(name) != Some(text) {
                self.store.apply_file(name, text.as_bytes());
            }
        }
        for name in self.files.keys().filter(|name| !files.contains_key(*name)) {
            self.store.remove_file(name);
        }
        self.files = files;
        let mut options = vec!["label=app=a"];
        options.extend(&self.mesh.listening);
        self.running = vec![support::workload("n0/web/1", &options, 100)];
        let found = Captured {
            cgroup: Some(7),
            ..Captured::default()
        };
        let found = self.mesh.found.then(|| ("n0/far0".to_owned(), found));
        self.captured = found.into_iter().collect();
        self.generation += 1;
    }

    pub fn input(&self) -> CompileInput<'_> {
        CompileInput {
            workloads: &self.running,
            captured: &self.captured,
            generation: self.generation,
            ..CompileInput::of(&self.store)
        }
    }

    pub fn compile(&self, allocations: &mut Allocations) -> Compiled {
        compile(&self.input(), allocations)
    }
}
