//! Which bytes of a file lie where: the rows of `extents`, `backrefs` and `stripe_live`, changed inside a transaction.
//!
//! Invariants:
//! - Extents of one file never overlap and are never empty.
//! - Every extent that is a run has exactly one backref, under the same inode, offset and birth.
//! - `stripe_live.live` is the size of the union of the ranges of the stripe's backrefs; a stripe without any is
//!   deleted in the same transaction.
//! - Physical changes (splitting, moving) keep `birth`.
//! - The counter `Reserved` is the length of all extents that are reserved.

use std::ops::{Bound, Range};

use super::bitmap;
use crate::base::{Error, Ino, Result, StripeId, TxnId};
use crate::format::rows::{
    BackrefKey, BackrefRow, Counter, ExtentBody, ExtentKey, ExtentRow, Placement, Run, StripeLiveRow, StripeRow,
};
use crate::format::table::{Backrefs, Extents, StripeLive, Stripes};
use crate::meta::{Reader, Tx, Visit};

/// What a transaction did to content, to be settled once it is committed.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Change of the number of bytes covered by extents.
    pub content_delta: i64,
    /// Change of the number of bytes that are promised to files and not written.
    pub reserved_delta: i64,
    /// Shards given up, with their payload blocks; they become free once nobody can read them any more.
    pub freed: Vec<(Placement, u32)>,
    /// Shards whose reserved blocks now belong to a stripe.
    pub placed: Vec<(Placement, u32)>,
    /// Shards whose reserved blocks are not needed.
    pub unused: Vec<(Placement, u32)>,
    /// Truncates that continue in the background.
    pub truncates: Vec<(Ino, u64, TxnId)>,
    /// Stripes of which less than half is live.
    pub sparse: Vec<StripeId>,
    /// Inline rows above the small limit that were made.
    pub destage: Vec<(Ino, u64)>,
}

impl Ledger {
    /// Every shard of a stripe is given up.
    pub fn free(&mut self, row: &StripeRow) {
        self.freed.extend(shards(row));
    }

    /// Every shard of a new stripe lies in blocks that were reserved for it.
    pub fn place(&mut self, row: &StripeRow) {
        self.placed.extend(shards(row));
    }
}

fn shards(row: &StripeRow) -> impl Iterator<Item = (Placement, u32)> + '_ {
    let placed = row.placements.iter().filter(|placement| **placement != Placement::NONE);
    placed.map(|placement| (*placement, row.shard_blocks))
}

/// Visits the extents that overlap `range`, ascending. None ends beyond the last offset there is.
pub fn overlapping(
    reader: &impl Reader,
    ino: Ino,
    range: Range<u64>,
    mut visit: impl FnMut(u64, ExtentRow) -> Result<Visit>,
) -> Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let key = |offset| ExtentKey { ino, offset };
    let mut stopped = false;
    if range.start > 0 {
        let before = (Bound::Included(key(0)), Bound::Excluded(key(range.start)));
        let mut left = None;
        reader.scan_back::<Extents>(before, |key, row| {
            left = Some((key.offset, row));
            Ok(Visit::Break(()))
        })?;
        if let Some((offset, row)) = left
            && end(ino, offset, &row)? > range.start
        {
            stopped = visit(offset, row)?.is_break();
        }
    }
    if stopped {
        return Ok(());
    }
    reader.scan::<Extents>((Bound::Included(key(range.start)), Bound::Excluded(key(range.end))), |key, row| {
        end(ino, key.offset, &row)?;
        visit(key.offset, row)
    })
}

fn end(ino: Ino, offset: u64, row: &ExtentRow) -> Result<u64> {
    let beyond = || Error::corrupt(format!("an extent of inode {ino} ends beyond all offsets; run fsck"));
    offset.checked_add(row.length).ok_or_else(beyond)
}

