//! The kernel's FUSE wire format: `include/uapi/linux/fuse.h`, protocol 7.45 (Linux 6.18), in native byte order.
//!
//! Only what this transport sends, reads or must recognise is here. Every struct is plain old data whose size is
//! asserted against the header at compile time; meaning is given to them in `request` and `reply`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Protocol version spoken.
pub const MAJOR: u32 = 7;
/// Newest minor version understood.
pub const MINOR: u32 = 45;
/// Oldest minor version served (Linux 5.4); everything newer is negotiated by flags.
pub const MINOR_OLDEST: u32 = 31;
/// Node id of the root directory.
pub const ROOT_ID: u64 = 1;

macro_rules! wire {
    ($(#[$doc:meta])* $name:ident, $size:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type),* }
        const _: () = assert!(size_of::<$name>() == $size, concat!(stringify!($name), " must have the kernel's size"));
    };
}

wire!(
    /// Starts every request.
    InHeader, 40 {
        len: u32,
        opcode: u32,
        unique: u64,
        nodeid: u64,
        uid: u32,
        gid: u32,
        pid: u32,
        /// Length of the extensions behind the body, in units of 8 bytes.
        total_extlen: u16,
        padding: u16,
    }
);
wire!(
    /// Starts every reply and notification.
    OutHeader, 16 { len: u32, error: i32, unique: u64 }
);
wire!(
    InitIn, 64 {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
        flags2: u32,
        unused: [u32; 11],
    }
);
/// Length of an [`InitIn`] before its `flags2`.
pub const INIT_IN_OLD: usize = 16;
wire!(
    InitOut, 64 {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
        max_background: u16,
        congestion_threshold: u16,
        max_write: u32,
        time_gran: u32,
        max_pages: u16,
        map_alignment: u16,
        flags2: u32,
        max_stack_depth: u32,
        request_timeout: u16,
        unused: [u16; 11],
    }
);
wire!(
    FuseAttr, 88 {
        ino: u64,
        size: u64,
        blocks: u64,
        atime: u64,
        mtime: u64,
        ctime: u64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        nlink: u32,
        uid: u32,
        gid: u32,
        rdev: u32,
        blksize: u32,
        flags: u32,
    }
);
wire!(
    EntryOut, 128 {
        nodeid: u64,
        generation: u64,
        entry_valid: u64,
        attr_valid: u64,
        entry_valid_nsec: u32,
        attr_valid_nsec: u32,
        attr: FuseAttr,
    }
);
wire!(AttrOut, 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: FuseAttr });
wire!(StatxIn, 24 { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 });
wire!(SxTime, 16 { tv_sec: i64, tv_nsec: u32, reserved: i32 });
wire!(
    FuseStatx, 256 {
        mask: u32,
        blksize: u32,
        attributes: u64,
        nlink: u32,
        uid: u32,
        gid: u32,
        mode: u16,
        spare0: u16,
        ino: u64,
        size: u64,
        blocks: u64,
        attributes_mask: u64,
        atime: SxTime,
        btime: SxTime,
        ctime: SxTime,
        mtime: SxTime,
        rdev_major: u32,
        rdev_minor: u32,
        dev_major: u32,
        dev_minor: u32,
        spare2: [u64; 14],
    }
);
wire!(StatxOut, 288 { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: FuseStatx });
wire!(ForgetIn, 8 { nlookup: u64 });
wire!(ForgetOne, 16 { nodeid: u64, nlookup: u64 });
wire!(BatchForgetIn, 8 { count: u32, dummy: u32 });
wire!(
    SetAttrIn, 88 {
        valid: u32,
        padding: u32,
        fh: u64,
        size: u64,
        lock_owner: u64,
        atime: u64,
        mtime: u64,
        ctime: u64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        unused4: u32,
        uid: u32,
        gid: u32,
        unused5: u32,
    }
);
wire!(MknodIn, 16 { mode: u32, rdev: u32, umask: u32, padding: u32 });
wire!(MkdirIn, 8 { mode: u32, umask: u32 });
wire!(RenameIn, 8 { newdir: u64 });
wire!(Rename2In, 16 { newdir: u64, flags: u32, padding: u32 });
wire!(LinkIn, 8 { oldnodeid: u64 });
wire!(
    /// Of TMPFILE (and CREATE, which is declined).
    CreateIn, 16 { flags: u32, mode: u32, umask: u32, open_flags: u32 }
);
wire!(OpenOut, 16 { fh: u64, open_flags: u32, backing_id: i32 });
wire!(
    /// Of READ, READDIR and READDIRPLUS.
    ReadIn, 40 {
        fh: u64,
        offset: u64,
        size: u32,
        read_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
);
wire!(
    WriteIn, 40 {
        fh: u64,
        offset: u64,
        size: u32,
        write_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
);
wire!(WriteOut, 8 { size: u32, padding: u32 });
wire!(FsyncIn, 16 { fh: u64, fsync_flags: u32, padding: u32 });
wire!(
    /// With [`init::SETXATTR_EXT`]; without it only the first [`SETXATTR_IN_OLD`] bytes are sent.
    SetxattrIn, 16 { size: u32, flags: u32, setxattr_flags: u32, padding: u32 }
);
/// Length of a [`SetxattrIn`] without [`init::SETXATTR_EXT`].
pub const SETXATTR_IN_OLD: usize = 8;
wire!(
    /// Of GETXATTR and LISTXATTR.
    GetxattrIn, 8 { size: u32, padding: u32 }
);
wire!(GetxattrOut, 8 { size: u32, padding: u32 });
wire!(InterruptIn, 8 { unique: u64 });
wire!(FallocateIn, 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 });
wire!(IoctlIn, 32 { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 });
wire!(
    /// `struct fsxattr`.
    FsXattr, 28 { xflags: u32, extsize: u32, nextents: u32, projid: u32, cowextsize: u32, pad: [u8; 8] }
);
wire!(IoctlOut, 16 { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 });
wire!(LseekIn, 24 { fh: u64, offset: u64, whence: u32, padding: u32 });
wire!(LseekOut, 8 { offset: u64 });
wire!(
    /// Of COPY_FILE_RANGE and COPY_FILE_RANGE_64.
    CopyFileRangeIn, 56 {
        fh_in: u64,
        off_in: u64,
        nodeid_out: u64,
        fh_out: u64,
        off_out: u64,
        len: u64,
        flags: u64,
    }
);
wire!(
    /// Of COPY_FILE_RANGE_64; the older operation answers with a [`WriteOut`].
    CopyFileRangeOut, 8 { bytes_copied: u64 }
);
wire!(
    StatfsOut, 80 {
        blocks: u64,
        bfree: u64,
        bavail: u64,
        files: u64,
        ffree: u64,
        bsize: u32,
        namelen: u32,
        frsize: u32,
        padding: u32,
        spare: [u32; 6],
    }
);
wire!(
    /// Followed by the name and zeros up to a multiple of 8 bytes.
    Dirent, 24 { ino: u64, off: u64, namelen: u32, kind: u32 }
);
wire!(NotifyInvalInodeOut, 24 { ino: u64, off: i64, len: i64 });
wire!(NotifyInvalEntryOut, 16 { parent: u64, namelen: u32, flags: u32 });

/// Operations, the `opcode` of an [`InHeader`].
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
    pub const COPY_FILE_RANGE_64: u32 = 53;

    /// What people call an operation.
    pub fn name(opcode: u32) -> &'static str {
        match opcode {
            LOOKUP => "LOOKUP",
            FORGET => "FORGET",
            GETATTR => "GETATTR",
            SETATTR => "SETATTR",
            READLINK => "READLINK",
            SYMLINK => "SYMLINK",
            MKNOD => "MKNOD",
            MKDIR => "MKDIR",
            UNLINK => "UNLINK",
            RMDIR => "RMDIR",
            RENAME => "RENAME",
            LINK => "LINK",
            OPEN => "OPEN",
            READ => "READ",
            WRITE => "WRITE",
            STATFS => "STATFS",
            RELEASE => "RELEASE",
            FSYNC => "FSYNC",
            SETXATTR => "SETXATTR",
            GETXATTR => "GETXATTR",
            LISTXATTR => "LISTXATTR",
            REMOVEXATTR => "REMOVEXATTR",
            FLUSH => "FLUSH",
            INIT => "INIT",
            OPENDIR => "OPENDIR",
            READDIR => "READDIR",
            RELEASEDIR => "RELEASEDIR",
            FSYNCDIR => "FSYNCDIR",
            GETLK => "GETLK",
            SETLK => "SETLK",
            SETLKW => "SETLKW",
            ACCESS => "ACCESS",
            CREATE => "CREATE",
            INTERRUPT => "INTERRUPT",
            BMAP => "BMAP",
            DESTROY => "DESTROY",
            IOCTL => "IOCTL",
            POLL => "POLL",
            NOTIFY_REPLY => "NOTIFY_REPLY",
            BATCH_FORGET => "BATCH_FORGET",
            FALLOCATE => "FALLOCATE",
            READDIRPLUS => "READDIRPLUS",
            RENAME2 => "RENAME2",
            LSEEK => "LSEEK",
            COPY_FILE_RANGE => "COPY_FILE_RANGE",
            SYNCFS => "SYNCFS",
            TMPFILE => "TMPFILE",
            STATX => "STATX",
            COPY_FILE_RANGE_64 => "COPY_FILE_RANGE_64",
            _ => "an unknown operation",
        }
    }
}

