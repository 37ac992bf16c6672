use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use weft_policy::{DataPath, FailureMode, RuntimePort};

use super::{
    Daemon,
    output::{Format, Table, dash, print_json},
};
use crate::admin::api::{ServicePortView, Status, WorkloadState, WorkloadView};

/// What the daemon does: resources in force, workloads, services and the way their connections go
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    #[command(flatten)]
    daemon: Daemon,
}

impl StatusArgs {
    pub fn exec(self) -> anyhow::Result<ExitCode> {
        let status = self.daemon.ask(async |client| client.status().await)?;
        match self.output {
            Format::Json => print_json(&status)?,
            Format::Text => io::stdout().lock().write_all(render(&status)?.as_bytes())?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The whole page; sections without content are left out.
fn render(status: &Status) -> io::Result<String> {
    let mut out = Vec::new();
    head(&mut out, status)?;
    degraded(&mut out, status)?;
    resources(&mut out, status)?;
    services(&mut out, status)?;
    workloads(&mut out, status)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

fn head(out: &mut Vec<u8>, status: &Status) -> io::Result<()> {
    writeln!(
        out,
        "weft {}  pid {}  up {}  generation {}",
        status.version,
        status.pid,
        duration(status.uptime_seconds),
        status.generation
    )?;
    let flows = &status.flows;
    write!(out, "{} flows seen, {} kept", flows.seen, flows.kept)?;
    if flows.dropped > 0 {
        write!(out, ", {} dropped", flows.dropped)?;
    }
    if flows.sample > 1 {
        write!(out, "; opens and closes of 1 in {} connections", flows.sample)?;
    }
    writeln!(out)
}

fn degraded(out: &mut Vec<u8>, status: &Status) -> io::Result<()> {
    for degraded in &status.degraded {
        writeln!(
            out,
            "DEGRADED  {}: {}; {}",
            degraded.what, degraded.why, degraded.instead
        )?;
    }
    Ok(())
}

fn resources(out: &mut Vec<u8>, status: &Status) -> io::Result<()> {
    let mut table = Table::new(["RESOURCES", "ACCEPTED", "PENDING", "NOT ENFORCED", "REJECTED"]);
    for count in &status.resources {
        table.row([
            count.kind.clone(),
            count.accepted.to_string(),
            count.pending.to_string(),
            count.not_enforced.to_string(),
            count.rejected.to_string(),
        ]);
    }
    section(out, &table)?;
    for diagnostic in &status.diagnostics {
        writeln!(out, "  {diagnostic}")?;
    }
    Ok(())
}

fn services(out: &mut Vec<u8>, status: &Status) -> io::Result<()> {
    let mut table = Table::new(["SERVICE", "VIRTUAL IP", "PORT", "READY", "PATH", "WHY"]);
    for service in &status.services {
        let mut name = format!("{}/{}", service.namespace, service.name);
        let mut vip = service.vip4.to_string();
        if service.ports.is_empty() {
            table.row([
                name.clone(),
                vip.clone(),
                "-".into(),
                "-".into(),
                "-".into(),
                "no ports".into(),
            ]);
        }
        for port in &service.ports {
            let path = match port.path {
                DataPath::Kernel => "kernel",
                DataPath::Proxy => match service.failure_mode {
                    Some(FailureMode::Open) => "proxy, fails open",
                    Some(FailureMode::Closed) => "proxy, fails closed",
                    None => "proxy",
                },
                DataPath::External => match service.failure_mode {
                    Some(FailureMode::Open) => "foreign proxy, fails open",
                    Some(FailureMode::Closed) | None => "foreign proxy, fails closed",
                },
            };
            // The name stands on the first line of a service only.
            table.row([
                std::mem::take(&mut name),
                std::mem::take(&mut vip),
                port_text(port),
                ready(port),
                path.into(),
                why(port),
            ]);
        }
    }
    section(out, &table)
}

fn port_text(port: &ServicePortView) -> String {
    let what = if port.http { " http" } else { "" };
    format!("{}/{}{what}", port.port, port.protocol)
}

fn ready(port: &ServicePortView) -> String {
    match (port.endpoints.len(), port.pending) {
        (0, true) => "starting".to_owned(),
        (0, false) => "NONE".to_owned(),
        (ready, true) => format!("{ready}, starting"),
        (ready, false) => ready.to_string(),
    }
}

fn why(port: &ServicePortView) -> String {
    let Some(split) = &port.split else {
        return port.why.clone();
    };
    let backends: Vec<_> = split
        .backends
        .iter()
        .map(|backend| {
            format!(
                "{} {}{}",
                backend.service,
                backend.weight,
                if backend.missing { " MISSING" } else { "" }
            )
        })
        .collect();
    format!("{}; split {}", port.why, backends.join(", "))
}

fn workloads(out: &mut Vec<u8>, status: &Status) -> io::Result<()> {
    let mut table = Table::new(["WORKLOAD", "ACCOUNT", "IDENTITY", "STATE", "PORTS", "COMMAND"]);
    for workload in &status.workloads {
        let state = match workload.state {
            WorkloadState::Starting => "starting",
            WorkloadState::Running => "running",
            WorkloadState::Declared => "declared",
            WorkloadState::Captured => "captured",
            WorkloadState::Pending => "pending",
        };
        table.row([
            workload.name.clone(),
            workload.account.clone(),
            dash(workload.identity),
            state.into(),
            ports_text(workload),
            shortened(&workload.command.join(" ")),
        ]);
    }
    section(out, &table)
}

/// `80->8080`, `53/udp`; `-` without any, and where nobody listens yet a `?` behind.
fn ports_text(workload: &WorkloadView) -> String {
    let text = |port: &RuntimePort| {
        let number = if port.port == port.target {
            port.port.to_string()
        } else {
            format!("{}->{}", port.port, port.target)
        };
        let listens = workload
            .listening
            .iter()
            .any(|(at, protocol)| at.port() == port.target && *protocol == port.protocol);
        let unsure = if listens || workload.state == WorkloadState::Declared {
            ""
        } else {
            "?"
        };
        format!("{number}/{}{unsure}", port.protocol)
    };
    if workload.ports.is_empty() {
        return "-".to_owned();
    }
    workload.ports.iter().map(text).collect::<Vec<_>>().join(" ")
}

fn shortened(command: &str) -> String {
    const WIDEST: usize = 40;
    if command.chars().count() <= WIDEST {
        return command.to_owned();
    }
    command.chars().take(WIDEST - 1).chain(['…']).collect()
}

fn section(out: &mut Vec<u8>, table: &Table) -> io::Result<()> {
    if table.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    table.write(out, 0)
}

/// `3d 4h`, `4h 5m`, `5m 6s`, `6s`
fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use weft_policy::{Acceleration, ObjectRef, Protocol};

    use super::*;
    use crate::admin::api::{BackendView, Degraded, EndpointView, ResourceCount, ServiceView, SplitView};

    #[test]
    fn reads_as_tables() {
        let port = ServicePortView {
            name: None,
            port: 80,
            protocol: Protocol::Tcp,
            http: true,
            path: DataPath::Proxy,
            why: "split per request".into(),
            endpoints: vec![EndpointView {
                address: ([127, 0, 0, 1], 8080).into(),
                workload: "default/web/web-1".into(),
            }],
            pending: false,
            split: Some(SplitView {
                rule: ObjectRef {
                    kind: "TrafficSplit".into(),
                    namespace: Some("default".into()),
                    name: "web".into(),
                },
                backends: vec![
                    BackendView {
                        namespace: "default".into(),
                        service: "web-v1".into(),
                        weight: 90,
                        missing: false,
                    },
                    BackendView {
                        namespace: "default".into(),
                        service: "web-v2".into(),
                        weight: 10,
                        missing: true,
                    },
                ],
            }),
        };
        let second = ServicePortView {
            port: 53,
            protocol: Protocol::Udp,
            http: false,
            path: DataPath::Kernel,
            why: "nothing asks for the proxy".into(),
            endpoints: Vec::new(),
            pending: true,
            split: None,
            ..port.clone()
        };
        let status = Status {
            version: "0.1.0".into(),
            pid: 7,
            uptime_seconds: 3_725,
            generation: 4,
            resources: vec![ResourceCount {
                kind: "TrafficSplit".into(),
                accepted: 1,
                ..ResourceCount::default()
            }],
            services: vec![ServiceView {
                namespace: "default".into(),
                name: "web".into(),
                vip4: [240, 240, 0, 1].into(),
                vip6: "2001:2::1".parse().expect("an address"),
                failure_mode: Some(FailureMode::Closed),
                acceleration: Acceleration::Off,
                ports: vec![port, second],
            }],
            workloads: vec![WorkloadView {
                name: "default/web/web-1".into(),
                namespace: "default".into(),
                service: Some("web".into()),
                account: "web".into(),
                identity: Some(256),
                state: WorkloadState::Running,
                ports: vec![
                    RuntimePort {
                        port: 80,
                        target: 8080,
                        protocol: Protocol::Tcp,
                    },
                    RuntimePort {
                        port: 53,
                        target: 53,
                        protocol: Protocol::Udp,
                    },
                ],
                listening: vec![(([0, 0, 0, 0], 8080).into(), Protocol::Tcp)],
                labels: Default::default(),
                cgroup: None,
                cgroup_id: None,
                netns: None,
                started: None,
                command: vec!["nginx".into()],
            }],
            degraded: vec![Degraded {
                what: "sk_msg".into(),
                why: "no BTF".into(),
                instead: "no short-circuit".into(),
            }],
            ..Status::default()
        };
        let expected = "\
weft 0.1.0  pid 7  up 1h 2m  generation 4
0 flows seen, 0 kept
DEGRADED  sk_msg: no BTF; no short-circuit

RESOURCES     ACCEPTED  PENDING  NOT ENFORCED  REJECTED
TrafficSplit  1         0        0             0

SERVICE      VIRTUAL IP   PORT         READY     PATH                 WHY
default/web  240.240.0.1  80/tcp http  1         proxy, fails closed  split per request; split web-v1 90, web-v2 10 MISSING
                          53/udp       starting  kernel               nothing asks for the proxy

WORKLOAD           ACCOUNT  IDENTITY  STATE    PORTS                 COMMAND
default/web/web-1  web      256       running  80->8080/tcp 53/udp?  nginx
";
        assert_eq!(render(&status).expect("memory"), expected);
    }

    #[test]
    fn durations_have_two_parts() {
        for (seconds, expected) in [(6, "6s"), (306, "5m 6s"), (14_700, "4h 5m"), (273_600, "3d 4h")] {
            assert_eq!(duration(seconds), expected);
        }
    }
}
