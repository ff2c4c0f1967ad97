//! Content: readers, writers, truncates and commits at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::content::rig_of;
use super::*;
use crate::base::file::{FallocateMode, SetAttr};
use crate::fs::background::Background;

const CELL: usize = 512;
const CELLS: u64 = 64;

/// Runs `bodies` at once on a filesystem with its threads, then stops everything and hands it back.
fn race(mut rig: Rig, bodies: Vec<Box<dyn FnOnce(&Fs, &AtomicBool) + Send>>) -> Rig {
    rig.fs.writeback.set_stripe(4096);
    let Rig { clock, fs } = rig;
    let fs = Arc::new(fs);
    let background = Background::start(fs.clone(), 2, Duration::from_millis(3)).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = bodies
            .into_iter()
            .map(|body| {
                let (fs, over) = (&fs, &over);
                scope.spawn(move || body(fs, over))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(700));
        over.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().unwrap();
        }
    });
    background.stop().unwrap();
    Rig { clock, fs: Arc::into_inner(fs).expect("the threads are gone") }
}

#[test]
fn readers_see_each_cell_grow_and_never_torn_or_lost() {
    let rig = Rig::new();
    let ino = rig.file(ROOT, b"f").attr.ino;
    for cell in 0..CELLS {
        rig.put(ino, cell * CELL as u64, &[0; CELL]);
    }
    // The version each cell has at least.
    let written: Arc<Vec<AtomicU64>> = Arc::new((0..CELLS).map(|_| AtomicU64::new(0)).collect());
    let mut bodies: Vec<Box<dyn FnOnce(&Fs, &AtomicBool) + Send>> = Vec::new();
    for writer in 0..2u64 {
        let (known, written) = (written.clone(), written.clone());
        bodies.push(Box::new(move |fs, over| {
            let mut prng = Prng::new(writer);
            while !over.load(Ordering::Relaxed) {
                let cell = prng.below(CELLS / 2) * 2 + writer;
                let version = written[cell as usize].load(Ordering::Relaxed) + 1;
                let data: Vec<u8> = version.to_le_bytes().repeat(CELL / 8);
                fs.write(&USER, ino, cell * CELL as u64, &data, false).unwrap();
                written[cell as usize].store(version, Ordering::Release);
            }
        }));
        bodies.push(Box::new(move |fs, over| {
            let mut prng = Prng::new(writer + 10);
            while !over.load(Ordering::Relaxed) {
                let first = prng.below(CELLS);
                let count = 1 + prng.below(CELLS - first) as usize;
                let least: Vec<u64> = known.iter().map(|version| version.load(Ordering::Acquire)).collect();
                let mut out = vec![0xEE; count * CELL];
                assert_eq!(fs.read(ino, first * CELL as u64, &mut out).unwrap(), out.len());
                for (at, cell) in out.chunks(CELL).enumerate() {
                    let least = least[first as usize + at];
                    for version in cell.chunks(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())) {
                        assert!(
                            (least..least + 1000).contains(&version),
                            "{version} was read where {least} was written"
                        );
                    }
                }
            }
        }));
    }
    bodies.push(Box::new(move |fs, over| {
        while !over.load(Ordering::Relaxed) {
            fs.fsync(ino, false).unwrap();
        }
    }));
    let rig = race(rig, bodies).crash();
    for (cell, version) in written.iter().enumerate() {
        let content = rig.content(ino);
        let expected = version.load(Ordering::Relaxed).to_le_bytes().repeat(CELL / 8);
        assert_eq!(content[cell * CELL..(cell + 1) * CELL], expected);
    }
}

