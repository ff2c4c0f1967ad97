//! What was acknowledged when, and which trees may be found after a power cut: promise P1, exactly.
//!
//! - Changes of names and attributes, and changes of a file's shape (truncate, punch, copy, ..), are found as a prefix of
//!   their order, one not shorter than the last durable point before the cut.
//! - Each byte of a file is what some acknowledged version had there, no older than the last durable point of the file, the
//!   rename that let it take another's place, or the change of shape that settled this byte; and only where that version
//!   had a byte at all.
//! - What was refused because storage failed may have happened or not.

use std::collections::BTreeMap;
use std::ops::Range;

use argosfs::base::Timestamp;
use argosfs::base::file::{FallocateMode, RenameMode, SetAttr};
use argosfs::fs::model::{FileState, Model, Path, Tree, TreeNode};
use argosfs::fs::op::Op;

use super::machine::Act;
use crate::campaign::Verdict;

const PAGE: u64 = 4096;

/// What an act makes durable when it is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Durable {
    Nothing,
    /// All names and attributes, and the content of this inode.
    Names(Option<u64>),
    All,
}

/// Content that is no older than the act once it has happened.
#[derive(Clone, Debug)]
struct Settled {
    file: u64,
    bytes: Range<u64>,
    times: bool,
    size: bool,
}

/// The filesystem after an act.
#[derive(Clone)]
pub struct Version {
    what: String,
    /// The events while it was done.
    began: u64,
    ended: u64,
    acknowledged: bool,
    /// Whether it is one of those that survive in their order.
    ordered: bool,
    durable: Durable,
    settled: Vec<Settled>,
    pub model: Model,
    tree: Tree,
    paths: BTreeMap<Path, u64>,
    files: BTreeMap<u64, FileState>,
}

/// All versions of one run.
pub struct Past {
    versions: Vec<Version>,
}

impl Version {
    fn first(model: Model) -> Version {
        let tree = model.clone().tree(Timestamp::default()).without_access_times();
        let (paths, files) = (model.paths(), model.files());
        Version {
            what: "the beginning".into(),
            began: 0,
            ended: 0,
            acknowledged: true,
            ordered: true,
            durable: Durable::All,
            settled: Vec::new(),
            model,
            tree,
            paths,
            files,
        }
    }

    /// What `act` made of `before`.
    pub fn of(before: &Version, act: Act, (began, ended): (u64, u64), model: Model, acknowledged: bool) -> Version {
        let mut version = Version::first(model);
        (version.began, version.ended, version.acknowledged) = (began, ended, acknowledged);
        version.what = format!("{act:?}");
        version.durable = match act {
            Act::Op(Op::Fsync { inode }) if before.model.held(inode).is_some() => {
                Durable::Names(before.model.held(inode))
            }
            Act::Op(Op::Sync | Op::Remount) | Act::Umount => Durable::All,
            Act::Checkpoint => Durable::Names(None),
            _ => Durable::Nothing,
        };
        version.settled = settled(before, &version, act);
        version.ordered = !version.settled.is_empty()
            || matches!(act, Act::Op(Op::SetAttr { .. }))
            || names_of(&before.tree) != names_of(&version.tree);
        version
    }
}

/// The tree without what files are written with.
fn names_of(tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    tree.0.values_mut().for_each(|node| *node = without_content(node));
    tree
}

fn is_file(node: &TreeNode) -> bool {
    node.shown.mode & 0o170_000 == 0o100_000
}

fn without_content(node: &TreeNode) -> TreeNode {
    let mut node = node.clone();
    if is_file(&node) {
        node.data.clear();
        node.shown.size = 0;
        (node.shown.mtime, node.shown.ctime) = Default::default();
    }
    node
}

