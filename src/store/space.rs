//! Space accounting: what can be promised to writers.
//!
//! Invariants:
//! - A promise is only given while free space, less the reserve and all promises, covers it. Metadata takes nothing of what
//!   was promised unless it cannot go on without.
//! - Removing, evacuating and repairing take from the reserve and never ask; so it is with the metadata's own.

use super::devices::Devices;
use super::{Store, lock};
use crate::base::sync::Mutex;
use crate::base::sync::atomic::Ordering;
use crate::base::{Error, Result};
use crate::meta::RedoLog;
use crate::pool::allocator::Shortage;

/// What `df` tells, in bytes of file content.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    pub total: u64,
    pub free: u64,
    /// What can be written: free space less promises and the reserve.
    pub available: u64,
}

/// Promises, and for a store without devices its capacity and use.
#[derive(Debug, Default)]
pub(super) struct Accounts(Mutex<Balance>);

#[derive(Debug, Default)]
struct Balance {
    promised: u64,
    /// Bytes that may be promised before free space is measured again.
    headroom: u64,
    /// Bytes promised to files by fallocate, and not written.
    reserved: u64,
    /// Bytes of content in a store without devices.
    used: u64,
    capacity: u64,
}

impl Accounts {
    pub fn fixed(capacity: u64) -> Accounts {
        Accounts(Mutex::new(Balance { capacity, ..Balance::default() }))
    }

    pub fn content_changed(&self, delta: i64) {
        let mut balance = lock(&self.0);
        balance.used = balance.used.saturating_add_signed(delta);
    }

    /// What stored files were promised.
    pub fn set_reserved(&self, bytes: u64) {
        lock(&self.0).reserved = bytes;
    }
}

/// Full stripes kept back so that removing, compacting and repairing always find room.
const RESERVE_STRIPES: u64 = 8;
/// The same as a part of the pool: one in this many.
const RESERVE_PART: u64 = 200;

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
        if bytes > balance.headroom {
            // Content needs rows as well.
            if self.log.as_deref().is_some_and(|log| log.volume.is_scarce()) {
                return Err(Error::NoSpace);
            }
            let (_, free, reserve) = self.measure(&balance, false);
            let available = free.saturating_sub(reserve).saturating_sub(balance.promised);
            if bytes > available {
                return Err(Error::NoSpace);
            }
            // A part only: what is committed meanwhile may take more than it was promised, as parity and padding do.
            balance.headroom = if self.devices.is_some() { (available / 4).max(bytes) } else { bytes };
        }
        balance.headroom -= bytes;
        balance.promised += bytes;
        self.tell_promises(&balance);
        Ok(Reservation { bytes })
    }

    /// Says [`Error::NoSpace`] when the metadata has no room for more rows: whoever adds some asks first. Who removes
    /// something never does; a part is kept for him.
    pub fn room_for_rows(&self) -> Result<()> {
        let Some(log) = self.log.as_deref().filter(|log| log.volume.is_scarce()) else { return Ok(()) };
        log.prepare()?;
        if log.volume.is_scarce() { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// Whether anything was freed that is not free yet.
    pub fn frees_something(&self) -> bool {
        let deferred = |devices: &Devices| {
            let allocator = lock(&devices.allocator);
            devices.membership.members().iter().any(|member| allocator.deferred_blocks(member.id) > 0)
        };
        self.devices.as_deref().is_some_and(deferred) || !lock(&self.truncates).is_empty()
    }

    /// Gives a promise back: its content was committed or dropped.
    pub fn release(&self, reservation: Reservation) {
        let mut balance = lock(&self.space.0);
        balance.promised -= reservation.bytes;
        self.tell_promises(&balance);
    }

    /// Takes note that more bytes, or fewer, are promised to files.
    pub(super) fn reserved_changed(&self, delta: i64) {
        if delta != 0 {
            let mut balance = lock(&self.space.0);
            balance.reserved = balance.reserved.saturating_add_signed(delta);
            self.tell_promises(&balance);
        }
    }

    /// Lets metadata know what it must not take.
    fn tell_promises(&self, balance: &Balance) {
        if let Some(devices) = &self.devices {
            let promised = (balance.promised + balance.headroom).saturating_add(balance.reserved);
            devices.promised.store(promised, Ordering::Relaxed);
        }
    }

    /// Total, free and available space. What only waits for a durable point counts: before anybody is told that there is
    /// no space, there is one.
    pub fn space(&self) -> Space {
        let balance = lock(&self.space.0);
        let (total, free, reserve) = self.measure(&balance, true);
        Space { total: total - reserve, free, available: free.saturating_sub(reserve + balance.promised) }
    }

    /// Begins a shortage of blocks, or ends it, for tests; says how many requests the one before met.
    pub fn run_short(&self, shortage: Option<Shortage>) -> u64 {
        self.devices.as_deref().map_or(0, |devices| lock(&devices.allocator).run_short(shortage))
    }

    /// Total and free payload bytes, and what of them is kept back.
    fn measure(&self, balance: &Balance, soon: bool) -> (u64, u64, u64) {
        match &self.devices {
            None => (balance.capacity, balance.capacity.saturating_sub(balance.used), 0),
            Some(devices) => {
                let mut free = devices.free_payload(&(Vec::new(), 0), soon);
                if let Some(log) = &self.log {
                    free = devices.free_payload(&log.growth(free), soon);
                }
                let total = devices.total_payload();
                let reserve =
                    (devices.stripe_bytes() as u64 * RESERVE_STRIPES).max(total / RESERVE_PART).min(total / 20);
                (total, free.saturating_sub(balance.reserved), reserve)
            }
        }
    }
}
