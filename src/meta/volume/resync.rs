//! Bringing replicas up, letting them go, and checking all of them.

use super::block::{Block, EMPTY, LOST, sum, zeroed};
use super::home::{Mended, Run};
use super::recover;
use super::replicas::Replica;
use super::table::digest;
use super::{Core, VerifyReport, lock, read, write};
use crate::base::{BLOCK_SIZE, BlockNo, Blocks, DeviceId, Error, Result};
use crate::format::label::ReplicaRoot;
use crate::format::log::ANCHORS;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zerocopy::IntoBytes;

/// Data blocks looked at together.
const PIECE: u32 = 256;

/// What was done about the log.
struct LogMended {
    /// Stretches that were copied.
    copied: u64,
    /// It was read up to its end.
    whole: bool,
}

impl Core {
    fn check_writable(&self) -> Result<()> {
        self.check()?;
        if self.options.read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }

    /// See [`super::Volume::rejoin`].
    pub fn rejoin(&self, id: DeviceId) -> Result<()> {
        self.check_writable()?;
        let _one = lock(&self.resyncing);
        if self.readers().iter().any(|replica| replica.id == id) {
            return Ok(());
        }
        let replica = self.admit(id)?;
        let copied = self.copy_home(&replica).and_then(|()| self.finish(&replica));
        if copied.is_err() {
            let _root = lock(&self.root);
            write(&self.replicas).retain(|other| other.id != id);
        }
        copied
    }

    /// Gives the device space for everything, and lets it take part in all writes from now on. The root names it as stale
    /// until it is whole.
    fn admit(&self, id: DeviceId) -> Result<Arc<Replica>> {
        let device = self.host.device(id).ok_or_else(|| super::open::absent(id))?;
        // What is being written back now goes to the old replicas alone and looks as if it were still in memory: without this
        // lock, nobody would copy it.
        let _io = lock(&self.io);
        let mut root = lock(&self.root);
        let log_blocks = u32::try_from(self.log_capacity + ANCHORS).map_err(|_| Error::TooBig)?;
        let chunk = Blocks(u64::from(self.geometry.chunk));
        let mut taken: Vec<(BlockNo, Blocks)> = Vec::new();
        let mut allocate = |blocks: Blocks| {
            let first = self.host.allocate(id, blocks)?;
            taken.push((first, blocks));
            Ok(first)
        };
        let known = root.replicas.iter().position(|entry| entry.device == id.0 && entry.log_blocks == log_blocks);
        let lacking: Vec<u32> = {
            let state = read(&self.state);
            let chunks = state.table.chunks.iter();
            chunks
                .filter(|(_, chunk)| !chunk.homes.is_empty() && chunk.home(id).is_none())
                .map(|(number, _)| *number)
                .collect()
        };
        let mut space = || -> Result<_> {
            let log = match known.and_then(|at| root.replicas.get(at)) {
                Some(entry) => BlockNo(entry.log_block),
                None => allocate(Blocks(u64::from(log_blocks)))?,
            };
            let homes = lacking.iter().map(|number| Ok((*number, allocate(chunk)?))).collect::<Result<Vec<_>>>()?;
            let spares = root.spare.iter().map(|_| allocate(chunk)).collect::<Result<Vec<_>>>()?;
            Ok((log, homes, spares))
        };
        let (log, homes, spares) = match space() {
            Ok(space) => space,
            Err(error) => {
                taken.into_iter().for_each(|(first, blocks)| self.host.release(id, first, blocks));
                return Err(error);
            }
        };
        {
            let mut state = write(&self.state);
            for (number, home) in homes {
                if let Some(chunk) = state.table.chunks.get_mut(&number) {
                    chunk.homes.push((id, home));
                }
            }
        }
        for (spare, home) in root.spare.iter_mut().zip(spares) {
            spare.retain(|(device, _)| *device != id);
            spare.push((id, home));
        }
        root.replicas.retain(|entry| entry.device != id.0);
        root.replicas.push(ReplicaRoot { device: id.0, log_block: log.0, log_blocks, stale: true });
        self.store_root(&mut root)?;
        // They may lead into another future, and are written anew when the replica is whole.
        let nothing = zeroed(ANCHORS as usize);
        device.write_at(log.byte_offset(), &[nothing.as_slice().as_bytes()])?;
        device.flush()?;
        let replica = Replica::new(id, device, log, true);
        write(&self.replicas).push(replica.clone());
        Ok(replica)
    }

