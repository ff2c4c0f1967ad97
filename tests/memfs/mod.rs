//! A filesystem in memory, for testing the transport and as the ceiling of what can be measured through it: it gets the
//! same requests as ArgosFS and does next to nothing about them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use argosfs::base::file::{
    Attr, Caller, DirEntry, Entry, FILE_SIZE_MAX, FallocateMode, FileType, MODE_BITS, NAME_MAX, RenameMode, S_ISGID,
    S_ISUID, S_IXGRP, SetAttr, SetTime, Sink, StatFs, Whence, XattrSet,
};
use argosfs::base::{Clock, Error, Ino, Result, SystemClock, Timestamp};
use argosfs::fuse::Filesystem;

const PAGE: u64 = 4096;
/// Largest copy made at once.
const COPY_MAX: u64 = 64 << 20;

/// Runs at the start of the operation named, outside any lock: to stall, to fail, to panic, to count.
pub type Hook = Box<dyn Fn(&'static str, Ino) -> Result<()> + Send + Sync>;

pub struct MemFs {
    /// Without it writes only move the size, and reads return zeros.
    keep_data: bool,
    hook: Option<Hook>,
    tree: Mutex<Tree>,
}

struct Tree {
    next: u64,
    nodes: HashMap<u64, Node>,
}

struct Node {
    attr: Attr,
    references: u64,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    kind: Kind,
}

enum Kind {
    Directory { parent: Ino, names: HashMap<Vec<u8>, u64>, entries: BTreeMap<u64, (Vec<u8>, Ino)>, next_cookie: u64 },
    File { pages: BTreeMap<u64, Box<[u8; PAGE as usize]>> },
    Symlink(Vec<u8>),
    Other,
}

impl MemFs {
    pub fn new(keep_data: bool, hook: Option<Hook>) -> MemFs {
        let mut tree = Tree { next: 1, nodes: HashMap::new() };
        let kind = Kind::directory(Ino::ROOT);
        tree.make(&Caller::ROOT, FileType::Directory.mode_bits() | 0o755, 0, kind);
        tree.nodes.get_mut(&1).expect("just made").attr.nlink = 2;
        MemFs { keep_data, hook, tree: Mutex::new(tree) }
    }

    /// Inodes that exist, named or not.
    pub fn inodes(&self) -> usize {
        self.tree().nodes.len()
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hook(&self, what: &'static str, ino: Ino) -> Result<()> {
        self.hook.as_ref().map_or(Ok(()), |hook| hook(what, ino))
    }

    fn make_named(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32, kind: Kind) -> Result<Entry> {
        let mut tree = self.tree();
        tree.check_free(parent, name)?;
        let directory = matches!(kind, Kind::Directory { .. });
        // A default ACL takes the place of the umask (what else it does is left out here).
        let masked = !tree.node(parent)?.xattrs.contains_key(&b"system.posix_acl_default"[..]);
        let mode = if masked { mode & !(caller.umask & 0o777) } else { mode };
        let ino = tree.make(caller, mode, rdev, kind);
        tree.add_name(parent, name, ino)?;
        if directory {
            tree.node(parent)?.attr.nlink += 1;
            tree.node(ino)?.attr.nlink = 2;
        }
        tree.hand_out(ino)
    }

    fn remove(&self, parent: Ino, name: &[u8], directory: bool) -> Result<()> {
        let mut tree = self.tree();
        let ino = tree.find(parent, name)?;
        tree.check_removable(ino, directory)?;
        tree.remove_name(parent, name)?;
        tree.drop_link(parent, ino)
    }
}

impl Kind {
    fn directory(parent: Ino) -> Kind {
        Kind::Directory { parent, names: HashMap::new(), entries: BTreeMap::new(), next_cookie: 3 }
    }
}

fn now() -> Timestamp {
    SystemClock.now()
}

impl Tree {
    fn node(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino.0).ok_or(Error::Stale)
    }

    fn make(&mut self, caller: &Caller, mode: u32, rdev: u32, kind: Kind) -> Ino {
        let (ino, time) = (Ino(self.next), now());
        self.next += 1;
        let size = if let Kind::Symlink(target) = &kind { target.len() as u64 } else { 0 };
        let attr = Attr {
            ino,
            size,
            blocks512: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            mode,
            nlink: 0,
            uid: caller.uid,
            gid: caller.gid,
            rdev,
            blksize: PAGE as u32,
        };
        self.nodes.insert(ino.0, Node { attr, references: 0, xattrs: BTreeMap::new(), kind });
        ino
    }

    fn hand_out(&mut self, ino: Ino) -> Result<Entry> {
        let node = self.node(ino)?;
        node.references += 1;
        Ok(Entry { attr: node.attr, generation: 0 })
    }

    fn find(&mut self, parent: Ino, name: &[u8]) -> Result<Ino> {
        let Kind::Directory { names, entries, parent: above, .. } = &self.node(parent)?.kind else {
            return Err(Error::NotDirectory);
        };
        match name {
            b"." => Ok(parent),
            b".." => Ok(*above),
            _ if name.len() > NAME_MAX => Err(Error::NameTooLong),
            _ => names.get(name).map(|cookie| entries[cookie].1).ok_or(Error::NotFound),
        }
    }

    fn check_free(&mut self, parent: Ino, name: &[u8]) -> Result<()> {
        match self.find(parent, name) {
            Err(Error::NotFound) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(Error::Exists),
        }
    }

    fn check_removable(&mut self, ino: Ino, directory: bool) -> Result<()> {
        match &self.node(ino)?.kind {
            Kind::Directory { .. } if !directory => Err(Error::IsDirectory),
            Kind::Directory { entries, .. } if !entries.is_empty() => Err(Error::NotEmpty),
            Kind::Directory { .. } => Ok(()),
            _ if directory => Err(Error::NotDirectory),
            _ => Ok(()),
        }
    }

    fn add_name(&mut self, parent: Ino, name: &[u8], ino: Ino) -> Result<()> {
        let node = self.node(parent)?;
        let Kind::Directory { names, entries, next_cookie, .. } = &mut node.kind else {
            return Err(Error::NotDirectory);
        };
        names.insert(name.to_vec(), *next_cookie);
        entries.insert(*next_cookie, (name.to_vec(), ino));
        *next_cookie += 1;
        (node.attr.mtime, node.attr.ctime) = (now(), now());
        let child = self.node(ino)?;
        child.attr.nlink += 1;
        child.attr.ctime = now();
        if let Kind::Directory { parent: above, .. } = &mut child.kind {
            *above = parent;
        }
        Ok(())
    }

    fn remove_name(&mut self, parent: Ino, name: &[u8]) -> Result<Ino> {
        let node = self.node(parent)?;
        let Kind::Directory { names, entries, .. } = &mut node.kind else { return Err(Error::NotDirectory) };
        let cookie = names.remove(name).ok_or(Error::NotFound)?;
        let (_, ino) = entries.remove(&cookie).ok_or(Error::NotFound)?;
        (node.attr.mtime, node.attr.ctime) = (now(), now());
        let child = self.node(ino)?;
        child.attr.nlink -= 1;
        child.attr.ctime = now();
        Ok(ino)
    }

    /// After the last name of a directory went: its own `.` and its share in the parent's links.
    fn drop_link(&mut self, parent: Ino, ino: Ino) -> Result<()> {
        if matches!(self.node(ino)?.kind, Kind::Directory { .. }) {
            self.node(ino)?.attr.nlink = 0;
            self.node(parent)?.attr.nlink -= 1;
        }
        self.reap(ino);
        Ok(())
    }

    fn reap(&mut self, ino: Ino) {
        if self.nodes.get(&ino.0).is_some_and(|node| node.attr.nlink == 0 && node.references == 0) {
            self.nodes.remove(&ino.0);
        }
    }

    fn is_directory(&mut self, ino: Ino) -> Result<bool> {
        Ok(matches!(self.node(ino)?.kind, Kind::Directory { .. }))
    }
}

impl Node {
    fn touch(&mut self) {
        (self.attr.mtime, self.attr.ctime) = (now(), now());
    }

    fn pages(&mut self) -> Result<&mut BTreeMap<u64, Box<[u8; PAGE as usize]>>> {
        match &mut self.kind {
            Kind::File { pages } => Ok(pages),
            Kind::Directory { .. } => Err(Error::IsDirectory),
            _ => Err(Error::Invalid("not a regular file")),
        }
    }

    fn kill_suidgid(&mut self) {
        self.attr.mode &= !S_ISUID;
        if self.attr.mode & S_IXGRP != 0 {
            self.attr.mode &= !S_ISGID;
        }
        self.xattrs.remove(&b"security.capability"[..]);
    }

    fn count_blocks(&mut self) {
        if let Kind::File { pages } = &self.kind {
            self.attr.blocks512 = pages.len() as u64 * (PAGE / 512);
        }
    }

    fn put(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let pages = self.pages()?;
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            let count = (data.len() - done).min(PAGE as usize - within);
            let page = pages.entry(page).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[within..within + count].copy_from_slice(&data[done..done + count]);
            done += count;
        }
        Ok(())
    }

    fn get(&mut self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let len = self.attr.size.saturating_sub(offset).min(out.len() as u64) as usize;
        let pages = self.pages()?;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            let count = (len - done).min(PAGE as usize - within);
            match pages.get(&page) {
                Some(page) => out[done..done + count].copy_from_slice(&page[within..within + count]),
                None => out[done..done + count].fill(0),
            }
            done += count;
        }
        Ok(len)
    }

    /// Makes a range read as zeros; whole pages become holes.
    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        let end = offset + length;
        let pages = self.pages()?;
        let touched: Vec<u64> = pages.range(offset / PAGE..end.div_ceil(PAGE)).map(|(page, _)| *page).collect();
        for number in touched {
            let (start, stop) = (offset.max(number * PAGE), end.min((number + 1) * PAGE));
            if stop - start == PAGE {
                pages.remove(&number);
            } else if let Some(page) = pages.get_mut(&number) {
                page[(start % PAGE) as usize..][..(stop - start) as usize].fill(0);
            }
        }
        Ok(())
    }
}

