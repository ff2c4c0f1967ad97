//! Promises P8 and P9: every copy of the metadata is gone, and the pool is made again from its newest archive, or from an
//! export in a file, and the headers of the shards that are newer.
//!
//! The rows are read three times, because they do not fit into memory: for the bitmaps that say where the search for
//! newer shards and the new metadata may be; for the stripes that the search came across; and to be stored.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use serde::Serialize;

use super::archive::read_archive;
use super::fsck::Context;
use super::paths::{Paths, paths};
use super::repair::{self, KEPT, Rounds};
use super::source::{Export, Horizon, Source};
use crate::base::{Clock, Entropy, Error, Ino, Prng, Result, StripeId, TxnId};
use crate::format::archive::Item;
use crate::format::record::{Key, Row};
use crate::format::rows::{BackrefKey, Counter, JournalOp};
use crate::format::table::{Backrefs, Counters, Groups, Stripes, Table};
use crate::meta::{Meta, Reader, View, Visit};
use crate::pool::Pool;
use crate::store::PoolMembership;
use crate::store::archive::is_archived;
use crate::store::recover::{Bitmaps, FoundShard, Newer, Older, Places, Recovery, find_shards, put_row};

/// A file, and how many of its bytes are meant.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Affected {
    pub ino: u64,
    #[serde(flatten)]
    pub names: Paths,
    pub bytes: u64,
}

/// What metadata was made again from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    Archive,
    Export,
}

/// What a recovery did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Recovered {
    pub source: Origin,
    /// The newest transaction in the source, and when it was made, in seconds since 1970, if that is known.
    pub transaction: u64,
    pub created: Option<i64>,
    pub rows: u64,
    pub stripes: u64,
    /// Shards of the source's stripes that were moved since, and those that are gone.
    pub shards_moved: u64,
    pub shards_gone: u64,
    /// Stripes newer than the source.
    pub newer_stripes: u64,
    /// What is newer than the source, and uncertain: what was cut off or removed since may be back.
    pub newer: Vec<Affected>,
    /// Files among them that the source does not know: they are in lost+found.
    pub nameless: u64,
    /// Content that too few shards are left of, on the devices that are here.
    pub lost: Vec<Affected>,
    /// Blocks that could not be read while newer shards were looked for.
    pub unreadable_blocks: u64,
}

/// What the metadata is worth that the labels name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Old {
    /// It can be opened: it is not touched before there is something in its place.
    Opens,
    /// It may be overwritten where there is no room beside it.
    Useless,
}

/// Tells what is being done, and how far it is in blocks; says whether to go on.
pub type Watch<'w> = dyn FnMut(&'static str, u64, u64) -> bool + 'w;

/// Makes the metadata of an open pool again from its newest archive. `salt` is a random number. When this returns, the labels
/// name the new metadata; before, nothing is changed that anybody needs.
///
/// # Errors
/// [`Error::Unavailable`] when there is no archive that can be read.
pub fn recover(
    pool: &Arc<Pool>,
    old: Old,
    clock: Arc<dyn Clock>,
    salt: u64,
    watch: &mut Watch<'_>,
) -> Result<Recovered> {
    go_on(watch, "reading the archive", 0, 0)?;
    make_again(pool, &Basis::newest_archive(pool)?, old, clock, salt, watch)
}

/// The same from an export of this pool. Content that was written after it is taken up as [`recover`] does it; what was being
/// written at the very moment of it is not.
pub fn import(
    pool: &Arc<Pool>,
    export: Export<'_>,
    old: Old,
    clock: Arc<dyn Clock>,
    salt: u64,
    watch: &mut Watch<'_>,
) -> Result<Recovered> {
    make_again(pool, &Basis::of_export(pool, export)?, old, clock, salt, watch)
}

fn go_on(watch: &mut Watch<'_>, what: &'static str, done: u64, total: u64) -> Result<()> {
    match watch(what, done, total) {
        true => Ok(()),
        false => Err(Error::Unavailable("the recovery was stopped; the pool is as it was".to_owned())),
    }
}

