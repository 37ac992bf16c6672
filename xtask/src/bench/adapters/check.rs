//! What looks at a request, in weft and in Envoy.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::{bench::peers, paths};

/// Where the policy server listens, on loopback.
pub const POLICY_SERVER: u16 = 9191;

/// What every check asks for: `authorization: Bearer TOKEN`.
pub const TOKEN: &str = "s3cret";

/// What looks at a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Check {
    Nothing,
    /// `list`; Envoy's RBAC.
    Native,
    /// The filter header-auth, made with the Rust SDK: the same module in both.
    Wasm,
    /// The same module with an instance for each request, which Envoy has no word for.
    FreshWasm,
    /// ext_authz, in both.
    Remote,
}

// === impl Check ===

impl Check {
    /// The service of the mesh that is checked so.
    pub fn service(self) -> &'static str {
        match self {
            Self::Nothing => "unchecked",
            Self::Native => "native",
            Self::Wasm => "wasm",
            Self::FreshWasm => "fresh-wasm",
            Self::Remote => "remote",
        }
    }

    /// The rest of an Adapter on that service.
    pub fn adapter(self) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Native => Some(format!(
                "backend: native\n  native: list\n  params: {{value: 'request.headers[\"authorization\"]', entries: ['Bearer {TOKEN}']}}"
            )),
            Self::Wasm | Self::FreshWasm => Some(format!(
                "backend: wasm\n  wasm: {{module: '{}', instances: {}}}\n  params: {}",
                module().display(),
                if self == Self::Wasm { "worker" } else { "request" },
                filter_config()
            )),
            Self::Remote => Some(format!(
                "backend: native\n  native: ext_authz\n  params: {{address: '127.0.0.1:{POLICY_SERVER}', timeout: 5s}}"
            )),
        }
    }

    /// The filter of Envoy, and what it needs beside the origin.
    pub fn envoy(self) -> (Option<Value>, Option<Value>) {
        match self {
            Self::Nothing => (None, None),
            Self::Native => {
                let header = json!({"name": "authorization", "string_match": {"exact": format!("Bearer {TOKEN}")}});
                let policy = json!({"permissions": [{"any": true}], "principals": [{"header": header}]});
                let rules = json!({"action": "ALLOW", "policies": {"token": policy}});
                (Some(filter("rbac.v3.RBAC", json!({"rules": rules}))), None)
            }
            Self::Wasm | Self::FreshWasm => {
                let configuration = json!({
                    "@type": "type.googleapis.com/google.protobuf.StringValue",
                    "value": filter_config().to_string(),
                });
                let code = json!({"local": {"filename": module()}});
                let vm = json!({"vm_id": "token", "runtime": "envoy.wasm.runtime.v8", "code": code});
                let config = json!({"name": "token", "configuration": configuration, "vm_config": vm});
                (Some(filter("wasm.v3.Wasm", json!({"config": config}))), None)
            }
            Self::Remote => {
                let service = json!({"envoy_grpc": {"cluster_name": "policy"}, "timeout": "5s"});
                let config = json!({"grpc_service": service, "transport_api_version": "V3"});
                let cluster = peers::over_http2(peers::cluster("policy", POLICY_SERVER));
                (Some(filter("ext_authz.v3.ExtAuthz", config)), Some(cluster))
            }
        }
    }
}

fn module() -> PathBuf {
    paths::filters().join("header-auth.wasm")
}

fn filter_config() -> Value {
    json!({"tokens": {TOKEN: "bench"}})
}

/// An HTTP filter of Envoy.
fn filter(kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}").into();
    json!({"name": kind, "typed_config": config})
}
