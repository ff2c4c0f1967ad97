//! Where free space is on each device. Pure: it is told what is stored and does no I/O of its own; bitmaps are fetched
//! through a [`Loader`] when a part of a device is looked at, and dropped again when too many are held.
//!
//! Invariants:
//! - A block is in at most one of: a committed stripe (a set bit in its row of `groups`), a reservation, a deferred
//!   free, a claim of the metadata volume. Only blocks in none of them are given out.
//! - Reservations, deferred frees and claims are in memory only and laid over what the rows say, so a bitmap may be
//!   dropped and loaded again at any time.
//! - Rows change in the caller's transactions. For that to be safe, [`Allocator::commit`] comes after the transaction
//!   that sets the bits, and [`Allocator::free_later`] before the one that clears them is visible to the loader.

use std::collections::BTreeMap;

use super::bitmap::{PART, Part, Summary};
use crate::base::{BlockNo, DeviceId, Result, TxnId};
use crate::format::label::GroupLayout;
use crate::format::rows::GroupKey;

/// Fetches a row of `groups`, as the newest transaction left it.
pub type Loader<'a> = dyn FnMut(&GroupKey) -> Result<Option<Vec<u8>>> + 'a;

/// Bitmaps held per device (1 KiB each).
const HELD_BITMAPS: usize = 1024;
/// Free runs of this many blocks are filled from end to end before smaller ones are looked for.
const LARGE_RUN: u32 = 2048;
/// Parts a best-fit search looks at once it has found something.
const BEST_FIT_PARTS: usize = 512;

/// Neighbouring blocks of one device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Run {
    pub device: DeviceId,
    pub block: BlockNo,
    pub blocks: u32,
}

impl Run {
    fn end(&self) -> u64 {
        self.block.0 + u64::from(self.blocks)
    }

    /// The rows of `groups` that describe the run.
    pub fn rows(self) -> impl Iterator<Item = GroupKey> {
        let last = self.end().saturating_sub(1).max(self.block.0) / u64::from(PART);
        (self.block.0 / u64::from(PART)..=last).map(move |part| row_key(self.device, part as usize))
    }
}

fn row_key(device: DeviceId, part: usize) -> GroupKey {
    GroupKey { device, group: part as u32, part: 0 }
}

/// Requests that find nothing although there is something: how tests make each of them meet a full device. `nth` counts
/// requests from now on: 0 is the next one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shortage {
    pub nth: u64,
    /// Later ones too.
    pub sticky: bool,
}

/// The free space of all devices of a pool.
#[derive(Default)]
pub struct Allocator {
    devices: BTreeMap<DeviceId, Space>,
    /// Freed runs by the transaction that freed them.
    deferred: BTreeMap<TxnId, Vec<Run>>,
    shortage: Option<Shortage>,
    /// Requests the shortage met.
    refused: u64,
}

impl Allocator {
    /// Tells of a device, of which `used` blocks belong to committed stripes.
    pub fn add_device(&mut self, id: DeviceId, layout: GroupLayout, used: u64) {
        let mut space = Space::new(id, layout, used);
        // Freed while the device was not known, and not reusable yet: `used` does not count them any more.
        for run in self.deferred.values().flatten().filter(|run| run.device == id) {
            space.held.insert(run.block.0, run.blocks);
            space.free = space.free.saturating_sub(u64::from(run.blocks));
        }
        self.devices.insert(id, space);
    }

    /// Forgets a device.
    pub fn remove_device(&mut self, id: DeviceId) {
        self.devices.remove(&id);
        for runs in self.deferred.values_mut() {
            runs.retain(|run| run.device != id);
        }
    }

    /// Whether the device is known.
    pub fn has_device(&self, id: DeviceId) -> bool {
        self.devices.contains_key(&id)
    }

    /// Blocks that can be reserved now.
    pub fn free_blocks(&self, id: DeviceId) -> u64 {
        self.devices.get(&id).map_or(0, |space| space.free)
    }

    /// Freed blocks of a device that cannot be reserved yet.
    pub fn deferred_blocks(&self, id: DeviceId) -> u64 {
        self.deferred.values().flatten().filter(|run| run.device == id).map(|run| u64::from(run.blocks)).sum()
    }

    /// Where to look first, say behind the newest stripe.
    pub fn set_cursor(&mut self, id: DeviceId, block: BlockNo) {
        if let Some(space) = self.devices.get_mut(&id) {
            space.cursor = block.0;
        }
    }

