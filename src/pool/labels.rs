//! Changes of the label, written to all present members.

use std::sync::{Arc, MutexGuard, PoisonError};

use super::label_io::{self, LabelWrite};
use super::{Pool, PoolState, lock};
use crate::base::{DeviceId, Error, Result, Uuid};
use crate::format::label::{DeviceIdent, Label, MemberState, PoolLabel, label_offsets};

/// Longest path hint kept, in bytes; those of all members have to fit the label.
const LONGEST_PATH: usize = 200;

impl Pool {
    /// Changes the label on all present members; durable when this returns. The member table and the epoch are not the
    /// closure's to change.
    ///
    /// A member that fails the write is dropped in a new epoch, which [`Pool::state`] shows afterwards.
    ///
    /// # Errors
    /// [`Error::Poisoned`] when too few members are left, or none with current metadata: nothing is written any more.
    /// [`Error::Unavailable`] when the label has no room for the change: nothing happened. Unless poisoned, what the pool
    /// remembers is the old label, and whatever the change describes is not to be relied on.
    pub fn update_labels(&self, change: impl FnOnce(&mut PoolLabel)) -> Result<()> {
        let mut writer = lock(&self.writer);
        self.check_writable(&writer)?;
        let mut next = self.copy_state();
        change(&mut next.label);
        self.write_state(&mut writer, next, None)
    }

    /// Those of `ids` that are present and whose label copies are not all as they were written: overwritten, or not to
    /// be read.
    pub fn damaged_labels(&self, ids: &[DeviceId]) -> Vec<DeviceId> {
        let damaged = self.scan_labels(ids);
        if damaged.is_empty() {
            return damaged;
        }
        // They may just have been written: once more, while nobody writes.
        let _writer = lock(&self.writer);
        self.scan_labels(&damaged)
    }

    fn scan_labels(&self, ids: &[DeviceId]) -> Vec<DeviceId> {
        let state = self.state();
        let present: Vec<_> = state.present().filter(|member| ids.contains(&member.id)).collect();
        let devices: Vec<_> = present.iter().filter_map(|member| member.device.clone()).collect();
        let scans = label_io::scan(&*self.engine, &devices);
        let whole = |scan: &label_io::Scan| scan.damaged == 0 && scan.found.is_ok();
        present.iter().zip(scans).filter(|(_, scan)| !whole(scan)).map(|(member, _)| member.id).collect()
    }

    /// A new epoch with the members as they are, for reasons of the caller.
    pub fn new_epoch(&self, reason: &str) -> Result<()> {
        self.change_members(reason, |_| Ok(()))
    }

    /// Changes members and writes a new epoch.
    pub(super) fn change_members(&self, reason: &str, change: impl FnOnce(&mut PoolState) -> Result<()>) -> Result<()> {
        let mut writer = lock(&self.writer);
        self.check_writable(&writer)?;
        let mut next = self.copy_state();
        change(&mut next)?;
        self.write_state(&mut writer, next, Some(reason.to_owned()))
    }

    pub(super) fn copy_state(&self) -> PoolState {
        let state = self.state();
        PoolState { label: state.label.clone(), members: state.members.clone() }
    }

