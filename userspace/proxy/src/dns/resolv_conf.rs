//! What of `/etc/resolv.conf` matters here (resolv.conf(5)).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Resolvers use at most three (`MAXNS`).
const MAX_NAMESERVERS: usize = 3;
const DNS_PORT: u16 = 53;

/// The system's resolvers and search suffixes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    pub nameservers: Vec<SocketAddr>,
    /// Lower case, without dots at the ends.
    pub search: Vec<String>,
}

// === impl ResolvConf ===

impl ResolvConf {
    /// Reads the text of the file. Lines that are not understood are passed over, as resolvers do; without any
    /// nameserver it is the one on this machine.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") if conf.nameservers.len() < MAX_NAMESERVERS => {
                    // A zone (`fe80::1%eth0`) cannot be said in an address; such a server is left out.
                    let server = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    conf.nameservers.extend(server.map(|ip| SocketAddr::new(ip, DNS_PORT)));
                }
                // The last of `search` and `domain` counts.
                Some("search" | "domain") => {
                    conf.search = words
                        .map(|word| word.trim_matches('.').to_ascii_lowercase())
                        .filter(|word| !word.is_empty())
                        .collect();
                }
                _ => {}
            }
        }
        if conf.nameservers.is_empty() {
            conf.nameservers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS_PORT));
        }
        conf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_suffixes_are_read_as_resolvers_read_them() {
        let conf = ResolvConf::parse(
            "# comment\nsearch first.example\noptions ndots:5\nnameserver 192.0.2.1\nnameserver ::1\n\
             nameserver junk\nsearch Corp.Example. svc.cluster.local\n",
        );
        assert_eq!(conf.nameservers, ["192.0.2.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
        assert_eq!(conf.search, ["corp.example", "svc.cluster.local"]);
    }

    #[test]
    fn without_a_nameserver_it_is_this_machine() {
        assert_eq!(ResolvConf::parse("").nameservers, ["127.0.0.1:53".parse().unwrap()]);
    }
}
