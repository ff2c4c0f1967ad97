//! What opening a pool promises, on simulated devices.

use std::collections::HashSet;
use std::sync::Arc;

use super::*;
use crate::base::{Prng, Uuid};
use crate::device::InlineEngine;
use crate::device::sim::{Fault, On, SimWorld};
use crate::format::label::{ChunkRun, GroupLayout, LABEL_SLOT, Label, MemberState, MetaRoot, label_offsets};

const SIZE: u64 = 16 << 20;

fn engine() -> Arc<dyn Engine> {
    Arc::new(InlineEngine)
}

fn format(world: &SimWorld, k: u8, m: u8) -> Pool {
    Pool::format(&world.devices(), &FormatOptions::small(k, m), engine(), Box::new(Prng::new(world.len() as u64)))
        .unwrap()
}

fn open_as(world: &SimWorld, indices: &[usize], read_only: bool, seed: u64) -> Result<Pool> {
    let devices: Vec<_> = indices.iter().map(|index| world.device(*index)).collect();
    Pool::open(&devices, &OpenMode { read_only, ..OpenMode::default() }, engine(), Box::new(Prng::new(seed)))
}

fn open(world: &SimWorld, indices: &[usize]) -> Result<Pool> {
    open_as(world, indices, false, world.record())
}

fn refusal(world: &SimWorld, indices: &[usize]) -> String {
    match open(world, indices) {
        Ok(pool) => panic!("opened with {:?}", states(&pool)),
        Err(error) => error.to_string(),
    }
}

fn states(pool: &Pool) -> Vec<MemberState> {
    pool.state().members.iter().map(|member| member.state).collect()
}

fn generation(pool: &Pool) -> u64 {
    pool.state().label.meta.generation
}

fn set_generation(pool: &Pool, generation: u64) -> Result<()> {
    pool.update_labels(|label| label.meta.generation = generation)
}

/// As [`set_generation`], with a label that fills its slot and differs everywhere, so that tears show.
fn set_large(pool: &Pool, generation: u64) {
    let block = |chunk| (generation << 32) + (u64::from(chunk) << 16);
    let run = |chunk| ChunkRun { device: 9, chunk, count: generation as u32, block: block(chunk) };
    let chunks = (0..3_000).map(run).collect();
    let meta = MetaRoot { generation, chunk_blocks: 64, chunks, ..MetaRoot::default() };
    pool.update_labels(|label| label.meta = meta).unwrap();
}

fn slot_range(world: &SimWorld, device: usize, copy: usize) -> std::ops::Range<u64> {
    let at = label_offsets(world.device(device).size()).unwrap()[copy];
    at..at + LABEL_SLOT as u64
}

#[test]
fn any_order_of_devices_opens_the_pool() {
    let world = SimWorld::new(1, 4, SIZE);
    let uuid = format(&world, 2, 2).uuid();
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let pool = open(&world, &order).unwrap();
        assert_eq!(pool.uuid(), uuid);
        assert_eq!(states(&pool), [MemberState::Active; 4]);
        assert_eq!(pool.state().can_lose(), 2);
        for (at, member) in pool.state().members.iter().enumerate() {
            assert_eq!((usize::from(member.id.0), member.name()), (at, format!("sim{at}")));
        }
        assert_eq!(pool.take_notes(), Vec::<String>::new());
    }
}

#[test]
fn every_mount_has_an_incarnation_of_its_own() {
    let world = SimWorld::new(2, 2, SIZE);
    let first = format(&world, 1, 1).incarnation();
    let second = open(&world, &[0, 1]).unwrap().incarnation();
    assert_ne!(first, second);
    let reader = open_as(&world, &[1, 0], true, 5).unwrap();
    assert_eq!(reader.incarnation(), second);
    assert!(matches!(reader.update_labels(|_| ()), Err(Error::ReadOnly)));
}

#[test]
fn opening_read_only_writes_nothing() {
    let world = SimWorld::new(3, 3, SIZE);
    drop(format(&world, 2, 1));
    world.corrupt(0, slot_range(&world, 0, 0));
    let before = world.record();
    let pool = open_as(&world, &[0, 2], true, 1).unwrap();
    assert_eq!(states(&pool)[1], MemberState::Missing);
    assert_eq!(world.record(), before);
}

