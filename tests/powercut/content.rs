//! The store on a whole pool, driven by chance: content and its maintenance, failing devices, killed processes.
//!
//! Every transaction that changes content carries the number of the state it makes (see [`History`]), so a recovered pool
//! is compared with exactly one state, byte for byte.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use argosfs::base::{Error, Ino, Prng, Result};
use argosfs::check::{ExportHeader, export_archive};
use argosfs::device::sim::SimWorld;
use argosfs::format::rows::{ConfigKey, Counter, DentryKey, DentryRow, InodeRow};
use argosfs::format::table::{Config, Dentries, Inodes};
use argosfs::fs::{Fs, RootOwner};
use argosfs::meta::names::{NAME_KEY, NameHasher};
use argosfs::meta::{Reader, Tx};
use argosfs::store::{PoolMembership, Store};

use crate::campaign::{Verdict, While, trace};
use crate::history::{Files, History};
use crate::process::Process;
use crate::stack::{self, Mounted, Shape};

pub const FILES: u64 = 6;
const FIRST: u64 = 2;
const NUMBER: &[u8] = b"powercut.state";

/// Why a device does not count as one of those that may still be lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weak {
    /// Not there now; what is on it is as it was.
    Absent,
    /// There, but it holds wrong or old bytes.
    Suspect,
    /// Nothing is left on it.
    Blank,
}

/// Members of the pool and those of them that are weak.
#[derive(Clone, Debug, Default)]
pub struct Health {
    pub members: BTreeSet<usize>,
    pub weak: BTreeMap<usize, Weak>,
}

/// A pool that was opened after a power cut.
pub struct Recovered {
    pub world: SimWorld,
    pub mounted: Mounted,
    pub opened_from: BTreeSet<usize>,
    pub history: History,
    pub health: Health,
}

/// A pool in use.
pub struct Run {
    pub world: SimWorld,
    pub shape: Shape,
    pub history: History,
    pub opened_from: BTreeSet<usize>,
    pub mounted: Option<Mounted>,
    pub prng: Prng,
    health: Vec<(u64, Health)>,
    pub files: Files,
    /// What did not go as wanted, and was allowed not to.
    pub notes: Vec<String>,
}

/// The inode of a file.
pub fn ino(file: usize) -> Ino {
    Ino(FIRST + file as u64)
}

impl Run {
    /// Makes a pool with a few empty files in it.
    pub fn format(seed: u64, shape: Shape) -> Verdict<Run> {
        let world = SimWorld::new(seed, shape.devices, shape.size);
        let mounted = stack::format(&world, &shape, seed).during(|| "format".into())?;
        let made = mounted.store.transact(|tx, _| lay_out(tx));
        made.and_then(|()| mounted.store.durable_point()).during(|| "making files".into())?;
        let files: Files = (0..FILES).map(|_| Arc::default()).collect();
        let health = Health { members: (0..shape.devices).collect(), weak: BTreeMap::new() };
        Ok(Run {
            history: History::new(world.record(), files.clone()),
            opened_from: health.members.clone(),
            health: vec![(0, health)],
            mounted: Some(mounted),
            prng: Prng::new(seed ^ 0x5eed),
            world,
            shape,
            files,
            notes: Vec::new(),
        })
    }

    /// Goes on with what was recovered.
    pub fn resume(from: Recovered, shape: Shape, prng: &mut Prng) -> Run {
        let files = from.history.steps[&from.history.current()].files.clone();
        Run {
            world: from.world,
            shape,
            history: from.history,
            opened_from: from.opened_from,
            mounted: Some(from.mounted),
            prng: Prng::new(prng.next()),
            health: vec![(0, from.health)],
            files,
            notes: Vec::new(),
        }
    }

    /// Health at an event.
    pub fn health_at(&self, event: u64) -> &Health {
        let known = self.health.iter().rev().find(|(from, _)| *from <= event);
        &known.unwrap_or(&self.health[0]).1
    }

