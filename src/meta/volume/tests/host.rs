//! A stand-in for the pool: labels with an epoch, and space given out from the front.

use super::*;
use crate::base::{BLOCK_SIZE, BlockNo, Blocks, Error};
use crate::device::{Device, Engine, InlineEngine};
use crate::format::label::MetaRoot;
use crate::meta::volume::block::Block;
use std::cell::Cell;
use std::sync::Mutex;
use wincode::{SchemaRead, SchemaWrite};

/// What every device says about the pool.
#[derive(Clone, Default, Debug, SchemaWrite, SchemaRead)]
pub struct Label {
    pub seq: u64,
    pub epoch: u64,
    pub members: Vec<u16>,
    pub root: MetaRoot,
}

/// Blocks of a label slot; there are two.
const SLOT: u64 = 4;

impl Label {
    fn write(&self, device: &dyn Device) -> Result<()> {
        let body = wincode::serialize(self).unwrap();
        let mut bytes = blake3::hash(&body).as_bytes().to_vec();
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&body);
        assert!(bytes.len() <= (SLOT * BLOCK_SIZE) as usize, "the label outgrew its slot");
        bytes.resize((SLOT * BLOCK_SIZE) as usize, 0);
        device.write_at(self.seq % 2 * SLOT * BLOCK_SIZE, &[&bytes])?;
        device.flush()
    }

    pub fn read(device: &dyn Device) -> Option<Label> {
        let read = |slot| {
            let mut bytes = vec![0; (SLOT * BLOCK_SIZE) as usize];
            device.read_at(slot * SLOT * BLOCK_SIZE, &mut bytes).ok()?;
            let len = u32::from_le_bytes(bytes[32..36].try_into().unwrap()) as usize;
            let body = bytes.get(36..36 + len)?;
            (blake3::hash(body).as_bytes() == &bytes[..32]).then(|| wincode::deserialize::<Label>(body).unwrap())
        };
        [0, 1].into_iter().filter_map(read).max_by_key(|label| label.seq)
    }
}

struct Inner {
    label: Label,
    next: Vec<u64>,
    /// What was given back: device, first block, blocks.
    free: Vec<(u16, u64, u64)>,
}

impl Inner {
    /// Whether some member holds current metadata: an epoch without one could never be opened.
    fn has_metadata(&self) -> bool {
        let mut current = self.label.root.replicas.iter().filter(|replica| !replica.stale);
        self.label.root.replicas.is_empty() || current.any(|replica| self.label.members.contains(&replica.device))
    }
}

thread_local! {
    /// Hosts of this thread have no space to give.
    pub static FULL: Cell<bool> = const { Cell::new(false) };
}

pub struct Host {
    devices: Vec<Arc<dyn Device>>,
    present: Vec<usize>,
    inner: Mutex<Inner>,
}

impl Host {
    pub fn format(world: &SimWorld, _replicas: usize) -> Arc<Host> {
        let members: Vec<u16> = (0..world.len() as u16).collect();
        let next = vec![2 * SLOT; world.len()];
        let label = Label { epoch: 1, members, ..Label::default() };
        let present = (0..world.len()).collect();
        Arc::new(Host { devices: world.devices(), present, inner: Mutex::new(Inner { label, next, free: Vec::new() }) })
    }

