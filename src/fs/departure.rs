//! Departures: dirty content leaves memory in batches, each committed by one transaction.
//!
//! Invariants:
//! - A batch gets its ticket and takes its content under the lock of `departures`, and enters the queue under it: tickets
//!   grow in the order of departure, and the queue holds them in order. A batch only waits for batches with smaller
//!   tickets, and the smallest one is always with a thread or next in the queue, so nobody waits for ever.
//! - An error leaves the content dirty. Whoever waited for it is told; the next attempt is made by whoever comes next.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::Fs;
use super::content::{Content, Segments, retell};
use super::handle::InodeState;
use crate::base::sync::MutexGuard;
use crate::base::{BLOCK_SIZE, Error, Ino, Result};
use crate::format::rows::{InodeRow, JournalOp};
use crate::format::table::Inodes;
use crate::meta::{Reader, Tx};
use crate::store::commit::ContentDeltas;
use crate::store::{ContentWrite, INLINE_SYNCHRONOUS, Inline, alignment};

/// Files whose content one commit takes at most.
const PARTS: usize = 1024;

/// Content of one file in a batch.
struct Part {
    inode: Arc<InodeState>,
    segments: Segments,
    bytes: u64,
    size: u64,
    writer: u32,
}

/// What one commit takes.
pub struct Batch {
    ticket: u64,
    inline: Inline,
    parts: Vec<Part>,
    bytes: u64,
    /// Of a stripe, with the gaps between files.
    filled: u64,
}

/// What loading a file's content into a batch came to.
enum Loaded {
    /// Nothing dirty there.
    Nothing,
    /// Somebody is changing the file's shape; try again when he is done.
    Paused,
    /// Content up to this offset.
    Until(u64),
}

impl Fs {
    /// Takes dirty content of `range` into `batch`, up to a stripe altogether. The caller holds `departures`.
    fn load(&self, batch: &mut Batch, inode: &Arc<InodeState>, range: Range<u64>) -> Result<Loaded> {
        let mut state = inode.content().state();
        if state.paused {
            return Ok(Loaded::Paused);
        }
        if state.dead || state.dirty.is_empty() {
            return Ok(Loaded::Nothing);
        }
        // In memory: whoever dirtied the content read it. Nothing may be looked up with the content locked.
        let committed = inode.live().row.as_ref().map(|row| row.size);
        let committed = committed.ok_or_else(|| gone(inode.ino))?;
        let most = self.room_in(batch).max(1);
        let Some(departed) = state.depart(batch.ticket, range, most, committed) else { return Ok(Loaded::Nothing) };
        let writer = state.writer;
        self.writeback.note_departed(departed.bytes);
        drop(state);
        batch.filled = batch.filled.next_multiple_of(alignment(departed.bytes as usize) as u64) + departed.bytes;
        batch.bytes += departed.bytes;
        let (segments, bytes, size) = (departed.segments, departed.bytes, departed.size);
        batch.parts.push(Part { inode: inode.clone(), segments, bytes, size, writer });
        Ok(Loaded::Until(departed.end))
    }

    /// Bytes of one more file that fit into the batch's stripe.
    fn room_in(&self, batch: &Batch) -> u64 {
        (self.writeback.stripe() as u64).saturating_sub(batch.filled.next_multiple_of(BLOCK_SIZE))
    }

    /// Gives a batch to the workers, or commits it here if there are none.
    fn dispatch(&self, departures: MutexGuard<'_, u64>, batch: Batch) -> Result<()> {
        let Some(batch) = self.writeback.enqueue(batch) else { return Ok(()) };
        drop(departures);
        self.commit_batch(batch)
    }

