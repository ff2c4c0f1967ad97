//! A line of an export as the row it was made of: the other direction of [`super::super::export::row`], table by table.

use super::super::export;
use super::super::intent::Intent;
use super::super::parsed::Parsed;
use super::super::record::{Key, Row};
use super::super::rows::*;
use super::super::table::*;
use crate::base::{BlockNo, DeviceId, Error, Incarnation, Ino, Result, StripeId, Timestamp, TxnId, Uuid};

/// Longest key and longest row that are believed, as in an archive.
const KEY_MAX: usize = u16::MAX as usize;
const ROW_MAX: usize = 1 << 20;

/// The stored form of a row.
#[derive(Default, Debug)]
pub struct Stored {
    pub key: Vec<u8>,
    pub row: Vec<u8>,
    /// What an export has in its place.
    text: String,
}

/// Reads the row of table `table` that an export has as `text`, into `stored`. Any text at all may come in.
///
/// # Errors
/// [`Error::Corrupt`] unless an export of that row is exactly `text`.
pub fn row(table: u8, text: &str, stored: &mut Stored) -> Result<()> {
    stored.key.clear();
    stored.row.clear();
    stored.text.clear();
    let parsed = Parsed::of(text)?;
    macro_rules! by_table {
        ($($name:ident)*) => {
            match table {
                $($name::ID => {
                    let (key, row) = $name::import(&parsed)?;
                    Key::encode(&key, &mut stored.key);
                    Row::encode(&row, &mut stored.row);
                })*
                _ => return Err(Error::corrupt(format!("table {table} is unknown; use a newer argosfs"))),
            }
        };
    }
    by_table! {
        Inodes Dentries Xattrs Extents Stripes StripeLive Backrefs Groups Devices Counters Orphans Intents Journal Config
        History HistoryByDeath Snapshots Decisions Policies Damage
    }
    if stored.key.len() > KEY_MAX || stored.row.len() > ROW_MAX {
        return Err(Error::corrupt("it is longer than any row"));
    }
    // Whatever else a row must be is demanded here, because exports are made of rows that can be decoded.
    export::row(table, &stored.key, &stored.row, &mut stored.text)?;
    if stored.text != text {
        return Err(Error::corrupt("it is not written as an export has it"));
    }
    Ok(())
}

