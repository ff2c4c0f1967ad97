//! Opening a pool from any subset of its devices, in any order.

use std::sync::Arc;

use super::assembly::{self, Assembly, Candidate};
use super::label_io::{self, Scan, Unusable};
use super::{Member, Pool, PoolState, lock};
use crate::base::{Entropy, Error, Incarnation, Result, Uuid};
use crate::device::{Device, Engine, Op, Request};
use crate::format::label::MemberState;

/// How to open a pool.
#[derive(Clone, Copy, Default, Debug)]
pub struct OpenMode {
    /// Nothing is written, not even repairs.
    pub read_only: bool,
    /// The pool all devices have to belong to; when not given, they have to belong to one.
    pub pool: Option<Uuid>,
    /// Also when nobody who is here holds the current metadata: it is to be made again.
    pub without_metadata: bool,
}

impl Pool {
    /// Opens the pool the devices belong to. Devices without a usable label count as missing, as long as few enough are.
    ///
    /// Opened read-write, all label copies are written anew with a new incarnation, in a new epoch when a member is
    /// absent or back.
    ///
    /// # Errors
    /// [`Error::Unavailable`] says which devices are missing (too many, or all with current metadata), foreign, cloned,
    /// newer, cut short or split.
    pub fn open(
        devices: &[Arc<dyn Device>],
        options: &OpenMode,
        engine: Arc<dyn Engine>,
        entropy: Box<dyn Entropy>,
    ) -> Result<Pool> {
        let scans = label_io::scan(&*engine, devices);
        let mut rejected = Vec::new();
        let mut usable: Vec<(&Scan, Candidate)> = Vec::new();
        for scan in &scans {
            let name = scan.device.name();
            match &scan.found {
                Ok(label) => usable.push((scan, Candidate { name: name.to_owned(), label: label.clone() })),
                Err(unusable @ Unusable::Newer(_)) => return Err(Error::Unavailable(unusable.explain(name))),
                Err(unusable) => rejected.push(unusable.explain(name)),
            }
        }
        let (scans, candidates): (Vec<&Scan>, Vec<Candidate>) = usable.into_iter().unzip();
        let assembly = assembly::assemble(&candidates, options.pool).map_err(|error| match error {
            Error::Unavailable(why) if !rejected.is_empty() => {
                Error::Unavailable(format!("{why}; {}", rejected.join("; ")))
            }
            other => other,
        })?;
        if !options.read_only && !assembly.pool.writable() {
            return Err(Error::Unavailable(format!(
                "pool {} has features this argosfs can only read beside: open it read-only, or use a newer argosfs",
                assembly.pool.name
            )));
        }

        let changed = assembly.changed;
        let mut notes = rejected;
        notes.extend(assembly.notes.iter().cloned());
        for present in &assembly.present {
            let scan = scans[present.candidate];
            if scan.damaged > 0 {
                notes.push(format!("{} of 4 labels of {} were damaged", scan.damaged, scan.device.name()));
            }
        }
        let reason = epoch_reason(&assembly);
        let state = members(assembly, &scans);
        let pool = Pool::new(engine, entropy, state, options.read_only);
        *lock(&pool.notes) = notes;
        if !options.read_only {
            let incarnation = Incarnation(lock(&pool.entropy).next_u64());
            let mut writer = lock(&pool.writer);
            let mut next = pool.copy_state();
            next.label.settings.incarnation = incarnation;
            let mut reason = changed.then_some(reason);
            let mut refusal = Vec::new();
            // What was read may be what a killed process wrote and nobody flushed; what is written next relies on it.
            for (member, flushed) in flush_present(&*pool.engine, &mut next) {
                if let Err(error) = flushed {
                    let text = format!("{} was dropped: {error}", member.name());
                    member.device = None;
                    member.state = MemberState::Failed;
                    pool.note(text.clone());
                    refusal.push(text.clone());
                    reason = Some(text);
                }
            }
            // Once the others are in an epoch that whoever holds the metadata is not in, it is stale for good.
            if !options.without_metadata
                && let Err(why) = next.check_metadata()
            {
                refusal.push(why);
                return Err(Error::Unavailable(refusal.join("; ")));
            }
            pool.write_state(&mut writer, next, reason)?;
        }
        Ok(pool)
    }
}

/// Flushes every device that is there; which member's it is and what became of it.
fn flush_present<'s>(engine: &dyn Engine, state: &'s mut PoolState) -> Vec<(&'s mut Member, Result<()>)> {
    let present: Vec<&mut Member> = state.members.iter_mut().filter(|member| member.device.is_some()).collect();
    let devices: Vec<Arc<dyn Device>> = present.iter().filter_map(|member| member.device.clone()).collect();
    let mut batch: Vec<_> = devices.iter().map(|device| Request::new(&**device, Op::Flush)).collect();
    engine.run(&mut batch);
    let results: Vec<Result<()>> = batch.into_iter().map(|request| request.result).collect();
    present.into_iter().zip(results).collect()
}

/// The live members of what was assembled.
fn members(assembly: Assembly, scans: &[&Scan]) -> PoolState {
    let label = assembly.pool;
    let mut members: Vec<Member> =
        label.members.iter().filter(|entry| entry.state != MemberState::Removed).map(Member::of).collect();
    members.sort_by_key(|member| member.id);
    for member in &mut members {
        if let Some(present) = assembly.present.iter().find(|present| present.id == member.id) {
            let scan = scans[present.candidate];
            member.device = Some(scan.device.clone());
            member.epoch = present.epoch;
            member.first_pair = scan.first_pair;
        }
    }
    PoolState { label, members }
}

/// What changed, for the new epoch's reason.
fn epoch_reason(assembly: &Assembly) -> String {
    let of = |state: MemberState| {
        let ids = assembly.pool.members.iter().filter(|entry| entry.state == state).map(|entry| entry.id.to_string());
        ids.collect::<Vec<_>>().join(", ")
    };
    let mut parts = Vec::new();
    for (what, list) in
        [("missing", of(MemberState::Missing)), ("failed", of(MemberState::Failed)), ("back", of(MemberState::Stale))]
    {
        if !list.is_empty() {
            parts.push(format!("{what} {list}"));
        }
    }
    format!("opened with {}", parts.join(", "))
}
