//! Making a volume, and opening one after whatever happened to it.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use super::block::{Block, zeroed};
use super::recover::{self, Found, Log};
use super::replicas::Replica;
use super::ring::{self, Ring};
use super::table::{Chunk, Geometry, Table, digest};
use super::{Core, Counters, Dirty, MIN_LOG_BLOCKS, RedoGroup, Root, State, Volume, VolumeHost, VolumeOptions};
use super::{lock, read, redb_header, write};
use crate::base::{BLOCK_SIZE, BlockNo, Blocks, DeviceId, Error, Result, TxnId};
use crate::device::{Op, Request};
use crate::format::label::{MetaRoot, ReplicaRoot};
use crate::format::log::{self, ANCHORS, Checkpoint, Kind, Link};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, RwLock};
use zerocopy::IntoBytes;

/// Sums areas read in one batch, in pages over all replicas.
const BATCH_PAGES: usize = 4096;
/// Blocks of the log copied at a time.
const COPY_BLOCKS: u64 = 256;

impl Volume {
    /// Makes an empty volume on these replicas. Nothing of it is durable before the first [`Volume::checkpoint`], which has to
    /// commit a new database; until then an opening finds no volume. The root may be stored before or after that.
    pub fn format(
        host: Arc<dyn VolumeHost>,
        replicas: &[DeviceId],
        options: VolumeOptions,
    ) -> Result<(Volume, MetaRoot)> {
        let geometry = Geometry::new(options.chunk_blocks)?;
        if options.log_blocks < MIN_LOG_BLOCKS || options.read_only || replicas.is_empty() || replicas.len() > 64 {
            return Err(Error::Invalid("a metadata volume needs replicas and a log on each"));
        }
        let mut roots = Vec::new();
        let mut live = Vec::new();
        for id in replicas {
            let device = host.device(*id).ok_or_else(|| absent(*id))?;
            let log = host.allocate(*id, Blocks(u64::from(options.log_blocks)))?;
            let log_blocks = options.log_blocks;
            roots.push(ReplicaRoot { device: id.0, log_block: log.0, log_blocks, stale: false });
            live.push(Replica::new(*id, device, log, false));
        }
        let volume = options.salt;
        let root = Root { generation: 0, replicas: roots.clone(), spare: Vec::new() };
        let ring = Ring {
            capacity: u64::from(options.log_blocks) - ANCHORS,
            entry_limit: entry_limit(&options),
            volume,
            life: 1,
            salt: options.salt,
            position: 0,
            seq: 0,
            link: Link::genesis(volume),
            tail: 0,
            next_tail: None,
            slot: 0,
            groups: 0,
            redo_bytes: 0,
        };
        let anchor = ring.anchor();
        let core = core(host, options, geometry, live, root, ring, Table::new(geometry));
        {
            // Whatever was here before must not look like a log of ours, and both anchors must not name an earlier one.
            let mut ring = lock(&core.log);
            core.write_anchor(&mut ring, &anchor)?;
            core.write_anchor(&mut ring, &anchor)?;
        }
        let stored =
            MetaRoot { generation: 0, volume, chunk_blocks: geometry.chunk, replicas: roots, chunks: Vec::new() };
        Ok((Volume { core: Arc::new(core) }, stored))
    }

