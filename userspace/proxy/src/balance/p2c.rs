//! Power of two choices: near the best possible spread at the cost of two look-ups (Mitzenmacher 2001).

use std::{net::SocketAddr, sync::Arc};

use weft_policy::Endpoint;

use super::{Balancer, Loads, Random, candidates};

/// Of two random endpoints the one with fewer in flight.
#[derive(Debug, Clone, Copy, Default)]
pub struct PowerOfTwo;

// === impl PowerOfTwo ===

impl Balancer for PowerOfTwo {
    fn pick(&self, endpoints: &[Arc<Endpoint>], skip: &[SocketAddr], loads: &Loads, random: &Random) -> Option<usize> {
        if skip.is_empty() {
            return better_of_two(endpoints, endpoints.len(), |nth| nth, loads, random);
        }
        let left: Vec<usize> = candidates(endpoints, skip).collect();
        better_of_two(endpoints, left.len(), |nth| left[nth], loads, random)
    }
}

/// `index_of` maps `0..count` to indexes of `endpoints`.
fn better_of_two(
    endpoints: &[Arc<Endpoint>],
    count: usize,
    index_of: impl Fn(usize) -> usize,
    loads: &Loads,
    random: &Random,
) -> Option<usize> {
    match count {
        0 => None,
        1 => Some(index_of(0)),
        _ => {
            let first = random.below(count as u64) as usize;
            // One of the others, each as likely.
            let second = (first + 1 + random.below(count as u64 - 1) as usize) % count;
            let (first, second) = (index_of(first), index_of(second));
            let busier = loads.get(endpoints[first].address) > loads.get(endpoints[second].address);
            Some(if busier { second } else { first })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::tests::endpoints;

    #[test]
    fn the_less_busy_of_two_is_picked() {
        let all = endpoints(2);
        let (loads, random) = (Loads::default(), Random::seeded());
        let _busy = loads.begin(all[0].address);
        for _ in 0..50 {
            assert_eq!(PowerOfTwo.pick(&all, &[], &loads, &random), Some(1));
        }
    }

    #[test]
    fn equal_endpoints_get_equal_shares() {
        let all = endpoints(4);
        let (loads, random) = (Loads::default(), Random::seeded());
        let mut picked = [0u32; 4];
        for _ in 0..4000 {
            picked[PowerOfTwo.pick(&all, &[], &loads, &random).unwrap()] += 1;
        }
        assert!(picked.iter().all(|&count| (800..1200).contains(&count)), "{picked:?}");
    }
}
