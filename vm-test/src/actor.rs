//! `traffic actor`: a program that does what a test tells it, a step at a time.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::Running;

/// One that runs. The head of `src/bin/traffic/actor.rs` lists the steps.
pub struct Actor {
    program: Running,
    lines: usize,
}

// === impl Actor ===

impl Actor {
    /// Waits until it serves its ports.
    ///
    /// # Errors
    /// It ends before, or does not within [`crate::poll::PATIENCE`].
    pub fn new(mut program: Running) -> Result<Self> {
        program.line(1)?;
        Ok(Self { program, lines: 1 })
    }

    /// Has it take a step, and waits for its answer.
    ///
    /// # Errors
    /// It has ended (as it does at a step that it does not know), or does not answer.
    pub fn step(&mut self, words: &str) -> Result<Value> {
        self.begin(words)?;
        self.end().with_context(|| format!("`{words}`"))
    }

    /// Has it take a step whose answer [`Actor::end`] waits for.
    ///
    /// # Errors
    /// It has ended.
    pub fn begin(&mut self, words: &str) -> Result<()> {
        self.program.say(words)
    }

    /// Its answer to the step that was begun.
    ///
    /// # Errors
    /// As [`Actor::step`].
    pub fn end(&mut self) -> Result<Value> {
        self.lines += 1;
        let line = self.program.line(self.lines)?;
        serde_json::from_str(&line).with_context(|| format!("read its answer `{line}`"))
    }
}
