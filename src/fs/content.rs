//! What one regular file holds in memory: content that is acknowledged but not committed.
//!
//! Invariants:
//! - Content is held in layers: `dirty` over the newest flight over older flights over what is committed. A byte leaves
//!   a flight only after it is visible below, or back into `dirty`, under what is newer.
//! - Flights of a file land in order of ticket, and a flight that fails brings back all later ones of that file: what is
//!   committed is always what some prefix of the departures left behind.
//! - When a flight departs, nothing stays dirty between the size the row will have before it and its own end: the row's
//!   size never covers content that is not committed with it or before it.
//! - Every dirty byte is covered by `reserved` or by a promise (`fallocate`) below it; bytes in flight are covered by
//!   their flight in the same way.
//! - While `paused`, nothing departs and nothing is in flight.
//!
//! Lock order: [`Content::shape`], departures (`writeback`), [`State`], [`Live`](super::handle::Live). The store's writer
//! is taken before `Live` and never while a `State` is locked; the store's accounts may be.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::lock;
use super::overlay::{Buffers, Overlay};
use crate::base::Error;
use crate::base::sync::atomic::{AtomicU32, Ordering};
use crate::base::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::store::{Reservation, SharedBytes};

/// Pieces of content that do not change any more: ascending, not overlapping.
pub type Segments = Arc<Vec<(u64, SharedBytes)>>;

/// Content on its way into the store.
#[derive(Debug)]
pub struct Flight {
    pub ticket: u64,
    pub segments: Segments,
    pub bytes: u64,
    /// The size of the row once this has landed.
    pub size: u64,
    pub reserved: Reservation,
}

/// What has to be written for a flight to land.
#[derive(Debug)]
pub struct Departed {
    pub segments: Segments,
    pub bytes: u64,
    /// The size of the row once this has landed.
    pub size: u64,
    /// Where the content ends.
    pub end: u64,
}

/// The layers above what is committed.
#[derive(Debug, Default)]
pub struct State {
    pub dirty: Overlay,
    pub reserved: Reservation,
    /// Oldest first.
    pub flights: VecDeque<Flight>,
    pub paused: bool,
    /// The inode is being removed: nothing departs any more.
    pub dead: bool,
    /// Known to the write-back.
    pub listed: bool,
    /// Who wrote last: for the journal.
    pub writer: u32,
    /// Flights that failed so far, and why the last of them did.
    pub failures: u64,
    pub last_failure: Option<Error>,
}

/// What a flight that failed, and those behind it, left.
#[derive(Debug, Default)]
pub struct Returned {
    /// Bytes that were in flight.
    pub flown: u64,
    /// How many of them are dirty again; the others are covered by something newer.
    pub kept: u64,
    pub surplus: Reservation,
}

impl State {
    /// Splits off the reservation of `bytes` dirty bytes of `dirty`, which were just taken out. Dirty bytes that rest on a
    /// promise have none: they are reckoned to go first.
    fn unreserve(&mut self, dirty: u64, bytes: u64) -> Reservation {
        let unreserved = dirty.saturating_sub(self.reserved.bytes);
        self.reserved.split(bytes.saturating_sub(unreserved))
    }

    /// Sends dirty content of `range` off, about `most` bytes at most, ascending; `committed` is the size of the row now.
    pub fn depart(&mut self, ticket: u64, range: Range<u64>, most: u64, committed: u64) -> Option<Departed> {
        let dirty = self.dirty.bytes();
        let planned = self.flights.back().map_or(committed, |flight| flight.size);
        let mut taken = self.dirty.take(range, most);
        let end = taken.last().map(|(start, bytes)| start + bytes.len() as u64)?;
        if end > planned {
            let below = self.dirty.take(planned..end, u64::MAX);
            if !below.is_empty() {
                taken.extend(below);
                taken.sort_unstable_by_key(|(start, _)| *start);
            }
        }
        let bytes = dirty - self.dirty.bytes();
        let size = planned.max(end);
        let segments: Segments =
            Arc::new(taken.into_iter().map(|(start, bytes)| (start, SharedBytes::new(bytes))).collect());
        let reserved = self.unreserve(dirty, bytes);
        self.flights.push_back(Flight { ticket, segments: segments.clone(), bytes, size, reserved });
        Some(Departed { segments, bytes, size, end })
    }

