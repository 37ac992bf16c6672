//! Lets through who shows a known token, and tells the service who that is.
//!
//! No token: 401 with a challenge. A token that nobody has: 403. Configuration and outcomes: `README.md`.

use std::{collections::BTreeMap, rc::Rc};

use log::error;
use proxy_wasm::{
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel},
};
use serde::Deserialize;

/// The plugin configuration, JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Header that holds the token.
    #[serde(default = "authorization")]
    header: String,
    /// Word before the token, compared without regard to case; empty: the header is the token.
    #[serde(default = "bearer")]
    scheme: String,
    /// Who has which token: at least one.
    tokens: BTreeMap<String, String>,
    /// Header that tells the service who it is; what a client says there is removed.
    #[serde(default = "x_user")]
    user_header: String,
}

fn authorization() -> String {
    "authorization".into()
}

fn bearer() -> String {
    "Bearer".into()
}

fn x_user() -> String {
    "x-user".into()
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
        if config.tokens.is_empty() {
            return Err("`tokens` is empty: nobody could get in".into());
        }
        Ok(config)
    }

    /// Whose token this header holds, if anybody's.
    fn user(&self, header: &[u8]) -> Option<&str> {
        let text = str::from_utf8(header).ok()?;
        let token = if self.scheme.is_empty() {
            text
        } else {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case(&self.scheme).then_some(token)?
        };
        self.tokens.get(token.trim()).map(String::as_str)
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
                error!("header-auth: configuration refused: {reason}");
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
        let config = &self.config;
        // As bytes: what a client sends need not be UTF-8.
        let Some(header) = self.get_http_request_header_bytes(&config.header) else {
            let challenge = [("www-authenticate", config.scheme.as_str())];
            let challenge = if config.scheme.is_empty() { &[][..] } else { &challenge };
            self.send_http_response(401, challenge.to_vec(), Some(b"header-auth: no token\n"));
            return Action::Pause;
        };
        let Some(user) = config.user(&header) else {
            self.send_http_response(403, Vec::new(), Some(b"header-auth: unknown token\n"));
            return Action::Pause;
        };
        self.set_http_request_header(&config.user_header, Some(user));
        Action::Continue
    }
}
