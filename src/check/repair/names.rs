//! Inodes, names and attributes.

use crate::base::file::{FILE_SIZE_MAX, FileType, NAME_MAX, S_IFMT};
use crate::base::{Error, Ino, Result};
use crate::check::plan::INO_END;
use crate::check::scan;
use crate::check::tree::{is_name, names_key};
use crate::format::rows::{Counter, DentryKey, DentryRow, ExtentKey, InodeRow, XattrKey};
use crate::format::table::{Dentries, Extents, Inodes, Orphans, Xattrs};
use crate::meta::names::{NameHasher, Place, place};
use crate::meta::{Reader, Tx, Visit};

/// The directory for what has no name any more.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// An inode for what was found of one; its links are counted later.
pub fn make_inode(tx: &mut Tx<'_>, ino: Ino, kind: FileType) -> Result<bool> {
    let directory = kind == FileType::Directory;
    let before = tx.get::<Inodes>(&ino)?;
    let existed = before.is_some();
    // What is in the place of the root makes room for it; its content is named in lost+found then.
    if before.is_some_and(|row| ino != Ino::ROOT || FileType::from_mode(row.mode) == Some(kind)) {
        return Ok(false);
    }
    // Nobody knows who may see what is in it, but everybody has to pass the root.
    let permissions = if ino == Ino::ROOT { 0o755 } else { 0o600 | if directory { 0o100 } else { 0 } };
    let row = InodeRow {
        mode: kind.mode_bits() | permissions,
        uid: 0,
        gid: 0,
        project: 0,
        nlink: 0,
        rdev: 0,
        size: if directory { 0 } else { content_end(tx, ino)? },
        content: 0,
        atime: tx.now(),
        mtime: tx.now(),
        ctime: tx.now(),
        btime: tx.now(),
        flags: 0,
        policy: 0,
        parent: if directory { Ino::ROOT } else { Ino(0) },
        entries: 0,
        birth: tx.id(),
    };
    tx.put::<Inodes>(&ino, &row)?;
    if !existed {
        tx.bump_counter(Counter::Inodes, 1)?;
    }
    Ok(true)
}

/// Where the content of an inode ends.
fn content_end(tx: &Tx<'_>, ino: Ino) -> Result<u64> {
    let mut end = 0;
    let (low, high) = (ExtentKey { ino, offset: 0 }, ExtentKey { ino: Ino(ino.0.saturating_add(1)), offset: 0 });
    scan::range::<Extents>(tx, &low, &high, |key, row| {
        let to = key.offset.saturating_add(row.length);
        end = if to <= FILE_SIZE_MAX { end.max(to) } else { end };
        Ok(Visit::Continue(()))
    })?;
    Ok(end)
}

/// Gives an inode a type and a size it can have.
pub fn mend_inode(tx: &mut Tx<'_>, ino: Ino) -> Result<bool> {
    let Some(before) = tx.get::<Inodes>(&ino)? else { return Ok(false) };
    let mut row = before.clone();
    if FileType::from_mode(row.mode).is_none() {
        let kind = if has_names(tx, ino)? { FileType::Directory } else { FileType::Regular };
        row.mode = kind.mode_bits() | row.mode & 0o7777;
    }
    row.mode &= S_IFMT | 0o7777;
    if row.size > FILE_SIZE_MAX {
        row.size = content_end(tx, ino)?;
    }
    if FileType::from_mode(row.mode) != Some(FileType::Directory) {
        row.parent = Ino(0);
        row.entries = 0;
    }
    tx.put::<Inodes>(&ino, &row)?;
    Ok(row != before)
}

fn has_names(tx: &Tx<'_>, ino: Ino) -> Result<bool> {
    let mut any = false;
    let (low, high) =
        (DentryKey { parent: ino, cookie: 0 }, DentryKey { parent: Ino(ino.0.saturating_add(1)), cookie: 0 });
    scan::range::<Dentries>(tx, &low, &high, |_, _| {
        any = true;
        Ok(Visit::Break(()))
    })?;
    Ok(any)
}

pub fn drop_name(tx: &mut Tx<'_>, key: &DentryKey, ino: Ino) -> Result<bool> {
    if tx.get::<Dentries>(key)?.is_none_or(|row| row.ino != ino) {
        return Ok(false);
    }
    tx.delete::<Dentries>(key)
}

pub fn set_kind(tx: &mut Tx<'_>, key: &DentryKey, kind: u8) -> Result<bool> {
    let Some(row) = tx.get::<Dentries>(key)? else { return Ok(false) };
    // An inode of no type is mended first.
    if kind == 0 || row.kind == kind {
        return Ok(false);
    }
    tx.put::<Dentries>(key, &DentryRow { kind, ..row })?;
    Ok(true)
}

