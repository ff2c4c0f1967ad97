//! The whole metadata as one JSON document: a header, each table in order of its number with its rows in order of their
//! keys, one row to a line, and a digest of every byte before the digest's own line. `schema/export.v1.schema.json`
//! describes it. Names that are not UTF-8 appear under a key that ends in `_b64`.
//!
//! Invariants:
//! - Equal tables and equal headers give equal bytes.
//! - Nothing of a row is left out: [`super::import`] makes the same row of its line.

use super::intent::Intent;
use super::json::{Object, decimal, hex, quoted};
use super::record::{Key, Row};
use super::rows::*;
use super::table::*;
use crate::base::{Error, Result, StripeId, Timestamp, TxnId, Uuid};

/// Version of the form.
pub const EXPORT_VERSION: u64 = 1;

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

/// Makes the text of rows that come in order, hashes it and hands it on in pieces.
pub struct Exporter<'s> {
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

/// The export's name of table number `id`: that of the database without its version.
pub fn table_name(id: u8) -> &'static str {
    let name = TABLES.get(usize::from(id)).map_or("unknown", |(_, name)| name);
    name.split_once('.').map_or(name, |(name, _)| name)
}

/// Appends the row of table `table` as an object. Any bytes at all may come in.
pub fn row(table: u8, key: &[u8], row: &[u8], out: &mut String) -> Result<()> {
    macro_rules! by_table {
        ($($name:ident)*) => {
            match table {
                $($name::ID => {
                    let key = <<$name as Table>::Key as Key>::decode(key)?;
                    let row = <<$name as Table>::Row as Row>::decode(row)?;
                    let mut object = Object::begin(out);
                    $name::export(&key, &row, &mut object);
                    object.end();
                    Ok(())
                })*
                _ => Err(Error::corrupt(format!("table {table} is unknown; use a newer argosfs"))),
            }
        };
    }
    by_table! {
        Inodes Dentries Xattrs Extents Stripes StripeLive Backrefs Groups Devices Counters Orphans Intents Journal Config
        History HistoryByDeath Snapshots Decisions Policies Damage
    }
}

