//! The daemon's admin API: HTTP/1.1 and JSON over the unix socket of the state directory.
//!
//! [`Server`] knows sockets, paths and limits; what the answers are it asks a [`Control`], which the daemon implements.
//! [`Client`] is the other end, for the commands.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/workloads` | [`api::RegisterRequest`] -> [`api::RegisterResponse`] |
//! | `GET /v1/workloads` | [`api::WorkloadView`]s |
//! | `DELETE /v1/workloads/NAMESPACE/SERVICE/INSTANCE` | nothing |
//! | `GET /v1/status` | [`api::Status`] |
//! | `GET /v1/edges` | [`api::EdgesView`] |
//! | `GET /v1/adapters` | [`api::AdapterView`]s |
//! | `POST /v1/adapters` | [`api::AdapterChange`] -> [`api::AdapterChanged`] |
//! | `GET /v1/objects?kind=&namespace=&name=` | [`api::ObjectView`]s |
//! | `PUT /v1/objects?file=NAME`, body YAML | [`api::ApplyOutcome`], also when objects were refused |
//! | `DELETE /v1/objects/KIND/NAME?namespace=` | [`api::DeleteOutcome`] |
//! | `GET /v1/flows?follow=1&last=&verdict=&from=&to=` | one flow a line (NDJSON), chunked |
//! | `POST /v1/explain` | [`api::ExplainRequest`] -> [`Explanation`] |
//! | `GET /v1/doctor` | [`api::DoctorReport`] |
//! | `GET /v1/snapshot` | what is in force, for debugging; its shape is no contract |
//! | `POST /v1/hand-over`, `Upgrade: weft-hand-over/N` | 101; then the protocol of [`crate::daemon::hand_over`] |
//! | `POST /v1/shutdown` | nothing; the daemon then stops |
//! | `GET /healthz` | `{"status":"ok"}` |

pub mod api;
mod client;
mod handlers;
mod server;
pub mod stall;
#[cfg(test)]
mod tests;

use api::{
    AdapterChange, AdapterChanged, AdapterView, ApplyOutcome, ApplyRequest, DeleteOutcome, DoctorReport, EdgesView,
    ExplainRequest, ObjectQuery, ObjectView, RegisterRequest, RegisterResponse, Status, WorkloadView,
};
use tokio::net::UnixStream;
use weft_policy::{Explanation, ObjectRef};

pub use client::{Client, ClientError, FlowLine, FlowReader};
pub use handlers::MAX_YAML_BYTES;
pub use server::{Server, ServerError};

use crate::{daemon::hand_over::HandedOver, flows::FlowStore};

/// What the admin API can ask the daemon for.
///
/// The methods may block (files, kernel tables): the server calls them on tokio's blocking threads.
pub trait Control: Send + Sync + 'static {
    /// Makes the workload's cgroup and tells the kernel about it, all before it returns.
    fn register_workload(&self, request: RegisterRequest) -> Result<RegisterResponse, ControlError>;
    /// Forgets a workload that no process has entered; one that runs is forgotten when its last process ends.
    fn deregister_workload(&self, name: &str) -> Result<(), ControlError>;
    fn workloads(&self) -> Vec<WorkloadView>;
    fn status(&self) -> Status;
    fn edges(&self) -> EdgesView;
    /// In the order in which they look.
    fn adapters(&self) -> Vec<AdapterView>;
    /// Changes the generations of an applied one. What cannot run is refused, and nothing has changed then.
    fn change_adapter(&self, change: AdapterChange) -> Result<AdapterChanged, ControlError>;
    fn objects(&self, query: &ObjectQuery) -> Vec<ObjectView>;
    /// Stores what is valid, object by object, and publishes it. Refused objects are part of a good answer; `Err` is for
    /// what could not be tried at all.
    fn apply(&self, request: ApplyRequest) -> Result<ApplyOutcome, ControlError>;
    /// Deletes an applied object. Without a namespace: the mesh-wide one of that name, else the one in `default`.
    fn delete(&self, object: &ObjectRef) -> Result<DeleteOutcome, ControlError>;
    fn flows(&self) -> &FlowStore;
    fn explain(&self, request: &ExplainRequest) -> Result<Explanation, ControlError>;
    fn doctor(&self) -> DoctorReport;
    fn snapshot(&self) -> serde_json::Value;
    /// Another daemon wants to take over, and speaks by this connection.
    fn hand_over(&self, connection: UnixStream);
    /// Starts the orderly stop of the daemon; returns at once.
    fn shutdown(&self);
}

/// Why the daemon did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// 404.
    #[error("{what} is not known here")]
    NotFound { what: String },
    /// 422: the request can never work as it is.
    #[error("{reason}")]
    Invalid { reason: String, details: Vec<String> },
    /// 409: it contradicts what is there (an object that the resources folder owns).
    #[error("{reason}")]
    Conflict { reason: String },
    /// 503: not now.
    #[error("{reason}")]
    Unavailable { reason: String },
    /// 421: another daemon is in charge, nothing was done here.
    #[error(transparent)]
    HandedOver(#[from] HandedOver),
    /// 500.
    #[error("{doing}")]
    Failed {
        doing: &'static str,
        #[source]
        source: anyhow::Error,
    },
}
