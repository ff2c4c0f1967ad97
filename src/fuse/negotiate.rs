//! What kernel and filesystem agree on in the first message of a connection.
//!
//! Why each capability is taken or left:
//! - `POSIX_ACL`, `DONT_MASK`: the kernel checks permissions with our ACLs; we apply umask or default ACL.
//! - `HANDLE_KILLPRIV_V2`: without it every write(2) is preceded by a GETXATTR. We strip set-id bits where told.
//! - `SETXATTR_EXT`: only the kernel knows the caller's groups and so whether an ACL change strips set-group-id.
//! - `EXPLICIT_INVAL_DATA`, not `AUTO_INVAL_DATA`: the pool is ours alone, so caches stay until we say otherwise.
//! - `WRITEBACK_CACHE` only when asked for: with it a full pool is told after write(2) has succeeded.
//! - Not `POSIX_LOCKS`, `FLOCK_LOCKS`: one mount, so the kernel's own locks are complete, and a waiter can be killed.
//! - Never `ATOMIC_O_TRUNC`: opens are declined, so a truncating open would send nothing at all.
//! - `ABORT_ERROR`: tells a broken connection from an unmounted one.

use super::abi::{self, init};
use super::buffer::DATA_MAX;
use super::request::Dialect;
use crate::base::{Error, Result};

/// Background requests (readahead, asynchronous I/O, written-back pages) in flight at once.
const BACKGROUND_MAX: u16 = 128;
/// Page size that the kernel counts `max_pages` in here.
const PAGE: usize = 4096;

const WANTED: u32 = init::ASYNC_READ
    | init::EXPORT_SUPPORT
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::ABORT_ERROR
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::EXPLICIT_INVAL_DATA
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT;

/// Without these the promises about files cannot be kept.
const NEEDED: u32 = init::BIG_WRITES
    | init::DONT_MASK
    | init::MAX_PAGES
    | init::NO_OPEN_SUPPORT
    | init::NO_OPENDIR_SUPPORT
    | init::POSIX_ACL;

/// The outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreement {
    /// Minor version of the protocol both speak.
    pub minor: u32,
    /// The `init` flags in force.
    pub flags: u32,
    pub dialect: Dialect,
    /// The kernel collects writes.
    pub writeback: bool,
}

/// Answers the kernel's offer.
pub fn negotiate(offer: &abi::InitIn, writeback: bool) -> Result<(abi::InitOut, Agreement)> {
    if offer.major != abi::MAJOR || offer.minor < abi::MINOR_OLDEST || offer.flags & NEEDED != NEEDED {
        return Err(Error::Unavailable(format!(
            "the kernel speaks FUSE {}.{} and lacks what is needed: Linux 5.11 or newer is",
            offer.major, offer.minor
        )));
    }
    let wanted = if writeback { WANTED | init::WRITEBACK_CACHE } else { WANTED };
    let flags = wanted & offer.flags;
    let out = abi::InitOut {
        major: abi::MAJOR,
        minor: abi::MINOR.min(offer.minor),
        max_readahead: offer.max_readahead.max(DATA_MAX as u32),
        flags,
        max_background: BACKGROUND_MAX,
        congestion_threshold: BACKGROUND_MAX / 4 * 3,
        max_write: DATA_MAX as u32,
        time_gran: 1,
        max_pages: (DATA_MAX / PAGE) as u16,
        ..Default::default()
    };
    let agreement = Agreement {
        minor: out.minor,
        flags,
        dialect: Dialect { setxattr_ext: flags & init::SETXATTR_EXT != 0 },
        writeback: flags & init::WRITEBACK_CACHE != 0,
    };
    Ok((out, agreement))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> abi::InitIn {
        abi::InitIn { major: 7, minor: 45, max_readahead: 131_072, flags: !0, flags2: !0, ..Default::default() }
    }

    #[test]
    fn a_recent_kernel_gives_what_the_design_promises() {
        let (out, agreement) = negotiate(&offer(), false).expect("agree");
        assert_eq!((out.max_write, out.max_pages, out.time_gran), (1 << 20, 256, 1));
        assert!(out.max_background >= 64);
        for left in [
            init::WRITEBACK_CACHE,
            init::POSIX_LOCKS,
            init::FLOCK_LOCKS,
            init::ATOMIC_O_TRUNC,
            init::AUTO_INVAL_DATA,
            init::HANDLE_KILLPRIV,
        ] {
            assert_eq!(out.flags & left, 0, "{left:#x} must not be taken");
        }
        assert_eq!(out.flags & init::HANDLE_KILLPRIV_V2, init::HANDLE_KILLPRIV_V2);
        assert!(agreement.dialect.setxattr_ext && !agreement.writeback);
        assert!(negotiate(&offer(), true).expect("agree").1.writeback);
    }

    #[test]
    fn only_what_is_offered_is_taken() {
        let plain = abi::InitIn { minor: 31, flags: NEEDED, ..offer() };
        let (out, agreement) = negotiate(&plain, true).expect("agree");
        assert_eq!(out.flags & !NEEDED, 0);
        assert_eq!((out.minor, agreement.dialect.setxattr_ext, agreement.writeback), (31, false, false));
    }

    #[test]
    fn kernels_that_are_too_old_are_named() {
        for old in [
            abi::InitIn { major: 6, ..offer() },
            abi::InitIn { minor: 12, ..offer() },
            abi::InitIn { flags: !init::NO_OPEN_SUPPORT, ..offer() },
        ] {
            let error = negotiate(&old, false).expect_err("is refused");
            assert!(error.to_string().contains("Linux 5.11"), "{error}");
        }
    }
}