    /// Commits a batch. On error its content is dirty again.
    fn commit_batch(&self, batch: Batch) -> Result<()> {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            #[cfg(test)]
            self.writeback.faults.strike()?;
            let writes: Vec<ContentWrite> = batch.writes().collect();
            let turn = || batch.parts.iter().try_for_each(|part| await_turn(part.inode.content(), batch.ticket));
            self.store.commit_in_turn(&writes, batch.inline, turn, |tx, deltas| put_rows(tx, &batch, deltas))
        }));
        match outcome {
            Ok(Ok(())) => {
                self.land(batch);
                Ok(())
            }
            Ok(Err(error)) => {
                self.fail(batch, &error);
                Err(error)
            }
            Err(_) => {
                let error = self.store.meta().poison("a commit of content panicked");
                self.fail(batch, &error);
                Err(error)
            }
        }
    }

    /// The batch is part of the files now.
    fn land(&self, batch: Batch) {
        for part in batch.parts {
            let content = part.inode.content();
            let mut state = content.state();
            let flight = state.land(batch.ticket);
            self.writeback.unlist(&part.inode, &mut state);
            drop(state);
            content.notify();
            self.store.release(flight.reserved);
            drop(flight.segments);
            for (_, bytes) in Arc::into_inner(part.segments).into_iter().flatten() {
                if let Some(buffer) = bytes.into_buffer() {
                    self.writeback.buffers().give(buffer);
                }
            }
        }
        self.writeback.note_landed(batch.bytes);
    }

    /// The batch was called off: its content, and what departed later from the same files, is dirty again.
    fn fail(&self, batch: Batch, error: &Error) {
        let writeback = &self.writeback;
        writeback.note_failure(error);
        for part in &batch.parts {
            let content = part.inode.content();
            let mut state = content.state();
            let result = state.fail(batch.ticket, error, writeback.stripe(), writeback.buffers());
            writeback.note_returned(&result);
            part.inode.live().pending.content -= result.flown - result.kept;
            self.writeback.unlist(&part.inode, &mut state);
            drop(state);
            content.notify();
            self.store.release(result.surplus);
        }
    }

    /// Lets whole stripes of contiguous dirty content around `offset` depart, if there are workers to take them.
    pub(super) fn depart_full(&self, inode: &Arc<InodeState>, offset: u64) -> Result<()> {
        let stripe = self.writeback.stripe() as u64;
        if !self.writeback.has_workers() {
            return Ok(());
        }
        loop {
            let mut departures = self.writeback.departures();
            let run = inode.content().state().dirty.run_around(offset, stripe);
            if run.end - run.start < stripe {
                return Ok(());
            }
            let mut batch = Batch::new(&mut departures, Inline::Small);
            match self.load(&mut batch, inode, run.start..run.start + stripe)? {
                Loaded::Until(_) => self.dispatch(departures, batch)?,
                Loaded::Nothing | Loaded::Paused => return Ok(()),
            }
        }
    }

    /// Commits what is dirty in `range` of a file, and waits for what is on its way. Nothing is durable yet.
    pub(super) fn flush_range(&self, inode: &Arc<InodeState>, range: Range<u64>) -> Result<()> {
        let Some(content) = inode.content_if_any() else { return Ok(()) };
        let (failures, end, bytes) = {
            let state = content.state();
            if state.is_clean() {
                return Ok(());
            }
            (state.failures, range.end.min(state.dirty.end()), state.dirty.bytes())
        };
        let small = bytes <= INLINE_SYNCHRONOUS as u64;
        let inline = if small { Inline::Synchronous } else { Inline::Small };
        let mut from = range.start;
        while from < end {
            let mut departures = self.writeback.departures();
            let mut batch = Batch::new(&mut departures, inline);
            match self.load(&mut batch, inode, from..end)? {
                Loaded::Nothing => break,
                Loaded::Paused => {
                    drop(departures);
                    await_unpaused(content);
                }
                Loaded::Until(reached) => {
                    from = reached;
                    if bytes <= self.writeback.stripe() as u64 {
                        drop(departures);
                        self.commit_batch(batch)?;
                    } else {
                        self.dispatch(departures, batch)?;
                    }
                }
            }
        }
        await_landing(content, failures)
    }

    /// Commits all content of a file: for whoever is about to make its name replace another.
    pub(super) fn flush_content(&self, inode: &Arc<InodeState>) -> Result<()> {
        self.flush_range(inode, 0..u64::MAX)
    }

    /// Makes everything that is dirty now depart, packed. With `wait`, also waits until it has landed, and tells the first
    /// error. Nothing is durable yet.
    pub(super) fn flush_all(&self, wait: bool) -> Result<()> {
        let inodes: Vec<Arc<InodeState>> = self.writeback.listed();
        let mut outcome = Ok(());
        let mut told = |result: Result<()>| {
            if outcome.is_ok() {
                outcome = result;
            }
        };
        let mut waiting = Vec::with_capacity(if wait { inodes.len() } else { 0 });
        let mut paused = Vec::new();
        let mut todo = inodes.iter().peekable();
        let mut within: Option<Range<u64>> = None;
        while todo.peek().is_some() {
            let mut departures = self.writeback.departures();
            let mut batch = Batch::new(&mut departures, Inline::Small);
            while let Some(inode) = todo.peek()
                && self.room_in(&batch) > 0
                && batch.parts.len() < PARTS
            {
                let range = within.get_or_insert_with(|| {
                    let state = inode.content().state();
                    if wait {
                        waiting.push((*inode, state.failures));
                    }
                    0..state.dirty.end()
                });
                match self.load(&mut batch, inode, range.clone()) {
                    // There may be more of this file.
                    Ok(Loaded::Until(end)) if self.room_in(&batch) == 0 && end < range.end => {
                        range.start = end;
                        continue;
                    }
                    Ok(Loaded::Paused) => paused.push(*inode),
                    Ok(Loaded::Nothing | Loaded::Until(_)) => {}
                    Err(error) => told(Err(error)),
                }
                within = None;
                todo.next();
            }
            if !batch.parts.is_empty() {
                told(self.dispatch(departures, batch));
            }
        }
        if wait {
            for (inode, failures) in waiting {
                told(await_landing(inode.content(), failures));
            }
            for inode in paused {
                told(self.flush_content(inode));
            }
        }
        outcome
    }

    /// Forgets the content of an inode that is about to be removed, and waits for what is on its way.
    pub(super) fn discard_content(&self, inode: &Arc<InodeState>) {
        let Some(content) = inode.content_if_any() else { return };
        let mut state = content.state();
        state.dead = true;
        let (bytes, reserved) = state.drop_dirty(0..u64::MAX);
        while !state.flights.is_empty() {
            state = content.wait(state);
        }
        self.writeback.unlist(inode, &mut state);
        drop(state);
        self.store.release(reserved);
        self.writeback.note_dropped(bytes);
    }

    /// Commits batches of the queue until the workers are dismissed and the queue is empty.
    pub(super) fn work(&self) {
        while let Some(batch) = self.writeback.next_batch() {
            // Who waits for the batch learns of an error from the files.
            let _ = self.commit_batch(batch);
        }
    }
}

