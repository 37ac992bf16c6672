//! A sample as a table: sorted, aligned, cut to the screen.

use std::cmp::Ordering;

use time::{OffsetDateTime, macros::format_description};
use weft_adapters::{FlowProtocol, FlowVerdict, Side};

use crate::{
    edges::{Row, Sample},
    flows::text::{bytes, micros, printable, qualified},
};

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const BOLD: &str = "\x1b[1m";
const REVERSED: &str = "\x1b[7m";
const PLAIN: &str = "\x1b[0m";

/// A column: its head, what stands there, and what it is sorted by.
struct Column {
    head: &'static str,
    /// Numbers stand to the right.
    right: bool,
    cell: fn(&Row) -> String,
    /// Ascending.
    order: fn(&Row, &Row) -> Ordering,
}

const COLUMNS: [Column; 14] = [
    Column {
        head: "SOURCE",
        right: false,
        cell: source,
        order: |a, b| source(a).cmp(&source(b)),
    },
    Column {
        head: "DESTINATION",
        right: false,
        cell: destination,
        order: |a, b| destination(a).cmp(&destination(b)),
    },
    Column {
        head: "VERDICT",
        right: false,
        cell: |row| match row.verdict {
            FlowVerdict::Allow => "allow".to_owned(),
            FlowVerdict::Deny => "DENY".to_owned(),
            FlowVerdict::Audit => "AUDIT".to_owned(),
        },
        order: |a, b| a.verdict.as_str().cmp(b.verdict.as_str()),
    },
    Column {
        head: "CONN/S",
        right: true,
        cell: |row| rate(row.opened_per_second),
        order: |a, b| a.opened_per_second.total_cmp(&b.opened_per_second),
    },
    Column {
        head: "OPEN",
        right: true,
        cell: |row| row.open.to_string(),
        order: |a, b| a.open.cmp(&b.open),
    },
    Column {
        head: "OUT/S",
        right: true,
        cell: |row| bytes(row.sent_per_second as u64),
        order: |a, b| a.sent_per_second.total_cmp(&b.sent_per_second),
    },
    Column {
        head: "IN/S",
        right: true,
        cell: |row| bytes(row.received_per_second as u64),
        order: |a, b| a.received_per_second.total_cmp(&b.received_per_second),
    },
    Column {
        head: "CONNECT P50",
        right: true,
        cell: |row| time(row.connect_us.p50),
        order: |a, b| a.connect_us.p50.cmp(&b.connect_us.p50),
    },
    Column {
        head: "P99",
        right: true,
        cell: |row| time(row.connect_us.p99),
        order: |a, b| a.connect_us.p99.cmp(&b.connect_us.p99),
    },
    Column {
        head: "RTT P50",
        right: true,
        cell: |row| time(row.rtt_us.p50),
        order: |a, b| a.rtt_us.p50.cmp(&b.rtt_us.p50),
    },
    Column {
        head: "P99",
        right: true,
        cell: |row| time(row.rtt_us.p99),
        order: |a, b| a.rtt_us.p99.cmp(&b.rtt_us.p99),
    },
    Column {
        head: "RETRANS",
        right: true,
        cell: |row| row.total.retransmits.to_string(),
        order: |a, b| a.total.retransmits.cmp(&b.total.retransmits),
    },
    Column {
        head: "RESETS",
        right: true,
        cell: |row| row.total.resets.to_string(),
        order: |a, b| a.total.resets.cmp(&b.total.resets),
    },
    Column {
        head: "DENIED",
        right: true,
        cell: |row| row.total.denied.to_string(),
        order: |a, b| a.total.denied.cmp(&b.total.denied),
    },
];

/// OUT/S: what an operator looks for first is who carries most.
const FIRST_SORT: usize = 5;
/// Between columns.
const GAP: &str = "  ";

/// How samples are shown.
#[derive(Debug, Clone)]
pub struct View {
    colour: bool,
    /// Index into [`COLUMNS`].
    sort: usize,
    ascending: bool,
}

