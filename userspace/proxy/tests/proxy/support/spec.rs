//! Snapshots written down by hand, service by service.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use weft_policy::{
    Acceleration, AccessDefault, AccessPolicy, AccessRule, Account, AppProtocol, Class, ClassPolicy, Endpoint,
    EndpointOwner, HttpMatch, Identity, Isolation, L7, Listener, NetworkAllow, ObjectRef, PathPattern, Protocol,
    RuleId, Service, ServiceName, ServicePort, Snapshot, Split, SplitBackend, Workload,
};

/// default/client, who calls in every test.
pub const CLIENT: Identity = Identity(256);

/// Where it lives. Only snapshots with an [`Spec::isolation`] know it.
pub const CLIENT_CGROUP: u64 = 7;

const MESH_RULE: RuleId = RuleId(1);
const SPLIT_RULE: RuleId = RuleId(2);
const TARGET_RULE: RuleId = RuleId(3);
const NETWORK_RULE: RuleId = RuleId(4);

/// Who may call the services of a mesh.
#[derive(Clone, Default)]
pub enum Access {
    #[default]
    Everybody,
    Nobody,
    /// The client, for requests that match.
    Matching(Vec<HttpMatch>),
}

/// One service with one port, 80.
#[derive(Clone)]
pub struct Port {
    pub name: &'static str,
    pub app: AppProtocol,
    pub http: bool,
    pub endpoints: Vec<SocketAddr>,
    pub pending: bool,
    /// Backend and weight; a backend that is not in the spec is missing.
    pub split: Option<Vec<(&'static str, u32)>>,
}

/// A whole snapshot. The n-th service has the virtual IP 240.240.0.n, account and identity of its name.
#[derive(Clone, Default)]
pub struct Spec {
    pub ports: Vec<Port>,
    pub access: Access,
    /// What access denies is let through and reported.
    pub audit: bool,
    /// Whom the network lets in to every service.
    pub isolation: Option<Isolation>,
    /// Ports without a service, and the service whose workload listens there.
    pub listening: Vec<(SocketAddr, &'static str)>,
}

// === impl Port ===

impl Port {
    pub fn http(name: &'static str, endpoints: impl Into<Vec<SocketAddr>>) -> Self {
        Self {
            name,
            app: AppProtocol::Http,
            http: true,
            endpoints: endpoints.into(),
            pending: false,
            split: None,
        }
    }

    pub fn undeclared(name: &'static str, endpoints: impl Into<Vec<SocketAddr>>) -> Self {
        Self {
            app: AppProtocol::Unknown,
            http: false,
            ..Self::http(name, endpoints)
        }
    }
}

// === impl Spec ===

impl Spec {
    pub fn of(ports: impl Into<Vec<Port>>) -> Self {
        Self {
            ports: ports.into(),
            ..Self::default()
        }
    }

    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    pub fn snapshot(&self, generation: u64) -> Snapshot {
        let mut snapshot = Snapshot {
            generation,
            ..Snapshot::default()
        };
        add_account(&mut snapshot, CLIENT, "client");
        snapshot.rules = [
            (MESH_RULE, object("MeshConfig", None, "mesh")),
            (SPLIT_RULE, object("TrafficSplit", Some("default"), "split")),
            (TARGET_RULE, object("TrafficTarget", Some("default"), "target")),
            (NETWORK_RULE, object("NetworkPolicy", Some("default"), "closed")),
        ]
        .map(|(rule, object)| (rule, Arc::new(object)))
        .into_iter()
        .collect();
        for (index, port) in self.ports.iter().enumerate() {
            self.add_service(&mut snapshot, index, port);
        }
        if let Some(isolation) = &self.isolation {
            let policy = ClassPolicy {
                ingress: Some(isolation.clone()),
                egress: None,
            };
            for index in 0..self.ports.len() {
                let class = class_of(Identity(CLIENT.0 + 1 + index as u32));
                snapshot.network.isolation.insert(class, policy.clone());
            }
            snapshot.by_cgroup.insert(CLIENT_CGROUP, Arc::new(client()));
        }
        for (address, service) in &self.listening {
            let account = Account {
                namespace: "default".into(),
                name: (*service).into(),
            };
            let identity = snapshot.identities[&account];
            let class = class_of(identity);
            snapshot
                .listeners
                .insert((*address, Protocol::Tcp), Listener { identity, class });
        }
        snapshot
    }

