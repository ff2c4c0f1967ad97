//! Extended attributes.
//!
//! Invariants:
//! - A value of `n` bytes has `max(1, ceil(n / XATTR_PIECE))` rows, each of which knows `n`; all but the last are full.
//! - An inode with any attribute has `FLAG_XATTRS`, so that asking for one costs nothing where there is none.
//! - `system.posix_acl_*` is stored in the form the kernel speaks, checked, and never says only what the mode says.

use std::ops::Bound;

use super::change::{Change, Slot};
use super::{Fs, acl, attr};
use crate::base::file::{Caller, FileType, XATTR_SIZE_MAX, XattrSet};
use crate::base::{Error, Ino, Result};
use crate::format::acl::AclKind;
use crate::format::rows::{FLAG_XATTRS, InodeRow, JournalOp, XATTR_PIECE, XattrKey, XattrRow};
use crate::format::table::Xattrs;
use crate::format::xattr::Namespace;
use crate::meta::{Reader, Visit};

/// File capabilities; gone whenever content or owner change.
pub const CAPABILITY: &[u8] = b"security.capability";

/// All names of an inode with their NULs fit one answer.
const LIST_MAX: usize = 65536;

/// Whether attributes of this namespace may be set on the inode.
fn check_settable(space: Namespace, row: &InodeRow) -> Result<()> {
    attr::check_changeable(row, false)?;
    match (space, attr::kind(row)) {
        (Namespace::User, FileType::Regular | FileType::Directory) => Ok(()),
        (Namespace::User, _) => Err(Error::NotPermitted),
        (Namespace::Acl(_), FileType::Symlink) => Err(Error::Unsupported),
        (Namespace::Acl(AclKind::Default), kind) if kind != FileType::Directory => Err(Error::Access),
        _ => Ok(()),
    }
}

impl Fs {
    /// The value of an extended attribute.
    pub fn get_xattr(&self, _caller: &Caller, node: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let ino = self.inner(node)?;
        let row = self.shown(ino)?;
        Namespace::of(name)?;
        if row.flags & FLAG_XATTRS == 0 {
            return Err(Error::NoAttribute);
        }
        self.store.peek(|view| get(view, ino, name))?.ok_or(Error::NoAttribute)
    }

    /// The names of all extended attributes, each ended by a NUL; `trusted` ones only for the superuser.
    pub fn list_xattr(&self, caller: &Caller, node: Ino) -> Result<Vec<u8>> {
        let ino = self.inner(node)?;
        let row = self.shown(ino)?;
        let mut list = Vec::new();
        if row.flags & FLAG_XATTRS == 0 {
            return Ok(list);
        }
        self.store.peek(|view| {
            names(view, ino, |name| {
                // Of what nobody can ask for it would be no use to tell.
                let seen = caller.uid == 0 || !name.starts_with(b"trusted.");
                if seen && Namespace::of(name).is_ok() {
                    list.extend_from_slice(name);
                    list.push(0);
                }
            })
        })?;
        Ok(list)
    }

    /// Sets an extended attribute. `kill_sgid`: the caller is outside the file's group and sets its access ACL.
    pub fn set_xattr(
        &self,
        caller: &Caller,
        node: Ino,
        name: &[u8],
        value: &[u8],
        set: XattrSet,
        kill_sgid: bool,
    ) -> Result<()> {
        let ino = self.inner(node)?;
        let space = Namespace::of(name)?;
        if value.len() > XATTR_SIZE_MAX {
            return Err(Error::TooBig);
        }
        let room = self.room_for_rows();
        self.mutate(|change| {
            let slot = change.load(ino)?;
            check_settable(space, change.row(slot))?;
            let exists = length(change, slot, name)?.is_some();
            match set {
                XattrSet::Create if exists => return Err(Error::Exists),
                XattrSet::Replace if !exists => return Err(Error::NoAttribute),
                _ => {}
            }
            room?;
            match space {
                Namespace::Acl(kind) => acl::set(change, slot, kind, value, kill_sgid)?,
                _ => put(change, slot, name, value)?,
            }
            let now = change.now();
            change.row_mut(slot).ctime = now;
            let length = value.len() as u32;
            change.journal(caller.uid, JournalOp::SetXattr { ino: ino.0, name: name.to_vec(), length })
        })
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, caller: &Caller, node: Ino, name: &[u8]) -> Result<()> {
        let ino = self.inner(node)?;
        let space = Namespace::of(name)?;
        self.mutate(|change| {
            let slot = change.load(ino)?;
            attr::check_changeable(change.row(slot), false)?;
            if space == Namespace::User {
                check_settable(space, change.row(slot))?;
            }
            if !remove(change, slot, name)? {
                return Err(Error::NoAttribute);
            }
            let now = change.now();
            change.row_mut(slot).ctime = now;
            change.journal(caller.uid, JournalOp::RemoveXattr { ino: ino.0, name: name.to_vec() })
        })
    }
}

fn key(ino: Ino, name: &[u8], piece: usize) -> XattrKey {
    XattrKey { ino, name: name.to_vec(), piece: piece as u16 }
}

fn pieces(length: usize) -> usize {
    length.div_ceil(XATTR_PIECE).max(1)
}