/// What is certain about content once `act` has happened.
fn settled(before: &Version, after: &Version, act: Act) -> Vec<Settled> {
    let sized =
        |file: u64| before.files.get(&file).map(|state| state.size) != after.files.get(&file).map(|state| state.size);
    let of = |slot, bytes: Range<u64>| {
        let file = before.model.held(slot).filter(|file| before.files.get(file) != after.files.get(file));
        file.map(|file| Settled { file, bytes, times: true, size: sized(file) }).into_iter().collect::<Vec<_>>()
    };
    match act {
        Act::Op(Op::SetAttr { inode, changes: SetAttr { size: Some(size), .. }, .. }) => {
            of(inode, size..u64::MAX).into_iter().map(|part| Settled { size: true, ..part }).collect()
        }
        Act::Op(Op::SetAttr { inode, changes: SetAttr { mtime: Some(_), .. }, .. }) => of(inode, 0..0),
        Act::Op(Op::Fallocate { inode, offset, length, mode, .. }) => match mode {
            FallocateMode::Allocate { .. } => of(inode, 0..0),
            FallocateMode::PunchHole | FallocateMode::ZeroRange { .. } => of(inode, offset..offset + length),
        },
        Act::Op(Op::Copy { from, from_offset, to, to_offset, length, .. }) => {
            let size = before.model.held(from).and_then(|from| before.files.get(&from)).map_or(0, |state| state.size);
            of(to, to_offset..to_offset.saturating_add(length.min(size.saturating_sub(from_offset))))
        }
        Act::Op(Op::Rename { dir, name, new_dir, new_name, mode }) if before.paths != after.paths => {
            let (Some(from), Some(to)) = (before.model.named(dir, name), before.model.named(new_dir, new_name)) else {
                return Vec::new();
            };
            let moved = if mode == RenameMode::Exchange { vec![from, to] } else { vec![from] };
            let files = moved.into_iter().filter(|file| before.files.contains_key(file));
            files.map(|file| Settled { file, bytes: 0..u64::MAX, times: false, size: true }).collect()
        }
        _ => Vec::new(),
    }
}

impl Past {
    /// Begins with everything in `model` durable.
    pub fn new(model: Model) -> Past {
        Past { versions: vec![Version::first(model)] }
    }

    /// The newest version.
    pub fn now(&self) -> &Version {
        self.versions.last().expect("there is always a first one")
    }

    pub fn add(&mut self, version: Version) {
        self.versions.push(version);
    }

    /// What was refused last is in `found`, the live tree, or it is not: one of them is certain from now on. The tree was
    /// read at `now`, which leaves access times.
    pub fn settle(&mut self, found: Tree, now: Timestamp) -> Verdict {
        self.decide(found)?;
        if let Some(newest) = self.versions.last_mut() {
            newest.model.tree(now);
        }
        Ok(())
    }

    fn decide(&mut self, found: Tree) -> Verdict {
        let found = found.without_access_times();
        let difference = found.difference(&self.now().tree);
        let [.., before, last] = self.versions.as_slice() else { return difference.map_or(Ok(()), Err) };
        if last.acknowledged {
            return difference.map_or(Ok(()), |difference| Err(format!("after {}: {difference}", last.what)));
        }
        // Of what has no name the tree says nothing: it is as it was, like the rest.
        match (found.difference(&before.tree), difference) {
            (None, _) => drop(self.versions.pop()),
            (Some(_), None) => {}
            (Some(other), Some(difference)) => {
                return Err(format!(
                    "{} failed, and is neither done: {difference}\n  nor not done: {other}",
                    last.what
                ));
            }
        }
        Ok(())
    }

    /// Whether `found` may be the tree after a power cut at event `at`.
    pub fn judge(&self, at: u64, found: &Tree) -> Verdict {
        let last = |wanted: &dyn Fn(&Version) -> bool| self.versions.iter().rposition(wanted).unwrap_or(0);
        let floor = last(&|version| version.holds(at) && version.durable != Durable::Nothing);
        // A sync that had nothing to do ends where it began.
        let ceiling = last(&|version| version.began < at).max(floor);
        let mut reasons = Vec::new();
        for newest in (floor..=ceiling).rev() {
            if newest < ceiling && !self.versions[newest + 1].ordered {
                continue;
            }
            match self.explain(newest, at, found) {
                Ok(()) => return Ok(()),
                Err(why) => reasons.push(format!("not as after {} ({newest}): {why}", self.versions[newest].what)),
            }
        }
        // The newest is the most telling.
        reasons.truncate(3);
        let durable = &self.versions[floor].what;
        Err(format!("what is found never was; durable is {durable} ({floor})\n  {}", reasons.join("\n  ")))
    }

