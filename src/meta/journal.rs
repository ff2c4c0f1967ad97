//! The audited record of operations: one row per POSIX mutation, in the same transaction, chained by hash.
//!
//! Invariant: `row.chain = BLAKE3(chain of the row before, row with an all-zero chain)`; the first row follows zeros.

use std::ops::Bound;

use super::tx::{Reader, Tx, Visit};
use crate::base::{Error, Result};
use crate::format::record::Row;
use crate::format::rows::{Counter, JournalOp, JournalRow};
use crate::format::table::Journal;

/// Rows kept; older ones are dropped a few at a time as new ones come.
pub const KEEP_ROWS: u64 = 200_000;

/// Where the journal ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head {
    pub next: u64,
    pub first: u64,
    pub chain: [u8; 32],
}

impl Head {
    /// Reads the head from the tables.
    pub fn load(reader: &impl Reader) -> Result<Head> {
        let next = reader.counter(Counter::NextJournal)?;
        let first = reader.counter(Counter::FirstJournal)?;
        let chain = match next.checked_sub(1) {
            Some(last) => reader.get::<Journal>(&last)?.map_or([0; 32], |row| row.chain),
            None => [0; 32],
        };
        Ok(Head { next, first, chain })
    }
}

fn link(chain: &[u8; 32], row: &JournalRow) -> [u8; 32] {
    let mut bytes = Vec::with_capacity(192);
    bytes.extend_from_slice(chain);
    row.encode(&mut bytes);
    *blake3::hash(&bytes).as_bytes()
}

impl Tx<'_> {
    /// Appends `operation`, done by `uid`, to the journal.
    pub fn journal(&mut self, uid: u32, operation: JournalOp) -> Result<()> {
        let Head { next, first, chain } = self.journal;
        let now = self.now();
        let mut row =
            JournalRow { seconds: now.seconds, nanos: now.nanos, uid, txn: self.id().0, operation, chain: [0; 32] };
        row.chain = link(&chain, &row);
        self.put::<Journal>(&next, &row)?;
        self.set_counter(Counter::NextJournal, next + 1)?;
        let mut kept_from = first;
        if next + 1 - first > KEEP_ROWS {
            kept_from = first + 2;
            for old in first..kept_from {
                self.delete::<Journal>(&old)?;
            }
            self.set_counter(Counter::FirstJournal, kept_from)?;
        }
        self.journal = Head { next: next + 1, first: kept_from, chain: row.chain };
        Ok(())
    }
}

/// Checks the chain of every row that is kept. Returns how many were checked.
pub fn verify(reader: &impl Reader) -> Result<u64> {
    let mut before: Option<(u64, [u8; 32])> = None;
    let mut count = 0;
    reader.scan::<Journal>((Bound::Unbounded, Bound::Unbounded), |seq, mut row| {
        let chain = std::mem::take(&mut row.chain);
        let previous = match before {
            Some((last, _)) if last + 1 != seq => {
                return Err(Error::corrupt(format!("journal rows {last} and {seq} are not neighbours")));
            }
            Some((_, chain)) => Some(chain),
            None if seq == 0 => Some([0; 32]),
            None => None,
        };
        if previous.is_some_and(|previous| link(&previous, &row) != chain) {
            return Err(Error::corrupt(format!("the journal's hash chain breaks at row {seq}")));
        }
        before = Some((seq, chain));
        count += 1;
        Ok(Visit::Continue(()))
    })?;
    Ok(count)
}
