//! `capture` of Workloads: which paths are asked for, and what is said about what became of them.

use std::collections::BTreeMap;

use super::{report::Report, sources::Sources};
use crate::{
    resource::{Spec, weft::WorkloadSpec},
    snapshot::{Capture, CaptureField, Captured, ObjectState},
    store::Store,
};

/// The `capture` of every Workload that has one, by the workload's name: to be looked up before
/// [`compile`](super::compile()) by whoever may.
pub fn captures(store: &Store) -> BTreeMap<String, Capture> {
    let of_object = |object: &crate::resource::Object| match &object.spec {
        Spec::Workload(spec) => {
            let capture = of(spec, None)?;
            Some((format!("{}/{}", object.namespace(), object.id.name), capture))
        }
        _ => None,
    };
    store.captured().filter_map(|object| of_object(object)).collect()
}

/// What the workload's spec says, with what was found.
pub(super) fn of(spec: &WorkloadSpec, found: Option<&Captured>) -> Option<Capture> {
    let capture = spec.capture.as_ref()?;
    Some(Capture {
        cgroup: capture.cgroup.value.clone(),
        netns: capture.netns.as_ref().map(|netns| netns.value.clone()),
        found: found.cloned(),
    })
}

/// Says of each what keeps it from being as written.
pub(super) fn report(sources: &Sources<'_>, captured: &BTreeMap<String, Captured>, report: &mut Report) {
    for (object, spec) in &sources.workloads {
        let Some(capture) = &spec.capture else { continue };
        let name = format!("{}/{}", object.namespace(), object.id.name);
        let Some(problem) = captured.get(&name).and_then(|found| found.problem.as_ref()) else {
            continue;
        };
        let (at, meanwhile) = match (problem.field, &capture.netns) {
            (CaptureField::Netns, Some(netns)) => (
                netns,
                "its verdicts hold; what needs the proxy meets the service's failure mode until the namespace is there",
            ),
            _ => (&capture.cgroup, "nothing of it is captured until the cgroup is there"),
        };
        let reason = format!("{}: {}", at.value, problem.reason);
        report.warn(object, at, &*reason, meanwhile);
        report.status(&object.id, ObjectState::Pending, reason);
    }
}
