//! Answers to requests: each is one vectored write of a header and what follows, without copying data.
//!
//! Invariant: a [`Reply`] is sent at most once (sending consumes it); the kernel answers a second one with an error.

use std::io::{self, IoSlice};

use zerocopy::{Immutable, IntoBytes};

use super::abi;
use crate::base::file::{Attr, DirEntry, Entry, NAME_MAX, StatFs, decode_rdev};
use crate::base::{Ino, Timestamp};

/// Where replies go: a session's file descriptor, or a recorder in tests.
pub trait Channel: Sync {
    /// Sends one message whole. The implementation tells whom it may concern when the kernel refuses a message for any
    /// other reason than that its asker or the connection is gone.
    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<()>;
}

/// How long the kernel may keep names and attributes: until it is told otherwise. In seconds; the kernel clamps what it
/// cannot count in ticks, and this much is 136 years.
const FOREVER: u64 = u32::MAX as u64;

/// What became of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// The kernel has it.
    Delivered,
    /// The asker is gone, or the connection is: references handed out in the reply were never taken.
    Dropped,
    /// The request is one that gets no reply.
    Nothing,
}

/// The obligation to answer one request.
pub struct Reply<'a> {
    channel: &'a dyn Channel,
    unique: u64,
}

impl<'a> Reply<'a> {
    /// The answer to the request called `unique`.
    pub fn new(channel: &'a dyn Channel, unique: u64) -> Reply<'a> {
        Reply { channel, unique }
    }

    /// Nothing but success.
    pub fn done(self) -> Sent {
        self.send(0, &[], &[])
    }

    /// An errno, given as a positive number.
    pub fn errno(self, errno: i32) -> Sent {
        self.send(-errno, &[], &[])
    }

    /// Bytes as they are: file data, listings, targets, attribute values.
    pub fn data(self, data: &[u8]) -> Sent {
        self.send(0, data, &[])
    }

    /// A name and the inode behind it.
    pub fn entry(self, entry: &Entry) -> Sent {
        self.fixed(&entry_out(entry))
    }

    /// The knowledge that there is no such name.
    pub fn negative_entry(self) -> Sent {
        self.fixed(&abi::EntryOut { entry_valid: FOREVER, ..Default::default() })
    }

    /// A new file, opened as if it had been opened without asking.
    pub fn created(self, entry: &Entry) -> Sent {
        let open = abi::OpenOut { open_flags: abi::fopen::KEEP_CACHE | abi::fopen::NOFLUSH, ..Default::default() };
        self.send(0, entry_out(entry).as_bytes(), open.as_bytes())
    }

    /// Attributes.
    pub fn attr(self, attr: &Attr) -> Sent {
        self.fixed(&abi::AttrOut { attr_valid: FOREVER, attr_valid_nsec: 0, dummy: 0, attr: fuse_attr(attr) })
    }

    /// Attributes with the birth time.
    pub fn statx(self, attr: &Attr) -> Sent {
        let out = abi::StatxOut { attr_valid: FOREVER, stat: fuse_statx(attr), ..Default::default() };
        self.fixed(&out)
    }

    /// How many bytes were written.
    pub fn written(self, count: u32) -> Sent {
        self.fixed(&abi::WriteOut { size: count, padding: 0 })
    }

    /// How many bytes were copied, in the wide form.
    pub fn copied(self, count: u64) -> Sent {
        self.fixed(&abi::CopyFileRangeOut { bytes_copied: count })
    }

    /// Where a seek ended.
    pub fn position(self, offset: u64) -> Sent {
        self.fixed(&abi::LseekOut { offset })
    }

    /// How large a buffer an extended attribute, or the list of them, needs.
    pub fn xattr_size(self, size: u32) -> Sent {
        self.fixed(&abi::GetxattrOut { size, padding: 0 })
    }

    /// Space and inodes.
    pub fn statfs(self, stat: &StatFs) -> Sent {
        self.fixed(&abi::StatfsOut {
            blocks: stat.blocks,
            bfree: stat.blocks_free,
            bavail: stat.blocks_available,
            files: stat.files,
            ffree: stat.files_free,
            bsize: stat.block_size,
            namelen: NAME_MAX as u32,
            frsize: stat.block_size,
            ..Default::default()
        })
    }

    /// What an `ioctl` has to tell.
    pub fn ioctl(self, answer: &[u8]) -> Sent {
        self.send(0, abi::IoctlOut::default().as_bytes(), answer)
    }

    /// An `ioctl` has changed attributes, of which the kernel does not know unless it is told: before the asker can look.
    /// For attributes alone the kernel takes no lock of the inode.
    pub fn flags_set(self, ino: Ino) -> Sent {
        let what = abi::NotifyInvalInodeOut { ino: ino.0, off: -1, len: 0 };
        let len = (size_of::<abi::OutHeader>() + size_of_val(&what)) as u32;
        let header = abi::OutHeader { len, error: abi::notify::INVAL_INODE, unique: 0 };
        // Not cached any more: all the better.
        let _ = self.channel.send(&[header.as_bytes(), what.as_bytes()].map(IoSlice::new));
        self.fixed(&abi::IoctlOut::default())
    }

    /// One fixed struct.
    pub fn fixed<T: IntoBytes + Immutable>(self, body: &T) -> Sent {
        self.send(0, body.as_bytes(), &[])
    }

    fn send(self, error: i32, first: &[u8], second: &[u8]) -> Sent {
        let len = size_of::<abi::OutHeader>() + first.len() + second.len();
        let header = abi::OutHeader { len: len as u32, error, unique: self.unique };
        let parts = [header.as_bytes(), first, second].map(IoSlice::new);
        let used = if second.is_empty() { if first.is_empty() { 1 } else { 2 } } else { 3 };
        match self.channel.send(&parts[..used]) {
            Ok(()) => Sent::Delivered,
            // The asker or the connection is gone; the channel has told of anything else.
            Err(_) => Sent::Dropped,
        }
    }
}

/// Collects directory entries into a buffer until it is full.
pub struct Listing<'a> {
    out: &'a mut [u8],
    used: usize,
}

