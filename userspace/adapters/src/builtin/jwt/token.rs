//! One token: its signature, its claims, its times.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use jsonwebtoken::{crypto, decode_header};
use serde_json::{Map, Value};

use super::{Config, keys::Keys};
use crate::pipeline::HeaderOperation;

/// Longest token, in bytes. Whole request heads are seldom larger, and each byte is decoded and hashed.
pub const MAX_TOKEN: usize = 16 * 1024;

/// A token whose signature and claims are right. Its times are to be looked at with every request.
#[derive(Debug)]
pub(super) struct Verified {
    /// Seconds since 1970.
    expires: Option<f64>,
    not_before: Option<f64>,
    /// Claims as headers, ready to be applied.
    pub headers: Vec<HeaderOperation>,
}

/// Why a token is no good. The text goes to the client, hence nothing of the token is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadToken {
    #[error("the token is no JSON Web Token")]
    Malformed,
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("the token has critical extensions, which are not understood")]
    Critical,
    #[error("no key for the algorithm and key id of the token")]
    NoKey,
    #[error("the signature is wrong")]
    Signature,
    #[error("the issuer is not accepted")]
    Issuer,
    #[error("the audience is not accepted")]
    Audience,
    #[error("the token has no expiration")]
    NoExpiration,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
}

// === impl Verified ===

impl Verified {
    /// Checks all that does not change with time.
    pub fn new(token: &str, keys: &Keys, config: &Config) -> Result<Self, BadToken> {
        if token.len() > MAX_TOKEN {
            return Err(BadToken::TooLong);
        }
        let header = decode_header(token).map_err(|_| BadToken::Malformed)?;
        //= RFC 7515, section 4.1.11
        //# If any of the listed extension Header Parameters are not understood and supported by the recipient, then the
        //# JWS is invalid.
        if header.crit.is_some() {
            return Err(BadToken::Critical);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(BadToken::Malformed)?;
        let mut candidates = keys.candidates(header.kid.as_deref(), header.alg).peekable();
        if candidates.peek().is_none() {
            return Err(BadToken::NoKey);
        }
        if !candidates.any(|key| crypto::verify(signature, message.as_bytes(), &key.key, header.alg).unwrap_or(false)) {
            return Err(BadToken::Signature);
        }
        let claims = jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| BadToken::Malformed)?;
        Self::from_claims(&claims, config)
    }

    fn from_claims(claims: &Map<String, Value>, config: &Config) -> Result<Self, BadToken> {
        let one_of = |accepted: &[String], claim: Option<&Value>| {
            let is = |value: &Value| {
                value
                    .as_str()
                    .is_some_and(|text| accepted.iter().any(|other| other == text))
            };
            match claim {
                Some(Value::Array(values)) => values.iter().any(is),
                Some(value) => is(value),
                None => false,
            }
        };
        let time = |claim| match claims.get(claim) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(BadToken::Malformed),
        };
        if !config.issuers.is_empty()
            && !claims
                .get("iss")
                .is_some_and(|iss| iss.is_string() && one_of(&config.issuers, Some(iss)))
        {
            return Err(BadToken::Issuer);
        }
        if !config.audiences.is_empty() && !one_of(&config.audiences, claims.get("aud")) {
            return Err(BadToken::Audience);
        }
        let expires = time("exp")?;
        if expires.is_none() && config.require_expiration {
            return Err(BadToken::NoExpiration);
        }
        Ok(Self {
            expires,
            not_before: time("nbf")?,
            headers: headers(claims, config),
        })
    }

    /// `now` since 1970.
    pub fn is_valid_at(&self, now: Duration, skew: Duration) -> Result<(), BadToken> {
        let (now, skew) = (now.as_secs_f64(), skew.as_secs_f64());
        if self.expires.is_some_and(|expires| now >= expires + skew) {
            return Err(BadToken::Expired);
        }
        if self.not_before.is_some_and(|begin| now + skew < begin) {
            return Err(BadToken::NotYet);
        }
        Ok(())
    }

    #[cfg(test)]
    pub fn expiring_at(seconds: u64) -> Self {
        Self {
            expires: Some(seconds as f64),
            not_before: None,
            headers: Vec::new(),
        }
    }

    pub fn has_expired(&self, now: Duration, skew: Duration) -> bool {
        self.is_valid_at(now, skew) == Err(BadToken::Expired)
    }
}

/// What `claims_to_headers` makes of these claims. A claim that is missing or no text removes the header: no client may say it.
pub(super) fn headers(claims: &Map<String, Value>, config: &Config) -> Vec<HeaderOperation> {
    let operation = |(claim, header): (&str, &str)| {
        let name = HeaderName::from_bytes(header.as_bytes()).ok()?;
        let value = find(claims, claim)
            .and_then(text)
            .and_then(|text| HeaderValue::try_from(text).ok());
        Some(match value {
            Some(value) => HeaderOperation::Replace(name, value),
            None => HeaderOperation::Remove(name),
        })
    };
    config
        .claims_to_headers
        .iter()
        .map(|forward| (forward.claim.as_str(), forward.header.as_str()))
        .filter_map(operation)
        .collect()
}

/// The claim of that name, else the way through objects that its dots tell.
fn find<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    claims.get(path).or_else(|| {
        let (first, rest) = path.split_once('.')?;
        find(claims.get(first)?.as_object()?, rest)
    })
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Array(values) => {
            let texts: Option<Vec<String>> = values
                .iter()
                .map(|value| if value.is_array() { None } else { text(value) })
                .collect();
            Some(texts?.join(","))
        }
        Value::Null | Value::Object(_) => None,
    }
}
