//! Operations by chance, steered by the model so that most of them mean something.

use super::super::op::{AclRecipe, Name, Op, SLOTS, Slot, Who, XattrName};
use super::Model;
use crate::base::file::{FallocateMode, FileType, RenameMode, SetAttr, SetTime, Whence, XattrSet};
use crate::base::{Prng, Timestamp};

/// Where choices come from.
pub trait Choices {
    /// A number below `bound`, which is not zero.
    fn below(&mut self, bound: u64) -> u64;

    /// True in one of `of` cases.
    fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
}

impl Choices for Prng {
    fn below(&mut self, bound: u64) -> u64 {
        Prng::below(self, bound)
    }
}

/// Choices from a fuzzer's bytes; zeros when they are used up.
#[derive(Debug)]
pub struct ByteChoices<'a>(pub &'a [u8]);

impl ByteChoices<'_> {
    /// Whether all bytes are used up.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Choices for ByteChoices<'_> {
    fn below(&mut self, bound: u64) -> u64 {
        let mut number = 0;
        let mut reach = 1u64;
        while reach < bound {
            let Some((byte, rest)) = self.0.split_first() else { break };
            self.0 = rest;
            number = number << 8 | u64::from(*byte);
            reach = reach.saturating_mul(256);
        }
        number % bound
    }
}

/// How often which kind of operation comes, as weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mix {
    pub names: u64,
    pub attributes: u64,
    pub xattrs: u64,
    pub data: u64,
    /// fsync, sync, background work.
    pub sync: u64,
    pub remount: u64,
}

impl Default for Mix {
    fn default() -> Mix {
        Mix { names: 40, attributes: 12, xattrs: 12, data: 30, sync: 5, remount: 1 }
    }
}

const MODES: [u32; 8] = [0o644, 0o600, 0o755, 0o777, 0o4755, 0o2775, 0o6711, 0o1777];

struct Draw<'c, C: Choices> {
    choices: &'c mut C,
    model: &'c Model,
}

impl Model {
    /// An operation by chance.
    pub fn random_op(&self, choices: &mut impl Choices, mix: &Mix) -> Op {
        let mut draw = Draw { choices, model: self };
        let weights = [mix.names, mix.attributes, mix.xattrs, mix.data, mix.sync, mix.remount];
        let mut pick = draw.choices.below(weights.iter().sum::<u64>().max(1));
        for (kind, weight) in weights.into_iter().enumerate() {
            if pick < weight {
                return match kind {
                    0 => draw.names(),
                    1 => draw.attributes(),
                    2 => draw.xattrs(),
                    3 => draw.data(),
                    4 => draw.sync(),
                    _ => Op::Remount,
                };
            }
            pick -= weight;
        }
        Op::Sync
    }
}

