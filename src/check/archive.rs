//! Archives of the whole metadata: every row, compressed, where it is found without any metadata (promise P8).

use super::export::each_row;
use crate::base::{Error, Result, TxnId, Uuid};
use crate::format::archive::{Decoder, Head, Item, put_end, put_head, put_row};
use crate::format::export::{ExportHeader, ExportSummary, Exporter};
use crate::format::label::Archive;
use crate::format::rows::Counter;
use crate::meta::Reader;
use crate::pool::stripe_io::Media;
use crate::store::Store;
use crate::store::archive::read;
use crate::transform::compress::{Compressor, Decompressor};

/// Bytes compressed at once.
const PIECE: usize = 64 << 10;

/// Writes an archive of everything committed so far, made at `created` (seconds since 1970); durable when this returns.
/// `watch` says now and then whether to go on.
pub fn archive(store: &Store, pool: Uuid, created: i64, watch: &dyn Fn() -> bool) -> Result<TxnId> {
    let mut writer = store.archive_writer()?;
    // Before the view: what is written but not committed when it is taken has numbers from this one on.
    let first_stripe = store.oldest_unfinished();
    let txn = store.view(|view| {
        let txn = TxnId(view.counter(Counter::Txn)?);
        let mut compressor = Compressor::new()?;
        let mut sink = |bytes: &[u8]| writer.write(bytes);
        let mut piece = Vec::with_capacity(2 * PIECE);
        put_head(&Head { pool, txn, first_stripe }, &mut piece);
        let mut rows = 0;
        each_row(view, &mut |table, key, row| {
            rows += 1;
            put_row(table, key, row, &mut piece)?;
            if piece.len() >= PIECE {
                if !watch() {
                    return Err(Error::Unavailable("the archive is put off".to_owned()));
                }
                compressor.push(&piece, &mut sink)?;
                piece.clear();
            }
            Ok(())
        })?;
        put_end(rows, &mut piece);
        compressor.push(&piece, &mut sink)?;
        compressor.finish(&mut sink)?;
        Ok(txn)
    })?;
    writer.finish(txn, created)?;
    Ok(txn)
}

/// Visits what is in an archive. What `visit` was given counts when this succeeds.
pub(super) fn read_archive(
    media: &dyn Media,
    pool: Uuid,
    archive: &Archive,
    visit: &mut dyn FnMut(Item<'_>) -> Result<()>,
) -> Result<()> {
    let mut decompressor = Decompressor::new()?;
    let mut decoder = Decoder::default();
    read(media, pool, archive, &mut |stored| {
        decompressor.push(stored, &mut |bytes| {
            decoder.push(bytes, &mut |item| match item {
                Item::Head(head) if head.pool != pool || head.txn.0 != archive.txn => {
                    Err(Error::corrupt("this is the archive of another pool or transaction"))
                }
                item => visit(item),
            })
        })
    })?;
    decoder.finish().map(drop)
}

/// Writes the metadata in an archive to `sink`, as [`super::export()`] would have when the archive was made. Needs the
/// labels and the devices, no metadata. What `sink` was given counts when this succeeds.
pub fn export_archive(
    media: &dyn Media,
    header: &ExportHeader,
    archive: &Archive,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<ExportSummary> {
    let mut exporter: Option<Exporter<'_>> = None;
    let mut sink = Some(sink);
    read_archive(media, header.pool, archive, &mut |item| match item {
        Item::Head(head) => {
            exporter = sink.take().map(|sink| Exporter::begin(header, head.txn, sink));
            Ok(())
        }
        Item::Row { table, key, row } => match &mut exporter {
            Some(exporter) => exporter.row(table, key, row),
            None => Ok(()),
        },
    })?;
    exporter.ok_or_else(|| Error::corrupt("an archive is cut short"))?.finish()
}
