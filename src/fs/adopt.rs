//! Names for what a recovery found without one.

use super::dentry::{self, Found, Place};
use super::namespace::add_name;
use super::{Fs, attr};
use crate::base::file::{Caller, FileType};
use crate::base::{Error, Ino, Result};
use crate::format::rows::JournalOp;

/// The directory they are put into.
const DIRECTORY: &str = "lost+found";
/// Its permissions: nobody knows who may see what is in it.
const PERMISSIONS: u32 = 0o700;

impl Fs {
    /// Gives each inode the name `#INO` in `/lost+found`. Those that have a name are left alone.
    pub fn adopt(&self, inos: impl IntoIterator<Item = Ino>) -> Result<()> {
        let mut inos = inos.into_iter().peekable();
        if inos.peek().is_none() {
            return Ok(());
        }
        let parent = self.lost_and_found()?;
        inos.try_for_each(|ino| {
            let name = format!("#{ino}").into_bytes();
            self.mutate(|change| {
                let directory = change.load_directory(parent)?;
                let slot = change.load(ino)?;
                if change.row(slot).nlink > 0 || attr::is_directory(change.row(slot)) {
                    return Ok(());
                }
                let Place::Free(cookie) = dentry::place(change.tx, parent, self.names.base(&name), &name)? else {
                    return Err(Error::Exists);
                };
                change.row_mut(slot).nlink = 1;
                let kind = attr::kind(change.row(slot));
                add_name(change, directory, cookie, &name, ino, kind)?;
                change.journal(Caller::ROOT.uid, JournalOp::Link { ino: ino.0, parent: parent.0, name: name.clone() })
            })
        })
    }

    /// The directory for inodes without a name, made if it is not there. Where a file has its name it gets another one.
    fn lost_and_found(&self) -> Result<Ino> {
        for attempt in 0.. {
            let name = if attempt == 0 { DIRECTORY.to_owned() } else { format!("{DIRECTORY}.{attempt}") };
            let base = self.names.base(name.as_bytes());
            match self.store.peek(|view| dentry::find(view, Ino::ROOT, base, name.as_bytes()))? {
                Some(Found { ino, kind, .. }) if kind == FileType::Directory.dirent() => return Ok(ino),
                Some(_) => {}
                None => {
                    let made = self.mkdir(&Caller::ROOT, self.outer(Ino::ROOT), name.as_bytes(), PERMISSIONS)?;
                    self.forget(made.attr.ino, 1);
                    return self.inner(made.attr.ino);
                }
            }
        }
        Err(Error::NoSpace)
    }
}
