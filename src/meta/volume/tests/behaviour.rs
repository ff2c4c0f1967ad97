//! Limits, rings that go round, small logs, threads.

use super::*;
use crate::base::{BLOCK_SIZE, Blocks, Error};
use std::sync::atomic::{AtomicBool, Ordering};

fn store(setup: Setup, seed: u64) -> (Prng, SimWorld, Store) {
    let mut prng = Prng::new(seed);
    let world = SimWorld::new(seed, setup.devices, 64 << 20);
    let store = Store::format(setup, world.clone(), &mut prng).unwrap();
    (prng, world, store)
}

fn reopened(setup: Setup, world: &SimWorld, store: Store, prng: &mut Prng) -> Store {
    let history = store.history.clone();
    drop(store);
    let all: Vec<usize> = (0..setup.devices).collect();
    Store::open(setup, world.fork(), &all, &history, prng).unwrap()
}

/// The ring goes round many times; no append ever touches what an opening needs.
#[test]
fn the_ring_goes_round() {
    let setup = Setup { log_blocks: 64, ..SMALL };
    let (mut prng, world, mut store) = store(setup, 1);
    for round in 0..300 {
        store.random_transaction(&mut prng).unwrap();
        store.append().unwrap();
        if round % 20 == 0 {
            store = {
                let last = store.last();
                let mut again = reopened(setup, &world, store, &mut prng);
                assert_eq!(again.last(), last);
                // It goes on in the copy of the world that was opened.
                let fresh = again.world.clone();
                again.append().unwrap();
                world.restore(0, &fresh.snapshot(0));
                world.restore(1, &fresh.snapshot(1));
                let history = again.history.clone();
                drop(again);
                Store::open(setup, world.clone(), &[0, 1], &history, &mut prng).unwrap()
            };
        }
    }
    assert!(store.volume.stats().log_used.0 <= store.volume.stats().log_capacity.0);
}

/// Without checkpoints, appends stop before the room a checkpoint needs; the checkpoint then makes them unnecessary.
#[test]
fn a_full_log_asks_for_a_checkpoint_and_has_room_for_it() {
    let setup = Setup { log_blocks: 64, ..SMALL };
    let (mut prng, world, mut store) = store(setup, 2);
    let mut asked = false;
    let refused = (0..1000).any(|_| {
        store.random_transaction(&mut prng).unwrap();
        let appended = store.volume.append(&store.pending).unwrap();
        if appended == Appended::Durable {
            store.pending.clear();
        } else {
            assert!(asked, "wants_checkpoint comes first");
        }
        asked |= store.volume.wants_checkpoint();
        appended == Appended::CheckpointFirst
    });
    assert!(refused);
    let stats = store.volume.stats();
    assert!(stats.log_capacity.0 - stats.log_used.0 >= stats.log_capacity.0 / 4);
    store.checkpoint().unwrap();
    assert!(!store.volume.wants_checkpoint());
    // The room is there at once, not only after the next flush.
    store.random_transaction(&mut prng).unwrap();
    assert_eq!(store.volume.append(&store.pending).unwrap(), Appended::Durable);
    let last = store.last();
    assert_eq!(reopened(setup, &world, store, &mut prng).last(), last);
}

/// An append that could never fit is not a dead end.
#[test]
fn a_transaction_larger_than_the_log_is_made_durable_by_a_checkpoint() {
    let setup = Setup { log_blocks: 64, cache: 64 << 10, ..SMALL };
    let (mut prng, world, mut store) = store(setup, 3);
    store.transact((0..100).map(|key| (key, Some(vec![7; 5000]))).collect()).unwrap();
    assert_eq!(store.volume.append(&store.pending).unwrap(), Appended::CheckpointFirst);
    store.checkpoint().unwrap();
    let last = store.last();
    assert_eq!(reopened(setup, &world, store, &mut prng).last(), last);
}

