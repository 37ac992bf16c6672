use std::str::FromStr;

use weft_policy::{Protocol, RuntimePort};

/// `SERVICE_PORT[:TARGET_PORT][/tcp|/udp]`; without suffix both protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortSpec {
    port: u16,
    target: u16,
    protocol: Option<Protocol>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PortSpecError {
    #[error("`{found}` is no port; expected 1 to 65535")]
    Number { found: String },
    #[error("`{found}` is no protocol; expected `tcp` or `udp`, or nothing for both")]
    Protocol { found: String },
}

// === impl PortSpec ===

impl PortSpec {
    /// One entry a protocol.
    pub fn ports(&self) -> impl Iterator<Item = RuntimePort> {
        let Self { port, target, protocol } = *self;
        [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .filter(move |each| protocol.is_none_or(|protocol| protocol == *each))
            .map(move |protocol| RuntimePort { port, target, protocol })
    }
}

impl FromStr for PortSpec {
    type Err = PortSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (ports, protocol) = match text.split_once('/') {
            None => (text, None),
            Some((ports, "tcp")) => (ports, Some(Protocol::Tcp)),
            Some((ports, "udp")) => (ports, Some(Protocol::Udp)),
            Some((_, found)) => {
                return Err(PortSpecError::Protocol {
                    found: found.to_owned(),
                });
            }
        };
        let (port, target) = ports.split_once(':').unwrap_or((ports, ports));
        Ok(Self {
            port: number(port)?,
            target: number(target)?,
            protocol,
        })
    }
}

fn number(text: &str) -> Result<u16, PortSpecError> {
    match text.parse() {
        // `+80` parses, too.
        Ok(number) if number > 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(number),
        _ => Err(PortSpecError::Number { found: text.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_read_as_the_contract_says() {
        for (text, port, target, protocols) in [
            ("80", 80, 80, "tcp udp"),
            ("80:8080", 80, 8080, "tcp udp"),
            ("80:8080/tcp", 80, 8080, "tcp"),
            ("53/udp", 53, 53, "udp"),
            ("1:65535/udp", 1, 65535, "udp"),
        ] {
            let ports: Vec<_> = text.parse::<PortSpec>().expect(text).ports().collect();
            assert!(
                ports.iter().all(|each| (each.port, each.target) == (port, target)),
                "{text}: {ports:?}"
            );
            let found: Vec<_> = ports.iter().map(|each| each.protocol.to_string()).collect();
            assert_eq!(found.join(" "), protocols, "{text}");
        }
    }

    #[test]
    fn what_is_no_spec_says_what_one_is() {
        for (text, expected) in [
            ("", "`` is no port; expected 1 to 65535"),
            ("0", "`0` is no port; expected 1 to 65535"),
            ("65536", "`65536` is no port; expected 1 to 65535"),
            ("+80", "`+80` is no port; expected 1 to 65535"),
            ("80:", "`` is no port; expected 1 to 65535"),
            ("80:1:2", "`1:2` is no port; expected 1 to 65535"),
            (
                "80/sctp",
                "`sctp` is no protocol; expected `tcp` or `udp`, or nothing for both",
            ),
            (
                "80/tcp/udp",
                "`tcp/udp` is no protocol; expected `tcp` or `udp`, or nothing for both",
            ),
        ] {
            assert_eq!(text.parse::<PortSpec>().expect_err(text).to_string(), expected);
        }
    }
}
