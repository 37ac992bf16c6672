//! `weft doctor`: hooks and verdicts proved by a canary, features by probing.

use std::path::{Path, PathBuf};

use weft_dataplane::{Cgroup, Hook, Verdict, device_of, features};

use super::cuts;
use crate::admin::api::{CutsView, Degraded, DoctorReport, FeatureView, HookView, VerdictView};

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

/// The canary got another answer than the policy table has for it.
fn misjudged(verdict: &Verdict) -> Option<Degraded> {
    Some(Degraded {
        what: format!("verdict {}", verdict.name),
        why: verdict.wrong.clone()?,
        instead: "workloads may be misjudged the same way. A restart of the daemon reads the kernel's tables and puts back what \
                  is missing; if it stays, see the hooks above"
            .to_owned(),
    })
}

/// The last change that cut connections took longer than it may.
pub fn late(cuts: &CutsView) -> Option<Degraded> {
    let cut = cuts.last.as_ref()?;
    let took = cut.in_force_ms + cut.reset_ms;
    let bound = cuts::BOUND.as_secs_f64() * 1e3;
    (took > bound).then(|| Degraded {
        what: "last change that cut connections".to_owned(),
        why: format!(
            "generation {} took {took:.0} ms until all {} of them were reset; it may take {bound:.0} ms",
            cut.generation, cut.connections
        ),
        instead: "see whether this node is busy; the next change that cuts connections in time ends this".to_owned(),
    })
}

/// Runs the canary and probes. Takes about a second, and longer where datagrams are lost.
pub fn examine(
    cgroup: &Cgroup,
    bpffs: &Path,
    publish_problem: Option<String>,
    foreign_proxies: Vec<(PathBuf, String)>,
) -> DoctorReport {
    let mut report = DoctorReport::default();
    let examined = weft_dataplane::examine(cgroup, bpffs, Path::new(OWN_BINARY), &[CANARY]);
    match examined.map_err(anyhow::Error::from) {
        Ok(examined) => {
            for hook in examined.hooks {
                // One that ran has its problem with the verdict that was wrong.
                let missed = hook.effective == Some(false) && hook.ns_per_run.is_none();
                if let Some(device) = shadowed(&hook) {
                    report.problems.push(device);
                } else if !hook.attached || missed {
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
            report.problems.extend(examined.verdicts.iter().filter_map(misjudged));
            report.verdicts = examined
                .verdicts
                .into_iter()
                .map(|verdict| VerdictView {
                    name: verdict.name,
                    ok: verdict.wrong.is_none(),
                    why: verdict.wrong,
                })
                .collect();
        }
        Err(error) => report.problems.push(Degraded {
            what: "canary".to_owned(),
            why: format!("{error:#}"),
            instead: "hooks may work; they could not be proved. Once it can run (where its cgroup is gone: after a restart of the \
                      daemon), ask again"
                .to_owned(),
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
            instead: "the last good state is in force; a daemon that starts anew fails by this".to_owned(),
        });
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::CutView;

    #[test]
    fn a_cut_is_late_by_all_of_its_time_and_only_the_last_one_counts() {
        let cut = |in_force_ms, reset_ms| {
            Some(CutView {
                generation: 7,
                connections: 3,
                in_force_ms,
                reset_ms,
            })
        };
        for (last, slowest, is_late) in [
            (None, None, false),
            (cut(60.0, 40.0), cut(60.0, 40.0), false),
            (cut(60.0, 41.0), cut(60.0, 41.0), true),
            (cut(1.0, 1.0), cut(200.0, 1.0), false),
        ] {
            let cuts = CutsView { last, slowest };
            assert_eq!(late(&cuts).is_some(), is_late, "{cuts:?}");
        }
    }
}
