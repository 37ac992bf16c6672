//! Test cases as files: resources in YAML, running workloads and questions in comments that start with `#!`.
//!
//! ```text
//! #! run NAMESPACE/SERVICE/INSTANCE [account=A] [label=K=V] [port=80:8080/tcp] [listen=0.0.0.0:8080/tcp]
//! #! capture NAMESPACE/NAME [cgroup=ID] [netns=COOKIE] [problem=cgroup|netns]
//! #! explain NAMESPACE/ACCOUNT SERVICE|ADDRESS PORT[/PROTOCOL] [METHOD PATH]
//! ```
//!
//! Running workloads have the label that `weft run` gives them, [`SERVICE_LABEL`].

pub mod render;

use std::{collections::BTreeMap, path::Path};

use weft_policy::{
    Account, AdapterCatalog, AdapterRole, Allocations, CaptureField, CaptureProblem, Captured, CompileInput, Compiled,
    ExplainInput, ExplainTarget, Labels, ParamsRefusal, Protocol, RuntimePort, RuntimeWorkload, SERVICE_LABEL,
    ServiceName, Store, compile,
};

/// The adapters of these tests. A denier's only parameter is its status.
#[derive(Debug)]
pub struct Known;

impl AdapterCatalog for Known {
    fn natives(&self) -> Vec<(&'static str, AdapterRole)> {
        vec![
            ("denier", AdapterRole::Check),
            ("ext_authz", AdapterRole::Check),
            ("memquota", AdapterRole::Quota),
            ("statsd", AdapterRole::Report),
        ]
    }

    fn check(&self, native: &str, params: &serde_json::Value) -> Result<(), ParamsRefusal> {
        let status = params.pointer("/answer/status");
        if native != "denier" || status.is_none_or(|status| status.as_u64().is_some_and(|status| status >= 400)) {
            return Ok(());
        }
        Err(ParamsRefusal {
            path: "answer.status".to_owned(),
            reason: "no HTTP error status".to_owned(),
            instead: "write 400 to 599".to_owned(),
        })
    }
}

/// What the directives of a case say.
#[derive(Default)]
pub struct Script {
    pub workloads: Vec<RuntimeWorkload>,
    pub captured: BTreeMap<String, Captured>,
    pub questions: Vec<(String, ExplainInput)>,
}

pub fn compile_with(store: &Store, workloads: &[RuntimeWorkload], allocations: &mut Allocations) -> Compiled {
    compile_captured(store, workloads, &BTreeMap::new(), allocations)
}

pub fn compile_captured(
    store: &Store,
    workloads: &[RuntimeWorkload],
    captured: &BTreeMap<String, Captured>,
    allocations: &mut Allocations,
) -> Compiled {
    compile(
        &CompileInput {
            workloads,
            captured,
            ..CompileInput::of(store)
        },
        allocations,
    )
}

pub fn script(text: &str) -> Script {
    let mut script = Script::default();
    for line in text.lines().filter_map(|line| line.strip_prefix("#! ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["run", name, options @ ..] => {
                let cgroup = 100 + script.workloads.len() as u64;
                script.workloads.push(workload(name, options, cgroup));
            }
            ["capture", name, options @ ..] => {
                script.captured.insert((*name).to_owned(), captured(options));
            }
            ["explain", from, to, port, request @ ..] => {
                script
                    .questions
                    .push((line.to_owned(), question(from, to, port, request)));
            }
            _ => panic!("no directive: {line}"),
        }
    }
    script
}

pub fn workload(name: &str, options: &[&str], cgroup: u64) -> RuntimeWorkload {
    let [namespace, service, _instance] = name.split('/').collect::<Vec<_>>()[..] else {
        panic!("{name}")
    };
    let mut labels = BTreeMap::from([(SERVICE_LABEL.to_owned(), service.to_owned())]);
    let mut workload = RuntimeWorkload {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        service: service.to_owned(),
        account: service.to_owned(),
        labels: Labels::default(),
        cgroup,
        ports: Vec::new(),
        listening: Vec::new(),
    };
    for option in options {
        match option.split_once('=').expect(option) {
            ("account", account) => workload.account = account.to_owned(),
            ("label", label) => {
                let (key, value) = label.split_once('=').expect(label);
                labels.insert(key.to_owned(), value.to_owned());
            }
            ("port", ports) => {
                let (ports, protocols) = protocols(ports);
                let (port, target) = ports.split_once(':').unwrap_or((ports, ports));
                for protocol in protocols {
                    let (port, target) = (port.parse().unwrap(), target.parse().unwrap());
                    workload.ports.push(RuntimePort { port, target, protocol });
                }
            }
            ("listen", address) => {
                let (address, protocols) = protocols(address);
                workload.listening.push((address.parse().expect(address), protocols[0]));
            }
            _ => panic!("no option: {option}"),
        }
    }
    workload.labels = labels.into();
    workload
}

fn captured(options: &[&str]) -> Captured {
    let mut captured = Captured::default();
    for option in options {
        match option.split_once('=').expect(option) {
            ("cgroup", id) => captured.cgroup = Some(id.parse().unwrap()),
            ("netns", cookie) => captured.netns = Some(cookie.parse().unwrap()),
            ("problem", field) => {
                let field = match field {
                    "cgroup" => CaptureField::Cgroup,
                    "netns" => CaptureField::Netns,
                    _ => panic!("no field: {field}"),
                };
                let reason = "it is not there".to_owned();
                captured.problem = Some(CaptureProblem { field, reason });
            }
            _ => panic!("no option: {option}"),
        }
    }
    captured
}

/// Without a suffix both, as in `weft run`.
fn protocols(text: &str) -> (&str, Vec<Protocol>) {
    match text.rsplit_once('/') {
        Some((rest, "tcp")) => (rest, vec![Protocol::Tcp]),
        Some((rest, "udp")) => (rest, vec![Protocol::Udp]),
        _ => (text, vec![Protocol::Tcp, Protocol::Udp]),
    }
}

fn question(from: &str, to: &str, port: &str, request: &[&str]) -> ExplainInput {
    let (namespace, name) = from.split_once('/').expect(from);
    let (port, protocols) = protocols(port);
    let target = match to.parse() {
        Ok(address) => ExplainTarget::Address(address),
        Err(_) => {
            let (namespace, name) = to.split_once('/').expect(to);
            ExplainTarget::Service(ServiceName {
                namespace: namespace.into(),
                name: name.into(),
            })
        }
    };
    ExplainInput {
        from: Account {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        },
        to: target,
        port: port.parse().unwrap(),
        protocol: protocols[0],
        method: request.first().map(|method| (*method).to_owned()),
        path: request.get(1).map(|path| (*path).to_owned()),
        headers: BTreeMap::new(),
    }
}

/// All `.yaml` files below a folder, sorted.
pub fn yaml_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
