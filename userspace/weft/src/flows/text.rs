//! Flows as a conversation: one line each, who to whom first, what was said, how it ended.

use std::{fmt::Write, time::SystemTime};

use nix::errno::Errno;
use time::{OffsetDateTime, macros::format_description};
use weft_adapters::{Flow, FlowEvent, FlowVerdict};

/// A column grows with what it shows up to this many characters; what is longer pushes its own line only.
const WIDEST_COLUMN: usize = 60;

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Prints flows below each other in columns that fit what was printed so far.
#[derive(Debug, Clone)]
pub struct FlowPrinter {
    colour: bool,
    parties: usize,
    what: usize,
}

// === impl FlowPrinter ===

impl FlowPrinter {
    /// With `colour` verdicts are red, yellow and green and the small print is dim (for terminals).
    pub fn new(colour: bool) -> Self {
        Self {
            colour,
            parties: 0,
            what: 0,
        }
    }

    /// Makes the columns wide enough for `flow` before anything is printed.
    pub fn measure(&mut self, flow: &Flow) {
        self.parties = widen(self.parties, &parties(flow));
        self.what = widen(self.what, &what(flow));
    }

    /// `14:02:11.031  default/client -> default/web 240.240.7.9:80  tcp  DENY   EPERM  MeshConfig mesh: accessDefault deny`,
    /// without a line end. Times are UTC.
    pub fn line(&mut self, flow: &Flow) -> String {
        self.measure(flow);
        let (verdict, colour) = match flow.verdict {
            FlowVerdict::Allow => ("allow", GREEN),
            FlowVerdict::Deny => ("DENY ", RED),
            FlowVerdict::Audit => ("AUDIT", YELLOW),
        };
        let line = format!(
            "{}  {:parties_width$}  {:what_width$}  {}{verdict}{}  {}{}{}",
            clock(flow.time),
            parties(flow),
            what(flow),
            self.code(colour),
            self.code(PLAIN),
            self.code(DIM),
            outcome(flow),
            self.code(PLAIN),
            parties_width = self.parties,
            what_width = self.what,
        );
        line.trim_end().to_owned()
    }

    fn code(&self, code: &'static str) -> &'static str {
        if self.colour { code } else { "" }
    }
}

fn widen(width: usize, text: &str) -> usize {
    width.max(text.chars().count().min(WIDEST_COLUMN))
}

fn clock(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(format_description!("[hour]:[minute]:[second].[subsecond digits:3]"))
        .unwrap_or_default()
}

fn parties(flow: &Flow) -> String {
    let source = &flow.source;
    let destination = &flow.destination;
    let source_name = source.service.as_deref().unwrap_or(&source.account);
    let socket = std::net::SocketAddr::new(destination.address, destination.port);
    let mut text = format!("{} -> ", qualified(&source.namespace, source_name));
    if let Some(name) = destination.service.as_deref().or(destination.account.as_deref()) {
        let _ = write!(text, "{} ", qualified(&destination.namespace, name));
    }
    let _ = write!(text, "{socket}");
    printable(&text)
}

pub(crate) fn qualified(namespace: &str, name: &str) -> String {
    // Who is not captured is `unknown` of `unknown`: once is enough.
    let alone = namespace.is_empty() || (namespace == "unknown" && name == namespace);
    if alone {
        name.to_owned()
    } else {
        format!("{namespace}/{name}")
    }
}

fn what(flow: &Flow) -> String {
    let protocol = flow.protocol.as_str();
    let text = match (&flow.l7, flow.event) {
        (Some(l7), _) => format!("{protocol} {} {}", l7.method, l7.path),
        (None, FlowEvent::Open) => format!("{protocol} open"),
        (None, FlowEvent::Close) => format!("{protocol} close"),
        (None, FlowEvent::Deny | FlowEvent::Request) => protocol.to_owned(),
    };
    printable(&text)
}

/// What came of it, the most wanted first: error, status, sizes, times, then the rule and its reason.
fn outcome(flow: &Flow) -> String {
    let mut parts = Vec::new();
    if let Some(errno) = flow.errno {
        parts.push(format!("{:?}", Errno::from_raw(errno)));
    }
    if let Some(l7) = &flow.l7 {
        parts.push(l7.status.to_string());
        if let Some(status) = l7.grpc_status {
            parts.push(format!("grpc-status {status}"));
        }
        parts.push(micros(u64::try_from(l7.duration.as_micros()).unwrap_or(u64::MAX)));
    }
    if flow.bytes_sent > 0 || flow.bytes_received > 0 || flow.event == FlowEvent::Close {
        parts.push(format!(
            "{} out, {} in",
            bytes(flow.bytes_sent),
            bytes(flow.bytes_received)
        ));
    }
    if let Some(rtt) = flow.rtt_us {
        parts.push(format!("rtt {}", micros(rtt.into())));
    }
    match (&flow.rule, &*flow.reason) {
        (Some(rule), "") => parts.push(rule.to_string()),
        (Some(rule), reason) => parts.push(format!("{rule}: {reason}")),
        (None, "") => {}
        (None, reason) => parts.push(reason.to_owned()),
    }
    printable(&parts.join("  "))
}

/// `1.2 MiB`
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut size = count as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// `87 µs`, `3.1 ms`, `2.04 s`
pub(crate) fn micros(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} µs"),
        1_000..1_000_000 => format!("{:.1} ms", count as f64 / 1e3),
        _ => format!("{:.2} s", count as f64 / 1e6),
    }
}