// === impl View ===

impl View {
    /// Sorted by what is sent, most first.
    pub fn new(colour: bool) -> Self {
        Self {
            colour,
            sort: FIRST_SORT,
            ascending: false,
        }
    }

    /// Sorts by the column so many to the right, around the end. Names begin with the first, numbers with the largest.
    pub fn sort_by_next(&mut self, step: isize) {
        let columns = COLUMNS.len().cast_signed();
        self.sort = (self.sort.cast_signed() + step).rem_euclid(columns).cast_unsigned();
        self.ascending = !COLUMNS[self.sort].right;
    }

    pub fn reverse(&mut self) {
        self.ascending = !self.ascending;
    }

    /// The line above the table.
    pub fn title(&self, sample: &Sample, held: bool) -> String {
        let now = OffsetDateTime::now_utc()
            .format(format_description!("[hour]:[minute]:[second]"))
            .unwrap_or_default();
        let lost = match sample.events_dropped {
            0 => String::new(),
            lost => format!("{GAP}{lost} flow events dropped"),
        };
        format!(
            "weft top{GAP}{now}{GAP}{} edges{GAP}sorted by {}{lost}{GAP}{}",
            sample.once_each().len(),
            COLUMNS[self.sort].head,
            if held {
                "held (space goes on)"
            } else {
                "q quits, < > sort, r reverses, space holds"
            }
        )
    }

    /// Head and rows; with `width` cut to it, else as wide as they are.
    pub fn lines(&self, sample: &Sample, width: Option<usize>) -> Vec<String> {
        let mut rows = sample.once_each();
        let order = COLUMNS[self.sort].order;
        rows.sort_by(|a, b| {
            let by_column = if self.ascending { order(a, b) } else { order(b, a) };
            // Rows that are equal there stay where they were in the last sample.
            by_column
                .then_with(|| (COLUMNS[0].order)(a, b))
                .then_with(|| (COLUMNS[1].order)(a, b))
                .then_with(|| (COLUMNS[2].order)(a, b))
        });
        let heads: Vec<String> = COLUMNS.iter().map(|column| column.head.to_owned()).collect();
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| COLUMNS.iter().map(|column| (column.cell)(row)).collect())
            .collect();
        let widths: Vec<usize> = (0..COLUMNS.len())
            .map(|column| {
                let all = cells.iter().chain([&heads]);
                all.map(|row| row[column].chars().count()).max().unwrap_or(0)
            })
            .collect();
        let mut lines = vec![self.painted(
            &aligned(&heads, &widths, width),
            if width.is_some() { REVERSED } else { BOLD },
        )];
        for (row, cells) in rows.iter().zip(&cells) {
            let line = aligned(cells, &widths, width);
            lines.push(match row.verdict {
                FlowVerdict::Allow => line,
                FlowVerdict::Deny => self.painted(&line, RED),
                FlowVerdict::Audit => self.painted(&line, YELLOW),
            });
        }
        lines
    }

    fn painted(&self, line: &str, code: &str) -> String {
        if self.colour {
            format!("{code}{line}{PLAIN}")
        } else {
            line.to_owned()
        }
    }
}

fn aligned(cells: &[String], widths: &[usize], width: Option<usize>) -> String {
    let cells: Vec<String> = COLUMNS
        .iter()
        .zip(cells)
        .zip(widths)
        .map(|((column, cell), &width)| {
            if column.right {
                format!("{cell:>width$}")
            } else {
                format!("{cell:width$}")
            }
        })
        .collect();
    let line = cells.join(GAP);
    let line = line.trim_end();
    match width {
        Some(width) => line.chars().take(width).collect(),
        None => line.to_owned(),
    }
}

// === cells ===

fn source(row: &Row) -> String {
    let source = &row.source;
    printable(&qualified(
        &source.namespace,
        source.service.as_deref().unwrap_or(&source.account),
    ))
}

