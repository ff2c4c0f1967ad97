//! Names and inodes: every name leads to an inode, every inode has as many names as it says or waits to be removed, and
//! every directory hangs on the root.

use super::fsck::Checked;
use super::issue::{Findings, Issue};
use super::scan;
use crate::base::file::{FILE_SIZE_MAX, FileType, NAME_MAX, S_IFMT, XATTR_SIZE_MAX};
use crate::base::{Ino, Result};
use crate::format::rows::{Counter, DentryKey, FLAG_XATTRS, InodeRow, XATTR_PIECE, XattrKey};
use crate::format::table::{Dentries, Inodes, Orphans, Xattrs};
use crate::meta::Reader;

/// What is remembered of an inode.
struct Node {
    ino: u64,
    nlink: u32,
    /// Names seen.
    found: u32,
    /// The `d_type`.
    kind: u8,
    marked_xattrs: bool,
    has_xattrs: bool,
}

/// What is remembered of a directory besides.
struct Directory {
    ino: u64,
    parent: u64,
    /// Where its name was seen.
    seen_in: Option<u64>,
    entries: u64,
    found_entries: u64,
    subdirectories: u32,
}

/// Everything, in order of inode number.
struct Tree {
    nodes: Vec<Node>,
    directories: Vec<Directory>,
}

impl Tree {
    fn node(&mut self, ino: Ino) -> Option<&mut Node> {
        let at = self.nodes.binary_search_by_key(&ino.0, |node| node.ino).ok()?;
        self.nodes.get_mut(at)
    }

    fn directory_index(&self, ino: u64) -> Option<usize> {
        self.directories.binary_search_by_key(&ino, |directory| directory.ino).ok()
    }
}

/// Runs the pass.
pub fn check(reader: &impl Reader, findings: &mut Findings, checked: &mut Checked) -> Result<()> {
    let mut tree = inodes(reader, findings, checked)?;
    names(reader, &mut tree, findings, checked)?;
    xattrs(reader, &mut tree, findings)?;
    let orphans = orphans(reader, &mut tree, findings)?;
    checked.orphans = orphans.len() as u64;
    counts(&tree, &orphans, findings);
    reachable(&tree, &orphans, findings);
    Ok(())
}

fn inodes(reader: &impl Reader, findings: &mut Findings, checked: &mut Checked) -> Result<Tree> {
    let mut tree = Tree { nodes: Vec::new(), directories: Vec::new() };
    let next = reader.counter(Counter::NextIno)?;
    checked.inodes = scan::rows::<Inodes>(reader, |ino, row| {
        findings.expect(ino.0 < next, Issue::IdBeyondCounter, || format!("inode {ino}, next is {next}"));
        let kind = FileType::from_mode(row.mode);
        let fine = kind.is_some() && row.mode & !(S_IFMT | 0o7777) == 0 && row.size <= FILE_SIZE_MAX;
        findings
            .expect(fine, Issue::InodeInvalid, || format!("inode {ino} has mode {:o}, size {}", row.mode, row.size));
        tree.nodes.push(Node {
            ino: ino.0,
            nlink: row.nlink,
            found: 0,
            kind: kind.map_or(0, FileType::dirent),
            marked_xattrs: row.flags & FLAG_XATTRS != 0,
            has_xattrs: false,
        });
        if kind == Some(FileType::Directory) {
            tree.directories.push(directory(ino, &row));
        } else {
            findings.expect(row.parent.0 == 0 && row.entries == 0, Issue::InodeInvalid, || {
                format!("inode {ino} is no directory, but has a parent or entries")
            });
        }
        Ok(())
    })?;
    let counted = reader.counter(Counter::Inodes)?;
    findings.expect(counted == checked.inodes, Issue::CounterWrong, || {
        format!("{} inodes exist, the counter says {counted}", checked.inodes)
    });
    let root = tree.directory_index(Ino::ROOT.0).and_then(|at| tree.directories.get(at));
    findings.expect(root.is_some_and(|root| root.parent == Ino::ROOT.0), Issue::RootMissing, || {
        "inode 1 is no directory that is its own parent".to_owned()
    });
    Ok(tree)
}