/// A table whose rows can be written as objects.
trait Export: Table {
    fn export(key: &Self::Key, row: &Self::Row, out: &mut Object<'_>);
}

fn time(out: &mut Object<'_>, key: &'static str, time: Timestamp) {
    out.time(key, time.seconds, time.nanos);
}

impl Export for Inodes {
    fn export(ino: &Self::Key, row: &InodeRow, out: &mut Object<'_>) {
        time(out, "atime", row.atime);
        out.number("birth", row.birth.0);
        time(out, "btime", row.btime);
        out.number("content", row.content);
        time(out, "ctime", row.ctime);
        out.number("entries", row.entries);
        out.number("flags", row.flags);
        out.number("gid", row.gid);
        out.number("ino", ino.0);
        out.number("mode", row.mode);
        time(out, "mtime", row.mtime);
        out.number("nlink", row.nlink);
        out.number("parent", row.parent.0);
        out.number("policy", row.policy);
        out.number("project", row.project);
        out.number("rdev", row.rdev);
        out.number("size", row.size);
        out.number("uid", row.uid);
    }
}

impl Export for Dentries {
    fn export(key: &DentryKey, row: &DentryRow, out: &mut Object<'_>) {
        out.number("birth", row.birth.0).number("cookie", key.cookie).number("ino", row.ino.0).number("kind", row.kind);
        out.name("name", "name_b64", &row.name).number("parent", key.parent.0);
    }
}

impl Export for Xattrs {
    fn export(key: &XattrKey, row: &XattrRow, out: &mut Object<'_>) {
        out.number("birth", row.birth.0).number("ino", key.ino.0).name("name", "name_b64", &key.name);
        out.number("piece", key.piece).number("total", row.total).base64("value_b64", &row.value);
    }
}

impl Export for Extents {
    fn export(key: &ExtentKey, row: &ExtentRow, out: &mut Object<'_>) {
        out.number("birth", row.birth.0);
        if let ExtentBody::Inline(bytes) = &row.body {
            out.base64("inline_b64", bytes);
        }
        out.number("ino", key.ino.0);
        let kind = match &row.body {
            ExtentBody::Inline(_) => "inline",
            ExtentBody::Run(_) => "run",
            ExtentBody::Reserved => "reserved",
        };
        out.text("kind", kind).number("length", row.length).number("offset", key.offset);
        if let ExtentBody::Run(run) = &row.body {
            out.object("run", |out| {
                out.number("codec", run.codec).number("inside", run.inside);
                out.number("key_generation", run.key_generation).number("logical", run.logical);
                out.hex("nonce", &run.nonce).number("start", run.start).number("stored", run.stored);
                out.number("stripe", run.stripe.0).hex("tag", &run.tag);
            });
        }
    }
}

impl Export for Stripes {
    fn export(id: &Self::Key, row: &StripeRow, out: &mut Object<'_>) {
        out.number("birth", row.birth.0).number("granule_shift", row.granule_shift);
        out.number("incarnation", row.incarnation.0).number("k", row.k).number("m", row.m);
        out.number("payload_bytes", row.payload_bytes);
        out.array("placements", &row.placements, |out, placement| {
            if *placement == Placement::NONE {
                return out.push_str("null");
            }
            out.push('[');
            decimal(out, placement.device.0.into());
            out.push(',');
            decimal(out, placement.block.0);
            out.push(']');
        });
        out.number("shard_blocks", row.shard_blocks);
        out.text(
            "state",
            match row.state {
                StripeState::Whole => "whole",
                StripeState::Degraded => "degraded",
            },
        );
        out.number("stripe", id.0).array("sums", &row.sums, |out, sum| decimal(out, (*sum).into()));
    }
}

impl Export for StripeLive {
    fn export(id: &Self::Key, row: &StripeLiveRow, out: &mut Object<'_>) {
        out.number("live", row.live).number("payload", row.payload).boolean("shared", row.shared != 0);
        out.number("stripe", id.0);
    }
}

impl Export for Backrefs {
    fn export(key: &BackrefKey, row: &BackrefRow, out: &mut Object<'_>) {
        out.number("birth", key.birth.0).number("ino", key.ino.0).number("length", row.length);
        out.number("offset", key.offset).number("start", row.start).number("stripe", key.stripe.0);
    }
}

impl Export for Groups {
    fn export(key: &GroupKey, row: &Vec<u8>, out: &mut Object<'_>) {
        out.base64("bitmap_b64", row).number("device", key.device.0).number("group", key.group);
        out.number("part", key.part);
    }
}

impl Export for Devices {
    fn export(id: &Self::Key, row: &DeviceRow, out: &mut Object<'_>) {
        out.number("blocks", row.blocks).number("checksum_errors", row.checksum_errors).number("class", row.class);
        out.number("device", id.0).number("failure_domain", row.failure_domain);
        out.number("read_errors", row.read_errors).number("read_latency_us_ewma", row.read_latency_us_ewma);
        out.number("risk_milli", row.risk_milli).number("state", row.state).number("tier", row.tier);
        out.number("used_blocks", row.used_blocks).text("uuid", &crate::base::Uuid(row.uuid).to_string());
        out.number("weight_milli", row.weight_milli).number("write_errors", row.write_errors);
        out.number("write_latency_us_ewma", row.write_latency_us_ewma);
    }
}

impl Export for Counters {
    fn export(id: &u8, value: &u64, out: &mut Object<'_>) {
        out.number("counter", *id).number("value", *value);
    }
}

impl Export for Orphans {
    fn export(ino: &Self::Key, _: &(), out: &mut Object<'_>) {
        out.number("ino", ino.0);
    }
}

impl Export for Intents {
    fn export(id: &u64, intent: &Intent, out: &mut Object<'_>) {
        match *intent {
            Intent::Truncate { ino, from, txn } => {
                out.number("from", from).number("ino", ino).number("intent", *id).text("kind", "truncate");
                out.number("txn", txn);
            }
            Intent::Rebuild { stripe } => {
                out.number("intent", *id).text("kind", "rebuild").number("stripe", stripe);
            }
            Intent::Destage { ino, offset } => {
                out.number("ino", ino).number("intent", *id).text("kind", "destage").number("offset", offset);
            }
            Intent::Evacuate { device } => {
                out.number("device", device).number("intent", *id).text("kind", "evacuate");
            }
        }
    }
}

impl Export for Journal {
    fn export(seq: &u64, row: &JournalRow, out: &mut Object<'_>) {
        out.hex("chain", &row.chain).object("operation", |out| operation(&row.operation, out)).number("seq", *seq);
        out.time("time", row.seconds, row.nanos).number("txn", row.txn).number("uid", row.uid);
    }
}

fn operation(operation: &JournalOp, out: &mut Object<'_>) {
    match operation {
        JournalOp::Create { parent, name, ino, mode } => {
            out.number("ino", *ino).text("kind", "create").number("mode", *mode);
            out.name("name", "name_b64", name).number("parent", *parent);
        }
        JournalOp::Link { ino, parent, name } => named(out, "link", *ino, name, *parent),
        JournalOp::Unlink { parent, name, ino } => named(out, "unlink", *ino, name, *parent),
        JournalOp::Rmdir { parent, name, ino } => named(out, "rmdir", *ino, name, *parent),
        JournalOp::Rename { from, name, to, new_name, ino, flags } => {
            out.number("flags", *flags).number("from", *from).number("ino", *ino).text("kind", "rename");
            out.name("name", "name_b64", name).name("new_name", "new_name_b64", new_name).number("to", *to);
        }
        JournalOp::SetAttr { ino, mask, mode, uid, gid, size } => {
            out.number("gid", *gid).number("ino", *ino).text("kind", "setattr").number("mask", *mask);
            out.number("mode", *mode).number("size", *size).number("uid", *uid);
        }
        JournalOp::SetXattr { ino, name, length } => {
            out.number("ino", *ino).text("kind", "setxattr").number("length", *length);
            out.name("name", "name_b64", name);
        }
        JournalOp::RemoveXattr { ino, name } => {
            out.number("ino", *ino).text("kind", "removexattr").name("name", "name_b64", name);
        }
        JournalOp::Write { ino, bytes, extents, size } => {
            out.number("bytes", *bytes).number("extents", *extents).number("ino", *ino).text("kind", "write");
            out.number("size", *size);
        }
        JournalOp::Fallocate { ino, mode, offset, length } => {
            out.number("ino", *ino).text("kind", "fallocate").number("length", *length).number("mode", *mode);
            out.number("offset", *offset);
        }
        JournalOp::CopyRange { from, to, from_offset, to_offset, length } => {
            out.number("from", *from).number("from_offset", *from_offset).text("kind", "copy_range");
            out.number("length", *length).number("to", *to).number("to_offset", *to_offset);
        }
        JournalOp::Reclaim { ino } => {
            out.number("ino", *ino).text("kind", "reclaim");
        }
        JournalOp::Device { id, action } => {
            out.name("action", "action_b64", action).number("device", *id).text("kind", "device");
        }
        JournalOp::Recover { archive, stripes } => {
            out.number("archive", *archive).text("kind", "recover").number("stripes", *stripes);
        }
        JournalOp::Repair { issue, what } => {
            out.name("issue", "issue_b64", issue).text("kind", "repair").name("what", "what_b64", what);
        }
    }
}

fn named(out: &mut Object<'_>, kind: &str, ino: u64, name: &[u8], parent: u64) {
    out.number("ino", ino).text("kind", kind).name("name", "name_b64", name).number("parent", parent);
}

impl Export for Config {
    fn export(key: &ConfigKey, value: &Vec<u8>, out: &mut Object<'_>) {
        out.name("name", "name_b64", &key.name).base64("value_b64", value);
    }
}

impl Export for History {
    fn export(key: &HistoryKey, row: &HistoryRow, out: &mut Object<'_>) {
        out.number("death", row.death.0).boolean("present", row.present != 0).base64("row_b64", &row.row);
        out.base64("row_key_b64", &key.row_key).number("table", key.table);
    }
}

impl Export for HistoryByDeath {
    fn export(key: &HistoryByDeathKey, _: &(), out: &mut Object<'_>) {
        out.number("death", key.death.0).base64("row_key_b64", &key.row_key).number("table", key.table);
    }
}

impl Export for Snapshots {
    fn export(key: &SnapshotKey, row: &SnapshotRow, out: &mut Object<'_>) {
        time(out, "created", row.created);
        out.name("name", "name_b64", &key.name).number("txn", row.txn.0).number("view", row.view);
    }
}

impl Export for Decisions {
    fn export(seq: &u64, row: &Vec<u8>, out: &mut Object<'_>) {
        out.base64("row_b64", row).number("seq", *seq);
    }
}

impl Export for Policies {
    fn export(id: &u64, row: &Vec<u8>, out: &mut Object<'_>) {
        out.number("policy", *id).base64("row_b64", row);
    }
}

impl Export for Damage {
    fn export(id: &StripeId, row: &DamageRow, out: &mut Object<'_>) {
        out.number("bad", row.bad);
        time(out, "found", row.found);
        out.number("stripe", id.0);
    }
}