    /// Opens a volume from what `live` hold, the replicas of the current epoch that are present; when others are missing, the
    /// membership has been changed durably before. Returns the redo behind the newest checkpoint, in order. Everything
    /// returned is durable on every live replica.
    pub fn open(
        host: Arc<dyn VolumeHost>,
        root: &MetaRoot,
        live: &[DeviceId],
        options: VolumeOptions,
    ) -> Result<(Volume, Vec<RedoGroup>)> {
        let geometry = Geometry::new(root.chunk_blocks)?;
        let replicas = present(&*host, root, live)?;
        let capacity = u64::from(root.replicas.first().map_or(0, |replica| replica.log_blocks)) - ANCHORS;
        let log = recover::recover(&replicas, root.volume, capacity)?;
        if let (false, Some(why)) = (options.read_only, &log.unread) {
            return Err(unread("a block of the metadata log", why));
        }
        let checkpoint = Checkpoint::decode(&log.unit)?;
        let mut redo = Vec::new();
        for unit in &log.redo {
            let take = |txn, changes: &[u8]| redo.push(RedoGroup { txn: TxnId(txn), changes: changes.to_vec() });
            log::each_group(unit, take)?;
        }
        let header: [u8; redb_header::LEN] =
            checkpoint.header.as_slice().try_into().map_err(|_| Error::corrupt("a checkpoint without a header"))?;
        let len = redb_header::file_len(&header).ok_or_else(|| Error::corrupt("a checkpoint with a bad header"))?;

        let mut table = map(root, geometry, &replicas)?;
        let end = table.chunks.keys().next_back().map_or(0, |last| u64::from(*last) + 1);
        if len > redb_header::longest(end.saturating_mul(u64::from(geometry.data) * BLOCK_SIZE)) {
            return Err(Error::corrupt(format!("a checkpoint with a database of {len} bytes, more than there can be")));
        }
        apply_digests(&mut table, &checkpoint)?;
        let Loaded { wrong, unread: unread_sums } = load_sums(&mut table, &replicas, &checkpoint)?;
        if let (false, Some(why)) = (options.read_only, &unread_sums) {
            return Err(unread("a block with checksums of the metadata", why));
        }

        let ring = Ring {
            capacity,
            entry_limit: entry_limit(&options),
            volume: root.volume,
            life: log.end.life.saturating_add(1),
            salt: options.salt,
            position: log.end.position,
            seq: log.end.seq,
            link: log.end.link,
            tail: log.checkpoint.position,
            next_tail: None,
            slot: (log.slot + 1) % ANCHORS,
            groups: redo.len() as u64,
            redo_bytes: log.redo.iter().map(|unit| unit.len() as u64).sum(),
        };
        let mut names = Root { generation: root.generation, replicas: root.replicas.clone(), spare: Vec::new() };
        let mut lost = false;
        for entry in &mut names.replicas {
            let present = replicas.iter().any(|replica| replica.id.0 == entry.device);
            lost |= !present && !entry.stale;
            entry.stale |= !present;
        }
        let read_only = options.read_only;
        let mut core = core(host, options, geometry, replicas.clone(), names, ring, table);
        core.log_scanned = log.scanned;
        core.log_unread = log.unread.is_some();
        {
            let mut state = write(&core.state);
            state.len = len;
            state.header = header;
            state.published = Some(header);
        }
        if !read_only {
            core.settle(&replicas, &log, &checkpoint, &wrong, lost)?;
        }
        Ok((Volume { core: Arc::new(core) }, redo))
    }

    /// The root as it is stored, or would be.
    pub fn root(&self) -> MetaRoot {
        let root = lock(&self.core.root);
        MetaRoot {
            generation: root.generation,
            volume: self.core.volume,
            chunk_blocks: self.core.geometry.chunk,
            replicas: root.replicas.clone(),
            chunks: read(&self.core.state).table.runs(),
        }
    }
}

fn entry_limit(options: &VolumeOptions) -> usize {
    options.entry_limit.0.clamp(BLOCK_SIZE, log::MAX_PAYLOAD as u64) as usize
}

pub fn absent(id: DeviceId) -> Error {
    Error::Unavailable(format!("device {id}, which holds metadata, is not present"))
}

/// Something is left that may be read later, and that writing would destroy.
fn unread(what: &str, why: &Error) -> Error {
    Error::Unavailable(format!(
        "{what} cannot be read, and no other device that is present has it ({why}): try again, or bring back missing devices. If \
         it stays unreadable, `argosfs export-meta` saves what can be read, and `argosfs import-meta --force` makes the metadata \
         again from that; or `argosfs recover --force` from its newest archive"
    ))
}

fn core(
    host: Arc<dyn VolumeHost>,
    options: VolumeOptions,
    geometry: Geometry,
    replicas: Vec<Arc<Replica>>,
    root: Root,
    ring: Ring,
    table: Table,
) -> Core {
    let state = State {
        len: 0,
        header: [0; redb_header::LEN],
        published: None,
        announced: false,
        done: false,
        dirty: Dirty::new(),
        writing: Arc::default(),
        table,
    };
    Core {
        engine: host.engine(),
        host,
        options,
        geometry,
        volume: ring.volume,
        log_capacity: ring.capacity,
        log_scanned: false,
        log_unread: false,
        replicas: RwLock::new(replicas),
        checkpointing: Mutex::new(()),
        io: Mutex::new(()),
        resyncing: Mutex::new(()),
        log: Mutex::new(ring),
        root: Mutex::new(root),
        state: RwLock::new(state),
        poisoned: Mutex::new(None),
        refuses: AtomicBool::new(false),
        counters: Counters::default(),
    }
}