#[test]
fn up_to_m_missing_devices_are_named_and_more_are_refused() {
    let world = SimWorld::new(4, 6, SIZE);
    let made = format(&world, 4, 2);
    let gone = made.state().members[5].uuid;
    let pool = open(&world, &[0, 1, 2, 4]).unwrap();
    assert_eq!(pool.state().can_lose(), 0);
    let notes = pool.take_notes().join("\n");
    assert!(notes.contains(&gone.to_string()) && notes.contains("last seen at sim5"), "{notes}");
    assert!(notes.contains("device 3"), "{notes}");
    let text = refusal(&world, &[0, 1, 2]);
    assert!(text.contains("3 of 6 devices are missing") && text.contains(&gone.to_string()), "{text}");
    assert!(text.contains("at most 2"), "{text}");
}

#[test]
fn three_of_four_damaged_copies_are_survived_and_repaired() {
    for seed in 0..40 {
        let mut prng = Prng::new(seed);
        let world = SimWorld::new(seed, 3, SIZE);
        set_generation(&format(&world, 2, 1), 7).unwrap();
        for device in 0..3 {
            let spared = prng.below(4) as usize;
            for copy in (0..4).filter(|copy| *copy != spared) {
                let range = slot_range(&world, device, copy);
                match prng.below(3) {
                    0 => world.corrupt(device, range),
                    1 => world.zero(device, range),
                    _ => world.flip_bits(device, range.start..range.start + 1000, 1 + prng.below(9) as usize),
                }
            }
        }
        let pool = open(&world, &[2, 1, 0]).unwrap();
        assert_eq!(generation(&pool), 7, "seed {seed}");
        assert_eq!(states(&pool), [MemberState::Active; 3]);
        assert_eq!(pool.take_notes().iter().filter(|note| note.contains("labels of sim")).count(), 3, "seed {seed}");
        drop(pool);
        assert_eq!(open(&world, &[0, 1, 2]).unwrap().take_notes(), Vec::<String>::new(), "seed {seed}: not repaired");
    }
}

/// A power cut at any point of label writes leaves a pool that opens, with the newest acknowledged label or a newer one.
#[test]
fn torn_label_writes_never_lose_an_acknowledged_label() {
    for seed in 0..120 {
        let mut prng = Prng::new(seed);
        let world = SimWorld::new(seed, 3, SIZE);
        let pool = format(&world, 2, 1);
        set_large(&pool, 1);
        let mut acknowledged = vec![(world.record(), 1)];
        for generation in 2..6 {
            set_large(&pool, generation);
            acknowledged.push((world.record(), generation));
        }
        let at = acknowledged[0].0 + prng.below(world.record() - acknowledged[0].0 + 1);
        let after = world.crash_state(at, &mut prng);
        let least = acknowledged.iter().rev().find(|(record, _)| *record <= at).unwrap().1;
        let pool = open(&after, &[0, 1, 2]).unwrap_or_else(|error| panic!("seed {seed} at {at}: {error}"));
        let found = generation(&pool);
        assert!((least..=least + 1).contains(&found), "seed {seed} at {at}: {found} instead of {least}");
        assert_eq!(states(&pool), [MemberState::Active; 3], "seed {seed} at {at}");

        // And once more, in the writes of that opening.
        drop(pool);
        let at = prng.below(after.record() + 1);
        let again = after.crash_state(at, &mut prng);
        let pool = open(&again, &[2, 0, 1]).unwrap_or_else(|error| panic!("seed {seed}, then {at}: {error}"));
        assert!(generation(&pool) >= least, "seed {seed}, then {at}");
        assert_eq!(states(&pool), [MemberState::Active; 3], "seed {seed}, then {at}");
    }
}