/// A table whose rows can be read from objects.
trait Import: Table {
    fn import(from: &Parsed<'_>) -> Result<(Self::Key, Self::Row)>;
}

fn time(from: &Parsed<'_>, key: &str) -> Result<Timestamp> {
    let (seconds, nanos) = from.time(key)?;
    Ok(Timestamp { seconds, nanos })
}

fn ino(from: &Parsed<'_>, key: &str) -> Result<Ino> {
    from.number(key).map(Ino)
}

fn txn(from: &Parsed<'_>, key: &str) -> Result<TxnId> {
    from.number(key).map(TxnId)
}

fn stripe(from: &Parsed<'_>) -> Result<StripeId> {
    from.number("stripe").map(StripeId)
}

fn device(from: &Parsed<'_>) -> Result<DeviceId> {
    from.number("device").map(DeviceId)
}

fn name(from: &Parsed<'_>) -> Result<Vec<u8>> {
    from.name("name", "name_b64")
}

impl Import for Inodes {
    fn import(from: &Parsed<'_>) -> Result<(Ino, InodeRow)> {
        let row = InodeRow {
            mode: from.number("mode")?,
            uid: from.number("uid")?,
            gid: from.number("gid")?,
            project: from.number("project")?,
            nlink: from.number("nlink")?,
            rdev: from.number("rdev")?,
            size: from.number("size")?,
            content: from.number("content")?,
            atime: time(from, "atime")?,
            mtime: time(from, "mtime")?,
            ctime: time(from, "ctime")?,
            btime: time(from, "btime")?,
            flags: from.number("flags")?,
            policy: from.number("policy")?,
            parent: ino(from, "parent")?,
            entries: from.number("entries")?,
            birth: txn(from, "birth")?,
        };
        Ok((ino(from, "ino")?, row))
    }
}

impl Import for Dentries {
    fn import(from: &Parsed<'_>) -> Result<(DentryKey, DentryRow)> {
        let key = DentryKey { parent: ino(from, "parent")?, cookie: from.number("cookie")? };
        let (kind, birth) = (from.number("kind")?, txn(from, "birth")?);
        Ok((key, DentryRow { ino: ino(from, "ino")?, kind, birth, name: name(from)? }))
    }
}

impl Import for Xattrs {
    fn import(from: &Parsed<'_>) -> Result<(XattrKey, XattrRow)> {
        let key = XattrKey { ino: ino(from, "ino")?, name: name(from)?, piece: from.number("piece")? };
        let value = from.base64("value_b64")?;
        Ok((key, XattrRow { total: from.number("total")?, birth: txn(from, "birth")?, value }))
    }
}

impl Import for Extents {
    fn import(from: &Parsed<'_>) -> Result<(ExtentKey, ExtentRow)> {
        let body = match from.text("kind")?.as_str() {
            "inline" => ExtentBody::Inline(from.base64("inline_b64")?),
            "run" => ExtentBody::Run(run(&from.object("run")?)?),
            "reserved" => ExtentBody::Reserved,
            kind => return Err(unknown(kind)),
        };
        let key = ExtentKey { ino: ino(from, "ino")?, offset: from.number("offset")? };
        Ok((key, ExtentRow { length: from.number("length")?, birth: txn(from, "birth")?, body }))
    }
}

fn run(from: &Parsed<'_>) -> Result<Run> {
    Ok(Run {
        stripe: stripe(from)?,
        start: from.number("start")?,
        stored: from.number("stored")?,
        logical: from.number("logical")?,
        inside: from.number("inside")?,
        codec: from.number("codec")?,
        key_generation: from.number("key_generation")?,
        nonce: from.hex("nonce")?,
        tag: from.hex("tag")?,
    })
}

impl Import for Stripes {
    fn import(from: &Parsed<'_>) -> Result<(StripeId, StripeRow)> {
        let placement = |place: Option<(u16, u64)>| match place {
            Some((device, block)) => Placement { device: DeviceId(device), block: BlockNo(block) },
            None => Placement::NONE,
        };
        let row = StripeRow {
            k: from.number("k")?,
            m: from.number("m")?,
            shard_blocks: from.number("shard_blocks")?,
            granule_shift: from.number("granule_shift")?,
            state: match from.text("state")?.as_str() {
                "whole" => StripeState::Whole,
                "degraded" => StripeState::Degraded,
                state => return Err(unknown(state)),
            },
            birth: txn(from, "birth")?,
            incarnation: from.number("incarnation").map(Incarnation)?,
            payload_bytes: from.number("payload_bytes")?,
            placements: from.array("placements")?.into_iter().map(placement).collect(),
            sums: from.array("sums")?,
        };
        // It is stored without the lengths of its lists: they follow from the geometry.
        if !row.is_possible() || row.placements.len() != row.width() || row.sums.len() != row.width() * row.granules() {
            return Err(Error::corrupt("the geometry of the stripe is impossible"));
        }
        Ok((stripe(from)?, row))
    }
}

impl Import for StripeLive {
    fn import(from: &Parsed<'_>) -> Result<(StripeId, StripeLiveRow)> {
        let (live, payload) = (from.number("live")?, from.number("payload")?);
        Ok((stripe(from)?, StripeLiveRow { live, payload, shared: from.boolean("shared")?.into() }))
    }
}

impl Import for Backrefs {
    fn import(from: &Parsed<'_>) -> Result<(BackrefKey, BackrefRow)> {
        let (stripe, ino, birth) = (stripe(from)?, ino(from, "ino")?, txn(from, "birth")?);
        let row = BackrefRow { start: from.number("start")?, length: from.number("length")? };
        Ok((BackrefKey { stripe, ino, offset: from.number("offset")?, birth }, row))
    }
}

impl Import for Groups {
    fn import(from: &Parsed<'_>) -> Result<(GroupKey, Vec<u8>)> {
        let key = GroupKey { device: device(from)?, group: from.number("group")?, part: from.number("part")? };
        Ok((key, from.base64("bitmap_b64")?))
    }
}

impl Import for Devices {
    fn import(from: &Parsed<'_>) -> Result<(DeviceId, DeviceRow)> {
        let uuid = Uuid::parse(&from.text("uuid")?).ok_or_else(|| Error::corrupt("its \"uuid\" is none"))?;
        let row = DeviceRow {
            uuid: uuid.0,
            state: from.number("state")?,
            class: from.number("class")?,
            tier: from.number("tier")?,
            weight_milli: from.number("weight_milli")?,
            failure_domain: from.number("failure_domain")?,
            blocks: from.number("blocks")?,
            used_blocks: from.number("used_blocks")?,
            read_errors: from.number("read_errors")?,
            write_errors: from.number("write_errors")?,
            checksum_errors: from.number("checksum_errors")?,
            read_latency_us_ewma: from.number("read_latency_us_ewma")?,
            write_latency_us_ewma: from.number("write_latency_us_ewma")?,
            risk_milli: from.number("risk_milli")?,
        };
        Ok((device(from)?, row))
    }
}

impl Import for Counters {
    fn import(from: &Parsed<'_>) -> Result<(u8, u64)> {
        Ok((from.number("counter")?, from.number("value")?))
    }
}

impl Import for Orphans {
    fn import(from: &Parsed<'_>) -> Result<(Ino, ())> {
        Ok((ino(from, "ino")?, ()))
    }
}

impl Import for Intents {
    fn import(from: &Parsed<'_>) -> Result<(u64, Intent)> {
        let intent = match from.text("kind")?.as_str() {
            "truncate" => {
                Intent::Truncate { ino: from.number("ino")?, from: from.number("from")?, txn: from.number("txn")? }
            }
            "rebuild" => Intent::Rebuild { stripe: from.number("stripe")? },
            "destage" => Intent::Destage { ino: from.number("ino")?, offset: from.number("offset")? },
            "evacuate" => Intent::Evacuate { device: from.number("device")? },
            kind => return Err(unknown(kind)),
        };
        Ok((from.number("intent")?, intent))
    }
}

impl Import for Journal {
    fn import(from: &Parsed<'_>) -> Result<(u64, JournalRow)> {
        let (seconds, nanos) = from.time("time")?;
        let row = JournalRow {
            seconds,
            nanos,
            uid: from.number("uid")?,
            txn: from.number("txn")?,
            operation: operation(&from.object("operation")?)?,
            chain: from.hex("chain")?,
        };
        Ok((from.number("seq")?, row))
    }
}

fn operation(from: &Parsed<'_>) -> Result<JournalOp> {
    let number = |key| from.number::<u64>(key);
    let small = |key| from.number::<u32>(key);
    Ok(match from.text("kind")?.as_str() {
        "create" => JournalOp::Create {
            parent: number("parent")?,
            name: name(from)?,
            ino: number("ino")?,
            mode: small("mode")?,
        },
        "link" => JournalOp::Link { ino: number("ino")?, parent: number("parent")?, name: name(from)? },
        "unlink" => JournalOp::Unlink { parent: number("parent")?, name: name(from)?, ino: number("ino")? },
        "rmdir" => JournalOp::Rmdir { parent: number("parent")?, name: name(from)?, ino: number("ino")? },
        "rename" => JournalOp::Rename {
            from: number("from")?,
            name: name(from)?,
            to: number("to")?,
            new_name: from.name("new_name", "new_name_b64")?,
            ino: number("ino")?,
            flags: small("flags")?,
        },
        "setattr" => JournalOp::SetAttr {
            ino: number("ino")?,
            mask: small("mask")?,
            mode: small("mode")?,
            uid: small("uid")?,
            gid: small("gid")?,
            size: number("size")?,
        },
        "setxattr" => JournalOp::SetXattr { ino: number("ino")?, name: name(from)?, length: small("length")? },
        "removexattr" => JournalOp::RemoveXattr { ino: number("ino")?, name: name(from)? },
        "write" => JournalOp::Write {
            ino: number("ino")?,
            bytes: number("bytes")?,
            extents: small("extents")?,
            size: number("size")?,
        },
        "fallocate" => JournalOp::Fallocate {
            ino: number("ino")?,
            mode: small("mode")?,
            offset: number("offset")?,
            length: number("length")?,
        },
        "copy_range" => JournalOp::CopyRange {
            from: number("from")?,
            to: number("to")?,
            from_offset: number("from_offset")?,
            to_offset: number("to_offset")?,
            length: number("length")?,
        },
        "reclaim" => JournalOp::Reclaim { ino: number("ino")? },
        "device" => JournalOp::Device { id: from.number("device")?, action: from.name("action", "action_b64")? },
        "recover" => JournalOp::Recover { archive: number("archive")?, stripes: number("stripes")? },
        "repair" => JournalOp::Repair { issue: from.name("issue", "issue_b64")?, what: from.name("what", "what_b64")? },
        kind => return Err(unknown(kind)),
    })
}

impl Import for Config {
    fn import(from: &Parsed<'_>) -> Result<(ConfigKey, Vec<u8>)> {
        Ok((ConfigKey { name: name(from)? }, from.base64("value_b64")?))
    }
}

impl Import for History {
    fn import(from: &Parsed<'_>) -> Result<(HistoryKey, HistoryRow)> {
        let key = HistoryKey { table: from.number("table")?, row_key: from.base64("row_key_b64")? };
        let (death, present) = (txn(from, "death")?, from.boolean("present")?.into());
        Ok((key, HistoryRow { death, present, row: from.base64("row_b64")? }))
    }
}

impl Import for HistoryByDeath {
    fn import(from: &Parsed<'_>) -> Result<(HistoryByDeathKey, ())> {
        let (death, table) = (txn(from, "death")?, from.number("table")?);
        Ok((HistoryByDeathKey { death, table, row_key: from.base64("row_key_b64")? }, ()))
    }
}

impl Import for Snapshots {
    fn import(from: &Parsed<'_>) -> Result<(SnapshotKey, SnapshotRow)> {
        let row = SnapshotRow { txn: txn(from, "txn")?, created: time(from, "created")?, view: from.number("view")? };
        Ok((SnapshotKey { name: name(from)? }, row))
    }
}

impl Import for Decisions {
    fn import(from: &Parsed<'_>) -> Result<(u64, Vec<u8>)> {
        Ok((from.number("seq")?, from.base64("row_b64")?))
    }
}

impl Import for Policies {
    fn import(from: &Parsed<'_>) -> Result<(u64, Vec<u8>)> {
        Ok((from.number("policy")?, from.base64("row_b64")?))
    }
}

impl Import for Damage {
    fn import(from: &Parsed<'_>) -> Result<(StripeId, DamageRow)> {
        Ok((stripe(from)?, DamageRow { found: time(from, "found")?, bad: from.number("bad")? }))
    }
}

fn unknown(kind: &str) -> Error {
    Error::corrupt(format!("{kind:.40?} is unknown; use a newer argosfs"))
}
