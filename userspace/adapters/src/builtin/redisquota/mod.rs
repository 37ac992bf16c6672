//! Quota adapter that counts in Redis, for all daemons together, as Mixer's `redisquota`.
//!
//! See this folder's README for the page an operator reads.

use std::{
    cell::Cell,
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use http::{HeaderValue, StatusCode, header};
use redis::{RedisResult, Script};
use tokio::time::timeout;
use weft_policy::ObjectRef;

use crate::{
    attribute::Bag,
    dimensions::Dimensions,
    error::AdapterError,
    metrics::CheckMetrics,
    native::{Context, Native, Part, Role},
    outage::Outage,
    pipeline::{Check, CheckResult, Checking, Deny},
};

mod config;
mod server;

pub use config::{
    Algorithm, Config, DEFAULT_CONNECTION_POOL_SIZE, DEFAULT_REDIS_SERVER_URL, DEFAULT_TIMEOUT, MAX_BUCKETS,
    MAX_CONNECTION_POOL_SIZE, MAX_TIMEOUT, MAX_VALID_DURATION, MIN_VALID_DURATION, Override, Quota,
};
use server::{Server, Used};

/// Said to the client, who need not know what is behind.
const UNAVAILABLE: &str = "the quota cannot be counted at present";

/// Refuses with 429 what is beyond a quota.
#[derive(Debug)]
pub struct RedisQuota {
    name: String,
    rule: Option<ObjectRef>,
    quotas: Vec<Counted>,
    server: Server,
    timeout: Duration,
    /// How long Redis remembers that a question was answered, in milliseconds: longer than it may be repeated.
    keep: u128,
    fixed: Script,
    rolling: Script,
    outage: Outage,
    /// Tells this process's questions from those of others.
    process: u64,
    asked: AtomicU64,
}

#[derive(Debug)]
struct Counted {
    name: String,
    /// Begin of the keys in Redis.
    prefix: String,
    window: Window,
    dimensions: Dimensions<u32>,
}

#[derive(Debug, Clone, Copy)]
enum Window {
    /// Its length, in milliseconds.
    Fixed(u128),
    /// How many buckets, of how many milliseconds.
    Rolling(u64, u128),
}

/// One quota, as one request is charged to it.
struct Charge<'a> {
    quota: &'a Counted,
    key: String,
    most: u32,
}

/// Milliseconds until one comes back; `None`: never.
struct Exhausted(Option<u64>);

// === impl RedisQuota ===