    /// Begins a shortage, or ends it; says how many requests the one before met.
    pub fn run_short(&mut self, shortage: Option<Shortage>) -> u64 {
        self.shortage = shortage;
        std::mem::take(&mut self.refused)
    }

    /// Whether the shortage meets this request.
    fn is_short(&mut self) -> bool {
        let Some(shortage) = &mut self.shortage else { return false };
        if let Some(left) = shortage.nth.checked_sub(1) {
            shortage.nth = left;
            return false;
        }
        if !shortage.sticky {
            self.shortage = None;
        }
        self.refused += 1;
        true
    }

    /// Reserves `blocks` neighbouring blocks; `None` when the device has no such run. Near-sequential: large free runs
    /// are filled from end to end, then the smallest runs that do.
    pub fn reserve(&mut self, id: DeviceId, blocks: u32, load: &mut Loader<'_>) -> Result<Option<Run>> {
        if self.is_short() {
            return Ok(None);
        }
        let Some(space) = self.devices.get_mut(&id).filter(|space| space.free >= u64::from(blocks) && blocks > 0)
        else {
            return Ok(None);
        };
        let Some(block) = space.search(blocks, load)? else { return Ok(None) };
        let run = Run { device: id, block: BlockNo(block), blocks };
        space.take(run);
        space.held.insert(block, blocks);
        space.cursor = run.end();
        Ok(Some(run))
    }

    /// Reserves a run of `blocks` on each device, or on none: then the answer is the device that has no such run.
    pub fn reserve_all(
        &mut self,
        ids: &[DeviceId],
        blocks: u32,
        load: &mut Loader<'_>,
    ) -> Result<Result<Vec<Run>, DeviceId>> {
        let mut runs = Vec::with_capacity(ids.len());
        for id in ids {
            match self.reserve(*id, blocks, load) {
                Ok(Some(run)) => runs.push(run),
                other => {
                    runs.into_iter().for_each(|run| self.release(run));
                    return other.map(|_| Err(*id));
                }
            }
        }
        Ok(Ok(runs))
    }

    /// Whether hardly anything is free on a device: less than a sixteenth.
    pub fn is_tight(&self, id: DeviceId) -> bool {
        self.devices.get(&id).is_none_or(|space| space.free < space.layout.blocks / 16)
    }

    /// Reserves exactly this run; says whether it was free.
    pub fn hold(&mut self, run: Run, load: &mut Loader<'_>) -> Result<bool> {
        let Some(space) = self.devices.get_mut(&run.device).filter(|_| run.blocks > 0) else { return Ok(false) };
        let free = space.free_at(run.block.0, run.blocks, load)?;
        if free {
            space.take(run);
            space.held.insert(run.block.0, run.blocks);
        }
        Ok(free)
    }

    /// Reserves the first free run at or behind `from`, at most `most` blocks of it; `None` behind the last one.
    pub fn hold_next(&mut self, id: DeviceId, from: BlockNo, most: u32, load: &mut Loader<'_>) -> Result<Option<Run>> {
        let Some(space) = self.devices.get_mut(&id) else { return Ok(None) };
        let Some((block, blocks)) = space.next_free(from.0, load)? else { return Ok(None) };
        let run = Run { device: id, block: BlockNo(block), blocks: blocks.min(most) };
        space.take(run);
        space.held.insert(block, run.blocks);
        Ok(Some(run))
    }

    /// The longest run that can be reserved, at most `enough`.
    pub fn largest_run(&mut self, id: DeviceId, enough: u32, load: &mut Loader<'_>) -> Result<u32> {
        self.devices.get_mut(&id).map_or(Ok(0), |space| space.largest(enough, load))
    }

    /// A reservation became part of a committed stripe: its bits are in the rows.
    pub fn commit(&mut self, run: Run) {
        if let Some(space) = self.devices.get_mut(&run.device) {
            space.unhold(run);
        }
    }

    /// A reservation is not needed.
    pub fn release(&mut self, run: Run) {
        if let Some(space) = self.devices.get_mut(&run.device) {
            space.unhold(run);
            space.give(run);
        }
    }

    /// The run's stripe is being deleted by transaction `txn`. It stays taken until [`Allocator::reclaim_through`].
    pub fn free_later(&mut self, txn: TxnId, run: Run) {
        if let Some(space) = self.devices.get_mut(&run.device) {
            let old = space.held.insert(run.block.0, run.blocks);
            assert!(old.is_none(), "{run:?} is freed or reserved already");
        }
        // Of a device that is not known, too: it may come before the transaction is durable.
        self.deferred.entry(txn).or_default().push(run);
    }

