//! How a pool fares.
//!
//! Invariant: `can_lose` never promises more than both the data and the metadata can bear.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serde::Serialize;

use super::protocol::{Outcome, Progress};
use super::scrub::ScrubStatus;
use crate::base::clock::Timestamp;
use crate::base::{Bytes, DeviceId, Result, StripeId};
use crate::device::Device;
use crate::format::intent::Intent;
use crate::format::label::MemberState;
use crate::format::rows::{Placement, StripeRow};
use crate::format::table::{Devices, Intents, Stripes};
use crate::meta::{Reader, Visit};
use crate::pool::{Member, Pool, PoolState};
use crate::store::{DeviceFaults, Store};

/// In one word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Health {
    Healthy,
    Degraded,
    Faulted,
}

impl Health {
    /// As it is printed.
    pub fn word(self) -> &'static str {
        match self {
            Health::Healthy => "HEALTHY",
            Health::Degraded => "DEGRADED",
            Health::Faulted => "FAULTED",
        }
    }
}

/// One member.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DeviceStatus {
    pub id: u16,
    pub uuid: String,
    pub path: String,
    pub state: &'static str,
    pub present: bool,
    pub size: u64,
    pub used: u64,
    pub metadata: bool,
    /// Shards it did not return, and shards with a wrong checksum, since it was last found whole.
    pub read_errors: u64,
    pub checksum_errors: u64,
    pub failure_domain: u64,
}

/// Where it is mounted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MountStatus {
    pub mountpoint: String,
    pub read_only: bool,
    pub writeback: bool,
    pub pid: u32,
}

/// Space for file content at the pool's redundancy, in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SpaceStatus {
    pub total: u64,
    pub free: u64,
    pub available: u64,
}

/// The metadata volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MetadataStatus {
    pub replicas: Vec<u16>,
    pub joining: Vec<u16>,
    pub bytes: u64,
    pub log_used: u64,
    pub log_capacity: u64,
    pub repaired_blocks: u64,
    pub committed: u64,
    pub durable: u64,
}

/// The newest metadata archive.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ArchiveStatus {
    pub transaction: u64,
    /// As stored.
    pub bytes: u64,
    /// Seconds since 1970.
    pub created: i64,
}

/// Everything `status` tells.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Status {
    pub name: String,
    pub uuid: String,
    pub health: Health,
    pub can_lose: u32,
    pub k: u8,
    pub m: u8,
    pub shard_bytes: u64,
    pub mounted: Option<MountStatus>,
    pub devices: Vec<DeviceStatus>,
    pub space: SpaceStatus,
    pub metadata: Option<MetadataStatus>,
    pub archive: Option<ArchiveStatus>,
    /// The last scrub, or the one going on.
    pub scrub: Option<ScrubStatus>,
    pub work: Vec<Progress>,
    /// What is wrong, a line each, with what to do about it.
    pub problems: Vec<String>,
}

/// Intents to rebuild that are looked at one by one.
const INTENTS_MAX: usize = 20_000;

