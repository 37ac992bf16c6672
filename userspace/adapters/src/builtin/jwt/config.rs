//! Parameters of the jwt adapter.

use std::time::Duration;

use http::HeaderName;
use jsonwebtoken::Algorithm;
use serde::Deserialize;

use super::keys::Keys;
use crate::{
    duration,
    error::AdapterError,
    provider::Provider,
    tls::{BadTls, TlsParams},
};

/// How often keys are fetched anew, unless said otherwise. Envoy's `cache_duration` is 10 minutes; issuers publish a key well
/// before they sign with it.
pub const DEFAULT_REFRESH_INTERVAL: Duration = Duration::from_secs(300);

/// Shortest refresh interval.
pub const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(100);

/// How far the issuer's clock may be from ours, unless said otherwise. Envoy's default.
pub const DEFAULT_CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Largest clock skew: more would not be leeway but a longer life for every token.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// Named in `www-authenticate`, unless said otherwise.
pub const DEFAULT_REALM: &str = "weft";

/// Signatures that are accepted unless said otherwise: all that need no shared secret.
pub const DEFAULT_ALGORITHMS: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Accepted values of `iss`. None: any issuer that signs with these keys.
    #[serde(default)]
    pub issuers: Vec<String>,
    /// A token must have one of these in `aud`. None: any.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// File or URL of a JSON Web Key Set.
    #[serde(default)]
    pub jwks_uri: Option<Provider>,
    /// Parameters of TLS to an `https` server. Default: its certificate must be signed by an authority of this machine.
    #[serde(default)]
    pub tls: Option<TlsParams>,
    /// Or the set itself.
    #[serde(default)]
    pub jwks: Option<serde_json::Value>,
    /// Default [`DEFAULT_REFRESH_INTERVAL`].
    #[serde(default = "default_refresh_interval", deserialize_with = "duration::deserialize")]
    pub refresh_interval: Duration,
    /// Accepted algorithms. HMAC ones must be named and need an `oct` key. Default [`DEFAULT_ALGORITHMS`].
    #[serde(default = "default_algorithms")]
    pub algorithms: Vec<Algorithm>,
    /// Where the token is looked for; the first place that has one counts. Default: `authorization: Bearer`.
    #[serde(default = "default_from")]
    pub from: Vec<Location>,
    /// Default [`DEFAULT_CLOCK_SKEW`], for `exp` and `nbf`.
    #[serde(default = "default_clock_skew", deserialize_with = "duration::deserialize")]
    pub clock_skew: Duration,
    /// Refuse tokens that never expire.
    #[serde(default = "yes")]
    pub require_expiration: bool,
    /// Let requests through that have no token at all. What is there must still be valid.
    #[serde(default)]
    pub allow_missing: bool,
    /// Claims that the service gets as request headers. What a client sent under such a name is removed.
    #[serde(default)]
    pub claims_to_headers: Vec<ClaimToHeader>,
    /// Take the token out of the request before it is forwarded. Not possible for tokens from the query.
    #[serde(default)]
    pub remove_token: bool,
    /// Default [`DEFAULT_REALM`].
    #[serde(default = "default_realm")]
    pub realm: String,
}

/// One place for a token.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum Location {
    Header(HeaderLocation),
    /// Name of a cookie.
    Cookie(String),
    /// Name of a query parameter.
    Query(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderLocation {
    pub name: String,
    /// What stands before the token, compared without case. Values that do not begin so are no tokens.
    #[serde(default)]
    pub prefix: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimToHeader {
    /// Name of a claim; dots lead into objects (`realm_access.roles`). Texts, numbers and truths are forwarded as such,
    /// lists of them joined by commas.
    pub claim: String,
    pub header: String,
}

fn default_refresh_interval() -> Duration {
    DEFAULT_REFRESH_INTERVAL
}

fn default_algorithms() -> Vec<Algorithm> {
    DEFAULT_ALGORITHMS.to_vec()
}

fn default_from() -> Vec<Location> {
    vec![Location::Header(HeaderLocation {
        name: "authorization".to_owned(),
        prefix: "Bearer ".to_owned(),
    })]
}

fn default_clock_skew() -> Duration {
    DEFAULT_CLOCK_SKEW
}

fn default_realm() -> String {
    DEFAULT_REALM.to_owned()
}

fn yes() -> bool {
    true
}

// === impl Config ===

impl Config {
    pub(super) fn validate(&self) -> Result<(), AdapterError> {
        let wrong = |field, found: String, expected: &str| {
            Err(AdapterError::Config {
                adapter: "jwt",
                field,
                found,
                expected: expected.to_owned(),
            })
        };
        match (&self.jwks, &self.jwks_uri) {
            (Some(set), None) => {
                if let Err(reason) = Keys::parse(set.to_string().as_bytes(), &self.algorithms) {
                    return wrong(
                        "jwks",
                        reason,
                        "a JSON Web Key Set with a key for one of the `algorithms`",
                    );
                }
            }
            (None, Some(_)) => {}
            (both, _) => {
                let found = if both.is_some() {
                    "`jwks` and `jwks_uri`"
                } else {
                    "nothing"
                };
                return wrong("jwks", found.to_owned(), "either `jwks` or `jwks_uri`");
            }
        }
        let checked = match &self.jwks_uri {
            Some(provider) => provider.check_tls(self.tls.as_ref()),
            None if self.tls.is_some() => Err(BadTls::for_plain("jwks", "an `https` URL")),
            None => Ok(()),
        };
        checked.map_err(|bad| bad.of("jwt"))?;
        if self.refresh_interval < MIN_REFRESH_INTERVAL {
            return wrong(
                "refresh_interval",
                format!("{:?}", self.refresh_interval),
                "100ms or more",
            );
        }
        if self.clock_skew > MAX_CLOCK_SKEW {
            return wrong("clock_skew", format!("{:?}", self.clock_skew), "an hour at most");
        }
        if self.algorithms.is_empty() {
            return wrong("algorithms", "[]".to_owned(), "at least one, such as RS256");
        }
        if self.from.is_empty() {
            return wrong("from", "[]".to_owned(), "at least one of header, cookie, query");
        }
        for location in &self.from {
            match location {
                Location::Header(header) if HeaderName::from_bytes(header.name.as_bytes()).is_err() => {
                    return wrong("from.header.name", header.name.clone(), "the name of a header");
                }
                Location::Query(name) if self.remove_token => {
                    return wrong(
                        "remove_token",
                        "true".to_owned(),
                        &format!(
                            "false, because the token may be in query parameter `{name}` and a check cannot change the path"
                        ),
                    );
                }
                _ => {}
            }
        }
        for forward in &self.claims_to_headers {
            if HeaderName::from_bytes(forward.header.as_bytes()).is_err() {
                return wrong(
                    "claims_to_headers.header",
                    forward.header.clone(),
                    "the name of a header",
                );
            }
        }
        if self.realm.contains(['"', '\\']) || self.realm.chars().any(char::is_control) || !self.realm.is_ascii() {
            return wrong(
                "realm",
                self.realm.clone(),
                "printable ASCII without quotes and backslashes",
            );
        }
        Ok(())
    }
}
