//! Attributes: what checks may ask about a connection or a request, by the names that Istio's Mixer gave them.
//!
//! A [`Bag`] borrows everything. The proxy builds it on its stack, a check reads the few slots it needs, nothing is
//! copied, no map is made, and a request that no check looks at costs nothing. Names are resolved to an
//! [`Attribute`] when configuration is loaded; a request only ever indexes by the enum.

mod bag;
mod headers;
mod name;
mod selector;
mod text;

pub use bag::{Bag, ConnectionView, DestinationView, PeerView, Principal, RequestView, Value};
pub(crate) use headers::joined;
pub use headers::{Headers, NoHeaders};
pub use name::Attribute;
pub use selector::{Selector, UnknownSelector};
pub use text::TextBuffer;

#[cfg(test)]
pub(crate) mod tests;
