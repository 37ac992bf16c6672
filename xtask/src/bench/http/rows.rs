//! What is compared with what, and what is to be reached.

use super::super::rounds::Goal;

/// A way to the origin, in the order of the arms.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    NoMesh,
    Weft,
    WeftFast,
    WeftDirect,
    WeftDirectFast,
    Envoy,
    Haproxy,
    Sidecars,
    /// Copies bytes and does nothing else.
    Relay,
}

pub const WAYS: [Way; 9] = [
    Way::NoMesh,
    Way::Weft,
    Way::WeftFast,
    Way::WeftDirect,
    Way::WeftDirectFast,
    Way::Envoy,
    Way::Haproxy,
    Way::Sidecars,
    Way::Relay,
];

/// What is compared of two ways.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// Requests a second, as many as are answered.
    Rate,
    /// CPU a request of the proxies, at a fixed rate.
    Proxy,
    /// The same, with as many requests as are answered.
    ProxyFull,
    /// Of that at a fixed rate, in user space, as the ticks of the clock saw it.
    User,
    /// The same of the origin.
    Origin,
    /// The same of the whole machine.
    Machine,
    /// CPU of the whole machine a connection with one request.
    Connection,
    /// Median latency on one connection.
    Alone,
    /// Median latency on one connection beyond that without a mesh.
    Added,
    /// 99th percentile at the fixed rate.
    P99,
}

/// What, ours, whose beside it, and what is to be reached.
#[rustfmt::skip]
pub const ROWS: [(&str, Figure, Way, Way, Goal); 29] = [
    ("L4 path vs. no mesh, requests", Figure::Rate, Way::WeftDirect, Way::NoMesh, Goal::AtLeast(0.97)),
    ("the same, short-circuit", Figure::Rate, Way::WeftDirectFast, Way::NoMesh, Goal::AtLeast(1.3)),
    ("L4 path vs. no mesh, of the whole machine", Figure::Machine, Way::WeftDirect, Way::NoMesh, Goal::Told),
    ("the same, short-circuit", Figure::Machine, Way::WeftDirectFast, Way::NoMesh, Goal::Told),
    ("short connections, L4 vs. no mesh", Figure::Connection, Way::WeftDirect, Way::NoMesh, Goal::AtLeast(0.95)),
    ("HTTP/1.1 vs. Envoy, requests a CPU second of the proxy", Figure::Proxy, Way::Weft, Way::Envoy, Goal::AtLeast(4.0)),
    ("the same, short-circuit", Figure::Proxy, Way::WeftFast, Way::Envoy, Goal::AtLeast(4.0)),
    ("as many as are answered: HTTP/1.1 vs. Envoy, requests a CPU second of the proxy", Figure::ProxyFull, Way::Weft, Way::Envoy, Goal::AtLeast(4.0)),
    ("the same, short-circuit", Figure::ProxyFull, Way::WeftFast, Way::Envoy, Goal::AtLeast(4.0)),
    ("HTTP/1.1 vs. Envoy, added p50", Figure::Added, Way::Weft, Way::Envoy, Goal::AtMost(0.2)),
    ("the same, short-circuit", Figure::Added, Way::WeftFast, Way::Envoy, Goal::AtMost(0.2)),
    ("HTTP/1.1 vs. haproxy, requests a CPU second of the proxy", Figure::Proxy, Way::Weft, Way::Haproxy, Goal::AtLeast(1.0)),
    ("the same, short-circuit", Figure::Proxy, Way::WeftFast, Way::Haproxy, Goal::AtLeast(1.3)),
    ("as many as are answered: HTTP/1.1 vs. haproxy, requests a CPU second of the proxy", Figure::ProxyFull, Way::Weft, Way::Haproxy, Goal::AtLeast(1.0)),
    ("the same, short-circuit", Figure::ProxyFull, Way::WeftFast, Way::Haproxy, Goal::AtLeast(1.3)),
    ("HTTP/1.1 vs. Envoy twice behind iptables", Figure::Proxy, Way::Weft, Way::Sidecars, Goal::AtLeast(8.0)),
    ("the same, short-circuit", Figure::Proxy, Way::WeftFast, Way::Sidecars, Goal::AtLeast(8.0)),
    ("as many as are answered: HTTP/1.1 vs. Envoy twice behind iptables", Figure::ProxyFull, Way::Weft, Way::Sidecars, Goal::AtLeast(8.0)),
    ("the same, short-circuit", Figure::ProxyFull, Way::WeftFast, Way::Sidecars, Goal::AtLeast(8.0)),
    ("bytes copied and nothing else vs. Envoy, requests a CPU second of the proxy", Figure::Proxy, Way::Relay, Way::Envoy, Goal::Told),
    ("as many as are answered: bytes copied and nothing else vs. Envoy", Figure::ProxyFull, Way::Relay, Way::Envoy, Goal::Told),
    ("bytes copied and nothing else vs. Envoy, added p50", Figure::Added, Way::Relay, Way::Envoy, Goal::Told),
    ("HTTP/1.1 vs. Envoy, requests", Figure::Rate, Way::Weft, Way::Envoy, Goal::Told),
    ("HTTP/1.1 vs. haproxy, requests", Figure::Rate, Way::Weft, Way::Haproxy, Goal::Told),
    ("HTTP/1.1 vs. Envoy, of the whole machine", Figure::Machine, Way::Weft, Way::Envoy, Goal::Told),
    ("HTTP/1.1 vs. haproxy, of the whole machine", Figure::Machine, Way::Weft, Way::Haproxy, Goal::Told),
    ("HTTP/1.1 vs. no mesh, of the whole machine", Figure::Machine, Way::Weft, Way::NoMesh, Goal::Told),
    ("HTTP/1.1 vs. haproxy, added p50", Figure::Added, Way::Weft, Way::Haproxy, Goal::Told),
    ("HTTP/1.1 vs. Envoy, p99 at the fixed rate", Figure::P99, Way::Weft, Way::Envoy, Goal::Told),
];

/// Figures of an arm by itself, as they are kept and plotted.
#[rustfmt::skip]
pub const SERIES: [(&str, Figure); 9] = [
    ("CPU of the proxy a request", Figure::Proxy),
    ("of that, in user space", Figure::User),
    ("CPU of the proxy a request, as many as are answered", Figure::ProxyFull),
    ("CPU of the origin a request", Figure::Origin),
    ("CPU of the whole machine a request", Figure::Machine),
    ("CPU of the whole machine a connection with a request", Figure::Connection),
    ("p50 on one connection", Figure::Alone),
    ("p99 at the fixed rate", Figure::P99),
    ("requests answered, 32 connections", Figure::Rate),
];

// === impl Figure ===

impl Figure {
    pub fn unit(self) -> &'static str {
        match self {
            Self::Rate => "/s",
            Self::Proxy | Self::ProxyFull | Self::User | Self::Origin | Self::Machine | Self::Connection => "µs CPU",
            Self::Alone | Self::Added | Self::P99 => "µs",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures are found by it.
    #[test]
    fn ways_are_in_the_order_of_their_declaration() {
        for (index, way) in WAYS.into_iter().enumerate() {
            assert_eq!(way as usize, index);
        }
    }
}
