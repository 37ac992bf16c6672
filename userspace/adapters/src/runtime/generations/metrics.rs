//! What generations did, for `/metrics`.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use super::{GenerationState, Set, defined};

/// The generations that there are; clones share them.
#[derive(Clone, Default)]
pub struct GenerationMetrics(Arc<Mutex<Vec<Weak<Set>>>>);

/// One family of series: name, what it says, unit, and its value.
type Row<T> = (&'static str, &'static str, Option<Unit>, fn(&GenerationState) -> T);

const COUNTERS: [Row<u64>; 11] = [
    (
        "streams",
        "Requests and connections that the generation saw",
        None,
        |state| state.stats.streams,
    ),
    (
        "answers",
        "Requests that it answered in the service's place, its denies among them",
        None,
        |state| state.stats.local_responses,
    ),
    ("traps", "Callbacks that trapped or took too long", None, |state| {
        state.stats.traps
    }),
    ("deadlines", "Callbacks that took too long", None, |state| {
        state.stats.deadlines
    }),
    (
        "memory_refusals",
        "Times that the module asked for more memory than it may have",
        None,
        |state| state.stats.memory_refusals,
    ),
    (
        "refused_calls",
        "Host calls, and calls to services, that the object does not allow",
        None,
        |state| state.stats.refused_calls,
    ),
    (
        "unfit_headers",
        "Changes of headers that were dropped, for no head can hold them",
        None,
        |state| state.stats.unfit_headers,
    ),
    (
        "failures",
        "Requests and connections that it failed on, so that another generation or the failure policy decided",
        None,
        |state| state.stats.failed_streams,
    ),
    ("callbacks", "Calls into the module", None, |state| {
        state.stats.callbacks
    }),
    ("calls", "Calls that it made to services", None, |state| {
        state.stats.call_outs
    }),
    (
        "disagreements",
        "Requests over which a shadow was of another mind than the generation in force",
        None,
        |state| state.disagreed,
    ),
];

const GAUGES: [Row<i64>; 4] = [
    (
        "weight",
        "Its share of the requests, relative to those of the others",
        None,
        |state| i64::from(state.weight),
    ),
    (
        "rolled_back",
        "1: it gets no requests, for it did worse than those before it, or somebody said so",
        None,
        |state| i64::from(state.rolled_back.is_some()),
    ),
    ("instances", "Instances of the module that live", None, |state| {
        i64::try_from(state.stats.instances).unwrap_or(i64::MAX)
    }),
    (
        "memory",
        "Linear memory of these instances",
        Some(Unit::Bytes),
        |state| i64::try_from(state.stats.memory).unwrap_or(i64::MAX),
    ),
];

// === impl GenerationMetrics ===

impl GenerationMetrics {
    pub(in crate::runtime) fn add(&self, set: &Arc<Set>) {
        let mut sets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sets.retain(|set| set.strong_count() > 0);
        // The newest one of an adapter is the one that counts: an older one drains.
        sets.retain(|other| other.upgrade().is_some_and(|other| other.name != set.name));
        sets.push(Arc::downgrade(set));
    }

    fn sets(&self) -> Vec<Arc<Set>> {
        let sets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sets.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Collector for GenerationMetrics {
    /// `weft_adapter_generation_*`, and what modules defined themselves.
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let sets = self.sets();
        defined::encode(&mut encoder, sets.iter().flat_map(|set| set.metrics()))?;
        let states = sets.iter().flat_map(|set| {
            let states = set.states().into_iter();
            states.map(|state| (set.name.clone(), state))
        });
        let states: Vec<(String, GenerationState)> = states.collect();
        if states.is_empty() {
            return Ok(());
        }
        for (name, help, unit, value) in &COUNTERS {
            family(
                &mut encoder,
                (name, help, unit.as_ref()),
                MetricType::Counter,
                &states,
                |state| Some(ConstCounter::new(value(state))),
            )?;
        }
        family(
            &mut encoder,
            ("callback", "Time spent in the module", Some(&Unit::Seconds)),
            MetricType::Counter,
            &states,
            |state| Some(ConstCounter::new(state.stats.callback_time.as_secs_f64())),
        )?;
        family(
            &mut encoder,
            (
                "wait",
                "Time that it kept requests and connections waiting, as one of several",
                Some(&Unit::Seconds),
            ),
            MetricType::Counter,
            &states,
            |state| Some(ConstCounter::new(state.waiting?.time.as_secs_f64())),
        )?;
        family(
            &mut encoder,
            (
                "held",
                "Requests and connections that it keeps waiting, as one of several",
                None,
            ),
            MetricType::Gauge,
            &states,
            |state| Some(ConstGauge::new(i64::try_from(state.waiting?.held).unwrap_or(i64::MAX))),
        )?;
        for (name, help, unit, value) in &GAUGES {
            family(
                &mut encoder,
                (name, help, unit.as_ref()),
                MetricType::Gauge,
                &states,
                |state| Some(ConstGauge::new(value(state))),
            )?;
        }
        Ok(())
    }
}

fn family<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, unit): (&str, &str, Option<&Unit>),
    kind: MetricType,
    states: &[(String, GenerationState)],
    value: impl Fn(&GenerationState) -> Option<M>,
) -> Result<(), fmt::Error> {
    let name = format!("weft_adapter_generation_{name}");
    let mut family = encoder.encode_descriptor(&name, help, unit, kind)?;
    for (adapter, state) in states {
        let labels = [("adapter", adapter.as_str()), ("generation", state.name.as_str())];
        if let Some(value) = value(state) {
            value.encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

impl fmt::Debug for GenerationMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GenerationMetrics").finish_non_exhaustive()
    }
}
