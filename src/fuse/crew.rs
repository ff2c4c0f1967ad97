//! Which of a session's threads reads, which waits to be called, and when they end.
//!
//! Invariants:
//! - `reading` counts the threads in a read or on their way to one; whoever calls or starts a reader counts it first.
//! - Who leaves the last read sees everybody who is parked, and who is about to park sees that nobody reads: one of the
//!   two goes on reading, unless `threads_max` threads are busy.
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
        // The last reader may have left meanwhile, and found nobody to call.
        if self.take_reader_slot() {
            return true;
        }
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

#[cfg(all(test, feature = "shuttle"))]
mod shuttle {
    use std::collections::VecDeque;

    use super::*;
    use crate::base::sync::thread::{self, Scope};
    use crate::base::sync::{choose, explore};

    #[derive(Clone, Copy)]
    enum Request {
        Quick,
        /// Is served only after a `Release` was.
        Waits,
        Release,
    }

    /// A kernel with requests.
    #[derive(Default)]
    struct Kernel {
        /// Those to come; `None` is the end.
        queue: Mutex<VecDeque<Option<Request>>>,
        come: Condvar,
        /// How many were served, and how many of them release.
        served: Mutex<(usize, usize)>,
        released: Condvar,
    }

    impl Kernel {
        fn send(&self, request: Option<Request>) {
            lock(&self.queue).push_back(request);
            self.come.notify_all();
        }

        fn read(&self) -> Option<Request> {
            let queue = lock(&self.queue);
            let mut queue = self.come.wait_while(queue, |queue| queue.is_empty()).unwrap();
            // Everybody is told of the end.
            queue.front().copied().flatten().inspect(|_| {
                queue.pop_front();
            })
        }

        fn serve(&self, request: Request) {
            let mut served = lock(&self.served);
            match request {
                Request::Quick => {}
                Request::Waits => served = self.released.wait_while(served, |served| served.1 == 0).unwrap(),
                Request::Release => {
                    served.1 += 1;
                    self.released.notify_all();
                }
            }
            served.0 += 1;
        }
    }

    fn work<'scope>(kernel: &'scope Kernel, crew: &'scope Crew, scope: &'scope Scope<'scope, '_>) {
        while let Some(request) = kernel.read() {
            if crew.leave_read() {
                add_reader(kernel, crew, scope);
            }
            kernel.serve(request);
            if !crew.read_again(|| ()) {
                return;
            }
        }
        crew.end(Ok(Ended::Unmounted));
    }

    fn add_reader<'scope>(kernel: &'scope Kernel, crew: &'scope Crew, scope: &'scope Scope<'scope, '_>) {
        let start = || {
            scope.spawn(|| work(kernel, crew, scope));
            Ok(())
        };
        crew.add_reader(start).unwrap();
    }

    #[test]
    fn requests_that_wait_never_keep_others_from_being_read() {
        explore(3000, || {
            let threads = 2 + choose(2) as usize;
            let crew = Crew::new(threads, 1 + choose(2) as usize);
            let kernel = Kernel::default();
            let mut requests = vec![Request::Quick; 2];
            requests.extend(vec![Request::Waits; threads - 1]);
            requests.extend([Request::Quick, Request::Release, Request::Quick]);
            thread::scope(|scope| {
                add_reader(&kernel, &crew, scope);
                requests.iter().for_each(|request| kernel.send(Some(*request)));
                kernel.send(None);
            });
            assert_eq!(crew.outcome().unwrap(), Ended::Unmounted);
            assert_eq!(lock(&kernel.served).0, requests.len());
            let state = crew.lock();
            assert_eq!((state.parked, state.called), (0, 0));
        });
    }
}
