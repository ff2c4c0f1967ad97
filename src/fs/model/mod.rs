//! What POSIX (and Linux, where POSIX is silent) expects of every [`Op`], as plainly as it can be said: no tables, no
//! caches, counts made by counting. Tests compare it with the real thing; the crash simulator clones it at every
//! acknowledged operation to know what may be found after a crash.

mod acl;
mod attrs;
mod data;
mod generate;
pub mod linear;
mod sparse;
mod tree;

use std::collections::{BTreeMap, BTreeSet};

pub use generate::{ByteChoices, Choices, Mix};
pub use tree::{FileState, Path, Tree, TreeNode, read_tree};

use super::op::{Op, Outcome, Refusal, SLOTS, Shown, Slot, Who, link_target};
use crate::base::Timestamp;
use crate::base::file::{AccessTime, Caller, FileType, MODE_BITS, RenameMode, S_ISGID, SYMLINK_MAX, Whence};
use crate::format::rows::{FLAG_APPEND, FLAG_IMMUTABLE};
use sparse::Sparse;

/// An inode of the model.
#[derive(Clone, Hash)]
struct Node {
    kind: FileType,
    /// Without the type.
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    atime: Timestamp,
    mtime: Timestamp,
    ctime: Timestamp,
    btime: Timestamp,
    flags: u32,
    /// Where a directory is, or was.
    parent: u64,
    names: BTreeMap<Vec<u8>, u64>,
    content: Sparse,
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Made without a name and not named yet.
    linkable: bool,
}

const ROOT: u64 = 1;

/// A filesystem as it should be.
#[derive(Clone, Hash)]
pub struct Model {
    nodes: BTreeMap<u64, Node>,
    next: u64,
    slots: [Option<u64>; SLOTS],
    access_time: AccessTime,
}

type Answer = Result<Outcome, Refusal>;

impl Model {
    /// An empty filesystem whose root was made at `now` by [`super::Fs::format`] with the usual owner.
    pub fn new(now: Timestamp) -> Model {
        let mut model =
            Model { nodes: BTreeMap::new(), next: ROOT, slots: [None; SLOTS], access_time: AccessTime::Relative };
        model.add(FileType::Directory, 0o755, 0, 0, now);
        model.slots[0] = Some(ROOT);
        model
    }

