use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use weft_adapters::Peer;

/// Cgroup id -> peer, of all that live and of the last `kept` that do not.
#[derive(Debug)]
pub struct Gone {
    peers: HashMap<u64, Arc<Peer>>,
    /// Cgroups of the dead, oldest first.
    order: VecDeque<u64>,
    kept: usize,
}

// === impl Gone ===

impl Gone {
    pub fn new(kept: usize) -> Self {
        Self {
            peers: HashMap::new(),
            order: VecDeque::new(),
            kept,
        }
    }

    pub fn live(&mut self, cgroup: u64, peer: Peer) {
        // The kernel may give the number of a removed cgroup to a new one: then it is not dead any more.
        self.order.retain(|gone| *gone != cgroup);
        self.peers.insert(cgroup, Arc::new(peer));
    }

    pub fn gone(&mut self, cgroup: u64) {
        self.order.push_back(cgroup);
        if self.order.len() > self.kept
            && let Some(oldest) = self.order.pop_front()
        {
            self.peers.remove(&oldest);
        }
    }

    pub fn peer(&self, cgroup: u64) -> Option<Arc<Peer>> {
        self.peers.get(&cgroup).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> Peer {
        Peer {
            namespace: "default".into(),
            service: Some(name.into()),
            account: name.into(),
        }
    }

    #[test]
    fn the_last_dead_are_known_by_name() {
        let mut gone = Gone::new(2);
        for cgroup in 1..=4 {
            gone.live(cgroup, peer("w"));
        }
        for cgroup in 1..=3 {
            gone.gone(cgroup);
        }
        let known: Vec<_> = (1..=4).map(|cgroup| gone.peer(cgroup).is_some()).collect();
        assert_eq!(known, [false, true, true, true]);
    }

    #[test]
    fn a_number_given_again_means_the_new_one() {
        let mut gone = Gone::new(1);
        gone.live(1, peer("old"));
        gone.gone(1);
        gone.live(1, peer("new"));
        gone.live(2, peer("other"));
        gone.gone(2);
        assert_eq!(gone.peer(1).map(|peer| peer.account.clone()), Some("new".into()));
    }
}
