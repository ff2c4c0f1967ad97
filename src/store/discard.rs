//! Telling devices which blocks are free: holes in image files, blocks an SSD need not keep.
//!
//! Invariants:
//! - Only blocks that are free durably and read by nobody are discarded, and they are reserved meanwhile, so that nothing
//!   is written there.
//! - Little is reserved at a time, and on a device that is nearly full nothing: space that is promised to writers is there.
//! - It is a hint: a device that fails it, or is not interested, is left alone until the pool is opened again or trimmed.

use std::collections::BTreeSet;

use super::devices::{Devices, load_bitmap};
use super::{Store, lock};
use crate::base::sync::Mutex;
use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::{BLOCK_SIZE, BlockNo, DeviceId, Result};
use crate::pool::allocator::Run;

/// Most freed runs remembered; what comes beyond waits for [`Store::trim`].
const REMEMBERED: usize = 100_000;
/// Freed runs discarded by one step: others have things to do, too.
const RUNS: usize = 16;
/// Part of a device's free blocks that is reserved at a time.
const HELD_PART: u64 = 16;

/// What became free and was not discarded yet; in memory only, because leaving it is never wrong.
#[derive(Debug, Default)]
pub(super) struct Discards {
    enabled: AtomicBool,
    freed: Mutex<BTreeSet<Run>>,
    refusing: Mutex<BTreeSet<DeviceId>>,
}

impl Discards {
    /// Remembers what has become free.
    pub fn note(&self, freed: Vec<Run>) {
        if self.enabled.load(Ordering::Relaxed) {
            let mut remembered = lock(&self.freed);
            let room = REMEMBERED.saturating_sub(remembered.len());
            remembered.extend(freed.into_iter().take(room));
        }
    }
}

impl Store {
    /// Whether freed blocks are discarded in the background.
    pub fn set_discard(&self, enabled: bool) {
        self.discards.enabled.store(enabled, Ordering::Relaxed);
    }

    /// Discards some of what has become free; says whether it found anything to do.
    pub fn discard_step(&self) -> Result<bool> {
        let Some(devices) = &self.devices else { return Ok(false) };
        self.meta.check()?;
        let runs: Vec<Run> = {
            let mut freed = lock(&self.discards.freed);
            std::iter::from_fn(|| freed.pop_first()).take(RUNS).collect()
        };
        let mut held = Vec::with_capacity(runs.len());
        let taken = self.hold_runs(devices, &runs, &mut held);
        self.discard(devices, &held);
        taken.map(|()| !runs.is_empty())
    }

    /// Reserves those of the runs that are still free. What would be too much at a time is remembered again.
    fn hold_runs(&self, devices: &Devices, runs: &[Run], held: &mut Vec<Run>) -> Result<()> {
        for run in runs {
            if devices.membership.avoid(run.device) {
                continue;
            }
            let mut allocator = lock(&devices.allocator);
            if allocator.is_tight(run.device) {
                continue;
            }
            let here: u64 =
                held.iter().filter(|other| other.device == run.device).map(|other| u64::from(other.blocks)).sum();
            if here > 0 && (here + u64::from(run.blocks)) * HELD_PART > allocator.free_blocks(run.device) {
                lock(&self.discards.freed).insert(*run);
            } else if allocator.hold(*run, &mut |key| load_bitmap(&self.meta, key))? {
                held.push(*run);
            }
        }
        Ok(())
    }

    /// Discards all free space of the devices that are here and not nearly full. `watch` learns how many bytes it was so
    /// far; `false` stops it. Returns how many it was in the end.
    pub fn trim(&self, watch: &mut dyn FnMut(u64) -> bool) -> Result<u64> {
        let Some(devices) = &self.devices else { return Ok(0) };
        lock(&self.discards.refusing).clear();
        let mut bytes = 0;
        for member in devices.membership.members() {
            if devices.membership.device(member.id).is_none() {
                continue;
            }
            let mut from = BlockNo(0);
            loop {
                self.meta.check()?;
                let load = &mut |key: &_| load_bitmap(&self.meta, key);
                let run = {
                    let mut allocator = lock(&devices.allocator);
                    let most = allocator.free_blocks(member.id) / HELD_PART;
                    match allocator.is_tight(member.id) {
                        true => None,
                        false => allocator.hold_next(member.id, from, most.max(1) as u32, load)?,
                    }
                };
                let Some(run) = run else { break };
                from = run.block + crate::base::Blocks(u64::from(run.blocks));
                bytes += self.discard(devices, &[run]);
                if !watch(bytes) {
                    return Ok(bytes);
                }
            }
        }
        Ok(bytes)
    }

    /// Discards reserved runs, neighbours together, and gives them back; returns how many bytes the devices took.
    fn discard(&self, devices: &Devices, held: &[Run]) -> u64 {
        let mut bytes = 0;
        for run in joined(held) {
            if lock(&self.discards.refusing).contains(&run.device) {
                continue;
            }
            let Some(device) = devices.membership.device(run.device) else { continue };
            let length = u64::from(run.blocks) * BLOCK_SIZE;
            match device.discard(run.block.0 * BLOCK_SIZE, length) {
                Ok(true) => bytes += length,
                Ok(false) => drop(lock(&self.discards.refusing).insert(run.device)),
                Err(error) => {
                    lock(&self.discards.refusing).insert(run.device);
                    if let Some(pool) = &self.pool {
                        pool.note(format!("no more discards to {} until it is trimmed: {error}", device.name()));
                    }
                }
            }
        }
        let mut allocator = lock(&devices.allocator);
        held.iter().for_each(|run| allocator.release(*run));
        bytes
    }
}

/// The runs, sorted, with neighbours made one.
fn joined(runs: &[Run]) -> Vec<Run> {
    let mut joined: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.device == run.device && last.block.0 + u64::from(last.blocks) == run.block.0 => {
                last.blocks += run.blocks;
            }
            _ => joined.push(*run),
        }
    }
    joined
}
