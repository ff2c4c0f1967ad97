//! One vocabulary of operations for everything that drives a filesystem by chance: property tests, fuzzers and the crash
//! simulator. [`Driver`] performs an operation on an [`Fs`]; [`super::model::Model`] says what must come of it.
//!
//! Inodes are named by slots, small numbers under which driver and model keep what an operation handed out; slot 0 is
//! the root and stays. A slot holds one reference, which goes when the slot is used for something else.

use std::sync::Arc;

use super::{Fs, Options};
use crate::base::clock::ManualClock;
use crate::base::file::{
    Attr, Caller, Entry, FallocateMode, FileType, RenameMode, S_IFMT, SetAttr, Sink, Whence, XattrSet,
};
use crate::base::{Clock, Error, Ino, Result, Timestamp};

/// Slots there are.
pub const SLOTS: usize = 12;

/// A place that holds an inode, or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot(pub u8);

impl Slot {
    /// Always holds the root directory.
    pub const ROOT: Slot = Slot(0);
}

/// A name out of a small set, so that operations meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name(pub u8);

impl Name {
    /// Names that can be made.
    pub const GOOD: u8 = 10;
    /// All names, those included that are refused or special.
    pub const ALL: u8 = 14;

    /// The name.
    pub fn bytes(self) -> Vec<u8> {
        match self.0 % Name::ALL {
            0 => b"a".to_vec(),
            1 => b"b".to_vec(),
            2 => b"c".to_vec(),
            3 => b"dir".to_vec(),
            4 => b"other dir".to_vec(),
            5 => b"\xff\xfe not \xc3( UTF-8 \n".to_vec(),
            6 => vec![b'n'; 255],
            7 => vec![0xfe; 255],
            8 => b"...".to_vec(),
            9 => b"-rf".to_vec(),
            10 => vec![b'n'; 256],
            11 => b".".to_vec(),
            12 => b"..".to_vec(),
            _ => b"sla/sh".to_vec(),
        }
    }
}

/// An attribute's name out of a small set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XattrName(pub u8);

impl XattrName {
    /// All names.
    pub const ALL: u8 = 8;

    /// The name.
    pub fn bytes(self) -> Vec<u8> {
        match self.0 % XattrName::ALL {
            0 => b"user.a".to_vec(),
            1 => b"user.aa".to_vec(),
            2 => b"security.capability".to_vec(),
            3 => b"security.selinux".to_vec(),
            4 => b"trusted.t".to_vec(),
            5 => [b"user.".as_slice(), &[b'x'; 250]].concat(),
            6 => b"user.".to_vec(),
            _ => b"bogus.x".to_vec(),
        }
    }
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Who(pub u8);

impl Who {
    /// The superuser.
    pub const ROOT: Who = Who(0);

    /// The caller.
    pub fn caller(self) -> Caller {
        match self.0 % 3 {
            0 => Caller { pid: 1, ..Caller::ROOT },
            1 => Caller { uid: 1000, gid: 100, pid: 2, umask: 0o022 },
            _ => Caller { uid: 1001, gid: 200, pid: 3, umask: 0o077 },
        }
    }
}

/// An ACL in the kernel's form, described by a few bits: 9 of permissions, then what else is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AclRecipe(pub u16);

impl AclRecipe {
    const USER: u16 = 1 << 9;
    const GROUP: u16 = 1 << 10;
    const MASK: u16 = 1 << 11;
    const EMPTY: u16 = 1 << 12;
    const TORN: u16 = 1 << 13;