#[test]
fn shapes_change_under_readers_and_writers() {
    let rig = Rig::new();
    let (a, b) = (rig.file(ROOT, b"a").attr.ino, rig.file(ROOT, b"b").attr.ino);
    let mut bodies: Vec<Box<dyn FnOnce(&Fs, &AtomicBool) + Send>> = Vec::new();
    for thread in 0..4u64 {
        bodies.push(Box::new(move |fs, over| {
            let mut prng = Prng::new(thread);
            while !over.load(Ordering::Relaxed) {
                let (ino, other) = if prng.chance(1, 2) { (a, b) } else { (b, a) };
                let (offset, length) = (prng.below(20_000), 1 + prng.below(9_000));
                match prng.below(9) {
                    0..=2 => drop(fs.write(&USER, ino, offset, &vec![7; length as usize], false).unwrap()),
                    3 => {
                        let size = SetAttr { size: Some(offset), ..SetAttr::default() };
                        fs.setattr(&USER, ino, &size).unwrap();
                    }
                    4 => fs.fallocate(&USER, ino, offset, length, FallocateMode::PunchHole).unwrap(),
                    5 => {
                        fs.copy_file_range(&USER, ino, offset, other, prng.below(20_000), length).unwrap();
                    }
                    6 => fs.fsync(ino, false).unwrap(),
                    7 => fs.syncfs().unwrap(),
                    _ => {
                        let mut out = vec![0xEE; length as usize];
                        let count = fs.read(ino, offset, &mut out).unwrap();
                        assert!(out[..count].iter().all(|byte| matches!(byte, 0 | 7)), "neither written nor a hole");
                    }
                }
            }
        }));
    }
    let rig = race(rig, bodies);
    assert_eq!(rig.writeback.held(), (0, 0));
    let space = rig.store().space();
    assert_eq!(space.available, space.free);
    let (before_a, before_b) = (rig.content(a), rig.content(b));
    let rig = rig.crash();
    assert!(rig.content(a) == before_a && rig.content(b) == before_b);
}

#[test]
fn several_writers_fill_the_pool_and_lose_nothing() {
    let rig = rig_of(3 << 20, Options { memory: 1 << 20, ..Options::default() });
    let inos: Vec<Ino> = (0..4u8).map(|at| rig.file(ROOT, &[at + b'a']).attr.ino).collect();
    let sizes: Arc<Vec<AtomicU64>> = Arc::new((0..4).map(|_| AtomicU64::new(0)).collect());
    let mut bodies: Vec<Box<dyn FnOnce(&Fs, &AtomicBool) + Send>> = Vec::new();
    for (at, ino) in inos.iter().copied().enumerate() {
        let sizes = sizes.clone();
        bodies.push(Box::new(move |fs, over| {
            let mut prng = Prng::new(at as u64);
            while !over.load(Ordering::Relaxed) {
                let size = sizes[at].load(Ordering::Relaxed);
                let data = vec![at as u8 + 1; 1 + prng.below(20_000) as usize];
                match fs.write(&USER, ino, size, &data, false) {
                    Ok(count) => sizes[at].store(size + count as u64, Ordering::Relaxed),
                    Err(Error::NoSpace) => fs.fsync(ino, false).unwrap(),
                    Err(error) => panic!("{error}"),
                }
            }
        }));
    }
    let rig = race(rig, bodies).crash();
    let total: u64 = sizes.iter().map(|size| size.load(Ordering::Relaxed)).sum();
    assert!(total > (3 << 20) * 97 / 100, "{total} bytes fitted");
    for (at, ino) in inos.iter().enumerate() {
        let size = sizes[at].load(Ordering::Relaxed) as usize;
        assert!(rig.content(*ino) == vec![at as u8 + 1; size]);
    }
}

#[test]
fn a_stalled_commit_holds_up_nobody_who_does_not_ask() {
    let rig = Rig::new();
    let (a, b) = (rig.file(ROOT, b"a").attr.ino, rig.file(ROOT, b"b").attr.ino);
    rig.put(a, 0, b"aaaa");
    let fs = &rig.fs;
    let stalled = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        // A transaction that takes its time: nothing can be committed meanwhile.
        scope.spawn(|| {
            fs.store()
                .transact(|_, _| {
                    stalled.wait();
                    stalled.wait();
                    Ok(())
                })
                .unwrap();
        });
        stalled.wait();
        let fsync = scope.spawn(|| fs.fsync(a, false).unwrap());
        while rig.writeback.held() != (0, 4) {
            std::thread::yield_now();
        }
        // The content of `a` is in flight and stays there.
        rig.put(a, 2, b"bbbb");
        rig.put(b, 0, b"b");
        assert_eq!(rig.content(a), b"aabbbb");
        assert_eq!((rig.attr(a).size, rig.attr(b).size), (6, 1));
        stalled.wait();
        fsync.join().unwrap();
    });
    assert_eq!(rig.writeback.held(), (5, 0));
}
