//! Keeping the pool whole: scrub, rebuild, emptying and replacing devices, metadata replicas.
//!
//! Invariant: nothing here lowers redundancy: a copy is written and its transaction made before the old place is given
//! up, and what is given up is reused only after that transaction is durable.

use std::sync::Arc;

use super::archive::Mend;
use super::devices::Devices;
use super::open::device_row;
use super::repair::Repaired;
use super::{Store, lock};
use crate::base::{DeviceId, Error, Result, StripeId};
use crate::device::Device;
use crate::format::label::MemberState;
use crate::format::rows::{Placement, StripeRow};
use crate::format::table;
use crate::meta::{DataBarrier, Reader};
use crate::pool::Pool;

/// How far a long action has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Stripes looked at.
    pub stripes: u64,
    pub repaired: Repaired,
    /// Stripes that have fewer good shards than they need: their content is lost.
    pub lost: u64,
    /// Blocks of metadata mended on some replica.
    pub metadata_blocks: u64,
    /// Blocks of metadata that no replica has right, when some of them are in use.
    pub metadata_unreadable: u64,
    /// The last stripe looked at.
    pub after: Option<StripeId>,
    /// Whether all of it was done since the pool was opened.
    pub unbroken: bool,
}

/// Called after each stripe, and each piece of metadata; `false` stops the action.
pub type Watch<'a> = &'a mut dyn FnMut(&Progress) -> bool;

/// Stripes looked up by one scan of the table.
const BATCH: usize = 256;

impl Store {
    /// Verifies the labels, all metadata replicas, and every shard of every stripe; repairs what is bad. When nothing
    /// stays bad, what devices did wrong before is forgotten.
    pub fn scrub(&self, watch: Watch<'_>) -> Result<Progress> {
        let mut progress = Progress::default();
        self.scrub_on(&mut progress, watch)?;
        Ok(progress)
    }

    /// Goes on with a scrub where `progress` says; whether it came to its end.
    pub fn scrub_on(&self, progress: &mut Progress, watch: Watch<'_>) -> Result<bool> {
        if progress.after.is_none() {
            progress.unbroken = true;
            if !self.scrub_metadata(progress, watch)? {
                return Ok(false);
            }
        }
        let whole = self.each_stripe(|_| true, progress.after, progress, watch, |store, id| store.repair(id))?;
        if whole {
            self.settle_intents()?;
            self.mend_archives(Mend::Bad, progress)?;
        }
        self.settle_repairs()?;
        let well = progress.lost == 0 && progress.repaired.missing == 0 && progress.metadata_unreadable == 0;
        if whole && progress.unbroken && well {
            self.faults.forget(None);
        }
        self.save_faults();
        Ok(whole)
    }

    /// Verifies the labels and all metadata replicas; `false` when `watch` ended it.
    fn scrub_metadata(&self, progress: &mut Progress, watch: Watch<'_>) -> Result<bool> {
        if let Some(pool) = &self.pool
            && !pool.damaged_labels(&pool.state().present().map(|member| member.id).collect::<Vec<_>>()).is_empty()
        {
            pool.update_labels(|_| ())?;
        }
        if let Some(log) = &self.log {
            let Some(report) = self.mend_volume(log, &mut || watch(progress))? else { return Ok(false) };
            progress.metadata_blocks = report.repaired;
            progress.metadata_unreadable = report.unreadable.len() as u64;
        }
        Ok(true)
    }

    /// Rebuilds every shard whose device is not here, or that was never written, on other devices, and brings replacements
    /// to their end.
    pub fn rebuild(&self, watch: Watch<'_>) -> Result<Progress> {
        let mut progress = Progress::default();
        let Some(devices) = self.devices.clone() else { return Ok(progress) };
        let lacking = |row: &StripeRow| {
            row.placements
                .iter()
                .any(|placement| *placement == Placement::NONE || devices.membership.device(placement.device).is_none())
        };
        if self.each_stripe(lacking, None, &mut progress, watch, |store, id| store.repair(id))? {
            self.mend_archives(Mend::Bad, &mut progress)?;
        }
        self.settle_intents()?;
        self.settle_repairs()?;
        if let Some(pool) = &self.pool {
            // Replacements that did not come to their end, whether what is replaced is here or not.
            for old in pool.state().members.iter().filter(|member| member.is_replaced()) {
                if !self.retire(old.id, &mut progress, watch)? {
                    // It waits for a device that is missing, or for space.
                    progress.repaired.missing = progress.repaired.missing.max(1);
                }
            }
        }
        Ok(progress)
    }

