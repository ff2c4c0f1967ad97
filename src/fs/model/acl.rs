//! ACLs of the model: entries in a map by tag and id, apart from the filesystem's own notion of them.

use std::collections::BTreeMap;

use super::super::op::{Outcome, Refusal, acl_name};
use super::{Answer, Model};
use crate::base::Timestamp;
use crate::base::file::{FileType, S_ISGID};

/// Permissions by (tag as the kernel numbers it, id).
type Entries = BTreeMap<(u16, u32), u16>;

const OWNER: (u16, u32) = (1, u32::MAX);
const GROUP: (u16, u32) = (4, u32::MAX);
const MASK: (u16, u32) = (16, u32::MAX);
const OTHER: (u16, u32) = (32, u32::MAX);

fn parse(bytes: &[u8]) -> Result<Entries, Refusal> {
    if bytes.len() < 4 || bytes.len() % 8 != 4 {
        return Err(Refusal::Invalid);
    }
    let mut entries = Entries::new();
    for entry in bytes[4..].chunks(8) {
        let number = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
        let id = u32::from(number(4)) | u32::from(number(6)) << 16;
        entries.insert((number(0), id), number(2));
    }
    let named = entries.keys().any(|(tag, _)| matches!(tag, 2 | 8));
    if !entries.is_empty() && named && !entries.contains_key(&MASK) {
        return Err(Refusal::Invalid);
    }
    Ok(entries)
}

fn bytes(entries: &Entries) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0];
    for ((tag, id), permissions) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// The entries that owner, group and others of the mode stand for, with their place in the mode.
fn classes(entries: &Entries) -> [((u16, u32), u32); 3] {
    [(OWNER, 6), (if entries.contains_key(&MASK) { MASK } else { GROUP }, 3), (OTHER, 0)]
}

/// What something new gets.
pub struct Inherited {
    pub mode: u32,
    pub access: Option<Vec<u8>>,
    pub default: Option<Vec<u8>>,
}

pub fn inherit(default: Option<&[u8]>, kind: FileType, mode: u32, umask: u32) -> Inherited {
    let Some(default) = default.filter(|_| kind != FileType::Symlink) else {
        let umask = if kind == FileType::Symlink { 0 } else { umask };
        return Inherited { mode: mode & !umask, access: None, default: None };
    };
    let mut entries = parse(default).expect("what is stored was checked");
    let mut narrowed = mode & !0o777;
    for (class, shift) in classes(&entries) {
        let permissions = entries[&class] & (mode >> shift & 7) as u16;
        entries.insert(class, permissions);
        narrowed |= u32::from(permissions) << shift;
    }
    Inherited {
        mode: narrowed,
        access: (entries.len() > 3).then(|| bytes(&entries)),
        default: (kind == FileType::Directory).then(|| default.to_vec()),
    }
}

impl Model {
    /// After chmod.
    pub(super) fn acl_follows_mode(&mut self, id: u64) {
        let node = self.node_mut(id);
        let Some(stored) = node.xattrs.get(acl_name(false)) else { return };
        let mut entries = parse(stored).expect("what is stored was checked");
        for (class, shift) in classes(&entries) {
            entries.insert(class, (node.mode >> shift & 7) as u16);
        }
        node.xattrs.insert(acl_name(false).to_vec(), bytes(&entries));
    }

    pub(super) fn set_acl(&mut self, id: u64, default: bool, value: &[u8], kill_sgid: bool, now: Timestamp) -> Answer {
        self.changeable(id, false)?;
        match self.node(id).kind {
            FileType::Symlink => return Err(Refusal::Unsupported),
            FileType::Directory => {}
            _ if default => return Err(Refusal::Access),
            _ => {}
        }
        let entries = parse(value)?;
        let node = self.node_mut(id);
        node.ctime = now;
        let mut keep = !entries.is_empty();
        if keep && !default {
            node.mode &= !0o777;
            for (class, shift) in classes(&entries) {
                node.mode |= u32::from(entries[&class]) << shift;
            }
            if kill_sgid {
                node.mode &= !S_ISGID;
            }
            keep = entries.len() > 3;
        }
        if keep {
            node.xattrs.insert(acl_name(default).to_vec(), value.to_vec());
        } else {
            node.xattrs.remove(acl_name(default));
        }
        Ok(Outcome::Done)
    }
}
