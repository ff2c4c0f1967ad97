//! Stripes that are newer than the archive: what their headers say about files is put on top of what the archive says.
//!
//! Of two versions of a range the later one counts. Content that was moved since it was written counts as what it was, so
//! that a copy never hides what was written over its original. What cannot be known is which ranges were punched or
//! truncated, and which files removed, after the archive was made: that is why all of this is uncertain.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use super::find::read_header;
use super::older::plan_rebuild;
use super::{FoundShard, Recovery};
use crate::base::file::FileType;
use crate::base::{Incarnation, Ino, Result, StripeId, TxnId};
use crate::format::rows::{
    Counter, ExtentBody, ExtentRow, InodeRow, Placement, Run, StripeLiveRow, StripeRow, StripeState,
};
use crate::format::shard::{ShardHeader, Unit};
use crate::format::table::{Inodes, StripeLive, Stripes};
use crate::meta::{Reader, Tx, Visit};
use crate::pool::stripe_io::{self, Media};
use crate::store::bitmap;
use crate::store::extents::{self, Ledger};
use crate::store::host::PoolMembership;

/// Inode numbers are below this.
const INO_END: u64 = 1 << 48;

/// What became of the stripes that are newer than the archive.
#[derive(Default, Debug)]
pub struct Newer {
    /// Stripes whose content is in files now.
    pub stripes: u64,
    /// Bytes of newer content in each file.
    pub files: BTreeMap<Ino, u64>,
    /// Those of the files that the archive does not know.
    pub made: BTreeSet<Ino>,
    /// Bytes of newer content in each file that too few shards are left of.
    pub lost: BTreeMap<Ino, u64>,
}

/// A stripe as its headers describe it; only good shards have placements.
struct Stripe {
    id: StripeId,
    /// The newest transaction committed when it was written.
    txn: TxnId,
    row: StripeRow,
    units: Vec<Unit>,
}

/// What is put on top of what.
struct Versions {
    archive: TxnId,
    /// Of the stripe.
    txn: TxnId,
}

impl Versions {
    /// The transaction that content counts as written by.
    fn of(&self, unit: &Unit) -> TxnId {
        unit.birth.unwrap_or(TxnId(self.txn.0.saturating_add(1)))
    }

    /// Whether the archive has this content, too, elsewhere.
    fn is_archived(&self, unit: &Unit) -> bool {
        unit.birth.is_some_and(|birth| birth <= self.archive)
    }
}

impl Recovery {
    /// Puts the stripes whose shards were found on top of the archive of transaction `archive`.
    pub fn settle_newer(&self, shards: &[FoundShard], archive: TxnId) -> Result<Newer> {
        let media = PoolMembership(self.pool.clone());
        // Numbers that are in use must not be given out again.
        let next = shards.iter().map(|found| found.stripe.0.saturating_add(1)).max().unwrap_or(0);
        self.meta.transact(|tx| {
            let next = tx.counter(Counter::NextStripe)?.max(next);
            tx.set_counter(Counter::NextStripe, next)
        })?;
        let (shards, good) = self.sift(&media, shards)?;
        let mut stripes: BTreeMap<(TxnId, StripeId, Incarnation), Vec<FoundShard>> = BTreeMap::new();
        for found in shards {
            stripes.entry((found.txn, found.stripe, found.incarnation)).or_default().push(found);
        }
        let mut newer = Newer::default();
        let mut unreadable = Vec::new();
        for shards in stripes.into_values() {
            let Some(stripe) = describe(&media, &shards, &good) else { continue };
            let versions = Versions { archive, txn: stripe.txn };
            if !self.add(&stripe, &versions, &mut newer)? {
                let units = stripe.units.into_iter().filter(|unit| !versions.is_archived(unit));
                unreadable.extend(units.map(|unit| (versions.of(&unit), unit)));
            }
        }
        // Only now is it known what was written over it.
        self.meta.view(|view| {
            for (version, unit) in unreadable {
                let missing = uncovered(view, &unit, version)?;
                if missing > 0 {
                    *newer.lost.entry(unit.ino).or_default() += missing;
                }
            }
            Ok(())
        })?;
        Ok(newer)
    }

    /// Leaves out what lies inside of other shards, because files may hold copies of devices; tells which of the rest are what
    /// their headers say.
    fn sift(&self, media: &PoolMembership, shards: &[FoundShard]) -> Result<(Vec<FoundShard>, BTreeSet<FoundShard>)> {
        let (mut outside, mut good) = (Vec::new(), BTreeSet::new());
        let mut reached: HashMap<_, u64> = HashMap::new();
        self.meta.view(|view| {
            for found in shards {
                let reached = reached.entry(found.device).or_default();
                let blocks = u64::from(found.run().blocks);
                // Where the archive's stripes were found to be, nothing was written since.
                if found.block.0 < *reached || !bitmap::is_free(view, found.device, found.block.0, blocks)? {
                    continue;
                }
                outside.push(*found);
                if is_whole(media, found) {
                    *reached = found.block.0 + blocks;
                    good.insert(*found);
                }
            }
            Ok(())
        })?;
        Ok((outside, good))
    }

