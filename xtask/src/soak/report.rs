//! What a soak prints: a row every few seconds, and tables at the end.

use std::{sync::atomic::Ordering, time::Duration};

use vm_test::soak::Counts;

use super::{
    gauges::{DESCRIPTORS, FLOWS, Gauges, MEMORY},
    judge::{CUT_GOAL_NS, Judge, Tally, TroubleKind},
    trouble::Done,
};

const HEAD: &str = "\
   time     rounds   denied  MB echoed  wrong  flaps  kills  take-overs  cut p99     conns         flows         fds    MB daemon
                                                                           ms      a    b      a      b      a    b     a    b";
/// Rows between two heads.
const ROWS: usize = 20;

/// A row of figures so far.
pub fn row(number: usize, elapsed: Duration, judge: &Judge, done: &Done, gauges: &[Gauges; 2]) {
    if number.is_multiple_of(ROWS) {
        println!("\n{HEAD}");
    }
    let all = total(judge);
    let cuts = judge.cut_times();
    let p99 = cuts.iter().map(|way| way.from_return.p99).fold(0.0, f64::max);
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let pair = |name: &str, unit: u64| gauges.each_ref().map(|host| host.newest(name) / unit);
    let ([ca, cb], [fa, fb]) = (pair("conns", 1), pair("flows", 1));
    let ([da, db], [ma, mb]) = (pair(DESCRIPTORS, 1), pair(MEMORY, 1024));
    println!(
        "{:>5.0} s {:>10} {:>8} {:>10.1} {:>6} {:>6} {:>6} {:>11} {p99:>8.1} {ca:>4} {cb:>4} {fa:>6} {fb:>6} {da:>6} {db:>4} {ma:>5} {mb:>4}",
        elapsed.as_secs_f64(),
        all.counts.ok,
        all.denied,
        all.counts.bytes as f64 / 1e6,
        judge.wrong.total(),
        load(&done.flaps),
        load(&done.kills),
        load(&done.upgrades),
    );
}

fn total(judge: &Judge) -> Tally {
    let mut all = Tally::default();
    for tally in judge.tallies.values() {
        all.counts.add(&tally.counts);
        all.denied += tally.denied;
    }
    all
}

/// The tables at the end; whether all held.
pub fn tables(judge: &Judge, done: &Done, gauges: &[Gauges; 2]) -> bool {
    traffic(judge);
    let in_time = cuts(judge);
    let flat = trends(gauges);
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "\ndone to it: {} changes of policy ({} more met no daemon), {} kill -9, {} take-overs",
        load(&done.flaps),
        load(&done.unheard),
        load(&done.kills),
        load(&done.upgrades)
    );
    println!(
        "    {:<22} {:>12} {:>9} {:>9} {:>9} {:>9}",
        "", "times", "min", "median", "p99", "max"
    );
    for (kind, what) in [
        (TroubleKind::Killed, "ms without a daemon"),
        (TroubleKind::TakenOver, "ms to the old one's end"),
    ] {
        if let Some(times) = judge.trouble_times(kind) {
            println!("    {what:<27} {times}");
        }
    }
    println!("\n  must be 0");
    for (what, count) in judge.wrong.all() {
        println!("  {} {what:<40} {count:>8}", mark(count == 0));
    }
    if !judge.words.is_empty() {
        println!("\n  the first of them, with seconds since the start:");
        judge.words.iter().for_each(|words| println!("    {words}"));
    }
    judge.wrong.total() == 0 && in_time && flat
}

fn traffic(judge: &Judge) {
    println!("\n  account    way            rounds   MB echoed   failed   denied      cut   no daemon   ended with it");
    for ((account, way), tally) in &judge.tallies {
        let Tally {
            counts,
            denied,
            cut,
            refused_without_daemon: refused,
            ended_with_daemon: ended,
        } = tally;
        let Counts { ok, failed, bytes, .. } = counts;
        let megabytes = *bytes as f64 / 1e6;
        println!(
            "  {:<10} {way:<12} {ok:>8} {megabytes:>11.1} {failed:>8} {denied:>8} {cut:>8} {refused:>11} {ended:>15}",
            account.name()
        );
    }
}

/// Whether at most one in a hundred took longer than the goal, on every way.
fn cuts(judge: &Judge) -> bool {
    let goal = CUT_GOAL_NS as f64 / 1e6;
    println!(
        "\n  ms to the cut, from the start of `weft apply` and from its return (goal: p99 at most {goal:.0} after it)"
    );
    println!(
        "    {:<22} {:>12} {:>9} {:>9} {:>9} {:>9}",
        "", "cuts", "min", "median", "p99", "max"
    );
    let mut held = true;
    for way in judge.cut_times() {
        let in_time = way.from_return.p99 <= goal;
        held &= in_time;
        println!("  {} {:<22} start {}", mark(in_time), way.way, way.from_start);
        println!("    {:<21} return {}", "", way.from_return);
        if way.late > 0 {
            println!("    {:<21} {} later than the goal", "", way.late);
        }
    }
    held
}

/// What must not grow.
fn trends(gauges: &[Gauges; 2]) -> bool {
    println!("\n  must be flat: medians of the first and of the last third after the warm-up");
    println!("    {:<22} {:>9} {:>9}", "", "first", "last");
    let mut held = true;
    for (host, gauges) in ["a", "b"].into_iter().zip(gauges) {
        for trend in gauges.trends() {
            held &= trend.flat;
            println!(
                "  {} {host} {:<20} {:>9} {:>9}",
                mark(trend.flat),
                trend.name,
                trend.first,
                trend.last
            );
        }
    }
    println!("\n  must leave a quarter of its room: the greatest that was seen");
    println!("    {:<22} {:>9} {:>9}", "", "greatest", "room");
    for (host, gauges) in ["a", "b"].into_iter().zip(gauges) {
        let crowd = gauges.crowd();
        held &= crowd.held();
        let mark = mark(crowd.held());
        println!("  {mark} {host} {FLOWS:<20} {:>9} {:>9}", crowd.greatest, crowd.room);
    }
    held
}

fn mark(held: bool) -> &'static str {
    if held { "✓" } else { "✗" }
}
