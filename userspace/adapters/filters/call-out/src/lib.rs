//! Asks a service about every request, and lets through what it answers with 200.
//!
//! Any other answer, none in time, or no such service: 403. Configuration and outcomes: `README.md`.

use std::{rc::Rc, time::Duration};

use log::{error, info, warn};
use proxy_wasm::{
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel},
};
use serde::Deserialize;

/// How long an answer may take, in milliseconds, unless the configuration says otherwise. A request waits as long.
const DEFAULT_TIMEOUT_MS: u64 = 500;

/// The plugin configuration, JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Whom to ask, as the host calls it: a service, or a cluster of Envoy.
    upstream: String,
    /// Path of the question.
    #[serde(default = "root")]
    path: String,
    /// How long the answer may take, in milliseconds.
    #[serde(default = "default_timeout_ms")]
    timeout_ms: u64,
    /// Headers of the request that the question repeats.
    #[serde(default)]
    ask_headers: Vec<String>,
    /// Headers of the answer that the service gets with the request; what a client says there is removed.
    #[serde(default)]
    answer_headers: Vec<String>,
}

fn root() -> String {
    "/".into()
}

fn default_timeout_ms() -> u64 {
    DEFAULT_TIMEOUT_MS
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
        if config.upstream.is_empty() {
            return Err("`upstream` is empty: say whom to ask".into());
        }
        if !config.path.starts_with('/') {
            return Err(format!("`path` is {:?}: begin it with a slash", config.path));
        }
        if config.timeout_ms == 0 {
            return Err("`timeout_ms` is 0: say how long an answer may take".into());
        }
        Ok(config)
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
                error!("call-out: configuration refused: {reason}");
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

impl Request {
    fn deny(&self) {
        self.send_http_response(403, Vec::new(), Some(b"call-out: denied\n"));
    }
}

impl Context for Request {
    /// No headers: nobody answered, or not in time. Some hosts (Envoy) say 503 or 504 instead.
    fn on_http_call_response(&mut self, _: u32, headers: usize, _: usize, _: usize) {
        let status = self
            .get_http_call_response_header_bytes(":status")
            .filter(|_| headers > 0);
        let Some(status) = status else {
            warn!("call-out: {} did not answer", self.config.upstream);
            return self.deny();
        };
        if status != b"200" {
            info!(
                "call-out: {} says {}",
                self.config.upstream,
                String::from_utf8_lossy(&status)
            );
            return self.deny();
        }
        for name in &self.config.answer_headers {
            match self.get_http_call_response_header_bytes(name) {
                Some(value) => self.set_http_request_header_bytes(name, Some(&value)),
                None => self.set_http_request_header(name, None),
            }
        }
        self.resume_http_request();
    }
}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let config = &self.config;
        // What is no UTF-8 is not repeated: the SDK's calls take text.
        let repeated: Vec<(&str, String)> = config
            .ask_headers
            .iter()
            .filter_map(|name| {
                let value = self.get_http_request_header_bytes(name)?;
                Some((name.as_str(), String::from_utf8(value).ok()?))
            })
            .collect();
        let mut headers = vec![
            (":method", "GET"),
            (":path", config.path.as_str()),
            (":authority", config.upstream.as_str()),
        ];
        headers.extend(repeated.iter().map(|(name, value)| (*name, value.as_str())));
        let timeout = Duration::from_millis(config.timeout_ms);
        let asked = self.dispatch_http_call(&config.upstream, headers, None, Vec::new(), timeout);
        if let Err(status) = asked {
            warn!("call-out: ask {}: {status:?}", config.upstream);
            self.deny();
        }
        Action::Pause
    }
}
