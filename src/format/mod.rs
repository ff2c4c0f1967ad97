//! Every byte that is stored: labels, shard headers, table rows and log entries, as pure conversions between bytes
//! and values. Above: whoever stores them. Below: `base` only; `schema/ondisk.md` describes the same bytes in prose.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

pub mod acl;
pub mod archive;
pub mod export;
pub mod import;
pub mod intent;
pub mod json;
pub mod label;
pub mod log;
pub mod parsed;
pub mod record;
pub mod rows;
pub mod shard;
pub mod table;
pub mod xattr;
