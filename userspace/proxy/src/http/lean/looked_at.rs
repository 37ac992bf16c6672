//! Requests that adapters look at: they get heads in maps and bodies in pieces, and may change them.

use std::{rc::Rc, sync::Arc};

use http::{Method, Response, request};
use weft_adapters::Directives;

use super::{
    Admitted, LeanAnswer, Next,
    ask::{ask, failed, head_of},
    plain, request_lines, response,
    write::{refuse, respond_with},
};
use crate::{
    conn::Conn,
    http::{
        body::ResponseBody,
        exchange::Exchange,
        forward::{self as carry, Reached},
        head,
        respond::Refusal,
    },
    io::{ConnClock, Socket},
    pick::Picked,
    upstream::{Upstream, Wire},
};

/// As [`super::super::forward::forward`] does it.
pub(super) async fn forward(
    conn: &Rc<Conn>,
    clock: &Arc<ConnClock>,
    client: &mut Socket,
    admitted: Admitted,
    head: request::Parts,
    out: &mut Vec<u8>,
) -> Next {
    let exchange = Exchange::new(conn, clock, admitted.asked);
    admitted.verdict.note(&exchange, &admitted.picked);
    let picked = admitted.picked;
    let directives = match carry::check(&exchange, &picked, &head).await {
        Ok(directives) => directives,
        Err(refusal) => return refuse(&exchange, refusal, client, out).await,
    };
    let filters = picked.chain.as_ref().is_some_and(|chain| !chain.filters.is_empty());
    if !filters && directives.request.is_empty() && directives.response.is_empty() {
        // Nobody changes anything: it goes on as it was written.
        let worker = &conn.worker;
        let take = async |upstream: &Upstream| worker.pool.take_plain(upstream).await;
        return match carry::reach(&exchange, picked, &head, take, None).await {
            Ok(reached) => plain::carry_out(&exchange, reached, &head.method, client, out).await,
            Err(refusal) => refuse(&exchange, refusal, client, out).await,
        };
    }
    out.clear();
    match through_adapters(&exchange, picked, head, directives, out).await {
        Ok(response) => respond_with(&exchange, response, client, out).await,
        Err(refusal) => refuse(&exchange, refusal, client, out).await,
    }
}

async fn through_adapters(
    exchange: &Rc<Exchange>,
    picked: Picked,
    mut head: request::Parts,
    directives: Directives,
    out: &mut Vec<u8>,
) -> Result<Response<ResponseBody>, Refusal> {
    let conn = &exchange.conn;
    let worker = &conn.worker;
    let received = carry::change(exchange, &picked, &mut head, true, directives).await?;
    let take = async |upstream: &Upstream| worker.pool.take_plain(upstream).await;
    let reached = carry::reach(exchange, picked, received.as_ref().unwrap_or(&head), take, None).await?;
    let Reached { picked, load, sending } = reached;
    let (server, reused) = sending;
    let (original, forwarded_for) = (conn.context.original, conn.forwarded_for.as_ref());
    let prepared = head::prepare_request(&mut head, Wire::Http1, original, forwarded_for, None);
    prepared.map_err(|error| if received.is_some() { error.of_adapters() } else { error })?;
    request_lines::write_parts(&head, out);
    let upstream = conn.upstream(picked.address);
    let repeat = reused && carry::is_idempotent(&head.method);
    let (mut server, mut answer) = ask(worker, &upstream, server, repeat, out).await?;
    out.clear();
    let read = head_of(worker, &mut server, &mut answer, &head.method, false, out).await;
    let read = read.and_then(|passed| Ok((passed, response::parts(out, passed.status)?)));
    let (passed, mut parts) = match read {
        Ok(read) => read,
        Err(error) => {
            worker.buffers.give_input(answer);
            return Err(failed(&upstream, error).into());
        }
    };
    answer.consume(passed.length);
    let body = LeanAnswer::new(worker, (server, upstream), answer, passed.framing, passed.keep);
    let end = exchange.method == Method::HEAD || body.is_over();
    if let Some(chain) = exchange.chain() {
        chain.response_headers(&mut parts, end).await?;
    }
    exchange.change_answer(&mut parts.headers);
    exchange.answered(parts.status);
    let body = ResponseBody::lean(body, Rc::clone(exchange), load);
    Ok(Response::from_parts(parts, if end { body } else { body.filtered() }))
}
