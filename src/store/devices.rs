//! The devices as the store sees them: free space, unflushed writes, stripe numbers, codecs.
//!
//! Invariants:
//! - When a transaction that refers to a shard commits, the shard's write has completed, and its device is in `dirty`
//!   until a flush that began after that write succeeded or the device was dropped from the membership.
//! - Stripe numbers handed out lie below the durable `NextStripe` counter.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::base::{BLOCK_SIZE, DeviceId, Error, Incarnation, Result, StripeId, TxnId, Uuid};
use crate::device::{Op, Request};
use crate::erasure::{Codec, Geometry};
use crate::format::label::GroupLayout;
use crate::format::rows::{GroupKey, Placement};
use crate::meta::DataBarrier;
use crate::pool::allocator::{Allocator, Loader, Run};
use crate::pool::placement::{self, Candidate};
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

/// Devices, free space and what has to be flushed.
pub struct Devices {
    pub membership: Arc<dyn Membership>,
    pub allocator: Mutex<Allocator>,
    dirty: Mutex<BTreeSet<DeviceId>>,
    codecs: Mutex<HashMap<(u8, u8), Arc<Codec>>>,
    stripes: Mutex<std::ops::Range<u64>>,
    readers: Mutex<BTreeMap<TxnId, usize>>,
}

