//! Labels and annotations as objects keep them: never changed, so that equal ones can be one.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Text by key, in order of the keys. Cloning shares it. Without any it has no memory of its own.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Option<Arc<LabelSet>>);

/// Key and value of each, at least one. A pointer to it is one word.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LabelSet(Box<[(Box<str>, Box<str>)]>);

// === impl Labels ===

impl Labels {
    pub fn get(&self, key: &str) -> Option<&str> {
        let all = self.all();
        let at = all.binary_search_by(|(own, _)| (**own).cmp(key)).ok()?;
        all.get(at).map(|(_, value)| &**value)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.all().iter().map(|(key, value)| (&**key, &**value))
    }

    /// For those who change them.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        self.iter().map(owned).collect()
    }

    /// The same labels in the place that `share` gives them.
    pub(crate) fn shared(self, share: impl FnOnce(Arc<LabelSet>) -> Arc<LabelSet>) -> Self {
        Self(self.0.map(share))
    }

    fn all(&self) -> &[(Box<str>, Box<str>)] {
        self.0.as_ref().map(|set| &*set.0).unwrap_or_default()
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(map: BTreeMap<String, String>) -> Self {
        if map.is_empty() {
            return Self::default();
        }
        let boxed = |(key, value): (String, String)| (key.into_boxed_str(), value.into_boxed_str());
        let all = map.into_iter().map(boxed).collect();
        Self(Some(Arc::new(LabelSet(all))))
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::<String, String>::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(of: &[(&str, &str)]) -> Labels {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        of.iter().map(owned).collect::<BTreeMap<_, _>>().into()
    }

    #[test]
    fn each_is_found_by_its_key_and_nothing_else_is() {
        let all = labels(&[("tier", "front"), ("app", "web"), ("b", "")]);
        assert_eq!(
            all.iter().collect::<Vec<_>>(),
            [("app", "web"), ("b", ""), ("tier", "front")]
        );
        for (key, value) in all.iter() {
            assert_eq!(all.get(key), Some(value));
        }
        for other in ["", "a", "apps", "c", "zone"] {
            assert_eq!(all.get(other), None, "{other}");
        }
        assert_eq!(Labels::default().get("app"), None);
    }

    #[test]
    fn they_are_written_and_read_as_a_map() {
        for (all, json) in [
            (
                labels(&[("tier", "front"), ("app", "web")]),
                r#"{"app":"web","tier":"front"}"#,
            ),
            (Labels::default(), "{}"),
        ] {
            assert_eq!(serde_json::to_string(&all).unwrap(), json);
            assert_eq!(serde_json::from_str::<Labels>(json).unwrap(), all);
            assert_eq!(Labels::from(all.to_map()), all);
        }
    }
}
