//! Adapters that are compiled in: a folder each, with the same files inside (code, config, tests, one page).

pub mod denier;
pub mod ext_authz;
pub mod jwt;
pub mod list;
pub mod memquota;
pub mod prometheus;
pub mod statsd;
pub mod stdio;

pub use denier::Denier;
pub use ext_authz::ExtAuthz;
pub use jwt::Jwt;
pub use list::List;
pub use memquota::MemQuota;
pub use prometheus::Prometheus;
pub use stdio::Stdio;

/// The JSON examples of an adapter's page, for the test that loads them.
#[cfg(test)]
fn page_examples(page: &str) -> Vec<&str> {
    page.split("```json\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect()
}
