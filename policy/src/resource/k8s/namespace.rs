//! `v1` Namespace: its labels, for the `namespaceSelector` of a NetworkPolicy. Namespaces need no declaration.

use crate::resource::{Body, KindInfo, NameRule, Scope, Spec};

pub(crate) static NAMESPACE: KindInfo = KindInfo {
    group: "",
    versions: &["v1"],
    kind: "Namespace",
    scope: Scope::Cluster,
    name: NameRule::Label,
    decode,
};

fn decode(body: &mut Body<'_, '_>) -> Option<Spec> {
    body.root.tolerate(&["spec"]);
    Some(Spec::Namespace)
}
