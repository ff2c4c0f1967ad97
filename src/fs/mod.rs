//! POSIX semantics: names, attributes, extended attributes, ACLs, orphans and file content as a caller sees them.
//! Above: a transport (`fuse`) or a test calls the methods of [`Fs`]. Below: `store` keeps content, `meta` the rows.
//!
//! Invariants:
//! - Every mutation is one transaction with one journal row; it either happens as a whole or not at all.
//! - A name always refers to an inode row; `nlink` counts names (of a directory: 2 and one per subdirectory),
//!   `entries` the names in a directory.
//! - An inode without names has a row in `orphans` and lives until its last reference is forgotten.
//! - Permission to reach an inode was checked by the caller; what only the filesystem can decide is decided here.

mod acl;
mod attr;
pub mod background;
mod change;
mod content;
mod copy;
mod dentry;
mod departure;
mod fallocate;
pub mod handle;
pub mod model;
mod namespace;
pub mod op;
mod orphan;
mod overlay;
mod read;
mod readdir;
mod rename;
mod seek;
mod truncate;
mod write;
pub mod writeback;
mod xattr;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::base::sync::{Mutex, MutexGuard, lock};
use crate::meta::names::NAME_KEY;
use change::Numbers;
use dentry::NameHasher;
use handle::{InodeState, Inodes, Live};

use crate::base::file::{AccessTime, Attr, Entry, StatFs};
use crate::base::{BLOCK_SIZE, Entropy, Error, Ino, Result};
use crate::format::rows::{ConfigKey, Counter, InodeRow};
use crate::format::table::{Config, Inodes as InodeTable};
use crate::meta::{Reader, Tx};
use crate::store::Store;

/// Bits of a node id that are the inode number; those above are the view.
const INO_BITS: u32 = 48;
/// Inode numbers end here.
const INO_END: u64 = 1 << INO_BITS;
/// Metadata one more file is reckoned to need, in bytes: for `statfs`.
const BYTES_PER_FILE: u64 = 1024;

/// How an open filesystem behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    pub access_time: AccessTime,
    /// Nothing may change.
    pub read_only: bool,
    /// Content held at most before it is committed, in bytes.
    pub memory: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { access_time: AccessTime::default(), read_only: false, memory: writeback::MEMORY }
    }
}

/// Who owns the root directory of a new filesystem, and its permission bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootOwner {
    pub uid: u32,
    pub gid: u32,
    pub permissions: u32,
}

impl Default for RootOwner {
    fn default() -> RootOwner {
        RootOwner { uid: 0, gid: 0, permissions: 0o755 }
    }
}

/// An open filesystem.
pub struct Fs {
    store: Arc<Store>,
    options: Options,
    names: NameHasher,
    inodes: Inodes,
    numbers: Mutex<Numbers>,
    orphans: orphan::Queue,
    lazy_times: attr::LazyTimes,
    writeback: writeback::Writeback,
    /// Upper bits of the live view's node ids.
    epoch: u64,
}

impl Fs {
    /// Writes the rows of a new, empty filesystem.
    pub fn format(tx: &mut Tx<'_>, entropy: &mut dyn Entropy, root: RootOwner) -> Result<()> {
        let mut key = vec![0; 32];
        entropy.fill(&mut key);
        tx.put::<Config>(&ConfigKey { name: NAME_KEY.to_vec() }, &key)?;
        let mode = crate::base::file::FileType::Directory.mode_bits() | root.permissions;
        let row = change::new_row(tx.now(), tx.id(), mode, root.uid, root.gid);
        tx.put::<InodeTable>(&Ino::ROOT, &InodeRow { nlink: 2, parent: Ino::ROOT, ..row })?;
        tx.set_counter(Counter::NextIno, Ino::ROOT.0 + 1)?;
        tx.set_counter(Counter::Inodes, 1)
    }

