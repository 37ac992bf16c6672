//! What the server needs to know, and reading it from the system's `resolv.conf`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Resolvers that are used, as in glibc (`MAXNS`); the rest is left out.
const MAX_NAMESERVERS: usize = 3;

/// Search domains that are looked at. glibc has no limit any more; a query costs a comparison each.
const MAX_SEARCH: usize = 32;

const DNS_PORT: u16 = 53;

/// Settings of [`super::DnsServer`].
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// On every loopback address, UDP and TCP. 0 picks a free one (tests).
    pub port: u16,
    /// Where everything else is asked, and which suffixes resolvers append.
    pub resolv_conf: ResolvConf,
}

/// The system's resolvers and search suffixes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    pub nameservers: Vec<SocketAddr>,
    /// Lower case, without dots at the ends.
    pub search: Vec<String>,
}

// === impl ResolvConf ===

impl ResolvConf {
    /// Reads the text of a `resolv.conf` as glibc does: the first three `nameserver`s, the last `search` or `domain`, comments
    /// from `#` or `;` on; unknown lines are nothing. Without any `nameserver`, the one on this machine.
    ///
    /// A scope in an IPv6 address (`fe80::1%2`) has to be a number; a resolver with an interface's name there is left out,
    /// because resolving that name needs the system.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        let mut named = false;
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let Some(word) = words.next() else { continue };
                    named = true;
                    if let Some(address) = nameserver(word)
                        && conf.nameservers.len() < MAX_NAMESERVERS
                    {
                        conf.nameservers.push(address);
                    }
                }
                Some("search" | "domain") => conf.search = words.filter_map(search).take(MAX_SEARCH).collect(),
                _ => {}
            }
        }
        if !named {
            conf.nameservers.push((Ipv4Addr::LOCALHOST, DNS_PORT).into());
        }
        conf
    }
}

fn nameserver(word: &str) -> Option<SocketAddr> {
    if let Some((address, scope)) = word.split_once('%') {
        let address: Ipv6Addr = address.parse().ok()?;
        return Some(SocketAddrV6::new(address, DNS_PORT, 0, scope.parse().ok()?).into());
    }
    Some((word.parse::<IpAddr>().ok()?, DNS_PORT).into())
}

fn search(word: &str) -> Option<String> {
    let domain = word.trim_matches('.').to_ascii_lowercase();
    (!domain.is_empty()).then_some(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolv_conf_is_read_as_glibc_does() {
        for (text, upstreams, search) in [
            ("", &["127.0.0.1:53"][..], &[][..]),
            ("nameserver 10.0.0.53\n", &["10.0.0.53:53"], &[]),
            ("# a\n; b\nnameserver\t10.0.0.53 # c\n", &["10.0.0.53:53"], &[]),
            (
                "nameserver ::1\nnameserver fe80::1%2\n",
                &["[::1]:53", "[fe80::1%2]:53"],
                &[],
            ),
            ("nameserver fe80::1%eth0\nnameserver 9.9.9.9", &["9.9.9.9:53"], &[]),
            (
                "nameserver 1.0.0.1\nnameserver 1.0.0.2\nnameserver 1.0.0.3\nnameserver 1.0.0.4",
                &["1.0.0.1:53", "1.0.0.2:53", "1.0.0.3:53"],
                &[],
            ),
            (
                "search a.example B.Example.\noptions ndots:5\n",
                &["127.0.0.1:53"],
                &["a.example", "b.example"],
            ),
            ("search a.example\ndomain c.example", &["127.0.0.1:53"], &["c.example"]),
            ("search .\nnameserver x\nNAMESERVER 1.1.1.1", &[], &[]),
        ] {
            let conf = ResolvConf::parse(text);
            let found: Vec<String> = conf.nameservers.iter().map(ToString::to_string).collect();
            assert_eq!(
                (found, conf.search),
                (
                    upstreams.iter().map(ToString::to_string).collect(),
                    search.iter().map(ToString::to_string).collect()
                ),
                "{text:?}"
            );
        }
    }

    #[test]
    fn garbage_is_no_resolver_and_no_panic() {
        let conf = ResolvConf::parse("\0\u{fffd}nameserver\nnameserver\nnameserver %\nnameserver %%1\nsearch\n");
        assert_eq!(conf, ResolvConf::default());
    }
}
