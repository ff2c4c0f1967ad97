//! Filling a store with rows that are stored elsewhere already: they need no log, but they are durable only after the
//! next checkpoint.

use std::sync::atomic::Ordering;

use super::db::{Meta, last_transaction};
use super::journal::Head;
use super::redo;
use super::tables::Write;
use super::tx::apply;
use crate::base::sync::lock;
use crate::base::{Error, Result};
use crate::format::table::TABLES;

/// Takes a row: table, key, row.
pub type Put<'p> = dyn FnMut(u8, &[u8], &[u8]) -> Result<()> + 'p;

/// Bytes of rows that one transaction of the database takes.
const BATCH: usize = 4 << 20;

impl Meta {
    /// Stores the rows that `fill` puts, each replacing what was at its key. Nobody else uses the store meanwhile; the next
    /// transaction follows the one that the rows name as the last.
    pub fn load(&self, fill: &mut dyn FnMut(&mut Put<'_>) -> Result<()>) -> Result<()> {
        let mut batch = Vec::with_capacity(BATCH + 4096);
        fill(&mut |table, key, row| {
            if usize::from(table) >= TABLES.len() {
                return Err(Error::corrupt(format!("there are rows of table {table}: use a newer argosfs")));
            }
            redo::put(&mut batch, table, key, row);
            if batch.len() >= BATCH { self.load_batch(&mut batch) } else { Ok(()) }
        })?;
        self.load_batch(&mut batch)?;
        let (last, journal) = self.settled(|view| Ok((last_transaction(view)?, Head::load(view)?)))?;
        let mut writer = lock(&self.writer);
        writer.last = last;
        writer.journal = journal;
        self.committed.store(last.0, Ordering::Release);
        Ok(())
    }

    fn load_batch(&self, batch: &mut Vec<u8>) -> Result<()> {
        self.log.prepare()?;
        if self.log.wants_checkpoint() {
            self.checkpoint()?;
        }
        self.check()?;
        self.poison_on_panic(|| {
            let write = Write::begin(self.db())?;
            write.with(|rows| apply(rows, batch))?;
            write.commit()
        })?;
        batch.clear();
        Ok(())
    }
}
