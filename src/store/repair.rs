//! Bringing stripes back to full redundancy: rewriting corrupt shards in place, rebuilding lost ones elsewhere.
//!
//! Invariants:
//! - A repair holds its stripe, reads the row again, and writes only what fails verification now.
//! - A rebuilt shard is written and flushed before the transaction that points to it (by the durable point that
//!   publishes it); the old place is given up in the same transaction. Nothing is freed before its replacement counts.

use std::collections::{BTreeSet, HashSet};
use std::ops::Bound;

use super::devices::{Devices, load_bitmap, run_of};
use super::{Ledger, Store, bitmap, lock};
use crate::base::sync::{Condvar, Mutex, PoisonError};
use crate::base::{BLOCK_SIZE, DeviceId, Error, Result, StripeId};
use crate::device::buffer::AlignedBuf;
use crate::format::intent::Intent;
use crate::format::record::{Key, Row};
use crate::format::rows::{Counter, Placement, StripeRow, StripeState};
use crate::format::shard::ShardHeader;
use crate::format::table::{Intents, Stripes, Table};
use crate::meta::{Reader, Visit};
use crate::pool::allocator::Loader;
use crate::pool::stripe_io::{self, BadShard, Fault, Media};

/// Stripes that reads found bad and nobody has looked after yet; bounded, because a scrub finds the rest.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<BTreeSet<StripeId>>,
    busy: Mutex<HashSet<StripeId>>,
    freed: Condvar,
}

/// A stripe that nobody else repairs or moves meanwhile.
pub(super) struct Hold<'a> {
    queue: &'a Queue,
    stripe: StripeId,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        lock(&self.queue.busy).remove(&self.stripe);
        self.queue.freed.notify_all();
    }
}

const QUEUE_LIMIT: usize = 4096;

impl Queue {
    /// Waits until nobody else has the stripe: what they do to it may not be all that is wanted.
    pub fn hold(&self, stripe: StripeId) -> Hold<'_> {
        let mut busy = lock(&self.busy);
        while !busy.insert(stripe) {
            busy = self.freed.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        Hold { queue: self, stripe }
    }

    pub fn add(&self, bad: &[BadShard]) {
        let mut waiting = lock(&self.waiting);
        for shard in bad.iter().filter(|shard| matches!(shard.fault, Fault::Checksum | Fault::Io)) {
            if waiting.len() < QUEUE_LIMIT {
                waiting.insert(shard.stripe);
            }
        }
    }
}

/// What happened to a stripe that was looked after.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Repaired {
    /// Shards whose content did not match and was rewritten in place.
    pub rewritten: u32,
    /// Shards rebuilt on another device.
    pub rebuilt: u32,
    /// Shards still missing: no device has room for them.
    pub missing: u32,
    /// Bytes of shards that were verified.
    pub bytes: u64,
}

impl Repaired {
    /// Adds up.
    pub fn add(&mut self, other: Repaired) {
        self.rewritten += other.rewritten;
        self.rebuilt += other.rebuilt;
        self.missing += other.missing;
        self.bytes += other.bytes;
    }
}

/// What reading every shard of a stripe told.
#[derive(Debug)]
pub struct Verified {
    pub row: StripeRow,
    pub bad: Vec<BadShard>,
    /// Whether some of the stripe cannot be read any more.
    pub lost: bool,
}

impl Verified {
    pub(super) fn read(media: &dyn Media, id: StripeId, row: StripeRow) -> Verified {
        let bad = stripe_io::verify_stripe(media, id, &row);
        let lost = stripe_io::is_lost(media, id, &row, &bad);
        Verified { row, bad, lost }
    }
}

impl Store {
    /// Repairs what reads found bad. Returns how many stripes were looked after.
    pub fn repair_queued(&self) -> Result<usize> {
        let waiting = std::mem::take(&mut *lock(&self.repairs.waiting));
        let count = waiting.len();
        for stripe in waiting {
            match self.repair(stripe) {
                Ok(_) => self.clear_damage(stripe)?,
                Err(Error::Corrupt(_)) => self.note_damage(stripe)?,
                Err(other) => return Err(other),
            }
        }
        self.save_faults();
        Ok(count)
    }

