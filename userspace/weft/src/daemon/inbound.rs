//! The accepting side in the daemon's own network namespace and on named devices.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};
use weft_dataplane::{Dataplane, DataplaneError, OWN_NETNS, has_tcx, netns_cookie};
use weft_proxy::{DEFAULT_INBOUND_PORT, NetnsListeners, ProxyError};

use super::{
    engine::Engine,
    hand_over::{Gate, HandedOver},
    keepers::goes_on,
};
use crate::config::DaemonConfig;

const ADDRESSES: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_INBOUND_PORT),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), DEFAULT_INBOUND_PORT),
];

/// How long a device that is made again may be without our programs. A look costs a few system calls for each.
const LOOK: Duration = Duration::from_millis(500);
/// One that cannot be captured is tried again every so many looks: the programs are loaded for each try.
const AGAIN_EVERY: u64 = 20;

/// Inbound listeners, on loopback: nobody dials them, the kernel hands connections to them.
///
/// # Errors
///
/// The port is taken.
pub fn listen(workers: usize) -> Result<NetnsListeners, ProxyError> {
    NetnsListeners::open(&ADDRESSES, workers)
}

/// As [`listen`], where programs on devices hand connections over too: what they can do about shared ports came with TCX.
///
/// # Errors
///
/// The port is taken.
pub fn listen_beside_devices(workers: usize) -> Result<NetnsListeners, ProxyError> {
    if has_tcx().unwrap_or(false) {
        listen(workers)
    } else {
        NetnsListeners::open_single(&ADDRESSES, workers)
    }
}

/// Attaches what the operator named, and detaches what an earlier daemon was told and this one is not.
///
/// # Errors
///
/// The kernel refused it, or there is no such device.
pub fn capture(
    config: &DaemonConfig,
    dataplane: &Dataplane,
    listeners: Option<&NetnsListeners>,
) -> Result<(), DataplaneError> {
    let os = |what: &'static str| move |source| DataplaneError::Os { what, source };
    let cookie = cookie()?;
    dataplane.release_devices(&config.devices)?;
    for device in &config.devices {
        dataplane.capture_device(device, cookie)?;
    }
    let Some(listeners) = listeners else {
        return dataplane.release_netns(OWN_NETNS);
    };
    for (address, listener) in listeners.first() {
        dataplane.listen_inbound(cookie, address.is_ipv6(), listener)?;
    }
    let netns = File::open("/proc/thread-self/ns/net").map_err(os("open the network namespace"))?;
    dataplane.capture_netns(OWN_NETNS, netns.as_fd(), cookie)
}

/// Captures devices again that were removed and made again (a tunnel, a card that was plugged in again), until it is dropped.
pub async fn follow(devices: Vec<String>, engine: Arc<Engine>, gate: Arc<Gate>) {
    if devices.is_empty() {
        return;
    }
    // What was said already of a device that cannot be captured.
    let watched = Arc::new((devices, Mutex::new(BTreeMap::<String, String>::new())));
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for tick in 0_u64.. {
        ticks.tick().await;
        let (watched, engine, gate) = (Arc::clone(&watched), Arc::clone(&engine), Arc::clone(&gate));
        let looked = tokio::task::spawn_blocking(move || {
            let (devices, told) = &*watched;
            for device in devices
                .iter()
                .filter(|device| engine.dataplane.device_is_another(device))
            {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                if told.contains_key(device) && !tick.is_multiple_of(AGAIN_EVERY) {
                    continue;
                }
                let _pass = gate.enter()?;
                match cookie().and_then(|cookie| engine.dataplane.capture_device(device, cookie)) {
                    Ok(()) => {
                        told.remove(device);
                        tracing::info!(device, "the device was made again, and is captured again");
                    }
                    Err(error) => {
                        let why = format!("{:#}", anyhow::Error::from(error));
                        if told.get(device) != Some(&why) {
                            tracing::error!(device, error = why, "the device was made again, and is not captured");
                            told.insert(device.clone(), why);
                        }
                    }
                }
            }
            Ok::<_, HandedOver>(())
        });
        if !goes_on(looked.await) {
            return;
        }
    }
}

fn cookie() -> Result<u64, DataplaneError> {
    netns_cookie().map_err(|source| DataplaneError::Os {
        what: "ask for the network namespace's cookie",
        source,
    })
}
