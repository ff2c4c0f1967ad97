//! Content: random sequences of operations against plain vectors of bytes, with remounts and crashes.

use std::sync::Arc;

use super::*;
use crate::base::file::{FallocateMode, SetAttr, Whence};
use crate::fs::background::Background;

/// A file as it should be.
pub(super) struct Mirror {
    pub ino: Ino,
    pub bytes: Vec<u8>,
    /// Every acknowledged version since the last that cannot be lost.
    pub versions: Vec<Vec<u8>>,
}

const SIZE: u64 = 3000;

/// How many seeds to try: `ARGOSFS_SEEDS` times as many as usual.
pub(super) fn seeds(usual: u64) -> u64 {
    let times = std::env::var("ARGOSFS_SEEDS").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    usual * times
}

impl Mirror {
    fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset as usize + data.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset as usize..end].copy_from_slice(data);
    }

    fn acknowledge(&mut self) {
        self.versions.push(self.bytes.clone());
    }

    pub fn settle(&mut self) {
        self.versions = vec![self.bytes.clone()];
    }

    /// What was found after a crash: each byte one of its acknowledged versions, the size nothing nobody wrote.
    pub fn check_survivor(&self, found: &[u8], hint: &str) {
        let least = self.versions.iter().map(Vec::len).min().unwrap();
        let most = self.versions.iter().map(Vec::len).max().unwrap();
        assert!((least..=most).contains(&found.len()), "{hint}: size {} is none of {least}..={most}", found.len());
        for (at, byte) in found.iter().enumerate() {
            let known = self.versions.iter().any(|version| version.get(at) == Some(byte));
            assert!(known, "{hint}: byte {at} is {byte}, which was never there");
        }
    }
}

