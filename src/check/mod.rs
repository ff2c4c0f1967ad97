//! Reads the whole metadata in one snapshot: proves that everything stored twice agrees, plans and carries out what mends
//! it where it does not, and writes it all out as canonical JSON. Above: `control` runs it for commands. Below: `meta` gives
//! the snapshot, `store` the shards.
//!
//! A check or an export holds one read transaction for as long as it runs. On a mounted pool, each commit beside it
//! makes the metadata volume grow by about 30 KiB; that space is used again afterwards.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

mod archive;
mod blocks;
mod content;
pub mod export;
pub mod fsck;
pub mod issue;
mod paths;
pub mod plan;
mod recover;
pub mod repair;
mod scan;
mod source;
mod stripes;
mod tree;

#[cfg(test)]
mod tests;

pub use crate::format::export::{ExportHeader, ExportSummary};
pub use archive::{archive, export_archive};
pub use export::export;
pub use fsck::{Context, PASSES, Progress, Report, fsck};
pub use issue::{Finding, Findings, Issue};
pub use paths::{Owners, Paths, names, owners_of_stripes, paths};
pub use plan::{Action, Plan};
pub use recover::{Affected, Old, Origin, Recovered, Watch, import, recover};
pub use source::{Export, Pieces};
