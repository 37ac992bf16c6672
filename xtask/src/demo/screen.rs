//! What the demo prints: acts, lines that hold or do not, and the count at the end.

use std::{
    fmt::Display,
    io::{IsTerminal, stdout},
    time::{Duration, Instant},
};

use anyhow::Result;
use vm_test::poll;

pub struct Screen {
    colour: bool,
    acts: usize,
    held: usize,
    failed: usize,
    start: Instant,
}

#[derive(Clone, Copy)]
enum Ink {
    Bold,
    Dim,
    Green,
    Red,
}

// === impl Screen ===

impl Screen {
    /// Coloured on a terminal, unless `NO_COLOR` says otherwise.
    pub fn new() -> Self {
        let colour = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            colour,
            acts: 0,
            held: 0,
            failed: 0,
            start: Instant::now(),
        }
    }

    /// Words without a claim.
    pub fn say(&self, words: &str) {
        println!("\n{words}");
    }

    /// Heading of what follows.
    pub fn act(&mut self, title: &str) {
        self.acts += 1;
        println!("\n{}", self.ink(Ink::Bold, format!("{}. {title}", self.acts)));
    }

    /// One line of the demo: what is claimed, the command that shows it, and what `measure` found, or why not.
    ///
    /// # Errors
    /// The demo was interrupted. A claim that does not hold is counted and no error.
    pub fn check(&mut self, claim: &str, command: &str, measure: impl FnOnce() -> Result<String>) -> Result<()> {
        println!("   {}", self.ink(Ink::Dim, format!("$ {command}")));
        let result = measure();
        poll::check_interrupt()?;
        match result {
            Ok(measured) => {
                self.held += 1;
                println!(" {} {claim}: {measured}", self.ink(Ink::Green, "✓"));
            }
            Err(error) => {
                self.failed += 1;
                println!(" {} {claim}: {error:#}", self.ink(Ink::Red, "✗"));
            }
        }
        Ok(())
    }

    /// Output of a program, as it came.
    pub fn quote(&self, output: &str) {
        for line in output.lines() {
            println!("   {}", self.ink(Ink::Dim, line));
        }
    }

    pub fn shown(&self) -> usize {
        self.held + self.failed
    }

    pub fn failed(&self) -> usize {
        self.failed
    }

    pub fn total(&self) {
        let took = crate::shell::seconds(self.start.elapsed());
        println!("\n{} of {} lines held, in {took}", self.held, self.shown());
    }

    fn ink(&self, ink: Ink, words: impl Display) -> String {
        if !self.colour {
            return words.to_string();
        }
        let code = match ink {
            Ink::Bold => "1",
            Ink::Dim => "2",
            Ink::Green => "32",
            Ink::Red => "31",
        };
        format!("\x1b[{code}m{words}\x1b[0m")
    }
}

/// A duration as people read it beside others.
pub fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}
