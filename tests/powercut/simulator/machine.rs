//! A whole filesystem on simulated devices that performs operations, and what its model says of each of them.

use std::sync::Arc;

use argosfs::base::clock::ManualClock;
use argosfs::base::{Clock, Prng, Result};
use argosfs::device::sim::SimWorld;
use argosfs::fs::model::{Model, read_tree};
use argosfs::fs::op::{Driver, Op, Outcome, Refusal};
use argosfs::fs::{Fs, Options, RootOwner};
use argosfs::store::Store;

use super::past::{Past, Version};
use crate::campaign::{Verdict, While, trace};
use crate::process::Process;
use crate::stack::{self, Mounted, Shape};

/// What the simulator does: an operation, or what a filesystem does by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    Op(Op),
    /// The log is emptied into home.
    Checkpoint,
    /// Content that lies scattered is put together, freed blocks are discarded.
    Tidy,
    /// The end of a run, as by `argosfs umount`.
    Umount,
}

/// A pool with something in it, unmounted, from which every run starts.
pub struct Base {
    pub shape: Shape,
    pub world: SimWorld,
    model: Model,
    seconds: u64,
    /// Done at the start of each run: puts into slots what the runs are about.
    pub opening: Vec<Act>,
}

/// A run.
pub struct Machine {
    pub world: SimWorld,
    pub past: Past,
    driver: Option<Driver>,
    clock: Arc<ManualClock>,
}

/// What came of an act.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// As the model says.
    Well,
    /// Storage failed, and the caller was told.
    Told,
    /// There was no space, and the caller was told.
    Full,
}

impl Act {
    /// Whether it only takes something away.
    pub fn only_frees(&self) -> bool {
        let Act::Op(op) = self else { return false };
        matches!(op, Op::Unlink { .. } | Op::Rmdir { .. } | Op::RemoveXattr { .. } | Op::Forget { .. } | Op::Reclaim)
    }

    /// Whether it may be refused for want of space: what adds something, not what frees some, and not what makes durable
    /// what was taken in.
    pub fn may_find_no_space(&self) -> bool {
        let Act::Op(op) = self else { return false };
        matches!(
            op,
            Op::Make { .. }
                | Op::Tmpfile { .. }
                | Op::Link { .. }
                | Op::Rename { .. }
                | Op::Write { .. }
                | Op::Fallocate { .. }
                | Op::Copy { .. }
                | Op::SetXattr { .. }
                | Op::SetAcl { .. }
        )
    }
}

/// How it ends when no model foretells the outcome; `None` when that must not be.
fn unforeseen(outcome: &Outcome) -> Option<Ended> {
    match outcome {
        Outcome::Refused(Refusal::Storage) => Some(Ended::Told),
        Outcome::Refused(Refusal::NoSpace) => Some(Ended::Full),
        _ => None,
    }
}

/// What came of something that no caller asked for.
fn upkeep(done: Result<()>) -> (Outcome, Ended) {
    match done {
        Ok(()) => (Outcome::Done, Ended::Well),
        Err(error) => {
            let outcome = Outcome::Refused(Refusal::from(&error));
            let ended = unforeseen(&outcome).unwrap_or(Ended::Told);
            (outcome, ended)
        }
    }
}

impl Base {
    /// Formats a pool, does `preamble`, unmounts.
    pub fn new(shape: Shape, seed: u64, preamble: &[Act], opening: &[Act]) -> Verdict<Base> {
        let world = SimWorld::new(seed, shape.devices, shape.size);
        let mounted = stack::format(&world, &shape, seed).during(|| "format".into())?;
        let made = mounted.store.transact(|tx, _| Fs::format(tx, &mut Prng::new(seed), RootOwner::default()));
        made.and_then(|()| mounted.store.close()).during(|| "format".into())?;
        let model = Model::new(ManualClock::default().now());
        let empty = Base { shape, world, model, seconds: 0, opening: Vec::new() };
        let mut machine = empty.start(seed)?;
        for act in preamble.iter().chain([&Act::Umount]) {
            machine.act(act)?;
        }
        let (world, mut model) = (machine.world.fork(), machine.past.now().model.clone());
        model.apply(&Op::Remount, machine.clock.now());
        let seconds = machine.clock.monotonic_ns() / 1_000_000_000;
        Ok(Base { shape, world, model, seconds, opening: opening.to_vec() })
    }

