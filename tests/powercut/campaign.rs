//! Seeds, states, and how a failure says how to see it again.
//!
//! A test runs some seeds; each makes one history and looks at some states after power cuts of it. Every state draws from a
//! generator of its own, so that one of them can be replayed alone.
//!
//! | variable | meaning |
//! |---|---|
//! | `ARGOSFS_SEEDS` | how many seeds instead of the few a plain run takes |
//! | `ARGOSFS_FIRST_SEED` | the first of them |
//! | `ARGOSFS_STATES` | states of each seed |
//! | `ARGOSFS_SECONDS` | no new seed is begun after so long |
//! | `ARGOSFS_SEED`, `ARGOSFS_STATE` | only this one |
//! | `ARGOSFS_TRACE` | tell every step |

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use argosfs::base::Prng;
use argosfs::base::rng::mix64;

/// What a check found wrong.
pub type Verdict<T = ()> = Result<T, String>;

/// The states of one seed that are to be looked at.
pub struct States {
    seed: u64,
    numbers: std::ops::Range<u64>,
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text}")))
}

/// Tells what is being done, when asked to.
pub fn trace(line: impl FnOnce() -> String) {
    if std::env::var_os("ARGOSFS_TRACE").is_some() {
        eprintln!("  {}", line());
    }
}

/// Runs `body` for every seed of the test called `test`.
pub fn campaign(test: &str, seeds: u64, states: u64, body: impl Fn(u64, &States) -> Verdict) {
    let first = variable("ARGOSFS_FIRST_SEED").unwrap_or(0);
    let mut wanted = first..first + variable("ARGOSFS_SEEDS").unwrap_or(seeds);
    if let Some(seed) = variable("ARGOSFS_SEED") {
        wanted = seed..seed + 1;
    }
    let mut numbers = 0..variable("ARGOSFS_STATES").unwrap_or(states);
    if let Some(state) = variable("ARGOSFS_STATE") {
        numbers = state..state + 1;
    }
    let end = variable("ARGOSFS_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut done = 0;
    for seed in wanted {
        if end.is_some_and(|end| Instant::now() > end) {
            break;
        }
        let states = States { seed, numbers: numbers.clone() };
        if let Err(why) = guarded(|| body(seed, &states)) {
            let state = why.strip_prefix("state ").and_then(|text| text.split(':').next()).map(str::to_owned);
            let state = state.map(|number| format!("ARGOSFS_STATE={number} ")).unwrap_or_default();
            panic!(
                "{test}, seed {seed}: {why}\n\nsee it again with:\n  ARGOSFS_SEED={seed} {state}{}cargo test --test powercut \
                 {test} -- --exact --nocapture\n",
                if state.is_empty() { format!("ARGOSFS_STATES={} ", numbers.end) } else { String::new() }
            );
        }
        done += 1;
    }
    eprintln!("{test}: {done} seeds, {} states each", numbers.end - numbers.start);
}

impl States {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.numbers.end - self.numbers.start
    }

    /// Calls `check` for every state, with a generator of its own.
    pub fn each(&self, mut check: impl FnMut(&mut Prng) -> Verdict) -> Verdict {
        for number in self.numbers.clone() {
            let mut prng = Prng::new(mix64(self.seed) ^ mix64(number + 1));
            guarded(|| check(&mut prng)).map_err(|why| format!("state {number}: {why}"))?;
        }
        Ok(())
    }
}

/// A panic is a verdict too.
pub fn guarded(body: impl FnOnce() -> Verdict) -> Verdict {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(format!("panic: {}", text(&*panic))))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Adds what was being done to an error.
pub trait While<T> {
    /// `what` failed.
    fn during(self, what: impl FnOnce() -> String) -> Verdict<T>;
}

impl<T, E: std::fmt::Display> While<T> for Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> Verdict<T> {
        self.map_err(|error| format!("{}: {error}", what()))
    }
}