fn directory(ino: Ino, row: &InodeRow) -> Directory {
    Directory {
        ino: ino.0,
        parent: row.parent.0,
        seen_in: None,
        entries: row.entries,
        found_entries: 0,
        subdirectories: 0,
    }
}

fn names(reader: &impl Reader, tree: &mut Tree, findings: &mut Findings, checked: &mut Checked) -> Result<()> {
    // Names of one directory whose hashes are equal.
    let mut alike: (u64, u64, Vec<Vec<u8>>) = (0, 0, Vec::new());
    checked.names = scan::rows::<Dentries>(reader, |key, row| {
        let DentryKey { parent, cookie } = key;
        let show = || format!("{} in directory {parent}", String::from_utf8_lossy(&row.name).escape_debug());
        let valid = !row.name.is_empty()
            && row.name.len() <= NAME_MAX
            && !row.name.iter().any(|byte| matches!(byte, b'/' | 0))
            && row.name != b"."
            && row.name != b"..";
        findings.expect(valid, Issue::DentryNameInvalid, show);
        if (alike.0, alike.1) != (parent.0, cookie >> 8) {
            alike = (parent.0, cookie >> 8, Vec::new());
        }
        findings.expect(!alike.2.contains(&row.name), Issue::DentryDuplicate, show);
        alike.2.push(row.name.clone());

        let is_directory = row.kind == FileType::Directory.dirent();
        match tree.directory_index(parent.0) {
            Some(at) => {
                let directory = &mut tree.directories[at];
                directory.found_entries += 1;
                directory.subdirectories += u32::from(is_directory);
            }
            None => findings.add(Issue::DentryParentMissing, show),
        }
        match tree.node(row.ino) {
            Some(node) => {
                node.found += 1;
                let kind = node.kind;
                findings.expect(kind == row.kind, Issue::DentryKindWrong, || {
                    format!("{}: type {} in the name, {kind} in inode {}", show(), row.kind, row.ino)
                });
            }
            None => findings.add(Issue::DentryDangling, || format!("{}: inode {}", show(), row.ino)),
        }
        if let Some(at) = tree.directory_index(row.ino.0) {
            tree.directories[at].seen_in = Some(parent.0);
        }
        Ok(())
    })?;
    Ok(())
}

/// One attribute whose pieces are being counted.
struct Attribute {
    ino: Ino,
    name: Vec<u8>,
    total: u32,
    pieces: u16,
    bytes: u64,
    whole: bool,
}

impl Attribute {
    fn finish(self, findings: &mut Findings) {
        let pieces = (self.total as usize).div_ceil(XATTR_PIECE).max(1);
        let whole = self.whole
            && self.bytes == u64::from(self.total)
            && self.total as usize <= XATTR_SIZE_MAX
            && usize::from(self.pieces) == pieces;
        findings.expect(whole, Issue::XattrPiecesWrong, || {
            format!("{} of inode {}", String::from_utf8_lossy(&self.name), self.ino)
        });
    }
}

fn xattrs(reader: &impl Reader, tree: &mut Tree, findings: &mut Findings) -> Result<()> {
    let mut open: Option<Attribute> = None;
    scan::rows::<Xattrs>(reader, |XattrKey { ino, name, piece }, row| {
        if open.as_ref().is_none_or(|attribute| attribute.ino != ino || attribute.name != name) {
            match tree.node(ino) {
                Some(node) => node.has_xattrs = true,
                None => findings
                    .add(Issue::XattrInodeMissing, || format!("{} of inode {ino}", String::from_utf8_lossy(&name))),
            }
            let next = Attribute { ino, name, total: row.total, pieces: 0, bytes: 0, whole: true };
            if let Some(last) = open.replace(next) {
                last.finish(findings);
            }
        }
        if let Some(attribute) = &mut open {
            attribute.whole &= attribute.pieces == piece && attribute.total == row.total;
            attribute.pieces += 1;
            attribute.bytes += row.value.len() as u64;
        }
        Ok(())
    })?;
    if let Some(last) = open {
        last.finish(findings);
    }
    for node in &tree.nodes {
        findings.expect(node.marked_xattrs == node.has_xattrs, Issue::XattrFlagWrong, || {
            format!("inode {}: marked {}, has some {}", node.ino, node.marked_xattrs, node.has_xattrs)
        });
    }
    Ok(())
}

