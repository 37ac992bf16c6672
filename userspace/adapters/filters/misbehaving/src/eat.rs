//! Allocates without end on a request with the header `x-eat`, writing to each page, until the host says no.

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
        if self.get_http_request_header_bytes("x-eat").is_some() {
            let mut eaten = Vec::new();
            loop {
                eaten.push(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
        }
        Action::Continue
    }
}
