//! `weft-authz`: the policy server of the bench. It speaks Envoy's ext_authz (gRPC) and allows requests that have one header.
//!
//! One thread, nothing remembered, nothing logged: the least that a remote check can cost.

#![forbid(unsafe_code)]

use std::{convert::Infallible, future, net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use clap::Parser;
use http::Request;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tonic::{Response, Status, server::UnaryService};

/// Answers `envoy.service.auth.v3.Authorization/Check`: a request that has the header is allowed, others are not.
#[derive(Parser)]
struct Args {
    /// Where it listens: ADDRESS:PORT.
    listen: SocketAddr,
    /// The header, `name: value`; its name in lower case.
    header: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let Args { listen, header } = Args::parse();
    let (name, value) = header.split_once(": ").context("the header is to be `name: value`")?;
    let judge = Judge(Arc::new((name.to_owned(), value.to_owned())));
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen on {listen}"))?;
    loop {
        let (stream, _) = listener.accept().await.context("accept a connection")?;
        tokio::spawn(serve(stream, judge.clone()));
    }
}

/// Until the client goes.
async fn serve(stream: TcpStream, judge: Judge) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let judge = judge.clone();
        async move {
            let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::default());
            Ok::<_, Infallible>(grpc.unary(judge, request).await)
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        eprintln!("weft-authz: a connection failed: {error}");
    }
}

/// Name and value of the header.
#[derive(Clone)]
struct Judge(Arc<(String, String)>);

// === impl Judge ===

impl UnaryService<proto::CheckRequest> for Judge {
    type Response = proto::CheckResponse;
    type Future = future::Ready<Result<Response<Self::Response>, Status>>;

    fn call(&mut self, request: tonic::Request<proto::CheckRequest>) -> Self::Future {
        let (name, value) = &*self.0;
        let allowed = request.get_ref().header(name) == Some(value);
        future::ready(Ok(Response::new(proto::CheckResponse::new(allowed))))
    }
}

/// Those fields of Envoy's messages that are looked at; whoever decodes skips the others.
///
/// Source: <https://github.com/envoyproxy/envoy/tree/main/api/envoy/service/auth/v3>.
mod proto {
    use std::collections::HashMap;

    use prost::Message;

    /// `google.rpc.Code.PERMISSION_DENIED`
    const PERMISSION_DENIED: i32 = 7;

    #[derive(Clone, PartialEq, Message)]
    pub struct CheckRequest {
        #[prost(message, optional, tag = "1")]
        attributes: Option<AttributeContext>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct AttributeContext {
        #[prost(message, optional, tag = "4")]
        request: Option<Request>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Request {
        #[prost(message, optional, tag = "2")]
        http: Option<HttpRequest>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct HttpRequest {
        #[prost(map = "string, string", tag = "3")]
        headers: HashMap<String, String>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct CheckResponse {
        #[prost(message, optional, tag = "1")]
        status: Option<RpcStatus>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct RpcStatus {
        #[prost(int32, tag = "1")]
        code: i32,
    }

    // === impl CheckRequest ===

    impl CheckRequest {
        pub fn header(&self, name: &str) -> Option<&str> {
            let http = self.attributes.as_ref()?.request.as_ref()?.http.as_ref()?;
            http.headers.get(name).map(String::as_str)
        }
    }

    // === impl CheckResponse ===

    impl CheckResponse {
        pub fn new(allowed: bool) -> Self {
            let code = if allowed { 0 } else { PERMISSION_DENIED };
            Self {
                status: Some(RpcStatus { code }),
            }
        }
    }
}
