//! Listing directories.
//!
//! Names come in the order of their cookies, so a listing that goes on behind a cookie shows every name that existed
//! all the while exactly once, whatever else happens in the directory.

use super::dentry;
use super::{Fs, attr};
use crate::base::file::{DirEntry, Entry, FileType, Sink};
use crate::base::{Error, Ino, Result};
use crate::format::rows::{DentryRow, InodeRow};
use crate::format::table::Inodes;
use crate::meta::{Reader, Visit};

const DOT: u64 = 1;
const DOT_DOT: u64 = 2;
/// Names read ahead of the sink when their inodes are wanted too: about what one request of the kernel holds.
const BATCH: usize = 32;

impl Fs {
    /// Lists `node` behind `cookie` (0: from the start, with `.` and `..` first) until `sink` is full or the end.
    pub fn readdir(&self, node: Ino, cookie: u64, sink: &mut dyn FnMut(&DirEntry<'_>) -> Sink) -> Result<()> {
        let Some(ino) = self.open_listing(node, cookie, sink)? else { return Ok(()) };
        self.store.view(|view| {
            dentry::list(view, ino, cookie, |cookie, row| {
                let entry = DirEntry { ino: self.outer(row.ino), kind: kind(&row)?, name: &row.name, cookie };
                Ok(match sink(&entry) {
                    Sink::Taken => Visit::Continue(()),
                    Sink::Full => Visit::Break(()),
                })
            })
        })
    }

    /// As [`Fs::readdir`], with each inode as a lookup would give it; an entry taken with its inode is a reference.
    pub fn readdir_plus(
        &self,
        node: Ino,
        mut cookie: u64,
        sink: &mut dyn FnMut(&DirEntry<'_>, Option<&Entry>) -> Sink,
    ) -> Result<()> {
        let Some(ino) = self.open_listing(node, cookie, &mut |entry| sink(entry, None))? else { return Ok(()) };
        loop {
            let mut names = Vec::with_capacity(BATCH);
            self.store.view(|view| {
                dentry::list(view, ino, cookie, |cookie, row| {
                    names.push((cookie, row));
                    Ok(if names.len() < BATCH { Visit::Continue(()) } else { Visit::Break(()) })
                })
            })?;
            let states: Vec<_> = names.iter().map(|(_, row)| self.inodes.state(row.ino)).collect();
            // One view for all rows that are not in memory. It begins after the states are held, so that it is not
            // older than what is published meanwhile; and what was published meanwhile is not replaced.
            self.store.view(|view| {
                for state in &states {
                    if state.live().row.is_none() {
                        let row = view.get::<Inodes>(&state.ino)?;
                        state.live().fill(row);
                    }
                }
                Ok(())
            })?;
            for ((at, row), state) in names.iter().zip(&states) {
                let name = DirEntry { ino: self.outer(row.ino), kind: kind(row)?, name: &row.name, cookie: *at };
                let live = state.live();
                let inode = live.shown().filter(|inode| inode.nlink > 0).map(|inode| self.entry(row.ino, &inode));
                if sink(&name, inode.as_ref()) == Sink::Full {
                    return Ok(());
                }
                if inode.is_some() {
                    self.inodes.refer(row.ino, 1);
                }
                cookie = *at;
            }
            if names.len() < BATCH {
                return Ok(());
            }
        }
    }

    /// Checks the directory and offers `.` and `..`; `None` when the listing ends there.
    fn open_listing(&self, node: Ino, cookie: u64, sink: &mut dyn FnMut(&DirEntry<'_>) -> Sink) -> Result<Option<Ino>> {
        let ino = self.inner(node)?;
        let row = self.shown(ino)?;
        if !attr::is_directory(&row) {
            return Err(Error::NotDirectory);
        }
        if row.nlink == 0 {
            return Ok(None);
        }
        self.touch_access_time(&self.inodes.state(ino))?;
        for (at, target, name) in dots(ino, &row) {
            let entry = DirEntry { ino: self.outer(target), kind: FileType::Directory, name, cookie: at };
            if cookie < at && sink(&entry) == Sink::Full {
                return Ok(None);
            }
        }
        Ok(Some(ino))
    }
}

fn dots(ino: Ino, row: &InodeRow) -> [(u64, Ino, &'static [u8]); 2] {
    [(DOT, ino, b"."), (DOT_DOT, row.parent, b"..")]
}

fn kind(row: &DentryRow) -> Result<FileType> {
    FileType::from_dirent(row.kind)
        .ok_or_else(|| Error::corrupt(format!("a name of inode {} has an unknown kind; run fsck", row.ino)))
}