/// The live replicas that are there, checked against what the root says.
pub fn present(host: &dyn VolumeHost, root: &MetaRoot, live: &[DeviceId]) -> Result<Vec<Arc<Replica>>> {
    let log_blocks = root.replicas.first().map_or(0, |replica| replica.log_blocks);
    let mut replicas: Vec<Arc<Replica>> = Vec::new();
    for entry in root.replicas.iter().filter(|entry| !entry.stale && live.contains(&DeviceId(entry.device))) {
        let Some(device) = host.device(DeviceId(entry.device)) else { continue };
        let end = entry.log_block.checked_add(u64::from(entry.log_blocks));
        if entry.log_blocks != log_blocks
            || log_blocks < MIN_LOG_BLOCKS
            || end.is_none_or(|end| end > device.size() / BLOCK_SIZE)
        {
            return Err(Error::corrupt(format!("the label puts the metadata log outside of {}", device.name())));
        }
        if replicas.iter().all(|replica| replica.id.0 != entry.device) {
            replicas.push(Replica::new(DeviceId(entry.device), device, BlockNo(entry.log_block), false));
        }
    }
    match replicas.len() {
        0 => Err(Error::Unavailable("no device with a current copy of the metadata is present".into())),
        1..=64 => Ok(replicas),
        _ => Err(Error::corrupt("the label names too many copies of the metadata")),
    }
}

/// The chunks the root maps on the live replicas.
fn map(root: &MetaRoot, geometry: Geometry, replicas: &[Arc<Replica>]) -> Result<Table> {
    let mut table = Table::new(geometry);
    let place = |run: &crate::format::label::ChunkRun, number: u32| {
        let past = u64::from(number - run.chunk) * u64::from(geometry.chunk);
        (DeviceId(run.device), BlockNo(run.block.saturating_add(past)))
    };
    let (current, other): (Vec<_>, Vec<_>) =
        root.chunks.iter().partition(|run| replicas.iter().any(|replica| replica.id.0 == run.device));
    for run in current {
        let Some(replica) = replicas.iter().find(|replica| replica.id.0 == run.device) else { continue };
        let blocks = u64::from(run.count) * u64::from(geometry.chunk);
        let fits = run.block.checked_add(blocks).is_some_and(|end| end <= replica.device.size() / BLOCK_SIZE);
        let Some(end) = run.chunk.checked_add(run.count).filter(|_| fits) else {
            return Err(Error::corrupt(format!("the label puts metadata outside of {}", replica.device.name())));
        };
        for number in run.chunk..end {
            let home = place(run, number);
            let chunk = table.chunks.entry(number).or_insert_with(|| Chunk::empty(geometry, Vec::new(), true));
            if chunk.home(home.0).is_none() {
                chunk.homes.push(home);
            }
        }
    }
    // Stale replicas keep their blocks: of chunks that exist, however long a run claims to be.
    for run in other {
        let end = run.chunk.saturating_add(run.count);
        for (number, chunk) in table.chunks.range_mut(run.chunk..end) {
            chunk.homes.push(place(run, *number));
        }
    }
    Ok(table)
}

fn apply_digests(table: &mut Table, checkpoint: &Checkpoint) -> Result<()> {
    let pages = table.geometry.pages as usize;
    for (number, digests) in &checkpoint.digests {
        match table.chunks.get_mut(number) {
            Some(chunk) if digests.len() == pages => chunk.digests.clone_from(digests),
            _ => {
                return Err(Error::corrupt(format!("a checkpoint names chunk {number}, which the label does not map")));
            }
        }
    }
    Ok(())
}

/// A page of sums that some replica does not hold as it should.
struct Wrong {
    replica: usize,
    chunk: u32,
    page: u32,
}

/// What became of the sums.
struct Loaded {
    /// What has to be rewritten where.
    wrong: Vec<Wrong>,
    /// Why a page could not be read that may be right. Its sums count as lost: they must not be stored.
    unread: Option<Error>,
}

