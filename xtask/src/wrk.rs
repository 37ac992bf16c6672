//! What wrk says.

use anyhow::{Context, Result, ensure};

/// What a run of wrk came to, every request being answered.
#[derive(Debug, PartialEq)]
pub struct Answered {
    pub requests: f64,
    /// A second.
    pub rate: f64,
}

// === impl Answered ===

impl Answered {
    /// Reads what it printed.
    ///
    /// # Errors
    /// Not every request was answered with 2xx or 3xx, or it printed something else.
    pub fn read(said: &str) -> Result<Self> {
        ensure!(
            !said.contains("Non-2xx") && !said.contains("Socket errors"),
            "not every request was answered: {said}"
        );
        let rate = said.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
        // "  40338 requests in 2.00s, 7.00MB read"
        let count = said.lines().find_map(|line| line.trim().split_once(" requests in "));
        let number = |text: Option<&str>| -> Result<f64> {
            text.and_then(|text| text.trim().parse().ok())
                .with_context(|| format!("no count in what wrk said: {said}"))
        };
        Ok(Self {
            requests: number(count.map(|(count, _)| count))?,
            rate: number(rate)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
Running 2s test @ http://127.0.0.1:9001/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   794.49us  318.33us   7.01ms   88.73%
    Req/Sec    20.27k     1.63k   22.61k    75.00%
  40338 requests in 2.00s, 7.00MB read
Requests/sec:  20167.11
Transfer/sec:      3.50MB
";

    #[test]
    fn count_and_rate_are_read() -> Result<()> {
        let expect = Answered {
            requests: 40338.0,
            rate: 20167.11,
        };
        assert_eq!(Answered::read(SAID)?, expect);
        Ok(())
    }

    #[test]
    fn a_run_with_a_request_that_was_not_answered_is_an_error() {
        for fault in [
            "  Non-2xx or 3xx responses: 7\n",
            "  Socket errors: connect 0, read 3, write 0, timeout 0\n",
        ] {
            let said = SAID.replace("Requests/sec", &format!("{fault}Requests/sec"));
            let error = Answered::read(&said).unwrap_err().to_string();
            assert!(error.contains(fault.trim()), "{error}");
        }
        Answered::read("unable to connect").unwrap_err();
    }
}
