//! Typed access to the tables, inside a transaction ([`Tx`]) or for reading only ([`View`]).
//!
//! Invariants:
//! - Every change made through a [`Tx`] is recorded once in its redo group, in order; replaying the group on the state
//!   before the transaction gives the state after it.
//! - What stood there before is kept until the transaction ends: several share one of the database's, and one that
//!   fails is rolled back alone.
//! - Keys handed to the visitor of a scan ascend (or descend for the `_back` form).
//! - A visitor may read other tables of the same transaction or view, but not the one it visits.

use std::ops::Bound;

use super::redo;
use super::tables::{ReadRows, Snapshot, WriteRows};
use crate::base::{Error, Result, Timestamp, TxnId};
use crate::format::record::{Key, Row};
use crate::format::rows::Counter;
use crate::format::table::{Counters, Table};

/// What a scan's visitor wants next.
pub type Visit = std::ops::ControlFlow<()>;

/// Reading, in a transaction or a snapshot.
pub trait Reader {
    /// The rows it reads.
    fn rows(&self) -> &dyn ReadRows;

    /// Calls `read` with the stored bytes of the row, if there is one.
    fn read_raw(&self, table: u8, key: &[u8], read: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.rows().read(table, key, read)
    }

    /// Visits rows in the byte range, ascending or descending.
    fn scan_raw(
        &self,
        table: u8,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        backwards: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<Visit>,
    ) -> Result<()> {
        self.rows().scan(table, range, backwards, visit)
    }

    /// The row at `key`.
    fn get<T: Table>(&self, key: &T::Key) -> Result<Option<T::Row>> {
        let mut row = None;
        let mut bytes = Vec::with_capacity(64);
        key.encode(&mut bytes);
        self.read_raw(T::ID, &bytes, &mut |stored| {
            row = Some(T::Row::decode(stored)?);
            Ok(())
        })?;
        Ok(row)
    }

    /// Visits rows of `range`, ascending.
    fn scan<T: Table>(
        &self,
        range: (Bound<T::Key>, Bound<T::Key>),
        mut visit: impl FnMut(T::Key, T::Row) -> Result<Visit>,
    ) -> Result<()> {
        let (low, high) = encode_range::<T>(range);
        self.scan_raw(T::ID, (as_bytes(&low), as_bytes(&high)), false, &mut |key, row| {
            visit(T::Key::decode(key)?, T::Row::decode(row)?)
        })
    }

    /// Visits rows of `range`, descending.
    fn scan_back<T: Table>(
        &self,
        range: (Bound<T::Key>, Bound<T::Key>),
        mut visit: impl FnMut(T::Key, T::Row) -> Result<Visit>,
    ) -> Result<()> {
        let (low, high) = encode_range::<T>(range);
        self.scan_raw(T::ID, (as_bytes(&low), as_bytes(&high)), true, &mut |key, row| {
            visit(T::Key::decode(key)?, T::Row::decode(row)?)
        })
    }

    /// The value of a counter; 0 before its first change.
    fn counter(&self, counter: Counter) -> Result<u64> {
        Ok(self.get::<Counters>(&(counter as u8))?.unwrap_or(0))
    }
}

fn encode_range<T: Table>(range: (Bound<T::Key>, Bound<T::Key>)) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let encode = |key: T::Key| {
        let mut bytes = Vec::with_capacity(32);
        key.encode(&mut bytes);
        bytes
    };
    (range.0.map(encode), range.1.map(encode))
}

fn as_bytes(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

/// Reads one state of the tables.
pub struct View<'v>(Source<'v>);

enum Source<'v> {
    /// What the database has committed.
    Snapshot(Box<Snapshot>),
    /// What it is about to commit: nobody writes as long as the view lives.
    Newest(&'v dyn WriteRows),
}

impl<'v> View<'v> {
    pub(super) fn snapshot(db: &redb::Database) -> Result<View<'static>> {
        Ok(View(Source::Snapshot(Box::new(Snapshot::begin(db)?))))
    }

    pub(super) fn newest(rows: &'v dyn WriteRows) -> View<'v> {
        View(Source::Newest(rows))
    }
}

impl Reader for View<'_> {
    fn rows(&self) -> &dyn ReadRows {
        match &self.0 {
            Source::Snapshot(rows) => &**rows,
            Source::Newest(rows) => *rows,
        }
    }
}

/// What the parts of a transaction are put together in: kept from one to the next, for its memory.
#[derive(Default)]
pub(super) struct Scratch {
    redo: Vec<u8>,
    /// Changes that take each change back, in the form of redo, and where each begins.
    undo: Vec<u8>,
    undo_starts: Vec<usize>,
    row: Vec<u8>,
}

/// Memory a [`Scratch`] keeps of each kind, in bytes.
const SCRATCH_KEPT: usize = 64 << 10;