    /// Works off the plans to rebuild; where nothing is left to do, the plan goes.
    fn settle_intents(&self) -> Result<()> {
        let mut after = None;
        loop {
            match self.rebuild_step(&mut after) {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                // Lost, and counted by whoever went through all stripes: no reason to leave the rest.
                Err(Error::Corrupt(_)) => {}
                Err(other) => return Err(other),
            }
        }
    }

    /// Moves every shard off a device, which stays a member.
    pub fn evacuate(&self, device: DeviceId, watch: Watch<'_>) -> Result<Progress> {
        let mut progress = Progress::default();
        self.empty(device, &mut progress, watch)?;
        Ok(progress)
    }

    fn empty(&self, device: DeviceId, progress: &mut Progress, watch: Watch<'_>) -> Result<()> {
        let on_it = |row: &StripeRow| row.placements.iter().any(|placement| placement.device == device);
        if self.each_stripe(on_it, None, progress, watch, |store, id| store.relocate(id, device))? {
            self.mend_archives(Mend::On(device), progress)?;
        }
        self.settle_repairs()
    }

    /// Makes repairs durable: a shard rewritten in its place is no transaction, so a durable point alone would pass it by.
    fn settle_repairs(&self) -> Result<()> {
        self.barrier()?;
        self.durable_point()
    }

    /// Flushes every device. A failure that could not be dealt with ends all writing, as in a durable point.
    pub(super) fn barrier(&self) -> Result<()> {
        let Some(devices) = &self.devices else { return Ok(()) };
        devices.barrier().map_err(|error| self.meta.poison(&error.to_string()))
    }

    /// Puts `new` in the place of member `old`, which may be lost already: everything that was on `old` is copied or
    /// rebuilt, then `old` ends being a member.
    pub fn replace(&self, old: DeviceId, new: Arc<dyn Device>, force: bool, watch: Watch<'_>) -> Result<Progress> {
        let (pool, devices) = self.whole()?;
        let added = pool.replace_member(old, new, force)?;
        self.welcome(&pool, &devices, added)?;
        let mut progress = Progress::default();
        if !self.retire(old, &mut progress, watch)? {
            return Err(Error::Unavailable(format!(
                "{} stripes could not be moved off device {old}: bring missing devices back or add space, then `argosfs \
                 rebuild {}` goes on",
                (u64::from(progress.repaired.missing) + progress.lost).max(1),
                pool.state().label.name
            )));
        }
        Ok(progress)
    }

    /// Empties a device to which nothing new goes, and ends its membership; `false` when something is left on it.
    fn retire(&self, old: DeviceId, progress: &mut Progress, watch: Watch<'_>) -> Result<bool> {
        let (pool, devices) = self.whole()?;
        // What was placed on it before nothing new went there is to be found by what follows.
        devices.wait_for_writers();
        self.empty(old, progress, watch)?;
        // Shards that were never written for want of this device.
        let unwritten = |row: &StripeRow| row.placements.contains(&Placement::NONE);
        self.each_stripe(unwritten, None, progress, watch, |store, id| store.repair(id))?;
        self.mend_archives(Mend::Unwritten, progress)?;
        self.settle_intents()?;
        self.settle_repairs()?;
        if self.holds_shards(old)? || self.archives_on(old) {
            return Ok(false);
        }
        self.mend_metadata()?;
        if let Some(log) = &self.log
            && log.volume.root().replicas.iter().any(|replica| replica.device == old.0)
        {
            log.volume.retire(old)?;
        }
        let is_empty = self.transact(|tx, _| {
            let is_empty = tx.get::<table::Devices>(&old)?.is_none_or(|row| row.used_blocks == 0);
            if is_empty {
                tx.delete::<table::Devices>(&old)?;
            }
            Ok(is_empty)
        })?;
        if !is_empty {
            return Ok(false);
        }
        self.durable_point()?;
        lock(&devices.allocator).remove_device(old);
        self.faults.forget(Some(old));
        pool.remove_member(old)?;
        Ok(true)
    }

