//! Blocks that a device does not return, or returns garbled, once or for good: what was not seen is neither free nor lost.

use super::*;
use crate::base::{BLOCK_SIZE, Error};
use crate::device::sim::Fault;
use crate::format::log::ANCHORS;
use crate::meta::volume::block::{EMPTY, LOST};
use crate::meta::volume::{lock, read};
use std::ops::Range;

const FOR_GOOD: u64 = u64::MAX;
/// One replica, and a device that can become another.
const ONE: Setup = Setup { replicas: 1, ..SMALL };

/// A store with redo behind its newest checkpoint.
fn store(setup: Setup, seed: u64) -> (Prng, SimWorld, Store) {
    let mut prng = Prng::new(seed);
    let world = SimWorld::new(seed, setup.devices, 64 << 20);
    let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
    for _ in 0..30 {
        store.random_transaction(&mut prng).unwrap();
    }
    store.checkpoint().unwrap();
    for key in 0..6 {
        // Flipped bits shall not all fall between the entries.
        store.transact(vec![(key, Some(vec![prng.next() as u8; 7900]))]).unwrap();
        store.append().unwrap();
    }
    (prng, world, store)
}

/// What a store leaves when it is dropped.
fn left(store: Store) -> Vec<Changes> {
    store.history.clone()
}

fn bad(world: &SimWorld, device: usize, block: u64, times: u64) {
    world.fault(device, Fault::BadBlock { block, times });
}

/// Opens from these devices, and must find everything.
fn whole(what: &str, setup: Setup, world: &SimWorld, present: &[usize], history: &[Changes], prng: &mut Prng) {
    let store = Store::open(setup, world.clone(), present, history, prng);
    let store = store.unwrap_or_else(|error| panic!("{what}, opened from {present:?}: {error}"));
    assert_eq!(store.last(), history.len() as u64, "{what}, opened from {present:?}");
}

/// Blocks on a device with the log from the newest checkpoint on, and the one behind it.
fn log_blocks(store: &Store, device: usize) -> Vec<u64> {
    let first = store.volume.root().replicas[device].log_block + ANCHORS;
    let ring = lock(&store.volume.core.log);
    (ring.tail..=ring.position).map(|position| first + position % ring.capacity).collect()
}

/// Blocks of the virtual file that lie on the devices, and where on this one.
fn stored(store: &Store, device: u16) -> Vec<(u64, u64)> {
    let geometry = store.volume.core.geometry;
    let state = read(&store.volume.core.state);
    let mut blocks = Vec::new();
    for (number, chunk) in &state.table.chunks {
        let Some(home) = chunk.home(DeviceId(device)) else { continue };
        for index in 0..geometry.data {
            let block = u64::from(*number) * u64::from(geometry.data) + u64::from(index);
            let holds = ![EMPTY, LOST].contains(&chunk.sum(index)) && state.in_memory(block).is_none();
            if holds && block != 0 {
                blocks.push((block, home.0 + u64::from(geometry.pages + index)));
            }
        }
    }
    blocks
}

/// Where the first page of sums lies.
fn first_page(store: &Store, device: u16) -> u64 {
    read(&store.volume.core.state).table.chunks[&0].home(DeviceId(device)).unwrap().0
}

#[test]
fn a_garbled_read_of_the_log_does_not_get_into_a_replica_that_is_brought_up() {
    let reads_of = |nth: Option<u64>| {
        let (mut prng, world, store) = store(ONE, 1);
        let before = world.counters(0).reads;
        nth.into_iter().for_each(|nth| world.fault(0, Fault::GarbleRead { nth, sticky: false }));
        let copied = store.volume.rejoin(DeviceId(1)).is_ok();
        let reads = world.counters(0).reads - before;
        world.heal(0);
        let history = left(store);
        if copied {
            whole(&format!("read {nth:?}"), ONE, &world.fork(), &[1], &history, &mut prng);
        }
        (copied, reads)
    };
    let (copied, reads) = reads_of(None);
    assert!(copied);
    // The log comes last.
    let copied = (reads - 8..reads).filter(|nth| reads_of(Some(*nth)).0).count();
    assert!(copied > 1, "{copied}");
}

