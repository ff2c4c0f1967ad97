//! mkfs, as far as labels go, and what else turns a device into a member.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Member, Pool, PoolState, label_io, lock, signatures};
use crate::base::{BLOCK_SIZE, DeviceId, Entropy, Error, Incarnation, Result, Uuid};
use crate::device::{Device, Engine, Op, Request};
use crate::format::label::{
    DefaultGeometry, Epoch, Features, GroupLayout, MAX_POOL_NAME, MemberEntry, MemberState, MetaRoot, PoolLabel,
    PoolSettings,
};
use crate::format::rows::MAX_SHARD_BLOCKS;

/// What a new pool is to be like.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    pub name: String,
    pub geometry: DefaultGeometry,
    /// Overwrite devices that hold something else.
    pub force: bool,
    /// Seconds since 1970.
    pub created: i64,
    pub features: Features,
}

/// Most devices of a pool.
pub(super) const MOST_DEVICES: usize = 64;
/// Bytes wiped at either end of a device before its labels are written.
const WIPE: u64 = 1 << 20;
/// Failure domains that hold one device only have this bit set.
const DOMAIN_OF_ONE: u64 = 1 << 63;

impl Pool {
    /// Makes a pool of the devices and opens it. Its label points at no metadata yet.
    ///
    /// # Errors
    /// [`Error::Usage`] names devices that hold something, unless `force`.
    pub fn format(
        devices: &[Arc<dyn Device>],
        options: &FormatOptions,
        engine: Arc<dyn Engine>,
        mut entropy: Box<dyn Entropy>,
    ) -> Result<Pool> {
        check(devices, options)?;
        let layouts = prepare(&*engine, devices, options.force)?;
        let domains = domains(devices, options.geometry);
        let uuid = Uuid::random(&mut *entropy);
        let members: Vec<Member> = devices
            .iter()
            .zip(layouts)
            .zip(domains)
            .enumerate()
            .map(|(at, ((device, layout), failure_domain))| Member {
                id: DeviceId(at as u16),
                uuid: Uuid::random(&mut *entropy),
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
            })
            .collect();
        let label = PoolLabel {
            features: options.features,
            uuid,
            name: options.name.clone(),
            sequence: 0,
            settings: PoolSettings {
                block_size: BLOCK_SIZE as u32,
                geometry: options.geometry,
                incarnation: Incarnation(entropy.next_u64()),
                created: options.created,
            },
            epoch: Epoch::default(),
            members: members.iter().map(entry).collect(),
            meta: MetaRoot::default(),
            archives: Vec::new(),
            key_slots: Vec::new(),
            unknown: Vec::new(),
        };
        let pool = Pool::new(engine, entropy, PoolState { label, members }, false);
        {
            let mut writer = lock(&pool.writer);
            pool.write_state(&mut writer, pool.copy_state(), Some("made".to_owned()))?;
        }
        if let Some(member) = pool.state().members.iter().find(|member| member.device.is_none()) {
            return Err(Error::Unavailable(format!("device {} failed while the pool was made", member.id)));
        }
        Ok(pool)
    }
}

impl FormatOptions {
    /// A pool called "tank" with small shards, for tests.
    #[cfg(test)]
    pub fn small(k: u8, m: u8) -> FormatOptions {
        FormatOptions {
            name: "tank".to_owned(),
            geometry: DefaultGeometry { k, m, shard_blocks: 16 },
            force: false,
            created: 1_700_000_000,
            features: Features::default(),
        }
    }

    /// Whether they make sense for so many devices.
    ///
    /// # Errors
    /// [`Error::Usage`] that says what does not.
    pub fn check(&self, devices: usize) -> Result<()> {
        let usage = |text: String| Err(Error::Usage(text));
        let DefaultGeometry { k, m, shard_blocks } = self.geometry;
        if self.name.is_empty() || self.name.len() > MAX_POOL_NAME || self.name.chars().any(char::is_control) {
            return usage(format!("a pool name has 1 to {MAX_POOL_NAME} bytes and no control characters"));
        }
        if k == 0 || shard_blocks == 0 || shard_blocks > MAX_SHARD_BLOCKS {
            return usage(format!("{k}+{m} with shards of {shard_blocks} blocks is not a geometry"));
        }
        let wanted = usize::from(k) + usize::from(m);
        if devices < wanted {
            return usage(format!("{k}+{m} needs {wanted} devices, {devices} are given"));
        }
        if devices > MOST_DEVICES {
            return usage(format!("a pool has at most {MOST_DEVICES} devices, {devices} are given"));
        }
        Ok(())
    }
}

/// Whether the options make sense for these devices.
fn check(devices: &[Arc<dyn Device>], options: &FormatOptions) -> Result<()> {
    options.check(devices.len())?;
    for (at, device) in devices.iter().enumerate() {
        if devices[..at].iter().any(|other| other.name() == device.name()) {
            return Err(Error::Usage(format!("{} is given twice", device.name())));
        }
    }
    Ok(())
}

