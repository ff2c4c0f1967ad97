//! What a filesystem answers to the kernel: one method per operation, in plain types.
//!
//! Rules of the interface:
//! - Methods run on many threads at once and may block: other requests go on meanwhile.
//! - The kernel has checked permissions (mode bits, ACLs, sticky directories, immutable mount flags) and serialises
//!   changes of one directory, but renames across directories and I/O on one file arrive in parallel.
//! - References: every [`Entry`] handed out (by lookup, the makers of inodes, link, and each entry taken by
//!   `readdir_plus` with an entry beside it) gives the asker one reference. [`Filesystem::forget`] returns them. An
//!   inode without names lives while references are left: that is what keeps open files alive, as files are never
//!   opened or closed explicitly. Unmounting returns no references; the session's end drops them all.
//! - Names are not empty and hold neither `/` nor NUL. Longer ones than [`crate::base::file::NAME_MAX`] do arrive and
//!   are answered with [`crate::base::Error::NameTooLong`].
//! - Everything may be cached for ever by the asker. What changes without having been asked for is told through
//!   [`super::Notifier`].

use crate::base::file::{
    Attr, Caller, DirEntry, Entry, FallocateMode, FileFlags, RenameMode, SetAttr, Sink, StatFs, Whence, XattrSet,
};
use crate::base::{Error, Ino, Result};

/// A filesystem that can be mounted.
pub trait Filesystem: Send + Sync {
    /// Finds `name` in `parent`; `NotFound` is remembered by the kernel until the name is made. `.` (the inode itself)
    /// and `..` are asked for by NFS handles, `.` of any kind of inode.
    fn lookup(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Entry>;

    /// Takes back `references`. Must neither block nor take long.
    fn forget(&self, ino: Ino, references: u64);

    /// Attributes as of now.
    fn getattr(&self, ino: Ino) -> Result<Attr>;

    /// Changes attributes in one step and tells the result.
    fn setattr(&self, caller: &Caller, ino: Ino, changes: &SetAttr) -> Result<Attr>;

    /// What may happen to the file at all.
    fn flags(&self, _ino: Ino) -> Result<FileFlags> {
        Ok(FileFlags::default())
    }

    /// Sets it; a change of the time of change is not told, but looked up anew.
    fn set_flags(&self, _caller: &Caller, _ino: Ino, _flags: FileFlags) -> Result<()> {
        Err(Error::Unsupported)
    }

    /// The target of a symbolic link.
    fn readlink(&self, ino: Ino) -> Result<Vec<u8>>;

    /// Makes a file of any kind but directory and symbolic link. `mode` is a full `st_mode` on which
    /// [`Caller::umask`] has not been applied.
    fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Entry>;

    /// Makes a directory; `mode` as in [`Filesystem::mknod`].
    fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Entry>;

    /// Makes a symbolic link.
    fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Entry>;

    /// Makes a regular file without a name in the filesystem of `parent`; [`Filesystem::link`] may name it later.
    fn tmpfile(&self, caller: &Caller, parent: Ino, mode: u32) -> Result<Entry>;

    /// Gives an inode another name.
    fn link(&self, caller: &Caller, ino: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Entry>;

    /// Removes a name of anything but a directory.
    fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()>;

    /// Removes an empty directory.
    fn rmdir(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()>;

    /// Moves a name.
    fn rename(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()>;

    /// Fills `out` from `offset` and tells how much; less than `out.len()` only at the end of the file.
    fn read(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<usize>;

    /// Writes `data` at `offset` and tells how much was taken. `kill_suidgid`: as [`SetAttr::kill_suidgid`].
    fn write(&self, caller: &Caller, ino: Ino, offset: u64, data: &[u8], kill_suidgid: bool) -> Result<usize>;

    /// Reserves, frees or zeroes a range. Strips set-id bits unless [`Caller::keeps_set_id`].
    fn fallocate(&self, caller: &Caller, ino: Ino, offset: u64, length: u64, mode: FallocateMode) -> Result<()>;

    /// Makes `length` bytes of `to` equal to those of `from`, sharing storage where it can, and tells how many; fewer
    /// only at the end of `from`. Strips set-id bits of `to` unless [`Caller::keeps_set_id`].
    fn copy_file_range(
        &self,
        caller: &Caller,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        length: u64,
    ) -> Result<u64>;

    /// The next data or hole at or after `offset`; `NoData` when there is none or `offset` is not inside the file.
    fn seek(&self, ino: Ino, offset: u64, whence: Whence) -> Result<u64>;

    /// Makes the file (or directory) durable; with `datasync` its times may stay behind.
    fn fsync(&self, ino: Ino, datasync: bool) -> Result<()>;

    /// Makes everything durable.
    fn syncfs(&self) -> Result<()>;

    /// Lists `ino` behind `cookie` (0: from the start, with `.` and `..` first) until `sink` is full or the end.
    fn readdir(&self, ino: Ino, cookie: u64, sink: &mut dyn FnMut(&DirEntry<'_>) -> Sink) -> Result<()>;

    /// As [`Filesystem::readdir`], with each inode as `lookup` would give it. A taken entry that came with `Some` gives
    /// the asker a reference; `.` and `..` always come with `None`, and so may anything that is better asked for later.
    fn readdir_plus(
        &self,
        ino: Ino,
        cookie: u64,
        sink: &mut dyn FnMut(&DirEntry<'_>, Option<&Entry>) -> Sink,
    ) -> Result<()>;

    /// The value of an extended attribute.
    fn get_xattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<Vec<u8>>;

    /// The names of all extended attributes, each ended by a NUL.
    fn list_xattr(&self, caller: &Caller, ino: Ino) -> Result<Vec<u8>>;

    /// Sets an extended attribute. `kill_sgid`: the caller is outside the file's group and sets its access ACL, which
    /// strips set-group-id in the same step.
    fn set_xattr(
        &self,
        caller: &Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        set: XattrSet,
        kill_sgid: bool,
    ) -> Result<()>;

    /// Removes an extended attribute.
    fn remove_xattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<()>;

    /// Space and inodes.
    fn statfs(&self) -> Result<StatFs>;
}
