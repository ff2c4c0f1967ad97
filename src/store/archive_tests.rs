//! Archives on whole pools of simulated devices.

use super::Store;
use super::commit::{ContentWrite, Inline, SharedBytes};
use super::extents::{self, Ledger};
use super::lock;
use super::open_tests::{format, open};
use crate::base::{DeviceId, Error, Ino, Prng, Result, StripeId};
use crate::device::sim::{Fault, On, SimWorld};
use crate::format::rows::Placement;
use crate::format::table::Stripes;
use crate::meta::{Reader, Tx};

const SIZE: u64 = 32 << 20;
const ALL: [usize; 6] = [0, 1, 2, 3, 4, 5];

fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut prng = Prng::new(seed);
    (0..length.div_ceil(8)).flat_map(|_| prng.next().to_le_bytes()).take(length).collect()
}

fn put(store: &Store, content: &[u8]) -> Result<()> {
    let mut writer = store.archive_writer()?;
    for piece in content.chunks(100_000) {
        writer.write(piece)?;
    }
    writer.finish(store.meta().committed(), 7)
}

/// The content of the archives, newest first.
fn contents(store: &Store) -> Vec<Vec<u8>> {
    let archives = store.archives();
    let read = |archive| {
        let mut out = Vec::new();
        store.read_archive(archive, &mut |bytes| {
            out.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(out)
    };
    archives.iter().map(read).collect::<Result<_>>().unwrap()
}

fn assert_whole(store: &Store) {
    store.verify_archives(&mut |verified| {
        let (id, verified) = verified.unwrap();
        assert!(verified.bad.is_empty(), "stripe {id}: {verified:?}");
    });
}

fn fill(store: &Store, file: u64) -> Vec<Vec<u8>> {
    let mut written = Vec::new();
    loop {
        let content = bytes(file + written.len() as u64, 1 << 20);
        let write =
            ContentWrite { ino: Ino(file + written.len() as u64), offset: 0, bytes: SharedBytes::new(content.clone()) };
        match store.commit(&[write], Inline::Small, |_, _| Ok(())) {
            Ok(()) => written.push(content),
            Err(Error::NoSpace) => return written,
            Err(other) => panic!("{other}"),
        }
        store.durable_point().unwrap();
    }
}

#[test]
fn p8_the_two_newest_archives_are_read_from_any_devices_that_suffice() {
    let world = SimWorld::new(1, 6, SIZE);
    let store = format(&world, 4, 2).unwrap();
    let archives = [bytes(1, 3_000_000), bytes(2, 10), bytes(3, 700_001)];
    for content in &archives {
        put(&store, content).unwrap();
    }
    let expected = [archives[2].clone(), archives[1].clone()];
    assert!(contents(&store) == expected);
    // The blocks of the one that is named no more are free, those of the others are not.
    let files = fill(&store, 100);
    assert!(files.len() > 90, "{} MiB fitted", files.len());
    assert!(contents(&store) == expected);
    store.close().unwrap();
    for lost in [[0, 1], [2, 5], [3, 4]] {
        let world = world.fork();
        let left: Vec<usize> = ALL.into_iter().filter(|at| !lost.contains(at)).collect();
        let store = open(&world, &left, 9).unwrap();
        assert!(contents(&store) == expected, "without {lost:?}");
    }
    let store = open(&world, &ALL, 10).unwrap();
    assert!(contents(&store) == expected);
    assert!(fill(&store, 10_000).is_empty(), "the blocks of archives were given away");
    for (at, content) in files.iter().enumerate() {
        let mut out = vec![0; content.len()];
        store.read(Ino(100 + at as u64), 0, &mut out).unwrap();
        assert!(out == *content);
    }
    // A full pool keeps what it has.
    assert!(matches!(put(&store, &archives[0]), Err(Error::NoSpace)));
    assert!(contents(&store) == expected);
}

#[test]
fn an_archive_given_up_half_way_leaves_nothing_behind() {
    let world = SimWorld::new(2, 6, SIZE);
    let store = format(&world, 4, 2).unwrap();
    let free = store.space().free;
    let mut writer = store.archive_writer().unwrap();
    writer.write(&bytes(5, 2_000_000)).unwrap();
    assert!(store.space().free < free);
    drop(writer);
    assert_eq!(store.space().free, free);
    assert!(store.archives().is_empty());
}

#[test]
fn a_long_archive_has_its_list_of_stripes_outside_the_label() {
    let world = SimWorld::new(3, 6, SIZE);
    let store = format(&world, 4, 2).unwrap();
    // 256 KiB to a stripe.
    let long = bytes(1, 54 << 20);
    put(&store, &long).unwrap();
    put(&store, &[4; 40]).unwrap();
    assert_eq!(store.archives().iter().map(|archive| archive.indirect).collect::<Vec<_>>(), [false, true]);
    store.close().unwrap();
    let store = open(&world, &[1, 2, 3, 4, 5], 4).unwrap();
    assert!(contents(&store) == [vec![4; 40], long.clone()]);
    let new = world.add_device(SIZE);
    store.replace(DeviceId(0), world.device(new), false, &mut |_| true).unwrap();
    assert!(store.archive_runs().iter().all(|run| run.device != DeviceId(0)));
    assert_whole(&store);
    store.close().unwrap();
    let store = open(&world, &[1, 2, 3, 4, 5, new], 5).unwrap();
    assert_whole(&store);
    world.corrupt(2, 2 << 20..20 << 20);
    store.scrub(&mut |_| true).unwrap();
    assert_whole(&store);
    assert!(contents(&store) == [vec![4; 40], long]);
    let before = store.space().free;
    put(&store, &[5; 40]).unwrap();
    assert!(store.space().free > before + (50 << 20), "what is named no more was not given back");
}

#[test]
fn archives_are_mended_with_everything_else() {
    let world = SimWorld::new(4, 6, SIZE);
    let store = format(&world, 4, 2).unwrap();
    let content = bytes(1, 1_500_000);
    put(&store, &content).unwrap();
    store.durable_point().unwrap();
    for device in [0, 4] {
        world.corrupt(device, 1 << 20..24 << 20);
    }
    assert!(contents(&store) == [content.clone()]);
    store.scrub(&mut |_| true).unwrap();
    assert_whole(&store);

    // A device that takes another's place has its shards before the other one goes.
    let new = world.add_device(SIZE);
    store.replace(DeviceId(1), world.device(new), false, &mut |_| true).unwrap();
    assert_whole(&store);
    assert!(store.archive_runs().iter().all(|run| run.device != DeviceId(1)));

    // One that is lost is rebuilt on a seventh.
    let spare = world.add_device(SIZE);
    world.fault(5, Fault::Gone);
    store
        .commit(
            &[ContentWrite { ino: Ino(9), offset: 0, bytes: SharedBytes::new(bytes(8, 300_000)) }],
            Inline::Small,
            |_, _| Ok(()),
        )
        .unwrap();
    store.durable_point().unwrap();
    store.replace(DeviceId(5), world.device(spare), false, &mut |_| true).unwrap();
    assert_whole(&store);
    assert!(contents(&store) == [content.clone()]);
    store.close().unwrap();
    let store = open(&world, &[0, 2, 3, 4, new, spare], 6).unwrap();
    assert_whole(&store);
    assert!(contents(&store) == [content]);
}

#[test]
fn an_archive_beyond_repair_is_counted_until_others_follow() {
    let world = SimWorld::new(5, 6, SIZE);
    let store = format(&world, 4, 2).unwrap();
    put(&store, &bytes(1, 400_000)).unwrap();
    let archive = store.archives().remove(0);
    for place in archive.stripes[0].placements.iter().take(3) {
        let at = place.block * 4096;
        world.corrupt(usize::from(place.device), at + 4096..at + 8192);
    }
    let read = store.read_archive(&archive, &mut |_| Ok(()));
    assert!(matches!(read, Err(Error::Corrupt(_))), "{read:?}");
    assert_eq!(store.scrub(&mut |_| true).unwrap().lost, 1);
    // It does not keep a device that is to be replaced.
    let new = world.add_device(SIZE);
    store.replace(DeviceId(0), world.device(new), false, &mut |_| true).unwrap();
    for seed in [2, 3] {
        put(&store, &bytes(seed, 1_000)).unwrap();
    }
    assert!(contents(&store) == [bytes(3, 1_000), bytes(2, 1_000)]);
    assert_eq!(store.scrub(&mut |_| true).unwrap().lost, 0);
}

#[test]
fn what_archives_have_on_a_device_stays_theirs_when_it_comes_back() {
    let world = SimWorld::new(6, 6, SIZE);
    let store = format(&world, 4, 2).unwrap();
    let content = bytes(1, 2_000_000);
    put(&store, &content).unwrap();
    store.close().unwrap();
    let store = open(&world, &[1, 2, 3, 4, 5], 2).unwrap();
    store.take_back(world.device(0)).unwrap();
    assert!(fill(&store, 100).len() > 90);
    assert_whole(&store);
    assert!(contents(&store) == [content]);
}

#[test]
fn an_archive_whose_flush_fails_names_no_shard_in_doubt() {
    let world = SimWorld::new(7, 6, SIZE);
    let store = format(&world, 4, 2).unwrap();
    world.fault(4, Fault::Fail { on: On::Flush, nth: 0, sticky: true });
    let content = bytes(1, 600_000);
    put(&store, &content).unwrap();
    assert!(store.archive_runs().iter().all(|run| run.device != DeviceId(4)));
    assert!(contents(&store) == [content]);
}

/// What is being written while an archive is made is not in it, and must be looked for in a recovery.
#[test]
fn stripes_of_unfinished_commits_count_as_newer() {
    let world = SimWorld::new(9, 3, SIZE);
    let store = format(&world, 2, 1).unwrap();
    let devices = store.devices.clone().unwrap();
    let write = |ino| {
        let write = ContentWrite { ino: Ino(ino), offset: 0, bytes: SharedBytes::new(bytes(ino, 100_000)) };
        store.commit(&[write], Inline::Small, |_, _| Ok(())).unwrap();
    };
    write(2);
    let before = store.oldest_unfinished();
    let window = devices.enter_write();
    write(3);
    assert_eq!(store.oldest_unfinished(), before);
    drop(window);
    let after = store.oldest_unfinished();
    assert!(after > before);
    drop(devices);
    store.close().unwrap();
    // Numbers that were reserved and not used are passed over, and none comes twice.
    assert!(open(&world, &[0, 1, 2], 2).unwrap().oldest_unfinished() >= after);
}

/// An archive is found by the headers of its shards, so they are mended even where the payloads behind them are whole.
#[test]
fn headers_of_archives_are_mended() {
    let world = SimWorld::new(10, 3, SIZE);
    let store = format(&world, 2, 1).unwrap();
    let archived = bytes(1, 100_000);
    put(&store, &archived).unwrap();
    let stripe = store.archives()[0].stripes[0].clone();
    for round in 0..3 {
        // All but one of them.
        for (at, place) in stripe.placements.iter().enumerate().filter(|(at, _)| *at != round) {
            let header = place.block * 4096;
            world.flip_bits(usize::from(place.device), header..header + 4096, 3 + at);
        }
        let progress = store.scrub(&mut |_| true).unwrap();
        assert_eq!((progress.repaired.rewritten, progress.lost), (2, 0), "{progress:?}");
    }
    assert!(contents(&store) == [archived]);
}

/// With all headers of a stripe gone, what they said of files is made again from the rows.
#[test]
fn headers_of_stripes_are_mended() {
    let world = SimWorld::new(11, 3, SIZE);
    let store = format(&world, 2, 1).unwrap();
    let write = ContentWrite { ino: Ino(2), offset: 0, bytes: SharedBytes::new(bytes(2, 100_000)) };
    store.commit(&[write], Inline::Small, |_, _| Ok(())).unwrap();
    let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
    let mut stripes = Vec::new();
    let note = |id, row: crate::format::rows::StripeRow| {
        stripes.push((id, row));
        Ok(crate::meta::Visit::Continue(()))
    };
    store.view(|view| crate::meta::Reader::scan::<crate::format::table::Stripes>(view, all, note)).unwrap();
    let count = stripes.iter().map(|(_, row)| row.placements.len() as u32).sum::<u32>();
    for place in stripes.iter().flat_map(|(_, row)| &row.placements) {
        let header = place.block.0 * 4096;
        world.zero(usize::from(place.device.0), header..header + 4096);
    }
    let progress = store.scrub(&mut |_| true).unwrap();
    assert_eq!((progress.repaired.rewritten, progress.lost), (count, 0), "{progress:?}");
    assert_eq!(store.scrub(&mut |_| true).unwrap().repaired.rewritten, 0);
    for (id, row) in stripes {
        assert_eq!(store.wrong_headers(id).unwrap(), Some((row, vec![])));
    }
}

/// A new stripe of which a shard on a device without metadata has no header any more, and that shard.
fn headless(world: &SimWorld, store: &Store) -> (StripeId, Placement) {
    let write = ContentWrite { ino: Ino(2), offset: 0, bytes: SharedBytes::new(bytes(2, 100_000)) };
    store.commit(&[write], Inline::Small, |_, _| Ok(())).unwrap();
    store.durable_point().unwrap();
    let id = store.stripes_with(None, 1, |_| true).unwrap().0[0];
    let row = store.view(|view| view.get::<Stripes>(&id)).unwrap().unwrap();
    let replicas = store.log.as_ref().unwrap().volume.stats().replicas;
    let place = *row.placements.iter().find(|place| !replicas.contains(&place.device)).unwrap();
    world.zero(usize::from(place.device.0), place.block.byte_offset()..(place.block.0 + 1) * 4096);
    (id, place)
}

/// Nor does it keep the stripes behind it from being looked after.
#[test]
fn a_shard_whose_header_cannot_be_written_is_moved() {
    let world = SimWorld::new(12, 4, SIZE);
    let store = format(&world, 2, 1).unwrap();
    let (id, place) = headless(&world, &store);
    let device = usize::from(place.device.0);
    world.fault(device, Fault::Fail { on: On::Write, nth: 0, sticky: true });
    let progress = store.scrub(&mut |_| true).unwrap();
    assert_eq!((progress.repaired.rebuilt, progress.repaired.missing, progress.lost), (1, 0, 0), "{progress:?}");
    let row = store.view(|view| view.get::<Stripes>(&id)).unwrap().unwrap();
    assert!(!row.placements.contains(&place), "{row:?}");
    assert_eq!(store.wrong_headers(id).unwrap(), Some((row, vec![])));
}

#[test]
fn blocks_are_not_given_away_while_a_header_is_written_there() {
    let world = SimWorld::new(13, 4, SIZE);
    let store = format(&world, 2, 1).unwrap();
    let (id, place) = headless(&world, &store);
    let device = usize::from(place.device.0);
    let deferred = || lock(&store.devices.as_ref().unwrap().allocator).deferred_blocks(place.device);
    world.fault(device, Fault::Hang { on: On::Write });
    std::thread::scope(|scope| {
        let mending = scope.spawn(|| store.mend_headers(id).unwrap());
        world.wait_for_hanging(device, 1);
        let all = |tx: &mut Tx<'_>, ledger: &mut Ledger| extents::remove(tx, Ino(2), 0..u64::MAX, usize::MAX, ledger);
        store.transact(all).unwrap();
        store.durable_point().unwrap();
        let kept = deferred();
        world.heal(device);
        assert_eq!(mending.join().unwrap().rewritten, 1);
        assert!(kept > 0);
    });
    store.durable_point().unwrap();
    assert_eq!(deferred(), 0);
}
