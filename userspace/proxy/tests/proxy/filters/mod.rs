//! Filters on real requests.

mod answer;
mod body;
mod order;
mod pause;
mod tcp;

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use weft_adapters::{Chain, Chains};
use weft_policy::{AppProtocol, ServiceName};

use crate::support::{
    Port, Spec,
    bodies::pieces,
    client::Body,
    server::{Nobody, Server, text},
};

/// Answers with the request's body, and with its trailers if there are any.
async fn echo(request: Request<Incoming>) -> Response<Body> {
    let body = request.into_body().collect().await.unwrap();
    let trailers = body.trailers().cloned();
    let body = body.to_bytes();
    let Some(trailers) = trailers else {
        return text(body);
    };
    let (sender, answer) = pieces();
    tokio::spawn(async move {
        sender.send(Frame::data(body)).await.unwrap();
        sender.send(Frame::trailers(trailers)).await.unwrap();
    });
    Response::builder().header("trailer", "x-sum").body(answer).unwrap()
}

async fn echo1() -> Server {
    Server::http1(echo).await
}

async fn echo2() -> Server {
    Server::http2(echo).await
}

fn post(body: Body) -> Request<Body> {
    crate::support::client::request("POST", "/", body)
}

/// Service `web`, half of it on `dead` where nobody listens, half on `alive`, each with its own filters.
fn split_over(
    dead: &Nobody,
    alive: SocketAddr,
    app: AppProtocol,
    of_dead: Arc<Chain>,
    of_alive: Arc<Chain>,
) -> (Spec, Chains) {
    let port = |name, endpoints: Vec<SocketAddr>| Port {
        app,
        ..Port::undeclared(name, endpoints)
    };
    let mut web = port("web", Vec::new());
    web.split = Some(vec![("dead", 1), ("alive", 1)]);
    let spec = Spec::of([web, port("dead", vec![dead.address]), port("alive", vec![alive])]);
    let service = |name: &str| ServiceName {
        namespace: "default".into(),
        name: name.into(),
    };
    let mut chains = Chains::default();
    chains.insert_split(service("web"), service("dead"), of_dead);
    chains.insert_split(service("web"), service("alive"), of_alive);
    (spec, chains)
}

/// For HTTP/2.
fn post2(body: Body) -> Request<Body> {
    Request::post("http://web/").body(body).unwrap()
}

fn data(text: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(text.as_bytes()))
}

fn sum(value: &str) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", value.parse().unwrap());
    Frame::trailers(trailers)
}
