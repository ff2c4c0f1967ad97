//! Committing content: shards are written first, then one transaction makes them part of the file.

use std::ops::Range;
use std::sync::Arc;

use super::devices::{Allocation, Devices, load_bitmap, run_of};
use super::extents::{self, Ledger};
use super::pack::{self, INLINE_SMALL, Payload, Piece, Plan};
use super::reclaim::cut_off;
use super::{Store, bitmap, lock};
use crate::base::{BLOCK_SIZE, DeviceId, Error, Ino, Result, StripeId, TxnId, Uuid};
use crate::format::intent::Intent;
use crate::format::rows::{Counter, ExtentBody, ExtentRow, Placement, Run, StripeLiveRow, StripeRow, StripeState};
use crate::format::shard::{ShardHeader, Unit};
use crate::format::table::{Intents, StripeLive, Stripes};
use crate::meta::Tx;
use crate::pool::allocator::Loader;
use crate::pool::stripe_io::{self, ShardWrite, StripeImage};

/// A range of a shared buffer.
#[derive(Clone, Debug)]
pub struct SharedBytes {
    buffer: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl SharedBytes {
    /// All of `buffer`.
    pub fn new(buffer: Vec<u8>) -> SharedBytes {
        let range = 0..buffer.len();
        SharedBytes { buffer: Arc::new(buffer), range }
    }

    /// The part at `range`, relative to this one. Shares the buffer.
    pub fn slice(&self, range: Range<usize>) -> SharedBytes {
        assert!(range.start <= range.end && range.end <= self.range.len());
        let start = self.range.start + range.start;
        SharedBytes { buffer: self.buffer.clone(), range: start..start + range.len() }
    }
}

impl SharedBytes {
    /// The buffer itself, when nobody else holds a part of it: for whoever wants to use its memory again.
    pub fn into_buffer(self) -> Option<Vec<u8>> {
        Arc::into_inner(self.buffer)
    }
}

impl std::ops::Deref for SharedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// New content of one range of a file.
#[derive(Clone, Debug)]
pub struct ContentWrite {
    pub ino: Ino,
    pub offset: u64,
    pub bytes: SharedBytes,
}

impl ContentWrite {
    /// Whether `next` begins where this ends, in the same file.
    pub fn is_followed_by(&self, next: &ContentWrite) -> bool {
        self.ino == next.ino && self.offset + self.bytes.len() as u64 == next.offset
    }
}

/// Stripe numbers reserved ahead by one durable transaction.
const STRIPES_AHEAD: u64 = 1 << 16;

/// How much content may go into the metadata instead of a stripe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inline {
    /// Only whole tiny files' worth: ordinary write-back.
    Small,
    /// Somebody waits for durability: one log append beats six shard writes.
    Synchronous,
}

/// Longest inline row made by a synchronous commit.
const INLINE_PIECE: usize = 4096;

/// Content bytes a commit added to (or took from) each write's inode: for `InodeRow::content`. One entry per write.
pub type ContentDeltas = Vec<(Ino, i64)>;

/// A stripe on the devices that no transaction knows of yet.
pub(super) struct Written {
    pub id: StripeId,
    pub allocation: Allocation,
    granule_shift: u8,
    sums: Vec<u32>,
    pub payload: Payload,
}

