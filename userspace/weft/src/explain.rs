//! From the words of `weft explain` to what policy understands.

use std::net::IpAddr;

use weft_policy::{Account, DNS_SUFFIX, ExplainInput, ExplainTarget, Explanation, ServiceName, Snapshot};

use crate::admin::{ControlError, api::ExplainRequest};

/// Namespace of a name that does not say one.
pub const DEFAULT_NAMESPACE: &str = "default";

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{flag} `{found}`: expected {expected}")]
pub struct ExplainError {
    flag: &'static str,
    found: String,
    expected: &'static str,
}

/// Answers a question from a snapshot.
///
/// # Errors
///
/// [`ControlError::Invalid`] if the question cannot be understood.
pub fn explain(snapshot: &Snapshot, request: &ExplainRequest) -> Result<Explanation, ControlError> {
    let input = input(request).map_err(|error| ControlError::Invalid {
        reason: error.to_string(),
        details: Vec::new(),
    })?;
    Ok(snapshot.explain(&input))
}

/// The question in policy's terms.
pub fn input(request: &ExplainRequest) -> Result<ExplainInput, ExplainError> {
    let from = account(&request.from)?;
    let to = target(&request.to, &from.namespace)?;
    Ok(ExplainInput {
        from,
        to,
        port: request.port,
        protocol: request.protocol,
        method: request.method.clone(),
        path: request.path.clone(),
        headers: request
            .headers
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
            .collect(),
    })
}

fn account(text: &str) -> Result<Account, ExplainError> {
    let (namespace, name) = text.split_once('/').unwrap_or((DEFAULT_NAMESPACE, text));
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        return Err(ExplainError {
            flag: "from",
            found: text.to_owned(),
            expected: "NAMESPACE/ACCOUNT or ACCOUNT",
        });
    }
    Ok(Account {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

fn target(text: &str, near: &str) -> Result<ExplainTarget, ExplainError> {
    if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(ExplainTarget::Address(address));
    }
    let parts = match text.split_once('/') {
        Some((namespace, name)) => Some((name, namespace)),
        None => match text.trim_end_matches('.').split('.').collect::<Vec<_>>().as_slice() {
            [name] => Some((*name, near)),
            [name, namespace] | [name, namespace, DNS_SUFFIX] => Some((*name, *namespace)),
            _ => None,
        },
    };
    match parts {
        Some((name, namespace)) if !name.is_empty() && !namespace.is_empty() && !name.contains('/') => {
            Ok(ExplainTarget::Service(ServiceName {
                namespace: namespace.into(),
                name: name.into(),
            }))
        }
        _ => Err(ExplainError {
            flag: "to",
            found: text.to_owned(),
            expected: "SERVICE, NAMESPACE/SERVICE, SERVICE.NAMESPACE or an address",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(namespace: &str, name: &str) -> ExplainTarget {
        ExplainTarget::Service(ServiceName {
            namespace: namespace.into(),
            name: name.into(),
        })
    }

    #[test]
    fn names_are_understood_as_dns_and_kubernectl_users_write_them() {
        for (text, expected) in [
            ("web", service("shop", "web")),
            ("web.prod", service("prod", "web")),
            ("web.prod.mesh", service("prod", "web")),
            ("web.prod.mesh.", service("prod", "web")),
            ("prod/web", service("prod", "web")),
            (
                "240.240.0.1",
                ExplainTarget::Address("240.240.0.1".parse().expect("an address")),
            ),
            (
                "[2001:2::1]",
                ExplainTarget::Address("2001:2::1".parse().expect("an address")),
            ),
        ] {
            assert_eq!(target(text, "shop"), Ok(expected), "{text}");
        }
        for text in ["", "a/b/c", "/web", "web/", "web.example.com", "web."] {
            assert!(text == "web." || target(text, "shop").is_err(), "{text}");
        }
    }

    #[test]
    fn an_account_without_namespace_is_of_default() {
        assert_eq!(account("c").map(|account| account.to_string()), Ok("default/c".into()));
        assert_eq!(account("n/c").map(|account| account.to_string()), Ok("n/c".into()));
        assert!(account("").is_err() && account("a/b/c").is_err() && account("/c").is_err());
    }
}
