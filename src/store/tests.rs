//! The store over simulated devices, with its metadata in memory.

#[cfg(feature = "shuttle")]
mod shuttle;

use std::collections::BTreeMap;
use std::ops::Bound::Unbounded;
use std::sync::Arc;

use super::commit::{ContentWrite, Inline, SharedBytes};
use super::devices::{Devices, Member, Membership};
use super::{Ledger, Store, extents, lock};
use crate::base::clock::SteppingClock;
use crate::base::sync::Mutex;
use crate::base::{DeviceId, Error, Incarnation, Ino, Prng, Result, StripeId, Uuid};
use crate::device::sim::{DiscardMode, SimWorld};
use crate::device::{Device, Engine, InlineEngine};
use crate::erasure::Geometry;
use crate::format::label::GroupLayout;
use crate::format::rows::{DeviceRow, GROUP_PART_BLOCKS, Placement, StripeRow};
use crate::format::table;
use crate::meta::{Meta, Reader, Tx, Visit};
use crate::pool::stripe_io::Media;

/// A pool of simulated devices without labels.
struct SimPool {
    world: SimWorld,
    layout: GroupLayout,
    geometry: Geometry,
    gone: Mutex<Vec<DeviceId>>,
}

impl Media for SimPool {
    fn device(&self, id: DeviceId) -> Option<Arc<dyn Device>> {
        let here = usize::from(id.0) < self.world.len() && !lock(&self.gone).contains(&id);
        here.then(|| self.world.device(usize::from(id.0)))
    }
    fn engine(&self) -> &dyn Engine {
        &InlineEngine
    }
    fn avoid(&self, _: DeviceId) -> bool {
        false
    }
}

impl Membership for SimPool {
    fn pool(&self) -> Uuid {
        Uuid([7; 16])
    }
    fn incarnation(&self) -> Incarnation {
        Incarnation(1)
    }
    fn geometry(&self) -> (Geometry, u32) {
        (self.geometry, 16)
    }
    fn members(&self) -> Vec<Member> {
        (0..self.world.len() as u16)
            .map(DeviceId)
            .filter(|id| !lock(&self.gone).contains(id))
            .map(|id| Member {
                id,
                uuid: Uuid([id.0 as u8; 16]),
                domain: u64::from(id.0),
                weight: 1.0,
                layout: self.layout,
            })
            .collect()
    }
    fn drop_member(&self, id: DeviceId, _: &Error) -> Result<()> {
        lock(&self.gone).push(id);
        Ok(())
    }
}

struct Rig {
    pool: Arc<SimPool>,
    store: Store,
    /// What each file should contain.
    model: BTreeMap<Ino, Vec<u8>>,
}

const SIZE: u64 = 24 << 20;

impl Rig {
    fn new(devices: usize, k: u8, m: u8) -> Rig {
        let world = SimWorld::new(1, devices, SIZE);
        let layout = GroupLayout::for_size(SIZE).unwrap();
        let pool = Arc::new(SimPool { world, layout, geometry: Geometry::new(k, m).unwrap(), gone: Mutex::default() });
        let devices = Arc::new(Devices::new(pool.clone()));
        let meta = Meta::in_memory_with(devices.clone(), Arc::new(SteppingClock::default())).unwrap();
        for member in pool.members() {
            let row = DeviceRow {
                uuid: member.uuid.0,
                state: 0,
                class: 0,
                tier: 0,
                weight_milli: 1000,
                failure_domain: member.domain,
                blocks: layout.blocks,
                used_blocks: 0,
                read_errors: 0,
                write_errors: 0,
                checksum_errors: 0,
                read_latency_us_ewma: 0,
                write_latency_us_ewma: 0,
                risk_milli: 0,
            };
            meta.transact(|tx| tx.put::<table::Devices>(&member.id, &row)).unwrap();
            lock(&devices.allocator).add_device(member.id, layout, 0);
        }
        Rig { pool, store: Store::over(Arc::new(meta), devices).unwrap(), model: BTreeMap::new() }
    }

