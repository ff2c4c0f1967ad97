//! Which devices make up the pool, and what each of them is worth: decided from labels alone, without any I/O.
//!
//! Invariants:
//! - The epoch that counts (the head) descends from every other epoch seen, or every epoch beside it is proved never to
//!   have been acknowledged: an epoch is acknowledged only when all members taking part in it carry it, so one such
//!   member seen elsewhere is the proof. Otherwise the pool is split, and refused.
//! - A member is current when it carries the head, or when it takes part in the head and carries what it carried
//!   before: then the head was never acknowledged. Every other member is stale.
//! - How large a member is and what it gives out, its own label says: the table is made to agree, or no label written
//!   from it could be read on that member.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::fmt::Write as _;

use crate::base::{DeviceId, Error, Result, Uuid};
use crate::format::label::{Label, MemberEntry, MemberState, PoolLabel};

/// A device with a label that can be used.
pub struct Candidate {
    pub name: String,
    pub label: Label,
}

/// The pool as it can be opened.
#[derive(Debug)]
pub struct Assembly {
    /// The newest label of the head, its member states as found now.
    pub pool: PoolLabel,
    /// Whether a member state differs from what the labels say: a read-write open writes a new epoch.
    pub changed: bool,
    /// The members that are there, in order of their ids.
    pub present: Vec<Present>,
    /// What the user should know, a line each.
    pub notes: Vec<String>,
}

/// A member that is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Present {
    pub id: DeviceId,
    /// Its index among the candidates.
    pub candidate: usize,
    /// The epoch its label carries.
    pub epoch: Uuid,
}

/// Finds out what the candidates are. With `wanted`, all of them have to belong to that pool.
pub fn assemble(candidates: &[Candidate], wanted: Option<Uuid>) -> Result<Assembly> {
    let pool = one_pool(candidates, wanted)?;
    refuse_clones(candidates)?;
    let head = head(candidates, &pool)?;
    let label = candidates.iter().map(|candidate| &candidate.label.pool).filter(|label| label.epoch.id == head);
    let Some(label) = label.max_by_key(|label| label.sequence) else {
        return Err(Error::Unavailable(format!("pool {pool}: no label carries its newest epoch")));
    };

    let mut assembly = Assembly { pool: label.clone(), changed: false, present: Vec::new(), notes: Vec::new() };
    for (at, candidate) in candidates.iter().enumerate() {
        match label.members.iter().find(|entry| entry.uuid == candidate.label.device.uuid) {
            None => {
                assembly.notes.push(format!("{} is not a member of pool {pool} any more: left out", candidate.name))
            }
            Some(entry) if entry.state == MemberState::Removed => {
                assembly.notes.push(format!("{} was removed from pool {pool}: left out", candidate.name));
            }
            Some(entry) => {
                let epoch = candidate.label.pool.epoch.id;
                assembly.present.push(Present { id: entry.id, candidate: at, epoch });
            }
        }
    }
    assembly.present.sort_by_key(|present| present.id);

    for (entry, new) in label.members.iter().zip(&mut assembly.pool.members) {
        let present = assembly.present.iter().find(|present| present.id == entry.id);
        let state = match present {
            _ if entry.state == MemberState::Removed => continue,
            Some(present) if is_current(label, entry, present.epoch) => entry.state,
            Some(_) => MemberState::Stale,
            None if entry.state == MemberState::Failed => MemberState::Failed,
            None => MemberState::Missing,
        };
        match (present, state) {
            (None, _) => assembly.notes.push(format!("device {} is missing", describe(entry))),
            (Some(present), MemberState::Stale) => assembly.notes.push(format!(
                "{} (device {}) was absent and is brought up to date",
                candidates.get(present.candidate).map_or("a device", |candidate| &candidate.name),
                entry.id
            )),
            _ => {}
        }
        // Older builds say it by the state alone.
        if entry.state == MemberState::Replacing {
            new.weight_milli = 0;
        }
        if entry.state != state {
            assembly.changed = true;
            new.state = state;
        }
        if let Some(own) = present.and_then(|present| candidates.get(present.candidate)) {
            (new.size, new.layout) = (own.label.device.size, own.label.device.layout);
        }
    }
    refuse_too_few(&assembly)?;
    // Where the metadata lies was checked against the table as it was.
    if let Err(why) = assembly.pool.meta.check(&assembly.pool.members) {
        return Err(Error::Unavailable(format!("pool {pool}: its labels contradict each other: {why}")));
    }
    Ok(assembly)
}

/// How the user knows a member that is not there.
pub(super) fn describe(entry: &MemberEntry) -> String {
    let mut text = format!("{} ({})", entry.id, entry.uuid);
    if !entry.path.is_empty() {
        // The path comes from a label, that is, from anybody.
        let path: String = entry.path.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let _ = write!(text, ", last seen at {path}");
    }
    text
}

