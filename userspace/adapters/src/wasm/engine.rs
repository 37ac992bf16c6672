//! The one engine of the process, and the clock that ends callbacks which take too long.
//!
//! Time is counted in CPU time of the worker's thread, so that a busy machine harms no filter. A callback costs no clock
//! for that: a thread moves wasmtime's epoch every [`super::clock::TICK`] while callbacks run, the first tick that finds one
//! running notes the thread's CPU time, and later ticks compare. So a callback is ended after its deadline, and
//! at the latest two ticks after it.

use std::{sync::OnceLock, time::Duration};

use nix::time::{ClockId, clock_gettime};
use wasmtime::{Config, Engine, StoreContextMut, UpdateDeadline};

use super::{
    clock::Clock,
    error::{Stop, WasmError},
    host::Host,
};

/// Native stack that a module's calls may take, in bytes: a quarter of a worker thread's.
const MAX_STACK: usize = 512 << 10;

/// Moves the engine's epoch.
pub(super) static CLOCK: Clock = Clock::new(|| {
    if let Ok(engine) = engine() {
        engine.increment_epoch();
    }
});

/// The engine: compiles for this machine, once a module, and checks the epoch at loops and calls.
pub(super) fn engine() -> Result<&'static Engine, WasmError> {
    static ENGINE: OnceLock<Result<Engine, String>> = OnceLock::new();
    let made = ENGINE.get_or_init(|| {
        let mut config = Config::new();
        config.epoch_interruption(true).max_wasm_stack(MAX_STACK);
        Engine::new(&config).map_err(|error| format!("{error:#}"))
    });
    made.as_ref()
        .map_err(|reason| WasmError::Engine { reason: reason.clone() })
}

/// CPU time of this thread.
pub(super) fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Called when a tick finds a callback running.
pub(super) fn on_tick(mut context: StoreContextMut<'_, Host>) -> wasmtime::Result<UpdateDeadline> {
    CLOCK.called();
    let host = context.data_mut();
    let now = thread_time();
    let began = *host.deadline.first_tick.get_or_insert(now);
    let limit = host.deadline.limit;
    if now.saturating_sub(began) < limit {
        return Ok(UpdateDeadline::Continue(1));
    }
    let limit_ms = limit.as_millis();
    Err(wasmtime::Error::new(Stop::Deadline { limit_ms }))
}
