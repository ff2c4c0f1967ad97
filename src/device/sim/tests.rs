use super::*;
use crate::base::Prng;
use std::collections::{BTreeMap, BTreeSet};

const B: usize = BLOCK;

fn write(device: &dyn Device, block: u64, byte: u8, blocks: usize) -> Result<()> {
    device.write_at(block * B as u64, &[&vec![byte; blocks * B]])
}

fn read(world: &SimWorld, device: usize, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; B];
    world.device(device).read_at(block * B as u64, &mut bytes).unwrap();
    bytes
}

/// The byte of every sector of a block; each sector must be of one piece.
fn sectors(world: &SimWorld, device: usize, block: u64) -> Vec<u8> {
    let bytes = read(world, device, block);
    bytes.chunks(SECTOR).map(|sector| sector.iter().fold(sector[0], |a, b| if a == *b { a } else { 255 })).collect()
}

#[test]
fn reads_see_completed_writes_and_zeros_elsewhere() {
    let world = SimWorld::new(1, 2, 1 << 20);
    let device = world.device(0);
    device.write_at(B as u64, &[&[1; 100], &[2; B - 100], &[3; B]]).unwrap();
    assert_eq!((read(&world, 0, 1)[99], read(&world, 0, 1)[100], read(&world, 0, 2)[0]), (1, 2, 3));
    assert_eq!((read(&world, 0, 0), read(&world, 1, 1)), (vec![0; B], vec![0; B]));
    for (offset, len) in [(1 << 20, B), ((1 << 20) - B as u64, 2 * B), (512, B), (0, 100), (u64::MAX - 4095, 2 * B)] {
        assert!(device.write_at(offset, &[&vec![0; len]]).is_err(), "write {offset}+{len}");
        assert!(device.read_at(offset, &mut vec![0; len]).is_err(), "read {offset}+{len}");
        assert!(device.discard(offset, len as u64).is_err(), "discard {offset}+{len}");
    }
    assert_eq!(world.written_blocks(0), 2);
}

#[test]
fn flushed_writes_survive_every_crash_and_others_do_not() {
    let world = SimWorld::new(2, 2, 1 << 20);
    write(&*world.device(0), 0, 1, 1).unwrap();
    write(&*world.device(1), 0, 1, 1).unwrap();
    world.device(0).flush().unwrap();
    write(&*world.device(0), 0, 2, 1).unwrap();
    let now = world.record();
    let mut seen = [BTreeSet::new(), BTreeSet::new()];
    let mut prng = Prng::new(3);
    for _ in 0..400 {
        let after = world.crash_state(now, &mut prng);
        for device in [0, 1] {
            seen[device].insert(sectors(&after, device, 0));
        }
    }
    let whole = |byte| vec![byte; SECTORS];
    assert!(seen[0].iter().flatten().all(|byte| [1, 2].contains(byte)), "flushed data lost: {:?}", seen[0]);
    assert!(seen[0].contains(&whole(1)) && seen[0].contains(&whole(2)));
    assert!(seen[1].contains(&whole(0)) && seen[1].contains(&whole(1)));
    assert!(seen.iter().all(|states| states.len() > 8), "no torn states: {seen:?}");
    // Before the flush completed, the first write of device 0 was in doubt too.
    let lost = (0..100).any(|_| sectors(&world.crash_state(2, &mut prng), 0, 0) == whole(0));
    assert!(lost);
}

#[test]
fn unflushed_writes_reorder_across_blocks_and_devices() {
    let world = SimWorld::new(4, 2, 1 << 20);
    for device in [0, 1] {
        write(&*world.device(device), 0, 1, 1).unwrap();
        write(&*world.device(device), 1, 1, 1).unwrap();
    }
    let mut prng = Prng::new(5);
    let mut seen = BTreeMap::new();
    for _ in 0..2000 {
        let after = world.crash_state(world.record(), &mut prng);
        let state = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(device, block)| sectors(&after, device, block));
        if state.iter().all(|block| block.iter().all(|byte| *byte == block[0])) {
            *seen.entry(state.map(|block| block[0])).or_insert(0) += 1;
        }
    }
    assert_eq!(seen.len(), 16, "every combination of whole writes: {seen:?}");
}