impl<'a> Listing<'a> {
    /// An empty listing that will fill `out`.
    pub fn new(out: &'a mut [u8]) -> Listing<'a> {
        Listing { out, used: 0 }
    }

    /// Adds an entry; false when there is no room.
    pub fn push(&mut self, entry: &DirEntry<'_>) -> bool {
        self.append(&[], entry)
    }

    /// Adds an entry with its inode (`None`: to be looked up when needed); false when there is no room.
    pub fn push_plus(&mut self, entry: &DirEntry<'_>, inode: Option<&Entry>) -> bool {
        let inode = inode.map(entry_out).unwrap_or_default();
        self.append(inode.as_bytes(), entry)
    }

    /// How many bytes were filled.
    pub fn finish(self) -> usize {
        self.used
    }

    fn append(&mut self, inode: &[u8], entry: &DirEntry<'_>) -> bool {
        let header = abi::Dirent {
            ino: entry.ino.0,
            off: entry.cookie,
            namelen: entry.name.len() as u32,
            kind: u32::from(entry.kind.dirent()),
        };
        let header = header.as_bytes();
        let len = inode.len() + header.len() + entry.name.len();
        let Some(mut room) = self.out.get_mut(self.used..self.used + abi::align8(len)) else { return false };
        for part in [inode, header, entry.name] {
            let (target, rest) = room.split_at_mut(part.len());
            target.copy_from_slice(part);
            room = rest;
        }
        room.fill(0);
        self.used += abi::align8(len);
        true
    }
}

fn entry_out(entry: &Entry) -> abi::EntryOut {
    abi::EntryOut {
        nodeid: entry.attr.ino.0,
        generation: entry.generation,
        entry_valid: FOREVER,
        attr_valid: FOREVER,
        entry_valid_nsec: 0,
        attr_valid_nsec: 0,
        attr: fuse_attr(&entry.attr),
    }
}

fn fuse_attr(attr: &Attr) -> abi::FuseAttr {
    abi::FuseAttr {
        ino: attr.ino.0,
        size: attr.size,
        blocks: attr.blocks512,
        atime: attr.atime.seconds as u64,
        mtime: attr.mtime.seconds as u64,
        ctime: attr.ctime.seconds as u64,
        atimensec: attr.atime.nanos,
        mtimensec: attr.mtime.nanos,
        ctimensec: attr.ctime.nanos,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

fn fuse_statx(attr: &Attr) -> abi::FuseStatx {
    let time = |time: Timestamp| abi::SxTime { tv_sec: time.seconds, tv_nsec: time.nanos, reserved: 0 };
    let (rdev_major, rdev_minor) = decode_rdev(attr.rdev);
    abi::FuseStatx {
        mask: abi::STATX_BASIC_STATS | abi::STATX_BTIME,
        blksize: attr.blksize,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        mode: attr.mode as u16,
        ino: attr.ino.0,
        size: attr.size,
        blocks: attr.blocks512,
        atime: time(attr.atime),
        btime: time(attr.btime),
        ctime: time(attr.ctime),
        mtime: time(attr.mtime),
        rdev_major,
        rdev_minor,
        ..Default::default()
    }
}
