//! What is written for the daemon of a mesh of many services.

use std::net::Ipv4Addr;

use anyhow::Result;
use vm_test::{
    Lab,
    resources::{DENY, allow, selecting_service, tcp_route, workload},
};

use super::moving::{self, How};

/// Objects of a file; they are read a file at a time.
const A_FILE: usize = 1000;
/// Where endpoints listen, or would.
pub const TARGET_PORT: u16 = 8080;
/// Of the first endpoint; the others' follow.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);

/// Services of a mesh beside those whose endpoints move, and endpoints of each.
pub struct Size {
    pub services: usize,
    pub endpoints: usize,
}

// === impl Size ===

impl Size {
    /// Name of each service, and addresses of its endpoints.
    pub fn services(&self) -> impl Iterator<Item = (String, Vec<Ipv4Addr>)> {
        let endpoints = self.endpoints;
        (0..self.services).map(move |service| {
            let numbers = service * endpoints..(service + 1) * endpoints;
            (format!("svc-{service}"), numbers.map(address).collect())
        })
    }
}

/// Address of endpoint `number` of all.
fn address(number: usize) -> Ipv4Addr {
    // Of 100,000: far from the end of any count.
    let number = u32::try_from(number).unwrap_or_default();
    Ipv4Addr::from_bits(FIRST.to_bits() + number)
}

/// Services and workloads in files of [`A_FILE`] objects each, and who may reach those whose endpoints move.
pub fn write(lab: &Lab, size: &Size) -> Result<()> {
    let route = tcp_route("moving", &[moving::TARGET_PORT]);
    let friend = allow("friend", "friend", moving::ACCOUNT, ("TCPRoute", "moving"));
    let moving: String = [How::File, How::Apply].map(How::service_object).concat();
    lab.resource("mesh.yaml", &format!("{DENY}{route}{friend}{moving}"))?;
    let mut objects = Vec::new();
    for (name, addresses) in size.services() {
        objects.push(selecting_service(&name, (80, TARGET_PORT), "http"));
        for (number, address) in addresses.into_iter().enumerate() {
            objects.push(workload(&format!("{name}-{number}"), &name, &name, &[address.into()]));
        }
    }
    for (number, file) in objects.chunks(A_FILE).enumerate() {
        lab.resource(&format!("mesh-{number}.yaml"), &file.concat())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_has_an_address_of_its_own() {
        let size = Size {
            services: 10_000,
            endpoints: 10,
        };
        let all: Vec<Ipv4Addr> = size.services().flat_map(|(_, addresses)| addresses).collect();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(all.len(), 100_000);
        assert_eq!(all.last(), Some(&Ipv4Addr::new(10, 129, 134, 159)));
    }
}
