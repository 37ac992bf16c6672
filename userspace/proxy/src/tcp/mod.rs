//! Connections that are not parsed: one decision at the beginning, then bytes both ways.

mod relay;
mod serve;

pub(crate) use relay::{Moved, Outcome, Relay, reset};
pub(crate) use serve::serve;
