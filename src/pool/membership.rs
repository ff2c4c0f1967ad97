//! Members that fail, come back, are added, replaced and removed.

use std::sync::Arc;

use super::label_io;
use super::{Member, Pool, PoolState, format, lock};
use crate::base::{DeviceId, Error, Result, Uuid};
use crate::device::Device;
use crate::format::label::{MAX_MEMBERS, MemberState};

impl Pool {
    /// Drops members that failed: they are not used any more, and stale should they come back. On return all others
    /// know. Members already dropped are passed over.
    ///
    /// # Errors
    /// [`Error::Poisoned`] when too few members are left, or none with current metadata.
    pub fn drop_members(&self, ids: &[DeviceId], why: &str) -> Result<()> {
        let mut writer = lock(&self.writer);
        self.check_writable(&writer)?;
        let mut next = self.copy_state();
        let mut names = Vec::new();
        for member in next.members.iter_mut().filter(|member| ids.contains(&member.id)) {
            if member.device.is_some() {
                names.push(member.name());
                member.device = None;
                member.state = MemberState::Failed;
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        let text = format!("{} dropped: {why}", names.join(", "));
        self.note(text.clone());
        self.write_state(&mut writer, next, Some(text))
    }

    /// Declares a stale member up to date again, after its metadata was resynchronised.
    pub fn mark_active(&self, id: DeviceId) -> Result<()> {
        self.change_members(&format!("device {id} is up to date"), |next| {
            let member = present_member(next, id)?;
            member.state = if member.is_replaced() { MemberState::Replacing } else { MemberState::Active };
            Ok(())
        })
    }

    /// Declares that a member is being emptied: nothing new goes there.
    pub fn mark_replacing(&self, id: DeviceId) -> Result<()> {
        self.change_members(&format!("device {id} is being replaced"), |next| {
            present_member(next, id)?.replace();
            Ok(())
        })
    }

    /// Takes back a member that was missing or had failed; it is stale. Its id is the answer.
    pub fn attach(&self, device: Arc<dyn Device>) -> Result<DeviceId> {
        let scan = label_io::scan(&*self.engine, std::slice::from_ref(&device)).remove(0);
        let label = scan.found.map_err(|unusable| Error::Unavailable(unusable.explain(device.name())))?;
        let (id, uuid) = (label.device.id, label.device.uuid);
        self.change_members(&format!("{} is back", device.name()), |next| {
            let takes_part =
                |uuid| label.pool.members.iter().any(|entry| entry.uuid == uuid && entry.state.takes_part());
            let known = next.label.epoch.id == label.pool.epoch.id
                || next.label.epoch.descends_from(label.pool.epoch.id)
                || next.label.members.iter().any(|entry| entry.last_epoch == label.pool.epoch.id)
                // Somebody who is here should carry it and does not: it was never acknowledged.
                || next.members.iter().any(|member| member.device.is_some() && takes_part(member.uuid));
            let name = &next.label.name;
            if label.pool.uuid != next.label.uuid {
                let text = format!("{} belongs to pool {}, not to {name}", device.name(), label.pool.name);
                return Err(Error::Unavailable(text));
            }
            if !known {
                let text = format!("{} was written without the other devices of pool {name}: a split", device.name());
                return Err(Error::Unavailable(text));
            }
            let Some(member) = next.members.iter_mut().find(|member| member.id == id && member.uuid == uuid) else {
                return Err(Error::Unavailable(format!("{} is not a member of pool {name} any more", device.name())));
            };
            if member.device.is_some() {
                return Err(Error::Unavailable(format!("{} is there already as {}", device.name(), member.name())));
            }
            member.device = Some(device.clone());
            member.state = MemberState::Stale;
            member.epoch = label.pool.epoch.id;
            member.first_pair = scan.first_pair;
            member.size = label.device.size;
            member.layout = label.device.layout;
            Ok(())
        })?;
        Ok(id)
    }

    /// Adds a device, whatever it held before when `force` is given; its new id is the answer.
    pub fn add_member(&self, device: Arc<dyn Device>, force: bool) -> Result<DeviceId> {
        self.add(device, force, None)
    }

    /// Adds a device in the place of `old`, here or not: from now on nothing new goes to `old`, which stays a member until
    /// [`Pool::remove_member`], and should it come back meanwhile, gives what it has and takes nothing.
    pub fn replace_member(&self, old: DeviceId, device: Arc<dyn Device>, force: bool) -> Result<DeviceId> {
        self.add(device, force, Some(old))
    }

    fn add(&self, device: Arc<dyn Device>, force: bool, old: Option<DeviceId>) -> Result<DeviceId> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        if let Some(twin) = self.state().present().find(|member| member.name() == device.name()) {
            return Err(Error::Unavailable(format!("{} is in the pool already as device {}", device.name(), twin.id)));
        }
        let prepared = format::prepare(&*self.engine, std::slice::from_ref(&device), force)?;
        let Some(layout) = prepared.into_iter().next() else { return Err(Error::Invalid("no device")) };
        let uuid = self.random_uuid();
        let mut added = DeviceId::default();
        let reason = match old {
            None => format!("{} added", device.name()),
            Some(old) => format!("{} added in the place of device {old}", device.name()),
        };
        self.change_members(&reason, |next| {
            added = next_id(next)?;
            if let Some(old) = old {
                let Some(old) = next.members.iter_mut().find(|member| member.id == old) else {
                    return Err(Error::Usage(format!("device {old} is not in pool {}", next.label.name)));
                };
                old.replace();
            }
            let failure_domain = format::domain_beside(next, &device, added, old);
            let member = Member {
                id: added,
                uuid,
                state: MemberState::Active,
                device: Some(device.clone()),
                class: 0,
                tier: 0,
                weight_milli: 1000,
                failure_domain,
                size: device.size(),
                layout,
                epoch: Uuid::NIL,
                first_pair: 0,
            };
            next.label.members.push(format::entry(&member));
            next.members.push(member);
            forget_oldest_removed(next);
            Ok(())
        })?;
        Ok(added)
    }

    /// Ends the membership of a device on which nothing lies any more. When it is present its labels are wiped.
    pub fn remove_member(&self, id: DeviceId) -> Result<()> {
        let mut device = None;
        self.change_members(&format!("device {id} removed"), |next| {
            let Some(at) = next.members.iter().position(|member| member.id == id) else {
                return Err(Error::Usage(format!("device {id} is not in pool {}", next.label.name)));
            };
            if next.members.len() == 1 {
                return Err(Error::Usage("the last device of a pool cannot be removed".to_owned()));
            }
            let member = next.members.remove(at);
            if let Some(entry) = next.label.member_mut(id) {
                entry.state = MemberState::Removed;
                entry.last_epoch = member.epoch;
            }
            device = member.device;
            Ok(())
        })?;
        if let Some(device) = device
            && let Err(error) = format::wipe(&*self.engine, std::slice::from_ref(&device))
        {
            self.note(format!("the labels of {} could not be wiped: {error}", device.name()));
        }
        Ok(())
    }
}

fn present_member(state: &mut PoolState, id: DeviceId) -> Result<&mut Member> {
    let member = state.members.iter_mut().find(|member| member.id == id && member.device.is_some());
    member.ok_or_else(|| Error::Unavailable(format!("device {id} is not there")))
}

/// An id that no entry of the table has ever had, as far as the table remembers.
fn next_id(state: &PoolState) -> Result<DeviceId> {
    let next = state.label.members.iter().map(|entry| entry.id.0 + 1).max().unwrap_or(0);
    let live = state.label.members.iter().filter(|entry| entry.state != MemberState::Removed).count();
    if live >= format::MOST_DEVICES {
        return Err(Error::Usage(format!("a pool has at most {} devices", format::MOST_DEVICES)));
    }
    if next == u16::MAX {
        return Err(Error::Unavailable("the pool has no device number left".to_owned()));
    }
    Ok(DeviceId(next))
}

/// Keeps the table bounded. The entry with the highest id stays, so that ids are not given out twice.
fn forget_oldest_removed(state: &mut PoolState) {
    let entries = &mut state.label.members;
    while entries.len() > MAX_MEMBERS / 2 {
        let Some(at) = entries.iter().position(|entry| entry.state == MemberState::Removed) else { return };
        entries.remove(at);
    }
}
