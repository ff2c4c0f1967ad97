//! Actions of several transactions, stored so that a crash between two of them is finished at the next mount.

use wincode::{SchemaRead, SchemaWrite};

use crate::wire_row;

/// What remains to be done. Intents are idempotent and never merged.
#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub enum Intent {
    /// Remove extents of `ino` at or past `from` that were born at or before `txn`; readers hide them already.
    Truncate { ino: u64, from: u64, txn: u64 },
    /// Bring a degraded stripe back to full redundancy.
    Rebuild { stripe: u64 },
    /// Move inline data above the small limit into a stripe.
    Destage { ino: u64, offset: u64 },
    /// Move every shard off a device.
    Evacuate { device: u16 },
}
wire_row!(Intent, version 1);
