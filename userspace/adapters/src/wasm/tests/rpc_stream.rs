//! Streams of gRPC with a server that is not ours: tonic's.

use std::{convert::Infallible, future::ready};

use futures_util::stream::{BoxStream, StreamExt, once};
use http_body_util::BodyExt;
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tonic::{
    Code,
    metadata::{MetadataMap, MetadataValue},
};

use super::{callout::resumed, *};
use crate::upstreams::{CallBody, CallError, CallProtocol, Calling};

#[derive(Clone, PartialEq, Message)]
struct Note {
    #[prost(string, tag = "1")]
    text: String,
}

/// Says each note again until its caller has ended, and then that it has had enough. Talks to the mesh only.
struct Talk;

impl tonic::server::StreamingService<Note> for Talk {
    type Response = Note;
    type ResponseStream = BoxStream<'static, Result<Note, tonic::Status>>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<tonic::Streaming<Note>>) -> Self::Future {
        let mut trailing = MetadataMap::new();
        trailing.insert("x-trailing", MetadataValue::from_static("bye"));
        let Some(mesh) = request.metadata().get("x-mesh").cloned() else {
            let refused = tonic::Status::with_metadata(Code::PermissionDenied, "no-mesh", trailing);
            return ready(Err(refused));
        };
        let enough = tonic::Status::with_metadata(Code::FailedPrecondition, "enough", trailing);
        let notes = request.into_inner().chain(once(ready(Err(enough))));
        let mut response = tonic::Response::new(notes.boxed());
        response.metadata_mut().insert("x-initial", mesh);
        ready(Ok(response))
    }
}

/// Serves until the test is over; where.
async fn talk() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let service = service_fn(|request: Request<Incoming>| async move {
                assert_eq!(request.uri().path(), "/pkg.Talk/Chat");
                let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::<Note, Note>::default());
                Ok::<_, Infallible>(grpc.streaming(Talk, request).await)
            });
            let http = server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// What is called `authz`: whoever listens there.
struct At(SocketAddr);

impl Upstreams for At {
    fn knows(&self, upstream: &str) -> bool {
        upstream == "authz"
    }

    fn call(&self, upstream: &str, request: Request<CallBody>, protocol: CallProtocol) -> Calling {
        assert_eq!(protocol, CallProtocol::Grpc);
        let (address, upstream) = (self.0, upstream.to_owned());
        Box::pin(async move {
            let broken = move |error: hyper::Error| CallError::Broken {
                upstream: upstream.clone(),
                reason: error.to_string(),
            };
            let stream = TcpStream::connect(address).await.expect("it listens");
            let connected = client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let (mut sender, connection) = connected.map_err(&broken)?;
            tokio::spawn(connection);
            let response = sender.send_request(request).await.map_err(&broken)?;
            // The connection stays as long as somebody could send on it.
            let broken = move |error| {
                let _open = &sender;
                broken(error)
            };
            Ok(response.map(|body| body.map_err(broken).boxed_unsync()))
        })
    }
}

