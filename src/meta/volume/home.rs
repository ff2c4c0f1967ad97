//! Home: the blocks of the virtual file. Written ones wait in memory and are written back in order, to all replicas at once;
//! read ones are verified, and mended from another replica.

use super::block::{BLOCK, Block, EMPTY, LOST, sum, zeroed};
use super::recover;
use super::replicas::{Piece, Replica};
use super::{Core, Dirty, Root, State, lock, read, write};
use crate::base::{BLOCK_SIZE, BlockNo, Blocks, DeviceId, Error, Result};
use crate::device::{AlignedBuf, Answer, OwnRead, STALL};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Blocks one request of the write-back carries at most, and all requests of one batch to one replica.
const RUN_BLOCKS: usize = 256;
const BATCH_BLOCKS: usize = 2048;
/// New space that one checkpoint may write to before anybody can be asked for more.
const SPREAD_BYTES: u64 = 2 << 20;
/// New space kept for what frees some.
const KEPT_BYTES: u64 = SPREAD_BYTES / 2;
/// A device whose oldest request is this old is read last.
const STALLED_NS: u64 = 50_000_000;

/// Blocks that lie one behind the other in a chunk and on every replica.
pub struct Run {
    pub block: u64,
    pub homes: Vec<(DeviceId, BlockNo)>,
    /// First block, counted from the start of the chunk.
    pub at: u64,
    pub sums: Vec<u32>,
}

impl Run {
    /// Byte offset on the replica.
    pub fn offset(&self, replica: &Replica) -> Result<u64> {
        let home = self.homes.iter().find(|(id, _)| *id == replica.id);
        let (_, home) =
            home.ok_or_else(|| Error::corrupt(format!("device {} lacks a chunk of metadata", replica.id)))?;
        Ok((home.0 + self.at) * BLOCK_SIZE)
    }

    /// One of its blocks as a run of its own.
    pub fn one(&self, at: usize) -> Option<Run> {
        let sums = vec![*self.sums.get(at)?];
        let past = at as u64;
        Some(Run { block: self.block + past, homes: self.homes.clone(), at: self.at + past, sums })
    }
}

/// What [`Core::mend`] did.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mended {
    /// The block changed meanwhile, or is right.
    Needless,
    Done,
    Failed,
}

impl State {
    /// What redb wrote last, while it is still in memory.
    pub fn in_memory(&self, block: u64) -> Option<&Block> {
        self.dirty.get(&block).or_else(|| self.writing.get(&block)).map(|block| &**block)
    }

    /// The runs of blocks that have to be read from devices; everything else is filled in.
    fn gather(&self, offset: u64, out: &mut [u8]) -> Result<Vec<Run>> {
        let mut runs: Vec<Run> = Vec::new();
        each_piece(offset, out, |block, within, piece| {
            if block == 0 {
                let header = Block::padded(&self.header);
                piece.copy_from_slice(&header.0[within..within + piece.len()]);
                return Ok(());
            }
            let Some((number, chunk, index)) = self.table.find(block) else {
                piece.fill(0);
                return Ok(());
            };
            let sum = chunk.sum(index);
            if let Some(held) = self.in_memory(block).filter(|_| sum != EMPTY) {
                piece.copy_from_slice(&held.0[within..within + piece.len()]);
                return Ok(());
            }
            match sum {
                EMPTY => piece.fill(0),
                LOST => return Err(Error::corrupt(format!("the checksum of metadata block {block} is lost"))),
                sum => match runs.last_mut() {
                    Some(run)
                        if run.block + run.sums.len() as u64 == block
                            && index > 0
                            && run.sums.len() < RUN_BLOCKS
                            && self.table.geometry.locate(run.block).is_some_and(|(first, _)| first == number) =>
                    {
                        run.sums.push(sum);
                    }
                    _ => runs.push(Run {
                        block,
                        homes: chunk.homes.clone(),
                        at: u64::from(self.table.geometry.pages + index),
                        sums: vec![sum],
                    }),
                },
            }
            Ok(())
        })?;
        Ok(runs)
    }
}

/// Cuts a byte range of the virtual file at block ends: calls `each(block, offset in the block, piece)`.
fn each_piece(offset: u64, out: &mut [u8], mut each: impl FnMut(u64, usize, &mut [u8]) -> Result<()>) -> Result<()> {
    let mut at = offset;
    let mut rest = out;
    while !rest.is_empty() {
        let within = (at % BLOCK_SIZE) as usize;
        let (piece, tail) = rest.split_at_mut(rest.len().min(BLOCK - within));
        at += piece.len() as u64;
        each((at - 1) / BLOCK_SIZE, within, piece)?;
        rest = tail;
    }
    Ok(())
}

