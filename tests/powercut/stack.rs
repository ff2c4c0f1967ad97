//! A whole pool on simulated devices: made, opened from a subset, checked.

use std::sync::Arc;

use argosfs::base::clock::ManualClock;
use argosfs::base::rng::mix64;
use argosfs::base::{BLOCK_SIZE, DeviceId, Prng, Result};
use argosfs::check::{Context, Findings, fsck};
use argosfs::device::sim::SimWorld;
use argosfs::device::{Device, InlineEngine};
use argosfs::format::label::DefaultGeometry;
use argosfs::pool::{FormatOptions, OpenMode, Pool};
use argosfs::store::Store;

use crate::campaign::{Verdict, While};
use crate::process::Process;

/// What a pool looks like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub devices: usize,
    pub k: u8,
    pub m: u8,
    /// Of each device, in bytes.
    pub size: u64,
}

impl Shape {
    /// So many devices as wide as a stripe, and no more.
    pub const fn exact(k: u8, m: u8) -> Shape {
        Shape { devices: k as usize + m as usize, k, m, size: 32 << 20 }
    }

    /// Whether two disjoint sets of devices could each be opened.
    pub fn can_split(&self) -> bool {
        self.devices <= 2 * usize::from(self.m)
    }
}

/// A running process with an open pool.
pub struct Mounted {
    pub store: Store,
    pub process: Arc<Process>,
}

impl Mounted {
    /// The id of the member on device `index` of the world, when it is present.
    pub fn member(&self, index: usize) -> Option<DeviceId> {
        let state = self.store.pool()?.state();
        let name = format!("sim{index}");
        state.present().find(|member| member.name() == name).map(|member| member.id)
    }
}

/// Blocks of a shard: small, so that files of some kilobytes fill stripes.
const SHARD_BLOCKS: u32 = 8;

/// Makes a pool of all devices of the world.
pub fn format(world: &SimWorld, shape: &Shape, seed: u64) -> Result<Mounted> {
    let process = Process::new();
    let devices: Vec<Arc<dyn Device>> = (0..world.len()).map(|index| process.device(world, index)).collect();
    let options = FormatOptions {
        name: "tank".into(),
        geometry: DefaultGeometry { k: shape.k, m: shape.m, shard_blocks: SHARD_BLOCKS },
        force: false,
        created: 0,
        features: Default::default(),
    };
    let pool = Pool::format(&devices, &options, Arc::new(InlineEngine), Box::new(Prng::new(seed)))?;
    let store = Store::format(Arc::new(pool), Arc::new(ManualClock::default()), mix64(seed))?;
    store.set_discard(true);
    Ok(Mounted { store, process })
}

/// Opens the pool from the given devices.
pub fn open(world: &SimWorld, devices: &[usize], process: &Arc<Process>, seed: u64) -> Result<Mounted> {
    open_at(world, devices, process, seed, Arc::new(ManualClock::default()))
}

/// Opens the pool from the given devices, to live by `clock`.
pub fn open_at(
    world: &SimWorld,
    devices: &[usize],
    process: &Arc<Process>,
    seed: u64,
    clock: Arc<ManualClock>,
) -> Result<Mounted> {
    let devices: Vec<Arc<dyn Device>> = devices.iter().map(|index| process.device(world, *index)).collect();
    let pool = Pool::open(&devices, &OpenMode::default(), Arc::new(InlineEngine), Box::new(Prng::new(seed)))?;
    let store = Store::open(Arc::new(pool), clock, seed)?;
    store.set_discard(true);
    Ok(Mounted { store, process: process.clone() })
}

/// Everything stored twice agrees, and no block, stripe or inode is leaked.
pub fn check(store: &Store) -> Verdict {
    let mut findings = Findings::default();
    let context = context(store);
    let checked = store.view(|view| fsck(view, &context, &mut findings, &mut |_| {}));
    checked.during(|| "fsck".into())?;
    if findings.total() > 0 {
        let lines: Vec<String> =
            findings.listed().iter().take(8).map(|finding| format!("{}: {}", finding.id, finding.what)).collect();
        return Err(format!("fsck found {} problems: {}", findings.total(), lines.join("; ")));
    }
    Ok(())
}

/// What fsck is told besides the tables.
fn context(store: &Store) -> Context {
    let Some(pool) = store.pool() else { return Context::default() };
    let state = pool.state();
    let mut context = Context::default();
    for member in &state.members {
        let (blocks, layout) = (member.size / BLOCK_SIZE, member.layout);
        context.devices.push((member.id, blocks));
        let end = layout.start + layout.blocks;
        context.metadata.push((member.id, 0, layout.start));
        context.metadata.push((member.id, end, blocks.saturating_sub(end)));
    }
    for run in store.archive_runs() {
        context.metadata.push((run.device, run.block.0, u64::from(run.blocks)));
    }
    let meta = &state.label.meta;
    for replica in &meta.replicas {
        context.metadata.push((DeviceId(replica.device), replica.log_block, u64::from(replica.log_blocks)));
    }
    for chunk in &meta.chunks {
        let blocks = u64::from(chunk.count) * u64::from(meta.chunk_blocks);
        context.metadata.push((DeviceId(chunk.device), chunk.block, blocks));
    }
    context
}
