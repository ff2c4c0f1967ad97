//! The metadata volume: one virtual file for redb, kept on several devices, verified block by block, with a redo log in
//! front. Above: the metadata store runs redb on [`Volume::backend`] and makes its transactions durable by
//! [`Volume::append`]. Below: devices, and whoever gives out their space ([`VolumeHost`]).
//!
//! Each replica holds the whole log ring and the whole of home (the blocks of the virtual file). Invariants:
//! - The durable state is the newest checkpoint in the log plus the redo behind it, and nothing else. A checkpoint is one unit
//!   of the log: redb's header, the sums of all blocks changed since the one before, and digests of all sums. It is appended
//!   after everything it names was flushed on every live replica, so it takes effect whole or not at all.
//! - redb never overwrites a block that the durable state uses; only its header, which therefore lives in the log. Home's copy
//!   of it, the sums areas and the anchors of the log are written after the checkpoint that holds the same, are flushed before
//!   the next one is appended, and that checkpoint stays in the ring until then: a torn one is mended from the log.
//! - A block is read only if its content has the sum that the one table in memory names for it, whichever replica it comes from.
//! - redb can change its header only inside [`Volume::checkpoint`] (or before the first one): nothing it does by itself, when
//!   it is dropped for example, becomes durable.
//! - Home's device blocks are written under the `io` lock only, so a repair never overtakes a newer write.
//! - Lock order: `resyncing`, `checkpointing`, `io`, `log`, `root`, then `replicas` or `state`. No lock is held while waiting for redb.
//!   The host is called with `io`, `log` and `root` possibly held; it must not call back.

mod backend;
mod block;
mod checkpoint;
mod home;
mod open;
mod recover;
mod redb_header;
mod replicas;
mod resync;
mod ring;
mod table;
#[cfg(test)]
mod tests;

pub use backend::Backend;

use super::db::{Appended, RedoGroup};
use crate::base::{BlockNo, Blocks, Bytes, DeviceId, Error, Result};
use crate::device::{Device, Engine};
use crate::format::label::{MetaRoot, ReplicaRoot};
use crate::format::log::{self, Checkpoint, Kind};
use block::{BLOCK, Block};
use replicas::Replica;
use ring::Ring;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use table::{Geometry, Table};

/// What the volume needs from the pool. Methods may be called with locks of the volume held: they must not call back.
pub trait VolumeHost: Send + Sync {
    /// The device, when present.
    fn device(&self, id: DeviceId) -> Option<Arc<dyn Device>>;

    /// What runs batches of requests.
    fn engine(&self) -> Arc<dyn Engine>;

    /// First block of so many contiguous free blocks, the metadata's from now on. Durable when a root that names them is
    /// stored.
    fn allocate(&self, device: DeviceId, blocks: Blocks) -> Result<BlockNo>;

    /// Takes back blocks that [`VolumeHost::allocate`] gave and no stored root names.
    fn release(&self, _device: DeviceId, _first: BlockNo, _blocks: Blocks) {}

    /// Stores the root in the labels of all present devices, flushed, before it returns. A replica that the root names and
    /// does not call stale is a member in good standing from then on.
    fn store_root(&self, root: &MetaRoot) -> Result<()>;

    /// A replica failed a write or a flush: changes the membership (new epoch) durably before it returns `Ok`. An error when
    /// too few are left.
    fn drop_replica(&self, device: DeviceId, why: &Error) -> Result<()>;

    /// Devices that could become a replica in place of a lost one, best first.
    fn spare_replicas(&self, current: &[DeviceId]) -> Vec<DeviceId>;
}

/// How a volume is run. Sizes of what is stored count only when it is formatted.
#[derive(Clone, Debug)]
pub struct VolumeOptions {
    /// Blocks of a chunk of home.
    pub chunk_blocks: u32,
    /// Blocks of the log on each replica.
    pub log_blocks: u32,
    /// Written blocks kept in memory before they are written back.
    pub dirty_limit: Bytes,
    /// What makes [`Volume::wants_checkpoint`] true: redo groups since the last one,
    pub checkpoint_groups: u64,
    /// bytes of redo since the last one,
    pub checkpoint_redo: Bytes,
    /// bytes of home changed since the last one. (And a log about to be full.)
    pub checkpoint_changed: Bytes,
    /// The most that redb keeps from the volume until a commit: half of its cache.
    pub write_ahead: Bytes,
    /// The most one entry of the log carries; what is longer is split. No more than 4 MiB.
    pub entry_limit: Bytes,
    /// Nothing is written to any device.
    pub read_only: bool,
    /// A random number, new for every opening.
    pub salt: u64,
}

