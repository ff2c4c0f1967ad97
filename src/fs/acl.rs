//! POSIX access control lists of inodes: inheritance, and their bond with the mode. An access ACL that says no more than
//! a mode is not stored.

use super::change::{Change, Slot};
use super::{attr, xattr};
use crate::base::file::{FileType, S_ISGID};
use crate::base::{Error, Result};
use crate::format::acl::{Acl, AclKind};

/// What a new inode gets from its directory.
pub struct Inherited {
    /// Full mode of the new inode.
    pub mode: u32,
    access: Option<Acl>,
    default: Option<Acl>,
}

/// Works out mode and ACLs of something made in `directory` with `mode`: a default ACL takes the place of the umask.
pub fn inherit(change: &Change<'_, '_>, directory: Slot, mode: u32, umask: u32) -> Result<Inherited> {
    let kind = FileType::from_mode(mode);
    if kind == Some(FileType::Symlink) {
        return Ok(Inherited { mode, access: None, default: None });
    }
    let Some(mut acl) = stored(change, directory, AclKind::Default)? else {
        return Ok(Inherited { mode: mode & !(umask & 0o777), access: None, default: None });
    };
    let default = (kind == Some(FileType::Directory)).then(|| acl.clone());
    let mode = acl.narrow(mode);
    let (_, says_all) = acl.mode();
    Ok(Inherited { mode, access: (!says_all).then_some(acl), default })
}

impl Inherited {
    /// Stores the ACLs with the new inode.
    pub fn store(self, change: &mut Change<'_, '_>, slot: Slot) -> Result<()> {
        for (kind, acl) in [(AclKind::Access, self.access), (AclKind::Default, self.default)] {
            if let Some(acl) = acl {
                xattr::put(change, slot, kind.name(), &acl.to_bytes())?;
            }
        }
        Ok(())
    }
}

fn stored(change: &Change<'_, '_>, slot: Slot, kind: AclKind) -> Result<Option<Acl>> {
    let Some(bytes) = xattr::get_in(change, slot, kind.name())? else { return Ok(None) };
    Acl::parse(&bytes).map_err(|_| {
        Error::corrupt(format!("the access control list of inode {} cannot be read; run fsck", change.ino(slot)))
    })
}

/// After chmod: the access ACL follows the mode.
pub fn follow_mode(change: &mut Change<'_, '_>, slot: Slot) -> Result<()> {
    if attr::kind(change.row(slot)) == FileType::Symlink {
        return Ok(());
    }
    let Some(mut acl) = stored(change, slot, AclKind::Access)? else { return Ok(()) };
    acl.follow_mode(change.row(slot).mode);
    xattr::put(change, slot, AclKind::Access.name(), &acl.to_bytes())
}

/// Sets an ACL: the access ACL updates the mode, and is stored only if it says more than the mode. `kill_sgid`: who
/// sets it has no right to keep the set-group-id bit.
pub fn set(change: &mut Change<'_, '_>, slot: Slot, kind: AclKind, value: &[u8], kill_sgid: bool) -> Result<()> {
    let Some(acl) = Acl::parse(value)? else { return xattr::remove_quietly(change, slot, kind.name()) };
    if kind == AclKind::Access {
        let (mode, says_all) = acl.mode();
        let row = change.row_mut(slot);
        row.mode = (row.mode & !0o777) | mode;
        if kill_sgid {
            row.mode &= !S_ISGID;
        }
        if says_all {
            return xattr::remove_quietly(change, slot, kind.name());
        }
    }
    xattr::put(change, slot, kind.name(), &acl.to_bytes())
}
