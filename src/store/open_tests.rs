//! Whole pools on simulated devices: made, crashed, opened again.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::commit::{ContentWrite, Inline, SharedBytes};
use super::{Store, lock};
use crate::base::clock::SteppingClock;
use crate::base::{BLOCK_SIZE, DeviceId, Ino, Prng, Result, StripeId};
use crate::device::sim::{Fault, On, SimWorld};
use crate::device::{Engine, InlineEngine};
use crate::format::rows::ConfigKey;
use crate::format::table::{self, Stripes};
use crate::meta::Reader;
use crate::pool::stripe_io::{BadShard, Fault as BadFault};
use crate::pool::{FormatOptions, OpenMode, Pool};

const SIZE: u64 = 64 << 20;

pub(crate) fn format(world: &SimWorld, k: u8, m: u8) -> Result<Store> {
    let options = FormatOptions::small(k, m);
    let pool = Pool::format(&world.devices(), &options, Arc::new(InlineEngine), Box::new(Prng::new(1)))?;
    Store::format(Arc::new(pool), Arc::new(SteppingClock::default()), 11)
}

pub(crate) fn open(world: &SimWorld, devices: &[usize], seed: u64) -> Result<Store> {
    open_with(world, devices, seed, Arc::new(InlineEngine))
}

pub(crate) fn open_with(world: &SimWorld, devices: &[usize], seed: u64, engine: Arc<dyn Engine>) -> Result<Store> {
    let devices: Vec<_> = devices.iter().map(|at| world.device(*at)).collect();
    let pool = Pool::open(&devices, &OpenMode::default(), engine, Box::new(Prng::new(seed)))?;
    Store::open(Arc::new(pool), Arc::new(SteppingClock::default()), seed)
}

fn write(store: &Store, ino: u64, bytes: Vec<u8>) -> Result<()> {
    let write = ContentWrite { ino: Ino(ino), offset: 0, bytes: SharedBytes::new(bytes) };
    store.commit(&[write], Inline::Small, |_, _| Ok(()))
}

fn content(prng: &mut Prng, length: usize) -> Vec<u8> {
    (0..length.div_ceil(8)).flat_map(|_| prng.next().to_le_bytes()).take(length).collect()
}

fn read(store: &Store, ino: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    store.read(Ino(ino), 0, &mut out).unwrap();
    out
}

#[test]
fn a_closed_pool_opens_with_everything_in_it() {
    let world = SimWorld::new(1, 6, SIZE);
    let store = format(&world, 4, 2).unwrap();
    let mut prng = Prng::new(5);
    let first = content(&mut prng, 700_000);
    write(&store, 2, first.clone()).unwrap();
    store.close().unwrap();
    let store = open(&world, &[5, 4, 3, 2, 1, 0], 2).unwrap();
    assert!(read(&store, 2, first.len()) == first);
    let second = content(&mut prng, 300_000);
    write(&store, 3, second.clone()).unwrap();
    store.durable_point().unwrap();
    drop(store);
    // Any two may be missing.
    for lost in [[0, 1], [2, 5], [0, 3]] {
        let world = world.fork();
        let left: Vec<usize> = (0..6).filter(|at| !lost.contains(at)).collect();
        let store = open(&world, &left, 3).unwrap();
        assert!(read(&store, 2, first.len()) == first, "without {lost:?}");
        assert!(read(&store, 3, second.len()) == second, "without {lost:?}");
        write(&store, 4, first.clone()).unwrap();
        store.close().unwrap();
        let store = open(&world, &[0, 1, 2, 3, 4, 5], 4).unwrap();
        assert!(read(&store, 4, first.len()) == first, "with {lost:?} back");
    }
}

