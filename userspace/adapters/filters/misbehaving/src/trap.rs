//! Panics on a request with the header `x-trap`: the SDK logs it, then the module traps.

use proxy_wasm::{
    traits::{Context, HttpContext},
    types::{Action, LogLevel},
};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_http_context(|_, _| Box::new(Request));
}}

struct Request;

impl Context for Request {}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        if self.get_http_request_header_bytes("x-trap").is_some() {
            panic!("asked to trap by x-trap");
        }
        Action::Continue
    }
}
