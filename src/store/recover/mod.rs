//! Making a pool's metadata again when every copy of it is gone: a fresh volume beside everything that is to be kept, rows
//! from an archive, and the stripes that are newer, which the headers of their shards describe. What an archive is and
//! which rows it has is for `check` to say.
//!
//! Invariants:
//! - Nothing that may still be needed is overwritten: archives, their stripes, newer shards and, while space lasts, what
//!   is left of the old metadata.
//! - The labels name the old metadata until the new one is whole and durable. Interrupted, it all can be begun again.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

mod find;
mod newer;
mod older;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Weak};

use super::devices::Devices;
use super::host::{Host, HostedLog, Occupied, PoolMembership, volume_options};
use super::open::choose_replicas;
use super::{archive, lock};
use crate::base::sync::Mutex;
use crate::base::{BlockNo, Clock, DeviceId, Error, Incarnation, Result, StripeId};
use crate::format::rows::{GroupKey, StripeRow};
use crate::meta::migrate::migrate;
use crate::meta::volume::Volume;
use crate::meta::{Meta, Put};
use crate::pool::Pool;
use crate::pool::allocator::{Loader, Run};

pub use find::{FoundShard, Search, find_shards};
pub use newer::Newer;
pub use older::Older;

/// Rows of `groups`, as they come out of an archive.
#[derive(Default)]
pub struct Bitmaps(BTreeMap<GroupKey, Vec<u8>>);

impl Bitmaps {
    /// Takes a row.
    pub fn add(&mut self, key: GroupKey, bits: Vec<u8>) {
        self.0.insert(key, bits);
    }

    /// Visits the rows.
    pub fn rows(&self) -> impl Iterator<Item = (&GroupKey, &Vec<u8>)> {
        self.0.iter()
    }
}

impl Occupied for Bitmaps {
    fn bitmap(&self, key: &GroupKey) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(key).cloned())
    }
}

/// Where rows say that shards are. There are as many as the pool has, so eight bytes have to do for each.
#[derive(Default)]
pub struct Places(Vec<u64>);

impl Places {
    /// Takes the placements of a stripe.
    pub fn add(&mut self, stripe: StripeId, row: &StripeRow) {
        self.0.extend(
            (0..)
                .zip(&row.placements)
                .map(|(index, place)| place_hash((place.device, place.block), (stripe, row.incarnation, index))),
        );
    }

    /// Makes them ready to be asked, when all are there.
    pub fn sort(&mut self) {
        self.0.sort_unstable();
    }

    /// Whether the shard is where the rows say.
    pub fn has(&self, found: &FoundShard) -> bool {
        let shard = (found.stripe, found.incarnation, found.index);
        self.0.binary_search(&place_hash((found.device, found.block), shard)).is_ok()
    }
}

fn place_hash(place: (DeviceId, BlockNo), shard: (StripeId, Incarnation, u8)) -> u64 {
    let mut hasher = DefaultHasher::new();
    (place, shard).hash(&mut hasher);
    hasher.finish()
}

/// New metadata of a pool in the making. Dropped before [`Recovery::finish`], nothing has happened.
pub struct Recovery {
    pool: Arc<Pool>,
    log: Arc<HostedLog>,
    meta: Arc<Meta>,
    bitmaps: Arc<Bitmaps>,
}

impl Recovery {
    /// Makes an empty metadata volume where neither `bitmaps` nor `keep` have anything, and, unless `over_old`, nothing is left
    /// of the old one. `salt` is a random number.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when there is no room for it.
    pub fn begin(
        pool: &Arc<Pool>,
        clock: Arc<dyn Clock>,
        salt: u64,
        bitmaps: &Arc<Bitmaps>,
        keep: &[FoundShard],
        over_old: bool,
    ) -> Result<Recovery> {
        let mut keep: Vec<Run> = keep.iter().map(FoundShard::run).collect();
        for archive in &pool.state().label.archives {
            keep.extend(archive::runs_of(&PoolMembership(pool.clone()), pool.uuid(), archive));
        }
        if !over_old {
            keep.extend(old_metadata(pool));
        }
        let devices = Arc::new(Devices::new(Arc::new(PoolMembership(pool.clone()))));
        let host = Arc::new(Host::new(pool.clone(), devices.clone()));
        host.set_named(false);
        let state = pool.state();
        {
            let mut allocator = lock(&devices.allocator);
            for member in state.present() {
                allocator.add_device(member.id, member.layout, 0);
            }
            merged(keep).into_iter().for_each(|run| allocator.claim(run));
        }
        let layouts: Vec<_> = state.present().map(|member| member.layout).collect();
        let options = volume_options(&layouts, salt);
        let chunk_blocks = options.chunk_blocks;
        // Fewer copies than there should be are better than none: the others are made when there is space.
        let mut members = state.members.clone();
        let replicas = loop {
            let replicas = choose_replicas(&members, pool.geometry().m);
            let has_space = |id: &DeviceId| {
                let load: &mut Loader<'_> = &mut |key| bitmaps.bitmap(key);
                host.claim_ahead(&[*id], options.log_blocks, load)?;
                host.claim_total(*id, u64::from(options.log_blocks) + u64::from(chunk_blocks), load)
            };
            let Some(full) = replicas.iter().find(|id| has_space(id).is_err()) else { break replicas };
            members.retain(|member| member.id != *full);
        };
        if replicas.is_empty() {
            return Err(Error::NoSpace);
        }
        let (volume, _) = Volume::format(host.clone(), &replicas, options)?;
        volume.reserve(1)?;
        // Space for more of it is looked for there, too, until the bitmaps are in it.
        let occupied: Weak<Bitmaps> = Arc::downgrade(bitmaps);
        let log = Arc::new(HostedLog { volume, host, chunk_blocks, bitmaps: Mutex::new(occupied) });
        let meta = Meta::open(log.volume.backend(), Vec::new(), log.clone(), devices, clock, false)?;
        Ok(Recovery { pool: pool.clone(), log, meta: Arc::new(meta), bitmaps: bitmaps.clone() })
    }

