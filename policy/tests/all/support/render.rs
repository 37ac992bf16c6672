//! A snapshot as lines that a person can judge.

use std::fmt::Write as _;

use weft_policy::{
    AccessPolicy, ClassName, Compiled, Diagnostic, HttpMatch, Isolation, L7, NetworkAllow, ServicePort, Snapshot,
};

use super::Script;

/// Diagnostics first, then what is left of the objects.
pub fn case(diagnostics: &[Diagnostic], compiled: &Compiled, script: &Script) -> String {
    let mut out = String::new();
    for diagnostic in diagnostics.iter().chain(&compiled.diagnostics) {
        let _ = writeln!(out, "{diagnostic}");
    }
    snapshot(&compiled.snapshot, &mut out);
    for (line, question) in &script.questions {
        let explanation = compiled.snapshot.explain(question);
        let _ = writeln!(out, "\n{line}");
        for step in &explanation.steps {
            let _ = writeln!(out, "    {step}");
        }
        let (verdict, path) = (explanation.verdict, explanation.path);
        let _ = writeln!(out, "  = {verdict:?} by {path:?}: {}", explanation.why);
    }
    out
}

fn snapshot(snapshot: &Snapshot, out: &mut String) {
    for service in snapshot.services.values() {
        let mode = service
            .failure_mode
            .map(|mode| format!(" failure mode {mode:?}"))
            .unwrap_or_default();
        let l7 = match &service.l7 {
            L7::Auto => String::new(),
            other => format!(" l7 {other:?}"),
        };
        let _ = writeln!(
            out,
            "service {} {} {}{mode}{l7}",
            service.name, service.vip4, service.vip6
        );
        for port in &service.ports {
            service_port(port, out);
        }
    }
    for workload in &snapshot.workloads {
        let service = workload.service.as_deref().unwrap_or("-");
        let _ = writeln!(
            out,
            "workload {} service {service} account {} identity {}",
            workload.name, workload.account, workload.identity.0
        );
        if let Some(capture) = &workload.capture {
            let _ = writeln!(out, "  {capture:?}, enrolled: {:?}", workload.cgroup);
        }
    }
    let mut policies: Vec<_> = snapshot.access.iter().collect();
    policies.sort_by_key(|(identity, _)| **identity);
    for (identity, policy) in policies {
        let account = snapshot.account(*identity).expect("every policy has an account");
        let _ = writeln!(out, "access to {account}: {}", access(snapshot, policy));
        for rule in &policy.allow {
            let sources: Vec<String> = rule
                .sources
                .iter()
                .map(|s| snapshot.account(*s).expect("an account").to_string())
                .collect();
            let ports = rule
                .ports
                .as_ref()
                .map_or("every port".to_owned(), |ports| format!("ports {ports:?}"));
            let audit = if rule.audit { " (audited)" } else { "" };
            let except = match rule.except.is_empty() {
                true => String::new(),
                false => format!(" except {:?}", rule.except),
            };
            let _ = writeln!(
                out,
                "  allow {} {} {ports}{except} by {}{audit}",
                sources.join(", "),
                rule.protocol,
                rule.object
            );
            for found in rule.http.iter().flatten() {
                let _ = writeln!(out, "    {}", http_match(found));
            }
        }
    }
    if let Some((default, rule)) = snapshot.outbound_default {
        let _ = writeln!(
            out,
            "outbound: {default:?} by {}{}",
            snapshot.rule(rule).expect("an object"),
            if snapshot.outbound_audit { " (audited)" } else { "" }
        );
    }
    network(snapshot, out);
    for adapter in &snapshot.adapters {
        let config = &adapter.config;
        let services: Vec<String> = adapter.target.services.iter().map(ToString::to_string).collect();
        let _ = writeln!(
            out,
            "{}: {}, {}, {:?}, all {}, on {}: {}",
            config.object,
            config.backend,
            config.role,
            config.failure_policy,
            adapter.target.all,
            services.join(" "),
            config.params
        );
    }
    for status in &snapshot.statuses {
        let _ = writeln!(out, "status {}: {:?}: {}", status.object, status.state, status.reason);
    }
}