/// Removes what the file has in `range`, cutting extents at its ends. Stops after `limit` extents and then returns
/// where to go on.
pub fn remove(tx: &mut Tx<'_>, ino: Ino, range: Range<u64>, limit: usize, ledger: &mut Ledger) -> Result<Option<u64>> {
    let mut victims = Vec::new();
    let mut rest = None;
    overlapping(tx, ino, range.clone(), |offset, row| {
        if victims.len() == limit {
            rest = Some(offset);
            return Ok(Visit::Break(()));
        }
        victims.push((offset, row));
        Ok(Visit::Continue(()))
    })?;
    for (offset, row) in victims {
        cut(tx, ino, offset, row, &range, ledger)?;
    }
    Ok(rest)
}

/// Replaces one extent by its parts outside `hole`.
fn cut(tx: &mut Tx<'_>, ino: Ino, offset: u64, row: ExtentRow, hole: &Range<u64>, ledger: &mut Ledger) -> Result<()> {
    let end = offset + row.length;
    let left = (offset < hole.start).then(|| part(&row, 0, hole.start - offset));
    let right = (end > hole.end).then(|| part(&row, hole.end - offset, end - hole.end));
    let kept: u64 = left.iter().chain(&right).map(|piece| piece.length).sum();
    ledger.content_delta -= (row.length - kept) as i64;
    if row.body == ExtentBody::Reserved {
        count_reserved(tx, -((row.length - kept) as i64), ledger)?;
    }
    match &left {
        Some(piece) => tx.put::<Extents>(&ExtentKey { ino, offset }, piece)?,
        None => drop(tx.delete::<Extents>(&ExtentKey { ino, offset })?),
    }
    if let Some(piece) = &right {
        tx.put::<Extents>(&ExtentKey { ino, offset: hole.end }, piece)?;
    }
    let ExtentBody::Run(run) = &row.body else { return Ok(()) };
    match &left {
        Some(piece) => put_backref(tx, ino, offset, piece)?,
        None => drop(tx.delete::<Backrefs>(&backref_key(ino, offset, row.birth, run))?),
    }
    if let Some(piece) = &right {
        put_backref(tx, ino, hole.end, piece)?;
    }
    let removed = run.payload_range(row.length).1 - if run.is_plain() { kept as u32 } else { 0 };
    lose(tx, run, removed, left.is_some() || right.is_some(), ledger)
}

/// The extent that shows `length` bytes of `row` from `skip` on.
pub fn part(row: &ExtentRow, skip: u64, length: u64) -> ExtentRow {
    let body = match &row.body {
        ExtentBody::Inline(bytes) => ExtentBody::Inline(bytes[skip as usize..(skip + length) as usize].to_vec()),
        ExtentBody::Run(run) => ExtentBody::Run(Run { inside: run.inside + skip as u32, ..*run }),
        ExtentBody::Reserved => ExtentBody::Reserved,
    };
    ExtentRow { length, birth: row.birth, body }
}

fn backref_key(ino: Ino, offset: u64, birth: TxnId, run: &Run) -> BackrefKey {
    BackrefKey { stripe: run.stripe, ino, offset, birth }
}

fn put_backref(tx: &mut Tx<'_>, ino: Ino, offset: u64, row: &ExtentRow) -> Result<()> {
    let ExtentBody::Run(run) = &row.body else { return Ok(()) };
    let (start, length) = run.payload_range(row.length);
    tx.put::<Backrefs>(&backref_key(ino, offset, row.birth, run), &BackrefRow { start, length })
}

/// Lowers the live bytes of a run's stripe after backrefs were removed or shrunk by `removed` bytes.
fn lose(tx: &mut Tx<'_>, run: &Run, removed: u32, pieces_left: bool, ledger: &mut Ledger) -> Result<()> {
    let stripe = run.stripe;
    let Some(mut live) = tx.get::<StripeLive>(&stripe)? else {
        return Err(Error::corrupt(format!("an extent refers to stripe {stripe}, which does not exist; run fsck")));
    };
    let exact = live.shared == 0 && (run.is_plain() || !pieces_left);
    live.live = if exact {
        live.live.checked_sub(removed).ok_or_else(|| {
            Error::corrupt(format!("stripe {stripe} has fewer live bytes than are being freed; run fsck"))
        })?
    } else {
        union_of_backrefs(tx, stripe)?
    };
    if live.live > 0 {
        if live.live < live.payload / 2 {
            ledger.sparse.push(stripe);
        }
        return tx.put::<StripeLive>(&stripe, &live);
    }
    let Some(row) = tx.get::<Stripes>(&stripe)? else {
        return Err(Error::corrupt(format!("stripe {stripe} has live bytes but no row; run fsck")));
    };
    tx.delete::<StripeLive>(&stripe)?;
    tx.delete::<Stripes>(&stripe)?;
    bitmap::mark_stripe(tx, &row, false)?;
    ledger.free(&row);
    Ok(())
}