    /// Copies what the device does not have right, a little at a time. Writes that happen meanwhile reach it too.
    fn copy_home(&self, to: &Arc<Replica>) -> Result<()> {
        let numbers: Vec<u32> = read(&self.state).table.chunks.keys().copied().collect();
        for number in numbers {
            for from in (0..self.geometry.data).step_by(PIECE as usize) {
                for run in self.stored_runs(number, from) {
                    self.copy_run(to, &run)?;
                }
            }
            let _io = lock(&self.io);
            for page in 0..self.geometry.pages {
                if let Some((home, content)) = self.stored_page(number, page, to.id)? {
                    self.write_joining(to, home.0 + u64::from(page), &content)?;
                }
            }
        }
        Ok(())
    }

    /// Runs of blocks with content on the devices, among the data blocks of a piece of a chunk.
    fn stored_runs(&self, number: u32, from: u32) -> Vec<Run> {
        let state = read(&self.state);
        let Some(chunk) = state.table.chunks.get(&number) else { return Vec::new() };
        let mut runs: Vec<Run> = Vec::new();
        for index in from..(from + PIECE).min(self.geometry.data) {
            let block = u64::from(number) * u64::from(self.geometry.data) + u64::from(index);
            let sum = chunk.sum(index);
            if block == 0 || sum == EMPTY || sum == LOST || state.in_memory(block).is_some() {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.block + run.sums.len() as u64 == block => run.sums.push(sum),
                _ => runs.push(Run {
                    block,
                    homes: chunk.homes.clone(),
                    at: u64::from(self.geometry.pages + index),
                    sums: vec![sum],
                }),
            }
        }
        runs
    }

    fn copy_run(&self, to: &Arc<Replica>, run: &Run) -> Result<()> {
        let offset = run.offset(to)?;
        let mut there = zeroed(run.sums.len());
        if to.device.read_at(offset, there.as_mut_slice().as_mut_bytes()).is_err() {
            there = zeroed(run.sums.len());
        }
        let wrong: Vec<usize> =
            (0..run.sums.len()).filter(|at| there.get(*at).map(|b| sum(&b.0)) != run.sums.get(*at).copied()).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        for at in wrong {
            let Some(one) = run.one(at) else { continue };
            let content = match self.read_run(&one) {
                Ok(content) => content,
                // A block that everybody has wrong is free in the durable state, or lost: there is nothing to copy.
                Err(Error::Corrupt(_)) => continue,
                Err(_) if !self.unchanged(&one) => continue,
                // One that could not be read is neither.
                Err(error) => return Err(error),
            };
            let _io = lock(&self.io);
            if let (true, Some(content)) = (self.unchanged(&one), content.first()) {
                self.write_joining(to, offset / BLOCK_SIZE + at as u64, content)?;
            }
        }
        Ok(())
    }

    fn write_joining(&self, to: &Replica, block: u64, content: &Block) -> Result<()> {
        if self.writers().iter().all(|replica| replica.id != to.id) {
            return Err(Error::Unavailable(format!("{} failed while metadata was copied to it", to.device.name())));
        }
        to.device.write_at(block * BLOCK_SIZE, &[&content.0])
    }

