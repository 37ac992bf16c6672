//! The one binary: the daemon, the commands, and the admin API between them.
//!
//! Only this crate knows all the others. [`daemon`] assembles them; [`cli`] has one file a verb; [`admin`] is the API
//! over the unix socket; [`registry`] keeps the workloads of `weft run`, [`flows`] the flow records, [`edges`] the counters; [`config`] alone
//! reads flags and files.

#![forbid(unsafe_code)]

pub mod admin;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod edges;
pub mod error;
pub mod explain;
pub mod flows;
pub mod generations;
pub mod registry;
pub mod state_dir;
pub mod status;
mod yaml;
