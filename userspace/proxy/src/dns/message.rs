//! The few things that are done to messages as bytes, because forwarding must not change what we do not understand.

use hickory_proto::op::{Message, Metadata};

use super::limits::{MAX_UDP_RESPONSE, PLAIN_UDP_RESPONSE};

/// Bytes of the header.
pub(super) const HEADER: usize = 12;

/// Byte with QR, opcode, AA, TC, RD.
const FLAGS: usize = 2;
const QR: u8 = 0b1000_0000;
const TC: u8 = 0b0000_0010;

pub(super) fn id(message: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(..2)?.try_into().ok()?))
}

pub(super) fn set_id(message: &mut [u8], id: u16) {
    if let Some(bytes) = message.get_mut(..2) {
        bytes.copy_from_slice(&id.to_be_bytes());
    }
}

pub(super) fn is_response(message: &[u8]) -> bool {
    message.get(FLAGS).is_some_and(|flags| flags & QR != 0)
}

pub(super) fn is_truncated(message: &[u8]) -> bool {
    message.get(FLAGS).is_some_and(|flags| flags & TC != 0)
}

/// Low four bits of the response code.
pub(super) fn response_code(message: &[u8]) -> Option<u8> {
    Some(message.get(3)? & 0xf)
}

/// The one question of a message, name, type and class, as bytes. `None`: there is not exactly one, or it is broken (a
/// compressed name has nothing to point at there).
pub(super) fn question(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        match *message.get(at)? {
            0 => break,
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    // Name, root label, type, class; RFC 1035 bounds a name at 255 bytes.
    (at - HEADER < 255).then_some(())?;
    message.get(HEADER..at + 1 + 4)
}

/// Whether a response speaks of the question that was asked. Resolvers may change the case of the name.
pub(super) fn same_question(asked: &[u8], answered: &[u8]) -> bool {
    let split = asked.len().saturating_sub(4);
    asked.len() == answered.len()
        && asked[..split].eq_ignore_ascii_case(&answered[..split])
        && asked[split..] == answered[split..]
}

/// Bytes that the client of a query takes over UDP.
pub(super) fn udp_limit(query: &Message) -> usize {
    usize::from(query.max_payload()).clamp(PLAIN_UDP_RESPONSE, MAX_UDP_RESPONSE)
}

/// A response as it may be sent over UDP: itself, or where it is too large its header and question with TC set, which
/// tells the client to come back by TCP.
pub(super) fn fit(mut response: Vec<u8>, limit: usize) -> Vec<u8> {
    if response.len() <= limit {
        return response;
    }
    let end = question(&response).map_or(HEADER, |question| HEADER + question.len());
    response.truncate(end);
    if end == HEADER && response.len() == HEADER {
        response[4..6].fill(0);
    }
    if let Some(counts) = response.get_mut(6..HEADER) {
        counts.fill(0);
    }
    if let Some(flags) = response.get_mut(FLAGS) {
        *flags |= TC;
    }
    response
}

/// An empty response to a query, with its question and without error.
pub(super) fn response_to(query: &Message) -> Message {
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata = Metadata::response_from_request(&query.metadata);
    // Resolver libraries warn, and some give up, if the server they were told to use says that it does not recurse.
    response.metadata.recursion_available = true;
    response.add_queries(query.queries.iter().cloned());
    response
}
