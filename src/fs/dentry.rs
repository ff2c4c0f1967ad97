//! Names in directories: listing them, and what can be one. Where a name's row lies is for `meta` to say.

use std::ops::Bound;

use crate::base::file::NAME_MAX;
use crate::base::{Error, Ino, Result};
use crate::format::rows::{DentryKey, DentryRow};
use crate::format::table::Dentries;
use crate::meta::names::FIRST_COOKIE;
pub use crate::meta::names::{Found, NameHasher, Place, find, place};
use crate::meta::{Reader, Visit};

/// Visits the names of `parent` behind `cookie`, in order of their cookies.
pub fn list(
    reader: &impl Reader,
    parent: Ino,
    cookie: u64,
    mut visit: impl FnMut(u64, DentryRow) -> Result<Visit>,
) -> Result<()> {
    let low = DentryKey { parent, cookie: cookie.max(FIRST_COOKIE - 1) };
    let high = DentryKey { parent: Ino(parent.0.saturating_add(1)), cookie: 0 };
    reader.scan::<Dentries>((Bound::Excluded(low), Bound::Excluded(high)), |key, row| visit(key.cookie, row))
}

/// Refuses what cannot be a name.
pub fn check_name(name: &[u8]) -> Result<()> {
    match name {
        [] => Err(Error::NotFound),
        b"." | b".." => Err(Error::Invalid("`.` and `..` are not names")),
        _ if name.len() > NAME_MAX => Err(Error::NameTooLong),
        _ if name.iter().any(|byte| matches!(byte, 0 | b'/')) => Err(Error::Invalid("a name holds a slash or a NUL")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(check_name(&[0xff; 255]).is_ok());
        assert!(matches!(check_name(&[b'x'; 256]), Err(Error::NameTooLong)));
        assert!(matches!(check_name(b"a/b"), Err(Error::Invalid(_))));
        assert!(matches!(check_name(b".."), Err(Error::Invalid(_))));
        assert!(check_name(b"...").is_ok());
    }
}
