//! Content on whole pools of simulated devices: remounts, power cuts, the last byte of space.

use std::ops::Bound::Unbounded;
use std::sync::Arc;

use super::content_model::{Mirror, seeds, step};
use super::*;
use crate::base::file::{FallocateMode, RenameMode, SetAttr};
use crate::device::sim::SimWorld;
use crate::format::rows::StripeRow;
use crate::format::table::Stripes;
use crate::store::open_tests::{format, open};

const SIZE: u64 = 64 << 20;

fn make(world: &SimWorld, k: u8, m: u8) -> Fs {
    let store = format(world, k, m).unwrap();
    store.transact(|tx, _| Fs::format(tx, &mut Prng::new(1), RootOwner::default())).unwrap();
    store.durable_point().unwrap();
    Fs::open(Arc::new(store), Options::default()).unwrap()
}

fn mount(world: &SimWorld, devices: &[usize], seed: u64) -> Fs {
    Fs::open(Arc::new(open(world, devices, seed).unwrap()), Options::default()).unwrap()
}

fn unmount(fs: Fs) {
    fs.syncfs().unwrap();
    let store = fs.store().clone();
    drop(fs);
    Arc::into_inner(store).expect("nobody else holds the store").close().unwrap();
}

fn make_files(fs: &Fs) -> Vec<Mirror> {
    let make = |name: &[u8]| fs.mknod(&USER, ROOT, name, 0o100_644, 0).unwrap().attr.ino;
    let names = [b"a", b"b", b"c"];
    names.iter().map(|name| Mirror { ino: make(*name), bytes: Vec::new(), versions: vec![Vec::new()] }).collect()
}

fn read_all(fs: &Fs, ino: Ino) -> Vec<u8> {
    let mut out = vec![0xEE; fs.getattr(ino).unwrap().size as usize];
    assert_eq!(fs.read(ino, 0, &mut out).unwrap(), out.len());
    out
}

#[test]
fn behaves_as_vectors_of_bytes_on_devices() {
    for seed in 0..seeds(8) {
        let mut prng = Prng::new(seed);
        let world = SimWorld::new(seed, 4, SIZE);
        let mut fs = make(&world, 2, 2);
        fs.writeback.set_stripe([300, 1000, 128 << 10][prng.below(3) as usize]);
        let mut files = make_files(&fs);
        for round in 0..3u8 {
            for fill in 0..50 {
                step(&fs, &mut files, &mut prng, round * 80 + fill + 1);
                if prng.chance(1, 20) {
                    while fs.store().tidy_step(true).unwrap() {}
                }
            }
            unmount(fs);
            let lost = [prng.below(4) as usize, prng.below(4) as usize];
            let left: Vec<usize> = (0..4).filter(|at| !lost.contains(at)).collect();
            let degraded = mount(&world.fork(), &left, seed);
            fs = mount(&world, &[0, 1, 2, 3], seed + 100);
            for file in &files {
                assert!(read_all(&fs, file.ino) == file.bytes, "seed {seed} file {}", file.ino);
                assert!(read_all(&degraded, file.ino) == file.bytes, "seed {seed} without {lost:?}");
            }
        }
    }
}

/// Every version of each file with the event after which it was acknowledged, and from which version on each fsync
/// keeps it.
#[derive(Default)]
struct History {
    versions: Vec<(u64, Vec<u8>)>,
    durable: Vec<(u64, usize)>,
}

