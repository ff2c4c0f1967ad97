//! Reading committed content.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::cache::{Key, UNIT};
use super::devices::Devices;
use super::reclaim::{Cut, cut_off};
use super::{Store, extents, lock};
use crate::base::{BLOCK_SIZE, Error, Ino, Result, StripeId};
use crate::format::rows::{ExtentBody, StripeRow};
use crate::format::table::Stripes;
use crate::meta::{Reader, View, Visit};
use crate::pool::stripe_io::{PayloadRead, read_payloads};

/// Bytes to be read from a stripe's payload into a part of the caller's buffer. Those of one read ascend.
struct RunRead {
    stripe: StripeId,
    start: u32,
    out: Range<usize>,
    /// Part of an extent so short that others are packed around it.
    packed: bool,
}

/// Shorter extents are read with what lies around them.
const PACKED: u64 = 32 << 10;

impl RunRead {
    /// Numbers of the units it lies in.
    fn units(&self) -> Range<u32> {
        let start = self.start as usize;
        (start / UNIT) as u32..(start + self.out.len()).div_ceil(UNIT) as u32
    }
}

type Units = HashMap<Key, Arc<Vec<u8>>>;

/// Copies a run out of the units it lies in; `false` when some are not there.
fn copy_from_units(units: &Units, run: &RunRead, out: &mut [u8]) -> bool {
    let mut done = 0;
    for number in run.units() {
        let Some(unit) = units.get(&(run.stripe, number)) else { return false };
        let from = (run.start as usize + done) % UNIT;
        let count = (out.len() - done).min(UNIT - from);
        let Some(bytes) = unit.get(from..from + count) else { return false };
        out[done..done + count].copy_from_slice(bytes);
        done += count;
    }
    done == out.len()
}

/// The part of a stripe's payload that is unit `number`.
fn unit_range(row: &StripeRow, number: u32) -> Range<usize> {
    let payload = usize::from(row.k) * row.shard_blocks as usize * BLOCK_SIZE as usize;
    let start = (number as usize * UNIT).min(payload);
    start..(start + UNIT).min(payload)
}

/// Ranges whose extents are looked up while transactions wait, in bytes.
const PEEK_BYTES: u64 = 16 << 20;

type StripeRows = HashMap<StripeId, StripeRow>;

/// What a range of a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapping {
    Data,
    /// Nothing there; reads as zeros.
    Hole,
    /// Promised by fallocate; reads as zeros.
    Promised,
}

