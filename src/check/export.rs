//! The whole metadata as one JSON document, streamed: a header, each table in order of its number with its rows in
//! order of their keys, one row to a line, and a digest of every byte before the digest's own line.
//!
//! Invariant: equal tables and equal headers give equal bytes.

use std::ops::Bound;

use crate::base::{Error, Result, TxnId, Uuid};
use crate::format::export::{EXPORT_VERSION, row, table_name};
use crate::format::json::{hex, quoted};
use crate::format::rows::Counter;
use crate::format::table::TABLES;
use crate::meta::{Reader, Visit};

/// What an export says about the pool besides its tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportHeader {
    pub pool: Uuid,
    pub name: String,
}

/// What was exported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExportSummary {
    pub rows: u64,
    pub bytes: u64,
    /// The newest transaction in the export.
    pub txn: TxnId,
    /// BLAKE3, as the last line of the export has it.
    pub digest: [u8; 32],
}

/// Bytes handed to the sink at once.
const PIECE: usize = 128 << 10;

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

/// Makes the text of rows that come in order, hashes it and hands it on in pieces.
pub(super) struct Exporter<'s> {
    text: String,
    hasher: blake3::Hasher,
    bytes: u64,
    rows: u64,
    txn: TxnId,
    /// Tables begun so far.
    begun: usize,
    /// Whether the table begun last has no row yet.
    empty: bool,
    sink: &'s mut dyn FnMut(&[u8]) -> Result<()>,
}

impl<'s> Exporter<'s> {
    pub fn begin(header: &ExportHeader, txn: TxnId, sink: &'s mut dyn FnMut(&[u8]) -> Result<()>) -> Exporter<'s> {
        let mut text = String::with_capacity(PIECE + 4096);
        text.push_str(&format!("{{\"argosfs_export\":{EXPORT_VERSION},\n\"pool\":{{\"name\":"));
        quoted(&mut text, &header.name);
        text.push_str(&format!(",\"uuid\":\"{}\"}},\n\"transaction\":{txn},\n\"tables\":{{", header.pool));
        Exporter { text, hasher: blake3::Hasher::new(), bytes: 0, rows: 0, txn, begun: 0, empty: true, sink }
    }

    /// Takes the next row.
    pub fn row(&mut self, table: u8, key: &[u8], value: &[u8]) -> Result<()> {
        let at = usize::from(table);
        if at >= TABLES.len() || at + 1 < self.begun {
            return Err(Error::corrupt(format!("a row of table {table} is out of order")));
        }
        self.begin_tables(at + 1);
        self.text.push_str(if self.empty { "\n" } else { ",\n" });
        self.empty = false;
        row(table, key, value, &mut self.text)?;
        self.rows += 1;
        if self.text.len() >= PIECE {
            self.hand_on()?;
        }
        Ok(())
    }

    /// Begins tables until there are so many, each in the place of its number.
    fn begin_tables(&mut self, count: usize) {
        for (id, _) in TABLES.iter().take(count).skip(self.begun) {
            self.text.push_str(if *id == 0 { "\n\"" } else { "],\n\"" });
            self.text.push_str(table_name(*id));
            self.text.push_str("\":[");
            self.empty = true;
            self.begun += 1;
        }
    }

    fn hand_on(&mut self) -> Result<()> {
        self.hasher.update(self.text.as_bytes());
        self.bytes += self.text.len() as u64;
        (self.sink)(self.text.as_bytes())?;
        self.text.clear();
        Ok(())
    }

    pub fn finish(mut self) -> Result<ExportSummary> {
        self.begin_tables(TABLES.len());
        self.text.push_str(&format!("]}},\n\"rows\":{},\n", self.rows));
        self.hand_on()?;
        let digest = *self.hasher.finalize().as_bytes();
        self.text.push_str("\"blake3\":\"");
        hex(&mut self.text, &digest);
        self.text.push_str("\"}\n");
        self.hand_on()?;
        Ok(ExportSummary { rows: self.rows, bytes: self.bytes, txn: self.txn, digest })
    }
}