#[test]
fn exhaustive_states_are_all_there_and_bounded() {
    let world = SimWorld::new(6, 2, 1 << 20);
    write(&*world.device(0), 0, 1, 1).unwrap();
    write(&*world.device(1), 0, 1, 1).unwrap();
    let mut seen = BTreeSet::new();
    let states = world.each_crash_state(world.record(), 16, |after| {
        seen.insert((sectors(&after, 0, 0), sectors(&after, 1, 0)));
    });
    assert_eq!((states, seen.len()), (Some(16), 16));
    assert_eq!(world.each_crash_state(world.record(), 15, |_| panic!("too many")), None);
    world.device(0).flush().unwrap();
    world.device(1).flush().unwrap();
    assert_eq!((world.pending(world.record()), world.pending(2)), (0, 2));
    assert_eq!(world.each_crash_state(world.record(), 1, |_| {}), Some(1));
}

/// Random workloads: compaction must not change the set of possible futures. Both worlds get the same requests and the
/// same dice; one is compacted all the time.
#[test]
fn compaction_changes_no_crash_state() {
    for seed in 0..60 {
        let mut prng = Prng::new(seed);
        let (plain, compact) = (SimWorld::new(seed, 2, 64 << 10), SimWorld::new(seed, 2, 64 << 10));
        for step in 0..80 {
            let (device, block, what) = (prng.below(2) as usize, prng.below(12), prng.below(12));
            for world in [&plain, &compact] {
                let target = world.device(device);
                match what {
                    0 => target.flush().unwrap(),
                    1 => drop(target.discard(block * B as u64, 2 * B as u64).unwrap()),
                    2 => world.flip_bits(device, 0..64 << 10, 1),
                    3 => {
                        world.fault(device, Fault::Fail { on: On::Flush, nth: 0, sticky: false });
                        assert!(target.flush().is_err());
                    }
                    4 => {
                        world.fault(device, Fault::LyingFlush);
                        target.flush().unwrap();
                        world.heal(device);
                    }
                    5 => {
                        world.fault(device, Fault::Fail { on: On::Write, nth: 0, sticky: false });
                        assert!(write(&*target, block, 200, 2).is_err());
                    }
                    _ => write(&*target, block, step + 1, 1 + (what as usize % 3)).unwrap(),
                }
            }
            if prng.chance(1, 5) {
                compact.mark_base();
                assert_eq!(compact.oldest_crash_point(), compact.record());
            }
            let (one, two) = (Prng::new(u64::from(step)), Prng::new(u64::from(step)));
            let one = plain.crash_state(plain.record(), &mut { one });
            let two = compact.crash_state(compact.record(), &mut { two });
            for device in [0, 1] {
                for block in 0..16 {
                    assert_eq!(read(&one, device, block), read(&two, device, block), "seed {seed} step {step}");
                    assert_eq!(read(&plain, device, block), read(&compact, device, block));
                }
            }
        }
    }
}

#[test]
fn the_record_stays_bounded() {
    let world = SimWorld::new(7, 1, 1 << 20);
    world.limit_record(64 << 10);
    for round in 0..1000u64 {
        write(&*world.device(0), round % 256, round as u8, 1).unwrap();
        world.device(0).flush().unwrap();
    }
    assert_eq!(world.record(), 2000);
    assert!(world.oldest_crash_point() > 1900);
    assert!(world.trace(0..world.record()).len() <= 40);
}

#[test]
fn a_run_repeats_from_its_seed() {
    let run = |seed: u64| {
        let world = SimWorld::new(seed, 2, 1 << 20);
        world.fault(0, Fault::Flaky { on: On::Any, one_in: 3 });
        let mut outcome = Vec::new();
        for step in 0..100u8 {
            outcome.push(write(&*world.device(0), u64::from(step), step, 2).is_ok());
            outcome.push(world.device(0).flush().is_ok());
            outcome.push(world.device(0).discard(u64::from(step) * B as u64, B as u64).is_ok());
        }
        let mut prng = Prng::new(seed);
        let after = world.crash_state(world.record() / 2, &mut prng);
        world.heal(0);
        (outcome, (0..100).map(|block| (read(&world, 0, block), read(&after, 0, block))).collect::<Vec<_>>())
    };
    assert!(run(8) == run(8));
    assert!(run(8) != run(9));
}

