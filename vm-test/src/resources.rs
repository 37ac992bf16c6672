//! Resources as users write them, for labs. All in namespace `default` unless they say otherwise.

use std::net::IpAddr;

/// MeshConfig of the whole mesh with `accessDefault: deny`.
pub const DENY: &str = "\
apiVersion: weft.mesh/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
spec: {accessDefault: deny}
";

/// The same with `accessDefault: allow`.
pub const ALLOW: &str = "\
apiVersion: weft.mesh/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
spec: {accessDefault: allow}
";

/// A Service with one port; `app` is its appProtocol (`http`, `tcp`).
pub fn service(name: &str, port: u16, app: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  ports:\n  - {{name: main, port: {port}, appProtocol: {app}}}\n"
    )
}

/// A Service with one port that picks its workloads by the label `app: NAME`. `ports`: its own, and its targetPort.
pub fn selecting_service(name: &str, ports: (u16, u16), app: &str) -> String {
    let (port, target) = ports;
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  selector: {{app: {name}}}\n\
         \x20 ports:\n  - {{name: main, port: {port}, targetPort: {target}, appProtocol: {app}}}\n"
    )
}

/// A Workload with the label `app: APP`, as one writes a peer on another machine.
pub fn workload(name: &str, app: &str, account: &str, addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(|address| format!("'{address}'")).collect();
    let addresses = addresses.join(", ");
    format!(
        "---\napiVersion: weft.mesh/v1alpha1\nkind: Workload\n\
         metadata: {{name: {name}, namespace: default, labels: {{app: {app}}}}}\n\
         spec:\n  addresses: [{addresses}]\n  serviceAccount: {account}\n"
    )
}

/// An HTTPRouteGroup with one match: these methods below this path.
pub fn route(name: &str, path_regex: &str, methods: &[&str]) -> String {
    let methods = methods.join(", ");
    format!(
        "---\napiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  matches:\n  - {{name: {name}, pathRegex: '{path_regex}', methods: [{methods}]}}\n"
    )
}

/// A TCPRoute for these target ports.
pub fn tcp_route(name: &str, ports: &[u16]) -> String {
    let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    format!(
        "---\napiVersion: specs.smi-spec.io/v1alpha4\nkind: TCPRoute\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  matches: {{name: {name}, ports: [{ports}]}}\n"
    )
}

/// A TrafficTarget: account `source` may reach account `destination` as the rule (`HTTPRouteGroup`, `TCPRoute`) says.
pub fn allow(name: &str, source: &str, destination: &str, rule: (&str, &str)) -> String {
    let (kind, route) = rule;
    format!(
        "---\napiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  destination: {{kind: ServiceAccount, name: {destination}, namespace: default}}\n\
         \x20 sources:\n  - {{kind: ServiceAccount, name: {source}, namespace: default}}\n\
         \x20 rules:\n  - {{kind: {kind}, name: {route}}}\n"
    )
}

/// A TrafficSplit of `root` over services with weights.
pub fn split(name: &str, root: &str, backends: &[(&str, u32)]) -> String {
    let backends: String = backends
        .iter()
        .map(|(service, weight)| format!("  - {{service: {service}, weight: {weight}}}\n"))
        .collect();
    format!(
        "---\napiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  service: {root}\n  backends:\n{backends}"
    )
}

/// A ServicePolicy; `fields` are lines of its spec, say `failureMode: closed`.
pub fn service_policy(service: &str, fields: &[&str]) -> String {
    let fields: String = fields.iter().map(|field| format!("  {field}\n")).collect();
    format!(
        "---\napiVersion: weft.mesh/v1alpha1\nkind: ServicePolicy\nmetadata: {{name: {service}, namespace: default}}\n\
         spec:\n  service: {service}\n{fields}"
    )
}

/// Ports that [`through_proxy`] speaks of.
const PORTS: std::ops::RangeInclusive<u16> = 1..=16;

/// Resources that send ports 1 to 16 of `service` through the proxy: a split with HTTP matches does; what is no HTTP passes
/// there as opaque bytes. `acceleration` is `off`, `proxy` or `full`.
pub fn through_proxy(service: &str, acceleration: &str) -> String {
    let ports: String = PORTS
        .map(|port| format!("  - {{name: p{port}, port: {port}}}\n"))
        .collect();
    let any = route("any", "/", &["GET"]);
    let policy = service_policy(service, &[&format!("acceleration: {acceleration}")]);
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: default}}\nspec:\n  ports:\n{ports}\
         {any}---\napiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\n\
         metadata: {{name: through-proxy, namespace: default}}\nspec:\n  service: {service}\n\
         \x20 matches: [{{kind: HTTPRouteGroup, name: any}}]\n  backends: [{{service: {service}-next, weight: 1}}]\n{policy}"
    )
}
