//! Extents, back references and stripes.

use std::ops::Range;

use super::Devices;
use super::names::make_inode;
use crate::base::file::FileType;
use crate::base::{Ino, Result, StripeId, TxnId};
use crate::check::scan;
use crate::format::intent::Intent;
use crate::format::record::Key;
use crate::format::rows::{
    BackrefKey, BackrefRow, Counter, ExtentBody, ExtentKey, ExtentRow, Placement, Run, StripeLiveRow, StripeRow,
    StripeState,
};
use crate::format::table::{Backrefs, Extents, Intents, StripeLive, Stripes, Table};
use crate::meta::{Reader, Tx, Visit};
use crate::store::extents::{part, union_of_backrefs};

/// Rows moved or removed by one transaction.
const STEP: usize = 10_000;

/// Puts back the row of a stripe that was found on the devices.
pub fn restore_stripe(tx: &mut Tx<'_>, stripe: StripeId, row: Option<&StripeRow>) -> Result<bool> {
    let Some(row) = row else { return Ok(false) };
    if scan::find::<Stripes>(tx, &stripe)?.is_some() {
        return Ok(false);
    }
    tx.put::<Stripes>(&stripe, row)?;
    Ok(true)
}

/// Puts back an extent whose row cannot be read: its back reference says which bytes of which stripe it showed. Without one the
/// row goes.
pub fn restore_extent(tx: &mut Tx<'_>, key: &[u8]) -> Result<bool> {
    let at = ExtentKey::decode(key)?;
    let mut found = None;
    let low = BackrefKey { stripe: StripeId(0), ino: Ino(0), offset: 0, birth: TxnId(0) };
    let high = BackrefKey { stripe: StripeId(u64::MAX), ..low.clone() };
    scan::range::<Backrefs>(tx, &low, &high, |backref, row| {
        if (backref.ino, backref.offset) != (at.ino, at.offset) {
            return Ok(Visit::Continue(()));
        }
        found = Some((backref, row));
        Ok(Visit::Break(()))
    })?;
    let Some((backref, BackrefRow { start, length })) = found.filter(|(_, row)| row.length > 0) else {
        return tx.delete_raw(Extents::ID, key);
    };
    // Of sealed units nobody knows how to open them: but then the length is that of the unit, too.
    let body = ExtentBody::Run(Run::plain(backref.stripe, start, length));
    tx.put::<Extents>(&at, &ExtentRow { length: length.into(), birth: backref.birth, body })?;
    Ok(true)
}

/// Gives the content of an inode that cannot have any to a new one, which gets its name later.
pub fn split(tx: &mut Tx<'_>, ino: Ino) -> Result<bool> {
    let mut rows = Vec::new();
    let (low, high) = (ExtentKey { ino, offset: 0 }, ExtentKey { ino: Ino(ino.0.saturating_add(1)), offset: 0 });
    scan::range::<Extents>(tx, &low, &high, |key, row| {
        rows.push((key, row));
        Ok(if rows.len() < STEP { Visit::Continue(()) } else { Visit::Break(()) })
    })?;
    if rows.is_empty() {
        return Ok(false);
    }
    let new = Ino(tx.bump_counter(Counter::NextIno, 1)?);
    for (key, row) in rows {
        tx.delete::<Extents>(&key)?;
        tx.put::<Extents>(&ExtentKey { ino: new, ..key }, &row)?;
    }
    make_inode(tx, new, FileType::Regular)
}

/// Removes what an extent shows of `hole`.
pub fn cut(tx: &mut Tx<'_>, key: &ExtentKey, hole: &Range<u64>) -> Result<bool> {
    let Some(row) = tx.get::<Extents>(key)? else { return Ok(false) };
    let end = key.offset.saturating_add(row.length);
    if hole.start >= end || hole.end <= key.offset {
        return Ok(false);
    }
    tx.delete::<Extents>(key)?;
    if key.offset < hole.start {
        tx.put::<Extents>(key, &part(&row, 0, hole.start - key.offset))?;
    }
    let behind = ExtentKey { ino: key.ino, offset: hole.end };
    if hole.end < end && tx.get::<Extents>(&behind)?.is_none() {
        tx.put::<Extents>(&behind, &part(&row, hole.end - key.offset, end - hole.end))?;
    }
    Ok(true)
}

/// Stores a backref, if the content still asks for it.
pub fn backref(tx: &mut Tx<'_>, key: &BackrefKey, row: &BackrefRow) -> Result<bool> {
    let extent = tx.get::<Extents>(&ExtentKey { ino: key.ino, offset: key.offset })?;
    let asks = extent.is_some_and(|extent| match &extent.body {
        ExtentBody::Run(run) => {
            let (start, length) = run.payload_range(extent.length);
            run.stripe == key.stripe && extent.birth == key.birth && (row.start, row.length) == (start, length)
        }
        _ => false,
    });
    if asks {
        tx.put::<Backrefs>(key, row)?;
    }
    Ok(asks)
}

pub fn drop_backrefs(tx: &mut Tx<'_>, stripe: StripeId) -> Result<bool> {
    let mut keys = Vec::new();
    let low = BackrefKey { stripe, ino: Ino(0), offset: 0, birth: TxnId(0) };
    let high = BackrefKey { stripe: StripeId(stripe.0.saturating_add(1)), ..low.clone() };
    scan::range::<Backrefs>(tx, &low, &high, |key, _| {
        keys.push(key);
        Ok(if keys.len() < STEP { Visit::Continue(()) } else { Visit::Break(()) })
    })?;
    if tx.get::<Stripes>(&stripe)?.is_some() {
        return Ok(false);
    }
    for key in &keys {
        tx.delete::<Backrefs>(key)?;
    }
    Ok(!keys.is_empty())
}

