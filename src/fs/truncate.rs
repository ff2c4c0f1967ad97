//! Changing a file's size, and the exclusion that every change of a file's shape needs.

use std::ops::Range;
use std::sync::Arc;

use super::change::{Change, Slot};
use super::handle::InodeState;
use super::{Fs, attr};
use crate::base::Error;
use crate::base::Result;
use crate::base::file::FileType;
use crate::base::sync::RwLockWriteGuard;

/// The right to change the shape of one file's content: nobody writes to it meanwhile.
///
/// Once it is paused nothing is in flight and nothing departs, so what is dirty can be dropped, and the size set, as
/// if there were no layers. Whoever holds a pause waits for nothing but the store's writer.
pub(super) struct Reshape<'a> {
    fs: &'a Fs,
    inode: &'a Arc<InodeState>,
    _alone: RwLockWriteGuard<'a, ()>,
    paused: bool,
}

impl Fs {
    /// Waits for the right to change the shape of a file's content.
    pub(super) fn reshape<'a>(&'a self, inode: &'a Arc<InodeState>) -> Reshape<'a> {
        Reshape { fs: self, inode, _alone: inode.content().change_shape(), paused: false }
    }
}

impl Reshape<'_> {
    /// Commits what is dirty in `settled`, then stops departures.
    pub fn pause(&mut self, settled: Range<u64>) -> Result<()> {
        let content = self.inode.content();
        loop {
            self.fs.flush_range(self.inode, settled.clone())?;
            let mut state = content.state();
            while !state.flights.is_empty() {
                state = content.wait(state);
            }
            if !state.dirty.touches(settled.clone()) {
                state.paused = true;
                self.paused = true;
                return Ok(());
            }
        }
    }

    /// Forgets what is dirty in `range`, after the store has forgotten what it had there.
    pub fn drop_dirty(&self, range: Range<u64>) {
        let (bytes, reserved) = self.inode.content().state().drop_dirty(range);
        self.inode.live().pending.content -= bytes;
        self.fs.store.release(reserved);
        self.fs.writeback.note_dropped(bytes);
    }
}

impl Drop for Reshape<'_> {
    fn drop(&mut self) {
        if self.paused {
            let content = self.inode.content();
            let mut state = content.state();
            state.paused = false;
            self.fs.writeback.unlist(self.inode, &mut state);
            drop(state);
            content.notify();
        }
    }
}

/// Makes the file `size` bytes long within a change: content past the end goes, a longer file reads as zeros there. The
/// file's content is paused, with everything below `size` settled.
pub fn to_size(change: &mut Change<'_, '_>, slot: Slot, size: u64) -> Result<()> {
    let row = change.row(slot);
    match attr::kind(row) {
        FileType::Regular => {}
        FileType::Directory => return Err(Error::IsDirectory),
        _ => return Err(Error::Invalid("only a regular file can be truncated")),
    }
    // What fallocate promised behind the end goes too.
    if size <= row.size && row.content > 0 {
        let ino = change.ino(slot);
        let delta = change.shrink(ino, size)?;
        let row = change.row_mut(slot);
        row.content = row.content.saturating_add_signed(delta);
    }
    change.set_size(slot, size);
    Ok(())
}