/// Flags of [`InitIn`] and [`InitOut`]: offered by the kernel, taken by the reply.
pub mod init {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const POSIX_LOCKS: u32 = 1 << 1;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const EXPORT_SUPPORT: u32 = 1 << 4;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const DONT_MASK: u32 = 1 << 6;
    pub const FLOCK_LOCKS: u32 = 1 << 10;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const WRITEBACK_CACHE: u32 = 1 << 16;
    pub const NO_OPEN_SUPPORT: u32 = 1 << 17;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const HANDLE_KILLPRIV: u32 = 1 << 19;
    pub const POSIX_ACL: u32 = 1 << 20;
    pub const ABORT_ERROR: u32 = 1 << 21;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u32 = 1 << 24;
    pub const EXPLICIT_INVAL_DATA: u32 = 1 << 25;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
    pub const SETXATTR_EXT: u32 = 1 << 29;
    /// Both sides use `flags2`.
    pub const INIT_EXT: u32 = 1 << 30;
}

/// Flags of [`SetAttrIn::valid`].
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const LOCKOWNER: u32 = 1 << 9;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// Flags of [`OpenOut`].
pub mod fopen {
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const CACHE_DIR: u32 = 1 << 3;
    pub const NOFLUSH: u32 = 1 << 5;
}

