//! The accepting side in the daemon's own network namespace and on named devices.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
};

use weft_dataplane::{Dataplane, DataplaneError, has_tcx, netns_cookie};
use weft_proxy::{DEFAULT_INBOUND_PORT, NetnsListeners, ProxyError};

use crate::config::DaemonConfig;

/// Name of the daemon's own namespace among those that are captured.
const OWN: &str = "own";
const ADDRESSES: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_INBOUND_PORT),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), DEFAULT_INBOUND_PORT),
];

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
    let cookie = netns_cookie().map_err(os("ask for the network namespace's cookie"))?;
    dataplane.release_devices(&config.devices)?;
    for device in &config.devices {
        dataplane.capture_device(device, cookie)?;
    }
    let Some(listeners) = listeners else {
        return dataplane.release_netns(OWN);
    };
    for (address, listener) in listeners.first() {
        dataplane.listen_inbound(cookie, address.is_ipv6(), listener)?;
    }
    let netns = File::open("/proc/thread-self/ns/net").map_err(os("open the network namespace"))?;
    dataplane.capture_netns(OWN, netns.as_fd(), cookie)
}
