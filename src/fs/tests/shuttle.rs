//! The filesystem in many orders of events: what threads find by luck, these look for. See [`crate::base::sync`] for how one
//! order is run again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::base::file::{FallocateMode, RenameMode, SetAttr};
use crate::base::rng::mix64;
use crate::base::sync::{choose, explore, lock, thread};
use crate::fs::background::Background;
use crate::fs::handle::Inodes as Known;

const CELL: usize = 64;
/// What counts as a full stripe: two cells.
const STRIPE: usize = 2 * CELL;

type Body = Box<dyn FnOnce(&Fs) + Send>;

fn body(body: impl FnOnce(&Fs) + Send + 'static) -> Body {
    Box::new(body)
}

/// A filesystem whose memory for content takes `memory` bytes.
fn rig_with(memory: usize) -> Rig {
    let mut rig = Rig::with(Options { memory: memory as u64, ..Options::default() });
    rig.fs.writeback.set_stripe(STRIPE);
    rig
}

/// Runs `bodies` at once, with `workers` threads that commit content and the one that looks after everything else, or
/// with neither. Then hands the filesystem back, with all content committed.
fn race(rig: Rig, workers: usize, bodies: Vec<Body>) -> Rig {
    race_with_failures(rig, workers, 0, bodies)
}

/// The same; after its first one, as many commits of content as `failures` says fail.
fn race_with_failures(rig: Rig, workers: usize, failures: u64, bodies: Vec<Body>) -> Rig {
    let Rig { clock, fs } = rig;
    fs.writeback.faults.pass.store(1, Ordering::Relaxed);
    fs.writeback.faults.fail.store(failures, Ordering::Relaxed);
    let fs = Arc::new(fs);
    let forever = Duration::from_secs(1 << 32);
    let background = (workers > 0).then(|| Background::start(fs.clone(), workers, forever).unwrap());
    let spawn = |body: Body| {
        let fs = fs.clone();
        thread::spawn(move || body(&fs))
    };
    let threads: Vec<_> = bodies.into_iter().map(spawn).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    (0..failures).for_each(|_| drop(fs.syncfs()));
    match background {
        Some(background) => background.stop().unwrap(),
        None => fs.syncfs().unwrap(),
    }
    Rig { clock, fs: Arc::into_inner(fs).expect("the threads are gone") }
}

/// Whether everything that was promised or held is given back.
fn check_settled(rig: &Rig) {
    assert_eq!(rig.writeback.held(), (0, 0));
    assert!(rig.writeback.listed().is_empty());
    let space = rig.store().space();
    assert_eq!(space.available, space.free, "space is promised to nobody");
}

/// One file of cells. Each has one writer, who gives it version after version.
#[derive(Clone)]
struct Cells {
    ino: Ino,
    /// The version each has at least.
    written: Arc<Vec<AtomicU64>>,
}

impl Cells {
    fn new(rig: &Rig, count: usize) -> Cells {
        let ino = rig.file(ROOT, b"cells").attr.ino;
        rig.put(ino, 0, &vec![0; count * CELL]);
        rig.syncfs().unwrap();
        Cells { ino, written: Arc::new((0..count).map(|_| AtomicU64::new(0)).collect()) }
    }

    fn write(&self, fs: &Fs, cell: usize) {
        let version = self.written[cell].load(Ordering::Relaxed) + 1;
        let data = version.to_le_bytes().repeat(CELL / 8);
        fs.write(&USER, self.ino, (cell * CELL) as u64, &data, false).unwrap();
        self.written[cell].store(version, Ordering::Relaxed);
    }

    /// Nothing older is read than what was written before.
    fn read(&self, fs: &Fs) {
        let least: Vec<u64> = self.written.iter().map(|version| version.load(Ordering::Relaxed)).collect();
        let mut out = vec![0xEE; least.len() * CELL];
        assert_eq!(fs.read(self.ino, 0, &mut out).unwrap(), out.len());
        for (least, cell) in least.into_iter().zip(out.chunks(CELL)) {
            for version in cell.chunks(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())) {
                assert!((least..least + 100).contains(&version), "{version} was read where {least} was written");
            }
        }
    }

    /// A process that dies now loses nothing of it.
    fn check_committed(&self, rig: Rig) {
        check_settled(&rig);
        let content = rig.crash().content(self.ino);
        for (version, cell) in self.written.iter().zip(content.chunks(CELL)) {
            assert_eq!(cell, version.load(Ordering::Relaxed).to_le_bytes().repeat(CELL / 8));
        }
    }
}