#[test]
fn a_half_that_was_away_is_brought_up_to_date() {
    let world = SimWorld::new(2, 2, SIZE);
    let store = format(&world, 1, 1).unwrap();
    let mut prng = Prng::new(6);
    let old = content(&mut prng, 400_000);
    write(&store, 2, old.clone()).unwrap();
    store.close().unwrap();
    let store = open(&world, &[0], 2).unwrap();
    let new = content(&mut prng, 300_000);
    write(&store, 3, new.clone()).unwrap();
    store.close().unwrap();
    let store = open(&world, &[1, 0], 3).unwrap();
    store.mend_metadata().unwrap();
    let progress = store.rebuild(&mut |_| true).unwrap();
    assert_eq!((progress.repaired.missing, progress.lost), (0, 0));
    assert_eq!(store.volume_stats().unwrap().replicas.len(), 2);
    let mut intents = 0;
    let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
    let count = |_, _| {
        intents += 1;
        Ok(crate::meta::Visit::Continue(()))
    };
    store.view(|view| view.scan::<crate::format::table::Intents>(all, count)).unwrap();
    assert_eq!(intents, 0, "plans of what is done");
    store.close().unwrap();
    let store = open(&world, &[1], 4).unwrap();
    assert!(read(&store, 2, old.len()) == old && read(&store, 3, new.len()) == new);
}

#[test]
fn a_replacement_waits_for_repairs_of_its_stripes_and_goes_on_after_an_interruption() {
    let mut devices = SimWorld::new(3, 6, SIZE).devices();
    let spare = devices.pop().unwrap();
    let options = FormatOptions::small(2, 2);
    let pool = Pool::format(&devices, &options, Arc::new(InlineEngine), Box::new(Prng::new(1))).unwrap();
    let store = Store::format(Arc::new(pool), Arc::new(SteppingClock::default()), 11).unwrap();
    let bytes = content(&mut Prng::new(7), 600_000);
    write(&store, 2, bytes.clone()).unwrap();
    store.durable_point().unwrap();
    let (stripes, _) = store.stripes_with(None, 1, |_| true).unwrap();
    let old = crate::base::DeviceId(1);
    let is_member = || store.pool.as_ref().unwrap().state().member(old).is_some();
    // Somebody repairs the first stripe for a while, and somebody writes a stripe that may have been placed on the old device.
    let held = store.repairs.hold(stripes[0]);
    let window = store.devices.as_ref().unwrap().enter_write();
    let progress = std::thread::scope(|scope| {
        let replacement = scope.spawn(|| store.replace(old, spare, false, &mut |_| true));
        std::thread::sleep(std::time::Duration::from_millis(50));
        drop(held);
        std::thread::sleep(std::time::Duration::from_millis(200));
        let waited = is_member();
        drop(window);
        assert!(waited);
        replacement.join().unwrap()
    });
    assert_eq!(progress.unwrap().repaired.missing, 0);
    assert!(!is_member());
    assert!(read(&store, 2, bytes.len()) == bytes);
    // Device 2 is marked, and then nobody goes on but a rebuild.
    let pool = store.pool.clone().unwrap();
    pool.mark_replacing(crate::base::DeviceId(2)).unwrap();
    store.rebuild(&mut |_| true).unwrap();
    assert!(pool.state().member(crate::base::DeviceId(2)).is_none());
    assert!(read(&store, 2, bytes.len()) == bytes);
}

/// Metadata goes on being written to a device that only failed to take content, and keeps it open.
#[test]
fn a_device_that_was_left_out_is_let_go() {
    let world = SimWorld::new(8, 4, SIZE);
    let store = format(&world, 2, 1).unwrap();
    let volume = &store.log.as_ref().unwrap().volume;
    let replicas = volume.stats().replicas;
    store.pool().unwrap().drop_members(&replicas[..1], "it failed").unwrap();
    write(&store, 2, vec![1; 100]).unwrap();
    store.durable_point().unwrap();
    store.release_absent().unwrap();
    assert_eq!(volume.stats().replicas, replicas[1..]);
    store.mend_metadata().unwrap();
    assert_eq!(volume.stats().replicas.len(), replicas.len());
}

