//! Typed access to the tables, inside a transaction ([`Tx`]) or for reading only ([`View`]).
//!
//! Invariants:
//! - Every change made through a [`Tx`] is recorded once in its redo group, in order; replaying the group on the state
//!   before the transaction gives the state after it.
//! - What stood there before is kept until the transaction ends: several share one of the database's, and one that
//!   fails is rolled back alone.
//! - Keys handed to the visitor of a scan ascend (or descend for the `_back` form).
//! - A visitor may read other tables of the same transaction or view, but not the one it visits.

use std::cell::RefCell;
use std::ops::Bound;

use redb::{ReadableDatabase, ReadableTable, TableDefinition};

use super::redo;
use crate::base::{Error, Result, Timestamp, TxnId};
use crate::format::record::{Key, Row};
use crate::format::rows::Counter;
use crate::format::table::{Counters, TABLES, Table};

type Bytes = &'static [u8];
type WriteTable<'t> = redb::Table<'t, Bytes, Bytes>;
type ReadTable = redb::ReadOnlyTable<Bytes, Bytes>;

/// The database's definition of table number `id`.
pub(super) fn definition(id: u8) -> TableDefinition<'static, Bytes, Bytes> {
    TableDefinition::new(TABLES[usize::from(id)].1)
}

/// Turns any error of redb into ours. By the time it reaches us no replica was left to serve the request.
pub(super) fn store_error(error: impl std::fmt::Display) -> Error {
    Error::Corrupt(format!("metadata store: {error}"))
}

/// What a scan's visitor wants next.
pub type Visit = std::ops::ControlFlow<()>;

