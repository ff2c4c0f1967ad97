//! Write-back: when dirty content leaves memory, in what company, and what becomes of it.
//!
//! - A stripe's worth of contiguous content of one file departs at once, to the worker threads if there are any.
//! - Everything else departs when somebody asks (fsync, a rename over a file, `sync`), when memory runs short, or on
//!   the timer, packed: one commit takes content of many files.
//!
//! Invariant: `dirty` and `flying` are the sums over all files; together they stay below the bound, give or take one write.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::content::{Returned, State, retell};
use super::departure::Batch;
use super::handle::InodeState;
use super::overlay::Buffers;
use super::{Fs, lock};
use crate::base::sync::atomic::{AtomicU64, Ordering};
use crate::base::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError, wait_or_look_again};
use crate::base::{Error, Ino, Result};
use crate::store::Store;

/// Dirty and flying content held at most, in bytes.
pub const MEMORY: u64 = 96 << 20;
/// Whole-stripe buffers kept for use again.
const SPARE_BUFFERS: usize = 12;
/// Steps of tidying before ENOSPC is told.
const TIDY_STEPS: usize = 64;
/// How long somebody who waits for room sleeps before looking again by himself.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Queue {
    batches: VecDeque<Batch>,
    workers: usize,
}

/// The state of the write-back of a filesystem.
pub struct Writeback {
    stripe: usize,
    memory: u64,
    buffers: Buffers,
    /// The last ticket given out.
    departures: Mutex<u64>,
    /// Files that are not clean.
    listed: Mutex<BTreeMap<Ino, Arc<InodeState>>>,
    queue: Mutex<Queue>,
    work: Condvar,
    dirty: AtomicU64,
    flying: AtomicU64,
    room: Mutex<()>,
    room_made: Condvar,
    /// Held by whoever makes everything depart because memory runs short.
    pressure: Mutex<()>,
    /// Held by whoever looks for space.
    relief: Mutex<()>,
    failures: AtomicU64,
    last_failure: Mutex<Option<Error>>,
    #[cfg(test)]
    pub(super) faults: Faults,
}

/// Commits that tests make fail: after `pass` more, the next `fail`.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Faults {
    pub pass: AtomicU64,
    pub fail: AtomicU64,
}

#[cfg(test)]
impl Faults {
    pub fn strike(&self) -> Result<()> {
        let spend = |count: &AtomicU64| {
            count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
        };
        if !spend(&self.pass) && spend(&self.fail) {
            return Err(Error::io("a device", "writing", std::io::Error::from_raw_os_error(libc::EIO)));
        }
        Ok(())
    }
}

impl Writeback {
    /// Write-back to `store`, holding at most about `memory` bytes.
    pub fn new(store: &Store, memory: u64) -> Writeback {
        let stripe = store.stripe_bytes();
        Writeback {
            stripe,
            memory,
            buffers: Buffers::new(stripe, SPARE_BUFFERS.min((memory / 2) as usize / stripe)),
            departures: Mutex::new(0),
            listed: Mutex::default(),
            queue: Mutex::default(),
            work: Condvar::new(),
            dirty: AtomicU64::new(0),
            flying: AtomicU64::new(0),
            room: Mutex::new(()),
            room_made: Condvar::new(),
            pressure: Mutex::new(()),
            relief: Mutex::new(()),
            failures: AtomicU64::new(0),
            last_failure: Mutex::new(None),
            #[cfg(test)]
            faults: Faults::default(),
        }
    }

    /// Lets shorter runs count as full stripes.
    #[cfg(test)]
    pub(super) fn set_stripe(&mut self, stripe: usize) {
        self.stripe = stripe;
        self.buffers = Buffers::new(stripe, SPARE_BUFFERS);
    }

    /// Longest segment of dirty content: a stripe's worth.
    pub fn stripe(&self) -> usize {
        self.stripe
    }

    /// Buffers for dirty content.
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Content held in memory, in bytes: dirty, and on its way.
    pub fn held(&self) -> (u64, u64) {
        (self.dirty.load(Ordering::Relaxed), self.flying.load(Ordering::Relaxed))
    }

    /// Files that are not clean, by number.
    pub fn listed(&self) -> Vec<Arc<InodeState>> {
        lock(&self.listed).values().cloned().collect()
    }

    /// Notes a file that is not clean any more.
    pub fn list(&self, inode: &Arc<InodeState>, state: &mut State) {
        if !state.listed {
            state.listed = true;
            lock(&self.listed).insert(inode.ino, inode.clone());
        }
    }

    /// Forgets a file if it is clean.
    pub fn unlist(&self, inode: &InodeState, state: &mut State) {
        if state.listed && state.is_clean() {
            state.listed = false;
            lock(&self.listed).remove(&inode.ino);
        }
    }

