//! `weft-echo`: the gRPC server of the bench. Every call, of any method, is answered by its own message.

#![forbid(unsafe_code)]

use std::{convert::Infallible, future, net::SocketAddr};

use anyhow::{Context, Result};
use clap::Parser;
use http::Request;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tonic::{Response, Status, server::UnaryService};

/// Answers gRPC calls whose message is a `google.protobuf.BytesValue` by the same message. HTTP/2 without TLS.
#[derive(Parser)]
struct Args {
    /// Where it listens: ADDRESS:PORT.
    listen: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let Args { listen } = Args::parse();
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen on {listen}"))?;
    loop {
        let (stream, _) = listener.accept().await.context("accept a connection")?;
        tokio::spawn(serve(stream));
    }
}

/// Until the client goes.
async fn serve(stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request: Request<Incoming>| async move {
        let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::default());
        Ok::<_, Infallible>(grpc.unary(Echo, request).await)
    });
    let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        eprintln!("weft-echo: a connection failed: {error}");
    }
}

struct Echo;

// === impl Echo ===

impl UnaryService<Vec<u8>> for Echo {
    type Response = Vec<u8>;
    type Future = future::Ready<Result<Response<Self::Response>, Status>>;

    fn call(&mut self, request: tonic::Request<Vec<u8>>) -> Self::Future {
        future::ready(Ok(Response::new(request.into_inner())))
    }
}
