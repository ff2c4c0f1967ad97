//! Units of stripe payloads kept in memory, verified: small extents lie packed together, so what is read next is often
//! near. What the kernel caches better by itself (long extents) does not come here.
//!
//! Invariants:
//! - A unit is what a stripe's payload was when it was written; stripes never change, and their ids are never used again.
//! - Never holds more than its bound. A unit read once is the first to go (S3-FIFO), so a scan does not displace what is
//!   read again and again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::lock;
use crate::base::StripeId;
use crate::base::sync::Mutex;

/// Payload bytes of a unit; the last one of a stripe may be shorter.
pub const UNIT: usize = 64 << 10;
/// Memory for units unless the mount says otherwise.
pub const DEFAULT_BYTES: usize = 64 << 20;

/// A stripe and the number of the unit in its payload.
pub type Key = (StripeId, u32);

/// A bounded cache of units.
#[derive(Debug)]
pub struct Cache(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    limit: usize,
    bytes: usize,
    units: HashMap<Key, Unit>,
    /// Came in and was not asked for again yet.
    new: Line,
    /// Was asked for again.
    proven: Line,
    /// Left `new` lately without being asked for again.
    ghosts: VecDeque<Key>,
    ghost_set: HashSet<Key>,
}

#[derive(Debug, Default)]
struct Line {
    keys: VecDeque<Key>,
    bytes: usize,
}

#[derive(Debug)]
struct Unit {
    content: Arc<Vec<u8>>,
    /// How often it was asked for since it last came to the front of its line; at most 3.
    asked: u8,
}

impl Cache {
    pub fn new(limit: usize) -> Cache {
        Cache(Mutex::new(Inner { limit, ..Inner::default() }))
    }

    pub fn set_limit(&self, limit: usize) {
        let mut inner = lock(&self.0);
        inner.limit = limit;
        inner.shrink();
    }

    pub fn get(&self, key: Key) -> Option<Arc<Vec<u8>>> {
        let mut inner = lock(&self.0);
        let unit = inner.units.get_mut(&key)?;
        unit.asked = (unit.asked + 1).min(3);
        Some(unit.content.clone())
    }

    pub fn insert(&self, key: Key, content: Arc<Vec<u8>>) {
        let mut inner = lock(&self.0);
        if content.len() > inner.limit / 8 || inner.units.contains_key(&key) {
            return;
        }
        let known = inner.ghost_set.contains(&key);
        let line = if known { &mut inner.proven } else { &mut inner.new };
        line.keys.push_back(key);
        line.bytes += content.len();
        inner.bytes += content.len();
        inner.units.insert(key, Unit { content, asked: 0 });
        inner.shrink();
    }

    /// Bytes held.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        lock(&self.0).bytes
    }
}

impl Inner {
    fn shrink(&mut self) {
        while self.bytes > self.limit {
            // A tenth for what is new is enough to find out what is asked for again.
            if self.new.bytes > self.limit / 10 || self.proven.keys.is_empty() {
                self.leave_new();
            } else {
                self.leave_proven();
            }
        }
    }

    fn leave_new(&mut self) {
        let Some(key) = self.new.keys.pop_front() else { return };
        let Some(unit) = self.units.get_mut(&key) else { return };
        let length = unit.content.len();
        self.new.bytes -= length;
        if unit.asked > 0 {
            unit.asked = 0;
            self.proven.keys.push_back(key);
            self.proven.bytes += length;
            return;
        }
        self.units.remove(&key);
        self.bytes -= length;
        self.ghosts.push_back(key);
        self.ghost_set.insert(key);
        while self.ghosts.len() > self.units.len().max(16) {
            if let Some(oldest) = self.ghosts.pop_front() {
                self.ghost_set.remove(&oldest);
            }
        }
    }

    fn leave_proven(&mut self) {
        let Some(key) = self.proven.keys.pop_front() else { return };
        let Some(unit) = self.units.get_mut(&key) else { return };
        if unit.asked > 0 {
            unit.asked -= 1;
            self.proven.keys.push_back(key);
            return;
        }
        let length = unit.content.len();
        self.units.remove(&key);
        self.proven.bytes -= length;
        self.bytes -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Key {
        (StripeId(number), 0)
    }

    fn unit(number: u64) -> Arc<Vec<u8>> {
        Arc::new(vec![number as u8; 1000])
    }

    #[test]
    fn a_scan_does_not_displace_what_is_asked_for_again() {
        let cache = Cache::new(100_000);
        for number in 0..20 {
            cache.insert(key(number), unit(number));
            assert_eq!(cache.get(key(number)), Some(unit(number)));
        }
        for number in 1000..3000 {
            cache.insert(key(number), unit(number));
            assert!(cache.bytes() <= 100_000);
        }
        let kept = (0..20).filter(|number| cache.get(key(*number)) == Some(unit(*number))).count();
        assert_eq!(kept, 20);
        assert_eq!(cache.get(key(1000)), None);
    }

    #[test]
    fn what_was_dropped_too_early_is_kept_the_second_time() {
        let cache = Cache::new(50_000);
        for number in 0..60 {
            cache.insert(key(number), unit(number));
        }
        assert_eq!(cache.get(key(5)), None);
        cache.insert(key(5), unit(5));
        for number in 100..200 {
            cache.insert(key(number), unit(number));
        }
        assert_eq!(cache.get(key(5)), Some(unit(5)));
    }

    #[test]
    fn the_bound_holds_for_any_limit() {
        let cache = Cache::new(0);
        cache.insert(key(1), unit(1));
        assert_eq!((cache.bytes(), cache.get(key(1))), (0, None));
        cache.set_limit(20_000);
        for number in 0..100 {
            cache.insert(key(number % 40), unit(number % 40));
            cache.get(key(number * 7 % 40));
        }
        assert!(cache.bytes() <= 20_000 && cache.bytes() > 15_000);
        cache.set_limit(3000);
        assert!(cache.bytes() <= 3000);
    }
}
