//! The tables as redb keeps them, behind two small traits: everything above works on bytes and knows none of its types.
//!
//! Invariants:
//! - A table is opened once in a transaction of redb and stays open: opening costs as much as a row.
//! - Counters that change wait in memory for the end of redb's transaction: several change with every one of ours.
//! - A visitor may use other tables of the same transaction, but not the one it visits.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Bound;

use redb::{Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::tx::Visit;
use crate::base::{Error, Result};
use crate::format::table::{Counters, TABLES, Table};

type Bytes = &'static [u8];
type WriteTable<'t> = redb::Table<'t, Bytes, Bytes>;
type ReadTable = redb::ReadOnlyTable<Bytes, Bytes>;

/// Turns any error of redb into ours. By the time it reaches us no replica was left to serve the request. After one such
/// error redb serves nothing but what it has in memory, however well the devices are again: that is no damage, but the end.
pub fn store_error(error: impl Into<redb::Error>) -> Error {
    match error.into() {
        redb::Error::PreviousIo => {
            Error::Poisoned("metadata could not be read or written; mount the pool again".into())
        }
        error => Error::Corrupt(format!("metadata store: {error}")),
    }
}

/// The database's definition of table number `id`.
fn definition(id: u8) -> TableDefinition<'static, Bytes, Bytes> {
    TableDefinition::new(TABLES[usize::from(id)].1)
}

/// Rows to be read.
pub trait ReadRows {
    /// Calls `found` with the row, if there is one.
    fn read(&self, table: u8, key: &[u8], found: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// Visits the rows of a range of keys, ascending or descending.
    fn scan(
        &self,
        table: u8,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        backwards: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<Visit>,
    ) -> Result<()>;
}

/// Rows to be changed.
pub trait WriteRows: ReadRows {
    /// Stores a row; `before` learns which one was there.
    fn insert(&self, table: u8, key: &[u8], row: &[u8], before: &mut dyn FnMut(Option<&[u8]>)) -> Result<()>;

    /// Removes a row; `before` learns which one was there.
    fn remove(&self, table: u8, key: &[u8], before: &mut dyn FnMut(Option<&[u8]>)) -> Result<()>;

    /// Whether a change failed half-way: then nobody knows what the tables hold.
    fn is_broken(&self) -> bool;
}

/// What the database has committed.
pub struct Snapshot {
    read: ReadTransaction,
    tables: Tables<ReadTable>,
}

impl Snapshot {
    pub fn begin(db: &Database) -> Result<Snapshot> {
        Ok(Snapshot { read: db.begin_read().map_err(store_error)?, tables: Tables::default() })
    }

    fn with<R>(&self, table: u8, body: impl FnOnce(&mut ReadTable) -> Result<R>) -> Result<R> {
        self.tables.with(table, |definition| self.read.open_table(definition), body)
    }
}

impl ReadRows for Snapshot {
    fn read(&self, table: u8, key: &[u8], found: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.with(table, |open| read(open, key, found))
    }

    fn scan(
        &self,
        table: u8,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        backwards: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<Visit>,
    ) -> Result<()> {
        self.with(table, |open| scan(open, range, backwards, visit))
    }
}

/// The tables of a transaction of the database.
pub struct WriteTables<'t> {
    write: &'t WriteTransaction,
    tables: Tables<WriteTable<'t>>,
    /// Rows of `counters` that the database does not have yet.
    counters: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
    broken: Cell<bool>,
}

impl<'t> WriteTables<'t> {
    fn broken_by(&self, error: impl Into<redb::Error>) -> Error {
        self.broken.set(true);
        store_error(error)
    }

    fn with<R>(&self, table: u8, body: impl FnOnce(&mut WriteTable<'t>) -> Result<R>) -> Result<R> {
        self.tables.with(table, |definition| self.write.open_table(definition), body)
    }

    /// Gives the database the counters.
    fn settle_counters(&self) -> Result<()> {
        for (key, row) in self.counters.take() {
            self.with(Counters::ID, |open| {
                open.insert(key.as_slice(), row.as_slice()).map(drop).map_err(|error| self.broken_by(error))
            })?;
        }
        Ok(())
    }

    fn insert_counter(&self, key: &[u8], row: &[u8], before: &mut dyn FnMut(Option<&[u8]>)) -> Result<()> {
        let mut counters = self.counters.borrow_mut();
        if let Some(held) = counters.get_mut(key) {
            before(Some(held));
            held.clear();
            held.extend_from_slice(row);
            return Ok(());
        }
        self.with(Counters::ID, |open| {
            let old = open.get(key).map_err(store_error)?;
            before(old.as_ref().map(redb::AccessGuard::value));
            Ok(())
        })?;
        counters.insert(key.to_vec(), row.to_vec());
        Ok(())
    }
}

impl ReadRows for WriteTables<'_> {
    fn read(&self, table: u8, key: &[u8], found: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if table == Counters::ID
            && let Some(row) = self.counters.borrow().get(key)
        {
            return found(row);
        }
        self.with(table, |open| read(open, key, found))
    }