/// Loads all sums from whichever replica has them right: the stored page with the checkpoint's changes applied must have the
/// checkpoint's digest (which mends a page torn while it was rewritten). One that nobody has right is read again by itself: one
/// bad sector fails the request for a whole area, and a read may be garbled.
fn load_sums(table: &mut Table, replicas: &[Arc<Replica>], checkpoint: &Checkpoint) -> Result<Loaded> {
    let geometry = table.geometry;
    let mut changes: BTreeMap<(u32, u32), Vec<(usize, u32)>> = BTreeMap::new();
    for (block, sum) in &checkpoint.changed {
        let known = geometry.locate(*block).filter(|(number, _)| table.chunks.contains_key(number));
        let Some((number, index)) = known else {
            return Err(Error::corrupt(format!("a checkpoint names block {block}, which no chunk holds")));
        };
        let page = index / super::table::PAGE_SUMS;
        changes.entry((number, page)).or_default().push(((index % super::table::PAGE_SUMS) as usize * 4, *sum));
    }
    let apply = |content: &mut Block, changes: Option<&Vec<(usize, u32)>>| {
        for (at, sum) in changes.into_iter().flatten() {
            if let Some(bytes) = content.0.get_mut(*at..*at + 4) {
                bytes.copy_from_slice(&sum.to_le_bytes());
            }
        }
    };
    let pages = geometry.pages as usize;
    let step = (BATCH_PAGES / (pages * replicas.len())).max(1);
    let with_sums = |chunk: &&mut Chunk| chunk.digests.iter().any(|digest| *digest != 0);
    let (mut wrong, mut unread) = (Vec::new(), None);
    let mut chunks: Vec<(u32, &mut Chunk)> =
        table.chunks.iter_mut().filter(|(_, chunk)| with_sums(chunk)).map(|(number, chunk)| (*number, chunk)).collect();
    for group in chunks.chunks_mut(step) {
        let areas = read_areas(group, replicas, pages);
        for (at, (number, chunk)) in group.iter_mut().enumerate() {
            for page in 0..geometry.pages {
                let expected = chunk.digests.get(page as usize).copied().unwrap_or(0);
                if expected == 0 {
                    continue;
                }
                let changed = changes.get(&(*number, page));
                let mut right: Option<Block> = None;
                for (replica, areas) in areas.iter().enumerate() {
                    let stored = areas.get(at).and_then(|area| area.as_ref()?.get(page as usize));
                    let mut content = stored.cloned().unwrap_or(Block([0; super::BLOCK]));
                    let as_stored = stored.is_some() && digest(&content) == expected;
                    apply(&mut content, changed);
                    if !as_stored {
                        wrong.push(Wrong { replica, chunk: *number, page });
                    }
                    if right.is_none() && digest(&content) == expected {
                        right = Some(content);
                    }
                }
                // A page that came into being with this checkpoint may not have been written anywhere yet.
                let mut fresh = Block([0; super::BLOCK]);
                apply(&mut fresh, changed);
                let again = || {
                    let homes = replicas.iter().filter_map(|replica| Some((&**replica, chunk.home(replica.id)?)));
                    let places = homes.map(|(replica, home)| (replica, home + Blocks(u64::from(page))));
                    recover::read_right(places, |content| {
                        apply(content, changed);
                        digest(content) == expected
                    })
                };
                let known = right.or_else(|| (digest(&fresh) == expected).then_some(fresh));
                match known.map_or_else(again, |content| Ok(Some(Box::new(content)))) {
                    Ok(Some(content)) => chunk.load_page(page, &content),
                    lost => {
                        chunk.lose_page(page);
                        wrong.retain(|entry| (entry.chunk, entry.page) != (*number, page));
                        unread = lost.err().or(unread);
                    }
                }
            }
        }
    }
    Ok(Loaded { wrong, unread })
}

/// The sums areas of some chunks: by replica, then by chunk; `None` where reading failed.
fn read_areas(chunks: &[(u32, &mut Chunk)], replicas: &[Arc<Replica>], pages: usize) -> Vec<Vec<Option<Vec<Block>>>> {
    let mut areas: Vec<Vec<Option<Vec<Block>>>> = Vec::new();
    for replica in replicas {
        let mut of_replica: Vec<Option<Vec<Block>>> =
            chunks.iter().map(|(_, chunk)| chunk.home(replica.id).map(|_| zeroed(pages))).collect();
        for ((_, chunk), area) in chunks.iter().zip(&mut of_replica) {
            let home = chunk.home(replica.id).map_or(0, BlockNo::byte_offset);
            if let Some(blocks) = area {
                let mut request = Request::new(
                    &*replica.device,
                    Op::Read { offset: home, buf: blocks.as_mut_slice().as_mut_bytes() },
                );
                request.run_inline();
                if request.result.is_err() {
                    *area = None;
                }
            }
        }
        areas.push(of_replica);
    }
    areas
}

