//! Checks: adapters that may refuse a request. They run one after the other, and the first deny ends it.

use std::{fmt, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use weft_policy::ObjectRef;

use crate::attribute::{Bag, Headers, RequestView};

/// What a client gets if an adapter denies with a number that is neither an HTTP error nor a redirect.
pub const DEFAULT_DENY_STATUS: u16 = 403;

/// An adapter that judges. It runs on the request path: no blocking, no lock that is held for long.
pub trait Check: Send + Sync {
    /// Name of the handler, as the operator wrote it.
    fn name(&self) -> &str;

    fn check<'a>(&'a self, bag: &'a Bag<'_>) -> Checking<'a>;
}

/// An answer, now or later. Only adapters that must ask somebody else suspend a request.
pub enum Checking<'a> {
    Ready(CheckResult),
    /// Runs on the worker that asked; dropped if the client goes away.
    Pending(Pin<Box<dyn Future<Output = CheckResult> + 'a>>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckResult {
    Allow,
    /// And change headers on the way.
    AllowWith(Box<Directives>),
    Deny(Box<Deny>),
    /// It gives no verdict: the refusal if nothing says otherwise; `None`: its own parameters say to let the request pass.
    Unjudged(Option<Box<Deny>>),
}

/// What an adapter says when it refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deny {
    /// HTTP status for the client, 300 to 599 (a redirect may lead to a login).
    pub status: u16,
    /// For the client, the log and the flow event.
    pub message: String,
    /// Headers for the client, such as `www-authenticate` or `retry-after`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Body for the client; `None`: a line made of the message.
    pub body: Option<Bytes>,
    /// The object that says so; `None`: the adapter itself, as kind `Adapter`.
    pub rule: Option<ObjectRef>,
}

/// Changes to headers that allowed requests carry on: Mixer's route directive, ext_authz's `OkHttpResponse`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directives {
    /// Applied to the request before it is forwarded.
    pub request: Vec<HeaderOperation>,
    /// Applied to the endpoint's answer.
    pub response: Vec<HeaderOperation>,
}

/// One change to a set of headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderOperation {
    /// In place of all values of that name.
    Replace(HeaderName, HeaderValue),
    Append(HeaderName, HeaderValue),
    /// Where there is none of that name.
    AddIfAbsent(HeaderName, HeaderValue),
    /// In place of all values of that name, where there are some.
    ReplaceIfPresent(HeaderName, HeaderValue),
    Remove(HeaderName),
}

/// A refusal that says who refused and by which rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    pub adapter: String,
    /// 300 to 599.
    pub status: u16,
    pub message: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Option<Bytes>,
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

    /// What all of them together want changed. Checks behind the first deny are not asked; each sees the request as those before
    /// it want it, for what a client sent in its place says nothing.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn check(&self, bag: &Bag<'_>) -> Result<Directives, Box<Denied>> {
        let mut directives = Directives::default();
        for (at, check) in self.checks.iter().enumerate() {
            let result = match check.check(bag) {
                Checking::Ready(result) => result,
                Checking::Pending(answer) => answer.await,
            };
            directives.take(check.name(), result)?;
            if !directives.request.is_empty() && at + 1 < self.checks.len() {
                // In a box: few change anything, and of these the fewest are not the last.
                return Box::pin(self.check_changed(at + 1, bag, directives)).await;
            }
        }
        Ok(directives)
    }

    /// The checks from this one on, behind some that want changes.
    async fn check_changed(
        &self,
        from: usize,
        bag: &Bag<'_>,
        mut directives: Directives,
    ) -> Result<Directives, Box<Denied>> {
        for check in &self.checks[from..] {
            let headers = bag.request.map(|request| directives.applied(request.headers));
            let request = bag.request.zip(headers.as_ref());
            let changed = Bag {
                request: request.map(|(request, headers)| RequestView { headers, ..request }),
                ..*bag
            };
            let result = match check.check(&changed) {
                Checking::Ready(result) => result,
                Checking::Pending(answer) => answer.await,
            };
            directives.take(check.name(), result)?;
        }
        Ok(directives)
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.checks.iter().map(|check| check.name()))
            .finish()
    }
}