    fn scan(
        &self,
        table: u8,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        backwards: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<Visit>,
    ) -> Result<()> {
        if table == Counters::ID {
            self.settle_counters()?;
        }
        self.with(table, |open| scan(open, range, backwards, visit))
    }
}

impl WriteRows for WriteTables<'_> {
    fn insert(&self, table: u8, key: &[u8], row: &[u8], before: &mut dyn FnMut(Option<&[u8]>)) -> Result<()> {
        if table == Counters::ID {
            return self.insert_counter(key, row, before);
        }
        self.with(table, |open| {
            let old = open.insert(key, row).map_err(|error| self.broken_by(error))?;
            before(old.as_ref().map(redb::AccessGuard::value));
            Ok(())
        })
    }

    fn remove(&self, table: u8, key: &[u8], before: &mut dyn FnMut(Option<&[u8]>)) -> Result<()> {
        if table == Counters::ID {
            self.settle_counters()?;
        }
        self.with(table, |open| {
            let old = open.remove(key).map_err(|error| self.broken_by(error))?;
            before(old.as_ref().map(redb::AccessGuard::value));
            Ok(())
        })
    }

    fn is_broken(&self) -> bool {
        self.broken.get()
    }
}

self_cell::self_cell!(
    /// A transaction of the database together with the tables that were opened in it.
    pub struct Write {
        owner: WriteTransaction,
        #[not_covariant]
        dependent: WriteTables,
    }
);

impl Write {
    /// Begins one; its commit shows it to snapshots and makes nothing durable.
    pub fn begin(db: &Database) -> Result<Write> {
        let mut write = db.begin_write().map_err(store_error)?;
        write.set_durability(Durability::None).map_err(store_error)?;
        Ok(Write::new(write, |write| WriteTables {
            write,
            tables: Tables::default(),
            counters: RefCell::default(),
            broken: Cell::new(false),
        }))
    }

    /// Makes the tables that do not exist yet.
    pub fn create_tables(&self) -> Result<()> {
        self.with_dependent(|_, tables| TABLES.iter().try_for_each(|(id, _)| tables.with(*id, |_| Ok(()))))
    }

    /// Runs `body` on the tables.
    pub fn with<R>(&self, body: impl FnOnce(&dyn WriteRows) -> R) -> R {
        self.with_dependent(|_, tables| body(tables))
    }

    pub fn commit(self) -> Result<()> {
        self.with_dependent(|_, tables| tables.settle_counters())?;
        self.into_owner().commit().map_err(store_error)
    }
}

/// Tables that are open, by their number.
struct Tables<T>(RefCell<[Option<T>; TABLES.len()]>);

impl<T> Default for Tables<T> {
    fn default() -> Tables<T> {
        Tables(RefCell::new([const { None }; TABLES.len()]))
    }
}

impl<T> Tables<T> {
    fn with<R>(
        &self,
        table: u8,
        open: impl FnOnce(TableDefinition<'static, Bytes, Bytes>) -> Result<T, redb::TableError>,
        body: impl FnOnce(&mut T) -> Result<R>,
    ) -> Result<R> {
        let at = usize::from(table);
        let taken = self.0.borrow_mut()[at].take();
        let mut it = taken.map_or_else(|| open(definition(table)).map_err(store_error), Ok)?;
        let result = body(&mut it);
        self.0.borrow_mut()[at] = Some(it);
        result
    }
}

fn read(
    table: &impl ReadableTable<Bytes, Bytes>,
    key: &[u8],
    found: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    match table.get(key).map_err(store_error)? {
        Some(row) => found(row.value()),
        None => Ok(()),
    }
}

fn scan(
    table: &impl ReadableTable<Bytes, Bytes>,
    range: (Bound<&[u8]>, Bound<&[u8]>),
    backwards: bool,
    visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<Visit>,
) -> Result<()> {
    if is_empty(range) {
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
fn is_empty((low, high): (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    match (low, high) {
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => low >= high,
        _ => false,
    }
}
