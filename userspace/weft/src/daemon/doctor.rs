//! `weft doctor`: hooks proved by a canary, features by probing.

use std::path::{Path, PathBuf};

use weft_dataplane::{Cgroup, Hook, device_of, features, hooks};

use crate::admin::api::{Degraded, DoctorReport, FeatureView, HookView};

/// The hidden verb that this binary's canary process runs.
pub const CANARY: &str = "__canary";
/// The one that runs, wherever it was: its path may lead to another version by now, or nowhere.
const OWN_BINARY: &str = "/proc/self/exe";

/// Servers in the network namespace at a path do not see their clients' addresses.
pub fn unseen((path, why): (String, String)) -> Degraded {
    Degraded {
        what: format!("clients' addresses in network namespace {path}"),
        why,
        instead: "servers see one of the namespace's own; requests tell the client in X-Forwarded-For".to_owned(),
    }
}

/// A program on a device that did not run although packets came by.
fn shadowed(hook: &Hook) -> Option<Degraded> {
    let (device, _) = device_of(&hook.name).filter(|_| hook.attached && hook.effective == Some(false))?;
    Some(Degraded {
        what: hook.name.clone(),
        why: format!(
            "attached, but it did not run while {device} had packets: a program or filter before it decides about them"
        ),
        instead: format!(
            "see `bpftool net show dev {device}` and `tc filter show dev {device} ingress` (egress); verdicts on this device do not \
             hold. A restart of the daemon puts its programs first again"
        ),
    })
}

/// Runs the canary and probes. Takes about a second.
pub fn examine(
    cgroup: &Cgroup,
    bpffs: &Path,
    publish_problem: Option<String>,
    foreign_proxies: Vec<(PathBuf, String)>,
) -> DoctorReport {
    let mut report = DoctorReport::default();
    match hooks(cgroup, bpffs, Path::new(OWN_BINARY), &[CANARY]).map_err(anyhow::Error::from) {
        Ok(hooks) => {
            for hook in hooks {
                if let Some(device) = shadowed(&hook) {
                    report.problems.push(device);
                } else if !hook.attached || hook.effective == Some(false) {
                    report.problems.push(Degraded {
                        what: hook.name.clone(),
                        why: if hook.attached {
                            "attached, but the canary did not reach it"
                        } else {
                            "not attached"
                        }
                        .to_owned(),
                        instead: "restart the daemon; if it stays, another program may shadow the cgroup".to_owned(),
                    });
                }
                report.hooks.push(HookView {
                    name: hook.name,
                    attached: hook.attached,
                    effective: hook.effective,
                    ns_per_run: hook.ns_per_run.map(|ns| ns as f64),
                });
            }
        }
        Err(error) => report.problems.push(Degraded {
            what: "canary".to_owned(),
            why: format!("{error:#}"),
            instead: "hooks may work; they could not be proved".to_owned(),
        }),
    }
    for feature in features() {
        report.features.push(FeatureView {
            name: feature.name,
            present: feature.present,
            used_for: feature.used_for,
        });
    }
    for (cgroup, why) in foreign_proxies {
        report.problems.push(Degraded {
            what: format!("foreign proxy in cgroup {}", cgroup.display()),
            why,
            instead: "start it there, or correct the ServicePolicy; until then its services get their failure mode"
                .to_owned(),
        });
    }
    if let Some(why) = publish_problem {
        report.problems.push(Degraded {
            what: "publication".to_owned(),
            why,
            instead: "the last good state is in force".to_owned(),
        });
    }
    report
}
