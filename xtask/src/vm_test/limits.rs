//! What is allowed and what is chosen: one table each.

/// Most instructions that the verifier may walk through for a program, in any kernel of the matrix: 1.5 times what the
/// more expensive kernel counted (the table in vm-test/README.md) when the line was written, rounded up to two digits. A
/// program near the kernel's own limit (a million) is one innocent change away from being refused; one that doubled says
/// that a loop or a branch is no longer bounded as meant.
pub const BUDGETS: &[(&str, u32)] = &[
    ("weft_connect4", 47_000),
    ("weft_connect6", 49_000),
    ("weft_getsockopt", 1_100),
    ("weft_getpeer4", 610),
    ("weft_getpeer6", 540),
    ("weft_postbind4", 5_300),
    ("weft_postbind6", 5_300),
    ("weft_recvmsg4", 580),
    ("weft_recvmsg6", 620),
    ("weft_sendmsg4", 9_000),
    ("weft_sendmsg6", 70_000),
    ("weft_sk_lookup", 73_000),
    ("weft_sk_msg", 22_000),
    ("weft_setsockopt", 230),
    ("weft_skb_in", 87_000),
    ("weft_skb_out", 120_000),
    ("weft_sockcreate", 2_000),
    ("weft_sockops", 150_000),
    ("weft_sockrel", 2_200),
    ("weft_tc_in", 240_000),
    ("weft_tc_out", 140_000),
];

/// Test binaries that `--quick` runs in the oldest kernel, most telling first: what depends on the kernel. Left to the
/// full run: what is mostly about resources, files and command lines.
pub const QUICK: &[&str] = &["shown_by", "capture", "deny", "transfer"];
