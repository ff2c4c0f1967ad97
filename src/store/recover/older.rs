//! The stripes of the archive: which of their shards are still there, and where.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::find::read_header;
use super::{FoundShard, Recovery, Run};
use crate::base::{DeviceId, Incarnation, Result, StripeId};
use crate::format::intent::Intent;
use crate::format::rows::{Counter, Placement, StripeRow, StripeState};
use crate::format::table::{Devices, Groups, Intents, Stripes};
use crate::meta::{Reader, Tx, Visit};
use crate::pool::PoolState;
use crate::pool::stripe_io::{self, Media};
use crate::store::bitmap;
use crate::store::devices::run_of;
use crate::store::host::PoolMembership;

/// Stripes looked at in one piece.
const PAGE: usize = 1024;

/// What became of the stripes of the archive.
#[derive(Default, Debug)]
pub struct Older {
    pub stripes: u64,
    /// Shards that were overwritten since, or lie on no member any more.
    pub shards_gone: u64,
    /// Shards found where they were moved after the archive was made.
    pub shards_moved: u64,
    /// Stripes with fewer good shards on the devices that are here than it takes to read them.
    pub lost: Vec<StripeId>,
}

type Key = (StripeId, Incarnation, u8);

impl Recovery {
    /// Brings the rows of the archive's stripes up to date with the devices. `newer` are shards that may lie where theirs
    /// did; `moved` are shards of theirs found elsewhere. Both in order of device and block.
    pub fn settle_older(&self, newer: &[FoundShard], moved: &[FoundShard]) -> Result<Older> {
        self.forget_former_members()?;
        let media = PoolMembership(self.pool.clone());
        let mut overwriting: Vec<Run> = newer.iter().chain(moved).map(FoundShard::run).collect();
        overwriting.extend(super::old_metadata(&self.pool));
        let overwriting = super::merged(overwriting);
        let mut elsewhere: BTreeMap<Key, Vec<&FoundShard>> = BTreeMap::new();
        for found in moved {
            elsewhere.entry((found.stripe, found.incarnation, found.index)).or_default().push(found);
        }
        let mut older = Older::default();
        let mut changed = Vec::new();
        let mut from = Bound::Unbounded;
        loop {
            let page = self.page(from)?;
            let Some((last, _)) = page.last() else { break };
            from = Bound::Excluded(*last);
            for (id, row) in page {
                older.stripes += 1;
                let placements = settled(&self.pool.state(), &media, id, &row, &overwriting, &elsewhere);
                if placements != row.placements {
                    self.give_up(&row, &placements)?;
                    changed.push((id, placements));
                } else {
                    older.count_lost(&media, id, &row);
                }
            }
        }
        // What was moved may lie where another stripe had something: all of that is given up by now.
        for (id, placements) in changed {
            self.place(&media, id, placements, &mut older)?;
        }
        Ok(older)
    }

    fn page(&self, from: Bound<StripeId>) -> Result<Vec<(StripeId, StripeRow)>> {
        self.meta.view(|view| {
            let mut page = Vec::new();
            view.scan::<Stripes>((from, Bound::Unbounded), |id, row| {
                page.push((id, row));
                Ok(if page.len() < PAGE { Visit::Continue(()) } else { Visit::Break(()) })
            })?;
            Ok(page)
        })
    }

