//! Power cuts at every moment, again in the recovery, with some of the replicas.

use super::*;

/// Panics with everything needed to see it again.
fn recovered(what: &str, seed: u64, result: Result<Store>) -> Store {
    result.unwrap_or_else(|error| panic!("seed {seed}, {what}: {error}"))
}

fn check(what: &str, seed: u64, store: &Store, (least, most): (u64, u64)) {
    let last = store.last();
    assert!(!store.volume.stats().log_scanned, "seed {seed}, {what}: an anchor survives every power cut");
    assert!(
        (least..=most).contains(&last),
        "seed {seed}, {what}: transaction {last} is the last one, which should be within {least}..={most}"
    );
}

/// A run, a crash at a random moment, a recovery that is cut short too, and another one with other replicas.
fn two_crashes(seed: u64) {
    let mut prng = Prng::new(seed);
    let setup = Setup::random(&mut prng);
    let world = SimWorld::new(seed, setup.devices, 64 << 20);
    if prng.chance(1, 2) {
        // Block devices are not empty when they are made a pool.
        (0..setup.devices).for_each(|device| world.corrupt(device, 0..2 << 20));
        world.mark_base();
    }
    let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
    let begin = world.record();
    store.steps(prng.below(60), &mut prng).unwrap();
    let (history, timeline) = (store.history.clone(), store.timeline.clone());
    drop(store);
    let replicas: Vec<usize> = (0..setup.replicas).collect();
    for _ in 0..3 {
        let at = begin + prng.below(world.record() - begin + 1);
        let bounds = timeline.bounds(at);
        let first = world.crash_state(at, &mut prng);
        let present = subset(&replicas, &mut prng);
        let what = format!("{setup:?}, crash at {at}, opened from {present:?}");
        let result = Store::open(setup, first.clone(), &present, &history, &mut prng);
        let mut store = recovered(&what, seed, result);
        check(&what, seed, &store, bounds);
        store.steps(prng.below(20), &mut prng).unwrap();
        let (then, mut later) = (store.history.clone(), store.timeline.clone());
        drop(store);

        // What the first opening showed must stay; before it was done, what the first crash left must.
        later.durable.insert(0, (0, bounds.0));
        later.committed.insert(0, (0, bounds.1));
        let at = prng.below(first.record() + 1);
        let second = first.crash_state(at, &mut prng);
        // Somebody must know the newest epoch.
        let mut again = subset(&replicas, &mut prng);
        if !again.iter().any(|index| present.contains(index)) {
            again.extend(&present);
        }
        let what = format!("{what}, then crash at {at}, opened from {again:?}");
        // The second life may have gone on from an earlier transaction than the first reached.
        let opened = later.durable[1].0;
        let known = if at < opened { &history } else { &then };
        let store = recovered(&what, seed, Store::open(setup, second, &again, known, &mut prng));
        check(&what, seed, &store, later.bounds(at));
    }
}

#[test]
fn acknowledged_transactions_survive_two_crashes() {
    let seeds = std::env::var("VOLUME_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let first = std::env::var("VOLUME_FIRST").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        two_crashes(seed);
    }
}

#[test]
fn every_moment_of_a_short_run() {
    let mut prng = Prng::new(5);
    let setup = Setup { chunk_blocks: 40, log_blocks: 64, dirty_blocks: 20, cache: 128 << 10, ..SMALL };
    let world = SimWorld::new(5, setup.devices, 64 << 20);
    let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
    let begin = world.record();
    for _ in 0..6 {
        store.steps(6, &mut prng).unwrap();
        store.checkpoint().unwrap();
    }
    let (history, timeline) = (store.history.clone(), store.timeline.clone());
    drop(store);
    for at in begin..=world.record() {
        for present in [[0, 1].as_slice(), &[0], &[1]] {
            let what = format!("crash at {at}, opened from {present:?}");
            let state = world.crash_state(at, &mut prng);
            let store = recovered(&what, 5, Store::open(setup, state, present, &history, &mut prng));
            check(&what, 5, &store, timeline.bounds(at));
        }
    }
}

/// Until the first checkpoint is durable there is no volume, and an opening says so; from then on there is one.
#[test]
fn every_moment_of_formatting() {
    for seed in 0..2 {
        let mut prng = Prng::new(seed);
        let setup = Setup { chunk_blocks: 40, ..SMALL };
        let world = SimWorld::new(seed, setup.devices, 64 << 20);
        // Whatever was on the devices before.
        (0..setup.devices).for_each(|device| world.corrupt(device, 0..1 << 20));
        let store = Store::format(setup, world.clone(), &mut prng).unwrap();
        let history = store.history.clone();
        drop(store);
        let mut opened = 0;
        for at in 0..=world.record() {
            let state = world.crash_state(at, &mut prng);
            match Store::open(setup, state, &[0, 1], &history, &mut prng) {
                Ok(store) => {
                    assert_eq!(store.last(), 1);
                    opened += 1;
                }
                Err(error) => assert!(matches!(error, crate::base::Error::Unavailable(_)), "crash at {at}: {error}"),
            }
        }
        assert!(opened > 0 && Store::open(setup, world.fork(), &[0, 1], &history, &mut prng).is_ok());
    }
}
