//! The pool as the metadata volume and the store want it: adapters, and space claimed ahead for metadata.
//!
//! Invariants:
//! - Space for metadata is claimed outside the volume, because finding free groups reads the metadata itself; the
//!   volume is only ever given what was claimed before.
//! - What is claimed and not named by a stored root is free again after a restart.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use super::devices::{Devices, Member, Membership};
use super::lock;
use crate::base::sync::Mutex;
use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::{BlockNo, Blocks, DeviceId, Error, Incarnation, Result, Uuid};
use crate::device::{Device, Engine, STALL};
use crate::erasure::Geometry;
use crate::format::label::{GroupLayout, MetaRoot};
use crate::format::rows::GroupKey;
use crate::meta::volume::{Volume, VolumeHost, VolumeOptions};
use crate::meta::{Appended, Meta, RedoGroup, RedoLog};
use crate::pool::Pool;
use crate::pool::allocator::{Allocator, Loader, Run};
use crate::pool::stripe_io::Media;

/// One byte of metadata is expected for so many bytes of content: a stripe of 256 KiB needs 700 bytes of rows, smaller
/// ones hardly less, and the trees are half full.
const METADATA_PART: u64 = 110;

/// The pool as the store sees it.
pub struct PoolMembership(pub Arc<Pool>);

impl Media for PoolMembership {
    fn device(&self, id: DeviceId) -> Option<Arc<dyn Device>> {
        self.0.device(id)
    }

    fn engine(&self) -> &dyn Engine {
        &**self.0.engine()
    }

    fn avoid(&self, id: DeviceId) -> bool {
        self.0
            .state()
            .device(id)
            .is_some_and(|device| device.stalled_ns().is_some_and(|ns| u128::from(ns) >= STALL.as_nanos()))
    }
}

impl Membership for PoolMembership {
    fn pool(&self) -> Uuid {
        self.0.uuid()
    }

    fn incarnation(&self) -> Incarnation {
        self.0.incarnation()
    }

    fn geometry(&self) -> (Geometry, u32) {
        let default = self.0.geometry();
        let geometry = Geometry::new(default.k, default.m).expect("labels are checked when they are read");
        (geometry, default.shard_blocks)
    }

    fn members(&self) -> Vec<Member> {
        let state = self.0.state();
        let taking = state.members.iter().filter(|member| member.takes_data());
        let member = |member: &crate::pool::Member| Member {
            id: member.id,
            uuid: member.uuid,
            domain: member.failure_domain,
            weight: f64::from(member.weight_milli) / 1000.0,
            layout: member.layout,
        };
        taking.map(member).collect()
    }

    fn drop_member(&self, id: DeviceId, why: &Error) -> Result<()> {
        self.0.drop_members(&[id], &why.to_string())
    }
}

/// The pool as the metadata volume sees it.
pub struct Host {
    pool: Arc<Pool>,
    devices: Arc<Devices>,
    /// Claimed for metadata and not given to the volume yet.
    spare: Mutex<BTreeMap<DeviceId, Vec<Run>>>,
    /// The labels name another volume, until this one is whole.
    unnamed: AtomicBool,
}

impl Host {
    pub fn new(pool: Arc<Pool>, devices: Arc<Devices>) -> Host {
        Host { pool, devices, spare: Mutex::default(), unnamed: AtomicBool::new(false) }
    }

    /// Lets the labels name the volume, or not.
    pub fn set_named(&self, named: bool) {
        self.unnamed.store(!named, Ordering::Release);
    }

    /// Sees to it that each of `replicas` has `blocks` contiguous blocks claimed ahead.
    pub fn claim_ahead(&self, replicas: &[DeviceId], blocks: u32, load: &mut Loader<'_>) -> Result<()> {
        for id in replicas.iter().filter(|_| blocks > 0) {
            if lock(&self.spare).get(id).is_some_and(|runs| runs.iter().any(|run| run.blocks >= blocks)) {
                continue;
            }
            let Some(run) = lock(&self.devices.allocator).claim_groups(*id, blocks, load)? else {
                return Err(Error::NoSpace);
            };
            lock(&self.spare).entry(*id).or_default().push(run);
        }
        Ok(())
    }
}

