//! Requests that adapters look at. Checks do so where a head lies; for those who may change something, there are heads that they
//! can make maps of, and bodies in pieces.

use std::{mem, rc::Rc};

use bytes::Bytes;
use http::{Method, request::Parts};
use weft_adapters::{Directives, RequestHead, ResponseHead};

use super::{
    LeanAnswer, Next,
    ask::{ask, failed, head_of, reach},
    boxed, plain,
    request_lines::{self, Head, UNFIT},
    write::{refuse, respond_with},
};
use crate::{
    error::DataError,
    http::{
        body::ResponseBody,
        exchange::Exchange,
        forward::{self as carry, Reached},
        head,
        respond::Refusal,
        view,
    },
    io::Socket,
    pick::Picked,
    upstream::{Plain, Wire},
};

/// A request's head for adapters.
pub(super) struct Shown {
    /// As it came.
    text: Bytes,
    /// The same for those who may change it, if any do.
    head: Option<Box<RequestHead>>,
}

/// A request for those who may change it, and what checks want changed.
type Changed = (Box<RequestHead>, Directives);

// === impl Shown ===

impl Shown {
    /// `head` was read at the begin of `bytes`. `None`: a map would not hold it.
    pub fn new(head: &Head<'_, '_>, bytes: &[u8], picked: &Picked) -> Option<Self> {
        let bytes = bytes.get(..head.length)?;
        let text = Bytes::copy_from_slice(bytes);
        let head = match picked.is_filtered() {
            true => Some(Box::new(head.shown(bytes, &text).ok()?)),
            false => None,
        };
        Some(Self { text, head })
    }
}

/// As [`super::super::forward::forward`] does it: where no filter looks, `out` has what goes to the endpoint, if nobody changes it.
pub(super) async fn forward(
    exchange: &Rc<Exchange>,
    picked: Rc<Picked>,
    mut shown: Box<Shown>,
    client: &mut Socket,
    out: &mut Vec<u8>,
) -> Next {
    // Each in a box of its own: all together they are larger than what the allocator keeps at hand.
    let checked = match shown.head.take() {
        Some(head) if !picked.is_checked() => Ok(Some((head, Directives::default()))),
        Some(head) => {
            let checked = boxed(check(exchange, &picked, &shown.text)).await;
            checked.map(|directives| Some((head, directives)))
        }
        None => boxed(check_alone(exchange, &picked, &shown.text)).await,
    };
    let refusal = match checked {
        Ok(None) => match reach(exchange, picked, &shown.text).await {
            Ok(reached) => return boxed(plain::carry_out(exchange, reached, client, out)).await,
            Err(refusal) => refusal,
        },
        Ok(Some((mut head, directives))) => {
            out.clear();
            match boxed(through_adapters(
                exchange,
                picked,
                &shown.text,
                &mut head,
                directives,
                out,
            ))
            .await
            {
                Ok((head, body)) => return boxed(respond_with(exchange, head, body, client, out)).await,
                Err(refusal) => refusal,
            }
        }
        Err(refusal) => refusal,
    };
    refuse(exchange, refusal, client, out).await
}

/// Asks the checks.
async fn check(exchange: &Exchange, picked: &Picked, text: &[u8]) -> Result<Directives, Refusal> {
    // It was read before.
    let head = Head::read_to_keep(text).ok_or(UNFIT)?;
    carry::check(exchange, picked, head.view()).await
}

/// The same where no filter looks. `None`: nobody changes anything.
async fn check_alone(exchange: &Exchange, picked: &Picked, text: &Bytes) -> Result<Option<Changed>, Refusal> {
    let head = Head::read_to_keep(text).ok_or(UNFIT)?;
    let directives = carry::check(exchange, picked, head.view()).await?;
    if directives.is_empty() {
        carry::use_up(exchange, picked, head.view()).await?;
        return Ok(None);
    }
    Ok(Some((Box::new(head.shown(text, text)?), directives)))
}

