//! The one place where an [`Error`] becomes an errno.

use crate::base::Error;

/// The errno that tells a caller of the file interface about `error`.
pub fn errno(error: &Error) -> i32 {
    match error {
        Error::NotFound => libc::ENOENT,
        Error::Exists => libc::EEXIST,
        Error::NotDirectory => libc::ENOTDIR,
        Error::IsDirectory => libc::EISDIR,
        Error::NotEmpty => libc::ENOTEMPTY,
        Error::NameTooLong => libc::ENAMETOOLONG,
        Error::Access => libc::EACCES,
        Error::NotPermitted => libc::EPERM,
        Error::Invalid(_) | Error::Usage(_) => libc::EINVAL,
        Error::TooManyLinks => libc::EMLINK,
        Error::NoAttribute => libc::ENODATA,
        Error::Range => libc::ERANGE,
        Error::TooBig => libc::E2BIG,
        Error::FileTooLarge => libc::EFBIG,
        Error::NoData => libc::ENXIO,
        Error::Stale => libc::ESTALE,
        Error::Unsupported => libc::EOPNOTSUPP,
        Error::Busy(_) => libc::EBUSY,
        Error::NoSpace => libc::ENOSPC,
        Error::Io { .. } | Error::Corrupt(_) | Error::Unavailable(_) => libc::EIO,
        Error::Poisoned(_) | Error::ReadOnly => libc::EROFS,
    }
}

/// As [`errno`], for requests that promise durability. Many programs take EROFS and EINVAL from fsync for "nothing to
/// do here", so a pool that was switched to read-only says EIO.
pub fn sync_errno(error: &Error) -> i32 {
    match errno(error) {
        libc::EROFS | libc::EINVAL => libc::EIO,
        other => other,
    }
}

/// Whether somebody has to be told beyond the caller: storage failed, as opposed to an ordinary answer.
pub fn is_storage_failure(error: &Error) -> bool {
    matches!(error, Error::Io { .. } | Error::Corrupt(_) | Error::Unavailable(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_their_posix_numbers() {
        let io = Error::io("/dev/x", "write", std::io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(errno(&io), libc::EIO, "a full image file is not a full pool");
        assert_eq!(errno(&Error::NoSpace), libc::ENOSPC);
        assert_eq!(errno(&Error::NoAttribute), libc::ENODATA);
        assert_eq!(errno(&Error::NoData), libc::ENXIO);
        assert_eq!(errno(&Error::Poisoned(String::new())), libc::EROFS);
        assert_eq!(sync_errno(&Error::Poisoned(String::new())), libc::EIO);
        assert_eq!(sync_errno(&Error::NoSpace), libc::ENOSPC);
        assert!(is_storage_failure(&io) && !is_storage_failure(&Error::NotFound));
    }
}
