//! Space accounting: what can be promised to writers.
//!
//! Invariant: `promised` never exceeds what the devices can take at the pool's redundancy at the time of the promise.

use std::sync::Mutex;

use super::{Store, lock};
use crate::base::{Error, Result};

/// What `df` tells, in bytes of file content.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    pub total: u64,
    pub free: u64,
    /// What can be written: free space less promises and the reserve.
    pub available: u64,
}

#[derive(Debug)]
pub(super) struct Accounts(Mutex<Balance>);

#[derive(Debug, Default)]
struct Balance {
    capacity: u64,
    used: u64,
    promised: u64,
}

impl Accounts {
    pub fn fixed(capacity: u64) -> Accounts {
        Accounts(Mutex::new(Balance { capacity, ..Balance::default() }))
    }

    pub fn content_changed(&self, delta: i64) {
        let mut balance = lock(&self.0);
        balance.used = balance.used.saturating_add_signed(delta);
    }
}

/// Space promised to content that is not committed yet; given back by [`Store::release`].
#[must_use = "a promise that is dropped without `release` stays taken"]
#[derive(Debug, Default)]
pub struct Reservation {
    pub bytes: u64,
}

impl Reservation {
    /// Puts two promises together.
    pub fn join(&mut self, other: Reservation) {
        self.bytes += other.bytes;
    }

    /// Splits off a promise for `bytes`, or all that is left.
    pub fn split(&mut self, bytes: u64) -> Reservation {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Reservation { bytes }
    }
}

impl Store {
    /// Promises space for `bytes` more bytes of content, or says [`Error::NoSpace`].
    pub fn reserve(&self, bytes: u64) -> Result<Reservation> {
        let mut balance = lock(&self.space.0);
        if balance.used + balance.promised + bytes > balance.capacity {
            return Err(Error::NoSpace);
        }
        balance.promised += bytes;
        Ok(Reservation { bytes })
    }

    /// Gives a promise back: its content was committed or dropped.
    pub fn release(&self, reservation: Reservation) {
        let mut balance = lock(&self.space.0);
        balance.promised -= reservation.bytes;
    }

    /// Total, free and available space.
    pub fn space(&self) -> Space {
        let balance = lock(&self.space.0);
        let free = balance.capacity.saturating_sub(balance.used);
        Space { total: balance.capacity, free, available: free.saturating_sub(balance.promised) }
    }
}
