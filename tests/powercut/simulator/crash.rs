//! Power cuts of a run: every state is opened, read, judged and checked, some are cut again or lose devices as well.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use argosfs::base::clock::ManualClock;
use argosfs::base::file::Caller;
use argosfs::base::{Ino, Prng};
use argosfs::device::sim::SimWorld;
use argosfs::fs::model::{Path, Tree, read_tree};
use argosfs::fs::{Fs, Options};

use super::machine::{Base, Machine};
use crate::campaign::{States, Verdict, While};
use crate::process::Process;
use crate::recovery::{LOSSES, lose};
use crate::stack::{self, Mounted};

/// What was looked at.
#[derive(Default)]
pub struct Tally {
    seen: HashSet<u64>,
    /// States looked at, those with the same content included.
    pub states: u64,
    /// Cuts while a cut state was being opened.
    pub second: u64,
    /// States that lost devices as well.
    pub lossy: u64,
    /// Faults that were injected and hit: one for each device and case, however many requests it failed.
    pub faults: u64,
}

impl Tally {
    /// States with content of their own, as far as all devices are concerned.
    pub fn distinct(&self) -> u64 {
        self.seen.len() as u64
    }
}

/// How a crash state is looked at.
pub struct Checker<'a> {
    base: &'a Base,
    pub tally: &'a mut Tally,
    /// Trees found in the states of one run, by content.
    trees: HashMap<u64, Arc<Tree>>,
    /// Devices that did nothing wrong, and how many of them may be lost.
    strong: Vec<usize>,
    spare: usize,
}

/// How many states of one crash point are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// All, where there are at most so many.
    pub all: u64,
    /// Otherwise so many by chance.
    pub some: u64,
}

struct Opened {
    fs: Fs,
    tree: Tree,
}

/// Bytes that opening may read from one device: labels, the log, and the rows everybody needs.
const OPENING_READS: u64 = 6 << 20;
/// Blocks of content that metadata takes the place of when it grows.
const METADATA_STEP: u64 = 128;