pub fn drop_xattr(tx: &mut Tx<'_>, ino: Ino, name: &[u8]) -> Result<bool> {
    let mut pieces = Vec::new();
    let key = |piece| XattrKey { ino, name: name.to_vec(), piece };
    scan::range::<Xattrs>(tx, &key(0), &key(u16::MAX), |key, _| {
        pieces.push(key);
        Ok(Visit::Continue(()))
    })?;
    pieces.push(key(u16::MAX));
    let mut any = false;
    for piece in pieces {
        any |= tx.delete::<Xattrs>(&piece)?;
    }
    Ok(any)
}

/// Gives a name another place in its directory, in another form if it needs one.
pub fn rename(tx: &mut Tx<'_>, key: &DentryKey) -> Result<bool> {
    if !is_directory(tx, key.parent)? {
        return Ok(false);
    }
    let Some(row) = tx.get::<Dentries>(key)? else { return Ok(false) };
    tx.delete::<Dentries>(key)?;
    put_name(tx, key.parent, &row.name, row.ino, row.kind)?;
    Ok(true)
}

/// Moves a name to lost+found.
pub fn rescue(tx: &mut Tx<'_>, key: &DentryKey) -> Result<bool> {
    let Some(row) = tx.get::<Dentries>(key)? else { return Ok(false) };
    tx.delete::<Dentries>(key)?;
    let Some(mut inode) = tx.get::<Inodes>(&row.ino)? else { return Ok(true) };
    let parent = lost_and_found(tx)?;
    put_name(tx, parent, &row.name, row.ino, row.kind)?;
    if FileType::from_mode(inode.mode) == Some(FileType::Directory) {
        inode.parent = parent;
        tx.put::<Inodes>(&row.ino, &inode)?;
    }
    Ok(true)
}

/// Names an inode `#INO` in lost+found.
pub fn adopt(tx: &mut Tx<'_>, ino: Ino) -> Result<bool> {
    let Some(row) = tx.get::<Inodes>(&ino)? else { return Ok(false) };
    if tx.get::<Orphans>(&ino)?.is_some() {
        return Ok(false);
    }
    let Some(kind) = FileType::from_mode(row.mode) else { return Ok(false) };
    let parent = lost_and_found(tx)?;
    put_name(tx, parent, format!("#{ino}").as_bytes(), ino, kind.dirent())?;
    let mut row = InodeRow { nlink: row.nlink.max(1), ..row };
    if kind == FileType::Directory {
        row.parent = parent;
    }
    tx.put::<Inodes>(&ino, &row)?;
    Ok(true)
}

fn is_directory(tx: &Tx<'_>, ino: Ino) -> Result<bool> {
    let row = tx.get::<Inodes>(&ino)?;
    Ok(row.is_some_and(|row| FileType::from_mode(row.mode) == Some(FileType::Directory)))
}

fn hasher(tx: &Tx<'_>) -> Result<NameHasher> {
    names_key(tx)?.ok_or_else(|| Error::corrupt("the key of the names is missing"))
}

/// The directory in the root, made when it is not there.
fn lost_and_found(tx: &mut Tx<'_>) -> Result<Ino> {
    let hasher = hasher(tx)?;
    for attempt in 0..1000 {
        let name = match attempt {
            0 => LOST_AND_FOUND.to_vec(),
            attempt => format!("lost+found.{attempt}").into_bytes(),
        };
        match place(tx, Ino::ROOT, hasher.base(&name), &name)? {
            Place::Taken(found) if is_directory(tx, found.ino)? => return Ok(found.ino),
            Place::Taken(_) => {}
            Place::Free(_) => {
                let ino = Ino(tx.bump_counter(Counter::NextIno, 1)?);
                if ino.0 >= INO_END {
                    return Err(Error::NoSpace);
                }
                make_inode(tx, ino, FileType::Directory)?;
                put_name(tx, Ino::ROOT, &name, ino, FileType::Directory.dirent())?;
                return Ok(ino);
            }
        }
    }
    Err(Error::NoSpace)
}

/// Stores a name in a directory, in a form that is valid and that no other name there has. Names are counted later.
fn put_name(tx: &mut Tx<'_>, parent: Ino, name: &[u8], ino: Ino, kind: u8) -> Result<()> {
    let hasher = hasher(tx)?;
    let stem = valid(name);
    for attempt in 0..10_000 {
        let mut name = stem.clone();
        if attempt > 0 {
            let suffix = format!("~{attempt}");
            name.truncate(NAME_MAX - suffix.len());
            name.extend_from_slice(suffix.as_bytes());
        }
        if let Place::Free(cookie) = place(tx, parent, hasher.base(&name), &name)? {
            let row = DentryRow { ino, kind, birth: tx.id(), name };
            return tx.put::<Dentries>(&DentryKey { parent, cookie }, &row);
        }
    }
    Err(Error::NoSpace)
}

/// The name with what it may not have replaced.
fn valid(name: &[u8]) -> Vec<u8> {
    let cut = name.get(..NAME_MAX).unwrap_or(name);
    let mut name: Vec<u8> = cut.iter().map(|byte| if matches!(byte, b'/' | 0) { b'_' } else { *byte }).collect();
    if !is_name(&name) {
        name.insert(0, b'_');
    }
    name
}