    /// Stores the bitmaps and the rows that `fill` puts, and brings them to the version of this build.
    pub fn load(&self, fill: &mut dyn FnMut(&mut Put<'_>) -> Result<()>) -> Result<()> {
        self.meta.load(&mut |put| {
            self.bitmaps.rows().try_for_each(|(key, bits)| put_row::<crate::format::table::Groups>(put, key, bits))
        })?;
        let occupied: Weak<Meta> = Arc::downgrade(&self.meta);
        *lock(&self.log.bitmaps) = occupied;
        self.meta.load(fill)?;
        migrate(&self.meta, false)?;
        // Or the first of what follows would have to wait for it.
        self.meta.checkpoint()
    }

    /// The metadata as it is so far.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Whether what was put last may have failed for want of space: the database does not tell.
    pub fn lacks_space(&self) -> bool {
        self.log.volume.is_short_of_chunks()
    }

    /// Makes it the pool's metadata: durable, and named by the labels.
    pub fn finish(self) -> Result<()> {
        self.meta.checkpoint()?;
        self.log.host.set_named(true);
        self.pool.update_labels(|label| label.meta = self.log.volume.root())
    }
}

/// Puts a typed row.
pub fn put_row<T: crate::format::table::Table>(put: &mut Put<'_>, key: &T::Key, row: &T::Row) -> Result<()> {
    use crate::format::record::{Key as _, Row as _};
    let (mut key_bytes, mut row_bytes) = (Vec::new(), Vec::new());
    key.encode(&mut key_bytes);
    row.encode(&mut row_bytes);
    put(T::ID, &key_bytes, &row_bytes)
}

/// What the labels say the metadata has.
fn old_metadata(pool: &Pool) -> Vec<Run> {
    let root = &pool.state().label.meta;
    let logs = root.replicas.iter().map(|replica| Run {
        device: DeviceId(replica.device),
        block: BlockNo(replica.log_block),
        blocks: replica.log_blocks,
    });
    let chunks = root.chunks.iter().map(|chunk| Run {
        device: DeviceId(chunk.device),
        block: BlockNo(chunk.block),
        blocks: chunk.count.saturating_mul(root.chunk_blocks),
    });
    logs.chain(chunks).collect()
}

/// The same blocks in runs that neither overlap nor touch.
fn merged(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable();
    let mut out: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        let end = run.block.0 + u64::from(run.blocks);
        match out.last_mut() {
            Some(last) if last.device == run.device && last.block.0 + u64::from(last.blocks) >= run.block.0 => {
                let whole = end.max(last.block.0 + u64::from(last.blocks)) - last.block.0;
                last.blocks = u32::try_from(whole).unwrap_or(u32::MAX);
            }
            _ => out.push(run),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::SteppingClock;
    use crate::device::sim::SimWorld;
    use crate::meta::RedoLog;
    use crate::store::open_tests::format;

    /// The bitmaps of a large pool are more than what its new metadata begins with.
    #[test]
    fn space_is_found_before_the_bitmaps_are_stored() {
        let world = SimWorld::new(31, 3, 64 << 20);
        let pool = format(&world, 2, 1).unwrap().pool().unwrap().clone();
        let clock = Arc::new(SteppingClock::default());
        let recovery = Recovery::begin(&pool, clock, 1, &Arc::default(), &[], true).unwrap();
        assert!(recovery.log.volume.lacking_chunks() > 0);
        recovery.log.prepare().unwrap();
        assert_eq!(recovery.log.volume.lacking_chunks(), 0);
    }
}
