//! redb over a volume over simulated devices, driven like the metadata store drives it, against a model.

mod behaviour;
mod crash;
mod faults;
mod host;
mod hostile;
mod unread;

use super::{Appended, Volume, VolumeHost, VolumeOptions};
use crate::base::{Bytes, DeviceId, Prng, Result, TxnId};
use crate::device::sim::SimWorld;
use crate::meta::db::RedoGroup;
use host::Host;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::BTreeMap;
use std::sync::Arc;

const ROWS: TableDefinition<u64, &[u8]> = TableDefinition::new("rows");
const COUNTERS: TableDefinition<u8, u64> = TableDefinition::new("counters");

type Changes = Vec<(u64, Option<Vec<u8>>)>;
type Rows = BTreeMap<u64, Vec<u8>>;

/// How one run is set up.
#[derive(Clone, Copy, Debug)]
struct Setup {
    devices: usize,
    replicas: usize,
    chunk_blocks: u32,
    log_blocks: u32,
    dirty_blocks: u64,
    entry_limit: u64,
    cache: usize,
}

/// Two replicas, and room.
const SMALL: Setup = Setup {
    devices: 2,
    replicas: 2,
    chunk_blocks: 300,
    log_blocks: 400,
    dirty_blocks: 100,
    entry_limit: 8192,
    cache: 1 << 20,
};

impl Setup {
    fn random(prng: &mut Prng) -> Setup {
        let replicas = 1 + prng.below(3) as usize;
        Setup {
            devices: 3,
            replicas,
            chunk_blocks: [8, 40, 300, 1100][prng.below(4) as usize],
            log_blocks: [64, 100, 400][prng.below(3) as usize],
            dirty_blocks: [1, 8, 10_000][prng.below(3) as usize],
            entry_limit: [4096, 20_000, 4 << 20][prng.below(3) as usize],
            cache: [16 << 10, 128 << 10, 4 << 20][prng.below(3) as usize],
        }
    }

    fn options(&self, prng: &mut Prng) -> VolumeOptions {
        VolumeOptions {
            chunk_blocks: self.chunk_blocks,
            log_blocks: self.log_blocks,
            dirty_limit: Bytes(self.dirty_blocks * 4096),
            checkpoint_groups: 1000,
            entry_limit: Bytes(self.entry_limit),
            ..VolumeOptions::new(prng.next())
        }
    }
}

/// What happened when, as far as a crash can tell: `(events recorded, number)`.
#[derive(Clone, Default, Debug)]
struct Timeline {
    committed: Vec<(u64, u64)>,
    durable: Vec<(u64, u64)>,
}

impl Timeline {
    /// The transactions a crash at `at` must keep, and may keep.
    fn bounds(&self, at: u64) -> (u64, u64) {
        let last =
            |events: &[(u64, u64)]| events.iter().rev().find(|(event, _)| *event <= at).map_or(0, |(_, txn)| *txn);
        (last(&self.durable), last(&self.committed))
    }
}

/// A running store.
struct Store {
    world: SimWorld,
    host: Arc<Host>,
    volume: Volume,
    db: Option<Database>,
    pending: Vec<RedoGroup>,
    /// The changes of transaction `n` at `n - 1`.
    history: Vec<Changes>,
    timeline: Timeline,
}

impl Drop for Store {
    fn drop(&mut self) {
        self.volume.poison("closed");
    }
}

fn database(setup: &Setup, volume: &Volume) -> Result<Database> {
    let mut builder = Database::builder();
    builder.set_cache_size(setup.cache);
    builder.set_repair_callback(redb::RepairSession::abort);
    let broken = |error: redb::DatabaseError| crate::base::Error::Corrupt(format!("redb: {error}"));
    builder.create_with_backend(volume.backend()).map_err(broken)
}

fn broken(error: impl Into<redb::Error>) -> crate::base::Error {
    crate::base::Error::Corrupt(format!("redb: {}", error.into()))
}

fn encode(changes: &Changes) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in changes {
        out.extend_from_slice(&key.to_le_bytes());
        out.extend_from_slice(&value.as_ref().map_or(0, |value| value.len() as u32 + 1).to_le_bytes());
        out.extend_from_slice(value.as_deref().unwrap_or_default());
    }
    out
}

fn decode(mut bytes: &[u8]) -> Changes {
    let mut changes = Vec::new();
    while !bytes.is_empty() {
        let key = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let len = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
        bytes = &bytes[12..];
        let value = len.checked_sub(1).map(|len| bytes[..len].to_vec());
        bytes = &bytes[len.saturating_sub(1)..];
        changes.push((key, value));
    }
    changes
}

fn apply(db: &Database, changes: &Changes, txn: u64) -> Result<()> {
    let mut write = db.begin_write().map_err(broken)?;
    write.set_durability(Durability::None).map_err(broken)?;
    {
        let mut rows = write.open_table(ROWS).map_err(broken)?;
        for (key, value) in changes {
            match value {
                Some(value) => _ = rows.insert(*key, value.as_slice()).map_err(broken)?,
                None => _ = rows.remove(*key).map_err(broken)?,
            }
        }
        write.open_table(COUNTERS).map_err(broken)?.insert(0, txn).map_err(broken)?;
    }
    write.commit().map_err(broken)
}

fn model(history: &[Changes]) -> Rows {
    let mut rows = Rows::new();
    for (key, value) in history.iter().flatten() {
        match value {
            Some(value) => rows.insert(*key, value.clone()),
            None => rows.remove(key),
        };
    }
    rows
}