fn make_again(
    pool: &Arc<Pool>,
    basis: &Basis<'_>,
    old: Old,
    clock: Arc<dyn Clock>,
    salt: u64,
    watch: &mut Watch<'_>,
) -> Result<Recovered> {
    let mut go_on = |what, done, total| go_on(watch, what, done, total);
    let (horizon, places) = (basis.horizon, &basis.places);
    let wanted = |found: &FoundShard| !is_archived(found.stripe) && (horizon.is_newer(found) || !places.has(found));
    let search = find_shards(pool, &wanted, &mut |done, total| go_on("looking for newer shards", done, total).is_ok())?;
    go_on("reading the rows again", 0, 0)?;
    let (newer, moved) = basis.sort(search.shards)?;

    let mut keep = newer.clone();
    keep.extend(&moved);
    let mut fill = |recovery: &Recovery| {
        go_on("storing the rows", 0, 0)?;
        let rows = basis.load(recovery, &newer)?;
        go_on("looking after the stripes", 0, 0)?;
        let older = recovery.settle_older(&newer, &moved)?;
        go_on("taking up newer content", 0, 0)?;
        let newer = recovery.settle_newer(&newer, basis.horizon.txn)?;
        let operation = JournalOp::Recover { archive: basis.horizon.txn.0, stripes: newer.stripes };
        recovery.meta().transact(|tx| tx.journal(0, operation))?;
        if !newer.made.is_empty() {
            go_on("naming what has no name", 0, 0)?;
            name_all(recovery.meta(), salt, KEPT)?;
        }
        recovery.meta().view(|view| basis.report(view, rows, &older, &newer, search.unreadable))
    };
    let mut attempt = |over_old| {
        let recovery = Recovery::begin(pool, clock.clone(), salt, &basis.bitmaps, &keep, over_old)?;
        match fill(&recovery) {
            Ok(recovered) => recovery.finish().map(|()| recovered),
            Err(_) if recovery.lacks_space() => Err(Error::NoSpace),
            Err(error) => Err(error),
        }
    };
    match attempt(false) {
        Err(Error::NoSpace) if old == Old::Useless => {
            pool.note("there is no room beside what is left of the old metadata: it is overwritten".to_owned());
            attempt(true)
        }
        Err(Error::NoSpace) => Err(Error::Unavailable(format!(
            "there is no room in pool {} beside the metadata that it has, which can be opened and so is not overwritten",
            pool.state().label.name
        ))),
        recovered => recovered,
    }
}

/// Gives inodes without a name one in lost+found, as `fsck --repair` does, `kept` of them in each round.
pub(super) fn name_all(meta: &Meta, salt: u64, kept: usize) -> Result<()> {
    let mut key = [0; 32];
    Prng::new(salt).fill(&mut key);
    let mut rounds = Rounds::default();
    loop {
        let round = repair::round(meta, &Context::default(), &(), key, kept, &mut |_| {})?;
        if !rounds.go_on(&round.done) {
            return Ok(());
        }
    }
}

/// What a recovery begins with.
struct Basis<'s> {
    source: Source<'s>,
    horizon: Horizon,
    bitmaps: Arc<Bitmaps>,
    places: Places,
    /// The newest transaction that the labels know of.
    labelled: TxnId,
}

