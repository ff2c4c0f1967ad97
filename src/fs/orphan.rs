//! Inodes without names: they live until the last reference is forgotten, then their rows and content go in bounded
//! steps.
//!
//! Invariants:
//! - An inode with `nlink` 0 has a row in `orphans`, made in the transaction that took its last name, removed in the one
//!   that names or deletes it. So a crash leaks nothing: what is found in `orphans` at mount is reclaimed.
//! - Only references from before can lead to an inode without names; once there is none, none appears.

use std::collections::VecDeque;
use std::ops::Bound;
use std::time::Duration;

use super::change::Change;
use super::{Fs, lock, xattr};
use crate::base::sync::{Condvar, Mutex, PoisonError};
use crate::base::{Error, Ino, Result};
use crate::format::rows::JournalOp;
use crate::format::table::Orphans;
use crate::meta::{Reader, Visit};

/// Inodes deleted by one transaction.
const BATCH: usize = 64;
/// Content one transaction lets go of before it ends, in bytes.
const BATCH_CONTENT: u64 = 64 << 20;
/// How long an inode may wait for others to be deleted with it: `rm -r` gives up one after the other.
const GATHER: Duration = Duration::from_millis(50);
/// Attribute rows removed from one inode by one transaction.
const XATTR_STEP: usize = 1000;

/// Inodes to be reclaimed.
pub struct Queue {
    ready: Mutex<Ready>,
    wake: Condvar,
}

#[derive(Default)]
struct Ready {
    inodes: VecDeque<Ino>,
    /// Somebody wants the one who waits to look up.
    interrupted: bool,
    /// Where the search for orphans goes on, those of an earlier life first; `None` when it is finished.
    search: Option<Ino>,
    /// Some could not be deleted: they are searched again at the next tick.
    left: bool,
}

impl Queue {
    /// A queue that begins with the orphans an earlier life left behind.
    pub fn after_mount() -> Queue {
        Queue { ready: Mutex::new(Ready { search: Some(Ino(0)), ..Ready::default() }), wake: Condvar::new() }
    }

    /// Adds an inode that has neither names nor references.
    pub fn push(&self, ino: Ino) {
        let mut ready = lock(&self.ready);
        ready.inodes.push_back(ino);
        if matches!(ready.inodes.len(), 1 | BATCH) {
            self.wake.notify_one();
        }
    }
}

impl Fs {
    /// Reclaims some inodes without names and references; says whether there may be more.
    pub fn reclaim_step(&self) -> Result<bool> {
        if self.options.read_only {
            return Ok(false);
        }
        let (batch, search) = {
            let mut ready = lock(&self.orphans.ready);
            let many = ready.inodes.len().min(BATCH);
            (ready.inodes.drain(..many).collect::<Vec<_>>(), ready.search)
        };
        match (batch.as_slice(), search) {
            ([], None) => return Ok(false),
            ([], Some(behind)) => self.search_orphans(behind).inspect_err(|_| self.leave_for_later())?,
            _ => self.reclaim_batch(&batch)?,
        }
        Ok(true)
    }

    /// Removes some of what truncates of huge files left for later; says whether there may be more.
    pub fn truncate_step(&self) -> Result<bool> {
        if self.options.read_only {
            return Ok(false);
        }
        let Some(truncate) = self.store.next_truncate()? else { return Ok(false) };
        let finished = self.mutate(|change| {
            let (finished, delta) = change.shrink_further(&truncate)?;
            // The row may be cached, and be newer than the stored one.
            if let Some(slot) = change.try_load(truncate.ino)? {
                let row = change.row_mut(slot);
                row.content = row.content.saturating_add_signed(delta);
            }
            Ok(finished)
        })?;
        if finished {
            self.store.end_truncate(&truncate);
        }
        Ok(true)
    }

    /// Lets the search begin anew, not before the next tick.
    fn leave_for_later(&self) {
        let mut ready = lock(&self.orphans.ready);
        ready.search = None;
        ready.left = true;
    }

    /// What is corrupt stays so: fsck names it.
    fn leave_unless_corrupt(&self, error: &Error) {
        if !matches!(error, Error::Corrupt(_)) {
            self.leave_for_later();
        }
    }

    /// Searches again what could not be deleted.
    pub(super) fn retry_orphans(&self) {
        let mut ready = lock(&self.orphans.ready);
        if std::mem::take(&mut ready.left) {
            ready.search = Some(Ino(0));
        }
    }

