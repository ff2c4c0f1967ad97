//! The one error type. A variant says what the caller can do; its text says what the user can do.

use std::fmt;
use std::io;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, sorted by what the caller can do about it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    // --- answers of the file interface: the caller passes them on ---
    /// No such name or inode.
    NotFound,
    /// The name is taken.
    Exists,
    /// A directory was needed.
    NotDirectory,
    /// A directory cannot be used here.
    IsDirectory,
    /// The directory still has entries.
    NotEmpty,
    /// Longer than 255 bytes, or a symlink target beyond 4095.
    NameTooLong,
    /// The caller lacks the right (EACCES).
    Access,
    /// The operation is not permitted on this object (EPERM).
    NotPermitted,
    /// The arguments make no sense together.
    Invalid(&'static str),
    /// Link count exhausted.
    TooManyLinks,
    /// No such extended attribute.
    NoAttribute,
    /// The caller's buffer is too small.
    Range,
    /// A value above a limit of the format (E2BIG).
    TooBig,
    /// Beyond the largest file offset (EFBIG).
    FileTooLarge,
    /// No data or hole at or after the offset (ENXIO).
    NoData,
    /// An identifier of an earlier life of the pool (ESTALE).
    Stale,
    /// Not supported on this object (EOPNOTSUPP).
    Unsupported,
    /// In use by somebody else.
    Busy(String),

    // --- space ---
    /// Not enough space at the pool's redundancy.
    NoSpace,

    // --- storage: retry elsewhere, repair, or give up ---
    /// A device refused an operation.
    Io { device: String, operation: &'static str, source: io::Error },
    /// Bytes that should verify do not, and no other copy is left.
    Corrupt(String),
    /// The pool was switched to read-only for the reason given.
    Poisoned(String),
    /// Mounted or opened read-only.
    ReadOnly,
    /// Too few devices, a split, a foreign or newer format: the pool cannot be opened as asked.
    Unavailable(String),

    // --- the user ---
    /// The command was given something it cannot work with; the text says what to do.
    Usage(String),
}

impl Error {
    /// An [`Error::Io`] of `operation` on `device`.
    pub fn io(device: impl Into<String>, operation: &'static str, source: io::Error) -> Error {
        Error::Io { device: device.into(), operation, source }
    }

    /// An [`Error::Corrupt`].
    pub fn corrupt(what: impl Into<String>) -> Error {
        Error::Corrupt(what.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotFound => f.write_str("no such file or directory"),
            Error::Exists => f.write_str("the name exists already"),
            Error::NotDirectory => f.write_str("not a directory"),
            Error::IsDirectory => f.write_str("is a directory"),
            Error::NotEmpty => f.write_str("the directory is not empty"),
            Error::NameTooLong => f.write_str("the name is too long"),
            Error::Access => f.write_str("access denied"),
            Error::NotPermitted => f.write_str("operation not permitted"),
            Error::Invalid(what) => write!(f, "invalid argument: {what}"),
            Error::TooManyLinks => f.write_str("too many links"),
            Error::NoAttribute => f.write_str("no such attribute"),
            Error::Range => f.write_str("the buffer is too small"),
            Error::TooBig => f.write_str("the value is too large"),
            Error::FileTooLarge => f.write_str("beyond the largest file size"),
            Error::NoData => f.write_str("no data at or after this offset"),
            Error::Stale => f.write_str("the file handle is stale"),
            Error::Unsupported => f.write_str("not supported here"),
            Error::Busy(what) => write!(f, "{what}"),
            Error::NoSpace => f.write_str("no space left at the pool's redundancy"),
            Error::Io { device, operation, source } => write!(f, "{operation} failed on {device}: {source}"),
            Error::Corrupt(what) => write!(f, "corrupt: {what}"),
            Error::Poisoned(why) => write!(f, "the pool was switched to read-only: {why}"),
            Error::ReadOnly => f.write_str("the pool is read-only"),
            Error::Unavailable(why) => write!(f, "{why}"),
            Error::Usage(what) => write!(f, "{what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
