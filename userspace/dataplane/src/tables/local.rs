//! `weft_local`: the addresses of this machine beyond loopback.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use aya::maps::{HashMap, Map, MapData, MapError};
use nix::ifaddrs::getifaddrs;
use weft_abi::Addr;

use super::{services::addr, telemetry::ip_addr};
use crate::error::DataplaneError;

/// Brings the pinned table in step with the interfaces.
pub fn refresh(pin: &Path) -> Result<(), DataplaneError> {
    let fail = |source: MapError| DataplaneError::Map {
        map: "weft_local",
        what: "write",
        source: Box::new(source),
    };
    let interfaces = getifaddrs().map_err(|errno| DataplaneError::Os {
        what: "read this machine's addresses",
        source: errno.into(),
    })?;
    let wanted: BTreeSet<IpAddr> = interfaces
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(|ip| !ip.is_loopback())
        .collect();
    let map = Map::HashMap(MapData::from_pin(pin).map_err(fail)?);
    let mut map: HashMap<MapData, Addr, u32> = map.try_into().map_err(fail)?;
    let present: BTreeSet<IpAddr> = map.keys().filter_map(Result::ok).map(|key| ip_addr(&key)).collect();
    for gone in present.difference(&wanted) {
        // Gone already is as good.
        let _ = map.remove(&addr(*gone));
    }
    for new in wanted.difference(&present) {
        map.insert(addr(*new), 1, 0).map_err(fail)?;
    }
    Ok(())
}
