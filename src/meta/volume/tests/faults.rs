//! Replicas that fail, lie, forget and rot, no more of them than there may be.

use super::*;
use crate::device::sim::{Fault, On};

const SIZE: u64 = 32 << 20;
/// Where labels end and metadata begins.
const BEGIN: u64 = 8 * 4096;

fn seeds(usually: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("VOLUME_FIRST").unwrap_or(0);
    first..first + number("VOLUME_SEEDS").unwrap_or(usually)
}

fn redundant(prng: &mut Prng) -> Setup {
    let mut setup = Setup::random(prng);
    setup.replicas = setup.replicas.max(2);
    setup
}

fn open(
    what: &str,
    seed: u64,
    setup: Setup,
    world: &SimWorld,
    present: &[usize],
    history: &[Changes],
    prng: &mut Prng,
) -> Store {
    Store::open(setup, world.clone(), present, history, prng)
        .unwrap_or_else(|error| panic!("seed {seed}, {what}, {setup:?}, opened from {present:?}: {error}"))
}

fn bounded(what: &str, seed: u64, store: &Store, (least, most): (u64, u64)) {
    let last = store.last();
    assert!((least..=most).contains(&last), "seed {seed}, {what}: transaction {last}, not within {least}..={most}");
}

/// Pulls a device out, and goes on until its replica is dropped.
fn pull(world: &SimWorld, device: usize, store: &mut Store, prng: &mut Prng) {
    world.fault(device, Fault::Gone);
    for _ in 0..1000 {
        if store.volume.stats().dropped_replicas > 0 {
            return;
        }
        store.step(prng).unwrap();
    }
    panic!("device {device} is gone, and nobody noticed");
}

/// One replica stops working in some way, at some moment; nobody above notices, and nothing is lost.
#[test]
fn a_failing_replica_is_dropped_before_anything_is_acknowledged() {
    let mut dropped = 0;
    for seed in seeds(150) {
        let mut prng = Prng::new(seed);
        let setup = redundant(&mut prng);
        let world = SimWorld::new(seed, setup.devices, SIZE);
        let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
        let begin = world.record();
        store.steps(prng.below(20), &mut prng).unwrap();
        let victim = prng.below(setup.replicas as u64) as usize;
        let nth = prng.below(30);
        let sticky = prng.chance(1, 2);
        let fault = match prng.below(4) {
            0 => Fault::Fail { on: On::Write, nth, sticky },
            1 => Fault::Fail { on: On::Flush, nth, sticky },
            2 => Fault::Flaky { on: On::Any, one_in: 4 },
            _ => Fault::Gone,
        };
        let what = format!("device {victim}: {fault:?}");
        world.fault(victim, fault);
        store.steps(40, &mut prng).unwrap_or_else(|error| panic!("seed {seed}, {what}, {setup:?}: {error}"));
        dropped += store.volume.stats().dropped_replicas;
        let (history, timeline) = (store.history.clone(), store.timeline.clone());
        drop(store);
        for _ in 0..3 {
            let at = begin + prng.below(world.record() - begin + 1);
            let state = world.crash_state(at, &mut prng);
            let all: Vec<usize> = (0..setup.devices).collect();
            let store = open(&what, seed, setup, &state, &all, &history, &mut prng);
            bounded(&what, seed, &store, timeline.bounds(at));
            drop(store);
            // Beside a device that knows of the loss, the lost one is no source, even when it is the only one.
            let others: Vec<usize> = (0..setup.devices).filter(|device| *device >= setup.replicas).collect();
            let state = world.crash_state(at, &mut prng);
            if let Ok(store) = Store::open(setup, state, &[&[victim], &*others].concat(), &history, &mut prng)
                && !others.is_empty()
            {
                bounded(&format!("{what}, the lost one"), seed, &store, timeline.bounds(at));
            }
        }
    }
    assert!(dropped > 0);
}

#[test]
fn with_the_last_replica_gone_nothing_is_acknowledged() {
    for seed in seeds(40) {
        let mut prng = Prng::new(seed);
        let setup = Setup::random(&mut prng);
        let world = SimWorld::new(seed, setup.devices, SIZE);
        let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
        store.steps(10, &mut prng).unwrap();
        let on = if prng.chance(1, 2) { On::Write } else { On::Flush };
        for device in 0..setup.replicas {
            world.fault(device, Fault::Fail { on, nth: prng.below(20), sticky: true });
        }
        let failed = (0..200).any(|_| store.step(&mut prng).is_err());
        assert!(failed, "seed {seed}: all replicas are gone");
        assert!(store.volume.is_poisoned().is_some());
        assert!(store.volume.append(&[RedoGroup { txn: TxnId(0), changes: Vec::new() }]).is_err());
        assert!(store.volume.checkpoint(|| panic!("a poisoned volume must not come to this")).is_err());
        let (history, timeline) = (store.history.clone(), store.timeline.clone());
        drop(store);
        let state = world.crash_state(world.record(), &mut prng);
        let all: Vec<usize> = (0..setup.devices).collect();
        let store = open("all gone", seed, setup, &state, &all, &history, &mut prng);
        bounded("all gone", seed, &store, timeline.bounds(world.record()));
    }
}

