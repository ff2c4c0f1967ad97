//! Names: finding, making, linking and removing them.

use super::change::{Change, Slot, new_row};
use super::dentry::{self, Place};
use super::{Fs, acl, attr};
use crate::base::file::{Caller, Entry, FileType, MODE_BITS, S_ISGID, SYMLINK_MAX};
use crate::base::sync::thread;
use crate::base::{Error, Ino, Result};
use crate::format::rows::{ExtentBody, ExtentRow, InodeRow, JournalOp};
use crate::format::table::{Inodes, Orphans};
use crate::meta::{Reader, View};
use crate::store::extents;

/// Most names of a file, and most subdirectories of a directory.
pub const LINK_MAX: u32 = i32::MAX as u32;

/// Bytes of a symbolic link's target in one extent row.
const TARGET_PIECE: usize = 1000;

/// Views a lookup tries while the name it found is being removed by a transaction that did not commit yet.
const LOOKUP_RETRIES: usize = 1000;

/// What is to be made.
struct Blueprint<'a> {
    /// Full `st_mode` as asked for.
    mode: u32,
    rdev: u32,
    /// Target of a symbolic link.
    target: &'a [u8],
}

impl Fs {
    /// Finds `name` in `parent`. `.` is the inode itself, of any kind; `..` a directory's parent.
    pub fn lookup(&self, _caller: &Caller, parent: Ino, name: &[u8]) -> Result<Entry> {
        let parent = self.inner(parent)?;
        if name == b"." {
            return self.enter(parent)?.ok_or(Error::Stale);
        }
        let directory = self.shown(parent)?;
        if !attr::is_directory(&directory) {
            return Err(Error::NotDirectory);
        }
        if name == b".." {
            return self.enter(directory.parent)?.ok_or(Error::Stale);
        }
        dentry::check_name(name)?;
        let base = self.names.base(name);
        for _ in 0..LOOKUP_RETRIES {
            let find = |view: &View<'_>| dentry::find(view, parent, base, name);
            let Some(found) = self.store.peek(find)? else { return Err(Error::NotFound) };
            if let Some(entry) = self.enter(found.ino)? {
                return Ok(entry);
            }
            // The name is just being removed or given to another inode; the next view will tell. A name that stays
            // without an inode is damage.
            self.store.peek(|view| {
                match (dentry::find(view, parent, base, name)?, view.get::<Inodes>(&found.ino)?) {
                    (Some(again), None) if again.ino == found.ino => Err(Error::corrupt(format!(
                        "a name in directory {parent} refers to inode {}, which does not exist; run fsck",
                        found.ino
                    ))),
                    _ => Ok(()),
                }
            })?;
            thread::yield_now();
        }
        Err(Error::NotFound)
    }

    /// Hands out a reference to an inode that has a name; `None` when it has not.
    pub(super) fn enter(&self, ino: Ino) -> Result<Option<Entry>> {
        let state = self.inodes.state(ino);
        let live = self.filled(&state)?;
        let Some(row) = live.shown().filter(|row| row.nlink > 0) else { return Ok(None) };
        // Within the lock of the state, so that a reclaimer sees either the reference or no name.
        self.inodes.refer(ino, 1);
        Ok(Some(self.entry(ino, &row)))
    }

    /// Makes a file of any kind but directory and symbolic link. The umask was not applied to `mode`.
    pub fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Entry> {
        let kind = match FileType::from_mode(mode) {
            None if mode & !MODE_BITS == 0 => FileType::Regular,
            None | Some(FileType::Directory | FileType::Symlink) => {
                return Err(Error::Invalid("mknod makes neither directories nor symbolic links"));
            }
            Some(kind) => kind,
        };
        let rdev = if matches!(kind, FileType::CharDevice | FileType::BlockDevice) { rdev } else { 0 };
        let mode = kind.mode_bits() | (mode & MODE_BITS);
        self.make(caller, parent, Some(name), &Blueprint { mode, rdev, target: &[] })
    }