#[test]
fn a_power_cut_leaves_acknowledged_versions_of_every_byte() {
    for seed in 0..seeds(6) {
        let mut prng = Prng::new(seed);
        let world = SimWorld::new(seed, 4, SIZE);
        let mut fs = make(&world, 2, 2);
        fs.writeback.set_stripe(1000);
        let mut files = make_files(&fs);
        fs.syncfs().unwrap();
        let start = world.record();
        let first = || History { versions: vec![(start, Vec::new())], durable: vec![(start, 0)] };
        let mut histories: Vec<History> = files.iter().map(|_| first()).collect();
        for fill in 0..120 {
            step(&fs, &mut files, &mut prng, fill + 1);
            for (file, history) in files.iter_mut().zip(&mut histories) {
                let event = world.record();
                // One version means that nothing older can come back.
                let settled = file.versions.len() == 1 || (file.versions.len() == 2 && file.versions[0] == file.bytes);
                if history.versions.last().is_none_or(|(_, last)| *last != file.bytes) {
                    history.versions.push((event, file.bytes.clone()));
                }
                if settled {
                    history.durable.push((event, history.versions.len() - 1));
                }
            }
        }
        let end = world.record();
        drop(fs);
        for _ in 0..20 {
            let at = start + prng.below(end - start + 1);
            let crashed = world.crash_state(at, &mut prng);
            let lost = prng.below(5) as usize;
            let left: Vec<usize> = (0..4).filter(|device| *device != lost).collect();
            let fs = mount(&crashed, &left, seed + 7);
            for (file, history) in files.iter().zip(&histories) {
                let (_, from) = history.durable.iter().rev().find(|(event, _)| *event <= at).unwrap();
                // What was being acknowledged at the moment of the cut may be there too.
                let until = history.versions.iter().position(|(event, _)| *event > at).map_or(usize::MAX, |at| at + 1);
                let versions = &history.versions[*from..until.min(history.versions.len())];
                let versions = versions.iter().map(|(_, bytes)| bytes.clone()).collect();
                let survivor = Mirror { ino: file.ino, bytes: Vec::new(), versions };
                survivor.check_survivor(&read_all(&fs, file.ino), &format!("seed {seed} event {at} file {}", file.ino));
            }
        }
    }
}

#[test]
fn a_power_cut_around_a_rename_over_a_file_leaves_one_of_the_two() {
    for seed in 0..seeds(4) {
        let mut prng = Prng::new(seed);
        let world = SimWorld::new(seed, 4, SIZE);
        let fs = make(&world, 2, 2);
        let contents: Vec<Vec<u8>> = (1..6u8).map(|at| vec![at; 500 + 30_000 * usize::from(at % 3)]).collect();
        let write = |name: &[u8], bytes: &[u8]| {
            let ino = fs.mknod(&USER, ROOT, name, 0o100_644, 0).unwrap().attr.ino;
            fs.write(&USER, ino, 0, bytes, false).unwrap();
        };
        write(b"f", &contents[0]);
        fs.syncfs().unwrap();
        let start = world.record();
        for bytes in &contents[1..] {
            write(b"tmp", bytes);
            fs.rename(&USER, ROOT, b"tmp", ROOT, b"f", RenameMode::Replace).unwrap();
            if prng.chance(1, 2) {
                fs.store().durable_point().unwrap();
            }
        }
        fs.syncfs().unwrap();
        let end = world.record();
        for _ in 0..25 {
            let at = start + prng.below(end - start + 1);
            let fs = mount(&world.crash_state(at, &mut prng), &[0, 1, 2, 3], seed + 7);
            let ino = fs.lookup(&USER, ROOT, b"f").unwrap().attr.ino;
            let found = read_all(&fs, ino);
            assert!(contents.contains(&found), "seed {seed} event {at}: {} bytes, neither old nor new", found.len());
        }
    }
}

