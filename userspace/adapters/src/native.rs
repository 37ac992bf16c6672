//! Adapters that are compiled in, as kind `Adapter` finds them: by name, with parameters as JSON.
//!
//! Each folder of [`crate::builtin`] has a type that implements [`Native`]; one line in [`builtin::ALL`](crate::builtin::ALL)
//! makes it known. [`NativeEntry::validate`] looks at parameters and touches nothing else (`weft check` and `weft apply` ask
//! it); [`NativeEntry::make`] builds the adapter, which may open files and start background tasks.

use std::{fmt, sync::Arc};

use serde::de::DeserializeOwned;
use serde_json::Value;
pub use weft_policy::AdapterRole as Role;
use weft_policy::{AdapterCatalog, ObjectRef, ParamsRefusal};

use crate::{
    builtin,
    error::AdapterError,
    metrics::{CheckMetrics, ReportMetrics},
    pipeline::Check,
    reporter::Report,
    stream::FilterFactory,
};

/// An adapter that is compiled in.
pub trait Native: 'static {
    /// As `spec.native` names it.
    const NAME: &'static str;
    /// What it does, in a line.
    const ABOUT: &'static str;
    /// Its page, in Markdown: what the parameters are and mean.
    const PAGE: &'static str;
    const ROLE: Role;

    /// Its parameters, `spec.params`.
    type Config: DeserializeOwned;

    /// Whether the parameters make sense together. No I/O.
    ///
    /// # Errors
    /// [`AdapterError::Config`].
    fn validate(config: &Self::Config) -> Result<(), AdapterError>;

    /// Builds it. May block for as long as it takes to read a file, not for a network.
    ///
    /// # Errors
    /// Those of [`Native::validate`], and what the world outside adds.
    fn make(config: Self::Config, context: &Context<'_>) -> Result<Part, AdapterError>;
}

/// The catalog of [`builtin::ALL`](crate::builtin::ALL), for the store of resources.
#[derive(Debug)]
pub struct Catalog;

/// An adapter that was built.
pub enum Part {
    /// Of [`Role::Check`] and [`Role::Quota`].
    Check(Arc<dyn Check>),
    Filter(Arc<dyn FilterFactory>),
    Report(Box<dyn Report>),
}

/// What an adapter is built with, beside its parameters.
pub struct Context<'a> {
    /// `NAMESPACE/NAME` of the object: the adapter's name in denials, logs and metrics.
    pub name: &'a str,
    /// The object itself, for [`Deny::by`](crate::Deny::by).
    pub object: &'a ObjectRef,
    /// Of checks that ask somebody else, for [`CheckMetrics::of`].
    pub checks: &'a CheckMetrics,
    /// Of the report path, for [`ExportMetrics::of`](crate::export::ExportMetrics::of).
    pub reports: &'a ReportMetrics,
}

/// One line of [`builtin::ALL`](crate::builtin::ALL).
#[derive(Clone, Copy)]
pub struct NativeEntry {
    pub name: &'static str,
    pub about: &'static str,
    pub page: &'static str,
    pub role: Role,
    validate: fn(&Value) -> Result<(), AdapterError>,
    make: fn(&Value, &Context<'_>) -> Result<Part, AdapterError>,
}

// === impl NativeEntry ===

impl NativeEntry {
    pub const fn of<A: Native>() -> Self {
        Self {
            name: A::NAME,
            about: A::ABOUT,
            page: A::PAGE,
            role: A::ROLE,
            validate: |params| A::validate(&read::<A>(params)?),
            make: |params, context| A::make(read::<A>(params)?, context),
        }
    }

    /// Whether these parameters would do. No I/O.
    ///
    /// # Errors
    /// [`AdapterError::Params`] (not of the right shape) or [`AdapterError::Config`] (makes no sense).
    pub fn validate(&self, params: &Value) -> Result<(), AdapterError> {
        (self.validate)(params)
    }

    /// See [`Native::make`].
    ///
    /// # Errors
    /// As [`NativeEntry::validate`], and what the world outside adds.
    pub fn make(&self, params: &Value, context: &Context<'_>) -> Result<Part, AdapterError> {
        (self.make)(params, context)
    }
}

impl fmt::Debug for NativeEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NativeEntry")
            .field("name", &self.name)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

// === impl Catalog ===

impl AdapterCatalog for Catalog {
    fn natives(&self) -> Vec<(&'static str, Role)> {
        builtin::ALL.iter().map(|entry| (entry.name, entry.role)).collect()
    }

