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
use std::sync::{Arc, Weak};

use super::devices::Devices;
use super::host::{Host, HostedLog, PoolMembership, volume_options};
use super::open::choose_replicas;
use super::{archive, lock};
use crate::base::sync::Mutex;
use crate::base::{BlockNo, Clock, DeviceId, Error, Result};
use crate::format::rows::{GROUP_PART_BLOCKS, GroupKey};
use crate::meta::migrate::migrate;
use crate::meta::volume::Volume;
use crate::meta::{Meta, Put};
use crate::pool::Pool;
use crate::pool::allocator::Run;

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

    /// Whether the block belongs to a stripe.
    pub fn is_used(&self, device: DeviceId, block: BlockNo) -> bool {
        let key = GroupKey { device, group: (block.0 / GROUP_PART_BLOCKS) as u32, part: 0 };
        let at = (block.0 % GROUP_PART_BLOCKS) as usize;
        self.0.get(&key).and_then(|bits| bits.get(at / 8)).is_some_and(|byte| byte >> (at % 8) & 1 == 1)
    }
}

/// New metadata of a pool in the making. Dropped before [`Recovery::finish`], nothing has happened.
pub struct Recovery {
    pool: Arc<Pool>,
    log: Arc<HostedLog>,
    meta: Arc<Meta>,
}

impl Recovery {
    /// Makes an empty metadata volume where neither `bitmaps` nor `keep` have anything. `salt` is a random number.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when there is no room for it, not even in place of the old one.
    pub fn begin(
        pool: &Arc<Pool>,
        clock: Arc<dyn Clock>,
        salt: u64,
        bitmaps: &Bitmaps,
        keep: &[FoundShard],
    ) -> Result<Recovery> {
        let mut runs: Vec<Run> = keep.iter().map(FoundShard::run).collect();
        for archive in &pool.state().label.archives {
            runs.extend(archive::runs_of(&PoolMembership(pool.clone()), pool.uuid(), archive));
        }
        let with_old: Vec<Run> = runs.iter().copied().chain(old_metadata(pool)).collect();
        match Recovery::beside(pool, clock.clone(), salt, bitmaps, with_old) {
            Err(Error::NoSpace) => {
                pool.note("there is no room beside what is left of the old metadata: it is overwritten".to_owned());
                Recovery::beside(pool, clock, salt, bitmaps, runs)
            }
            other => other,
        }
    }

    fn beside(
        pool: &Arc<Pool>,
        clock: Arc<dyn Clock>,
        salt: u64,
        bitmaps: &Bitmaps,
        keep: Vec<Run>,
    ) -> Result<Recovery> {
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
        let replicas = choose_replicas(&state.members, pool.geometry().m);
        let layouts: Vec<_> = state.present().map(|member| member.layout).collect();
        let options = volume_options(&layouts, salt);
        let chunk_blocks = options.chunk_blocks;
        let blocks = options.log_blocks + chunk_blocks;
        host.claim_ahead(&replicas, blocks, &mut |key| Ok(bitmaps.0.get(key).cloned()))?;
        let (volume, _) = Volume::format(host.clone(), &replicas, options)?;
        volume.reserve(1)?;
        let log = Arc::new(HostedLog { volume, host, chunk_blocks, meta: Mutex::new(Weak::new()) });
        let meta = Meta::open(log.volume.backend(), Vec::new(), log.clone(), devices, clock, false)?;
        let recovery = Recovery { pool: pool.clone(), log, meta: Arc::new(meta) };
        // Space for more metadata is looked for in the bitmaps, so they come first.
        recovery.meta.load(&mut |put| {
            bitmaps.rows().try_for_each(|(key, bits)| put_row::<crate::format::table::Groups>(put, key, bits))
        })?;
        *lock(&recovery.log.meta) = Arc::downgrade(&recovery.meta);
        Ok(recovery)
    }

    /// Stores the rows that `fill` puts and brings them to the version of this build.
    pub fn load(&self, fill: &mut dyn FnMut(&mut Put<'_>) -> Result<()>) -> Result<()> {
        self.meta.load(fill)?;
        migrate(&self.meta, false)?;
        // Or the first of what follows would have to wait for it.
        self.meta.checkpoint()
    }

    /// The metadata as it is so far.
    pub fn meta(&self) -> &Meta {
        &self.meta
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