    /// The attribute's value. Not every recipe makes a valid ACL.
    pub fn bytes(self) -> Vec<u8> {
        let has = |bit| self.0 & bit != 0;
        let none = u32::MAX;
        let mut entries = Vec::new();
        if !has(Self::EMPTY) {
            entries.push((1u16, self.0 >> 6 & 7, none));
            entries.extend(has(Self::USER).then_some((2, 6, 1000)));
            entries.push((4, self.0 >> 3 & 7, none));
            entries.extend(has(Self::GROUP).then_some((8, 5, 200)));
            entries.extend(has(Self::MASK).then_some((16, (self.0 >> 3 & 7) ^ 2, none)));
            entries.push((32, self.0 & 7, none));
        }
        let mut bytes = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        if has(Self::TORN) {
            bytes.pop();
        }
        bytes
    }
}

/// An operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    Lookup {
        dir: Slot,
        name: Name,
        to: Slot,
    },
    Forget {
        slot: Slot,
    },
    /// `kind` decides between mkdir, symlink and mknod; `seed` makes the target of a symbolic link.
    Make {
        who: Who,
        dir: Slot,
        name: Name,
        kind: FileType,
        mode: u32,
        seed: u16,
        to: Slot,
    },
    Tmpfile {
        who: Who,
        dir: Slot,
        mode: u32,
        to: Slot,
    },
    Link {
        inode: Slot,
        dir: Slot,
        name: Name,
    },
    Unlink {
        dir: Slot,
        name: Name,
    },
    Rmdir {
        dir: Slot,
        name: Name,
    },
    Rename {
        dir: Slot,
        name: Name,
        new_dir: Slot,
        new_name: Name,
        mode: RenameMode,
    },
    GetAttr {
        inode: Slot,
    },
    ReadLink {
        inode: Slot,
    },
    List {
        dir: Slot,
    },
    SetAttr {
        who: Who,
        inode: Slot,
        changes: SetAttr,
    },
    SetFlags {
        inode: Slot,
        flags: u32,
    },
    GetXattr {
        inode: Slot,
        name: XattrName,
    },
    ListXattr {
        who: Who,
        inode: Slot,
    },
    SetXattr {
        inode: Slot,
        name: XattrName,
        length: u32,
        fill: u8,
        set: XattrSet,
    },
    RemoveXattr {
        inode: Slot,
        name: XattrName,
    },
    SetAcl {
        inode: Slot,
        default: bool,
        recipe: AclRecipe,
        kill_sgid: bool,
    },
    GetAcl {
        inode: Slot,
        default: bool,
    },
    Write {
        who: Who,
        inode: Slot,
        offset: u64,
        length: u32,
        fill: u8,
        kill_suidgid: bool,
    },
    Read {
        inode: Slot,
        offset: u64,
        length: u32,
    },
    Fallocate {
        who: Who,
        inode: Slot,
        offset: u64,
        length: u64,
        mode: FallocateMode,
    },
    Copy {
        who: Who,
        from: Slot,
        from_offset: u64,
        to: Slot,
        to_offset: u64,
        length: u64,
    },
    Seek {
        inode: Slot,
        offset: u64,
        whence: Whence,
    },
    Fsync {
        inode: Slot,
    },
    Sync,
    /// Background work: orphans and postponed truncates.
    Reclaim,
    /// Time passes (a second passes before each operation anyway).
    Advance {
        seconds: u64,
    },
    /// Unmount and mount.
    Remount,
}

/// The bytes of a write of `fill`: every position has its own, and none is 0.
pub fn pattern(fill: u8, offset: u64, length: u32) -> Vec<u8> {
    (0..u64::from(length)).map(|at| (((offset + at) % 251 * 7 + u64::from(fill) * 13) % 255) as u8 + 1).collect()
}

/// The target of a symbolic link.
pub fn link_target(seed: u16) -> Vec<u8> {
    let length = [1, 20, 300, 2500, 4095, 4096, 0][usize::from(seed % 7)];
    (0..length).map(|at: u16| b'a' + ((at + seed) % 26) as u8).collect()
}

/// The attribute that holds an ACL.
pub fn acl_name(default: bool) -> &'static [u8] {
    if default { b"system.posix_acl_default" } else { b"system.posix_acl_access" }
}

/// What an inode looks like, as far as it can be foretold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shown {
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub size: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
}

impl From<Attr> for Shown {
    fn from(attr: Attr) -> Shown {
        Shown {
            mode: attr.mode,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            size: attr.size,
            atime: attr.atime,
            mtime: attr.mtime,
            ctime: attr.ctime,
            btime: attr.btime,
        }
    }
}

/// What came of an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Done,
    /// A slot held nothing.
    Skipped,
    Attr(Shown),
    Bytes(Vec<u8>),
    /// Sorted by name.
    Names(Vec<(Vec<u8>, FileType)>),
    Count(u64),
    Refused(Refusal),
}

/// Why an operation was refused: the kind of the error without its text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    NotFound,
    Exists,
    NotDirectory,
    IsDirectory,
    NotEmpty,
    NameTooLong,
    Access,
    NotPermitted,
    Invalid,
    TooManyLinks,
    NoAttribute,
    Range,
    TooBig,
    FileTooLarge,
    NoData,
    Stale,
    Unsupported,
    NoSpace,
    /// Storage failed: no model foretells it.
    Storage,
}

impl From<&Error> for Refusal {
    fn from(error: &Error) -> Refusal {
        match error {
            Error::NotFound => Refusal::NotFound,
            Error::Exists => Refusal::Exists,
            Error::NotDirectory => Refusal::NotDirectory,
            Error::IsDirectory => Refusal::IsDirectory,
            Error::NotEmpty => Refusal::NotEmpty,
            Error::NameTooLong => Refusal::NameTooLong,
            Error::Access => Refusal::Access,
            Error::NotPermitted => Refusal::NotPermitted,
            Error::Invalid(_) => Refusal::Invalid,
            Error::TooManyLinks => Refusal::TooManyLinks,
            Error::NoAttribute => Refusal::NoAttribute,
            Error::Range => Refusal::Range,
            Error::TooBig => Refusal::TooBig,
            Error::FileTooLarge => Refusal::FileTooLarge,
            Error::NoData => Refusal::NoData,
            Error::Stale => Refusal::Stale,
            Error::Unsupported => Refusal::Unsupported,
            Error::NoSpace => Refusal::NoSpace,
            _ => Refusal::Storage,
        }
    }
}