    /// Reads every shard of a stripe and tells which are bad; nothing is changed. `None`: there is no such stripe, or it
    /// changed meanwhile.
    pub fn verify(&self, id: StripeId) -> Result<Option<Verified>> {
        let Some(devices) = self.devices.clone() else { return Ok(None) };
        let _window = devices.enter_read(self.meta.committed());
        let Some(row) = self.view(|view| view.get::<Stripes>(&id))? else { return Ok(None) };
        let verified = Verified::read(&*devices.membership, id, row);
        if !verified.bad.is_empty() && self.view(|view| view.get::<Stripes>(&id))?.as_ref() != Some(&verified.row) {
            return Ok(None);
        }
        self.note_bad(&verified.bad);
        Ok(Some(verified))
    }

    /// Verifies every shard of a stripe, rewrites those that are corrupt and rebuilds those that are lost.
    pub fn repair(&self, id: StripeId) -> Result<Repaired> {
        let Some(devices) = self.devices.clone() else { return Ok(Repaired::default()) };
        let _held = self.repairs.hold(id);
        let mut repaired = self.repair_held(&devices, id)?;
        // Recovery reads nothing else.
        repaired.add(self.mend_headers_held(&devices, id)?);
        Ok(repaired)
    }

    fn repair_held(&self, devices: &Devices, id: StripeId) -> Result<Repaired> {
        let window = devices.enter_read(self.meta.committed());
        let Some(row) = self.view(|view| view.get::<Stripes>(&id))? else { return Ok(Repaired::default()) };
        let bad = stripe_io::verify_stripe(&*devices.membership, id, &row);
        self.faults.add(&bad);
        let shards = row.placements.iter().filter(|place| **place != Placement::NONE).count() as u64;
        let mut repaired = Repaired { bytes: shards * bitmap::shard_blocks(&row) * BLOCK_SIZE, ..Repaired::default() };
        if bad.is_empty() {
            if row.state == StripeState::Degraded {
                self.mark_whole(id)?;
            }
            return Ok(repaired);
        }
        let wanted: Vec<usize> = bad.iter().map(|shard| usize::from(shard.index)).collect();
        let payloads = stripe_io::rebuild_shards(&*devices.membership, id, &row, &wanted)?;
        let header = self.surviving_header(devices, id, &row, &wanted);
        let mut lost = Vec::new();
        for (shard, payload) in bad.iter().zip(&payloads) {
            let placement = row.placements[usize::from(shard.index)];
            let rewritten = shard.fault != Fault::Missing
                && write_shard(devices, id, header.as_ref(), shard.index, placement, payload).is_ok();
            if rewritten {
                repaired.rewritten += 1;
            } else {
                lost.push((shard.index, payload));
            }
        }
        for (index, payload) in lost {
            if self.move_shard(devices, id, index, payload, header.as_ref())? {
                repaired.rebuilt += 1;
            } else {
                repaired.missing += 1;
            }
        }
        drop(window);
        if repaired.missing == 0 && row.state == StripeState::Degraded {
            self.mark_whole(id)?;
        }
        Ok(repaired)
    }

    /// Moves the shard that a stripe has on `device` to another one.
    pub fn relocate(&self, id: StripeId, device: DeviceId) -> Result<Repaired> {
        let Some(devices) = self.devices.clone() else { return Ok(Repaired::default()) };
        let _held = self.repairs.hold(id);
        self.relocate_held(&devices, id, device)
    }

    fn relocate_held(&self, devices: &Devices, id: StripeId, device: DeviceId) -> Result<Repaired> {
        let window = devices.enter_read(self.meta.committed());
        let mut repaired = Repaired::default();
        let Some(row) = self.view(|view| view.get::<Stripes>(&id))? else { return Ok(repaired) };
        let Some(index) = row.placements.iter().position(|placement| placement.device == device) else {
            return Ok(repaired);
        };
        let payload = match stripe_io::read_shard(&*devices.membership, &row, index) {
            Some(payload) => payload,
            None => stripe_io::rebuild_shards(&*devices.membership, id, &row, &[index])?.remove(0),
        };
        let header = self.surviving_header(devices, id, &row, &[]);
        drop(window);
        if self.move_shard(devices, id, index as u8, &payload, header.as_ref())? {
            repaired.rebuilt += 1;
        } else {
            repaired.missing += 1;
        }
        Ok(repaired)
    }

