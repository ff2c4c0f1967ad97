//! Devices with arbitrary bytes on them: an opening answers, whatever they are.

use super::*;
use crate::base::{BLOCK_SIZE, Error};
use crate::format::log::{ANCHORS, Anchor, Checkpoint, EntryHead, HEAD, Kind};
use crate::meta::volume::block::zeroed;
use zerocopy::IntoBytes;

/// Opens the volume and whatever it holds, as far as that goes.
fn open(setup: Setup, world: &SimWorld, history: &[Changes], prng: &mut Prng) -> Result<u64> {
    let (host, root, live) = Host::open(world, &[0, 1])?;
    let (volume, _) = Volume::open(host, &root, &live, setup.options(prng))?;
    drop(volume);
    Store::open(setup, world.clone(), &[0, 1], history, prng).map(|store| store.last())
}

fn run(seed: u64, setup: Setup) -> (Prng, SimWorld, Vec<Changes>) {
    let mut prng = Prng::new(seed);
    let world = SimWorld::new(seed, setup.devices, 16 << 20);
    let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
    store.steps(60, &mut prng).unwrap();
    store.append().unwrap();
    let history = store.history.clone();
    drop(store);
    (prng, world.fork(), history)
}

/// The same damage on all replicas cannot always be mended: what is left is an earlier state or an error.
#[test]
fn damage_everywhere_gives_an_error_or_an_earlier_state() {
    let setup = Setup { log_blocks: 100, ..SMALL };
    let (mut prng, world, history) = run(1, setup);
    let (_, root, _) = Host::open(&world.fork(), &[0, 1]).unwrap();
    let (mut opened, mut refused) = (0, 0);
    for _ in 0..120 {
        let state = world.fork();
        for replica in &root.replicas {
            let device = usize::from(replica.device);
            let log = replica.log_block * BLOCK_SIZE;
            let log = log..log + u64::from(replica.log_blocks) * BLOCK_SIZE;
            match prng.below(5) {
                0 => state.flip_bits(device, log, 1 + prng.below(200) as usize),
                1 => {
                    let from = log.start + prng.below(log.end - log.start) / BLOCK_SIZE * BLOCK_SIZE;
                    state.corrupt(device, from..log.end.min(from + (64 << 10)));
                }
                2 => state.zero(device, log.start..log.start + ANCHORS * BLOCK_SIZE),
                3 => state.flip_bits(device, log.end..log.end + (300 * BLOCK_SIZE), 1 + prng.below(500) as usize),
                _ => state.corrupt(device, log.end..log.end + (1 << 20)),
            }
        }
        match open(setup, &state, &history, &mut prng) {
            Ok(_) => opened += 1,
            Err(Error::Corrupt(_) | Error::Unavailable(_)) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(opened > 10 && refused > 10, "{opened} {refused}");
}

/// With both anchors gone everywhere, the checkpoints in the ring are looked for.
#[test]
fn a_log_without_anchors_is_found() {
    let setup = Setup { log_blocks: 100, ..SMALL };
    let (mut prng, world, history) = run(2, setup);
    let (_, root, _) = Host::open(&world.fork(), &[0, 1]).unwrap();
    for replica in &root.replicas {
        let log = replica.log_block * BLOCK_SIZE;
        world.zero(usize::from(replica.device), log..log + ANCHORS * BLOCK_SIZE);
    }
    assert_eq!(open(setup, &world, &history, &mut prng).unwrap(), history.len() as u64);
}

/// Checkpoints and redo that are properly chained and say anything at all.
#[test]
fn forged_entries_are_answered() {
    let setup = SMALL;
    let (mut prng, world, _) = run(3, setup);
    let (_, root, _) = Host::open(&world.fork(), &[0, 1]).unwrap();
    let log = root.replicas[0].log_block * BLOCK_SIZE;
    let (_, genuine) = {
        let (host, root, live) = Host::open(&world.fork(), &[0, 1]).unwrap();
        let replicas = crate::meta::volume::open::present(&*host, &root, &live).unwrap();
        let log = crate::meta::volume::recover::recover(&replicas, root.volume, u64::from(setup.log_blocks) - ANCHORS);
        let log = log.unwrap();
        (log.end, log.unit)
    };
    let genuine_checkpoint = Checkpoint::decode(&genuine).unwrap();
    for round in 0..60 {
        let state = world.fork();
        let unit = match prng.below(4) {
            0 => {
                let mut unit = genuine.clone();
                for _ in 0..=prng.below(4) {
                    let at = prng.below(unit.len() as u64) as usize;
                    unit[at] = if prng.chance(1, 3) { 255 } else { prng.next() as u8 };
                }
                unit
            }
            1 => genuine[..prng.below(genuine.len() as u64) as usize].to_vec(),
            2 => {
                let mut checkpoint = genuine_checkpoint.clone();
                let at = 9 + prng.below(23) as usize;
                checkpoint.header[at] = prng.next() as u8;
                checkpoint.encode()
            }
            _ => {
                let mut checkpoint = genuine_checkpoint.clone();
                checkpoint.changed.push((prng.next(), 7));
                checkpoint.digests.push((prng.next() as u32, vec![1; prng.below(5) as usize]));
                checkpoint.encode()
            }
        };
        let start = Anchor {
            volume: root.volume,
            seq: u64::MAX / 2,
            position: prng.next() / 4,
            life: prng.next() as u32,
            previous: crate::format::log::Link([3; 32]),
        };
        let mut head = EntryHead {
            kind: Kind::Checkpoint,
            more: false,
            continued: false,
            payload_len: unit.len() as u32,
            life: start.life,
            volume: root.volume,
            salt: 0,
            seq: start.seq,
            position: start.position,
            previous: start.previous,
            hash: start.previous,
        };
        let sealed = head.seal(&unit);
        let mut blocks = zeroed(head.blocks() as usize);
        let bytes = blocks.as_mut_slice().as_mut_bytes();
        bytes[..HEAD].copy_from_slice(&sealed);
        bytes[HEAD..HEAD + unit.len()].copy_from_slice(&unit);
        let capacity = u64::from(setup.log_blocks) - ANCHORS;
        let place = start.position % capacity;
        if place + head.blocks() > capacity {
            continue;
        }
        let mut anchor = vec![0; 4096];
        anchor[..start.encode().len()].copy_from_slice(&start.encode());
        for device in [0, 1] {
            state.device(device).write_at(log, &[&anchor]).unwrap();
            state.device(device).write_at(log + (ANCHORS + place) * BLOCK_SIZE, &[blocks.as_bytes()]).unwrap();
        }
        // redb itself may panic on a forged header: the metadata store catches that.
        let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let (host, root, live) = Host::open(&state, &[0, 1]).unwrap();
            Volume::open(host, &root, &live, setup.options(&mut prng)).map(|(volume, _)| volume)
        }));
        match answer {
            Ok(Ok(volume)) => {
                let caught = std::panic::AssertUnwindSafe(|| drop(database(&setup, &volume)));
                let _ = std::panic::catch_unwind(caught);
                let _ = volume.verify();
            }
            Ok(Err(Error::Corrupt(_) | Error::Unavailable(_))) => {}
            Ok(Err(other)) => panic!("round {round}: {other}"),
            Err(_) => panic!("round {round}: opening panicked"),
        }
    }
}