    /// Reclaims what waits for it now.
    pub fn reclaim_waiting(&self) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        let _only = self.writeback.hold_relief();
        let waiting = lock(&self.orphans.ready).inodes.len();
        for _ in 0..waiting.div_ceil(BATCH) {
            self.reclaim_step()?;
        }
        while self.truncate_step()? {}
        Ok(())
    }

    /// Reclaims everything that has neither names nor references, content that is removed in the background included.
    pub fn reclaim_all(&self) -> Result<()> {
        while self.reclaim_step()? || self.truncate_step()? {}
        Ok(())
    }

    /// Waits until [`Fs::reclaim_step`] has enough to do, or something for a while, at most `timeout`; says whether it
    /// has anything.
    pub fn wait_for_orphans(&self, timeout: Duration) -> bool {
        let few = |waiting: usize| {
            move |ready: &mut Ready| ready.inodes.len() <= waiting && ready.search.is_none() && !ready.interrupted
        };
        let mut ready = lock(&self.orphans.ready);
        for (patience, waiting) in [(timeout, 0), (GATHER.min(timeout), BATCH - 1)] {
            let waited = self.orphans.wake.wait_timeout_while(ready, patience, few(waiting));
            ready = waited.unwrap_or_else(PoisonError::into_inner).0;
            if ready.inodes.is_empty() {
                break;
            }
        }
        ready.interrupted = false;
        !ready.inodes.is_empty() || ready.search.is_some()
    }

    /// Whether inodes wait to be reclaimed.
    pub(super) fn has_orphans(&self) -> bool {
        !lock(&self.orphans.ready).inodes.is_empty()
    }

    /// Ends a wait in [`Fs::wait_for_orphans`].
    pub(super) fn interrupt(&self) {
        lock(&self.orphans.ready).interrupted = true;
        self.orphans.wake.notify_all();
    }

    /// Queues the next orphans of an earlier life.
    fn search_orphans(&self, behind: Ino) -> Result<()> {
        let mut found = Vec::with_capacity(BATCH);
        self.store.view(|view| {
            view.scan::<Orphans>((Bound::Excluded(behind), Bound::Unbounded), |ino, ()| {
                found.push(ino);
                Ok(if found.len() < BATCH { Visit::Continue(()) } else { Visit::Break(()) })
            })
        })?;
        let mut ready = lock(&self.orphans.ready);
        ready.search = if found.len() < BATCH { None } else { found.last().copied() };
        ready.inodes.extend(found);
        Ok(())
    }

    /// Deletes the inodes. One that cannot be deleted does not keep the others: it stays in `orphans` for fsck.
    fn reclaim_batch(&self, batch: &[Ino]) -> Result<()> {
        let mut given_up = Vec::with_capacity(batch.len());
        for ino in batch {
            let state = self.inodes.state(*ino);
            // What cannot be read cannot be deleted either, which then says why.
            let nameless = self.filled(&state).map_or(true, |live| live.row.as_ref().is_some_and(|row| row.nlink == 0));
            // In this order: without a name, no reference is new. Nothing is deleted whose content was not discarded: who
            // gives it up after this moment queues it.
            if nameless && !self.inodes.is_referenced(*ino) {
                self.discard_content(&state);
                given_up.push(*ino);
            }
        }
        let batch = given_up.as_slice();
        if batch.is_empty() {
            return Ok(());
        }
        let again = self.mutate(|change| self.delete_inodes(change, batch));
        let again = match again {
            Err(_) if batch.len() > 1 => {
                let mut again = Vec::new();
                let mut outcome = Ok(());
                for ino in batch {
                    match self.mutate(|change| self.delete_inodes(change, std::slice::from_ref(ino))) {
                        Ok(more) => again.extend(more),
                        Err(error) => {
                            self.leave_unless_corrupt(&error);
                            outcome = outcome.and(Err(error));
                        }
                    }
                }
                self.requeue(again);
                return outcome;
            }
            Err(error) => {
                self.leave_unless_corrupt(&error);
                return Err(error);
            }
            Ok(again) => again,
        };
        self.requeue(again);
        Ok(())
    }

    fn requeue(&self, inodes: Vec<Ino>) {
        if !inodes.is_empty() {
            lock(&self.orphans.ready).inodes.extend(inodes);
            self.orphans.wake.notify_one();
        }
    }

    /// Deletes inodes until a bound is reached; returns those that are left.
    fn delete_inodes(&self, change: &mut Change<'_, '_>, batch: &[Ino]) -> Result<Vec<Ino>> {
        let mut content = 0;
        let mut again = Vec::new();
        for ino in batch {
            if content > BATCH_CONTENT {
                again.push(*ino);
                continue;
            }
            if self.inodes.is_referenced(*ino) {
                continue;
            }
            let Some(slot) = change.try_load(*ino)? else { continue };
            let row = change.row(slot);
            if row.nlink > 0 {
                continue;
            }
            content += row.content;
            if !xattr::remove_some(change, slot, XATTR_STEP)? {
                again.push(*ino);
                continue;
            }
            if change.row(slot).content > 0 {
                change.shrink(*ino, 0)?;
            }
            change.tx.delete::<Orphans>(ino)?;
            change.delete(slot);
            change.journal(0, JournalOp::Reclaim { ino: ino.0 })?;
        }
        Ok(again)
    }
}