#[test]
fn a_failed_flush_is_not_healed_by_the_next() {
    let world = SimWorld::new(10, 1, 1 << 20);
    let device = world.device(0);
    write(&*device, 0, 1, 1).unwrap();
    world.fault(0, Fault::Fail { on: On::Flush, nth: 0, sticky: false });
    assert!(device.flush().is_err());
    device.flush().unwrap();
    let mut prng = Prng::new(1);
    assert!((0..100).any(|_| sectors(&world.crash_state(world.record(), &mut prng), 0, 0) == [0; SECTORS]));
    write(&*device, 0, 2, 1).unwrap();
    device.flush().unwrap();
    assert!((0..100).all(|_| sectors(&world.crash_state(world.record(), &mut prng), 0, 0) == [2; SECTORS]));
}

#[test]
fn a_lying_flush_promises_nothing() {
    let world = SimWorld::new(11, 1, 1 << 20);
    world.fault(0, Fault::LyingFlush);
    write(&*world.device(0), 0, 1, 1).unwrap();
    world.device(0).flush().unwrap();
    let mut prng = Prng::new(1);
    assert!((0..100).any(|_| sectors(&world.crash_state(world.record(), &mut prng), 0, 0) == [0; SECTORS]));
}

#[test]
fn errors_come_when_armed_and_leave_only_the_written_range_in_doubt() {
    let world = SimWorld::new(12, 1, 1 << 20);
    let device = world.device(0);
    for block in 0..4 {
        write(&*device, block, 1, 1).unwrap();
    }
    world.fault(0, Fault::Fail { on: On::Write, nth: 1, sticky: false });
    write(&*device, 0, 2, 1).unwrap();
    let error = write(&*device, 1, 2, 2).unwrap_err();
    assert!(matches!(&error, Error::Io { device, operation: "write", source }
        if device == "sim0" && source.raw_os_error() == Some(libc::EIO)));
    write(&*device, 0, 3, 1).unwrap();
    assert_eq!((sectors(&world, 0, 0), sectors(&world, 0, 3)), (vec![3; SECTORS], vec![1; SECTORS]));
    assert!([sectors(&world, 0, 1), sectors(&world, 0, 2)].iter().flatten().all(|byte| [1, 2].contains(byte)));
    world.fault(0, Fault::Fail { on: On::Read, nth: 0, sticky: true });
    assert!((0..3).all(|_| device.read_at(0, &mut [0; B]).is_err()));
    device.flush().unwrap();
    world.fault(0, Fault::Gone);
    assert!(device.flush().is_err() && write(&*device, 0, 9, 1).is_err() && device.discard(0, B as u64).is_err());
    world.heal(0);
    assert_eq!(sectors(&world, 0, 0), [3; SECTORS]);
    let counters = world.counters(0);
    assert_eq!((counters.writes, counters.flushes, counters.discards, counters.errors), (8, 2, 1, 7));
}

#[test]
fn a_bad_block_fails_reads_that_touch_it_until_it_is_written() {
    let world = SimWorld::new(12, 1, 1 << 20);
    let device = world.device(0);
    write(&*device, 0, 1, 4).unwrap();
    let read = |block: u64, count: usize| device.read_at(block * B as u64, &mut vec![0; count * B]).is_ok();
    world.fault(0, Fault::BadBlock { block: 2, times: 2 });
    assert!(read(0, 2) && read(3, 1) && !read(0, 4) && !read(2, 1) && read(2, 1));
    world.fault(0, Fault::BadBlock { block: 2, times: u64::MAX });
    write(&*device, 3, 2, 1).unwrap();
    assert!(!read(1, 2) && !read(1, 2));
    write(&*device, 1, 3, 2).unwrap();
    assert!(read(0, 4));
}

