//! Names and inodes: every name leads to an inode, every inode has as many names as it says or waits to be removed, and
//! every directory hangs on the root.

use super::fsck::Checked;
use super::issue::{Findings, Issue};
use super::paths::shown;
use super::plan::{Field, Fix, INO_END};
use super::scan;
use crate::base::file::{FILE_SIZE_MAX, FileType, NAME_MAX, S_IFMT, XATTR_SIZE_MAX};
use crate::base::{Ino, Result};
use crate::format::acl::Acl;
use crate::format::rows::{
    ConfigKey, Counter, DentryKey, ExtentKey, FLAG_XATTRS, InodeRow, XATTR_PIECE, XattrKey, XattrRow,
};
use crate::format::table::{Config, Dentries, Extents, Inodes, Orphans, Xattrs};
use crate::format::xattr::Namespace;
use crate::meta::names::{FIRST_COOKIE, NAME_KEY, NameHasher, SEQUENCE_BITS};
use crate::meta::{Reader, Visit};

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
    /// Where its name was seen, and its cookie there.
    seen_in: Option<u64>,
    cookie: u64,
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

    fn directory(&mut self, ino: u64) -> Option<&mut Directory> {
        self.directory_index(ino).and_then(|at| self.directories.get_mut(at))
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
    let next = scan::counter(reader, Counter::NextIno)?;
    checked.inodes = scan::rows::<Inodes>(reader, |ino, row| {
        let show = || format!("inode {ino}, next is {next}");
        findings.expect_or(ino.0 < next, Issue::IdBeyondCounter, show, || Fix::Counter {
            counter: Counter::NextIno,
            least: ino.0.saturating_add(1),
        });
        let kind = FileType::from_mode(row.mode);
        let fine = kind.is_some() && row.mode & !(S_IFMT | 0o7777) == 0 && row.size <= FILE_SIZE_MAX;
        let show = || format!("inode {ino} has mode {:o}, size {}", row.mode, row.size);
        findings.expect_or(fine, Issue::InodeInvalid, show, || Fix::MendInode { ino });
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
            let show = || format!("inode {ino} is no directory, but has a parent or entries");
            let fine = row.parent.0 == 0 && row.entries == 0;
            findings.expect_or(fine, Issue::InodeInvalid, show, || Fix::MendInode { ino });
        }
        Ok(())
    })?;
    let counted = scan::counter(reader, Counter::Inodes)?;
    let count = checked.inodes;
    let show = || format!("{count} inodes exist, the counter says {counted}");
    findings.expect_or(counted == count, Issue::CounterWrong, show, || Fix::Inodes { count });
    let root = tree.directory_index(Ino::ROOT.0).and_then(|at| tree.directories.get(at));
    let fine = root.is_some_and(|root| root.parent == Ino::ROOT.0);
    let show = || "inode 1 is no directory that is its own parent".to_owned();
    findings.expect_or(fine, Issue::RootMissing, show, || match root {
        Some(_) => Fix::Inode { ino: Ino::ROOT, field: Field::Parent(Ino::ROOT) },
        None => Fix::MakeInode { ino: Ino::ROOT, kind: FileType::Directory },
    });
    Ok(tree)
}

fn directory(ino: Ino, row: &InodeRow) -> Directory {
    Directory {
        ino: ino.0,
        parent: row.parent.0,
        seen_in: None,
        cookie: 0,
        entries: row.entries,
        found_entries: 0,
        subdirectories: 0,
    }
}

/// Whether the bytes can be a name.
pub fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
        && name != b"."
        && name != b".."
}

/// The key that spreads names.
pub fn names_key(reader: &impl Reader) -> Result<Option<NameHasher>> {
    let key = scan::find::<Config>(reader, &ConfigKey { name: NAME_KEY.to_vec() })?;
    Ok(key.and_then(|key| key.try_into().ok()).map(NameHasher::new))
}

/// What there is of an inode without a row tells what it was.
fn traces(reader: &impl Reader, ino: Ino, kind: u8) -> Result<Option<FileType>> {
    if ino.0 >= INO_END {
        return Ok(None);
    }
    let next = Ino(ino.0.saturating_add(1));
    let mut found = None;
    let (low, high) = (DentryKey { parent: ino, cookie: 0 }, DentryKey { parent: next, cookie: 0 });
    scan::range::<Dentries>(reader, &low, &high, |_, _| {
        found = Some(FileType::Directory);
        Ok(Visit::Break(()))
    })?;
    let (low, high) = (ExtentKey { ino, offset: 0 }, ExtentKey { ino: next, offset: 0 });
    scan::range::<Extents>(reader, &low, &high, |_, _| {
        let link = kind == FileType::Symlink.dirent();
        found = found.or(Some(if link { FileType::Symlink } else { FileType::Regular }));
        Ok(Visit::Break(()))
    })?;
    Ok(found)
}

