//! The kernel side of weft: one file a hook below `hooks/`, what they share beside it. See `README.md`.
#![no_std]
#![no_main]
#![allow(
    internal_features,
    reason = "atomic additions on map values have no stable form on this target"
)]
#![feature(core_intrinsics)]

mod asked;
mod capture;
mod context;
mod errs;
mod external;
mod flows;
mod hooks;
mod inbound;
mod listening;
mod maps;
mod packet;
mod progress;
mod telemetry;
mod verdict;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: nothing in here can panic after optimisation, or the verifier would refuse the endless loop.
    loop {}
}

// The kernel lets GPL-only helpers (sockmap, storage) be called by programs that say so.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";
