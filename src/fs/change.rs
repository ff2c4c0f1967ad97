//! One mutation: the inode rows it reads and changes, written once each at its end, and published to the cache in the
//! same breath.
//!
//! Invariants:
//! - A row is read from the cache when it is there: writers come one after the other, so it is the committed one.
//! - Rows are published when nothing but the commit itself can fail any more; a failed commit ends the pool, so a
//!   published row is never taken back.
//! - The states of all rows are held from before they are read until after the commit.

use std::sync::Arc;

use super::handle::{InodeState, Pending};
use super::{Fs, INO_END, lock};
use crate::base::file::Entry;
use crate::base::{Error, Ino, Result, Timestamp, TxnId};
use crate::format::rows::{Counter, DentryKey, DentryRow, InodeRow, JournalOp};
use crate::format::table::{Dentries, Inodes, Orphans};
use crate::meta::{Reader, Tx};
use crate::store::Ledger;
use crate::store::reclaim::Truncate;

/// Counters kept in memory, in step with the newest transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Numbers {
    pub next_ino: u64,
    pub inodes: u64,
}

/// An inode row within a [`Change`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot(usize);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Unchanged,
    Changed,
    Deleted,
}

/// An inode that takes part in a change.
pub struct Touched {
    state: Arc<InodeState>,
    row: InodeRow,
    fate: Fate,
    /// References to hand out.
    references: u64,
    linkable: bool,
    /// Whether the row's times were set outright, so that pending ones are void.
    times_set: bool,
    /// Whether the size was set outright.
    size_set: bool,
}

impl Touched {
    /// Takes out what the change has made void.
    fn void(&self, pending: &mut Pending) {
        pending.size = pending.size.filter(|size| !self.size_set && *size > self.row.size);
        if self.times_set {
            pending.mtime = None;
            pending.ctime = None;
        }
    }
}

/// A mutation in the making.
pub struct Change<'c, 't> {
    fs: &'c Fs,
    pub tx: &'c mut Tx<'t>,
    pub ledger: &'c mut Ledger,
    touched: Vec<Touched>,
    numbers: Numbers,
    had: Numbers,
}

/// A row with everything unset that only some inodes have.
pub fn new_row(now: Timestamp, birth: TxnId, mode: u32, uid: u32, gid: u32) -> InodeRow {
    InodeRow {
        mode,
        uid,
        gid,
        project: 0,
        nlink: 1,
        rdev: 0,
        size: 0,
        content: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        flags: 0,
        policy: 0,
        parent: Ino(0),
        entries: 0,
        birth,
    }
}

impl Fs {
    /// Runs `body` as one transaction.
    pub(super) fn mutate<T>(&self, body: impl FnOnce(&mut Change<'_, '_>) -> Result<T>) -> Result<T> {
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        let mut held = Vec::new();
        let answer = self.store.transact(|tx, ledger| {
            let had = *lock(&self.numbers);
            let mut change = Change { fs: self, tx, ledger, touched: Vec::with_capacity(4), numbers: had, had };
            let answer = body(&mut change)?;
            held = change.finish()?;
            Ok(answer)
        })?;
        for touched in held.iter().filter(|touched| touched.fate == Fate::Changed && touched.row.nlink == 0) {
            if self.inodes.note_nameless(touched.state.ino, touched.linkable) {
                self.orphans.push(touched.state.ino);
            }
        }
        Ok(answer)
    }
}

impl Change<'_, '_> {
    /// When the change happens.
    pub fn now(&self) -> Timestamp {
        self.tx.now()
    }

    /// The row of an inode the asker named; [`Error::Stale`] when there is none.
    pub fn load(&mut self, ino: Ino) -> Result<Slot> {
        self.try_load(ino)?.ok_or(Error::Stale)
    }

    /// The row of an inode that a name refers to.
    pub fn load_named(&mut self, ino: Ino) -> Result<Slot> {
        let slot = self.try_load(ino)?;
        slot.ok_or_else(|| Error::corrupt(format!("a name refers to inode {ino}, which does not exist; run fsck")))
    }