    /// Makes a stripe part of the pool, as far as its content counts; `false` when it cannot be read.
    fn add(&self, stripe: &Stripe, versions: &Versions, newer: &mut Newer) -> Result<bool> {
        let id = stripe.id;
        let body = |tx: &mut Tx<'_>| {
            let mut row = stripe.row.clone();
            let here = row.placements.iter().filter(|place| **place != Placement::NONE).count();
            if here < usize::from(row.k) || tx.get::<Stripes>(&id)?.is_some() {
                return Ok(None);
            }
            row.state = if here < row.placements.len() { StripeState::Degraded } else { StripeState::Whole };
            row.birth = tx.id();
            tx.put::<Stripes>(&id, &row)?;
            bitmap::mark_stripe(tx, &row, true)?;
            // Live bytes are counted in the end, and until then whenever some of them go.
            let live = StripeLiveRow { live: 0, payload: row.payload_bytes, shared: 1 };
            tx.put::<StripeLive>(&id, &live)?;
            let mut given = Newer::default();
            for unit in &stripe.units {
                give(tx, stripe, unit, versions, &mut given)?;
            }
            let live = StripeLiveRow { live: extents::union_of_backrefs(tx, id)?, ..live };
            if live.live == 0 {
                tx.delete::<StripeLive>(&id)?;
                tx.delete::<Stripes>(&id)?;
                bitmap::mark_stripe(tx, &row, false)?;
                return Ok(Some(given));
            }
            tx.put::<StripeLive>(&id, &live)?;
            if row.state == StripeState::Degraded {
                plan_rebuild(tx, id)?;
            }
            given.stripes = 1;
            Ok(Some(given))
        };
        let Some(given) = self.meta.transact(body)?.0 else { return Ok(false) };
        newer.stripes += given.stripes;
        newer.made.extend(given.made);
        for (ino, bytes) in given.files {
            *newer.files.entry(ino).or_default() += bytes;
        }
        Ok(true)
    }
}

fn is_whole(media: &PoolMembership, found: &FoundShard) -> bool {
    let Some(header) = media.device(found.device).and_then(|device| read_header(&*device, found)) else { return false };
    let Some(mut row) = row_without_places(&header) else { return false };
    let Some(place) = row.placements.get_mut(usize::from(found.index)) else { return false };
    *place = Placement { device: found.device, block: found.block };
    stripe_io::read_shard(media, &row, usize::from(found.index)).is_some()
}

/// The row of the stripe, if the header makes sense.
fn row_without_places(header: &ShardHeader) -> Option<StripeRow> {
    let width = usize::from(header.k) + usize::from(header.m);
    let row = header.row(vec![Placement::NONE; width]).ok()?;
    (row.granule_shift == stripe_io::granule_shift(width, row.shard_blocks)).then_some(row)
}

/// Puts together what the headers of a stripe's shards say.
fn describe(media: &PoolMembership, shards: &[FoundShard], good: &BTreeSet<FoundShard>) -> Option<Stripe> {
    let mut stripe: Option<Stripe> = None;
    let mut known = BTreeSet::new();
    // The good ones first: theirs is the row that counts.
    let (mut ordered, rest): (Vec<&FoundShard>, Vec<&FoundShard>) =
        shards.iter().partition(|found| good.contains(*found));
    ordered.extend(rest);
    for found in ordered {
        let Some(header) = media.device(found.device).and_then(|device| read_header(&*device, found)) else { continue };
        let Some(row) = row_without_places(&header) else { continue };
        let stripe = stripe.get_or_insert_with(|| Stripe {
            id: found.stripe,
            txn: found.txn,
            row: row.clone(),
            units: Vec::new(),
        });
        if (row.k, row.m, row.payload_bytes, &row.sums)
            != (stripe.row.k, stripe.row.m, stripe.row.payload_bytes, &stripe.row.sums)
        {
            continue;
        }
        let Some(place) = stripe.row.placements.get_mut(usize::from(found.index)) else { continue };
        if good.contains(found) && *place == Placement::NONE {
            *place = Placement { device: found.device, block: found.block };
        }
        let new = header.units.into_iter().filter(|unit| known.insert((unit.ino, unit.offset, unit.start)));
        stripe.units.extend(new.filter(|_| !header.sealed));
    }
    stripe
}

