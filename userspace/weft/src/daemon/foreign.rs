//! Foreign proxies come and go by themselves.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::{
    engine::Engine,
    hand_over::{Gate, HandedOver},
    keepers::goes_on,
};

/// How long the services of a foreign proxy that was restarted may be without it. A look costs a `stat` for each.
const LOOK: Duration = Duration::from_millis(250);

/// Publishes again whenever the cgroup of a foreign proxy came, went or was made again.
pub async fn follow(engine: Arc<Engine>, gate: Arc<Gate>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (engine, gate) = (Arc::clone(&engine), Arc::clone(&gate));
        let looked = tokio::task::spawn_blocking(move || {
            if engine.dataplane.foreign_proxies_moved() {
                let _pass = gate.enter()?;
                // A failure is logged and kept for `weft status`; `netns::follow` tries again.
                let _ = engine.publish();
            }
            Ok::<_, HandedOver>(())
        });
        if !goes_on(looked.await) {
            return;
        }
    }
}
