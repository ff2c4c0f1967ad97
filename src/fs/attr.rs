//! Attributes: what is shown, how they are changed, and access times that are written lazily.
//!
//! Invariant: a pending access time belongs to a state held in [`LazyTimes`] until it is written.

use std::sync::Arc;

use super::change::{Change, Slot};
use super::handle::{InoMap, InodeState};
use super::{Fs, acl, lock, truncate, xattr};
use crate::base::file::{
    Attr, Caller, FILE_SIZE_MAX, FileType, MODE_BITS, S_IFMT, S_ISGID, S_ISUID, S_IXGRP, SetAttr, SetTime,
};
use crate::base::sync::Mutex;
use crate::base::{Error, Ino, Result, Timestamp};
use crate::format::rows::{FLAG_APPEND, FLAG_IMMUTABLE, InodeRow, JournalOp};
use crate::format::table::Inodes;
use crate::meta::Reader;

/// Preferred size of a transfer: large enough for buffered writers to fill requests, small enough to allocate freely.
const TRANSFER_SIZE: u32 = 64 << 10;
/// Entries a directory's size counts although nobody made them: `.` and `..`.
const DOT_ENTRIES: u64 = 2;

/// Bits of `JournalOp::SetAttr::mask`: which attributes were set.
pub mod mask {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 2;
    pub const GID: u32 = 4;
    pub const SIZE: u32 = 8;
    pub const ATIME: u32 = 16;
    pub const MTIME: u32 = 32;
    pub const FLAGS: u32 = 64;
}

/// Whether the row is a directory's.
pub fn is_directory(row: &InodeRow) -> bool {
    kind(row) == FileType::Directory
}

/// The kind of file; rows of impossible kinds are shown as regular files and reported by fsck.
pub fn kind(row: &InodeRow) -> FileType {
    FileType::from_mode(row.mode).unwrap_or(FileType::Regular)
}

/// What the asker sees of a row.
pub fn from_row(node: Ino, row: &InodeRow) -> Attr {
    let directory = is_directory(row);
    Attr {
        ino: node,
        size: if directory { row.entries + DOT_ENTRIES } else { row.size },
        blocks512: row.content.div_ceil(512),
        atime: row.atime,
        mtime: row.mtime,
        ctime: row.ctime,
        btime: row.btime,
        mode: kind(row).mode_bits() | (row.mode & MODE_BITS),
        nlink: row.nlink,
        uid: row.uid,
        gid: row.gid,
        rdev: row.rdev,
        blksize: TRANSFER_SIZE,
    }
}

/// Refuses a change of an inode that must not change, or only grow.
pub fn check_changeable(row: &InodeRow, appends: bool) -> Result<()> {
    let refused = if appends { FLAG_IMMUTABLE } else { FLAG_IMMUTABLE | FLAG_APPEND };
    if row.flags & refused == 0 { Ok(()) } else { Err(Error::NotPermitted) }
}

/// Mode bits after somebody without the right to keep them changed owner or content.
pub fn without_set_id(mode: u32) -> u32 {
    let group = if mode & S_IXGRP == 0 { 0 } else { S_ISGID };
    mode & !(S_ISUID | group)
}

/// Takes set-id bits (as `strip_mode` says) and file capabilities from a file whose owner or content changes.
pub fn strip_privileges(change: &mut Change<'_, '_>, slot: Slot, strip_mode: bool) -> Result<()> {
    let row = change.row(slot);
    if is_directory(row) {
        return Ok(());
    }
    let stripped = without_set_id(row.mode);
    if strip_mode && stripped != row.mode {
        change.row_mut(slot).mode = stripped;
    }
    xattr::remove_quietly(change, slot, xattr::CAPABILITY)
}

impl Fs {
    /// Attributes as of now.
    pub fn getattr(&self, node: Ino) -> Result<Attr> {
        let ino = self.inner(node)?;
        Ok(self.attr(ino, &self.shown(ino)?))
    }

