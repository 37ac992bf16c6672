//! What the torture suite found in kernels. Written by `cargo xtask vm-test --torture --write`.

use crate::default_acceleration::Record;

/// One run a kernel.
pub const RECORDS: &[Record] = &[
    Record {
        series: "6.1",
        version: "6.1.192-3",
        wrong: &["blocking-read"],
    },
    Record {
        series: "6.12",
        version: "6.12.95-1~bpo12+1",
        wrong: &["blocking-read", "unread"],
    },
];