impl<'s> Basis<'s> {
    /// The newest archive that is whole.
    fn newest_archive(pool: &Arc<Pool>) -> Result<Basis<'s>> {
        let state = pool.state();
        let mut why = "it has none yet".to_owned();
        for archive in &state.label.archives {
            let media = PoolMembership(Arc::clone(pool));
            let mut horizon = None;
            let (mut bitmaps, mut places) = (Bitmaps::default(), Places::default());
            let read = read_archive(&media, state.label.uuid, archive, &mut |item| {
                match item {
                    Item::Head(head) => horizon = Some(Horizon::from(&head)),
                    Item::Row { table: Groups::ID, key, row } => bitmaps.add(Key::decode(key)?, Row::decode(row)?),
                    Item::Row { table: Stripes::ID, key, row } => places.add(Key::decode(key)?, &Row::decode(row)?),
                    Item::Row { .. } => {}
                }
                Ok(())
            });
            match (read, horizon) {
                (Ok(()), Some(horizon)) => {
                    let source = Source::Archive { media, pool: state.label.uuid, archive: archive.clone() };
                    return Ok(Basis::new(pool, source, horizon, bitmaps, places));
                }
                (Ok(()), None) => why = "one of them is empty".to_owned(),
                (Err(error), _) => {
                    pool.note(format!("the metadata archive of transaction {} is of no use: {error}", archive.txn));
                    why = error.to_string();
                }
            }
        }
        Err(Error::Unavailable(format!(
            "pool {} cannot be recovered without a metadata archive that can be read: {why}; bring back the devices that are \
             missing, if there are any, or give `argosfs import-meta` an export, if you have one",
            state.label.name
        )))
    }

    fn of_export(pool: &Pool, mut export: Export<'s>) -> Result<Basis<'s>> {
        if export.head.pool != pool.uuid() {
            return Err(Error::Usage("this is an export of another pool".to_owned()));
        }
        let (bitmaps, places) = (std::mem::take(&mut export.bitmaps), std::mem::take(&mut export.places));
        let horizon = Horizon::from(&export);
        Ok(Basis::new(pool, Source::Export(export), horizon, bitmaps, places))
    }

    fn new(pool: &Pool, source: Source<'s>, horizon: Horizon, bitmaps: Bitmaps, mut places: Places) -> Basis<'s> {
        places.sort();
        Basis { source, horizon, bitmaps: Arc::new(bitmaps), places, labelled: labelled(pool) }
    }

    /// Tells the shards that are newer than the source from those of its stripes that were moved. What remains lay free when
    /// the source was made, and nobody has needed it since.
    fn sort(&self, found: Vec<FoundShard>) -> Result<(Vec<FoundShard>, Vec<FoundShard>)> {
        let met: BTreeSet<StripeId> = found.iter().map(|found| found.stripe).collect();
        let mut known = BTreeMap::new();
        self.source.read(&mut |table, key, row| {
            if table == Stripes::ID {
                let id = StripeId::decode(key)?;
                if met.contains(&id) {
                    let row = <Stripes as Table>::Row::decode(row)?;
                    known.insert((id, row.incarnation), row.placements);
                }
            }
            Ok(())
        })?;
        let (mut newer, mut moved) = (Vec::new(), Vec::new());
        for found in found {
            match known.get(&(found.stripe, found.incarnation)) {
                Some(placements) => {
                    let place = placements.get(usize::from(found.index));
                    let there = place.is_some_and(|place| (place.device, place.block) == (found.device, found.block));
                    moved.extend((!there).then_some(found));
                }
                None => newer.extend(self.horizon.is_newer(&found).then_some(found)),
            }
        }
        Ok((newer, moved))
    }

    /// Stores all rows of the source; how many there are. Transactions go on behind the newest one that was seen anywhere.
    fn load(&self, recovery: &Recovery, newer: &[FoundShard]) -> Result<u64> {
        let seen = newer.iter().map(|found| found.txn.0.saturating_add(1)).max().unwrap_or(0);
        let last = seen.max(self.horizon.txn.0).max(self.labelled.0);
        let mut rows = 0;
        recovery.load(&mut |put| {
            rows = 0;
            self.source.read(&mut |table, key, row| {
                rows += 1;
                // The bitmaps are there already.
                if table == Groups::ID { Ok(()) } else { put(table, key, row) }
            })?;
            put_row::<Counters>(put, &(Counter::Txn as u8), &last)
        })?;
        Ok(rows)
    }

    fn report(
        &self,
        view: &View<'_>,
        rows: u64,
        older: &Older,
        newer: &Newer,
        unreadable_blocks: u64,
    ) -> Result<Recovered> {
        let mut lost = newer.lost.clone();
        for stripe in &older.lost {
            owners(view, *stripe, &mut lost)?;
        }
        let inos: BTreeSet<Ino> = lost.keys().chain(newer.files.keys()).copied().collect();
        let paths = paths(view, &inos)?;
        let affected = |files: &BTreeMap<Ino, u64>| {
            let one = |(ino, bytes): (&Ino, &u64)| {
                let names = paths.get(ino).cloned().unwrap_or_default();
                Affected { ino: ino.0, names, bytes: *bytes }
            };
            files.iter().map(one).collect()
        };
        let (source, created) = match &self.source {
            Source::Archive { archive, .. } => (Origin::Archive, Some(archive.created)),
            Source::Export(_) => (Origin::Export, None),
        };
        Ok(Recovered {
            source,
            transaction: self.horizon.txn.0,
            created,
            rows,
            stripes: older.stripes,
            shards_moved: older.shards_moved,
            shards_gone: older.shards_gone,
            newer_stripes: newer.stripes,
            newer: affected(&newer.files),
            nameless: newer.made.len() as u64,
            lost: affected(&lost),
            unreadable_blocks,
        })
    }
}

fn labelled(pool: &Pool) -> TxnId {
    TxnId(pool.state().label.archives.iter().map(|archive| archive.txn).max().unwrap_or(0))
}

/// Adds the bytes that each file has in a stripe.
fn owners(reader: &impl Reader, stripe: StripeId, files: &mut BTreeMap<Ino, u64>) -> Result<()> {
    let low = BackrefKey { stripe, ino: Ino(0), offset: 0, birth: TxnId(0) };
    let high = BackrefKey { stripe: StripeId(stripe.0.saturating_add(1)), ..low.clone() };
    reader.scan::<Backrefs>((Bound::Included(low), Bound::Excluded(high)), |key, row| {
        *files.entry(key.ino).or_default() += u64::from(row.length);
        Ok(Visit::Continue(()))
    })
}
