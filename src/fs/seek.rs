//! Finding data and holes.

use super::Fs;
use crate::base::file::Whence;
use crate::base::{Error, Ino, Result};

impl Fs {
    /// The next data or hole at or after `offset`; the end of the file is a hole. What fallocate promised and nobody
    /// wrote is a hole too. `NoData` when there is none, or `offset` is not inside the file.
    pub fn seek(&self, node: Ino, offset: u64, whence: Whence) -> Result<u64> {
        let inode = self.inodes.state(self.inner(node)?);
        let mut size = self.regular(&inode)?.size;
        let mut held = Vec::new();
        if let Some(content) = inode.content_if_any() {
            // Before the store is asked: what lands meanwhile is found there, not lost.
            let state = content.state();
            size = inode.live().shown().map_or(size, |row| row.size);
            if offset < size {
                held = state.dirty.held(offset..size);
                for flight in &state.flights {
                    let ends = flight.segments.iter().map(|(start, bytes)| *start..start + bytes.len() as u64);
                    held.extend(ends.filter(|part| part.end > offset));
                }
                held.sort_unstable_by_key(|part| part.start);
            }
        }
        if offset >= size {
            return Err(Error::NoData);
        }
        match whence {
            Whence::Data => {
                let held = held.first().map(|part| part.start.max(offset));
                let end = held.unwrap_or(size);
                let committed = self.store.seek(inode.ino, offset..end, true)?;
                committed.or(held).ok_or(Error::NoData)
            }
            Whence::Hole => {
                let mut at = offset;
                let mut held = held.into_iter().peekable();
                while at < size {
                    while let Some(part) = held.next_if(|part| part.start <= at) {
                        at = at.max(part.end);
                    }
                    let end = held.peek().map_or(size, |part| part.start).min(size);
                    if at < end {
                        match self.store.seek(inode.ino, at..end, false)? {
                            Some(hole) => return Ok(hole),
                            None => at = end,
                        }
                    }
                }
                Ok(size)
            }
        }
    }
}