#[test]
fn what_was_durable_survives_a_power_cut_at_any_moment() {
    for seed in 0..6 {
        let mut prng = Prng::new(seed);
        let world = SimWorld::new(seed, 4, SIZE);
        let store = format(&world, 2, 2).unwrap();
        // What is durable after which event, in order.
        let mut durable: Vec<(u64, BTreeMap<u64, Vec<u8>>)> = vec![(world.record(), BTreeMap::new())];
        let mut written = BTreeMap::new();
        let start = world.record();
        for _ in 0..40 {
            let ino = 2 + prng.below(6);
            let length = 1 + prng.below(60_000) as usize;
            let bytes = content(&mut prng, length);
            if written.get(&ino).is_none_or(|old: &Vec<u8>| old.len() <= bytes.len()) {
                write(&store, ino, bytes.clone()).unwrap();
                written.insert(ino, bytes);
            }
            match prng.below(6) {
                0 => store.meta().checkpoint().unwrap(),
                1 | 2 => store.durable_point().unwrap(),
                _ => continue,
            }
            durable.push((world.record(), written.clone()));
        }
        drop(store);
        let end = world.record();
        for _ in 0..25 {
            let at = start + prng.below(end - start + 1);
            let crashed = world.crash_state(at, &mut prng);
            let lost = prng.below(5) as usize;
            let left: Vec<usize> = (0..4).filter(|device| *device != lost).collect();
            let store = open(&crashed, &left, seed + 100).unwrap_or_else(|e| panic!("seed {seed} event {at}: {e}"));
            let (_, expected) = durable.iter().rev().find(|(event, _)| *event <= at).unwrap();
            for (ino, bytes) in expected {
                let newer = &written[ino];
                let found = read(&store, *ino, bytes.len());
                let is_newer = || {
                    durable.iter().any(|(_, state)| {
                        state
                            .get(ino)
                            .is_some_and(|other| other.len() >= bytes.len() && other[..bytes.len()] == found[..])
                    }) || newer[..bytes.len()] == found[..]
                };
                assert!(found == *bytes || is_newer(), "seed {seed}, event {at}: inode {ino} is neither old nor new");
            }
        }
    }
}

#[test]
fn p2_nothing_refers_to_a_shard_that_a_failed_flush_left_in_doubt() {
    use crate::base::DeviceId;
    use crate::device::sim::{Fault, On};
    use crate::meta::Visit;
    use std::ops::Bound;

    let on_device = |store: &Store| {
        let mut shards = 0;
        let count = |_, row: crate::format::rows::StripeRow| {
            shards += row.placements.iter().filter(|placement| placement.device == DeviceId(3)).count();
            Ok(Visit::Continue(()))
        };
        store.view(|view| view.scan::<Stripes>((Bound::Unbounded, Bound::Unbounded), count)).unwrap();
        shards
    };
    // The flush fails after the shard was written, before any transaction refers to it.
    let world = SimWorld::new(39, 6, SIZE);
    let store = format(&world, 4, 2).unwrap();
    store.durable_point().unwrap();
    let early = content(&mut Prng::new(2), 500_000);
    let new = ContentWrite { ino: Ino(2), offset: 0, bytes: SharedBytes::new(early.clone()) };
    let turn = || {
        world.fault(3, Fault::Fail { on: On::Flush, nth: 0, sticky: true });
        write(&store, 3, vec![1; 10])?;
        store.durable_point()
    };
    store.commit_in_turn(&[new], Inline::Small, turn, |_, _| Ok(())).unwrap();
    assert_eq!(on_device(&store), 0);
    store.durable_point().unwrap();
    assert!(read(&store, 2, early.len()) == early);

    type Act = fn(&Store) -> Result<()>;
    let acts: [Act; 3] =
        [|store| store.meta().checkpoint(), |store| store.meta().durable_point(), |store| store.durable_point()];
    for (case, act) in acts.into_iter().enumerate() {
        let world = SimWorld::new(40 + case as u64, 6, SIZE);
        let store = format(&world, 4, 2).unwrap();
        store.durable_point().unwrap();
        let mut prng = Prng::new(3);
        let first = content(&mut prng, 500_000);
        write(&store, 2, first.clone()).unwrap();
        assert!(on_device(&store) > 0, "the test is about shards there");
        world.fault(3, Fault::Fail { on: On::Flush, nth: 0, sticky: true });
        act(&store).unwrap();
        assert_eq!(on_device(&store), 0);
        // The process is killed, and its successor finds the device again, with all that its cache still has.
        drop(store);
        world.heal(3);
        let store = open(&world, &[0, 1, 2, 3, 4, 5], 7).unwrap();
        assert_eq!(on_device(&store), 0, "case {case}");
        store.mend_metadata().unwrap();
        store.rebuild(&mut |_| true).unwrap();
        assert!(on_device(&store) > 0, "rebuilt there");
        for lost in [[0, 1], [2, 5]] {
            let left: Vec<usize> = (0..6).filter(|at| !lost.contains(at)).collect();
            let world = world.fork();
            assert!(read(&open(&world, &left, 8).unwrap(), 2, first.len()) == first);
        }
    }
}