fn names(reader: &impl Reader, tree: &mut Tree, findings: &mut Findings, checked: &mut Checked) -> Result<()> {
    let hasher = names_key(reader)?;
    let show = || "no name can be looked up".to_owned();
    // A pool without any inode holds no filesystem yet.
    let fine = hasher.is_some() || tree.nodes.is_empty();
    findings.expect_or(fine, Issue::NamesKeyMissing, show, || Fix::NamesKey);
    // Names of one directory whose hashes are equal.
    let mut alike: (u64, u64, Vec<Vec<u8>>) = (0, 0, Vec::new());
    checked.names = scan::rows::<Dentries>(reader, |key, row| {
        let DentryKey { parent, cookie } = key;
        let show = || format!("{} in directory {parent}", shown(&row.name));
        let rename = || Fix::Rename { key: key.clone() };
        let valid = is_name(&row.name);
        findings.expect_or(valid, Issue::DentryNameInvalid, show, rename);
        if (alike.0, alike.1) != (parent.0, cookie >> SEQUENCE_BITS) {
            alike = (parent.0, cookie >> SEQUENCE_BITS, Vec::new());
        }
        findings.expect_or(!alike.2.contains(&row.name), Issue::DentryDuplicate, show, rename);
        alike.2.push(row.name.clone());
        let base = hasher.as_ref().filter(|_| valid).map(|hasher| hasher.base(&row.name));
        let found = base.is_none_or(|base| base >> SEQUENCE_BITS == cookie >> SEQUENCE_BITS && cookie >= FIRST_COOKIE);
        findings.expect_or(found, Issue::DentryCookieWrong, show, rename);

        let is_directory = row.kind == FileType::Directory.dirent();
        match tree.directory(parent.0) {
            Some(directory) => {
                directory.found_entries += 1;
                directory.subdirectories += u32::from(is_directory);
            }
            None => {
                let lost = tree.node(parent).is_none() && parent.0 < INO_END;
                findings.mend(Issue::DentryParentMissing, show, || match lost {
                    true => Fix::MakeInode { ino: parent, kind: FileType::Directory },
                    false => Fix::RescueName { key: key.clone() },
                });
            }
        }
        match tree.node(row.ino) {
            Some(node) => {
                node.found += 1;
                let kind = node.kind;
                let show = || format!("{}: type {} in the name, {kind} in inode {}", show(), row.kind, row.ino);
                findings
                    .expect_or(kind == row.kind, Issue::DentryKindWrong, show, || Fix::Kind { key: key.clone(), kind });
            }
            None => {
                let was = traces(reader, row.ino, row.kind)?;
                findings.mend(
                    Issue::DentryDangling,
                    || format!("{}: inode {}", show(), row.ino),
                    || match was {
                        Some(kind) => Fix::MakeInode { ino: row.ino, kind },
                        None => Fix::DropName { key: key.clone(), ino: row.ino },
                    },
                );
            }
        }
        if let Some(directory) = tree.directory(row.ino.0) {
            name_of_directory(directory, &key, findings);
        }
        Ok(())
    })?;
    Ok(())
}

/// Takes note of the name of a directory, which must be its only one.
fn name_of_directory(directory: &mut Directory, key: &DentryKey, findings: &mut Findings) {
    let ino = Ino(directory.ino);
    let mut surplus = None;
    if ino == Ino::ROOT {
        surplus = Some(key.clone());
    } else if let Some(seen) = directory.seen_in {
        // The one that agrees with what the directory says stays.
        let other = DentryKey { parent: Ino(seen), cookie: directory.cookie };
        let better = key.parent.0 == directory.parent && seen != directory.parent;
        surplus = Some(if better { other } else { key.clone() });
    }
    if let Some(surplus) = &surplus {
        let show = || format!("directory {ino} has another name in directory {}", surplus.parent);
        findings.mend(Issue::LinkCountWrong, show, || Fix::DropName { key: surplus.clone(), ino });
    }
    if surplus.as_ref() != Some(key) {
        directory.seen_in = Some(key.parent.0);
        directory.cookie = key.cookie;
    }
}

/// One attribute whose pieces are being counted.
struct Attribute {
    ino: Ino,
    name: Vec<u8>,
    total: u32,
    /// More than there are numbers for when all of them are taken.
    pieces: u32,
    bytes: usize,
    whole: bool,
    /// The value of an ACL.
    acl: Option<Vec<u8>>,
}

impl Attribute {
    fn new(ino: Ino, name: Vec<u8>, total: u32) -> Attribute {
        let acl = matches!(Namespace::of(&name), Ok(Namespace::Acl(_))).then(Vec::new);
        Attribute { ino, name, total, pieces: 0, bytes: 0, whole: true, acl }
    }

    fn add(&mut self, piece: u16, row: &XattrRow) {
        self.whole &= self.pieces == u32::from(piece) && self.total == row.total;
        self.pieces += 1;
        self.bytes += row.value.len();
        if let Some(acl) = self.acl.as_mut().filter(|_| self.bytes <= XATTR_SIZE_MAX) {
            acl.extend_from_slice(&row.value);
        }
    }

