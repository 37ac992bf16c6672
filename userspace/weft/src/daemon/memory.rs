//! Memory that the daemon gives back: code and data that only its start needed, and what a wave of connections left free.

use std::{sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::interval};
use weft_proxy::ProxyMetrics;

/// Between two looks at how many connections there are.
const LOOK: Duration = Duration::from_secs(30);

/// So many connections at a time are a wave; over when half of them are gone.
const WAVE: i64 = 1_000;

/// Gives back now, and after each wave of connections.
pub async fn follow(metrics: Arc<ProxyMetrics>) {
    give_back().await;
    let mut looks = interval(LOOK);
    let mut most = 0;
    loop {
        looks.tick().await;
        if is_over(&mut most, metrics.connections_active.get()) {
            give_back().await;
        }
    }
}

/// Whether a wave of connections is over; `most`: how many there were at a time.
fn is_over(most: &mut i64, now: i64) -> bool {
    *most = now.max(*most);
    let over = *most >= WAVE && now <= *most / 2;
    if over {
        *most = now;
    }
    over
}

async fn give_back() {
    // A runtime that ends needs none of it.
    if let Ok(Err(error)) = spawn_blocking(weft_dataplane::give_memory_back).await {
        tracing::debug!(%error, "memory is not given back");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_is_over_once_when_half_of_it_is_gone() {
        let mut most = 0;
        let looks = [10, 900, 0, 1_500, 4_000, 2_100, 2_000, 1_900, 900, 800, 5];
        let over: Vec<i64> = looks.into_iter().filter(|now| is_over(&mut most, *now)).collect();
        assert_eq!(over, [2_000, 900]);
    }
}
