//! The tables of the metadata store: number, name, key and row of each. Numbers are what the redo log carries and
//! names what the database carries; both are permanent.

use super::record::{Key, Row};
use super::rows::*;
use crate::base::{DeviceId, Ino, StripeId};

/// A typed table.
pub trait Table {
    /// Permanent number, used in redo entries.
    const ID: u8;
    type Key: Key;
    type Row: Row;
}

macro_rules! tables {
    ($($(#[$doc:meta])* $id:literal $name:ident $text:literal : $key:ty => $row:ty;)*) => {
        $($(#[$doc])*
        #[derive(Debug)]
        pub enum $name {}
        impl Table for $name {
            const ID: u8 = $id;
            type Key = $key;
            type Row = $row;
        })*

        /// Number and name of every table, in order of number.
        pub const TABLES: &[(u8, &str)] = &[$(($id, $text)),*];
    };
}

tables! {
    /// One row per inode.
    0 Inodes "inodes.v1": Ino => InodeRow;
    /// Directory entries; the second half of the key is the readdir cookie.
    1 Dentries "dentries.v1": DentryKey => DentryRow;
    /// Extended attributes in pieces of at most [`XATTR_PIECE`] bytes.
    2 Xattrs "xattrs.v1": XattrKey => XattrRow;
    /// File contents: which bytes lie where. Ranges of one file never overlap.
    3 Extents "extents.v1": ExtentKey => ExtentRow;
    /// One row per committed stripe.
    4 Stripes "stripes.v1": StripeId => StripeRow;
    /// How many payload bytes of a stripe some extent refers to; apart from the stripe because it changes often.
    5 StripeLive "stripe_live.v1": StripeId => StripeLiveRow;
    /// Who refers to a stripe.
    6 Backrefs "backrefs.v1": BackrefKey => BackrefRow;
    /// Block bitmaps of the devices; a missing row is an empty one.
    7 Groups "groups.v1": GroupKey => Vec<u8>;
    /// The members as the filesystem sees them.
    8 Devices "devices.v1": DeviceId => DeviceRow;
    /// Single numbers, by [`Counter`].
    9 Counters "counters.v1": u8 => u64;
    /// Unlinked inodes still held by somebody; reclaimed at mount.
    10 Orphans "orphans.v1": Ino => ();
    /// Multi-step actions to finish after a crash.
    11 Intents "intents.v1": u64 => super::intent::Intent;
    /// The audited record of operations.
    12 Journal "journal.v1": u64 => JournalRow;
    /// Settings of the pool, by name.
    13 Config "config.v1": ConfigKey => Vec<u8>;
    /// Prior rows kept for snapshots.
    14 History "history.v1": HistoryKey => HistoryRow;
    /// The same rows by the transaction that ended them.
    15 HistoryByDeath "history_by_death.v1": HistoryByDeathKey => ();
    /// Named moments.
    16 Snapshots "snapshots.v1": SnapshotKey => SnapshotRow;
    /// What the autopilot saw, chose, did and verified.
    17 Decisions "decisions.v1": u64 => Vec<u8>;
    /// Named placement and compression policies.
    18 Policies "policies.v1": u64 => Vec<u8>;
    /// Stripes that cannot be read as a whole any more.
    19 Damage "damage.v1": StripeId => DamageRow;
}

#[cfg(test)]
mod tests {
    use super::TABLES;

    #[test]
    fn table_numbers_are_dense_and_names_unique() {
        for (at, (id, name)) in TABLES.iter().enumerate() {
            assert_eq!(at, usize::from(*id), "{name}");
            assert_eq!(TABLES.iter().filter(|(_, other)| other == name).count(), 1, "{name}");
        }
    }
}
