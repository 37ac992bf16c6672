//! Adapters that are compiled in: a folder each, with the same files inside (code, config, tests, one page).

pub mod denier;
pub mod ext_authz;
pub mod jwt;
pub mod list;
pub mod memquota;
pub mod opa;
pub mod otlp;
pub mod prometheus;
pub mod redisquota;
pub mod statsd;
pub mod stdio;
pub mod zipkin;

pub use denier::Denier;
pub use ext_authz::ExtAuthz;
pub use jwt::Jwt;
pub use list::List;
pub use memquota::MemQuota;
pub use opa::Opa;
pub use prometheus::Prometheus;
pub use redisquota::RedisQuota;
pub use stdio::Stdio;

use crate::native::NativeEntry;

/// Adapters that kind `Adapter` finds by name, in that order. `prometheus` is not among them: the daemon runs it itself.
pub const ALL: &[NativeEntry] = &[
    NativeEntry::of::<Denier>(),
    NativeEntry::of::<ExtAuthz>(),
    NativeEntry::of::<Jwt>(),
    NativeEntry::of::<List>(),
    NativeEntry::of::<MemQuota>(),
    NativeEntry::of::<Opa>(),
    NativeEntry::of::<otlp::Otlp>(),
    NativeEntry::of::<RedisQuota>(),
    NativeEntry::of::<statsd::Statsd>(),
    NativeEntry::of::<Stdio>(),
    NativeEntry::of::<zipkin::Zipkin>(),
];

/// The adapter of this name.
pub fn find(name: &str) -> Option<&'static NativeEntry> {
    ALL.iter().find(|entry| entry.name == name)
}

/// The JSON examples of an adapter's page, for the test that loads them.
#[cfg(test)]
pub(crate) fn page_examples(page: &str) -> Vec<&str> {
    page.split("```json\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect()
}
