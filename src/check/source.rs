//! What a pool's metadata is made of again: the rows of an archive, or those of an export in a file. They do not fit into
//! memory, so they are read as often as they are needed.

use super::archive::read_archive;
use crate::base::{Error, Result, StripeId, TxnId, Uuid};
use crate::format::archive;
use crate::format::export::ExportSummary;
use crate::format::import::{self, Decoder};
use crate::format::label::Archive;
use crate::format::record::{Key, Row};
use crate::format::table::{Groups, Stripes, Table};
use crate::store::PoolMembership;
use crate::store::recover::{Bitmaps, FoundShard, Places};

/// Takes table, key and row.
type Visit<'v> = dyn FnMut(u8, &[u8], &[u8]) -> Result<()> + 'v;

/// Hands all bytes of a file to its argument, in pieces of any length, from the beginning each time it is called.
pub type Pieces<'p> = dyn Fn(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> + 'p;

/// An export that is whole, and of the pool it should be of.
pub struct Export<'p> {
    pieces: &'p Pieces<'p>,
    pub head: import::Head,
    pub summary: ExportSummary,
    pub stripes: u64,
    /// One above the highest stripe in it.
    first_stripe: StripeId,
    pub(super) bitmaps: Bitmaps,
    pub(super) places: Places,
}

impl<'p> Export<'p> {
    /// Reads the whole export once.
    ///
    /// # Errors
    /// [`Error::Usage`] when it is of another pool, [`Error::Corrupt`] when it is not what was written.
    pub fn verify(pool: Uuid, pieces: &'p Pieces<'p>) -> Result<Export<'p>> {
        let (mut head, mut stripes, mut first_stripe) = (None, 0, StripeId(0));
        let (mut bitmaps, mut places) = (Bitmaps::default(), Places::default());
        let summary = decode(pieces, &mut |item| {
            match item {
                import::Item::Head(found) if found.pool != pool => {
                    return Err(Error::Usage(format!(
                        "this is an export of pool {} ({}), and the pool you named is {pool}: name the one it is of",
                        found.name, found.pool
                    )));
                }
                import::Item::Head(found) => head = Some(found.clone()),
                import::Item::Row { table: Groups::ID, key, row } => bitmaps.add(Key::decode(key)?, Row::decode(row)?),
                import::Item::Row { table: Stripes::ID, key, row } => {
                    stripes += 1;
                    let id = StripeId::decode(key)?;
                    first_stripe = StripeId(id.0.saturating_add(1));
                    places.add(id, &Row::decode(row)?);
                }
                import::Item::Row { .. } => {}
            }
            Ok(())
        })?;
        let head = head.ok_or_else(|| Error::corrupt("an export has no head"))?;
        Ok(Export { pieces, head, summary, stripes, first_stripe, bitmaps, places })
    }

    fn read(&self, visit: &mut Visit<'_>) -> Result<()> {
        let summary = decode(self.pieces, &mut |item| match item {
            import::Item::Head(_) => Ok(()),
            import::Item::Row { table, key, row } => visit(table, key, row),
        })?;
        match summary == self.summary {
            true => Ok(()),
            false => {
                Err(Error::Unavailable("the export was changed while it was read; the pool is as it was".to_owned()))
            }
        }
    }
}

fn decode(pieces: &Pieces<'_>, visit: &mut dyn FnMut(import::Item<'_>) -> Result<()>) -> Result<ExportSummary> {
    let mut decoder = Decoder::default();
    pieces(&mut |piece| decoder.push(piece, visit))?;
    decoder.finish()
}

/// Where rows come from.
pub(super) enum Source<'s> {
    Archive { media: PoolMembership, pool: Uuid, archive: Archive },
    Export(Export<'s>),
}

/// Which stripes the rows know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Horizon {
    /// The newest transaction in the rows.
    pub txn: TxnId,
    first_stripe: StripeId,
    /// The newest transaction committed when the first stripe was written that counts as newer.
    since: TxnId,
}

impl Horizon {
    /// Whether a shard may be of a stripe that is newer than the rows, if it is of none that they have.
    pub fn is_newer(&self, found: &FoundShard) -> bool {
        found.stripe >= self.first_stripe && found.txn >= self.since
    }
}

impl From<&archive::Head> for Horizon {
    fn from(head: &archive::Head) -> Horizon {
        Horizon { txn: head.txn, first_stripe: head.first_stripe, since: TxnId(0) }
    }
}

impl From<&Export<'_>> for Horizon {
    /// What was being written at the moment of an export, nobody noted. A stripe that was written after it is above all that
    /// the export has, and knows of its transaction. One that knows only of earlier ones may have been removed before.
    fn from(export: &Export<'_>) -> Horizon {
        Horizon { txn: export.head.txn, first_stripe: export.first_stripe, since: export.head.txn }
    }
}

impl Source<'_> {
    /// Visits all rows. What `visit` was given counts when this succeeds.
    pub fn read(&self, visit: &mut Visit<'_>) -> Result<()> {
        match self {
            Source::Export(export) => export.read(visit),
            Source::Archive { media, pool, archive } => read_archive(media, *pool, archive, &mut |item| match item {
                archive::Item::Head(_) => Ok(()),
                archive::Item::Row { table, key, row } => visit(table, key, row),
            }),
        }
    }
}
