//! What the torture suite found in kernels. Written by `cargo xtask vm-test --torture --write`.

use crate::default_acceleration::Record;

/// One run a kernel.
pub const RECORDS: &[Record] = &[];