    /// Whether `found` has everything ordered up to version `newest` and nothing ordered after it.
    fn explain(&self, newest: usize, at: u64, found: &Tree) -> Verdict {
        let version = &self.versions[newest];
        for path in found.0.keys().chain(version.tree.0.keys()) {
            let name = || path.iter().map(|name| format!("/{}", name.escape_ascii())).collect::<String>();
            let (Some(seen), Some(expected)) = (found.0.get(path), version.tree.0.get(path)) else {
                let there = if found.0.contains_key(path) { "is there" } else { "is missing" };
                return Err(format!("{} {there}", name()));
            };
            if without_content(seen) != without_content(expected) {
                return Err(format!(
                    "{}: {:?} instead of {:?}",
                    name(),
                    without_content(seen),
                    without_content(expected)
                ));
            }
            if is_file(seen) && seen != expected && seen.same_as == *path {
                self.explain_content(newest, at, version.paths[path], seen)
                    .map_err(|why| format!("{}: {why}", name()))?;
            }
        }
        Ok(())
    }

    /// Whether the content of a file is made of versions of it up to `newest`.
    fn explain_content(&self, newest: usize, at: u64, file: u64, seen: &TreeNode) -> Verdict {
        let held = |version: &Version| match version.durable {
            Durable::All => version.holds(at),
            Durable::Names(inode) => inode == Some(file) && version.holds(at),
            Durable::Nothing => false,
        };
        let past = &self.versions[..=newest];
        let oldest = past.iter().rposition(held).unwrap_or(0);
        let settles = |wanted: &dyn Fn(&Settled) -> bool| {
            let settles = |version: &Version| version.settled.iter().any(|part| part.file == file && wanted(part));
            past.iter().rposition(settles).unwrap_or(0).max(oldest)
        };
        let states = |from: usize| past[from..].iter().filter_map(move |version| version.files.get(&file));
        let size = seen.shown.size;
        let sized = settles(&|part| part.size);
        if !states(sized).any(|state| state.size <= size) || !states(sized).any(|state| state.size >= size) {
            let sizes: Vec<u64> = states(sized).map(|state| state.size).collect();
            return Err(format!("its size is {size} and was {sizes:?}"));
        }
        let timed = settles(&|part| part.times);
        let (mtime, ctime) = (seen.shown.mtime, seen.shown.ctime);
        if !states(timed).any(|state| state.mtime == mtime) || !states(oldest).any(|state| state.ctime == ctime) {
            return Err(format!("its times were never {mtime} and {ctime}"));
        }
        let mut pages: Vec<u64> = seen.data.keys().copied().collect();
        pages.extend(states(oldest).flat_map(|state| state.data.keys().copied()));
        // Where size grew over nothing, the last page tells whether anybody had bytes there.
        pages.push(size.saturating_sub(1) / PAGE * PAGE);
        pages.sort_unstable();
        pages.dedup();
        for page in pages.into_iter().filter(|page| *page < size) {
            let length = (size - page).min(PAGE);
            let byte = |data: &BTreeMap<u64, Vec<u8>>, at: u64| {
                data.get(&page).and_then(|bytes| bytes.get(at as usize)).copied().unwrap_or(0)
            };
            let whole = settles(&|part| part.bytes.start < page + length && part.bytes.end > page);
            let zeros = Vec::new();
            let content = |data: &BTreeMap<u64, Vec<u8>>| {
                let mut bytes = data.get(&page).unwrap_or(&zeros).clone();
                bytes.resize(length as usize, 0);
                bytes
            };
            let seen_page = content(&seen.data);
            if states(whole).any(|state| state.size >= page + length && content(&state.data) == seen_page) {
                continue;
            }
            for at in 0..length {
                let from = settles(&|part| part.bytes.contains(&(page + at)));
                let value = byte(&seen.data, at);
                if !states(from).any(|state| state.size > page + at && byte(&state.data, at) == value) {
                    let was: Vec<Option<u8>> =
                        states(from).map(|state| (state.size > page + at).then(|| byte(&state.data, at))).collect();
                    return Err(format!("byte {} is {value} and was {was:?}, size {size}", page + at));
                }
            }
        }
        Ok(())
    }
}

impl Version {
    /// Whether it was acknowledged before event `at`.
    fn holds(&self, at: u64) -> bool {
        self.acknowledged && self.ended <= at
    }
}