    /// What a pool does before it opens the metadata: finds the newest epoch, who belongs to it, and makes a new one when
    /// somebody is missing.
    pub fn open(world: &SimWorld, present: &[usize]) -> Result<(Arc<Host>, MetaRoot, Vec<DeviceId>)> {
        let devices = world.devices();
        let labels: Vec<(usize, Label)> =
            present.iter().filter_map(|index| Some((*index, Label::read(&*devices[*index])?))).collect();
        let newest = labels.iter().map(|(_, label)| label).max_by_key(|label| (label.epoch, label.seq));
        let mut newest = newest.cloned().ok_or_else(|| Error::Unavailable("no label".into()))?;
        // A member that does not have the newest epoch yet was to get it before anything was acknowledged in it.
        let live: Vec<u16> = labels
            .iter()
            .filter(|(index, label)| newest.members.contains(&(*index as u16)) && label.epoch + 1 >= newest.epoch)
            .map(|(index, _)| *index as u16)
            .collect();
        let mut next = vec![2 * SLOT; devices.len()];
        for replica in &newest.root.replicas {
            let slot = &mut next[usize::from(replica.device)];
            *slot = (*slot).max(replica.log_block + u64::from(replica.log_blocks));
        }
        for run in &newest.root.chunks {
            let slot = &mut next[usize::from(run.device)];
            *slot = (*slot).max(run.block + u64::from(run.count) * u64::from(newest.root.chunk_blocks));
        }
        // Labels that are behind are brought up, whatever they lack: a device may have lost them without saying so.
        let behind = |(_, label): &(usize, Label)| (label.epoch, label.seq) != (newest.epoch, newest.seq);
        let changed = live != newest.members || labels.iter().any(behind);
        if changed {
            newest.epoch += 1;
            newest.members.clone_from(&live);
        }
        let root = newest.root.clone();
        let inner = Mutex::new(Inner { label: newest, next, free: Vec::new() });
        let host = Arc::new(Host { devices, present: present.to_vec(), inner });
        if changed {
            host.write_labels(&mut host.inner.lock().unwrap())?;
        }
        Ok((host, root, live.into_iter().map(DeviceId).collect()))
    }

    /// Writes the label to all members; a member that fails is no member any more.
    fn write_labels(&self, inner: &mut Inner) -> Result<()> {
        loop {
            inner.label.seq += 1;
            let label = inner.label.clone();
            let failed: Vec<u16> = label
                .members
                .iter()
                .copied()
                .filter(|member| label.write(&*self.devices[usize::from(*member)]).is_err())
                .collect();
            if failed.is_empty() {
                return Ok(());
            }
            inner.label.epoch += 1;
            inner.label.members.retain(|member| !failed.contains(member));
            if !inner.has_metadata() {
                return Err(Error::Unavailable("no device is left".into()));
            }
        }
    }

    pub fn members(&self) -> Vec<u16> {
        self.inner.lock().unwrap().label.members.clone()
    }
}

impl VolumeHost for Host {
    fn device(&self, id: DeviceId) -> Option<Arc<dyn Device>> {
        self.present.contains(&usize::from(id.0)).then(|| self.devices[usize::from(id.0)].clone())
    }

    fn engine(&self) -> Arc<dyn Engine> {
        Arc::new(InlineEngine)
    }

    fn allocate(&self, device: DeviceId, blocks: Blocks) -> Result<BlockNo> {
        if FULL.get() {
            return Err(Error::NoSpace);
        }
        let mut inner = self.inner.lock().unwrap();
        if let Some(at) = inner.free.iter().position(|(id, _, count)| (*id, *count) == (device.0, blocks.0)) {
            return Ok(BlockNo(inner.free.swap_remove(at).1));
        }
        let slot = &mut inner.next[usize::from(device.0)];
        let first = *slot;
        if (first + blocks.0) * BLOCK_SIZE > self.devices[usize::from(device.0)].size() {
            return Err(Error::NoSpace);
        }
        *slot += blocks.0;
        Ok(BlockNo(first))
    }

    fn release(&self, device: DeviceId, first: BlockNo, blocks: Blocks) {
        self.inner.lock().unwrap().free.push((device.0, first.0, blocks.0));
    }

    fn store_root(&self, root: &MetaRoot) -> Result<()> {
        let mut inner = self.inner.lock().unwrap();
        inner.label.root = root.clone();
        for replica in root.replicas.iter().filter(|replica| !replica.stale) {
            if !inner.label.members.contains(&replica.device) {
                inner.label.members.push(replica.device);
            }
        }
        self.write_labels(&mut inner)
    }

    fn drop_replica(&self, device: DeviceId, _why: &Error) -> Result<()> {
        let mut inner = self.inner.lock().unwrap();
        inner.label.members.retain(|member| *member != device.0);
        if !inner.has_metadata() {
            return Err(Error::Unavailable("no device is left".into()));
        }
        inner.label.epoch += 1;
        self.write_labels(&mut inner)
    }

    fn spare_replicas(&self, current: &[DeviceId]) -> Vec<DeviceId> {
        let all = self.present.iter().map(|index| DeviceId(*index as u16));
        all.filter(|id| !current.contains(id)).collect()
    }
}

#[test]
fn a_block_is_aligned() {
    assert_eq!(std::mem::align_of::<Block>(), 4096);
}