/// Crashes while a new epoch is written, followed by openings with other subsets: never a false split, and a member that
/// has seen everything acknowledged is there each time.
#[test]
fn interrupted_epochs_are_no_split() {
    for seed in 0..400 {
        let mut prng = Prng::new(seed);
        let mut world = SimWorld::new(seed, 6, SIZE);
        let mut acknowledged = 1;
        set_generation(&format(&world, 3, 2), acknowledged).unwrap();
        for round in 0..4 {
            // Two devices at most are away, others each time.
            let mut indices: Vec<usize> = (0..6).collect();
            for _ in 0..prng.below(3) {
                indices.remove(prng.below(indices.len() as u64) as usize);
            }
            world.mark_base();
            let context = format!("seed {seed} round {round} with {indices:?}");
            let outcome = open_as(&world, &indices, false, prng.next());
            let pool = outcome.unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(generation(&pool) >= acknowledged, "{context}: {} of {acknowledged}", generation(&pool));
            let before = generation(&pool);
            let opened = world.record();
            set_generation(&pool, before + 1).unwrap();
            let at = world.oldest_crash_point() + prng.below(world.record() - world.oldest_crash_point() + 1);
            acknowledged = if at >= world.record() {
                before + 1
            } else if at >= opened {
                before
            } else {
                acknowledged
            };
            world = world.crash_state(at, &mut prng);
        }
    }
}

/// A power cut while the labels of a new epoch are written makes nobody stale who was there.
#[test]
fn an_epoch_that_was_not_acknowledged_outdates_nobody() {
    let mut partly = 0;
    for seed in 0..150 {
        let mut prng = Prng::new(seed);
        let world = SimWorld::new(seed, 6, SIZE);
        drop(format(&world, 4, 2));
        world.mark_base();
        let there = [0, 1, 3, 4, 5];
        drop(open(&world, &there).unwrap());
        let at = world.oldest_crash_point() + prng.below(world.record() - world.oldest_crash_point() + 1);
        let mut after = world.crash_state(at, &mut prng);
        let epochs = |world: &SimWorld| {
            let scan = label_io::scan(&*engine(), &world.devices());
            scan.into_iter().map(|scan| scan.found.unwrap().pool.epoch.number).collect::<HashSet<_>>().len()
        };
        partly += usize::from(epochs(&after.fork()) > 1);
        let pool = open(&after, &there).unwrap();
        for member in pool.state().present() {
            assert_eq!(member.state, MemberState::Active, "seed {seed} at {at}: {}", member.name());
        }
        drop(pool);
        after = after.fork();
        let expected = [0, 1, 3, 4, 5].map(|_| MemberState::Active);
        let pool = open(&after, &[5, 4, 3, 2, 1, 0]).unwrap();
        let mut found = states(&pool);
        assert_eq!(found.remove(2), MemberState::Stale, "seed {seed}");
        assert_eq!(found, expected, "seed {seed}");
    }
    assert!(partly > 20, "only {partly} cuts fell into the writing of an epoch");
}

#[test]
fn a_member_that_was_away_is_stale_when_it_returns() {
    let world = SimWorld::new(6, 4, SIZE);
    drop(format(&world, 2, 2));
    let pool = open(&world, &[0, 1, 3]).unwrap();
    set_generation(&pool, 9).unwrap();
    drop(pool);
    // Its labels have higher sequence numbers one day, and are not believed.
    let pool = open(&world, &[2, 0, 1, 3]).unwrap();
    assert_eq!(generation(&pool), 9);
    assert_eq!(states(&pool)[2], MemberState::Stale);
    assert!(pool.take_notes().join("\n").contains("sim2 (device 2) was absent"));
    assert!(!pool.state().members[2].is_current() && pool.state().members[2].takes_data());
    drop(pool);
    // It stays stale until somebody has brought it up to date.
    let pool = open(&world, &[0, 1, 2, 3]).unwrap();
    assert_eq!(states(&pool)[2], MemberState::Stale);
    pool.mark_active(DeviceId(2)).unwrap();
    drop(pool);
    let pool = open(&world, &[0, 1, 2, 3]).unwrap();
    assert_eq!(states(&pool), [MemberState::Active; 4]);
}