/// One random operation on the files.
pub(super) fn step(rig: &Fs, files: &mut [Mirror], prng: &mut Prng, fill: u8) {
    let at = prng.below(files.len() as u64) as usize;
    let ino = files[at].ino;
    let offset = prng.below(SIZE);
    let most = if prng.chance(1, 3) { 1500 } else { 60 };
    let length = 1 + prng.below(most);
    let data = vec![fill; length as usize];
    let size = files[at].bytes.len() as u64;
    let clear = |file: &mut Mirror| {
        let end = (offset + length).min(file.bytes.len() as u64);
        if offset < end {
            file.bytes[offset as usize..end as usize].fill(0);
        }
    };
    match prng.below(20) {
        0..=7 => {
            let offset = if prng.chance(1, 2) { size.min(SIZE) } else { offset };
            rig.write(&USER, ino, offset, &data, false).unwrap();
            files[at].write(offset, &data);
        }
        8 | 9 => {
            let size = if prng.chance(1, 4) { 0 } else { offset };
            let attr = rig.setattr(&USER, ino, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
            assert_eq!(attr.size, size);
            files[at].bytes.resize(size as usize, 0);
        }
        10 => {
            rig.fallocate(&USER, ino, offset, length, FallocateMode::PunchHole).unwrap();
            clear(&mut files[at]);
        }
        11 => {
            let keep_size = prng.chance(1, 2);
            rig.fallocate(&USER, ino, offset, length, FallocateMode::ZeroRange { keep_size }).unwrap();
            clear(&mut files[at]);
            if !keep_size {
                files[at].bytes.resize(size.max(offset + length) as usize, 0);
            }
        }
        12 => {
            let keep_size = prng.chance(1, 2);
            rig.fallocate(&USER, ino, offset, length, FallocateMode::Allocate { keep_size }).unwrap();
            if !keep_size {
                files[at].bytes.resize(size.max(offset + length) as usize, 0);
            }
        }
        13 | 14 => {
            let source = prng.below(files.len() as u64) as usize;
            let from = prng.below(SIZE);
            let read = length.min((files[source].bytes.len() as u64).saturating_sub(from));
            if source == at && from < offset + read && offset < from + read {
                return;
            }
            let done = rig.copy_file_range(&USER, files[source].ino, from, ino, offset, length).unwrap();
            assert_eq!(done, read);
            if read > 0 {
                let copied = files[source].bytes[from as usize..(from + read) as usize].to_vec();
                files[at].write(offset, &copied);
            }
        }
        15 => {
            rig.fsync(ino, false).unwrap();
            files[at].settle();
        }
        16 if prng.chance(1, 4) => {
            rig.syncfs().unwrap();
            files.iter_mut().for_each(Mirror::settle);
        }
        16 | 17 => {
            // What the background does: some content departs, whatever it is.
            let inode = rig.inodes.state(ino);
            match prng.below(3) {
                0 => rig.flush_all(prng.chance(1, 2)).unwrap(),
                1 => rig.flush_range(&inode, offset..offset + length).unwrap(),
                _ => rig.depart_full(&inode, offset).unwrap(),
            }
        }
        18 => check_holes(rig, &files[at], offset),
        _ => {
            let mut out = vec![0xEE; length as usize];
            let count = rig.read(ino, offset, &mut out).unwrap() as u64;
            let end = size.min(offset + length).max(offset);
            assert_eq!(count, end - offset);
            assert_eq!(out[..count as usize], files[at].bytes[offset.min(size) as usize..end.min(size) as usize]);
        }
    }
    files[at].acknowledge();
}

/// Everything that is not zero is data, and holes end where data begins.
fn check_holes(rig: &Fs, file: &Mirror, offset: u64) {
    let size = file.bytes.len() as u64;
    if offset >= size {
        refused!(rig.seek(file.ino, offset, Whence::Data), NoData);
        refused!(rig.seek(file.ino, offset, Whence::Hole), NoData);
        return;
    }
    let data = match rig.seek(file.ino, offset, Whence::Data) {
        Ok(data) => data,
        Err(Error::NoData) => size,
        Err(error) => panic!("{error}"),
    };
    let first = file.bytes[offset as usize..].iter().position(|byte| *byte != 0).map(|at| at as u64 + offset);
    assert!(data >= offset && first.is_none_or(|first| data <= first), "{data} {first:?} {offset} {size}");
    let hole = rig.seek(file.ino, offset, Whence::Hole).unwrap();
    assert!(hole >= offset && (data == offset) == (hole > offset));
    if hole < size {
        assert_eq!(file.bytes[hole as usize], 0);
    }
}

fn check(rig: &Rig, files: &[Mirror], hint: &str) {
    for file in files {
        assert!(rig.content(file.ino) == file.bytes, "{hint}: {}", file.ino);
        assert_eq!(rig.attr(file.ino).size, file.bytes.len() as u64, "{hint}");
    }
}

/// Nothing is left where no size covers it, and every reservation came back.
fn check_settled(rig: &Rig, files: &[Mirror], lost: u64, hint: &str) {
    assert_eq!(rig.writeback.held(), (0, 0), "{hint}");
    let space = rig.store().space();
    assert_eq!(space.free - space.available, lost, "{hint}: a reservation stayed behind");
    let mut content = 0;
    for file in files {
        let size = file.bytes.len() as u64;
        let beyond = rig.store().seek(file.ino, size..u64::MAX, true).unwrap();
        assert_eq!(beyond, None, "{hint}: content behind the end");
        content += rig.store().view(|view| Ok(view.get::<Inodes>(&file.ino)?.unwrap().content)).unwrap();
    }
    assert_eq!(space.total - space.free, content, "{hint}: rows and accounts disagree");
    rig.journal();
}

fn start(stripe: usize) -> (Rig, Vec<Mirror>) {
    let mut rig = Rig::new();
    rig.fs.writeback.set_stripe(stripe);
    let names = [b"a", b"b", b"c"];
    let files = names
        .iter()
        .map(|name| Mirror { ino: rig.file(ROOT, *name).attr.ino, bytes: Vec::new(), versions: vec![Vec::new()] })
        .collect();
    (rig, files)
}

#[test]
fn behaves_as_vectors_of_bytes() {
    for seed in 0..seeds(250) {
        let mut prng = Prng::new(seed);
        let stripe = [100, 256, 1000, 1 << 20][prng.below(4) as usize];
        let (mut rig, mut files) = start(stripe);
        for round in 0..3 {
            for fill in 0..30 {
                step(&rig, &mut files, &mut prng, round * 80 + fill + 1);
            }
            check(&rig, &files, &format!("seed {seed}"));
            rig.syncfs().unwrap();
            check_settled(&rig, &files, 0, &format!("seed {seed}"));
            rig = rig.remount();
            rig.fs.writeback.set_stripe(stripe);
            check(&rig, &files, &format!("seed {seed} after a remount"));
        }
    }
}

#[test]
fn every_byte_survives_a_crash_as_one_of_its_acknowledged_versions() {
    for seed in 0..seeds(250) {
        let mut prng = Prng::new(seed);
        let stripe = [100, 256, 1000][prng.below(3) as usize];
        let (mut rig, mut files) = start(stripe);
        for round in 0..4 {
            for fill in 0..1 + prng.below(25) as u8 {
                step(&rig, &mut files, &mut prng, round * 60 + fill + 1);
            }
            // What was reserved for dirty content is forgotten by nobody but the process that died.
            let space = rig.store().space();
            let lost = space.free - space.available;
            rig = rig.crash();
            rig.fs.writeback.set_stripe(stripe);
            for file in &mut files {
                let found = rig.content(file.ino);
                file.check_survivor(&found, &format!("seed {seed} round {round} file {}", file.ino));
                file.bytes = found;
                file.settle();
            }
            check_settled(&rig, &files, lost, &format!("seed {seed}"));
        }
    }
}

/// The same with threads that commit behind the back of the one who writes.
#[test]
fn behaves_as_vectors_of_bytes_while_others_commit() {
    for seed in 0..seeds(40) {
        let mut prng = Prng::new(seed);
        let (rig, mut files) = start([100, 300, 1000][prng.below(3) as usize]);
        let Rig { clock, fs } = rig;
        let fs = Arc::new(fs);
        let background = Background::start(fs.clone(), 3, std::time::Duration::from_millis(1 + seed % 5)).unwrap();
        for fill in 0..200 {
            step(&fs, &mut files, &mut prng, fill + 1);
        }
        background.stop().unwrap();
        let fs = Arc::into_inner(fs).expect("the threads are gone");
        let rig = Rig { clock, fs };
        check(&rig, &files, &format!("seed {seed}"));
        check_settled(&rig, &files, 0, &format!("seed {seed}"));
        check(&rig.crash(), &files, &format!("seed {seed} after a remount"));
    }
}
