//! A whole filesystem in one comparable value.

use std::collections::{BTreeMap, HashMap};

use super::super::op::{Name, Outcome, SLOTS, Shown, Slot, list};
use super::{Model, ROOT};
use crate::base::file::{Caller, FileType, Whence};
use crate::base::{Error, Ino, Result, Timestamp};
use crate::fs::Fs;

/// The names that lead from the root to an inode.
pub type Path = Vec<Vec<u8>>;

/// Everything that has a name, by path.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tree(pub BTreeMap<Path, TreeNode>);

/// What a path leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TreeNode {
    pub shown: Shown,
    /// The first path to the same inode.
    pub same_as: Path,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Target of a symbolic link.
    pub target: Vec<u8>,
    /// Pages of a file that are not all zero, by offset, cut at its size.
    pub data: BTreeMap<u64, Vec<u8>>,
}

impl Tree {
    /// The same tree without access times, which a crash may take back.
    pub fn without_access_times(mut self) -> Tree {
        for node in self.0.values_mut() {
            node.shown.atime = Timestamp::default();
        }
        self
    }

    /// The first difference, for people.
    pub fn difference(&self, other: &Tree) -> Option<String> {
        let paths = self.0.keys().chain(other.0.keys());
        let path = paths.filter(|path| self.0.get(*path) != other.0.get(*path)).min()?;
        let name: Vec<_> = path.iter().map(|name| name.escape_ascii().to_string()).collect();
        Some(format!("/{}: {:?}\n  against {:?}", name.join("/"), self.0.get(path), other.0.get(path)))
    }
}

const PAGE: u64 = 4096;

/// Reads the whole tree of a filesystem through its own interface, which moves access times.
pub fn read_tree(fs: &Fs) -> Result<Tree> {
    let mut tree = Tree::default();
    let mut firsts = HashMap::new();
    walk(fs, Ino::ROOT, &mut Vec::new(), &mut firsts, &mut tree)?;
    Ok(tree)
}

fn walk(fs: &Fs, ino: Ino, path: &mut Path, firsts: &mut HashMap<Ino, Path>, tree: &mut Tree) -> Result<()> {
    let attr = fs.getattr(ino)?;
    let root = Caller::ROOT;
    let mut xattrs = BTreeMap::new();
    for name in fs.list_xattr(&root, ino)?.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        xattrs.insert(name.to_vec(), fs.get_xattr(&root, ino, name)?);
    }
    let target = if attr.kind() == FileType::Symlink { fs.readlink(ino)? } else { Vec::new() };
    let data = if attr.kind() == FileType::Regular { read_data(fs, ino, attr.size)? } else { BTreeMap::new() };
    let same_as = firsts.entry(ino).or_insert_with(|| path.clone()).clone();
    tree.0.insert(path.clone(), TreeNode { shown: attr.into(), same_as, xattrs, target, data });
    if attr.kind() == FileType::Directory {
        for (name, kind) in list(fs, ino)? {
            let entry = fs.lookup(&root, ino, &name)?;
            if entry.attr.kind() != kind {
                return Err(Error::corrupt("a name and its inode disagree about the kind"));
            }
            path.push(name);
            let walked = walk(fs, entry.attr.ino, path, firsts, tree);
            path.pop();
            fs.forget(entry.attr.ino, 1);
            walked?;
        }
    }
    Ok(())
}

fn read_data(fs: &Fs, ino: Ino, size: u64) -> Result<BTreeMap<u64, Vec<u8>>> {
    let mut data = BTreeMap::new();
    let mut at = 0;
    // The access time moves once, also where there is nothing to read.
    fs.read(ino, 0, &mut [0])?;
    while at < size {
        at = match fs.seek(ino, at, Whence::Data) {
            Ok(found) => found / PAGE * PAGE,
            Err(Error::NoData) => break,
            Err(error) => return Err(error),
        };
        let mut page = vec![0; PAGE as usize];
        let count = fs.read(ino, at, &mut page)?;
        page.truncate(count);
        if page.iter().any(|byte| *byte != 0) {
            data.insert(at, page);
        }
        at += PAGE;
    }
    Ok(data)
}

/// A regular file as the model has it at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileState {
    pub size: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// As in [`TreeNode`].
    pub data: BTreeMap<u64, Vec<u8>>,
}

impl Model {
    /// The inode in a slot, by a number that is never used again.
    pub fn held(&self, slot: Slot) -> Option<u64> {
        self.slots[usize::from(slot.0) % SLOTS]
    }

    /// The inode a name in a directory leads to.
    pub fn named(&self, dir: Slot, name: Name) -> Option<u64> {
        self.node(self.held(dir)?).names.get(&name.bytes()).copied()
    }

    /// Every regular file there is, with a name or without.
    pub fn files(&self) -> BTreeMap<u64, FileState> {
        let regular = self.nodes.iter().filter(|(_, node)| node.kind == FileType::Regular);
        let state = |node: &super::Node| FileState {
            size: node.content.size(),
            mtime: node.mtime,
            ctime: node.ctime,
            data: node.content.data(),
        };
        regular.map(|(id, node)| (*id, state(node))).collect()
    }

    /// Which inode each path leads to.
    pub fn paths(&self) -> BTreeMap<Path, u64> {
        let mut paths = BTreeMap::from([(Vec::new(), ROOT)]);
        let mut todo = vec![(Vec::new(), ROOT)];
        while let Some((path, id)) = todo.pop() {
            for (name, child) in &self.node(id).names {
                let path = [path.as_slice(), std::slice::from_ref(name)].concat();
                paths.insert(path.clone(), *child);
                todo.push((path, *child));
            }
        }
        paths
    }

    /// The whole tree, access times moved as [`read_tree`] moves them when it runs at `now`.
    pub fn tree(&mut self, now: Timestamp) -> Tree {
        let mut tree = Tree::default();
        let mut firsts = HashMap::new();
        self.walk(ROOT, &mut Vec::new(), &mut firsts, &mut tree, now);
        tree
    }

    fn walk(&mut self, id: u64, path: &mut Path, firsts: &mut HashMap<u64, Path>, tree: &mut Tree, now: Timestamp) {
        let (shown, node) = (self.shown(id), self.node(id).clone());
        if matches!(node.kind, FileType::Symlink | FileType::Regular) {
            self.touch(id, now);
        }
        let same_as = firsts.entry(id).or_insert_with(|| path.clone()).clone();
        let data = node.content.data();
        tree.0.insert(path.clone(), TreeNode { shown, same_as, xattrs: node.xattrs, target: node.target, data });
        if let Ok(Outcome::Names(names)) = self.list(id, now) {
            for (name, _) in names {
                let child = node.names[&name];
                path.push(name);
                self.walk(child, path, firsts, tree, now);
                path.pop();
            }
        }
    }
}