    fn add_service(&self, snapshot: &mut Snapshot, index: usize, port: &Port) {
        let identity = Identity(CLIENT.0 + 1 + index as u32);
        add_account(snapshot, identity, port.name);
        snapshot.access.insert(identity, Arc::new(self.policy()));
        let name = service_name(port.name);
        let endpoints: Vec<_> = port
            .endpoints
            .iter()
            .map(|&address| {
                Arc::new(Endpoint {
                    address,
                    identity,
                    class: class_of(identity),
                    workload: format!("default/{}/1", port.name).into(),
                })
            })
            .collect();
        for endpoint in &endpoints {
            let owner = EndpointOwner {
                service: Arc::new(name.clone()),
                port: 0,
                endpoint: endpoint.clone(),
            };
            snapshot.by_endpoint.insert((endpoint.address, Protocol::Tcp), owner);
        }
        let service = Arc::new(Service {
            name: name.clone(),
            vip4: vip(index),
            vip6: Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1 + index as u16),
            ports: vec![ServicePort {
                id: 1 + index as u32,
                name: None,
                port: 80,
                protocol: Protocol::Tcp,
                app: port.app,
                http: port.http,
                proxied: None,
                guarded: false,
                endpoints,
                targets: BTreeSet::new(),
                pending: port.pending,
                split: port.split.as_ref().map(|backends| Arc::new(self.split(backends))),
            }],
            failure_mode: None,
            acceleration: Acceleration::Off,
            l7: L7::Auto,
        });
        snapshot.by_vip.insert(service.vip4.into(), name.clone());
        snapshot.by_vip.insert(service.vip6.into(), name.clone());
        snapshot.services.insert(name, service);
    }

    fn split(&self, backends: &[(&'static str, u32)]) -> Split {
        Split {
            rule: SPLIT_RULE,
            object: Arc::new(object("TrafficSplit", Some("default"), "split")),
            matches: Vec::new(),
            backends: backends
                .iter()
                .map(|&(name, weight)| SplitBackend {
                    service: service_name(name),
                    weight,
                    port: self.ports.iter().any(|port| port.name == name).then_some(0),
                })
                .collect(),
        }
    }

    fn policy(&self) -> AccessPolicy {
        let (default, allow) = match &self.access {
            Access::Everybody => (AccessDefault::Allow, Vec::new()),
            Access::Nobody => (AccessDefault::Deny, Vec::new()),
            Access::Matching(matches) => {
                let rule = AccessRule {
                    rule: TARGET_RULE,
                    object: object("TrafficTarget", Some("default"), "target"),
                    audit: false,
                    sources: BTreeSet::from([CLIENT]),
                    protocol: Protocol::Tcp,
                    ports: None,
                    except: BTreeSet::new(),
                    http: Some(matches.clone()),
                };
                (AccessDefault::Deny, vec![rule])
            }
        };
        AccessPolicy {
            default,
            default_rule: MESH_RULE,
            audit: self.audit,
            allow,
        }
    }
}

/// Lets in nobody but these.
pub fn closed_but_for(peers: impl Into<BTreeSet<Class>>) -> Isolation {
    Isolation {
        default_rule: NETWORK_RULE,
        audit: false,
        allow: vec![NetworkAllow {
            rule: NETWORK_RULE,
            peers: Some(Arc::new(peers.into())),
            protocol: None,
            ports: None,
        }],
    }
}

fn client() -> Workload {
    Workload {
        name: "default/client/1".into(),
        namespace: "default".into(),
        service: Some("client".into()),
        account: "client".into(),
        identity: CLIENT,
        class: class_of(CLIENT),
        labels: Default::default(),
        cgroup: Some(CLIENT_CGROUP),
        addresses: Arc::default(),
        capture: None,
    }
}

/// Classes go with identities here.
pub fn class_of(identity: Identity) -> Class {
    Class(identity.0 + 1000)
}

/// Virtual IP of the n-th service of a spec.
pub fn vip(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(240, 240, 0, 1 + index as u8)
}

/// Allows paths that begin so.
pub fn allow_paths(prefix: &str) -> Access {
    Access::Matching(vec![HttpMatch {
        name: "paths".into(),
        methods: Vec::new(),
        path: Some(PathPattern::new(regex::Regex::new(&format!("^(?:{prefix})")).unwrap())),
        headers: Vec::new(),
    }])
}

fn add_account(snapshot: &mut Snapshot, identity: Identity, name: &str) {
    let account = Account {
        namespace: "default".into(),
        name: name.into(),
    };
    snapshot.identities.insert(account.clone(), identity);
    snapshot.accounts.insert(identity, account);
}

fn service_name(name: &str) -> ServiceName {
    ServiceName {
        namespace: "default".into(),
        name: name.into(),
    }
}

fn object(kind: &str, namespace: Option<&str>, name: &str) -> ObjectRef {
    ObjectRef {
        kind: kind.to_owned().into(),
        namespace: namespace.map(Into::into),
        name: name.into(),
    }
}