    pub fn health(&self) -> Health {
        self.health.last().expect("there is always one").1.clone()
    }

    pub fn set_health(&mut self, event: u64, health: Health) {
        self.health.push((event, health));
    }

    pub fn store(&self) -> &Store {
        &self.mounted().store
    }

    pub fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().expect("mounted while it runs")
    }

    /// Some steps; the process ends in the middle of things, or not.
    pub fn steps(&mut self, count: usize) -> Verdict {
        for _ in 0..count {
            let dies = self.prng.chance(1, 25);
            if dies {
                let requests = self.prng.below(60);
                self.mounted().process.die_after(requests);
            }
            let outcome = self.step();
            if self.mounted.is_none() {
                return outcome;
            }
            if self.mounted().process.is_dead() {
                self.restart()?;
            } else {
                self.mounted().process.die_after(u64::MAX);
                outcome?;
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Verdict {
        match self.prng.below(100) {
            0..40 => self.commit(),
            40..46 => self.punch(),
            46..51 => self.shrink(),
            51..59 => self.share(),
            59..62 => self.promise(),
            62..63 => self.sprinkle(),
            63..75 => self.durable_point(),
            75..80 => self.maintain("checkpoint", |store| store.meta().checkpoint().map(|()| true)),
            80..83 => self.maintain("reclaim", |store| {
                while let Some(truncate) = store.next_truncate()? {
                    if store.transact(|tx, ledger| store.truncate_step(tx, &truncate, ledger))?.0 {
                        store.end_truncate(&truncate);
                    }
                }
                Ok(false)
            }),
            83..86 => self.maintain("tidy", |store| {
                while store.tidy_step(true)? || store.discard_step()? {}
                Ok(false)
            }),
            86..87 => self.archive(),
            87..88 => self.maintain("trim", |store| store.trim(&mut |_| true).map(|_| false)),
            88..89 => self.maintain("scrub", |store| store.scrub(&mut |_| true).map(|_| true)),
            89..91 => self.maintain("rebuild", |store| store.rebuild(&mut |_| true).map(|_| true)),
            91..92 => self.evacuate(),
            92..94 => self.replace(),
            94..96 => self.weaken(),
            96..98 => self.heal(),
            _ => self.remount(),
        }
    }

    /// Unmounts and mounts.
    fn remount(&mut self) -> Verdict {
        let mounted = self.mounted.take().expect("mounted while it runs");
        trace(|| format!("{}: close", self.world.record()));
        let closed = mounted.store.close();
        if !mounted.process.is_dead() {
            closed.during(|| "close".into())?;
            self.history.durable_from(self.world.record());
        }
        self.open_again()
    }

    /// The process was killed: another one takes over. What was not durable is lost.
    fn restart(&mut self) -> Verdict {
        trace(|| format!("{}: killed", self.world.record()));
        drop(self.mounted.take());
        self.open_again()
    }

    /// Opens the pool from all devices that are there.
    fn open_again(&mut self) -> Verdict {
        let health = self.health();
        let devices: Vec<usize> = (0..self.world.len())
            .filter(|index| health.weak.get(index) != Some(&Weak::Absent) || !health.members.contains(index))
            .collect();
        let before = self.world.record();
        let salt = self.prng.next();
        let mounted = stack::open(&self.world, &devices, &Process::new(), salt).during(|| "open again".into())?;
        trace(|| {
            format!(
                "{}: opened from {devices:?}: {:?}",
                self.world.record(),
                mounted.store.pool().map(|pool| pool.take_notes())
            )
        });
        self.opened_from = devices.into_iter().collect();
        let found = number_of(&mounted.store)?;
        let step = self.history.judge(before, found).map_err(|why| format!("after a restart: {why}"))?;
        self.files = step.files.clone();
        self.history.fall_back(found);
        self.mounted = Some(mounted);
        // What was lost is not to come back: the next state says so.
        let files = self.files.clone();
        self.change("restart".into(), files, |store, number| store.transact(|tx, _| mark(tx, number)))?;
        self.durable_point()
    }

    /// Everything reads back as the model says, and the tables agree with each other.
    pub fn verify(&self) -> Verdict {
        verify(self.store(), &self.files)
    }

    /// Ends without a word.
    pub fn leave(&mut self) {
        drop(self.mounted.take());
    }
}

/// Compares every file, and lets fsck look.
pub fn verify(store: &Store, files: &Files) -> Verdict {
    for (file, expected) in files.iter().enumerate() {
        let mut found = vec![0xee; expected.len()];
        store.read(ino(file), 0, &mut found).during(|| format!("reading {}", ino(file)))?;
        if found != **expected {
            let at = found.iter().zip(expected.iter()).position(|(found, expected)| found != expected).unwrap_or(0);
            return Err(format!("file {} differs from byte {at} on, of {}", ino(file), expected.len()));
        }
        let row = store.view(|view| view.get::<Inodes>(&ino(file))).during(|| "inode".into())?;
        let size = row.map_or(0, |row| row.size);
        if size != expected.len() as u64 {
            return Err(format!("file {} has {size} bytes instead of {}", ino(file), expected.len()));
        }
    }
    stack::check(store)?;
    archives_are_whole(store)
}

/// Every archive that the labels name can be read, and is of a state that is durable.
fn archives_are_whole(store: &Store) -> Verdict {
    let Some(pool) = store.pool() else { return Ok(()) };
    let state = pool.state();
    let header = ExportHeader { pool: state.label.uuid, name: state.label.name.clone() };
    let media = PoolMembership(pool.clone());
    for archive in &state.label.archives {
        let of = || format!("the archive of transaction {}", archive.txn);
        if archive.txn > store.meta().durable().0 {
            return Err(format!("{} is of a state that was lost", of()));
        }
        export_archive(&media, &header, archive, &mut |_| Ok(())).during(of)?;
    }
    Ok(())
}

/// Which state the metadata claims to be.
pub fn number_of(store: &Store) -> Verdict<u64> {
    let row = store.view(|view| view.get::<Config>(&ConfigKey { name: NUMBER.to_vec() })).during(|| "number".into())?;
    let bytes = row.ok_or("the metadata holds no state at all")?;
    Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| "a state's number has 8 bytes")?))
}