/// Three devices with metadata on the first two; the first one was away while the second one went on.
fn first_is_stale(seed: u64) -> (SimWorld, Vec<u8>) {
    let world = SimWorld::new(seed, 3, SIZE);
    format(&world, 2, 1).unwrap().close().unwrap();
    let store = open(&world, &[1, 2], 2).unwrap();
    assert_eq!(store.volume_stats().unwrap().replicas, [DeviceId(1)]);
    let bytes = content(&mut Prng::new(seed), 300_000);
    write(&store, 2, bytes.clone()).unwrap();
    store.close().unwrap();
    (world, bytes)
}

/// Three devices and a fourth one for later, with a file.
fn with_spare(seed: u64) -> (SimWorld, Vec<u8>) {
    let world = SimWorld::new(seed, 3, SIZE);
    let store = format(&world, 2, 1).unwrap();
    let bytes = content(&mut Prng::new(seed), 600_000);
    write(&store, 2, bytes.clone()).unwrap();
    store.close().unwrap();
    world.add_device(SIZE);
    (world, bytes)
}

/// Begins to put device 3 in the place of device 1 and is stopped at once.
fn begin_replacement(world: &SimWorld, present: &[usize]) {
    let store = open(world, present, 2).unwrap();
    assert!(store.replace(DeviceId(1), world.device(3), false, &mut |_| false).is_err());
    store.close().unwrap();
}

#[test]
fn a_rebuild_ends_the_replacement_of_a_device_that_is_gone() {
    // Dead from the beginning, or later.
    for (seed, present) in [(12, &[0, 2][..]), (13, &[0, 1, 2])] {
        let (world, bytes) = with_spare(seed);
        begin_replacement(&world, present);
        // However often the pool is opened in between.
        open(&world, &[0, 2, 3], 3).unwrap().close().unwrap();
        let store = open(&world, &[0, 2, 3], 4).unwrap();
        let progress = store.rebuild(&mut |_| true).unwrap();
        assert_eq!((progress.repaired.missing, progress.lost), (0, 0), "{present:?}");
        let state = store.pool().unwrap().state();
        assert!(state.member(DeviceId(1)).is_none(), "{present:?}");
        assert_eq!(state.can_lose(), 1, "{present:?}");
        store.close().unwrap();
        for left in [[0, 2], [0, 3], [2, 3]] {
            let store = open(&world.fork(), &left, 5).unwrap();
            assert!(read(&store, 2, bytes.len()) == bytes, "{present:?}, then {left:?}");
        }
    }
}

/// It may have what nobody else has any more, but its place is taken.
#[test]
fn a_device_that_comes_back_while_it_is_replaced_gives_and_takes_nothing() {
    let (world, bytes) = with_spare(14);
    begin_replacement(&world, &[0, 2]);
    let later = content(&mut Prng::new(1), 300_000);
    {
        let store = open(&world, &[0, 2, 3], 3).unwrap();
        write(&store, 3, later.clone()).unwrap();
        store.close().unwrap();
    }
    let store = open(&world, &[0, 1, 2, 3], 4).unwrap();
    let old = |store: &Store| store.pool().unwrap().state().member(DeviceId(1)).cloned();
    assert!(old(&store).is_some_and(|old| !old.is_current() && !old.takes_data()));
    store.mend_metadata().unwrap();
    assert!(old(&store).is_some_and(|old| old.is_current() && !old.takes_data() && old.is_replaced()));
    assert!(read(&store, 2, bytes.len()) == bytes && read(&store, 3, later.len()) == later);
    // Without another one meanwhile, what it has is needed.
    store.close().unwrap();
    {
        let store = open(&world.fork(), &[1, 2, 3], 5).unwrap();
        assert!(read(&store, 2, bytes.len()) == bytes && read(&store, 3, later.len()) == later);
    }
    let store = open(&world, &[0, 1, 2, 3], 6).unwrap();
    assert_eq!(store.rebuild(&mut |_| true).unwrap().repaired.missing, 0);
    assert!(old(&store).is_none());
    store.close().unwrap();
    let store = open(&world, &[0, 3], 7).unwrap();
    assert!(read(&store, 2, bytes.len()) == bytes && read(&store, 3, later.len()) == later);
}