impl RedisQuota {
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
        let login = config.login()?;
        let address = login.server.address.to_string();
        Ok(Self {
            name: name.to_owned(),
            server: Server::new(login, config.connection_pool_size, config.timeout),
            timeout: config.timeout,
            keep: 2 * config.timeout.as_millis().max(500),
            fixed: Script::new(include_str!("fixed_window.lua")),
            rolling: Script::new(include_str!("rolling_window.lua")),
            outage: Outage::new(
                name,
                address,
                config.failure_policy,
                Deny::new(StatusCode::SERVICE_UNAVAILABLE.as_u16(), UNAVAILABLE).by(rule.clone()),
                metrics.of(name).failures,
            ),
            rule,
            quotas: config
                .quotas
                .into_iter()
                .map(|quota| Counted::new(name, quota))
                .collect(),
            process: RandomState::new().hash_one(name),
            asked: AtomicU64::new(0),
        })
    }

    async fn ask(&self, charges: Vec<Charge<'_>>) -> CheckResult {
        let question = self.question();
        let used = Cell::new(None);
        let asking = async {
            for charge in &charges {
                if let Err(exhausted) = self.charge(charge, &question, &used).await? {
                    return Ok(self.exhausted(&charge.quota.name, &exhausted));
                }
            }
            RedisResult::Ok(CheckResult::Allow)
        };
        match timeout(self.timeout, asking).await {
            Ok(Ok(verdict)) => {
                self.outage.answered();
                verdict
            }
            Ok(Err(error)) => self.outage.failed(&error.to_string()),
            Err(_late) => {
                if let Some(used) = used.get() {
                    self.server.give_up(used);
                }
                self.outage.failed(&format!("no answer within {:?}", self.timeout))
            }
        }
    }

    /// Unlike that of any other request. A question that is repeated because its answer was lost is not charged again.
    fn question(&self) -> String {
        format!("{:x}-{:x}", self.process, self.asked.fetch_add(1, Ordering::Relaxed))
    }

    async fn charge(
        &self,
        charge: &Charge<'_>,
        question: &str,
        used: &Cell<Option<Used>>,
    ) -> RedisResult<Result<(), Exhausted>> {
        let script = match charge.quota.window {
            Window::Fixed(_) => &self.fixed,
            Window::Rolling(..) => &self.rolling,
        };
        let mut call = script.key(&charge.key);
        call.key(format!("{}answer:{question}", charge.quota.prefix))
            .arg(charge.most);
        match charge.quota.window {
            Window::Fixed(length) => call.arg(length.to_string()),
            Window::Rolling(buckets, length) => call.arg(buckets).arg(length.to_string()),
        };
        call.arg(self.keep.to_string());
        let (granted, wait) = self.server.run(&call, used).await?;
        Ok(match (granted, charge.most) {
            (1, _) => Ok(()),
            (_, 0) => Err(Exhausted(None)),
            _ => Err(Exhausted(u64::try_from(wait).ok())),
        })
    }

    fn exhausted(&self, quota: &str, exhausted: &Exhausted) -> CheckResult {
        let mut deny = Deny::new(
            StatusCode::TOO_MANY_REQUESTS.as_u16(),
            format!("quota `{quota}` is exhausted"),
        )
        .by(self.rule.clone());
        if let Some(wait) = exhausted.0 {
            deny = deny.with_header(header::RETRY_AFTER, HeaderValue::from(wait.div_ceil(1000).max(1)));
        }
        CheckResult::Deny(Box::new(deny))
    }
}

impl Check for RedisQuota {
    fn name(&self) -> &str {
        &self.name
    }

    fn check<'a>(&'a self, bag: &'a Bag<'_>) -> Checking<'a> {
        let charges = self.quotas.iter().map(|quota| quota.charge(bag)).collect();
        Checking::Pending(Box::pin(self.ask(charges)))
    }
}

// === impl Counted ===

impl Counted {
    fn new(adapter: &str, quota: Quota) -> Self {
        let bucket = quota.bucket_duration.unwrap_or(quota.valid_duration);
        // Counts of one kind mean nothing to another: the key tells.
        let (window, kind) = match quota.rate_limit_algorithm {
            Algorithm::FixedWindow => (Window::Fixed(quota.valid_duration.as_millis()), "fixed".to_owned()),
            Algorithm::RollingWindow => {
                let length = bucket.as_millis();
                let window = Window::Rolling(quota.buckets(bucket), length);
                (window, format!("rolling-{length}ms"))
            }
        };
        let overrides = quota
            .overrides
            .into_iter()
            .map(|other| (other.dimensions, other.max_amount));
        Self {
            prefix: format!("weft:{adapter}:{}:{kind}:", quota.name),
            window,
            dimensions: Dimensions::new(quota.dimensions, quota.max_amount, overrides),
            name: quota.name,
        }
    }

    fn charge(&self, bag: &Bag<'_>) -> Charge<'_> {
        let mut key = format!("{}count:", self.prefix);
        self.dimensions.key(bag, &mut key);
        Charge {
            quota: self,
            key,
            most: self.dimensions.limit(bag),
        }
    }
}

impl Native for RedisQuota {
    const NAME: &'static str = "redisquota";
    const ABOUT: &'static str = "refuses what is beyond a quota, counted in Redis for all daemons together";
    const PAGE: &'static str = include_str!("README.md");
    const ROLE: Role = Role::Quota;

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
mod tests;
