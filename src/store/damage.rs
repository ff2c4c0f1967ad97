//! What cannot be read any more and cannot be repaired: recorded when it is found, until it is whole again, gone, or
//! accepted by whoever it belongs to.
//!
//! Invariant: the set in memory has the keys of the table `damage`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};

use super::repair::Verified;
use super::{Store, extents, lock};
use crate::base::sync::Mutex;
use crate::base::{BLOCK_SIZE, Error, Ino, Result, StripeId, Timestamp};
use crate::format::rows::{DamageRow, ExtentBody, ExtentKey};
use crate::format::table::{Damage, Extents, Stripes};
use crate::meta::{Reader, Visit};

/// The stripes that are damaged.
#[derive(Debug, Default)]
pub(super) struct Damages(Mutex<BTreeSet<StripeId>>);

/// A stripe that some content cannot be read of, and whose that is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damaged {
    pub stripe: StripeId,
    pub found: Timestamp,
    pub bad: u8,
    /// Of each file, the bytes that cannot be read.
    pub lost: BTreeMap<Ino, Vec<Range<u64>>>,
}

impl Store {
    /// Takes up what the table says.
    pub(super) fn load_damages(&self) -> Result<()> {
        let mut damaged = BTreeSet::new();
        self.view(|view| {
            view.scan::<Damage>((Bound::Unbounded, Bound::Unbounded), |id, _| {
                damaged.insert(id);
                Ok(Visit::Continue(()))
            })
        })?;
        *lock(&self.damages.0) = damaged;
        Ok(())
    }

    /// Records that a stripe cannot be repaired.
    pub(super) fn note_damage(&self, id: StripeId) -> Result<()> {
        let Some(devices) = &self.devices else { return Ok(()) };
        let Some(row) = self.view(|view| view.get::<Stripes>(&id))? else { return Ok(()) };
        let verified = Verified::read(&*devices.membership, id, row);
        if !verified.lost {
            return Ok(());
        }
        let bad = u8::try_from(verified.bad.len()).unwrap_or(u8::MAX);
        self.transact(|tx, _| {
            let found = tx.get::<Damage>(&id)?.map_or(tx.now(), |known| known.found);
            tx.put::<Damage>(&id, &DamageRow { found, bad })
        })?;
        lock(&self.damages.0).insert(id);
        Ok(())
    }

    /// Takes note that a stripe is whole, or that nobody needs what is not.
    pub(super) fn clear_damage(&self, id: StripeId) -> Result<()> {
        if !lock(&self.damages.0).contains(&id) {
            return Ok(());
        }
        self.transact(|tx, _| tx.delete::<Damage>(&id))?;
        lock(&self.damages.0).remove(&id);
        Ok(())
    }

    /// How many stripes are known to be damaged beyond repair.
    pub fn damaged_stripes(&self) -> usize {
        lock(&self.damages.0).len()
    }

    /// The stripes that are recorded as damaged and were not freed since. Nothing is read again, and nothing changed.
    pub fn recorded_damage(&self) -> Result<Vec<StripeId>> {
        let known: Vec<StripeId> = lock(&self.damages.0).iter().copied().collect();
        self.view(|view| {
            let mut there = Vec::new();
            for stripe in known {
                if view.get::<Stripes>(&stripe)?.is_some() {
                    there.push(stripe);
                }
            }
            Ok(there)
        })
    }

    /// Reads all damaged stripes again; what they cost whom. Those that cost nobody anything are not damaged any more.
    pub fn damage(&self) -> Result<Vec<Damaged>> {
        let known: Vec<StripeId> = lock(&self.damages.0).iter().copied().collect();
        let mut damage = Vec::new();
        for stripe in known {
            let lost = self.lost_of(stripe, None)?;
            match self.view(|view| view.get::<Damage>(&stripe))? {
                Some(row) if !lost.is_empty() => {
                    damage.push(Damaged { stripe, found: row.found, bad: row.bad, lost });
                }
                _ if self.meta.check().is_ok() => match self.clear_damage(stripe) {
                    Ok(()) | Err(Error::ReadOnly) => {}
                    Err(error) => return Err(error),
                },
                _ => {}
            }
        }
        Ok(damage)
    }

    /// What cannot be read of a file now, as far as its damage was found.
    pub fn lost_of_file(&self, ino: Ino) -> Result<Vec<Range<u64>>> {
        let known: Vec<StripeId> = lock(&self.damages.0).iter().copied().collect();
        let mut lost = Vec::new();
        for stripe in known {
            lost.extend(self.lost_of(stripe, Some(ino))?.remove(&ino).unwrap_or_default());
        }
        lost.sort_by_key(|range| range.start);
        Ok(lost)
    }

    /// What cannot be read of the files that have content in a stripe, or of one of them.
    fn lost_of(&self, stripe: StripeId, only: Option<Ino>) -> Result<BTreeMap<Ino, Vec<Range<u64>>>> {
        let mut owned = Vec::new();
        self.view(|view| {
            extents::backrefs(view, stripe, |key, _| {
                if only.is_some_and(|ino| ino != key.ino) {
                    return Ok(Visit::Continue(()));
                }
                let extent = view.get::<Extents>(&ExtentKey { ino: key.ino, offset: key.offset })?;
                if let Some(extent) = extent
                    && matches!(&extent.body, ExtentBody::Run(run) if run.stripe == stripe)
                {
                    owned.push((key.ino, key.offset..key.offset + extent.length));
                }
                Ok(Visit::Continue(()))
            })
        })?;
        let mut lost: BTreeMap<Ino, Vec<Range<u64>>> = BTreeMap::new();
        for (ino, range) in owned {
            let mut start = range.start;
            while start < range.end {
                let end = range.end.min((start / BLOCK_SIZE + 1) * BLOCK_SIZE);
                let mut piece = vec![0; (end - start) as usize];
                if let Err(Error::Corrupt(_)) = self.read_uncached(ino, start, &mut piece) {
                    let ranges = lost.entry(ino).or_default();
                    match ranges.last_mut() {
                        Some(last) if last.end == start => last.end = end,
                        _ => ranges.push(start..end),
                    }
                }
                start = end;
            }
        }
        Ok(lost)
    }
}