/// Paths and names come from strangers: control characters would let them paint the operator's terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weft_adapters::{FlowProtocol, L7};

    use super::*;
    use crate::flows::query::tests::{denied, flow};

    fn request(path: &str) -> Flow {
        Flow {
            event: FlowEvent::Request,
            protocol: FlowProtocol::Http,
            verdict: FlowVerdict::Deny,
            reason: "no match allows it".into(),
            l7: Some(L7 {
                method: "GET".into(),
                path: path.into(),
                status: 403,
                duration: Duration::from_micros(3_140),
                request_bytes: 0,
                response_bytes: 31,
                grpc_status: None,
                user_agent: None,
                trace: None,
            }),
            bytes_sent: 0,
            bytes_received: 31,
            rtt_us: None,
            ..(*flow()).clone()
        }
    }

    #[test]
    fn a_deny_names_errno_rule_and_reason() {
        assert_eq!(
            FlowPrinter::new(false).line(&denied()),
            "22:13:20.031  default/client -> default/web 240.240.7.9:80  tcp  DENY   EPERM  MeshConfig mesh: accessDefault deny"
        );
    }

    #[test]
    fn a_close_tells_bytes_and_rtt() {
        assert_eq!(
            FlowPrinter::new(false).line(&flow()),
            "22:13:20.031  default/client -> default/web 240.240.7.9:80  tcp close  allow  512 B out, 1.2 MiB in  rtt 87 µs  \
             TrafficTarget default/web-clients: access rule"
        );
    }

    #[test]
    fn a_request_tells_method_path_and_status() {
        assert_eq!(
            FlowPrinter::new(false).line(&request("/admin")),
            "22:13:20.031  default/client -> default/web 240.240.7.9:80  http GET /admin  DENY   403  3.1 ms  0 B out, 31 B in  \
             TrafficTarget default/web-clients: no match allows it"
        );
    }

    #[test]
    fn measured_lines_are_aligned() {
        let flows = [(*flow()).clone(), (*denied()).clone(), request("/a/longer/path")];
        let mut printer = FlowPrinter::new(false);
        flows.iter().for_each(|flow| printer.measure(flow));
        let columns: Vec<_> = flows
            .iter()
            .map(|flow| {
                let line = printer.line(flow);
                line.find("allow ").or(line.find("DENY ")).expect("a verdict")
            })
            .collect();
        assert!(columns.iter().all(|column| *column == columns[0]), "{columns:?}");
    }

    #[test]
    fn a_path_cannot_paint_the_terminal() {
        let line = FlowPrinter::new(false).line(&request("/\x1b[2J\n"));
        assert!(!line.contains(['\x1b', '\n']), "{line:?}");
    }

    #[test]
    fn sizes_and_times_have_the_unit_that_reads_best() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
        ];
        for (count, expected) in cases {
            assert_eq!(bytes(count), expected);
        }
        for (count, expected) in [(999, "999 µs"), (1_000, "1.0 ms"), (2_040_000, "2.04 s")] {
            assert_eq!(micros(count), expected);
        }
    }
}