    pub fn note_departed(&self, bytes: u64) {
        self.dirty.fetch_sub(bytes, Ordering::Relaxed);
        self.flying.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn note_landed(&self, bytes: u64) {
        self.flying.fetch_sub(bytes, Ordering::Relaxed);
        self.tell_room();
    }

    pub fn note_returned(&self, result: &Returned) {
        self.dirty.fetch_add(result.kept, Ordering::Relaxed);
        self.flying.fetch_sub(result.flown, Ordering::Relaxed);
        self.tell_room();
    }

    pub fn note_failure(&self, error: &Error) {
        *lock(&self.last_failure) = Some(retell(error));
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub fn note_dirtied(&self, bytes: u64) {
        self.dirty.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn note_dropped(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.dirty.fetch_sub(bytes, Ordering::Relaxed);
        self.tell_room();
    }

    /// Keeps others from looking for space meanwhile.
    pub fn hold_relief(&self) -> MutexGuard<'_, ()> {
        lock(&self.relief)
    }

    fn tell_room(&self) {
        drop(lock(&self.room));
        self.room_made.notify_all();
    }

    fn is_tight(&self, more: u64) -> bool {
        let (dirty, flying) = self.held();
        dirty + flying > 0 && dirty + flying + more > self.memory
    }

    /// Lets content depart. Returns the last ticket given out.
    pub fn departures(&self) -> MutexGuard<'_, u64> {
        lock(&self.departures)
    }

    /// Gives a batch to the workers; returns it when there are none. The caller holds the departures.
    pub fn enqueue(&self, batch: Batch) -> Option<Batch> {
        let mut queue = lock(&self.queue);
        if queue.workers == 0 {
            return Some(batch);
        }
        queue.batches.push_back(batch);
        self.work.notify_one();
        None
    }

    /// Waits for a batch; `None` when the workers are dismissed and the queue is empty.
    pub fn next_batch(&self) -> Option<Batch> {
        let mut queue = lock(&self.queue);
        loop {
            let batch = queue.batches.pop_front();
            if batch.is_some() || queue.workers == 0 {
                return batch;
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says how many threads are about to work; with 0 they end when the queue is empty.
    pub fn set_workers(&self, workers: usize) {
        lock(&self.queue).workers = workers;
        self.work.notify_all();
    }

    /// Whether anybody takes batches from the queue.
    pub fn has_workers(&self) -> bool {
        lock(&self.queue).workers > 0
    }
}

impl Fs {
    /// Holds a writer of `more` bytes up while memory is short.
    pub(super) fn await_room(&self, more: u64) -> Result<()> {
        let writeback = &self.writeback;
        let (dirty, _) = writeback.held();
        if dirty + more > writeback.memory / 2 && writeback.has_workers() {
            self.relieve_memory()?;
        }
        if !writeback.is_tight(more) {
            return Ok(());
        }
        let failures = writeback.failures.load(Ordering::Relaxed);
        loop {
            self.relieve_memory()?;
            let room = lock(&writeback.room);
            if !writeback.is_tight(more) {
                return Ok(());
            }
            if writeback.failures.load(Ordering::Relaxed) != failures
                && let Some(error) = &*lock(&writeback.last_failure)
            {
                return Err(retell(error));
            }
            wait_or_look_again(&writeback.room_made, room, LOOK_AGAIN);
        }
    }

    /// Makes everything depart, unless somebody is at it.
    fn relieve_memory(&self) -> Result<()> {
        match self.writeback.pressure.try_lock() {
            Ok(_only) => self.flush_all(false),
            Err(TryLockError::Poisoned(_) | TryLockError::WouldBlock) => Ok(()),
        }
    }

    /// Does what can be done to have free space: what is pending becomes durable, so that what it freed is free.
    pub(super) fn relieve_space(&self) -> Result<()> {
        let _only = lock(&self.writeback.relief);
        // What cannot be committed stays dirty and does not matter here.
        let _ = self.flush_all(true);
        let reclaimed = self.reclaim_all();
        self.store.durable_point()?;
        // What lies scattered takes more space than it needs. Without space to move it to it stays.
        let tidied = (0..TIDY_STEPS).take_while(|_| self.store.tidy_step(true).unwrap_or(false)).count();
        if tidied > 0 {
            self.store.durable_point()?;
        }
        // What is free now may be what metadata lacked. Whether it is enough, those learn who ask.
        let _ = self.store.room_for_rows();
        reclaimed
    }

    /// Says [`Error::NoSpace`] when there is no room for more rows, after what was given up became free.
    pub(super) fn room_for_rows(&self) -> Result<()> {
        match self.store.room_for_rows() {
            Err(Error::NoSpace) if self.has_orphans() || self.store.frees_something() => {
                self.relieve_space()?;
                self.store.room_for_rows()
            }
            answer => answer,
        }
    }
}