impl<C: Choices> Draw<'_, C> {
    /// A slot that holds an inode for which `wanted` is true, mostly.
    fn slot(&mut self, wanted: impl Fn(FileType) -> bool) -> Slot {
        let fitting: Vec<u8> = (0..SLOTS as u8)
            .filter(|slot| self.model.slots[usize::from(*slot)].is_some_and(|id| wanted(self.model.node(id).kind)))
            .collect();
        if fitting.is_empty() || self.choices.one_in(20) {
            return Slot(self.choices.below(SLOTS as u64) as u8);
        }
        Slot(fitting[self.choices.below(fitting.len() as u64) as usize])
    }

    fn dir(&mut self) -> Slot {
        self.slot(|kind| kind == FileType::Directory)
    }

    fn file(&mut self) -> Slot {
        self.slot(|kind| kind == FileType::Regular)
    }

    fn any(&mut self) -> Slot {
        self.slot(|_| true)
    }

    fn to(&mut self) -> Slot {
        Slot(1 + self.choices.below(SLOTS as u64 - 1) as u8)
    }

    fn name(&mut self) -> Name {
        let names = if self.choices.one_in(30) { Name::ALL } else { Name::GOOD };
        Name(self.choices.below(u64::from(names)) as u8)
    }

    /// A directory and a name in it, mostly one that leads to an inode for which `wanted` is true.
    fn name_of(&mut self, wanted: impl Fn(FileType) -> bool) -> (Slot, Name) {
        if self.choices.one_in(3) {
            return (self.dir(), self.name());
        }
        let mut there = Vec::new();
        for slot in 0..SLOTS as u8 {
            let Some(id) = self.model.slots[usize::from(slot)] else { continue };
            let names = &self.model.node(id).names;
            let leads =
                |name: &Name| names.get(&name.bytes()).is_some_and(|child| wanted(self.model.node(*child).kind));
            there.extend((0..Name::GOOD).map(Name).filter(leads).map(|name| (Slot(slot), name)));
        }
        if there.is_empty() {
            return (self.dir(), self.name());
        }
        there[self.choices.below(there.len() as u64) as usize]
    }

    fn who(&mut self) -> Who {
        Who(self.choices.below(3) as u8)
    }

    fn mode(&mut self) -> u32 {
        MODES[self.choices.below(MODES.len() as u64) as usize]
    }

    fn names(&mut self) -> Op {
        let (dir, name) = (self.dir(), self.name());
        match self.choices.below(20) {
            0..=4 => {
                let kinds = [
                    FileType::Regular,
                    FileType::Regular,
                    FileType::Directory,
                    FileType::Directory,
                    FileType::Symlink,
                    FileType::Fifo,
                    FileType::CharDevice,
                    FileType::Socket,
                ];
                let kind = kinds[self.choices.below(kinds.len() as u64) as usize];
                let (who, mode, seed) = (self.who(), self.mode(), self.choices.below(1000) as u16);
                Op::Make { who, dir, name, kind, mode, seed, to: self.to() }
            }
            5..=7 => {
                let (dir, name) = self.name_of(|_| true);
                Op::Lookup { dir, name, to: self.to() }
            }
            8 => Op::Forget { slot: self.to() },
            9 => Op::Tmpfile { who: self.who(), dir, mode: self.mode(), to: self.to() },
            10 | 11 => Op::Link { inode: self.slot(|kind| kind != FileType::Directory), dir, name },
            12 | 13 => {
                let (dir, name) = self.name_of(|kind| kind != FileType::Directory);
                Op::Unlink { dir, name }
            }
            14 => {
                let (dir, name) = self.name_of(|kind| kind == FileType::Directory);
                Op::Rmdir { dir, name }
            }
            15..=17 => {
                let mode = match self.choices.below(4) {
                    0 => RenameMode::NoReplace,
                    1 => RenameMode::Exchange,
                    _ => RenameMode::Replace,
                };
                let (dir, name) = self.name_of(|_| true);
                let (new_dir, new_name) =
                    if self.choices.one_in(2) { (self.dir(), self.name()) } else { self.name_of(|_| true) };
                Op::Rename { dir, name, new_dir, new_name, mode }
            }
            18 => Op::List { dir },
            _ => Op::ReadLink { inode: self.slot(|kind| kind == FileType::Symlink) },
        }
    }

    fn time(&mut self) -> Option<SetTime> {
        match self.choices.below(4) {
            0 => Some(SetTime::Now),
            1 => Some(SetTime::At(Timestamp { seconds: self.choices.below(1 << 34) as i64 - (1 << 33), nanos: 7 })),
            _ => None,
        }
    }

    fn attributes(&mut self) -> Op {
        let inode = self.any();
        match self.choices.below(10) {
            0 | 1 => Op::GetAttr { inode },
            2 => {
                // Mostly back to nothing: what cannot change soon makes every test dull.
                let flags = if self.choices.one_in(3) { 1 + self.choices.below(4) as u32 } else { 0 };
                Op::SetFlags { inode, flags }
            }
            3 => Op::Advance { seconds: self.choices.below(100_000) },
            4..=6 => {
                let (who, inode, size) = (self.who(), self.file(), self.offset());
                let changes = SetAttr { size: Some(size), kill_suidgid: !self.choices.one_in(3), ..SetAttr::default() };
                Op::SetAttr { who, inode, changes }
            }
            _ => {
                let mut changes = SetAttr::default();
                if self.choices.one_in(3) {
                    changes.mode = Some(self.mode());
                }
                if self.choices.one_in(3) {
                    changes.uid = Some(self.choices.below(3) as u32);
                }
                if self.choices.one_in(3) {
                    changes.gid = Some(self.choices.below(3) as u32 * 100);
                }
                (changes.atime, changes.mtime) = (self.time(), self.time());
                Op::SetAttr { who: self.who(), inode, changes }
            }
        }
    }

    fn xattrs(&mut self) -> Op {
        let (inode, default) = (self.any(), self.choices.one_in(2));
        let name = XattrName(self.choices.below(u64::from(XattrName::ALL)) as u8);
        match self.choices.below(10) {
            0 => Op::GetXattr { inode, name },
            1 => Op::ListXattr { who: self.who(), inode },
            2..=4 => {
                let length = match self.choices.below(5) {
                    0 => 0,
                    1 => 65_530 + self.choices.below(10) as u32,
                    2 => 990 + self.choices.below(20) as u32,
                    _ => self.choices.below(100) as u32,
                };
                let set = [XattrSet::Any, XattrSet::Any, XattrSet::Create, XattrSet::Replace];
                let set = set[self.choices.below(4) as usize];
                Op::SetXattr { inode, name, length, fill: self.choices.below(256) as u8, set }
            }
            5 | 6 => Op::RemoveXattr { inode, name },
            7 | 8 => {
                let inode = if default { self.dir() } else { inode };
                // Nine bits of permissions, named entries mostly with the mask they need.
                let extra = [0, 0b101, 0b100, 0b111, 0b110, 0b1000, 0b1_0000, 0b1][self.choices.below(8) as usize];
                let recipe = AclRecipe(self.choices.below(512) as u16 | extra << 9);
                Op::SetAcl { inode, default, recipe, kill_sgid: self.choices.one_in(3) }
            }
            _ => Op::GetAcl { inode, default },
        }
    }

    fn offset(&mut self) -> u64 {
        let near = self.choices.below(6000);
        match self.choices.below(16) {
            0 => 0,
            1 => 4096,
            2..=5 => near * 11,
            6 => (1 << 40) + near,
            7 if self.choices.one_in(4) => i64::MAX as u64 - near,
            _ => near,
        }
    }

    fn length(&mut self) -> u64 {
        match self.choices.below(6) {
            0 => self.choices.below(2),
            1 => 4096,
            2 => self.choices.below(40_000),
            _ => self.choices.below(3000),
        }
    }

    fn data(&mut self) -> Op {
        let (who, inode, offset, length) = (self.who(), self.file(), self.offset(), self.length());
        match self.choices.below(16) {
            0..=5 => Op::Write {
                who,
                inode,
                offset,
                length: length as u32,
                fill: self.choices.below(256) as u8,
                kill_suidgid: self.choices.one_in(2),
            },
            6..=9 => Op::Read { inode, offset, length: length as u32 },
            10 | 11 => {
                let mode = match self.choices.below(5) {
                    0 => FallocateMode::Allocate { keep_size: false },
                    1 => FallocateMode::Allocate { keep_size: true },
                    2 => FallocateMode::PunchHole,
                    3 => FallocateMode::ZeroRange { keep_size: false },
                    _ => FallocateMode::ZeroRange { keep_size: true },
                };
                Op::Fallocate { who, inode, offset, length, mode }
            }
            12 | 13 => {
                let (to, to_offset) = (self.file(), self.offset());
                Op::Copy { who, from: inode, from_offset: offset, to, to_offset, length }
            }
            14 => Op::Seek { inode, offset, whence: Whence::Data },
            _ => Op::Seek { inode, offset, whence: Whence::Hole },
        }
    }

    fn sync(&mut self) -> Op {
        match self.choices.below(4) {
            0 => Op::Sync,
            1 => Op::Reclaim,
            _ => Op::Fsync { inode: self.file() },
        }
    }
}