impl Status {
    /// Looks at an open pool.
    pub fn of(
        pool: &Arc<Pool>,
        store: &Store,
        mounted: Option<MountStatus>,
        work: Vec<Progress>,
        scrub: Option<ScrubStatus>,
    ) -> Result<Status> {
        let state = pool.state();
        let label = &state.label;
        let mut problems = Vec::new();
        for member in &state.members {
            problems.extend(problem(label.name.as_str(), &state, member));
        }
        let suspects = suspects(pool, store, &state, &mut problems);
        let (damaged, missing) = damaged_stripes(store, &state)?;
        if damaged > 0 {
            problems.push(format!("{damaged} stripes lack shards: `argosfs rebuild {}` restores them", label.name));
        }
        let lost = store.damaged_stripes();
        if lost > 0 {
            problems.push(format!(
                "{lost} stripes are damaged beyond repair: `argosfs damage {}` names the files, and what can be done",
                label.name
            ));
        }
        let poisoned = pool.poisoned().or_else(|| store.meta().poisoned());
        if let Some(why) = &poisoned {
            problems.push(format!("switched to read-only: {why}; unmount, check the devices, and mount again"));
        }
        let stats = store.volume_stats();
        let bears = |weak: usize| i64::from(label.settings.geometry.m) - weak.max(missing) as i64;
        let absent = |member: &&Member| !member.is_current();
        let data_bears = bears(state.members.iter().filter(absent).count());
        let metadata_bears = stats.as_ref().map_or(data_bears, |stats| {
            let wanted = (usize::from(label.settings.geometry.m) + 1).min(state.members.len());
            if stats.replicas.len() < wanted {
                problems.push(format!("the metadata has {} of {wanted} replicas", stats.replicas.len()));
            }
            stats.replicas.len() as i64 - 1
        });
        let health = match () {
            () if data_bears.min(metadata_bears) < 0 || poisoned.is_some() => Health::Faulted,
            () if !problems.is_empty() => Health::Degraded,
            () => Health::Healthy,
        };
        // Nobody knows how much of a suspect is bad: what it holds may not be there any more.
        let weak = |member: &&Member| !member.is_current() || suspects.contains(&member.id);
        let weak_replicas = stats.iter().flat_map(|stats| &stats.replicas).filter(|id| suspects.contains(id)).count();
        let can_lose = bears(state.members.iter().filter(weak).count()).min(metadata_bears - weak_replicas as i64);
        let space = store.space();
        let replicas = stats.as_ref().map(|stats| stats.replicas.clone()).unwrap_or_default();
        let devices = state.members.iter().map(|member| device(store, member, label, &replicas));
        let ids = |list: &[DeviceId]| list.iter().map(|id| id.0).collect::<Vec<_>>();
        Ok(Status {
            name: label.name.clone(),
            uuid: label.uuid.to_string(),
            health,
            can_lose: u32::try_from(can_lose).unwrap_or(0),
            k: label.settings.geometry.k,
            m: label.settings.geometry.m,
            shard_bytes: u64::from(label.settings.geometry.shard_blocks) * crate::base::BLOCK_SIZE,
            mounted,
            devices: devices.collect::<Result<_>>()?,
            space: SpaceStatus { total: space.total, free: space.free, available: space.available },
            metadata: stats.map(|stats| MetadataStatus {
                replicas: ids(&stats.replicas),
                joining: ids(&stats.joining),
                bytes: stats.len.0,
                log_used: stats.log_used.bytes().0,
                log_capacity: stats.log_capacity.bytes().0,
                repaired_blocks: stats.repaired_blocks,
                committed: store.meta().committed().0,
                durable: store.meta().durable().0,
            }),
            archive: store.archives().first().map(|archive| ArchiveStatus {
                transaction: archive.txn,
                bytes: archive.length,
                created: archive.created,
            }),
            scrub,
            work,
            problems,
        })
    }

    /// The answer to the command.
    pub fn outcome(&self) -> Result<Outcome> {
        let answer =
            serde_json::to_value(self).map_err(|_| crate::base::Error::Invalid("a status that is not JSON"))?;
        Ok(Outcome { level: self.health as u8, answer, text: self.text() })
    }

    /// The answer about a pool that cannot be opened: it says why in its only problem.
    pub fn faulted(name: &str, uuid: &str, why: &str) -> Outcome {
        let answer = serde_json::json!({
            "name": name, "uuid": uuid, "health": Health::Faulted, "can_lose": 0, "problems": [why],
        });
        let text = format!("{name}: FAULTED, can lose 0 more devices\n  problem   {why}\n");
        Outcome { level: Health::Faulted as u8, answer, text }
    }