/// Shows the bytes of a unit where its file has nothing later.
fn give(tx: &mut Tx<'_>, stripe: &Stripe, unit: &Unit, versions: &Versions, given: &mut Newer) -> Result<()> {
    let Some(range) = range(unit) else { return Ok(()) };
    let inside = u64::from(unit.start) + u64::from(unit.length) <= u64::from(stripe.row.payload_bytes);
    let archived = versions.is_archived(unit);
    let found = tx.get::<Inodes>(&unit.ino)?;
    let can_have = |row: &InodeRow| match FileType::from_mode(row.mode) {
        Some(FileType::Regular) => true,
        // Only moved: where a link leads never changes.
        Some(FileType::Symlink) => archived,
        _ => false,
    };
    if !inside || !found.as_ref().map_or(!archived, can_have) {
        return Ok(());
    }
    let version = versions.of(unit);
    let is_new = found.is_none();
    let mut row = found.unwrap_or_else(|| new_file(tx));
    let mut ledger = Ledger::default();
    let mut bytes = 0;
    for piece in pieces(tx, stripe.id, unit.ino, range, version, archived)? {
        extents::remove(tx, unit.ino, piece.clone(), usize::MAX, &mut ledger)?;
        let skip = (piece.start - unit.offset) as u32;
        let length = piece.end - piece.start;
        let run = Run::plain(stripe.id, unit.start + skip, length as u32);
        let extent = ExtentRow { length, birth: version, body: ExtentBody::Run(run) };
        extents::insert(tx, unit.ino, piece.start, &extent, &mut ledger)?;
        if !archived {
            row.size = row.size.max(piece.end);
            bytes += length;
        }
    }
    row.content = row.content.saturating_add_signed(ledger.content_delta);
    if bytes > 0 {
        (row.mtime, row.ctime) = (tx.now(), tx.now());
        *given.files.entry(unit.ino).or_default() += bytes;
    }
    if is_new {
        if bytes == 0 {
            return Ok(());
        }
        given.made.insert(unit.ino);
        tx.bump_counter(Counter::Inodes, 1)?;
        let next = tx.counter(Counter::NextIno)?.max(unit.ino.0 + 1);
        tx.set_counter(Counter::NextIno, next)?;
    }
    tx.put::<Inodes>(&unit.ino, &row)
}

/// The bytes of its file, if there can be such.
fn range(unit: &Unit) -> Option<Range<u64>> {
    let end = unit.offset.checked_add(u64::from(unit.length))?;
    let possible = unit.length > 0 && end <= i64::MAX as u64 && unit.ino > Ino::ROOT && unit.ino.0 < INO_END;
    possible.then_some(unit.offset..end)
}

/// A file of which nothing is known but content. It has no name yet.
fn new_file(tx: &Tx<'_>) -> InodeRow {
    let now = tx.now();
    InodeRow {
        mode: FileType::Regular.mode_bits() | 0o600,
        uid: 0,
        gid: 0,
        project: 0,
        nlink: 0,
        rdev: 0,
        size: 0,
        content: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        flags: 0,
        policy: 0,
        parent: Ino(0),
        entries: 0,
        birth: tx.id(),
    }
}

/// The parts of `range` that content of this version may take.
fn pieces(
    reader: &impl Reader,
    stripe: StripeId,
    ino: Ino,
    range: Range<u64>,
    version: TxnId,
    archived: bool,
) -> Result<Vec<Range<u64>>> {
    let mut pieces: Vec<Range<u64>> = Vec::new();
    let mut add = |piece: Range<u64>| match pieces.last_mut() {
        _ if piece.is_empty() => {}
        Some(last) if last.end == piece.start => last.end = piece.end,
        _ => pieces.push(piece),
    };
    let mut reached = range.start;
    extents::overlapping(reader, ino, range.clone(), |offset, row| {
        let (start, end) = (offset.max(range.start), (offset + row.length).min(range.end));
        // Where the archive has nothing, there was nothing when it was made.
        if !archived {
            add(reached..start);
        }
        let own = matches!(&row.body, ExtentBody::Run(run) if run.stripe == stripe);
        if !own && if archived { row.birth == version } else { row.birth <= version } {
            add(start..end);
        }
        reached = end;
        Ok(Visit::Continue(()))
    })?;
    if !archived {
        add(reached..range.end);
    }
    Ok(pieces)
}

/// Bytes of a unit that no later content stands for.
fn uncovered(reader: &impl Reader, unit: &Unit, version: TxnId) -> Result<u64> {
    let Some(range) = range(unit) else { return Ok(0) };
    let mut covered = 0;
    extents::overlapping(reader, unit.ino, range.clone(), |offset, row| {
        if row.birth >= version {
            covered += (offset + row.length).min(range.end) - offset.max(range.start);
        }
        Ok(Visit::Continue(()))
    })?;
    Ok(range.end - range.start - covered)
}