/// All replicas but one pretend to flush. The honest one has everything.
#[test]
fn lying_flushes_lose_nothing_while_one_replica_is_honest() {
    for seed in seeds(200) {
        let mut prng = Prng::new(seed);
        let setup = redundant(&mut prng);
        let world = SimWorld::new(seed, setup.devices, SIZE);
        let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
        let honest = prng.below(setup.replicas as u64) as usize;
        store.steps(prng.below(10), &mut prng).unwrap();
        let begin = world.record();
        let what = format!("all but {honest} lie");
        for device in (0..setup.devices).filter(|device| *device != honest) {
            world.fault(device, Fault::LyingFlush);
        }
        store.steps(40, &mut prng).unwrap();
        let (history, timeline) = (store.history.clone(), store.timeline.clone());
        drop(store);
        for _ in 0..3 {
            let at = begin + prng.below(world.record() - begin + 1);
            let first = world.crash_state(at, &mut prng);
            let mut present = subset(&(0..setup.devices).collect::<Vec<_>>(), &mut prng);
            if !present.contains(&honest) {
                present.push(honest);
            }
            // They go on lying.
            for device in (0..setup.devices).filter(|device| *device != honest) {
                first.fault(device, Fault::LyingFlush);
            }
            let mut store = open(&what, seed, setup, &first, &present, &history, &mut prng);
            bounded(&what, seed, &store, timeline.bounds(at));
            store.steps(15, &mut prng).unwrap();
            let (then, later) = (store.history.clone(), store.timeline.clone());
            let opened = later.durable[0].0;
            drop(store);
            let at = opened + prng.below(first.record() - opened + 1);
            let second = first.crash_state(at, &mut prng);
            let store = open(&what, seed, setup, &second, &present, &then, &mut prng);
            bounded(&what, seed, &store, later.bounds(at));
        }
    }
}

/// A run that ends in order, and what it leaves.
fn run(seed: u64, steps: u64) -> (Prng, Setup, SimWorld, Vec<Changes>) {
    let mut prng = Prng::new(seed);
    let setup = redundant(&mut prng);
    let world = SimWorld::new(seed, setup.devices, SIZE);
    let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
    store.steps(steps, &mut prng).unwrap();
    store.append().unwrap();
    let history = store.history.clone();
    drop(store);
    (prng, setup, world.fork(), history)
}

/// After `verify`, each replica alone must do.
fn each_alone(what: &str, seed: u64, setup: Setup, world: &SimWorld, history: &[Changes], prng: &mut Prng) {
    let all: Vec<usize> = (0..setup.devices).collect();
    let store = open(what, seed, setup, world, &all, history, prng);
    assert_eq!(store.last(), history.len() as u64, "seed {seed}, {what}");
    let report = store.volume.verify().unwrap_or_else(|error| panic!("seed {seed}, {what}: {error}"));
    assert_eq!(report.bad, report.repaired, "seed {seed}, {what}: {report:?}");
    drop(store);
    for alone in 0..setup.replicas {
        let store = open(what, seed, setup, &world.fork(), &[alone], history, prng);
        assert_eq!(store.last(), history.len() as u64, "seed {seed}, {what}, {alone} alone");
    }
}

#[test]
fn rot_zeros_and_noise_on_one_replica_are_mended() {
    for seed in seeds(80) {
        let (mut prng, setup, world, history) = run(seed, 40);
        let victim = prng.below(setup.replicas as u64) as usize;
        let end = BEGIN + prng.below(SIZE - BEGIN) / 4096 * 4096;
        let what = match prng.below(4) {
            0 => {
                world.zero(victim, BEGIN..BEGIN + (4 << 20));
                "zeroed"
            }
            1 => {
                world.corrupt(victim, BEGIN..end.min(BEGIN + (2 << 20)));
                "noise"
            }
            2 => {
                world.flip_bits(victim, BEGIN..BEGIN + (4 << 20), 3000);
                "flipped bits"
            }
            _ => {
                for _ in 0..20 {
                    world.rot_block(victim);
                }
                "rotten blocks"
            }
        };
        each_alone(what, seed, setup, &world, &history, &mut prng);
    }
}

