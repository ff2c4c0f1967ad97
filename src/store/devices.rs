//! The devices as the store sees them: free space, unflushed writes, stripe numbers, codecs.
//!
//! Invariants:
//! - When a transaction that refers to a shard commits, the shard's write has completed, and it is in `dirty` until a
//!   flush that began after that write succeeded. When that flush fails or the device is dropped before, it is in
//!   `doubts` until its stripe has given it up, which is durable before or with anything that refers to it: reading it
//!   proves nothing, because a cache may answer.
//! - Stripe numbers handed out lie below the durable `NextStripe` counter.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::lock;
use crate::base::sync::Mutex;
use crate::base::sync::atomic::{AtomicU64, Ordering};
use crate::base::{BLOCK_SIZE, DeviceId, Error, Incarnation, Result, StripeId, TxnId, Uuid};
use crate::device::{Op, Request};
use crate::erasure::{Codec, Geometry};
use crate::format::label::GroupLayout;
use crate::format::rows::{GroupKey, MAX_SHARD_BLOCKS, Placement};
use crate::meta::{DataBarrier, Tx};
use crate::pool::allocator::{Allocator, Loader, Run};
use crate::pool::placement::{self, Target};
use crate::pool::stripe_io::Media;

/// What the store knows of a member.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub id: DeviceId,
    pub uuid: Uuid,
    /// Devices of one domain fail together.
    pub domain: u64,
    /// Preference beyond free space; 1.0 is neutral.
    pub weight: f64,
    pub layout: GroupLayout,
}

/// The pool below, as far as the store needs it.
pub trait Membership: Media {
    fn pool(&self) -> Uuid;
    fn incarnation(&self) -> Incarnation;
    /// The geometry new stripes should have, and payload blocks per shard.
    fn geometry(&self) -> (Geometry, u32);
    /// Members that are present and up to date.
    fn members(&self) -> Vec<Member>;
    /// Takes a device that failed a write or flush out of the membership, durably on the others, before it returns.
    fn drop_member(&self, id: DeviceId, why: &Error) -> Result<()>;
}

/// Blocks reserved for one stripe to be.
#[derive(Clone, Debug)]
pub struct Allocation {
    pub geometry: Geometry,
    pub shard_blocks: u32,
    /// One per shard; [`Placement::NONE`] where no device was left.
    pub placements: Vec<Placement>,
}

impl Allocation {
    /// The blocks of each placed shard, its header included.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let placed = self.placements.iter().filter(|placement| **placement != Placement::NONE);
        placed.map(|placement| run_of(*placement, self.shard_blocks))
    }
}

/// Shards of which nobody knows whether they were kept.
#[derive(Default)]
pub(super) struct Doubts {
    /// Their stripes have to give them up.
    pub open: BTreeSet<(StripeId, DeviceId)>,
    /// No stripe refers to them, and none may.
    pub early: BTreeSet<(StripeId, DeviceId)>,
}

/// Devices, free space and what has to be flushed.
pub struct Devices {
    pub membership: Arc<dyn Membership>,
    pub allocator: Mutex<Allocator>,
    dirty: Mutex<BTreeMap<DeviceId, BTreeSet<StripeId>>>,
    pub(super) doubts: Mutex<Doubts>,
    /// Held during a barrier: a second one waits for what the first one flushes.
    flushing: Mutex<()>,
    codecs: Mutex<HashMap<(u8, u8), Arc<Codec>>>,
    stripes: Mutex<std::ops::Range<u64>>,
    readers: Mutex<BTreeMap<TxnId, usize>>,
    /// Commits under way, by the lowest stripe number each may have been given.
    writers: Mutex<BTreeMap<u64, usize>>,
    /// Bytes of content that writers were promised space for, or may be without being measured again.
    pub promised: AtomicU64,
}