/// Key range of all attributes of an inode.
fn all_of(ino: Ino) -> (Bound<XattrKey>, Bound<XattrKey>) {
    (Bound::Included(key(ino, b"", 0)), Bound::Excluded(key(Ino(ino.0.saturating_add(1)), b"", 0)))
}

/// The value of an attribute.
pub fn get(reader: &impl Reader, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let damaged = || Error::corrupt(format!("an extended attribute of inode {ino} is incomplete; run fsck"));
    let Some(first) = reader.get::<Xattrs>(&key(ino, name, 0))? else { return Ok(None) };
    let total = first.total as usize;
    if total > XATTR_SIZE_MAX {
        return Err(damaged());
    }
    let mut value = first.value;
    let rest = (Bound::Excluded(key(ino, name, 0)), Bound::Included(key(ino, name, usize::from(u16::MAX))));
    if total > XATTR_PIECE {
        reader.scan::<Xattrs>(rest, |_, row| {
            value.extend_from_slice(&row.value);
            Ok(if value.len() < total { Visit::Continue(()) } else { Visit::Break(()) })
        })?;
    }
    if value.len() == total { Ok(Some(value)) } else { Err(damaged()) }
}

/// Visits the names of all attributes in order.
fn names(reader: &impl Reader, ino: Ino, mut visit: impl FnMut(&[u8])) -> Result<()> {
    reader.scan::<Xattrs>(all_of(ino), |key, _| {
        if key.piece == 0 {
            visit(&key.name);
        }
        Ok(Visit::Continue(()))
    })
}

/// Length of an attribute's value within a change; `None` when it does not exist.
fn length(change: &Change<'_, '_>, slot: Slot, name: &[u8]) -> Result<Option<usize>> {
    if change.row(slot).flags & FLAG_XATTRS == 0 {
        return Ok(None);
    }
    Ok(change.tx.get::<Xattrs>(&key(change.ino(slot), name, 0))?.map(|row| row.total as usize))
}

/// The value of an attribute within a change.
pub fn get_in(change: &Change<'_, '_>, slot: Slot, name: &[u8]) -> Result<Option<Vec<u8>>> {
    if change.row(slot).flags & FLAG_XATTRS == 0 { Ok(None) } else { get(change.tx, change.ino(slot), name) }
}

/// Stores an attribute within a change.
pub fn put(change: &mut Change<'_, '_>, slot: Slot, name: &[u8], value: &[u8]) -> Result<()> {
    let ino = change.ino(slot);
    let before = length(change, slot, name)?;
    if before.is_none() && change.row(slot).flags & FLAG_XATTRS != 0 {
        let mut listed = name.len() + 1;
        names(change.tx, ino, |name| listed += name.len() + 1)?;
        if listed > LIST_MAX {
            return Err(Error::NoSpace);
        }
    }
    let (total, birth) = (value.len() as u32, change.tx.id());
    for piece in 0..pieces(value.len()) {
        let bytes = value.chunks(XATTR_PIECE).nth(piece).unwrap_or_default();
        change.tx.put::<Xattrs>(&key(ino, name, piece), &XattrRow { total, birth, value: bytes.to_vec() })?;
    }
    for piece in pieces(value.len())..before.map_or(0, pieces) {
        change.tx.delete::<Xattrs>(&key(ino, name, piece))?;
    }
    change.row_mut(slot).flags |= FLAG_XATTRS;
    Ok(())
}

/// Removes an attribute within a change; says whether there was one.
pub fn remove(change: &mut Change<'_, '_>, slot: Slot, name: &[u8]) -> Result<bool> {
    let Some(length) = length(change, slot, name)? else { return Ok(false) };
    let ino = change.ino(slot);
    for piece in 0..pieces(length) {
        change.tx.delete::<Xattrs>(&key(ino, name, piece))?;
    }
    let mut left = false;
    change.tx.scan::<Xattrs>(all_of(ino), |_, _| {
        left = true;
        Ok(Visit::Break(()))
    })?;
    if !left {
        change.row_mut(slot).flags &= !FLAG_XATTRS;
    }
    Ok(true)
}

/// Removes an attribute that need not exist.
pub fn remove_quietly(change: &mut Change<'_, '_>, slot: Slot, name: &[u8]) -> Result<()> {
    remove(change, slot, name).map(drop)
}

/// Removes up to `most` rows of attributes of an inode that is going; says whether none is left.
pub fn remove_some(change: &mut Change<'_, '_>, slot: Slot, most: usize) -> Result<bool> {
    if change.row(slot).flags & FLAG_XATTRS == 0 {
        return Ok(true);
    }
    let mut victims = Vec::new();
    change.tx.scan::<Xattrs>(all_of(change.ino(slot)), |key, _| {
        victims.push(key);
        Ok(if victims.len() <= most { Visit::Continue(()) } else { Visit::Break(()) })
    })?;
    let finished = victims.len() <= most;
    for victim in victims.iter().take(most) {
        change.tx.delete::<Xattrs>(victim)?;
    }
    if finished {
        change.row_mut(slot).flags &= !FLAG_XATTRS;
    }
    Ok(finished)
}
