//! Metrics of a module. A number names one within an instance; a name names one among all instances of the adapter.

use std::sync::Arc;

use wasmtime::{Caller, Linker};

use super::{
    super::{
        abi::Status,
        host::Host,
        memory::{Fail, all, answer, slice, write, write_u32},
        metric::{MAX_METRICS, Metric, MetricKind},
    },
    ENV,
};

pub(super) fn define(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        ENV,
        "proxy_define_metric",
        |mut caller: Caller<'_, Host>, kind: u32, name: u32, length: u32, place: u32| {
            answer(define_metric(&mut caller, kind, (name, length), place))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_increment_metric",
        |caller: Caller<'_, Host>, metric: u32, delta: i64| {
            let done = find(&caller, metric).and_then(|metric| metric.increment(delta));
            answer(done.map_err(Fail::from))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_record_metric",
        |caller: Caller<'_, Host>, metric: u32, value: u64| {
            let done = find(&caller, metric).map(|metric| metric.record(value));
            answer(done.map_err(Fail::from))
        },
    )?;
    linker.func_wrap(
        ENV,
        "proxy_get_metric",
        |mut caller: Caller<'_, Host>, metric: u32, place: u32| answer(get(&mut caller, metric, place)),
    )?;
    Ok(())
}

fn define_metric(caller: &mut Caller<'_, Host>, kind: u32, name: (u32, u32), place: u32) -> Result<(), Fail> {
    let kind = match kind {
        0 => MetricKind::Counter,
        1 => MetricKind::Gauge,
        2 => MetricKind::Histogram,
        _ => return Err(Status::BadArgument.into()),
    };
    let (memory, host) = all(caller)?;
    let name = str::from_utf8(slice(memory, name.0, name.1)?).map_err(|_| Status::BadArgument)?;
    let metric = host.plugin.metrics.metric(kind, name)?;
    let known = host.metrics.iter().position(|known| Arc::ptr_eq(known, &metric));
    let at = match known {
        Some(at) => at,
        None if host.metrics.len() >= MAX_METRICS => return Err(Status::InternalFailure.into()),
        None => {
            host.metrics.push(metric);
            host.metrics.len() - 1
        }
    };
    write_u32(caller, place, u32::try_from(at).map_err(|_| Status::InternalFailure)?)
}

fn find<'a>(caller: &'a Caller<'_, Host>, metric: u32) -> Result<&'a Arc<Metric>, Status> {
    caller.data().metrics.get(metric as usize).ok_or(Status::NotFound)
}

fn get(caller: &mut Caller<'_, Host>, metric: u32, place: u32) -> Result<(), Fail> {
    let value = find(caller, metric)?.value();
    Ok(write(all(caller)?.0, place, &value.to_le_bytes())?)
}
