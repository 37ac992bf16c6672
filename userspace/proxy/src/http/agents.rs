//! What clients call themselves (`User-Agent`): a few words, which come again with each request and are told with each.

use std::{cell::RefCell, sync::Arc};

use weft_adapters::{MAX_TOLD, told};

use crate::limits::AGENTS_KEPT;

/// Those that a worker has heard last.
#[derive(Default)]
pub(crate) struct Agents(RefCell<Heard>);

#[derive(Default)]
struct Heard {
    /// [`AGENTS_KEPT`] at most.
    agents: Vec<Arc<str>>,
    /// Which one makes room for the next.
    oldest: usize,
}

// === impl Agents ===

impl Agents {
    /// `value` as text, shared with whoever was told of the same.
    pub(crate) fn of(&self, value: &[u8]) -> Arc<str> {
        if value.len() > MAX_TOLD {
            return told(&String::from_utf8_lossy(value)).into();
        }
        let Heard { agents, oldest } = &mut *self.0.borrow_mut();
        if let Some(agent) = agents.iter().find(|agent| agent.as_bytes() == value) {
            return Arc::clone(agent);
        }
        let agent: Arc<str> = String::from_utf8_lossy(value).into();
        match agents.get_mut(*oldest) {
            Some(place) => *place = Arc::clone(&agent),
            None => agents.push(Arc::clone(&agent)),
        }
        *oldest = (*oldest + 1) % AGENTS_KEPT;
        agent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_heard_before_is_shared_and_no_more_are_kept_than_may_be() {
        let agents = Agents::default();
        let curl = agents.of(b"curl/8");
        assert!(Arc::ptr_eq(&curl, &agents.of(b"curl/8")));
        assert_eq!(&*agents.of(b"a\xff"), "a\u{fffd}");
        for number in 0..3 * AGENTS_KEPT {
            let name = format!("agent/{number}");
            assert_eq!(&*agents.of(name.as_bytes()), name);
        }
        assert_eq!(agents.0.borrow().agents.len(), AGENTS_KEPT);
        assert_eq!(Arc::strong_count(&curl), 1, "it has made room");
        assert_eq!(agents.of(b"curl/8"), curl);
    }
}
