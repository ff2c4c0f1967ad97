//! Moving names: over files, over empty directories, and in exchange.

use std::sync::Arc;

use super::change::{Change, Slot};
use super::dentry::{self, Found, Place};
use super::handle::InodeState;
use super::namespace::LINK_MAX;
use super::{Fs, attr};
use crate::base::file::{Caller, RenameMode};
use crate::base::{Error, Ino, Result};
use crate::format::rows::JournalOp;

/// One end of a rename.
struct End<'a> {
    parent: Ino,
    directory: Slot,
    name: &'a [u8],
    place: Place,
}

/// An inode that moves, and what it was found as.
#[derive(Clone, Copy)]
struct Moving {
    slot: Slot,
    found: Found,
    is_directory: bool,
}

impl Fs {
    /// Moves a name.
    pub fn rename(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        dentry::check_name(name)?;
        dentry::check_name(new_name)?;
        let (parent, new_parent) = (self.inner(parent)?, self.inner(new_parent)?);
        // Content of what replaces something is committed first, outside of the transaction: found out within it.
        let mut flushed = Vec::new();
        loop {
            let mut unclean = None;
            match self.rename_flushed(caller, (parent, name), (new_parent, new_name), mode, &flushed, &mut unclean) {
                Err(_) if let Some(state) = unclean => {
                    self.flush_content(&state)?;
                    flushed.push(state.ino);
                }
                done => return done,
            }
        }
    }

    /// The rename, unless content of a file that replaces another is not committed and the file is not in `flushed`:
    /// then nothing happens and `unclean` is set.
    fn rename_flushed(
        &self,
        caller: &Caller,
        (parent, name): (Ino, &[u8]),
        (new_parent, new_name): (Ino, &[u8]),
        mode: RenameMode,
        flushed: &[Ino],
        unclean: &mut Option<Arc<InodeState>>,
    ) -> Result<()> {
        self.mutate(|change| {
            let from = self.end(change, parent, name)?;
            let to = self.end(change, new_parent, new_name)?;
            let source = from.moving(change)?.ok_or(Error::NotFound)?;
            let target = to.moving(change)?;
            match (mode, &target) {
                (RenameMode::NoReplace, Some(_)) => return Err(Error::Exists),
                (RenameMode::Exchange, None) => return Err(Error::NotFound),
                // Two names of one file: nothing happens, by POSIX.
                (_, Some(target)) if target.found.ino == source.found.ino => return Ok(()),
                _ => {}
            }
            if let Some(target) = &target {
                let moved = if mode == RenameMode::Exchange { &[source.slot, target.slot][..] } else { &[source.slot] };
                let mut moved = moved.iter().map(|slot| change.state(*slot));
                *unclean = moved.find(|state| !state.is_clean() && !flushed.contains(&state.ino)).cloned();
                if unclean.is_some() {
                    return Err(Error::Busy("its content is not committed".into()));
                }
            }
            attr::check_changeable(change.row(source.slot), false)?;
            attr::check_changeable(change.row(from.directory), false)?;
            attr::check_changeable(change.row(to.directory), target.is_none())?;
            check_loop(change, &source, &from, &to)?;
            if let Some(target) = &target {
                attr::check_changeable(change.row(target.slot), false)?;
                if mode == RenameMode::Exchange {
                    check_loop(change, target, &to, &from)?;
                    exchange(change, &from, &source, &to, target)?;
                } else {
                    check_replaceable(change, &source, target)?;
                    replace(change, &from, &source, &to, Some(target))?;
                }
            } else {
                replace(change, &from, &source, &to, None)?;
            }
            let flags = match mode {
                RenameMode::Replace => 0,
                RenameMode::NoReplace => libc::RENAME_NOREPLACE,
                RenameMode::Exchange => libc::RENAME_EXCHANGE,
            };
            let operation = JournalOp::Rename {
                from: parent.0,
                name: name.to_vec(),
                to: new_parent.0,
                new_name: new_name.to_vec(),
                ino: source.found.ino.0,
                flags,
            };
            change.journal(caller.uid, operation)
        })
    }