impl VolumeOptions {
    /// The usual options for devices that are not tiny.
    pub fn new(salt: u64) -> VolumeOptions {
        VolumeOptions {
            chunk_blocks: (64 << 20) / BLOCK as u32,
            log_blocks: (128 << 20) / BLOCK as u32,
            dirty_limit: Bytes(64 << 20),
            checkpoint_groups: 20_000,
            checkpoint_redo: Bytes(32 << 20),
            checkpoint_changed: Bytes(64 << 20),
            write_ahead: Bytes(48 << 20),
            entry_limit: Bytes(log::MAX_PAYLOAD as u64),
            read_only: false,
            salt,
        }
    }
}

/// The fewest blocks a log can have.
pub const MIN_LOG_BLOCKS: u32 = 64;

/// Bytes of home that one byte of redo may make redb write to: a row of fifty, a leaf of its own.
const GROWTH: u64 = 80;

/// What the volume is doing.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct VolumeStats {
    /// Live replicas, and those being brought up.
    pub replicas: Vec<DeviceId>,
    pub joining: Vec<DeviceId>,
    /// Length of the virtual file.
    pub len: Bytes,
    pub chunks: u64,
    /// Blocks of home not written back yet, and those changed since the last checkpoint.
    pub dirty_blocks: u64,
    pub changed_blocks: u64,
    pub log_capacity: Blocks,
    pub log_used: Blocks,
    /// No anchor of the log led to its newest checkpoint when the volume was opened: more went wrong than a power cut.
    pub log_scanned: bool,
    /// Opened to be read only, with a log of which nobody can tell whether it goes on: a block of it cannot be read.
    pub log_unread: bool,
    /// Redo since the last checkpoint.
    pub redo_groups: u64,
    pub redo_bytes: Bytes,
    /// Since the volume was opened: checkpoints, blocks that failed verification or could not be read, blocks rewritten from
    /// another replica, replicas lost.
    pub checkpoints: u64,
    pub bad_blocks: u64,
    pub repaired_blocks: u64,
    pub dropped_replicas: u64,
}

/// What [`Volume::verify`] found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct VerifyReport {
    /// Blocks read, over all replicas.
    pub blocks: u64,
    /// Blocks that one replica had wrong and another one right, and how many of these were rewritten.
    pub bad: u64,
    pub repaired: u64,
    /// Stretches of the log that were copied to a replica that lacked them.
    pub log_repairs: u64,
    /// Those that are lacking, when nothing is mended.
    pub log_lacking: u64,
    /// Of entries that were acknowledged, no copy can be read. What they say is in memory: a checkpoint makes them needless.
    /// (Or the volume was opened to be read only, and nobody can tell whether there are such entries.)
    pub log_broken: bool,
    /// Blocks that no replica has right. redb may not use them: of a block that was free at the last checkpoint, the content
    /// is lost with a crash and its sum is not. [`crate::meta::uses_unreadable`] tells.
    pub unreadable: Vec<u64>,
}

#[derive(Default)]
struct Counters {
    checkpoints: AtomicU64,
    bad: AtomicU64,
    repaired: AtomicU64,
    dropped: AtomicU64,
}

/// What the stored root says, and space taken ahead.
struct Root {
    generation: u64,
    replicas: Vec<ReplicaRoot>,
    /// Chunks allocated and not mapped yet.
    spare: Vec<Vec<(DeviceId, BlockNo)>>,
}

/// Blocks by number.
type Dirty = BTreeMap<u64, Box<Block>>;

/// Home as redb sees it.
struct State {
    /// Length of the virtual file.
    len: u64,
    /// Block 0.
    header: [u8; redb_header::LEN],
    /// The header in the newest checkpoint.
    published: Option<[u8; redb_header::LEN]>,
    /// A checkpoint is announced: the header may change.
    announced: bool,
    /// The announced checkpoint was appended.
    done: bool,
    /// Written by redb, not on its way to the devices.
    dirty: Dirty,
    /// On its way to the devices.
    writing: Arc<Dirty>,
    table: Table,
}