    /// A header of the stripe from any shard that is still good.
    pub(super) fn surviving_header(
        &self,
        devices: &Devices,
        id: StripeId,
        row: &StripeRow,
        bad: &[usize],
    ) -> Option<ShardHeader> {
        row.placements.iter().enumerate().filter(|(shard, _)| !bad.contains(shard)).find_map(|(shard, placement)| {
            let device = devices.membership.device(placement.device)?;
            let mut block = AlignedBuf::scratch(BLOCK_SIZE as usize);
            device.read_at(placement.block.byte_offset(), &mut block).ok()?;
            ShardHeader::decode(&block).ok().filter(|header| header.belongs_to(id, row, shard as u8))
        })
    }

    /// Writes a shard to a device that has none of the stripe, then lets the stripe point there.
    pub(super) fn move_shard(
        &self,
        devices: &Devices,
        id: StripeId,
        index: u8,
        payload: &[u8],
        header: Option<&ShardHeader>,
    ) -> Result<bool> {
        let _window = devices.enter_write();
        let Some(row) = self.view(|view| view.get::<Stripes>(&id))? else { return Ok(true) };
        let taken: Vec<DeviceId> = row
            .placements
            .iter()
            .filter(|placement| devices.membership.device(placement.device).is_some())
            .map(|placement| placement.device)
            .collect();
        let load: &mut Loader<'_> = &mut |key| load_bitmap(&self.meta, key);
        let Some(target) = devices.allocate_shard(id, &taken, row.shard_blocks, load)? else { return Ok(false) };
        if let Err(error) = write_shard(devices, id, header, index, target, payload) {
            lock(&devices.allocator).release(run_of(target, row.shard_blocks));
            devices.membership.drop_member(target.device, &error)?;
            return Ok(false);
        }
        let mut kept = true;
        let moved = self.transact(|tx, ledger| {
            let Some(mut row) = tx.get::<Stripes>(&id)? else { return Ok(false) };
            kept = !devices.is_in_doubt(id, target.device);
            if !kept {
                return Ok(false);
            }
            let old = std::mem::replace(&mut row.placements[usize::from(index)], target);
            give_up(tx, ledger, &row, old)?;
            bitmap::mark(tx, target.device, target.block.0, bitmap::shard_blocks(&row), true)?;
            ledger.placed.push((target, row.shard_blocks));
            tx.put::<Stripes>(&id, &row)?;
            Ok(true)
        });
        if !matches!(moved, Ok(true)) {
            lock(&devices.allocator).release(run_of(target, row.shard_blocks));
        }
        moved.map(|_| kept)
    }

    fn mark_whole(&self, id: StripeId) -> Result<()> {
        self.transact(|tx, _| {
            let Some(mut row) = tx.get::<Stripes>(&id)? else { return Ok(()) };
            // Somebody may have given up a shard meanwhile.
            if row.placements.contains(&Placement::NONE) {
                return Ok(());
            }
            row.state = StripeState::Whole;
            tx.put::<Stripes>(&id, &row)
        })
    }

    /// Works off the first stored intent to rebuild behind `after`, and sets `after` to it; `None` when there is none.
    pub(super) fn rebuild_step(&self, after: &mut Option<u64>) -> Result<Option<Repaired>> {
        let mut next = None;
        let mut low = Vec::new();
        Key::encode(&after.unwrap_or(0), &mut low);
        let low = if after.is_some() { Bound::Excluded(&*low) } else { Bound::Unbounded };
        self.view(|view| {
            view.scan_raw(Intents::ID, (low, Bound::Unbounded), false, &mut |key, intent| {
                // What cannot be read is for fsck to name, and no reason to leave the rest.
                if let (Ok(id), Ok(Intent::Rebuild { stripe })) = (<u64 as Key>::decode(key), Intent::decode(intent)) {
                    next = Some((id, StripeId(stripe)));
                    return Ok(Visit::Break(()));
                }
                Ok(Visit::Continue(()))
            })
        })?;
        let Some((id, stripe)) = next else { return Ok(None) };
        *after = Some(id);
        let repaired = self.repair(stripe)?;
        if repaired.missing == 0 {
            self.transact(|tx, _| tx.delete::<Intents>(&id))?;
        }
        Ok(Some(repaired))
    }