#[test]
fn a_garbled_read_of_the_log_does_not_get_into_a_replica_that_lacks_it() {
    let setup = Setup { devices: 3, replicas: 3, ..SMALL };
    let (mut prng, world, store) = store(setup, 2);
    let lacks = store.volume.root().replicas[1].clone();
    let history = left(store);
    world.zero(1, lacks.log_block * BLOCK_SIZE..(lacks.log_block + u64::from(lacks.log_blocks)) * BLOCK_SIZE);
    for nth in 0.. {
        let state = world.fork();
        let (host, root, live) = Host::open(&state, &[0, 1, 2]).unwrap();
        let before = state.counters(0).reads;
        state.fault(0, Fault::GarbleRead { nth, sticky: false });
        let (volume, _) = Volume::open(host, &root, &live, setup.options(&mut prng)).unwrap();
        volume.poison("closed");
        let reads = state.counters(0).reads - before;
        whole(&format!("read {nth} of {reads}"), setup, &state.fork(), &[1], &history, &mut prng);
        if nth >= reads {
            break;
        }
    }
}

#[test]
fn a_replica_is_not_whole_without_a_block_that_could_not_be_read() {
    for part in 0..6 {
        let (mut prng, world, mut store) = store(ONE, 3);
        store.checkpoint().unwrap();
        let blocks = stored(&store, 0);
        let (block, place) = blocks[blocks.len() * part / 6];
        bad(&world, 0, place, FOR_GOOD);
        assert!(store.volume.rejoin(DeviceId(1)).is_err(), "without block {block}");
        assert_eq!(store.volume.stats().replicas, [DeviceId(0)]);
        world.heal(0);
        // An error that passes keeps no replica from being whole.
        bad(&world, 0, place, 1);
        store.volume.rejoin(DeviceId(1)).unwrap();
        whole(&format!("block {block}"), ONE, &world.fork(), &[1], &left(store), &mut prng);
    }
}

/// It was free at the last checkpoint, or it is lost: nobody can tell, and nothing can be copied.
#[test]
fn a_block_that_every_source_has_wrong_is_passed_over() {
    let (_, world, mut store) = store(ONE, 4);
    store.checkpoint().unwrap();
    let (_, place) = stored(&store, 0)[5];
    world.corrupt(0, place * BLOCK_SIZE..(place + 1) * BLOCK_SIZE);
    store.volume.rejoin(DeviceId(1)).unwrap();
    assert_eq!(store.volume.stats().replicas.len(), 2);
}

/// The page has changed since the checkpoint: what that says is on the devices only.
#[test]
fn a_replica_is_not_whole_without_a_page_of_sums_that_could_not_be_read() {
    let setup = Setup { dirty_blocks: 1, cache: 16 << 10, ..ONE };
    let (mut prng, world, store) = store(setup, 5);
    assert!(read(&store.volume.core.state).table.changed() > 0);
    let page = first_page(&store, 0);
    bad(&world, 0, page, FOR_GOOD);
    assert!(store.volume.rejoin(DeviceId(1)).is_err());
    world.heal(0);
    bad(&world, 0, page, 1);
    store.volume.rejoin(DeviceId(1)).unwrap();
    whole("the page", setup, &world.fork(), &[1], &left(store), &mut prng);
}

#[test]
fn a_replica_is_not_whole_without_a_part_of_the_log_that_could_not_be_read() {
    let (mut prng, world, store) = store(ONE, 12);
    let blocks = log_blocks(&store, 0);
    let (end, entries) = blocks.split_last().unwrap();
    for block in entries {
        bad(&world, 0, *block, FOR_GOOD);
        assert!(store.volume.rejoin(DeviceId(1)).is_err(), "without block {block}");
        world.heal(0);
    }
    bad(&world, 0, *end, FOR_GOOD);
    store.volume.rejoin(DeviceId(1)).unwrap();
    whole("the log", ONE, &world.fork(), &[1], &left(store), &mut prng);
}

fn read_only(setup: Setup, world: &SimWorld, present: &[usize], prng: &mut Prng) -> Result<Volume> {
    let (host, root, live) = Host::open(world, present)?;
    let options = VolumeOptions { read_only: true, ..setup.options(prng) };
    Volume::open(host, &root, &live, options).map(|(volume, _)| volume)
}

