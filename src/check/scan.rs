//! Reading rows that may be damaged: one that cannot be decoded is as good as absent here, and reported once by
//! [`every_row`].

use std::collections::BTreeMap;
use std::ops::Bound;

use super::issue::{Findings, Issue};
use super::plan::Fix;
use crate::base::Result;
use crate::format::export::table_name;
use crate::format::record::{Key, Row};
use crate::format::rows::Counter;
use crate::format::table::*;
use crate::meta::{Reader, Visit};

/// Visits every row of a table that can be decoded; returns how many rows the table has.
pub fn rows<T: Table>(reader: &impl Reader, mut visit: impl FnMut(T::Key, T::Row) -> Result<()>) -> Result<u64> {
    let mut count = 0;
    reader.scan_raw(T::ID, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, row| {
        count += 1;
        if let (Ok(key), Ok(row)) = (T::Key::decode(key), T::Row::decode(row)) {
            visit(key, row)?;
        }
        Ok(Visit::Continue(()))
    })?;
    Ok(count)
}

/// Visits the rows from `low` to before `high` that can be decoded.
pub fn range<T: Table>(
    reader: &impl Reader,
    low: &T::Key,
    high: &T::Key,
    mut visit: impl FnMut(T::Key, T::Row) -> Result<Visit>,
) -> Result<()> {
    let (mut from, mut to) = (Vec::new(), Vec::new());
    low.encode(&mut from);
    high.encode(&mut to);
    let bounds = (Bound::Included(from.as_slice()), Bound::Excluded(to.as_slice()));
    reader.scan_raw(T::ID, bounds, false, &mut |key, row| match (T::Key::decode(key), T::Row::decode(row)) {
        (Ok(key), Ok(row)) => visit(key, row),
        _ => Ok(Visit::Continue(())),
    })
}

/// The row at `key`, if there is one that can be decoded.
pub fn find<T: Table>(reader: &impl Reader, key: &T::Key) -> Result<Option<T::Row>> {
    let mut bytes = Vec::with_capacity(64);
    key.encode(&mut bytes);
    let mut found = None;
    reader.read_raw(T::ID, &bytes, &mut |row| {
        found = T::Row::decode(row).ok();
        Ok(())
    })?;
    Ok(found)
}

/// The value of a counter; 0 when there is none that can be read.
pub fn counter(reader: &impl Reader, counter: Counter) -> Result<u64> {
    Ok(find::<Counters>(reader, &(counter as u8))?.unwrap_or(0))
}

/// Whether a table has no rows.
pub fn is_empty<T: Table>(reader: &impl Reader) -> Result<bool> {
    let mut empty = true;
    reader.scan_raw(T::ID, (Bound::Unbounded, Bound::Unbounded), false, &mut |_, _| {
        empty = false;
        Ok(Visit::Break(()))
    })?;
    Ok(empty)
}

/// Keys of counters that nothing else tells.
const ESSENTIAL: &[&[u8]] = &[&[Counter::Txn as u8], &[Counter::SchemaVersion as u8]];

/// Decodes every row of every table. Returns how many there are of each.
pub fn every_row(reader: &impl Reader, findings: &mut Findings) -> Result<BTreeMap<u8, u64>> {
    fn table<T: Table>(reader: &impl Reader, findings: &mut Findings) -> Result<u64> {
        let mut count = 0;
        reader.scan_raw(T::ID, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, row| {
            count += 1;
            if let Err(error) = T::Key::decode(key).and_then(|_| T::Row::decode(row)) {
                let what = || {
                    let mut text = format!("table {}, key ", table_name(T::ID));
                    crate::format::json::hex(&mut text, key);
                    format!("{text}: {error}")
                };
                match T::ID {
                    // Without these the pool would not open at all.
                    Counters::ID if ESSENTIAL.contains(&key) => findings.add(Issue::RowUndecodable, what),
                    Journal::ID => findings.mend(Issue::RowUndecodable, what, || Fix::Relink),
                    Extents::ID if T::Key::decode(key).is_ok() => {
                        findings.mend(Issue::RowUndecodable, what, || Fix::RestoreExtent { key: key.to_vec() });
                    }
                    table => findings.mend(Issue::RowUndecodable, what, || Fix::DropRow { table, key: key.to_vec() }),
                }
            }
            Ok(Visit::Continue(()))
        })?;
        Ok(count)
    }
    let mut counts = BTreeMap::new();
    macro_rules! tables {
        ($($name:ident)*) => {$( counts.insert($name::ID, table::<$name>(reader, findings)?); )*};
    }
    tables! {
        Inodes Dentries Xattrs Extents Stripes StripeLive Backrefs Groups Devices Counters Orphans Intents Journal Config
        History HistoryByDeath Snapshots Decisions Policies Damage
    }
    Ok(counts)
}