    fn text(&self) -> String {
        let mut out = format!("{}: {}, can lose {} more devices\n", self.name, self.health.word(), self.can_lose);
        let mounted = match &self.mounted {
            Some(mount) => {
                let how = if mount.read_only { " read-only" } else { "" };
                format!("mounted{how} at {} (process {})", mount.mountpoint, mount.pid)
            }
            None => "not mounted".to_owned(),
        };
        let _ = writeln!(out, "  pool      {} {}+{}, {mounted}", self.uuid, self.k, self.m);
        let width = self.devices.iter().map(|device| device.path.len()).max().unwrap_or(0);
        for device in &self.devices {
            let used = (device.used * 100).checked_div(device.size).unwrap_or(0);
            let holds = if device.metadata { ", metadata" } else { "" };
            let errors = match (device.read_errors, device.checksum_errors) {
                (0, 0) => String::new(),
                (read, checksum) => format!(", {read} read and {checksum} checksum errors"),
            };
            let _ = writeln!(
                out,
                "  device {:>2} {:<9} {:<width$}  {:>10}, {used} % used{holds}{errors}",
                device.id,
                device.state,
                device.path,
                Bytes(device.size).to_string(),
            );
        }
        let _ = writeln!(
            out,
            "  space     {} total, {} free, {} available",
            Bytes(self.space.total),
            Bytes(self.space.free),
            Bytes(self.space.available)
        );
        if let Some(archive) = &self.archive {
            let written = Timestamp { seconds: archive.created, nanos: 0 };
            let _ = writeln!(
                out,
                "  archive   of transaction {}, {}, written {written}",
                archive.transaction,
                Bytes(archive.bytes)
            );
        }
        if let Some(scrub) = &self.scrub {
            let _ = writeln!(out, "  scrub     {}", scrub.text());
        }
        for progress in &self.work {
            let Progress { work, done, total, unit } = progress;
            let of = if *total > 0 { format!(" of {total}") } else { String::new() };
            let _ = writeln!(out, "  work      {work}: {done}{of} {unit}");
        }
        for problem in &self.problems {
            let _ = writeln!(out, "  problem   {problem}");
        }
        out
    }
}

/// Present members that returned something bad, and were not found whole since, or that do not answer. How much of what
/// they hold is bad, only a scrub can tell.
fn suspects(pool: &Arc<Pool>, store: &Store, state: &PoolState, problems: &mut Vec<String>) -> BTreeSet<DeviceId> {
    let name = &state.label.name;
    let mut suspects = BTreeSet::new();
    let labels = labels(pool, state);
    for (id, label) in &labels {
        if *label == Label::Silent {
            suspects.insert(*id);
            problems.push(format!(
                "{} does not answer: reads go around it, writes wait for it; check it, or unplug it and the pool goes on without it",
                shown(state, *id)
            ));
        }
    }
    let faults = store.device_faults();
    let lost = |id: &DeviceId| labels.get(id) == Some(&Label::Lost);
    let bad: BTreeSet<DeviceId> =
        state.present().map(|member| member.id).filter(|id| faults.contains_key(id) || lost(id)).collect();
    for id in &bad {
        let label = if lost(id) { " lost its label," } else { "" };
        let DeviceFaults { read_errors, checksum_errors } = faults.get(id).copied().unwrap_or_default();
        problems.push(format!(
            "{}{label} failed to read {read_errors} shards and returned {checksum_errors} with a wrong checksum: \
             `argosfs scrub {name}` restores what it can, `argosfs device replace --pool {name} {id} NEW` replaces it",
            shown(state, *id),
        ));
    }
    suspects.extend(bad);
    suspects
}

/// What reading a device's label came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Whole,
    Lost,
    /// No answer in time.
    Silent,
}

/// How long a device may take to answer before it counts as silent.
const PATIENCE: Duration = Duration::from_secs(2);

/// The labels of the present members. Each is asked in a thread of its own, which a device that hangs keeps for itself.
fn labels(pool: &Arc<Pool>, state: &PoolState) -> BTreeMap<DeviceId, Label> {
    let (sender, answers) = mpsc::channel();
    let mut labels = BTreeMap::new();
    for member in state.present() {
        let id = member.id;
        labels.insert(id, Label::Silent);
        let hangs = |device: &Arc<dyn Device>| device.stalled_ns().is_some_and(|ns| ns > PATIENCE.as_nanos() as u64);
        if member.device.as_ref().is_some_and(hangs) {
            continue;
        }
        let (pool, sender) = (Arc::clone(pool), sender.clone());
        let ask = move || {
            let label = if pool.damaged_labels(&[id]).is_empty() { Label::Whole } else { Label::Lost };
            // Nobody listens any more when it took too long.
            let _ = sender.send((id, label));
        };
        let asked = std::thread::Builder::new().name("argosfs-label".to_owned()).spawn(ask);
        if asked.is_err() {
            labels.insert(id, Label::Whole);
        }
    }
    drop(sender);
    while let Ok((id, label)) = answers.recv_timeout(PATIENCE) {
        labels.insert(id, label);
    }
    labels
}