impl<'a> Checker<'a> {
    /// For a run in which all devices but `weak` did what they should.
    pub fn new(base: &'a Base, tally: &'a mut Tally, weak: &[usize]) -> Checker<'a> {
        let strong = (0..base.shape.devices).filter(|index| !weak.contains(index)).collect();
        let spare = usize::from(base.shape.m).saturating_sub(weak.len());
        Checker { base, tally, trees: HashMap::new(), strong, spare }
    }

    /// States of every crash point from event `from` on.
    pub fn each_point(&mut self, machine: &Machine, from: u64, effort: Effort, prng: &mut Prng) -> Verdict {
        for at in from..=machine.world.record() {
            self.point(machine, at, effort, prng)?;
        }
        Ok(())
    }

    /// States of crash points by chance from event `from` on.
    pub fn some_points(&mut self, machine: &Machine, from: u64, chosen: &States) -> Verdict {
        chosen.each(|prng| {
            let at = from + prng.below(machine.world.record() - from + 1);
            self.point(machine, at, Effort { all: 1, some: 1 }, prng)
        })
    }

    /// States of one crash point.
    pub fn point(&mut self, machine: &Machine, at: u64, effort: Effort, prng: &mut Prng) -> Verdict {
        let mut verdict = Ok(());
        let all = machine.world.each_crash_state(at, effort.all, |world| {
            if verdict.is_ok() {
                verdict = self.state(machine, at, &world, prng);
            }
        });
        if all.is_none() {
            for _ in 0..effort.some {
                self.state(machine, at, &machine.world.crash_state(at, prng), prng)?;
            }
        }
        verdict
    }

    /// One state that a power cut at event `at` may have left.
    pub fn state(&mut self, machine: &Machine, at: u64, world: &SimWorld, prng: &mut Prng) -> Verdict {
        let told = |why: String| format!("power cut at event {at} of {}: {why}", machine.world.record());
        self.tally.states += 1;
        let print = world.fingerprint(&self.base.world);
        if let Some(tree) = self.trees.get(&print) {
            return machine.past.judge(at, tree).map_err(told);
        }
        self.tally.seen.insert(print);
        let all: Vec<usize> = (0..world.len()).collect();
        let original = world.fork();
        let opened = open(world, &all, prng.next()).map_err(told)?;
        machine.past.judge(at, &opened.tree).map_err(told)?;
        let tree = Arc::new(opened.tree);
        self.trees.insert(print, tree.clone());
        match prng.below(16) {
            0 => aftermath(&opened.fs, world, &tree, prng).map_err(|why| told(format!("going on: {why}")))?,
            1 | 2 => {
                drop(opened.fs);
                self.again(machine, at, world, &tree, 1, prng).map_err(told)?;
            }
            3..=5 if self.spare > 0 => {
                drop(opened.fs);
                self.without(machine, at, &original, prng).map_err(told)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Another cut while the state of the first was being opened, or just after.
    fn again(
        &mut self,
        machine: &Machine,
        first: u64,
        world: &SimWorld,
        tree: &Tree,
        depth: u64,
        prng: &mut Prng,
    ) -> Verdict {
        self.tally.second += 1;
        let end = world.record();
        let at = if prng.chance(1, 4) { end } else { prng.below(end + 1) };
        let told = |why: String| format!("cut again at event {at} of {end} while it was opened: {why}");
        let second = world.crash_state(at, prng);
        self.tally.states += 1;
        self.tally.seen.insert(second.fingerprint(&self.base.world));
        let all: Vec<usize> = (0..second.len()).collect();
        let opened = open(&second, &all, prng.next()).map_err(told)?;
        machine.past.judge(first, &opened.tree).map_err(told)?;
        let found = opened.tree;
        drop(opened.fs);
        if at == end
            && let Some(difference) = found.difference(tree)
        {
            return Err(told(format!("it is not what was found before: {difference}")));
        }
        if depth > 0 { self.again(machine, first, &second, &found, depth - 1, prng).map_err(told) } else { Ok(()) }
    }

    /// The same state with some devices lost.
    fn without(&mut self, machine: &Machine, at: u64, world: &SimWorld, prng: &mut Prng) -> Verdict {
        self.tally.lossy += 1;
        let mut here: Vec<usize> = (0..world.len()).collect();
        let mut lost = Vec::new();
        let mut strong = self.strong.clone();
        for _ in 0..1 + prng.below(self.spare as u64) {
            let index = strong.swap_remove(prng.below(strong.len() as u64) as usize);
            let loss = LOSSES[prng.below(LOSSES.len() as u64) as usize];
            if lose((&machine.world, at), world, index, loss, prng) == crate::content::Weak::Absent {
                here.retain(|other| *other != index);
            }
            lost.push((index, loss));
        }
        self.tally.states += 1;
        self.tally.seen.insert(world.fingerprint(&self.base.world));
        let told = |why: String| format!("lost {lost:?}: {why}");
        let opened = open(world, &here, prng.next()).map_err(told)?;
        machine.past.judge(at, &opened.tree).map_err(told)
    }
}

/// Opens a pool after a power cut and reads everything; fsck finds nothing, and opening read no more than it may.
fn open(world: &SimWorld, devices: &[usize], seed: u64) -> Verdict<Opened> {
    let opened = stack::open_at(world, devices, &Process::new(), seed, Arc::new(ManualClock::default()));
    let Mounted { store, .. } = opened.during(|| "open".into())?;
    let fs = Fs::open(Arc::new(store), Options::default()).during(|| "open".into())?;
    for index in devices {
        let read = world.counters(*index).bytes_read;
        if read > OPENING_READS {
            return Err(format!("opening read {read} bytes of sim{index}"));
        }
    }
    let tree = read_tree(&fs).during(|| "reading all".into())?.without_access_times();
    stack::check(fs.store())?;
    Ok(Opened { fs, tree })
}

/// What was found can be used: nothing is leaked, and what is added stays.
fn aftermath(fs: &Fs, world: &SimWorld, tree: &Tree, prng: &mut Prng) -> Verdict {
    fs.reclaim_all().during(|| "reclaiming".into())?;
    let statfs = fs.statfs().during(|| "statfs".into())?;
    let inodes = tree.0.iter().filter(|(path, node)| node.same_as == **path).count() as u64;
    if statfs.files - statfs.files_free != inodes {
        return Err(format!("{inodes} inodes have names, {} are counted", statfs.files - statfs.files_free));
    }
    stack::check(fs.store())?;
    // Somebody may have made the root immutable.
    fs.set_flags(&Caller::ROOT, Ino::ROOT, 0).during(|| "set_flags".into())?;
    // Of so little, metadata may take its next piece.
    if statfs.blocks_available < METADATA_STEP {
        return Ok(());
    }
    let name = b"made afterwards".to_vec();
    let entry = fs.mknod(&Caller::ROOT, Ino::ROOT, &name, 0o100_644, 0).during(|| "mknod".into())?;
    let bytes: Vec<u8> = (0..10_000u32).map(|at| (at % 251) as u8 + 1).collect();
    fs.write(&Caller::ROOT, entry.attr.ino, 0, &bytes, false).during(|| "write".into())?;
    fs.fsync(entry.attr.ino, false).during(|| "fsync".into())?;
    let after = world.crash_state(world.record(), prng);
    let all: Vec<usize> = (0..after.len()).collect();
    let mut found = open(&after, &all, prng.next())?.tree;
    let path: Path = vec![name];
    let made = found.0.remove(&path).ok_or("what was added is missing")?;
    if made.data.values().flatten().copied().collect::<Vec<u8>>() != bytes {
        return Err("what was added is wrong".into());
    }
    let mut expected = tree.clone();
    for tree in [&mut found, &mut expected] {
        // The root has one more name.
        tree.0.get_mut(&Path::new()).ok_or("there is no root")?.shown = made.shown;
    }
    found.difference(&expected).map_or(Ok(()), |difference| Err(format!("something else changed: {difference}")))
}