impl Scratch {
    fn clear(&mut self) {
        for bytes in [&mut self.redo, &mut self.undo, &mut self.row] {
            bytes.clear();
            bytes.shrink_to(SCRATCH_KEPT);
        }
        self.undo_starts.clear();
        self.undo_starts.shrink_to(SCRATCH_KEPT / size_of::<usize>());
    }
}

/// What a finished transaction leaves.
pub(super) struct Finished {
    pub redo: Vec<u8>,
    pub journal: super::journal::Head,
    pub commit_at_once: bool,
}

/// A transaction in the making.
pub struct Tx<'t> {
    rows: &'t dyn WriteRows,
    scratch: &'t mut Scratch,
    id: TxnId,
    now: Timestamp,
    commit_at_once: bool,
    pub(super) journal: super::journal::Head,
}

impl<'t> Tx<'t> {
    pub(super) fn new(
        rows: &'t dyn WriteRows,
        scratch: &'t mut Scratch,
        id: TxnId,
        now: Timestamp,
        journal: super::journal::Head,
    ) -> Tx<'t> {
        scratch.clear();
        Tx { rows, scratch, id, now, commit_at_once: false, journal }
    }

    /// The number of this transaction.
    pub fn id(&self) -> TxnId {
        self.id
    }

    /// The time at which this transaction began.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Lets no later transaction share the database's one with this: [`super::Meta::settled`] sees it at once.
    pub fn commit_at_once(&mut self) {
        self.commit_at_once = true;
    }

    /// Ends the transaction.
    pub(super) fn finish(self) -> Finished {
        Finished { redo: self.scratch.redo.clone(), journal: self.journal, commit_at_once: self.commit_at_once }
    }

    /// Takes every change back.
    pub(super) fn roll_back(self) -> Result<()> {
        let mut end = self.scratch.undo.len();
        for start in self.scratch.undo_starts.iter().rev() {
            apply(self.rows, &self.scratch.undo[*start..end])?;
            end = *start;
        }
        Ok(())
    }

    /// Stores `row` at `key`, replacing what was there.
    pub fn put<T: Table>(&mut self, key: &T::Key, row: &T::Row) -> Result<()> {
        let Scratch { redo, undo, undo_starts, row: bytes } = &mut *self.scratch;
        bytes.clear();
        key.encode(bytes);
        let split = bytes.len();
        row.encode(bytes);
        let (key, row) = bytes.split_at(split);
        undo_starts.push(undo.len());
        self.rows.insert(T::ID, key, row, &mut |before| match before {
            Some(before) => redo::put(undo, T::ID, key, before),
            None => redo::delete(undo, T::ID, key),
        })?;
        redo::put(redo, T::ID, key, row);
        Ok(())
    }

    /// Removes the row at `key`; says whether there was one.
    pub fn delete<T: Table>(&mut self, key: &T::Key) -> Result<bool> {
        let bytes = &mut self.scratch.row;
        bytes.clear();
        key.encode(bytes);
        self.delete_encoded(T::ID)
    }

    /// Removes the row whose key is stored as `key`, which may be no key at all; says whether there was one.
    pub fn delete_raw(&mut self, table: u8, key: &[u8]) -> Result<bool> {
        let bytes = &mut self.scratch.row;
        bytes.clear();
        bytes.extend_from_slice(key);
        self.delete_encoded(table)
    }

    fn delete_encoded(&mut self, table: u8) -> Result<bool> {
        let Scratch { redo, undo, undo_starts, row: bytes } = &mut *self.scratch;
        let mut existed = false;
        self.rows.remove(table, bytes, &mut |before| {
            let Some(before) = before else { return };
            existed = true;
            undo_starts.push(undo.len());
            redo::put(undo, table, bytes, before);
        })?;
        if existed {
            redo::delete(redo, table, bytes);
        }
        Ok(existed)
    }

    /// Sets a counter.
    pub fn set_counter(&mut self, counter: Counter, value: u64) -> Result<()> {
        self.put::<Counters>(&(counter as u8), &value)
    }

    /// Adds to a counter and returns the value before.
    pub fn bump_counter(&mut self, counter: Counter, by: u64) -> Result<u64> {
        let before = self.counter(counter)?;
        let after = before.checked_add(by);
        let ran_out = || Error::corrupt(format!("the counter {counter:?} ran out: run fsck"));
        self.set_counter(counter, after.ok_or_else(ran_out)?)?;
        Ok(before)
    }
}

/// Makes the changes of a redo group.
pub(super) fn apply(rows: &dyn WriteRows, changes: &[u8]) -> Result<()> {
    redo::each(changes, |table, key, row| match row {
        Some(row) => rows.insert(table, key, row, &mut |_| {}),
        None => rows.remove(table, key, &mut |_| {}),
    })
}

impl Reader for Tx<'_> {
    fn rows(&self) -> &dyn ReadRows {
        self.rows
    }
}
