//! Where a name's row lies in its directory, and how it is found. Used by `fs` for every name and by `check` to mend them.
//!
//! Invariants:
//! - A name lies at a cookie whose upper bits are the keyed hash of the name; names of equal hash have different lower
//!   bits. A cookie never changes while its name exists.
//! - Cookies lie in `3 ..= i64::MAX`: 0 to 2 are the start of a listing, `.` and `..`.

use std::ops::Bound;

use super::{Reader, Visit};
use crate::base::{Error, Ino, Result};
use crate::format::rows::DentryKey;
use crate::format::table::Dentries;

/// The setting that holds the key of the pool's names.
pub const NAME_KEY: &[u8] = b"names.key";
/// The first cookie a name may have.
pub const FIRST_COOKIE: u64 = 3;
/// Lower bits of a cookie, which tell names of equal hash apart.
pub const SEQUENCE_BITS: u32 = 8;

/// The pool's secret for spreading names, so that nobody can choose names that collide.
#[derive(Clone)]
pub struct NameHasher {
    key: [u8; 32],
    /// Bits of the hash that are used; fewer in tests of collisions.
    mask: u64,
}

impl NameHasher {
    /// Spreads names by `key`.
    pub fn new(key: [u8; 32]) -> NameHasher {
        NameHasher { key, mask: u64::MAX }
    }

    /// Uses only hashes below `1 << bits`: for tests of collisions.
    #[cfg(test)]
    pub fn colliding(key: [u8; 32], bits: u32) -> NameHasher {
        NameHasher { key, mask: (1 << bits) - 1 }
    }

    /// The lowest cookie of names with the hash of `name`.
    pub fn base(&self, name: &[u8]) -> u64 {
        let hash = blake3::keyed_hash(&self.key, name);
        let bytes = hash.as_bytes().first_chunk::<8>().expect("a hash has 32 bytes");
        ((u64::from_le_bytes(*bytes) >> (SEQUENCE_BITS + 1)) & self.mask) << SEQUENCE_BITS
    }
}

/// A name that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    pub cookie: u64,
    pub ino: Ino,
    /// The `DT_*` value of the inode.
    pub kind: u8,
}

/// Where a name lies or could be put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Taken(Found),
    Free(u64),
}

/// Looks for `name` in `parent`; `base` is its [`NameHasher::base`].
pub fn place(reader: &impl Reader, parent: Ino, base: u64, name: &[u8]) -> Result<Place> {
    let last = base | ((1 << SEQUENCE_BITS) - 1);
    let mut free = base.max(FIRST_COOKIE);
    let mut found = None;
    let range =
        (Bound::Included(DentryKey { parent, cookie: free }), Bound::Included(DentryKey { parent, cookie: last }));
    reader.scan::<Dentries>(range, |key, row| {
        if key.cookie == free {
            free += 1;
        }
        if row.name == name {
            found = Some(Found { cookie: key.cookie, ino: row.ino, kind: row.kind });
            return Ok(Visit::Break(()));
        }
        Ok(Visit::Continue(()))
    })?;
    match found {
        Some(found) => Ok(Place::Taken(found)),
        None if free <= last => Ok(Place::Free(free)),
        // 256 names with 55 equal bits under a secret key: not by chance.
        None => Err(Error::NoSpace),
    }
}

/// The name `name` in `parent`.
pub fn find(reader: &impl Reader, parent: Ino, base: u64, name: &[u8]) -> Result<Option<Found>> {
    match place(reader, parent, base, name) {
        Ok(Place::Taken(found)) => Ok(Some(found)),
        Ok(Place::Free(_)) | Err(Error::NoSpace) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_fit_a_signed_offset_and_spread() {
        let hasher = NameHasher::new([7; 32]);
        let mut seen = std::collections::HashSet::new();
        for number in 0..10_000u32 {
            let base = hasher.base(&number.to_be_bytes());
            assert!(base <= i64::MAX as u64 && base & 0xff == 0);
            assert!(seen.insert(base));
        }
        assert_ne!(hasher.base(b"a"), NameHasher::new([8; 32]).base(b"a"), "the key has no effect");
    }
}
