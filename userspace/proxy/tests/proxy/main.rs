//! The proxy on real sockets: clients, endpoints and workers are what they are in production; only the kernel's
//! answer about a connection's original destination comes from a table (`support::Table`).

mod access;
mod callout;
mod drain;
mod filters;
mod http1;
mod http2;
mod large;
mod lean;
mod opaque;
mod parity;
mod pending;
mod resting;
mod smuggling;
mod split;
mod support;
mod upgrade;