    /// The stripes after `after`, at most `limit`, that have a shard for which `wanted` holds.
    pub fn stripes_with(
        &self,
        after: Option<StripeId>,
        limit: usize,
        wanted: impl Fn(&StripeRow) -> bool,
    ) -> Result<(Vec<StripeId>, Option<StripeId>)> {
        let mut found = Vec::new();
        let mut last = None;
        let mut seen = 0;
        self.view(|view| {
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            view.scan::<Stripes>((from, Bound::Unbounded), |id, row| {
                if wanted(&row) {
                    found.push(id);
                }
                seen += 1;
                last = Some(id);
                // A read snapshot is not held for long: beside one, every commit grows the file.
                Ok(if seen >= 20_000 || found.len() >= limit { Visit::Break(()) } else { Visit::Continue(()) })
            })
        })?;
        Ok((found, last))
    }
}

impl Devices {
    /// Lets stripes give up shards that a device may have lost without saying so, to be rebuilt.
    pub(super) fn give_up_doubtful(&self, tx: &mut crate::meta::Tx<'_>) -> Result<()> {
        let open = std::mem::take(&mut lock(&self.doubts).open);
        for (id, device) in open {
            let row = tx.get::<Stripes>(&id)?;
            let on_it = |row: &StripeRow| row.placements.iter().position(|placement| placement.device == device);
            let Some((mut row, index)) = row.and_then(|row| on_it(&row).map(|index| (row, index))) else {
                // The transaction that was to refer to it is still to come, or never comes.
                lock(&self.doubts).early.insert((id, device));
                continue;
            };
            let mut ledger = Ledger::default();
            let old = std::mem::replace(&mut row.placements[index], Placement::NONE);
            give_up(tx, &mut ledger, &row, old)?;
            row.state = StripeState::Degraded;
            tx.put::<Stripes>(&id, &row)?;
            let intent = tx.bump_counter(Counter::NextIntent, 1)?;
            tx.put::<Intents>(&intent, &Intent::Rebuild { stripe: id.0 })?;
            let mut allocator = lock(&self.allocator);
            ledger.freed.iter().for_each(|(old, blocks)| allocator.free_later(tx.id(), run_of(*old, *blocks)));
        }
        Ok(())
    }
}

/// Clears what a stripe had at `old`, which it no longer points to.
fn give_up(tx: &mut crate::meta::Tx<'_>, ledger: &mut Ledger, row: &StripeRow, old: Placement) -> Result<()> {
    if old == Placement::NONE {
        return Ok(());
    }
    bitmap::mark(tx, old.device, old.block.0, bitmap::shard_blocks(row), false)?;
    ledger.freed.push((old, row.shard_blocks));
    Ok(())
}

/// Writes one shard, its header too when one survived.
pub(super) fn write_shard(
    devices: &Devices,
    id: StripeId,
    header: Option<&ShardHeader>,
    index: u8,
    placement: Placement,
    payload: &[u8],
) -> Result<()> {
    let Some(device) = devices.membership.device(placement.device) else {
        return Err(Error::Unavailable(format!("device {} is not here", placement.device)));
    };
    let uuid = devices.membership.members().iter().find(|member| member.id == placement.device).map(|m| m.uuid);
    devices.forget_doubt(id, placement.device);
    let written = match header {
        Some(header) => {
            let header = ShardHeader { index, device: uuid.unwrap_or(header.device), ..header.clone() };
            let mut bytes = AlignedBuf::scratch(BLOCK_SIZE as usize + payload.len());
            let (front, back) = bytes.split_at_mut(BLOCK_SIZE as usize);
            front.copy_from_slice(&header.encode());
            back.copy_from_slice(payload);
            device.write_at(placement.block.byte_offset(), &[&bytes])
        }
        None => device.write_at(placement.block.byte_offset() + BLOCK_SIZE, &[payload]),
    };
    devices.mark_dirty(std::iter::once((placement.device, id)));
    written
}
