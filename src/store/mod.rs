//! File content on top of the metadata store: the only place that orders data before metadata.
//! Above: `fs` decides what a file contains. Below: `meta` keeps the rows, `pool` the shards.

pub mod archive;
mod bitmap;
mod cache;
pub mod commit;
mod compact;
mod damage;
pub mod devices;
mod discard;
pub mod extents;
mod faults;
mod host;
mod inspect;
pub mod maintain;
mod open;
mod pack;
mod read;
pub mod reclaim;
pub mod recover;
pub mod repair;
pub mod space;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::base::sync::atomic::{AtomicU64, Ordering};
use crate::base::sync::{Mutex, lock};
use crate::base::{Clock, DeviceId, Ino, Result, StripeId, TxnId};
use crate::meta::migrate::migrate;
use crate::meta::volume::VolumeStats;
use crate::meta::{Meta, Tx, View};
use crate::pool::Pool;
use crate::pool::stripe_io::BadShard;

pub use cache::DEFAULT_BYTES as CACHE_BYTES;
pub use commit::{ContentWrite, Inline, SharedBytes};
pub use damage::Damaged;
pub use extents::Ledger;
pub use faults::DeviceFaults;
pub use host::PoolMembership;
pub use pack::{INLINE_SYNCHRONOUS, alignment};
pub use read::Mapping;
pub use space::{Reservation, Space};

#[cfg(test)]
mod archive_tests;
#[cfg(test)]
pub(crate) mod open_tests;
#[cfg(test)]
mod tests;

/// Content and metadata of one open pool.
pub struct Store {
    meta: Arc<Meta>,
    pool: Option<Arc<Pool>>,
    log: Option<Arc<host::HostedLog>>,
    /// `None` for a store without devices.
    devices: Option<Arc<devices::Devices>>,
    repairs: repair::Queue,
    faults: faults::Faults,
    damages: damage::Damages,
    cache: cache::Cache,
    untidy: compact::Untidy,
    discards: discard::Discards,
    archives: archive::Archives,
    space: space::Accounts,
    /// Reads and commits so far.
    activity: AtomicU64,
    /// Truncates still going on: extents of the inode at or past the offset, born at or before the transaction, are
    /// hidden.
    truncates: Mutex<HashMap<Ino, Vec<reclaim::Cut>>>,
}

impl Store {
    /// A store without devices: all content is inline in an in-memory database, bounded by `capacity` bytes. For tests
    /// of the layers above.
    pub fn in_memory(clock: Arc<dyn Clock>, capacity: u64) -> Result<Store> {
        let meta = Arc::new(Meta::in_memory(clock)?);
        migrate(&meta, false)?;
        Ok(Store {
            meta,
            pool: None,
            log: None,
            devices: None,
            repairs: repair::Queue::default(),
            faults: faults::Faults::default(),
            damages: damage::Damages::default(),
            cache: cache::Cache::new(cache::DEFAULT_BYTES),
            untidy: compact::Untidy::default(),
            discards: discard::Discards::default(),
            archives: archive::Archives::default(),
            space: space::Accounts::fixed(capacity),
            activity: AtomicU64::new(0),
            truncates: Mutex::default(),
        })
    }

    /// A store over devices whose free space is known to `devices`; the barrier of `meta` must be `devices` too.
    pub fn over(meta: Arc<Meta>, devices: Arc<devices::Devices>) -> Result<Store> {
        let store = Store {
            meta,
            pool: None,
            log: None,
            devices: Some(devices),
            repairs: repair::Queue::default(),
            faults: faults::Faults::default(),
            damages: damage::Damages::default(),
            cache: cache::Cache::new(cache::DEFAULT_BYTES),
            untidy: compact::Untidy::default(),
            discards: discard::Discards::default(),
            archives: archive::Archives::default(),
            space: space::Accounts::default(),
            activity: AtomicU64::new(0),
            truncates: Mutex::default(),
        };
        store.resume()?;
        Ok(store)
    }

    /// Grows with each read and commit of content: what maintenance gives way to.
    pub fn activity(&self) -> u64 {
        self.activity.load(Ordering::Relaxed)
    }

