//! A gRPC server that judges as it is told to.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::{net::TcpListener, runtime, task::JoinSet};

use super::{
    super::{
        ExtAuthz,
        proto::{AttributeContext, CheckRequest, CheckResponse},
    },
    adapter, allow,
};

/// What the service does with a call.
pub enum Answer {
    Say(CheckResponse),
    Fail(tonic::Status),
    Hang,
}

/// A gRPC server (tonic's) that judges.
pub struct Service {
    pub address: String,
    pub seen: Arc<Seen>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
pub struct Seen {
    pub requests: Mutex<Vec<CheckRequest>>,
    pub timeouts: Mutex<Vec<Option<String>>>,
    pub connections: AtomicUsize,
}

struct Judge {
    seen: Arc<Seen>,
    answer: Arc<dyn Fn(&CheckRequest) -> Answer + Send + Sync>,
}

impl tonic::server::UnaryService<CheckRequest> for Judge {
    type Response = CheckResponse;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<CheckResponse>, tonic::Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<CheckRequest>) -> Self::Future {
        let request = request.into_inner();
        let answer = (self.answer)(&request);
        self.seen.requests.lock().unwrap().push(request);
        Box::pin(async {
            match answer {
                Answer::Say(response) => Ok(tonic::Response::new(response)),
                Answer::Fail(status) => Err(status),
                Answer::Hang => std::future::pending().await,
            }
        })
    }
}

impl Service {
    pub fn start(answer: impl Fn(&CheckRequest) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_on(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), answer)
    }

    /// It lets everything pass.
    pub fn allowing() -> Self {
        Self::start(|_| Answer::Say(allow()))
    }

    pub fn start_on(
        listener: std::net::TcpListener,
        answer: impl Fn(&CheckRequest) -> Answer + Send + Sync + 'static,
    ) -> Self {
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Seen::default());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let judge = (
            Arc::clone(&seen),
            Arc::new(answer) as Arc<dyn Fn(&_) -> _ + Send + Sync>,
        );
        let serving = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, judge.0, judge.1) => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            address,
            seen,
            stop: Some(stop),
            thread: Some(serving),
        }
    }

    pub fn adapter(&self, mut more: serde_json::Value) -> ExtAuthz {
        more["address"] = json!(self.address);
        if more.get("timeout").is_none() {
            // For the slowest machine.
            more["timeout"] = json!("20s");
        }
        adapter(more)
    }

    pub fn requests(&self) -> usize {
        self.seen.requests.lock().unwrap().len()
    }

    pub fn last(&self) -> AttributeContext {
        let requests = self.seen.requests.lock().unwrap();
        requests.last().unwrap().attributes.clone().unwrap()
    }
}

/// All its connections are cut.
impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.thread.take().unwrap().join().unwrap();
    }
}

async fn serve(listener: TcpListener, seen: Arc<Seen>, answer: Arc<dyn Fn(&CheckRequest) -> Answer + Send + Sync>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        seen.connections.fetch_add(1, Ordering::SeqCst);
        let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
        let service = service_fn(move |request: http::Request<Incoming>| {
            let timeout = request.headers().get("grpc-timeout");
            let timeout = timeout.map(|value| value.to_str().unwrap().to_owned());
            seen.timeouts.lock().unwrap().push(timeout);
            let judge = Judge {
                seen: Arc::clone(&seen),
                answer: Arc::clone(&answer),
            };
            async move {
                assert_eq!(request.uri().path(), "/envoy.service.auth.v3.Authorization/Check");
                let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::default());
                Ok::<_, Infallible>(grpc.unary(judge, request).await)
            }
        });
        connections.spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
    }
}
