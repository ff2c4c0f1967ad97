//! Content: what single operations do.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;
use crate::base::file::{FILE_SIZE_MAX, FallocateMode, RenameMode, SetAttr, Whence};
use crate::format::rows::JournalOp;
use crate::format::table::Journal;

/// A filesystem over a store of `capacity` bytes.
pub(super) fn rig_of(capacity: u64, options: Options) -> Rig {
    let clock = Arc::new(ManualClock::default());
    let store = Arc::new(Store::in_memory(clock.clone(), capacity).unwrap());
    store.transact(|tx, _| Fs::format(tx, &mut Prng::new(1), RootOwner::default())).unwrap();
    Rig { clock, fs: Fs::open(store, options).unwrap() }
}

impl Rig {
    pub(super) fn put(&self, ino: Ino, offset: u64, data: &[u8]) {
        assert_eq!(self.fs.write(&USER, ino, offset, data, false).unwrap(), data.len());
    }

    pub(super) fn content(&self, ino: Ino) -> Vec<u8> {
        let mut out = vec![0xEE; self.attr(ino).size as usize + 10];
        let count = self.fs.read(ino, 0, &mut out).unwrap();
        out.truncate(count);
        out
    }

    pub(super) fn resize(&self, ino: Ino, size: u64) -> Attr {
        self.fs.setattr(&USER, ino, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap()
    }

    fn committed_size(&self, ino: Ino) -> u64 {
        self.fs.store().view(|view| Ok(view.get::<Inodes>(&ino)?.unwrap().size)).unwrap()
    }

    fn last_journal(&self) -> JournalOp {
        let store = self.fs.store();
        let last = store.view(|view| Ok(view.counter(Counter::NextJournal)? - 1)).unwrap();
        store.view(|view| Ok(view.get::<Journal>(&last)?.unwrap().operation)).unwrap()
    }

    /// Everything that is not committed is lost, as when the process dies.
    pub(super) fn crash(self) -> Rig {
        self.remount()
    }
}

#[test]
fn what_is_written_is_read_before_and_after_it_is_committed() {
    let rig = Rig::new();
    let ino = rig.file(ROOT, b"f").attr.ino;
    let before = rig.now();
    rig.put(ino, 5, b"hello");
    assert_eq!(rig.content(ino), b"\0\0\0\0\0hello");
    let attr = rig.attr(ino);
    assert_eq!((attr.size, attr.mtime, attr.ctime), (10, before, before));
    assert!(attr.blocks512 > 0);
    assert_eq!(rig.committed_size(ino), 0, "nothing has left memory");
    rig.fsync(ino, false).unwrap();
    assert_eq!(rig.committed_size(ino), 10);
    assert_eq!(rig.attr(ino), attr);
    rig.put(ino, 0, b"HELL");
    let rig = rig.crash();
    assert_eq!(rig.content(ino), b"\0\0\0\0\0hello");
    assert_eq!(rig.attr(ino).mtime, before);
}

#[test]
fn a_small_write_and_fsync_is_one_transaction() {
    let rig = Rig::new();
    let ino = rig.file(ROOT, b"f").attr.ino;
    for step in 0..3u64 {
        rig.one_transaction(|fs| {
            fs.write(&USER, ino, step * 4096, &[1; 4096], false)?;
            fs.fsync(ino, false)
        });
        let expected = JournalOp::Write { ino: ino.0, bytes: 4096, extents: 1, size: (step + 1) * 4096 };
        assert_eq!(rig.last_journal(), expected);
    }
    let before = rig.store().meta().committed();
    rig.fsync(ino, false).unwrap();
    assert_eq!(rig.store().meta().committed(), before, "nothing to commit");
}

#[test]
fn many_small_files_are_committed_by_few_transactions() {
    let rig = Rig::new();
    let inos: Vec<Ino> = (0..3000).map(|at| rig.file(ROOT, format!("{at}").as_bytes()).attr.ino).collect();
    for ino in &inos {
        rig.put(*ino, 0, &ino.0.to_le_bytes().repeat(512));
    }
    let before = rig.store().meta().committed();
    rig.syncfs().unwrap();
    let used = rig.store().meta().committed().0 - before.0;
    assert!(used <= 3000 * 4096 / (2 << 20) + 1, "{used} transactions");
    let rig = rig.crash();
    for ino in &inos {
        assert_eq!(rig.content(*ino), ino.0.to_le_bytes().repeat(512));
    }
}

#[test]
fn fsync_leaves_the_content_of_other_files_alone() {
    let rig = Rig::new();
    let (a, b) = (rig.file(ROOT, b"a").attr.ino, rig.file(ROOT, b"b").attr.ino);
    rig.put(a, 0, b"aaaa");
    rig.put(b, 0, b"bbbb");
    rig.fsync(a, true).unwrap();
    assert_eq!((rig.committed_size(a), rig.committed_size(b)), (4, 0));
    rig.syncfs().unwrap();
    assert_eq!(rig.committed_size(b), 4);
    assert_eq!(rig.writeback.held(), (0, 0));
}

#[test]
fn truncated_bytes_never_come_back() {
    for synced in [false, true] {
        let rig = Rig::new();
        let ino = rig.file(ROOT, b"f").attr.ino;
        rig.put(ino, 0, &[7; 10_000]);
        if synced {
            rig.fsync(ino, false).unwrap();
        }
        rig.put(ino, 9_000, &[8; 3_000]);
        assert_eq!(rig.resize(ino, 5_001).size, 5_001);
        assert_eq!(rig.resize(ino, 9_500).size, 9_500);
        let mut expected = vec![7; 5_001];
        expected.resize(9_500, 0);
        assert_eq!(rig.content(ino), expected);
        assert_eq!(rig.committed_size(ino), 9_500, "a truncate is a transaction");
        let rig = rig.crash();
        assert_eq!(rig.content(ino), expected);
        rig.resize(ino, 0);
        assert_eq!(rig.attr(ino).blocks512, 0);
        assert_eq!(rig.writeback.held(), (0, 0));
    }
}

#[test]
fn truncating_to_nothing_writes_nothing_of_what_it_drops() {
    let rig = Rig::new();
    let ino = rig.file(ROOT, b"f").attr.ino;
    rig.put(ino, 0, &[7; 100_000]);
    rig.one_transaction(|fs| fs.setattr(&USER, ino, &SetAttr { size: Some(0), ..SetAttr::default() }));
    assert_eq!(rig.store().space().free, rig.store().space().available, "a reservation stayed behind");
    rig.put(ino, 10, b"x");
    assert_eq!(rig.content(ino), b"\0\0\0\0\0\0\0\0\0\0x");
}

#[test]
fn ranges_are_punched_zeroed_and_reserved() {
    let rig = Rig::new();
    let ino = rig.file(ROOT, b"f").attr.ino;
    rig.put(ino, 0, &[1; 10_000]);
    rig.fsync(ino, false).unwrap();
    rig.put(ino, 8_000, &[2; 4_000]);
    let fallocate = |offset, length, mode| rig.fallocate(&USER, ino, offset, length, mode);
    fallocate(1_000, 8_000, FallocateMode::PunchHole).unwrap();
    let mut expected = vec![1; 12_000];
    expected[1_000..9_000].fill(0);
    expected[9_000..].fill(2);
    assert_eq!(rig.content(ino), expected);
    assert_eq!(rig.seek(ino, 0, Whence::Hole).unwrap(), 1_000);
    assert_eq!(rig.seek(ino, 1_000, Whence::Data).unwrap(), 9_000);
    fallocate(11_000, 3_000, FallocateMode::ZeroRange { keep_size: true }).unwrap();
    expected[11_000..].fill(0);
    assert_eq!(rig.content(ino), expected);
    fallocate(11_000, 3_000, FallocateMode::Allocate { keep_size: false }).unwrap();
    expected.resize(14_000, 0);
    assert_eq!(rig.content(ino), expected);
    assert_eq!(rig.attr(ino).blocks512, (1_000u64 + 2_000 + 3_000).div_ceil(512));
    refused!(rig.seek(ino, 11_000, Whence::Data), NoData);
    refused!(rig.seek(ino, 14_000, Whence::Hole), NoData);
    refused!(fallocate(0, 0, FallocateMode::PunchHole), Invalid(_));
    refused!(fallocate(FILE_SIZE_MAX, 1, FallocateMode::PunchHole), FileTooLarge);
    assert!(matches!(rig.last_journal(), JournalOp::Fallocate { offset: 11_000, length: 3_000, mode: 0, .. }));
    let rig = rig.crash();
    assert_eq!(rig.content(ino), expected);
}

#[test]
fn copies_share_and_then_part() {
    let rig = Rig::new();
    let (a, b) = (rig.file(ROOT, b"a").attr.ino, rig.file(ROOT, b"b").attr.ino);
    let data: Vec<u8> = (0..20_000).map(|at| (at / 7) as u8).collect();
    rig.put(a, 0, &data);
    rig.put(b, 0, &[9; 6_000]);
    let copy =
        |from, from_offset, to, to_offset, length| rig.copy_file_range(&USER, from, from_offset, to, to_offset, length);
    assert_eq!(copy(a, 1_001, b, 4_003, 100_000).unwrap(), 18_999);
    let mut expected = vec![9; 4_003];
    expected.extend_from_slice(&data[1_001..]);
    assert_eq!(rig.content(b), expected);
    rig.put(a, 5_000, &[0; 5_000]);
    assert_eq!(rig.content(b), expected, "a copy changed with its source");
    refused!(copy(b, 0, b, 50, 100), Invalid(_));
    assert_eq!(copy(b, 0, b, 100, 100).unwrap(), 100);
    assert_eq!(rig.content(b)[100..200], expected[..100]);
    assert_eq!(copy(a, 20_000, b, 0, 10).unwrap(), 0);
    let c = rig.file(ROOT, b"c").attr.ino;
    rig.resize(b, 40_000);
    rig.clone_file(&USER, b, c).unwrap();
    assert_eq!(rig.content(c), rig.content(b));
    let rig = rig.crash();
    assert_eq!(rig.content(c), rig.content(b));
}

#[test]
fn a_huge_sparse_file_costs_what_was_written() {
    const HUGE: u64 = 200 << 30;
    let rig = Rig::new();
    let ino = rig.file(ROOT, b"sparse").attr.ino;
    rig.resize(ino, HUGE);
    rig.put(ino, HUGE / 2, b"middle");
    rig.put(ino, HUGE - 3, b"end");
    for _ in 0..2 {
        let mut out = [1; 9];
        assert_eq!(rig.read(ino, HUGE - 3, &mut out).unwrap(), 3);
        assert_eq!(&out[..3], b"end");
        assert_eq!(rig.read(ino, HUGE / 2 - 1, &mut out).unwrap(), 9);
        assert_eq!(&out, b"\0middle\0\0");
        assert_eq!(rig.seek(ino, 0, Whence::Data).unwrap(), HUGE / 2);
        assert_eq!(rig.seek(ino, HUGE / 2, Whence::Hole).unwrap(), HUGE / 2 + 6);
        assert_eq!(rig.seek(ino, HUGE / 2 + 6, Whence::Data).unwrap(), HUGE - 3);
        assert_eq!(rig.seek(ino, HUGE - 3, Whence::Hole).unwrap(), HUGE);
        assert_eq!(rig.attr(ino).blocks512, 1);
        rig.fsync(ino, false).unwrap();
    }
    refused!(rig.write(&USER, ino, FILE_SIZE_MAX, b"x", false), FileTooLarge);
    rig.put(ino, FILE_SIZE_MAX - 1, b"x");
    assert_eq!(rig.attr(ino).size, FILE_SIZE_MAX);
    rig.resize(ino, 1);
    assert_eq!(rig.content(ino), [0]);
}

#[test]
fn renaming_over_a_file_never_exposes_an_empty_one() {
    for mode in [RenameMode::Replace, RenameMode::Exchange] {
        let rig = Rig::new();
        let old = rig.file(ROOT, b"f").attr.ino;
        rig.put(old, 0, b"old");
        rig.fsync(old, false).unwrap();
        let new = rig.file(ROOT, b"tmp").attr.ino;
        rig.put(new, 0, b"new content");
        rig.rename(&USER, ROOT, b"tmp", ROOT, b"f", mode).unwrap();
        rig.put(new, 0, b"later");
        let rig = rig.crash();
        assert_eq!(rig.content(rig.find(ROOT, b"f").unwrap().ino), b"new content");
    }
}

#[test]
fn a_rename_whose_content_cannot_be_committed_does_not_happen() {
    let rig = Rig::new();
    rig.file(ROOT, b"f");
    let new = rig.file(ROOT, b"tmp").attr.ino;
    rig.put(new, 0, b"new");
    rig.writeback.faults.fail.store(1, Ordering::Relaxed);
    refused!(rig.rename(&USER, ROOT, b"tmp", ROOT, b"f", RenameMode::Replace), Io { .. });
    assert_eq!(rig.find(ROOT, b"tmp").unwrap().ino, new);
    rig.rename(&USER, ROOT, b"tmp", ROOT, b"f", RenameMode::Replace).unwrap();
    assert_eq!(rig.crash().content(new), b"new");
}

#[test]
fn space_runs_out_at_write_and_never_at_fsync() {
    const CAPACITY: u64 = 4 << 20;
    let rig = rig_of(CAPACITY, Options::default());
    let inos: Vec<Ino> = (0..4u8).map(|at| rig.file(ROOT, &[at + b'a']).attr.ino).collect();
    let mut sizes = [0u64; 4];
    let mut prng = Prng::new(3);
    let mut full = 0;
    while full < 20 {
        let at = prng.below(4) as usize;
        let data = vec![at as u8 + 1; 1 + prng.below(100_000) as usize];
        match rig.write(&USER, inos[at], sizes[at], &data, false) {
            Ok(count) => sizes[at] += count as u64,
            Err(Error::NoSpace) => full += 1,
            Err(error) => panic!("{error}"),
        }
        if prng.chance(1, 10) {
            rig.fsync(inos[prng.below(4) as usize], false).unwrap();
        }
    }
    assert!(sizes.iter().sum::<u64>() > CAPACITY * 97 / 100);
    // What is dirty can be overwritten, and so can what is committed as long as a little is free.
    rig.syncfs().unwrap();
    let left = rig.store().space().available;
    rig.put(inos[0], 0, &vec![1; left as usize]);
    rig.put(inos[0], 0, &vec![1; left as usize]);
    refused!(rig.write(&USER, inos[1], 0, &vec![2; sizes[1] as usize], false), NoSpace);
    rig.syncfs().unwrap();
    for (at, ino) in inos.iter().enumerate() {
        assert_eq!(rig.content(*ino), vec![at as u8 + 1; sizes[at] as usize]);
    }
    // Removed files give their space back before the next writer is refused.
    rig.unlink(&USER, ROOT, b"a").unwrap();
    rig.forget(inos[0], 1);
    rig.put(inos[1], 0, &vec![2; sizes[0] as usize]);
    rig.syncfs().unwrap();
    assert_eq!(rig.store().space().available, rig.store().space().free, "a reservation stayed behind");
}

#[test]
fn a_promise_holds_when_the_pool_is_full() {
    const CAPACITY: u64 = 1 << 20;
    let rig = rig_of(CAPACITY, Options::default());
    let (a, b) = (rig.file(ROOT, b"a").attr.ino, rig.file(ROOT, b"b").attr.ino);
    let keep = FallocateMode::Allocate { keep_size: true };
    rig.fallocate(&USER, a, 0, 200_000, keep).unwrap();
    refused!(rig.fallocate(&USER, a, 0, CAPACITY + 1, keep), NoSpace);
    let mut offset = 0;
    while rig.write(&USER, b, offset, &[2; 10_000], false).is_ok() {
        offset += 10_000;
    }
    assert!(offset >= CAPACITY - 200_000 - 20_000);
    for round in 0..3 {
        rig.put(a, 0, &[round; 200_000]);
        rig.put(a, 50_000, &[round; 100_000]);
        if round == 0 {
            refused!(rig.write(&USER, a, 200_000, &[1; 40_000], false), NoSpace);
        }
        if round < 2 {
            // Once written the promise is used up: room for a copy is made.
            rig.fsync(a, false).unwrap();
            rig.resize(b, offset - 300_000);
        }
    }
    rig.syncfs().unwrap();
    assert_eq!(rig.content(a), [2; 200_000]);
    assert_eq!(rig.store().space().available, rig.store().space().free);
}

#[test]
fn failed_commits_keep_the_content_and_tell_whoever_asked() {
    for seed in 0..40 {
        let mut prng = Prng::new(seed);
        let mut rig = Rig::new();
        rig.fs.writeback.set_stripe(256);
        let inos: Vec<Ino> = (0..3u8).map(|at| rig.file(ROOT, &[at + b'a']).attr.ino).collect();
        let mut model = vec![vec![0u8; 0]; 3];
        for step in 0..40 {
            let at = prng.below(3) as usize;
            rig.writeback.faults.pass.store(prng.below(3), Ordering::Relaxed);
            rig.writeback.faults.fail.store(prng.below(3), Ordering::Relaxed);
            match prng.below(4) {
                0 => drop(rig.syncfs()),
                1 => drop(rig.fsync(inos[at], false)),
                _ => {
                    let (start, length) = (prng.below(900) as usize, 1 + prng.below(700) as usize);
                    let end = start + length;
                    let grown = model[at].len().max(end);
                    model[at].resize(grown, 0);
                    model[at][start..end].fill(step + 1);
                    rig.put(inos[at], start as u64, &vec![step + 1; length]);
                }
            }
            for (ino, bytes) in inos.iter().zip(&model) {
                assert!(rig.content(*ino) == *bytes, "seed {seed}");
            }
        }
        rig.writeback.faults.pass.store(0, Ordering::Relaxed);
        rig.writeback.faults.fail.store(1, Ordering::Relaxed);
        rig.put(inos[0], 0, b"told");
        refused!(rig.fsync(inos[0], false), Io { .. });
        rig.writeback.faults.fail.store(0, Ordering::Relaxed);
        rig.syncfs().unwrap();
        assert_eq!(rig.writeback.held(), (0, 0));
        assert_eq!(rig.store().space().available, rig.store().space().free, "seed {seed}");
        let grown = model[0].len().max(4);
        model[0].resize(grown, 0);
        model[0][..4].copy_from_slice(b"told");
        let rig = rig.crash();
        for (ino, bytes) in inos.iter().zip(&model) {
            assert!(rig.content(*ino) == *bytes, "seed {seed}");
        }
    }
}

#[test]
fn memory_stays_bounded() {
    const BOUND: u64 = 1 << 20;
    let rig = rig_of(1 << 30, Options { memory: BOUND, ..Options::default() });
    let ino = rig.file(ROOT, b"f").attr.ino;
    for step in 0..200u64 {
        // Every second piece is left out: no stripe is ever full.
        rig.put(ino, (step * 128) << 10, &[step as u8; 64 << 10]);
        let (dirty, flying) = rig.writeback.held();
        assert!(dirty + flying <= BOUND, "{dirty} + {flying}");
    }
    for step in 0..200u64 {
        let mut out = [0; 1];
        rig.read(ino, (step * 128) << 10, &mut out).unwrap();
        assert_eq!(out[0], step as u8);
    }
}

#[test]
fn somebody_who_may_not_keep_set_id_bits_loses_them_by_writing() {
    let rig = Rig::new();
    let ino = rig.file(ROOT, b"f").attr.ino;
    let setuid = SetAttr { mode: Some(0o6755), ..SetAttr::default() };
    rig.setattr(&ADMIN, ino, &setuid).unwrap();
    rig.write(&ADMIN, ino, 0, b"x", false).unwrap();
    assert_eq!(rig.attr(ino).permissions(), 0o6755);
    rig.write(&USER, ino, 0, b"x", true).unwrap();
    assert_eq!(rig.attr(ino).permissions(), 0o755);
    rig.setattr(&ADMIN, ino, &setuid).unwrap();
    rig.fallocate(&USER, ino, 0, 10, FallocateMode::Allocate { keep_size: false }).unwrap();
    assert_eq!(rig.attr(ino).permissions(), 0o755);
}

#[test]
fn content_of_removed_files_is_never_written() {
    let rig = Rig::new();
    let ino = rig.file(ROOT, b"f").attr.ino;
    rig.put(ino, 0, &[1; 100_000]);
    rig.unlink(&USER, ROOT, b"f").unwrap();
    assert_eq!(rig.content(ino), [1; 100_000], "still open");
    rig.forget(ino, 1);
    rig.reclaim_all().unwrap();
    assert_eq!(rig.writeback.held(), (0, 0));
    assert_eq!(rig.store().space().available, rig.store().space().total);
    refused!(rig.write(&USER, ino, 0, b"x", false), Stale);
    rig.syncfs().unwrap();
}

#[test]
fn only_regular_files_have_content() {
    let rig = Rig::new();
    let dir = rig.dir(ROOT, b"d").attr.ino;
    refused!(rig.write(&USER, dir, 0, b"x", false), IsDirectory);
    refused!(rig.read(dir, 0, &mut [0; 4]), IsDirectory);
    let link = rig.symlink(&USER, ROOT, b"l", b"target").unwrap().attr.ino;
    refused!(rig.read(link, 0, &mut [0; 4]), Invalid(_));
    refused!(rig.write(&USER, Ino(77), 0, b"x", false), Stale);
}

/// What a truncate leaves for later is counted in the row that is cached, too.
#[test]
fn what_is_removed_in_the_background_does_not_count_any_more() {
    let rig = Rig::new();
    let file = rig.file(ROOT, b"file").attr.ino;
    // Every second block, each an extent of its own.
    for at in 0..2100 {
        rig.put(file, at * 8192, &[1; 4096]);
    }
    rig.syncfs().unwrap();
    assert_eq!(rig.shown(file).unwrap().content, 2100 * 4096);
    rig.resize(file, 0);
    assert!(rig.shown(file).unwrap().content > 0, "all of it went at once");
    rig.reclaim_all().unwrap();
    assert_eq!(rig.shown(file).unwrap().content, 0);
    rig.put(file, 0, &[1; 4096]);
    rig.syncfs().unwrap();
    let stored = rig.store().view(|view| view.get::<Inodes>(&file)).unwrap().unwrap();
    assert_eq!(stored.content, 4096);
    rig.check();
}
