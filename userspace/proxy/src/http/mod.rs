//! Connections that speak HTTP: each request is routed, judged, forwarded and reported for itself.
//!
//! [`lean`] is the short way of most HTTP/1 requests; for all others, [`server`] runs hyper towards the client; [`http2`] is h2's side
//! of it, which [`ending`] ends. [`forward`] is one request from head to answer, [`exchange`] is what must be told about it at its
//! end, [`respond`] says what the client gets where nothing was forwarded.

pub(crate) mod agents;
pub(crate) mod body;
mod ending;
pub(crate) mod exchange;
mod failure;
pub(crate) mod forward;
pub(crate) mod head;
pub(crate) mod http2;
pub(crate) mod lean;
pub(crate) mod respond;
pub(crate) mod server;
pub(crate) mod tunnel;
pub(crate) mod view;