#[test]
fn a_pool_filled_to_the_last_byte_keeps_all_it_took() {
    let world = SimWorld::new(1, 4, 32 << 20);
    let mut fs = make(&world, 2, 2);
    let first = fs.store().space().available;
    let mut prng = Prng::new(5);
    for round in 0..3u64 {
        fs.reclaim_all().unwrap();
        fs.store().durable_point().unwrap();
        let promised = fs.store().space().available;
        // The metadata grew a little.
        assert!(promised * 100 >= first * 94, "{promised} of {first} came back");
        let names = [b"a", b"b", b"c", b"d"];
        let inos: Vec<Ino> =
            names.iter().map(|name| fs.mknod(&USER, ROOT, *name, 0o100_644, 0).unwrap().attr.ino).collect();
        let mut sizes = [0u64; 4];
        let mut refused = 0;
        while refused < 6 {
            let at = prng.below(4) as usize;
            let most = if refused > 2 { 5_000 } else { 300_000 };
            let data = vec![at as u8 + 1 + round as u8; 1 + prng.below(most) as usize];
            match fs.write(&USER, inos[at], sizes[at], &data, false) {
                Ok(count) => sizes[at] += count as u64,
                Err(Error::NoSpace) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            if prng.chance(1, 12) {
                fs.fsync(inos[prng.below(4) as usize], false).unwrap();
            }
        }
        fs.syncfs().unwrap();
        let total: u64 = sizes.iter().sum();
        // What was emptied is in pieces: more of it goes to headers of small shards.
        let least = if round == 0 { 97 } else { 94 };
        assert!(total * 100 >= promised * least, "round {round}: {total} of {promised} bytes fitted");
        if round == 1 {
            unmount(fs);
            fs = mount(&world, &[0, 1, 2, 3], 9);
        }
        for (at, ino) in inos.iter().enumerate() {
            assert!(read_all(&fs, *ino) == vec![at as u8 + 1 + round as u8; sizes[at] as usize]);
        }
        // A full pool can be emptied, one way or the other.
        for (at, name) in names.iter().enumerate() {
            if at % 2 == 0 {
                let empty = SetAttr { size: Some(0), ..SetAttr::default() };
                fs.setattr(&USER, inos[at], &empty).unwrap();
            }
            fs.unlink(&USER, ROOT, *name).unwrap();
            fs.forget(inos[at], 1);
        }
    }
}

/// Names need metadata, and metadata needs whole groups of blocks: before somebody is told that there are none, what was
/// removed just now is given back.
#[test]
fn what_was_removed_makes_room_for_names_at_once() {
    let world = SimWorld::new(61, 3, SIZE);
    let fs = make(&world, 2, 1);
    let mut big = Vec::new();
    'full: for at in 0u32.. {
        let Ok(entry) = fs.mknod(&USER, ROOT, format!("big{at}").as_bytes(), 0o100_644, 0) else { break };
        big.push(at);
        for piece in 0..8 {
            if fs.write(&USER, entry.attr.ino, piece << 20, &vec![at as u8; 1 << 20], false).is_err() {
                break 'full;
            }
        }
        fs.forget(entry.attr.ino, 1);
    }
    fs.syncfs().unwrap();
    let mut names = 0..;
    let mut name = || -> Result<()> {
        let at: u32 = names.next().unwrap();
        let name = [format!("{at}-").into_bytes(), vec![b'n'; 200]].concat();
        fs.mknod(&USER, ROOT, &name, 0o100_644, 0).map(drop)
    };
    for _ in 0..100_000 {
        if name().is_err() {
            break;
        }
    }
    refused!(name(), NoSpace);
    for at in &big {
        fs.unlink(&USER, ROOT, format!("big{at}").as_bytes()).unwrap();
    }
    name().unwrap();
}