/// `default/web:80 http`; a destination outside the mesh has no port of its own. What a device tells is of another kind: whole
/// frames, and no ends.
fn destination(row: &Row) -> String {
    let to = &row.destination;
    let name = match to.service.as_deref().or(to.account.as_deref()) {
        Some(name) => qualified(&to.namespace, name),
        None => "outside".to_owned(),
    };
    let port = match to.port {
        0 => String::new(),
        port => format!(":{port}"),
    };
    let protocol = match row.protocol {
        FlowProtocol::Tcp => String::new(),
        other => format!(" {}", other.as_str()),
    };
    let teller = match row.reporter {
        Side::Device => " by device",
        Side::Source | Side::Destination | Side::Proxy => "",
    };
    printable(&format!("{name}{port}{protocol}{teller}"))
}

fn rate(per_second: f64) -> String {
    format!("{per_second:.1}")
}

fn time(us: Option<u64>) -> String {
    us.map_or_else(|| "-".to_owned(), micros)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_adapters::{EdgeDelta, Peer};

    use super::*;
    use crate::edges::sample::tests::{delta, view};

    fn sample() -> Sample {
        let denied = EdgeDelta {
            verdict: FlowVerdict::Deny,
            denied: 5,
            ..delta("stranger", 0)
        };
        Sample::between(
            &view(10, &[delta("a", 4), delta("b", 1)]),
            &view(12, &[delta("a", 6), delta("b", 101), denied]),
        )
    }

    #[test]
    fn the_edge_that_carries_most_stands_first() {
        let expected = "\
SOURCE            DESTINATION     VERDICT  CONN/S  OPEN  OUT/S      IN/S  CONNECT P50     P99  RTT P50     P99  RETRANS  RESETS  DENIED
default/b         default/web:80  allow      50.0   101  500 B  97.7 KiB        96 µs  128 µs    96 µs  128 µs        0       0       0
default/a         default/web:80  allow       1.0     6   10 B   2.0 KiB        96 µs  128 µs    96 µs  128 µs        0       0       0
default/stranger  default/web:80  DENY        0.0     0    0 B       0 B            -       -        -       -        0       0       5";
        assert_eq!(View::new(false).lines(&sample(), None).join("\n"), expected);
    }

    #[test]
    fn what_a_device_tells_says_so() {
        let packets = EdgeDelta {
            reporter: Side::Device,
            protocol: FlowProtocol::Udp,
            ..delta("a", 4)
        };
        let look = view(1, &[packets]);
        let lines = View::new(false).lines(&Sample::between(&look, &look), None);
        let cells: Vec<&str> = lines[1]
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .collect();
        assert_eq!(
            cells[..5],
            ["default/a", "default/web:80 udp by device", "allow", "0.0", "0"]
        );
    }

    #[test]
    fn keys_choose_the_column_and_the_direction() {
        let first = |view: &View| view.lines(&sample(), None)[1].split(' ').next().map(str::to_owned);
        let mut view = View::new(false);
        view.sort_by_next(-(FIRST_SORT.cast_signed()));
        assert_eq!(first(&view).as_deref(), Some("default/a"), "names ascend");
        view.reverse();
        assert_eq!(first(&view).as_deref(), Some("default/stranger"));
        view.sort_by_next(-1);
        assert_eq!(view.title(&sample(), false).matches("sorted by DENIED").count(), 1);
        assert_eq!(
            first(&view).as_deref(),
            Some("default/stranger"),
            "around the end, largest first"
        );
    }

    #[test]
    fn a_name_cannot_paint_the_terminal() {
        let mut odd = delta("", 1);
        odd.source = Arc::new(Peer {
            namespace: "\x1b[2J".into(),
            service: None,
            account: "a\nb".into(),
        });
        let look = view(1, &[odd]);
        for line in View::new(false).lines(&Sample::between(&look, &look), Some(400)) {
            assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
        }
    }

    #[test]
    fn lines_fit_the_screen() {
        for line in View::new(false).lines(&sample(), Some(20)) {
            assert!(line.chars().count() <= 20, "{line}");
        }
    }
}
