//! Memory that the daemon gives back: code and data that only its start needed, and what publications and a wave of connections
//! left free.

use std::{fs, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use weft_proxy::ProxyMetrics;

/// Between two looks at how many connections there are.
const LOOK: Duration = Duration::from_secs(30);

/// So many connections at a time are a wave; over when half of them are gone.
const WAVE: i64 = 1_000;

/// So long after a publication without another one it is over: the next one would ask for the memory again.
const QUIET: Duration = Duration::from_secs(2);

/// So many bytes more than after the last time are worth the milliseconds in which other threads wait.
const GROWN: u64 = 32 << 20;

/// Gives back now, and after each wave of connections and of publications, of which `published` tells. Without any it wakes every
/// [`LOOK`] and no more.
pub async fn follow(metrics: Arc<ProxyMetrics>, published: watch::Receiver<()>) {
    look_after(|| metrics.connections_active.get(), resident, give_back, published).await;
}

async fn look_after<F: Future<Output = ()>>(
    connections: impl Fn() -> i64,
    resident: impl Fn() -> u64,
    give_back: impl Fn() -> F,
    mut published: watch::Receiver<()>,
) {
    published.mark_unchanged();
    give_back().await;
    let mut least = resident();
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut most = 0;
    let mut quiet_at = None;
    let mut publishes = true;
    loop {
        let is_worth_it = tokio::select! {
            _ = looks.tick() => is_over(&mut most, connections()),
            told = published.changed(), if publishes => {
                publishes = told.is_ok();
                quiet_at = Some(Instant::now() + QUIET);
                false
            }
            () = sleep_until(quiet_at.unwrap_or_else(Instant::now)), if quiet_at.is_some() => {
                quiet_at = None;
                let now = resident();
                least = least.min(now);
                now - least > GROWN
            }
        };
        if is_worth_it {
            give_back().await;
            least = resident();
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

/// Bytes of this process that are in memory; 0 where nobody knows.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    of_status(&status).unwrap_or_default()
}

/// `VmRSS:     12345 kB`.
fn of_status(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

async fn give_back() {
    // A runtime that ends needs none of it.
    if let Ok(Err(error)) = spawn_blocking(weft_dataplane::give_memory_back).await {
        tracing::debug!(%error, "memory is not given back");
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future};

    use tokio::time::sleep;

    use super::*;

    #[test]
    fn a_wave_is_over_once_when_half_of_it_is_gone() {
        let mut most = 0;
        let looks = [10, 900, 0, 1_500, 4_000, 2_100, 2_000, 1_900, 900, 800, 5];
        let over: Vec<i64> = looks.into_iter().filter(|now| is_over(&mut most, *now)).collect();
        assert_eq!(over, [2_000, 900]);
    }

    #[test]
    fn what_is_in_memory_is_read() {
        assert_eq!(
            of_status("VmHWM:\t9 kB\nVmRSS:\t   1024 kB\nRssAnon:\t1 kB\n"),
            Some(1 << 20)
        );
        assert_eq!(of_status("Name:\tweft\n"), None);
        assert!(resident() > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_publications_left_is_given_back_once_they_pause() {
        const MIB: u64 = 1 << 20;
        let (resident, given) = (Cell::new(100 * MIB), Cell::new(0));
        let (publish, published) = watch::channel(());
        let give_back = || {
            given.set(given.get() + 1);
            future::ready(())
        };
        let looking = look_after(|| 0, || resident.get(), give_back, published);
        let told = async {
            sleep(QUIET).await;
            assert_eq!(given.get(), 1, "at the start");
            // A little more is left alone.
            resident.set(resident.get() + GROWN);
            publish.send_replace(());
            sleep(2 * QUIET).await;
            assert_eq!(given.get(), 1);
            // While there are more and more, it would be asked for again.
            resident.set(resident.get() + 1);
            for _ in 0..10 {
                publish.send_replace(());
                sleep(QUIET / 2).await;
                assert_eq!(given.get(), 1);
            }
            sleep(QUIET).await;
            assert_eq!(given.get(), 2);
            // What stays after that is in use.
            publish.send_replace(());
            sleep(2 * QUIET).await;
            assert_eq!(given.get(), 2);
            // Free by itself, and grown again.
            resident.set(50 * MIB);
            publish.send_replace(());
            sleep(2 * QUIET).await;
            resident.set(50 * MIB + GROWN + 1);
            sleep(2 * LOOK).await;
            assert_eq!(given.get(), 2, "nothing was published");
            publish.send_replace(());
            sleep(2 * QUIET).await;
            assert_eq!(given.get(), 3);
        };
        tokio::select! {
            () = looking => {}
            () = told => {}
        }
    }
}