/// A root that says anything at all.
#[test]
fn forged_roots_are_answered() {
    let setup = SMALL;
    let (mut prng, world, _) = run(4, setup);
    let (_, genuine, _) = Host::open(&world.fork(), &[0, 1]).unwrap();
    for _ in 0..1000 {
        let mut root = genuine.clone();
        for _ in 0..=prng.below(2) {
            let any = if prng.chance(1, 2) { prng.next() } else { prng.below(5000) };
            let replicas = root.replicas.len() as u64;
            let replica = &mut root.replicas[prng.below(replicas) as usize];
            let runs = root.chunks.len() as u64;
            let run = &mut root.chunks[prng.below(runs) as usize];
            match prng.below(9) {
                0 => root.chunk_blocks = any as u32,
                1 => replica.log_block = any,
                2 => replica.log_blocks = any as u32,
                3 => replica.device = any as u16,
                4 => run.block = any,
                5 => run.count = any as u32,
                6 => run.chunk = any as u32,
                7 => run.device = any as u16,
                _ => replica.stale = !replica.stale,
            }
        }
        let state = world.fork();
        let (host, ..) = Host::open(&state, &[0, 1]).unwrap();
        let options = VolumeOptions { read_only: true, ..setup.options(&mut prng) };
        let _ = Volume::open(host, &root, &[DeviceId(0), DeviceId(1)], options);
    }
}
