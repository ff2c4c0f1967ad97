//! Blocks that a device does not return, or returns garbled, once or for good: what was not seen is neither free nor lost.

use super::*;
use crate::base::BLOCK_SIZE;
use crate::device::sim::Fault;

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

/// Opens from these devices, and must find everything.
fn whole(what: &str, setup: Setup, world: &SimWorld, present: &[usize], history: &[Changes], prng: &mut Prng) {
    let store = Store::open(setup, world.clone(), present, history, prng);
    let store = store.unwrap_or_else(|error| panic!("{what}, opened from {present:?}: {error}"));
    assert_eq!(store.last(), history.len() as u64, "{what}, opened from {present:?}");
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
