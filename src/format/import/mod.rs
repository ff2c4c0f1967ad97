//! An export of the whole metadata, read back: the exact inverse of [`super::export`]. What an export would not have
//! written just so is refused, so there is one text for each state and one state for each text.
//!
//! Invariants:
//! - Any bytes at all may come in, in pieces of any length; at most one line and one piece are held.
//! - A row that was handed out, exported again, is its line; keys ascend; tables come in their order.
//! - What was handed out counts when [`Decoder::finish`] succeeds: then the digest and the count of rows were right.

mod rows;
#[cfg(test)]
mod tests;

use super::export::{EXPORT_VERSION, ExportSummary, table_name};
use super::json::{Object, hex};
use super::parsed::Parsed;
use super::table::TABLES;
use crate::base::{Error, Result, TxnId, Uuid};

pub use rows::{Stored, row};

/// Longest line that is believed. The row of the widest stripe there can be has 3 MiB.
pub const LINE_MAX: usize = 4 << 20;

/// What an export is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    pub pool: Uuid,
    /// The name of the pool when it was exported.
    pub name: String,
    /// The newest transaction in it.
    pub txn: TxnId,
}

/// A part of an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item<'a> {
    Head(&'a Head),
    Row { table: u8, key: &'a [u8], row: &'a [u8] },
}

/// What the next line is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Expected {
    #[default]
    Version,
    Pool,
    Transaction,
    Tables,
    /// The beginning of the table in this place.
    Table(usize),
    /// A row of it.
    Row(usize),
    Count,
    Digest,
    Nothing,
}

/// What follows a row, or the beginning of a table.
enum Behind {
    Row,
    Table,
    End,
}

/// Takes an export apart as its bytes come in.
#[derive(Default, Debug)]
pub struct Decoder {
    /// The beginning of a line whose end is not there yet.
    pending: Vec<u8>,
    expected: Expected,
    /// Number of the line that is looked at, from 1 on.
    line: u64,
    pool: Option<(Uuid, String)>,
    txn: TxnId,
    rows: u64,
    bytes: u64,
    /// The last key of the table.
    last: Option<Vec<u8>>,
    stored: Stored,
    hasher: blake3::Hasher,
    digest: [u8; 32],
}

impl Decoder {
    /// Takes the next bytes; `visit` is given what they complete.
    pub fn push(&mut self, bytes: &[u8], visit: &mut dyn FnMut(Item<'_>) -> Result<()>) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, behind) = rest.split_at(end);
            rest = behind.get(1..).unwrap_or_default();
            self.bounded(line)?;
            if self.pending.is_empty() {
                self.line(line, visit)?;
            } else {
                let mut whole = std::mem::take(&mut self.pending);
                whole.extend_from_slice(line);
                self.line(&whole, visit)?;
                whole.clear();
                self.pending = whole;
            }
        }
        self.bounded(rest)?;
        self.pending.extend_from_slice(rest);
        Ok(())
    }

    /// Fails when the line that goes on with `more` is too long.
    fn bounded(&self, more: &[u8]) -> Result<()> {
        if self.pending.len() + more.len() > LINE_MAX {
            return Err(not_an_export(format!("line {} has more than {LINE_MAX} bytes", self.line + 1)));
        }
        Ok(())
    }