#[test]
fn content_is_read_while_it_is_written_and_committed() {
    explore(800, || {
        let rig = rig_with(3 * STRIPE);
        let cells = Cells::new(&rig, 4);
        let (first, second, reader, ino) = (cells.clone(), cells.clone(), cells.clone(), cells.ino);
        let bodies = vec![
            body(move |fs| [0, 1, 0].into_iter().for_each(|cell| first.write(fs, cell))),
            body(move |fs| [2, 3, 3].into_iter().for_each(|cell| second.write(fs, cell))),
            body(move |fs| (0..3).for_each(|_| reader.read(fs))),
            body(move |fs| fs.fsync(ino, false).unwrap()),
        ];
        cells.check_committed(race(rig, 2, bodies));
    });
}

#[test]
fn writers_wait_for_room_and_are_woken() {
    explore(800, || {
        let workers = choose(2) as usize;
        let rig = rig_with(STRIPE);
        let cells = Cells::new(&rig, 6);
        let bodies = (0..3).map(|writer| {
            let cells = cells.clone();
            body(move |fs| [0, 1, 0].into_iter().for_each(|cell| cells.write(fs, 2 * writer + cell)))
        });
        let bodies = bodies.collect();
        cells.check_committed(race(rig, workers, bodies));
    });
}

#[test]
fn commits_that_fail_lose_nothing_and_leave_nobody_waiting() {
    explore(600, || {
        let rig = rig_with(8 * STRIPE);
        let cells = Cells::new(&rig, 4);
        let (first, second, reader, ino) = (cells.clone(), cells.clone(), cells.clone(), cells.ino);
        let bodies = vec![
            body(move |fs| {
                [0, 1].into_iter().for_each(|cell| first.write(fs, cell));
                // May be told of the failure.
                let _ = fs.fsync(ino, false);
                [1, 0].into_iter().for_each(|cell| first.write(fs, cell));
            }),
            body(move |fs| [2, 3, 3].into_iter().for_each(|cell| second.write(fs, cell))),
            body(move |fs| (0..3).for_each(|_| reader.read(fs))),
            body(move |fs| drop(fs.syncfs())),
        ];
        cells.check_committed(race_with_failures(rig, 2, 2, bodies));
    });
}

