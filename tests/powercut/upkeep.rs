//! Maintenance, devices that fail and devices that come back.

use argosfs::base::{DeviceId, Error, Result};
use argosfs::device::sim::Fault;
use argosfs::store::Store;

use crate::campaign::{Verdict, trace};
use crate::content::{Run, Weak};

/// Members a pool has at most here.
const MEMBERS: usize = 12;

impl Run {
    pub fn durable_point(&mut self) -> Verdict {
        self.maintain("durable point", |store| store.durable_point().map(|()| true))
    }

    /// Work that changes no file; when its answer is true, everything is durable afterwards.
    pub fn maintain(&mut self, what: &str, act: impl FnOnce(&Store) -> Result<bool>) -> Verdict {
        trace(|| format!("{}: {what}", self.world.record()));
        match act(self.store()) {
            Ok(durable) => {
                if durable {
                    trace(|| format!("{}: all durable", self.world.record()));
                    self.history.durable_from(self.world.record());
                }
                Ok(())
            }
            Err(Error::NoSpace) => {
                self.notes.push(format!("{what}: no space"));
                Ok(())
            }
            Err(error) => Err(format!("{what}: {error}")),
        }
    }

    pub fn archive(&mut self) -> Verdict {
        self.maintain("archive", |store| {
            let pool = store.pool().map(|pool| pool.uuid()).unwrap_or_default();
            argosfs::check::archive(store, pool, 0, &|| true).map(|_| true)
        })
    }

    pub fn evacuate(&mut self) -> Verdict {
        let health = self.health();
        let members: Vec<usize> = health.members.iter().copied().collect();
        let index = members[self.prng.below(members.len() as u64) as usize];
        let Some(id) = self.mounted().member(index) else { return Ok(()) };
        self.maintain(&format!("evacuate sim{index}"), |store| store.evacuate(id, &mut |_| true).map(|_| true))
    }

    pub fn replace(&mut self) -> Verdict {
        let health = self.health();
        let blank = health.weak.iter().find(|(_, weak)| **weak == Weak::Blank).map(|(index, _)| *index);
        let members: Vec<usize> = health.members.iter().copied().collect();
        let index = blank.unwrap_or_else(|| members[self.prng.below(members.len() as u64) as usize]);
        self.replace_device(index)
    }

    /// Puts a new device in the place of member `index`.
    fn replace_device(&mut self, index: usize) -> Verdict {
        let mut health = self.health();
        let Some(id) = self.member_id(index) else {
            // It was replaced just before the power went.
            health.members.remove(&index);
            health.weak.remove(&index);
            self.set_health(self.world.record(), health);
            return Ok(());
        };
        if health.members.len() >= MEMBERS {
            return Ok(());
        }
        let new = self.world.add_device(self.shape.size);
        health.members.insert(new);
        self.set_health(self.world.record(), health.clone());
        let device = self.mounted().process.device(&self.world, new);
        self.maintain(&format!("replace sim{index} by sim{new}"), |store| {
            store.replace(id, device, false, &mut |_| true).map(|_| true)
        })?;
        if self.mounted().member(new).is_some() && self.member_id(index).is_none() {
            health.members.remove(&index);
            health.weak.remove(&index);
            self.set_health(self.world.record(), health);
        }
        Ok(())
    }

    /// The id of a member, present or not, by the name it had when it was last there.
    fn member_id(&self, index: usize) -> Option<DeviceId> {
        let state = self.store().pool()?.state();
        let name = format!("sim{index}");
        let known = state.label.members.iter().find(|entry| entry.path == name && state.member(entry.id).is_some());
        known.map(|entry| entry.id)
    }

    /// How many more devices may be lost now.
    fn spare(&self) -> usize {
        usize::from(self.shape.m).saturating_sub(self.health().weak.len())
    }

    /// A device fails, or its bytes rot.
    pub fn weaken(&mut self) -> Verdict {
        let mut health = self.health();
        let strong: Vec<usize> =
            health.members.iter().copied().filter(|index| !health.weak.contains_key(index)).collect();
        if self.spare() == 0 || strong.is_empty() {
            return Ok(());
        }
        let index = strong[self.prng.below(strong.len() as u64) as usize];
        if self.mounted().member(index).is_none() {
            return Ok(());
        }
        let gone = self.prng.chance(1, 2);
        health.weak.insert(index, if gone { Weak::Absent } else { Weak::Suspect });
        trace(|| format!("{}: sim{index} is weak: {:?}", self.world.record(), health.weak));
        self.set_health(self.world.record(), health);
        if gone {
            self.world.fault(index, Fault::Gone);
        } else {
            for _ in 0..1 + self.prng.below(20) {
                self.world.rot_block(index);
            }
        }
        Ok(())
    }

    /// Brings weak devices back: plugs in what is away, replaces what is blank, then mends everything.
    pub fn heal(&mut self) -> Verdict {
        let health = self.health();
        let of = |kind| health.weak.iter().filter(move |(_, weak)| **weak == kind).map(|(index, _)| *index);
        for index in of(Weak::Absent) {
            self.world.heal(index);
            if self.member_id(index).is_none() {
                // It was just being added when the power went, or had been replaced.
                let mut health = self.health();
                health.members.remove(&index);
                health.weak.remove(&index);
                self.set_health(self.world.record(), health);
                continue;
            }
            let device = self.mounted().process.device(&self.world, index);
            // It may never have been noticed to be away.
            if self.mounted().member(index).is_none() {
                self.maintain(&format!("take back sim{index}"), |store| store.take_back(device).map(|_| false))?;
            }
            let mut health = self.health();
            health.weak.insert(index, Weak::Suspect);
            self.set_health(self.world.record(), health);
        }
        for index in of(Weak::Blank) {
            self.replace_device(index)?;
        }
        let mut mended = false;
        let mut done = String::new();
        self.maintain("mend", |store| {
            store.mend_metadata()?;
            let scrubbed = store.scrub(&mut |_| true)?;
            let rebuilt = store.rebuild(&mut |_| true)?;
            mended = [scrubbed, rebuilt].iter().all(|progress| progress.lost == 0 && progress.repaired.missing == 0);
            done = format!("scrubbed {scrubbed:?}, rebuilt {rebuilt:?}");
            if scrubbed.lost + rebuilt.lost > 0 {
                return Err(Error::corrupt("stripes are lost"));
            }
            Ok(true)
        })?;
        self.notes.push(done);
        if mended {
            let mut health = self.health();
            health.weak.retain(|_, weak| *weak != Weak::Suspect);
            self.set_health(self.world.record(), health);
        }
        Ok(())
    }

    /// Heals every device.
    pub fn heal_all(&mut self) -> Verdict {
        self.heal()?;
        let health = self.health();
        // With so many members none is replaced any more.
        if health.weak.is_empty() || health.members.len() >= MEMBERS {
            Ok(())
        } else {
            Err(format!("devices stay weak: {health:?}, {:?}", self.notes))
        }
    }
}
