//! Lets through so many requests a second, over all workers and instances: a token bucket in the host's shared data.
//!
//! Over it: 429. Configuration and outcomes: `README.md`.

use std::{
    hash::{DefaultHasher, Hasher},
    rc::Rc,
    time::UNIX_EPOCH,
};

use log::{error, warn};
use proxy_wasm::{
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel, Status},
};
use serde::Deserialize;

/// Clients are told apart by a hash to so many buckets, for shared data never shrinks: two may share one.
const BUCKETS: u64 = 1024;

/// Whoever loses the race for a bucket tries again so often: each loss is another's success.
const MAX_TRIES: u32 = 64;

/// The plugin configuration, JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Requests a second, in the long run.
    rate: f64,
    /// Requests at once: at least 1.
    burst: u32,
    /// Header whose values have a bucket each; without it there is one bucket.
    header: Option<String>,
}

/// Requests that may pass, and when that was so.
struct Bucket {
    tokens: f64,
    /// Nanoseconds since 1970.
    at: u64,
}

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Plugin { config: None }));
}}

/// One a module: holds the configuration.
struct Plugin {
    config: Option<Rc<Config>>,
}

/// One a request.
struct Request {
    config: Rc<Config>,
}

// === impl Config ===

impl Config {
    fn parse(json: &[u8]) -> Result<Self, String> {
        let config: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if !(config.rate > 0.0 && config.rate.is_finite()) {
            return Err(format!("`rate` is {}: more than 0 requests a second", config.rate));
        }
        if config.burst == 0 {
            return Err("`burst` is 0: nothing could pass".into());
        }
        Ok(config)
    }
}

// === impl Bucket ===

impl Bucket {
    /// As shared data holds it: tokens, then the time, little-endian. Other bytes are no bucket of ours: `None`.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (tokens, at) = bytes.split_first_chunk::<8>()?;
        Some(Self {
            tokens: f64::from_le_bytes(*tokens),
            at: u64::from_le_bytes(at.try_into().ok()?),
        })
    }

    fn to_bytes(&self) -> Vec<u8> {
        [self.tokens.to_le_bytes(), self.at.to_le_bytes()].concat()
    }

    /// Adds what has come since then, and takes one if there is one.
    fn take(&mut self, config: &Config, now: u64) -> bool {
        let seconds = now.saturating_sub(self.at) as f64 / 1e9;
        self.tokens = (self.tokens + seconds * config.rate).min(f64::from(config.burst));
        self.at = self.at.max(now);
        let taken = self.tokens >= 1.0;
        if taken {
            self.tokens -= 1.0;
        }
        taken
    }
}

// === impl Plugin ===

impl Context for Plugin {}

impl RootContext for Plugin {
    fn on_configure(&mut self, _: usize) -> bool {
        let json = self.get_plugin_configuration().unwrap_or_default();
        match Config::parse(&json) {
            Ok(config) => self.config = Some(Rc::new(config)),
            Err(reason) => {
                error!("rate-limit: configuration refused: {reason}");
                return false;
            }
        }
        true
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        let config = self.config.clone()?;
        Some(Box::new(Request { config }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

// === impl Request ===

impl Context for Request {}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        if self.may_pass() {
            return Action::Continue;
        }
        let seconds = (1.0 / self.config.rate).ceil().to_string();
        let headers = vec![("retry-after", seconds.as_str())];
        self.send_http_response(429, headers, Some(b"rate-limit: too many requests\n"));
        Action::Pause
    }
}

impl Request {
    fn may_pass(&self) -> bool {
        let key = self.key();
        let since = self.get_current_time().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        for _ in 0..MAX_TRIES {
            let (found, cas) = self.get_shared_data(&key);
            let found = found.and_then(|bytes| Bucket::from_bytes(&bytes));
            let mut bucket = found.unwrap_or(Bucket {
                tokens: f64::from(self.config.burst),
                at: now,
            });
            let taken = bucket.take(&self.config, now);
            match self.set_shared_data(&key, Some(&bucket.to_bytes()), cas) {
                Ok(()) => return taken,
                Err(Status::CasMismatch) => {}
                Err(status) => {
                    warn!("rate-limit: write {key}: {status:?}");
                    return false;
                }
            }
        }
        warn!("rate-limit: {key} was taken by others {MAX_TRIES} times");
        false
    }

    fn key(&self) -> String {
        let value = self.config.header.as_ref().map(|name| {
            // As bytes: what a client sends need not be UTF-8.
            self.get_http_request_header_bytes(name).unwrap_or_default()
        });
        let bucket = value.map_or(0, |value| {
            let mut hasher = DefaultHasher::new();
            hasher.write(&value);
            hasher.finish() % BUCKETS
        });
        format!("rate-limit/{bucket}")
    }
}
