//! `v1` ServiceAccount: declares that an account exists, so that a TrafficTarget may name it before a workload runs as it.

use crate::resource::{Body, KindInfo, NameRule, Scope, Spec};

pub(crate) static SERVICE_ACCOUNT: KindInfo = KindInfo {
    group: "",
    versions: &["v1"],
    kind: "ServiceAccount",
    scope: Scope::Namespaced,
    name: NameRule::Subdomain,
    decode,
};

fn decode(body: &mut Body<'_, '_>) -> Option<Spec> {
    body.root
        .tolerate(&["secrets", "imagePullSecrets", "automountServiceAccountToken"]);
    Some(Spec::ServiceAccount)
}
