//! Check adapter that asks for a JSON Web Token (RFC 7519), as Envoy's `jwt_authn` and Istio's RequestAuthentication.
//!
//! See this folder's README for the page an operator reads.

use std::{
    borrow::Cow,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderName, HeaderValue, StatusCode, header};
use weft_policy::ObjectRef;

use crate::{
    attribute::{Bag, RequestView},
    error::AdapterError,
    native::{Context, Native, Part, Role},
    pipeline::{Check, CheckResult, Checking, Deny, Directives, HeaderOperation},
    provider::{Latest, Provider},
};

mod cache;
mod config;
mod keys;
mod token;

use cache::Cache;
pub use cache::MAX_CACHED_TOKENS;
pub use config::{
    ClaimToHeader, Config, DEFAULT_ALGORITHMS, DEFAULT_CLOCK_SKEW, DEFAULT_REALM, DEFAULT_REFRESH_INTERVAL,
    HeaderLocation, Location, MAX_CLOCK_SKEW, MIN_REFRESH_INTERVAL,
};
use keys::Keys;
pub use keys::MAX_KEYS;
pub use token::MAX_TOKEN;
use token::{BadToken, Verified};

/// Allows requests with a valid token.
#[derive(Debug)]
pub struct Jwt {
    name: String,
    config: Config,
    rule: Option<ObjectRef>,
    trusted: Latest<Trusted>,
    /// For requests without a token: no client may say what a claim would say.
    without_claims: Vec<HeaderOperation>,
}

/// Keys, and the tokens that they signed.
#[derive(Debug)]
struct Trusted {
    keys: Keys,
    seen: Cache,
}

/// A token and where it was.
struct Found<'a> {
    token: Cow<'a, str>,
    location: &'a Location,
}

/// A place has more than one value, or one that is no text: nobody knows what the service takes for the token.
struct Ambiguous;

// === impl Jwt ===

impl Jwt {
    /// `rule` is the object that configured it, which flow events will name; `None`: the adapter by its name.
    ///
    /// A key file is read at once; a URL is fetched in the background, and until it answers requests are refused.
    ///
    /// # Errors
    /// [`AdapterError::Config`]: a parameter makes no sense, or the key file has no usable key.
    pub fn new(name: &str, mut config: Config, rule: Option<ObjectRef>) -> Result<Self, AdapterError> {
        config.validate()?;
        for location in &mut config.from {
            if let Location::Header(header) = location {
                header.name.make_ascii_lowercase();
            }
        }
        let algorithms = config.algorithms.clone();
        let parse = move |json: &[u8]| Trusted::parse(json, &algorithms);
        let wrong = |field, reason| AdapterError::Config {
            adapter: "jwt",
            field,
            found: reason,
            expected: "a JSON Web Key Set with a key for one of the `algorithms`".to_owned(),
        };
        let trusted = match (&config.jwks_uri, &config.jwks) {
            (Some(provider), _) => {
                let first = match provider {
                    Provider::Url(_) => None,
                    Provider::File(path) => {
                        let json = Provider::read_file(path, "jwt", "jwks_uri")?;
                        Some(parse(&json).map_err(|reason| wrong("jwks_uri", reason))?)
                    }
                };
                let source = provider.source(config.tls.as_ref()).map_err(|bad| bad.of("jwt"))?;
                Latest::follow(name, source, config.refresh_interval, first, parse)?
            }
            (None, set) => {
                let json = set.as_ref().map(ToString::to_string).unwrap_or_default();
                Latest::fixed(parse(json.as_bytes()).map_err(|reason| wrong("jwks", reason))?)
            }
        };
        Ok(Self {
            name: name.to_owned(),
            without_claims: token::headers(&serde_json::Map::new(), &config),
            config,
            rule,
            trusted,
        })
    }

    /// What the first place has that has something.
    fn find<'a>(&'a self, request: &RequestView<'a>) -> Result<Option<Found<'a>>, Ambiguous> {
        for location in &self.config.from {
            let token = match location {
                Location::Header(header) => only_line(request, &header.name)?
                    .and_then(|line| line.split_at_checked(header.prefix.len()))
                    .filter(|(prefix, _)| prefix.eq_ignore_ascii_case(&header.prefix))
                    .map(|(_, token)| Cow::Borrowed(token.trim())),
                Location::Cookie(name) => only_cookie(request, name)?.map(Cow::Owned),
                Location::Query(name) => only_parameter(request, name)?,
            };
            if let Some(token) = token {
                return Ok(Some(Found { token, location }));
            }
        }
        Ok(None)
    }

    fn verify(&self, token: &str, now: Duration) -> Result<Result<Arc<Verified>, BadToken>, NoKeys> {
        let trusted = self.trusted.load();
        let trusted = trusted.as_ref().ok_or(NoKeys)?;
        let skew = self.config.clock_skew;
        let verify = || {
            if let Some(verified) = trusted.seen.get(token) {
                verified.is_valid_at(now, skew)?;
                return Ok(verified);
            }
            let verified = Arc::new(Verified::new(token, &trusted.keys, &self.config)?);
            verified.is_valid_at(now, skew)?;
            trusted.seen.put(token, verified.clone(), now, skew);
            Ok(verified)
        };
        Ok(verify())
    }

