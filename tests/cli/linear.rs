//! The namespace of a mounted pool under many threads: what the kernel tells each of them could have been told to them one after
//! the other. The model is that of the filesystem's own tests.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

use argosfs::base::file::{FileType, RenameMode, SetAttr};
use argosfs::base::rng::mix64;
use argosfs::base::{Prng, Timestamp};
use argosfs::fs::model::Model;
use argosfs::fs::model::linear::{DIR, Event, FILE, OWN, linearise, make, random_names_op};
use argosfs::fs::op::{Name, Op, Outcome, Refusal, SLOTS, Slot, Who, link_target};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::*;

/// What is handed out by an operation that gives no descriptor goes here, and is never used.
const NOBODY: Slot = Slot(11);

/// A thread that makes system calls. Its slots are descriptors.
struct Caller {
    slots: Vec<Option<Arc<OwnedFd>>>,
}

impl Caller {
    fn at(&self, slot: Slot) -> Option<BorrowedFd<'_>> {
        self.slots[usize::from(slot.0)].as_deref().map(AsFd::as_fd)
    }

    fn perform(&mut self, op: &Op) -> Outcome {
        match self.call(op) {
            Some(Ok(outcome)) => outcome,
            Some(Err(errno)) => Outcome::Refused(refusal(errno)),
            None => Outcome::Skipped,
        }
    }

    /// `None` when a slot holds nothing.
    fn call(&mut self, op: &Op) -> Option<rustix::io::Result<Outcome>> {
        let done = |result: rustix::io::Result<()>| result.map(|()| Outcome::Done);
        Some(match *op {
            Op::Lookup { dir, name, to } => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = rustix::fs::openat(self.at(dir)?, name.bytes(), flags, Mode::empty());
                opened.map(|found| self.keep(to, found))
            }
            Op::Tmpfile { dir, mode, to, .. } => {
                let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
                let opened = rustix::fs::openat(self.at(dir)?, ".", flags, Mode::from_raw_mode(mode));
                opened.map(|made| self.keep(to, made))
            }
            Op::Make { dir, name, kind, mode, seed, .. } => {
                let (dir, name, mode) = (self.at(dir)?, name.bytes(), Mode::from_raw_mode(mode));
                done(match kind {
                    FileType::Directory => rustix::fs::mkdirat(dir, name, mode),
                    FileType::Symlink => rustix::fs::symlinkat(link_target(seed), dir, name),
                    _ => rustix::fs::mknodat(dir, name, rustix::fs::FileType::RegularFile, mode, 0),
                })
            }
            Op::Link { inode, dir, name } => {
                done(rustix::fs::linkat(self.at(inode)?, "", self.at(dir)?, name.bytes(), AtFlags::EMPTY_PATH))
            }
            Op::Unlink { dir, name } => done(rustix::fs::unlinkat(self.at(dir)?, name.bytes(), AtFlags::empty())),
            Op::Rmdir { dir, name } => done(rustix::fs::unlinkat(self.at(dir)?, name.bytes(), AtFlags::REMOVEDIR)),
            Op::Rename { dir, name, new_dir, new_name, mode } => {
                let flags = match mode {
                    RenameMode::Replace => RenameFlags::empty(),
                    RenameMode::NoReplace => RenameFlags::NOREPLACE,
                    RenameMode::Exchange => RenameFlags::EXCHANGE,
                };
                let (dir, new_dir) = (self.at(dir)?, self.at(new_dir)?);
                done(rustix::fs::renameat_with(dir, name.bytes(), new_dir, new_name.bytes(), flags))
            }
            Op::SetAttr { inode, changes, .. } => {
                let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.at(inode)?));
                done(rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(changes.mode.unwrap_or(0)), AtFlags::empty()))
            }
            Op::GetAttr { inode } => {
                // Only what no other call is needed for: the kernel keeps the rest for itself.
                rustix::fs::fstat(self.at(inode)?).map(|stat| Outcome::Count(u64::from(stat.st_mode)))
            }
            Op::List { dir } => self.list(dir)?,
            _ => unreachable!("not in the vocabulary: {op:?}"),
        })
    }

    fn keep(&mut self, slot: Slot, file: OwnedFd) -> Outcome {
        self.slots[usize::from(slot.0)] = Some(Arc::new(file));
        Outcome::Done
    }

    fn list(&self, dir: Slot) -> Option<rustix::io::Result<Outcome>> {
        let read = |dir: BorrowedFd<'_>| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(dir, ".", flags, Mode::empty())?;
            let mut names = Vec::new();
            for entry in rustix::fs::Dir::new(opened)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes().to_vec();
                if name != b"." && name != b".." {
                    let kind = match entry.file_type() {
                        rustix::fs::FileType::Directory => FileType::Directory,
                        rustix::fs::FileType::Symlink => FileType::Symlink,
                        _ => FileType::Regular,
                    };
                    names.push((name, kind));
                }
            }
            names.sort();
            Ok(Outcome::Names(names))
        };
        Some(read(self.at(dir)?))
    }
}