impl Filesystem for MemFs {
    fn lookup(&self, _: &Caller, parent: Ino, name: &[u8]) -> Result<Entry> {
        let mut tree = self.tree();
        let ino = if name == b"." { parent } else { tree.find(parent, name)? };
        tree.hand_out(ino)
    }

    fn forget(&self, ino: Ino, references: u64) {
        let mut tree = self.tree();
        if let Some(node) = tree.nodes.get_mut(&ino.0) {
            node.references = node.references.checked_sub(references).expect("no more is given back than was taken");
        }
        tree.reap(ino);
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.hook("getattr", ino)?;
        Ok(self.tree().node(ino)?.attr)
    }

    fn setattr(&self, _: &Caller, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let mut tree = self.tree();
        let node = tree.node(ino)?;
        let time = |set: SetTime| match set {
            SetTime::Now => now(),
            SetTime::At(time) => time,
        };
        node.attr.ctime = now();
        if let Some(mode) = changes.mode {
            node.attr.mode = (node.attr.mode & !MODE_BITS) | (mode & MODE_BITS);
        }
        node.attr.uid = changes.uid.unwrap_or(node.attr.uid);
        node.attr.gid = changes.gid.unwrap_or(node.attr.gid);
        if changes.kill_suidgid {
            node.kill_suidgid();
        }
        if let Some(size) = changes.size {
            let old = node.attr.size;
            if size < old {
                node.zero(size, old - size)?;
            }
            node.attr.size = size;
            node.touch();
            node.count_blocks();
        }
        if let Some(set) = changes.atime {
            node.attr.atime = time(set);
        }
        if let Some(set) = changes.mtime {
            node.attr.mtime = time(set);
        }
        if let Some(ctime) = changes.ctime {
            node.attr.ctime = ctime;
        }
        Ok(node.attr)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        match &self.tree().node(ino)?.kind {
            Kind::Symlink(target) => Ok(target.clone()),
            _ => Err(Error::Invalid("not a symbolic link")),
        }
    }

    fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Entry> {
        let kind = match FileType::from_mode(mode) {
            Some(FileType::Regular) => Kind::File { pages: BTreeMap::new() },
            _ => Kind::Other,
        };
        self.make_named(caller, parent, name, mode, rdev, kind)
    }

    fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Entry> {
        self.make_named(caller, parent, name, mode, 0, Kind::directory(parent))
    }

    fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Entry> {
        let mode = FileType::Symlink.mode_bits() | 0o777;
        self.make_named(&Caller { umask: 0, ..*caller }, parent, name, mode, 0, Kind::Symlink(target.to_vec()))
    }

    fn tmpfile(&self, caller: &Caller, _: Ino, mode: u32) -> Result<Entry> {
        let mut tree = self.tree();
        let ino = tree.make(caller, mode & !(caller.umask & 0o777), 0, Kind::File { pages: BTreeMap::new() });
        tree.hand_out(ino)
    }

    fn link(&self, _: &Caller, ino: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Entry> {
        let mut tree = self.tree();
        tree.check_free(new_parent, new_name)?;
        tree.add_name(new_parent, new_name, ino)?;
        tree.hand_out(ino)
    }

    fn unlink(&self, _: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, false)
    }

    fn rmdir(&self, _: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, true)
    }

    fn rename(
        &self,
        _: &Caller,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let mut tree = self.tree();
        let moved = tree.find(parent, name)?;
        let directory = tree.is_directory(moved)?;
        let old = match tree.find(new_parent, new_name) {
            Ok(old) => Some(old),
            Err(Error::NotFound) => None,
            Err(error) => return Err(error),
        };
        match (mode, old) {
            (RenameMode::NoReplace, Some(_)) => return Err(Error::Exists),
            (RenameMode::Exchange, None) => return Err(Error::NotFound),
            (RenameMode::Exchange, Some(other)) => {
                let other_directory = tree.is_directory(other)?;
                tree.remove_name(parent, name)?;
                tree.remove_name(new_parent, new_name)?;
                tree.add_name(new_parent, new_name, moved)?;
                tree.add_name(parent, name, other)?;
                if directory != other_directory {
                    let (gains, loses) = if directory { (new_parent, parent) } else { (parent, new_parent) };
                    tree.node(gains)?.attr.nlink += 1;
                    tree.node(loses)?.attr.nlink -= 1;
                }
                return Ok(());
            }
            (_, Some(old)) if old == moved => return Ok(()),
            (_, Some(old)) => {
                tree.check_removable(old, directory)?;
                tree.remove_name(new_parent, new_name)?;
                tree.drop_link(new_parent, old)?;
            }
            (_, None) => {}
        }
        tree.remove_name(parent, name)?;
        tree.add_name(new_parent, new_name, moved)?;
        if directory {
            tree.node(parent)?.attr.nlink -= 1;
            tree.node(new_parent)?.attr.nlink += 1;
        }
        Ok(())
    }

    fn read(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<usize> {
        self.hook("read", ino)?;
        let mut tree = self.tree();
        let node = tree.node(ino)?;
        if self.keep_data {
            return node.get(offset, out);
        }
        // Pages not touched yet are zeros; those that were hold what an earlier request left.
        Ok(node.attr.size.saturating_sub(offset).min(out.len() as u64) as usize)
    }

    fn write(&self, _: &Caller, ino: Ino, offset: u64, data: &[u8], kill_suidgid: bool) -> Result<usize> {
        self.hook("write", ino)?;
        let end = offset + data.len() as u64;
        if end > FILE_SIZE_MAX {
            return Err(Error::FileTooLarge);
        }
        let mut tree = self.tree();
        let node = tree.node(ino)?;
        if self.keep_data {
            node.put(offset, data)?;
            node.count_blocks();
        }
        if kill_suidgid {
            node.kill_suidgid();
        }
        node.attr.size = node.attr.size.max(end);
        node.touch();
        Ok(data.len())
    }

    fn fallocate(&self, caller: &Caller, ino: Ino, offset: u64, length: u64, mode: FallocateMode) -> Result<()> {
        let mut tree = self.tree();
        let node = tree.node(ino)?;
        let keep_size = match mode {
            FallocateMode::Allocate { keep_size } => keep_size,
            FallocateMode::PunchHole => true,
            FallocateMode::ZeroRange { keep_size } => keep_size,
        };
        if !matches!(mode, FallocateMode::Allocate { .. }) {
            node.zero(offset, length)?;
            node.count_blocks();
        }
        if !keep_size {
            node.attr.size = node.attr.size.max(offset + length);
        }
        if !caller.keeps_set_id() {
            node.kill_suidgid();
        }
        node.touch();
        Ok(())
    }

    fn copy_file_range(
        &self,
        caller: &Caller,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        length: u64,
    ) -> Result<u64> {
        let mut tree = self.tree();
        let source = tree.node(from)?;
        let length = length.min(source.attr.size.saturating_sub(from_offset)).min(COPY_MAX);
        let mut data = vec![0; length as usize];
        source.get(from_offset, &mut data)?;
        let target = tree.node(to)?;
        target.put(to_offset, &data)?;
        target.attr.size = target.attr.size.max(to_offset + length);
        if !caller.keeps_set_id() {
            target.kill_suidgid();
        }
        target.touch();
        target.count_blocks();
        Ok(length)
    }

    fn seek(&self, ino: Ino, offset: u64, whence: Whence) -> Result<u64> {
        let mut tree = self.tree();
        let node = tree.node(ino)?;
        let size = node.attr.size;
        if offset >= size {
            return Err(Error::NoData);
        }
        let pages = node.pages()?;
        match whence {
            Whence::Data => {
                let (page, _) = pages.range(offset / PAGE..).next().ok_or(Error::NoData)?;
                let at = offset.max(page * PAGE);
                if at < size { Ok(at) } else { Err(Error::NoData) }
            }
            Whence::Hole => {
                let mut page = offset / PAGE;
                while pages.contains_key(&page) {
                    page += 1;
                }
                Ok(offset.max(page * PAGE).min(size))
            }
        }
    }

    fn fsync(&self, ino: Ino, _: bool) -> Result<()> {
        self.hook("fsync", ino)
    }

    fn syncfs(&self) -> Result<()> {
        Ok(())
    }

    fn readdir(&self, ino: Ino, cookie: u64, sink: &mut dyn FnMut(&DirEntry<'_>) -> Sink) -> Result<()> {
        self.list(ino, cookie, &mut |_, entry| sink(entry))
    }

    fn readdir_plus(
        &self,
        ino: Ino,
        cookie: u64,
        sink: &mut dyn FnMut(&DirEntry<'_>, Option<&Entry>) -> Sink,
    ) -> Result<()> {
        let mut taken = Vec::new();
        let listed = self.list(ino, cookie, &mut |node, entry| {
            let inode = (entry.cookie > 2).then_some(Entry { attr: node.attr, generation: 0 });
            let answer = sink(entry, inode.as_ref());
            if answer == Sink::Taken && inode.is_some() {
                taken.push(entry.ino);
            }
            answer
        });
        let mut tree = self.tree();
        for ino in taken {
            tree.node(ino)?.references += 1;
        }
        listed
    }

    fn get_xattr(&self, _: &Caller, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.hook("getxattr", ino)?;
        self.tree().node(ino)?.xattrs.get(name).cloned().ok_or(Error::NoAttribute)
    }

    fn list_xattr(&self, _: &Caller, ino: Ino) -> Result<Vec<u8>> {
        Ok(self.tree().node(ino)?.xattrs.keys().flat_map(|name| name.iter().copied().chain([0])).collect())
    }

    fn set_xattr(&self, _: &Caller, ino: Ino, name: &[u8], value: &[u8], set: XattrSet, kill_sgid: bool) -> Result<()> {
        let mut tree = self.tree();
        let node = tree.node(ino)?;
        match (set, node.xattrs.contains_key(name)) {
            (XattrSet::Create, true) => return Err(Error::Exists),
            (XattrSet::Replace, false) => return Err(Error::NoAttribute),
            _ => {}
        }
        node.xattrs.insert(name.to_vec(), value.to_vec());
        if kill_sgid {
            node.attr.mode &= !S_ISGID;
        }
        node.attr.ctime = now();
        Ok(())
    }

    fn remove_xattr(&self, _: &Caller, ino: Ino, name: &[u8]) -> Result<()> {
        self.tree().node(ino)?.xattrs.remove(name).map(drop).ok_or(Error::NoAttribute)
    }

    fn statfs(&self) -> Result<StatFs> {
        let blocks = 1 << 28;
        let files = self.inodes() as u64;
        Ok(StatFs {
            block_size: PAGE as u32,
            blocks,
            blocks_free: blocks / 2,
            blocks_available: blocks / 4,
            files: files + 1_000_000,
            files_free: 1_000_000,
        })
    }
}

impl MemFs {
    fn list(&self, ino: Ino, cookie: u64, sink: &mut dyn FnMut(&Node, &DirEntry<'_>) -> Sink) -> Result<()> {
        let mut tree = self.tree();
        let Kind::Directory { parent, .. } = tree.node(ino)?.kind else { return Err(Error::NotDirectory) };
        let Some(node) = tree.nodes.get(&ino.0) else { return Err(Error::Stale) };
        for (dot, (name, target)) in [(&b"."[..], ino), (&b".."[..], parent)].into_iter().enumerate() {
            let entry = DirEntry { ino: target, kind: FileType::Directory, name, cookie: dot as u64 + 1 };
            if entry.cookie > cookie && sink(node, &entry) == Sink::Full {
                return Ok(());
            }
        }
        let Kind::Directory { entries, .. } = &node.kind else { return Err(Error::NotDirectory) };
        for (cookie, (name, target)) in entries.range(cookie.max(2) + 1..) {
            let Some(child) = tree.nodes.get(&target.0) else { continue };
            let entry = DirEntry { ino: *target, kind: child.attr.kind(), name, cookie: *cookie };
            if sink(child, &entry) == Sink::Full {
                break;
            }
        }
        Ok(())
    }
}