    /// Whether any stripe has a shard on the device.
    fn holds_shards(&self, device: DeviceId) -> Result<bool> {
        let mut after = None;
        loop {
            let on_it = |row: &StripeRow| row.placements.iter().any(|placement| placement.device == device);
            let (found, last) = self.stripes_with(after, 1, on_it)?;
            if !found.is_empty() || last.is_none() {
                return Ok(!found.is_empty());
            }
            after = last;
        }
    }

    /// Lets go of devices that were left out of the pool: until then nobody can open them to take them back.
    pub fn release_absent(&self) -> Result<()> {
        let (Some(pool), Some(log)) = (&self.pool, &self.log) else { return Ok(()) };
        let state = pool.state();
        let absent = |id: &DeviceId| state.member(*id).is_none_or(|member| member.device.is_none());
        log.volume.stats().replicas.into_iter().filter(absent).try_for_each(|id| log.volume.leave_out(id))
    }

    /// Takes back a device that was missing: brings its metadata up to date and lets it take part again. Its shards
    /// need nothing: stripes are never changed in place, and what they were is checked by every read.
    pub fn take_back(&self, device: Arc<dyn Device>) -> Result<DeviceId> {
        let (pool, devices) = self.whole()?;
        // What it may have lost while it failed is given up before anybody can read it.
        self.settle_repairs()?;
        let id = pool.attach(device)?;
        self.welcome(&pool, &devices, id)?;
        self.mend_metadata()?;
        Ok(id)
    }

    /// Brings every metadata replica up to date, finds new ones where some are lost, and lets members that came back
    /// take part again.
    pub fn mend_metadata(&self) -> Result<()> {
        let (pool, _) = self.whole()?;
        let Some(log) = &self.log else { return Ok(()) };
        log.mend(self.wanted_replicas(&pool), &self.meta)?;
        for member in pool.state().members.iter() {
            if member.device.is_some() && member.state == MemberState::Stale {
                pool.mark_active(member.id)?;
            }
        }
        Ok(())
    }

    fn wanted_replicas(&self, pool: &Pool) -> usize {
        (usize::from(pool.geometry().m) + 1).max(2)
    }

    pub(super) fn whole(&self) -> Result<(Arc<Pool>, Arc<Devices>)> {
        match (&self.pool, &self.devices) {
            (Some(pool), Some(devices)) => Ok((pool.clone(), devices.clone())),
            _ => Err(Error::Unsupported),
        }
    }

    /// Makes a device's space known.
    fn welcome(&self, pool: &Pool, devices: &Devices, id: DeviceId) -> Result<()> {
        let state = pool.state();
        let Some(member) = state.member(id) else { return Ok(()) };
        let row = match self.view(|view| view.get::<table::Devices>(&id))? {
            Some(row) => row,
            None => self.transact(|tx, _| {
                let row = device_row(tx, member)?;
                tx.put::<table::Devices>(&id, &row)?;
                Ok(row)
            })?,
        };
        let mut allocator = lock(&devices.allocator);
        if !allocator.has_device(id) {
            allocator.add_device(id, member.layout, row.used_blocks);
            if let Some(log) = &self.log {
                log.claim_named(&mut allocator, Some(id));
            }
            self.reserve_archived(pool, &mut allocator, id);
        }
        Ok(())
    }

    /// Runs `act` on every stripe behind `after` for which `wanted` holds.
    fn each_stripe(
        &self,
        wanted: impl Fn(&StripeRow) -> bool,
        mut after: Option<StripeId>,
        progress: &mut Progress,
        watch: Watch<'_>,
        act: impl Fn(&Store, StripeId) -> Result<Repaired>,
    ) -> Result<bool> {
        loop {
            let (stripes, last) = self.stripes_with(after, BATCH, &wanted)?;
            for id in stripes {
                match act(self, id) {
                    Ok(repaired) => {
                        progress.repaired.add(repaired);
                        self.clear_damage(id)?;
                    }
                    Err(Error::Corrupt(_)) => {
                        progress.lost += 1;
                        self.note_damage(id)?;
                    }
                    Err(other) => return Err(other),
                }
                progress.stripes += 1;
                progress.after = Some(id);
                if !watch(progress) {
                    return Ok(false);
                }
            }
            // What was given up must become durable before its blocks can serve the rest.
            if progress.repaired.rebuilt > 0 {
                self.durable_point()?;
            }
            if last.is_none() {
                return Ok(true);
            }
            after = last;
        }
    }
}
