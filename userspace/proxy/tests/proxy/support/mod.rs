//! A mesh of one machine without a kernel side.

pub mod bodies;
pub mod client;
pub mod filter;
pub mod mesh;
pub mod server;
pub mod spec;

pub use client::{H1, H2, Text};
pub use mesh::Mesh;
pub use spec::{Access, CLIENT, Port, Spec, allow_paths, class_of, closed_but_for};