    fn check_at(&self, bag: &Bag<'_>, now: Duration) -> Checking<'static> {
        let Some(request) = bag.request else {
            // Tokens are a matter of requests.
            return Checking::ALLOW;
        };
        let found = match self.find(&request) {
            Ok(Some(found)) => found,
            Ok(None) if self.config.allow_missing => return allow(self.without_claims.clone()),
            Ok(None) => return self.unauthorized("the request has no token", None),
            Err(Ambiguous) => {
                return self.unauthorized(
                    "there are several tokens, or one that is no text",
                    Some("invalid_token"),
                );
            }
        };
        match self.verify(&found.token, now) {
            Ok(Ok(verified)) => {
                let removal = self.config.remove_token.then(|| removal(&found, &request));
                if removal.is_none() && verified.headers.is_empty() {
                    return Checking::ALLOW;
                }
                allow(removal.into_iter().chain(verified.headers.iter().cloned()).collect())
            }
            Ok(Err(bad)) => self.unauthorized(&bad.to_string(), Some("invalid_token")),
            Err(NoKeys) => Checking::unjudged(
                Deny::new(
                    StatusCode::SERVICE_UNAVAILABLE.as_u16(),
                    "the keys that tokens are verified with are not available",
                )
                .by(self.rule.clone()),
            ),
        }
    }

    /// As RFC 6750 section 3 has it: no error code where no token was given.
    fn unauthorized(&self, why: &str, error: Option<&str>) -> Checking<'static> {
        let realm = &self.config.realm;
        let challenge = match error {
            None => format!("Bearer realm=\"{realm}\""),
            Some(error) => format!("Bearer realm=\"{realm}\", error=\"{error}\", error_description=\"{why}\""),
        };
        let mut deny = Deny::new(StatusCode::UNAUTHORIZED.as_u16(), why).by(self.rule.clone());
        if let Ok(challenge) = HeaderValue::try_from(challenge) {
            deny = deny.with_header(header::WWW_AUTHENTICATE, challenge);
        }
        Checking::deny(deny)
    }
}

impl Check for Jwt {
    fn name(&self) -> &str {
        &self.name
    }

    fn check<'a>(&'a self, bag: &'a Bag<'_>) -> Checking<'a> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.check_at(bag, now)
    }
}

/// Nothing to verify with yet.
struct NoKeys;

// === impl Trusted ===

impl Trusted {
    fn parse(json: &[u8], algorithms: &[jsonwebtoken::Algorithm]) -> Result<Self, String> {
        Ok(Self {
            keys: Keys::parse(json, algorithms)?,
            seen: Cache::default(),
        })
    }
}

fn only_line<'a>(request: &RequestView<'a>, name: &str) -> Result<Option<&'a str>, Ambiguous> {
    let mut lines = 0;
    request.headers.values(name, &mut |_| lines += 1);
    match lines {
        0 => Ok(None),
        1 => request.headers.get(name).map(Some).ok_or(Ambiguous),
        _ => Err(Ambiguous),
    }
}

fn only_cookie(request: &RequestView<'_>, name: &str) -> Result<Option<String>, Ambiguous> {
    let mut only = None;
    request.cookies(name, &mut |value| {
        only = Some(match (&only, std::str::from_utf8(value)) {
            (None, Ok(text)) => Ok(text.to_owned()),
            _ => Err(Ambiguous),
        });
    });
    only.transpose()
}

fn only_parameter<'a>(request: &RequestView<'a>, name: &str) -> Result<Option<Cow<'a, str>>, Ambiguous> {
    let mut values = request.query_params(name);
    match (values.next(), values.next()) {
        (only, None) => Ok(only),
        _ => Err(Ambiguous),
    }
}

fn allow(request: Vec<HeaderOperation>) -> Checking<'static> {
    if request.is_empty() {
        return Checking::ALLOW;
    }
    Checking::Ready(CheckResult::AllowWith(Box::new(Directives {
        request,
        response: Vec::new(),
    })))
}

/// How the token leaves the request.
fn removal(found: &Found<'_>, request: &RequestView<'_>) -> HeaderOperation {
    match found.location {
        Location::Header(location) => match HeaderName::from_bytes(location.name.as_bytes()) {
            Ok(name) => HeaderOperation::Remove(name),
            Err(_) => HeaderOperation::Remove(header::AUTHORIZATION), // validated: a header's name
        },
        Location::Cookie(name) => {
            let mut others = Vec::new();
            request.headers.values("cookie", &mut |line| {
                for pair in line.split(|byte| *byte == b';').map(<[u8]>::trim_ascii) {
                    let key = pair
                        .iter()
                        .position(|byte| *byte == b'=')
                        .map(|end| pair[..end].trim_ascii());
                    if pair.is_empty() || key == Some(name.as_bytes()) {
                        continue;
                    }
                    if !others.is_empty() {
                        others.extend_from_slice(b"; ");
                    }
                    others.extend_from_slice(pair);
                }
            });
            match HeaderValue::try_from(others) {
                Ok(value) if !value.is_empty() => HeaderOperation::Replace(header::COOKIE, value),
                _ => HeaderOperation::Remove(header::COOKIE),
            }
        }
        // Refused by `validate` together with `remove_token`.
        Location::Query(_) => HeaderOperation::Remove(header::AUTHORIZATION),
    }
}

impl fmt::Debug for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found")
            .field("location", self.location)
            .finish_non_exhaustive()
    }
}

impl Native for Jwt {
    const NAME: &'static str = "jwt";
    const ABOUT: &'static str = "lets requests through that carry a valid JSON Web Token";
    const PAGE: &'static str = include_str!("README.md");
    const ROLE: Role = Role::Check;

    type Config = Config;

    fn validate(config: &Config) -> Result<(), AdapterError> {
        config.validate()
    }

    fn make(config: Config, context: &Context<'_>) -> Result<Part, AdapterError> {
        let rule = Some(context.object.clone());
        Ok(Part::check(Self::new(context.name, config, rule)?))
    }
}

#[cfg(test)]
mod tests;