/// That something was refused matters, not why: the kernel checks some things before it asks, and in an order of its own.
fn refusal(errno: Errno) -> Refusal {
    match errno {
        Errno::NOENT
        | Errno::EXIST
        | Errno::NOTDIR
        | Errno::ISDIR
        | Errno::NOTEMPTY
        | Errno::INVAL
        | Errno::PERM
        | Errno::LOOP
        | Errno::STALE
        | Errno::MLINK
        | Errno::BUSY => Refusal::NotFound,
        other => panic!("{other}"),
    }
}

fn agrees(model: &Outcome, told: &Outcome) -> bool {
    match (model, told) {
        (Outcome::Refused(_), Outcome::Refused(_)) | (Outcome::Attr(_), Outcome::Done) => true,
        (Outcome::Attr(shown), Outcome::Count(mode)) => u64::from(shown.mode) == *mode,
        _ => model == told,
    }
}

/// An operation by chance. Listing a directory takes several calls: a name that moves meanwhile may be seen twice.
fn random_op(prng: &mut Prng, own: Slot) -> Op {
    let inode = [FILE, DIR][prng.below(2) as usize];
    match prng.below(15) {
        0..=11 => {
            let linked = [FILE, own][prng.below(2) as usize];
            random_names_op(prng, own, NOBODY, linked)
        }
        12 | 13 => Op::GetAttr { inode },
        _ => {
            let changes = SetAttr { mode: Some(0o600 + prng.below(8) as u32), ..SetAttr::default() };
            Op::SetAttr { who: Who::ROOT, inode, changes }
        }
    }
}

/// One round in a directory of its own.
fn round(parent: &Path, seed: u64, threads: usize, steps: usize) {
    let root = parent.join(format!("round {seed}"));
    rustix::fs::mkdir(&root, Mode::from_raw_mode(0o755)).expect("makes");
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut first = Caller { slots: vec![None; SLOTS] };
    first.slots[0] = Some(Arc::new(rustix::fs::open(&root, flags, Mode::empty()).expect("opens")));
    let now = Timestamp::default();
    let mut model = Model::new(now);
    let opening = [
        make(Slot::ROOT, Name(3), FileType::Directory, NOBODY),
        make(Slot::ROOT, Name(0), FileType::Regular, NOBODY),
        Op::Lookup { dir: Slot::ROOT, name: Name(3), to: DIR },
        Op::Lookup { dir: Slot::ROOT, name: Name(0), to: FILE },
    ];
    for op in opening {
        let told = first.perform(&op);
        assert!(agrees(&model.apply(&op, now), &told), "{op:?}: {told:?}");
    }
    let (time, start) = (AtomicU64::new(1), Barrier::new(threads));
    let record = |caller: &mut Caller, thread: usize, op: Op| {
        let called = time.fetch_add(1, Ordering::SeqCst);
        let outcome = caller.perform(&op);
        Event { thread, called, returned: time.fetch_add(1, Ordering::SeqCst), op, outcome }
    };
    let mut events: Vec<Event> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let mut caller = Caller { slots: first.slots.clone() };
                let (record, start) = (&record, &start);
                let mut prng = Prng::new(mix64(seed) ^ mix64(thread as u64));
                let own = Slot(OWN + thread as u8);
                scope.spawn(move || {
                    start.wait();
                    (0..steps).map(|_| record(&mut caller, thread, random_op(&mut prng, own))).collect::<Vec<_>>()
                })
            })
            .collect();
        running.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    for op in [Op::List { dir: Slot::ROOT }, Op::List { dir: DIR }, Op::GetAttr { inode: FILE }] {
        events.push(record(&mut first, threads, op));
    }
    if let Err(impossible) = linearise(&model, &events, now, &agrees) {
        panic!("ARGOSFS_SEED={seed}: {impossible}");
    }
    drop(first);
    fs::remove_dir_all(&root).expect("removes");
}

#[test]
fn what_threads_are_told_on_a_mount_has_an_order() {
    if !can_mount("what_threads_are_told_on_a_mount_has_an_order") {
        return;
    }
    let bench = Bench::new("linear");
    bench.mkfs("tank", 3);
    bench.ok(&["mount", &bench.image(0), &bench.mnt()]);
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (first, count) = match number("ARGOSFS_SEED") {
        Some(seed) => (seed, 1),
        None => (number("ARGOSFS_FIRST_SEED").unwrap_or(0), number("ARGOSFS_SEEDS").unwrap_or(300)),
    };
    for seed in first..first + count {
        round(&bench.root.join("mnt"), seed, 2 + (seed % 3) as usize, 6);
    }
    bench.ok(&["umount", &bench.mnt()]);
    assert!(bench.ok(&["fsck", "--data", &bench.image(0)]).contains("clean"));
}
