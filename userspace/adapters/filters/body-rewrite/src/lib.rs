//! Replaces texts in bodies of requests and responses.
//!
//! A body is held until it is whole, for a text may lie across two pieces of it. Its length changes, so that
//! `content-length` goes and the host frames the body anew. Configuration and outcomes: `README.md`.

use std::rc::Rc;

use log::{error, warn};
use proxy_wasm::{
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel},
};
use serde::Deserialize;

/// Longest body that is rewritten, in bytes, unless the configuration says otherwise: what hosts commonly buffer.
const DEFAULT_MAX_BODY: usize = 1 << 20;

/// The plugin configuration, JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// What is replaced in requests, in this order.
    #[serde(default)]
    requests: Vec<Replacement>,
    /// What is replaced in responses, in this order.
    #[serde(default)]
    responses: Vec<Replacement>,
    /// A body longer than this, in bytes, passes as it is.
    #[serde(default = "default_max_body")]
    max_body: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Replacement {
    from: String,
    to: String,
}

fn default_max_body() -> usize {
    DEFAULT_MAX_BODY
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
struct Exchange {
    config: Rc<Config>,
    /// Whether the request's body is to be rewritten.
    request: bool,
    /// Whether the response's body is to be rewritten.
    response: bool,
}

// === impl Config ===

impl Config {
    fn parse(json: &[u8]) -> Result<Self, String> {
        let config: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let mut all = config.requests.iter().chain(&config.responses).peekable();
        if all.peek().is_none() {
            return Err("neither `requests` nor `responses` says what to replace".into());
        }
        if all.any(|replacement| replacement.from.is_empty()) {
            return Err("`from` is empty: say which text to replace".into());
        }
        Ok(config)
    }
}

impl Replacement {
    /// `body` with every `from` made `to`, bytes that are no UTF-8 included.
    fn apply(&self, body: &[u8]) -> Vec<u8> {
        let from = self.from.as_bytes();
        let mut out = Vec::with_capacity(body.len());
        let mut rest = body;
        while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
            out.extend_from_slice(&rest[..at]);
            out.extend_from_slice(self.to.as_bytes());
            rest = &rest[at + from.len()..];
        }
        out.extend_from_slice(rest);
        out
    }
}

fn rewritten(replacements: &[Replacement], body: Vec<u8>) -> Vec<u8> {
    replacements
        .iter()
        .fold(body, |body, replacement| replacement.apply(&body))
}

// === impl Plugin ===

impl Context for Plugin {}

impl RootContext for Plugin {
    fn on_configure(&mut self, _: usize) -> bool {
        let json = self.get_plugin_configuration().unwrap_or_default();
        match Config::parse(&json) {
            Ok(config) => self.config = Some(Rc::new(config)),
            Err(reason) => {
                error!("body-rewrite: configuration refused: {reason}");
                return false;
            }
        }
        true
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        let config = self.config.clone()?;
        Some(Box::new(Exchange {
            config,
            request: false,
            response: false,
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

// === impl Exchange ===

impl Context for Exchange {}

impl HttpContext for Exchange {
    fn on_http_request_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        if !self.config.responses.is_empty() {
            // Texts are found in whole and plain bodies only: ask for such.
            self.set_http_request_header("accept-encoding", None);
            self.set_http_request_header("range", None);
        }
        let encoded = self.get_http_request_header_bytes("content-encoding").is_some();
        self.request = !end_of_stream && !encoded && !self.config.requests.is_empty();
        if self.request {
            self.set_http_request_header("content-length", None);
        }
        Action::Continue
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if !self.request {
            return Action::Continue;
        }
        if size > self.config.max_body {
            warn!(
                "body-rewrite: a request of more than {} bytes passes as it is",
                self.config.max_body
            );
            self.request = false;
            return Action::Continue;
        }
        if !end_of_stream {
            return Action::Pause;
        }
        if let Some(body) = self.get_http_request_body(0, size) {
            self.set_http_request_body(0, size, &rewritten(&self.config.requests, body));
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        let encoded = self.get_http_response_header_bytes("content-encoding").is_some();
        self.response = !end_of_stream && !encoded && !self.config.responses.is_empty();
        if self.response {
            self.set_http_response_header("content-length", None);
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if !self.response {
            return Action::Continue;
        }
        if size > self.config.max_body {
            warn!(
                "body-rewrite: a response of more than {} bytes passes as it is",
                self.config.max_body
            );
            self.response = false;
            return Action::Continue;
        }
        if !end_of_stream {
            return Action::Pause;
        }
        if let Some(body) = self.get_http_response_body(0, size) {
            self.set_http_response_body(0, size, &rewritten(&self.config.responses, body));
        }
        Action::Continue
    }
}