    /// Makes a directory. The umask was not applied to `mode`.
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Entry> {
        let mode = FileType::Directory.mode_bits() | (mode & MODE_BITS);
        self.make(caller, parent, Some(name), &Blueprint { mode, rdev: 0, target: &[] })
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Entry> {
        match target {
            [] => return Err(Error::NotFound),
            _ if target.len() > SYMLINK_MAX => return Err(Error::NameTooLong),
            _ if target.contains(&0) => return Err(Error::Invalid("a symbolic link's target holds a NUL")),
            _ => {}
        }
        let mode = FileType::Symlink.mode_bits() | 0o777;
        self.make(caller, parent, Some(name), &Blueprint { mode, rdev: 0, target })
    }

    /// Makes a regular file without a name; [`Fs::link`] may name it later.
    pub fn tmpfile(&self, caller: &Caller, parent: Ino, mode: u32) -> Result<Entry> {
        let mode = FileType::Regular.mode_bits() | (mode & MODE_BITS);
        self.make(caller, parent, None, &Blueprint { mode, rdev: 0, target: &[] })
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, node: Ino) -> Result<Vec<u8>> {
        let ino = self.inner(node)?;
        let row = self.shown(ino)?;
        if attr::kind(&row) != FileType::Symlink {
            return Err(Error::Invalid("not a symbolic link"));
        }
        if row.size == 0 || row.size > SYMLINK_MAX as u64 {
            return Err(Error::corrupt(format!("symbolic link {ino} has a target of {} bytes; run fsck", row.size)));
        }
        let mut target = vec![0; row.size as usize];
        self.store.read(ino, 0, &mut target)?;
        self.touch_access_time(&self.inodes.state(ino))?;
        Ok(target)
    }

    fn make(&self, caller: &Caller, parent: Ino, name: Option<&[u8]>, plan: &Blueprint<'_>) -> Result<Entry> {
        if let Some(name) = name {
            check_new_name(name)?;
        }
        let parent = self.inner(parent)?;
        let room = self.room_for_rows();
        self.mutate(|change| {
            let directory = change.load_directory(parent)?;
            let cookie = match name {
                None => None,
                Some(name) => match dentry::place(change.tx, parent, self.names.base(name), name)? {
                    Place::Taken(_) => return Err(Error::Exists),
                    Place::Free(cookie) => Some(cookie),
                },
            };
            attr::check_changeable(change.row(directory), true)?;
            room?;
            let inherited = acl::inherit(change, directory, plan.mode, caller.umask)?;
            let row = first_row(change, directory, caller, plan, inherited.mode);
            let child = change.create(row)?;
            inherited.store(change, child)?;
            put_target(change, child, plan.target)?;
            let ino = change.ino(child);
            match (name, cookie) {
                (Some(name), Some(cookie)) => {
                    let kind = attr::kind(change.row(child));
                    add_name(change, directory, cookie, name, ino, kind)?;
                }
                _ => {
                    change.row_mut(child).nlink = 0;
                    change.set_linkable(child, true);
                    change.orphan(child)?;
                }
            }
            let mode = change.row(child).mode;
            let name = name.unwrap_or_default().to_vec();
            change.journal(caller.uid, JournalOp::Create { parent: parent.0, name, ino: ino.0, mode })?;
            Ok(change.refer(child))
        })
    }

    /// Gives an inode another name.
    pub fn link(&self, caller: &Caller, node: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Entry> {
        check_new_name(new_name)?;
        let (ino, parent) = (self.inner(node)?, self.inner(new_parent)?);
        let room = self.room_for_rows();
        self.mutate(|change| {
            let directory = change.load_directory(parent)?;
            let slot = change.load(ino)?;
            let row = change.row(slot);
            if attr::is_directory(row) {
                return Err(Error::NotPermitted);
            }
            let Place::Free(cookie) = dentry::place(change.tx, parent, self.names.base(new_name), new_name)? else {
                return Err(Error::Exists);
            };
            let row = change.row(slot);
            attr::check_changeable(row, false)?;
            attr::check_changeable(change.row(directory), true)?;
            if row.nlink >= LINK_MAX {
                return Err(Error::TooManyLinks);
            }
            room?;
            let row = change.row(slot);
            if row.nlink == 0 {
                if !change.is_linkable(slot) {
                    return Err(Error::NotFound);
                }
                change.tx.delete::<Orphans>(&ino)?;
                change.set_linkable(slot, false);
            }
            let now = change.now();
            let row = change.row_mut(slot);
            row.nlink += 1;
            row.ctime = now;
            let kind = attr::kind(row);
            add_name(change, directory, cookie, new_name, ino, kind)?;
            let name = new_name.to_vec();
            change.journal(caller.uid, JournalOp::Link { ino: ino.0, parent: parent.0, name })?;
            Ok(change.refer(slot))
        })
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(
            caller,
            parent,
            name,
            |_, row| if attr::is_directory(row) { Err(Error::IsDirectory) } else { Ok(()) },
        )
    }

    /// Removes a name of one inode; [`Error::NotFound`] when it is another one's by now.
    pub fn unlink_inode(&self, caller: &Caller, parent: Ino, name: &[u8], node: Ino) -> Result<()> {
        let ino = self.inner(node)?;
        self.remove(caller, parent, name, |found, row| match attr::is_directory(row) {
            true => Err(Error::IsDirectory),
            false if found != ino => Err(Error::NotFound),
            false => Ok(()),
        })
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(caller, parent, name, |_, row| {
            if !attr::is_directory(row) {
                Err(Error::NotDirectory)
            } else if row.entries > 0 {
                Err(Error::NotEmpty)
            } else {
                Ok(())
            }
        })
    }

    fn remove(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        check: impl FnOnce(Ino, &InodeRow) -> Result<()>,
    ) -> Result<()> {
        dentry::check_name(name)?;
        let parent = self.inner(parent)?;
        self.mutate(|change| {
            let directory = change.load_directory(parent)?;
            let found = dentry::find(change.tx, parent, self.names.base(name), name)?.ok_or(Error::NotFound)?;
            let victim = change.load_named(found.ino)?;
            let row = change.row(victim);
            check(found.ino, row)?;
            attr::check_changeable(row, false)?;
            attr::check_changeable(change.row(directory), false)?;
            let is_directory = attr::is_directory(row);
            change.remove_name(directory, found.cookie)?;
            change.count_names(directory, -1, if is_directory { -1 } else { 0 });
            change.unlink(victim)?;
            let (parent, name, ino) = (parent.0, name.to_vec(), found.ino.0);
            let operation = if is_directory {
                JournalOp::Rmdir { parent, name, ino }
            } else {
                JournalOp::Unlink { parent, name, ino }
            };
            change.journal(caller.uid, operation)
        })
    }
}

/// As [`dentry::check_name`], for names to be made: `.` and `..` exist already.
fn check_new_name(name: &[u8]) -> Result<()> {
    if matches!(name, b"." | b"..") { Err(Error::Exists) } else { dentry::check_name(name) }
}

/// Puts a name into a directory and counts it.
fn add_name(
    change: &mut Change<'_, '_>,
    directory: Slot,
    cookie: u64,
    name: &[u8],
    ino: Ino,
    kind: FileType,
) -> Result<()> {
    let is_directory = kind == FileType::Directory;
    if is_directory && change.row(directory).nlink >= LINK_MAX {
        return Err(Error::TooManyLinks);
    }
    change.put_name(directory, cookie, name, ino, kind.dirent())?;
    change.count_names(directory, 1, i32::from(is_directory));
    Ok(())
}

/// The row of a new inode: group and set-group-id as the directory hands them down, the mode as inherited.
fn first_row(change: &Change<'_, '_>, directory: Slot, caller: &Caller, plan: &Blueprint<'_>, mode: u32) -> InodeRow {
    let parent = change.row(directory);
    let hands_down = parent.mode & S_ISGID != 0;
    let gid = if hands_down { parent.gid } else { caller.gid };
    let mut row = new_row(change.now(), change.tx.id(), mode, caller.uid, gid);
    row.project = parent.project;
    row.policy = parent.policy;
    row.rdev = plan.rdev;
    row.size = plan.target.len() as u64;
    if attr::is_directory(&row) {
        row.nlink = 2;
        row.parent = change.ino(directory);
        row.mode |= if hands_down { S_ISGID } else { 0 };
    }
    row
}

/// Stores the target of a symbolic link as content.
fn put_target(change: &mut Change<'_, '_>, slot: Slot, target: &[u8]) -> Result<()> {
    let (ino, birth) = (change.ino(slot), change.tx.id());
    let mut offset = 0;
    for piece in target.chunks(TARGET_PIECE) {
        let row = ExtentRow { length: piece.len() as u64, birth, body: ExtentBody::Inline(piece.to_vec()) };
        extents::insert(change.tx, ino, offset, &row, change.ledger)?;
        offset += piece.len() as u64;
    }
    if offset > 0 {
        change.row_mut(slot).content = offset;
    }
    Ok(())
}