/// A replica that went back to an older state of itself, with all its sums and its log in order, is not believed.
#[test]
fn a_stale_replica_with_valid_sums_is_brought_up() {
    for seed in seeds(60) {
        let mut prng = Prng::new(seed);
        let setup = redundant(&mut prng);
        let world = SimWorld::new(seed, setup.devices, SIZE);
        let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
        store.steps(prng.below(40), &mut prng).unwrap();
        let victim = prng.below(setup.replicas as u64) as usize;
        let old = world.snapshot(victim);
        store.steps(prng.below(60), &mut prng).unwrap();
        store.append().unwrap();
        let history = store.history.clone();
        drop(store);
        world.restore(victim, &old);
        each_alone("stale", seed, setup, &world.fork(), &history, &mut prng);
    }
}

#[test]
fn lost_and_misdirected_writes_of_one_replica_are_mended() {
    for seed in seeds(80) {
        let mut prng = Prng::new(seed);
        let setup = redundant(&mut prng);
        let world = SimWorld::new(seed, setup.devices, SIZE);
        let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
        let victim = prng.below(setup.replicas as u64) as usize;
        for _ in 0..4 {
            let nth = prng.below(40);
            world.fault(
                victim,
                if prng.chance(1, 2) {
                    Fault::LoseWrite { nth, sticky: false }
                } else {
                    Fault::Misdirect { on: On::Write, nth, to: BEGIN + prng.below(4 << 20) / 4096 * 4096 }
                },
            );
            store.steps(20, &mut prng).unwrap();
        }
        store.append().unwrap();
        world.heal(victim);
        let history = store.history.clone();
        drop(store);
        each_alone("lost writes", seed, setup, &world.fork(), &history, &mut prng);
    }
}

#[test]
fn garbled_reads_are_not_passed_on() {
    for seed in seeds(30) {
        let (mut prng, setup, world, history) = run(seed, 40);
        let victim = prng.below(setup.replicas as u64) as usize;
        world.fault(victim, Fault::GarbleRead { nth: prng.below(3), sticky: true });
        let present: Vec<usize> = (0..setup.replicas).collect();
        // The label of the garbling device cannot be read either: it is not a member then.
        let store = open("garbled reads", seed, setup, &world, &present, &history, &mut prng);
        assert_eq!(store.last(), history.len() as u64);
    }
}

/// A dropped replica comes back, or another device takes its place, while transactions go on; then it alone is enough.
#[test]
fn a_replica_comes_back_whole() {
    for seed in seeds(60) {
        let mut prng = Prng::new(seed);
        let mut setup = redundant(&mut prng);
        setup.replicas = 2;
        let world = SimWorld::new(seed, setup.devices, SIZE);
        let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
        store.steps(20, &mut prng).unwrap();
        let victim = prng.below(2) as usize;
        pull(&world, victim, &mut store, &mut prng);
        store.steps(20, &mut prng).unwrap();
        world.heal(victim);
        let new = if prng.chance(1, 2) { victim } else { 2 };
        assert!(store.host.spare_replicas(&[DeviceId(1 - victim as u16)]).contains(&DeviceId(new as u16)));
        if prng.chance(1, 4) {
            // The first attempt fails in the middle, without harm.
            world.fault(new, Fault::Fail { on: On::Write, nth: 3 + prng.below(10), sticky: false });
            let failed = store.volume.rejoin(DeviceId(new as u16));
            world.heal(new);
            store.steps(10, &mut prng).unwrap();
            assert!(failed.is_err() || store.volume.stats().replicas.len() == 2);
        }
        store.volume.rejoin(DeviceId(new as u16)).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(store.volume.stats().replicas.len(), 2);
        assert!(store.host.members().contains(&(new as u16)));
        let rejoined = world.record();
        store.steps(prng.below(20), &mut prng).unwrap();
        let (history, timeline) = (store.history.clone(), store.timeline.clone());
        drop(store);
        let at = rejoined + prng.below(world.record() - rejoined + 1);
        let state = world.crash_state(at, &mut prng);
        let store = open("rejoined alone", seed, setup, &state, &[new], &history, &mut prng);
        bounded("rejoined alone", seed, &store, timeline.bounds(at));
        let report = store.volume.verify().unwrap();
        assert_eq!(report.bad, 0, "seed {seed}: {report:?}");
    }
}

