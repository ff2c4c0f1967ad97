//! Making a pool's store, and opening one after whatever happened to it.

use std::sync::{Arc, Weak};

use super::archive::Archives;
use super::devices::Devices;
use super::host::{Host, HostedLog, PoolMembership, volume_options};
use super::{Store, bitmap, lock};
use crate::base::sync::Mutex;
use crate::base::{Clock, DeviceId, Error, Result};
use crate::format::rows::DeviceRow;
use crate::format::table;
use crate::meta::migrate::migrate;
use crate::meta::volume::Volume;
use crate::meta::{Meta, Reader, RedoGroup, RedoLog, check_database};
use crate::pool::{Member, Pool};

impl Store {
    /// Makes the metadata of a pool that was just formatted. `salt` is a random number.
    pub fn format(pool: Arc<Pool>, clock: Arc<dyn Clock>, salt: u64) -> Result<Store> {
        let devices = Arc::new(Devices::new(Arc::new(PoolMembership(pool.clone()))));
        let host = Arc::new(Host::new(pool.clone(), devices.clone()));
        let state = pool.state();
        for member in state.present() {
            lock(&devices.allocator).add_device(member.id, member.layout, 0);
        }
        let replicas = choose_replicas(&state.members, pool.geometry().m);
        let layouts: Vec<_> = state.present().map(|member| member.layout).collect();
        let options = volume_options(&layouts, salt);
        // Nothing is stored yet, so every bitmap is empty.
        host.claim_ahead(&replicas, options.log_blocks + options.chunk_blocks, &mut |_| Ok(None))?;
        let chunk_blocks = options.chunk_blocks;
        let (volume, _) = Volume::format(host.clone(), &replicas, options)?;
        volume.reserve(1)?;
        let log = Arc::new(HostedLog { volume, host, chunk_blocks, bitmaps: Mutex::new(Weak::<Meta>::new()) });
        let store = assemble(&pool, devices, Vec::new(), log.clone(), clock)?;
        store.meta.checkpoint()?;
        pool.update_labels(|label| label.meta = log.volume.root())?;
        Ok(store)
    }

    /// Opens the store of an open pool. `salt` is a random number.
    pub fn open(pool: Arc<Pool>, clock: Arc<dyn Clock>, salt: u64) -> Result<Store> {
        Store::open_with(pool, clock, salt, false)
    }

    /// The same for a pool whose bytes somebody may have made to do harm: the database checks all of itself first.
    pub fn open_untrusted(pool: Arc<Pool>, clock: Arc<dyn Clock>, salt: u64) -> Result<Store> {
        Store::open_with(pool, clock, salt, true)
    }

    fn open_with(pool: Arc<Pool>, clock: Arc<dyn Clock>, salt: u64, untrusted: bool) -> Result<Store> {
        let devices = Arc::new(Devices::new(Arc::new(PoolMembership(pool.clone()))));
        let host = Arc::new(Host::new(pool.clone(), devices.clone()));
        let state = pool.state();
        let root = state.label.meta.clone();
        if root.replicas.is_empty() {
            return Err(Error::Unavailable(format!(
                "pool {} was never finished being made; run mkfs again with --force",
                state.label.name
            )));
        }
        let live: Vec<DeviceId> = state.metadata_holders().collect();
        if live.is_empty() {
            return Err(Error::Unavailable(format!(
                "no device of pool {} holds its current metadata: bring back one of those last mounted together",
                state.label.name
            )));
        }
        let layouts: Vec<_> = state.present().map(|member| member.layout).collect();
        let mut options = volume_options(&layouts, salt);
        options.read_only = pool.is_read_only();
        options.chunk_blocks = root.chunk_blocks;
        let (volume, groups) = Volume::open(host.clone(), &root, &live, options)?;
        if untrusted {
            check_database(volume.backend())?;
        }
        let chunk_blocks = root.chunk_blocks;
        let log = Arc::new(HostedLog { volume, host, chunk_blocks, bitmaps: Mutex::new(Weak::<Meta>::new()) });
        assemble(&pool, devices, groups, log, clock)
    }
}