/// What the only copy of the log does not return is not its end: nothing is written over what lies behind it.
#[test]
fn a_log_is_not_cut_off_where_it_cannot_be_read() {
    let (mut prng, world, store) = store(ONE, 6);
    let blocks = log_blocks(&store, 0);
    let history = left(store);
    let mut looked_at = 0;
    for block in blocks {
        let state = world.fork();
        bad(&state, 0, block, FOR_GOOD);
        let refused = Store::open(ONE, state.clone(), &[0], &history, &mut prng).map(|store| store.last());
        assert!(matches!(refused, Err(Error::Unavailable(_))), "block {block}: {refused:?}");
        if let Ok(volume) = read_only(ONE, &state, &[0], &mut prng) {
            assert!(volume.stats().log_unread && volume.inspect().unwrap().log_broken);
            looked_at += 1;
        }
        state.heal(0);
        whole(&format!("block {block}"), ONE, &state, &[0], &history, &mut prng);
        // Errors that pass keep nobody from opening.
        let state = world.fork();
        bad(&state, 0, block, 2);
        whole(&format!("block {block}, twice"), ONE, &state, &[0], &history, &mut prng);
    }
    assert!(looked_at > 5, "{looked_at}");
}

#[test]
fn a_log_goes_on_where_one_replica_cannot_read_it() {
    let (mut prng, world, store) = store(SMALL, 7);
    let places = [log_blocks(&store, 0), log_blocks(&store, 1)];
    let history = left(store);
    for (at, block) in places[0].iter().enumerate() {
        // Another one cannot be read on the other replica.
        let state = world.fork();
        bad(&state, 0, *block, FOR_GOOD);
        bad(&state, 1, places[1][(at + 3) % places[1].len()], FOR_GOOD);
        let what = format!("block {at}");
        whole(&what, SMALL, &state, &[0, 1], &history, &mut prng);
        for alone in [0, 1] {
            whole(&what, SMALL, &state.fork(), &[alone], &history, &mut prng);
        }
        let state = world.fork();
        bad(&state, 0, *block, FOR_GOOD);
        bad(&state, 1, places[1][at], FOR_GOOD);
        assert!(matches!(Store::open(SMALL, state, &[0, 1], &history, &mut prng), Err(Error::Unavailable(_))));
    }
}

/// Opens a volume again and again, each time with another of its reads garbled, and hands on what was opened.
fn with_each_read_garbled(
    setup: Setup,
    world: &SimWorld,
    prng: &mut Prng,
    mut check: impl FnMut(&Volume, &[RedoGroup], u64),
) {
    let mut reads = 1;
    let mut nth = 0;
    while nth < reads {
        let state = world.fork();
        let (host, root, live) = Host::open(&state, &[0]).unwrap();
        let before = state.counters(0).reads;
        state.fault(0, Fault::GarbleRead { nth, sticky: false });
        let (volume, groups) = Volume::open(host, &root, &live, setup.options(prng)).unwrap();
        volume.poison("closed");
        check(&volume, &groups, nth);
        reads = state.counters(0).reads - before;
        nth += 1;
    }
    assert!(nth > 3);
}

#[test]
fn a_garbled_read_does_not_cut_the_log_off() {
    for seed in 20..28 {
        let (mut prng, world, store) = store(ONE, seed);
        let history = left(store);
        with_each_read_garbled(ONE, &world, &mut prng, |_, groups, nth| {
            assert_eq!(groups.last().unwrap().txn.0, history.len() as u64, "seed {seed}, read {nth}");
        });
    }
}

/// A store whose first chunk has sums in two pages.
fn two_pages(replicas: usize) -> (Setup, Prng, SimWorld, Store) {
    let setup = Setup { replicas, chunk_blocks: 1100, log_blocks: 2000, ..SMALL };
    let mut prng = Prng::new(9);
    let world = SimWorld::new(9, setup.devices, 64 << 20);
    let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
    for round in 0..3 {
        for key in 0..200 {
            store.transact(vec![(key, Some(vec![round; 8000]))]).unwrap();
        }
        store.checkpoint().unwrap();
    }
    let digests = read(&store.volume.core.state).table.chunks[&0].digests.clone();
    assert!(digests.len() == 2 && digests.iter().all(|digest| *digest != 0), "{digests:?}");
    (setup, prng, world, store)
}

/// Whether a sum of the first chunk's blocks counts as lost.
fn has_lost_sums(volume: &Volume) -> bool {
    read(&volume.core.state).table.chunks.values().any(|chunk| (0..1098).any(|at| chunk.sum(at) == LOST))
}

