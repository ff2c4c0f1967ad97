//! Giving space back: bounded steps for huge files.

use super::{Ledger, Store, extents, lock};
use crate::base::{Error, Ino, Result, TxnId};
use crate::format::intent::Intent;
use crate::format::record::Row;
use crate::format::rows::Counter;
use crate::format::table::{Inodes, Intents, Table};
use crate::meta::{Reader, Tx, Visit};

/// Extents one transaction removes at most.
pub const STEP: usize = 1000;

/// Leaves the rest of a truncate to the background, durably.
pub(super) fn postpone_truncate(tx: &mut Tx<'_>, ino: Ino, from: u64, ledger: &mut Ledger) -> Result<()> {
    let id = tx.bump_counter(Counter::NextIntent, 1)?;
    let txn = tx.id();
    tx.put::<Intents>(&id, &Intent::Truncate { ino: ino.0, from, txn: txn.0 })?;
    ledger.truncates.push((ino, from, txn));
    Ok(())
}

/// A truncate that goes on: from where, and the last transaction whose extents it removes.
pub(super) type Cut = (u64, TxnId);

/// Whether what begins at `offset` and was born at `birth` is being removed.
pub(super) fn cut_off(cuts: &[Cut], offset: u64, birth: TxnId) -> bool {
    cuts.iter().any(|(from, txn)| offset >= *from && birth <= *txn)
}

impl Store {
    /// Hands back blocks that are durably free and that nobody reads any more.
    pub(super) fn reclaim_freed(&self) {
        if let Some(devices) = &self.devices {
            self.discards.note(devices.reclaim(self.meta.durable()));
        }
    }

    /// Does one bounded step of the truncates that go on; says whether anything is left.
    pub fn reclaim_step(&self) -> Result<bool> {
        if lock(&self.truncates).is_empty() {
            return Ok(false);
        }
        let next = self.view(|view| {
            let mut next = None;
            view.scan::<Intents>((std::ops::Bound::Unbounded, std::ops::Bound::Unbounded), |id, intent| {
                if let Intent::Truncate { ino, from, txn } = intent {
                    next = Some((id, Ino(ino), from, TxnId(txn)));
                    return Ok(Visit::Break(()));
                }
                Ok(Visit::Continue(()))
            })?;
            Ok(next)
        })?;
        let Some((id, ino, from, txn)) = next else { return Ok(false) };
        let finished = self.transact(|tx, ledger| {
            let mut victims = Vec::new();
            let mut finished = true;
            extents::overlapping(tx, ino, from..u64::MAX, |at, row| {
                if at < from || row.birth > txn {
                    return Ok(Visit::Continue(()));
                }
                if victims.len() == STEP {
                    finished = false;
                    return Ok(Visit::Break(()));
                }
                victims.push(at..at + row.length);
                Ok(Visit::Continue(()))
            })?;
            let before = ledger.content_delta;
            for range in victims {
                extents::remove(tx, ino, range, usize::MAX, ledger)?;
            }
            if let Some(mut inode) = tx.get::<Inodes>(&ino)? {
                inode.content = inode.content.saturating_add_signed(ledger.content_delta - before);
                tx.put::<Inodes>(&ino, &inode)?;
            }
            if finished {
                tx.delete::<Intents>(&id)?;
            }
            Ok(finished)
        })?;
        if finished {
            let mut truncates = lock(&self.truncates);
            if let Some(cuts) = truncates.get_mut(&ino) {
                cuts.retain(|cut| *cut != (from, txn));
                if cuts.is_empty() {
                    truncates.remove(&ino);
                }
            }
        }
        Ok(true)
    }

    /// Takes up the intents a crash left behind.
    pub fn resume(&self) -> Result<()> {
        self.load_damages()?;
        self.view(|view| {
            if let Some(devices) = &self.devices {
                // None at hand, but so many were used.
                let next = match view.counter(Counter::NextStripe) {
                    // Whoever takes numbers finds that out; fsck has to open the pool all the same.
                    Err(Error::Corrupt(_)) => 0,
                    known => known?,
                };
                devices.give_stripes(next..next);
            }
            let mut truncates = lock(&self.truncates);
            let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
            view.scan_raw(Intents::ID, all, false, &mut |_, intent| {
                // What cannot be read is for fsck to name, which has to open the pool for it.
                if let Ok(Intent::Truncate { ino, from, txn }) = Intent::decode(intent) {
                    truncates.entry(Ino(ino)).or_default().push((from, TxnId(txn)));
                }
                Ok(Visit::Continue(()))
            })
        })
    }
}
