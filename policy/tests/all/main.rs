//! Everything about `weft-policy` that is tested from outside, in one binary.

mod cases;
mod examples;
mod garbage;
mod judge;
mod network_judge;
mod patch;
mod support;