impl Store {
    /// Fills `out` with the committed content from `offset` on; holes read as zeros. The caller cuts at the size.
    pub fn read(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<()> {
        self.read_from(ino, offset, out, true)
    }

    /// The same of what is on the devices, whatever the cache has.
    pub(super) fn read_uncached(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<()> {
        self.read_from(ino, offset, out, false)
    }

    fn read_from(&self, ino: Ino, offset: u64, out: &mut [u8], cache: bool) -> Result<()> {
        self.activity.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // The window opens before the snapshot is taken, so that no block the snapshot names is reused while it is read.
        let window = self.devices.as_ref().map(|devices| devices.enter_read(self.meta.committed()));
        let cuts = self.cuts(ino);
        let (mut runs, rows) = self.peek(|view| self.read_rows(view, &cuts, ino, offset, out))?;
        if !cache {
            runs.iter_mut().for_each(|run| run.packed = false);
        }
        if let Some(devices) = &self.devices {
            self.read_runs(devices, out, &runs, &rows)?;
        }
        drop(window);
        Ok(())
    }

    /// Copies what is inline, clears the holes, and collects what has to be read from stripes.
    fn read_rows(
        &self,
        view: &View<'_>,
        cuts: &[Cut],
        ino: Ino,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(Vec<RunRead>, StripeRows)> {
        let end = offset + out.len() as u64;
        let mut runs = Vec::new();
        let mut rows = StripeRows::new();
        let mut reached = 0;
        self.visible(view, cuts, ino, offset..end, |at, row| {
            let start = at.max(offset);
            let stop = (at + row.length).min(end);
            let target = (start - offset) as usize..(stop - offset) as usize;
            let Some(hole) = out.get_mut(reached..target.start) else {
                return Err(Error::corrupt(format!("two extents of inode {ino} overlap; run fsck")));
            };
            hole.fill(0);
            reached = target.end;
            match &row.body {
                ExtentBody::Inline(bytes) => {
                    out[target].copy_from_slice(&bytes[(start - at) as usize..(stop - at) as usize]);
                }
                ExtentBody::Reserved => out[target].fill(0),
                ExtentBody::Run(run) if run.is_plain() => {
                    if let Entry::Vacant(vacant) = rows.entry(run.stripe) {
                        let row = view.get::<Stripes>(&run.stripe)?;
                        vacant.insert(row.ok_or_else(|| {
                            Error::corrupt(format!(
                                "inode {ino} refers to stripe {}, which is gone; run fsck",
                                run.stripe
                            ))
                        })?);
                    }
                    let skip = run.inside + (start - at) as u32;
                    runs.push(RunRead {
                        stripe: run.stripe,
                        start: run.start + skip,
                        out: target,
                        packed: row.length < PACKED,
                    });
                }
                ExtentBody::Run(_) => {
                    return Err(Error::corrupt("a compressed or encrypted extent; use a newer argosfs"));
                }
            }
            Ok(Visit::Continue(()))
        })?;
        out[reached..].fill(0);
        Ok((runs, rows))
    }

    /// Reads all runs, in one batch but for those of packed extents that the cache lacks. What is found bad is repaired
    /// later.
    fn read_runs(&self, devices: &Devices, out: &mut [u8], runs: &[RunRead], rows: &StripeRows) -> Result<()> {
        let units = self.units(devices, runs, rows);
        let mut reads = Vec::with_capacity(runs.len());
        let mut rest = out;
        let mut reached = 0;
        for run in runs {
            let (piece, after) = std::mem::take(&mut rest)[run.out.start - reached..].split_at_mut(run.out.len());
            reached = run.out.end;
            rest = after;
            if !(run.packed && copy_from_units(&units, run, piece)) {
                reads.push(PayloadRead { id: run.stripe, row: &rows[&run.stripe], start: run.start, out: piece });
            }
        }
        if !reads.is_empty() {
            let bad = read_payloads(&*devices.membership, &mut reads)?;
            self.note_bad(&bad);
        }
        Ok(())
    }

    /// The units that packed runs lie in, from the cache or read now. One that cannot be read is left out: what is
    /// wanted of it may be whole.
    fn units(&self, devices: &Devices, runs: &[RunRead], rows: &StripeRows) -> Units {
        let mut units = Units::new();
        let mut lacking: BTreeMap<Key, Vec<u8>> = BTreeMap::new();
        for run in runs.iter().filter(|run| run.packed) {
            for number in run.units() {
                let key = (run.stripe, number);
                match self.cache.get(key) {
                    Some(unit) => drop(units.insert(key, unit)),
                    None => drop(lacking.insert(key, vec![0; unit_range(&rows[&run.stripe], number).len()])),
                }
            }
        }
        if lacking.is_empty() {
            return units;
        }
        let mut reads = Vec::with_capacity(lacking.len());
        for ((id, number), out) in &mut lacking {
            let row = &rows[id];
            reads.push(PayloadRead { id: *id, row, start: unit_range(row, *number).start as u32, out });
        }
        let Ok(bad) = read_payloads(&*devices.membership, &mut reads) else { return units };
        self.note_bad(&bad);
        for (key, unit) in lacking {
            let unit = Arc::new(unit);
            self.cache.insert(key, unit.clone());
            units.insert(key, unit);
        }
        units
    }

    /// The first range at or after `offset`, within `end`, and what it is: neighbours of one kind are merged.
    pub fn mapping(&self, ino: Ino, range: Range<u64>) -> Result<Vec<(Range<u64>, Mapping)>> {
        let mut pieces: Vec<(Range<u64>, Mapping)> = Vec::new();
        let mut add = |piece: Range<u64>, kind: Mapping| {
            if piece.is_empty() {
                return;
            }
            match pieces.last_mut() {
                Some((last, last_kind)) if *last_kind == kind && last.end == piece.start => last.end = piece.end,
                _ => pieces.push((piece, kind)),
            }
        };
        let mut reached = range.start;
        let cuts = self.cuts(ino);
        let scan = |view: &View<'_>| {
            self.visible(view, &cuts, ino, range.clone(), |at, row| {
                let start = at.max(range.start);
                let end = (at + row.length).min(range.end);
                add(reached..start, Mapping::Hole);
                let kind = if row.body == ExtentBody::Reserved { Mapping::Promised } else { Mapping::Data };
                add(start..end, kind);
                reached = end;
                Ok(Visit::Continue(()))
            })
        };
        // Who writes asks for a little, fallocate for as much as it likes.
        if range.end - range.start <= PEEK_BYTES { self.peek(scan) } else { self.view(scan) }?;
        add(reached..range.end, Mapping::Hole);
        Ok(pieces)
    }

    /// The first offset within `range` that is data, or (`data` false) that is not; promised ranges are not data.
    pub fn seek(&self, ino: Ino, range: Range<u64>, data: bool) -> Result<Option<u64>> {
        let mut reached = range.start;
        let mut found = None;
        let cuts = self.cuts(ino);
        self.view(|view| {
            self.visible(view, &cuts, ino, range.clone(), |at, row| {
                let is_data = row.body != ExtentBody::Reserved;
                let start = at.max(range.start);
                if data && is_data {
                    found = Some(start);
                } else if !data && (start > reached || !is_data) {
                    found = Some(reached);
                }
                reached = at + row.length;
                Ok(if found.is_some() { Visit::Break(()) } else { Visit::Continue(()) })
            })
        })?;
        Ok(found.or_else(|| (!data && reached < range.end).then_some(reached)))
    }

    /// The truncates of an inode that still go on: to be asked before a snapshot is taken, in which some may go on that have
    /// come to their end since.
    pub(super) fn cuts(&self, ino: Ino) -> Vec<Cut> {
        lock(&self.truncates).get(&ino).cloned().unwrap_or_default()
    }

    /// Visits the extents that overlap `range` and were not cut off by a truncate that still goes on, now or in `cuts`.
    pub(super) fn visible(
        &self,
        reader: &impl Reader,
        cuts: &[Cut],
        ino: Ino,
        range: Range<u64>,
        mut visit: impl FnMut(u64, crate::format::rows::ExtentRow) -> Result<Visit>,
    ) -> Result<()> {
        extents::overlapping(reader, ino, range, |at, row| {
            if cut_off(cuts, at, row.birth) || self.hidden(ino, at, row.birth) {
                Ok(Visit::Continue(()))
            } else {
                visit(at, row)
            }
        })
    }
}