    fn end<'a>(&self, change: &mut Change<'_, '_>, parent: Ino, name: &'a [u8]) -> Result<End<'a>> {
        let directory = change.load_directory(parent)?;
        let place = dentry::place(change.tx, parent, self.names.base(name), name)?;
        Ok(End { parent, directory, name, place })
    }
}

impl End<'_> {
    fn cookie(&self) -> u64 {
        match self.place {
            Place::Taken(found) => found.cookie,
            Place::Free(cookie) => cookie,
        }
    }

    fn moving(&self, change: &mut Change<'_, '_>) -> Result<Option<Moving>> {
        let Place::Taken(found) = self.place else { return Ok(None) };
        let slot = change.load_named(found.ino)?;
        Ok(Some(Moving { slot, found, is_directory: attr::is_directory(change.row(slot)) }))
    }
}

/// Refuses to move a directory below itself.
fn check_loop(change: &mut Change<'_, '_>, moving: &Moving, from: &End<'_>, to: &End<'_>) -> Result<()> {
    if !moving.is_directory || from.parent == to.parent {
        return Ok(());
    }
    let mut at = to.parent;
    while at != Ino::ROOT {
        if at == moving.found.ino {
            return Err(Error::Invalid("a directory cannot be moved below itself"));
        }
        let slot = change.load_named(at)?;
        at = change.row(slot).parent;
    }
    Ok(())
}

/// Refuses to replace what the moved inode cannot take the place of.
fn check_replaceable(change: &Change<'_, '_>, source: &Moving, target: &Moving) -> Result<()> {
    match (source.is_directory, target.is_directory) {
        (true, false) => Err(Error::NotDirectory),
        (false, true) => Err(Error::IsDirectory),
        (true, true) if change.row(target.slot).entries > 0 => Err(Error::NotEmpty),
        _ => Ok(()),
    }
}

fn replace(
    change: &mut Change<'_, '_>,
    from: &End<'_>,
    source: &Moving,
    to: &End<'_>,
    target: Option<&Moving>,
) -> Result<()> {
    let moves = i32::from(source.is_directory);
    let gone = target.map_or(0, |target| i32::from(target.is_directory));
    change.remove_name(from.directory, from.cookie())?;
    change.count_names(from.directory, -1, -moves);
    change.put_name(to.directory, to.cookie(), to.name, source.found.ino, source.found.kind)?;
    change.count_names(to.directory, 1 - i64::from(target.is_some()), moves - gone);
    check_links(change, to.directory)?;
    settle(change, source, to);
    match target {
        Some(target) => change.unlink(target.slot),
        None => Ok(()),
    }
}

fn exchange(change: &mut Change<'_, '_>, from: &End<'_>, source: &Moving, to: &End<'_>, target: &Moving) -> Result<()> {
    let balance = i32::from(target.is_directory) - i32::from(source.is_directory);
    change.put_name(from.directory, from.cookie(), from.name, target.found.ino, target.found.kind)?;
    change.put_name(to.directory, to.cookie(), to.name, source.found.ino, source.found.kind)?;
    change.count_names(from.directory, 0, balance);
    change.count_names(to.directory, 0, -balance);
    check_links(change, from.directory)?;
    check_links(change, to.directory)?;
    settle(change, source, to);
    settle(change, target, from);
    Ok(())
}

fn check_links(change: &Change<'_, '_>, directory: Slot) -> Result<()> {
    if change.row(directory).nlink > LINK_MAX { Err(Error::TooManyLinks) } else { Ok(()) }
}

/// The moved inode at its new place.
fn settle(change: &mut Change<'_, '_>, moved: &Moving, at: &End<'_>) {
    let now = change.now();
    let row = change.row_mut(moved.slot);
    row.ctime = now;
    if moved.is_directory {
        row.parent = at.parent;
    }
}