impl Devices {
    pub fn new(membership: Arc<dyn Membership>) -> Devices {
        Devices {
            membership,
            allocator: Mutex::default(),
            dirty: Mutex::default(),
            codecs: Mutex::default(),
            stripes: Mutex::new(0..0),
            readers: Mutex::default(),
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
        let (geometry, target) = self.membership.geometry();
        let payload_blocks = payload.div_ceil(BLOCK_SIZE as usize).max(1);
        let widest = payload_blocks.min(usize::from(geometry.k())) as u8;
        let mut candidates = self.candidates();
        for k in (1..=widest).rev() {
            let shard_blocks = payload_blocks.div_ceil(usize::from(k)) as u32;
            if shard_blocks > target.max(crate::format::rows::MAX_SHARD_BLOCKS) {
                break;
            }
            let geometry = Geometry::new(k, geometry.m())?;
            let width = usize::from(geometry.shards());
            if let Some(found) = self.allocate_width(stripe, geometry, width, shard_blocks, &mut candidates, load)? {
                return Ok(Some(found));
            }
        }
        let geometry = Geometry::new(1, geometry.m())?;
        for width in (1..usize::from(geometry.shards())).rev() {
            let shard_blocks = payload_blocks as u32;
            // Only when devices are missing, never to save space.
            if shard_blocks > crate::format::rows::MAX_SHARD_BLOCKS || candidates.len() > width {
                break;
            }
            if let Some(found) = self.allocate_width(stripe, geometry, width, shard_blocks, &mut candidates, load)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn allocate_width(
        &self,
        stripe: StripeId,
        geometry: Geometry,
        width: usize,
        shard_blocks: u32,
        candidates: &mut [Candidate],
        load: &mut Loader<'_>,
    ) -> Result<Option<Allocation>> {
        let shard = 1 + u64::from(shard_blocks);
        let mut usable = candidates.to_vec();
        while let Some(chosen) = placement::choose(stripe.0, width, shard, &usable) {
            match lock(&self.allocator).reserve_all(&chosen, shard as u32, load)? {
                Ok(runs) => {
                    let mut placements: Vec<Placement> =
                        runs.iter().map(|run| Placement { device: run.device, block: run.block }).collect();
                    placements.resize(usize::from(geometry.shards()), Placement::NONE);
                    return Ok(Some(Allocation { geometry, shard_blocks, placements }));
                }
                Err(without_run) => usable.retain(|candidate| candidate.device != without_run),
            }
        }
        Ok(None)
    }

    /// A run for one shard on a device other than those in `taken`.
    pub fn allocate_shard(
        &self,
        stripe: StripeId,
        taken: &[DeviceId],
        shard_blocks: u32,
        load: &mut Loader<'_>,
    ) -> Result<Option<Placement>> {
        let shard = 1 + u64::from(shard_blocks);
        let all = self.candidates();
        let busy: Vec<u64> = all
            .iter()
            .filter(|candidate| taken.contains(&candidate.device))
            .map(|candidate| candidate.domain)
            .collect();
        let mut usable: Vec<Candidate> =
            all.into_iter().filter(|candidate| !busy.contains(&candidate.domain)).collect();
        while let Some(chosen) = placement::choose(stripe.0, 1, shard, &usable) {
            let device = chosen[0];
            if let Some(run) = lock(&self.allocator).reserve(device, shard as u32, load)? {
                return Ok(Some(Placement { device, block: run.block }));
            }
            usable.retain(|candidate| candidate.device != device);
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

    /// Members a shard could go to.
    fn candidates(&self) -> Vec<Candidate> {
        let members = self.membership.members();
        let allocator = lock(&self.allocator);
        members
            .iter()
            .filter(|member| !self.membership.avoid(member.id))
            .map(|member| Candidate {
                device: member.id,
                domain: member.domain,
                free: allocator.free_blocks(member.id),
                weight: member.weight,
            })
            .collect()
    }

    /// Payload bytes that fit into what is free now.
    pub fn free_payload(&self) -> u64 {
        self.payload(|allocator, member| allocator.free_blocks(member.id))
    }

    /// Payload bytes that would fit into empty devices.
    pub fn total_payload(&self) -> u64 {
        self.payload(|_, member| member.layout.blocks)
    }

    fn payload(&self, count: impl Fn(&Allocator, &Member) -> u64) -> u64 {
        let mut domains: BTreeMap<u64, u64> = BTreeMap::new();
        {
            let members = self.membership.members();
            let allocator = lock(&self.allocator);
            for member in &members {
                *domains.entry(member.domain).or_default() += count(&allocator, member);
            }
        }
        let (geometry, shard_blocks) = self.membership.geometry();
        let free: Vec<u64> = domains.into_values().collect();
        // With m or more devices missing, stripes are written with fewer parity shards rather than not at all.
        let parity = geometry.m().min(free.len().saturating_sub(1) as u8);
        match Geometry::new(geometry.k(), parity) {
            Ok(geometry) if !free.is_empty() => placement::capacity(&free, geometry, shard_blocks) * BLOCK_SIZE,
            _ => 0,
        }
    }

    /// Notes that shards were written to `devices` and not flushed.
    pub fn mark_dirty(&self, devices: impl Iterator<Item = DeviceId>) {
        lock(&self.dirty).extend(devices);
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

impl DataBarrier for Devices {
    /// Flushes every device written to since its last flush. A device that fails is dropped from the membership: its
    /// shards of the last writes are in doubt, and parity stands in for them.
    fn barrier(&self) -> Result<()> {
        let dirty = std::mem::take(&mut *lock(&self.dirty));
        let present: Vec<_> =
            dirty.iter().filter_map(|id| self.membership.device(*id).map(|device| (*id, device))).collect();
        let mut batch: Vec<Request<'_>> =
            present.iter().map(|(_, device)| Request::new(&**device, Op::Flush)).collect();
        self.membership.engine().run(&mut batch);
        let results: Vec<Result<()>> = batch.into_iter().map(|request| request.result).collect();
        for ((id, _), result) in present.iter().zip(results) {
            if let Err(error) = result {
                self.membership.drop_member(*id, &error)?;
            }
        }
        Ok(())
    }
}

/// The bitmap row a [`Loader`] asks for, from the newest committed state.
pub fn load_bitmap(meta: &crate::meta::Meta, key: &GroupKey) -> Result<Option<Vec<u8>>> {
    use crate::meta::Reader;
    meta.view(|view| view.get::<crate::format::table::Groups>(key))
}

/// The blocks of a shard: its header and its payload.
pub fn run_of(placement: Placement, shard_blocks: u32) -> Run {
    Run { device: placement.device, block: placement.block, blocks: 1 + shard_blocks }
}
