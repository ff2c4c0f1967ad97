//! The file interface in plain types: what a filesystem says about a file and what a caller may ask of it,
//! independent of the transport that carries the question.

use super::{Ino, Timestamp};

/// Longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;
/// Longest target of a symbolic link, in bytes.
pub const SYMLINK_MAX: usize = 4095;
/// Longest name of an extended attribute, in bytes.
pub const XATTR_NAME_MAX: usize = 255;
/// Largest value of an extended attribute, in bytes.
pub const XATTR_SIZE_MAX: usize = 65536;
/// Largest size of a file: the kernel's `loff_t`.
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;

/// Mask of the file type within `st_mode`.
pub const S_IFMT: u32 = 0o170_000;
/// Set-user-id bit.
pub const S_ISUID: u32 = 0o4000;
/// Set-group-id bit.
pub const S_ISGID: u32 = 0o2000;
/// Sticky bit.
pub const S_ISVTX: u32 = 0o1000;
/// Execution by the group: without it a set-group-id bit means mandatory locking and is not stripped.
pub const S_IXGRP: u32 = 0o0010;
/// Everything but the file type: permissions, set-id bits, sticky bit.
pub const MODE_BITS: u32 = 0o7777;

/// The seven kinds of file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FileType {
    Fifo,
    CharDevice,
    Directory,
    BlockDevice,
    Regular,
    Symlink,
    Socket,
}

impl FileType {
    /// The kind within a full `st_mode`; `None` when its type bits mean nothing.
    pub fn from_mode(mode: u32) -> Option<FileType> {
        FileType::from_dirent(((mode & S_IFMT) >> 12) as u8)
    }

    /// The type bits of `st_mode`.
    pub fn mode_bits(self) -> u32 {
        u32::from(self.dirent()) << 12
    }

    /// The kind of a `d_type`; `None` when it is unknown.
    pub fn from_dirent(d_type: u8) -> Option<FileType> {
        Some(match d_type {
            1 => FileType::Fifo,
            2 => FileType::CharDevice,
            4 => FileType::Directory,
            6 => FileType::BlockDevice,
            8 => FileType::Regular,
            10 => FileType::Symlink,
            12 => FileType::Socket,
            _ => return None,
        })
    }

    /// The `d_type` of a directory entry (`DT_REG` ..): the type bits of `st_mode`, shifted down.
    pub fn dirent(self) -> u8 {
        match self {
            FileType::Fifo => 1,
            FileType::CharDevice => 2,
            FileType::Directory => 4,
            FileType::BlockDevice => 6,
            FileType::Regular => 8,
            FileType::Symlink => 10,
            FileType::Socket => 12,
        }
    }
}

/// Everything `stat` and `statx` tell about an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// The number shown as `st_ino`, which is also what the transport calls the inode by.
    pub ino: Ino,
    /// Bytes.
    pub size: u64,
    /// Space charged to the file, in units of 512 bytes.
    pub blocks512: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// Birth.
    pub btime: Timestamp,
    /// The full `st_mode`: type bits and [`MODE_BITS`]. The type bits always name one of [`FileType`].
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device number of a device node as [`encode_rdev`] makes it; 0 for everything else.
    pub rdev: u32,
    /// Preferred size of a transfer in bytes.
    pub blksize: u32,
}

impl Attr {
    /// What kind of file this is.
    pub fn kind(&self) -> FileType {
        FileType::from_mode(self.mode).unwrap_or(FileType::Regular)
    }

    /// The permission, set-id and sticky bits.
    pub fn permissions(&self) -> u32 {
        self.mode & MODE_BITS
    }
}

/// Linux's 32-bit encoding of a device number (12 bits of `major`, 20 of `minor`).
pub fn encode_rdev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff00) << 12)
}

/// `(major, minor)` of a number made by [`encode_rdev`].
pub fn decode_rdev(rdev: u32) -> (u32, u32) {
    ((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xfff00))
}

/// What a time is set to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The filesystem's own clock.
    Now,
    At(Timestamp),
}

/// Changes to an inode's attributes, all made in one step; `None` leaves a field alone.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SetAttr {
    /// New permission, set-id and sticky bits; type bits are ignored.
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Truncates or extends.
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// Set only by a kernel that keeps times itself (its writeback cache); everything else means "now".
    pub ctime: Option<Timestamp>,
    /// Strip set-user-id, set-group-id (where the group may execute) and `security.capability` in the same step:
    /// an owner or size changes and the caller has no right to keep them.
    pub kill_suidgid: bool,
}

/// Who asks. Permission to reach the inode was checked before; this is for ownership of what is made and for the
/// few rules that depend on the asker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// 0 when the request comes from the kernel itself or from another pid namespace.
    pub pid: u32,
    /// Bits a new file does not get unless its directory has a default ACL; 0 for requests that make nothing.
    pub umask: u32,
}

impl Caller {
    /// The superuser, on nobody's behalf.
    pub const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };

    /// Whether writing keeps set-id bits: the nearest a transport without capabilities comes to `CAP_FSETID`.
    pub fn keeps_set_id(&self) -> bool {
        self.uid == 0
    }
}

/// What a lookup or a creation hands out: the inode as the asker now knows it. The asker holds one reference on it
/// until it gives it back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub attr: Attr,
    /// Tells apart two lives of one inode number; constant 0 where numbers are never reused.
    pub generation: u64,
}

