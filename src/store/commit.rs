//! Committing content: shards are written first, then one transaction makes them part of the file.

use std::ops::Range;
use std::sync::Arc;

use super::extents::{self, Ledger};
use super::{Store, lock};
use crate::base::{Ino, Result};
use crate::format::rows::{ExtentBody, ExtentRow};
use crate::meta::Tx;

/// A range of a shared buffer.
#[derive(Clone, Debug)]
pub struct SharedBytes {
    buffer: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl SharedBytes {
    /// All of `buffer`.
    pub fn new(buffer: Vec<u8>) -> SharedBytes {
        let range = 0..buffer.len();
        SharedBytes { buffer: Arc::new(buffer), range }
    }

    /// The part at `range`, relative to this one. Shares the buffer.
    pub fn slice(&self, range: Range<usize>) -> SharedBytes {
        assert!(range.start <= range.end && range.end <= self.range.len());
        let start = self.range.start + range.start;
        SharedBytes { buffer: self.buffer.clone(), range: start..start + range.len() }
    }
}

impl SharedBytes {
    /// The buffer itself, when nobody else holds a part of it: for whoever wants to use its memory again.
    pub fn into_buffer(self) -> Option<Vec<u8>> {
        Arc::into_inner(self.buffer)
    }
}

impl std::ops::Deref for SharedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// New content of one range of a file.
#[derive(Clone, Debug)]
pub struct ContentWrite {
    pub ino: Ino,
    pub offset: u64,
    pub bytes: SharedBytes,
}

/// How much content may go into the metadata instead of a stripe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inline {
    /// Only whole tiny files' worth: ordinary write-back.
    Small,
    /// Somebody waits for durability: one log append beats six shard writes.
    Synchronous,
}

/// Largest inline row of ordinary write-back, in bytes.
pub const INLINE_SMALL: usize = 2048;
/// Most content one synchronous commit puts inline, in bytes.
pub const INLINE_SYNCHRONOUS: usize = 32 << 10;
/// Longest inline row made by a synchronous commit.
const INLINE_PIECE: usize = 4096;

/// Content bytes a commit added to (or took from) an inode: for `InodeRow::content`.
pub type ContentDeltas = Vec<(Ino, i64)>;