/// Writes the number of the state that the transaction makes.
pub fn mark(tx: &mut Tx<'_>, number: u64) -> Result<()> {
    tx.put::<Config>(&ConfigKey { name: NUMBER.to_vec() }, &number.to_le_bytes().to_vec())
}

/// A root directory with files in it.
fn lay_out(tx: &mut Tx<'_>) -> Result<()> {
    Fs::format(tx, &mut Prng::new(1), RootOwner::default())?;
    let Some(root) = tx.get::<Inodes>(&Ino::ROOT)? else { return Err(Error::Stale) };
    let key = tx.get::<Config>(&ConfigKey { name: NAME_KEY.to_vec() })?.and_then(|key| key.try_into().ok());
    let hasher = NameHasher::new(key.ok_or(Error::Stale)?);
    tx.put::<Inodes>(&Ino::ROOT, &InodeRow { entries: FILES, ..root.clone() })?;
    for file in 0..FILES as usize {
        let row = InodeRow { mode: 0o100_644, nlink: 1, parent: Ino(0), ..root.clone() };
        tx.put::<Inodes>(&ino(file), &row)?;
        let name = format!("file{file}").into_bytes();
        let key = DentryKey { parent: Ino::ROOT, cookie: hasher.base(&name) };
        tx.put::<Dentries>(&key, &DentryRow { ino: ino(file), kind: 8, birth: tx.id(), name })?;
    }
    tx.set_counter(Counter::NextIno, FIRST + FILES)?;
    tx.set_counter(Counter::Inodes, 1 + FILES)?;
    mark(tx, 0)
}