    /// Inodes there are, those without names included.
    pub fn inodes(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// Performs `op`, which happened at `now`, and says what is wrong with `outcome`.
    pub fn check(&mut self, op: &Op, now: Timestamp, outcome: &Outcome) -> Result<(), String> {
        if let Op::Seek { inode, offset, whence } = *op {
            return self.check_seek(inode, offset, whence, outcome);
        }
        let expected = self.apply(op, now);
        if expected == *outcome { Ok(()) } else { Err(format!("expected {expected:?}, got {outcome:?}")) }
    }

    /// Performs `op` at `now`. A seek has several right answers; one is given.
    pub fn apply(&mut self, op: &Op, now: Timestamp) -> Outcome {
        let answer = self.perform(op, now);
        self.purge();
        match answer {
            Some(Ok(outcome)) => outcome,
            Some(Err(refusal)) => Outcome::Refused(refusal),
            None => Outcome::Skipped,
        }
    }

    fn perform(&mut self, op: &Op, now: Timestamp) -> Option<Answer> {
        let at = |slot: Slot| self.slots[usize::from(slot.0) % SLOTS];
        Some(match *op {
            Op::Lookup { dir, name, to } => {
                let found = self.lookup(at(dir)?, &name.bytes());
                self.hand_out(found, Some(to))
            }
            Op::Forget { slot } => {
                if slot != Slot::ROOT {
                    self.slots[usize::from(slot.0) % SLOTS] = None;
                }
                Ok(Outcome::Done)
            }
            Op::Make { who, dir, name, kind, mode, seed, to } => {
                let plan = Plan { kind, mode: mode & MODE_BITS, rdev: u32::from(seed), target: link_target(seed) };
                let made = self.make(&who.caller(), at(dir)?, Some(&name.bytes()), plan, now);
                self.hand_out(made, Some(to))
            }
            Op::Tmpfile { who, dir, mode, to } => {
                let plan = Plan { kind: FileType::Regular, mode: mode & MODE_BITS, rdev: 0, target: Vec::new() };
                let made = self.make(&who.caller(), at(dir)?, None, plan, now);
                self.hand_out(made, Some(to))
            }
            Op::Link { inode, dir, name } => {
                let linked = self.link(at(inode)?, at(dir)?, &name.bytes(), now);
                self.hand_out(linked, None)
            }
            Op::Unlink { dir, name } => self.remove(at(dir)?, &name.bytes(), false, now),
            Op::Rmdir { dir, name } => self.remove(at(dir)?, &name.bytes(), true, now),
            Op::Rename { dir, name, new_dir, new_name, mode } => {
                self.rename((at(dir)?, name.bytes()), (at(new_dir)?, new_name.bytes()), mode, now)
            }
            Op::GetAttr { inode } => Ok(Outcome::Attr(self.shown(at(inode)?))),
            Op::ReadLink { inode } => self.readlink(at(inode)?, now),
            Op::List { dir } => self.list(at(dir)?, now),
            Op::SetAttr { who, inode, changes } => self.setattr(who, at(inode)?, &changes, now),
            Op::SetFlags { inode, flags } => self.set_flags(at(inode)?, flags, now),
            Op::GetXattr { inode, name } => self.get_xattr(at(inode)?, &name.bytes()),
            Op::ListXattr { who, inode } => self.list_xattr(who, at(inode)?),
            Op::SetXattr { inode, name, length, fill, set } => {
                let value = super::op::pattern(fill, 0, length);
                self.set_xattr(at(inode)?, &name.bytes(), value, set, now)
            }
            Op::RemoveXattr { inode, name } => self.remove_xattr(at(inode)?, &name.bytes(), now),
            Op::SetAcl { inode, default, recipe, kill_sgid } => {
                self.set_acl(at(inode)?, default, &recipe.bytes(), kill_sgid, now)
            }
            Op::GetAcl { inode, default } => self.get_xattr(at(inode)?, super::op::acl_name(default)),
            Op::Write { who: _, inode, offset, length, fill, kill_suidgid } => {
                let data = super::op::pattern(fill, offset, length);
                self.write(at(inode)?, offset, &data, kill_suidgid, now)
            }
            Op::Read { inode, offset, length } => self.read(at(inode)?, offset, u64::from(length), now),
            Op::Fallocate { who, inode, offset, length, mode } => {
                self.fallocate(who, at(inode)?, offset, length, mode, now)
            }
            Op::Copy { who, from, from_offset, to, to_offset, length } => {
                self.copy(who, (at(from)?, from_offset), (at(to)?, to_offset), length, now)
            }
            Op::Seek { inode, offset, whence } => self.seek(at(inode)?, offset, whence),
            Op::Fsync { inode } => {
                at(inode)?;
                Ok(Outcome::Done)
            }
            Op::Sync | Op::Reclaim | Op::Advance { .. } => Ok(Outcome::Done),
            Op::Remount => {
                self.slots[1..].fill(None);
                Ok(Outcome::Done)
            }
        })
    }

    fn node(&self, id: u64) -> &Node {
        &self.nodes[&id]
    }

    fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("what is referred to exists")
    }

    fn add(&mut self, kind: FileType, mode: u32, uid: u32, gid: u32, now: Timestamp) -> u64 {
        let id = self.next;
        self.next += 1;
        let node = Node {
            kind,
            mode,
            uid,
            gid,
            rdev: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            flags: 0,
            parent: id,
            names: BTreeMap::new(),
            content: Sparse::default(),
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            linkable: false,
        };
        self.nodes.insert(id, node);
        id
    }