    /// Clears what a stripe has where it is not any more.
    fn give_up(&self, row: &StripeRow, placements: &[Placement]) -> Result<()> {
        let blocks = bitmap::shard_blocks(row);
        let body = |tx: &mut Tx<'_>| {
            for (old, _) in row.placements.iter().zip(placements).filter(|(old, new)| old != new) {
                if *old != Placement::NONE && tx.get::<Devices>(&old.device)?.is_some() {
                    bitmap::mark(tx, old.device, old.block.0, blocks, false)?;
                }
            }
            Ok(())
        };
        self.meta.transact(body).map(drop)
    }

    /// Gives a stripe other placements, but none where there is something else: a file may hold a copy of a shard.
    fn place(&self, media: &PoolMembership, id: StripeId, wanted: Vec<Placement>, older: &mut Older) -> Result<()> {
        let body = |tx: &mut Tx<'_>| {
            let Some(row) = tx.get::<Stripes>(&id)? else { return Ok(None) };
            let blocks = bitmap::shard_blocks(&row);
            let mut placements = wanted.clone();
            let (mut moved, mut gone) = (0, 0);
            for (old, new) in row.placements.iter().zip(&mut placements).filter(|(old, new)| old != new) {
                if *new != Placement::NONE && bitmap::is_free(tx, new.device, new.block.0, blocks)? {
                    bitmap::mark(tx, new.device, new.block.0, blocks, true)?;
                    moved += 1;
                } else {
                    *new = Placement::NONE;
                    gone += u64::from(*old != Placement::NONE);
                }
            }
            let degraded = placements.contains(&Placement::NONE);
            if degraded && row.state == StripeState::Whole {
                plan_rebuild(tx, id)?;
            }
            let state = if degraded { StripeState::Degraded } else { row.state };
            let row = StripeRow { placements, state, ..row };
            tx.put::<Stripes>(&id, &row)?;
            Ok(Some((row, moved, gone)))
        };
        let (placed, _) = self.meta.transact(body)?;
        if let Some((row, moved, gone)) = placed {
            older.shards_moved += moved;
            older.shards_gone += gone;
            older.count_lost(media, id, &row);
        }
        Ok(())
    }

    /// Removes what the archive says of devices that are no members any more, and tells of those that came since.
    fn forget_former_members(&self) -> Result<()> {
        let state = self.pool.state();
        let mut groups = Vec::new();
        let mut devices = Vec::new();
        self.meta.view(|view| {
            view.scan::<Groups>((Bound::Unbounded, Bound::Unbounded), |key, _| {
                if state.member(key.device).is_none() {
                    groups.push(key);
                }
                Ok(Visit::Continue(()))
            })?;
            view.scan::<Devices>((Bound::Unbounded, Bound::Unbounded), |id, _| {
                devices.push(id);
                Ok(Visit::Continue(()))
            })
        })?;
        for keys in groups.chunks(PAGE) {
            self.meta.transact(|tx| keys.iter().try_for_each(|key| tx.delete::<Groups>(key).map(drop)))?;
        }
        let gone: Vec<DeviceId> = devices.iter().copied().filter(|id| state.member(*id).is_none()).collect();
        let new = state.members.iter().filter(|member| !devices.contains(&member.id));
        self.meta.transact(|tx| {
            gone.iter().try_for_each(|id| tx.delete::<Devices>(id).map(drop))?;
            new.into_iter().try_for_each(|member| {
                let row = crate::store::open::device_row(tx, member)?;
                tx.put::<Devices>(&member.id, &row)
            })
        })?;
        Ok(())
    }
}

impl Older {
    fn count_lost(&mut self, media: &PoolMembership, id: StripeId, row: &StripeRow) {
        let here = row.placements.iter().filter(|place| media.device(place.device).is_some()).count();
        if here < usize::from(row.k) {
            self.lost.push(id);
        }
    }
}

/// Where the shards of a stripe are now.
fn settled(
    state: &PoolState,
    media: &PoolMembership,
    id: StripeId,
    row: &StripeRow,
    overwriting: &[Run],
    elsewhere: &BTreeMap<Key, Vec<&FoundShard>>,
) -> Vec<Placement> {
    let mut placements = row.placements.clone();
    for (index, place) in placements.iter_mut().enumerate() {
        let other = elsewhere.get(&(id, row.incarnation, index as u8));
        let member = state.member(place.device).is_some();
        let doubtful = *place != Placement::NONE
            && (!member || other.is_some() || overlaps(overwriting, run_of(*place, row.shard_blocks)));
        if *place != Placement::NONE && (!doubtful || verifies(media, id, row, index, *place)) {
            continue;
        }
        let found = other.into_iter().flatten().find_map(|found| {
            let place = Placement { device: found.device, block: found.block };
            verifies(media, id, row, index, place).then_some(place)
        });
        // Of a member that is away nothing is known; it may come back with what it has.
        let away = member && media.device(place.device).is_none();
        if found.is_some() || !away {
            *place = found.unwrap_or(Placement::NONE);
        }
    }
    placements
}

/// Notes that a stripe lacks shards.
pub(super) fn plan_rebuild(tx: &mut Tx<'_>, id: StripeId) -> Result<()> {
    let intent = tx.bump_counter(Counter::NextIntent, 1)?;
    tx.put::<Intents>(&intent, &Intent::Rebuild { stripe: id.0 })
}

/// Whether the shard is there: its header is in front of it, and its payload has the checksums of the row.
fn verifies(media: &PoolMembership, id: StripeId, row: &StripeRow, index: usize, place: Placement) -> bool {
    let Some(device) = media.device(place.device) else { return false };
    let found = FoundShard {
        device: place.device,
        block: place.block,
        stripe: id,
        incarnation: row.incarnation,
        index: index as u8,
        txn: row.birth,
        payload: row.shard_blocks,
    };
    let mut there = row.clone();
    let Some(at) = there.placements.get_mut(index) else { return false };
    *at = place;
    read_header(&*device, &found).is_some() && stripe_io::read_shard(media, &there, index).is_some()
}

/// Whether a run shares blocks with one of these, which are in order and apart.
fn overlaps(runs: &[Run], run: Run) -> bool {
    let end = run.block.0 + u64::from(run.blocks);
    let before = runs.partition_point(|other| (other.device, other.block.0) < (run.device, end));
    let last = runs.iter().take(before).next_back();
    last.is_some_and(|other| other.device == run.device && other.block.0 + u64::from(other.blocks) > run.block.0)
}
