//! A small vocabulary of operations on few names, in the manner of ACE (Mohan et al., OSDI 2018): short sequences of these
//! find most of what goes wrong around a power cut.

use argosfs::base::file::{FallocateMode, FileType, RenameMode, SetAttr, SetTime, XattrSet};
use argosfs::fs::op::{AclRecipe, Name, Op, Slot, Who, XattrName};

use super::machine::Act;

const ROOT: Slot = Slot::ROOT;
/// `/a`, of 70,000 bytes.
const A: Slot = Slot(1);
/// `/dir`.
const DIR: Slot = Slot(2);
/// `/dir/b`, of 3,000 bytes.
const B: Slot = Slot(3);
/// What a sequence makes.
const NEW: Slot = Slot(4);
/// What it makes without a name.
const NAMELESS: Slot = Slot(5);
const OTHER: Slot = Slot(6);

const NAME_A: Name = Name(0);
const NAME_B: Name = Name(1);
const NAME_C: Name = Name(2);
const NAME_DIR: Name = Name(3);

fn make(dir: Slot, name: Name, kind: FileType, to: Slot) -> Op {
    Op::Make { who: Who::ROOT, dir, name, kind, mode: 0o644, seed: 2, to }
}

fn write(inode: Slot, offset: u64, length: u32, fill: u8) -> Op {
    Op::Write { who: Who::ROOT, inode, offset, length, fill, kill_suidgid: false }
}

fn rename(dir: Slot, name: Name, new_dir: Slot, new_name: Name, mode: RenameMode) -> Op {
    Op::Rename { dir, name, new_dir, new_name, mode }
}

fn change(inode: Slot, changes: SetAttr) -> Op {
    Op::SetAttr { who: Who::ROOT, inode, changes }
}

fn resize(inode: Slot, size: u64) -> Op {
    change(inode, SetAttr { size: Some(size), ..SetAttr::default() })
}

fn fallocate(offset: u64, length: u64, mode: FallocateMode) -> Op {
    Op::Fallocate { who: Who::ROOT, inode: A, offset, length, mode }
}

fn xattr(length: u32) -> Op {
    Op::SetXattr { inode: A, name: XattrName(0), length, fill: 9, set: XattrSet::Any }
}

/// What is there before a sequence begins.
pub fn preamble() -> Vec<Act> {
    let ops = [
        make(ROOT, NAME_A, FileType::Regular, A),
        write(A, 0, 70_000, 1),
        make(ROOT, NAME_DIR, FileType::Directory, DIR),
        make(DIR, NAME_B, FileType::Regular, B),
        write(B, 0, 3000, 2),
        xattr(100),
    ];
    ops.map(Act::Op).to_vec()
}

/// What fills the slots that sequences use.
pub fn opening() -> Vec<Act> {
    let lookup = |dir, name, to| Act::Op(Op::Lookup { dir, name, to });
    vec![lookup(ROOT, NAME_A, A), lookup(ROOT, NAME_DIR, DIR), lookup(DIR, NAME_B, B)]
}

/// The vocabulary.
pub fn vocabulary() -> Vec<Act> {
    let ops = [
        make(ROOT, NAME_B, FileType::Regular, NEW),
        make(ROOT, NAME_C, FileType::Directory, OTHER),
        make(ROOT, NAME_B, FileType::Symlink, OTHER),
        Op::Link { inode: A, dir: ROOT, name: NAME_C },
        Op::Unlink { dir: ROOT, name: NAME_A },
        Op::Unlink { dir: DIR, name: NAME_B },
        Op::Rmdir { dir: ROOT, name: NAME_DIR },
        rename(ROOT, NAME_A, ROOT, NAME_B, RenameMode::Replace),
        rename(DIR, NAME_B, ROOT, NAME_A, RenameMode::Replace),
        rename(ROOT, NAME_B, ROOT, NAME_A, RenameMode::Replace),
        rename(ROOT, NAME_A, DIR, NAME_B, RenameMode::Exchange),
        rename(ROOT, NAME_DIR, ROOT, NAME_C, RenameMode::NoReplace),
        Op::Tmpfile { who: Who::ROOT, dir: ROOT, mode: 0o600, to: NAMELESS },
        Op::Link { inode: NAMELESS, dir: ROOT, name: NAME_B },
        write(NAMELESS, 0, 20_000, 3),
        write(A, 70_000, 5000, 4),
        write(A, 1000, 6000, 5),
        write(B, 0, 2000, 6),
        write(B, 3000, 1500, 7),
        write(NEW, 0, 9000, 8),
        resize(A, 5000),
        resize(A, 100_000),
        resize(B, 0),
        fallocate(60_000, 30_000, FallocateMode::Allocate { keep_size: false }),
        fallocate(2000, 10_000, FallocateMode::PunchHole),
        fallocate(66_000, 12_000, FallocateMode::ZeroRange { keep_size: false }),
        Op::Copy { who: Who::ROOT, from: A, from_offset: 0, to: B, to_offset: 4096, length: 10_000 },
        xattr(2000),
        xattr(60_000),
        Op::RemoveXattr { inode: A, name: XattrName(0) },
        Op::SetAcl { inode: DIR, default: true, recipe: AclRecipe(0b101 << 9 | 0o751), kill_sgid: false },
        change(A, SetAttr { mode: Some(0o600), ..SetAttr::default() }),
        change(B, SetAttr { mtime: Some(SetTime::Now), uid: Some(7), ..SetAttr::default() }),
        Op::Fsync { inode: A },
        Op::Fsync { inode: B },
        Op::Sync,
        Op::Forget { slot: A },
        Op::Reclaim,
    ];
    ops.into_iter().map(Act::Op).chain([Act::Checkpoint, Act::Tidy]).collect()
}