    /// Removes what has neither a name nor a slot.
    fn purge(&mut self) {
        let mut kept: BTreeSet<u64> = self.slots.iter().flatten().copied().collect();
        kept.insert(ROOT);
        kept.extend(self.nodes.values().flat_map(|node| node.names.values().copied()));
        self.nodes.retain(|id, _| kept.contains(id));
    }

    fn is_dir(&self, id: u64) -> bool {
        self.node(id).kind == FileType::Directory
    }

    fn nlink(&self, id: u64) -> u32 {
        let names = self.nodes.values().flat_map(|node| node.names.values()).filter(|target| **target == id).count();
        if !self.is_dir(id) {
            return names as u32;
        }
        if names == 0 && id != ROOT {
            return 0;
        }
        2 + self.node(id).names.values().filter(|child| self.is_dir(**child)).count() as u32
    }

    fn shown(&self, id: u64) -> Shown {
        let node = self.node(id);
        Shown {
            mode: node.kind.mode_bits() | node.mode,
            nlink: self.nlink(id),
            uid: node.uid,
            gid: node.gid,
            rdev: node.rdev,
            size: match node.kind {
                FileType::Directory => node.names.len() as u64 + 2,
                FileType::Symlink => node.target.len() as u64,
                _ => node.content.size(),
            },
            atime: node.atime,
            mtime: node.mtime,
            ctime: node.ctime,
            btime: node.btime,
        }
    }

    /// Puts what was found or made into a slot.
    fn hand_out(&mut self, found: Result<u64, Refusal>, to: Option<Slot>) -> Answer {
        let id = found?;
        if let Some(slot) = to.map(|slot| usize::from(slot.0) % SLOTS).filter(|slot| *slot != 0) {
            self.slots[slot] = Some(id);
        }
        Ok(Outcome::Attr(self.shown(id)))
    }

    /// Reading moves the access time.
    fn touch(&mut self, id: u64, now: Timestamp) {
        let access_time = self.access_time;
        let node = self.node_mut(id);
        if access_time.is_due(node.atime, node.mtime, node.ctime, now) {
            node.atime = now;
        }
    }

    /// Refuses changes of what may not change, or only grow.
    fn changeable(&self, id: u64, appends: bool) -> Result<(), Refusal> {
        let refused = if appends { FLAG_IMMUTABLE } else { FLAG_IMMUTABLE | FLAG_APPEND };
        if self.node(id).flags & refused == 0 { Ok(()) } else { Err(Refusal::NotPermitted) }
    }