    fn check(&self, native: &str, params: &Value) -> Result<(), ParamsRefusal> {
        let refusal = |path: &str, reason: String, instead: String| ParamsRefusal {
            path: path.to_owned(),
            reason,
            instead,
        };
        let page = format!("`weft adapter explain {native}` shows all parameters");
        let Some(entry) = builtin::find(native) else {
            return Err(refusal("", format!("there is no native adapter `{native}`"), page));
        };
        entry.validate(params).map_err(|error| match error {
            AdapterError::Params { path, reason, .. } => refusal(&path, reason, page),
            AdapterError::Config {
                field, found, expected, ..
            } => refusal(field, format!("found `{found}`"), format!("write {expected}")),
            other => refusal("", other.to_string(), page),
        })
    }
}

// === impl Part ===

impl Part {
    pub fn check(check: impl Check + 'static) -> Self {
        Self::Check(Arc::new(check))
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (part, name) = match self {
            Self::Check(check) => ("Check", check.name()),
            Self::Filter(filter) => ("Filter", filter.name()),
            Self::Report(report) => ("Report", report.name()),
        };
        f.debug_tuple(part).field(&name).finish()
    }
}

/// No parameters at all are an empty set of them.
fn read<A: Native>(params: &Value) -> Result<A::Config, AdapterError> {
    let empty = Value::Object(serde_json::Map::new());
    let params = if params.is_null() { &empty } else { params };
    serde_path_to_error::deserialize(params).map_err(|error| AdapterError::Params {
        adapter: A::NAME,
        path: error.path().to_string(),
        reason: error.into_inner().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(name: &str, params: Value) -> String {
        builtin::find(name).unwrap().validate(&params).unwrap_err().to_string()
    }

    #[test]
    fn names_are_unique_and_sorted_and_every_adapter_has_its_words() {
        let names: Vec<&str> = builtin::ALL.iter().map(|entry| entry.name).collect();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
        for entry in builtin::ALL {
            assert!(entry.page.starts_with(&format!("# {}\n", entry.name)), "{}", entry.name);
            assert!(!entry.about.is_empty() && !entry.about.contains('\n'), "{}", entry.name);
        }
    }

    #[test]
    fn every_example_of_every_page_is_valid_and_every_page_has_one() {
        for entry in builtin::ALL {
            let examples = builtin::page_examples(entry.page);
            assert!(!examples.is_empty(), "{}", entry.name);
            for example in examples {
                let params = serde_json::from_str(example).unwrap();
                entry.validate(&params).unwrap();
            }
        }
    }

    #[test]
    fn a_refusal_names_adapter_path_and_reason() {
        for (name, params, expect) in [
            (
                "denier",
                json!({"match": {"header": {"name": 1}}}),
                "adapter `denier`, parameter `match.header.name`: invalid type: integer `1`, expected a string",
            ),
            (
                "denier",
                json!({"stauts": 403}),
                "adapter `denier`, parameter `stauts`: unknown field `stauts`, expected one of `match`, `status`, `message`",
            ),
            (
                "memquota",
                json!({"quotas": [{"name": "a", "max_amount": -1, "valid_duration": "1s"}]}),
                "adapter `memquota`, parameter `quotas[0].max_amount`: invalid value: integer `-1`, expected u32",
            ),
            (
                "denier",
                json!({"status": 200}),
                "adapter `denier`, field `status`: found `200`, expected an HTTP error status, 400 to 599",
            ),
        ] {
            assert_eq!(refusal(name, params), expect);
        }
    }

    #[test]
    fn no_parameters_are_an_empty_set() {
        builtin::find("denier").unwrap().validate(&Value::Null).unwrap();
        assert_eq!(
            refusal("memquota", Value::Null),
            "adapter `memquota`, parameter `.`: missing field `quotas`"
        );
    }

    #[test]
    fn what_is_made_takes_the_part_that_was_said() {
        let object = ObjectRef {
            kind: "Adapter".into(),
            namespace: Some("shop".into()),
            name: "closed".into(),
        };
        let (checks, reports) = (CheckMetrics::default(), ReportMetrics::default());
        let context = Context {
            name: "shop/closed",
            object: &object,
            checks: &checks,
            reports: &reports,
        };
        for (name, params, expect) in [
            ("denier", json!({}), "Check(\"shop/closed\")"),
            ("ext_authz", json!({"address": "localhost:1"}), "Check(\"shop/closed\")"),
            (
                "list",
                json!({"entries": ["a"], "value": "request.path"}),
                "Check(\"shop/closed\")",
            ),
            (
                "memquota",
                json!({"quotas": [{"name": "a", "max_amount": 1, "valid_duration": "1s"}]}),
                "Check(\"shop/closed\")",
            ),
            (
                "opa",
                json!({"policy": ["package p\n r := true"], "check_method": "data.p.r"}),
                "Check(\"shop/closed\")",
            ),
            (
                "otlp",
                json!({"endpoint": "http://localhost:1"}),
                "Report(\"shop/closed\")",
            ),
            (
                "redisquota",
                json!({"quotas": [{"name": "a", "max_amount": 1, "valid_duration": "1s"}]}),
                "Check(\"shop/closed\")",
            ),
            ("statsd", json!({}), "Report(\"shop/closed\")"),
            ("stdio", json!({}), "Report(\"shop/closed\")"),
            (
                "zipkin",
                json!({"url": "http://localhost:1/api/v2/spans"}),
                "Report(\"shop/closed\")",
            ),
        ] {
            let part = builtin::find(name).unwrap().make(&params, &context).unwrap();
            assert_eq!(format!("{part:?}"), expect, "{name}");
        }
    }
}