struct Core {
    host: Arc<dyn VolumeHost>,
    engine: Arc<dyn Engine>,
    options: VolumeOptions,
    geometry: Geometry,
    volume: u64,
    log_capacity: u64,
    log_scanned: bool,
    log_unread: bool,
    replicas: RwLock<Vec<Arc<Replica>>>,
    /// One replica is brought up or let go at a time.
    resyncing: Mutex<()>,
    checkpointing: Mutex<()>,
    io: Mutex<()>,
    log: Mutex<Ring>,
    root: Mutex<Root>,
    state: RwLock<State>,
    poisoned: Mutex<Option<String>>,
    refuses: AtomicBool,
    counters: Counters,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// The metadata volume. Clones are handles on the same one.
#[derive(Clone)]
pub struct Volume {
    core: Arc<Core>,
}

impl Volume {
    /// What redb runs on. To be written to by one `Database` at a time.
    pub fn backend(&self) -> Backend {
        Backend::new(self.core.clone())
    }

    /// Makes the groups durable on every live replica, all or nothing.
    pub fn append(&self, groups: &[RedoGroup]) -> Result<Appended> {
        self.core.append(groups)
    }

    /// Runs `commit`, which has to make redb commit durably, and makes its outcome the durable state. Any error, and a
    /// `commit` that changes nothing durable, poisons the volume.
    pub fn checkpoint(&self, commit: impl FnOnce() -> Result<()>) -> Result<()> {
        self.core.checkpoint(commit)
    }

    /// Whether one of the limits is reached that a checkpoint resets.
    pub fn wants_checkpoint(&self) -> bool {
        self.core.wants_checkpoint()
    }

    /// Writes dirty blocks back, so that a checkpoint finds less to do.
    pub fn prewrite(&self) -> Result<()> {
        self.core.write_back()
    }

    /// How many chunks the host should have space for and the volume has not taken yet. To be asked before each transaction: a
    /// lack of space is told there and not inside redb. While it lasts, what cannot be written back stays in memory.
    pub fn lacking_chunks(&self) -> usize {
        self.core.lacking_chunks()
    }

    /// Whether the chunks at hand do not even last for what has no place yet and one more.
    pub fn is_short_of_chunks(&self) -> bool {
        self.spare_chunks() <= read(&self.core.state).table.homeless()
    }

    /// Whether there is no more space to be had, and changes that took so much redo may have used half of what is at hand:
    /// redb keeps them to itself until a checkpoint, and only then it is known what is left.
    pub fn is_tight(&self, redo: u64) -> bool {
        self.core.lacking_chunks() > 0 && redo.saturating_mul(GROWTH) > self.core.room() / 2
    }

    /// Whether what is at hand is to be left to transactions that free space: to remove something, rows have to be written.
    pub fn is_scarce(&self) -> bool {
        self.spare_chunks() <= read(&self.core.state).table.homeless() + self.core.kept_chunks()
    }

    /// Takes space from the host until so many chunks are at hand.
    pub fn reserve(&self, chunks: usize) -> Result<()> {
        self.core.reserve(chunks)
    }

    /// Chunks at hand: taken from the host and not in use yet.
    pub fn spare_chunks(&self) -> usize {
        lock(&self.core.root).spare.len()
    }

    /// Refuses every write from now on: to be called before the `Database` is dropped, too.
    pub fn poison(&self, why: &str) {
        self.core.poison(why);
    }

    /// Why writes are refused, if they are.
    pub fn is_poisoned(&self) -> Option<String> {
        lock(&self.core.poisoned).clone()
    }

    /// Brings a device up as a replica, new or stale, while everything goes on: copies what it does not have right, then the
    /// log, then stores the root that names it current. A crash before that leaves it stale.
    pub fn rejoin(&self, device: DeviceId) -> Result<()> {
        self.core.rejoin(device)
    }

    /// Brings one of the host's spare devices up when fewer than `wanted` replicas are live; which one.
    pub fn replenish(&self, wanted: usize) -> Result<Option<DeviceId>> {
        self.core.replenish(wanted)
    }

    /// Goes on without a replica whose device others have left out. The last one stays.
    pub fn leave_out(&self, device: DeviceId) -> Result<()> {
        match self.core.readers().iter().any(|replica| replica.id != device) {
            true => self.core.drop_replica(device, Error::Unavailable("the device was left out".to_owned())),
            false => Ok(()),
        }
    }

    /// Lets a replica go and gives its space back: live, to empty its device (bring up another one first), or stale for good.
    pub fn retire(&self, device: DeviceId) -> Result<()> {
        self.core.retire(device)
    }

    /// Checks everything on all live replicas, and mends what another replica has right.
    pub fn verify(&self) -> Result<VerifyReport> {
        Ok(self.verify_while(&mut || true)?.unwrap_or_default())
    }