    fn finish(self, findings: &mut Findings) {
        let Attribute { ino, name, total, pieces, bytes, whole, acl } = self;
        let total = total as usize;
        let whole =
            whole && bytes == total && total <= XATTR_SIZE_MAX && pieces as usize == total.div_ceil(XATTR_PIECE).max(1);
        let show = || format!("{} of inode {ino}", shown(&name));
        let drop = || Fix::DropXattr { ino, name: name.clone() };
        findings.expect_or(whole, Issue::XattrPiecesWrong, show, drop);
        let fine = !whole || acl.is_none_or(|acl| Acl::parse(&acl).is_ok());
        findings.expect_or(fine, Issue::AclInvalid, show, drop);
    }
}

fn xattrs(reader: &impl Reader, tree: &mut Tree, findings: &mut Findings) -> Result<()> {
    let mut open: Option<Attribute> = None;
    scan::rows::<Xattrs>(reader, |XattrKey { ino, name, piece }, row| {
        if open.as_ref().is_none_or(|attribute| attribute.ino != ino || attribute.name != name) {
            let fine = Namespace::of(&name).is_ok();
            let show = || format!("{} of inode {ino}", shown(&name));
            let drop = || Fix::DropXattr { ino, name: name.clone() };
            findings.expect_or(fine, Issue::XattrNameInvalid, show, drop);
            match tree.node(ino) {
                Some(node) => node.has_xattrs = true,
                None => findings.mend(Issue::XattrInodeMissing, show, drop),
            }
            if let Some(last) = open.replace(Attribute::new(ino, name, row.total)) {
                last.finish(findings);
            }
        }
        if let Some(attribute) = &mut open {
            attribute.add(piece, &row);
        }
        Ok(())
    })?;
    if let Some(last) = open {
        last.finish(findings);
    }
    for node in &tree.nodes {
        let show = || format!("inode {}: marked {}, has some {}", node.ino, node.marked_xattrs, node.has_xattrs);
        findings.expect_or(node.marked_xattrs == node.has_xattrs, Issue::XattrFlagWrong, show, || Fix::Inode {
            ino: Ino(node.ino),
            field: Field::Xattrs(node.has_xattrs),
        });
    }
    Ok(())
}

fn orphans(reader: &impl Reader, tree: &mut Tree, findings: &mut Findings) -> Result<Vec<u64>> {
    let mut orphans = Vec::new();
    scan::rows::<Orphans>(reader, |ino, ()| {
        let found = tree.node(ino).map(|node| (node.found, node.nlink));
        match found {
            Some((0, 0)) => {}
            // Its link count is put right with the others.
            Some((0, _)) => findings.add(Issue::OrphanNamed, || format!("inode {ino}")),
            _ => findings.mend(Issue::OrphanNamed, || format!("inode {ino}"), || Fix::DropOrphan { ino }),
        }
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
                let below = tree.directories.get(at).map_or(0, |directory| directory.subdirectories);
                let links = if is_orphan { 0 } else { 2 + below };
                (is_root || node.found > 0, links)
            }
            None => (node.found > 0, node.found),
        };
        let ino = Ino(node.ino);
        let show = || format!("inode {ino}");
        findings.expect_or(named || is_orphan, Issue::InodeUnreachable, show, || Fix::Adopt { ino });
        let show = || format!("inode {ino} says {}, {links} were found", node.nlink);
        let fix = || Fix::Inode { ino, field: Field::Links(links) };
        findings.expect_or(node.nlink == links, Issue::LinkCountWrong, show, fix);
    }
    for directory in &tree.directories {
        let Directory { ino, parent, seen_in, entries, found_entries, .. } = *directory;
        let show = || format!("directory {ino} says {entries}, has {found_entries}");
        let fix = || Fix::Inode { ino: Ino(ino), field: Field::Entries(found_entries) };
        findings.expect_or(entries == found_entries, Issue::DirectoryEntriesWrong, show, fix);
        let seen = seen_in.unwrap_or(parent);
        let show = || format!("directory {ino} says {parent}, its name is in {seen}");
        let fix = || Fix::Inode { ino: Ino(ino), field: Field::Parent(Ino(seen)) };
        findings.expect_or(seen == parent, Issue::DirectoryParentWrong, show, fix);
    }
}

/// Follows every directory's name upward to the root.
#[expect(
    clippy::indexing_slicing,
    reason = "all places come of the list of directories, which is as long as the marks"
)]
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
                Mark::OnTheWay => {
                    // Below itself: one name of the circle has to go, then all of it hangs on lost+found.
                    let Directory { ino, seen_in, cookie, .. } = tree.directories[at];
                    let key = DentryKey { parent: Ino(seen_in.unwrap_or_default()), cookie };
                    let show = || format!("directory {ino} is below itself");
                    findings.also(Issue::DirectoryLoop, show, || Fix::RescueName { key });
                    break Mark::Lost;
                }
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
        // Directories without any name are reported as such. The others of a circle come along with the one that is moved.
        let named = directory.seen_in.is_some() && orphans.binary_search(&directory.ino).is_err();
        findings.expect(*mark != Mark::Lost || !named, Issue::DirectoryLoop, || format!("directory {}", directory.ino));
    }
}
