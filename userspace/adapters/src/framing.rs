//! Headers by which the proxy and its peers tell where a message ends and where it goes: no adapter may set or remove them.

use http::{HeaderName, header};

const OURS: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// The header of that name; `None`: it is no name, or one of those.
pub(crate) fn changeable(name: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(name.as_bytes())
        .ok()
        .filter(|name| !OURS.contains(name))
}
