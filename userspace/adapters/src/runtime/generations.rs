//! Generations of one WebAssembly adapter, and which of them a request meets.
//!
//! A request draws its generation by weight when its filter is made, and keeps it to its end.

use std::{rc::Rc, sync::Arc};

use weft_policy::WasmProtocols;

use crate::{
    stream::{FilterFactory, StreamFilter, StreamInfo, TcpFilter},
    wasm::{Digest, Plugin, PluginConfig, Stats},
};

/// All generations of an adapter.
pub(super) struct Generations {
    name: String,
    protocols: WasmProtocols,
    /// It refuses what it cannot look at.
    closed: bool,
    all: Vec<Generation>,
}

/// One of them, in the list that an object gives.
pub(super) struct Generation {
    pub name: String,
    pub weight: u32,
    /// Or why it does not run.
    pub made: Result<Arc<Made>, String>,
}

/// A plugin and what it was made of. Equal ones are the same generation still, whatever its name and weight are.
pub(super) struct Made {
    pub of: Ingredients,
    pub plugin: Plugin,
}

/// What a plugin is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ingredients {
    pub module: Digest,
    pub config: PluginConfig,
}

/// One generation of a WebAssembly adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationState {
    pub name: String,
    /// Of the module; `None`: it could not be read.
    pub digest: Option<Digest>,
    /// Its share of the requests, relative to those of the others.
    pub weight: u32,
    /// Why it does not run.
    pub problem: Option<String>,
    pub stats: Stats,
}

// === impl Generations ===

impl Generations {
    pub fn new(name: &str, protocols: WasmProtocols, closed: bool, all: Vec<Generation>) -> Self {
        Self {
            name: name.to_owned(),
            protocols,
            closed,
            all,
        }
    }

    /// What was made of these ingredients already.
    pub fn made_of(&self, ingredients: &Ingredients) -> Option<Arc<Made>> {
        let made = self.all.iter().filter_map(|generation| generation.made.as_ref().ok());
        made.into_iter().find(|made| made.of == *ingredients).cloned()
    }

    pub fn states(&self) -> Vec<GenerationState> {
        self.all.iter().map(Generation::state).collect()
    }

    fn drawn(&self, id: u64) -> Option<&Plugin> {
        let weight = |generation: &Generation| match generation.made {
            Ok(_) => generation.weight,
            Err(_) => 0,
        };
        let drawn = draw(self.all.iter().map(weight), id)?;
        self.all[drawn].made.as_ref().ok().map(|made| &made.plugin)
    }
}

impl FilterFactory for Generations {
    fn name(&self) -> &str {
        &self.name
    }

    fn requires_http(&self) -> bool {
        self.closed && !self.protocols.tcp
    }

    fn stream(&self, info: &Rc<StreamInfo>) -> Option<Box<dyn StreamFilter>> {
        if !self.protocols.http {
            return None;
        }
        self.drawn(info.id)?.stream(info)
    }

    fn tcp(&self, info: &Rc<StreamInfo>) -> Option<Box<dyn TcpFilter>> {
        if !self.protocols.tcp {
            return None;
        }
        self.drawn(info.id)?.tcp(info)
    }
}

// === impl Generation ===

impl Generation {
    fn state(&self) -> GenerationState {
        let made = self.made.as_ref();
        GenerationState {
            name: self.name.clone(),
            digest: made.ok().map(|made| made.of.module),
            weight: self.weight,
            problem: made.err().cloned(),
            stats: made.map_or(Stats::default(), |made| made.plugin.stats()),
        }
    }
}

/// Which of these weights the number `id` draws; `None`: all are zero.
fn draw(weights: impl Iterator<Item = u32> + Clone, id: u64) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    let mut drawn = scatter(id).checked_rem(total)?;
    weights.map(u64::from).position(|weight| {
        let here = drawn < weight;
        drawn = drawn.saturating_sub(weight);
        here
    })
}

/// Numbers of streams are given out in turns; what draws by them must not see turns (the finish of splitmix64).
fn scatter(id: u64) -> u64 {
    let mixed = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_drawn_by_weight() {
        let drawn = |weights: &[u32]| {
            let mut counts = vec![0_u32; weights.len()];
            for id in 0..10_000 {
                counts[draw(weights.iter().copied(), id).unwrap()] += 1;
            }
            counts
        };
        assert_eq!(drawn(&[0, 1]), [0, 10_000]);
        let counts = drawn(&[90, 10]);
        // Six standard deviations of the binomial distribution are 180.
        assert!((820..=1180).contains(&counts[1]), "{counts:?}");
        assert_eq!(draw([0, 0].into_iter(), 7), None);
        assert_eq!(draw([u32::MAX, u32::MAX].into_iter(), 7), draw([1, 1].into_iter(), 7));
    }
}
