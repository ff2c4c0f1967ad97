//! Writing and flushing all replicas at once, and what happens when one of them fails.

use super::{Core, lock, read};
use crate::base::{BlockNo, DeviceId, Error, Result};
use crate::device::{Device, Op, Request};
use crate::format::label::MetaRoot;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A device that holds the log and home.
pub struct Replica {
    pub id: DeviceId,
    pub device: Arc<dyn Device>,
    /// First block of its log.
    pub log: BlockNo,
    /// It is being brought up: it gets all writes, is not read, and its failure costs nothing.
    pub joining: AtomicBool,
}

impl Replica {
    pub fn new(id: DeviceId, device: Arc<dyn Device>, log: BlockNo, joining: bool) -> Arc<Replica> {
        Arc::new(Replica { id, device, log, joining: AtomicBool::new(joining) })
    }

    pub fn is_joining(&self) -> bool {
        self.joining.load(Ordering::Acquire)
    }
}

/// A write to one replica: byte offset on its device and what goes there.
pub type Piece<'a> = (u64, Vec<&'a [u8]>);

impl Core {
    /// Replicas that get writes.
    pub fn writers(&self) -> Vec<Arc<Replica>> {
        read(&self.replicas).clone()
    }

    /// Replicas that can be read.
    pub fn readers(&self) -> Vec<Arc<Replica>> {
        let mut readers = self.writers();
        readers.retain(|replica| !replica.is_joining());
        readers
    }

    /// Runs what `plan` wants written to each replica, all in one batch. A replica that fails is dropped before this
    /// returns `Ok`.
    pub fn write_all<'a>(&self, plan: impl Fn(&Replica) -> Result<Vec<Piece<'a>>>) -> Result<()> {
        self.run_all(|replica| {
            let pieces = plan(replica)?;
            Ok(pieces.into_iter().map(|(offset, bufs)| Op::Write { offset, bufs }).collect())
        })
    }

    /// Makes every write so far durable on every replica. A replica that fails is dropped before this returns `Ok`; a failed
    /// flush is never tried again.
    pub fn flush_all(&self) -> Result<()> {
        self.run_all(|_| Ok(vec![Op::Flush]))
    }

    fn run_all<'a>(&self, plan: impl Fn(&Replica) -> Result<Vec<Op<'a>>>) -> Result<()> {
        self.check()?;
        let writers = self.writers();
        let mut failed: Vec<(DeviceId, Error)> = Vec::new();
        let mut owners = Vec::new();
        let mut batch = Vec::new();
        for replica in &writers {
            match plan(replica) {
                Ok(ops) => {
                    for op in ops {
                        owners.push(replica.id);
                        batch.push(Request::new(&*replica.device, op));
                    }
                }
                Err(error) => failed.push((replica.id, error)),
            }
        }
        self.engine.run(&mut batch);
        for (owner, request) in owners.into_iter().zip(batch) {
            match request.result {
                Err(error) if failed.iter().all(|(id, _)| *id != owner) => failed.push((owner, error)),
                _ => {}
            }
        }
        failed.into_iter().try_for_each(|(id, error)| self.drop_replica(id, error))
    }

    /// Goes on without a replica that failed a write or a flush. The host has changed the membership durably when this
    /// returns `Ok`. Without another replica, or when the host refuses, the volume is poisoned.
    pub fn drop_replica(&self, id: DeviceId, why: Error) -> Result<()> {
        let mut root = lock(&self.root);
        let writers = self.writers();
        let Some(victim) = writers.iter().find(|replica| replica.id == id) else { return Ok(()) };
        if !victim.is_joining() {
            if self.readers().len() == 1 {
                self.poison(&format!("the last copy of the metadata failed: {why}"));
                return Err(why);
            }
            if let Err(refused) = self.host.drop_replica(id, &why) {
                self.poison(&format!("a copy of the metadata failed ({why}) and could not be dropped: {refused}"));
                return Err(refused);
            }
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
        self.replicas.write().unwrap_or_else(std::sync::PoisonError::into_inner).retain(|replica| replica.id != id);
        if let Some(entry) = root.replicas.iter_mut().find(|entry| entry.device == id.0) {
            entry.stale = true;
        }
        self.store_root(&mut root)
    }

    /// Stores the root as the volume is now. The caller holds the root's lock.
    pub fn store_root(&self, root: &mut super::Root) -> Result<()> {
        root.generation += 1;
        let (runs, unstored) = {
            let state = read(&self.state);
            let unstored: Vec<u32> = state
                .table
                .chunks
                .iter()
                .filter(|(_, chunk)| !chunk.stored && !chunk.homes.is_empty())
                .map(|(number, _)| *number)
                .collect();
            (state.table.runs(), unstored)
        };
        let stored = self.host.store_root(&MetaRoot {
            generation: root.generation,
            volume: self.volume,
            chunk_blocks: self.geometry.chunk,
            replicas: root.replicas.clone(),
            chunks: runs,
        });
        if let Err(error) = stored {
            self.poison(&format!("the map of the metadata could not be stored: {error}"));
            return Err(error);
        }
        let mut state = super::write(&self.state);
        for number in unstored {
            if let Some(chunk) = state.table.chunks.get_mut(&number) {
                chunk.stored = true;
            }
        }
        Ok(())
    }
}
