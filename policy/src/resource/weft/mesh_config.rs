//! MeshConfig: what holds where no rule says otherwise, for the mesh or (with `metadata.namespace`) for a namespace.

use crate::{
    resource::{Body, KindInfo, NameRule, Scope, Spec},
    snapshot::AccessDefault,
};

pub(crate) static MESH_CONFIG: KindInfo = KindInfo {
    group: super::GROUP,
    versions: &["v1alpha1"],
    kind: "MeshConfig",
    scope: Scope::Either,
    name: NameRule::Subdomain,
    decode,
};

#[derive(Debug)]
pub struct MeshConfigSpec {
    /// `None`: as the mesh says; there: allow.
    pub access_default: Option<AccessDefault>,
    /// Of the mesh only. `None`: allow.
    pub outbound_default: Option<AccessDefault>,
    /// `None`: as the mesh says; there: enforce.
    pub enforcement: Option<Enforcement>,
}

/// What becomes of that which is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    Enforce,
    /// It is let through and reported.
    Audit,
}

const DEFAULTS: &[(&str, AccessDefault)] = &[("allow", AccessDefault::Allow), ("deny", AccessDefault::Deny)];

fn decode(body: &mut Body<'_, '_>) -> Option<Spec> {
    let mut spec = body.spec()?;
    let access_default = spec.optional("accessDefault").and_then(|value| value.choice(DEFAULTS));
    let outbound_default = spec.optional("outboundDefault").and_then(|value| {
        if body.id.namespace.is_some() {
            value.error(
                "this is a setting of the whole mesh",
                "write it into the MeshConfig without metadata.namespace",
            );
        }
        value.choice(DEFAULTS)
    });
    let enforcement = spec
        .optional("enforcement")
        .and_then(|value| value.choice(&[("enforce", Enforcement::Enforce), ("audit", Enforcement::Audit)]));
    spec.finish();
    Some(Spec::MeshConfig(MeshConfigSpec {
        access_default,
        outbound_default,
        enforcement,
    }))
}
