//! Tables of a few numbers that are no kernel's.

use std::{collections::BTreeMap, io, ops::Range};

use super::*;

/// What stands in for the kernel's table.
#[derive(Default)]
struct Fake {
    entries: BTreeMap<u32, Versioned<u32>>,
    writes: usize,
    /// Refuses from so many writes on.
    refuses_from: Option<usize>,
}

type Table = Mirror<Fake, u32, u32>;

/// In force in all of these.
const NOW: u64 = 7;
const NEXT: u64 = NOW + 1;
const ROOM: usize = 10;

impl Backing<u32, u32> for Fake {
    fn put(&mut self, key: &u32, value: Versioned<u32>) -> Result<(), MapError> {
        if self.refuses_from.is_some_and(|first| self.writes >= first) {
            return Err(MapError::IoError(io::Error::from_raw_os_error(libc::ENOMEM)));
        }
        self.writes += 1;
        self.entries.insert(*key, value);
        Ok(())
    }

    fn delete(&mut self, key: &u32) {
        self.entries.remove(key);
    }

    fn all(&self) -> Result<Vec<(u32, Versioned<u32>)>, MapError> {
        Ok(self.entries.iter().map(|(key, value)| (*key, *value)).collect())
    }
}

impl Fake {
    fn under(&self, generation: u64) -> HashMap<u32, u32> {
        let values = self.entries.iter().map(|(key, value)| (*key, *value.at(generation)));
        values.filter(|(_, value)| *value != 0).collect()
    }
}

fn table(values: &HashMap<u32, u32>) -> Table {
    let entry = |(key, value): (&u32, &u32)| {
        let value = Versioned {
            since: NOW - 1,
            current: *value,
            previous: 0,
        };
        (*key, value)
    };
    let fake = Fake {
        entries: values.iter().map(entry).collect(),
        ..Fake::default()
    };
    Mirror::adopt("weft_dests", fake, ROOM, NOW).expect("read")
}

fn before() -> HashMap<u32, u32> {
    HashMap::from([(1, 10), (2, 20), (3, 30), (4, 40)])
}

/// Another value, one that leaves, one that comes.
fn delta() -> Delta<u32, u32> {
    HashMap::from([(1, Some(11)), (2, None), (5, Some(50))])
}

fn after() -> HashMap<u32, u32> {
    HashMap::from([(1, 11), (3, 30), (4, 40), (5, 50)])
}

#[test]
fn what_leaves_takes_room_until_it_has_left() {
    let table = |keys: Range<u32>| keys.map(|key| (key, ())).collect::<HashMap<_, _>>();
    let check = |desired| fits("weft_policy", 10, &table(0..6), &table(desired));
    assert!(check(0..10).is_ok(), "all of it");
    assert!(check(6..10).is_ok(), "four for six");
    assert!(check(0..0).is_ok(), "none");
    assert!(check(0..11).is_err(), "one too many");
    let error = check(4..11).expect_err("four that leave and seven").to_string();
    for said in [
        "weft_policy has room for 10",
        "11 would be in it",
        "(4 of them",
        "--map-size policy=16`",
    ] {
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn a_delta_writes_what_a_comparison_of_all_writes() {
    let (mut by_all, mut by_delta) = (table(&before()), table(&before()));
    assert!(!by_delta.is_after(&delta()));
    let all = by_all.stage(after(), NEXT).expect("written");
    let some = by_delta.stage_delta(delta(), NEXT).expect("written");
    assert_eq!((some.changed, &some.removed), (3, &vec![2]));
    assert_eq!((some.changed, &some.removed), (all.changed, &all.removed));
    assert_eq!(by_delta.map.entries, by_all.map.entries);
    assert_eq!(by_delta.map.under(NOW), before(), "nobody reads the next ones yet");
    assert_eq!(by_delta.map.under(NEXT), after());
    assert!(by_delta.is(&after()) && by_delta.is_after(&delta()));
    by_delta.settle(some.removed);
    assert!(!by_delta.map.entries.contains_key(&2));
    by_delta.read(NEXT).expect("read");
    assert!(by_delta.is(&after()), "as the next daemon finds it");
}

#[test]
fn a_delta_of_what_is_in_force_writes_nothing() {
    let mut table = table(&before());
    let same = HashMap::from([(1, Some(10)), (9, None)]);
    assert!(table.is_after(&same));
    let staged = table.stage_delta(same, NEXT).expect("written");
    assert_eq!((staged.changed, staged.removed, table.map.writes), (0, Vec::new(), 0));
    assert!(table.is(&before()));
}

#[test]
fn what_the_kernel_refuses_in_the_midst_is_taken_back() {
    for written in 0..3 {
        let mut table = table(&before());
        table.map.refuses_from = Some(written);
        assert!(table.stage_delta(delta(), NEXT).is_err(), "the one after {written}");
        assert_eq!(table.map.writes, written);
        table.map.refuses_from = None;
        table.unstage(NEXT);
        assert!(table.is(&before()));
        for generation in [NOW, NEXT] {
            assert_eq!(
                table.map.under(generation),
                before(),
                "after {written}, under {generation}"
            );
        }
        table.stage_delta(delta(), NEXT).expect("again");
        assert_eq!(table.map.under(NEXT), after());
    }
}

#[test]
fn a_delta_has_the_room_that_all_have() {
    let mut table = table(&before());
    let come = |keys: Range<u32>| keys.map(|key| (key, Some(1)));
    let fitting: Delta<u32, u32> = come(10..16).chain([(1, None), (2, Some(21)), (99, None)]).collect();
    table.fits_delta(&fitting).expect("four and six");
    let more: Delta<u32, u32> = come(10..17).chain([(1, None), (2, Some(21))]).collect();
    let mut desired = before();
    for (key, value) in &more {
        match value {
            Some(value) => desired.insert(*key, *value),
            None => desired.remove(key),
        };
    }
    let refusal = table.fits_delta(&more).expect_err("four and seven").to_string();
    assert_eq!(refusal, table.fits(&desired).expect_err("the same").to_string());
    assert!(
        refusal.contains("11 would be in it") && refusal.contains("(1 of them"),
        "{refusal}"
    );
    assert_eq!(table.map.writes, 0);
    table.stage_delta(fitting, NEXT).expect("written");
    assert_eq!(table.map.entries.len(), ROOM);
}
