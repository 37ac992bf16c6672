//! Messages as connections have them: bodies that come, and HTTP/2's that go, on either leg.

mod body;
mod http2;

pub(crate) use body::WireBody;
pub(crate) use http2::{Http2Body, send_body, tell_length};
