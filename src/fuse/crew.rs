//! Which of a session's threads reads, which waits to be called, and when they end.
//!
//! Invariants:
//! - `reading` counts the threads in a read or on their way to one; whoever calls or starts a reader counts it first.
//! - At most `readers_max` threads wait in reads.

use std::io;
use std::time::Duration;

use crate::base::sync::atomic::{AtomicUsize, Ordering};
use crate::base::sync::{Condvar, Mutex, MutexGuard, lock};
use crate::base::{Error, Result};

/// How long a thread without work is kept.
const SURPLUS_LIFE: Duration = Duration::from_secs(5);
/// How long such a thread keeps the pages of its buffer.
const SURPLUS_WARMTH: Duration = Duration::from_millis(100);

/// Why a session is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The last mount of it is gone.
    Unmounted,
    /// The connection was broken on request.
    Aborted,
}

/// The threads of one session, as far as they have to know of each other.
pub struct Crew {
    threads_max: usize,
    readers_max: usize,
    reading: AtomicUsize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    threads: usize,
    parked: usize,
    /// Parked threads told to go and read, not yet awake.
    called: usize,
    ended: Option<Result<Ended>>,
}

impl Crew {
    /// At most `threads_max` threads, of which about `readers_max` wait in reads.
    pub fn new(threads_max: usize, readers_max: usize) -> Crew {
        let threads_max = threads_max.max(2);
        Crew {
            threads_max,
            readers_max: readers_max.min(threads_max),
            reading: AtomicUsize::new(0),
            state: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    /// Calls a parked thread to read, or lets `start` start one, unless there are enough.
    pub fn add_reader(&self, start: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.lock();
        if state.ended.is_some() {
            return Ok(());
        }
        if state.parked > state.called {
            state.called += 1;
            self.reading.fetch_add(1, Ordering::AcqRel);
            self.wake.notify_one();
        } else if state.threads < self.threads_max {
            state.threads += 1;
            self.reading.fetch_add(1, Ordering::AcqRel);
            return start().inspect_err(|_| {
                state.threads -= 1;
                self.reading.fetch_sub(1, Ordering::AcqRel);
            });
        }
        Ok(())
    }

    /// A request was read and is to be served; says whether nobody reads any more.
    pub fn leave_read(&self) -> bool {
        self.reading.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Says whether a thread that has served its request is to read again, or to end. With enough readers it waits until
    /// it is called; `cool` is called when that takes long.
    pub fn read_again(&self, mut cool: impl FnMut()) -> bool {
        if self.take_reader_slot() {
            return true;
        }
        let mut state = self.lock();
        state.parked += 1;
        for (patience, last) in [(SURPLUS_WARMTH, false), (SURPLUS_LIFE, true)] {
            state = self
                .wake
                .wait_timeout_while(state, patience, |state| state.called == 0 && state.ended.is_none())
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
            if state.called > 0 {
                state.called -= 1;
                state.parked -= 1;
                return true;
            }
            if last || state.ended.is_some() {
                break;
            }
            drop(state);
            cool();
            state = self.lock();
        }
        state.parked -= 1;
        state.threads -= 1;
        false
    }

    fn take_reader_slot(&self) -> bool {
        self.reading
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |readers| {
                (readers < self.readers_max).then_some(readers + 1)
            })
            .is_ok()
    }

    /// A thread that was to read cannot; says whether it was the last.
    pub fn desert(&self) -> bool {
        let mut state = self.lock();
        state.threads -= 1;
        let last = state.threads == 0;
        drop(state);
        self.reading.fetch_sub(1, Ordering::AcqRel);
        last
    }

    /// Ends the session for everybody; the first reason counts.
    pub fn end(&self, how: Result<Ended>) {
        self.lock().ended.get_or_insert(how);
        self.wake.notify_all();
    }

    /// Why the session ended, once all threads are gone.
    pub fn outcome(&self) -> Result<Ended> {
        self.lock().ended.take().unwrap_or_else(|| Err(Error::Unavailable("no thread could be started".into())))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}
