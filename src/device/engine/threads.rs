//! A fixed pool of threads that runs the requests of batches by the devices' own methods.
//!
//! Invariants:
//! - Each request of a batch is claimed by exactly one thread, through one counter.
//! - `run` waits for every claimed request, also when one panics; the panic then goes on in the caller.
//! - The caller works on its own batch too, so a batch advances even when every worker is stuck elsewhere.

use super::errands::Errands;
use crate::device::{Answer, Engine, OwnRead, Request, patience};
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Threads of one pool: wide enough for a stripe of 8 + 3, and for two of 4 + 2.
const WORKERS: usize = 12;

/// A batch being run. Workers may look at it after it is done; then nothing is left to claim.
struct Batch {
    requests: *mut Request<'static>,
    len: usize,
    next: AtomicUsize,
    progress: Mutex<Progress>,
    finished: Condvar,
}

struct Progress {
    left: usize,
    panic: Option<Box<dyn Any + Send>>,
}

// SAFETY: `requests` is only followed at claimed indices while `run` keeps the slice borrowed; `Request` may be used from
// other threads, as devices are `Sync` and buffers plain bytes.
unsafe impl Send for Batch {}
// SAFETY: as above; no two threads claim the same index.
unsafe impl Sync for Batch {}

impl Batch {
    /// Runs requests until none is left to claim.
    fn work(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.len {
                return;
            }
            // SAFETY: the index is in bounds and ours alone, and `run` returns only after `left` came down to zero, which
            // this request is still counted in.
            let request = unsafe { &mut *self.requests.add(index) };
            let outcome = catch_unwind(AssertUnwindSafe(|| request.run_inline()));
            let mut progress = self.progress();
            progress.left -= 1;
            if let Err(panic) = outcome {
                progress.panic.get_or_insert(panic);
            }
            if progress.left == 0 {
                self.finished.notify_all();
            }
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Arc<Batch>>,
    closing: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut queue = self.queue();
        loop {
            if let Some(batch) = queue.batches.pop_front() {
                drop(queue);
                batch.work();
                drop(batch);
                queue = self.queue();
            } else if queue.closing {
                return;
            } else {
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// Runs the requests of a batch on a pool of threads and the calling one.
pub struct ThreadsEngine {
    shared: Arc<Shared>,
    workers: usize,
    errands: Errands,
}

impl ThreadsEngine {
    /// Starts the pool. Where the system allows fewer threads, or none, it is that much smaller.
    pub fn new() -> ThreadsEngine {
        let shared = Arc::new(Shared::default());
        let mut workers = 0;
        while workers < WORKERS {
            let shared = shared.clone();
            if std::thread::Builder::new().name("argosfs-io".into()).spawn(move || shared.serve()).is_err() {
                break;
            }
            workers += 1;
        }
        ThreadsEngine { shared, workers, errands: Errands::default() }
    }
}

impl Default for ThreadsEngine {
    fn default() -> ThreadsEngine {
        ThreadsEngine::new()
    }
}

impl Drop for ThreadsEngine {
    fn drop(&mut self) {
        // Workers end by themselves; one that hangs on a device is not waited for.
        self.shared.queue().closing = true;
        self.shared.work.notify_all();
    }
}

impl Engine for ThreadsEngine {
    fn run(&self, requests: &mut [Request<'_>]) {
        if let [request] = requests {
            return request.run_inline();
        }
        let len = requests.len();
        let batch = Arc::new(Batch {
            requests: requests.as_mut_ptr().cast(),
            len,
            next: AtomicUsize::new(0),
            progress: Mutex::new(Progress { left: len, panic: None }),
            finished: Condvar::new(),
        });
        let helpers = len.saturating_sub(1).min(self.workers);
        if helpers > 0 {
            self.shared.queue().batches.extend(std::iter::repeat_n(&batch, helpers).cloned());
            for _ in 0..helpers {
                self.shared.work.notify_one();
            }
        }
        batch.work();
        let mut progress = batch.progress();
        while progress.left > 0 {
            progress = batch.finished.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        if helpers > 0 {
            // Invitations nobody took up must not pile up while the workers are stuck elsewhere.
            self.shared.queue().batches.retain(|waiting| !Arc::ptr_eq(waiting, &batch));
        }
        if let Some(panic) = progress.panic.take() {
            drop(progress);
            resume_unwind(panic);
        }
    }

    fn read(&self, reads: Vec<OwnRead>, patience: Option<Duration>) -> Vec<Answer> {
        match patience {
            Some(patience) => self.errands.read(reads, patience),
            None => patience::run_all(reads, |batch| self.run(batch)),
        }
    }

    fn name(&self) -> &'static str {
        "threads"
    }
}