#[test]
fn a_member_put_back_from_an_old_copy_is_stale() {
    let world = SimWorld::new(8, 4, SIZE);
    let pool = format(&world, 2, 2);
    let copy = world.snapshot(2);
    pool.new_epoch("a test").unwrap();
    drop(pool);
    world.restore(2, &copy);
    let pool = open(&world, &[2, 0, 1, 3]).unwrap();
    use MemberState::{Active, Stale};
    assert_eq!(states(&pool), [Active, Active, Stale, Active]);
}

/// Power cuts in one opening after the other may spare the same member's labels each time: how far its sequence number is behind
/// that of others in the same epoch proves nothing.
#[test]
fn a_member_that_power_cuts_have_left_behind_is_current() {
    let mut furthest = 0;
    for seed in 0..40 {
        let mut prng = Prng::new(seed);
        let mut world = SimWorld::new(seed, 3, SIZE);
        drop(format(&world, 2, 1));
        for round in 0..6 {
            world.mark_base();
            let pool = open(&world, &[0, 1, 2]).unwrap();
            assert_eq!(states(&pool), [MemberState::Active; 3], "seed {seed} round {round}");
            drop(pool);
            let at = world.oldest_crash_point() + prng.below(world.record() - world.oldest_crash_point() + 1);
            world = world.crash_state(at, &mut prng);
            let scans = label_io::scan(&*engine(), &world.devices());
            let sequences = scans.iter().filter_map(|scan| Some(scan.found.as_ref().ok()?.pool.sequence));
            let (least, most) = sequences.fold((u64::MAX, 0), |(least, most), at| (at.min(least), at.max(most)));
            furthest = most.saturating_sub(least).max(furthest);
        }
    }
    assert!(furthest > 1, "the test is about members further behind than one write");
}

#[test]
fn alternating_halves_of_a_mirror_are_found_to_be_a_split() {
    let world = SimWorld::new(7, 2, SIZE);
    drop(format(&world, 1, 1));
    set_generation(&open(&world, &[0]).unwrap(), 100).unwrap();
    set_generation(&open(&world, &[1]).unwrap(), 200).unwrap();
    let text = refusal(&world, &[0, 1]);
    assert!(text.contains("is split") && text.contains("[sim0]") && text.contains("[sim1]"), "{text}");
    // Either half still opens alone, with what was written there.
    assert_eq!(generation(&open(&world, &[0]).unwrap()), 100);
    assert_eq!(generation(&open(&world, &[1]).unwrap()), 200);
    assert!(refusal(&world, &[1, 0]).contains("is split"));
}

#[test]
fn one_half_of_a_mirror_that_was_used_alone_wins() {
    let world = SimWorld::new(8, 2, SIZE);
    drop(format(&world, 1, 1));
    for generation in 1..40 {
        set_generation(&open(&world, &[1]).unwrap(), generation).unwrap();
    }
    let pool = open(&world, &[0, 1]).unwrap();
    assert_eq!((generation(&pool), states(&pool)), (39, vec![MemberState::Stale, MemberState::Active]));
}

#[test]
fn two_and_two_split_in_halves_is_refused_naming_both_sides() {
    let world = SimWorld::new(9, 4, SIZE);
    drop(format(&world, 2, 2));
    set_generation(&open(&world, &[0, 1]).unwrap(), 1).unwrap();
    set_generation(&open(&world, &[2, 3]).unwrap(), 2).unwrap();
    for indices in [&[0, 1, 2, 3][..], &[1, 2], &[3, 0, 1]] {
        let text = refusal(&world, indices);
        assert!(text.contains("is split"), "{text}");
        for index in indices {
            assert!(text.contains(&format!("sim{index}")), "{text}");
        }
    }
}