impl Devices {
    pub fn new(membership: Arc<dyn Membership>) -> Devices {
        Devices {
            membership,
            allocator: Mutex::default(),
            dirty: Mutex::default(),
            doubts: Mutex::default(),
            flushing: Mutex::default(),
            codecs: Mutex::default(),
            stripes: Mutex::new(0..0),
            readers: Mutex::default(),
            writers: Mutex::default(),
            promised: AtomicU64::new(0),
        }
    }

    /// The code for a geometry.
    pub fn codec(&self, geometry: Geometry) -> Arc<Codec> {
        let key = (geometry.k(), geometry.m());
        lock(&self.codecs).entry(key).or_insert_with(|| Arc::new(Codec::new(geometry))).clone()
    }

    /// The next stripe number, or `None` when the reserved ones are used up.
    pub fn next_stripe(&self) -> Option<StripeId> {
        lock(&self.stripes).next().map(StripeId)
    }

    /// Adds numbers that were durably reserved.
    pub fn give_stripes(&self, range: std::ops::Range<u64>) {
        let mut stripes = lock(&self.stripes);
        if stripes.is_empty() {
            *stripes = range;
        }
    }

    /// Payload bytes of a full stripe with the devices there are.
    pub fn stripe_bytes(&self) -> usize {
        let (geometry, shard_blocks) = self.membership.geometry();
        let usable = self.membership.members().len();
        let k = usable.saturating_sub(usize::from(geometry.m())).clamp(1, usize::from(geometry.k()));
        k * shard_blocks as usize * BLOCK_SIZE as usize
    }

    /// Reserves blocks for a stripe with `payload` bytes. With too few devices the stripe gets narrower, and with not
    /// even `1 + m` of them it gets fewer parity shards than it should have. `None`: no such runs are free.
    pub fn allocate(&self, stripe: StripeId, payload: usize, load: &mut Loader<'_>) -> Result<Option<Allocation>> {
        let (geometry, _) = self.membership.geometry();
        let blocks = payload.div_ceil(BLOCK_SIZE as usize).max(1);
        let mut k = blocks.min(usize::from(geometry.k())) as u8;
        let mut targets = self.targets();
        loop {
            let geometry = Geometry::new(k, geometry.m())?;
            let shard_blocks = blocks.div_ceil(usize::from(k)) as u32;
            if shard_blocks > MAX_SHARD_BLOCKS {
                return Ok(None);
            }
            let Some(choice) = placement::choose(stripe, geometry, shard_blocks, &targets) else { return Ok(None) };
            if choice.shard_blocks < shard_blocks {
                return Ok(None);
            }
            if choice.geometry.k() < k {
                k = choice.geometry.k();
                continue;
            }
            match lock(&self.allocator).reserve_all(&choice.devices, shard_blocks + 1, load)? {
                Ok(runs) => {
                    let place = |run: &Run| Placement { device: run.device, block: run.block };
                    let mut placements: Vec<Placement> = runs.iter().map(place).collect();
                    placements.resize(usize::from(choice.geometry.shards()), Placement::NONE);
                    return Ok(Some(Allocation { geometry: choice.geometry, shard_blocks, placements }));
                }
                // It has the space but not in one piece.
                Err(device) => targets.iter_mut().filter(|target| target.device == device).for_each(|t| t.free = 0),
            }
        }
    }

    /// A run for one shard on a device other than those in `taken`.
    pub fn allocate_shard(
        &self,
        stripe: StripeId,
        taken: &[DeviceId],
        shard_blocks: u32,
        load: &mut Loader<'_>,
    ) -> Result<Option<Placement>> {
        let mut targets = self.targets();
        while let Some(device) = placement::choose_one(stripe, shard_blocks, &targets, taken) {
            if let Some(run) = lock(&self.allocator).reserve(device, shard_blocks + 1, load)? {
                return Ok(Some(Placement { device, block: run.block }));
            }
            targets.iter_mut().filter(|target| target.device == device).for_each(|target| target.free = 0);
        }
        Ok(None)
    }

