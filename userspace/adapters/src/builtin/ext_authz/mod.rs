//! Check adapter that asks a service of your own, by gRPC, as Envoy's filter of this name does
//! (`envoy.service.auth.v3.Authorization/Check`).
//!
//! See this folder's README for the page an operator reads.

use std::time::{Instant, SystemTime};

use http::HeaderMap;
use weft_policy::ObjectRef;

use crate::{
    attribute::Bag,
    error::AdapterError,
    grpc::Channel,
    metrics::CheckMetrics,
    native::{Context, Native, Part, Role},
    outage::Outage,
    pipeline::{Check, CheckResult, Checking, Deny},
    verdicts::{Key, Verdicts},
};

mod config;
mod proto;
mod request;
mod response;

pub use config::{Config, DEFAULT_TIMEOUT, DEFAULT_TRUST_DOMAIN, MAX_TIMEOUT};

/// Said to the client, who need not know what is behind.
const UNAVAILABLE: &str = "the authorization service gave no verdict";

/// Allows what the service allows.
#[derive(Debug)]
pub struct ExtAuthz {
    name: String,
    config: Config,
    rule: Option<ObjectRef>,
    service: Channel,
    verdicts: Option<Verdicts>,
    outage: Outage,
}

// === impl ExtAuthz ===

impl ExtAuthz {
    /// `rule` is the object that configured it, which flow events will name; `None`: the adapter by its name. Connects with
    /// the first request.
    ///
    /// # Errors
    /// [`AdapterError::Config`]: a parameter makes no sense.
    pub fn new(
        name: &str,
        config: Config,
        rule: Option<ObjectRef>,
        metrics: &CheckMetrics,
    ) -> Result<Self, AdapterError> {
        config.validate()?;
        let metrics = metrics.of(name);
        let cache = config.cache.clone();
        Ok(Self {
            name: name.to_owned(),
            service: Channel::new(config.server()?),
            verdicts: cache.map(|cache| Verdicts::new(cache, metrics.cache)),
            outage: Outage::new(
                name,
                config.address.clone(),
                config.failure_policy,
                Deny::new(config.status_on_error, UNAVAILABLE).by(rule.clone()),
                metrics.failures,
            ),
            config,
            rule,
        })
    }

    async fn ask(&self, request: proto::CheckRequest, key: Option<Key>) -> CheckResult {
        let timeout = self.config.timeout;
        let headers = HeaderMap::new();
        let answer = self.service.call(proto::CHECK, &headers, &request, timeout).await;
        let result = match answer {
            Ok(answer) => response::result(answer, self.rule.as_ref()),
            Err(error) => Err(error.to_string()),
        };
        let verdict = match result {
            Ok(verdict) => verdict,
            // Not kept.
            Err(why) => return self.outage.failed(&why),
        };
        self.outage.answered();
        if let (Some(verdicts), Some(key)) = (&self.verdicts, key) {
            verdicts.put(key, &verdict, Instant::now());
        }
        verdict
    }
}

impl Check for ExtAuthz {
    fn name(&self) -> &str {
        &self.name
    }

    fn check<'a>(&'a self, bag: &'a Bag<'_>) -> Checking<'a> {
        let key = self.verdicts.as_ref().map(|verdicts| verdicts.key(bag));
        if let (Some(verdicts), Some(key)) = (&self.verdicts, &key)
            && let Some(verdict) = verdicts.get(key, Instant::now())
        {
            return Checking::Ready(verdict);
        }
        let request = request::request(bag, &self.config, SystemTime::now());
        Checking::Pending(Box::pin(self.ask(request, key)))
    }
}

impl Native for ExtAuthz {
    const NAME: &'static str = "ext_authz";
    const ABOUT: &'static str = "asks a service of your own, by gRPC, as Envoy's filter of this name does";
    const PAGE: &'static str = include_str!("README.md");
    const ROLE: Role = Role::Check;

    type Config = Config;

    fn validate(config: &Config) -> Result<(), AdapterError> {
        config.validate()
    }

    fn make(config: Config, context: &Context<'_>) -> Result<Part, AdapterError> {
        let rule = Some(context.object.clone());
        Ok(Part::check(Self::new(context.name, config, rule, context.checks)?))
    }
}

#[cfg(test)]
pub(crate) mod tests;