impl Core {
    /// Fills `out` from the virtual file.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        // A read that races with a write of the same block may see the new content and the old sum; then it starts over.
        for _ in 0..8 {
            let runs = {
                let state = read(&self.state);
                if offset.checked_add(out.len() as u64).is_none_or(|end| end > state.len) {
                    return Err(Error::Invalid("a read beyond the end of the metadata"));
                }
                state.gather(offset, out)?
            };
            let mut bad = None;
            for run in &runs {
                match self.read_run(run) {
                    Ok(blocks) => {
                        each_piece(offset, out, |block, within, piece| {
                            if let Some(content) = block.checked_sub(run.block).and_then(|at| blocks.get(at as usize)) {
                                piece.copy_from_slice(&content.0[within..within + piece.len()]);
                            }
                            Ok(())
                        })?;
                    }
                    Err(error) => bad = bad.or(Some((run, error))),
                }
            }
            let Some((run, error)) = bad else { return Ok(()) };
            if self.unchanged(run) {
                return Err(error);
            }
        }
        Err(Error::Busy("metadata kept changing while it was read".into()))
    }

    /// Whether all of a run's blocks still have the sums they had, and lie on the devices.
    pub fn unchanged(&self, run: &Run) -> bool {
        let state = read(&self.state);
        let mut blocks = (run.block..).zip(&run.sums);
        blocks.all(|(block, sum)| state.in_memory(block).is_none() && state.table.sum(block) == *sum)
    }

    /// Reads and verifies a run; what one replica has wrong comes from another and is mended. One that does not answer in
    /// time is waited for only when no other is left.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when all replicas have a block wrong; another one when some could not be read: it may be right there.
    pub fn read_run(&self, run: &Run) -> Result<Vec<Block>> {
        let mut readers = self.readers();
        readers.sort_by_key(|replica| replica.device.stalled_ns().is_some_and(|age| age > STALLED_NS));
        let mut blocks = zeroed(run.sums.len());
        let mut missing: Vec<usize> = (0..run.sums.len()).collect();
        let mut bad: Vec<(Arc<Replica>, Vec<usize>)> = Vec::new();
        let patient = readers.into_iter().map(|replica| (replica, Some(STALL)));
        let mut turns: VecDeque<(Arc<Replica>, Option<Duration>)> = patient.collect();
        while let Some((replica, patience)) = turns.pop_front() {
            match self.read_whole(run, &replica, patience) {
                Answer::Read(found) => {
                    let (found, _) = found.as_chunks::<BLOCK>();
                    missing.retain(|at| match found.get(*at).filter(|found| sum(&found[..]) == run.sums[*at]) {
                        Some(found) => {
                            blocks[*at].0.copy_from_slice(found);
                            false
                        }
                        None => true,
                    });
                }
                Answer::Failed(_) => {}
                Answer::Late => {
                    turns.push_back((replica, None));
                    continue;
                }
            }
            if missing.is_empty() {
                break;
            }
            bad.push((replica, missing.clone()));
        }
        for at in missing {
            blocks[at] = self.read_single(run, at, &bad)?;
        }
        for (replica, wrong) in bad {
            for at in wrong {
                self.mend(run, &replica, at, &blocks[at]);
            }
        }
        Ok(blocks)
    }

    /// A block that no replica gave as part of the run: one bad sector fails the whole request, and an error may pass.
    fn read_single(&self, run: &Run, at: usize, replicas: &[(Arc<Replica>, Vec<usize>)]) -> Result<Block> {
        let one = run.one(at).ok_or_else(|| Error::corrupt("a block beyond its run"))?;
        let mut failed = None;
        for (replica, _) in replicas {
            let mut last = None;
            for _ in 1..recover::TRIES {
                last = match self.read_whole(&one, replica, None) {
                    Answer::Read(found) if sum(&found) == run.sums[at] => {
                        let mut block = Block([0; BLOCK]);
                        block.0.copy_from_slice(&found);
                        return Ok(block);
                    }
                    Answer::Read(_) => None,
                    Answer::Failed(error) => Some(error),
                    Answer::Late => Some(Error::Busy(format!("{} does not answer", replica.device.name()))),
                };
            }
            failed = last.or(failed);
        }
        let block = one.block;
        Err(failed.map_or_else(
            || Error::corrupt(format!("no replica has metadata block {block} right")),
            |why| Error::Unavailable(format!("no replica returns metadata block {block} right: {why}")),
        ))
    }

    /// All blocks of the run as one replica has them.
    fn read_whole(&self, run: &Run, replica: &Replica, patience: Option<Duration>) -> Answer {
        let offset = match run.offset(replica) {
            Ok(offset) => offset,
            Err(error) => return Answer::Failed(error),
        };
        let buf = AlignedBuf::scratch(run.sums.len() * BLOCK);
        let read = OwnRead { device: Arc::clone(&replica.device), offset, buf };
        self.engine.read(vec![read], patience).pop().unwrap_or(Answer::Late)
    }

    fn read_one(&self, run: &Run, replica: &Replica, at: usize, block: &mut Block) -> bool {
        let read = |offset| replica.device.read_at(offset + at as u64 * BLOCK_SIZE, &mut block.0);
        run.offset(replica).and_then(read).is_ok() && sum(&block.0) == run.sums[at]
    }

    /// Rewrites a block that one replica has wrong, if that is still so. Durable with the next flush; until then it would be
    /// found and mended again.
    pub fn mend(&self, run: &Run, replica: &Replica, at: usize, content: &Block) -> Mended {
        let Some(one) = run.one(at) else { return Mended::Needless };
        let _io = lock(&self.io);
        let mut there = Block::zeroed();
        if !self.unchanged(&one) || self.read_one(&one, replica, 0, &mut there) {
            return Mended::Needless;
        }
        self.counters.bad.fetch_add(1, Ordering::Relaxed);
        if self.options.read_only || self.check().is_err() {
            return Mended::Failed;
        }
        match one.offset(replica).and_then(|offset| replica.device.write_at(offset, &[&content.0])) {
            Ok(()) => {
                self.counters.repaired.fetch_add(1, Ordering::Relaxed);
                Mended::Done
            }
            Err(error) => {
                // When that fails too, the volume is poisoned; the block was read all the same.
                let _ = self.drop_replica(replica.id, error);
                Mended::Failed
            }
        }
    }

    /// Whether the replica has the block wrong now.
    pub fn is_wrong(&self, one: &Run, replica: &Replica) -> bool {
        let _io = lock(&self.io);
        self.unchanged(one) && !self.read_one(one, replica, 0, &mut Block::zeroed())
    }

    /// Takes whole blocks written by redb, other than the header.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.check()?;
        if !offset.is_multiple_of(BLOCK_SIZE) || !data.len().is_multiple_of(BLOCK) {
            return Err(Error::Invalid("a write to metadata that is not of whole blocks"));
        }
        let first = offset / BLOCK_SIZE;
        let blocks: Vec<(u64, Box<Block>, u32)> = (first..)
            .zip(data.chunks_exact(BLOCK))
            .map(|(number, content)| (number, Block::padded(content), sum(content)))
            .collect();
        let end = offset.checked_add(data.len() as u64);
        if end.is_none_or(|end| end > read(&self.state).len) {
            return Err(Error::Invalid("a write beyond the end of the metadata"));
        }
        let full = {
            let mut state = write(&self.state);
            for (number, content, sum) in blocks {
                state.table.map(number)?;
                state.table.set(number, sum);
                state.dirty.insert(number, content);
            }
            state.dirty.len() as u64 * BLOCK_SIZE >= self.options.dirty_limit.0
        };
        if full && !self.options.read_only { self.write_back() } else { Ok(()) }
    }

    /// Takes space ahead, so that so many chunks are at hand.
    pub fn reserve(&self, chunks: usize) -> Result<()> {
        let mut root = lock(&self.root);
        while root.spare.len() < chunks {
            let homes = self.allocate_chunk()?;
            root.spare.push(homes);
        }
        Ok(())
    }

    /// Chunks that should be at hand and are not: those that have no place yet, and those that redb may write to before
    /// anybody can be asked again.
    pub fn lacking_chunks(&self) -> usize {
        let spare = lock(&self.root).spare.len();
        let state = read(&self.state);
        let all = state.len.div_ceil(u64::from(self.geometry.data) * BLOCK_SIZE) as usize;
        let ahead = self.options.write_ahead.0.div_ceil(u64::from(self.geometry.data) * BLOCK_SIZE) as usize;
        // redb doubles its file when it grows, but does not fill it at once. One checkpoint of a small one still spreads.
        let spread = SPREAD_BYTES.div_ceil(u64::from(self.geometry.data) * BLOCK_SIZE) as usize;
        let unmapped = all.saturating_sub(state.table.chunks.len()) + (all / 4).max(spread);
        (state.table.homeless() + ahead.min(unmapped) + 1).saturating_sub(spare)
    }

    /// Bytes that what is at hand takes, beyond what has no place yet.
    pub fn room(&self) -> u64 {
        let spare = lock(&self.root).spare.len();
        let free = spare.saturating_sub(read(&self.state).table.homeless());
        free as u64 * u64::from(self.geometry.data) * BLOCK_SIZE
    }

    /// Chunks at hand that only what frees space may use.
    pub fn kept_chunks(&self) -> usize {
        KEPT_BYTES.div_ceil(u64::from(self.geometry.data) * BLOCK_SIZE) as usize
    }

    /// Space for a chunk on every replica. The caller holds the root's lock, so no replica comes or goes.
    fn allocate_chunk(&self) -> Result<Vec<(DeviceId, BlockNo)>> {
        let blocks = Blocks(u64::from(self.geometry.chunk));
        let mut homes = Vec::new();
        for replica in self.writers() {
            match self.host.allocate(replica.id, blocks) {
                Ok(first) => homes.push((replica.id, first)),
                Err(error) => {
                    homes.into_iter().for_each(|(device, first)| self.host.release(device, first, blocks));
                    return Err(error);
                }
            }
        }
        Ok(homes)
    }

    /// Gives chunks that have no place on the devices one. On an error some may still be without.
    pub fn house(&self) -> Result<()> {
        if read(&self.state).table.homeless() == 0 {
            return Ok(());
        }
        let mut root = lock(&self.root);
        let homeless = read(&self.state).table.all_homeless();
        for number in homeless {
            let homes = match root.spare.pop() {
                Some(homes) => homes,
                None => self.allocate_chunk()?,
            };
            write(&self.state).table.house(number, homes);
        }
        Ok(())
    }

    /// Writes dirty blocks back to every replica. Not durable by itself. Blocks of chunks for which there is no space stay in
    /// memory, for the next time.
    pub fn write_back(&self) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        self.check()?;
        let _io = lock(&self.io);
        match self.house() {
            Ok(()) | Err(Error::NoSpace) => {}
            Err(error) => return Err(error),
        }
        let (batch, ()) = self.take_dirty(|state| {
            if state.table.homeless() > 0 {
                let State { dirty, table, .. } = state;
                let all = std::mem::take(dirty).into_iter();
                let (housed, rest) = all.partition(|(block, _)| table.is_housed(*block));
                state.writing = Arc::new(housed);
                state.dirty = rest;
            } else {
                state.writing = Arc::new(std::mem::take(&mut state.dirty));
            }
        });
        self.write_out(&batch)
    }

    /// Lets `take` move dirty blocks to those on their way. The caller holds `io`.
    pub fn take_dirty<T>(&self, take: impl FnOnce(&mut State) -> T) -> (Arc<Dirty>, T) {
        let mut state = write(&self.state);
        // After a failure the volume is poisoned and nothing gets here, so nothing is on its way now.
        let answer = take(&mut state);
        (state.writing.clone(), answer)
    }

    /// Writes the blocks on their way to every replica, then forgets them. The caller holds `io`.
    pub fn write_out(&self, batch: &Dirty) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.store_new_chunks()?;
        let mut runs: Vec<(Run, Vec<&[u8]>)> = Vec::new();
        {
            let state = read(&self.state);
            for (block, content) in batch {
                let (number, chunk, index) = state.table.find(*block).expect("mapped when it was written");
                match runs.last_mut() {
                    Some((run, bufs))
                        if run.block + bufs.len() as u64 == *block && index > 0 && bufs.len() < RUN_BLOCKS =>
                    {
                        bufs.push(&content.0);
                    }
                    _ => {
                        let at = u64::from(self.geometry.pages + index);
                        debug_assert!(chunk.stored, "chunk {number} is written before the root names it");
                        runs.push((
                            Run { block: *block, homes: chunk.homes.clone(), at, sums: Vec::new() },
                            vec![&content.0],
                        ));
                    }
                }
            }
        }
        let mut rest = runs.as_slice();
        while !rest.is_empty() {
            let mut blocks = 0;
            let count = rest.iter().take_while(|(_, bufs)| {
                blocks += bufs.len();
                blocks <= BATCH_BLOCKS
            });
            let (now, later) = rest.split_at(count.count().max(1));
            self.write_all(|replica| {
                now.iter().map(|(run, bufs)| Ok::<Piece<'_>, Error>((run.offset(replica)?, bufs.clone()))).collect()
            })?;
            rest = later;
        }
        write(&self.state).writing = Arc::default();
        Ok(())
    }

    /// Stores the root when chunks were mapped since.
    fn store_new_chunks(&self) -> Result<()> {
        let mut root: std::sync::MutexGuard<'_, Root> = lock(&self.root);
        if read(&self.state).table.chunks.values().all(|chunk| chunk.stored || chunk.homes.is_empty()) {
            return Ok(());
        }
        self.store_root(&mut root)
    }
}