    /// Changes attributes in one step and tells the result.
    ///
    /// A change of nothing is a `chown` that leaves owner and group alone. Changing owner or group always strips
    /// set-id bits and file capabilities of a file, as Linux does; changing the size always strips capabilities, and
    /// set-id bits when the asker says so.
    pub fn setattr(&self, caller: &Caller, node: Ino, changes: &SetAttr) -> Result<Attr> {
        let ino = self.inner(node)?;
        if changes.size.is_some_and(|size| size > FILE_SIZE_MAX) {
            return Err(Error::FileTooLarge);
        }
        let state = self.inodes.state(ino);
        let reshape = match changes.size {
            Some(size) => {
                check_allowed(&self.regular(&state)?, changes)?;
                let mut reshape = self.reshape(&state);
                reshape.pause(0..size)?;
                Some((reshape, size))
            }
            None => None,
        };
        let attr = self.mutate(|change| {
            let slot = change.load(ino)?;
            check_allowed(change.row(slot), changes)?;
            let now = change.now();
            if let Some(mode) = changes.mode {
                let row = change.row_mut(slot);
                row.mode = (row.mode & S_IFMT) | (mode & MODE_BITS);
                acl::follow_mode(change, slot)?;
            }
            if let Some(size) = changes.size {
                truncate::to_size(change, slot, size)?;
            }
            let times = changes.atime.is_some() || changes.mtime.is_some();
            let owner_changes = changes.uid.is_some()
                || changes.gid.is_some()
                || (changes.mode.is_none() && changes.size.is_none() && changes.ctime.is_none() && !times);
            let row = change.row_mut(slot);
            row.uid = changes.uid.unwrap_or(row.uid);
            row.gid = changes.gid.unwrap_or(row.gid);
            if owner_changes || changes.size.is_some() || changes.kill_suidgid {
                strip_privileges(change, slot, owner_changes || changes.kill_suidgid)?;
            }
            let row = change.row_mut(slot);
            row.atime = changes.atime.map_or(row.atime, |time| resolve(time, now));
            let mtime = changes.mtime.or(changes.size.map(|_| SetTime::Now));
            row.mtime = mtime.map_or(row.mtime, |time| resolve(time, now));
            row.ctime = changes.ctime.unwrap_or(now);
            if mtime.is_some() {
                change.set_times(slot);
            }
            let row = change.row(slot);
            let operation = JournalOp::SetAttr {
                ino: ino.0,
                mask: set_mask(changes),
                mode: row.mode,
                uid: row.uid,
                gid: row.gid,
                size: row.size,
            };
            change.journal(caller.uid, operation)?;
            Ok(self.attr(ino, &change.shown(slot)))
        })?;
        if let Some((reshape, size)) = reshape {
            reshape.drop_dirty(size..u64::MAX);
        }
        Ok(attr)
    }

    /// The `FLAG_IMMUTABLE` and `FLAG_APPEND` bits.
    pub fn flags(&self, node: Ino) -> Result<u32> {
        Ok(self.shown(self.inner(node)?)?.flags & (FLAG_IMMUTABLE | FLAG_APPEND))
    }

    /// Sets the `FLAG_IMMUTABLE` and `FLAG_APPEND` bits; only the superuser may.
    pub fn set_flags(&self, caller: &Caller, node: Ino, flags: u32) -> Result<()> {
        const SETTABLE: u32 = FLAG_IMMUTABLE | FLAG_APPEND;
        if flags & !SETTABLE != 0 {
            return Err(Error::Unsupported);
        }
        if caller.uid != 0 {
            return Err(Error::NotPermitted);
        }
        let ino = self.inner(node)?;
        self.mutate(|change| {
            let slot = change.load(ino)?;
            let now = change.now();
            let row = change.row_mut(slot);
            row.flags = (row.flags & !SETTABLE) | flags;
            row.ctime = now;
            let operation = JournalOp::SetAttr {
                ino: ino.0,
                mask: mask::FLAGS,
                mode: row.mode,
                uid: row.uid,
                gid: row.gid,
                size: row.size,
            };
            change.journal(caller.uid, operation)
        })
    }

