//! Typed access to the tables, inside a write transaction ([`Tx`]) or a read snapshot ([`View`]).
//!
//! Invariants:
//! - Every change made through a [`Tx`] is recorded once in its redo group, in order; replaying the group on the state
//!   before the transaction gives the state after it.
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

/// A consistent read snapshot.
pub struct View {
    read: redb::ReadTransaction,
    tables: RefCell<[Option<ReadTable>; TABLES.len()]>,
}

impl View {
    pub(super) fn begin(db: &redb::Database) -> Result<View> {
        let read = db.begin_read().map_err(store_error)?;
        Ok(View { read, tables: RefCell::new([const { None }; TABLES.len()]) })
    }

    fn with<R>(&self, table: u8, f: impl FnOnce(&ReadTable) -> Result<R>) -> Result<R> {
        let open = match self.tables.borrow_mut()[usize::from(table)].take() {
            Some(open) => open,
            None => self.read.open_table(definition(table)).map_err(store_error)?,
        };
        let result = f(&open);
        self.tables.borrow_mut()[usize::from(table)] = Some(open);
        result
    }
}

impl Reader for View {
    fn read_raw(&self, table: u8, key: &[u8], read: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.with(table, |open| match open.get(key).map_err(store_error)? {
            Some(row) => read(row.value()),
            None => Ok(()),
        })
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

/// An open write transaction.
pub struct Tx<'t> {
    write: &'t redb::WriteTransaction,
    tables: RefCell<[Option<WriteTable<'t>>; TABLES.len()]>,
    id: TxnId,
    now: Timestamp,
    redo: Vec<u8>,
    scratch: Vec<u8>,
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
            tables: RefCell::new([const { None }; TABLES.len()]),
            id,
            now,
            redo: Vec::with_capacity(512),
            scratch: Vec::with_capacity(256),
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

    /// The recorded changes and the journal's new end.
    pub(super) fn finish(self) -> (Vec<u8>, super::journal::Head) {
        (self.redo, self.journal)
    }

    fn with<R>(&self, table: u8, f: impl FnOnce(&mut WriteTable<'t>) -> Result<R>) -> Result<R> {
        let mut open = match self.tables.borrow_mut()[usize::from(table)].take() {
            Some(open) => open,
            None => self.write.open_table(definition(table)).map_err(store_error)?,
        };
        let result = f(&mut open);
        self.tables.borrow_mut()[usize::from(table)] = Some(open);
        result
    }

    /// Stores `row` at `key`, replacing what was there.
    pub fn put<T: Table>(&mut self, key: &T::Key, row: &T::Row) -> Result<()> {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        key.encode(&mut bytes);
        let split = bytes.len();
        row.encode(&mut bytes);
        let (stored_key, stored_row) = bytes.split_at(split);
        let result = self.with(T::ID, |open| open.insert(stored_key, stored_row).map(drop).map_err(store_error));
        redo::put(&mut self.redo, T::ID, stored_key, stored_row);
        self.scratch = bytes;
        result
    }

    /// Removes the row at `key`; says whether there was one.
    pub fn delete<T: Table>(&mut self, key: &T::Key) -> Result<bool> {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        key.encode(&mut bytes);
        let existed =
            self.with(T::ID, |open| open.remove(bytes.as_slice()).map(|old| old.is_some()).map_err(store_error));
        if matches!(existed, Ok(true)) {
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

    /// Applies the changes of a redo group without recording them again.
    pub(super) fn replay(&mut self, changes: &[u8]) -> Result<()> {
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
        self.with(table, |open| match open.get(key).map_err(store_error)? {
            Some(row) => read(row.value()),
            None => Ok(()),
        })
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