impl Host {
    /// Sees to it that so many blocks are claimed ahead on a device, in whole groups.
    pub fn claim_total(&self, id: DeviceId, blocks: u64, load: &mut Loader<'_>) -> Result<()> {
        let group = self.pool.state().member(id).map_or(1, |member| member.layout.group_blocks);
        loop {
            let ahead: u64 = lock(&self.spare).get(&id).into_iter().flatten().map(|run| u64::from(run.blocks)).sum();
            if ahead >= blocks {
                return Ok(());
            }
            let Some(run) =
                lock(&self.devices.allocator).claim_groups(id, u64::from(group).min(blocks).max(1) as u32, load)?
            else {
                return Err(Error::NoSpace);
            };
            lock(&self.spare).entry(id).or_default().push(run);
        }
    }
}

impl VolumeHost for Host {
    fn device(&self, id: DeviceId) -> Option<Arc<dyn Device>> {
        self.pool.device(id)
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.pool.engine().clone()
    }

    fn allocate(&self, device: DeviceId, blocks: Blocks) -> Result<BlockNo> {
        let mut spare = lock(&self.spare);
        let runs = spare.entry(device).or_default();
        let fits = runs.iter().position(|run| u64::from(run.blocks) >= blocks.0).ok_or(Error::NoSpace)?;
        let run = &mut runs[fits];
        let first = run.block;
        run.block = first + blocks;
        run.blocks -= blocks.0 as u32;
        runs.retain(|run| run.blocks > 0);
        Ok(first)
    }

    fn release(&self, device: DeviceId, first: BlockNo, blocks: Blocks) {
        lock(&self.spare).entry(device).or_default().push(Run { device, block: first, blocks: blocks.0 as u32 });
    }

    fn store_root(&self, root: &MetaRoot) -> Result<()> {
        if self.unnamed.load(Ordering::Acquire) {
            return Ok(());
        }
        self.pool.update_labels(|label| label.meta = root.clone())
    }

    fn drop_replica(&self, device: DeviceId, why: &Error) -> Result<()> {
        self.pool.drop_members(&[device], &why.to_string())
    }

    fn spare_replicas(&self, current: &[DeviceId]) -> Vec<DeviceId> {
        let state = self.pool.state();
        // Not on devices that are being emptied.
        let fit = |member: &&crate::pool::Member| member.is_current() && member.takes_data();
        let mut spare: Vec<_> =
            state.members.iter().filter(fit).filter(|member| !current.contains(&member.id)).collect();
        // Fast devices first, then large ones.
        spare.sort_by_key(|member| (std::cmp::Reverse(member.class), std::cmp::Reverse(member.size)));
        spare.into_iter().map(|member| member.id).collect()
    }
}

/// Sizes of the metadata volume for members divided like `layouts`: the smallest one decides.
pub fn volume_options(layouts: &[GroupLayout], salt: u64) -> VolumeOptions {
    let mut options = VolumeOptions::new(salt);
    let group = layouts.iter().map(|layout| layout.group_blocks).min().unwrap_or(options.chunk_blocks);
    options.chunk_blocks = options.chunk_blocks.min(group);
    // On the tiniest devices every group counts.
    options.log_blocks = options.log_blocks.min(if group > 64 { 2 * group } else { group });
    let log = crate::base::Blocks(u64::from(options.log_blocks)).bytes();
    options.checkpoint_redo.0 = options.checkpoint_redo.0.min(log.0 / 4);
    options
}

/// The volume as the log of the store; claims space ahead of transactions.
pub struct HostedLog {
    pub volume: Volume,
    pub host: Arc<Host>,
    pub chunk_blocks: u32,
    pub bitmaps: Mutex<Weak<dyn Occupied>>,
}

/// Knows which blocks are in use.
pub trait Occupied: Send + Sync {
    /// A row of the table `groups`.
    fn bitmap(&self, key: &GroupKey) -> Result<Option<Vec<u8>>>;
}

impl Occupied for Meta {
    fn bitmap(&self, key: &GroupKey) -> Result<Option<Vec<u8>>> {
        super::devices::load_bitmap(self, key)
    }
}

impl HostedLog {
    /// Tells the allocator which blocks of a device (or of all) the stored root gives to metadata.
    pub fn claim_named(&self, allocator: &mut Allocator, only: Option<DeviceId>) {
        let root = self.volume.root();
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
        for run in logs.chain(chunks).filter(|run| only.is_none_or(|id| id == run.device)) {
            allocator.claim(run);
        }
    }

