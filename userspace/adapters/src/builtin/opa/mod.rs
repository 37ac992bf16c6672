//! Check adapter that evaluates policies in Rego, the language of the Open Policy Agent, within this process.
//!
//! See this folder's README for the page an operator reads.

use std::{
    num::NonZeroU32,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::StatusCode;
use regorus::{Engine, Value, utils::limits::ExecutionTimerConfig};
use weft_policy::ObjectRef;

use crate::{
    attribute::Bag,
    error::AdapterError,
    metrics::CheckMetrics,
    native::{Context, Native, Part, Role},
    outage::Outage,
    per_thread::PerThread,
    pipeline::{Check, CheckResult, Checking, Deny},
    provider::Provider,
};

mod config;
mod decision;
mod input;

use config::wrong;
pub use config::{Config, DEFAULT_TIMEOUT, MAX_TIMEOUT, RegoVersion};

/// Said to the client, who need not know what is behind.
const UNAVAILABLE: &str = "the policy gave no verdict";

/// Steps of an evaluation between two looks at the clock: some microseconds.
const STEPS: NonZeroU32 = NonZeroU32::new(64).expect("it is not 0");

/// Allows what a policy allows.
pub struct Opa {
    name: String,
    rule: Option<ObjectRef>,
    check_method: String,
    /// Compiled; each worker gets a copy, which shares what does not change.
    compiled: Mutex<Engine>,
    engines: PerThread<Mutex<Engine>>,
    outage: Outage,
}

// === impl Opa ===

impl Opa {
    /// Compiles the policies. `rule` is the object that configured it, which flow events will name; `None`: the adapter by its
    /// name.
    ///
    /// # Errors
    /// [`AdapterError::Config`]: a parameter makes no sense, a file cannot be read, a module is no Rego or has no such rule.
    pub fn new(
        name: &str,
        config: Config,
        rule: Option<ObjectRef>,
        metrics: &CheckMetrics,
    ) -> Result<Self, AdapterError> {
        config.validate()?;
        Ok(Self {
            name: name.to_owned(),
            compiled: Mutex::new(compile(&config)?),
            engines: PerThread::default(),
            outage: Outage::new(
                name,
                "in process".to_owned(),
                config.failure_policy,
                Deny::new(StatusCode::INTERNAL_SERVER_ERROR.as_u16(), UNAVAILABLE).by(rule.clone()),
                metrics.of(name).failures,
            ),
            check_method: config.check_method,
            rule,
        })
    }

    fn judge(&self, bag: &Bag<'_>) -> Result<CheckResult, String> {
        let input = Value::from(input::input(bag));
        let engine = self.engines.get_or(|| Mutex::new(lock(&self.compiled).clone()));
        let mut engine = lock(&engine);
        engine.set_input(input);
        let said =
            evaluate(&mut engine, &self.check_method).unwrap_or_else(|| Err("the interpreter panicked".to_owned()));
        if said.is_err() {
            // After an error as well: what a `with` put in its place would be there for the next request.
            *engine = lock(&self.compiled).clone();
        }
        drop(engine);
        let said = match said? {
            Value::Undefined => None,
            said => Some(serde_json::to_value(&said).map_err(|error| error.to_string())?),
        };
        decision::result(said, &self.check_method, self.rule.as_ref())
    }
}

impl Check for Opa {
    fn name(&self) -> &str {
        &self.name
    }

    fn check<'a>(&'a self, bag: &'a Bag<'_>) -> Checking<'a> {
        Checking::Ready(match self.judge(bag) {
            Ok(verdict) => {
                self.outage.answered();
                verdict
            }
            Err(why) => self.outage.failed(&why),
        })
    }
}

impl std::fmt::Debug for Opa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opa")
            .field("name", &self.name)
            .field("check_method", &self.check_method)
            .finish_non_exhaustive()
    }
}

fn compile(config: &Config) -> Result<Engine, AdapterError> {
    let mut engine = Engine::new();
    engine.set_rego_v0(config.rego_version == RegoVersion::V0);
    // As OPA: what a built-in function cannot do with a client's text is undefined, and other rules may decide.
    engine.set_strict_builtin_errors(false);
    let expected = match config.rego_version {
        RegoVersion::V0 => "a module in Rego v0",
        RegoVersion::V1 => "a module in Rego v1",
    };
    for (number, module) in config.policy.iter().enumerate() {
        engine
            .add_policy(format!("policy[{number}]"), module.clone())
            .map_err(|error| wrong("policy", one_line(&error), expected))?;
    }
    for path in &config.policy_files {
        let module = Provider::read_file(path, "opa", "policy_files")?;
        let module = String::from_utf8(module)
            .map_err(|_| wrong("policy_files", path.display().to_string(), "a file in UTF-8"))?;
        engine
            .add_policy(path.display().to_string(), module)
            .map_err(|error| wrong("policy_files", one_line(&error), expected))?;
    }
    engine
        .add_data(Value::from(serde_json::Value::Object(config.data.clone())))
        .map_err(|error| wrong("data", one_line(&error), "an object"))?;
    // Functions and rules that do not exist are noticed when they are used.
    engine.set_execution_timer_config(limited(MAX_TIMEOUT));
    engine.set_input(Value::new_object());
    match evaluate(&mut engine, &config.check_method) {
        Some(Ok(_)) => {}
        Some(Err(why)) => {
            return Err(wrong(
                "check_method",
                why,
                "a rule that can be evaluated, also for an empty input",
            ));
        }
        None => return Err(wrong("policy", "a panic".to_owned(), "a policy that can be evaluated")),
    }
    engine.set_execution_timer_config(limited(config.timeout));
    Ok(engine)
}

fn limited(limit: Duration) -> ExecutionTimerConfig {
    ExecutionTimerConfig {
        limit,
        check_interval: STEPS,
    }
}

/// `None`: it panicked, and the engine is not to be used again.
fn evaluate(engine: &mut Engine, check_method: &str) -> Option<Result<Value, String>> {
    let evaluating = AssertUnwindSafe(|| engine.eval_rule(check_method.to_owned()));
    let said = catch_unwind(evaluating).ok()?;
    Some(said.map_err(|error| one_line(&error)))
}

/// The interpreter draws a picture: `--> FILE:LINE:COLUMN`, the line with a `^` below, and what is wrong with it.
fn one_line(error: &impl ToString) -> String {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let place = lines.next().unwrap_or_default();
    let place = place.strip_prefix("--> ").unwrap_or(place);
    match lines.next_back() {
        Some(what) => format!("{place}: {what}"),
        None => place.to_owned(),
    }
}

/// A poisoned one is replaced by whoever caught the panic.
fn lock(engine: &Mutex<Engine>) -> MutexGuard<'_, Engine> {
    engine.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Native for Opa {
    const NAME: &'static str = "opa";
    const ABOUT: &'static str = "evaluates a policy in Rego";
    const PAGE: &'static str = include_str!("README.md");
    const ROLE: Role = Role::Check;

    type Config = Config;

    /// Compiles the policies, unless some are in files.
    fn validate(config: &Config) -> Result<(), AdapterError> {
        config.validate()?;
        match config.policy_files.is_empty() {
            true => compile(config).map(|_| ()),
            false => Ok(()),
        }
    }

    fn make(config: Config, context: &Context<'_>) -> Result<Part, AdapterError> {
        let rule = Some(context.object.clone());
        Ok(Part::check(Self::new(context.name, config, rule, context.checks)?))
    }
}

#[cfg(test)]
mod tests;
