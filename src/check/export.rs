//! The whole metadata as one JSON document, streamed: a header, each table in order of its number with its rows in
//! order of their keys, one row to a line, and a digest of every byte before the digest's own line.
//!
//! Invariant: equal tables and equal headers give equal bytes.

use std::ops::Bound;

use crate::base::{Result, TxnId, Uuid};
use crate::format::export::{EXPORT_VERSION, row, table_name};
use crate::format::json::{hex, quoted};
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

/// Collects the text, hashes it and hands it on in pieces.
struct Writer<'s> {
    text: String,
    hasher: blake3::Hasher,
    bytes: u64,
    sink: &'s mut dyn FnMut(&[u8]) -> Result<()>,
}

impl Writer<'_> {
    fn hand_on(&mut self) -> Result<()> {
        self.hasher.update(self.text.as_bytes());
        self.bytes += self.text.len() as u64;
        (self.sink)(self.text.as_bytes())?;
        self.text.clear();
        Ok(())
    }
}

/// Writes the metadata that `reader` sees to `sink`. Fails when a row cannot be read: then fsck can tell more.
pub fn export(
    reader: &impl Reader,
    header: &ExportHeader,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<ExportSummary> {
    let txn = TxnId(reader.counter(crate::format::rows::Counter::Txn)?);
    let mut writer =
        Writer { text: String::with_capacity(PIECE + 4096), hasher: blake3::Hasher::new(), bytes: 0, sink };
    writer.text.push_str(&format!("{{\"argosfs_export\":{EXPORT_VERSION},\n\"pool\":{{\"name\":"));
    quoted(&mut writer.text, &header.name);
    writer.text.push_str(&format!(",\"uuid\":\"{}\"}},\n\"transaction\":{txn},\n\"tables\":{{", header.pool));
    let mut rows = 0;
    for (id, _) in TABLES {
        writer.text.push_str(if *id == 0 { "\n\"" } else { ",\n\"" });
        writer.text.push_str(table_name(*id));
        writer.text.push_str("\":[");
        let mut first = true;
        reader.scan_raw(*id, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, value| {
            writer.text.push_str(if first { "\n" } else { ",\n" });
            first = false;
            row(*id, key, value, &mut writer.text)?;
            rows += 1;
            if writer.text.len() >= PIECE {
                writer.hand_on()?;
            }
            Ok(Visit::Continue(()))
        })?;
        writer.text.push(']');
    }
    writer.text.push_str(&format!("}},\n\"rows\":{rows},\n"));
    writer.hand_on()?;
    let digest = *writer.hasher.finalize().as_bytes();
    writer.text.push_str("\"blake3\":\"");
    hex(&mut writer.text, &digest);
    writer.text.push_str("\"}\n");
    writer.hand_on()?;
    Ok(ExportSummary { rows, bytes: writer.bytes, txn, digest })
}