    /// A page of sums as the newest checkpoint has it, and where the chunk lies on the device; `None` when there is nothing to
    /// store or everybody has it wrong. The caller holds `io`.
    fn stored_page(&self, number: u32, page: u32, device: DeviceId) -> Result<Option<(BlockNo, Box<Block>)>> {
        let (homes, expected, now) = {
            let state = read(&self.state);
            let chunk = state.table.chunks.get(&number);
            let known = chunk.and_then(|chunk| Some((chunk, chunk.digests.get(page as usize).copied()?)));
            let Some((chunk, expected)) = known.filter(|(_, expected)| *expected != 0) else { return Ok(None) };
            (chunk.homes.clone(), expected, chunk.page(page))
        };
        let home = |id: DeviceId| homes.iter().find(|(other, _)| *other == id).map(|(_, home)| *home);
        let Some(place) = home(device) else { return Ok(None) };
        if digest(&now) == expected {
            return Ok(Some((place, now)));
        }
        let is_right = |content: &mut Block| digest(content) == expected;
        let readers = self.readers();
        let from = readers.iter().filter_map(|replica| Some((&**replica, home(replica.id)? + Blocks(u64::from(page)))));
        Ok(recover::read_right(from, is_right)?.map(|content| (place, content)))
    }

    /// Copies the log while nothing is appended, and makes the replica one that counts.
    fn finish(&self, replica: &Arc<Replica>) -> Result<()> {
        let mut ring = lock(&self.log);
        let log = self.mend_log(&mut ring)?;
        if !log.whole {
            return Err(Error::Unavailable(
                "the log of the metadata cannot be read as a whole: it is not copied".into(),
            ));
        }
        let mut root = lock(&self.root);
        if self.writers().iter().all(|other| other.id != replica.id) {
            return Err(Error::Unavailable(format!(
                "{} failed while metadata was copied to it",
                replica.device.name()
            )));
        }
        if let Some(entry) = root.replicas.iter_mut().find(|entry| entry.device == replica.id.0) {
            entry.stale = false;
        }
        self.store_root(&mut root)?;
        replica.joining.store(false, Ordering::Release);
        Ok(())
    }

    /// Gives every replica the entries and anchors it lacks, and home's copy of the header, and flushes. The caller holds the
    /// log.
    fn mend_log(&self, ring: &mut super::ring::Ring) -> Result<LogMended> {
        let writers = self.writers();
        let log = recover::recover(&writers, self.volume, ring.capacity)?;
        let mut copied = 0;
        for (index, to) in writers.iter().enumerate() {
            for stretch in log.missing(index) {
                self.copy_log(ring, to, &writers, stretch)?;
                copied += 1;
            }
        }
        let whole = ring.ends_at(&log.end);
        let published = read(&self.state).published;
        if let Some(header) = published {
            self.write_header_home(&header)?;
        }
        self.flush_all()?;
        ring.flushed();
        // What was read up to somewhere else may lack the newest checkpoint.
        if whole {
            self.write_anchor(ring, &log.checkpoint.anchor(self.volume))?;
            self.flush_all()?;
            ring.flushed();
        }
        Ok(LogMended { copied, whole })
    }

    /// See [`super::Volume::replenish`].
    pub fn replenish(&self, wanted: usize) -> Result<Option<DeviceId>> {
        let current: Vec<DeviceId> = self.readers().iter().map(|replica| replica.id).collect();
        if current.len() >= wanted {
            return Ok(None);
        }
        let mut last = None;
        for spare in self.host.spare_replicas(&current) {
            match self.rejoin(spare) {
                Ok(()) => return Ok(Some(spare)),
                Err(error) => last = Some(error),
            }
        }
        last.map_or(Ok(None), Err)
    }

    /// See [`super::Volume::retire`].
    pub fn retire(&self, id: DeviceId) -> Result<()> {
        self.check_writable()?;
        let _one = lock(&self.resyncing);
        let _io = lock(&self.io);
        let _log = lock(&self.log);
        let mut root = lock(&self.root);
        if self.readers().iter().all(|replica| replica.id == id) {
            return Err(Error::Unavailable("the device holds the only copy of the metadata".into()));
        }
        write(&self.replicas).retain(|replica| replica.id != id);
        let mut freed = Vec::new();
        root.replicas.retain(|entry| {
            if entry.device == id.0 {
                freed.push((BlockNo(entry.log_block), Blocks(u64::from(entry.log_blocks))));
            }
            entry.device != id.0
        });
        let chunk = Blocks(u64::from(self.geometry.chunk));
        let mut take = |homes: &mut Vec<(DeviceId, BlockNo)>| {
            freed.extend(homes.iter().filter(|(device, _)| *device == id).map(|(_, home)| (*home, chunk)));
            homes.retain(|(device, _)| *device != id);
        };
        write(&self.state).table.chunks.values_mut().for_each(|chunk| take(&mut chunk.homes));
        root.spare.iter_mut().for_each(take);
        self.store_root(&mut root)?;
        freed.into_iter().for_each(|(first, blocks)| self.host.release(id, first, blocks));
        Ok(())
    }