/// Lets the payload of a stripe reach to `bytes`.
pub fn payload(tx: &mut Tx<'_>, stripe: StripeId, bytes: u32) -> Result<bool> {
    let Some(row) = tx.get::<Stripes>(&stripe)? else { return Ok(false) };
    if row.payload_bytes >= bytes {
        return Ok(false);
    }
    tx.put::<Stripes>(&stripe, &StripeRow { payload_bytes: bytes, ..row })?;
    if let Some(live) = tx.get::<StripeLive>(&stripe)? {
        tx.put::<StripeLive>(&stripe, &StripeLiveRow { payload: bytes, ..live })?;
    }
    Ok(true)
}

/// Gives a shard up, unless it is good and the stripe could not be read without it. It is rebuilt later.
pub fn give_up(tx: &mut Tx<'_>, stripe: StripeId, index: usize, devices: &dyn Devices) -> Result<bool> {
    let Some(mut row) = tx.get::<Stripes>(&stripe)? else { return Ok(false) };
    let placed = |row: &StripeRow, at: usize| row.placements.get(at).is_some_and(|place| *place != Placement::NONE);
    if !placed(&row, index) {
        return Ok(false);
    }
    let others = (0..row.placements.len()).filter(|at| *at != index && placed(&row, *at));
    let enough = others.filter(|at| devices.holds(stripe, &row, *at) != Some(false)).count() >= usize::from(row.k);
    if devices.holds(stripe, &row, index) != Some(false) && !enough {
        return Ok(false);
    }
    if let Some(place) = row.placements.get_mut(index) {
        *place = Placement::NONE;
    }
    row.state = StripeState::Degraded;
    tx.put::<Stripes>(&stripe, &row)?;
    plan_rebuild(tx, stripe)?;
    Ok(true)
}

/// Settles which of several stripes has the blocks of this one's shard.
pub fn dispute(tx: &mut Tx<'_>, stripe: StripeId, index: usize, devices: &dyn Devices) -> Result<bool> {
    let Some(row) = tx.get::<Stripes>(&stripe)? else { return Ok(false) };
    let Some(mine) = row.placements.get(index).filter(|place| **place != Placement::NONE) else { return Ok(false) };
    match devices.holds(stripe, &row, index) {
        None => return Ok(false),
        Some(false) => return give_up(tx, stripe, index, devices),
        Some(true) => {}
    }
    let reach = |place: &Placement, row: &StripeRow| place.block.0 + 1 + u64::from(row.shard_blocks);
    let end = reach(mine, &row);
    let mut others = Vec::new();
    scan::rows::<Stripes>(tx, |id, other| {
        let overlapping = other.placements.iter().enumerate().filter(|(at, place)| {
            let same = place.device == mine.device && place.block.0 < end && mine.block.0 < reach(place, &other);
            same && **place != Placement::NONE && (id, *at) != (stripe, index)
        });
        others.extend(overlapping.map(|(at, _)| (id, at)));
        Ok(())
    })?;
    let mut any = false;
    for (id, at) in others {
        any |= give_up(tx, id, at, devices)?;
    }
    Ok(any)
}

/// Says of a stripe that it lacks shards.
pub fn degrade(tx: &mut Tx<'_>, stripe: StripeId) -> Result<bool> {
    let Some(row) = tx.get::<Stripes>(&stripe)? else { return Ok(false) };
    tx.put::<Stripes>(&stripe, &StripeRow { state: StripeState::Degraded, ..row })?;
    plan_rebuild(tx, stripe)
}

/// Plans to rebuild a stripe, unless that is planned.
pub fn plan_rebuild(tx: &mut Tx<'_>, stripe: StripeId) -> Result<bool> {
    let mut planned = tx.get::<Stripes>(&stripe)?.is_none();
    scan::rows::<Intents>(tx, |_, intent| {
        planned |= intent == Intent::Rebuild { stripe: stripe.0 };
        Ok(())
    })?;
    if !planned {
        let id = tx.bump_counter(Counter::NextIntent, 1)?;
        tx.put::<Intents>(&id, &Intent::Rebuild { stripe: stripe.0 })?;
    }
    Ok(!planned)
}

/// Removes a stripe to which nothing refers; its blocks are freed with the bitmaps.
pub fn free(tx: &mut Tx<'_>, stripe: StripeId) -> Result<bool> {
    if has_backrefs(tx, stripe)? {
        return Ok(false);
    }
    tx.delete::<StripeLive>(&stripe)?;
    tx.delete::<Stripes>(&stripe)
}

fn has_backrefs(tx: &Tx<'_>, stripe: StripeId) -> Result<bool> {
    let mut any = false;
    let low = BackrefKey { stripe, ino: Ino(0), offset: 0, birth: TxnId(0) };
    let high = BackrefKey { stripe: StripeId(stripe.0.saturating_add(1)), ..low.clone() };
    scan::range::<Backrefs>(tx, &low, &high, |_, _| {
        any = true;
        Ok(Visit::Break(()))
    })?;
    Ok(any)
}

/// Counts the live bytes of a stripe anew. It counts as shared: then nobody relies on its ranges being apart.
pub fn live(tx: &mut Tx<'_>, stripe: StripeId) -> Result<bool> {
    let Some(row) = tx.get::<Stripes>(&stripe)? else { return Ok(false) };
    let new = StripeLiveRow { live: union_of_backrefs(tx, stripe)?, payload: row.payload_bytes, shared: 1 };
    let changed = scan::find::<StripeLive>(tx, &stripe)?.as_ref() != Some(&new);
    if new.live == 0 && !has_backrefs(tx, stripe)? {
        return Ok(false);
    }
    tx.put::<StripeLive>(&stripe, &new)?;
    Ok(changed)
}