fn access(snapshot: &Snapshot, policy: &AccessPolicy) -> String {
    format!(
        "{:?} by {}{}",
        policy.default,
        snapshot.rule(policy.default_rule).expect("an object"),
        if policy.audit { " (audited)" } else { "" }
    )
}

/// Isolated classes by what they stand for: their numbers depend on what else is in the case.
fn network(snapshot: &Snapshot, out: &mut String) {
    let mut isolated: Vec<_> = snapshot.network.isolation.iter().collect();
    isolated.sort_by_key(|(class, _)| &snapshot.classes[class]);
    for (class, policy) in isolated {
        let name = snapshot.describe_class(*class);
        for (direction, isolation) in [("into", &policy.ingress), ("out of", &policy.egress)] {
            let Some(isolation) = isolation else { continue };
            let _ = writeln!(out, "network {direction} {name}: {}", isolated_by(snapshot, isolation));
            for rule in &isolation.allow {
                let _ = writeln!(out, "  allow {}", network_allow(snapshot, rule));
            }
        }
    }
    for (net, class) in &snapshot.network.ranges {
        assert_eq!(snapshot.classes[class], ClassName::Range(*net));
        let _ = writeln!(out, "range {net}");
    }
}

fn isolated_by(snapshot: &Snapshot, isolation: &Isolation) -> String {
    let object = snapshot.rule(isolation.default_rule).expect("an object");
    let audit = if isolation.audit { " (audited)" } else { "" };
    format!("isolated by {object}{audit}")
}

fn network_allow(snapshot: &Snapshot, rule: &NetworkAllow) -> String {
    let peers = match &rule.peers {
        None => "everybody".to_owned(),
        Some(peers) => {
            let mut names: Vec<String> = peers.iter().map(|class| snapshot.describe_class(*class)).collect();
            names.sort();
            names.join(" | ")
        }
    };
    let protocol = rule
        .protocol
        .map_or("every protocol".to_owned(), |protocol| protocol.to_string());
    let ports = match &rule.ports {
        None => "every port".to_owned(),
        Some(ports) => format!("ports {ports:?}"),
    };
    let object = snapshot.rule(rule.rule).expect("an object");
    format!("{peers}, {protocol}, {ports} by {object}")
}

fn service_port(port: &ServicePort, out: &mut String) {
    let name = port.name.as_deref().unwrap_or("-");
    let _ = write!(out, "  port {}/{} {name} {:?}", port.port, port.protocol, port.app);
    if port.http {
        out.push_str(" per-request");
    }
    if port.pending {
        out.push_str(" pending");
    }
    if let Some(reason) = &port.proxied {
        let _ = write!(out, " proxied({reason})");
    }
    if port.guarded {
        out.push_str(" guarded");
    }
    out.push('\n');
    for endpoint in &port.endpoints {
        let _ = writeln!(
            out,
            "    endpoint {} identity {} {}",
            endpoint.address, endpoint.identity.0, endpoint.workload
        );
    }
    let Some(split) = &port.split else { return };
    let _ = writeln!(out, "    split by {}", split.object);
    for backend in &split.backends {
        let _ = writeln!(
            out,
            "      {} to {} port {:?}",
            backend.weight, backend.service, backend.port
        );
    }
    for found in &split.matches {
        let _ = writeln!(out, "      if {}", http_match(found));
    }
}

fn http_match(found: &HttpMatch) -> String {
    let methods = if found.methods.is_empty() {
        "*".to_owned()
    } else {
        found.methods.join("|")
    };
    let path = found.path.as_ref().map_or("*", |path| path.as_str());
    let headers: Vec<String> = found
        .headers
        .iter()
        .map(|(name, value)| format!(" {name}~{value}"))
        .collect();
    format!("{}: {methods} {path}{}", found.name, headers.concat())
}