/// The name of the pool all candidates belong to.
fn one_pool(candidates: &[Candidate], wanted: Option<Uuid>) -> Result<String> {
    let Some(first) = candidates.first() else {
        return Err(Error::Unavailable("none of the devices belongs to an ArgosFS pool".to_owned()));
    };
    let pool = wanted.unwrap_or(first.label.pool.uuid);
    let of = |candidate: &&Candidate| candidate.label.pool.uuid == pool;
    let Some(own) = candidates.iter().find(of) else {
        return Err(Error::Unavailable(format!("none of the devices belongs to pool {pool}")));
    };
    let foreign: Vec<String> = candidates
        .iter()
        .filter(|candidate| !of(candidate))
        .map(|c| format!("{} belongs to pool {} ({})", c.name, c.label.pool.name, c.label.pool.uuid))
        .collect();
    if foreign.is_empty() {
        return Ok(own.label.pool.name.clone());
    }
    let name = &own.label.pool.name;
    Err(Error::Unavailable(format!("not all devices belong to pool {name} ({pool}): {}", foreign.join("; "))))
}

/// Fails when two devices claim to be the same member.
fn refuse_clones(candidates: &[Candidate]) -> Result<()> {
    for (at, candidate) in candidates.iter().enumerate() {
        let id = candidate.label.device.uuid;
        if let Some(twin) = candidates.iter().take(at).find(|twin| twin.label.device.uuid == id) {
            return Err(Error::Unavailable(format!(
                "{} and {} both say they are device {id} of pool {}: one is a copy of the other; leave the copy out",
                twin.name, candidate.name, candidate.label.pool.name
            )));
        }
    }
    Ok(())
}

/// The epoch that counts.
fn head(candidates: &[Candidate], pool: &str) -> Result<Uuid> {
    let mut tips: Vec<&PoolLabel> = Vec::new();
    for label in candidates.iter().map(|candidate| &candidate.label.pool) {
        let superseded = |other: &Candidate| precedes(label, &other.label.pool);
        if tips.iter().all(|tip| tip.epoch.id != label.epoch.id) && !candidates.iter().any(superseded) {
            tips.push(label);
        }
    }
    let standing: Vec<&&PoolLabel> = tips.iter().filter(|tip| !disproved(tip, candidates)).collect();
    match standing[..] {
        [tip] => Ok(tip.epoch.id),
        // Nothing was acknowledged in any of them: the one that leaves the fewest members behind will do.
        [] => {
            let current = |tip: &PoolLabel| {
                let of = |c: &&Candidate| {
                    let entry = tip.members.iter().find(|entry| entry.uuid == c.label.device.uuid);
                    entry.is_some_and(|entry| is_current(tip, entry, c.label.pool.epoch.id))
                };
                candidates.iter().filter(of).count()
            };
            let best = tips.iter().max_by_key(|tip| (current(tip), tip.epoch.number, tip.epoch.id));
            best.map(|tip| tip.epoch.id)
                .ok_or_else(|| Error::Unavailable(format!("pool {pool}: its labels contradict each other")))
        }
        _ => {
            let sides: Vec<String> = standing
                .iter()
                .map(|tip| {
                    let names = candidates.iter().filter(|c| c.label.pool.epoch.id == tip.epoch.id);
                    let names: Vec<&str> = names.map(|c| c.name.as_str()).collect();
                    let reason: String = tip.epoch.reason.chars().filter(|c| !c.is_control()).collect();
                    format!("[{}] (epoch {}: {reason})", names.join(", "), tip.epoch.number)
                })
                .collect();
            Err(Error::Unavailable(format!(
                "pool {pool} is split: {} were each written without the other. Open one side alone; the devices of \
                 the other can be given back to it as fresh ones, which loses what was written there",
                sides.join(" and ")
            )))
        }
    }
}

/// Whether the epoch of `earlier` is known to have come before that of `later`.
fn precedes(earlier: &PoolLabel, later: &PoolLabel) -> bool {
    let id = earlier.epoch.id;
    // The member table reaches further back than the list of ancestors, for members long absent.
    later.epoch.id != id
        && (later.epoch.descends_from(id)
            || earlier.epoch.number < later.epoch.number && later.members.iter().any(|entry| entry.last_epoch == id))
}

/// Whether the tip was never acknowledged: somebody who should carry it does not.
fn disproved(tip: &PoolLabel, candidates: &[Candidate]) -> bool {
    candidates.iter().any(|candidate| {
        let entry = tip.members.iter().find(|entry| entry.uuid == candidate.label.device.uuid);
        let label = &candidate.label.pool;
        entry.is_some_and(|entry| entry.state.takes_part())
            && label.epoch.id != tip.epoch.id
            && !label.epoch.descends_from(tip.epoch.id)
    })
}

/// Whether a member whose own label carries `epoch` has everything that was acknowledged up to the head.
fn is_current(head: &PoolLabel, entry: &MemberEntry, epoch: Uuid) -> bool {
    entry.state.takes_part() && (epoch == head.epoch.id || epoch == entry.last_epoch)
}

/// Fails when more members are missing than the geometry allows.
fn refuse_too_few(assembly: &Assembly) -> Result<()> {
    let pool = &assembly.pool;
    let there = |entry: &&MemberEntry| assembly.present.iter().any(|present| present.id == entry.id);
    let members = || pool.members.iter().filter(|entry| entry.state != MemberState::Removed);
    let absent: Vec<String> = members().filter(|entry| !there(entry)).map(describe).collect();
    let m = usize::from(pool.settings.geometry.m);
    if absent.len() <= m && !assembly.present.is_empty() {
        return Ok(());
    }
    Err(Error::Unavailable(format!(
        "pool {}: {} of {} devices are missing and at most {m} may be; missing: {}",
        pool.name,
        absent.len(),
        members().count(),
        absent.join("; ")
    )))
}
