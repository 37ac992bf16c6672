//! ServicePolicy: how one service of the object's namespace is served.

use crate::{
    decode::Located,
    resource::{Body, KindInfo, NameRule, Scope, Spec},
    snapshot::{Acceleration, FailureMode, L7},
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
    pub l7: Option<Located<L7>>,
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
        value.choice(&[
            ("off", Acceleration::Off),
            ("proxy", Acceleration::Proxy),
            ("full", Acceleration::Full),
        ])
    });
    let l7 = spec.optional("l7").and_then(l7::decode);
    spec.finish();
    Some(Spec::ServicePolicy(Box::new(ServicePolicySpec {
        service: service?,
        failure_mode,
        acceleration,
        l7,
    })))
}

/// `l7: {mode, address, cgroup}`
mod l7 {
    use std::{
        net::SocketAddr,
        path::{Component, Path, PathBuf},
    };

    use crate::{
        decode::{Located, Value, shorten},
        snapshot::L7,
    };

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Mode {
        Auto,
        None,
        External,
    }

    pub fn decode(value: Value<'_>) -> Option<Located<L7>> {
        let whole = value.clone();
        let mut fields = value.fields()?;
        let mode = fields
            .required("mode")
            .and_then(|mode| mode.choice(&[("auto", Mode::Auto), ("none", Mode::None), ("external", Mode::External)]));
        let (address, cgroup) = (fields.optional("address"), fields.optional("cgroup"));
        fields.finish();
        let mode = mode?;
        if mode != Mode::External {
            for (field, value) in [("address", &address), ("cgroup", &cgroup)] {
                if let Some(value) = value {
                    value.error(
                        format!("only `mode: external` has the field `{field}`"),
                        "remove it, or write `mode: external`",
                    );
                }
            }
        }
        let l7 = match mode {
            Mode::Auto => L7::Auto,
            Mode::None => L7::None,
            Mode::External => {
                if address.is_none() {
                    whole.error(
                        "`mode: external` needs the field `address`",
                        "add where the foreign proxy listens, as `address: 127.0.0.1:PORT`",
                    );
                }
                if cgroup.is_none() {
                    whole.error(
                        "`mode: external` needs the field `cgroup`",
                        "add the foreign proxy's cgroup, as `cgroup: /system.slice/envoy.service`",
                    );
                }
                let (address, cgroup) = (address.and_then(listener), cgroup.and_then(path));
                L7::External {
                    address: address?,
                    cgroup: cgroup?,
                }
            }
        };
        Some(whole.locate(l7))
    }

    fn listener(value: Value<'_>) -> Option<SocketAddr> {
        let text = value.text()?;
        let Ok(address) = text.parse::<SocketAddr>() else {
            let instead = "write it as 127.0.0.1:15101 or as \"[::1]:15101\"";
            value.error(format!("`{}` is no address and port", shorten(text)), instead);
            return None;
        };
        let ip = address.ip().to_canonical();
        if ip.is_unspecified() || ip.is_multicast() || address.port() == 0 {
            value.error(
                format!("nobody can connect to {address}"),
                "write the address and port of this machine at which the foreign proxy is reached, as 127.0.0.1:15101",
            );
            return None;
        }
        Some(SocketAddr::new(ip, address.port()))
    }

    fn path(value: Value<'_>) -> Option<PathBuf> {
        /// `PATH_MAX`
        const MAX: usize = 4096;
        let text = value.text()?;
        let path = Path::new(text);
        let plain = path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if plain && path.file_name().is_some() && text.len() < MAX {
            return Some(path.to_path_buf());
        }
        value.error(
            format!("`{}` is no path of a cgroup", shorten(text)),
            "write it without `.` and `..`: absolute (/system.slice/envoy.service) or below the captured cgroup (edge/envoy)",
        );
        None
    }
}