    /// Gives back what was not used.
    pub fn release(&self, allocation: &Allocation) {
        let mut allocator = lock(&self.allocator);
        for run in allocation.runs() {
            allocator.release(run);
        }
    }

    /// Members that take data, with what is free on each.
    fn targets(&self) -> Vec<Target> {
        self.targets_with(|allocator, member| allocator.free_blocks(member.id))
    }

    fn targets_with(&self, free: impl Fn(&Allocator, &Member) -> u64) -> Vec<Target> {
        let members = self.membership.members();
        let allocator = lock(&self.allocator);
        let target = |member: &Member| Target {
            device: member.id,
            domain: member.domain,
            free: free(&allocator, member),
            preference: if self.membership.avoid(member.id) { 0.01 } else { member.weight },
        };
        members.iter().map(target).collect()
    }

    /// Payload bytes that fit into what is free now, when `kept` blocks of some devices are kept for something else.
    /// `soon`: what a durable point makes free counts as free.
    pub fn free_payload(&self, (devices, kept): &(Vec<DeviceId>, u64), soon: bool) -> u64 {
        let (geometry, shard_blocks) = self.membership.geometry();
        let targets = self.targets_with(|allocator, member| {
            let kept = if devices.contains(&member.id) { *kept } else { 0 };
            let deferred = if soon { allocator.deferred_blocks(member.id) } else { 0 };
            (allocator.free_blocks(member.id) + deferred).saturating_sub(kept)
        });
        placement::capacity(geometry, shard_blocks, &targets) * BLOCK_SIZE
    }

    /// Whether what writers were promised still fits when so many blocks of some devices are taken for something else.
    pub fn keeps_promises(&self, taken: &(Vec<DeviceId>, u64)) -> bool {
        self.free_payload(taken, false) >= self.promised.load(Ordering::Relaxed)
    }

    /// Payload bytes that would fit if all stripes were gone.
    pub fn total_payload(&self) -> u64 {
        let (geometry, shard_blocks) = self.membership.geometry();
        let all = self.targets_with(|_, member| member.layout.blocks);
        placement::capacity(geometry, shard_blocks, &all) * BLOCK_SIZE
    }

    /// Notes shards that were written and not flushed.
    pub fn mark_dirty(&self, shards: impl Iterator<Item = (DeviceId, StripeId)>) {
        let mut dirty = lock(&self.dirty);
        for (device, stripe) in shards {
            dirty.entry(device).or_default().insert(stripe);
        }
    }

    /// Whether a shard that was written, and that no stripe refers to yet, must be done without.
    pub fn is_in_doubt(&self, stripe: StripeId, device: DeviceId) -> bool {
        lock(&self.doubts).early.contains(&(stripe, device))
    }

    /// Notes that stripes are going to be written, until the answer is dropped.
    pub fn enter_write(&self) -> WriteWindow<'_> {
        let stripes = lock(&self.stripes);
        // Without numbers at hand, the next ones are higher than any before.
        *lock(&self.writers).entry(stripes.start).or_default() += 1;
        WriteWindow { devices: self, first: stripes.start }
    }

    /// Waits until every stripe that is being written now is committed or given up. Who begins later knows the members as they
    /// are now.
    pub fn wait_for_writers(&self) {
        let now = {
            let mut stripes = lock(&self.stripes);
            let now = stripes.start;
            // One is passed over, so that those who come later can be told from those who are here.
            stripes.next();
            now
        };
        while lock(&self.writers).keys().next().is_some_and(|oldest| *oldest <= now) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The lowest number of a stripe that is being written, or will be; 0 before the first number was reserved.
    pub fn oldest_unfinished(&self) -> StripeId {
        let stripes = lock(&self.stripes);
        let oldest = lock(&self.writers).keys().next().copied();
        StripeId(oldest.unwrap_or(stripes.start))
    }

    /// A shard is about to be written anew: what became of one that no stripe refers to does not matter any more.
    pub(super) fn forget_doubt(&self, stripe: StripeId, device: DeviceId) {
        lock(&self.doubts).early.remove(&(stripe, device));
    }

    /// Opens a window in which the blocks of states from `committed` on are not given away.
    pub fn enter_read(&self, committed: TxnId) -> ReadWindow<'_> {
        *lock(&self.readers).entry(committed).or_default() += 1;
        ReadWindow { devices: self, committed }
    }

    /// Makes freed blocks reusable that are durably free and that nobody reads any more.
    pub fn reclaim(&self, durable: TxnId) -> Vec<Run> {
        let oldest = lock(&self.readers).keys().next().copied().unwrap_or(durable);
        lock(&self.allocator).reclaim_through(durable.min(oldest))
    }
}