    /// The transaction that was to delete the run's stripe did not happen.
    pub fn undo_free(&mut self, txn: TxnId, run: Run) {
        if let Some(runs) = self.deferred.get_mut(&txn)
            && let Some(at) = runs.iter().position(|other| *other == run)
        {
            runs.swap_remove(at);
            self.commit(run);
        }
    }

    /// What transactions up to `txn` freed may be used again: they are durable, and no older reader is left. The answer
    /// is what to discard.
    pub fn reclaim_through(&mut self, txn: TxnId) -> Vec<Run> {
        let later = self.deferred.split_off(&TxnId(txn.0 + 1));
        let freed: Vec<Run> = std::mem::replace(&mut self.deferred, later).into_values().flatten().collect();
        freed.iter().for_each(|run| self.release(*run));
        freed
    }

    /// Blocks that belong to the metadata volume; told before anything else of the device is asked.
    pub fn claim(&mut self, run: Run) {
        if let Some(space) = self.devices.get_mut(&run.device) {
            space.claim(run);
        }
    }

    /// Gives the metadata volume whole groups, empty ones from the end of the device, that hold `blocks` neighbouring
    /// blocks: the answer, claimed, covers those groups. `None` when there are none.
    pub fn claim_groups(&mut self, id: DeviceId, blocks: u32, load: &mut Loader<'_>) -> Result<Option<Run>> {
        if self.is_short() {
            return Ok(None);
        }
        let Some(space) = self.devices.get_mut(&id).filter(|space| space.free >= u64::from(blocks) && blocks > 0)
        else {
            return Ok(None);
        };
        let run = space.empty_groups(blocks, load)?;
        if let Some(run) = run {
            space.claim(run);
        }
        Ok(run)
    }

    /// The metadata volume has no use for a claim any more.
    pub fn unclaim(&mut self, run: Run) {
        if let Some(space) = self.devices.get_mut(&run.device)
            && space.claimed.remove(&run.block.0) == Some(run.blocks)
        {
            space.give(run);
        }
    }
}

/// The free space of one device.
struct Space {
    id: DeviceId,
    layout: GroupLayout,
    /// What is known of each part; `None` until it is looked at.
    parts: Vec<Option<Summary>>,
    bitmaps: BTreeMap<usize, Box<Part>>,
    /// Reservations, those of metadata archives among them, and deferred frees.
    held: BTreeMap<u64, u32>,
    claimed: BTreeMap<u64, u32>,
    free: u64,
    cursor: u64,
    /// Searches for large runs of this many blocks or more are in vain until something is given back.
    no_large_run: u32,
}

impl Space {
    fn new(id: DeviceId, layout: GroupLayout, used: u64) -> Space {
        let end = layout.start + layout.blocks;
        Space {
            id,
            layout,
            parts: vec![None; end.div_ceil(u64::from(PART)) as usize],
            bitmaps: BTreeMap::new(),
            held: BTreeMap::new(),
            claimed: BTreeMap::new(),
            free: layout.blocks.saturating_sub(used),
            cursor: layout.start,
            no_large_run: u32::MAX,
        }
    }

    /// The bitmap of a part, loaded when it is not held.
    fn bitmap(&mut self, part: usize, load: &mut Loader<'_>) -> Result<&mut Part> {
        if !self.bitmaps.contains_key(&part) {
            let row = load(&row_key(self.id, part))?;
            let mut bitmap = Part::from_row(row.as_deref())?;
            let first = part as u64 * u64::from(PART);
            let last = first + u64::from(PART);
            let clip =
                |from: u64, to: u64| ((from.clamp(first, last) - first) as u32, (to.clamp(first, last) - first) as u32);
            let end = self.layout.start + self.layout.blocks;
            for (from, to) in [(0, self.layout.start), (end, u64::MAX)] {
                let (from, to) = clip(from, to);
                bitmap.set(from, to, true);
            }
            for map in [&self.held, &self.claimed] {
                let before = map.range(..first).next_back().into_iter();
                for (block, blocks) in before.chain(map.range(first..last)) {
                    let (from, to) = clip(*block, block + u64::from(*blocks));
                    bitmap.set(from, to, true);
                }
            }
            if self.bitmaps.len() >= HELD_BITMAPS {
                self.bitmaps.pop_first();
            }
            self.parts[part] = Some(bitmap.summary());
            self.bitmaps.insert(part, Box::new(bitmap));
        }
        Ok(self.bitmaps.get_mut(&part).expect("it was inserted above"))
    }