    /// Moves the access time after a read, as the options say; it is written with the next durable point.
    pub(super) fn touch_access_time(&self, state: &Arc<InodeState>) -> Result<()> {
        if self.options.read_only || self.options.access_time == crate::base::file::AccessTime::Never {
            return Ok(());
        }
        let now = self.store.meta().clock().now();
        let mut live = self.filled(state)?;
        let Some(row) = live.shown() else { return Ok(()) };
        if self.options.access_time.is_due(row.atime, row.mtime, row.ctime, now) {
            live.pending.atime = Some(now);
            drop(live);
            if self.lazy_times.add(state) > LazyTimes::MOST {
                return self.flush_times();
            }
        }
        Ok(())
    }

    /// Writes access times that moved since the last call.
    pub fn flush_times(&self) -> Result<()> {
        loop {
            let batch = self.lazy_times.take(LazyTimes::BATCH);
            if batch.is_empty() {
                return Ok(());
            }
            let written = self.store.transact(|tx, _| {
                let mut written = Vec::with_capacity(batch.len());
                for state in &batch {
                    let mut live = state.live();
                    let Some(atime) = live.pending.atime else { continue };
                    let row = match &live.row {
                        Some(row) => Some(row.clone()),
                        None => tx.get::<Inodes>(&state.ino)?,
                    };
                    if let Some(row) = row {
                        let row = InodeRow { atime, ..row };
                        tx.put::<Inodes>(&state.ino, &row)?;
                        live.row = Some(row);
                    }
                    written.push((state, atime));
                }
                Ok(written)
            });
            match written {
                Ok(written) => {
                    for (state, atime) in written {
                        let mut live = state.live();
                        if live.pending.atime == Some(atime) {
                            live.pending.atime = None;
                        }
                    }
                }
                Err(error) => {
                    for state in &batch {
                        self.lazy_times.add(state);
                    }
                    return Err(error);
                }
            }
        }
    }
}

/// Linux's rule for immutable and append-only inodes; what the kernel's own write-back of times brings is let through.
fn check_allowed(row: &InodeRow, changes: &SetAttr) -> Result<()> {
    let explicit = |time: Option<SetTime>| matches!(time, Some(SetTime::At(_)));
    let touches_only = changes.mode.is_none()
        && changes.uid.is_none()
        && changes.gid.is_none()
        && changes.size.is_none()
        && (changes.ctime.is_some() || !(explicit(changes.atime) || explicit(changes.mtime)));
    check_changeable(row, touches_only)
}

fn resolve(time: SetTime, now: Timestamp) -> Timestamp {
    match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    }
}

fn set_mask(changes: &SetAttr) -> u32 {
    [
        (changes.mode.is_some(), mask::MODE),
        (changes.uid.is_some(), mask::UID),
        (changes.gid.is_some(), mask::GID),
        (changes.size.is_some(), mask::SIZE),
        (changes.atime.is_some(), mask::ATIME),
        (changes.mtime.is_some(), mask::MTIME),
    ]
    .iter()
    .filter(|(set, _)| *set)
    .fold(0, |bits, (_, bit)| bits | bit)
}

/// Inodes whose access time is to be written.
#[derive(Default)]
pub struct LazyTimes(Mutex<InoMap<Arc<InodeState>>>);

impl LazyTimes {
    /// Rows written by one transaction.
    const BATCH: usize = 500;
    /// Inodes that may wait.
    const MOST: usize = 8192;

    /// Adds an inode; returns how many wait.
    fn add(&self, state: &Arc<InodeState>) -> usize {
        let mut states = lock(&self.0);
        states.entry(state.ino).or_insert_with(|| state.clone());
        states.len()
    }

    fn take(&self, most: usize) -> Vec<Arc<InodeState>> {
        let mut states = lock(&self.0);
        let inos: Vec<Ino> = states.keys().take(most).copied().collect();
        inos.iter().filter_map(|ino| states.remove(ino)).collect()
    }
}
