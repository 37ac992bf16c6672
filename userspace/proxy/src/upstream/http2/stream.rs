//! One exchange on an HTTP/2 connection: a request goes out, an answer comes in.

use std::{future::poll_fn, io, pin::Pin, rc::Rc};

use h2::Reason;
use http::{Method, Request, Response, request};
use hyper::body::Body;

use super::{
    super::{SendError, UpstreamBody},
    Place,
};
use crate::wire::{Http2Body, send_body, tell_length};

/// Sends a request once the endpoint takes it, and returns with the head of the answer. A body that has not gone out by then does so
/// in a task of its own, until its sender, the endpoint or whoever reads the answer gives up; before, it ends with this call.
///
/// # Errors
/// With the request, if nothing of it was sent.
pub(super) async fn send(
    place: &Rc<Place>,
    mut head: Box<request::Parts>,
    body: UpstreamBody,
) -> Result<Response<Http2Body>, SendError> {
    let takes_it = place.take_slot().await;
    let mut sender = place.connection.sender.clone();
    let leaving = match poll_fn(|cx| sender.poll_ready(cx)).await {
        Ok(()) if takes_it => None,
        Ok(()) => Some(Reason::REFUSED_STREAM.into()),
        Err(error) => Some(error),
    };
    if let Some(error) = leaving {
        return Err(SendError {
            unsent: Some((head, body)),
            ..failed(error)
        });
    }
    if let Some(length) = body.size_hint().exact()
        && (length > 0 || means_something_empty(&head.method))
    {
        tell_length(&mut head.headers, length);
    }
    let end = body.is_end_stream();
    let sent = sender.send_request(Request::from_parts(*head, ()), end);
    let (mut response, stream) = sent.map_err(failed)?;
    let mut sending = (!end).then(|| Box::pin(send_body(body, stream)));
    let answered = poll_fn(|cx| {
        if let Some(body) = &mut sending
            && body.as_mut().poll(cx).is_ready()
        {
            sending = None;
        }
        Pin::new(&mut response).poll(cx)
    });
    let answer = answered.await.map_err(failed)?;
    let sending = sending.map(|body| {
        // The endpoint counts it until both have ended.
        let place = Rc::clone(place);
        let task = tokio::task::spawn_local(async move {
            body.await;
            drop(place);
        });
        task.abort_handle()
    });
    Ok(answer.map(|stream| Http2Body::answer(stream, sending)))
}

//= RFC 9110, 8.6
//# A user agent SHOULD send Content-Length in a request when the method defines a meaning for enclosed content
fn means_something_empty(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT)
}

fn failed(error: h2::Error) -> SendError {
    let kind = error.get_io().map(io::Error::kind);
    let broke = matches!(kind, Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe));
    SendError {
        unsent: None,
        is_lost: broke || is_unprocessed(&error),
        source: error.into(),
    }
}

//= RFC 9113, 8.7
//# The GOAWAY frame indicates the highest stream number that might have been processed. Requests on streams with higher numbers are
//# therefore guaranteed to be safe to retry.
//= RFC 9113, 8.7
//# The REFUSED_STREAM error code can be included in a RST_STREAM frame to indicate that the stream is being closed prior to any
//# processing having occurred.
/// Of a GOAWAY h2 tells only the streams with higher numbers.
fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
}