/// Blocks of entries that lie one behind the other, from those that had them when the log was walked. They are verified once
/// more: a copy with one broken entry would hide whatever is appended behind it.
fn read_entries(ring: &Ring, replicas: &[Arc<Replica>], entries: &[Found]) -> Result<Vec<Block>> {
    let (position, holders) = entries.first().map_or((0, 0), |first| (first.position, first.holders));
    let holding = replicas.iter().enumerate().filter(|(at, _)| holders >> at & 1 == 1);
    let mut content = zeroed(entries.iter().map(|found| found.blocks as usize).sum());
    let mut why = Error::corrupt("nobody has a part of the metadata log any more");
    for (_, from) in (0..recover::TRIES).flat_map(|_| holding.clone()) {
        match ring::read(from, ring.capacity, position, &mut content) {
            Ok(()) if are_whole(entries, &content) => return Ok(content),
            Ok(()) => why = Error::corrupt(format!("{} garbles a part of the metadata log", from.device.name())),
            Err(error) => why = error,
        }
    }
    Err(why)
}

fn are_whole(entries: &[Found], content: &[Block]) -> bool {
    let mut rest = content;
    entries.iter().all(|found| {
        let Some((entry, behind)) = rest.split_at_checked(found.blocks as usize) else { return false };
        rest = behind;
        found.is_in(entry.as_bytes())
    })
}

impl Core {
    /// Brings all live replicas to the recovered state before anything relies on it: first the log, so that no later crash,
    /// whichever replicas are left then, takes back what this opening has shown; then what hangs on the log.
    fn settle(
        &self,
        replicas: &[Arc<Replica>],
        log: &Log,
        checkpoint: &Checkpoint,
        wrong: &[Wrong],
        lost: bool,
    ) -> Result<()> {
        let mut ring = lock(&self.log);
        for (index, replica) in replicas.iter().enumerate() {
            for stretch in log.missing(index) {
                self.copy_log(&ring, replica, replicas, stretch)?;
            }
        }
        self.flush_all()?;
        if lost {
            self.store_root(&mut lock(&self.root))?;
        }
        let anchor = log.checkpoint.anchor(self.volume);
        self.write_anchor(&mut ring, &anchor)?;
        self.mend_areas(replicas, wrong)?;
        self.write_header_home(&checkpoint.header)?;
        let opened = ring.frame(Kind::Opened, &[]);
        if ring.position - ring.tail > ring.capacity {
            return Err(Error::Unavailable("the metadata log is full".into()));
        }
        self.write_frames(&ring, &opened)?;
        self.flush_all()?;
        ring.flushed();
        Ok(())
    }

    /// Copies entries of the log to a replica from those of `replicas` that have them; not durable yet.
    pub fn copy_log(&self, ring: &Ring, to: &Replica, replicas: &[Arc<Replica>], stretch: &[Found]) -> Result<()> {
        let mut rest = stretch;
        while let Some(first) = rest.first() {
            let mut blocks = 0;
            let count = rest.iter().take_while(|found| {
                blocks += found.blocks;
                blocks <= COPY_BLOCKS
            });
            let (now, later) = rest.split_at(count.count().max(1));
            let content = read_entries(ring, replicas, now)?;
            for (offset, bufs) in ring::pieces(to, ring.capacity, first.position, &content) {
                if let Err(error) = to.device.write_at(offset, &bufs) {
                    return self.drop_replica(to.id, error);
                }
            }
            rest = later;
        }
        Ok(())
    }

    fn mend_areas(&self, replicas: &[Arc<Replica>], wrong: &[Wrong]) -> Result<()> {
        for Wrong { replica, chunk, page } in wrong {
            let Some(replica) = replicas.get(*replica) else { continue };
            let found = {
                let state = read(&self.state);
                let chunk = state.table.chunks.get(chunk);
                chunk.and_then(|chunk| Some((chunk.home(replica.id)?, chunk.page(*page))))
            };
            let Some((home, content)) = found else { continue };
            let offset = (home.0 + u64::from(*page)) * BLOCK_SIZE;
            if let Err(error) = replica.device.write_at(offset, &[&content.0]) {
                self.drop_replica(replica.id, error)?;
            }
        }
        Ok(())
    }

    /// Writes home's copy of the header, which nothing but recovery by hand reads.
    pub fn write_header_home(&self, header: &[u8]) -> Result<()> {
        let homes = read(&self.state).table.chunks.get(&0).map(|chunk| chunk.homes.clone()).unwrap_or_default();
        if homes.is_empty() {
            return Ok(());
        }
        let block = Block::padded(header);
        self.write_all(|replica| {
            let home = homes.iter().find(|(id, _)| *id == replica.id);
            let (_, home) = home.ok_or_else(|| Error::corrupt("a device lacks the first chunk of the metadata"))?;
            Ok(vec![((home.0 + u64::from(self.geometry.pages)) * BLOCK_SIZE, vec![block.as_bytes()])])
        })
    }
}
