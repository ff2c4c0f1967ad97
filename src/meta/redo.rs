//! Row changes as bytes: table (1), key length (2), row length + 1 (4; 0 = deleted), key, row.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use crate::base::{Error, Result};
use crate::format::table::TABLES;

/// Appends "row at key becomes this".
pub fn put(out: &mut Vec<u8>, table: u8, key: &[u8], row: &[u8]) {
    head(out, table, key, row.len() as u32 + 1);
    out.extend_from_slice(row);
}

/// Appends "row at key is gone".
pub fn delete(out: &mut Vec<u8>, table: u8, key: &[u8]) {
    head(out, table, key, 0);
}

fn head(out: &mut Vec<u8>, table: u8, key: &[u8], row_len_plus_one: u32) {
    out.push(table);
    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
    out.extend_from_slice(&row_len_plus_one.to_le_bytes());
    out.extend_from_slice(key);
}

/// Calls `apply(table, key, row or None)` for every change. Any bytes at all may come in.
pub fn each(mut bytes: &[u8], mut apply: impl FnMut(u8, &[u8], Option<&[u8]>) -> Result<()>) -> Result<()> {
    let cut = || Error::corrupt("a redo group is cut short");
    while let Some((head, rest)) = bytes.split_first_chunk::<7>() {
        let [table, key_low, key_high, row @ ..] = *head;
        let key_len = usize::from(u16::from_le_bytes([key_low, key_high]));
        let row_len = u32::from_le_bytes(row) as usize;
        if usize::from(table) >= TABLES.len() {
            return Err(Error::corrupt(format!("a redo group names table {table}; use a newer argosfs")));
        }
        let (key, rest) = rest.split_at_checked(key_len).ok_or_else(cut)?;
        let (row, rest) = match row_len.checked_sub(1) {
            Some(len) => rest.split_at_checked(len).map(|(row, rest)| (Some(row), rest)).ok_or_else(cut)?,
            None => (None, rest),
        };
        apply(table, key, row)?;
        bytes = rest;
    }
    if bytes.is_empty() { Ok(()) } else { Err(cut()) }
}