#[test]
fn long_units_are_split_and_take_effect_whole() {
    let setup = Setup { log_blocks: 2000, entry_limit: 4096, ..SMALL };
    let (mut prng, world, mut store) = store(setup, 4);
    let begin = world.record();
    for _ in 0..6 {
        for _ in 0..30 {
            store.random_transaction(&mut prng).unwrap();
        }
        assert_eq!(store.volume.append(&store.pending).unwrap(), Appended::Durable);
        store.pending.clear();
    }
    let (history, units) = (store.history.clone(), 30);
    drop(store);
    for at in begin..=world.record() {
        for _ in 0..4 {
            let state = world.crash_state(at, &mut prng);
            let store = Store::open(setup, state, &[0, 1], &history, &mut prng).unwrap();
            assert_eq!((store.last() - 1) % units, 0, "a unit survived in part");
        }
    }
}

#[test]
fn each_limit_asks_for_a_checkpoint() {
    let limits: [fn(&mut VolumeOptions); 3] = [
        |options| options.checkpoint_groups = 5,
        |options| options.checkpoint_redo = Bytes(300),
        |options| options.checkpoint_changed = Bytes(5 * BLOCK_SIZE),
    ];
    for limit in limits {
        let mut prng = Prng::new(5);
        let world = SimWorld::new(5, 2, 64 << 20);
        let host = Host::format(&world, 2);
        let mut options = Setup { log_blocks: 4000, dirty_blocks: 1, cache: 0, ..SMALL }.options(&mut prng);
        limit(&mut options);
        let (volume, _) = Volume::format(host.clone(), &[DeviceId(0), DeviceId(1)], options).unwrap();
        let db = Some(database(&Setup { cache: 0, ..SMALL }, &volume).unwrap());
        let (pending, history, timeline) = Default::default();
        let mut store = Store { world, host, volume, db, pending, history, timeline };
        store.transact(vec![(0, None)]).unwrap();
        store.checkpoint().unwrap();
        assert!(!store.volume.wants_checkpoint());
        for _ in 0..5 {
            store.transact(vec![(1, Some(vec![1; 100]))]).unwrap();
            store.append().unwrap();
        }
        assert!(store.volume.wants_checkpoint());
        store.checkpoint().unwrap();
        assert!(!store.volume.wants_checkpoint());
    }
}

#[test]
fn lack_of_space_is_told_by_reserve() {
    let setup = Setup { chunk_blocks: 300, ..SMALL };
    let (_, _, store) = store(setup, 6);
    store.volume.reserve(3).unwrap();
    let free = (64 << 20) / BLOCK_SIZE;
    assert!(matches!(store.volume.reserve(free as usize), Err(Error::NoSpace)));
    assert!(store.volume.is_poisoned().is_none());
    assert!(matches!(store.host.allocate(DeviceId(0), Blocks(free)), Err(Error::NoSpace)));
}

/// A lack of space poisons nothing: what has no place stays in memory, an opening needs none, and a checkpoint says so.
#[test]
fn without_space_blocks_wait_in_memory() {
    let setup = Setup { chunk_blocks: 8, dirty_blocks: 4, cache: 32 << 10, log_blocks: 2000, ..SMALL };
    let (mut prng, world, mut store) = store(setup, 16);
    host::FULL.set(true);
    for _ in 0..100 {
        store.random_transaction(&mut prng).unwrap();
        store.append().unwrap();
    }
    assert!(store.volume.lacking_chunks() > 3 && store.volume.stats().dirty_blocks > 4);
    assert!(matches!(store.checkpoint(), Err(Error::NoSpace)));
    store.volume.prewrite().unwrap();
    assert!(store.volume.is_poisoned().is_none());
    store.append().unwrap();
    let last = store.last();
    let mut store = reopened(setup, &world, store, &mut prng);
    assert_eq!(store.last(), last);
    host::FULL.set(false);
    let (before, lacking) = (store.volume.spare_chunks(), store.volume.lacking_chunks());
    store.volume.reserve(before + lacking).unwrap();
    assert_eq!(store.volume.lacking_chunks(), 0);
    // What was reserved is enough for the checkpoint.
    host::FULL.set(true);
    store.checkpoint().unwrap();
    host::FULL.set(false);
    let fresh = store.world.clone();
    assert_eq!(reopened(setup, &fresh, store, &mut prng).last(), last);
}