/// One name in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirEntry<'a> {
    pub ino: Ino,
    pub kind: FileType,
    /// Any bytes but `/` and NUL, at most [`NAME_MAX`].
    pub name: &'a [u8],
    /// Position of this entry: a listing that starts at this cookie goes on behind it. Unique within the directory,
    /// stable while the entry exists, at most `i64::MAX`, never 0. `.` has 1 and `..` has 2.
    pub cookie: u64,
}

/// What the asker of a listing says to an entry it is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sink {
    /// The entry was taken; go on.
    Taken,
    /// There was no room: the entry was not taken and no other will be.
    Full,
}

/// What may happen to a file, whoever asks: `chattr +i` and `+a`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FileFlags {
    /// Nothing of it may change.
    pub immutable: bool,
    /// Content may only be added.
    pub append: bool,
}

/// Space and inodes, as `statfs` tells them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StatFs {
    /// Unit of the next three, in bytes.
    pub block_size: u32,
    pub blocks: u64,
    pub blocks_free: u64,
    /// Free to an ordinary user.
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
}

/// What a seek looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whence {
    Data,
    Hole,
}

/// What a rename does when the new name exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    /// The old holder of the name is unlinked.
    Replace,
    /// The rename fails (`RENAME_NOREPLACE`).
    NoReplace,
    /// Both names stay and change places (`RENAME_EXCHANGE`); both must exist.
    Exchange,
}

/// What `fallocate` does to its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FallocateMode {
    /// Reserves space; existing data stays, what had none reads as zeros.
    Allocate { keep_size: bool },
    /// Frees the range, which then reads as zeros; never changes the size.
    PunchHole,
    /// Makes the range read as zeros and reserves it.
    ZeroRange { keep_size: bool },
}

/// What setting an extended attribute expects to find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XattrSet {
    /// Creates or replaces.
    Any,
    /// The attribute must not exist (`XATTR_CREATE`).
    Create,
    /// The attribute must exist (`XATTR_REPLACE`).
    Replace,
}

/// When reading moves a file's access time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum AccessTime {
    /// Never.
    Never,
    /// When it is not later than the last change, or a day old (the kernel's `relatime`).
    #[default]
    Relative,
    /// On every read.
    Strict,
}

impl AccessTime {
    /// Seconds after which [`AccessTime::Relative`] moves an access time in any case.
    pub const RELATIVE_SECONDS: i64 = 24 * 60 * 60;

    /// Whether a read at `now` moves an access time of `atime` on a file last changed at `mtime` and `ctime`.
    pub fn is_due(self, atime: Timestamp, mtime: Timestamp, ctime: Timestamp, now: Timestamp) -> bool {
        match self {
            AccessTime::Never => false,
            AccessTime::Strict => atime != now,
            AccessTime::Relative => {
                atime <= mtime || atime <= ctime || now.seconds.saturating_sub(atime.seconds) >= Self::RELATIVE_SECONDS
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanos: 5 }
    }

    #[test]
    fn kinds_and_mode_bits_agree_with_libc() {
        for (kind, bits, dirent) in [
            (FileType::Fifo, libc::S_IFIFO, libc::DT_FIFO),
            (FileType::CharDevice, libc::S_IFCHR, libc::DT_CHR),
            (FileType::Directory, libc::S_IFDIR, libc::DT_DIR),
            (FileType::BlockDevice, libc::S_IFBLK, libc::DT_BLK),
            (FileType::Regular, libc::S_IFREG, libc::DT_REG),
            (FileType::Symlink, libc::S_IFLNK, libc::DT_LNK),
            (FileType::Socket, libc::S_IFSOCK, libc::DT_SOCK),
        ] {
            assert_eq!(kind.mode_bits(), bits);
            assert_eq!(kind.dirent(), dirent);
            assert_eq!(FileType::from_mode(bits | 0o4755), Some(kind));
            assert_eq!(FileType::from_dirent(dirent), Some(kind));
        }
        assert_eq!(FileType::from_mode(0o755), None);
        assert_eq!(FileType::from_dirent(200), None);
    }

    #[test]
    fn device_numbers_round_trip() {
        for (major, minor) in [(8, 1), (259, 1_000_000), (4095, 0xfffff), (0, 0)] {
            assert_eq!(decode_rdev(encode_rdev(major, minor)), (major, minor));
            assert_eq!(u64::from(encode_rdev(major, minor)), libc::makedev(major, minor));
        }
    }

    #[test]
    fn relatime_moves_only_stale_access_times() {
        let day = AccessTime::RELATIVE_SECONDS;
        let due = |atime, mtime, ctime, now| AccessTime::Relative.is_due(at(atime), at(mtime), at(ctime), at(now));
        assert!(due(10, 10, 5, 11), "read before or at the last change");
        assert!(due(10, 5, 10, 11));
        assert!(!due(10, 9, 9, 11));
        assert!(!due(10, 9, 9, 9 + day));
        assert!(due(10, 9, 9, 10 + day));
        assert!(!AccessTime::Never.is_due(at(1), at(2), at(2), at(3)));
        assert!(AccessTime::Strict.is_due(at(2), at(1), at(1), at(3)));
    }
}
