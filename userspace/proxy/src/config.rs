//! What the operator may choose about the proxy; the binary fills it from flags and files.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;

use crate::{balance::Balance, limits::FILTER_PAUSE};

/// Istio's outbound port; captured connections are sent there.
pub const DEFAULT_PORT: u16 = 15001;

/// Istio's inbound port; connections that arrive at workloads of this node are given to its listeners by the kernel.
pub const DEFAULT_INBOUND_PORT: u16 = 15006;

/// Ranges of virtual IPs unless the daemon is told otherwise.
const DEFAULT_VIRTUAL_RANGES: [&str; 2] = ["240.240.0.0/16", "2001:2::/48"];

/// Both loopback addresses.
pub fn default_addresses(port: u16) -> Vec<SocketAddr> {
    vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
}

/// Settings of [`Workers`](crate::Workers).
#[derive(Clone)]
pub struct ProxyConfig {
    /// Where captured connections arrive. Port 0 picks a free one (tests); see `Workers::local_addrs`.
    pub addresses: Vec<SocketAddr>,
    /// Worker threads; `None`: one a core. More than cores only costs memory.
    pub workers: Option<usize>,
    /// Ranges virtual IPs come from. An address in them that no service has is answered 503 and never dialled.
    pub virtual_ranges: Vec<IpNet>,
    /// How endpoints are picked.
    pub balance: Balance,
    /// How long a caller waits for a service whose workload is starting. Longer hides a broken start, shorter fails
    /// callers of programs that are slow to listen.
    pub pending_timeout: Duration,
    /// How long a filter may hold something: see [`FILTER_PAUSE`], the default.
    pub filter_pause: Duration,
}

// === impl ProxyConfig ===

impl ProxyConfig {
    /// See [`ProxyConfig::pending_timeout`].
    pub const DEFAULT_PENDING_TIMEOUT: Duration = Duration::from_secs(10);

    /// Number of worker threads to start.
    pub(crate) fn worker_count(&self) -> usize {
        self.workers
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
            .max(1)
    }
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            addresses: default_addresses(DEFAULT_PORT),
            workers: None,
            virtual_ranges: DEFAULT_VIRTUAL_RANGES
                .iter()
                .filter_map(|range| range.parse().ok())
                .collect(),
            balance: Balance::default(),
            pending_timeout: Self::DEFAULT_PENDING_TIMEOUT,
            filter_pause: FILTER_PAUSE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_range_parses() {
        assert_eq!(
            ProxyConfig::default().virtual_ranges.len(),
            DEFAULT_VIRTUAL_RANGES.len()
        );
    }
}