/// Nobody could ever open it again, with all devices whole.
#[test]
fn p2_no_epoch_is_begun_without_whoever_holds_the_current_metadata() {
    let (world, bytes) = first_is_stale(10);
    let whole = |world: &SimWorld| {
        let store = open(world, &[0, 1, 2], 5).unwrap();
        assert!(read(&store, 2, bytes.len()) == bytes);
    };
    let text = open(&world, &[0, 2], 3).err().unwrap().to_string();
    whole(&world.fork());
    assert!(text.contains("current metadata: bring back 1 (") && text.contains("last seen at sim1"), "{text}");

    // The same when it fails its first flush, or one of its labels.
    for on in [On::Flush, On::Write] {
        let world = world.fork();
        world.fault(1, Fault::Fail { on, nth: 0, sticky: false });
        let text = open(&world, &[0, 1, 2], 3).err().unwrap().to_string();
        world.heal(1);
        whole(&world);
        assert!(text.contains("current metadata: bring back 1 ("), "{on:?}: {text}");
    }

    // And when it refuses some content while the pool is in use.
    let store = open(&world, &[0, 1, 2], 3).unwrap();
    assert_eq!(store.volume_stats().unwrap().replicas, [DeviceId(1)]);
    // Numbers of stripes are at hand from now on: the next write is a shard.
    write(&store, 4, vec![5; 100_000]).unwrap();
    world.fault(1, Fault::Fail { on: On::Write, nth: 0, sticky: false });
    let failed = write(&store, 3, vec![7; 300_000]).and_then(|()| store.durable_point());
    assert!(failed.is_err());
    let why = store.pool().unwrap().poisoned();
    drop(store);
    world.heal(1);
    whole(&world);
    assert!(why.as_ref().is_some_and(|why| why.contains("current metadata: bring back 1 (")), "{why:?}");
}

/// Whoever makes the metadata again has nobody to wait for.
#[test]
fn a_pool_is_opened_without_metadata_to_make_it_again() {
    let (world, _) = first_is_stale(11);
    let devices = [world.device(0), world.device(2)];
    let mode = OpenMode { without_metadata: true, ..OpenMode::default() };
    let pool = Pool::open(&devices, &mode, Arc::new(InlineEngine), Box::new(Prng::new(3))).unwrap();
    pool.update_labels(|label| label.meta.replicas.iter_mut().for_each(|replica| replica.stale = true)).unwrap();
    assert_eq!(pool.state().metadata_holders().count(), 0);
}

/// A device that refused one write is left out of that stripe; when it is back, the stripe takes it again.
#[test]
fn a_stripe_takes_a_device_again_that_refused_it_once() {
    let world = SimWorld::new(8, 3, SIZE);
    let store = format(&world, 2, 1).unwrap();
    write(&store, 2, content(&mut Prng::new(1), 300_000)).unwrap();
    store.durable_point().unwrap();
    world.fault(1, Fault::Fail { on: On::Write, nth: 0, sticky: false });
    write(&store, 3, content(&mut Prng::new(1), 100_000)).unwrap();
    store.durable_point().unwrap();
    assert!(store.pool().unwrap().device(DeviceId(1)).is_none(), "it was left out");
    world.heal(1);
    store.take_back(world.device(1)).unwrap();
    let progress = store.rebuild(&mut |_| true).unwrap();
    assert!(progress.repaired.rebuilt > 0 && progress.repaired.missing == 0, "{progress:?}");
}