// === impl Checking ===

impl Checking<'_> {
    pub const ALLOW: Self = Self::Ready(CheckResult::Allow);

    pub fn deny(deny: Deny) -> Self {
        Self::Ready(CheckResult::Deny(Box::new(deny)))
    }

    /// No verdict; refused with this unless the adapter is open.
    pub fn unjudged(deny: Deny) -> Self {
        Self::Ready(CheckResult::Unjudged(Some(Box::new(deny))))
    }
}

// === impl Deny ===

impl Deny {
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            headers: Vec::new(),
            body: None,
            rule: None,
        }
    }

    /// Named by flow events instead of the adapter.
    pub fn by(mut self, rule: Option<ObjectRef>) -> Self {
        self.rule = rule;
        self
    }

    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}

// === impl Directives ===

impl Directives {
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }

    /// Takes what the check `name` came to.
    fn take(&mut self, name: &str, result: CheckResult) -> Result<(), Box<Denied>> {
        match result {
            CheckResult::Allow | CheckResult::Unjudged(None) => Ok(()),
            CheckResult::AllowWith(more) => {
                self.request.extend(more.request);
                self.response.extend(more.response);
                Ok(())
            }
            CheckResult::Deny(deny) | CheckResult::Unjudged(Some(deny)) => Err(Box::new(Denied::new(name, *deny))),
        }
    }

    /// A request's headers with the changes.
    fn applied(&self, headers: &dyn Headers) -> HeaderMap {
        let mut map = HeaderMap::new();
        headers.each(&mut |name, value| {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value)) {
                map.append(name, value);
            }
        });
        self.request.iter().for_each(|operation| operation.apply(&mut map));
        map
    }
}

// === impl HeaderOperation ===

impl HeaderOperation {
    pub fn apply(&self, headers: &mut HeaderMap) {
        match self {
            Self::Replace(name, value) => {
                headers.insert(name, value.clone());
            }
            Self::Append(name, value) => {
                headers.append(name, value.clone());
            }
            Self::AddIfAbsent(name, value) => {
                headers.entry(name).or_insert_with(|| value.clone());
            }
            Self::ReplaceIfPresent(name, value) => {
                if headers.contains_key(name) {
                    headers.insert(name, value.clone());
                }
            }
            Self::Remove(name) => {
                headers.remove(name);
            }
        }
    }
}

// === impl Denied ===