/// The only source cannot be read from some moment on, or once: the replica is whole or it does not count.
#[test]
fn a_replica_is_not_whole_before_the_log_was_read_to_its_end() {
    let mut refused = 0;
    for seed in seeds(150) {
        let mut prng = Prng::new(seed);
        let mut setup = redundant(&mut prng);
        setup.replicas = 2;
        let world = SimWorld::new(seed, setup.devices, SIZE);
        let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
        store.steps(20, &mut prng).unwrap();
        pull(&world, 0, &mut store, &mut prng);
        store.steps(prng.below(40), &mut prng).unwrap();
        world.heal(0);
        let sticky = prng.chance(1, 2);
        world.fault(1, Fault::Fail { on: On::Read, nth: prng.below(30), sticky });
        let first = store.volume.rejoin(DeviceId(0));
        world.heal(1);
        if first.is_err() {
            refused += 1;
            assert_eq!(store.volume.stats().replicas.len(), 1);
            store.volume.rejoin(DeviceId(0)).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        let (history, timeline) = (store.history.clone(), store.timeline.clone());
        drop(store);
        let at = world.record();
        let store = open("rejoined alone", seed, setup, &world.crash_state(at, &mut prng), &[0], &history, &mut prng);
        bounded("rejoined alone", seed, &store, timeline.bounds(at));
    }
    assert!(refused > 10, "{refused}");
}

/// What comes back may have gone on by itself, further than the others: nothing of that is believed.
#[test]
fn a_replica_of_another_future_takes_over_the_one_that_counts() {
    for seed in seeds(40) {
        let mut prng = Prng::new(seed);
        let mut setup = redundant(&mut prng);
        setup.replicas = 2;
        let world = SimWorld::new(seed, setup.devices, SIZE);
        let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
        store.steps(20, &mut prng).unwrap();
        let other = world.fork();
        let mut lost = open("another future", seed, setup, &other, &[1], &store.history, &mut prng);
        lost.steps(60, &mut prng).unwrap();
        drop(lost);
        pull(&world, 1, &mut store, &mut prng);
        store.steps(10, &mut prng).unwrap();
        world.heal(1);
        world.restore(1, &other.snapshot(1));
        store.volume.rejoin(DeviceId(1)).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        store.steps(prng.below(10), &mut prng).unwrap();
        let (history, timeline) = (store.history.clone(), store.timeline.clone());
        drop(store);
        let at = world.record();
        for present in [&[1][..], &[0], &[0, 1]] {
            let state = world.crash_state(at, &mut prng);
            let store = open("whoever is left", seed, setup, &state, present, &history, &mut prng);
            bounded("whoever is left", seed, &store, timeline.bounds(at));
        }
    }
}

#[test]
fn a_crash_while_a_replica_is_brought_up_leaves_the_others_in_charge() {
    for seed in seeds(40) {
        let mut prng = Prng::new(seed);
        let mut setup = redundant(&mut prng);
        setup.replicas = 2;
        let world = SimWorld::new(seed, setup.devices, SIZE);
        let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
        store.steps(30, &mut prng).unwrap();
        let begin = world.record();
        store.volume.rejoin(DeviceId(2)).unwrap();
        store.volume.retire(DeviceId(0)).unwrap();
        let gone = world.record();
        store.steps(10, &mut prng).unwrap();
        let (history, timeline) = (store.history.clone(), store.timeline.clone());
        drop(store);
        for _ in 0..6 {
            let at = begin + prng.below(world.record() - begin + 1);
            let state = world.crash_state(at, &mut prng);
            let present: &[usize] = if at >= gone { &[1, 2] } else { &[0, 1, 2] };
            let store = open("bringing up", seed, setup, &state, present, &history, &mut prng);
            bounded("bringing up", seed, &store, timeline.bounds(at));
        }
    }
}

/// Dropping the database without an end to its work changes nothing that is durable.
#[test]
fn a_dropped_database_commits_nothing() {
    for poison in [false, true] {
        let mut prng = Prng::new(3);
        let setup = redundant(&mut prng);
        let world = SimWorld::new(3, setup.devices, SIZE);
        let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
        store.append().unwrap();
        let durable = store.last();
        for _ in 0..10 {
            store.random_transaction(&mut prng).unwrap();
        }
        let history = store.history.clone();
        if poison {
            store.volume.poison("test");
        }
        drop(store.db.take());
        drop(store);
        let all: Vec<usize> = (0..setup.devices).collect();
        let store = open("dropped", 3, setup, &world.fork(), &all, &history, &mut prng);
        assert_eq!(store.last(), durable);
    }
}

#[test]
fn a_read_only_volume_writes_nothing() {
    let (mut prng, setup, world, history) = run(9, 60);
    let before: Vec<u64> = (0..setup.devices).map(|device| world.counters(device).writes).collect();
    let all: Vec<usize> = (0..setup.devices).collect();
    let (host, root, live) = Host::open(&world, &all).unwrap();
    let options = VolumeOptions { read_only: true, dirty_limit: Bytes(1), ..setup.options(&mut prng) };
    let (volume, groups) = Volume::open(host, &root, &live, options).unwrap();
    let db = database(&setup, &volume).unwrap();
    for group in &groups {
        apply(&db, &decode(&group.changes), group.txn.0).unwrap();
    }
    let read = db.begin_read().unwrap();
    let rows: Rows = read
        .open_table(ROWS)
        .unwrap()
        .iter()
        .unwrap()
        .map(|row| row.map(|(key, value)| (key.value(), value.value().to_vec())).unwrap())
        .collect();
    assert!(rows == model(&history));
    assert!(volume.append(&groups).is_err() && volume.checkpoint(|| Ok(())).is_err());
    volume.verify().unwrap();
    drop(read);
    drop(db);
    let after: Vec<u64> = (0..setup.devices).map(|device| world.counters(device).writes).collect();
    assert_eq!(before, after);
}

/// The first part of an unfinished unit is left on a device that then lies about its flushes: the life that comes after must
/// win over it, though both continue the same entry.
#[test]
fn a_later_life_wins_over_the_rests_of_an_earlier_one() {
    let setup = Setup { devices: 2, replicas: 2, entry_limit: 4096, ..SMALL };
    for seed in seeds(16) {
        let mut prng = Prng::new(seed);
        let world = SimWorld::new(seed, setup.devices, SIZE);
        let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
        let root = store.volume.root();
        let place = |device: usize| root.replicas[device].log_block + 2;
        let used = store.volume.stats().log_used.0;
        let before = [world.snapshot(0), world.snapshot(1)];
        store.transact((0..4).map(|key| (key, Some(vec![1; 4000]))).collect()).unwrap();
        assert_eq!(store.volume.append(&store.pending).unwrap(), Appended::Durable);
        let after = world.snapshot(1);
        let history = store.history[..1].to_vec();
        drop(store);
        // Device 0 has nothing of the unit, device 1 its first entry.
        let entry = used..used + 2;
        world.restore(0, &before[0]);
        world.restore(1, &before[1]);
        for block in entry {
            let mut content = vec![0; 4096];
            after.read((place(1) + block) * 4096, &mut content);
            assert!(content != [0; 4096]);
            world.device(1).write_at((place(1) + block) * 4096, &[&content]).unwrap();
        }
        let rest = world.snapshot(1);
        let mut store = open("the rest of a unit", seed, setup, &world, &[0, 1], &history, &mut prng);
        assert_eq!(store.last(), 1);
        store.transact(vec![(9, Some(b"acknowledged".to_vec()))]).unwrap();
        store.append().unwrap();
        let history = store.history.clone();
        drop(store);
        world.restore(1, &rest);
        let store = open("the rest of a unit, again", seed, setup, &world.fork(), &[0, 1], &history, &mut prng);
        assert_eq!(store.last(), 2, "seed {seed}");
    }
}

/// What one replica lacks of the log is copied from any that has it: a read that fails meanwhile keeps nobody from opening.
#[test]
fn a_read_that_fails_while_the_log_is_copied_is_made_elsewhere() {
    let mut failed = 0;
    for seed in seeds(12) {
        let mut prng = Prng::new(seed);
        let setup = Setup { replicas: 3, devices: 3, ..Setup::random(&mut prng) };
        let world = SimWorld::new(seed, setup.devices, SIZE);
        let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
        store.steps(30, &mut prng).unwrap();
        let history = store.history.clone();
        let lacks = store.volume.root().replicas[0].clone();
        drop(store);
        let log = lacks.log_block * 4096..(lacks.log_block + u64::from(lacks.log_blocks)) * 4096;
        world.zero(0, log);
        for nth in 0.. {
            let state = world.fork();
            state.fault(1, Fault::Fail { on: On::Read, nth, sticky: false });
            let what = format!("read {nth} of device 1 fails");
            open(&what, seed, setup, &state, &[0, 1, 2], &history, &mut prng);
            if state.counters(1).errors == 0 {
                break;
            }
            failed += 1;
        }
    }
    assert!(failed > 60, "{failed}");
}
