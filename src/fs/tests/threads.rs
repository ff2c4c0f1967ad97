use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::base::file::{RenameMode, SetAttr, XattrSet};

const THREADS: u64 = 4;
const STEPS: u64 = 400;

/// Answers that concurrent changes of the same names may give.
fn expected(error: &Error) -> bool {
    matches!(
        error,
        Error::NotFound
            | Error::Exists
            | Error::NotEmpty
            | Error::IsDirectory
            | Error::NotDirectory
            | Error::Invalid(_)
            | Error::NoAttribute
            | Error::NotPermitted
    )
}

struct Worker<'f> {
    fs: &'f Fs,
    prng: Prng,
    /// References held: what is in here must answer.
    held: Vec<Ino>,
}

impl Worker<'_> {
    fn name(&mut self) -> Vec<u8> {
        format!("name{}", self.prng.below(8)).into_bytes()
    }

    fn any(&mut self) -> Ino {
        self.held[self.prng.below(self.held.len() as u64) as usize]
    }

    fn keep(&mut self, entry: Result<Entry>) -> Result<()> {
        self.held.push(entry?.attr.ino);
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        let fs = self.fs;
        let (dir, other, name, new_name) = (self.any(), self.any(), self.name(), self.name());
        match self.prng.below(13) {
            0 | 1 => self.keep(fs.mknod(&USER, dir, &name, 0o100_644, 0)),
            2 => self.keep(fs.mkdir(&USER, dir, &name, 0o755)),
            3 => self.keep(fs.tmpfile(&USER, dir, 0o600)),
            4 => self.keep(fs.lookup(&USER, dir, &name)),
            5 => self.keep(fs.link(&USER, other, dir, &name)),
            6 => fs.unlink(&USER, dir, &name),
            7 => fs.rmdir(&USER, dir, &name),
            8 | 9 => {
                let mode = [RenameMode::Replace, RenameMode::Exchange][self.prng.below(2) as usize];
                fs.rename(&USER, dir, &name, other, &new_name, mode)
            }
            10 => fs.set_xattr(&ADMIN, other, b"user.x", &new_name, XattrSet::Any, false),
            11 => {
                let mut taken = Vec::new();
                fs.readdir_plus(dir, 0, &mut |_, entry| {
                    taken.extend(entry.map(|entry| entry.attr.ino));
                    Sink::Taken
                })?;
                self.held.append(&mut taken);
                Ok(())
            }
            _ => fs.setattr(&USER, other, &SetAttr { mode: Some(0o640), ..SetAttr::default() }).map(drop),
        }
    }

    fn run(&mut self) {
        for step in 0..STEPS {
            if let Err(error) = self.step() {
                assert!(expected(&error), "step {step}: {error:?}");
            }
            while self.held.len() > 12 {
                let at = 1 + self.prng.below(self.held.len() as u64 - 1) as usize;
                self.fs.forget(self.held.swap_remove(at), 1);
            }
            let ino = self.any();
            self.fs.getattr(ino).unwrap_or_else(|error| panic!("step {step}: inode {ino} is held, but: {error:?}"));
        }
        for ino in self.held.drain(1..) {
            self.fs.forget(ino, 1);
        }
    }
}

#[test]
fn concurrent_changes_leave_everything_consistent() {
    for seed in 0..4 {
        let rig = Rig::new();
        let finished = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let fs = &rig.fs;
                    let prng = Prng::new(seed * THREADS + thread);
                    scope.spawn(move || Worker { fs, prng, held: vec![ROOT] }.run())
                })
                .collect();
            let reclaimer = scope.spawn(|| {
                while !finished.load(Ordering::Relaxed) {
                    rig.reclaim_all().unwrap();
                    rig.syncfs().unwrap();
                    std::thread::yield_now();
                }
            });
            let outcomes: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            finished.store(true, Ordering::Relaxed);
            reclaimer.join().unwrap();
            assert!(outcomes.into_iter().all(|outcome| outcome.is_ok()), "seed {seed}");
        });
        assert_eq!(rig.inodes.counts().0, 0, "seed {seed}: references are left");
        rig.check();
        rig.reclaim_all().unwrap();
        rig.check();
        assert_eq!(rig.rows()[3], 0, "seed {seed}: orphans are left");
    }
}

#[test]
fn lookups_see_every_name_while_it_is_replaced() {
    let rig = Rig::new();
    rig.file(ROOT, b"target");
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looker = scope.spawn(|| {
            while !finished.load(Ordering::Relaxed) {
                let entry = rig.lookup(&USER, ROOT, b"target").expect("the name is always there");
                rig.getattr(entry.attr.ino).expect("a reference is held");
                rig.forget(entry.attr.ino, 1);
                rig.reclaim_all().unwrap();
            }
        });
        for _ in 0..500 {
            let entry = rig.file(ROOT, b"new");
            rig.forget(entry.attr.ino, 1);
            rig.rename(&USER, ROOT, b"new", ROOT, b"target", RenameMode::Replace).unwrap();
        }
        finished.store(true, Ordering::Relaxed);
        looker.join().unwrap();
    });
    rig.check();
}
