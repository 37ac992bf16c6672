//! POSTs to one HTTP/1.1 server, from the background, over a connection that is kept.

use std::{fmt, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header, uri::PathAndQuery};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use crate::{dial::Dialer, tls::Tls};

/// Largest answer that is read, in bytes: it says little, and the connection can be used again behind it.
const MAX_ANSWER: usize = 64 * 1024;

/// A server, and the connection to it.
pub struct Poster {
    /// Of the server, and the path that is posted to.
    url: Uri,
    dialer: Dialer,
    timeout: Duration,
    connection: Option<SendRequest<Full<Bytes>>>,
}

/// Why something was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("connect: {0}")]
    Connect(io::Error),
    #[error("the connection failed: {0}")]
    Exchange(hyper::Error),
    #[error("the server answered {0}, expected success")]
    Status(StatusCode),
    #[error("the request cannot be made: {0}")]
    Request(http::Error),
}

// === impl Poster ===

impl Poster {
    /// Connects when something is posted. `tls`: of an `https` one.
    pub fn new(url: Uri, tls: Option<Arc<Tls>>, timeout: Duration) -> Self {
        Self {
            dialer: Dialer::to_url(&url, tls),
            url,
            timeout,
            connection: None,
        }
    }

    /// Success is any 2xx; what the server says beside, nothing if that is too long. A connection that was closed
    /// meanwhile is replaced, and the message sent again.
    ///
    /// # Errors
    /// [`PostError`]; the message may have arrived.
    pub async fn post(
        &mut self,
        content_type: &'static str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Bytes, PostError> {
        let limit = self.timeout;
        let posted = timeout(limit, self.deliver(content_type, headers, body)).await;
        let posted = posted.unwrap_or(Err(PostError::Timeout(limit)));
        if posted.is_err() {
            self.connection = None;
        }
        posted
    }

    async fn deliver(
        &mut self,
        content_type: &'static str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Bytes, PostError> {
        if let Some(mut sender) = self.connection.take()
            && sender.ready().await.is_ok()
        {
            match self.exchange(sender, content_type, headers, body.clone()).await {
                Err(PostError::Exchange(_)) => {}
                other => return other,
            }
        }
        let stream = self.dialer.connect().await.map_err(PostError::Connect)?;
        let (sender, driver) = handshake(TokioIo::new(stream)).await.map_err(PostError::Exchange)?;
        // Ends with the sender, or the connection; what went wrong the exchange tells.
        tokio::spawn(async move { _ = driver.await });
        self.exchange(sender, content_type, headers, body).await
    }

    async fn exchange(
        &mut self,
        mut sender: SendRequest<Full<Bytes>>,
        content_type: &'static str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Bytes, PostError> {
        let path = self
            .url
            .path_and_query()
            .cloned()
            .unwrap_or(PathAndQuery::from_static("/"));
        let mut request = Request::post(Uri::from(path))
            .body(Full::new(body))
            .map_err(PostError::Request)?;
        let own = request.headers_mut();
        own.extend(headers.clone());
        own.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        let host = self.url.authority().map_or("", |authority| authority.as_str());
        own.insert(
            header::HOST,
            HeaderValue::from_str(host).map_err(|error| PostError::Request(error.into()))?,
        );
        let response = sender.send_request(request).await.map_err(PostError::Exchange)?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await.ok();
        if answer.is_some() {
            self.connection = Some(sender);
        }
        match status.is_success() {
            true => Ok(answer.map(|answer| answer.to_bytes()).unwrap_or_default()),
            false => Err(PostError::Status(status)),
        }
    }
}

impl fmt::Debug for Poster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poster").field("url", &self.url).finish_non_exhaustive()
    }
}
