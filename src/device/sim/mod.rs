//! Simulated devices: one world owns several, keeps one ordered record of everything written, flushed and discarded on
//! all of them, and can show every state a power cut at any point of that record may leave behind.
//! They implement the production trait, so whatever runs on real devices runs on these.
//!
//! Invariants:
//! - Everything follows from the seed and the order of requests: used from one thread, a run repeats exactly.
//! - Reads see every completed write at once; only a power cut brings pending writes into doubt.
//! - The record can be compacted ([`SimWorld::mark_base`]), never edited.

mod event;
mod fault;
mod store;
#[cfg(test)]
mod tests;
mod world;

pub use event::DiscardMode;
pub use fault::{Fault, On};
pub use world::{Counters, SimWorld, Snapshot};

use super::{Device, bounds};
use crate::base::rng::mix64;
use crate::base::{Error, Result};
use event::Kind;
use std::io;
use std::sync::{Arc, MutexGuard};
use store::{BLOCK, Block, SECTOR, SECTORS, share};
use world::{Inner, Shared};

/// One device of a [`SimWorld`].
struct SimDevice {
    world: Arc<Shared>,
    index: usize,
    name: String,
    size: u64,
}

impl SimDevice {
    /// Waits out hangs and counts the request.
    fn enter(&self, kind: On) -> MutexGuard<'_, Inner> {
        let mut inner = self.world.lock();
        if inner.devices[self.index].faults.hangs(kind) {
            inner.devices[self.index].hanging += 1;
            self.world.changed.notify_all();
            while inner.devices[self.index].faults.hangs(kind) {
                inner = self.world.wait(inner);
            }
            inner.devices[self.index].hanging -= 1;
        }
        inner
    }

    fn failed(&self, inner: &mut Inner, operation: &'static str, errno: i32) -> Error {
        inner.devices[self.index].counters.errors += 1;
        Error::io(&*self.name, operation, io::Error::from_raw_os_error(errno))
    }

    /// Where a misdirected request of `len` bytes lands: on a block and inside the device.
    fn elsewhere(&self, to: u64, len: u64) -> u64 {
        to.min(self.size - len) / BLOCK as u64 * BLOCK as u64
    }
}

impl Device for SimDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        bounds::check(&self.name, "read", self.size, offset, buf.len() as u64)?;
        let mut guard = self.enter(On::Read);
        let inner = &mut *guard;
        let device = &mut inner.devices[self.index];
        device.counters.reads += 1;
        device.counters.bytes_read += buf.len() as u64;
        let first = offset / BLOCK as u64;
        let blocks = first..first + (buf.len() / BLOCK) as u64;
        let effect = device.faults.draw(On::Read, blocks, 0, &mut device.prng);
        if let Some(errno) = effect.errno {
            return Err(self.failed(inner, "read", errno));
        }
        let from = effect.misdirect.map_or(offset, |to| self.elsewhere(to, buf.len() as u64));
        device.current.read(from, buf);
        if effect.garble && !buf.is_empty() {
            let bit = device.prng.below(buf.len() as u64 * 8);
            buf[(bit / 8) as usize] ^= 1 << (bit % 8);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[&[u8]]) -> Result<()> {
        let len = bounds::total(bufs);
        bounds::check(&self.name, "write", self.size, offset, len)?;
        let mut blocks = cut(bufs);
        let mut guard = self.enter(On::Write);
        let inner = &mut *guard;
        let device = &mut inner.devices[self.index];
        device.counters.writes += 1;
        device.counters.bytes_written += len;
        let mut first = offset / BLOCK as u64;
        let new = (first..first + blocks.len() as u64).filter(|number| device.current.get(*number).is_none()).count();
        let touched = first..first + blocks.len() as u64;
        let effect = device.faults.draw(On::Write, touched, new as u64, &mut device.prng);
        if let Some(errno) = effect.errno {
            // What a failed write leaves is anybody's guess: nothing, everything, or some sectors.
            let seed = device.prng.next();
            if seed & 1 == 1 && errno == libc::EIO && !device.faults.gone() {
                for (block, at) in blocks.iter_mut().zip(0u64..) {
                    let mut merged = device.current.get(first + at).map_or([0; BLOCK], |old| **old);
                    for sector in 0..SECTORS {
                        if mix64(seed ^ mix64(at * SECTORS as u64 + sector as u64)) & 1 == 1 {
                            let bytes = sector * SECTOR..(sector + 1) * SECTOR;
                            merged[bytes.clone()].copy_from_slice(&block[bytes]);
                        }
                    }
                    *block = share(&merged);
                }
                inner.append(self.index, Kind::Write { first, blocks });
            }
            return Err(self.failed(inner, "write", errno));
        }
        if let Some(to) = effect.misdirect {
            first = self.elsewhere(to, len) / BLOCK as u64;
        }
        if !effect.lose && !blocks.is_empty() {
            inner.append(self.index, Kind::Write { first, blocks });
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        // Only writes that were done when the flush started are promised.
        let covers = self.world.lock().next;
        let mut guard = self.enter(On::Flush);
        let inner = &mut *guard;
        let device = &mut inner.devices[self.index];
        device.counters.flushes += 1;
        let effect = device.faults.draw(On::Flush, 0..0, 0, &mut device.prng);
        if let Some(errno) = effect.errno {
            inner.append(self.index, Kind::FlushFailed { covers });
            return Err(self.failed(inner, "flush", errno));
        }
        inner.append(self.index, if effect.lie { Kind::FlushIgnored } else { Kind::Flush { covers } });
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<bool> {
        bounds::check(&self.name, "discard", self.size, offset, len)?;
        let mut guard = self.enter(On::Discard);
        let inner = &mut *guard;
        let device = &mut inner.devices[self.index];
        device.counters.discards += 1;
        let effect = device.faults.draw(On::Discard, 0..0, 0, &mut device.prng);
        if let Some(errno) = effect.errno {
            return Err(self.failed(inner, "discard", errno));
        }
        let (mode, seed) = (device.discard, device.prng.next());
        let (first, count) = (offset / BLOCK as u64, len / BLOCK as u64);
        inner.append(self.index, Kind::Discard { first, count, mode, seed });
        Ok(true)
    }

    fn stalled_ns(&self) -> Option<u64> {
        let inner = self.world.lock();
        let device = &inner.devices[self.index];
        // A hanging request has no age here (time belongs to the test): it counts as a minute.
        device.faults.stalled_ns().or((device.hanging > 0).then_some(60_000_000_000))
    }

    fn domain_hint(&self) -> Option<u64> {
        Some(self.world.lock().devices[self.index].domain)
    }
}

/// Cuts the buffers, laid end to end, into blocks. Their total is a multiple of the block size.
fn cut(bufs: &[&[u8]]) -> Vec<Arc<Block>> {
    let mut blocks = Vec::with_capacity(bounds::total(bufs) as usize / BLOCK);
    let mut block = [0; BLOCK];
    let mut filled = 0;
    for buf in bufs {
        let mut rest = *buf;
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(rest.len().min(BLOCK - filled));
            block[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
            rest = tail;
            if filled == BLOCK {
                blocks.push(share(&block));
                filled = 0;
            }
        }
    }
    blocks
}
