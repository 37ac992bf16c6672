//! Foreign proxies (`l7: {mode: external}`): where their cgroups are, and the programs there.
//!
//! In such a cgroup `weft_getsockopt` answers SO_ORIGINAL_DST. One outside the captured cgroup, say of a service of systemd,
//! also gets the programs that make its own connections known as a proxy's; inside, they are inherited. Its links are pinned
//! as `foreign-CGROUP_ID-PROGRAM`, adopted by the next daemon, and go with the last policy that names it. A cgroup that is
//! made again (the service was restarted) has another id: [`ForeignProxies::moved`] tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use aya::Ebpf;
use weft_policy::{L7, Snapshot};

use crate::{
    attach::{self, GETSOCKOPT},
    cgroup::{Cgroup, id_of},
    error::DataplaneError,
    loader::pin_name,
    sys,
    tables::ForeignCgroups,
};

/// What a foreign proxy outside the captured cgroup does not inherit.
const OUTSIDE: [&str; 4] = ["weft_sockcreate", "weft_sockops", "weft_connect4", "weft_connect6"];
/// Begins the pins of links here.
const PREFIX: &str = "foreign-";

/// All foreign proxies that policies in force name.
pub struct ForeignProxies {
    captured: Cgroup,
    links: PathBuf,
    /// As policies name them.
    named: BTreeMap<PathBuf, Found>,
    /// Cgroups that have this daemon's programs.
    attached: BTreeSet<u64>,
}

/// What was found of a named cgroup at the last publication.
struct Found {
    /// `None`: it was not there.
    id: Option<u64>,
    /// Why there is no foreign proxy, there or not.
    problem: Option<String>,
}

// === impl ForeignProxies ===

impl ForeignProxies {
    pub fn new(captured: Cgroup, links: PathBuf) -> Self {
        Self {
            captured,
            links,
            named: BTreeMap::new(),
            attached: BTreeSet::new(),
        }
    }

    /// Attaches the programs of every foreign proxy that a snapshot names and whose cgroup is there; those. One that is not is
    /// none of the others' business: its services get their failure mode.
    pub fn attach(&mut self, ebpf: &mut Ebpf, snapshot: &Snapshot) -> ForeignCgroups {
        let named: BTreeSet<&PathBuf> = snapshot
            .services
            .values()
            .filter_map(|service| match &service.l7 {
                L7::External { cgroup, .. } => Some(cgroup),
                L7::Auto | L7::None => None,
            })
            .collect();
        let mut found = BTreeMap::new();
        for path in named {
            let now = match self.resolve(path) {
                Ok((place, id)) => Found {
                    id: Some(id),
                    problem: self.attach_to(ebpf, &place, id).err().map(|error| chain(&error)),
                },
                Err(why) => Found {
                    id: None,
                    problem: Some(why),
                },
            };
            if let Some(why) = &now.problem
                && self
                    .named
                    .get(path)
                    .is_none_or(|before| before.id != now.id || before.problem.is_none())
            {
                tracing::warn!(cgroup = %path.display(), why, "foreign proxy is not there; its services get their failure mode");
            }
            found.insert(path.clone(), now);
        }
        self.named = found;
        self.present()
    }

    /// Those whose programs are in place, as found at the last publication.
    pub fn present(&self) -> ForeignCgroups {
        let present = self.named.iter().filter(|(_, found)| found.problem.is_none());
        present
            .filter_map(|(path, found)| Some((path.clone(), found.id?)))
            .collect()
    }

    /// Whether a publication would change nothing here: none moved, and none is there without its programs.
    pub fn is_settled(&self) -> bool {
        let unattached = |found: &Found| found.id.is_some() && found.problem.is_some();
        !self.moved() && !self.named.values().any(unattached)
    }

