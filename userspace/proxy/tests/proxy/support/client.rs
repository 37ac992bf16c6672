//! Clients: hyper's connections over a captured socket, and raw bytes.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub type Body = BoxBody<Bytes, hyper::Error>;

/// An HTTP/1.1 connection.
pub struct H1(http1::SendRequest<Body>);

/// An HTTP/2 connection.
#[derive(Clone)]
pub struct H2(http2::SendRequest<Body>);

/// An answer, read to its end.
#[derive(Debug)]
pub struct Text {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: String,
    pub trailers: Option<http::HeaderMap>,
}

// === impl H1 ===

impl H1 {
    pub async fn new(stream: TcpStream) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Self(sender)
    }

    pub async fn send(&mut self, request: Request<Body>) -> Response<Incoming> {
        self.0.ready().await.unwrap();
        self.0.send_request(request).await.unwrap()
    }

    pub async fn get(&mut self, path: &str) -> Text {
        Text::read(self.send(request("GET", path, empty())).await).await
    }

    pub async fn try_get(&mut self, path: &str) -> hyper::Result<Response<Incoming>> {
        self.0.ready().await?;
        self.0.send_request(request("GET", path, empty())).await
    }
}

// === impl H2 ===

impl H2 {
    pub async fn new(stream: TcpStream) -> Self {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub async fn send(&mut self, request: Request<Body>) -> Response<Incoming> {
        self.0.ready().await.unwrap();
        self.0.send_request(request).await.unwrap()
    }
}

impl H2 {
    pub async fn try_send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        self.0.ready().await?;
        self.0.send_request(request).await
    }
}

// === impl Text ===

impl Text {
    pub async fn read(response: Response<Incoming>) -> Self {
        Self::try_read(response).await.unwrap()
    }

    pub async fn try_read(response: Response<Incoming>) -> hyper::Result<Self> {
        let (head, body) = response.into_parts();
        let collected = body.collect().await?;
        Ok(Self {
            status: head.status,
            headers: head.headers,
            trailers: collected.trailers().cloned(),
            body: String::from_utf8(collected.to_bytes().to_vec()).unwrap(),
        })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// In origin form, with a host.
pub fn request(method: &str, path: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "web")
        .body(body)
        .unwrap()
}

pub fn empty() -> Body {
    full("")
}

pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

/// Writes `text` and reads until the other side closes. A reset counts as a close.
pub async fn raw(mut stream: TcpStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    read_all(&mut stream).await
}

pub async fn read_all(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let _reset = stream.read_to_end(&mut read).await;
    String::from_utf8_lossy(&read).into_owned()
}

/// Reads until `end` was read.
pub async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        match stream.read_u8().await {
            Ok(byte) => read.push(byte),
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&read)),
        }
    }
    String::from_utf8(read).unwrap()
}