    /// See [`super::Volume::verify_while`]; `None` when it was ended early.
    pub fn verify(&self, mend: bool, go_on: &mut dyn FnMut() -> bool) -> Result<Option<VerifyReport>> {
        let mend = mend && self.check_writable().is_ok();
        let mut report = VerifyReport::default();
        let numbers: Vec<u32> = read(&self.state).table.chunks.keys().copied().collect();
        for number in numbers {
            for from in (0..self.geometry.data).step_by(PIECE as usize) {
                for run in self.stored_runs(number, from) {
                    self.verify_run(&run, mend, &mut report);
                }
                if !go_on() {
                    return Ok(None);
                }
            }
            self.verify_pages(number, mend, &mut report)?;
        }
        let mut ring = lock(&self.log);
        if mend {
            let log = self.mend_log(&mut ring)?;
            report.log_repairs += log.copied;
            report.log_broken = !log.whole;
        } else {
            let replicas = self.writers();
            let log = recover::recover(&replicas, self.volume, ring.capacity)?;
            report.log_broken = self.log_unread || !ring.ends_at(&log.end);
            report.log_lacking = (0..replicas.len()).map(|index| log.missing(index).len() as u64).sum();
        }
        Ok(Some(report))
    }

    fn verify_run(&self, run: &Run, mend: bool, report: &mut VerifyReport) {
        let readers = self.readers();
        let mut blocks = zeroed(run.sums.len());
        let mut wrong: Vec<(usize, Arc<Replica>)> = Vec::new();
        for replica in &readers {
            let read = |offset| replica.device.read_at(offset, blocks.as_mut_slice().as_mut_bytes());
            let readable = run.offset(replica).and_then(read).is_ok();
            report.blocks += run.sums.len() as u64;
            for (at, (block, expected)) in blocks.iter().zip(&run.sums).enumerate() {
                if !readable || sum(&block.0) != *expected {
                    wrong.push((at, replica.clone()));
                }
            }
        }
        wrong.sort_by_key(|(at, _)| *at);
        for group in wrong.chunk_by(|a, b| a.0 == b.0) {
            let Some(one) = group.first().and_then(|(at, _)| run.one(*at)) else { continue };
            match self.read_run(&one) {
                Ok(content) => {
                    let Some(content) = content.first() else { continue };
                    for (_, replica) in group {
                        if !mend {
                            report.bad += u64::from(self.is_wrong(&one, replica));
                            continue;
                        }
                        let mended = self.mend(&one, replica, 0, content);
                        report.bad += u64::from(mended != Mended::Needless);
                        report.repaired += u64::from(mended == Mended::Done);
                    }
                }
                Err(_) if self.unchanged(&one) => report.unreadable.push(one.block),
                // It was rewritten meanwhile.
                Err(_) => {}
            }
        }
    }

    fn verify_pages(&self, number: u32, mend: bool, report: &mut VerifyReport) -> Result<()> {
        let _io = lock(&self.io);
        for page in 0..self.geometry.pages {
            for replica in self.readers() {
                let Ok(Some((home, content))) = self.stored_page(number, page, replica.id) else { continue };
                let offset = (home.0 + u64::from(page)) * BLOCK_SIZE;
                let mut there = Block::zeroed();
                report.blocks += 1;
                if replica.device.read_at(offset, &mut there.0).is_ok() && there == content {
                    continue;
                }
                report.bad += 1;
                if mend {
                    match replica.device.write_at(offset, &[&content.0]) {
                        Ok(()) => report.repaired += 1,
                        Err(error) => self.drop_replica(replica.id, error)?,
                    }
                }
            }
        }
        Ok(())
    }
}