#[test]
fn foreign_cloned_cut_and_newer_devices_are_refused_by_name() {
    let world = SimWorld::new(10, 2, SIZE);
    drop(format(&world, 1, 1));
    for _ in 0..3 {
        world.add_device(SIZE);
    }
    let other = FormatOptions { name: "other".to_owned(), ..FormatOptions::small(1, 1) };
    let foreign = [world.device(2), world.device(3)];
    let other = Pool::format(&foreign, &other, engine(), Box::new(Prng::new(99))).unwrap();

    let text = refusal(&world, &[0, 1, 3]);
    assert!(text.contains("sim3 belongs to pool other") && text.contains(&other.uuid().to_string()), "{text}");
    let only = OpenMode { read_only: true, pool: Some(Uuid([1; 16])), ..OpenMode::default() };
    assert!(Pool::open(&world.devices()[..1], &only, engine(), Box::new(Prng::new(1))).is_err());

    world.restore(4, &world.snapshot(1));
    let text = refusal(&world, &[0, 1, 4]);
    assert!(text.contains("sim1 and sim4") && text.contains("copy"), "{text}");

    // Random bytes, and nothing at all.
    world.corrupt(4, 0..SIZE);
    let text = refusal(&world, &[4]);
    assert!(text.contains("sim4 has no ArgosFS label"), "{text}");
    world.wipe(4);
    assert!(refusal(&world, &[4]).contains("sim4 has no ArgosFS label"));
    // Beside enough members it is a missing device, and is left alone.
    let pool = open(&world, &[0, 4]).unwrap();
    assert!(pool.take_notes().join("\n").contains("sim4 has no ArgosFS label"));
    assert_eq!(world.written_blocks(4), 0);
}

#[test]
fn a_cut_image_is_refused_and_a_grown_one_is_not() {
    let world = SimWorld::with_sizes(11, &[SIZE, SIZE, SIZE / 2, SIZE * 2]);
    drop(Pool::format(&world.devices()[..2], &FormatOptions::small(1, 1), engine(), Box::new(Prng::new(4))).unwrap());
    let mut content = vec![0; SIZE as usize];
    world.snapshot(1).read(0, &mut content);
    world.device(2).write_at(0, &[&content[..SIZE as usize / 2]]).unwrap();
    let text = refusal(&world, &[2]);
    assert!(text.contains("sim2 was cut short"), "{text}");
    world.device(3).write_at(0, &[&content]).unwrap();
    let pool = open(&world, &[0, 3]).unwrap();
    assert_eq!(states(&pool), [MemberState::Active; 2]);
    assert_eq!(pool.take_notes(), Vec::<String>::new());
    assert_eq!(pool.state().members[1].size, SIZE);
}

#[test]
fn newer_formats_ask_for_a_newer_argosfs() {
    let world = SimWorld::new(12, 2, SIZE);
    drop(format(&world, 1, 1));
    for copy in 0..4 {
        let range = slot_range(&world, 1, copy);
        let mut slot = vec![0; LABEL_SLOT];
        world.snapshot(1).read(range.start, &mut slot);
        slot[8] = 9;
        let len = 256 + u32::from_le_bytes(slot[12..16].try_into().unwrap()) as usize;
        slot[16..20].fill(0);
        let crc = crc32c::crc32c(&slot[..len]);
        slot[16..20].copy_from_slice(&crc.to_le_bytes());
        world.device(1).write_at(range.start, &[&slot]).unwrap();
    }
    let text = refusal(&world, &[0, 1]);
    assert!(text.contains("sim1") && text.contains("version 9") && text.contains("newer argosfs"), "{text}");
    let text =
        Pool::format(&world.devices(), &FormatOptions::small(1, 1), engine(), Box::new(Prng::new(1))).err().unwrap();
    assert!(text.to_string().contains("sim0 holds a device of pool tank"), "{text}");
}

#[test]
fn a_device_that_fails_its_label_write_is_dropped_before_anything_is_acknowledged() {
    for nth in 0..12 {
        for on in [On::Write, On::Flush] {
            let world = SimWorld::new(13, 3, SIZE);
            let pool = format(&world, 2, 1);
            world.fault(1, Fault::Fail { on, nth, sticky: false });
            set_generation(&pool, 5).unwrap();
            let hit = states(&pool)[1] == MemberState::Failed;
            assert_eq!(hit, nth < if on == On::Write { 4 } else { 2 }, "{on:?} {nth}");
            if !hit {
                continue;
            }
            // The others know by now: were this the end, the device would not be believed.
            let end = world.fork();
            let again = open(&end, &[0, 1, 2]).unwrap();
            assert_eq!((generation(&again), states(&again)[1]), (5, MemberState::Stale), "{on:?} {nth}");
            assert_eq!(pool.state().can_lose(), 0);
            assert!(pool.take_notes().join("").contains("sim1 was dropped"));
            set_generation(&pool, 6).unwrap();
            drop(pool);
            world.heal(1);
            let pool = open(&world, &[0, 1, 2]).unwrap();
            assert_eq!((generation(&pool), states(&pool)[1]), (6, MemberState::Stale), "{on:?} {nth}");
        }
    }
}