    /// Takes the flight that has landed out of the queue.
    pub fn land(&mut self, ticket: u64) -> Flight {
        let landed = self.flights.pop_front().expect("a flight stays queued until it lands or fails");
        assert_eq!(landed.ticket, ticket, "flights land in order");
        landed
    }

    /// Makes the content of a flight and of all behind it dirty again. They may be gone already, with an earlier one.
    pub fn fail(&mut self, ticket: u64, error: &Error, limit: usize, buffers: &Buffers) -> Returned {
        let mut result = Returned::default();
        let Some(first) = self.flights.iter().position(|flight| flight.ticket == ticket) else { return result };
        self.failures += 1;
        self.last_failure = Some(retell(error));
        while self.flights.len() > first {
            let Some(flight) = self.flights.pop_back() else { break };
            result.flown += flight.bytes;
            if !self.dead {
                for (start, bytes) in flight.segments.iter() {
                    result.kept += self.dirty.write_under(*start, bytes, limit, buffers);
                }
            }
            self.reserved.join(flight.reserved);
        }
        let surplus = self.reserved.bytes.saturating_sub(self.dirty.bytes());
        result.surplus = self.reserved.split(surplus);
        result
    }

    /// Forgets dirty content of `range`; returns the bytes and their reservation.
    pub fn drop_dirty(&mut self, range: Range<u64>) -> (u64, Reservation) {
        let dirty = self.dirty.bytes();
        self.dirty.take(range, u64::MAX);
        let bytes = dirty - self.dirty.bytes();
        (bytes, self.unreserve(dirty, bytes))
    }

    /// Whether there is nothing but what is committed.
    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.flights.is_empty()
    }
}

/// Tells an error to one more caller.
pub fn retell(error: &Error) -> Error {
    match error {
        Error::NoSpace => Error::NoSpace,
        Error::ReadOnly => Error::ReadOnly,
        Error::Poisoned(why) => Error::Poisoned(why.clone()),
        Error::Corrupt(what) => Error::Corrupt(what.clone()),
        Error::Unavailable(what) => Error::Unavailable(what.clone()),
        Error::Io { device, operation, source } => Error::Io {
            device: device.clone(),
            operation,
            source: source
                .raw_os_error()
                .map_or_else(|| std::io::Error::other(source.to_string()), std::io::Error::from_raw_os_error),
        },
        other => Error::io("the pool", "write-back", std::io::Error::other(other.to_string())),
    }
}

/// The content of one file in memory.
#[derive(Debug, Default)]
pub struct Content {
    shape: RwLock<()>,
    state: Mutex<State>,
    /// A flight landed or failed, or a pause ended.
    settled: Condvar,
    /// Those who wait for it; changes under the lock of `state`. To wake nobody is a system call too.
    waiting: AtomicU32,
}

impl Content {
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits until something has settled.
    pub fn wait<'c>(&self, state: MutexGuard<'c, State>) -> MutexGuard<'c, State> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        state
    }

    /// Wakes everybody who waits; called after the state has changed and its lock is free again.
    pub fn notify(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.settled.notify_all();
        }
    }

    /// Keeps the size from being set and ranges from being taken away.
    pub fn hold_shape(&self) -> RwLockReadGuard<'_, ()> {
        self.shape.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps writers and everybody else who changes the content away.
    pub fn change_shape(&self) -> RwLockWriteGuard<'_, ()> {
        self.shape.write().unwrap_or_else(PoisonError::into_inner)
    }
}