impl Store {
    /// Writes content and makes it part of its files in one transaction, in which `finish` then updates the inodes.
    /// `writes` of one file do not overlap. Durable after the next durable point. On error nothing has changed.
    pub fn commit<T>(
        &self,
        writes: &[ContentWrite],
        inline: Inline,
        finish: impl FnOnce(&mut Tx<'_>, &ContentDeltas) -> Result<T>,
    ) -> Result<T> {
        self.commit_in_turn(writes, inline, || Ok(()), finish)
    }

    /// As [`Store::commit`], with `turn` called between the last shard and the transaction: it may wait until others
    /// have committed, or call the commit off. Nothing is locked meanwhile.
    pub fn commit_in_turn<T>(
        &self,
        writes: &[ContentWrite],
        inline: Inline,
        turn: impl FnOnce() -> Result<()>,
        finish: impl FnOnce(&mut Tx<'_>, &ContentDeltas) -> Result<T>,
    ) -> Result<T> {
        self.activity.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let _window = self.devices.as_deref().map(Devices::enter_write);
        let (plan, written) = match &self.devices {
            Some(devices) => {
                let plan = |writes: &[ContentWrite], capacity| pack::plan(writes, capacity, inline);
                self.write_stripes(devices, &mut || self.next_stripe(devices), writes, &[], plan)?
            }
            None => (Plan { inline: (0..writes.len()).collect(), stripes: Vec::new() }, Vec::new()),
        };
        let body = |tx: &mut Tx<'_>, ledger: &mut Ledger| {
            let mut deltas = ContentDeltas::with_capacity(writes.len());
            for write in writes {
                let before = ledger.content_delta;
                let end = write.offset + write.bytes.len() as u64;
                extents::remove(tx, write.ino, write.offset..end, usize::MAX, ledger)?;
                deltas.push((write.ino, ledger.content_delta - before + write.bytes.len() as i64));
            }
            for index in &plan.inline {
                put_inline(tx, &writes[*index], ledger)?;
            }
            for stripe in &written {
                let live = stripe.payload.pieces.iter().map(|piece| piece.length as u32).sum();
                self.put_stripe(tx, stripe, live, ledger)?;
                for piece in &stripe.payload.pieces {
                    self.put_piece(tx, stripe.id, piece, &writes[piece.write], tx.id(), ledger)?;
                }
            }
            finish(tx, &deltas)
        };
        let outcome = turn().and_then(|()| self.transact(body));
        if let (Err(_), Some(devices)) = (&outcome, &self.devices) {
            written.iter().for_each(|stripe| devices.release(&stripe.allocation));
        }
        outcome
    }

    /// Plans the commit and writes the shards of its stripes, which get numbers from `next`. With no contiguous space left
    /// for full shards, smaller ones are tried. `births`: of each write, when this moves what other transactions wrote.
    pub(super) fn write_stripes(
        &self,
        devices: &Devices,
        next: &mut dyn FnMut() -> Result<StripeId>,
        writes: &[ContentWrite],
        births: &[TxnId],
        plan: impl Fn(&[ContentWrite], usize) -> Plan,
    ) -> Result<(Plan, Vec<Written>)> {
        let mut capacity = devices.stripe_bytes();
        loop {
            let plan = plan(writes, capacity);
            match self.allocate_all(devices, next, &plan)? {
                Some(allocated) => {
                    let written = self.write_allocated(devices, writes, births, allocated)?;
                    return Ok((plan, written));
                }
                None if capacity > BLOCK_SIZE as usize => {
                    capacity = (capacity / 2).next_multiple_of(BLOCK_SIZE as usize)
                }
                None => return Err(Error::NoSpace),
            }
        }
    }

    fn allocate_all(
        &self,
        devices: &Devices,
        next: &mut dyn FnMut() -> Result<StripeId>,
        plan: &Plan,
    ) -> Result<Option<Vec<(StripeId, Allocation, Payload)>>> {
        let mut allocated = Vec::with_capacity(plan.stripes.len());
        for payload in &plan.stripes {
            let id = next()?;
            match devices.allocate(id, payload.used, &mut |key| load_bitmap(&self.meta, key)) {
                Ok(Some(allocation)) => allocated.push((id, allocation, payload.clone())),
                refused => {
                    allocated.iter().for_each(|(_, allocation, _)| devices.release(allocation));
                    return refused.map(|_| None);
                }
            }
        }
        Ok(Some(allocated))
    }

    /// Encodes and writes all stripes in one batch.
    fn write_allocated(
        &self,
        devices: &Devices,
        writes: &[ContentWrite],
        births: &[TxnId],
        allocated: Vec<(StripeId, Allocation, Payload)>,
    ) -> Result<Vec<Written>> {
        let mut images = Vec::with_capacity(allocated.len());
        for (_, allocation, payload) in &allocated {
            let codec = devices.codec(allocation.geometry);
            images.push(StripeImage::encode(&codec, allocation.shard_blocks, |out| fill(out, payload, writes))?);
        }
        let mut written: Vec<Written> = allocated
            .into_iter()
            .zip(&images)
            .map(|((id, allocation, payload), image)| Written {
                id,
                allocation,
                granule_shift: image.granule_shift,
                sums: image.sums.clone(),
                payload,
            })
            .collect();
        if let Err(error) = self.write_images(devices, writes, births, &mut written, &mut images) {
            written.iter().for_each(|stripe| devices.release(&stripe.allocation));
            return Err(error);
        }
        Ok(written)
    }

    /// Writes the shards; one whose device fails goes to another device, or stays unwritten when none is left.
    fn write_images(
        &self,
        devices: &Devices,
        writes: &[ContentWrite],
        births: &[TxnId],
        written: &mut [Written],
        images: &mut [StripeImage],
    ) -> Result<()> {
        let mut todo: Vec<(usize, usize)> = written
            .iter()
            .enumerate()
            .flat_map(|(at, stripe)| {
                let placed = stripe.allocation.placements.iter().enumerate();
                placed.filter(|(_, place)| **place != Placement::NONE).map(move |(shard, _)| (at, shard))
            })
            .collect();
        while !todo.is_empty() {
            let members = devices.membership.members();
            let mut ready = Vec::with_capacity(todo.len());
            let mut lost = Vec::new();
            for (at, shard) in todo {
                let placement = written[at].allocation.placements[shard];
                let member = members.iter().find(|member| member.id == placement.device);
                match member.and_then(|member| Some((member, devices.membership.device(member.id)?))) {
                    Some((member, device)) => {
                        let header = self.header(devices, writes, births, &written[at], shard as u8, member.uuid);
                        images[at].set_header(shard, &header.encode());
                        ready.push((at, shard, device, placement.block));
                    }
                    None => lost.push((at, shard)),
                }
            }
            let places: Vec<(usize, usize)> = ready.iter().map(|(at, shard, ..)| (*at, *shard)).collect();
            let shards: Vec<ShardWrite<'_>> = ready
                .into_iter()
                .map(|(at, shard, device, block)| ShardWrite { device, block, bytes: images[at].shard(shard) })
                .collect();
            let results = stripe_io::write_shards(devices.membership.engine(), &shards);
            // After the writes: a flush that began before they completed says nothing about them.
            let written_to =
                |at: usize, shard: usize| (written[at].allocation.placements[shard].device, written[at].id);
            devices.mark_dirty(places.iter().map(|(at, shard)| written_to(*at, *shard)));
            for ((at, shard), result) in places.into_iter().zip(results) {
                if let Err(error) = result {
                    devices.membership.drop_member(written[at].allocation.placements[shard].device, &error)?;
                    lost.push((at, shard));
                }
            }
            todo = Vec::new();
            for (at, shard) in lost {
                let stripe = &mut written[at];
                let allocation = &mut stripe.allocation;
                let taken: Vec<DeviceId> = allocation.placements.iter().map(|placement| placement.device).collect();
                let load: &mut Loader<'_> = &mut |key| load_bitmap(&self.meta, key);
                let other = devices.allocate_shard(stripe.id, &taken, allocation.shard_blocks, load)?;
                let failed = std::mem::replace(&mut allocation.placements[shard], other.unwrap_or(Placement::NONE));
                lock(&devices.allocator).release(run_of(failed, allocation.shard_blocks));
                if other.is_some() {
                    todo.push((at, shard));
                }
            }
        }
        for stripe in written {
            let placements = &stripe.allocation.placements;
            let present = placements.iter().filter(|placement| **placement != Placement::NONE).count();
            if present < usize::from(stripe.allocation.geometry.k()) {
                return Err(Error::Unavailable("too few devices are left to write to".into()));
            }
        }
        Ok(())
    }

    fn header(
        &self,
        devices: &Devices,
        writes: &[ContentWrite],
        births: &[TxnId],
        stripe: &Written,
        index: u8,
        device: Uuid,
    ) -> ShardHeader {
        let units = stripe.payload.pieces.iter().map(|piece| Unit {
            ino: writes[piece.write].ino,
            offset: writes[piece.write].offset + piece.skip as u64,
            length: piece.length as u32,
            start: piece.start as u32,
            birth: births.get(piece.write).copied(),
            parent: Ino(0),
            name: Vec::new(),
        });
        ShardHeader {
            pool: devices.membership.pool(),
            device,
            stripe: stripe.id,
            incarnation: devices.membership.incarnation(),
            index,
            k: stripe.allocation.geometry.k(),
            m: stripe.allocation.geometry.m(),
            granule_shift: stripe.granule_shift,
            shard_blocks: stripe.allocation.shard_blocks,
            txn: self.meta.committed(),
            payload_bytes: stripe.payload.used as u32,
            sums: stripe.sums.clone(),
            sealed: false,
            truncated: false,
            units: units.collect(),
        }
    }

    /// Makes a written stripe part of the pool, with so many live bytes.
    pub(super) fn put_stripe(&self, tx: &mut Tx<'_>, stripe: &Written, live: u32, ledger: &mut Ledger) -> Result<()> {
        let Some(devices) = &self.devices else { return Ok(()) };
        let mut placements = stripe.allocation.placements.clone();
        for placement in placements.iter_mut().filter(|placement| devices.is_in_doubt(stripe.id, placement.device)) {
            let lost = std::mem::replace(placement, Placement::NONE);
            ledger.unused.push((lost, stripe.allocation.shard_blocks));
        }
        let left = placements.iter().filter(|placement| **placement != Placement::NONE).count();
        if left < usize::from(stripe.allocation.geometry.k()) {
            return Err(Error::Unavailable("too many devices failed while a stripe was written".to_owned()));
        }
        let degraded = left < placements.len();
        let row = StripeRow {
            k: stripe.allocation.geometry.k(),
            m: stripe.allocation.geometry.m(),
            shard_blocks: stripe.allocation.shard_blocks,
            granule_shift: stripe.granule_shift,
            state: if degraded { StripeState::Degraded } else { StripeState::Whole },
            birth: tx.id(),
            incarnation: devices.membership.incarnation(),
            payload_bytes: stripe.payload.used as u32,
            placements,
            sums: stripe.sums.clone(),
        };
        tx.put::<Stripes>(&stripe.id, &row)?;
        bitmap::mark_stripe(tx, &row, true)?;
        ledger.place(&row);
        let payload = row.payload_bytes;
        tx.put::<StripeLive>(&stripe.id, &StripeLiveRow { live, payload, shared: 0 })?;
        if degraded {
            let intent = tx.bump_counter(Counter::NextIntent, 1)?;
            tx.put::<Intents>(&intent, &Intent::Rebuild { stripe: stripe.id.0 })?;
        }
        Ok(())
    }

    /// Makes a piece of a stripe part of its file.
    pub(super) fn put_piece(
        &self,
        tx: &mut Tx<'_>,
        stripe: StripeId,
        piece: &Piece,
        write: &ContentWrite,
        birth: TxnId,
        ledger: &mut Ledger,
    ) -> Result<()> {
        let run = Run::plain(stripe, piece.start as u32, piece.length as u32);
        let row = ExtentRow { length: piece.length as u64, birth, body: ExtentBody::Run(run) };
        extents::insert(tx, write.ino, write.offset + piece.skip as u64, &row, ledger)
    }

    /// The next stripe number; reserves more, durably, when they run out.
    pub(super) fn next_stripe(&self, devices: &Devices) -> Result<StripeId> {
        loop {
            if let Some(id) = devices.next_stripe() {
                return Ok(id);
            }
            let first = self.meta.transact(|tx| tx.bump_counter(Counter::NextStripe, STRIPES_AHEAD))?.0;
            self.meta.durable_point()?;
            devices.give_stripes(first..first + STRIPES_AHEAD);
        }
    }

    /// Content that makes a full stripe, in bytes.
    pub fn stripe_bytes(&self) -> usize {
        self.devices.as_ref().map_or(2 << 20, |devices| devices.stripe_bytes())
    }

    /// Where a transaction that works through the extents of `range` from its start should stop, so that it stays
    /// bounded: the end of the range, or earlier.
    pub fn step_end(&self, reader: &impl crate::meta::Reader, ino: Ino, range: Range<u64>) -> Result<u64> {
        let mut seen = 0;
        let mut stop = range.end;
        extents::overlapping(reader, ino, range.clone(), |offset, _| {
            if seen == super::reclaim::STEP {
                stop = offset;
                return Ok(crate::meta::Visit::Break(()));
            }
            seen += 1;
            Ok(crate::meta::Visit::Continue(()))
        })?;
        Ok(stop)
    }

    /// Removes the content of `range` within a transaction; returns the change for `InodeRow::content`.
    pub fn punch(&self, tx: &mut Tx<'_>, ino: Ino, range: Range<u64>, ledger: &mut Ledger) -> Result<i64> {
        let before = ledger.content_delta;
        extents::remove(tx, ino, range, usize::MAX, ledger)?;
        Ok(ledger.content_delta - before)
    }

    /// Marks the holes of `range` as promised (fallocate); returns the change for `InodeRow::content`.
    pub fn promise(&self, tx: &mut Tx<'_>, ino: Ino, range: Range<u64>, ledger: &mut Ledger) -> Result<i64> {
        let before = ledger.content_delta;
        let mut holes = Vec::new();
        let mut hidden = Vec::new();
        let mut reached = range.start;
        extents::overlapping(tx, ino, range.clone(), |offset, row| {
            if self.hidden(ino, offset, row.birth) {
                hidden.push(offset..offset + row.length);
                return Ok(crate::meta::Visit::Continue(()));
            }
            if offset > reached {
                holes.push(reached..offset);
            }
            reached = offset + row.length;
            Ok(crate::meta::Visit::Continue(()))
        })?;
        if reached < range.end {
            holes.push(reached..range.end);
        }
        for rest in hidden {
            extents::remove(tx, ino, rest, usize::MAX, ledger)?;
        }
        for hole in holes {
            let row = ExtentRow { length: hole.end - hole.start, birth: tx.id(), body: ExtentBody::Reserved };
            extents::insert(tx, ino, hole.start, &row, ledger)?;
        }
        Ok(ledger.content_delta - before)
    }

    /// Removes everything at or past `from` within a transaction. Of a huge file only a bounded part goes at once; the
    /// rest is hidden from readers and removed in the background. Returns the change for `InodeRow::content`.
    pub fn shrink(&self, tx: &mut Tx<'_>, ino: Ino, from: u64, ledger: &mut Ledger) -> Result<i64> {
        let before = ledger.content_delta;
        if extents::remove(tx, ino, from..u64::MAX, super::reclaim::STEP, ledger)?.is_some() {
            super::reclaim::postpone_truncate(tx, ino, from, ledger)?;
        }
        Ok(ledger.content_delta - before)
    }

    /// Lets `target` share `length` bytes of `source` (reflink) in place of what `target` had there; the two ranges do not
    /// overlap. Returns the bytes done, which may be fewer than asked, and the change for the target's
    /// `InodeRow::content`; behind the bytes done the target is as it was.
    pub fn share(
        &self,
        tx: &mut Tx<'_>,
        source: (Ino, u64),
        target: (Ino, u64),
        length: u64,
        ledger: &mut Ledger,
    ) -> Result<(u64, i64)> {
        let before = ledger.content_delta;
        let read = self.step_end(tx, source.0, source.1..source.1 + length)? - source.1;
        let done = self.step_end(tx, target.0, target.1..target.1 + read)? - target.1;
        extents::remove(tx, target.0, target.1..target.1 + done, usize::MAX, ledger)?;
        let visible = |offset, birth| !self.hidden(source.0, offset, birth);
        extents::share(tx, source, target, done, visible, ledger)?;
        Ok((done, ledger.content_delta - before))
    }

    /// Whether a row at `offset`, born at `birth`, was cut off by a truncate that still goes on.
    pub(super) fn hidden(&self, ino: Ino, offset: u64, birth: crate::base::TxnId) -> bool {
        lock(&self.truncates).get(&ino).is_some_and(|cuts| cut_off(cuts, offset, birth))
    }
}

/// Puts the pieces of a payload into the data shards; gaps and the tail become zeros.
fn fill(shards: &mut [&mut [u8]], payload: &Payload, writes: &[ContentWrite]) {
    let shard_bytes = shards[0].len();
    let end = shard_bytes * shards.len();
    let mut each_part = |range: std::ops::Range<usize>, put: &mut dyn FnMut(&mut [u8], usize)| {
        let mut from = range.start;
        while from < range.end {
            let inside = from % shard_bytes;
            let length = (range.end - from).min(shard_bytes - inside);
            put(&mut shards[from / shard_bytes][inside..inside + length], from - range.start);
            from += length;
        }
    };
    let mut reached = 0;
    for piece in &payload.pieces {
        each_part(reached..piece.start, &mut |part, _| part.fill(0));
        reached = piece.start + piece.length;
        let bytes = &writes[piece.write].bytes[piece.skip..piece.skip + piece.length];
        each_part(piece.start..reached, &mut |part, at| part.copy_from_slice(&bytes[at..at + part.len()]));
    }
    each_part(reached..end, &mut |part, _| part.fill(0));
}

fn put_inline(tx: &mut Tx<'_>, write: &ContentWrite, ledger: &mut Ledger) -> Result<()> {
    let mut offset = write.offset;
    for piece in write.bytes.chunks(INLINE_PIECE) {
        let row = ExtentRow { length: piece.len() as u64, birth: tx.id(), body: ExtentBody::Inline(piece.to_vec()) };
        extents::insert(tx, write.ino, offset, &row, ledger)?;
        if piece.len() > INLINE_SMALL {
            ledger.destage.push((write.ino, offset));
        }
        offset += piece.len() as u64;
    }
    Ok(())
}