/// Checks that the devices may be overwritten, finds their layouts, and wipes both ends.
pub(super) fn prepare(engine: &dyn Engine, devices: &[Arc<dyn Device>], force: bool) -> Result<Vec<GroupLayout>> {
    let mut layouts = Vec::with_capacity(devices.len());
    for device in devices {
        layouts.push(
            GroupLayout::for_size(device.size()).ok_or_else(|| {
                Error::Usage(format!("{} is too small: a device needs at least 6 MiB", device.name()))
            })?,
        );
    }
    if !force {
        for scan in label_io::scan(engine, devices) {
            let name = scan.device.name();
            let holds = match &scan.found {
                Ok(label) => Some(format!("a device of pool {} ({})", label.pool.name, label.pool.uuid)),
                Err(label_io::Unusable::NoLabel(_)) => signatures::find(&*scan.device)?.map(str::to_owned),
                Err(other) => Some(other.explain(name)),
            };
            if let Some(holds) = holds {
                return Err(Error::Usage(format!("{name} holds {holds}: use --force to overwrite it")));
            }
        }
    }
    wipe(engine, devices)?;
    Ok(layouts)
}

/// Overwrites both ends of the devices with zeros, durably.
pub(super) fn wipe(engine: &dyn Engine, devices: &[Arc<dyn Device>]) -> Result<()> {
    let zeros = vec![0; WIPE as usize];
    let mut batch = Vec::new();
    for device in devices {
        let end = device.size() / BLOCK_SIZE * BLOCK_SIZE;
        for (from, to) in [(0, WIPE.min(end)), (end.saturating_sub(WIPE), end)] {
            let bufs = vec![&zeros[..(to - from) as usize]];
            batch.push(Request::new(&**device, Op::Write { offset: from, bufs }));
        }
    }
    engine.run(&mut batch);
    batch.into_iter().try_for_each(|request| request.result)?;
    let mut batch: Vec<_> = devices.iter().map(|device| Request::new(&**device, Op::Flush)).collect();
    engine.run(&mut batch);
    batch.into_iter().try_for_each(|request| request.result)
}

/// The member table's line of a new member.
pub(super) fn entry(member: &Member) -> MemberEntry {
    MemberEntry {
        id: member.id,
        uuid: member.uuid,
        state: member.state,
        class: member.class,
        tier: member.tier,
        weight_milli: member.weight_milli,
        failure_domain: member.failure_domain,
        size: member.size,
        layout: member.layout,
        last_epoch: member.epoch,
        path: String::new(),
    }
}

/// Failure domains of new devices: those that rest on the same hardware share one, if enough domains are left for a
/// whole stripe; otherwise the user has decided that they do not.
fn domains(devices: &[Arc<dyn Device>], geometry: DefaultGeometry) -> Vec<u64> {
    let mut shared: Vec<u64> = Vec::new();
    for (at, device) in devices.iter().enumerate() {
        let hint = device.domain_hint();
        let same = hint.and_then(|_| devices[..at].iter().position(|other| other.domain_hint() == hint));
        shared.push(same.map_or(at as u64 | DOMAIN_OF_ONE, |first| shared[first]));
    }
    let mut distinct = shared.clone();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() >= usize::from(geometry.k) + usize::from(geometry.m) {
        shared
    } else {
        (0..devices.len()).map(|at| at as u64 | DOMAIN_OF_ONE).collect()
    }
}

/// The failure domain of a device that joins an open pool, in the place of `old` if that is given: that of the members it
/// shares hardware with, unless the pool treats such members as independent, or too few domains would be left for a
/// whole stripe.
pub(super) fn domain_beside(state: &PoolState, device: &Arc<dyn Device>, id: DeviceId, old: Option<DeviceId>) -> u64 {
    let alone = u64::from(id.0) | DOMAIN_OF_ONE;
    let hinted: Vec<(u64, u64)> = state
        .present()
        .filter_map(|member| Some((member.device.as_ref()?.domain_hint()?, member.failure_domain)))
        .collect();
    let independent = hinted.iter().any(|(hint, domain)| hinted.iter().any(|(h, d)| h == hint && d != domain));
    let staying = state.members.iter().filter(|member| Some(member.id) != old && !member.is_replaced());
    let domains: BTreeSet<u64> = staying.map(|member| member.failure_domain).collect();
    let geometry = state.label.settings.geometry;
    let enough = domains.len() >= usize::from(geometry.k) + usize::from(geometry.m);
    match device.domain_hint() {
        Some(own) if !independent && enough => {
            hinted.iter().find(|(hint, _)| *hint == own).map_or(alone, |(_, domain)| *domain)
        }
        _ => alone,
    }
}