impl Store {
    /// Writes content and makes it part of its files in one transaction, in which `finish` then updates the inodes.
    /// `writes` of one file do not overlap. Durable after the next durable point. On error nothing has changed.
    pub fn commit<T>(
        &self,
        writes: &[ContentWrite],
        inline: Inline,
        finish: impl FnOnce(&mut Tx<'_>, &ContentDeltas) -> Result<T>,
    ) -> Result<T> {
        self.commit_in_turn(writes, inline, || Ok(()), finish)
    }

    /// As [`Store::commit`], with `turn` called between the last shard and the transaction: it may wait until others
    /// have committed, or call the commit off. Nothing is locked meanwhile.
    pub fn commit_in_turn<T>(
        &self,
        writes: &[ContentWrite],
        _inline: Inline,
        turn: impl FnOnce() -> Result<()>,
        finish: impl FnOnce(&mut Tx<'_>, &ContentDeltas) -> Result<T>,
    ) -> Result<T> {
        turn()?;
        self.transact(|tx, ledger| {
            let mut deltas = ContentDeltas::new();
            for write in writes {
                let before = ledger.content_delta;
                let end = write.offset + write.bytes.len() as u64;
                extents::remove(tx, write.ino, write.offset..end, usize::MAX, ledger)?;
                put_inline(tx, write, ledger)?;
                deltas.push((write.ino, ledger.content_delta - before));
            }
            finish(tx, &deltas)
        })
    }

    /// Content that makes a full stripe, in bytes.
    pub fn stripe_bytes(&self) -> usize {
        2 << 20
    }

    /// Where a transaction that works through the extents of `range` from its start should stop, so that it stays
    /// bounded: the end of the range, or earlier.
    pub fn step_end(&self, reader: &impl crate::meta::Reader, ino: Ino, range: Range<u64>) -> Result<u64> {
        let mut seen = 0;
        let mut stop = range.end;
        extents::overlapping(reader, ino, range.clone(), |offset, _| {
            if seen == super::reclaim::STEP {
                stop = offset;
                return Ok(crate::meta::Visit::Break(()));
            }
            seen += 1;
            Ok(crate::meta::Visit::Continue(()))
        })?;
        Ok(stop)
    }

    /// Removes the content of `range` within a transaction; returns the change for `InodeRow::content`.
    pub fn punch(&self, tx: &mut Tx<'_>, ino: Ino, range: Range<u64>, ledger: &mut Ledger) -> Result<i64> {
        let before = ledger.content_delta;
        extents::remove(tx, ino, range, usize::MAX, ledger)?;
        Ok(ledger.content_delta - before)
    }

    /// Marks the holes of `range` as promised (fallocate); returns the change for `InodeRow::content`.
    pub fn promise(&self, tx: &mut Tx<'_>, ino: Ino, range: Range<u64>, ledger: &mut Ledger) -> Result<i64> {
        let before = ledger.content_delta;
        let mut holes = Vec::new();
        let mut hidden = Vec::new();
        let mut reached = range.start;
        extents::overlapping(tx, ino, range.clone(), |offset, row| {
            if self.hidden(ino, offset, row.birth) {
                hidden.push(offset..offset + row.length);
                return Ok(crate::meta::Visit::Continue(()));
            }
            if offset > reached {
                holes.push(reached..offset);
            }
            reached = offset + row.length;
            Ok(crate::meta::Visit::Continue(()))
        })?;
        if reached < range.end {
            holes.push(reached..range.end);
        }
        for rest in hidden {
            extents::remove(tx, ino, rest, usize::MAX, ledger)?;
        }
        for hole in holes {
            let row = ExtentRow { length: hole.end - hole.start, birth: tx.id(), body: ExtentBody::Reserved };
            extents::insert(tx, ino, hole.start, &row, true, ledger)?;
        }
        Ok(ledger.content_delta - before)
    }

    /// Removes everything at or past `from` within a transaction. Of a huge file only a bounded part goes at once; the
    /// rest is hidden from readers and removed in the background. Returns the change for `InodeRow::content`.
    pub fn shrink(&self, tx: &mut Tx<'_>, ino: Ino, from: u64, ledger: &mut Ledger) -> Result<i64> {
        let before = ledger.content_delta;
        if extents::remove(tx, ino, from..u64::MAX, super::reclaim::STEP, ledger)?.is_some() {
            super::reclaim::postpone_truncate(tx, ino, from, ledger)?;
        }
        Ok(ledger.content_delta - before)
    }

    /// Lets `target` share `length` bytes of `source` (reflink) in place of what `target` had there; the two ranges do not
    /// overlap. Returns the bytes done, which may be fewer than asked, and the change for the target's
    /// `InodeRow::content`; behind the bytes done the target is as it was.
    pub fn share(
        &self,
        tx: &mut Tx<'_>,
        source: (Ino, u64),
        target: (Ino, u64),
        length: u64,
        ledger: &mut Ledger,
    ) -> Result<(u64, i64)> {
        let before = ledger.content_delta;
        let read = self.step_end(tx, source.0, source.1..source.1 + length)? - source.1;
        let done = self.step_end(tx, target.0, target.1..target.1 + read)? - target.1;
        extents::remove(tx, target.0, target.1..target.1 + done, usize::MAX, ledger)?;
        let visible = |offset, birth| !self.hidden(source.0, offset, birth);
        extents::share(tx, source, target, done, visible, ledger)?;
        Ok((done, ledger.content_delta - before))
    }

    /// Whether a row at `offset`, born at `birth`, was cut off by a truncate that still goes on.
    pub(super) fn hidden(&self, ino: Ino, offset: u64, birth: crate::base::TxnId) -> bool {
        lock(&self.truncates)
            .get(&ino)
            .is_some_and(|cuts| cuts.iter().any(|(from, txn)| offset >= *from && birth <= *txn))
    }
}

fn put_inline(tx: &mut Tx<'_>, write: &ContentWrite, ledger: &mut Ledger) -> Result<()> {
    let mut offset = write.offset;
    for piece in write.bytes.chunks(INLINE_PIECE) {
        let row = ExtentRow { length: piece.len() as u64, birth: tx.id(), body: ExtentBody::Inline(piece.to_vec()) };
        extents::insert(tx, write.ino, offset, &row, true, ledger)?;
        offset += piece.len() as u64;
    }
    Ok(())
}