    /// The metadata store below.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The pool below; `None` in tests without labels.
    pub fn pool(&self) -> Option<&Arc<Pool>> {
        self.pool.as_ref()
    }

    /// Bounds the memory for content that was read, in bytes.
    pub fn set_cache_limit(&self, bytes: usize) {
        self.cache.set_limit(bytes);
    }

    /// How the metadata volume fares.
    pub fn volume_stats(&self) -> Option<VolumeStats> {
        self.log.as_ref().map(|log| log.volume.stats())
    }

    /// What present members did wrong since they were last found whole.
    pub fn device_faults(&self) -> BTreeMap<DeviceId, DeviceFaults> {
        self.faults.now()
    }

    /// Takes note of shards that a read found bad: they are repaired later.
    fn note_bad(&self, bad: &[BadShard]) {
        self.repairs.add(bad);
        let new = self.faults.add(bad);
        let Some(pool) = &self.pool else { return };
        let state = pool.state();
        for member in new.iter().filter_map(|id| state.member(*id)) {
            pool.note(format!("{} returned bad data or none: `argosfs status` says what to do", member.name()));
        }
    }

    /// Makes everything durable, moves it into home and lets go of the devices: the next opening finds an empty log.
    pub fn close(self) -> Result<()> {
        self.save_faults();
        self.meta.checkpoint()
    }

    /// The lowest number of a stripe that is being written, or will be.
    pub fn oldest_unfinished(&self) -> StripeId {
        self.devices.as_deref().map_or(StripeId(0), devices::Devices::oldest_unfinished)
    }

    /// Runs `body` as one transaction that may change content; what it freed becomes free space later.
    pub fn transact<T>(&self, body: impl FnOnce(&mut Tx<'_>, &mut Ledger) -> Result<T>) -> Result<T> {
        let body = |tx: &mut Tx<'_>| {
            let mut ledger = Ledger::default();
            let answer = body(tx, &mut ledger)?;
            self.note_freed(tx.id(), &ledger);
            // The allocator reads its bitmaps from what is settled.
            if !ledger.placed.is_empty() || !ledger.freed.is_empty() {
                tx.commit_at_once();
            }
            Ok((answer, ledger))
        };
        let ((answer, _), _) = self.meta.transact_then(body, |(_, ledger)| self.settle(ledger))?;
        Ok(answer)
    }

    /// Runs `body` on a consistent snapshot; see [`Meta::view`].
    pub fn view<T>(&self, body: impl FnOnce(&View<'_>) -> Result<T>) -> Result<T> {
        self.meta.view(body)
    }

    /// Runs `body`, a few reads, on the newest state; see [`Meta::peek`].
    pub fn peek<T>(&self, body: impl FnOnce(&View<'_>) -> Result<T>) -> Result<T> {
        self.meta.peek(body)
    }

    /// Makes everything committed so far durable; what became free by it can be used again.
    pub fn durable_point(&self) -> Result<()> {
        self.meta.durable_point()?;
        self.reclaim_freed();
        Ok(())
    }

    /// Keeps the blocks a transaction is about to free from being given away before they may be.
    fn note_freed(&self, txn: TxnId, ledger: &Ledger) {
        let Some(devices) = &self.devices else { return };
        let mut allocator = lock(&devices.allocator);
        for (placement, blocks) in &ledger.freed {
            allocator.free_later(txn, devices::run_of(*placement, *blocks));
        }
    }

    /// Takes over what a committed transaction left to do.
    fn settle(&self, ledger: &Ledger) {
        self.space.content_changed(ledger.content_delta);
        self.reserved_changed(ledger.reserved_delta);
        self.untidy.note(ledger);
        if let Some(devices) = &self.devices {
            let mut allocator = lock(&devices.allocator);
            ledger.placed.iter().for_each(|(placement, blocks)| allocator.commit(devices::run_of(*placement, *blocks)));
            ledger
                .unused
                .iter()
                .for_each(|(placement, blocks)| allocator.release(devices::run_of(*placement, *blocks)));
        }
        if !ledger.truncates.is_empty() {
            let mut truncates = lock(&self.truncates);
            for (ino, from, txn) in &ledger.truncates {
                truncates.entry(*ino).or_default().push((*from, *txn));
            }
        }
    }
}
