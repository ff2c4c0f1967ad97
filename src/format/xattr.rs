//! Names of extended attributes: which there can be, and what their beginnings mean.

use super::acl::AclKind;
use crate::base::file::XATTR_NAME_MAX;
use crate::base::{Error, Result};

/// What an attribute's name begins with decides who may see it and what it may be put on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Namespace {
    User,
    Trusted,
    Security,
    Acl(AclKind),
}

impl Namespace {
    /// The namespace of a name.
    ///
    /// # Errors
    /// `Range`, `Invalid` or `Unsupported`, as Linux says it, when there can be no attribute of this name.
    pub fn of(name: &[u8]) -> Result<Namespace> {
        if name.len() > XATTR_NAME_MAX {
            return Err(Error::Range);
        }
        if name.contains(&0) {
            return Err(Error::Invalid("an attribute's name holds a NUL"));
        }
        if let Some(kind) = [AclKind::Access, AclKind::Default].into_iter().find(|kind| kind.name() == name) {
            return Ok(Namespace::Acl(kind));
        }
        for (prefix, space) in
            [(&b"user."[..], Namespace::User), (b"trusted.", Namespace::Trusted), (b"security.", Namespace::Security)]
        {
            if let Some(rest) = name.strip_prefix(prefix) {
                return if rest.is_empty() { Err(Error::Invalid("an attribute needs a name")) } else { Ok(space) };
            }
        }
        Err(Error::Unsupported)
    }
}
