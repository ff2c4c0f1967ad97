//! The whole metadata as one JSON document, streamed; `format` makes the text of it.

use std::ops::Bound;

use crate::base::{Result, TxnId};
use crate::format::export::{ExportHeader, ExportSummary, Exporter};
use crate::format::rows::Counter;
use crate::format::table::TABLES;
use crate::meta::{Reader, Visit};

/// Calls `visit` with table, key and row of every row, in order.
pub(super) fn each_row(reader: &impl Reader, visit: &mut dyn FnMut(u8, &[u8], &[u8]) -> Result<()>) -> Result<()> {
    for (id, _) in TABLES {
        reader.scan_raw(*id, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, row| {
            visit(*id, key, row)?;
            Ok(Visit::Continue(()))
        })?;
    }
    Ok(())
}

/// Writes the metadata that `reader` sees to `sink`. Fails when a row cannot be read: then fsck can tell more.
pub fn export(
    reader: &impl Reader,
    header: &ExportHeader,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<ExportSummary> {
    let txn = TxnId(reader.counter(Counter::Txn)?);
    let mut exporter = Exporter::begin(header, txn, sink);
    each_row(reader, &mut |table, key, row| exporter.row(table, key, row))?;
    exporter.finish()
}