#[test]
fn with_too_few_members_left_nothing_is_written_any_more() {
    let world = SimWorld::new(14, 3, SIZE);
    let pool = format(&world, 2, 1);
    world.fault(0, Fault::Gone);
    world.fault(2, Fault::Gone);
    assert!(matches!(set_generation(&pool, 5), Err(Error::Poisoned(_))));
    world.heal(0);
    world.heal(2);
    let record = world.record();
    assert!(matches!(set_generation(&pool, 6), Err(Error::Poisoned(_))));
    assert!(matches!(pool.drop_members(&[DeviceId(1)], "test"), Err(Error::Poisoned(_))));
    assert!(pool.poisoned().unwrap().contains("at most 1"));
    assert_eq!(world.record(), record);
    // Reading goes on: no device was let go of.
    assert_eq!(pool.state().present().count(), 3);
}

#[test]
fn a_dropped_member_comes_back_stale_and_a_split_one_does_not() {
    let world = SimWorld::new(15, 3, SIZE);
    let pool = format(&world, 2, 1);
    pool.drop_members(&[DeviceId(1)], "too many errors").unwrap();
    assert_eq!(states(&pool)[1], MemberState::Failed);
    assert!(pool.device(DeviceId(1)).is_none());
    assert_eq!(pool.attach(world.device(1)).unwrap(), DeviceId(1));
    assert_eq!(states(&pool)[1], MemberState::Stale);
    assert!(pool.attach(world.device(1)).is_err(), "it is there already");
    pool.mark_active(DeviceId(1)).unwrap();
    drop(pool);

    // A mirror whose other half was written alone.
    let world = SimWorld::new(16, 2, SIZE);
    drop(format(&world, 1, 1));
    drop(open(&world, &[1]).unwrap());
    let pool = open(&world, &[0]).unwrap();
    let error = pool.attach(world.device(1)).unwrap_err().to_string();
    assert!(error.contains("sim1") && error.contains("split"), "{error}");
}

#[test]
fn members_are_replaced_and_removed() {
    let world = SimWorld::new(17, 3, SIZE);
    let pool = format(&world, 2, 1);
    drop(pool);
    world.add_device(2 * SIZE);
    let pool = open(&world, &[0, 1]).unwrap();
    let id = pool.replace_member(DeviceId(2), world.device(3), false).unwrap();
    assert_eq!(id, DeviceId(3));
    assert_eq!(pool.state().can_lose(), 0);
    pool.remove_member(DeviceId(2)).unwrap();
    assert_eq!(pool.state().can_lose(), 1);
    set_generation(&pool, 3).unwrap();
    drop(pool);
    // The old device is recognised, and nothing it says counts.
    let pool = open(&world, &[2, 0, 3, 1]).unwrap();
    assert_eq!((generation(&pool), states(&pool)), (3, vec![MemberState::Active; 3]));
    assert!(pool.take_notes().join("").contains("sim2 was removed from pool tank"));
    // Its number is not given out again.
    pool.remove_member(DeviceId(3)).unwrap();
    assert_eq!(pool.add_member(world.device(3), false).unwrap(), DeviceId(4));
    assert!(pool.add_member(world.device(0), true).is_err(), "it is in the pool");
    assert!(pool.add_member(world.device(2), false).unwrap_err().to_string().contains("--force"));
}

