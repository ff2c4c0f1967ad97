//! The filesystem as the transport wants it: each operation is the method of the same name.

use super::handler::Filesystem;
use crate::base::file::{
    Attr, Caller, DirEntry, Entry, FallocateMode, FileFlags, RenameMode, SetAttr, Sink, StatFs, Whence, XattrSet,
};
use crate::base::{Ino, Result};
use crate::format::rows::{FLAG_APPEND, FLAG_IMMUTABLE};
use crate::fs::Fs;

impl Filesystem for Fs {
    fn lookup(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Entry> {
        Fs::lookup(self, caller, parent, name)
    }

    fn forget(&self, ino: Ino, references: u64) {
        Fs::forget(self, ino, references);
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        Fs::getattr(self, ino)
    }

    fn setattr(&self, caller: &Caller, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        Fs::setattr(self, caller, ino, changes)
    }

    fn flags(&self, ino: Ino) -> Result<FileFlags> {
        let flags = Fs::flags(self, ino)?;
        Ok(FileFlags { immutable: flags & FLAG_IMMUTABLE != 0, append: flags & FLAG_APPEND != 0 })
    }

    fn set_flags(&self, caller: &Caller, ino: Ino, flags: FileFlags) -> Result<()> {
        let immutable = if flags.immutable { FLAG_IMMUTABLE } else { 0 };
        let append = if flags.append { FLAG_APPEND } else { 0 };
        Fs::set_flags(self, caller, ino, immutable | append)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        Fs::readlink(self, ino)
    }

    fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Entry> {
        Fs::mknod(self, caller, parent, name, mode, rdev)
    }

    fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Entry> {
        Fs::mkdir(self, caller, parent, name, mode)
    }

    fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Entry> {
        Fs::symlink(self, caller, parent, name, target)
    }

    fn tmpfile(&self, caller: &Caller, parent: Ino, mode: u32) -> Result<Entry> {
        Fs::tmpfile(self, caller, parent, mode)
    }

    fn link(&self, caller: &Caller, ino: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Entry> {
        Fs::link(self, caller, ino, new_parent, new_name)
    }

    fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        Fs::unlink(self, caller, parent, name)
    }

    fn rmdir(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        Fs::rmdir(self, caller, parent, name)
    }

    fn rename(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        Fs::rename(self, caller, parent, name, new_parent, new_name, mode)
    }

    fn read(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<usize> {
        Fs::read(self, ino, offset, out)
    }

    fn write(&self, caller: &Caller, ino: Ino, offset: u64, data: &[u8], kill_suidgid: bool) -> Result<usize> {
        Fs::write(self, caller, ino, offset, data, kill_suidgid)
    }

    fn fallocate(&self, caller: &Caller, ino: Ino, offset: u64, length: u64, mode: FallocateMode) -> Result<()> {
        Fs::fallocate(self, caller, ino, offset, length, mode)
    }

    fn copy_file_range(
        &self,
        caller: &Caller,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        length: u64,
    ) -> Result<u64> {
        Fs::copy_file_range(self, caller, from, from_offset, to, to_offset, length)
    }

    fn seek(&self, ino: Ino, offset: u64, whence: Whence) -> Result<u64> {
        Fs::seek(self, ino, offset, whence)
    }

    fn fsync(&self, ino: Ino, datasync: bool) -> Result<()> {
        Fs::fsync(self, ino, datasync)
    }

    fn syncfs(&self) -> Result<()> {
        Fs::syncfs(self)
    }

    fn readdir(&self, ino: Ino, cookie: u64, sink: &mut dyn FnMut(&DirEntry<'_>) -> Sink) -> Result<()> {
        Fs::readdir(self, ino, cookie, sink)
    }

    fn readdir_plus(
        &self,
        ino: Ino,
        cookie: u64,
        sink: &mut dyn FnMut(&DirEntry<'_>, Option<&Entry>) -> Sink,
    ) -> Result<()> {
        Fs::readdir_plus(self, ino, cookie, sink)
    }

    fn get_xattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        Fs::get_xattr(self, caller, ino, name)
    }

    fn list_xattr(&self, caller: &Caller, ino: Ino) -> Result<Vec<u8>> {
        Fs::list_xattr(self, caller, ino)
    }

    fn set_xattr(
        &self,
        caller: &Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        set: XattrSet,
        kill_sgid: bool,
    ) -> Result<()> {
        Fs::set_xattr(self, caller, ino, name, value, set, kill_sgid)
    }

    fn remove_xattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<()> {
        Fs::remove_xattr(self, caller, ino, name)
    }

    fn statfs(&self) -> Result<StatFs> {
        Fs::statfs(self)
    }
}