/// What a device is called towards people.
fn shown(state: &PoolState, id: DeviceId) -> String {
    let path = state.label.member(id).map(|entry| entry.path.as_str()).filter(|path| !path.is_empty());
    path.map_or_else(|| format!("device {id}"), |path| format!("device {id} ({path})"))
}

/// What to say about a member that is not as it should be.
fn problem(pool: &str, state: &PoolState, member: &Member) -> Option<String> {
    let id = member.id;
    let shown = shown(state, id);
    let replace = format!("or `argosfs device replace --pool {pool} {id} NEW`");
    if member.is_replaced() {
        return Some(match member.device.is_some() {
            true => format!("{shown} is being replaced: `argosfs rebuild {pool}` moves what is on it"),
            false => format!("{shown} is missing and being replaced: `argosfs rebuild {pool}` restores what was on it"),
        });
    }
    Some(match (member.state, member.device.is_some()) {
        (MemberState::Active, true) => return None,
        (MemberState::Failed, _) => format!("{shown} failed and was left out: check it, {replace}"),
        (MemberState::Stale, true) => {
            format!("{shown} was absent and is not up to date yet: `argosfs rebuild {pool}` brings it up to date")
        }
        _ => format!("{shown} is missing: bring it back, {replace}"),
    })
}

fn device(
    store: &Store,
    member: &Member,
    label: &crate::format::label::PoolLabel,
    replicas: &[DeviceId],
) -> Result<DeviceStatus> {
    let row = store.view(|view| view.get::<Devices>(&member.id))?;
    let faults = store.device_faults().get(&member.id).copied().unwrap_or_default();
    let hint = label.member(member.id).map(|entry| entry.path.clone()).unwrap_or_default();
    Ok(DeviceStatus {
        id: member.id.0,
        uuid: member.uuid.to_string(),
        path: if member.device.is_some() { member.name() } else { hint },
        state: match (member.state, member.device.is_some()) {
            (MemberState::Active, true) => "active",
            (MemberState::Stale, true) => "stale",
            (MemberState::Replacing, true) => "replacing",
            (MemberState::Failed, _) => "failed",
            (MemberState::Removed, _) => "removed",
            _ => "missing",
        },
        present: member.device.is_some(),
        size: member.size,
        used: row.map_or(0, |row| row.used_blocks) * crate::base::BLOCK_SIZE,
        metadata: replicas.contains(&member.id),
        read_errors: faults.read_errors,
        checksum_errors: faults.checksum_errors,
        failure_domain: member.failure_domain,
    })
}

/// How many stripes wait to be rebuilt, and how many shards the worst of them lacks.
fn damaged_stripes(store: &Store, state: &PoolState) -> Result<(usize, usize)> {
    let mut waiting = Vec::new();
    store.view(|view| {
        view.scan::<Intents>((std::ops::Bound::Unbounded, std::ops::Bound::Unbounded), |_, intent| {
            if let Intent::Rebuild { stripe } = intent {
                waiting.push(StripeId(stripe));
            }
            Ok(if waiting.len() < INTENTS_MAX { Visit::Continue(()) } else { Visit::Break(()) })
        })?;
        let mut worst = 0;
        for stripe in &waiting {
            if let Some(row) = view.get::<Stripes>(stripe)? {
                worst = worst.max(lacking(state, &row));
            }
        }
        Ok((waiting.len(), worst))
    })
}

fn lacking(state: &PoolState, row: &StripeRow) -> usize {
    let gone = |placement: &&Placement| {
        **placement == Placement::NONE || !state.member(placement.device).is_some_and(Member::is_current)
    };
    row.placements.iter().filter(gone).count()
}