    fn summary(&mut self, part: usize, load: &mut Loader<'_>) -> Result<Summary> {
        if self.parts[part].is_none() {
            self.bitmaps.remove(&part);
            self.bitmap(part, load)?;
        }
        Ok(self.parts[part].expect("loading a part summarises it"))
    }

    /// First block of a free run of `blocks` blocks.
    fn search(&mut self, blocks: u32, load: &mut Loader<'_>) -> Result<Option<u64>> {
        let end = self.layout.start + self.layout.blocks;
        if !(self.layout.start..end).contains(&self.cursor) {
            self.cursor = self.layout.start;
        }
        if self.free_at(self.cursor, blocks, load)? {
            return Ok(Some(self.cursor));
        }
        let large = blocks.max(blocks.saturating_mul(8).min(LARGE_RUN));
        if large < self.no_large_run {
            if let Some(block) = self.next_fit(large, load)? {
                return Ok(Some(block));
            }
            self.no_large_run = large;
        }
        self.best_fit(blocks, load)
    }

    /// Whether `blocks` blocks from `block` on are free.
    fn free_at(&mut self, block: u64, blocks: u32, load: &mut Loader<'_>) -> Result<bool> {
        let end = block + u64::from(blocks);
        if end > self.layout.start + self.layout.blocks {
            return Ok(false);
        }
        let mut at = block;
        while at < end {
            let part = (at / u64::from(PART)) as usize;
            let stop = end.min((part as u64 + 1) * u64::from(PART));
            let from = (at % u64::from(PART)) as u32;
            let summary = self.summary(part, load)?;
            let whole = u32::from(summary.free) == PART;
            if summary.free == 0 || !whole && !self.bitmap(part, load)?.is_free(from, from + (stop - at) as u32) {
                return Ok(false);
            }
            at = stop;
        }
        Ok(true)
    }

    /// The first free run at or behind `from`, up to the end of its part.
    fn next_free(&mut self, from: u64, load: &mut Loader<'_>) -> Result<Option<(u64, u32)>> {
        let mut at = from.max(self.layout.start);
        while at < self.layout.start + self.layout.blocks {
            let part = (at / u64::from(PART)) as usize;
            let start = part as u64 * u64::from(PART);
            if self.summary(part, load)?.free > 0
                && let Some((found, blocks)) = self.bitmap(part, load)?.find((at - start) as u32, 1)
            {
                return Ok(Some((start + u64::from(found), blocks)));
            }
            at = start + u64::from(PART);
        }
        Ok(None)
    }

    /// The first run of at least `blocks` blocks from the cursor's part on, around the end of the device.
    fn next_fit(&mut self, blocks: u32, load: &mut Loader<'_>) -> Result<Option<u64>> {
        let count = self.parts.len();
        let first = (self.cursor / u64::from(PART)) as usize;
        let mut carry = Carry::default();
        // The cursor's part comes a second time, at the end, for what lies in front of the cursor.
        for step in 0..=count {
            let part = (first + step) % count;
            if part == 0 {
                carry = Carry::default();
            }
            let start = part as u64 * u64::from(PART);
            let summary = self.summary(part, load)?;
            if let Some(block) = carry.reaches(summary, blocks) {
                return Ok(Some(block));
            }
            if u32::from(summary.longest) >= blocks {
                let from = if step == 0 { (self.cursor % u64::from(PART)) as u32 } else { 0 };
                if let Some((at, _)) = self.bitmap(part, load)?.find(from, blocks) {
                    return Ok(Some(start + u64::from(at)));
                }
            }
            carry.pass(start, summary);
        }
        Ok(None)
    }

