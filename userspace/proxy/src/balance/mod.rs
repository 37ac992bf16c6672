//! Which endpoint of a service port gets the next request or connection. A strategy is a [`Balancer`]; each worker
//! has its own and counts only its own load, so nothing is shared.

mod load;
mod p2c;
mod random;
mod round_robin;

use std::{net::SocketAddr, sync::Arc};

use weft_policy::Endpoint;

pub use load::{InFlight, Load, Loads};
pub use p2c::PowerOfTwo;
pub use random::Random;
pub use round_robin::RoundRobin;

/// A strategy. Called for every request: no allocation where nothing is skipped.
pub trait Balancer {
    /// Index of one of `endpoints` that is not in `skip` (tried and failed); `None`: there is none.
    fn pick(&self, endpoints: &[Arc<Endpoint>], skip: &[SocketAddr], loads: &Loads, random: &Random) -> Option<usize>;
}

/// The strategies there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// Of two random endpoints the one with fewer requests in flight.
    #[default]
    LeastInFlight,
    /// One after the other.
    RoundRobin,
}

// === impl Balance ===

impl Balance {
    /// The strategy itself, one for a worker.
    pub fn build(self) -> Box<dyn Balancer> {
        match self {
            Self::LeastInFlight => Box::new(PowerOfTwo),
            Self::RoundRobin => Box::<RoundRobin>::default(),
        }
    }
}

/// Indexes that may be picked.
fn candidates<'a>(endpoints: &'a [Arc<Endpoint>], skip: &'a [SocketAddr]) -> impl Iterator<Item = usize> + 'a {
    (0..endpoints.len()).filter(|&index| !skip.contains(&endpoints[index].address))
}

#[cfg(test)]
pub(crate) mod tests {
    use weft_policy::{Class, Identity};

    use super::*;

    pub(crate) fn endpoints(count: u16) -> Vec<Arc<Endpoint>> {
        (0..count)
            .map(|index| {
                Arc::new(Endpoint {
                    address: ([127, 0, 0, 1], 1000 + index).into(),
                    identity: Identity::FIRST,
                    class: Class::FIRST,
                    workload: format!("default/web/{index}").into(),
                })
            })
            .collect()
    }

    #[test]
    fn no_strategy_picks_what_was_skipped_or_does_not_exist() {
        let all = endpoints(3);
        let (loads, random) = (Loads::default(), Random::seeded());
        for balance in [Balance::LeastInFlight, Balance::RoundRobin] {
            let balancer = balance.build();
            let skip = [all[0].address, all[2].address];
            for _ in 0..20 {
                assert_eq!(balancer.pick(&all, &skip, &loads, &random), Some(1), "{balance:?}");
            }
            let skip: Vec<_> = all.iter().map(|endpoint| endpoint.address).collect();
            assert_eq!(balancer.pick(&all, &skip, &loads, &random), None, "{balance:?}");
            assert_eq!(balancer.pick(&[], &[], &loads, &random), None, "{balance:?}");
        }
    }
}