impl Store {
    /// A new pool with an empty database, formatted durably.
    fn format(setup: Setup, world: SimWorld, prng: &mut Prng) -> Result<Store> {
        let host = Host::format(&world, setup.replicas);
        let replicas: Vec<DeviceId> = (0..setup.replicas as u16).map(DeviceId).collect();
        let (volume, root) = Volume::format(host.clone(), &replicas, setup.options(prng))?;
        host.store_root(&root)?;
        let db = database(&setup, &volume)?;
        let mut store = Store {
            world,
            host,
            volume,
            db: Some(db),
            pending: Vec::new(),
            history: Vec::new(),
            timeline: Timeline::default(),
        };
        store.transact(vec![(0, Some(b"first".to_vec()))])?;
        store.checkpoint()?;
        Ok(store)
    }

    /// Opens from these devices; checks the database; replays; compares with `history`.
    fn open(setup: Setup, world: SimWorld, present: &[usize], history: &[Changes], prng: &mut Prng) -> Result<Store> {
        let (host, root, live) = Host::open(&world, present)?;
        let (volume, groups) = Volume::open(host.clone(), &root, &live, setup.options(prng))?;
        let opened = world.record();
        let mut db = database(&setup, &volume)?;
        match db.check_integrity() {
            Ok(true) => {}
            other => return Err(crate::base::Error::Corrupt(format!("the database is broken: {other:?}"))),
        }
        let counter = |db: &Database| -> Result<u64> {
            let read = db.begin_read().map_err(broken)?;
            let table = read.open_table(COUNTERS).map_err(broken)?;
            Ok(table.get(0).map_err(broken)?.map_or(0, |value| value.value()))
        };
        let mut last = counter(&db)?;
        for group in &groups {
            if group.txn.0 > last {
                assert_eq!(group.txn.0, last + 1, "the log has a gap");
                apply(&db, &decode(&group.changes), group.txn.0)?;
                last = group.txn.0;
            }
        }
        assert!(last as usize <= history.len(), "transaction {last} never was");
        let history = history[..last as usize].to_vec();
        let read = db.begin_read().map_err(broken)?;
        let rows: Result<Rows> = read
            .open_table(ROWS)
            .map_err(broken)?
            .iter()
            .map_err(broken)?
            .map(|row| row.map(|(key, value)| (key.value(), value.value().to_vec())).map_err(broken))
            .collect();
        drop(read);
        assert!(rows? == model(&history), "the rows are not those of transaction {last}");
        let timeline = Timeline { committed: vec![(opened, last)], durable: vec![(opened, last)] };
        Ok(Store { world, host, volume, db: Some(db), pending: Vec::new(), history, timeline })
    }

    fn last(&self) -> u64 {
        self.history.len() as u64
    }

    fn transact(&mut self, changes: Changes) -> Result<()> {
        let txn = self.last() + 1;
        // Its pages may reach the devices, its number may not: it counts as committed from the start.
        self.timeline.committed.push((self.world.record(), txn));
        apply(self.db.as_ref().unwrap(), &changes, txn)?;
        self.pending.push(RedoGroup { txn: TxnId(txn), changes: encode(&changes) });
        self.history.push(changes);
        Ok(())
    }

    fn random_transaction(&mut self, prng: &mut Prng) -> Result<()> {
        let mut changes = Vec::new();
        for _ in 0..=prng.below(4) {
            let len = if prng.chance(1, 12) { prng.below(9000) } else { prng.below(200) };
            let value = vec![prng.next() as u8; len as usize];
            changes.push((prng.below(300), (!prng.chance(1, 3)).then_some(value)));
        }
        self.transact(changes)
    }

    fn append(&mut self) -> Result<()> {
        match self.volume.append(&self.pending)? {
            Appended::Durable => {
                self.pending.clear();
                self.timeline.durable.push((self.world.record(), self.last()));
                Ok(())
            }
            Appended::CheckpointFirst => self.checkpoint(),
        }
    }

    fn checkpoint(&mut self) -> Result<()> {
        let db = self.db.as_ref().unwrap();
        self.volume.checkpoint(|| {
            let mut write = db.begin_write().map_err(broken)?;
            write.set_durability(Durability::Immediate).map_err(broken)?;
            write.set_quick_repair(true);
            write.commit().map_err(broken)
        })?;
        self.pending.clear();
        self.timeline.durable.push((self.world.record(), self.last()));
        Ok(())
    }

    /// One random step.
    fn step(&mut self, prng: &mut Prng) -> Result<()> {
        match prng.below(20) {
            0..=10 => self.random_transaction(prng),
            11..=15 => self.append(),
            16 => self.volume.prewrite(),
            17 | 18 if !self.volume.wants_checkpoint() => Ok(()),
            _ => self.checkpoint(),
        }
    }

    fn steps(&mut self, count: u64, prng: &mut Prng) -> Result<()> {
        (0..count).try_for_each(|_| self.step(prng))
    }
}

/// A non-empty subset of `all`, most often all of it.
fn subset(all: &[usize], prng: &mut Prng) -> Vec<usize> {
    if prng.chance(1, 2) {
        return all.to_vec();
    }
    loop {
        let some: Vec<usize> = all.iter().copied().filter(|_| prng.chance(1, 2)).collect();
        if !some.is_empty() {
            return some;
        }
    }
}

#[test]
fn it_works_at_all() {
    let mut prng = Prng::new(1);
    let setup = SMALL;
    let world = SimWorld::new(1, setup.devices, 64 << 20);
    let mut store = Store::format(setup, world.clone(), &mut prng).unwrap();
    store.steps(200, &mut prng).unwrap();
    store.append().unwrap();
    let history = store.history.clone();
    drop(store);
    for present in [vec![0, 1], vec![0], vec![1]] {
        let store = Store::open(setup, world.fork(), &present, &history, &mut prng).unwrap();
        assert_eq!(store.last(), history.len() as u64);
    }
}
