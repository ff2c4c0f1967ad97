//! Writing: space first, so that ENOSPC is told here; then the copy into memory.

use std::ops::Range;
use std::sync::Arc;

use super::content::State;
use super::handle::InodeState;
use super::overlay::gaps;
use super::{Fs, attr, xattr};
use crate::base::file::{Caller, FILE_SIZE_MAX, FileType};
use crate::base::{Error, Ino, Result};
use crate::format::rows::{FLAG_XATTRS, InodeRow, JournalOp};
use crate::store::{Mapping, Reservation};

/// Where a range ends, if files may be that large.
pub(super) fn range_end(offset: u64, length: u64) -> Result<u64> {
    offset.checked_add(length).filter(|end| *end <= FILE_SIZE_MAX).ok_or(Error::FileTooLarge)
}

impl Fs {
    /// The row of a regular file as it looks to the asker.
    pub(super) fn regular(&self, inode: &InodeState) -> Result<InodeRow> {
        let row = self.filled(inode)?.shown().ok_or(Error::Stale)?;
        match attr::kind(&row) {
            FileType::Regular => Ok(row),
            FileType::Directory => Err(Error::IsDirectory),
            _ => Err(Error::Invalid("only regular files have content")),
        }
    }

    /// Writes all of `data` at `offset`, or nothing. `kill_suidgid`: the caller has no right to keep set-id bits and
    /// file capabilities.
    pub fn write(&self, caller: &Caller, node: Ino, offset: u64, data: &[u8], kill_suidgid: bool) -> Result<usize> {
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        let inode = self.inodes.state(self.inner(node)?);
        let row = self.regular(&inode)?;
        attr::check_changeable(&row, offset >= row.size)?;
        self.store.meta().check()?;
        let end = range_end(offset, data.len() as u64)?;
        if data.is_empty() {
            return Ok(0);
        }
        if kill_suidgid {
            self.strip_for_write(caller, &row, inode.ino)?;
        }
        self.await_room(data.len() as u64)?;
        {
            let _shape = inode.content().hold_shape();
            self.take_in(&inode, offset, data, caller.uid)?;
        }
        self.depart_full(&inode, end - 1)?;
        Ok(data.len())
    }

    /// Takes set-id bits and capabilities away before a write by somebody who may not keep them.
    fn strip_for_write(&self, caller: &Caller, row: &InodeRow, ino: Ino) -> Result<()> {
        let stripped = attr::without_set_id(row.mode) != row.mode;
        let capable =
            row.flags & FLAG_XATTRS != 0 && self.store.peek(|view| xattr::get(view, ino, xattr::CAPABILITY))?.is_some();
        if !stripped && !capable {
            return Ok(());
        }
        self.mutate(|change| {
            let slot = change.load(ino)?;
            attr::strip_privileges(change, slot, true)?;
            let now = change.now();
            let row = change.row_mut(slot);
            row.ctime = now;
            let operation = JournalOp::SetAttr {
                ino: ino.0,
                mask: attr::mask::MODE,
                mode: row.mode,
                uid: row.uid,
                gid: row.gid,
                size: row.size,
            };
            change.journal(caller.uid, operation)
        })
    }

    /// Copies `data` into memory once there is space for it.
    fn take_in(&self, inode: &Arc<InodeState>, offset: u64, data: &[u8], writer: u32) -> Result<()> {
        let range = offset..offset + data.len() as u64;
        let content = inode.content();
        let mut state = content.state();
        match self.reserve_missing(&mut state, &range, &[]) {
            Err(Error::NoSpace) => {
                drop(state);
                self.relieve_space()?;
                state = content.state();
                match self.reserve_missing(&mut state, &range, &[]) {
                    Err(Error::NoSpace) => {
                        drop(state);
                        let promised = self.promised(inode.ino, &range)?;
                        state = content.state();
                        self.reserve_missing(&mut state, &range, &promised)?;
                    }
                    done => done?,
                }
            }
            done => done?,
        }
        let now = self.store.meta().clock().now();
        {
            let mut live = inode.live();
            let size = live.pending.size.or(live.row.as_ref().map(|row| row.size));
            match size {
                Some(size) if !state.dead => live.pending.size = Some(size.max(range.end)),
                _ => {
                    drop(live);
                    let surplus = state.reserved.bytes.saturating_sub(state.dirty.bytes());
                    self.store.release(state.reserved.split(surplus));
                    return Err(Error::Stale);
                }
            }
            live.pending.mtime = Some(now);
            live.pending.ctime = Some(now);
        }
        let added = state.dirty.missing(range.clone());
        inode.live().pending.content += added;
        state.dirty.write(offset, data, self.writeback.stripe(), self.writeback.buffers());
        state.writer = writer;
        self.writeback.note_dirtied(added);
        self.writeback.list(inode, &mut state);
        Ok(())
    }

    /// Reserves space for the bytes of `range` that are not dirty yet. Those in `promised` need none, unless what is
    /// in flight is about to use the promise up.
    fn reserve_missing(&self, state: &mut State, range: &Range<u64>, promised: &[Range<u64>]) -> Result<()> {
        let mut needed = state.dirty.missing(range.clone());
        if !promised.is_empty() {
            let flying = |at: &Range<u64>| {
                state.flights.iter().any(|flight| {
                    flight
                        .segments
                        .iter()
                        .any(|(start, bytes)| *start < at.end && start + bytes.len() as u64 > at.start)
                })
            };
            for gap in gaps(range.clone(), &state.dirty.held(range.clone())) {
                let backed = promised.iter().map(|part| part.start.max(gap.start)..part.end.min(gap.end));
                for part in backed.filter(|part| part.start < part.end && !flying(part)) {
                    needed -= part.end - part.start;
                }
            }
        }
        let reservation = if needed > 0 { self.store.reserve(needed)? } else { Reservation::default() };
        state.reserved.join(reservation);
        Ok(())
    }

    /// The parts of `range` that were promised to the file.
    fn promised(&self, ino: Ino, range: &Range<u64>) -> Result<Vec<Range<u64>>> {
        let pieces = self.store.mapping(ino, range.clone())?;
        Ok(pieces.into_iter().filter(|(_, kind)| *kind == Mapping::Promised).map(|(part, _)| part).collect())
    }
}
