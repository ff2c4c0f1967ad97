//! Exit codes: the one place where an error becomes one. README has the same table for people.

use std::process::ExitCode;

use crate::base::Error;

/// Everything in order.
pub const OK: u8 = 0;
/// The command line makes no sense, or names something that is not there.
pub const USAGE: u8 = 64;
/// Stored data is corrupt beyond repair.
pub const DATA: u8 = 65;
/// The pool cannot be found or opened as asked.
pub const UNAVAILABLE: u8 = 69;
/// No space is left.
pub const SPACE: u8 = 73;
/// A device or file failed.
pub const IO: u8 = 74;
/// In use; try again later.
pub const BUSY: u8 = 75;
/// Not allowed.
pub const PERMISSION: u8 = 77;

/// `fsck`: problems were found, and all of them corrected.
pub const FSCK_CORRECTED: u8 = 1;
/// `fsck`: problems were found and left.
pub const FSCK_PROBLEMS: u8 = 4;
/// `fsck`: it could not be done.
pub const FSCK_FAILED: u8 = 8;
/// `fsck`: wrong usage.
pub const FSCK_USAGE: u8 = 16;

/// mount(8) helpers: wrong usage.
pub const MOUNT_USAGE: u8 = 1;
/// mount(8) helpers: the mount failed.
pub const MOUNT_FAILED: u8 = 32;

/// Shown at the end of `--help`.
pub const HELP: &str = "\
Exit codes:
  0    in order
  1    status: degraded; scrub, rebuild: something is still to be done; recover: something is uncertain
  2    status: faulted; scrub, recover: something is lost; scrub: it was ended before its end
  64   wrong usage        65   corrupt data       69   pool not found or not usable
  73   no space           74   device failed      75   in use
  77   not permitted
  fsck has the codes of fsck(8): 0 clean, 1 problems corrected, 4 problems left, 8 not done,
  16 wrong usage.
  As mount.argosfs and umount.argosfs: those of mount(8): 0, 1 wrong usage, 32 failed.";

/// Which convention a command's exit codes follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Convention {
    Own,
    Fsck,
    MountHelper,
}

impl Convention {
    /// The code for an error.
    pub fn of(self, error: &Error) -> u8 {
        let own = own(error);
        match self {
            Convention::Own => own,
            Convention::Fsck if own == USAGE => FSCK_USAGE,
            Convention::Fsck => FSCK_FAILED,
            Convention::MountHelper if own == USAGE => MOUNT_USAGE,
            Convention::MountHelper => MOUNT_FAILED,
        }
    }

    /// The code for a command line that is not understood.
    pub fn usage(self) -> ExitCode {
        ExitCode::from(self.of(&Error::Invalid("")))
    }
}

fn own(error: &Error) -> u8 {
    match error {
        Error::Usage(_) | Error::Invalid(_) | Error::NameTooLong | Error::Range | Error::TooBig => USAGE,
        Error::Corrupt(_) => DATA,
        Error::NoSpace | Error::FileTooLarge => SPACE,
        Error::Io { .. } | Error::Poisoned(_) => IO,
        Error::Busy(_) => BUSY,
        Error::Access | Error::NotPermitted | Error::ReadOnly => PERMISSION,
        _ => UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_their_documented_codes() {
        let busy = Error::Busy(String::new());
        assert_eq!(Convention::Own.of(&busy), 75);
        assert_eq!(Convention::Fsck.of(&busy), 8);
        assert_eq!(Convention::MountHelper.of(&busy), 32);
        let usage = Error::Usage(String::new());
        assert_eq!([Convention::Own, Convention::Fsck, Convention::MountHelper].map(|c| c.of(&usage)), [64, 16, 1]);
        for code in [USAGE, DATA, UNAVAILABLE, SPACE, IO, BUSY, PERMISSION] {
            assert!(HELP.contains(&code.to_string()), "{code} is documented");
        }
    }
}
