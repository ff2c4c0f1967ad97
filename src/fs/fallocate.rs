//! Reserving, freeing and zeroing ranges.

use std::ops::Range;

use super::write::range_end;
use super::{Fs, attr};
use crate::base::file::{Caller, FallocateMode};
use crate::base::{Error, Ino, Result};
use crate::format::rows::JournalOp;
use crate::store::{Mapping, Reservation};

/// What happens to the range.
#[derive(Clone, Copy)]
struct Steps {
    punch: bool,
    promise: bool,
    extend: bool,
}

impl Fs {
    /// Reserves, frees or zeroes a range. Of a range with very many extents a bounded part goes with each transaction.
    pub fn fallocate(&self, caller: &Caller, node: Ino, offset: u64, length: u64, mode: FallocateMode) -> Result<()> {
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        if length == 0 {
            return Err(Error::Invalid("an empty range"));
        }
        let range = offset..range_end(offset, length)?;
        let (mut steps, flags) = match mode {
            FallocateMode::Allocate { keep_size } => {
                (Steps { punch: false, promise: true, extend: !keep_size }, u32::from(keep_size))
            }
            FallocateMode::PunchHole => (
                Steps { punch: true, promise: false, extend: false },
                (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32,
            ),
            FallocateMode::ZeroRange { keep_size } => (
                Steps { punch: true, promise: true, extend: !keep_size },
                libc::FALLOC_FL_ZERO_RANGE as u32 | u32::from(keep_size),
            ),
        };
        let inode = self.inodes.state(self.inner(node)?);
        attr::check_changeable(&self.regular(&inode)?, !steps.punch)?;
        let mut reshape = self.reshape(&inode);
        steps.extend &= range.end > self.regular(&inode)?.size;
        // Content below a size that grows has to be committed first, or that gives the row its size, which would be
        // dropped with it; so has what holes are counted around.
        let committed = inode.live().row.as_ref().map_or(0, |row| row.size);
        let settled = if steps.extend || (steps.punch && range.end > committed) {
            0..u64::MAX
        } else if steps.punch {
            0..0
        } else {
            range.clone()
        };
        let reserved = if steps.promise {
            self.flush_range(&inode, settled.clone())?;
            self.reserve_range(inode.ino, &range, steps.punch)?
        } else {
            Reservation::default()
        };
        let outcome = reshape.pause(settled).and_then(|()| {
            let mut at = range.start;
            while at < range.end {
                let done = self.fallocate_step(caller, inode.ino, at..range.end, steps, (&range, flags))?;
                // What is dirty there goes with the step that punched below it.
                if steps.punch {
                    reshape.drop_dirty(at..done);
                }
                at = done;
            }
            Ok(())
        });
        self.store.release(reserved);
        outcome
    }

    /// Lets a file read as zeros where its content is lost. What is lost is looked up while nothing else of the file is committed:
    /// what somebody restores meanwhile stays. Returns how many bytes were given up.
    pub fn give_up_lost(&self, caller: &Caller, node: Ino) -> Result<u64> {
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        let inode = self.inodes.state(self.inner(node)?);
        attr::check_changeable(&self.regular(&inode)?, false)?;
        let mut reshape = self.reshape(&inode);
        reshape.pause(0..u64::MAX)?;
        let lost = self.store.lost_of_file(inode.ino)?;
        let steps = Steps { punch: true, promise: false, extend: false };
        let flags = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
        for range in &lost {
            let mut at = range.start;
            while at < range.end {
                at = self.fallocate_step(caller, inode.ino, at..range.end, steps, (range, flags))?;
            }
        }
        Ok(length(&lost))
    }

    /// How many bytes of a file cannot be read any more, as far as its damage was found.
    pub fn lost(&self, node: Ino) -> Result<u64> {
        Ok(length(&self.store.lost_of_file(self.inner(node)?)?))
    }

    /// Works on a bounded part of `range`; returns where it ends. The last step tells the journal of all of it.
    fn fallocate_step(
        &self,
        caller: &Caller,
        ino: Ino,
        range: Range<u64>,
        steps: Steps,
        (whole, flags): (&Range<u64>, u32),
    ) -> Result<u64> {
        self.mutate(|change| {
            let slot = change.load(ino)?;
            let end = self.store.step_end(change.tx, ino, range.clone())?;
            let part = range.start..end;
            let mut delta = 0;
            if steps.punch {
                delta += self.store.punch(change.tx, ino, part.clone(), change.ledger)?;
            }
            if steps.promise {
                delta += self.store.promise(change.tx, ino, part, change.ledger)?;
            }
            attr::strip_privileges(change, slot, !caller.keeps_set_id())?;
            let now = change.now();
            let row = change.row_mut(slot);
            row.content = row.content.saturating_add_signed(delta);
            row.mtime = now;
            row.ctime = now;
            change.set_times(slot);
            if steps.extend && end == range.end {
                change.set_size(slot, end);
            }
            if end == range.end {
                let operation = JournalOp::Fallocate {
                    ino: ino.0,
                    mode: flags,
                    offset: whole.start,
                    length: whole.end - whole.start,
                };
                change.journal(caller.uid, operation)?;
            }
            Ok(end)
        })
    }

    /// Reserves space for what a promise of `range` adds: its holes, or all of it when it is emptied first.
    fn reserve_range(&self, ino: Ino, range: &Range<u64>, emptied: bool) -> Result<Reservation> {
        let reserve = || {
            let needed = if emptied {
                range.end - range.start
            } else {
                let pieces = self.store.mapping(ino, range.clone())?;
                pieces.iter().filter(|(_, kind)| *kind == Mapping::Hole).map(|(part, _)| part.end - part.start).sum()
            };
            if needed > 0 { self.store.reserve(needed) } else { Ok(Reservation::default()) }
        };
        match reserve() {
            Err(Error::NoSpace) => {
                self.relieve_space()?;
                reserve()
            }
            done => done,
        }
    }
}

fn length(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}
