//! A request's bytes, as a typed value.
//!
//! Invariants of every [`Request`] that parses:
//! - Names are not empty and hold neither `/` nor NUL; `.` and `..` occur in [`Operation::Lookup`] only.
//! - `offset + length` of a range, and the cookie of a listing, is at most 2^63, so it never overflows.
//! - Borrowed slices lie inside the bytes given. No input panics or allocates.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use zerocopy::FromBytes;

use super::abi::{self, fattr, op};
use crate::base::file::{SetAttr, SetTime, Whence};
use crate::base::{Ino, Timestamp};

/// What the reply to INIT settled about the layout of later requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dialect {
    /// SETXATTR carries the longer [`abi::SetxattrIn`].
    pub setxattr_ext: bool,
}

/// One request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    pub header: Header,
    pub operation: Operation<'a>,
}

/// What all requests carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Names the request in its reply.
    pub unique: u64,
    pub opcode: u32,
    /// The inode it is about, or the directory that holds the name.
    pub ino: Ino,
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

/// In which form the flags of a file are asked for or given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlagsForm {
    /// As in `chattr`: one word.
    Word,
    /// As in `xfs_io`: a struct.
    Extended,
}

/// The request proper. Fields that this transport never uses (file handles, lock owners) are left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation<'a> {
    Init(abi::InitIn),
    Destroy,
    Lookup {
        name: &'a [u8],
    },
    Forget {
        references: u64,
    },
    BatchForget(Forgets<'a>),
    /// An interruption, which is not acted upon: the request it names is answered in its own time.
    Interrupt,
    GetAttr,
    Statx,
    SetAttr(SetAttr),
    ReadLink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    MkNod {
        name: &'a [u8],
        mode: u32,
        rdev: u32,
        umask: u32,
    },
    MkDir {
        name: &'a [u8],
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: &'a [u8],
    },
    RmDir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        new_parent: Ino,
        new_name: &'a [u8],
        flags: u32,
    },
    Link {
        existing: Ino,
        name: &'a [u8],
    },
    TmpFile {
        mode: u32,
        umask: u32,
    },
    Read {
        offset: u64,
        size: u32,
    },
    Write {
        offset: u64,
        data: &'a [u8],
        kill_suidgid: bool,
    },
    Fsync {
        datasync: bool,
    },
    SyncFs,
    ReadDir {
        cookie: u64,
        size: u32,
        plus: bool,
    },
    GetXattr {
        name: &'a [u8],
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    SetXattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
        kill_sgid: KillSgid,
    },
    RemoveXattr {
        name: &'a [u8],
    },
    StatFs,
    Seek {
        offset: u64,
        whence: Whence,
    },
    Fallocate {
        offset: u64,
        length: u64,
        mode: u32,
    },
    CopyFileRange {
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        length: u64,
        wide: bool,
    },
    Release,
    GetFlags {
        form: FlagsForm,
    },
    SetFlags {
        form: FlagsForm,
        flags: u32,
    },
    Ioctl,
    /// Answered with ENOSYS, which the kernel mostly remembers: opens, flushes, access checks, locks, and whatever a
    /// newer kernel may send. CREATE is among them: instead of it MKNOD comes, followed by an open that costs nothing,
    /// while a file made by CREATE would be followed by a RELEASE until the first open of another has been declined.
    Declined,
}

/// What a SETXATTR says about the set-group-id bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KillSgid {
    Yes,
    No,
    /// The kernel does not say.
    Untold,
}

/// A request that makes no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed {
    /// To be refused by this number; `None` when there is none or no reply is expected.
    pub unique: Option<u64>,
    pub opcode: u32,
    pub what: &'static str,
}

/// The references a BATCH_FORGET gives back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forgets<'a>(&'a [u8]);

impl Forgets<'_> {
    /// Each inode and the number of its references.
    pub fn iter(&self) -> impl Iterator<Item = (Ino, u64)> {
        self.0
            .chunks_exact(size_of::<abi::ForgetOne>())
            .filter_map(|one| abi::ForgetOne::read_from_bytes(one).ok())
            .map(|one| (Ino(one.nodeid), one.nlookup))
    }
}

