//! What stands in for a filter that cannot run where the failure policy is `closed`.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE, request};

use crate::stream::{Step, StreamFilter, TcpFilter, TcpStep};

/// Answers 503, or resets a connection.
pub(super) struct Failed(String);

impl Failed {
    pub fn new(adapter: &str) -> Self {
        Self(adapter.to_owned())
    }
}

impl StreamFilter for Failed {
    fn on_request_headers(&mut self, _: &mut request::Parts, _: bool) -> Step {
        Step::Respond(response(&self.0))
    }

    fn has_failed(&self) -> bool {
        true
    }
}

impl TcpFilter for Failed {
    fn on_connection(&mut self) -> TcpStep {
        TcpStep::Reset
    }

    fn has_failed(&self) -> bool {
        true
    }
}

/// 503, saying which adapter does not run.
pub(super) fn response(adapter: &str) -> Box<Response<Bytes>> {
    let mut response = Response::new(Bytes::from(format!("adapter {adapter} failed\n")));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let text = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(CONTENT_TYPE, text);
    Box::new(response)
}