fn orphans(reader: &impl Reader, tree: &mut Tree, findings: &mut Findings) -> Result<Vec<u64>> {
    let mut orphans = Vec::new();
    scan::rows::<Orphans>(reader, |ino, ()| {
        let nameless = tree.node(ino).is_some_and(|node| node.found == 0 && node.nlink == 0);
        findings.expect(nameless, Issue::OrphanNamed, || format!("inode {ino}"));
        orphans.push(ino.0);
        Ok(())
    })?;
    Ok(orphans)
}

fn counts(tree: &Tree, orphans: &[u64], findings: &mut Findings) {
    for node in &tree.nodes {
        let is_orphan = orphans.binary_search(&node.ino).is_ok();
        let (named, links) = match tree.directory_index(node.ino) {
            Some(at) => {
                let is_root = node.ino == Ino::ROOT.0;
                let links = if is_orphan { 0 } else { 2 + tree.directories[at].subdirectories };
                findings.expect(node.found <= 1 - u32::from(is_root), Issue::LinkCountWrong, || {
                    format!("directory {} has {} names", node.ino, node.found)
                });
                (is_root || node.found > 0, links)
            }
            None => (node.found > 0, node.found),
        };
        findings.expect(named || is_orphan, Issue::InodeUnreachable, || format!("inode {}", node.ino));
        findings.expect(node.nlink == links, Issue::LinkCountWrong, || {
            format!("inode {} says {}, {links} were found", node.ino, node.nlink)
        });
    }
    for directory in &tree.directories {
        findings.expect(directory.entries == directory.found_entries, Issue::DirectoryEntriesWrong, || {
            format!("directory {} says {}, has {}", directory.ino, directory.entries, directory.found_entries)
        });
        let agrees = directory.seen_in.is_none_or(|seen| seen == directory.parent);
        findings.expect(agrees, Issue::DirectoryParentWrong, || {
            let seen = directory.seen_in.unwrap_or_default();
            format!("directory {} says {}, its name is in {seen}", directory.ino, directory.parent)
        });
    }
}

/// Follows every directory's name upward to the root.
fn reachable(tree: &Tree, orphans: &[u64], findings: &mut Findings) {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        Unknown,
        OnTheWay,
        Reachable,
        Lost,
    }
    let mut marks = vec![Mark::Unknown; tree.directories.len()];
    let mut way = Vec::new();
    for start in 0..tree.directories.len() {
        let mut at = start;
        let end = loop {
            match marks[at] {
                Mark::Unknown => {}
                Mark::OnTheWay => break Mark::Lost,
                known => break known,
            }
            let directory = &tree.directories[at];
            if directory.ino == Ino::ROOT.0 {
                marks[at] = Mark::Reachable;
                break Mark::Reachable;
            }
            marks[at] = Mark::OnTheWay;
            way.push(at);
            match directory.seen_in.and_then(|parent| tree.directory_index(parent)) {
                Some(parent) => at = parent,
                None => break Mark::Lost,
            }
        };
        for at in way.drain(..) {
            marks[at] = end;
        }
    }
    for (directory, mark) in tree.directories.iter().zip(&marks) {
        // Directories without any name are reported as such.
        let named = directory.seen_in.is_some() && orphans.binary_search(&directory.ino).is_err();
        findings.expect(*mark != Mark::Lost || !named, Issue::DirectoryLoop, || format!("directory {}", directory.ino));
    }
}