    /// A short run of at least `blocks` blocks: the shortest among the first few hundred parts from the cursor's on.
    fn best_fit(&mut self, blocks: u32, load: &mut Loader<'_>) -> Result<Option<u64>> {
        let count = self.parts.len();
        let first = (self.cursor / u64::from(PART)) as usize;
        let mut best: Option<(u32, u64)> = None;
        let mut carry = Carry::default();
        for step in 0..=count {
            let part = (first + step) % count;
            if part == 0 {
                carry = Carry::default();
            }
            let start = part as u64 * u64::from(PART);
            let summary = self.summary(part, load)?;
            let mut consider = |length: u32, block: u64| {
                if best.is_none_or(|(shortest, _)| length < shortest) {
                    best = Some((length, block));
                }
            };
            if let Some(block) = carry.reaches(summary, blocks) {
                consider(carry.length + u32::from(summary.prefix), block);
            }
            if u32::from(summary.longest) >= blocks
                && let Some((at, length)) = self.bitmap(part, load)?.best(blocks)
            {
                consider(length, start + u64::from(at));
            }
            carry.pass(start, summary);
            if best.is_some_and(|(length, _)| length == blocks || step >= BEST_FIT_PARTS) {
                break;
            }
        }
        Ok(best.map(|(_, block)| block))
    }

    fn largest(&mut self, enough: u32, load: &mut Loader<'_>) -> Result<u32> {
        let mut largest = 0;
        let mut carry = Carry::default();
        for part in 0..self.parts.len() {
            let summary = self.summary(part, load)?;
            carry.pass(part as u64 * u64::from(PART), summary);
            largest = largest.max(u32::from(summary.longest)).max(carry.longest);
            if largest >= enough {
                return Ok(enough);
            }
        }
        Ok(largest)
    }

    /// The last empty groups that together hold `blocks` neighbouring blocks.
    fn empty_groups(&mut self, blocks: u32, load: &mut Loader<'_>) -> Result<Option<Run>> {
        let size = self.layout.group_blocks;
        let count = blocks.div_ceil(size);
        let Some(mut group) = self.layout.groups().checked_sub(count) else { return Ok(None) };
        loop {
            let (block, _) = self.layout.group(group);
            let run = Run { device: self.id, block: BlockNo(block), blocks: count * size };
            if self.free_at(block, run.blocks, load)? {
                return Ok(Some(run));
            }
            let Some(before) = group.checked_sub(1) else { return Ok(None) };
            group = before;
        }
    }

    fn take(&mut self, run: Run) {
        self.mark(run, true);
        self.free = self.free.saturating_sub(u64::from(run.blocks));
    }

    fn give(&mut self, run: Run) {
        self.mark(run, false);
        self.free += u64::from(run.blocks);
        self.no_large_run = u32::MAX;
    }

    /// Marks the blocks in the bitmaps that are held.
    fn mark(&mut self, run: Run, taken: bool) {
        let mut at = run.block.0;
        while at < run.end() {
            let part = (at / u64::from(PART)) as usize;
            let stop = run.end().min((part as u64 + 1) * u64::from(PART));
            let from = (at % u64::from(PART)) as u32;
            let blocks = (stop - at) as u32;
            if let Some(bitmap) = self.bitmaps.get_mut(&part) {
                let changed = bitmap.set(from, from + blocks, taken);
                assert_eq!(changed, blocks, "{run:?} was not {}", if taken { "free" } else { "taken" });
                self.parts[part] = Some(bitmap.summary());
            } else if let Some(summary) = self.parts.get_mut(part) {
                // Looked at again when it matters.
                *summary = None;
            }
            at = stop;
        }
    }

    fn claim(&mut self, run: Run) {
        let old = self.claimed.insert(run.block.0, run.blocks);
        assert!(old.is_none(), "{run:?} is claimed twice");
        self.take(run);
    }

    fn unhold(&mut self, run: Run) {
        let old = self.held.remove(&run.block.0);
        assert_eq!(old, Some(run.blocks), "{run:?} was not reserved");
    }
}

/// The free run at the end of the parts passed so far, which the next part may continue.
#[derive(Default)]
struct Carry {
    start: u64,
    length: u32,
    /// The longest run across a border of parts.
    longest: u32,
}

impl Carry {
    /// The start of a run of `blocks` blocks that crosses into the next part.
    fn reaches(&self, summary: Summary, blocks: u32) -> Option<u64> {
        (self.length > 0 && self.length + u32::from(summary.prefix) >= blocks).then_some(self.start)
    }

    fn pass(&mut self, start: u64, summary: Summary) {
        self.longest = self.longest.max(self.length + u32::from(summary.prefix));
        if u32::from(summary.free) == PART {
            if self.length == 0 {
                self.start = start;
            }
            // Beyond any run that is asked for, more does not matter.
            self.length = (self.length + PART).min(u32::MAX / 2);
        } else {
            self.length = u32::from(summary.suffix);
            self.start = start + u64::from(PART - self.length);
        }
    }
}

#[cfg(test)]
#[path = "allocator_tests.rs"]
mod tests;