/// What it has is in use, whoever writes that down.
#[test]
fn a_member_whose_row_is_gone_gets_one_that_counts_its_blocks() {
    use crate::format::table::Devices;

    let world = SimWorld::new(9, 3, SIZE);
    let store = format(&world, 2, 1).unwrap();
    write(&store, 2, content(&mut Prng::new(1), 300_000)).unwrap();
    store.durable_point().unwrap();
    let id = DeviceId(1);
    let used = |store: &Store| store.view(|view| view.get::<Devices>(&id)).unwrap().map(|row| row.used_blocks);
    let free = |store: &Store| lock(&store.devices.as_ref().unwrap().allocator).free_blocks(id);
    let before = used(&store).unwrap();
    assert!(before > 30, "there is something on it");
    store.close().unwrap();
    let store = open(&world, &[0, 1, 2], 2).unwrap();
    let free_before = free(&store);
    store.transact(|tx, _| tx.delete::<Devices>(&id)).unwrap();
    store.close().unwrap();

    let store = open(&world, &[0, 1, 2], 3).unwrap();
    assert_eq!((used(&store), free(&store)), (Some(before), free_before));
    // And so it can all be given back.
    store.transact(|tx, ledger| store.punch(tx, Ino(2), 0..u64::MAX, ledger)).unwrap();
    assert_eq!(used(&store), Some(0));
}

#[test]
fn what_devices_did_wrong_is_known_until_a_scrub_found_them_whole() {
    let world = SimWorld::new(9, 4, SIZE);
    let store = format(&world, 2, 2).unwrap();
    write(&store, 2, content(&mut Prng::new(9), 300_000)).unwrap();
    store.durable_point().unwrap();
    let id = store.stripes_with(None, 1, |_| true).unwrap().0[0];
    let place = store.view(|view| view.get::<Stripes>(&id)).unwrap().unwrap().placements[0];
    let at = (place.block.0 + 1) * 4096;
    world.flip_bits(usize::from(place.device.0), at..at + 4096, 3);
    store.close().unwrap();

    let store = open(&world, &[0, 1, 2, 3], 1).unwrap();
    assert_eq!(store.device_faults(), BTreeMap::new());
    read(&store, 2, 300_000);
    assert_eq!(store.repair_queued().unwrap(), 1);
    let known = store.device_faults();
    assert!(known.len() == 1 && known[&place.device].checksum_errors > 0, "{known:?}");
    store.close().unwrap();

    let store = open(&world, &[0, 1, 2, 3], 2).unwrap();
    assert_eq!(store.device_faults(), known);
    store.scrub(&mut |_| true).unwrap();
    assert_eq!(store.device_faults(), BTreeMap::new());
    store.close().unwrap();
    assert_eq!(open(&world, &[0, 1, 2, 3], 3).unwrap().device_faults(), BTreeMap::new());
}

/// Each of them is killed before it did anything.
#[test]
fn any_number_of_openings_leaves_room_in_the_log() {
    let world = SimWorld::new(10, 2, SIZE);
    let store = format(&world, 1, 1).unwrap();
    write(&store, 2, content(&mut Prng::new(10), 3000)).unwrap();
    store.durable_point().unwrap();
    drop(store);
    let blocks = |store: &Store| store.volume_stats().unwrap().log_capacity.0;
    let capacity = blocks(&open(&world, &[0, 1], 1).unwrap());
    for seed in 2..capacity + 10 {
        open(&world, &[0, 1], seed).unwrap();
    }
    let store = open(&world, &[0, 1], 1).unwrap();
    write(&store, 3, content(&mut Prng::new(11), 3000)).unwrap();
    store.durable_point().unwrap();
    assert_eq!(read(&store, 2, 3000), content(&mut Prng::new(10), 3000));
}

/// Blocks of the metadata: where each lies on every device that has it.
fn places(store: &Store, block: u64) -> Vec<(usize, u64)> {
    let root = store.log.as_ref().unwrap().volume.root();
    let chunk = u64::from(root.chunk_blocks);
    // A page of sums for 1024 blocks.
    let pages = chunk.div_ceil(1025);
    let (number, index) = (block / (chunk - pages), block % (chunk - pages));
    let has =
        root.chunks.iter().filter(|run| (u64::from(run.chunk)..u64::from(run.chunk + run.count)).contains(&number));
    has.map(|run| (usize::from(run.device), run.block + (number - u64::from(run.chunk)) * chunk + pages + index))
        .collect()
}

fn spoil(world: &SimWorld, places: &[(usize, u64)]) {
    places.iter().for_each(|(device, block)| world.corrupt(*device, block * BLOCK_SIZE..(block + 1) * BLOCK_SIZE));
}

