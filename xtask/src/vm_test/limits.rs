//! What is allowed and what is chosen: one table each.

/// Most instructions that the verifier may walk through for a program, in any kernel of the matrix: 1.5 times what the
/// more expensive kernel counted when the line was written. A program near the kernel's own limit (a million) is one
/// innocent change away from being refused; one that doubled says that a loop or a branch is no longer bounded as meant.
pub const BUDGETS: &[(&str, u32)] = &[
    ("weft_connect4", 59_000),
    ("weft_connect6", 90_000),
    ("weft_getsockopt", 1_100),
    ("weft_getpeer4", 600),
    ("weft_getpeer6", 540),
    ("weft_postbind4", 4_000),
    ("weft_postbind6", 4_000),
    ("weft_recvmsg4", 570),
    ("weft_recvmsg6", 610),
    ("weft_sendmsg4", 8_900),
    ("weft_sendmsg6", 69_000),
    ("weft_sk_lookup", 97_000),
    ("weft_sk_msg", 19_000),
    ("weft_setsockopt", 48),
    ("weft_skb_in", 240_000),
    ("weft_skb_out", 110_000),
    ("weft_sockcreate", 1_600),
    ("weft_sockops", 143_000),
    ("weft_sockrel", 6_000),
    ("weft_tc_in", 236_000),
    ("weft_tc_out", 100_000),
];

/// Test binaries that `--quick` runs in the oldest kernel, most telling first: what depends on the kernel. Left to the
/// full run: what is mostly about resources, files and command lines.
pub const QUICK: &[&str] = &["shown_by", "capture", "deny", "transfer"];
