//! POSIX access control lists: the form the kernel speaks, and what it says about modes.
//!
//! The rules are those of POSIX 1003.1e draft 17 as Linux has them (`fs/posix_acl.c`): the mode's group bits are the
//! mask where there is one.

use crate::base::{Error, Result};

/// The two ACLs an inode may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AclKind {
    /// Who may use the inode.
    Access,
    /// What is handed down to what is made in the directory.
    Default,
}

impl AclKind {
    /// The attribute under which the ACL is stored.
    pub fn name(self) -> &'static [u8] {
        match self {
            AclKind::Access => b"system.posix_acl_access",
            AclKind::Default => b"system.posix_acl_default",
        }
    }
}

/// Whom an entry is for; the order is that of the entries of a valid ACL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Tag {
    Owner,
    User,
    OwningGroup,
    Group,
    Mask,
    Other,
}

const TAGS: [(u16, Tag); 6] = [
    (0x01, Tag::Owner),
    (0x02, Tag::User),
    (0x04, Tag::OwningGroup),
    (0x08, Tag::Group),
    (0x10, Tag::Mask),
    (0x20, Tag::Other),
];

/// Id of entries that need none.
const NO_ID: u32 = u32::MAX;
const VERSION: u32 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AclEntry {
    pub tag: Tag,
    /// Read 4, write 2, execute 1.
    pub permissions: u16,
    /// User or group; `u32::MAX` elsewhere.
    pub id: u32,
}

/// A valid ACL: one entry each for owner, owning group and others, any number of users and groups, and a mask, which
/// must be there if there are users or groups.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl(Vec<AclEntry>);

impl Acl {
    /// Reads the kernel's form (`struct posix_acl_xattr_header` and entries, version 2). `None`: an empty ACL, which
    /// stands for none at all.
    pub fn parse(bytes: &[u8]) -> Result<Option<Acl>> {
        let malformed = || Error::Invalid("a malformed access control list");
        let (version, rest) = bytes.split_first_chunk::<4>().ok_or_else(malformed)?;
        let (entries, []) = rest.as_chunks::<8>() else { return Err(malformed()) };
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Error::Unsupported);
        }
        let mut acl = Vec::with_capacity(entries.len());
        for [tag_low, tag_high, permissions_low, permissions_high, id @ ..] in entries {
            let code = u16::from_le_bytes([*tag_low, *tag_high]);
            let (_, tag) = *TAGS.iter().find(|(known, _)| *known == code).ok_or_else(malformed)?;
            let permissions = u16::from_le_bytes([*permissions_low, *permissions_high]);
            let named = matches!(tag, Tag::User | Tag::Group);
            let id = if named { u32::from_le_bytes(*id) } else { NO_ID };
            if permissions > 7 || (named && id == NO_ID) {
                return Err(malformed());
            }
            acl.push(AclEntry { tag, permissions, id });
        }
        if acl.is_empty() {
            return Ok(None);
        }
        let acl = Acl(acl);
        if acl.is_valid() { Ok(Some(acl)) } else { Err(malformed()) }
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        self.0.is_sorted_by_key(|entry| entry.tag)
            && [Tag::Owner, Tag::OwningGroup, Tag::Other].into_iter().all(|tag| count(tag) == 1)
            && match count(Tag::User) + count(Tag::Group) {
                0 => count(Tag::Mask) <= 1,
                _ => count(Tag::Mask) == 1,
            }
    }

    /// The kernel's form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + 8 * self.0.len());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.0 {
            let code = TAGS.iter().find(|(_, tag)| *tag == entry.tag).map_or(0, |(code, _)| *code);
            bytes.extend_from_slice(&code.to_le_bytes());
            bytes.extend_from_slice(&entry.permissions.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }

    fn permissions(&mut self, tag: Tag) -> Option<&mut u16> {
        self.0.iter_mut().find(|entry| entry.tag == tag).map(|entry| &mut entry.permissions)
    }

    /// What the group bits of the mode stand for: the mask where there is one.
    fn group_class(&self) -> Tag {
        if self.0.iter().any(|entry| entry.tag == Tag::Mask) { Tag::Mask } else { Tag::OwningGroup }
    }

    /// The nine permission bits, and whether they say all that the ACL says.
    pub fn mode(&self) -> (u32, bool) {
        let group = self.group_class();
        let mode = self.0.iter().fold(0, |mode, entry| {
            let permissions = u32::from(entry.permissions);
            match entry.tag {
                Tag::Owner => mode | permissions << 6,
                Tag::Other => mode | permissions,
                tag if tag == group => mode | permissions << 3,
                _ => mode,
            }
        });
        (mode, self.0.len() == 3)
    }

    /// After chmod: the classes get the bits of `mode`.
    pub fn follow_mode(&mut self, mode: u32) {
        for (tag, shift) in [(Tag::Owner, 6), (self.group_class(), 3), (Tag::Other, 0)] {
            if let Some(permissions) = self.permissions(tag) {
                *permissions = (mode >> shift & 7) as u16;
            }
        }
    }

    /// A default ACL becomes the access ACL of something made with `mode`: each class gets what both allow. Returns
    /// the mode.
    pub fn narrow(&mut self, mode: u32) -> u32 {
        let mut narrowed = mode & !0o777;
        for (tag, shift) in [(Tag::Owner, 6), (self.group_class(), 3), (Tag::Other, 0)] {
            if let Some(permissions) = self.permissions(tag) {
                *permissions &= (mode >> shift & 7) as u16;
                narrowed |= u32::from(*permissions) << shift;
            }
        }
        narrowed
    }
}