impl<'a> Request<'a> {
    /// Reads one request from all the bytes that one read of `/dev/fuse` returned.
    pub fn parse(bytes: &'a [u8], dialect: Dialect) -> Result<Request<'a>, Malformed> {
        let anonymous = |what| Malformed { unique: None, opcode: 0, what };
        let (raw, _) = abi::InHeader::read_from_prefix(bytes).map_err(|_| anonymous("shorter than its header"))?;
        let expects_reply = !matches!(raw.opcode, op::FORGET | op::BATCH_FORGET | op::INTERRUPT | op::NOTIFY_REPLY);
        let malformed = |what| Malformed { unique: expects_reply.then_some(raw.unique), opcode: raw.opcode, what };
        let extensions = usize::from(raw.total_extlen) * 8;
        let body = (raw.len as usize)
            .checked_sub(extensions)
            .and_then(|end| bytes.get(size_of::<abi::InHeader>()..end))
            .ok_or_else(|| malformed("its length disagrees with what was read"))?;
        let header = Header {
            unique: raw.unique,
            opcode: raw.opcode,
            ino: Ino(raw.nodeid),
            uid: raw.uid,
            gid: raw.gid,
            pid: raw.pid,
        };
        let operation = operation(raw.opcode, Body(body), dialect).map_err(malformed)?;
        Ok(Request { header, operation })
    }
}

type Parsed<T> = Result<T, &'static str>;

fn operation(opcode: u32, mut body: Body<'_>, dialect: Dialect) -> Parsed<Operation<'_>> {
    Ok(match opcode {
        op::INIT => Operation::Init(body.init()?),
        op::DESTROY => Operation::Destroy,
        op::LOOKUP => Operation::Lookup { name: body.any_name()? },
        op::FORGET => Operation::Forget { references: body.take::<abi::ForgetIn>()?.nlookup },
        op::BATCH_FORGET => {
            let count = body.take::<abi::BatchForgetIn>()?.count as usize;
            let len = count.checked_mul(size_of::<abi::ForgetOne>()).ok_or("more forgets than bytes")?;
            Operation::BatchForget(Forgets(body.bytes(len)?))
        }
        op::INTERRUPT | op::NOTIFY_REPLY => Operation::Interrupt,
        op::GETATTR => Operation::GetAttr,
        op::STATX => Operation::Statx,
        op::SETATTR => Operation::SetAttr(set_attr(&body.take()?)?),
        op::READLINK => Operation::ReadLink,
        op::SYMLINK => Operation::Symlink { name: body.name()?, target: body.text()? },
        op::MKNOD => {
            let abi::MknodIn { mode, rdev, umask, .. } = body.take()?;
            Operation::MkNod { name: body.name()?, mode, rdev, umask }
        }
        op::MKDIR => {
            let abi::MkdirIn { mode, umask } = body.take()?;
            Operation::MkDir { name: body.name()?, mode, umask }
        }
        op::UNLINK => Operation::Unlink { name: body.name()? },
        op::RMDIR => Operation::RmDir { name: body.name()? },
        op::RENAME => {
            let new_parent = Ino(body.take::<abi::RenameIn>()?.newdir);
            Operation::Rename { name: body.name()?, new_parent, new_name: body.name()?, flags: 0 }
        }
        op::RENAME2 => {
            let abi::Rename2In { newdir, flags, .. } = body.take()?;
            Operation::Rename { name: body.name()?, new_parent: Ino(newdir), new_name: body.name()?, flags }
        }
        op::LINK => {
            let existing = Ino(body.take::<abi::LinkIn>()?.oldnodeid);
            Operation::Link { existing, name: body.name()? }
        }
        op::TMPFILE => {
            let abi::CreateIn { mode, umask, .. } = body.take()?;
            Operation::TmpFile { mode, umask }
        }
        op::READ => {
            let abi::ReadIn { offset, size, .. } = body.take()?;
            range(offset, u64::from(size))?;
            Operation::Read { offset, size }
        }
        op::READDIR | op::READDIRPLUS => {
            let abi::ReadIn { offset, size, .. } = body.take()?;
            range(offset, 0)?;
            Operation::ReadDir { cookie: offset, size, plus: opcode == op::READDIRPLUS }
        }
        op::WRITE => {
            let abi::WriteIn { offset, size, write_flags, .. } = body.take()?;
            range(offset, u64::from(size))?;
            let kill_suidgid = write_flags & abi::WRITE_KILL_SUIDGID != 0;
            Operation::Write { offset, data: body.bytes(size as usize)?, kill_suidgid }
        }
        op::FSYNC | op::FSYNCDIR => {
            Operation::Fsync { datasync: body.take::<abi::FsyncIn>()?.fsync_flags & abi::FSYNC_FDATASYNC != 0 }
        }
        op::SYNCFS => Operation::SyncFs,
        op::GETXATTR => {
            let size = body.take::<abi::GetxattrIn>()?.size;
            Operation::GetXattr { name: body.xattr_name()?, size }
        }
        op::LISTXATTR => Operation::ListXattr { size: body.take::<abi::GetxattrIn>()?.size },
        op::SETXATTR => body.set_xattr(dialect)?,
        op::REMOVEXATTR => Operation::RemoveXattr { name: body.xattr_name()? },
        op::STATFS => Operation::StatFs,
        op::LSEEK => {
            let abi::LseekIn { offset, whence, .. } = body.take()?;
            range(offset, 0)?;
            let whence = match whence as i32 {
                libc::SEEK_DATA => Whence::Data,
                libc::SEEK_HOLE => Whence::Hole,
                _ => return Err("a seek for neither data nor hole"),
            };
            Operation::Seek { offset, whence }
        }
        op::FALLOCATE => {
            let abi::FallocateIn { offset, length, mode, .. } = body.take()?;
            range(offset, length)?;
            Operation::Fallocate { offset, length, mode }
        }
        op::COPY_FILE_RANGE | op::COPY_FILE_RANGE_64 => {
            let abi::CopyFileRangeIn { off_in, nodeid_out, off_out, len, flags, .. } = body.take()?;
            if flags != 0 {
                return Err("unknown flags of a range copy");
            }
            range(off_in, 0)?;
            range(off_out, 0)?;
            let length = len.min(RANGE_END - off_in.max(off_out));
            let wide = opcode == op::COPY_FILE_RANGE_64;
            Operation::CopyFileRange { from_offset: off_in, to: Ino(nodeid_out), to_offset: off_out, length, wide }
        }
        op::RELEASE | op::RELEASEDIR => Operation::Release,
        op::IOCTL => {
            let abi::IoctlIn { cmd, in_size, .. } = body.take()?;
            match (cmd, in_size) {
                (abi::FS_IOC_GETFLAGS, _) => Operation::GetFlags { form: FlagsForm::Word },
                (abi::FS_IOC_FSGETXATTR, _) => Operation::GetFlags { form: FlagsForm::Extended },
                (abi::FS_IOC_SETFLAGS, 4..) => Operation::SetFlags { form: FlagsForm::Word, flags: body.take()? },
                (abi::FS_IOC_FSSETXATTR, 28..) => {
                    let abi::FsXattr { xflags: flags, .. } = body.take()?;
                    Operation::SetFlags { form: FlagsForm::Extended, flags }
                }
                _ => Operation::Ioctl,
            }
        }
        _ => Operation::Declined,
    })
}

/// The end of the last byte a file can hold, rounded up to a page as readahead does.
const RANGE_END: u64 = 1 << 63;

fn range(offset: u64, length: u64) -> Parsed<()> {
    match offset.checked_add(length) {
        Some(end) if end <= RANGE_END => Ok(()),
        _ => Err("a range beyond the largest file"),
    }
}

fn set_attr(raw: &abi::SetAttrIn) -> Parsed<SetAttr> {
    let valid = |flag| raw.valid & flag != 0;
    let time = |flag, now, seconds: u64, nanos: u32| -> Parsed<Option<SetTime>> {
        Ok(match (valid(flag), valid(now)) {
            (false, _) => None,
            (true, true) => Some(SetTime::Now),
            (true, false) => Some(SetTime::At(timestamp(seconds, nanos)?)),
        })
    };
    if valid(fattr::SIZE) {
        range(raw.size, 0)?;
    }
    Ok(SetAttr {
        mode: valid(fattr::MODE).then_some(raw.mode),
        uid: valid(fattr::UID).then_some(raw.uid),
        gid: valid(fattr::GID).then_some(raw.gid),
        size: valid(fattr::SIZE).then_some(raw.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, raw.atime, raw.atimensec)?,
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, raw.mtime, raw.mtimensec)?,
        ctime: if valid(fattr::CTIME) { Some(timestamp(raw.ctime, raw.ctimensec)?) } else { None },
        kill_suidgid: valid(fattr::KILL_SUIDGID),
    })
}

fn timestamp(seconds: u64, nanos: u32) -> Parsed<Timestamp> {
    if nanos >= 1_000_000_000 {
        return Err("a time with a second or more of nanoseconds");
    }
    Ok(Timestamp { seconds: seconds as i64, nanos })
}

/// What is left of a request's body.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    /// The next fixed struct.
    fn take<T: FromBytes>(&mut self) -> Parsed<T> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| "shorter than its arguments")?;
        self.0 = rest;
        Ok(value)
    }

    /// The next `len` bytes.
    fn bytes(&mut self, len: usize) -> Parsed<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or("shorter than the data it announces")?;
        self.0 = rest;
        Ok(bytes)
    }

    /// The bytes before the next NUL.
    fn text(&mut self) -> Parsed<&'a [u8]> {
        let len = self.0.iter().position(|byte| *byte == 0).ok_or("text without an end")?;
        let text = self.bytes(len)?;
        self.bytes(1)?;
        if text.is_empty() { Err("an empty text") } else { Ok(text) }
    }

    /// A name of a directory entry, `.` and `..` included.
    fn any_name(&mut self) -> Parsed<&'a [u8]> {
        let name = self.text()?;
        if name.contains(&b'/') { Err("a name with a slash") } else { Ok(name) }
    }

    /// A name that can be made or removed.
    fn name(&mut self) -> Parsed<&'a [u8]> {
        match self.any_name()? {
            b"." | b".." => Err("a name that every directory has"),
            name => Ok(name),
        }
    }

    fn xattr_name(&mut self) -> Parsed<&'a [u8]> {
        self.text()
    }

    fn init(&mut self) -> Parsed<abi::InitIn> {
        if let Ok(whole) = abi::InitIn::read_from_prefix(self.0) {
            return Ok(whole.0);
        }
        // Kernels before 5.17 end behind `flags`; some send nothing behind the versions when the major differs.
        let [major, minor, max_readahead, flags]: [u32; abi::INIT_IN_OLD / 4] = self.take()?;
        Ok(abi::InitIn { major, minor, max_readahead, flags, ..Default::default() })
    }

    fn set_xattr(&mut self, dialect: Dialect) -> Parsed<Operation<'a>> {
        let (size, flags, kill_sgid) = if dialect.setxattr_ext {
            let abi::SetxattrIn { size, flags, setxattr_flags, .. } = self.take()?;
            let kill = setxattr_flags & abi::SETXATTR_ACL_KILL_SGID != 0;
            (size, flags, if kill { KillSgid::Yes } else { KillSgid::No })
        } else {
            let [size, flags]: [u32; abi::SETXATTR_IN_OLD / 4] = self.take()?;
            (size, flags, KillSgid::Untold)
        };
        let name = self.xattr_name()?;
        Ok(Operation::SetXattr { name, value: self.bytes(size as usize)?, flags, kill_sgid })
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
