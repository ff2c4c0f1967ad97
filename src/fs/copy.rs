//! Copying ranges by sharing what they lie in.

use super::write::range_end;
use super::{Fs, attr};
use crate::base::file::Caller;
use crate::base::{Error, Ino, Result};
use crate::format::rows::JournalOp;

/// One file's range becomes equal to another's.
#[derive(Clone, Copy)]
struct Copying {
    from: Ino,
    from_offset: u64,
    to: Ino,
    to_offset: u64,
    length: u64,
}

impl Fs {
    /// Makes `length` bytes of `to` equal to those of `from` by sharing, and tells how many; fewer only at the end of
    /// `from`. Both may be one file when the ranges do not overlap.
    pub fn copy_file_range(
        &self,
        caller: &Caller,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        length: u64,
    ) -> Result<u64> {
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        let source = self.inodes.state(self.inner(from)?);
        let target = self.inodes.state(self.inner(to)?);
        let size = self.regular(&source)?.size;
        let row = self.regular(&target)?;
        attr::check_changeable(&row, to_offset >= row.size)?;
        range_end(from_offset, length)?;
        let length = length.min(size.saturating_sub(from_offset));
        let read = from_offset..from_offset + length;
        let written = to_offset..range_end(to_offset, length)?;
        if source.ino == target.ino && read.start < written.end && written.start < read.end {
            return Err(Error::Invalid("a range cannot be copied onto itself"));
        }
        if length == 0 {
            return Ok(0);
        }
        self.room_for_rows()?;
        let mut reshape = self.reshape(&target);
        self.flush_range(&source, read)?;
        // The row's size will cover what is copied: what is not committed below that has to be.
        let committed = target.live().row.as_ref().map_or(0, |row| row.size);
        reshape.pause(if written.end > committed { 0..written.end } else { 0..0 })?;
        let mut done = 0;
        while done < length {
            let part = Copying {
                from: source.ino,
                from_offset: from_offset + done,
                to: target.ino,
                to_offset: to_offset + done,
                length: length - done,
            };
            let copied = self.copy_step(caller, part)?;
            reshape.drop_dirty(part.to_offset..part.to_offset + copied);
            done += copied;
        }
        Ok(done)
    }

    /// Makes `to` a copy of all of `from`, sharing everything.
    pub fn clone_file(&self, caller: &Caller, from: Ino, to: Ino) -> Result<()> {
        let source = self.inner(from)?;
        let target = self.inner(to)?;
        if source == target {
            return Ok(());
        }
        let size = self.regular(&self.inodes.state(source))?.size;
        let shorter = crate::base::file::SetAttr { size: Some(0), ..Default::default() };
        self.setattr(caller, to, &shorter)?;
        let done = self.copy_file_range(caller, from, 0, to, 0, size)?;
        // A hole at the end is no content to copy, but part of the size.
        debug_assert!(done <= size);
        Ok(())
    }

    fn copy_step(&self, caller: &Caller, part: Copying) -> Result<u64> {
        self.mutate(|change| {
            let slot = change.load(part.to)?;
            let source = (part.from, part.from_offset);
            let target = (part.to, part.to_offset);
            let (done, delta) = self.store.share(change.tx, source, target, part.length, change.ledger)?;
            attr::strip_privileges(change, slot, !caller.keeps_set_id())?;
            let now = change.now();
            let row = change.row_mut(slot);
            row.content = row.content.saturating_add_signed(delta);
            row.mtime = now;
            row.ctime = now;
            change.set_times(slot);
            let row = change.row_mut(slot);
            row.size = row.size.max(part.to_offset + done);
            let operation = JournalOp::CopyRange {
                from: part.from.0,
                to: part.to.0,
                from_offset: part.from_offset,
                to_offset: part.to_offset,
                length: done,
            };
            change.journal(caller.uid, operation)?;
            Ok(done)
        })
    }
}
