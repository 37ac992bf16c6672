//! Socket wrappers of the data path.
//!
//! Captured sockets may sit in the kernel's SOCKHASH, where bytes arrive in a queue that only `recvmsg` sees:
//! `splice(2)` would lose them and `MSG_PEEK` would not find them. So nothing in this crate splices or peeks; what was
//! read to tell protocols apart is kept and replayed by [`Prefixed`].
//!
//! HTTP/2 has two more: [`gather`] writes what belongs to one turn of a connection with one call, and [`Sifted`] keeps from h2 the
//! frames that mean nothing to it but the end of the connection.

mod gather;
mod prefixed;
mod sifted;
mod socket;
mod watched;

pub(crate) use gather::gather;
pub(crate) use prefixed::Prefixed;
pub(crate) use sifted::Sifted;
pub(crate) use socket::{Socket, keep_alive};
pub(crate) use watched::{ConnClock, Watched};