/// What redb does not use may be wrong: after a crash it often is.
#[test]
fn metadata_that_is_lost_is_told_from_what_is_free() {
    let world = SimWorld::new(8, 2, SIZE);
    let store = format(&world, 1, 1).unwrap();
    let key = |at: u8| ConfigKey { name: vec![b'k', at] };
    // What comes and goes leaves blocks that are free.
    for round in 0..3u8 {
        store
            .transact(|tx, _| (0..60).try_for_each(|at| tx.put::<table::Config>(&key(at), &vec![round; 1000])))
            .unwrap();
        store.meta().checkpoint().unwrap();
    }
    store.transact(|tx, _| (30..60).try_for_each(|at| tx.delete::<table::Config>(&key(at)).map(drop))).unwrap();
    store.close().unwrap();

    let store = open(&world, &[0, 1], 2).unwrap();
    store.meta().checkpoint().unwrap();
    let end = store.volume_stats().unwrap().len.0 / BLOCK_SIZE;
    let (mut lost, mut free) = (Vec::new(), Vec::new());
    for block in 1..end.min(2000) {
        let places = places(&store, block);
        let kept: Vec<Vec<u8>> = places
            .iter()
            .map(|(device, at)| {
                let mut bytes = vec![0; BLOCK_SIZE as usize];
                world.device(*device).read_at(at * BLOCK_SIZE, &mut bytes).unwrap();
                bytes
            })
            .collect();
        if kept.iter().flatten().all(|byte| *byte == 0) {
            continue;
        }
        spoil(&world, &places);
        match store.inspect_metadata().unwrap().unwrap().unreadable.is_empty() {
            true => free.push(places.clone()),
            false => lost.push((places.clone(), kept[0].windows(1000).any(|bytes| *bytes == [2; 1000]))),
        }
        for ((device, at), bytes) in places.iter().zip(&kept) {
            world.device(*device).write_at(at * BLOCK_SIZE, &[bytes]).unwrap();
            world.device(*device).flush().unwrap();
        }
    }
    assert!(lost.len() > 10 && free.len() > 5, "{} are in use, {} are not", lost.len(), free.len());

    // A scrub tells, and clears no device of what it did.
    let bad = BadShard { stripe: StripeId(1), index: 0, device: DeviceId(0), fault: BadFault::Checksum };
    store.faults.add(&[bad]);
    let (rows, _) = lost.iter().find(|(_, rows)| *rows).expect("rows");
    let again = world.fork();
    spoil(&world, rows);
    let progress = store.scrub(&mut |_| true).unwrap();
    assert!(progress.metadata_unreadable == 1 && !store.device_faults().is_empty(), "{progress:?}");
    drop(store);

    // Redb says the same of both.
    let pool = |world: &SimWorld| {
        let mode = OpenMode { read_only: true, ..OpenMode::default() };
        Arc::new(Pool::open(&world.devices(), &mode, Arc::new(InlineEngine), Box::new(Prng::new(3))).unwrap())
    };
    let clock = || Arc::new(SteppingClock::default());
    Store::open_untrusted(pool(&world), clock(), 3).err().expect("rows are lost");
    free.iter().for_each(|places| spoil(&again, places));
    Store::open_untrusted(pool(&again), clock(), 3).expect("nothing is lost");
    let store = open(&again, &[0, 1], 4).unwrap();
    let read = |at| store.view(|view| view.get::<table::Config>(&key(at))).unwrap();
    assert!((0..30).all(|at| read(at) == Some(vec![2; 1000])) && read(30).is_none());
    store.faults.add(&[bad]);
    let progress = store.scrub(&mut |_| true).unwrap();
    assert!(progress.metadata_unreadable == 0 && store.device_faults().is_empty(), "{progress:?}");
}

/// Whoever pauses a scrub, or unmounts, does not wait for all of the metadata.
#[test]
fn a_scrub_ends_early_in_the_metadata_too() {
    let world = SimWorld::new(11, 3, SIZE);
    let store = format(&world, 2, 1).unwrap();
    write(&store, 2, content(&mut Prng::new(12), 300_000)).unwrap();
    store.durable_point().unwrap();
    let mut progress = super::maintain::Progress::default();
    assert!(!store.scrub_on(&mut progress, &mut |_| false).unwrap());
    assert_eq!((progress.stripes, progress.after), (0, None));
    assert!(store.scrub_on(&mut progress, &mut |_| true).unwrap());
    assert!(progress.stripes > 0 && progress.lost == 0, "{progress:?}");
}