    /// Opens the filesystem in `store`. Orphans of an earlier life are reclaimed by [`Fs::reclaim_step`].
    pub fn open(store: Arc<Store>, options: Options) -> Result<Fs> {
        let (key, numbers, epoch) = store.view(|view| {
            let key = view.get::<Config>(&ConfigKey { name: NAME_KEY.to_vec() })?;
            let numbers = Numbers { next_ino: view.counter(Counter::NextIno)?, inodes: view.counter(Counter::Inodes)? };
            Ok((key, numbers, view.counter(Counter::LiveEpoch)?))
        })?;
        let key = key
            .and_then(|key| <[u8; 32]>::try_from(key).ok())
            .ok_or_else(|| Error::corrupt("the pool holds no filesystem: the key of its names is missing; run fsck"))?;
        let writeback = writeback::Writeback::new(&store, options.memory);
        Ok(Fs {
            store,
            options,
            names: NameHasher::new(key),
            inodes: Inodes::default(),
            numbers: Mutex::new(numbers),
            orphans: orphan::Queue::after_mount(),
            lazy_times: attr::LazyTimes::default(),
            writeback,
            epoch: epoch << INO_BITS,
        })
    }

    /// The store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The inode behind a node id.
    ///
    /// # Errors
    /// [`Error::Stale`] where the id is of a view that is not the live one any more.
    pub fn inner(&self, node: Ino) -> Result<Ino> {
        if node == Ino::ROOT {
            return Ok(Ino::ROOT);
        }
        if node.0 & !(INO_END - 1) == self.epoch { Ok(Ino(node.0 & (INO_END - 1))) } else { Err(Error::Stale) }
    }

    /// The node id of an inode of the live view.
    fn outer(&self, ino: Ino) -> Ino {
        if ino == Ino::ROOT { ino } else { Ino(self.epoch | ino.0) }
    }

    /// Locks the state with its row in it; there is none when there is no such inode.
    fn filled<'s>(&self, state: &'s InodeState) -> Result<MutexGuard<'s, Live>> {
        let live = state.live();
        if live.row.is_some() || live.gone {
            return Ok(live);
        }
        drop(live);
        let row = self.store.peek(|view| view.get::<InodeTable>(&state.ino))?;
        let mut live = state.live();
        live.fill(row);
        Ok(live)
    }

    /// The row of an inode as it looks to the asker, from memory when it is hot.
    fn shown(&self, ino: Ino) -> Result<InodeRow> {
        let state = self.inodes.state(ino);
        self.filled(&state)?.shown().ok_or(Error::Stale)
    }

    fn attr(&self, ino: Ino, row: &InodeRow) -> Attr {
        attr::from_row(self.outer(ino), row)
    }

    fn entry(&self, ino: Ino, row: &InodeRow) -> Entry {
        Entry { attr: self.attr(ino, row), generation: 0 }
    }

    /// Takes back references; must neither block nor take long.
    pub fn forget(&self, node: Ino, references: u64) {
        if let Ok(ino) = self.inner(node)
            && self.inodes.forget(ino, references)
        {
            self.orphans.push(ino);
        }
    }

    /// Takes back every reference: the asker is gone.
    pub fn forget_all(&self) {
        for ino in self.inodes.forget_all() {
            self.orphans.push(ino);
        }
    }

    /// Makes a file or directory durable, and everything that was acknowledged about names and attributes before. Does
    /// not wait for the content of other files.
    pub fn fsync(&self, node: Ino, _datasync: bool) -> Result<()> {
        let ino = self.inner(node)?;
        if self.options.read_only {
            return Ok(());
        }
        self.flush_content(&self.inodes.state(ino))?;
        self.store.durable_point()
    }

    /// Makes everything durable.
    pub fn syncfs(&self) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        let flushed = self.flush_all(true);
        // What could be committed is made durable in any case.
        self.flush_times()?;
        self.store.durable_point()?;
        flushed
    }

    /// Space and inodes.
    pub fn statfs(&self) -> Result<StatFs> {
        let space = self.store.space();
        let inodes = lock(&self.numbers).inodes;
        let files_free = (space.available / BYTES_PER_FILE).min(INO_END.saturating_sub(inodes));
        Ok(StatFs {
            block_size: BLOCK_SIZE as u32,
            blocks: space.total / BLOCK_SIZE,
            blocks_free: space.free / BLOCK_SIZE,
            blocks_available: space.available / BLOCK_SIZE,
            files: inodes.saturating_add(files_free),
            files_free,
        })
    }
}