    /// Writes `next` to its present members and makes it the pool's state. With a reason, it is a new epoch. One that nobody
    /// could open is not written: the pool is poisoned instead.
    pub(super) fn write_state(
        &self,
        writer: &mut MutexGuard<'_, Option<String>>,
        mut next: PoolState,
        mut new_epoch: Option<String>,
    ) -> Result<()> {
        // A pool whose metadata is being made, or made again, has none to lose.
        let has_metadata = self.state().check_metadata().is_ok();
        let may_be_written = |next: &PoolState| {
            enough_members(next)?;
            if has_metadata { next.check_metadata() } else { Ok(()) }
        };
        if let Err(why) = may_be_written(&next) {
            return Err(self.poison(writer, why));
        }
        let mut written = false;
        loop {
            let reason = new_epoch.take();
            if let Some(reason) = &reason {
                next.label.epoch = next.label.epoch.child(self.random_uuid(), reason);
            }
            next.label.sequence += 1;
            refresh_table(&mut next);
            let (owners, writes) = match encode(&next) {
                Ok(encoded) => encoded,
                // Some labels may carry this sequence number already: it must not be used for anything else.
                Err(error) if written => return Err(self.poison(writer, error.to_string())),
                Err(error) => return Err(error),
            };
            written = true;
            for (owner, answer) in self.write_new_first(&next, owners, writes) {
                let member = &mut next.members[owner];
                match answer {
                    Ok(()) => {
                        member.epoch = next.label.epoch.id;
                        member.first_pair ^= 1;
                    }
                    Err(error) => {
                        let text = format!("{} was dropped: {error}", member.name());
                        member.device = None;
                        member.state = MemberState::Failed;
                        self.note(text.clone());
                        new_epoch = Some(text);
                    }
                }
            }
            if new_epoch.is_some() {
                if let Err(why) = may_be_written(&next) {
                    return Err(self.poison(writer, why));
                }
            } else if reason.is_none() {
                break;
            }
            // After a new epoch the labels are written once more, so that they say who carries it.
        }
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(())
    }

    /// Writes labels; first those of devices that have none yet: before the others name a new member, it says itself
    /// that it is one. Otherwise a crash in between would make it a missing one.
    fn write_new_first(
        &self,
        next: &PoolState,
        owners: Vec<usize>,
        writes: Vec<LabelWrite>,
    ) -> Vec<(usize, Result<()>)> {
        let is_new = |(owner, _): &(usize, LabelWrite)| next.members[*owner].epoch == Uuid::NIL;
        let (new, known): (Vec<_>, Vec<_>) = owners.into_iter().zip(writes).partition(is_new);
        let mut answers = Vec::new();
        for (owners, writes) in [new, known].map(|part| part.into_iter().unzip::<usize, LabelWrite, Vec<_>, Vec<_>>()) {
            if !writes.is_empty() {
                answers.extend(owners.into_iter().zip(label_io::write(&*self.engine, &writes)));
            }
        }
        answers
    }

    fn poison(&self, writer: &mut MutexGuard<'_, Option<String>>, why: String) -> Error {
        self.note(why.clone());
        **writer = Some(why.clone());
        Error::Poisoned(why)
    }
}

/// Whether so few members are absent that the pool may be written.
fn enough_members(state: &PoolState) -> Result<(), String> {
    if state.can_lose() >= 0 && state.present().next().is_some() {
        return Ok(());
    }
    let absent: Vec<String> =
        state.members.iter().filter(|member| member.device.is_none()).map(|member| member.id.to_string()).collect();
    let m = state.label.settings.geometry.m;
    Err(format!("{} devices are missing or failed ({}), at most {m} may be", absent.len(), absent.join(", ")))
}

/// Brings the member table up to date with the members.
fn refresh_table(state: &mut PoolState) {
    for member in &state.members {
        if let Some(entry) = state.label.members.iter_mut().find(|entry| entry.id == member.id) {
            entry.state = member.state;
            entry.last_epoch = member.epoch;
            entry.weight_milli = member.weight_milli;
            if let Some(device) = &member.device {
                // A hint; without it the device is still found by its label.
                entry.path = Some(device.name()).filter(|path| path.len() <= LONGEST_PATH).unwrap_or("").to_owned();
            }
        }
    }
}

/// The label of every present member, with its index.
fn encode(state: &PoolState) -> Result<(Vec<usize>, Vec<LabelWrite>)> {
    let mut owners = Vec::new();
    let mut writes = Vec::new();
    for (at, member) in state.members.iter().enumerate() {
        let Some(device) = &member.device else { continue };
        let offsets = label_offsets(member.size)
            .ok_or_else(|| Error::Unavailable(format!("{} is too small for its labels", member.name())))?;
        let ident = DeviceIdent { uuid: member.uuid, id: member.id, size: member.size, layout: member.layout };
        let slot = Label { device: ident, pool: state.label.clone() }.encode()?;
        owners.push(at);
        writes.push(LabelWrite { device: device.clone(), slot, offsets, first_pair: member.first_pair });
    }
    Ok((owners, writes))
}