    /// A run on a pool of its own. What opening did is not in its record.
    pub fn start(&self, seed: u64) -> Verdict<Machine> {
        let world = self.world.fork();
        let clock = Arc::new(ManualClock::default());
        clock.advance_ns(self.seconds * 1_000_000_000);
        let all: Vec<usize> = (0..world.len()).collect();
        let opened = stack::open_at(&world, &all, &Process::new(), seed, clock.clone());
        let Mounted { store, .. } = opened.during(|| "open".into())?;
        let fs = Fs::open(Arc::new(store), Options::default()).during(|| "open".into())?;
        world.mark_base();
        let past = Past::new(self.model.clone());
        let mut machine = Machine { world, past, driver: Some(Driver::new(fs, clock.clone())), clock };
        for act in &self.opening {
            machine.act(act)?;
        }
        Ok(machine)
    }
}

impl Machine {
    /// Does one thing; nothing may fail.
    pub fn act(&mut self, act: &Act) -> Verdict {
        match self.try_act(act)? {
            Ended::Well => Ok(()),
            Ended::Told | Ended::Full => Err(format!("{act:?}: {}", self.error())),
        }
    }

    /// Does one thing while storage may fail: then it is in the past as something that may have happened.
    pub fn try_act(&mut self, act: &Act) -> Verdict<Ended> {
        let began = self.world.record();
        let Some(driver) = &mut self.driver else { return Err(format!("{act:?} after the end")) };
        let mut model = self.past.now().model.clone();
        let (outcome, ended) = match act {
            Act::Op(op) => {
                let (now, outcome) = driver.apply(op);
                let ended = match (model.check(op, now, &outcome), unforeseen(&outcome)) {
                    (Ok(()), _) => Ended::Well,
                    (Err(_), Some(ended)) => ended,
                    (Err(why), None) => return Err(format!("{op:?}: {why}: {:?}", driver.error())),
                };
                (outcome, ended)
            }
            Act::Checkpoint | Act::Tidy => {
                let store = driver.fs().store();
                let done = match act {
                    Act::Checkpoint => store.meta().checkpoint(),
                    _ => store.tidy_step(true).and_then(|_| store.discard_step()).map(drop),
                };
                upkeep(done)
            }
            Act::Umount => {
                let fs = self.driver.take().expect("there is one").into_fs();
                fs.forget_all();
                let done = fs.syncfs().and_then(|()| {
                    let store = fs.store().clone();
                    drop(fs);
                    Arc::into_inner(store).expect("nobody else holds the store").close()
                });
                upkeep(done)
            }
        };
        trace(|| format!("{began}..{}: {act:?}: {outcome:?}", self.world.record()));
        let times = (began, self.world.record());
        self.past.add(Version::of(self.past.now(), *act, times, model, ended == Ended::Well));
        Ok(ended)
    }

    /// Compares the live tree with the model. What was told to have failed is there as a whole or not at all, and is
    /// from now on certain. Says whether the filesystem can still be used: not when it has ended itself, and not when it
    /// cannot be read after more devices failed than it survives (`overwhelmed`).
    pub fn settle(&mut self, overwhelmed: bool) -> Verdict<bool> {
        let Some(driver) = &mut self.driver else { return Ok(false) };
        let found = match read_tree(driver.fs()) {
            Ok(found) => found,
            Err(error) if overwhelmed || driver.fs().store().meta().check().is_err() => {
                trace(|| format!("out of use: {error}"));
                return Ok(false);
            }
            Err(error) => return Err(format!("reading while it runs: {error}")),
        };
        if driver.fs().store().meta().check().is_err() {
            return Ok(false);
        }
        self.past.settle(found, self.clock.now()).map(|()| true)
    }

    /// The store below, while it runs.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.driver.as_ref().map(|driver| driver.fs().store())
    }

    /// The newest error.
    pub fn error(&self) -> String {
        self.driver.as_ref().and_then(Driver::error).map_or_else(String::new, ToString::to_string)
    }

    /// The process ends without another word.
    pub fn leave(&mut self) {
        self.driver = None;
    }
}