/// While it lives, blocks freed by later transactions are not reused.
pub struct ReadWindow<'a> {
    devices: &'a Devices,
    committed: TxnId,
}

impl Drop for ReadWindow<'_> {
    fn drop(&mut self) {
        let mut readers = lock(&self.devices.readers);
        if let Some(count) = readers.get_mut(&self.committed) {
            *count -= 1;
            if *count == 0 {
                readers.remove(&self.committed);
            }
        }
    }
}

/// While it lives, [`Devices::oldest_unfinished`] stays at or below the stripes of the commit it stands for.
pub struct WriteWindow<'a> {
    devices: &'a Devices,
    first: u64,
}

impl Drop for WriteWindow<'_> {
    fn drop(&mut self) {
        let mut writers = lock(&self.devices.writers);
        if let Some(count) = writers.get_mut(&self.first) {
            *count -= 1;
            if *count == 0 {
                writers.remove(&self.first);
            }
        }
    }
}

impl Devices {
    fn doubt(&self, device: DeviceId, stripes: BTreeSet<StripeId>) {
        lock(&self.doubts).open.extend(stripes.into_iter().map(|stripe| (stripe, device)));
    }
}

impl DataBarrier for Devices {
    /// Flushes every device written to since its last flush. A device that fails is dropped from the membership: its
    /// shards of the last writes are in doubt, and parity stands in for them.
    fn barrier(&self) -> Result<()> {
        let _one = lock(&self.flushing);
        let dirty = std::mem::take(&mut *lock(&self.dirty));
        let mut present = Vec::new();
        for (id, stripes) in dirty {
            match self.membership.device(id) {
                Some(device) => present.push((id, device, stripes)),
                None => self.doubt(id, stripes),
            }
        }
        let mut batch: Vec<Request<'_>> =
            present.iter().map(|(_, device, _)| Request::new(&**device, Op::Flush)).collect();
        self.membership.engine().run(&mut batch);
        let results: Vec<Result<()>> = batch.into_iter().map(|request| request.result).collect();
        let mut failed = Vec::new();
        for ((id, _, stripes), result) in present.into_iter().zip(results) {
            if let Err(error) = result {
                self.doubt(id, stripes);
                failed.push((id, error));
            }
        }
        failed.into_iter().try_for_each(|(id, error)| self.membership.drop_member(id, &error))
    }

    fn in_doubt(&self) -> bool {
        !lock(&self.doubts).open.is_empty()
    }

    fn give_up(&self, tx: &mut Tx<'_>) -> Result<()> {
        self.give_up_doubtful(tx)
    }
}

/// The bitmap row a [`Loader`] asks for. Called with the allocator locked, which a transaction locks too, so from what is
/// settled: whoever changes a bitmap commits at once.
pub fn load_bitmap(meta: &crate::meta::Meta, key: &GroupKey) -> Result<Option<Vec<u8>>> {
    use crate::meta::Reader;
    meta.settled(|view| view.get::<crate::format::table::Groups>(key))
}

/// The blocks of a shard: its header and its payload.
pub fn run_of(placement: Placement, shard_blocks: u32) -> Run {
    Run { device: placement.device, block: placement.block, blocks: 1 + shard_blocks }
}