/// Performs operations on a filesystem.
pub struct Driver {
    fs: Arc<Fs>,
    clock: Arc<ManualClock>,
    slots: [Option<Ino>; SLOTS],
    /// The newest error, in full.
    error: Option<Error>,
}

impl Driver {
    /// Drives a filesystem that lives by `clock` and to which nobody else refers.
    pub fn new(fs: Fs, clock: Arc<ManualClock>) -> Driver {
        let mut slots = [None; SLOTS];
        slots[0] = Some(Ino::ROOT);
        Driver { fs: Arc::new(fs), clock, slots, error: None }
    }

    /// Another one for the same filesystem, for a thread of its own. It holds what this one holds now, and must put what it
    /// is handed out into slots that nobody else uses.
    pub fn beside(&self) -> Driver {
        Driver { fs: self.fs.clone(), clock: self.clock.clone(), slots: self.slots, error: None }
    }

    /// The filesystem.
    pub fn fs(&self) -> &Fs {
        &self.fs
    }

    /// The newest error, in full.
    pub fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }

    /// Gives the filesystem back, when all others are gone.
    pub fn into_fs(self) -> Fs {
        Arc::into_inner(self.fs).expect("nobody else drives it")
    }

    /// Moves the clock by a second and performs the operation; returns when it happened, too.
    pub fn apply(&mut self, op: &Op) -> (Timestamp, Outcome) {
        self.clock.advance_ns(1_000_000_000);
        (self.clock.now(), self.apply_at_once(op))
    }

    /// Performs the operation while the clock stands still.
    pub fn apply_at_once(&mut self, op: &Op) -> Outcome {
        match self.perform(op) {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Outcome::Skipped,
            Err(error) => {
                let refusal = Refusal::from(&error);
                self.error = Some(error);
                Outcome::Refused(refusal)
            }
        }
    }

    fn at(&self, slot: Slot) -> Option<Ino> {
        self.slots[usize::from(slot.0) % SLOTS]
    }

    /// Puts what was handed out into a slot.
    fn keep(&mut self, slot: Slot, entry: &Entry) -> Option<Outcome> {
        let at = usize::from(slot.0) % SLOTS;
        let dropped = if at == 0 { Some(entry.attr.ino) } else { self.slots[at].replace(entry.attr.ino) };
        if let Some(ino) = dropped {
            self.fs.forget(ino, 1);
        }
        Some(Outcome::Attr(entry.attr.into()))
    }

    /// Performs the operation; `None` when a slot holds nothing.
    fn perform(&mut self, op: &Op) -> Result<Option<Outcome>> {
        macro_rules! held {
            ($slot:expr) => {
                match self.at($slot) {
                    Some(ino) => ino,
                    None => return Ok(None),
                }
            };
        }
        let root = Who::ROOT.caller();
        let done = match *op {
            Op::Lookup { dir, name, to } => {
                let entry = self.fs.lookup(&root, held!(dir), &name.bytes())?;
                return Ok(self.keep(to, &entry));
            }
            Op::Forget { slot } => {
                if slot != Slot::ROOT
                    && let Some(ino) = self.slots[usize::from(slot.0) % SLOTS].take()
                {
                    self.fs.forget(ino, 1);
                }
                Outcome::Done
            }
            Op::Make { who, dir, name, kind, mode, seed, to } => {
                let (who, dir, name) = (who.caller(), held!(dir), name.bytes());
                let entry = match kind {
                    FileType::Directory => self.fs.mkdir(&who, dir, &name, mode)?,
                    FileType::Symlink => self.fs.symlink(&who, dir, &name, &link_target(seed))?,
                    kind => {
                        let mode = kind.mode_bits() | (mode & !S_IFMT);
                        self.fs.mknod(&who, dir, &name, mode, u32::from(seed))?
                    }
                };
                return Ok(self.keep(to, &entry));
            }
            Op::Tmpfile { who, dir, mode, to } => {
                let entry = self.fs.tmpfile(&who.caller(), held!(dir), mode)?;
                return Ok(self.keep(to, &entry));
            }
            Op::Link { inode, dir, name } => {
                let entry = self.fs.link(&root, held!(inode), held!(dir), &name.bytes())?;
                self.fs.forget(entry.attr.ino, 1);
                Outcome::Attr(entry.attr.into())
            }
            Op::Unlink { dir, name } => {
                self.fs.unlink(&root, held!(dir), &name.bytes())?;
                Outcome::Done
            }
            Op::Rmdir { dir, name } => {
                self.fs.rmdir(&root, held!(dir), &name.bytes())?;
                Outcome::Done
            }
            Op::Rename { dir, name, new_dir, new_name, mode } => {
                self.fs.rename(&root, held!(dir), &name.bytes(), held!(new_dir), &new_name.bytes(), mode)?;
                Outcome::Done
            }
            Op::GetAttr { inode } => Outcome::Attr(self.fs.getattr(held!(inode))?.into()),
            Op::ReadLink { inode } => Outcome::Bytes(self.fs.readlink(held!(inode))?),
            Op::List { dir } => Outcome::Names(list(&self.fs, held!(dir))?),
            Op::SetAttr { who, inode, changes } => {
                Outcome::Attr(self.fs.setattr(&who.caller(), held!(inode), &changes)?.into())
            }
            Op::SetFlags { inode, flags } => {
                self.fs.set_flags(&root, held!(inode), flags)?;
                Outcome::Done
            }
            Op::GetXattr { inode, name } => Outcome::Bytes(self.fs.get_xattr(&root, held!(inode), &name.bytes())?),
            Op::ListXattr { who, inode } => Outcome::Bytes(self.fs.list_xattr(&who.caller(), held!(inode))?),
            Op::SetXattr { inode, name, length, fill, set } => {
                let value = pattern(fill, 0, length);
                self.fs.set_xattr(&root, held!(inode), &name.bytes(), &value, set, false)?;
                Outcome::Done
            }
            Op::RemoveXattr { inode, name } => {
                self.fs.remove_xattr(&root, held!(inode), &name.bytes())?;
                Outcome::Done
            }
            Op::SetAcl { inode, default, recipe, kill_sgid } => {
                let (name, value) = (acl_name(default), recipe.bytes());
                self.fs.set_xattr(&root, held!(inode), name, &value, XattrSet::Any, kill_sgid)?;
                Outcome::Done
            }
            Op::GetAcl { inode, default } => {
                Outcome::Bytes(self.fs.get_xattr(&root, held!(inode), acl_name(default))?)
            }
            Op::Write { who, inode, offset, length, fill, kill_suidgid } => {
                let data = pattern(fill, offset, length);
                let count = self.fs.write(&who.caller(), held!(inode), offset, &data, kill_suidgid)?;
                Outcome::Count(count as u64)
            }
            Op::Read { inode, offset, length } => {
                let mut bytes = vec![0xa5; length as usize];
                let count = self.fs.read(held!(inode), offset, &mut bytes)?;
                bytes.truncate(count);
                Outcome::Bytes(bytes)
            }
            Op::Fallocate { who, inode, offset, length, mode } => {
                self.fs.fallocate(&who.caller(), held!(inode), offset, length, mode)?;
                Outcome::Done
            }
            Op::Copy { who, from, from_offset, to, to_offset, length } => {
                let (from, to) = (held!(from), held!(to));
                let who = who.caller();
                Outcome::Count(self.fs.copy_file_range(&who, from, from_offset, to, to_offset, length)?)
            }
            Op::Seek { inode, offset, whence } => Outcome::Count(self.fs.seek(held!(inode), offset, whence)?),
            Op::Fsync { inode } => {
                self.fs.fsync(held!(inode), false)?;
                Outcome::Done
            }
            Op::Sync => {
                self.fs.syncfs()?;
                Outcome::Done
            }
            Op::Reclaim => {
                self.fs.reclaim_all()?;
                Outcome::Done
            }
            Op::Advance { seconds } => {
                self.clock.advance_ns(seconds * 1_000_000_000);
                Outcome::Done
            }
            Op::Remount => {
                self.fs.forget_all();
                self.fs.syncfs()?;
                self.reopen(Fs::open(self.fs.store().clone(), Options::default())?);
                Outcome::Done
            }
        };
        Ok(Some(done))
    }

    /// Goes on with another filesystem, to which nothing refers.
    pub fn reopen(&mut self, fs: Fs) {
        self.fs = Arc::new(fs);
        self.slots[1..].fill(None);
    }
}

/// The names of a directory without dots, sorted.
pub fn list(fs: &Fs, dir: Ino) -> Result<Vec<(Vec<u8>, FileType)>> {
    let mut names = Vec::new();
    fs.readdir(dir, 0, &mut |entry| {
        if !matches!(entry.name, b"." | b"..") {
            names.push((entry.name.to_vec(), entry.kind));
        }
        Sink::Taken
    })?;
    names.sort();
    Ok(names)
}