    /// A directory in which names may change.
    fn open_dir(&self, dir: u64) -> Result<(), Refusal> {
        if !self.is_dir(dir) {
            Err(Refusal::NotDirectory)
        } else if self.nlink(dir) == 0 {
            Err(Refusal::NotFound)
        } else {
            Ok(())
        }
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<u64, Refusal> {
        let alive = |id: u64| {
            if self.nodes.contains_key(&id) && self.nlink(id) > 0 { Ok(id) } else { Err(Refusal::Stale) }
        };
        if name == b"." {
            return alive(dir);
        }
        if !self.is_dir(dir) {
            return Err(Refusal::NotDirectory);
        }
        if name == b".." {
            return alive(self.node(dir).parent);
        }
        check_name(name)?;
        self.node(dir).names.get(name).copied().ok_or(Refusal::NotFound)
    }

    fn make(
        &mut self,
        who: &Caller,
        dir: u64,
        name: Option<&[u8]>,
        plan: Plan,
        now: Timestamp,
    ) -> Result<u64, Refusal> {
        if plan.kind == FileType::Symlink {
            match plan.target.len() {
                0 => return Err(Refusal::NotFound),
                length if length > SYMLINK_MAX => return Err(Refusal::NameTooLong),
                _ => {}
            }
        }
        if let Some(name) = name {
            check_new_name(name)?;
        }
        self.open_dir(dir)?;
        if name.is_some_and(|name| self.node(dir).names.contains_key(name)) {
            return Err(Refusal::Exists);
        }
        self.changeable(dir, true)?;
        let parent = self.node(dir);
        let sgid = parent.mode & S_ISGID != 0;
        let gid = if sgid { parent.gid } else { who.gid };
        let default = parent.xattrs.get(super::op::acl_name(true)).cloned();
        let inherited = acl::inherit(default.as_deref(), plan.kind, plan.mode, who.umask);
        let id = self.add(plan.kind, inherited.mode, who.uid, gid, now);
        let node = self.node_mut(id);
        match plan.kind {
            FileType::Directory => {
                node.parent = dir;
                node.mode |= if sgid { S_ISGID } else { 0 };
            }
            FileType::Symlink => {
                node.mode = 0o777;
                node.target = plan.target;
            }
            FileType::CharDevice | FileType::BlockDevice => node.rdev = plan.rdev,
            _ => {}
        }
        for (default, acl) in [(false, inherited.access), (true, inherited.default)] {
            if let Some(acl) = acl {
                node.xattrs.insert(super::op::acl_name(default).to_vec(), acl);
            }
        }
        match name {
            Some(name) => self.set_name(dir, name, Some(id), now),
            None => node.linkable = true,
        }
        Ok(id)
    }

    /// Adds, changes or removes a name.
    fn set_name(&mut self, dir: u64, name: &[u8], to: Option<u64>, now: Timestamp) {
        let node = self.node_mut(dir);
        match to {
            Some(id) => node.names.insert(name.to_vec(), id),
            None => node.names.remove(name),
        };
        node.mtime = now;
        node.ctime = now;
    }

    fn link(&mut self, id: u64, dir: u64, name: &[u8], now: Timestamp) -> Result<u64, Refusal> {
        check_new_name(name)?;
        self.open_dir(dir)?;
        if self.is_dir(id) {
            return Err(Refusal::NotPermitted);
        }
        if self.node(dir).names.contains_key(name) {
            return Err(Refusal::Exists);
        }
        self.changeable(id, false)?;
        self.changeable(dir, true)?;
        if self.nlink(id) == 0 && !self.node(id).linkable {
            return Err(Refusal::NotFound);
        }
        self.set_name(dir, name, Some(id), now);
        let node = self.node_mut(id);
        node.linkable = false;
        node.ctime = now;
        Ok(id)
    }

    fn remove(&mut self, dir: u64, name: &[u8], directory: bool, now: Timestamp) -> Answer {
        check_name(name)?;
        self.open_dir(dir)?;
        let victim = *self.node(dir).names.get(name).ok_or(Refusal::NotFound)?;
        match (directory, self.is_dir(victim)) {
            (true, false) => return Err(Refusal::NotDirectory),
            (false, true) => return Err(Refusal::IsDirectory),
            (true, true) if !self.node(victim).names.is_empty() => return Err(Refusal::NotEmpty),
            _ => {}
        }
        self.changeable(victim, false)?;
        self.changeable(dir, false)?;
        self.set_name(dir, name, None, now);
        self.node_mut(victim).ctime = now;
        Ok(Outcome::Done)
    }

    fn rename(
        &mut self,
        (from, name): (u64, Vec<u8>),
        (to, new_name): (u64, Vec<u8>),
        mode: RenameMode,
        now: Timestamp,
    ) -> Answer {
        check_name(&name)?;
        check_name(&new_name)?;
        self.open_dir(from)?;
        self.open_dir(to)?;
        let source = *self.node(from).names.get(&name).ok_or(Refusal::NotFound)?;
        let target = self.node(to).names.get(&new_name).copied();
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Refusal::Exists),
            (RenameMode::Exchange, None) => return Err(Refusal::NotFound),
            (_, Some(target)) if target == source => return Ok(Outcome::Done),
            _ => {}
        }
        self.changeable(source, false)?;
        self.changeable(from, false)?;
        self.changeable(to, target.is_none())?;
        self.check_loop(source, to)?;
        if let Some(target) = target {
            self.changeable(target, false)?;
            match (self.is_dir(source), self.is_dir(target)) {
                _ if mode == RenameMode::Exchange => self.check_loop(target, from)?,
                (true, false) => return Err(Refusal::NotDirectory),
                (false, true) => return Err(Refusal::IsDirectory),
                (true, true) if !self.node(target).names.is_empty() => return Err(Refusal::NotEmpty),
                _ => {}
            }
            self.node_mut(target).ctime = now;
        }
        let back = target.filter(|_| mode == RenameMode::Exchange);
        self.set_name(from, &name, back, now);
        self.set_name(to, &new_name, Some(source), now);
        self.node_mut(source).ctime = now;
        for (moved, dir) in [(Some(source), to), (back, from)] {
            if let Some(moved) = moved.filter(|moved| self.is_dir(*moved)) {
                self.node_mut(moved).parent = dir;
            }
        }
        Ok(Outcome::Done)
    }

    /// Whether `dir` is `moved` or lies below it.
    fn check_loop(&self, moved: u64, mut dir: u64) -> Result<(), Refusal> {
        while dir != ROOT {
            if dir == moved {
                return Err(Refusal::Invalid);
            }
            dir = self.node(dir).parent;
        }
        Ok(())
    }

    fn readlink(&mut self, id: u64, now: Timestamp) -> Answer {
        if self.node(id).kind != FileType::Symlink {
            return Err(Refusal::Invalid);
        }
        self.touch(id, now);
        Ok(Outcome::Bytes(self.node(id).target.clone()))
    }

    fn list(&mut self, dir: u64, now: Timestamp) -> Answer {
        if !self.is_dir(dir) {
            return Err(Refusal::NotDirectory);
        }
        if self.nlink(dir) > 0 {
            self.touch(dir, now);
        }
        let names = &self.node(dir).names;
        Ok(Outcome::Names(names.iter().map(|(name, id)| (name.clone(), self.node(*id).kind)).collect()))
    }

    fn check_seek(&self, inode: Slot, offset: u64, whence: Whence, outcome: &Outcome) -> Result<(), String> {
        let wrong = |why: &str| Err(format!("{why}: {outcome:?}"));
        let Some(id) = self.slots[usize::from(inode.0) % SLOTS] else {
            return if *outcome == Outcome::Skipped { Ok(()) } else { wrong("the slot is empty") };
        };
        let content = &self.node(id).content;
        match (self.seek(id, offset, whence), outcome) {
            (Err(Refusal::NoData), Outcome::Refused(Refusal::NoData)) => Ok(()),
            // What holds zeros may count as data.
            (Err(Refusal::NoData), Outcome::Count(at)) if (offset..content.size()).contains(at) => Ok(()),
            (Err(expected), Outcome::Refused(refusal)) if expected == *refusal => Ok(()),
            (Ok(_), Outcome::Count(at)) if *at < offset || *at > content.size() => wrong("outside of the file"),
            (Ok(Outcome::Count(data)), Outcome::Count(at)) if whence == Whence::Data && *at > data => {
                wrong("data was skipped")
            }
            (Ok(_), Outcome::Count(at)) if whence == Whence::Hole => {
                if content.is_zero(*at..(*at + 1).min(content.size())) { Ok(()) } else { wrong("data where a hole is") }
            }
            (Ok(_), Outcome::Count(_)) => Ok(()),
            (expected, _) => Err(format!("expected {expected:?}, got {outcome:?}")),
        }
    }
}

/// Something to be made.
struct Plan {
    kind: FileType,
    mode: u32,
    rdev: u32,
    target: Vec<u8>,
}

fn check_name(name: &[u8]) -> Result<(), Refusal> {
    if matches!(name, b"." | b"..") || name.contains(&b'/') && name.len() < 256 {
        Err(Refusal::Invalid)
    } else if name.len() > 255 {
        Err(Refusal::NameTooLong)
    } else {
        Ok(())
    }
}

fn check_new_name(name: &[u8]) -> Result<(), Refusal> {
    if matches!(name, b"." | b"..") { Err(Refusal::Exists) } else { check_name(name) }
}

/// Whether the caller keeps set-id bits when a file changes.
fn is_privileged(who: Who) -> bool {
    who.caller().uid == 0
}