    /// The row of an inode, if it exists.
    pub fn try_load(&mut self, ino: Ino) -> Result<Option<Slot>> {
        if let Some(at) = self.touched.iter().position(|touched| touched.state.ino == ino) {
            return Ok((self.touched[at].fate != Fate::Deleted).then_some(Slot(at)));
        }
        let state = self.fs.inodes.state(ino);
        let cached = {
            let live = state.live();
            live.row.clone().map(|row| InodeRow { atime: live.pending.atime.unwrap_or(row.atime), ..row })
        };
        let row = match cached {
            Some(row) => Some(row),
            None => self.tx.get::<Inodes>(&ino)?,
        };
        Ok(row.map(|row| {
            let linkable = row.nlink == 0 && self.fs.inodes.is_linkable(ino);
            self.touch(Touched {
                state,
                row,
                fate: Fate::Unchanged,
                references: 0,
                linkable,
                times_set: false,
                size_set: false,
            })
        }))
    }

    fn touch(&mut self, touched: Touched) -> Slot {
        self.touched.push(touched);
        Slot(self.touched.len() - 1)
    }

    /// Adds an inode with a new number.
    pub fn create(&mut self, row: InodeRow) -> Result<Slot> {
        let ino = Ino(self.numbers.next_ino);
        if ino.0 >= INO_END {
            return Err(Error::NoSpace);
        }
        self.numbers.next_ino += 1;
        self.numbers.inodes = self.numbers.inodes.saturating_add(1);
        let state = self.fs.inodes.state(ino);
        Ok(self.touch(Touched {
            state,
            row,
            fate: Fate::Changed,
            references: 0,
            linkable: false,
            times_set: false,
            size_set: false,
        }))
    }

    /// Removes the inode's row.
    pub fn delete(&mut self, slot: Slot) {
        self.touched[slot.0].fate = Fate::Deleted;
        self.numbers.inodes = self.numbers.inodes.saturating_sub(1);
    }

    pub fn state(&self, slot: Slot) -> &Arc<InodeState> {
        &self.touched[slot.0].state
    }

    pub fn ino(&self, slot: Slot) -> Ino {
        self.touched[slot.0].state.ino
    }

    pub fn row(&self, slot: Slot) -> &InodeRow {
        &self.touched[slot.0].row
    }

    /// The row, to be changed.
    pub fn row_mut(&mut self, slot: Slot) -> &mut InodeRow {
        let touched = &mut self.touched[slot.0];
        touched.fate = Fate::Changed;
        &mut touched.row
    }

    /// Whether the inode was made without a name and may still get one.
    pub fn is_linkable(&self, slot: Slot) -> bool {
        self.touched[slot.0].linkable
    }

    /// Says whether the inode may get a first name.
    pub fn set_linkable(&mut self, slot: Slot, linkable: bool) {
        self.touched[slot.0].linkable = linkable;
    }

    /// Says that modification times of the row hold, whatever content that is not committed yet would make of them.
    pub fn set_times(&mut self, slot: Slot) {
        self.touched[slot.0].times_set = true;
    }

    /// Sets the size of a file whose content is paused: no content that is not committed lies below it.
    pub fn set_size(&mut self, slot: Slot, size: u64) {
        self.row_mut(slot).size = size;
        self.touched[slot.0].size_set = true;
    }

    /// Hands out a reference to the inode with the answer.
    pub fn refer(&mut self, slot: Slot) -> Entry {
        self.touched[slot.0].references += 1;
        self.fs.entry(self.ino(slot), &self.shown(slot))
    }

    /// The row as it will look to the asker once published.
    pub fn shown(&self, slot: Slot) -> InodeRow {
        let touched = &self.touched[slot.0];
        let mut row = touched.row.clone();
        let mut pending = touched.state.live().pending;
        pending.atime = None;
        touched.void(&mut pending);
        pending.show(&mut row);
        row
    }

    /// The open directory `ino`, in which names are about to change.
    pub fn load_directory(&mut self, ino: Ino) -> Result<Slot> {
        let slot = self.load(ino)?;
        let row = self.row(slot);
        if !super::attr::is_directory(row) {
            return Err(Error::NotDirectory);
        }
        // Removed, but still somebody's working directory.
        if row.nlink == 0 { Err(Error::NotFound) } else { Ok(slot) }
    }