/// Reading, in a transaction or a snapshot.
pub trait Reader {
    /// Calls `read` with the stored bytes of the row, if there is one.
    fn read_raw(&self, table: u8, key: &[u8], read: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// Visits rows in the byte range, ascending or descending.
    fn scan_raw(
        &self,
        table: u8,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        backwards: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<Visit>,
    ) -> Result<()>;

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

fn scan_table(
    table: &impl ReadableTable<Bytes, Bytes>,
    range: (Bound<&[u8]>, Bound<&[u8]>),
    backwards: bool,
    visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<Visit>,
) -> Result<()> {
    if empty_range(range) {
        return Ok(());
    }
    let mut rows = table.range::<&[u8]>(range).map_err(store_error)?;
    while let Some(row) = if backwards { rows.next_back() } else { rows.next() } {
        let (key, value) = row.map_err(store_error)?;
        if visit(key.value(), value.value())?.is_break() {
            break;
        }
    }
    Ok(())
}

/// Whether a range is empty by its bounds alone, which redb refuses.
fn empty_range((low, high): (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    match (low, high) {
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => low >= high,
        _ => false,
    }
}

fn read_table(
    table: &impl ReadableTable<Bytes, Bytes>,
    key: &[u8],
    read: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    match table.get(key).map_err(store_error)? {
        Some(row) => read(row.value()),
        None => Ok(()),
    }
}

/// Tables that were opened, each when first needed.
struct Tables<T>(RefCell<[Option<T>; TABLES.len()]>);

impl<T> Tables<T> {
    fn new() -> Tables<T> {
        Tables(RefCell::new([const { None }; TABLES.len()]))
    }

    fn with<R>(
        &self,
        table: u8,
        open: impl FnOnce(TableDefinition<'static, Bytes, Bytes>) -> std::result::Result<T, redb::TableError>,
        f: impl FnOnce(&mut T) -> Result<R>,
    ) -> Result<R> {
        let mut opened = match self.0.borrow_mut()[usize::from(table)].take() {
            Some(opened) => opened,
            None => open(definition(table)).map_err(store_error)?,
        };
        let result = f(&mut opened);
        self.0.borrow_mut()[usize::from(table)] = Some(opened);
        result
    }
}

/// Reads one state of the tables.
pub struct View<'v>(Source<'v>);

enum Source<'v> {
    /// What the database has committed.
    Snapshot(redb::ReadTransaction, Tables<ReadTable>),
    /// What it is about to commit: nobody writes as long as the view lives.
    Newest(&'v redb::WriteTransaction, Tables<WriteTable<'v>>),
}

impl<'v> View<'v> {
    pub(super) fn snapshot(db: &redb::Database) -> Result<View<'static>> {
        let read = db.begin_read().map_err(store_error)?;
        Ok(View(Source::Snapshot(read, Tables::new())))
    }

    pub(super) fn newest(write: &'v redb::WriteTransaction) -> View<'v> {
        View(Source::Newest(write, Tables::new()))
    }
}

impl Reader for View<'_> {
    fn read_raw(&self, table: u8, key: &[u8], read: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match &self.0 {
            Source::Snapshot(from, tables) => {
                tables.with(table, |it| from.open_table(it), |opened| read_table(opened, key, read))
            }
            Source::Newest(from, tables) => {
                tables.with(table, |it| from.open_table(it), |opened| read_table(opened, key, read))
            }
        }
    }

    fn scan_raw(
        &self,
        table: u8,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        backwards: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<Visit>,
    ) -> Result<()> {
        match &self.0 {
            Source::Snapshot(from, tables) => {
                tables.with(table, |it| from.open_table(it), |opened| scan_table(opened, range, backwards, visit))
            }
            Source::Newest(from, tables) => {
                tables.with(table, |it| from.open_table(it), |opened| scan_table(opened, range, backwards, visit))
            }
        }
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
    write: &'t redb::WriteTransaction,
    tables: Tables<WriteTable<'t>>,
    id: TxnId,
    now: Timestamp,
    redo: Vec<u8>,
    /// Changes that take each change back, in the form of redo, and where each begins.
    undo: Vec<u8>,
    undo_starts: Vec<usize>,
    scratch: Vec<u8>,
    commit_at_once: bool,
    pub(super) journal: super::journal::Head,
}

impl<'t> Tx<'t> {
    pub(super) fn new(
        write: &'t redb::WriteTransaction,
        id: TxnId,
        now: Timestamp,
        journal: super::journal::Head,
    ) -> Tx<'t> {
        Tx {
            write,
            tables: Tables::new(),
            id,
            now,
            redo: Vec::with_capacity(1024),
            undo: Vec::with_capacity(1024),
            undo_starts: Vec::with_capacity(16),
            scratch: Vec::with_capacity(256),
            commit_at_once: false,
            journal,
        }
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
        Finished { redo: self.redo, journal: self.journal, commit_at_once: self.commit_at_once }
    }

    /// Takes every change back.
    pub(super) fn roll_back(self) -> Result<()> {
        let mut end = self.undo.len();
        for start in self.undo_starts.iter().rev() {
            self.apply(&self.undo[*start..end])?;
            end = *start;
        }
        Ok(())
    }

    fn with<R>(&self, table: u8, f: impl FnOnce(&mut WriteTable<'t>) -> Result<R>) -> Result<R> {
        self.tables.with(table, |it| self.write.open_table(it), f)
    }

    /// Stores `row` at `key`, replacing what was there.
    pub fn put<T: Table>(&mut self, key: &T::Key, row: &T::Row) -> Result<()> {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        key.encode(&mut bytes);
        let split = bytes.len();
        row.encode(&mut bytes);
        let (stored_key, stored_row) = bytes.split_at(split);
        self.undo_starts.push(self.undo.len());
        let mut undo = std::mem::take(&mut self.undo);
        let result = self.with(T::ID, |open| {
            match open.insert(stored_key, stored_row).map_err(store_error)? {
                Some(before) => redo::put(&mut undo, T::ID, stored_key, before.value()),
                None => redo::delete(&mut undo, T::ID, stored_key),
            }
            Ok(())
        });
        self.undo = undo;
        redo::put(&mut self.redo, T::ID, stored_key, stored_row);
        self.scratch = bytes;
        result
    }

    /// Removes the row at `key`; says whether there was one.
    pub fn delete<T: Table>(&mut self, key: &T::Key) -> Result<bool> {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        key.encode(&mut bytes);
        let mut undo = std::mem::take(&mut self.undo);
        let start = undo.len();
        let existed = self.with(T::ID, |open| {
            let before = open.remove(bytes.as_slice()).map_err(store_error)?;
            if let Some(before) = &before {
                redo::put(&mut undo, T::ID, &bytes, before.value());
            }
            Ok(before.is_some())
        });
        self.undo = undo;
        if matches!(existed, Ok(true)) {
            self.undo_starts.push(start);
            redo::delete(&mut self.redo, T::ID, &bytes);
        }
        self.scratch = bytes;
        existed
    }

    /// Sets a counter.
    pub fn set_counter(&mut self, counter: Counter, value: u64) -> Result<()> {
        self.put::<Counters>(&(counter as u8), &value)
    }

    /// Adds to a counter and returns the value before.
    pub fn bump_counter(&mut self, counter: Counter, by: u64) -> Result<u64> {
        let before = self.counter(counter)?;
        self.set_counter(counter, before + by)?;
        Ok(before)
    }

    /// Applies changes without recording them.
    pub(super) fn apply(&self, changes: &[u8]) -> Result<()> {
        redo::each(changes, |table, key, row| {
            self.with(table, |open| match row {
                Some(row) => open.insert(key, row).map(drop).map_err(store_error),
                None => open.remove(key).map(drop).map_err(store_error),
            })
        })
    }
}

impl Reader for Tx<'_> {
    fn read_raw(&self, table: u8, key: &[u8], read: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.with(table, |open| read_table(open, key, read))
    }

    fn scan_raw(
        &self,
        table: u8,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        backwards: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<Visit>,
    ) -> Result<()> {
        self.with(table, |open| scan_table(open, range, backwards, visit))
    }
}