#[test]
fn a_full_host_refuses_new_blocks_only() {
    let world = SimWorld::new(13, 1, 1 << 20);
    let device = world.device(0);
    write(&*device, 0, 1, 2).unwrap();
    world.fault(0, Fault::Full { spare_blocks: 2 });
    write(&*device, 0, 2, 3).unwrap();
    let error = write(&*device, 10, 2, 2).unwrap_err();
    assert!(matches!(error, Error::Io { source, .. } if source.raw_os_error() == Some(libc::ENOSPC)));
    write(&*device, 10, 2, 1).unwrap();
    assert!(write(&*device, 11, 2, 1).is_err());
    write(&*device, 1, 5, 1).unwrap();
}

#[test]
fn misdirected_lost_and_garbled_requests_say_ok() {
    let world = SimWorld::new(14, 1, 1 << 20);
    let device = world.device(0);
    world.fault(0, Fault::Misdirect { on: On::Write, nth: 0, to: 10 * B as u64 });
    write(&*device, 1, 1, 1).unwrap();
    assert_eq!((sectors(&world, 0, 1), sectors(&world, 0, 10)), (vec![0; SECTORS], vec![1; SECTORS]));
    world.fault(0, Fault::LoseWrite { nth: 0, sticky: false });
    write(&*device, 1, 2, 1).unwrap();
    assert_eq!(sectors(&world, 0, 1), [0; SECTORS]);
    write(&*device, 1, 2, 1).unwrap();
    world.fault(0, Fault::GarbleRead { nth: 0, sticky: false });
    let ones = |bytes: Vec<u8>| bytes.iter().map(|byte| (byte ^ 2).count_ones()).sum::<u32>();
    assert_eq!((ones(read(&world, 0, 1)), ones(read(&world, 0, 1))), (1, 0));
    // Beyond the end there is no elsewhere.
    world.fault(0, Fault::Misdirect { on: On::Write, nth: 0, to: u64::MAX });
    write(&*device, 1, 3, 1).unwrap();
    assert_eq!(sectors(&world, 0, 255), [3; SECTORS]);
}

#[test]
fn damage_is_durable_and_stale_content_comes_back() {
    let world = SimWorld::new(15, 1, 1 << 20);
    let device = world.device(0);
    write(&*device, 0, 1, 1).unwrap();
    device.flush().unwrap();
    let (early, at) = (world.snapshot(0), world.record());
    write(&*device, 0, 2, 1).unwrap();
    write(&*device, 5, 2, 1).unwrap();
    device.flush().unwrap();
    assert!(matches!(world.rot_block(0).map(|offset| offset / B as u64), Some(0 | 5)));
    let flipped: u32 = [0, 5].iter().flat_map(|block| read(&world, 0, *block)).map(|b| (b ^ 2).count_ones()).sum();
    assert_eq!(flipped, 1);
    world.corrupt(0, 100..200);
    world.zero(0, 5 * B as u64 + 1..6 * B as u64);
    let after = world.crash_state(world.record(), &mut Prng::new(1));
    assert_ne!(read(&after, 0, 0)[100..200], [2; 100]);
    assert_eq!((read(&after, 0, 5)[0], read(&after, 0, 5)[1]), (2, 0));
    world.restore(0, &early);
    assert_eq!((sectors(&world, 0, 0), sectors(&world, 0, 5)), (vec![1; SECTORS], vec![0; SECTORS]));
    assert_eq!(world.written_blocks(0), 1);
    let mut bytes = [0; B];
    world.snapshot_at(0, at + 2).read(5 * B as u64, &mut bytes);
    assert_eq!(bytes, [2; B]);
    world.wipe(0);
    assert_eq!(sectors(&world, 0, 0), [0; SECTORS]);
}

