//! Reading: what is dirty, over what is in flight, over what is committed.
//!
//! Every byte is taken from the newest layer that has it at one moment, under the lock of the layers; what no layer has
//! is read from the store afterwards. A flight lands in the store before it leaves the layers, so no byte is missed; one
//! that is written meanwhile may be seen or not. No lock is held while the store reads.

use std::ops::Range;
use std::sync::Arc;

use super::Fs;
use super::content::State;
use super::handle::InodeState;
use super::overlay::{copy_overlap, gaps};
use crate::base::{Ino, Result};
use crate::store::SharedBytes;

impl Fs {
    /// Fills `out` from `offset` and tells how much; less than `out.len()` only at the end of the file.
    pub fn read(&self, node: Ino, offset: u64, out: &mut [u8]) -> Result<usize> {
        let inode = self.inodes.state(self.inner(node)?);
        let mut size = self.regular(&inode)?.size;
        let mut flying = Vec::new();
        let mut count = within(size, offset, out.len());
        let whole = offset..offset + count as u64;
        let mut missing = vec![whole];
        if let Some(content) = inode.content_if_any() {
            let state = content.state();
            if !state.is_clean() {
                size = inode.live().shown().map_or(size, |row| row.size);
                count = within(size, offset, out.len());
                missing = layers(&state, offset, &mut out[..count], &mut flying);
            }
        }
        for (start, bytes) in flying {
            copy_overlap(start, &bytes, offset, &mut out[..count]);
        }
        for gap in missing.into_iter().filter(|gap| gap.start < gap.end) {
            let target = (gap.start - offset) as usize..(gap.end - offset) as usize;
            self.store.read(inode.ino, gap.start, &mut out[target])?;
        }
        self.touch(&inode);
        Ok(count)
    }

    /// Moves the access time. A read is not refused because that failed: whatever failed tells those who change things.
    fn touch(&self, inode: &Arc<InodeState>) {
        let _ = self.touch_access_time(inode);
    }
}

fn within(size: u64, offset: u64, length: usize) -> usize {
    size.saturating_sub(offset).min(length as u64) as usize
}

/// Copies what is dirty into `out`, collects what is in flight, and returns what neither has.
fn layers(state: &State, offset: u64, out: &mut [u8], flying: &mut Vec<(u64, SharedBytes)>) -> Vec<Range<u64>> {
    let range = offset..offset + out.len() as u64;
    state.dirty.copy_to(offset, out);
    let mut missing = gaps(range.clone(), &state.dirty.held(range));
    for flight in state.flights.iter().rev() {
        let mut rest = Vec::new();
        for gap in missing {
            let first = flight.segments.partition_point(|(start, bytes)| start + bytes.len() as u64 <= gap.start);
            let mut reached = gap.start;
            for (start, bytes) in flight.segments[first..].iter().take_while(|(start, _)| *start < gap.end) {
                let from = start.max(&gap.start);
                let to = (start + bytes.len() as u64).min(gap.end);
                flying.push((*from, bytes.slice((from - start) as usize..(to - start) as usize)));
                if reached < *from {
                    rest.push(reached..*from);
                }
                reached = to;
            }
            if reached < gap.end {
                rest.push(reached..gap.end);
            }
        }
        missing = rest;
    }
    missing
}
