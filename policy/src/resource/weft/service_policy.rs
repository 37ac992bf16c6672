//! ServicePolicy: how one service of the object's namespace is served.

use crate::{
    decode::Located,
    resource::{Body, KindInfo, NameRule, Scope, Spec},
    snapshot::{Acceleration, FailureMode},
};

pub(crate) static SERVICE_POLICY: KindInfo = KindInfo {
    group: super::GROUP,
    versions: &["v1alpha1"],
    kind: "ServicePolicy",
    scope: Scope::Namespaced,
    name: NameRule::Subdomain,
    decode,
};

#[derive(Debug)]
pub struct ServicePolicySpec {
    pub service: Located<String>,
    pub failure_mode: Option<FailureMode>,
    pub acceleration: Option<Acceleration>,
}

fn decode(body: &mut Body<'_, '_>) -> Option<Spec> {
    let mut spec = body.spec()?;
    let service = spec
        .required("service")
        .and_then(|value| Some(value.locate(value.dns_label()?.to_owned())));
    let failure_mode = spec
        .optional("failureMode")
        .and_then(|value| value.choice(&[("open", FailureMode::Open), ("closed", FailureMode::Closed)]));
    let acceleration = spec.optional("acceleration").and_then(|value| {
        if value.node.as_text() == Some("full") {
            value.error("`full` is not supported on this build yet", "write `proxy` or `off`");
            return None;
        }
        value.choice(&[("off", Acceleration::Off), ("proxy", Acceleration::Proxy)])
    });
    spec.finish();
    Some(Spec::ServicePolicy(ServicePolicySpec {
        service: service?,
        failure_mode,
        acceleration,
    }))
}