#[test]
fn bad_sectors_in_two_copies_of_the_sums_leave_all_of_them() {
    let (setup, mut prng, world, store) = two_pages(2);
    let pages = [first_page(&store, 0), first_page(&store, 1)];
    let history = left(store);
    bad(&world, 0, pages[0], FOR_GOOD);
    bad(&world, 1, pages[1] + 1, FOR_GOOD);
    whole("one page each", setup, &world, &[0, 1], &history, &mut prng);
    // They were written anew.
    for alone in [0, 1] {
        whole("one page each", setup, &world.fork(), &[alone], &history, &mut prng);
    }
}

/// Sums that could not be read must not be stored as lost ones.
#[test]
fn a_page_of_sums_that_cannot_be_read_keeps_a_volume_from_being_written() {
    let (setup, mut prng, world, store) = two_pages(1);
    let page = first_page(&store, 0);
    let history = left(store);
    for page in [page, page + 1] {
        let state = world.fork();
        bad(&state, 0, page, FOR_GOOD);
        let (host, root, live) = Host::open(&state, &[0]).unwrap();
        let refused = Volume::open(host, &root, &live, setup.options(&mut prng)).map(|_| ());
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
        let volume = read_only(setup, &state, &[0], &mut prng).unwrap();
        assert!(has_lost_sums(&volume));
        state.heal(0);
        whole("healed", setup, &state, &[0], &history, &mut prng);
        for fault in [Fault::BadBlock { block: page, times: 2 }, Fault::BadBlock { block: page, times: 1 }] {
            let state = world.fork();
            state.fault(0, fault);
            whole("an error that passes", setup, &state, &[0], &history, &mut prng);
        }
    }
}

#[test]
fn a_garbled_read_loses_no_sums() {
    let (setup, mut prng, world, store) = two_pages(1);
    drop(store);
    with_each_read_garbled(setup, &world, &mut prng, |volume, _, nth| {
        assert!(!has_lost_sums(volume), "read {nth}");
    });
}

/// Neighbours in the virtual file, with their places on a device.
fn neighbours(store: &Store, device: u16) -> Vec<(u64, u64)> {
    let blocks = stored(store, device);
    let run: Range<usize> = (0..blocks.len() - 7)
        .map(|first| first..first + 8)
        .find(|run| blocks[run.end - 1].0 - blocks[run.start].0 == 7)
        .expect("eight blocks in a row");
    blocks[run].to_vec()
}

fn content(store: &Store, run: &[(u64, u64)]) -> Result<Vec<u8>> {
    let mut out = vec![0; run.len() * BLOCK_SIZE as usize];
    store.volume.core.read(run[0].0 * BLOCK_SIZE, &mut out).map(|()| out)
}

#[test]
fn bad_sectors_in_two_replicas_leave_every_block_that_one_of_them_has() {
    let (_, world, mut store) = store(SMALL, 10);
    store.checkpoint().unwrap();
    let (here, there) = (neighbours(&store, 0), neighbours(&store, 1));
    let expected = content(&store, &here).unwrap();
    bad(&world, 0, here[1].1, FOR_GOOD);
    bad(&world, 1, there[6].1, FOR_GOOD);
    assert!(content(&store, &here).unwrap() == expected);
    // Both were written anew.
    assert_eq!(store.volume.stats().repaired_blocks, 2);
    for device in [0, 1] {
        let errors = world.counters(device).errors;
        assert!(content(&store, &here).unwrap() == expected);
        assert_eq!(world.counters(device).errors, errors);
    }
    assert!(store.volume.is_poisoned().is_none());
}

#[test]
fn an_error_that_passes_does_not_make_a_block_unreadable() {
    let (_, world, mut store) = store(ONE, 11);
    store.checkpoint().unwrap();
    let run = neighbours(&store, 0);
    let expected = content(&store, &run).unwrap();
    for times in 1..=2 {
        bad(&world, 0, run[3].1, times);
        assert!(content(&store, &run).unwrap() == expected, "{times} errors");
        bad(&world, 0, run[3].1, times);
        assert!(content(&store, &run[3..4]).unwrap() == expected[3 * 4096..4 * 4096], "{times} errors");
    }
    world.fault(0, Fault::GarbleRead { nth: 0, sticky: false });
    assert!(content(&store, &run).unwrap() == expected);
    bad(&world, 0, run[3].1, FOR_GOOD);
    assert!(content(&store, &run).is_err());
    assert!(content(&store, &run[4..]).unwrap() == expected[4 * 4096..]);
}
