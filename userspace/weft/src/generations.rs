//! Changes of the generations that an Adapter's manifest lists. Pure: a manifest in, a manifest out.
//!
//! What comes out is JSON, which is YAML; comments of what came in are lost.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_policy::{MAX_GENERATIONS, ONLY_GENERATION};

use crate::{
    admin::api::{GenerationWeight, Share},
    yaml,
};

/// An Adapter's manifest, `backend: wasm`.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The whole document.
    document: Value,
    generations: Vec<Written>,
}

/// One entry of `spec.wasm.generations`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    name: String,
    module: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    #[serde(default, skip_serializing_if = "is_false")]
    shadow: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    #[error("it is not `backend: wasm`; change its backend with `weft apply`")]
    NotWasm,
    #[error("there is a generation `{name}` already; give the new one another name, or none")]
    Taken { name: String },
    #[error("there is no generation `{name}`, but {}", there.join(", "))]
    Unknown { name: String, there: Vec<String> },
    #[error("there are {MAX_GENERATIONS} generations, the most that there may be; load without --weight leaves two")]
    Full,
    #[error("generation `{name}` is a shadow; load it again with a weight")]
    Shadow { name: String },
    #[error("{reason}")]
    Unreadable { reason: String },
}

fn is_false(flag: &bool) -> bool {
    !flag
}

// === impl Manifest ===

impl Manifest {
    /// # Errors
    /// It is no Adapter with `backend: wasm`.
    pub fn read(text: &str) -> Result<Self, ManifestError> {
        let unreadable = |reason: String| ManifestError::Unreadable { reason };
        let documents = yaml::parse(text).map_err(|error| unreadable(error.to_string()))?;
        let document = documents.first().map(yaml::Node::to_json).unwrap_or_default();
        let spec = &document["spec"];
        let wasm = &spec["wasm"];
        if spec["backend"] != "wasm" || !wasm.is_object() {
            return Err(ManifestError::NotWasm);
        }
        let generations = match &wasm["generations"] {
            Value::Null => {
                let (name, weight) = ONLY_GENERATION;
                let only =
                    json!({ "name": name, "weight": weight, "module": wasm["module"], "sha256": wasm["sha256"] });
                vec![only]
            }
            list => list.as_array().cloned().unwrap_or_default(),
        };
        let generations = serde_json::from_value(Value::Array(generations));
        let generations = generations.map_err(|error| unreadable(error.to_string()))?;
        Ok(Self { document, generations })
    }

    /// Gives those that are `out` no share, as they have none; where nobody is left with one, the first of the others all, as
    /// requests are drawn.
    pub fn settle(&mut self, out: &HashSet<String>) {
        let is_out = |generation: &Written| out.contains(&generation.name);
        for generation in self
            .generations
            .iter_mut()
            .filter(|found| is_out(found) && !found.shadow)
        {
            generation.weight = Some(0);
        }
        if self.generations.iter().any(|found| found.weight > Some(0)) {
            return;
        }
        if let Some(first) = self
            .generations
            .iter_mut()
            .find(|found| !is_out(found) && !found.shadow)
        {
            first.weight = Some(100);
        }
    }

    /// Adds a generation, named or `vN`, and gives its name. [`Share::All`] keeps beside it only those that got requests, for a
    /// rollback.
    ///
    /// # Errors
    /// The name is taken, or there are too many.
    pub fn load(
        &mut self,
        named: Option<&str>,
        module: &Path,
        sha256: &str,
        share: Share,
    ) -> Result<String, ManifestError> {
        let name = named.map_or_else(|| self.next_name(), str::to_owned);
        if self.generations.iter().any(|generation| generation.name == name) {
            return Err(ManifestError::Taken { name });
        }
        let weight = match share {
            Share::Shadow => None,
            Share::All => {
                self.generations.retain(|generation| generation.weight > Some(0));
                self.generations
                    .iter_mut()
                    .for_each(|generation| generation.weight = Some(0));
                Some(100)
            }
            Share::Percent(percent) => {
                self.leave(100_u32.saturating_sub(percent.into()));
                Some(percent.into())
            }
        };
        if self.generations.len() >= MAX_GENERATIONS {
            return Err(ManifestError::Full);
        }
        self.generations.push(Written {
            name: name.clone(),
            module: module.to_path_buf(),
            sha256: Some(sha256.to_owned()),
            weight,
            shadow: share == Share::Shadow,
        });
        Ok(name)
    }

    /// Sets weights.
    ///
    /// # Errors
    /// There is no such generation, or it is a shadow.
    pub fn weigh(&mut self, weights: &[GenerationWeight]) -> Result<(), ManifestError> {
        for GenerationWeight { generation, weight } in weights {
            let there = || self.generations.iter().map(|found| found.name.clone()).collect();
            let name = generation.clone();
            let Some(at) = self.generations.iter().position(|found| found.name == name) else {
                return Err(ManifestError::Unknown { there: there(), name });
            };
            let found = &mut self.generations[at];
            if found.shadow {
                return Err(ManifestError::Shadow { name });
            }
            found.weight = Some(*weight);
        }
        Ok(())
    }

    /// The files of its modules.
    pub fn modules(&self) -> impl Iterator<Item = &Path> {
        self.generations.iter().map(|generation| &*generation.module)
    }