    /// The same, as long as `go_on` says so, which is asked again and again; `None` when it was ended early.
    pub fn verify_while(&self, go_on: &mut dyn FnMut() -> bool) -> Result<Option<VerifyReport>> {
        self.core.verify(true, go_on)
    }

    /// Checks everything on all live replicas and changes nothing.
    pub fn inspect(&self) -> Result<VerifyReport> {
        Ok(self.core.verify(false, &mut || true)?.unwrap_or_default())
    }

    /// What goes on.
    pub fn stats(&self) -> VolumeStats {
        self.core.stats()
    }
}

impl Core {
    fn poison(&self, why: &str) {
        let mut poisoned = lock(&self.poisoned);
        if poisoned.is_none() {
            *poisoned = Some(why.to_owned());
            self.refuses.store(true, Ordering::Release);
        }
    }

    /// An error once the volume refuses writes.
    fn check(&self) -> Result<()> {
        if self.refuses.load(Ordering::Acquire) {
            let why = lock(&self.poisoned).clone();
            return Err(Error::Poisoned(why.unwrap_or_default()));
        }
        Ok(())
    }

    fn append(&self, groups: &[RedoGroup]) -> Result<Appended> {
        self.check()?;
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        if groups.is_empty() {
            return Ok(Appended::Durable);
        }
        let len = groups.iter().map(|group| log::group_len(&group.changes)).sum();
        let mut unit = Vec::with_capacity(len);
        groups.iter().for_each(|group| log::put_group(&mut unit, group.txn.0, &group.changes));
        let mut ring = lock(&self.log);
        let need = ring.unit_blocks(unit.len()) + self.checkpoint_room(&ring);
        if need > ring.free() && need <= ring.free_soon() {
            self.flush_all()?;
            ring.flushed();
        }
        if need > ring.free() {
            return Ok(Appended::CheckpointFirst);
        }
        let frames = ring.frame(Kind::Redo, &unit);
        self.write_frames(&ring, &frames)?;
        self.flush_all()?;
        ring.flushed();
        ring.groups += groups.len() as u64;
        ring.redo_bytes += unit.len() as u64;
        Ok(Appended::Durable)
    }

    /// Blocks of the log kept for the next checkpoint: what it would need with all that redb may hold back, and never less than
    /// a quarter of the ring.
    fn checkpoint_room(&self, ring: &Ring) -> u64 {
        let (chunks, changed) = {
            let state = read(&self.state);
            let held_back = self.options.write_ahead.0.min(state.len.saturating_mul(2)) / BLOCK as u64;
            (state.table.chunks.len() + 1, state.table.changed() + held_back as usize)
        };
        let bound = ring.unit_blocks(Checkpoint::bound(chunks, self.geometry.pages as usize, changed));
        bound.clamp(ring.capacity / 4, ring.capacity / 2)
    }

    fn wants_checkpoint(&self) -> bool {
        if self.options.read_only || self.check().is_err() {
            return false;
        }
        let changed = read(&self.state).table.changed() as u64 * BLOCK as u64;
        let ring = lock(&self.log);
        ring.groups >= self.options.checkpoint_groups
            || ring.redo_bytes >= self.options.checkpoint_redo.0
            || changed >= self.options.checkpoint_changed.0
            || ring.free_soon() < self.checkpoint_room(&ring) + ring.capacity / 4
    }

    fn stats(&self) -> VolumeStats {
        let writers = self.writers();
        let ids =
            |joining| writers.iter().filter(move |replica| replica.is_joining() == joining).map(|replica| replica.id);
        let (replicas, joining) = (ids(false).collect(), ids(true).collect());
        let ring = lock(&self.log);
        let state = read(&self.state);
        VolumeStats {
            replicas,
            joining,
            len: Bytes(state.len),
            chunks: state.table.chunks.len() as u64,
            dirty_blocks: (state.dirty.len() + state.writing.len()) as u64,
            changed_blocks: state.table.changed() as u64,
            log_capacity: Blocks(ring.capacity),
            log_used: Blocks(ring.position - ring.tail),
            log_scanned: self.log_scanned,
            log_unread: self.log_unread,
            redo_groups: ring.groups,
            redo_bytes: Bytes(ring.redo_bytes),
            checkpoints: self.counters.checkpoints.load(Ordering::Relaxed),
            bad_blocks: self.counters.bad.load(Ordering::Relaxed),
            repaired_blocks: self.counters.repaired.load(Ordering::Relaxed),
            dropped_replicas: self.counters.dropped.load(Ordering::Relaxed),
        }
    }
}