    fn write(&mut self, ino: u64, offset: usize, bytes: Vec<u8>) -> Result<()> {
        let write = ContentWrite { ino: Ino(ino), offset: offset as u64, bytes: SharedBytes::new(bytes.clone()) };
        self.store.commit(&[write], Inline::Small, |_, _| Ok(()))?;
        let content = self.model.entry(Ino(ino)).or_default();
        content.resize(content.len().max(offset + bytes.len()), 0);
        content[offset..offset + bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    fn check(&self) {
        for (ino, content) in &self.model {
            let mut out = vec![0xee; content.len() + 100];
            self.store.read(*ino, 0, &mut out).unwrap();
            assert!(out[..content.len()] == content[..], "content of {ino} differs");
            assert!(out[content.len()..].iter().all(|byte| *byte == 0));
        }
    }

    /// Every extent has its backref and the other way round, live bytes are the union, bitmaps are the stripes, and the
    /// allocator agrees on what is free.
    fn check_rows(&self) {
        self.store
            .view(|view| {
                let mut bits: BTreeMap<(DeviceId, u64), StripeId> = BTreeMap::new();
                view.scan::<table::Stripes>((Unbounded, Unbounded), |id, row| {
                    let live = view.get::<table::StripeLive>(&id)?.unwrap().live;
                    assert_eq!(live, extents::union_of_backrefs(view, id)?, "live bytes of stripe {id}");
                    assert!(live > 0);
                    for placement in row.placements.iter().filter(|placement| **placement != Placement::NONE) {
                        for block in placement.block.0..=placement.block.0 + u64::from(row.shard_blocks) {
                            assert_eq!(bits.insert((placement.device, block), id), None, "a block in two stripes");
                        }
                    }
                    Ok(Visit::Continue(()))
                })?;
                let mut stored = 0;
                view.scan::<table::Groups>((Unbounded, Unbounded), |key, row| {
                    for bit in 0..GROUP_PART_BLOCKS {
                        if row[(bit / 8) as usize] & (1 << (bit % 8)) != 0 {
                            let block = u64::from(key.group) * GROUP_PART_BLOCKS + bit;
                            assert!(bits.contains_key(&(key.device, block)), "a leaked block");
                            stored += 1;
                        }
                    }
                    Ok(Visit::Continue(()))
                })?;
                assert_eq!(stored, bits.len());
                view.scan::<table::Devices>((Unbounded, Unbounded), |id, row| {
                    let used = bits.keys().filter(|(device, _)| *device == id).count() as u64;
                    assert_eq!(row.used_blocks, used, "used blocks of device {id}");
                    Ok(Visit::Continue(()))
                })
            })
            .unwrap();
    }
}

fn noise(prng: &mut Prng, length: usize) -> Vec<u8> {
    (0..length.div_ceil(8)).flat_map(|_| prng.next().to_le_bytes()).take(length).collect()
}

#[test]
fn content_survives_overwrites_punches_and_the_loss_of_m_devices() {
    for seed in 0..4 {
        let mut prng = Prng::new(seed);
        let mut rig = Rig::new(6, 4, 2);
        for _ in 0..60 {
            let ino = 2 + prng.below(4);
            let offset = prng.below(600_000) as usize;
            match prng.below(8) {
                0 => {
                    let range = offset as u64..offset as u64 + prng.below(300_000);
                    rig.store.transact(|tx, ledger| rig.store.punch(tx, Ino(ino), range.clone(), ledger)).unwrap();
                    if let Some(content) = rig.model.get_mut(&Ino(ino)) {
                        let length = content.len();
                        content[offset.min(length)..(range.end as usize).min(length)].fill(0);
                    }
                }
                1 => rig.store.durable_point().unwrap(),
                _ => {
                    let most = if prng.chance(1, 3) { 400_000 } else { 9000 };
                    let length = 1 + prng.below(most) as usize;
                    rig.write(ino, offset, noise(&mut prng, length)).unwrap();
                }
            }
        }
        rig.check();
        rig.check_rows();
        let (first, second) = (prng.below(6) as usize, prng.below(6) as usize);
        rig.pool.world.corrupt(first, 0..SIZE);
        lock(&rig.pool.gone).push(DeviceId(second as u16));
        rig.check();
        rig.write(9, 0, noise(&mut prng, 100_000)).unwrap();
        rig.check();
        rig.check_rows();
    }
}

#[test]
fn a_read_that_meets_corruption_leads_to_a_repair_in_place() {
    let mut prng = Prng::new(3);
    let mut rig = Rig::new(6, 4, 2);
    rig.write(2, 0, noise(&mut prng, 1 << 20)).unwrap();
    rig.pool.world.corrupt(1, 0..SIZE);
    rig.pool.world.corrupt(4, 0..SIZE);
    rig.check();
    assert!(rig.store.repair_queued().unwrap() > 0);
    // With those two repaired, two others can go.
    lock(&rig.pool.gone).extend([DeviceId(0), DeviceId(5)]);
    rig.check();
}

#[test]
fn freed_space_is_used_again_and_enospc_leaves_everything_intact() {
    let mut prng = Prng::new(5);
    let mut rig = Rig::new(4, 2, 2);
    let mut rounds = 0;
    for round in 0..400u64 {
        match rig.write(2 + round, 0, noise(&mut prng, 256 << 10)) {
            Ok(()) => rounds += 1,
            Err(Error::NoSpace) => break,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(rounds > 100 && rounds < 400, "{rounds} files fitted");
    rig.check();
    rig.check_rows();
    for ino in 2..2 + rounds {
        rig.store.transact(|tx, ledger| rig.store.punch(tx, Ino(ino), 0..u64::MAX, ledger)).unwrap();
    }
    rig.model.clear();
    rig.check_rows();
    let none = rig.write(1000, 0, noise(&mut prng, 256 << 10));
    assert!(matches!(none, Err(Error::NoSpace)), "blocks were reused before the free was durable");
    rig.store.durable_point().unwrap();
    for round in 0..rounds {
        rig.write(2000 + round, 0, noise(&mut prng, 256 << 10)).unwrap();
    }
    rig.check();
    rig.check_rows();
}

#[test]
fn blocks_are_not_used_again_while_somebody_may_read_what_was_there() {
    let mut prng = Prng::new(6);
    let mut rig = Rig::new(3, 2, 1);
    let mut full = 2;
    while rig.write(full, 0, noise(&mut prng, 256 << 10)).is_ok() {
        full += 1;
    }
    rig.store.durable_point().unwrap();
    let devices = rig.store.devices.clone().unwrap();
    let window = devices.enter_read(rig.store.meta().committed());
    for ino in 2..full {
        rig.store.transact(|tx, ledger| rig.store.punch(tx, Ino(ino), 0..u64::MAX, ledger)).unwrap();
    }
    rig.model.clear();
    rig.store.durable_point().unwrap();
    let none = rig.write(full, 0, noise(&mut prng, 256 << 10));
    assert!(matches!(none, Err(Error::NoSpace)), "blocks were reused while they were read");
    drop(window);
    rig.store.durable_point().unwrap();
    rig.write(full, 0, noise(&mut prng, 256 << 10)).unwrap();
    rig.check();
    rig.check_rows();
}

#[test]
fn shared_ranges_keep_their_stripes_alive() {
    let mut prng = Prng::new(8);
    let mut rig = Rig::new(3, 2, 1);
    rig.write(2, 0, noise(&mut prng, 300_000)).unwrap();
    let shared = |rig: &Rig| {
        rig.store
            .transact(|tx, ledger| rig.store.share(tx, (Ino(2), 10_000), (Ino(3), 5_000), 200_000, ledger))
            .unwrap()
    };
    assert_eq!(shared(&rig).0, 200_000);
    let mut copy = vec![0; 5_000];
    copy.extend_from_slice(&rig.model[&Ino(2)][10_000..210_000]);
    rig.model.insert(Ino(3), copy);
    rig.check();
    rig.check_rows();
    rig.store.transact(|tx, ledger| rig.store.punch(tx, Ino(2), 0..u64::MAX, ledger)).unwrap();
    rig.model.remove(&Ino(2));
    rig.store.durable_point().unwrap();
    rig.check();
    rig.check_rows();
    rig.store.transact(|tx, ledger| rig.store.punch(tx, Ino(3), 0..u64::MAX, ledger)).unwrap();
    rig.check_rows();
}

#[test]
fn a_device_that_fails_a_write_is_replaced_in_that_stripe() {
    use crate::device::sim::{Fault, On};
    let mut prng = Prng::new(9);
    let mut rig = Rig::new(7, 4, 2);
    rig.write(2, 0, noise(&mut prng, 200_000)).unwrap();
    rig.pool.world.fault(3, Fault::Fail { on: On::Write, nth: 0, sticky: true });
    for ino in 3..9 {
        rig.write(ino, 0, noise(&mut prng, 200_000)).unwrap();
    }
    assert_eq!(*lock(&rig.pool.gone), [DeviceId(3)]);
    rig.check();
    rig.check_rows();
    lock(&rig.pool.gone).extend([DeviceId(0), DeviceId(1)]);
    for ino in 3..9u64 {
        let mut out = vec![0; 200_000];
        rig.store.read(Ino(ino), 0, &mut out).unwrap();
        assert!(out == rig.model[&Ino(ino)]);
    }
}

impl Rig {
    fn free(&self, device: DeviceId) -> u64 {
        lock(&self.store.devices.as_ref().unwrap().allocator).free_blocks(device)
    }

    /// The first of them.
    fn stripe(&self) -> StripeId {
        self.store.stripes_with(None, 1, |_| true).unwrap().0[0]
    }

    fn stripes(&self) -> usize {
        self.store.stripes_with(None, usize::MAX, |_| true).unwrap().0.len()
    }

    fn tidy(&self) {
        while self.store.tidy_step(true).unwrap() {}
        self.store.durable_point().unwrap();
    }
}

#[test]
fn what_is_free_is_discarded_and_nothing_else() {
    let mut prng = Prng::new(31);
    let mut rig = Rig::new(6, 4, 2);
    (0..6).for_each(|device| rig.pool.world.set_discard(device, DiscardMode::Garbage));
    rig.store.set_discard(true);
    for round in 0..8u64 {
        for ino in 2..8 {
            rig.write(ino, 0, noise(&mut prng, 300_000)).unwrap();
        }
        // Some of what was freed is in use again by the time it would be discarded.
        rig.store.durable_point().unwrap();
        rig.write(20 + round, 0, noise(&mut prng, 200_000)).unwrap();
        while rig.store.discard_step().unwrap() {}
        rig.check();
        rig.check_rows();
    }
    let discards = |rig: &Rig| (0..6).map(|device| rig.pool.world.counters(device).discards).sum::<u64>();
    let in_passing = discards(&rig);
    assert!(in_passing > 0);
    let bytes = rig.store.trim(&mut |_| true).unwrap();
    assert!(discards(&rig) > in_passing);
    let free: u64 = rig.pool.members().iter().map(|member| rig.free(member.id) * 4096).sum();
    assert_eq!(bytes, free, "all of the free space was discarded, and is free again");
    rig.check();
    rig.check_rows();
    rig.write(99, 0, noise(&mut prng, 300_000)).unwrap();
    rig.check();
}

#[test]
fn what_is_left_of_sparse_stripes_moves_together() {
    let mut prng = Prng::new(12);
    let mut rig = Rig::new(6, 4, 2);
    let writes: Vec<ContentWrite> = (0..200)
        .map(|at| {
            let bytes = noise(&mut prng, 4096);
            rig.model.insert(Ino(2 + at), bytes.clone());
            ContentWrite { ino: Ino(2 + at), offset: 0, bytes: SharedBytes::new(bytes) }
        })
        .collect();
    rig.store.commit(&writes, Inline::Small, |_, _| Ok(())).unwrap();
    let before = rig.stripes();
    assert!((3..=5).contains(&before), "{before} stripes for 200 small files");
    for ino in (2..202).filter(|ino| ino % 4 != 0) {
        rig.store.transact(|tx, ledger| rig.store.punch(tx, Ino(ino), 0..u64::MAX, ledger)).unwrap();
        rig.model.remove(&Ino(ino));
    }
    assert_eq!(rig.stripes(), before);
    rig.tidy();
    assert_eq!(rig.stripes(), 1, "50 files of 4 KiB need one stripe");
    rig.check();
    rig.check_rows();
}

#[test]
fn inline_content_of_synchronous_commits_moves_into_stripes() {
    let mut prng = Prng::new(13);
    let mut rig = Rig::new(6, 4, 2);
    for ino in 2..12 {
        let bytes = noise(&mut prng, 9000);
        let write = ContentWrite { ino: Ino(ino), offset: 0, bytes: SharedBytes::new(bytes.clone()) };
        rig.store.commit(&[write], Inline::Synchronous, |_, _| Ok(())).unwrap();
        rig.model.insert(Ino(ino), bytes);
    }
    assert_eq!(rig.stripes(), 0);
    // One that changes after it was noted must not be moved back to what it was.
    rig.write(5, 0, noise(&mut prng, 20_000)).unwrap();
    rig.tidy();
    assert_eq!(rig.stripes(), 2);
    rig.check();
    rig.check_rows();
}

#[test]
fn a_device_is_emptied_without_losing_redundancy() {
    let mut prng = Prng::new(14);
    let mut rig = Rig::new(7, 4, 2);
    for ino in 2..10 {
        rig.write(ino, 0, noise(&mut prng, 150_000)).unwrap();
    }
    rig.store.evacuate(DeviceId(3), &mut |_| true).unwrap();
    let on_it = |row: &crate::format::rows::StripeRow| row.placements.iter().any(|p| p.device == DeviceId(3));
    assert!(rig.store.stripes_with(None, 1, on_it).unwrap().0.is_empty());
    rig.check_rows();
    lock(&rig.pool.gone).extend([DeviceId(3), DeviceId(0), DeviceId(6)]);
    rig.check();
}

impl Rig {
    /// Does what truncates left for later.
    fn truncate(&self) {
        while let Some(truncate) = self.store.next_truncate().unwrap() {
            let step = |tx: &mut Tx<'_>, ledger: &mut Ledger| self.store.truncate_step(tx, &truncate, ledger);
            if self.store.transact(step).unwrap().0 {
                self.store.end_truncate(&truncate);
            }
        }
    }
}

/// Forty files of 4 KiB in one stripe of 4+2, and a device to spare.
fn packed(prng: &mut Prng) -> (Rig, StripeRow) {
    let mut rig = Rig::new(7, 4, 2);
    let writes: Vec<ContentWrite> = (2..42)
        .map(|ino| {
            let bytes = noise(prng, 4096);
            rig.model.insert(Ino(ino), bytes.clone());
            ContentWrite { ino: Ino(ino), offset: 0, bytes: SharedBytes::new(bytes) }
        })
        .collect();
    rig.store.commit(&writes, Inline::Small, |_, _| Ok(())).unwrap();
    assert_eq!(rig.stripes(), 1);
    let row = rig.store.view(|view| view.get::<table::Stripes>(&rig.stripe())).unwrap().unwrap();
    (rig, row)
}

#[test]
fn what_is_packed_together_is_read_together() {
    let mut prng = Prng::new(15);
    let (rig, _) = packed(&mut prng);
    let reads = || (0..6).map(|device| rig.pool.world.counters(device).reads).sum::<u64>();
    let before = reads();
    rig.check();
    let first = reads() - before;
    assert!(first <= 8, "{first} reads for 40 files of one stripe");
    rig.check();
    assert_eq!(reads() - before, first, "all of it is in memory");
}

#[test]
fn damage_beside_a_file_does_not_keep_it_from_being_read() {
    let mut prng = Prng::new(16);
    let (rig, row) = packed(&mut prng);
    // The second block of four shards out of six: too many to reconstruct, and in the same unit as good ones.
    for placement in &row.placements[..4] {
        let at = (placement.block.0 + 2) * 4096;
        rig.pool.world.corrupt(usize::from(placement.device.0), at..at + 4096);
    }
    let results: Vec<bool> = rig
        .model
        .iter()
        .map(|(ino, content)| {
            let mut out = vec![0; content.len()];
            rig.store.read(*ino, 0, &mut out).is_ok_and(|()| out == *content)
        })
        .collect();
    assert_eq!(results.iter().filter(|good| !**good).count(), 4, "{results:?}");
}

/// More than m shards of a stripe are bad, but no two of them in the same place: reads get everything, and so does a repair.
#[test]
fn what_can_be_read_can_be_repaired_and_moved() {
    let mut prng = Prng::new(18);
    let (rig, row) = packed(&mut prng);
    let spoil = |shards: std::ops::Range<usize>| {
        for (at, placement) in row.placements.iter().enumerate().take(shards.end).skip(shards.start) {
            let at = (placement.block.0 + 1 + at as u64) * 4096;
            rig.pool.world.corrupt(usize::from(placement.device.0), at..at + 4096);
        }
    };
    spoil(0..5);
    rig.check();
    let verified = rig.store.verify(rig.stripe()).unwrap().unwrap();
    assert!(verified.bad.len() == 5 && !verified.lost, "{verified:?}");
    let scrubbed = rig.store.scrub(&mut |_| true).unwrap();
    assert_eq!((scrubbed.lost, scrubbed.repaired.rewritten), (0, 5));
    assert_eq!(rig.store.verify(rig.stripe()).unwrap().unwrap().bad, []);
    // A device that goes is emptied first.
    spoil(0..5);
    let emptied = rig.store.evacuate(row.placements[0].device, &mut |_| true).unwrap();
    assert_eq!((emptied.lost, emptied.repaired.missing), (0, 0));
    lock(&rig.pool.gone).push(row.placements[0].device);
    rig.check();
}

/// What is in memory yet will be gone.
#[test]
fn damage_is_not_forgotten_for_what_is_in_the_cache() {
    let mut prng = Prng::new(17);
    let (rig, row) = packed(&mut prng);
    rig.check();
    for placement in &row.placements[..4] {
        let at = (placement.block.0 + 2) * 4096;
        rig.pool.world.corrupt(usize::from(placement.device.0), at..at + 4096);
    }
    assert_eq!(rig.store.scrub(&mut |_| true).unwrap().lost, 1);
    rig.check();
    for _ in 0..2 {
        let damage = rig.store.damage().unwrap();
        assert_eq!(damage.iter().map(|stripe| stripe.lost.len()).sum::<usize>(), 4, "{damage:?}");
    }
}

/// The snapshot still has the extents, and that they are cut off is forgotten by then.
#[test]
fn what_was_cut_off_stays_so_for_older_snapshots() {
    let mut prng = Prng::new(18);
    let rig = Rig::new(6, 4, 2);
    // Every second block, each an extent of its own.
    let writes: Vec<ContentWrite> = (0..2100)
        .map(|at| ContentWrite { ino: Ino(2), offset: at * 8192, bytes: SharedBytes::new(noise(&mut prng, 4096)) })
        .collect();
    for writes in writes.chunks(100) {
        rig.store.commit(writes, Inline::Small, |_, _| Ok(())).unwrap();
    }
    rig.store.transact(|tx, ledger| rig.store.shrink(tx, Ino(2), 0, ledger)).unwrap();
    let cuts = rig.store.cuts(Ino(2));
    assert_eq!(cuts.len(), 1);
    let mut seen = 0;
    rig.store
        .view(|view| {
            rig.truncate();
            assert!(rig.store.cuts(Ino(2)).is_empty());
            rig.store.visible(view, &cuts, Ino(2), 0..u64::MAX, |_, _| {
                seen += 1;
                Ok(Visit::Continue(()))
            })
        })
        .unwrap();
    assert_eq!(seen, 0);
}