    /// Puts a name at a free (or just vacated) cookie. The counts of the directory are the caller's.
    pub fn put_name(&mut self, directory: Slot, cookie: u64, name: &[u8], ino: Ino, kind: u8) -> Result<()> {
        let key = DentryKey { parent: self.ino(directory), cookie };
        let row = DentryRow { ino, kind, birth: self.tx.id(), name: name.to_vec() };
        self.tx.put::<Dentries>(&key, &row)
    }

    /// Removes a name. The counts of the directory are the caller's.
    pub fn remove_name(&mut self, directory: Slot, cookie: u64) -> Result<()> {
        let key = DentryKey { parent: self.ino(directory), cookie };
        self.tx.delete::<Dentries>(&key).map(drop)
    }

    /// Counts `more` names (negative: fewer) and subdirectories in a directory whose names change.
    pub fn count_names(&mut self, directory: Slot, more: i64, subdirectories: i32) {
        let now = self.now();
        let row = self.row_mut(directory);
        row.entries = row.entries.saturating_add_signed(more);
        row.nlink = row.nlink.saturating_add_signed(subdirectories);
        row.mtime = now;
        row.ctime = now;
    }

    /// Takes one name away from an inode (from a directory: its only one); without names it becomes an orphan.
    pub fn unlink(&mut self, slot: Slot) -> Result<()> {
        let now = self.now();
        let row = self.row_mut(slot);
        row.nlink = if super::attr::is_directory(row) { 0 } else { row.nlink.saturating_sub(1) };
        row.ctime = now;
        if row.nlink == 0 { self.orphan(slot) } else { Ok(()) }
    }

    /// Notes that the inode has no name.
    pub fn orphan(&mut self, slot: Slot) -> Result<()> {
        let ino = self.ino(slot);
        self.tx.put::<Orphans>(&ino, &())
    }

    /// Removes the content of an inode at or past `from`; returns the change for `InodeRow::content`.
    pub fn shrink(&mut self, ino: Ino, from: u64) -> Result<i64> {
        self.fs.store.shrink(self.tx, ino, from, self.ledger)
    }

    /// Removes a part of what a truncate left for later; says whether it was the last, and returns the change for
    /// `InodeRow::content`.
    pub fn shrink_further(&mut self, truncate: &Truncate) -> Result<(bool, i64)> {
        self.fs.store.truncate_step(self.tx, truncate, self.ledger)
    }

    /// Appends the mutation to the journal.
    pub fn journal(&mut self, uid: u32, operation: JournalOp) -> Result<()> {
        self.tx.journal(uid, operation)
    }

    /// Writes what changed and publishes it.
    fn finish(mut self) -> Result<Vec<Touched>> {
        for touched in &self.touched {
            match touched.fate {
                Fate::Unchanged => {}
                Fate::Changed => self.tx.put::<Inodes>(&touched.state.ino, &touched.row)?,
                Fate::Deleted => drop(self.tx.delete::<Inodes>(&touched.state.ino)?),
            }
        }
        if self.numbers.next_ino != self.had.next_ino {
            self.tx.set_counter(Counter::NextIno, self.numbers.next_ino)?;
        }
        if self.numbers.inodes != self.had.inodes {
            self.tx.set_counter(Counter::Inodes, self.numbers.inodes)?;
        }
        *lock(&self.fs.numbers) = self.numbers;
        for touched in &mut self.touched {
            publish(self.fs, touched);
        }
        Ok(self.touched)
    }
}

fn publish(fs: &Fs, touched: &mut Touched) {
    let ino = touched.state.ino;
    let mut live = touched.state.live();
    if touched.fate == Fate::Unchanged {
        // What was read is the committed row, but its access time may be a pending one.
        return;
    }
    live.gone = touched.fate == Fate::Deleted;
    live.pending.atime = None;
    touched.void(&mut live.pending);
    live.row = (touched.fate != Fate::Deleted).then(|| touched.row.clone());
    if touched.references > 0 {
        fs.inodes.refer(ino, touched.references);
    }
    if touched.fate == Fate::Changed && touched.row.nlink == 0 {
        fs.inodes.note_nameless(ino, touched.linkable);
    } else {
        fs.inodes.note_named(ino);
    }
}