/// Not only in a store that counts bytes: what is promised to a file nobody else gets, and it is there when it is written.
#[test]
fn a_promise_holds_when_the_devices_are_full() {
    let world = SimWorld::new(62, 4, 32 << 20);
    let fs = make(&world, 2, 2);
    let file = |name: &[u8]| fs.mknod(&USER, ROOT, name, 0o100_644, 0).unwrap().attr.ino;
    let (kept, other) = (file(b"kept"), file(b"other"));
    let before = fs.store().space().available;
    let promise = before / 3;
    let keep = FallocateMode::Allocate { keep_size: true };
    fs.fallocate(&USER, kept, 0, promise, keep).unwrap();
    assert!(fs.store().space().available + promise <= before);
    refused!(fs.fallocate(&USER, other, 0, before, keep), NoSpace);
    // Remounts remember it, and what is given up is free again.
    fs.fallocate(&USER, kept, 0, promise / 2, FallocateMode::PunchHole).unwrap();
    fs.fallocate(&USER, kept, 0, promise / 2, keep).unwrap();
    unmount(fs);
    let fs = mount(&world, &[0, 1, 2, 3], 9);
    let mut offset = 0;
    while let Ok(done) = fs.write(&USER, other, offset, &vec![2; 300_000], false) {
        offset += done as u64;
    }
    fs.syncfs().unwrap();
    assert!(offset < before - promise, "{offset} of {before} bytes, {promise} of them promised");
    let mut at = 0;
    while at < promise {
        let length = (1 << 20).min(promise - at) as usize;
        at += fs.write(&USER, kept, at, &vec![1; length], false).unwrap() as u64;
    }
    fs.syncfs().unwrap();
    assert!(read_all(&fs, kept) == vec![1; promise as usize]);
    let counted = fs.store().view(|view| view.counter(Counter::Reserved)).unwrap();
    assert_eq!(counted, 0);
}

#[test]
fn what_is_lost_is_given_up_but_not_what_was_restored() {
    let world = SimWorld::new(3, 3, SIZE);
    let fs = make(&world, 2, 1);
    let make = |name: &[u8]| fs.mknod(&USER, ROOT, name, 0o100_644, 0).unwrap().attr.ino;
    let (ino, other) = (make(b"file"), make(b"other"));
    let content: Vec<u8> = (0..400_000u32).map(|at| (at % 251) as u8 + 1).collect();
    fs.write(&USER, ino, 0, &content, false).unwrap();
    fs.syncfs().unwrap();
    assert_eq!(fs.lost(ino).unwrap(), 0);
    assert_eq!(fs.give_up_lost(&ADMIN, ino).unwrap(), 0);
    // Of each stripe the first block of two shards out of three.
    let rows: Vec<StripeRow> = fs
        .store()
        .view(|view| {
            let mut rows = Vec::new();
            view.scan::<Stripes>((Unbounded, Unbounded), |_, row| {
                rows.push(row);
                Ok(Visit::Continue(()))
            })?;
            Ok(rows)
        })
        .unwrap();
    for placement in rows.iter().flat_map(|row| &row.placements[..2]) {
        let at = (placement.block.0 + 1) * 4096;
        world.corrupt(usize::from(placement.device.0), at..at + 4096);
    }
    assert_eq!(fs.store().scrub(&mut |_| true).unwrap().lost, rows.len() as u64);
    let damage = fs.store().damage().unwrap();
    let first = damage[0].lost.values().next().unwrap()[0].start;
    let lost = fs.lost(ino).unwrap();
    assert!(lost > 4096);

    fs.write(&USER, ino, first, &content[first as usize..][..4096], false).unwrap();
    assert_eq!(fs.give_up_lost(&ADMIN, ino).unwrap(), lost - 4096);
    let kept = read_all(&fs, ino);
    assert_eq!(kept.iter().filter(|byte| **byte == 0).count() as u64, lost - 4096);
    assert!(kept[first as usize..][..4096] == content[first as usize..][..4096]);
    assert!(kept.iter().zip(&content).all(|(kept, byte)| kept == byte || *kept == 0));
    assert_eq!(fs.lost(ino).unwrap(), 0);

    // Somebody put another file in the place of the one that is to go.
    fs.rename(&USER, ROOT, b"other", ROOT, b"file", RenameMode::Replace).unwrap();
    assert!(matches!(fs.unlink_inode(&ADMIN, ROOT, b"file", ino), Err(Error::NotFound)));
    assert_eq!(fs.lookup(&ADMIN, ROOT, b"file").unwrap().attr.ino, other);
    fs.unlink_inode(&ADMIN, ROOT, b"file", other).unwrap();
    assert!(matches!(fs.lookup(&ADMIN, ROOT, b"file"), Err(Error::NotFound)));
}
