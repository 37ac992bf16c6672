//! A start that makes the kernel tables and finds one of them too small for its resources: it begins again with a larger one.
//!
//! Nothing is in force then and nobody was served, so nothing is lost by it. Later a table cannot grow: programs hold on to it.

use std::{env, os::unix::process::CommandExt as _, process::Command};

use anyhow::Context as _;
use weft_dataplane::{DataplaneError, SizedMap};

use super::successor;
use crate::config::DaemonConfig;

/// What a table is made larger by than its resources need now, as a part of that.
const SPARE: usize = 4;

/// The table that an error of the first publication is about, and the size that it is to have. `None`: it is about something
/// else, or the operator has said how large that table is to be.
pub fn wanted(config: &DaemonConfig, error: &anyhow::Error) -> Option<(&'static str, u32)> {
    let Some(DataplaneError::Full { map, needed, .. }) = error.downcast_ref() else {
        return None;
    };
    if config.map_sizes.iter().any(|(asked, _)| asked == map) {
        return None;
    }
    let size = needed.checked_add(needed / SPARE)?.checked_next_power_of_two()?;
    let size = u32::try_from(size).ok()?;
    SizedMap::named(map)?.takes(size).then_some((*map, size))
}

/// Becomes the same daemon again, with that size beside those that were asked for. Threads and descriptors of this one end.
///
/// # Errors
///
/// It cannot be started; else this does not return.
pub fn begin_again(config: &DaemonConfig, (map, size): (&'static str, u32)) -> anyhow::Error {
    let binary = match env::current_exe().context("find this program's file") {
        Ok(running) => successor::binary(running),
        Err(error) => return error,
    };
    tracing::info!(
        map,
        size,
        "resources need a larger kernel table; starting again with it"
    );
    let asked = config.map_sizes.iter().map(|(map, size)| (map.as_str(), *size));
    // A flag beats the file, so all are said.
    let flags = asked
        .chain([(map, size)])
        .flat_map(|(map, size)| ["--map-size".to_owned(), format!("{map}={size}")]);
    let error = Command::new(&binary).args(env::args_os().skip(1)).args(flags).exec();
    anyhow::Error::new(error).context(format!("start {} again", binary.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(map: &'static str, needed: usize) -> anyhow::Error {
        anyhow::Error::new(DataplaneError::Full {
            map,
            room: 16,
            needed,
            leaving: 0,
        })
        .context("publish to the kernel")
    }

    #[test]
    fn a_table_gets_what_its_resources_need_and_some_unless_the_operator_said_how_much() {
        let mut config = DaemonConfig::default();
        for (needed, size) in [(20, 32), (26, 32), (27, 64), (150_000, 262_144)] {
            let error = full("policy", needed);
            assert_eq!(wanted(&config, &error), Some(("policy", size)), "{needed}");
        }
        assert_eq!(wanted(&config, &full("policy", usize::MAX)), None);
        assert_eq!(wanted(&config, &full("policy", 1 << 25)), None, "more than it may have");
        assert_eq!(wanted(&config, &anyhow::anyhow!("something else")), None);
        config.map_sizes = vec![("policy".to_owned(), 16)];
        assert_eq!(wanted(&config, &full("policy", 20)), None);
        assert_eq!(wanted(&config, &full("dests", 20)), Some(("dests", 32)));
    }
}