#[test]
fn discards_leave_what_the_mode_says() {
    let world = SimWorld::new(16, 1, 1 << 20);
    let device = world.device(0);
    let mut left = BTreeSet::new();
    write(&*device, 0, 7, 64).unwrap();
    device.discard(0, 64 * B as u64).unwrap();
    for block in 0..64 {
        let bytes = read(&world, 0, block);
        left.insert(if bytes == [0; B] { "zero" } else { ["noise", "old"][usize::from(bytes == [7; B])] });
    }
    assert_eq!(left.len(), 3, "{left:?}");
    world.set_discard(0, DiscardMode::Zero);
    device.discard(0, 64 * B as u64).unwrap();
    assert_eq!(world.written_blocks(0), 0);
    // A discard not yet flushed may be undone by the crash.
    device.flush().unwrap();
    write(&*device, 0, 7, 1).unwrap();
    device.flush().unwrap();
    device.discard(0, B as u64).unwrap();
    let mut prng = Prng::new(1);
    let states: BTreeSet<_> = (0..200).map(|_| sectors(&world.crash_state(world.record(), &mut prng), 0, 0)).collect();
    assert!(states.contains(&vec![0; SECTORS]) && states.contains(&vec![7; SECTORS]));
}

#[test]
fn hanging_requests_wait_for_release_and_a_flush_covers_only_what_was_done_before_it() {
    let world = SimWorld::new(17, 2, 1 << 20);
    world.fault(0, Fault::Hang { on: On::Flush });
    write(&*world.device(0), 0, 1, 1).unwrap();
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| world.device(0).flush());
        world.wait_for_hanging(0, 1);
        assert!(world.device(0).stalled_ns().is_some() && world.device(1).stalled_ns().is_none());
        write(&*world.device(0), 1, 1, 1).unwrap();
        write(&*world.device(1), 0, 1, 1).unwrap();
        assert!(!flush.is_finished());
        world.release(0);
        flush.join().unwrap().unwrap();
    });
    assert_eq!((world.hanging(0), world.device(0).stalled_ns()), (0, None));
    let mut prng = Prng::new(1);
    let states: Vec<_> = (0..100).map(|_| world.crash_state(world.record(), &mut prng)).collect();
    assert!(states.iter().all(|after| sectors(after, 0, 0) == [1; SECTORS]));
    assert!(states.iter().any(|after| sectors(after, 0, 1) == [0; SECTORS]));
}

#[test]
fn forks_and_added_devices_stand_alone() {
    let world = SimWorld::with_sizes(18, &[1 << 20, 8 << 10]);
    write(&*world.device(0), 0, 1, 1).unwrap();
    let copy = world.fork();
    write(&*world.device(0), 0, 2, 1).unwrap();
    assert_eq!(sectors(&copy, 0, 0), [1; SECTORS]);
    assert_eq!((copy.record(), copy.pending(0), copy.device(1).size()), (0, 0, 8 << 10));
    let index = world.add_device(4 << 20);
    assert_eq!((index, world.device(index).size(), copy.len()), (2, 4 << 20, 2));
    assert_ne!(world.device(0).domain_hint(), world.device(2).domain_hint());
    world.power_off();
    assert!(world.devices().iter().all(|device| device.flush().is_err()));
}

#[test]
fn fingerprints_tell_contents_apart_and_nothing_else() {
    let base = SimWorld::new(1, 2, 1 << 20);
    write(&*base.device(0), 3, 7, 1).unwrap();
    let print = |change: &dyn Fn(&SimWorld)| {
        let world = base.fork();
        change(&world);
        world.fingerprint(&base)
    };
    assert_eq!(print(&|_| {}), 0);
    assert_eq!(print(&|world| write(&*world.device(0), 3, 7, 1).unwrap()), 0, "the same content once more");
    let one = print(&|world| write(&*world.device(0), 3, 8, 1).unwrap());
    let other_device = print(&|world| write(&*world.device(1), 3, 8, 1).unwrap());
    let other_place = print(&|world| write(&*world.device(0), 4, 8, 1).unwrap());
    let both = print(&|world| {
        write(&*world.device(1), 3, 8, 1).unwrap();
        write(&*world.device(0), 3, 8, 1).unwrap();
    });
    let gone = print(&|world| world.wipe(0));
    let mut all = vec![0, one, other_device, other_place, both, gone];
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 6);
    assert_eq!(
        gone,
        print(&|world| write(&*world.device(0), 3, 0, 1).unwrap()),
        "zeros and nothing are the same content"
    );
}