#[test]
fn format_does_not_overwrite_what_it_recognises() {
    let world = SimWorld::new(18, 2, SIZE);
    let mut block = vec![0; 4096];
    block[0x438] = 0x53;
    block[0x439] = 0xef;
    world.device(1).write_at(0, &[&block]).unwrap();
    let made = |force| {
        let options = FormatOptions { force, ..FormatOptions::small(1, 1) };
        Pool::format(&world.devices(), &options, engine(), Box::new(Prng::new(3)))
    };
    let text = made(false).err().unwrap().to_string();
    assert!(text.contains("sim1 holds an ext2, ext3 or ext4 filesystem") && text.contains("--force"), "{text}");
    drop(made(true).unwrap());
    let text = made(false).err().unwrap().to_string();
    assert!(text.contains("sim0 holds a device of pool tank"), "{text}");
    let one = Pool::format(&world.devices()[..1], &FormatOptions::small(1, 1), engine(), Box::new(Prng::new(3)));
    assert!(matches!(one, Err(Error::Usage(_))));
}

#[test]
fn devices_on_the_same_hardware_share_a_failure_domain_when_enough_others_are_left() {
    let world = SimWorld::new(19, 4, SIZE);
    world.set_domain(3, 1);
    let domains = |k, m| {
        let options = FormatOptions { force: true, ..FormatOptions::small(k, m) };
        let pool = Pool::format(&world.devices(), &options, engine(), Box::new(Prng::new(3))).unwrap();
        pool.state().members.iter().map(|member| member.failure_domain).collect::<Vec<_>>()
    };
    let shared = domains(2, 1);
    assert!(shared[0] == shared[3] && shared[0] != shared[1] && shared[1] != shared[2]);
    let mut alone = domains(2, 2);
    alone.dedup();
    assert_eq!(alone.len(), 4);
}

#[test]
fn a_replacement_on_the_same_hardware_is_independent_when_a_stripe_needs_it() {
    let world = SimWorld::new(20, 4, SIZE);
    (1..4).for_each(|device| world.set_domain(device, 0));
    let devices = world.devices();
    let options = FormatOptions { force: true, ..FormatOptions::small(1, 1) };
    drop(Pool::format(&devices[..2], &options, engine(), Box::new(Prng::new(3))).unwrap());
    // Nobody sees any more that two on the same hardware were taken for independent ones.
    let pool = Pool::open(&devices[..1], &OpenMode::default(), engine(), Box::new(Prng::new(4))).unwrap();
    let new = pool.replace_member(DeviceId(1), devices[2].clone(), true).unwrap();
    let domain = |id| pool.state().member(id).unwrap().failure_domain;
    assert_ne!(domain(DeviceId(0)), domain(new));
}

/// Makes all labels of a device say something else.
fn relabel(world: &SimWorld, device: usize, change: impl FnOnce(&mut Label)) {
    let mut slot = vec![0; LABEL_SLOT];
    world.snapshot(device).read(0, &mut slot);
    let mut label = Label::decode(&slot).unwrap();
    change(&mut label);
    let slot = label.encode().unwrap();
    for copy in 0..4 {
        world.device(device).write_at(slot_range(world, device, copy).start, &[&slot]).unwrap();
    }
}

/// What it says would go to all labels otherwise, and no label may name its own device as it is not.
#[test]
fn a_label_with_another_size_for_somebody_else_costs_no_member() {
    let world = SimWorld::new(22, 3, SIZE);
    drop(format(&world, 2, 1));
    relabel(&world, 2, |label| label.pool.members[1].size += 1 << 20);
    for _ in 0..2 {
        let pool = open(&world, &[0, 1, 2]).unwrap();
        assert_eq!(states(&pool), [MemberState::Active; 3]);
        assert!(pool.state().label.members.iter().all(|entry| entry.size == SIZE));
    }
}

/// Whoever wrote that it is being replaced may have known no other way to say so.
#[test]
fn a_member_that_goes_away_while_it_is_replaced_stays_so() {
    let world = SimWorld::new(24, 3, SIZE);
    drop(format(&world, 2, 1));
    for device in 0..3 {
        relabel(&world, device, |label| label.pool.members[1].state = MemberState::Replacing);
    }
    let pool = open(&world, &[0, 1, 2]).unwrap();
    assert!(pool.state().members[1].is_replaced() && pool.state().members[1].is_current());
    pool.drop_members(&[DeviceId(1)], "test").unwrap();
    drop(pool);
    let pool = open(&world, &[0, 2]).unwrap();
    assert_eq!(states(&pool), [MemberState::Active, MemberState::Failed, MemberState::Active]);
    assert!(pool.state().members[1].is_replaced());
    assert_eq!(pool.attach(world.device(1)).unwrap(), DeviceId(1));
    assert!(!pool.state().members[1].takes_data());
    pool.mark_active(DeviceId(1)).unwrap();
    assert_eq!(states(&pool)[1], MemberState::Replacing);
}