/// Asks the quotas, after the filters. `counted`: what they are to see, if not the head that is in `text`.
async fn use_up(exchange: &Exchange, picked: &Picked, text: &[u8], counted: Option<Box<Parts>>) -> Result<(), Refusal> {
    if let Some(counted) = counted {
        return carry::use_up(exchange, picked, view::of_checks(&counted)).await;
    }
    let head = Head::read_to_keep(text).ok_or(UNFIT)?;
    carry::use_up(exchange, picked, head.view()).await
}

async fn through_adapters(
    exchange: &Rc<Exchange>,
    picked: Rc<Picked>,
    text: &[u8],
    head: &mut RequestHead,
    directives: Directives,
    out: &mut Vec<u8>,
) -> Result<(ResponseHead, ResponseBody), Refusal> {
    let conn = &exchange.conn;
    let worker = &conn.worker;
    let counted = match picked.has_quotas() && !directives.request.is_empty() {
        true => carry::counted(&picked, &head.clone().into_parts(), &directives),
        false => None,
    };
    change(exchange, &picked, head, directives).await?;
    let forwarded_for = conn.forwarded_for.as_ref();
    let mut unwritten = match request_lines::write_shown(head, forwarded_for, out) {
        true => None,
        false => Some(Box::new(in_map(head)?)),
    };
    if picked.has_quotas() {
        // In a box: few have any.
        Box::pin(use_up(exchange, &picked, text, counted)).await?;
    }
    let mut reached = reach(exchange, picked, text).await?;
    if let Some(parts) = &mut unwritten {
        let prepared = head::prepare_request(parts, Wire::Http1, conn.context.original, forwarded_for, None);
        prepared.map_err(DataError::of_adapters)?;
        request_lines::write_parts(parts, out);
    }
    let repeat = reached.sending.reused && carry::is_idempotent(&head.method);
    let mut answer = ask(exchange, &mut reached, repeat, out, Some(text)).await?;
    out.clear();
    let (method, server) = (&head.method, &mut reached.sending.socket);
    let (passed, mut shown) = match head_of(worker, server, &mut answer, method, |head| head.shown()).await {
        Ok(read) => read,
        Err(error) => {
            worker.buffers.give_input(answer);
            return Err(failed(reached.picked.address, error).into());
        }
    };
    let Reached { load, sending, .. } = reached;
    let Plain { socket, home, .. } = sending;
    let body = LeanAnswer::new(worker, (socket, home), answer, passed.framing, passed.keep);
    let end = exchange.method == Method::HEAD || body.is_over();
    if let Some(chain) = exchange.chain() {
        chain.response_headers(&mut shown, end).await?;
    }
    if exchange.changes_answer() {
        exchange.change_answer(shown.headers.map_mut());
    }
    exchange.answered(shown.status);
    let body = ResponseBody::lean(body, Rc::clone(exchange), load);
    Ok((shown, body.after_head(end)))
}

/// Makes of a head what those want who may change it.
async fn change(
    exchange: &Rc<Exchange>,
    picked: &Picked,
    head: &mut RequestHead,
    directives: Directives,
) -> Result<(), Refusal> {
    for operation in &directives.request {
        operation.apply(head.headers.map_mut());
    }
    exchange.on_answer(directives.response);
    if let Some(chain) = exchange.begin_filters(picked) {
        chain.request_head(head, true).await?;
    }
    Ok(())
}

/// A head of which not all can be told from its lines; its method stays there.
///
/// # Errors
/// Nobody may be sent it.
fn in_map(head: &mut RequestHead) -> Result<Parts, DataError> {
    let mut parts = mem::take(head).into_parts();
    head.method = parts.method.clone();
    head::check(&parts).map_err(DataError::of_adapters)?;
    head::check_length(&mut parts.headers, true);
    Ok(parts)
}
