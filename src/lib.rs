//! ArgosFS: one checked, redundant, explainable filesystem over several unequal local devices.
//!
//! Folders are layers; imports go strictly downward (`ARCHITECTURE.md` has the table, `tests/architecture.rs` enforces it).

pub mod base;
pub mod check;
pub mod cli;
pub mod control;
pub mod device;
pub mod erasure;
pub mod format;
pub mod fs;
pub mod fuse;
pub mod meta;
pub mod pool;
pub mod store;
pub mod transform;
