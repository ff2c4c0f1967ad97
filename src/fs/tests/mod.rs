//! Tests of the filesystem without devices and without a transport.

mod against_model;
mod attributes;
mod consistency;
mod content;
mod content_devices;
mod content_model;
mod content_threads;
mod linear;
mod listing;
mod names;
mod orphans;
#[cfg(feature = "shuttle")]
mod shuttle;
mod stalls;
mod threads;
mod xattrs;

use std::sync::Arc;

use super::{Fs, Options, RootOwner};
use crate::base::clock::ManualClock;
use crate::base::file::{Attr, Caller, Entry, FileType, Sink};
use crate::base::{Clock, Error, Ino, Prng, Result, Timestamp};
use crate::format::rows::Counter;
use crate::format::table::{Dentries, Inodes, Orphans, Xattrs};
use crate::meta::{Reader, Visit};
use crate::store::Store;

const ROOT: Ino = Ino::ROOT;
const USER: Caller = Caller { uid: 1000, gid: 100, pid: 1, umask: 0o022 };
const ADMIN: Caller = Caller::ROOT;

/// A filesystem in memory and the clock it lives by, which moves a second with each look at [`Rig::now`].
struct Rig {
    clock: Arc<ManualClock>,
    fs: Fs,
}

impl std::ops::Deref for Rig {
    type Target = Fs;
    fn deref(&self) -> &Fs {
        &self.fs
    }
}

impl Rig {
    fn new() -> Rig {
        Rig::with(Options::default())
    }

    fn with(options: Options) -> Rig {
        let clock = Arc::new(ManualClock::default());
        let store = Arc::new(Store::in_memory(clock.clone(), 1 << 30).unwrap());
        store.transact(|tx, _| Fs::format(tx, &mut Prng::new(1), RootOwner::default())).unwrap();
        Rig { clock, fs: Fs::open(store, options).unwrap() }
    }

    /// Moves the clock and returns the new time.
    fn now(&self) -> Timestamp {
        self.clock.advance_ns(1_000_000_000);
        self.clock.now()
    }

    /// The same store under a new filesystem, as after unmount and mount.
    fn remount(self) -> Rig {
        let Rig { clock, fs } = self;
        let store = fs.store().clone();
        drop(fs);
        Rig { clock, fs: Fs::open(store, Options::default()).unwrap() }
    }

    fn file(&self, parent: Ino, name: &[u8]) -> Entry {
        self.fs.mknod(&USER, parent, name, 0o100_644, 0).unwrap()
    }

    fn dir(&self, parent: Ino, name: &[u8]) -> Entry {
        self.fs.mkdir(&USER, parent, name, 0o755).unwrap()
    }

    fn find(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let entry = self.fs.lookup(&USER, parent, name)?;
        self.fs.forget(entry.attr.ino, 1);
        Ok(entry.attr)
    }

    fn attr(&self, ino: Ino) -> Attr {
        self.fs.getattr(ino).unwrap()
    }

    /// Names of a directory in the order of the listing, without dots.
    fn names(&self, dir: Ino) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        self.fs
            .readdir(dir, 2, &mut |entry| {
                names.push(entry.name.to_vec());
                Sink::Taken
            })
            .unwrap();
        names
    }

    /// Rows of the tables: inodes, names, attribute pieces, orphans; the counter of inodes agrees with the first.
    fn rows(&self) -> [usize; 4] {
        self.fs
            .store()
            .view(|view| {
                let all = || (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
                let mut rows = [0; 4];
                view.scan::<Inodes>(all(), |_, _| {
                    rows[0] += 1;
                    Ok(Visit::Continue(()))
                })?;
                view.scan::<Dentries>((std::ops::Bound::Unbounded, std::ops::Bound::Unbounded), |_, _| {
                    rows[1] += 1;
                    Ok(Visit::Continue(()))
                })?;
                view.scan::<Xattrs>((std::ops::Bound::Unbounded, std::ops::Bound::Unbounded), |_, _| {
                    rows[2] += 1;
                    Ok(Visit::Continue(()))
                })?;
                view.scan::<Orphans>((std::ops::Bound::Unbounded, std::ops::Bound::Unbounded), |_, ()| {
                    rows[3] += 1;
                    Ok(Visit::Continue(()))
                })?;
                assert_eq!(view.counter(Counter::Inodes)?, rows[0] as u64);
                Ok(rows)
            })
            .unwrap()
    }

    /// Rows in the journal, which is intact.
    fn journal(&self) -> u64 {
        self.fs.store().view(|view| crate::meta::journal::verify(view)).unwrap()
    }

    /// Runs `operation` and checks that it was one transaction with one journal row.
    fn one_transaction<T>(&self, operation: impl FnOnce(&Fs) -> Result<T>) -> T {
        let meta = self.fs.store().meta();
        let (txn, rows) = (meta.committed(), self.journal());
        let answer = operation(&self.fs).unwrap();
        assert_eq!(meta.committed().0, txn.0 + 1, "not exactly one transaction");
        assert_eq!(self.journal(), rows + 1, "not exactly one journal row");
        answer
    }
}

/// Checks the kind of an error.
macro_rules! refused {
    ($result:expr, $($error:tt)+) => {
        match $result {
            Err(Error::$($error)+) => {}
            other => panic!("expected {}, got {other:?}", stringify!($($error)+)),
        }
    };
}
use refused;