    /// The manifest as text.
    pub fn text(&self) -> String {
        let mut document = self.document.clone();
        let wasm = &mut document["spec"]["wasm"];
        if let Some(fields) = wasm.as_object_mut() {
            fields.remove("module");
            fields.remove("sha256");
            fields.insert("generations".to_owned(), json!(self.generations));
        }
        let mut text = format!("{document:#}");
        text.push('\n');
        text
    }

    /// Scales all weights to this sum. Who gets requests goes on getting some.
    fn leave(&mut self, sum: u32) {
        let weights = || self.generations.iter().filter_map(|generation| generation.weight);
        let total: u64 = weights().map(u64::from).sum();
        for generation in &mut self.generations {
            if let Some(weight) = &mut generation.weight
                && let Some(scaled) = (u64::from(*weight) * u64::from(sum) + total / 2).checked_div(total)
            {
                let least = u32::from(*weight > 0 && sum > 0);
                *weight = u32::try_from(scaled).unwrap_or(u32::MAX).max(least);
            }
        }
    }

    /// One after the greatest `vN`.
    fn next_name(&self) -> String {
        let numbers = self.generations.iter().filter_map(|generation| {
            let number = generation.name.strip_prefix('v')?;
            number.parse::<u64>().ok()
        });
        format!("v{}", numbers.max().unwrap_or(0).saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINGLE: &str = "# A comment.\napiVersion: weft.mesh/v1alpha1\nkind: Adapter\nmetadata: {name: a}\n\
                          spec: {backend: wasm, target: all, params: {x: 1}, wasm: {module: /m.wasm, upstreams: [auth]}}\n";

    fn generations(manifest: &Manifest) -> Vec<(String, Option<u32>)> {
        // What was written reads back the same.
        let again = Manifest::read(&manifest.text()).unwrap();
        assert_eq!(again.generations, manifest.generations);
        let generations = again.generations.into_iter();
        generations.map(|found| (found.name, found.weight)).collect()
    }

    fn load(manifest: &mut Manifest, share: Share) -> Result<String, ManifestError> {
        manifest.load(None, Path::new("/new.wasm"), "ab", share)
    }

    #[test]
    fn a_loaded_generation_takes_its_share_and_the_last_one_stays_for_a_rollback() {
        let mut manifest = Manifest::read(SINGLE).unwrap();
        let named = |list: &[(&str, Option<u32>)]| -> Vec<(String, Option<u32>)> {
            list.iter()
                .map(|(name, weight)| ((*name).to_owned(), *weight))
                .collect()
        };
        assert_eq!(generations(&manifest), named(&[("v1", Some(100))]));
        assert_eq!(load(&mut manifest, Share::Percent(10)).as_deref(), Ok("v2"));
        assert_eq!(generations(&manifest), named(&[("v1", Some(90)), ("v2", Some(10))]));
        assert_eq!(load(&mut manifest, Share::Shadow).as_deref(), Ok("v3"));
        assert_eq!(load(&mut manifest, Share::Percent(50)).as_deref(), Ok("v4"));
        assert_eq!(
            generations(&manifest),
            named(&[("v1", Some(45)), ("v2", Some(5)), ("v3", None), ("v4", Some(50))])
        );
        let zero = |name: &str| GenerationWeight {
            generation: name.to_owned(),
            weight: 0,
        };
        manifest.weigh(&[zero("v1"), zero("v2")]).unwrap();
        assert_eq!(load(&mut manifest, Share::All).as_deref(), Ok("v5"));
        assert_eq!(generations(&manifest), named(&[("v4", Some(0)), ("v5", Some(100))]));
        let text = manifest.text();
        for kept in [
            "\"upstreams\"",
            "\"params\"",
            "\"target\": \"all\"",
            "\"sha256\": \"ab\"",
        ] {
            assert!(text.contains(kept), "{kept}: {text}");
        }
    }

    #[test]
    fn what_was_rolled_back_has_no_share_and_what_works_is_kept() {
        let mut manifest = Manifest::read(SINGLE).unwrap();
        load(&mut manifest, Share::All).unwrap();
        let out = HashSet::from(["v2".to_owned()]);
        let mut canary = manifest.clone();
        canary.settle(&out);
        load(&mut canary, Share::Percent(10)).unwrap();
        let shares = [("v1", 90), ("v2", 0), ("v3", 10)];
        assert_eq!(
            generations(&canary),
            shares.map(|(name, weight)| (name.to_owned(), Some(weight)))
        );
        manifest.settle(&out);
        load(&mut manifest, Share::All).unwrap();
        let shares = [("v1", 0), ("v3", 100)];
        assert_eq!(
            generations(&manifest),
            shares.map(|(name, weight)| (name.to_owned(), Some(weight)))
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(
            Manifest::read("spec: {backend: native}\n").unwrap_err(),
            ManifestError::NotWasm
        );
        let mut manifest = Manifest::read(SINGLE).unwrap();
        let taken = manifest.load(Some("v1"), Path::new("/m"), "ab", Share::All);
        assert!(matches!(taken, Err(ManifestError::Taken { .. })));
        load(&mut manifest, Share::Shadow).unwrap();
        for (name, expect) in [("v2", "is a shadow"), ("v9", "there is no generation `v9`, but v1, v2")] {
            let weight = GenerationWeight {
                generation: name.to_owned(),
                weight: 1,
            };
            let error = manifest.weigh(&[weight]).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        }
        for _ in 2..MAX_GENERATIONS {
            load(&mut manifest, Share::Percent(10)).unwrap();
        }
        assert_eq!(load(&mut manifest, Share::Percent(10)), Err(ManifestError::Full));
    }
}
