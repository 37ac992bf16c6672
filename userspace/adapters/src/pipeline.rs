//! Checks: adapters that may refuse a request. They run one after the other, and the first deny ends it.

use std::{fmt, sync::Arc};

use weft_policy::ObjectRef;

use crate::attribute::Bag;

/// What a client gets if an adapter denies with a number that is no HTTP error.
pub const DEFAULT_DENY_STATUS: u16 = 403;

/// An adapter that judges. It runs on the request path: no I/O, no lock, no waiting.
pub trait Check: Send + Sync {
    /// Name of the handler, as the operator wrote it.
    fn name(&self) -> &str;
    fn check(&self, bag: &Bag<'_>) -> CheckResult;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckResult {
    Allow,
    Deny {
        /// HTTP status for the client, 400 to 599.
        status: u16,
        /// For the client.
        message: String,
        /// The object that says so; `None`: the adapter itself, as kind `Adapter`.
        rule: Option<ObjectRef>,
    },
}

/// A refusal that says who refused and by which rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    pub adapter: String,
    pub status: u16,
    pub message: String,
    pub rule: ObjectRef,
}

/// The checks that concern a request, in order. Clones share the adapters.
#[derive(Clone, Default)]
pub struct Pipeline {
    pub checks: Vec<Arc<dyn Check>>,
}

// === impl Pipeline ===

impl Pipeline {
    pub fn new(checks: Vec<Arc<dyn Check>>) -> Self {
        Self { checks }
    }

    /// Nobody looks: the caller need not even build a bag.
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty()
    }

    /// `None`: allowed. Checks behind the first deny are not asked.
    pub fn check(&self, bag: &Bag<'_>) -> Option<Denied> {
        self.checks.iter().find_map(|check| match check.check(bag) {
            CheckResult::Allow => None,
            CheckResult::Deny { status, message, rule } => Some(Denied {
                adapter: check.name().to_owned(),
                status: if (400..600).contains(&status) {
                    status
                } else {
                    DEFAULT_DENY_STATUS
                },
                message,
                rule: rule.unwrap_or_else(|| ObjectRef {
                    kind: "Adapter".to_owned(),
                    namespace: None,
                    name: check.name().to_owned(),
                }),
            }),
        })
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.checks.iter().map(|check| check.name()))
            .finish()
    }
}

// === impl Denied ===

/// The reason of a flow event.
impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "denied by adapter {} ({}): {}",
            self.adapter, self.rule, self.message
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::attribute::tests::with_bag;

    struct Fixed {
        name: &'static str,
        result: CheckResult,
        asked: AtomicUsize,
    }

    impl Check for Fixed {
        fn name(&self) -> &str {
            self.name
        }

        fn check(&self, _bag: &Bag<'_>) -> CheckResult {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.result.clone()
        }
    }

    fn fixed(name: &'static str, result: CheckResult) -> Arc<Fixed> {
        Arc::new(Fixed {
            name,
            result,
            asked: AtomicUsize::new(0),
        })
    }

    fn deny(status: u16, rule: Option<ObjectRef>) -> CheckResult {
        CheckResult::Deny {
            status,
            message: "no".into(),
            rule,
        }
    }

    #[test]
    fn no_checks_allow() {
        let pipeline = Pipeline::default();
        assert!(pipeline.is_empty());
        assert_eq!(with_bag(&[], |bag| pipeline.check(&bag)), None);
    }

    #[test]
    fn the_first_deny_ends_it() {
        let (first, second, third) = (
            fixed("a", CheckResult::Allow),
            fixed("b", deny(429, None)),
            fixed("c", deny(500, None)),
        );
        let pipeline = Pipeline::new(vec![first.clone(), second.clone(), third.clone()]);
        let denied = with_bag(&[], |bag| pipeline.check(&bag)).unwrap();
        assert_eq!((denied.adapter.as_str(), denied.status), ("b", 429));
        assert_eq!(
            [first, second, third].map(|check| check.asked.load(Ordering::Relaxed)),
            [1, 1, 0]
        );
    }

    #[test]
    fn a_deny_names_adapter_and_rule() {
        let rule = ObjectRef {
            kind: "rule".into(),
            namespace: Some("default".into()),
            name: "r".into(),
        };
        for (given, expect) in [
            (Some(rule.clone()), "denied by adapter b (rule default/r): no"),
            (None, "denied by adapter b (Adapter b): no"),
        ] {
            let pipeline = Pipeline::new(vec![fixed("b", deny(403, given))]);
            let denied = with_bag(&[], |bag| pipeline.check(&bag)).unwrap();
            assert_eq!(denied.to_string(), expect);
        }
    }

    #[test]
    fn a_deny_is_never_answered_with_success() {
        for status in [0, 200, 302, 600] {
            let pipeline = Pipeline::new(vec![fixed("b", deny(status, None))]);
            assert_eq!(
                with_bag(&[], |bag| pipeline.check(&bag)).unwrap().status,
                DEFAULT_DENY_STATUS
            );
        }
    }
}
