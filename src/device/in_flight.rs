//! What is in flight on one file, cheaply: a request costs two clock reads' worth of work and no lock.

use crate::base::Clock;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Requests watched at once; further ones go unwatched, but then the oldest is watched already.
const SLOTS: usize = 64;

/// Start times of the requests in flight.
pub struct InFlight {
    clock: Arc<dyn Clock>,
    /// Start times in nanoseconds; 0 is a free slot.
    slots: [AtomicU64; SLOTS],
    next: AtomicUsize,
}

impl InFlight {
    /// Nothing in flight.
    pub fn new(clock: Arc<dyn Clock>) -> InFlight {
        InFlight { clock, slots: [const { AtomicU64::new(0) }; SLOTS], next: AtomicUsize::new(0) }
    }

    /// Watches one request until the answer is dropped.
    pub fn start(&self) -> Watch<'_> {
        let now = self.clock.monotonic_ns().max(1);
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        for probe in 0..SLOTS {
            let slot = &self.slots[first.wrapping_add(probe) % SLOTS];
            if slot.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return Watch(Some(slot));
            }
        }
        Watch(None)
    }

    /// Nanoseconds since the oldest request in flight started; `None` when idle.
    pub fn oldest_ns(&self) -> Option<u64> {
        let started = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed)).filter(|start| *start != 0).min()?;
        Some(self.clock.monotonic_ns().saturating_sub(started))
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InFlight").field(&self.oldest_ns()).finish()
    }
}

/// One request in flight.
#[derive(Debug)]
pub struct Watch<'a>(Option<&'a AtomicU64>);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::SteppingClock;

    #[test]
    fn the_oldest_request_is_told_until_it_ends() {
        let clock = Arc::new(SteppingClock::default());
        let watch = InFlight::new(clock.clone());
        assert_eq!(watch.oldest_ns(), None);
        let first = watch.start();
        clock.advance_ns(5_000_000);
        let others: Vec<_> = (0..100).map(|_| watch.start()).collect();
        assert!(watch.oldest_ns().unwrap() >= 5_000_000);
        drop(first);
        assert!(watch.oldest_ns().unwrap() < 5_000_000);
        drop(others);
        assert_eq!(watch.oldest_ns(), None);
    }
}