    /// Blocks that metadata will take of each of its devices beyond what it has claimed, when so much content is added.
    pub fn growth(&self, payload: u64) -> (Vec<DeviceId>, u64) {
        let replicas = self.volume.stats().replicas;
        let ahead = self.volume.lacking_chunks() as u64 * u64::from(self.chunk_blocks);
        let claimed: u64 = match replicas.first() {
            Some(id) => lock(&self.host.spare).get(id).into_iter().flatten().map(|run| u64::from(run.blocks)).sum(),
            None => 0,
        };
        let rows = payload / METADATA_PART / crate::base::BLOCK_SIZE;
        (replicas, (ahead + rows).saturating_sub(claimed))
    }

    /// Brings stale replicas up to date, and new ones up until there are `wanted` on devices that stay.
    pub fn mend(&self, wanted: usize, meta: &Meta) -> Result<()> {
        let root = self.volume.root();
        let mut candidates: Vec<DeviceId> =
            root.replicas.iter().filter(|replica| replica.stale).map(|replica| DeviceId(replica.device)).collect();
        let stale = candidates.len();
        let current: Vec<DeviceId> = root.replicas.iter().map(|replica| DeviceId(replica.device)).collect();
        candidates.extend(self.host.spare_replicas(&current));
        let log_blocks = root.replicas.first().map_or(0, |replica| u64::from(replica.log_blocks));
        let mut failed = Ok(());
        for (at, id) in candidates.into_iter().enumerate() {
            if at >= stale && self.staying_replicas() >= wanted {
                break;
            }
            if self.host.device(id).is_none() {
                continue;
            }
            // Where it does not work, another one may do.
            let mended = self.mend_one(id, at < stale, log_blocks, meta);
            failed = failed.and(mended);
        }
        if self.staying_replicas() >= wanted { Ok(()) } else { failed }
    }

    fn mend_one(&self, id: DeviceId, known: bool, log_blocks: u64, meta: &Meta) -> Result<()> {
        // Those in use, those at hand, and what transactions may take meanwhile.
        let chunks = self.volume.stats().chunks + self.volume.spare_chunks() as u64 + 2;
        let root = self.volume.root();
        let there = root.chunks.iter().filter(|chunk| chunk.device == id.0).map(|chunk| u64::from(chunk.count)).sum();
        let lacking = chunks.saturating_sub(there) * u64::from(self.chunk_blocks);
        let log = if known { 0 } else { log_blocks };
        let load: &mut Loader<'_> = &mut |key| super::devices::load_bitmap(meta, key);
        self.host.claim_ahead(&[id], log as u32, load)?;
        self.host.claim_total(id, lacking + log, load)?;
        match self.volume.rejoin(id) {
            // What cannot be read of the log is needless behind a checkpoint.
            Err(_) => meta.checkpoint().and_then(|()| self.volume.rejoin(id)),
            done => done,
        }
    }
}

impl HostedLog {
    /// Live replicas on devices that are not being emptied.
    fn staying_replicas(&self) -> usize {
        let state = self.host.pool.state();
        let stays = |id: &&DeviceId| state.member(**id).is_some_and(crate::pool::Member::takes_data);
        self.volume.stats().replicas.iter().filter(stays).count()
    }
}

impl RedoLog for HostedLog {
    fn prepare(&self) -> Result<()> {
        let lacking = self.volume.lacking_chunks();
        if lacking == 0 {
            return Ok(());
        }
        let Some(bitmaps) = lock(&self.bitmaps).upgrade() else { return Ok(()) };
        let replicas = self.volume.stats().replicas;
        let chunk = (replicas.clone(), u64::from(self.chunk_blocks));
        for _ in 0..lacking {
            if !self.volume.is_short_of_chunks() && !self.host.devices.keeps_promises(&chunk) {
                return Ok(());
            }
            let claimed = self.host.claim_ahead(&replicas, self.chunk_blocks, &mut |key| bitmaps.bitmap(key));
            match claimed.and_then(|()| self.volume.reserve(self.volume.spare_chunks() + 1)) {
                // More would be better, but what there is lasts for a while.
                Err(Error::NoSpace) if !self.volume.is_short_of_chunks() => return Ok(()),
                answer => answer?,
            }
        }
        Ok(())
    }

    fn append(&self, groups: &[RedoGroup]) -> Result<Appended> {
        self.volume.append(groups)
    }

    fn checkpoint(&self, commit: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.volume.checkpoint(commit)
    }

    fn wants_checkpoint(&self) -> bool {
        self.volume.wants_checkpoint()
    }

    fn is_tight(&self, redo: u64) -> bool {
        self.volume.is_tight(redo)
    }

    fn prewrite(&self) -> Result<()> {
        self.volume.prewrite()
    }

    fn poison(&self, why: &str) {
        self.volume.poison(why);
    }
}