    /// Takes a line without its end.
    fn line(&mut self, line: &[u8], visit: &mut dyn FnMut(Item<'_>) -> Result<()>) -> Result<()> {
        self.line += 1;
        if self.expected != Expected::Digest {
            self.hasher.update(line);
            self.hasher.update(b"\n");
        }
        let Ok(line) = std::str::from_utf8(line) else {
            return Err(not_an_export(format!("line {} is not UTF-8", self.line)));
        };
        let Some(next) = self.take(line, visit)? else {
            let shown: String = line.chars().take(60).collect();
            return Err(not_an_export(format!("line {} should be {}, not {shown:?}", self.line, self.expected.text())));
        };
        self.expected = next;
        Ok(())
    }

    /// Takes a line, and tells what the next one must be; `None` when it is not what it should be.
    fn take(&mut self, line: &str, visit: &mut dyn FnMut(Item<'_>) -> Result<()>) -> Result<Option<Expected>> {
        Ok(match self.expected {
            Expected::Version => match line.strip_prefix("{\"argosfs_export\":").and_then(|rest| number(rest, ",")) {
                Some(EXPORT_VERSION) => Some(Expected::Pool),
                Some(version) => {
                    return Err(Error::Unavailable(format!(
                        "the export has version {version}, this argosfs reads version {EXPORT_VERSION}"
                    )));
                }
                None => None,
            },
            Expected::Pool => {
                self.pool = line.strip_prefix("\"pool\":").and_then(|rest| pool(rest.strip_suffix(',')?));
                self.pool.is_some().then_some(Expected::Transaction)
            }
            Expected::Transaction => {
                let txn = line.strip_prefix("\"transaction\":").and_then(|rest| number(rest, ","));
                let (Some(txn), Some((pool, name))) = (txn, self.pool.take()) else { return Ok(None) };
                self.txn = TxnId(txn);
                visit(Item::Head(&Head { pool, name, txn: self.txn }))?;
                Some(Expected::Tables)
            }
            Expected::Tables => (line == "\"tables\":{").then_some(Expected::Table(0)),
            Expected::Table(at) => {
                let name = table_of(at).map(table_name).unwrap_or_default();
                let rest = line.strip_prefix('"').and_then(|rest| rest.strip_prefix(name)?.strip_prefix("\":["));
                self.last = None;
                match rest {
                    Some("") => Some(Expected::Row(at)),
                    Some("],") if !is_last(at) => Some(Expected::Table(at + 1)),
                    Some("]},") if is_last(at) => Some(Expected::Count),
                    _ => None,
                }
            }
            Expected::Row(at) => {
                let (Some(table), Some((text, behind))) = (table_of(at), row_and_behind(line, is_last(at))) else {
                    return Ok(None);
                };
                self.row(table, text, visit)?;
                Some(match behind {
                    Behind::Row => Expected::Row(at),
                    Behind::Table => Expected::Table(at + 1),
                    Behind::End => Expected::Count,
                })
            }
            Expected::Count => match line.strip_prefix("\"rows\":").and_then(|rest| number(rest, ",")) {
                Some(rows) if rows == self.rows => Some(Expected::Digest),
                Some(rows) => return Err(not_an_export(format!("it should have {rows} rows and has {}", self.rows))),
                None => None,
            },
            Expected::Digest => {
                self.digest = *self.hasher.finalize().as_bytes();
                let mut right = "\"blake3\":\"".to_owned();
                hex(&mut right, &self.digest);
                right.push_str("\"}");
                if line != right {
                    return Err(not_an_export("its digest is not that of its content".to_owned()));
                }
                Some(Expected::Nothing)
            }
            Expected::Nothing => None,
        })
    }

    fn row(&mut self, table: u8, text: &str, visit: &mut dyn FnMut(Item<'_>) -> Result<()>) -> Result<()> {
        let name = table_name(table);
        row(table, text, &mut self.stored).map_err(|error| match error {
            Error::Corrupt(why) => {
                not_an_export(format!("the row of table {name} in line {} is refused: {why}", self.line))
            }
            other => other,
        })?;
        if self.last.as_ref().is_some_and(|last| *last >= self.stored.key) {
            return Err(not_an_export(format!("the row of table {name} in line {} is out of order", self.line)));
        }
        self.rows += 1;
        visit(Item::Row { table, key: &self.stored.key, row: &self.stored.row })?;
        self.last.get_or_insert_default().clone_from(&self.stored.key);
        Ok(())
    }

    /// Fails unless the export was whole; what it was.
    pub fn finish(self) -> Result<ExportSummary> {
        if self.expected != Expected::Nothing || !self.pending.is_empty() {
            return Err(not_an_export(format!("it ends in line {}, where it should not", self.line + 1)));
        }
        Ok(ExportSummary { rows: self.rows, bytes: self.bytes, txn: self.txn, digest: self.digest })
    }
}

impl Expected {
    fn text(self) -> String {
        match self {
            Expected::Version => format!("{{\"argosfs_export\":{EXPORT_VERSION},"),
            Expected::Pool => "\"pool\":{\"name\":..,\"uuid\":..},".to_owned(),
            Expected::Transaction => "\"transaction\":NUMBER,".to_owned(),
            Expected::Tables => "\"tables\":{".to_owned(),
            Expected::Table(at) => {
                format!("the beginning of table {}", table_of(at).map(table_name).unwrap_or_default())
            }
            Expected::Row(at) => format!("a row of table {}", table_of(at).map(table_name).unwrap_or_default()),
            Expected::Count => "\"rows\":NUMBER,".to_owned(),
            Expected::Digest => "the digest".to_owned(),
            Expected::Nothing => "behind the end".to_owned(),
        }
    }
}

fn table_of(at: usize) -> Option<u8> {
    TABLES.get(at).map(|(table, _)| *table)
}

fn is_last(at: usize) -> bool {
    at + 1 == TABLES.len()
}

/// The row in a line, and what its end says of the next one. A row ends with a brace.
fn row_and_behind(line: &str, last: bool) -> Option<(&str, Behind)> {
    let ended = if last { (line.strip_suffix("]},"), Behind::End) } else { (line.strip_suffix("],"), Behind::Table) };
    match ended {
        (Some(row), behind) if row.ends_with('}') => Some((row, behind)),
        _ => line.strip_suffix(',').filter(|row| row.ends_with('}')).map(|row| (row, Behind::Row)),
    }
}

/// A number as an export has it, in front of `end`.
fn number(text: &str, end: &str) -> Option<u64> {
    let digits = text.strip_suffix(end)?;
    let number: u64 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

/// Id and name of the pool, if they are written as an export has them.
fn pool(text: &str) -> Option<(Uuid, String)> {
    let parsed = Parsed::of(text).ok()?;
    let (name, uuid) = (parsed.text("name").ok()?, Uuid::parse(&parsed.text("uuid").ok()?)?);
    let mut again = String::new();
    let mut object = Object::begin(&mut again);
    object.text("name", &name).text("uuid", &uuid.to_string());
    object.end();
    (again == text).then_some((uuid, name))
}

fn not_an_export(why: String) -> Error {
    Error::corrupt(format!("this is not an export as `argosfs export-meta` wrote it: {why}; use another copy of it"))
}
