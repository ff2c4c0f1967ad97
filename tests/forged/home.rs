//! Forging pages of the database in the metadata volume: the volume itself writes them, in a checkpoint, and so every sum and
//! digest and the chain of the log are right. And forging redo, which the volume appends like any other.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use argosfs::base::clock::ManualClock;
use argosfs::base::{BlockNo, Blocks, DeviceId, Error, Result};
use argosfs::device::sim::SimWorld;
use argosfs::device::{Device, Engine, InlineEngine};
use argosfs::format::label::MetaRoot;
use argosfs::meta::volume::{Backend, Volume, VolumeHost, VolumeOptions};
use argosfs::meta::{Appended, Meta, RedoGroup, RedoLog};
use redb::StorageBackend;

use crate::image::{self, BLOCK};

/// Bytes that go to a place in a page.
pub struct PageEdit {
    pub page: u64,
    pub at: usize,
    pub bytes: Vec<u8>,
}

/// The devices without a pool above them.
struct Bare(Vec<(DeviceId, Arc<dyn Device>)>);

impl VolumeHost for Bare {
    fn device(&self, id: DeviceId) -> Option<Arc<dyn Device>> {
        self.0.iter().find(|(known, _)| *known == id).map(|(_, device)| device.clone())
    }

    fn engine(&self) -> Arc<dyn Engine> {
        Arc::new(InlineEngine)
    }

    fn allocate(&self, _: DeviceId, _: Blocks) -> Result<BlockNo> {
        Err(Error::NoSpace)
    }

    fn store_root(&self, _: &MetaRoot) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn drop_replica(&self, _: DeviceId, why: &Error) -> Result<()> {
        Err(Error::corrupt(why.to_string()))
    }

    fn spare_replicas(&self, _: &[DeviceId]) -> Vec<DeviceId> {
        Vec::new()
    }
}

/// The log of a volume without a pool.
struct BareLog(Volume);

impl RedoLog for BareLog {
    fn append(&self, groups: &[RedoGroup]) -> Result<Appended> {
        self.0.append(groups)
    }

    fn checkpoint(&self, commit: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.0.checkpoint(commit)
    }

    fn wants_checkpoint(&self) -> bool {
        false
    }

    fn prewrite(&self) -> Result<()> {
        Ok(())
    }

    fn poison(&self, why: &str) {
        self.0.poison(why);
    }
}

/// Writes edits behind everything the database writes, just before its header.
struct Late {
    below: Backend,
    armed: Arc<AtomicBool>,
    edits: Mutex<Vec<PageEdit>>,
}

impl fmt::Debug for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.below.fmt(f)
    }
}

impl StorageBackend for Late {
    fn len(&self) -> std::io::Result<u64> {
        self.below.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.below.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.below.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.below.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        if offset == 0 && self.armed.load(Ordering::Relaxed) {
            for edit in self.edits.lock().expect("one thread").drain(..) {
                let mut page = vec![0; BLOCK];
                self.below.read(edit.page * BLOCK as u64, &mut page)?;
                for (byte, new) in page.iter_mut().skip(edit.at).zip(&edit.bytes) {
                    *byte = *new;
                }
                self.below.write(edit.page * BLOCK as u64, &page)?;
            }
        }
        self.below.write(offset, data)
    }
}

/// Opens the volume of a world whose labels are right.
fn volume(world: &SimWorld, read_only: bool) -> Result<(Volume, Vec<RedoGroup>)> {
    let labels: Vec<_> = (0..world.len()).map(|index| image::label(world, index)).collect();
    let devices = labels.iter().zip(world.devices()).map(|(label, device)| (label.device.id, device)).collect();
    let root = labels[0].pool.meta.clone();
    let live: Vec<DeviceId> = root.replicas.iter().map(|replica| DeviceId(replica.device)).collect();
    let options = VolumeOptions {
        chunk_blocks: root.chunk_blocks,
        log_blocks: root.replicas[0].log_blocks,
        read_only,
        ..VolumeOptions::new(11)
    };
    Volume::open(Arc::new(Bare(devices)), &root, &live, options)
}

/// The pages of the database that hold anything, but the header's.
pub fn pages(world: &SimWorld) -> Vec<(u64, Vec<u8>)> {
    let (volume, _) = volume(&world.fork(), true).expect("the image's volume opens");
    let backend = volume.backend();
    let count = backend.len().expect("it has a length") / BLOCK as u64;
    let mut pages = Vec::new();
    for number in 1..count {
        let mut page = vec![0; BLOCK];
        if backend.read(number * BLOCK as u64, &mut page).is_ok() && page.iter().any(|byte| *byte != 0) {
            pages.push((number, page));
        }
    }
    pages
}

/// Makes a checkpoint of the database with these edits in its pages.
pub fn forge_pages(world: &SimWorld, edits: Vec<PageEdit>) -> Result<()> {
    let (volume, groups) = volume(world, false)?;
    let armed = Arc::new(AtomicBool::new(false));
    let backend = Late { below: volume.backend(), armed: armed.clone(), edits: Mutex::new(edits) };
    let clock = Arc::new(ManualClock::default());
    let meta = Meta::open(backend, groups, Arc::new(BareLog(volume)), Arc::new(()), clock, false)?;
    armed.store(true, Ordering::Relaxed);
    meta.checkpoint()
}

/// Appends redo with these changes, `skip` transactions behind the newest one.
pub fn forge_redo(world: &SimWorld, skip: u64, changes: Vec<u8>) -> Result<()> {
    let (volume, groups) = volume(world, false)?;
    let clock = Arc::new(ManualClock::default());
    let log = Arc::new(BareLog(volume.clone()));
    let meta = Meta::open(volume.backend(), groups, log, Arc::new(()), clock, false)?;
    let txn = argosfs::base::TxnId(meta.committed().0.wrapping_add(1).wrapping_add(skip));
    let _ = volume.append(&[RedoGroup { txn, changes }])?;
    Ok(())
}
