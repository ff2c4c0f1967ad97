//! Locks, condition variables, atomics and threads of what lies above the database: `meta`'s transactions, `store`, `fs`, and
//! the readers of a `fuse` session.
//!
//! They are the standard library's. Under the cargo feature `shuttle`, which only tests turn on, they are those of the crate
//! of that name: all threads of a test share one of the system's, every use of one of these may hand it over to another,
//! and `explore` tries many orders, at random but the same each time. A deadlock ends the test, and so does a lost wake-up:
//! a wait with a limit never reaches it, but for [`wait_or_look_again`], which always does.
//!
//! Invariant of everything that is explored: whoever holds a lock that is not from here (redb's, the volume's, a simulated
//! device's) uses nothing that is. Otherwise the thread would be handed over to somebody who may want that lock, and nobody
//! could go on. That is why everything below redb keeps to `std::sync`, and why no test explores a pool whose metadata lie
//! on its devices: the volume asks the store for space.

#[cfg(not(feature = "shuttle"))]
pub use std::{
    sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic},
    thread,
};

#[cfg(feature = "shuttle")]
pub use shuttle::{
    sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic},
    thread,
};

use std::time::Duration;

pub use std::sync::{PoisonError, TryLockError};

#[cfg(all(test, feature = "shuttle"))]
pub use explore::{choose, explore};

/// Locks a mutex; a panic of another holder does not make the data unusable, because every critical section leaves it
/// consistent at each step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until it is told, at most for `limit`: for what may come true without anybody saying so.
pub fn wait_or_look_again<T>(condvar: &Condvar, guard: MutexGuard<'_, T>, limit: Duration) {
    #[cfg(not(feature = "shuttle"))]
    drop(condvar.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner));
    #[cfg(feature = "shuttle")]
    {
        let _ = (condvar, limit);
        drop(guard);
        thread::yield_now();
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod explore {
    use std::sync::Arc;

    use shuttle::rand::Rng;
    use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler};
    use shuttle::{Config, Runner};

    /// Stack of a task: redb's calls nest deeper than what the crate expects.
    const STACK: usize = 1 << 20;
    /// Changes of priority that one order has at most: few bugs need more.
    const DEPTH: usize = 4;

    fn number(name: &str) -> Option<u64> {
        std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
    }

    /// Runs `model`, which makes its own threads, in `schedules` orders: half of them by chance at each step, half by
    /// priorities that change a few times.
    ///
    /// `ARGOSFS_SCHEDULES` multiplies how many there are, `ARGOSFS_SEED` makes them others. An order that fails is printed
    /// as lines of digits; given those, the test runs it alone:
    ///
    /// ```text
    /// ARGOSFS_SCHEDULE="9101.." cargo test --features shuttle --lib shuttle::NAME -- --nocapture
    /// ```
    pub fn explore(schedules: usize, model: impl Fn() + Send + Sync + 'static) {
        let model = Arc::new(model);
        let run = || {
            let model = model.clone();
            move || model()
        };
        let config = || {
            let mut config = Config::new();
            config.stack_size = STACK;
            config.silence_warnings = true;
            config
        };
        if let Ok(schedule) = std::env::var("ARGOSFS_SCHEDULE") {
            let mut scheduler = ReplayScheduler::new_from_encoded(schedule.trim());
            // What does not fail any more may go on for longer.
            scheduler.set_allow_incomplete();
            Runner::new(scheduler, config()).run(run());
            return;
        }
        let seed = number("ARGOSFS_SEED").unwrap_or(1);
        let each = schedules * number("ARGOSFS_SCHEDULES").unwrap_or(1) as usize / 2;
        Runner::new(RandomScheduler::new_from_seed(seed, each), config()).run(run());
        Runner::new(PctScheduler::new_from_seed(seed, DEPTH, each), config()).run(run());
    }

    /// A number below `end`, chosen within a model and the same when its order is run again.
    pub fn choose(end: u64) -> u64 {
        shuttle::rand::thread_rng().gen_range(0..end)
    }
}
