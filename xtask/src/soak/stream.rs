//! A client's streams of traffic, with what the judge must know of each.

use std::fmt;

use vm_test::soak::{Flow, Kind};

/// One process that keeps up many streams.
pub struct Client {
    /// Where it runs.
    pub host: usize,
    /// As whom; `None`: outside the mesh.
    pub account: Option<Account>,
    pub streams: Vec<Stream>,
}

/// Who is allowed always, never, and in turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Account {
    Friend,
    Stranger,
    Flapper,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Path {
    /// Judged in the kernel, and nothing in between.
    Direct,
    /// Through the proxy of the host whose policy judges it.
    Proxied,
}

pub struct Stream {
    /// Whose policy judges it.
    pub host: usize,
    pub account: Account,
    pub service: String,
    pub path: Path,
    /// Its service is short-circuited, as far as `path` allows: both ways, or to the proxy.
    pub past_tcp: bool,
    /// Of a program outside the mesh: denied, it hears nothing.
    pub outside: bool,
    pub flow: Flow,
}

// === impl Account ===

impl Account {
    pub fn name(self) -> &'static str {
        match self {
            Self::Friend => "friend",
            Self::Stranger => "stranger",
            Self::Flapper => "flapper",
        }
    }
}

// === impl Stream ===

impl Stream {
    /// What is told apart in tables: the path of its bytes. `full`, `proxy`: short-circuited.
    pub fn way(&self) -> &'static str {
        match (self.path, self.flow.kind) {
            (Path::Direct, Kind::Udp) => "UDP",
            (Path::Direct, Kind::Unconnected) => "UDP sendto",
            (Path::Direct, _) if self.past_tcp => "full",
            (Path::Direct, _) => "TCP direct",
            (Path::Proxied, Kind::Http) => "HTTP",
            (Path::Proxied, _) if self.past_tcp => "proxy",
            (Path::Proxied, _) => "TCP proxied",
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            account,
            service,
            outside,
            flow,
            ..
        } = self;
        let outside = if *outside { "outside " } else { "" };
        let (way, kind, target) = (self.way(), flow.kind, flow.target);
        write!(f, "{outside}{} to {service} {target} ({way}, {kind:?})", account.name())
    }
}