/// Tells `authz` two notes for each request, and writes what it is told into headers: `x-initial`, `x-message`, `x-trailing`,
/// `x-code` (a digit) and `x-text` of the end. Then the request goes on.
const CHAT: &str = r#"(module
  (import "env" "proxy_grpc_stream" (func $open (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_grpc_send" (func $send (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_grpc_close" (func $close (param i32) (result i32)))
  (import "env" "proxy_get_status" (func $status (param i32 i32 i32) (result i32)))
  (import "env" "proxy_get_buffer_bytes" (func $bytes (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "authzpkg.TalkChat")
  (data (i32.const 32) "\01\00\00\00" "\06\00\00\00\04\00\00\00" "x-mesh\00weft\00")
  (data (i32.const 64) "\0a\03one" "\0a\03two")
  (data (i32.const 96) "x-initialx-messagex-trailingx-codex-text")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func $is (param i32 i32) (if (i32.ne (local.get 0) (local.get 1)) (then unreachable)))
  ;; A header of the request, by place and length of its name; the value is where 516 says, as long as 520 says.
  (func $tell (param i32 i32)
    (call $is (i32.const 0) (call $add (i32.const 0) (local.get 0) (local.get 1) (i32.load (i32.const 516))
      (i32.load (i32.const 520)))))
  ;; The same with a value of this map, if it has one under that name.
  (func $copy (param $map i32) (param $at i32) (param $length i32)
    (if (i32.eqz (call $get (local.get $map) (local.get $at) (local.get $length) (i32.const 516) (i32.const 520)))
      (then (call $tell (local.get $at) (local.get $length)))))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $token i32)
    (call $is (i32.const 0) (call $open (i32.const 0) (i32.const 5) (i32.const 5) (i32.const 8) (i32.const 13) (i32.const 4)
      (i32.const 32) (i32.const METADATA) (i32.const 512)))
    (local.set $token (i32.load (i32.const 512)))
    (call $is (i32.const 0) (call $send (local.get $token) (i32.const 64) (i32.const 5) (i32.const 0)))
    (END)
    ;; This side has ended: nothing can be sent.
    (call $is (i32.const 1) (call $send (local.get $token) (i32.const 64) (i32.const 5) (i32.const 0)))
    (i32.const 1))
  (func (export "proxy_on_grpc_receive_initial_metadata") (param i32 i32 i32)
    (call $is (local.get 1) (i32.load (i32.const 512)))
    (call $copy (i32.const 4) (i32.const 96) (i32.const 9)))
  (func (export "proxy_on_grpc_receive") (param i32 i32 i32)
    (call $is (local.get 1) (i32.load (i32.const 512)))
    ;; Without the tag and the length before the text.
    (call $is (i32.const 0)
      (call $bytes (i32.const 5) (i32.const 2) (local.get 2) (i32.const 516) (i32.const 520)))
    (call $tell (i32.const 105) (i32.const 9)))
  (func (export "proxy_on_grpc_receive_trailing_metadata") (param i32 i32 i32)
    (call $is (local.get 1) (i32.load (i32.const 512)))
    (call $copy (i32.const 5) (i32.const 114) (i32.const 10)))
  (func (export "proxy_on_grpc_close") (param i32 i32 i32)
    (call $is (local.get 1) (i32.load (i32.const 512)))
    (call $is (i32.const 0) (call $status (i32.const 524) (i32.const 516) (i32.const 520)))
    (call $is (local.get 2) (i32.load (i32.const 524)))
    (call $tell (i32.const 130) (i32.const 6))
    (i32.store8 (i32.const 528) (i32.add (i32.const 48) (local.get 2)))
    (i32.store (i32.const 516) (i32.const 528))
    (i32.store (i32.const 520) (i32.const 1))
    (call $tell (i32.const 124) (i32.const 6))
    (drop (call $continue (i32.const 0)))))"#;

/// Sends the second note, and ends with it.
const WITH_IT: &str =
    "call $is (i32.const 0) (call $send (local.get $token) (i32.const 69) (i32.const 5) (i32.const 1))";

/// Sends the second note, and ends after it.
const AFTER_IT: &str = "call $is (i32.const 0) (i32.or
    (call $send (local.get $token) (i32.const 69) (i32.const 5) (i32.const 0)) (call $close (local.get $token)))";

/// The headers that a request has after the talk.
async fn chat(metadata: &str, end: &str) -> http::HeaderMap {
    let module = CHAT.replace("METADATA", metadata).replace("END", end);
    let module = Module::compile(&text(&module)).expect("a filter");
    let plugin = plugin_with(&module, config(""), Arc::new(At(talk().await)));
    let mut filter = stream(&plugin);
    let mut head = get("/", &[]);
    waits(filter.on_request_headers(&mut head, true));
    let step = tokio::time::timeout(Duration::from_secs(20), resumed(&mut *filter, &mut head));
    goes_on(step.await.expect("an end"));
    assert_eq!(plugin.stats().traps, 0);
    head.headers
}

#[test]
fn a_stream_carries_messages_both_ways_until_both_sides_have_ended() {
    for end in [WITH_IT, AFTER_IT] {
        let told = local(chat("24", end));
        assert_eq!(told["x-initial"], "weft");
        let messages: Vec<_> = told.get_all("x-message").iter().collect();
        assert_eq!(messages, ["one", "two"]);
        assert_eq!(told["x-trailing"], "bye");
        // FAILED_PRECONDITION
        assert_eq!(told["x-code"], "9");
        assert_eq!(told["x-text"], "enough");
    }
}

#[test]
fn a_stream_that_is_refused_ends_with_all_that_was_said() {
    let told = local(chat("0", AFTER_IT));
    assert!(
        !told.contains_key("x-initial") && !told.contains_key("x-message"),
        "{told:?}"
    );
    assert_eq!(told["x-trailing"], "bye");
    // PERMISSION_DENIED
    assert_eq!(told["x-code"], "7");
    assert_eq!(told["x-text"], "no-mesh");
}
