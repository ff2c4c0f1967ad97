//! The audited record of operations: one row per POSIX mutation, in the same transaction, chained by hash.
//!
//! Invariant: `row.chain = BLAKE3(chain of the row before, row with an all-zero chain)`; the first row follows zeros.

use std::ops::Bound;

use super::db::Meta;
use super::tx::{Reader, Tx, Visit};
use crate::base::{Error, Result};
use crate::format::record::{Key, Row};
use crate::format::rows::{Counter, JournalOp, JournalRow};
use crate::format::table::{Journal, Table};

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
        // A counter that cannot be read must not let rows be overwritten.
        let next = counter_or(reader, Counter::NextJournal, true, |last| last.saturating_add(1))?;
        let first = counter_or(reader, Counter::FirstJournal, false, |first| first)?;
        let chain = match next.checked_sub(1) {
            // What follows a row that cannot be read does not fit to it, which is what `verify` says then.
            Some(last) => match reader.get::<Journal>(&last) {
                Err(Error::Corrupt(_)) => [0; 32],
                row => row?.map_or([0; 32], |row| row.chain),
            },
            None => [0; 32],
        };
        Ok(Head { next, first, chain })
    }
}

/// A counter, or what follows from the first or last row when it cannot be read.
fn counter_or(reader: &impl Reader, counter: Counter, last: bool, from: impl Fn(u64) -> u64) -> Result<u64> {
    let mut value = match reader.counter(counter) {
        Err(Error::Corrupt(_)) => 0,
        known => return known,
    };
    reader.scan_raw(Journal::ID, (Bound::Unbounded, Bound::Unbounded), last, &mut |key, _| {
        value = <u64 as Key>::decode(key).map_or(0, &from);
        Ok(Visit::Break(()))
    })?;
    Ok(value)
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
        let follows = next.checked_add(1).ok_or_else(|| Error::corrupt("the journal's numbers ran out: run fsck"))?;
        let now = self.now();
        let mut row =
            JournalRow { seconds: now.seconds, nanos: now.nanos, uid, txn: self.id().0, operation, chain: [0; 32] };
        row.chain = link(&chain, &row);
        self.put::<Journal>(&next, &row)?;
        self.set_counter(Counter::NextJournal, follows)?;
        let mut kept_from = first;
        if follows.saturating_sub(first) > KEEP_ROWS {
            kept_from = first + 2;
            for old in first..kept_from {
                self.delete::<Journal>(&old)?;
            }
            self.set_counter(Counter::FirstJournal, kept_from)?;
        }
        self.journal = Head { next: follows, first: kept_from, chain: row.chain };
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

/// What [`relink`] did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Relinked {
    /// Rows whose place or chain had to change.
    pub changed: u64,
    /// Rows that could not be read and are gone.
    pub lost: u64,
}

/// How far [`relink`] has come.
#[derive(Clone, Copy, Default)]
struct Chain {
    /// Where to read on.
    from: u64,
    /// The last row that is in its place.
    last: Option<(u64, [u8; 32])>,
    first: u64,
    done: Relinked,
}

/// Rows looked at in one transaction.
const RELINK_BATCH: usize = 2000;

/// Makes one chain again of the rows that can be read: they keep their order and what they say, and follow each other without
/// gaps. Nobody else writes meanwhile. From the first row that changed on, the chain proves nothing about what was before.
pub fn relink(meta: &Meta) -> Result<Relinked> {
    let mut chain = Chain::default();
    loop {
        let ((next, more), _) = meta.transact(|tx| {
            let mut next = chain;
            let more = tx.relink_some(&mut next)?;
            Ok((next, more))
        })?;
        chain = next;
        if !more {
            break;
        }
    }
    meta.transact(|tx| {
        let next = chain.last.map_or(chain.first, |(seq, _)| seq.saturating_add(1));
        tx.set_counter(Counter::FirstJournal, chain.first)?;
        tx.set_counter(Counter::NextJournal, next)?;
        tx.journal = Head { next, first: chain.first, chain: chain.last.map_or([0; 32], |(_, chain)| chain) };
        Ok(())
    })?;
    Ok(chain.done)
}

impl Tx<'_> {
    fn relink_some(&mut self, chain: &mut Chain) -> Result<bool> {
        let mut page = Vec::new();
        let low = chain.from.to_be_bytes();
        // What is no key may lie in front of the first there can be.
        let low = if chain.from == 0 { Bound::Unbounded } else { Bound::Included(low.as_slice()) };
        self.scan_raw(Journal::ID, (low, Bound::Unbounded), false, &mut |key, row| {
            page.push((key.to_vec(), JournalRow::decode(row).ok()));
            Ok(if page.len() < RELINK_BATCH { Visit::Continue(()) } else { Visit::Break(()) })
        })?;
        let more = page.len() == RELINK_BATCH;
        for (key, row) in page {
            let (Ok(seq), Some(row)) = (<u64 as Key>::decode(&key), row) else {
                self.delete_raw(Journal::ID, &key)?;
                chain.done.lost += 1;
                continue;
            };
            chain.from = seq.saturating_add(1);
            self.relink_row(seq, row, chain)?;
        }
        Ok(more)
    }

    fn relink_row(&mut self, seq: u64, mut row: JournalRow, chain: &mut Chain) -> Result<()> {
        let stored = std::mem::take(&mut row.chain);
        let (at, linked) = match chain.last {
            Some((last, before)) => (last + 1, link(&before, &row)),
            // What the oldest row that is kept follows is gone.
            None if (1..SEQ_END).contains(&seq) => (seq, stored),
            None => (0, link(&[0; 32], &row)),
        };
        if chain.last.is_none() {
            chain.first = at;
        }
        chain.last = Some((at, linked));
        if (at, linked) == (seq, stored) {
            return Ok(());
        }
        chain.done.changed += 1;
        row.chain = linked;
        self.put::<Journal>(&at, &row)?;
        if at == seq { Ok(()) } else { self.delete::<Journal>(&seq).map(drop) }
    }
}

/// Numbers of journal rows that the journal gave out are below this.
const SEQ_END: u64 = 1 << 62;
