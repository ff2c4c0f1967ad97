//! The metadata store: typed tables in redb, one transaction per mutation, durable by a redo log on replicated,
//! verified blocks. Above: `store` orders data before metadata. Below: `pool` gives devices and space.

pub mod db;
pub mod journal;
mod load;
pub mod migrate;
pub mod names;
mod redo;
mod tables;
pub mod tx;
mod untrusted;
pub mod volume;

#[cfg(test)]
mod db_tests;

pub use db::{Appended, DataBarrier, MemoryLog, Meta, RedoGroup, RedoLog};
pub use load::Put;
pub use tables::ReadRows;
pub use tx::{Reader, Tx, View, Visit};
pub use untrusted::{check_database, uses_unreadable};
