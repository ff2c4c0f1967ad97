//! Attributes and extended attributes of the model.

use super::super::op::{Outcome, Refusal, Who, acl_name};
use super::{Answer, Model};
use crate::base::Timestamp;
use crate::base::file::{
    FILE_SIZE_MAX, FileType, MODE_BITS, S_ISGID, S_ISUID, S_IXGRP, SetAttr, SetTime, XATTR_NAME_MAX, XATTR_SIZE_MAX,
    XattrSet,
};
use crate::format::rows::{FLAG_APPEND, FLAG_IMMUTABLE};

const CAPABILITY: &[u8] = b"security.capability";

impl Model {
    /// Owner or content of a file changes: capabilities go, and with `mode` the set-id bits.
    pub(super) fn strip(&mut self, id: u64, mode: bool) {
        let node = self.node_mut(id);
        if node.kind == FileType::Directory {
            return;
        }
        node.xattrs.remove(CAPABILITY);
        if mode {
            node.mode &= !S_ISUID;
            if node.mode & S_IXGRP != 0 {
                node.mode &= !S_ISGID;
            }
        }
    }

    pub(super) fn setattr(&mut self, _who: Who, id: u64, changes: &SetAttr, now: Timestamp) -> Answer {
        if let Some(size) = changes.size {
            if size > FILE_SIZE_MAX {
                return Err(Refusal::FileTooLarge);
            }
            self.regular(id)?;
        }
        let at = |time: &Option<SetTime>| matches!(time, Some(SetTime::At(_)));
        let sets = changes.mode.is_some() || changes.uid.is_some() || changes.gid.is_some() || changes.size.is_some();
        let explicit = (at(&changes.atime) || at(&changes.mtime)) && changes.ctime.is_none();
        self.changeable(id, !(sets || explicit))?;
        if let Some(mode) = changes.mode {
            self.node_mut(id).mode = mode & MODE_BITS;
            self.acl_follows_mode(id);
        }
        let node = self.node_mut(id);
        if let Some(size) = changes.size {
            node.content.resize(size);
            node.mtime = now;
        }
        node.uid = changes.uid.unwrap_or(node.uid);
        node.gid = changes.gid.unwrap_or(node.gid);
        let resolve = |time| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        node.atime = changes.atime.map_or(node.atime, resolve);
        node.mtime = changes.mtime.map_or(node.mtime, resolve);
        node.ctime = changes.ctime.unwrap_or(now);
        let nothing = SetAttr { kill_suidgid: changes.kill_suidgid, ..SetAttr::default() };
        let chown = changes.uid.is_some() || changes.gid.is_some() || *changes == nothing;
        if chown || changes.kill_suidgid || changes.size.is_some() {
            self.strip(id, chown || changes.kill_suidgid);
        }
        Ok(Outcome::Attr(self.shown(id)))
    }

    pub(super) fn set_flags(&mut self, id: u64, flags: u32, now: Timestamp) -> Answer {
        if flags & !(FLAG_IMMUTABLE | FLAG_APPEND) != 0 {
            return Err(Refusal::Unsupported);
        }
        let node = self.node_mut(id);
        node.flags = flags;
        node.ctime = now;
        Ok(Outcome::Done)
    }

    pub(super) fn get_xattr(&self, id: u64, name: &[u8]) -> Answer {
        check_xattr_name(name)?;
        self.node(id).xattrs.get(name).cloned().map(Outcome::Bytes).ok_or(Refusal::NoAttribute)
    }

    pub(super) fn list_xattr(&self, who: Who, id: u64) -> Answer {
        let mut list = Vec::new();
        for name in self.node(id).xattrs.keys() {
            if who.caller().uid == 0 || !name.starts_with(b"trusted.") {
                list.extend_from_slice(name);
                list.push(0);
            }
        }
        Ok(Outcome::Bytes(list))
    }

    fn check_xattr_change(&self, id: u64, name: &[u8]) -> Result<(), Refusal> {
        self.changeable(id, false)?;
        let kind = self.node(id).kind;
        if name.starts_with(b"user.") && !matches!(kind, FileType::Regular | FileType::Directory) {
            return Err(Refusal::NotPermitted);
        }
        Ok(())
    }

    pub(super) fn set_xattr(&mut self, id: u64, name: &[u8], value: Vec<u8>, set: XattrSet, now: Timestamp) -> Answer {
        check_xattr_name(name)?;
        if value.len() > XATTR_SIZE_MAX {
            return Err(Refusal::TooBig);
        }
        self.check_xattr_change(id, name)?;
        let node = self.node_mut(id);
        match (set, node.xattrs.contains_key(name)) {
            (XattrSet::Create, true) => return Err(Refusal::Exists),
            (XattrSet::Replace, false) => return Err(Refusal::NoAttribute),
            _ => {}
        }
        node.xattrs.insert(name.to_vec(), value);
        node.ctime = now;
        Ok(Outcome::Done)
    }

    pub(super) fn remove_xattr(&mut self, id: u64, name: &[u8], now: Timestamp) -> Answer {
        check_xattr_name(name)?;
        self.check_xattr_change(id, name)?;
        let node = self.node_mut(id);
        node.xattrs.remove(name).ok_or(Refusal::NoAttribute)?;
        node.ctime = now;
        Ok(Outcome::Done)
    }
}

fn check_xattr_name(name: &[u8]) -> Result<(), Refusal> {
    if name.len() > XATTR_NAME_MAX {
        return Err(Refusal::Range);
    }
    if [acl_name(false), acl_name(true)].contains(&name) {
        return Ok(());
    }
    match [&b"user."[..], b"trusted.", b"security."].iter().find(|space| name.starts_with(space)) {
        None => Err(Refusal::Unsupported),
        Some(space) if space.len() == name.len() => Err(Refusal::Invalid),
        Some(_) => Ok(()),
    }
}
