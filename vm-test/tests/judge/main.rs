//! The compiled tables agree with a naive stateful judge: random policies, real programs, every verdict compared.
//!
//! One lab with three programs of the mesh and one outside (`traffic actor`). A story is a policy and steps: connect, send,
//! answer unasked, close, put another policy in force. The judge (`naive.rs`) knows only the rules; what it must remember,
//! the flows, is in `play.rs`. A story that fails is shrunk, by playing smaller ones.
//!
//! `WEFT_JUDGE_STORIES` (default 12) and `WEFT_JUDGE_SEED` (default 1) make longer and other runs; a failure tells both.

mod naive;
mod play;
mod resources;
mod world;

use std::env;

use anyhow::{Context, Result, bail};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use vm_test::lab_test;

use self::play::Stage;

/// Stories of a usual run: about 20 s.
const STORIES: u32 = 12;
/// Longest search for a smaller story, in milliseconds.
const SHRINK_MS: u32 = 120_000;

fn number(variable: &str, default: u64) -> Result<u64> {
    match env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text} is no number")),
        Err(_) => Ok(default),
    }
}

#[test]
fn real_flows_meet_the_verdicts_of_a_naive_judge() {
    lab_test("judge", |lab| {
        // sk_lookup answers what it refuses: nobody waits for what does not come.
        lab.daemon_with(&["--inbound", "netns"])?;
        let stage = Stage::new(lab)?;
        let seed = number("WEFT_JUDGE_SEED", 1)?;
        let stories = u32::try_from(number("WEFT_JUDGE_STORIES", STORIES.into())?).context("WEFT_JUDGE_STORIES")?;
        let config = Config {
            cases: stories,
            failure_persistence: None,
            max_shrink_time: SHRINK_MS,
            max_shrink_iters: 2_000,
            ..Config::default()
        };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
        let result = runner.run(&world::story(), |(world, steps)| {
            stage
                .play(&world, &steps)
                .map_err(|error| TestCaseError::fail(format!("{error:#}")))
        });
        told(result, seed, stories)
    });
}

fn told<T: std::fmt::Debug>(result: Result<(), TestError<T>>, seed: u64, stories: u32) -> Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, _)) => {
            bail!("{why}\nWEFT_JUDGE_SEED={seed} WEFT_JUDGE_STORIES={stories} plays it again")
        }
        Err(TestError::Abort(why)) => bail!("no story was played: {why}"),
    }
}