#[test]
fn the_shape_of_a_file_changes_under_its_readers_and_writers() {
    explore(800, || {
        let rig = rig_with(2 * STRIPE);
        let (a, b) = (rig.file(ROOT, b"a").attr.ino, rig.file(ROOT, b"b").attr.ino);
        rig.put(a, 0, &[7; 3 * CELL]);
        let resize = |fs: &Fs, ino, size| {
            fs.setattr(&USER, ino, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
        };
        let bodies = vec![
            body(move |fs| {
                for offset in [100, 0, 300] {
                    fs.write(&USER, a, offset, &[7; STRIPE], false).unwrap();
                }
            }),
            body(move |fs| {
                resize(fs, a, 70);
                fs.fsync(a, false).unwrap();
                resize(fs, a, 200);
            }),
            body(move |fs| {
                fs.fallocate(&USER, a, 50, 100, FallocateMode::PunchHole).unwrap();
                fs.copy_file_range(&USER, a, 20, b, 0, 150).unwrap();
            }),
            body(move |fs| {
                fs.copy_file_range(&USER, b, 0, a, 10, 150).unwrap();
                fs.syncfs().unwrap();
            }),
            body(move |fs| {
                for _ in 0..2 {
                    let mut out = [0xEE; 400];
                    let count = fs.read(a, 0, &mut out).unwrap();
                    assert!(out[..count].iter().all(|byte| matches!(byte, 0 | 7)), "neither written nor a hole");
                }
            }),
        ];
        let rig = race(rig, 1, bodies);
        check_settled(&rig);
        let before = [rig.content(a), rig.content(b)];
        let rig = rig.crash();
        assert_eq!([rig.content(a), rig.content(b)], before);
        rig.check();
    });
}

#[test]
fn what_was_cut_off_a_file_does_not_come_back() {
    explore(600, || {
        let rig = rig_with(8 * STRIPE);
        let ino = rig.file(ROOT, b"a").attr.ino;
        let read = move |fs: &Fs| {
            let mut out = vec![0xEE; 400];
            let count = fs.read(ino, 0, &mut out).unwrap();
            out.truncate(count);
            out
        };
        let cut = move |fs: &Fs| {
            let resize = |size| fs.setattr(&USER, ino, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
            fs.write(&USER, ino, 0, &[7; 3 * CELL], false).unwrap();
            resize(70);
            assert_eq!(read(fs), [7; 70]);
            fs.write(&USER, ino, 60, &[7; CELL], false).unwrap();
            resize(80);
            resize(100);
            assert_eq!(read(fs), [[7; 80].as_slice(), &[0; 20]].concat());
        };
        let bodies = vec![
            body(cut),
            body(|fs| (0..2).for_each(|_| fs.syncfs().unwrap())),
            body(move |fs| (0..2).for_each(|_| fs.fsync(ino, false).unwrap())),
            body(move |fs| assert!(read(fs).iter().all(|byte| matches!(byte, 0 | 7)))),
        ];
        let rig = race(rig, 1, bodies);
        check_settled(&rig);
        assert_eq!(read(&rig.crash()), [[7; 80].as_slice(), &[0; 20]].concat());
    });
}

/// Everything is told to be gone, and nothing of it is left.
fn check_reclaimed(rig: &Rig) {
    assert_eq!(rig.inodes.counts().0, 0, "references are left");
    rig.reclaim_all().unwrap();
    rig.check();
    assert_eq!(rig.rows()[3], 0, "orphans are left");
}

#[test]
fn inodes_live_as_long_as_somebody_can_reach_them() {
    explore(1000, || {
        // Commits of content that fail.
        let failures = choose(2);
        let rig = rig_with(8 * STRIPE);
        let ino = rig.file(ROOT, b"a").attr.ino;
        rig.put(ino, 0, b"content");
        let held_content = move |fs: &Fs, ino| {
            let mut out = [0; 7];
            assert_eq!(fs.read(ino, 0, &mut out).unwrap(), 7);
            assert_eq!(&out, b"content");
        };
        let look = move |fs: &Fs, name: &[u8]| match fs.lookup(&USER, ROOT, name) {
            Ok(entry) => {
                held_content(fs, entry.attr.ino);
                fs.forget(entry.attr.ino, 1);
                true
            }
            Err(Error::NotFound) => false,
            Err(error) => panic!("{error}"),
        };
        let bodies = vec![
            body(move |fs| {
                fs.unlink(&USER, ROOT, b"a").unwrap();
                held_content(fs, ino);
                fs.forget(ino, 1);
            }),
            body(move |fs| {
                look(fs, b"a");
                look(fs, b"b");
            }),
            body(move |fs| {
                let made = fs.tmpfile(&USER, ROOT, 0o600).unwrap().attr.ino;
                fs.write(&USER, made, 0, b"content", false).unwrap();
                let linked = fs.link(&USER, made, ROOT, b"b").unwrap();
                fs.forget(linked.attr.ino, 1);
                fs.forget(made, 1);
                assert!(look(fs, b"b"), "it has a name");
            }),
            body(move |fs| {
                let lost = fs.tmpfile(&USER, ROOT, 0o600).unwrap().attr.ino;
                fs.write(&USER, lost, 0, b"content", false).unwrap();
                fs.forget(lost, 1);
                fs.reclaim_step().unwrap();
            }),
            body(move |fs| {
                fs.reclaim_step().unwrap();
                assert!(fs.syncfs().is_ok() || failures > 0);
            }),
        ];
        let rig = race_with_failures(rig, 1, failures, bodies);
        check_reclaimed(&rig);
        check_settled(&rig);
        assert_eq!(rig.names(ROOT), [b"b"]);
    });
}

#[test]
fn a_lookup_finds_an_inode_that_stays_or_none() {
    explore(1500, || {
        let rig = rig_with(8 * STRIPE);
        let ino = rig.file(ROOT, b"a").attr.ino;
        rig.reclaim_all().unwrap();
        let bodies = vec![
            body(move |fs| {
                fs.unlink(&USER, ROOT, b"a").unwrap();
                fs.forget(ino, 1);
                fs.reclaim_step().unwrap();
            }),
            body(move |fs| match fs.lookup(&USER, ROOT, b"a") {
                Ok(entry) => {
                    fs.getattr(ino).unwrap();
                    fs.forget(entry.attr.ino, 1);
                }
                Err(Error::NotFound) => {}
                Err(error) => panic!("{error}"),
            }),
        ];
        check_reclaimed(&race(rig, 0, bodies));
    });
}

#[test]
fn a_link_and_an_unlink_of_the_last_name_agree() {
    explore(600, || {
        let rig = rig_with(8 * STRIPE);
        let ino = rig.file(ROOT, b"a").attr.ino;
        rig.put(ino, 0, b"content");
        let bodies = vec![
            body(move |fs| {
                fs.unlink(&USER, ROOT, b"a").unwrap();
                fs.forget(ino, 1);
            }),
            body(move |fs| {
                let Ok(entry) = fs.lookup(&USER, ROOT, b"a") else { return };
                let linked = fs.link(&USER, entry.attr.ino, ROOT, b"b");
                if let Ok(linked) = linked {
                    fs.forget(linked.attr.ino, 1);
                    fs.getattr(entry.attr.ino).unwrap();
                }
                fs.forget(entry.attr.ino, 1);
            }),
            body(move |fs| {
                if let Ok(entry) = fs.lookup(&USER, ROOT, b"b") {
                    fs.getattr(entry.attr.ino).unwrap();
                    fs.forget(entry.attr.ino, 1);
                }
                fs.reclaim_step().unwrap();
            }),
            body(move |fs| assert!(fs.reclaim_step().is_ok())),
        ];
        check_reclaimed(&race(rig, 0, bodies));
    });
}

/// What is known of inodes is forgotten and read again all the time here.
#[test]
fn what_is_known_of_an_inode_is_never_older_than_what_was_acknowledged() {
    const MODES: [u32; 3] = [0o644, 0o600, 0o640];
    explore(1000, || {
        let mut rig = rig_with(8 * STRIPE);
        rig.fs.inodes = Known::with_capacity(1);
        // Two inodes that push each other out.
        let first = lock(&rig.fs.numbers).next_ino;
        let same = |ino: &u64| mix64(*ino) % 64 == mix64(first) % 64;
        let second = (first + 1..).find(same).unwrap();
        let ino = rig.file(ROOT, b"a").attr.ino;
        lock(&rig.fs.numbers).next_ino = second;
        let other = rig.file(ROOT, b"b").attr.ino;
        let evict = move |fs: &Fs| (0..3).for_each(|_| assert!(fs.getattr(other).is_ok()));
        let bodies = vec![
            body(move |fs| {
                for mode in MODES.into_iter().skip(1) {
                    fs.setattr(&USER, ino, &SetAttr { mode: Some(mode), ..SetAttr::default() }).unwrap();
                    assert_eq!(fs.getattr(ino).unwrap().mode & 0o777, mode);
                }
            }),
            body(move |fs| {
                let mut seen = Vec::new();
                (0..4).for_each(|_| seen.push(fs.getattr(ino).unwrap().mode & 0o777));
                let place = |mode: &u32| MODES.iter().position(|known| known == mode).unwrap();
                assert!(seen.iter().map(place).is_sorted(), "it became older: {seen:?}");
            }),
            body(evict),
            body(evict),
        ];
        let rig = race(rig, 0, bodies);
        assert_eq!(rig.attr(ino).mode & 0o777, 0o640);
        rig.check();
    });
}

#[test]
fn names_move_across_each_other() {
    explore(800, || {
        let rig = rig_with(8 * STRIPE);
        let (a, b) = (rig.dir(ROOT, b"a").attr.ino, rig.dir(ROOT, b"b").attr.ino);
        let (x, y) = (rig.file(a, b"x").attr.ino, rig.file(b, b"y").attr.ino);
        rig.put(x, 0, b"x");
        rig.put(y, 0, b"y");
        let expected = |result: Result<()>| match result {
            Ok(()) | Err(Error::NotFound | Error::NotEmpty | Error::Invalid(_) | Error::NotDirectory) => {}
            Err(error) => panic!("{error:?}"),
        };
        let bodies = vec![
            body(move |fs| {
                expected(fs.rename(&USER, a, b"x", b, b"y", RenameMode::Replace));
                expected(fs.rename(&USER, ROOT, b"b", a, b"sub", RenameMode::Replace));
            }),
            body(move |fs| {
                expected(fs.rename(&USER, b, b"y", a, b"x", RenameMode::Exchange));
                expected(fs.rename(&USER, ROOT, b"a", b, b"sub", RenameMode::Replace));
            }),
            body(move |fs| {
                fs.write(&USER, x, 1, b"x", false).unwrap();
                expected(fs.rename(&USER, ROOT, b"a", ROOT, b"b", RenameMode::Exchange));
            }),
            body(move |fs| {
                expected(fs.unlink(&USER, b, b"y"));
                expected(fs.rmdir(&USER, ROOT, b"b"));
                if let Ok(entry) = fs.lookup(&USER, a, b"x") {
                    fs.forget(entry.attr.ino, 1);
                }
            }),
        ];
        let rig = race(rig, 1, bodies);
        [a, b, x, y].into_iter().for_each(|ino| rig.forget(ino, 1));
        check_reclaimed(&rig);
        check_settled(&rig);
    });
}