/// `write_flags`: strip set-id bits and capabilities.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `fsync_flags`: data and what is needed to find it, not times.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
/// `setxattr_flags`: strip set-group-id, the caller is not in the file's group.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// Bit of `unique` that marks the interruption of the request with that bit clear.
pub const INTERRUPT_BIT: u64 = 1;

/// The `error` of an unsolicited message (`unique` 0).
pub mod notify {
    pub const INVAL_INODE: i32 = 2;
    pub const INVAL_ENTRY: i32 = 3;
    /// Since 7.44: every dentry is looked up again.
    pub const INC_EPOCH: i32 = 8;
}

/// `statx` mask: the basic fields.
pub const STATX_BASIC_STATS: u32 = 0x7ff;
/// `statx` mask: birth time.
pub const STATX_BTIME: u32 = 0x800;

/// The least buffer a read of `/dev/fuse` may offer, whatever `max_write` is.
pub const MIN_READ_BUFFER: usize = 8192;
/// The flags of a file, for `lsattr` and `chattr`: `_IOR('f', 1, long)` and `_IOW('f', 2, long)`. The kernel sends four bytes.
pub const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
pub const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
/// The same in a [`FsXattr`], which the kernel also asks for before it sets flags: `_IOR('X', 31, ..)`, `_IOW('X', 32, ..)`.
pub const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
pub const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
/// Those of the flags that mean something here, in both forms.
pub const FS_IMMUTABLE_FL: u32 = 0x10;
pub const FS_APPEND_FL: u32 = 0x20;
pub const FS_XFLAG_IMMUTABLE: u32 = 0x08;
pub const FS_XFLAG_APPEND: u32 = 0x10;

/// `ioctl` that makes a freshly opened `/dev/fuse` another queue of an existing connection: `_IOR(229, 0, u32)`.
pub const DEV_IOC_CLONE: u32 = 0x8004_e500;

/// Length rounded up to the 8 bytes that directory entries are aligned to.
pub fn align8(len: usize) -> usize {
    len.next_multiple_of(8)
}
