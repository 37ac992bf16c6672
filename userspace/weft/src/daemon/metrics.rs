//! Port 15020: `/metrics`, `/healthz/live`, `/healthz/ready`.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::Semaphore};
use weft_adapters::exposition;

use crate::{admin::stall::StallGuard, error::net_error};

/// Istio's port for merged metrics and health.
pub const PORT: u16 = 15020;
/// Scrapers are few.
const MAX_CONNECTIONS: usize = 64;
/// A scraper that says nothing for so long, or reads nothing of what it asked for, is hung up on.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the endpoint shows.
#[derive(Clone)]
pub struct Endpoint {
    pub registry: Arc<Mutex<Registry>>,
    /// Set when everything listens.
    pub ready: Arc<AtomicBool>,
}

/// Bound on both loopback addresses (IPv6 only where there is one). Only this machine can ask.
///
/// # Errors
///
/// The port is taken.
pub fn bind() -> anyhow::Result<Vec<std::net::TcpListener>> {
    let mut listeners = Vec::new();
    for address in [
        SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, PORT)),
    ] {
        let bound = std::net::TcpListener::bind(address);
        match bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener)) {
            Ok(listener) => listeners.push(listener),
            Err(error) if address.is_ipv6() && error.kind() == std::io::ErrorKind::AddrNotAvailable => {}
            Err(error) => return Err(net_error("metrics and health", address, error)),
        }
    }
    Ok(listeners)
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, endpoint: Endpoint) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "metrics: accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let endpoint = endpoint.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let answer = endpoint.answer(request.uri().path());
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(StallGuard::new(stream, PATIENCE)), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "metrics connection");
            }
            drop(permit);
        });
    }
}

// === impl Endpoint ===

impl Endpoint {
    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        match path {
            "/metrics" => {
                let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
                match exposition::encode(&registry) {
                    Ok(body) => response(StatusCode::OK, exposition::CONTENT_TYPE, body),
                    Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
                }
            }
            "/healthz/live" => response(StatusCode::OK, TEXT, "ok\n".to_owned()),
            "/healthz/ready" if self.ready.load(Ordering::Acquire) => response(StatusCode::OK, TEXT, "ok\n".to_owned()),
            "/healthz/ready" => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready yet\n".to_owned()),
            _ => response(
                StatusCode::NOT_FOUND,
                TEXT,
                "there are /metrics, /healthz/live and /healthz/ready\n".to_owned(),
            ),
        }
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::gauge::Gauge;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        time::sleep,
    };

    use super::*;

    const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n";

    #[tokio::test(start_paused = true)]
    async fn who_asks_and_does_not_read_is_hung_up_on() {
        let mut registry = Registry::default();
        let help = "a".repeat(1 << 20);
        registry.register("long", help, Gauge::<i64>::default());
        let endpoint = Endpoint {
            registry: Arc::new(Mutex::new(registry)),
            ready: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asking = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            const REQUESTS: usize = 32;
            stream.write_all(&REQUEST.repeat(REQUESTS)).await.unwrap();
            sleep(3 * PATIENCE).await;
            let (mut read, mut buffer) = (0, vec![0; 1 << 20]);
            while let Ok(more @ 1..) = stream.read(&mut buffer).await {
                read += more;
            }
            assert!(read < REQUESTS << 20, "{read} bytes");
        };
        tokio::select! {
            () = serve(listener, endpoint) => {}
            () = asking => {}
        }
    }
}