/// It is sound by what it says itself about a larger device.
#[test]
fn metadata_beyond_the_end_of_the_device_it_is_on_is_refused() {
    let world = SimWorld::new(23, 3, SIZE);
    drop(format(&world, 2, 1));
    let larger = GroupLayout::for_size(2 * SIZE).unwrap();
    relabel(&world, 2, |label| {
        (label.pool.members[1].size, label.pool.members[1].layout) = (2 * SIZE, larger);
        label.pool.meta.chunk_blocks = 64;
        label.pool.meta.chunks.push(ChunkRun { device: 1, chunk: 0, count: 1, block: larger.blocks });
        label.pool.sequence += 2;
    });
    for devices in [&[0, 1, 2][..], &[1, 2]] {
        let text = open(&world, devices).err().unwrap().to_string();
        assert!(text.contains("labels contradict each other: its metadata lies outside"), "{text}");
    }
    // Without the one it is about, nothing is known to be wrong; and without the one that says it.
    assert!(open_as(&world, &[0, 2], true, 1).is_ok());
    assert_eq!(
        states(&open(&world, &[0, 1]).unwrap()),
        [MemberState::Active, MemberState::Active, MemberState::Missing]
    );
}

/// Labels that are whole and say anything at all: opening the pool answers, one way or the other.
#[test]
fn hostile_labels_never_panic() {
    let (mut opened, mut refused) = (0, 0);
    for seed in 0..600 {
        let mut prng = Prng::new(seed);
        let world = SimWorld::new(seed, 3, SIZE);
        drop(format(&world, 2, 1));
        for device in 0..3 {
            if prng.chance(1, 3) {
                continue;
            }
            let mut slot = vec![0; LABEL_SLOT];
            world.snapshot(device).read(0, &mut slot);
            let len = 256 + u32::from_le_bytes(slot[12..16].try_into().unwrap()) as usize;
            for _ in 0..1 + prng.below(3) {
                let at = 48 + prng.below(len as u64 - 48) as usize;
                slot[at] = if prng.chance(1, 3) { 0xff } else { prng.next() as u8 };
            }
            slot[16..20].fill(0);
            let crc = crc32c::crc32c(&slot[..len]);
            slot[16..20].copy_from_slice(&crc.to_le_bytes());
            for copy in 0..4 {
                world.device(device).write_at(slot_range(&world, device, copy).start, &[&slot]).unwrap();
            }
        }
        for read_only in [true, false] {
            match open_as(&world, &[0, 1, 2], read_only, seed) {
                Ok(pool) => {
                    opened += 1;
                    if !read_only {
                        let _ = set_generation(&pool, 1);
                        let _ = pool.drop_members(&[DeviceId(1)], "test");
                        let _ = pool.attach(world.device(1));
                    }
                }
                Err(error) => {
                    refused += 1;
                    assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
                }
            }
        }
    }
    assert!(opened > 100 && refused > 100, "{opened} opened, {refused} refused");
}

#[test]
fn labels_are_whole_after_concurrent_changes() {
    let world = SimWorld::new(20, 3, SIZE);
    let pool = format(&world, 2, 1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    pool.update_labels(|label| label.meta.generation += 1).unwrap();
                }
            });
        }
    });
    assert_eq!(generation(&pool), 80);
    assert_eq!(pool.state().label.meta, MetaRoot { generation: 80, ..MetaRoot::default() });
    for device in 0..3 {
        for copy in 0..4 {
            let mut slot = vec![0; LABEL_SLOT];
            world.snapshot(device).read(slot_range(&world, device, copy).start, &mut slot);
            assert_eq!(Label::decode(&slot).unwrap().pool, pool.state().label);
        }
    }
}