/// Puts the pieces together, and brings the rows of the devices and the free space up to date with each other.
fn assemble(
    pool: &Arc<Pool>,
    devices: Arc<Devices>,
    groups: Vec<RedoGroup>,
    log: Arc<HostedLog>,
    clock: Arc<dyn Clock>,
) -> Result<Store> {
    let backend = log.volume.backend();
    let read_only = pool.is_read_only();
    let meta = Arc::new(Meta::open(backend, groups, log.clone(), devices.clone(), clock, read_only)?);
    let bitmaps: Weak<Meta> = Arc::downgrade(&meta);
    *lock(&log.bitmaps) = bitmaps;
    let state = pool.state();
    // A new pool's allocator knows the devices already, and what was claimed while its metadata was made.
    let is_new = state.present().any(|member| lock(&devices.allocator).has_device(member.id));
    let mut without_row = Vec::new();
    for member in &state.members {
        let row = match meta.view(|view| view.get::<table::Devices>(&member.id)) {
            // One that cannot be read is as good as none.
            Err(Error::Corrupt(_)) => None,
            row => row?,
        };
        let row = match row {
            Some(row) => row,
            None => {
                let row = meta.view(|view| device_row(view, member))?;
                without_row.push((member.id, row.clone()));
                row
            }
        };
        if member.device.is_some() && !is_new {
            lock(&devices.allocator).add_device(member.id, member.layout, row.used_blocks);
        }
    }
    // Before any transaction: it may take space for metadata, and must know what metadata has already.
    if !is_new {
        log.claim_named(&mut lock(&devices.allocator), None);
    }
    let archives = Archives::load(pool, &devices, &meta);
    if !is_new && !pool.is_read_only() {
        // What was claimed ahead last time is free, and nobody else may have it.
        log.prepare_what_can_be()?;
    }
    migrate(&meta, pool.is_read_only())?;
    if !pool.is_read_only() {
        for (id, row) in without_row {
            meta.transact(|tx| tx.put::<table::Devices>(&id, &row))?;
        }
    }
    let wants_checkpoint = !pool.is_read_only() && log.volume.wants_checkpoint();
    let mut store = Store::over(meta, devices)?;
    store.pool = Some(pool.clone());
    store.log = Some(log);
    store.archives = archives;
    if wants_checkpoint {
        // Each opening takes room in the log: many that end before their first transaction must not fill it.
        store.meta.checkpoint()?;
    }
    Ok(store)
}

/// The devices that hold the metadata: one more than may be lost, and at least two. Fast ones first, then large ones.
pub(super) fn choose_replicas(members: &[Member], m: u8) -> Vec<DeviceId> {
    let mut present: Vec<&Member> = members.iter().filter(|member| member.is_current()).collect();
    present.sort_by_key(|member| (std::cmp::Reverse(member.class), std::cmp::Reverse(member.size), member.id));
    let wanted = (usize::from(m) + 1).max(2);
    // Distinct failure domains first.
    let mut chosen: Vec<&Member> = Vec::new();
    for also_shared in [false, true] {
        for member in &present {
            let shared = chosen.iter().any(|other| other.failure_domain == member.failure_domain);
            let taken = chosen.iter().any(|other| other.id == member.id);
            if chosen.len() < wanted && !taken && (also_shared || !shared) {
                chosen.push(member);
            }
        }
    }
    chosen.into_iter().map(|member| member.id).collect()
}

/// A row for a member that has none. It may have had one, and blocks: nobody would ever count those again.
pub(super) fn device_row(reader: &impl Reader, member: &Member) -> Result<DeviceRow> {
    let used_blocks = match bitmap::used_blocks(reader, member.id) {
        // As with the row: fsck has to open the pool.
        Err(Error::Corrupt(_)) => 0,
        used => used?,
    };
    Ok(DeviceRow {
        uuid: member.uuid.0,
        state: 0,
        class: member.class,
        tier: member.tier,
        weight_milli: member.weight_milli,
        failure_domain: member.failure_domain,
        blocks: member.layout.blocks,
        used_blocks,
        read_errors: 0,
        write_errors: 0,
        checksum_errors: 0,
        read_latency_us_ewma: 0,
        write_latency_us_ewma: 0,
        risk_milli: 0,
    })
}