#[test]
fn a_checkpoint_that_commits_nothing_or_fails_poisons() {
    for fails in [false, true] {
        let (_, _, store) = store(SMALL, 7);
        let answer = store.volume.checkpoint(|| if fails { Err(Error::NoSpace) } else { Ok(()) });
        assert!(answer.is_err() && store.volume.is_poisoned().is_some());
    }
    let (_, _, store) = store(SMALL, 7);
    let volume = store.volume.clone();
    let panicked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| volume.checkpoint(|| panic!("redb broke"))));
    assert!(panicked.is_err() && store.volume.is_poisoned().is_some());
}

/// redb's file shrinks and grows again; blocks that come back read as zeros until they are written.
#[test]
fn growing_and_shrinking() {
    let setup = Setup { cache: 64 << 10, dirty_blocks: 8, ..SMALL };
    let (mut prng, world, mut store) = store(setup, 8);
    for round in 0..4 {
        for key in 0..300u64 {
            store.transact(vec![(key, Some(vec![round; 3000]))]).unwrap();
            if key % 40 == 0 {
                store.checkpoint().unwrap();
            }
        }
        let long = store.volume.stats().len;
        for key in 0..300u64 {
            store.transact(vec![(key, None)]).unwrap();
        }
        store.checkpoint().unwrap();
        let mut db = store.db.take().unwrap();
        store.volume.checkpoint(|| db.compact().map(drop).map_err(broken)).unwrap();
        store.db = Some(db);
        store.checkpoint().unwrap();
        assert!(store.volume.stats().len < long, "the test does not test shrinking");
        let last = store.last();
        let again = reopened(setup, &world, store, &mut prng);
        assert_eq!(again.last(), last);
        let history = again.history.clone();
        let fresh = again.world.clone();
        drop(again);
        world.restore(0, &fresh.snapshot(0));
        world.restore(1, &fresh.snapshot(1));
        store = Store::open(setup, world.clone(), &[0, 1], &history, &mut prng).unwrap();
    }
}

/// Readers, write-back, verification and a replica coming up beside the writer: no deadlock, nothing wrong.
#[test]
fn everything_at_once() {
    let setup = Setup { devices: 3, dirty_blocks: 16, cache: 32 << 10, log_blocks: 200, ..SMALL };
    let (mut prng, world, mut store) = store(setup, 9);
    world.limit_record(64 << 20);
    let stop = AtomicBool::new(false);
    let volume = store.volume.clone();
    let db = store.db.take().unwrap();
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (db, stop) = (&db, &stop);
            scope.spawn(move || {
                let mut prng = Prng::new(seed);
                while !stop.load(Ordering::Relaxed) {
                    let read = db.begin_read().unwrap();
                    let rows = read.open_table(ROWS).unwrap();
                    for _ in 0..20 {
                        let _ = rows.get(prng.below(300)).unwrap();
                    }
                }
            });
        }
        let (background, stopped) = (volume.clone(), &stop);
        scope.spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                background.prewrite().unwrap();
                let report = background.verify().unwrap();
                assert_eq!(report.bad, 0, "{report:?}");
                background.rejoin(DeviceId(2)).unwrap();
                background.retire(DeviceId(2)).unwrap();
            }
        });
        let mut txn = store.last();
        for _ in 0..600 {
            txn += 1;
            let changes: Changes = vec![(prng.below(300), Some(vec![txn as u8; prng.below(2000) as usize]))];
            apply(&db, &changes, txn).unwrap();
            let group = RedoGroup { txn: TxnId(txn), changes: encode(&changes) };
            store.history.push(changes);
            if volume.append(&[group]).unwrap() == Appended::CheckpointFirst || volume.wants_checkpoint() {
                let commit = || {
                    let mut write = db.begin_write().map_err(broken)?;
                    write.set_quick_repair(true);
                    write.commit().map_err(broken)
                };
                volume.checkpoint(commit).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    volume.poison("done");
    drop(db);
    let last = store.last();
    assert_eq!(reopened(Setup { devices: 2, ..setup }, &world, store, &mut prng).last(), last);
}