impl Denied {
    fn new(adapter: &str, deny: Deny) -> Self {
        Self {
            adapter: adapter.to_owned(),
            status: if (300..600).contains(&deny.status) {
                deny.status
            } else {
                DEFAULT_DENY_STATUS
            },
            message: deny.message,
            headers: deny.headers,
            body: deny.body,
            rule: deny.rule.unwrap_or_else(|| ObjectRef {
                kind: "Adapter".into(),
                namespace: None,
                name: adapter.to_owned(),
            }),
        }
    }
}

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
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::{Context, Poll, Waker},
    };

    use super::*;
    use crate::attribute::tests::with_bag;

    struct Fixed {
        name: &'static str,
        result: CheckResult,
        later: bool,
        asked: AtomicUsize,
    }

    impl Check for Fixed {
        fn name(&self) -> &str {
            self.name
        }

        fn check<'a>(&'a self, _bag: &'a Bag<'_>) -> Checking<'a> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.later {
                Checking::Pending(Box::pin(async { self.result.clone() }))
            } else {
                Checking::Ready(self.result.clone())
            }
        }
    }

    fn fixed(name: &'static str, result: CheckResult) -> Arc<Fixed> {
        Arc::new(Fixed {
            name,
            result,
            later: name == "later",
            asked: AtomicUsize::new(0),
        })
    }

    fn ask(pipeline: &Pipeline) -> Result<Directives, Box<Denied>> {
        with_bag(&[], |bag| {
            let mut asking = std::pin::pin!(pipeline.check(&bag));
            match asking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(answer) => answer,
                Poll::Pending => panic!("nothing here waits"),
            }
        })
    }

    fn deny(status: u16, rule: Option<ObjectRef>) -> CheckResult {
        CheckResult::Deny(Box::new(Deny::new(status, "no").by(rule)))
    }

    #[test]
    fn no_checks_allow() {
        let pipeline = Pipeline::default();
        assert!(pipeline.is_empty());
        assert_eq!(ask(&pipeline), Ok(Directives::default()));
    }

    #[test]
    fn the_first_deny_ends_it() {
        let (first, second, third) = (
            fixed("a", CheckResult::Allow),
            fixed("b", deny(429, None)),
            fixed("c", deny(500, None)),
        );
        let pipeline = Pipeline::new(vec![first.clone(), second.clone(), third.clone()]);
        let denied = ask(&pipeline).unwrap_err();
        assert_eq!((denied.adapter.as_str(), denied.status), ("b", 429));
        assert_eq!(
            [first, second, third].map(|check| check.asked.load(Ordering::Relaxed)),
            [1, 1, 0]
        );
    }

    #[test]
    fn without_a_verdict_the_refusal_holds_that_comes_along() {
        let refusal = Box::new(Deny::new(503, "no list"));
        for (result, expect) in [
            (CheckResult::Unjudged(None), None),
            (CheckResult::Unjudged(Some(refusal)), Some(503)),
        ] {
            let pipeline = Pipeline::new(vec![fixed("a", result)]);
            assert_eq!(ask(&pipeline).err().map(|denied| denied.status), expect);
        }
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
            let denied = ask(&pipeline).unwrap_err();
            assert_eq!(denied.to_string(), expect);
        }
    }

    #[test]
    fn a_deny_is_never_answered_with_success() {
        for status in [0, 200, 299, 600] {
            let pipeline = Pipeline::new(vec![fixed("b", deny(status, None))]);
            assert_eq!(ask(&pipeline).unwrap_err().status, DEFAULT_DENY_STATUS);
        }
    }

    /// Refuses everybody whose `x-user` is not exactly `ann`.
    struct OnlyAnn;

    impl Check for OnlyAnn {
        fn name(&self) -> &str {
            "only-ann"
        }

        fn check<'a>(&'a self, bag: &'a Bag<'_>) -> Checking<'a> {
            let mut users = Vec::new();
            let headers = bag.request.unwrap().headers;
            headers.values("x-user", &mut |user| users.push(user.to_vec()));
            match &*users {
                [user] if user == b"ann" => Checking::ALLOW,
                _ => Checking::deny(Deny::new(403, "not ann")),
            }
        }
    }

    #[test]
    fn a_check_sees_what_those_before_it_set_and_not_what_the_client_sent_in_its_place() {
        let name = HeaderName::from_static("x-user");
        for (sent, set, expect) in [("ann", "eve", Some(403)), ("eve", "ann", None)] {
            let value = HeaderValue::from_static(set);
            let with = CheckResult::AllowWith(Box::new(Directives {
                request: vec![HeaderOperation::Replace(name.clone(), value)],
                response: Vec::new(),
            }));
            let pipeline = Pipeline::new(vec![fixed("jwt", with), Arc::new(OnlyAnn)]);
            let asked = with_bag(&[("X-User", sent), ("x-other", "1")], |bag| {
                let mut asking = std::pin::pin!(pipeline.check(&bag));
                match asking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(answer) => answer,
                    Poll::Pending => panic!("nothing here waits"),
                }
            });
            assert_eq!(asked.err().map(|denied| denied.status), expect, "{sent}");
        }
    }

    #[test]
    fn what_every_check_wants_changed_is_gathered_also_from_one_that_answers_later() {
        let name = HeaderName::from_static("x-user");
        let set = |value| HeaderOperation::Replace(name.clone(), HeaderValue::from_static(value));
        let with = |value| {
            CheckResult::AllowWith(Box::new(Directives {
                request: vec![set(value)],
                response: Vec::new(),
            }))
        };
        let pipeline = Pipeline::new(vec![fixed("a", with("1")), fixed("later", with("2"))]);
        let directives = ask(&pipeline).unwrap();
        let mut headers = HeaderMap::new();
        for operation in &directives.request {
            operation.apply(&mut headers);
        }
        assert_eq!(headers[&name], "2");
        assert_eq!(headers.len(), 1);
    }
}
