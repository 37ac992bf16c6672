//! What is on a list, in the form in which it is fast to look up.

use std::{collections::HashSet, net::IpAddr};

use ipnet::IpNet;
use regex::{RegexSet, RegexSetBuilder};

use super::EntryType;

/// Longest value that is folded to lower case on the stack; longer ones allocate.
const FOLD_INLINE: usize = 256;

/// Memory a list of expressions may take when compiled, in bytes. More is refused at load.
const REGEX_SIZE_LIMIT: usize = 16 * 1024 * 1024;

#[derive(Debug)]
pub(super) enum Entries {
    Strings(HashSet<Box<str>>),
    /// Entries in lower case.
    CaseInsensitive(HashSet<Box<str>>),
    /// First and last address of each range, IPv4 as mapped addresses; sorted and disjoint.
    Addresses(Vec<(u128, u128)>),
    Regex(RegexSet),
}

/// An entry that is none of its type.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("entry `{entry}`: {reason}")]
pub(super) struct BadEntry {
    pub entry: String,
    pub reason: String,
}

/// The value cannot be on such a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoAddress;

// === impl Entries ===

impl Entries {
    pub fn parse<'a>(kind: EntryType, entries: impl Iterator<Item = &'a str>) -> Result<Self, BadEntry> {
        Ok(match kind {
            EntryType::Strings => Self::Strings(entries.map(Into::into).collect()),
            EntryType::CaseInsensitiveStrings => {
                Self::CaseInsensitive(entries.map(|entry| entry.to_lowercase().into()).collect())
            }
            EntryType::IpAddresses => Self::Addresses(disjoint(entries.map(range).collect::<Result<_, _>>()?)),
            EntryType::Regex => Self::Regex(expressions(entries)?),
        })
    }

    /// Entries of a provider's text.
    pub fn lines(text: &str) -> impl Iterator<Item = &str> {
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
    }

    pub fn contain(&self, value: &str) -> Result<bool, NoAddress> {
        Ok(match self {
            Self::Strings(set) => set.contains(value),
            Self::CaseInsensitive(set) => {
                let mut folded = [0; FOLD_INLINE];
                match folded.get_mut(..value.len()) {
                    Some(folded) if value.is_ascii() => {
                        folded.copy_from_slice(value.as_bytes());
                        folded.make_ascii_lowercase();
                        std::str::from_utf8(folded).is_ok_and(|folded| set.contains(folded))
                    }
                    _ => set.contains(value.to_lowercase().as_str()),
                }
            }
            Self::Addresses(_) => self.contain_address(value.parse().map_err(|_| NoAddress)?),
            Self::Regex(set) => set.is_match(value),
        })
    }

    /// An address needs no text to be compared with addresses.
    pub fn contain_address(&self, address: IpAddr) -> bool {
        let Self::Addresses(ranges) = self else {
            return self.contain(&address.to_string()) == Ok(true);
        };
        let address = number(address);
        let after = ranges.partition_point(|(first, _)| *first <= address);
        after.checked_sub(1).is_some_and(|at| address <= ranges[at].1)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        match self {
            Self::Strings(set) | Self::CaseInsensitive(set) => set.len(),
            Self::Addresses(ranges) => ranges.len(),
            Self::Regex(set) => set.len(),
        }
    }
}

/// IPv4 within IPv6, as the kernel sees it on a dual-stack socket.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn range(entry: &str) -> Result<(u128, u128), BadEntry> {
    let bad = || BadEntry {
        entry: entry.to_owned(),
        reason: "no address or prefix".to_owned(),
    };
    if !entry.contains('/') {
        let address = number(entry.parse().map_err(|_| bad())?);
        return Ok((address, address));
    }
    let net: IpNet = entry.parse().map_err(|_| bad())?;
    Ok((number(net.network()), number(net.broadcast())))
}

fn disjoint(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn expressions<'a>(entries: impl Iterator<Item = &'a str>) -> Result<RegexSet, BadEntry> {
    let entries: Vec<&str> = entries.collect();
    // One by one first: the error of a set does not say which.
    for entry in &entries {
        regex_syntax_check(entry)?;
    }
    RegexSetBuilder::new(&entries)
        .size_limit(REGEX_SIZE_LIMIT)
        .build()
        .map_err(|error| BadEntry {
            entry: format!("{} expressions", entries.len()),
            reason: error.to_string(),
        })
}

fn regex_syntax_check(entry: &str) -> Result<(), BadEntry> {
    regex::Regex::new(entry).map(drop).map_err(|error| BadEntry {
        entry: entry.to_owned(),
        // The crate draws a picture over several lines; its last line says it.
        reason: error.to_string().lines().last().unwrap_or_default().to_owned(),
    })
}