    fn attach_to(&mut self, ebpf: &mut Ebpf, place: &Path, id: u64) -> Result<(), DataplaneError> {
        if self.attached.contains(&id) {
            return Ok(());
        }
        let file = fs::File::open(place).map_err(|source| DataplaneError::Cgroup {
            path: place.to_path_buf(),
            what: "open",
            source,
        })?;
        attach::load_getsockopt(ebpf)?;
        let inherited = place.starts_with(self.captured.path());
        let more: &[&'static str] = if inherited { &[] } else { &OUTSIDE };
        for name in [GETSOCKOPT].iter().chain(more) {
            let pin = self.links.join(format!("{PREFIX}{id}-{}", pin_name(name)));
            attach::attach_one(ebpf, name, place, (&file, id), &pin)?;
        }
        self.attached.insert(id);
        Ok(())
    }

    /// Another process's programs may be behind our links: the next publication puts ours there.
    pub fn reclaim(&mut self) {
        self.attached.clear();
    }

    /// Removes the links of cgroups that no policy names any more, an earlier daemon's among them.
    pub fn settle(&mut self) {
        let wanted: BTreeSet<u64> = self.named.values().filter_map(|found| found.id).collect();
        self.attached.retain(|id| wanted.contains(id));
        for (pin, id) in pins(&self.links) {
            if !wanted.contains(&id)
                && let Err(error) = fs::remove_file(&pin)
            {
                tracing::error!(pin = %pin.display(), %error, "a foreign proxy's programs stay attached");
            }
        }
    }

    /// Whether a named cgroup came, went, or was made again since it was attached to.
    pub fn moved(&self) -> bool {
        self.named
            .iter()
            .any(|(path, found)| self.resolve(path).ok().map(|(_, id)| id) != found.id)
    }

    /// Foreign proxies that are not there, and why.
    pub fn problems(&self) -> Vec<(PathBuf, String)> {
        let problems = self
            .named
            .iter()
            .filter_map(|(path, found)| Some((path.clone(), found.problem.clone()?)));
        problems.collect()
    }

    /// Where a cgroup is that a policy names, and its id.
    fn resolve(&self, named: &Path) -> Result<(PathBuf, u64), String> {
        let (captured, mount) = (self.captured.path(), self.captured.mount());
        // As the file system has it, or as /proc/PID/cgroup does.
        let path = match named.strip_prefix("/") {
            Err(_) => captured.join(named),
            Ok(_) if named.starts_with(mount) => named.to_path_buf(),
            Ok(below) => mount.join(below),
        };
        if captured.starts_with(&path) {
            return Err(format!(
                "{} holds all captured workloads: name the cgroup of the foreign proxy alone",
                path.display()
            ));
        }
        match id_of(&path) {
            Ok(_) if path == self.captured.daemon() => Err("it is the daemon's own".to_owned()),
            Ok(id) => Ok((path, id)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!("{} does not exist", path.display())),
            Err(error) => Err(format!("read {}: {error}", path.display())),
        }
    }
}

/// Programs that answer SO_ORIGINAL_DST, `weft_getsockopt@CGROUP_ID`, with their numbers; `None`: the cgroup is gone. The
/// others of a foreign proxy are told where they are attached first.
pub fn attached_programs(links: &Path) -> Vec<(String, Option<u32>)> {
    let getsockopt = |pin: &PathBuf| pin.to_string_lossy().ends_with(pin_name(GETSOCKOPT));
    pins(links)
        .into_iter()
        .filter(|(pin, _)| getsockopt(pin))
        .map(|(pin, cgroup)| {
            let program = sys::obj_get(&pin).and_then(|link| match sys::link_cgroup(&link)? {
                0 => Ok(None),
                _ => sys::link_program(&link).map(Some),
            });
            (format!("{GETSOCKOPT}@{cgroup}"), program.ok().flatten())
        })
        .collect()
}

/// Pins of foreign proxies' links, with the cgroup of each.
fn pins(links: &Path) -> Vec<(PathBuf, u64)> {
    let Ok(entries) = fs::read_dir(links) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let (id, _) = name.to_str()?.strip_prefix(PREFIX)?.split_once('-')?;
            Some((entry.path(), id.parse().ok()?))
        })
        .collect()
}

fn chain(error: &DataplaneError) -> String {
    let mut text = error.to_string();
    if matches!(error, DataplaneError::Refused { .. }) {
        // Says the end of the verifier's log; its source says all of it.
        return text;
    }
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}