/// Payload bytes of the stripe that some backref covers.
pub fn union_of_backrefs(reader: &impl Reader, stripe: StripeId) -> Result<u32> {
    let mut ranges = Vec::new();
    backrefs(reader, stripe, |_, row| {
        ranges.push((row.start, row.start + row.length));
        Ok(Visit::Continue(()))
    })?;
    ranges.sort_unstable();
    let (mut total, mut reached) = (0, 0);
    for (start, end) in ranges {
        let start = start.max(reached);
        if end > start {
            total += end - start;
            reached = end;
        }
    }
    Ok(total)
}

/// Visits the backrefs of a stripe.
pub fn backrefs(
    reader: &impl Reader,
    stripe: StripeId,
    visit: impl FnMut(BackrefKey, BackrefRow) -> Result<Visit>,
) -> Result<()> {
    let low = BackrefKey { stripe, ino: Ino(0), offset: 0, birth: TxnId(0) };
    let high = BackrefKey { stripe: StripeId(stripe.0.saturating_add(1)), ..low.clone() };
    reader.scan::<Backrefs>((Bound::Included(low), Bound::Excluded(high)), visit)
}

/// Adds an extent where the file has none. The stripe of a run must exist; counting its live bytes is the caller's.
pub fn insert(tx: &mut Tx<'_>, ino: Ino, offset: u64, row: &ExtentRow, ledger: &mut Ledger) -> Result<()> {
    ledger.content_delta += row.length as i64;
    if row.body == ExtentBody::Reserved {
        count_reserved(tx, row.length as i64, ledger)?;
    }
    tx.put::<Extents>(&ExtentKey { ino, offset }, row)?;
    put_backref(tx, ino, offset, row)
}

fn count_reserved(tx: &mut Tx<'_>, delta: i64, ledger: &mut Ledger) -> Result<()> {
    ledger.reserved_delta += delta;
    let reserved = tx.counter(Counter::Reserved)?;
    tx.set_counter(Counter::Reserved, reserved.saturating_add_signed(delta))
}

/// Makes `length` bytes at `to` of file `target` show what `source` has at `from`, without copying: inline bytes are
/// copied, runs shared. Only extents for which `visible(offset, birth)` holds count. What `target` had there must have
/// been removed.
pub fn share(
    tx: &mut Tx<'_>,
    (source, from): (Ino, u64),
    (target, to): (Ino, u64),
    length: u64,
    visible: impl Fn(u64, TxnId) -> bool,
    ledger: &mut Ledger,
) -> Result<()> {
    let range = from..from + length;
    let mut pieces = Vec::new();
    overlapping(tx, source, range.clone(), |offset, row| {
        if !visible(offset, row.birth) {
            return Ok(Visit::Continue(()));
        }
        let start = offset.max(range.start);
        let end = (offset + row.length).min(range.end);
        pieces.push((start - from, part(&row, start - offset, end - start)));
        Ok(Visit::Continue(()))
    })?;
    for (at, mut piece) in pieces {
        match &piece.body {
            ExtentBody::Reserved => continue,
            ExtentBody::Inline(_) => {}
            ExtentBody::Run(run) => {
                if let Some(live) = tx.get::<StripeLive>(&run.stripe)?.filter(|live| live.shared == 0) {
                    tx.put::<StripeLive>(&run.stripe, &StripeLiveRow { shared: 1, ..live })?;
                }
            }
        }
        piece.birth = tx.id();
        ledger.content_delta += piece.length as i64;
        tx.put::<Extents>(&ExtentKey { ino: target, offset: to + at }, &piece)?;
        put_backref(tx, target, to + at, &piece)?;
    }
    Ok(())
}
