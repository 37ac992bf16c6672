//! The one engine of the process, and the clock that ends callbacks which take too long.
//!
//! Time is counted in CPU time of the worker's thread, so that a busy machine harms no filter. A callback costs no clock
//! for that: a thread moves wasmtime's epoch every [`TICK`] while instances exist, the first tick that finds a callback
//! running notes the thread's CPU time, and later ticks compare. So a callback is ended after its deadline, and
//! at the latest two ticks after it.

use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use wasmtime::{Config, Engine, StoreContextMut, UpdateDeadline};

use super::{
    error::{Stop, WasmError},
    host::Host,
};

/// How exact deadlines are. Shorter: more wake-ups of an idle process that holds filters.
const TICK: Duration = Duration::from_millis(10);

/// Native stack that a module's calls may take, in bytes: a quarter of a worker thread's.
const MAX_STACK: usize = 512 << 10;

/// Keeps the clock running.
#[derive(Debug)]
pub(super) struct Ticking(());

static INSTANCES: Mutex<usize> = Mutex::new(0);

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
fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Called when a tick finds a callback running.
pub(super) fn on_tick(mut context: StoreContextMut<'_, Host>) -> wasmtime::Result<UpdateDeadline> {
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

// === impl Ticking ===

impl Ticking {
    /// Starts the clock if it stands.
    ///
    /// # Errors
    /// No thread can be made.
    pub(super) fn start(engine: &'static Engine) -> Result<Self, WasmError> {
        let mut instances = lock();
        if *instances == 0 {
            thread::Builder::new()
                .name("weft-wasm-clock".into())
                .spawn(move || {
                    loop {
                        thread::sleep(TICK);
                        engine.increment_epoch();
                        let mut instances = lock();
                        // One is the clock's own: see below.
                        if *instances == 1 {
                            *instances = 0;
                            return;
                        }
                    }
                })
                .map_err(|source| WasmError::Engine {
                    reason: format!("a thread for its clock: {source}"),
                })?;
            // The clock counts itself, so that whoever comes while it stops does not start a second one.
            *instances = 1;
        }
        *instances += 1;
        Ok(Self(()))
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        *lock() -= 1;
    }
}

fn lock() -> MutexGuard<'static, usize> {
    INSTANCES.lock().unwrap_or_else(PoisonError::into_inner)
}
