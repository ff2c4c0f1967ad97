//! Giving space back: bounded steps for huge files.

use super::{Ledger, Store, extents, lock};
use crate::base::{Error, Ino, Result, TxnId};
use crate::format::intent::Intent;
use crate::format::record::Row;
use crate::format::rows::Counter;
use crate::format::table::{Intents, Table};
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

/// A truncate of which a part was left for later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Truncate {
    id: u64,
    pub ino: Ino,
    from: u64,
    txn: TxnId,
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

    /// A truncate that goes on, if there is one.
    pub fn next_truncate(&self) -> Result<Option<Truncate>> {
        if lock(&self.truncates).is_empty() {
            return Ok(None);
        }
        self.view(|view| {
            let mut next = None;
            view.scan::<Intents>((std::ops::Bound::Unbounded, std::ops::Bound::Unbounded), |id, intent| {
                if let Intent::Truncate { ino, from, txn } = intent {
                    next = Some(Truncate { id, ino: Ino(ino), from, txn: TxnId(txn) });
                    return Ok(Visit::Break(()));
                }
                Ok(Visit::Continue(()))
            })?;
            Ok(next)
        })
    }

    /// Does one bounded step of it within a transaction; says whether it was the last one, and returns the change for
    /// `InodeRow::content`. After the last one is committed, [`Store::end_truncate`] is to be told.
    pub fn truncate_step(&self, tx: &mut Tx<'_>, truncate: &Truncate, ledger: &mut Ledger) -> Result<(bool, i64)> {
        let Truncate { id, ino, from, txn } = *truncate;
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
        if finished {
            tx.delete::<Intents>(&id)?;
        }
        Ok((finished, ledger.content_delta - before))
    }

    /// What it removed need not be hidden any more.
    pub fn end_truncate(&self, truncate: &Truncate) {
        let mut truncates = lock(&self.truncates);
        if let Some(cuts) = truncates.get_mut(&truncate.ino) {
            cuts.retain(|cut| *cut != (truncate.from, truncate.txn));
            if cuts.is_empty() {
                truncates.remove(&truncate.ino);
            }
        }
    }

    /// Takes up the intents a crash left behind.
    pub fn resume(&self) -> Result<()> {
        self.load_damages()?;
        self.load_faults()?;
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
            self.space.set_reserved(view.counter(Counter::Reserved).unwrap_or(0));
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
