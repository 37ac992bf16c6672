//! One endpoint after the other.

use std::{cell::Cell, net::SocketAddr, sync::Arc};

use weft_policy::Endpoint;

use super::{Balancer, Loads, Random};

/// One turn is shared by all services of a worker: a counter a service would have to be kept and forgotten, and over
/// many picks the shares are the same.
#[derive(Debug, Default)]
pub struct RoundRobin(Cell<usize>);

// === impl RoundRobin ===

impl Balancer for RoundRobin {
    fn pick(&self, endpoints: &[Arc<Endpoint>], skip: &[SocketAddr], _: &Loads, _: &Random) -> Option<usize> {
        let start = self.0.get();
        self.0.set(start.wrapping_add(1));
        let count = endpoints.len();
        (0..count)
            .map(|step| start.wrapping_add(step) % count)
            .find(|&index| !skip.contains(&endpoints[index].address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::tests::endpoints;

    #[test]
    fn endpoints_take_turns() {
        let all = endpoints(3);
        let (balancer, loads, random) = (RoundRobin::default(), Loads::default(), Random::seeded());
        let picks: Vec<_> = (0..6)
            .map(|_| balancer.pick(&all, &[], &loads, &random).unwrap())
            .collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
    }
}
