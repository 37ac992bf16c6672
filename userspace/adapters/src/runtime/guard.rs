//! What stands between a request and an adapter's check: it counts, and contains a panic.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::Poll,
    time::Instant,
};

use http::StatusCode;
use weft_policy::{AdapterConfig, AdapterFailure, AdapterRole, ObjectRef};

use super::{LivePart, name_of};
use crate::{
    attribute::Bag,
    metrics::CheckCounters,
    pipeline::{Check, CheckResult, Checking, Deny},
};

/// A check that fails as its failure policy says.
pub(super) struct Guarded {
    check: Arc<dyn Check>,
    object: ObjectRef,
    failure: AdapterFailure,
    counters: CheckCounters,
}

/// In the place of an adapter that could not be made.
pub(super) struct Broken {
    name: String,
    object: ObjectRef,
    counters: CheckCounters,
}

// === impl Guarded ===

impl Guarded {
    pub fn new(check: Arc<dyn Check>, config: &AdapterConfig, counters: CheckCounters) -> Self {
        Self {
            check,
            object: config.object.clone(),
            failure: config.failure_policy,
            counters,
        }
    }

    /// `None`: it panicked.
    fn counted(&self, began: Instant, result: Option<CheckResult>) -> CheckResult {
        self.counters.took(began);
        let result = result.unwrap_or_else(|| {
            let status = StatusCode::INTERNAL_SERVER_ERROR.as_u16();
            let deny = Deny::new(status, "the adapter failed").by(Some(self.object.clone()));
            CheckResult::Unjudged(Some(Box::new(deny)))
        });
        match result {
            CheckResult::Allow | CheckResult::AllowWith(_) => self.counters.allowed.inc(),
            CheckResult::Deny(_) => self.counters.denied.inc(),
            CheckResult::Unjudged(_) => self.counters.failed.inc(),
        };
        match (result, self.failure) {
            // Open where either the object or its parameters say so.
            (CheckResult::Unjudged(_), AdapterFailure::Open) => CheckResult::Unjudged(None),
            (result, _) => result,
        }
    }
}

impl Check for Guarded {
    fn name(&self) -> &str {
        self.check.name()
    }

    fn check<'a>(&'a self, bag: &'a Bag<'_>) -> Checking<'a> {
        let began = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| self.check.check(bag))) {
            Ok(Checking::Ready(result)) => Checking::Ready(self.counted(began, Some(result))),
            Ok(Checking::Pending(mut answer)) => Checking::Pending(Box::pin(async move {
                let result = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(cx))) {
                    Ok(Poll::Pending) => Poll::Pending,
                    Ok(Poll::Ready(result)) => Poll::Ready(Some(result)),
                    Err(_panic) => Poll::Ready(None),
                });
                let result = result.await;
                self.counted(began, result)
            })),
            Err(_panic) => Checking::Ready(self.counted(began, None)),
        }
    }
}

// === impl Broken ===

impl Broken {
    /// What requests meet instead: a refusal, or nothing.
    pub fn part(config: &AdapterConfig, counters: &CheckCounters) -> LivePart {
        if config.role == AdapterRole::Report || config.failure_policy == AdapterFailure::Open {
            return LivePart::Nothing;
        }
        LivePart::Check(Arc::new(Self {
            name: name_of(&config.object),
            object: config.object.clone(),
            counters: counters.clone(),
        }))
    }
}

impl Check for Broken {
    fn name(&self) -> &str {
        &self.name
    }

    fn check<'a>(&'a self, _bag: &'a Bag<'_>) -> Checking<'a> {
        self.counters.failed.inc();
        // Why, an operator finds in `weft adapter list`: it is not for clients.
        let deny = Deny::new(StatusCode::SERVICE_UNAVAILABLE.as_u16(), "the adapter is not in force");
        Checking::deny(deny.by(Some(self.object.clone())))
    }
}