impl Batch {
    /// An empty batch with the next ticket.
    fn new(departures: &mut MutexGuard<'_, u64>, inline: Inline) -> Batch {
        **departures += 1;
        Batch { ticket: **departures, inline, parts: Vec::new(), bytes: 0, filled: 0 }
    }

    fn writes(&self) -> impl Iterator<Item = ContentWrite> + '_ {
        self.parts.iter().flat_map(|part| {
            let pieces = part.segments.iter();
            pieces.map(|(offset, bytes)| ContentWrite { ino: part.inode.ino, offset: *offset, bytes: bytes.clone() })
        })
    }
}

/// Waits until every earlier departure of the file has landed.
fn await_turn(content: &Content, ticket: u64) -> Result<()> {
    let mut state = content.state();
    loop {
        match state.flights.front() {
            Some(flight) if flight.ticket == ticket => return Ok(()),
            Some(_) if state.flights.iter().any(|flight| flight.ticket == ticket) => state = content.wait(state),
            _ => {
                return Err(state.last_failure.as_ref().map_or(Error::Stale, retell));
            }
        }
    }
}

/// Waits for what is on its way now; tells the last error if there were any since `failures`.
fn await_landing(content: &Content, failures: u64) -> Result<()> {
    let mut state = content.state();
    let last = state.flights.back().map_or(0, |flight| flight.ticket);
    while state.flights.front().is_some_and(|flight| flight.ticket <= last) {
        state = content.wait(state);
    }
    match &state.last_failure {
        Some(error) if state.failures != failures => Err(retell(error)),
        _ => Ok(()),
    }
}

fn await_unpaused(content: &Content) {
    let mut state = content.state();
    while state.paused {
        state = content.wait(state);
    }
}

fn gone(ino: Ino) -> Error {
    Error::corrupt(format!("inode {ino} has content to be written but no row; run fsck"))
}

/// Updates the rows of a batch's files in its transaction, and publishes them.
fn put_rows(tx: &mut Tx<'_>, batch: &Batch, deltas: &ContentDeltas) -> Result<()> {
    let mut deltas = deltas.iter();
    let mut rows: Vec<InodeRow> = Vec::with_capacity(batch.parts.len());
    for part in &batch.parts {
        let ino = part.inode.ino;
        let delta: i64 = deltas.by_ref().take(part.segments.len()).map(|(_, delta)| delta).sum();
        let (cached, pending) = {
            let live = part.inode.live();
            (live.row.clone(), live.pending)
        };
        let row = match cached {
            Some(row) => Some(row),
            None => tx.get::<Inodes>(&ino)?,
        };
        let mut row = row.ok_or_else(|| gone(ino))?;
        row.content = row.content.saturating_add_signed(delta);
        row.size = row.size.max(part.size);
        row.mtime = pending.mtime.unwrap_or(row.mtime);
        row.ctime = pending.ctime.map_or(row.ctime, |ctime| ctime.max(row.ctime));
        row.atime = pending.atime.unwrap_or(row.atime);
        tx.put::<Inodes>(&ino, &row)?;
        let operation =
            JournalOp::Write { ino: ino.0, bytes: part.bytes, extents: part.segments.len() as u32, size: row.size };
        tx.journal(part.writer, operation)?;
        rows.push(row);
    }
    // Nothing but the commit itself can fail from here on.
    for (part, row) in batch.parts.iter().zip(rows) {
        let mut live = part.inode.live();
        let pending = &mut live.pending;
        pending.size = pending.size.filter(|size| *size > row.size);
        pending.content -= part.bytes;
        pending.atime = pending.atime.filter(|atime| *atime != row.atime);
        pending.mtime = pending.mtime.filter(|mtime| *mtime != row.mtime);
        pending.ctime = pending.ctime.filter(|ctime| *ctime > row.ctime);
        live.row = Some(row);
    }
    Ok(())
}
