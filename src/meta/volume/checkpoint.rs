//! Checkpoints: how a commit of redb becomes the durable state.

use super::redb_header;
use super::table::Changes;
use super::{Core, lock, write};
use crate::base::{BLOCK_SIZE, Error, Result};
use crate::format::log::{Checkpoint, Kind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zerocopy::IntoBytes;

/// Pages of sums written in one batch.
const BATCH_PAGES: usize = 512;

/// Closes the window in which redb may change its header, however `commit` ends.
struct Window<'a> {
    core: &'a Core,
    whole: bool,
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        write(&self.core.state).announced = false;
        if !self.whole {
            self.core.poison("a checkpoint of the metadata failed");
        }
    }
}

impl Core {
    /// See [`super::Volume::checkpoint`].
    pub fn checkpoint(&self, commit: impl FnOnce() -> Result<()>) -> Result<()> {
        let _one = lock(&self.checkpointing);
        self.check()?;
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        // Before anything has begun, a lack of space is only that.
        self.house()?;
        {
            let mut state = write(&self.state);
            state.announced = true;
            state.done = false;
        }
        let mut window = Window { core: self, whole: false };
        if let Err(error) = commit() {
            self.poison(&format!("a checkpoint of the metadata failed: {error}"));
            return Err(error);
        }
        window.whole = super::read(&self.state).done;
        drop(window);
        self.check()
    }

    /// Makes the state that redb's header names now the durable one:
    /// everything written is flushed everywhere; then the checkpoint is appended and flushed; then, lazily, what it says is
    /// copied to where the next opening looks first.
    pub fn publish(&self) -> Result<()> {
        let published = self.publish_steps();
        if let Err(error) = &published {
            self.poison(&format!("a checkpoint of the metadata failed: {error}"));
        }
        published
    }

    fn publish_steps(&self) -> Result<()> {
        let _io = lock(&self.io);
        let (batch, (header, changes, digests)) = self.take_dirty(|state| {
            state.writing = Arc::new(std::mem::take(&mut state.dirty));
            let changes = state.table.take_changes();
            (state.header, changes, state.table.digests())
        });
        self.house()?;
        self.write_out(&batch)?;
        // This flush also covers the sums areas and the anchor of the checkpoint before.
        self.flush_all()?;
        let mut log = lock(&self.log);
        log.flushed();
        let unit = Checkpoint { header: header.to_vec(), digests, changed: changes.blocks.clone() }.encode();
        if log.unit_blocks(unit.len()) > log.free() {
            return Err(Error::corrupt("the log has no room for a checkpoint"));
        }
        let anchor = log.anchor();
        let frames = log.frame(Kind::Checkpoint, &unit);
        self.write_frames(&log, &frames)?;
        self.flush_all()?;
        log.groups = 0;
        log.redo_bytes = 0;
        {
            let mut state = write(&self.state);
            state.published = Some(header);
            state.done = true;
        }
        self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.write_areas(&header, &changes)?;
        self.write_anchor(&mut log, &anchor)
    }

    /// Writes the changed pages of the sums areas, and home's copy of the header. The caller holds `io`.
    fn write_areas(&self, header: &[u8; redb_header::LEN], changes: &Changes) -> Result<()> {
        let homes = |number: u32| {
            let state = super::read(&self.state);
            state.table.chunks.get(&number).map(|chunk| chunk.homes.clone()).unwrap_or_default()
        };
        let lacking = |number| Error::corrupt(format!("a device lacks chunk {number} of the metadata"));
        self.write_header_home(header)?;
        for batch in changes.pages.chunks(BATCH_PAGES) {
            let homes: Vec<_> = batch.iter().map(|(number, ..)| homes(*number)).collect();
            self.write_all(|replica| {
                let offset = |number: u32, page: u32, homes: &[_]| {
                    let home = homes.iter().find(|(id, _)| *id == replica.id).ok_or_else(|| lacking(number))?.1;
                    Ok((crate::base::BlockNo::byte_offset(home)) + u64::from(page) * BLOCK_SIZE)
                };
                let pages = batch.iter().zip(&homes);
                pages
                    .map(|((number, page, content), homes)| {
                        Ok((offset(*number, *page, homes)?, vec![content.as_bytes()]))
                    })
                    .collect()
            })?;
        }
        Ok(())
    }
}
