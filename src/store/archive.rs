//! Metadata archives: bytes in stripes of their own that only the labels know of, so that they can be read when nothing
//! else can. What the bytes mean is for `check` to say.
//!
//! Invariants:
//! - A label names an archive only when its shards are flushed and the state it describes is durable.
//! - The blocks of an archive are reserved from before they are written until no label names it.
//! - An archive changes no row: writing one never makes it out of date.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::commit::{ContentWrite, SharedBytes, Written};
use super::devices::{Devices, load_bitmap, run_of};
use super::maintain::Progress;
use super::repair::{Repaired, Verified, write_shard};
use super::{Store, lock, pack};
use crate::base::sync::atomic::{AtomicU64, Ordering};
use crate::base::sync::{Mutex, MutexGuard};
use crate::base::{BLOCK_SIZE, BlockNo, DeviceId, Error, Incarnation, Ino, Result, StripeId, TxnId, Uuid};
use crate::device::buffer::AlignedBuf;
use crate::format::label::{Archive, LIST_MAX, ShardLocation, StripeLocation};
use crate::format::rows::{Placement, StripeRow};
use crate::format::shard::ShardHeader;
use crate::meta::Meta;
use crate::pool::Pool;
use crate::pool::allocator::{Allocator, Run};
use crate::pool::stripe_io::{self, Fault, Media, PayloadRead};

/// Archives the labels name.
const KEPT: usize = 2;
/// Bytes of a label that the list of one archive's stripes may take; longer lists go to stripes themselves.
const LIST_IN_LABEL: usize = 8 << 10;
/// Bytes of an archive read at once.
const PIECE: usize = 1 << 20;
/// Set in the numbers of the stripes of archives: no row has one.
const NUMBER_BIT: u64 = 1 << 63;
/// The content of archives belongs to no inode.
const NO_INODE: Ino = Ino(0);

/// An archive, and where all of it is.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Held {
    archive: Archive,
    content: Vec<StripeLocation>,
}

impl Held {
    /// Stripes of the content, then those of the list of them, if it has any.
    fn stripes(&self) -> impl Iterator<Item = &StripeLocation> {
        let list: &[StripeLocation] = if self.archive.indirect { &self.archive.stripes } else { &[] };
        self.content.iter().chain(list)
    }

    fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.stripes().flat_map(runs)
    }

    /// Does without shards that a device may not have kept. A list outside the label stays as it was written: readers
    /// check what they find.
    fn leave_out_doubtful(&mut self, devices: &Devices) {
        for stripe in self.archive.stripes.iter_mut().chain(&mut self.content) {
            let id = StripeId(stripe.stripe);
            for place in stripe.placements.iter_mut() {
                if devices.is_in_doubt(id, DeviceId(place.device)) {
                    *place = shard_location(&Placement::NONE);
                }
            }
        }
    }
}

/// The blocks of a stripe's shards.
fn runs(stripe: &StripeLocation) -> impl Iterator<Item = Run> + '_ {
    let placed = stripe.placements.iter().map(placement).filter(|placement| *placement != Placement::NONE);
    placed.map(|placement| run_of(placement, stripe.shard_blocks))
}

fn placement(location: &ShardLocation) -> Placement {
    match location.device {
        u16::MAX => Placement::NONE,
        device => Placement { device: DeviceId(device), block: BlockNo(location.block) },
    }
}

fn shard_location(placement: &Placement) -> ShardLocation {
    ShardLocation { device: placement.device.0, block: placement.block.0 }
}

fn all_runs(archives: &[Held]) -> BTreeSet<Run> {
    archives.iter().flat_map(Held::runs).collect()
}

/// The archives of an open pool, newest first.
#[derive(Default)]
pub(super) struct Archives {
    held: Mutex<Vec<Held>>,
    /// Held while one is written or mended.
    writing: Mutex<()>,
    written: AtomicU64,
}

impl Archives {
    /// Takes up the archives the labels name and reserves their blocks. One that cannot be found, or lies where something
    /// else does, is given up.
    pub fn load(pool: &Pool, devices: &Devices, meta: &Meta) -> Archives {
        let archives = Archives::default();
        for archive in &pool.state().label.archives {
            let content = content(&*devices.membership, pool.uuid(), archive);
            let held = content.and_then(|content| {
                let held = Held { archive: archive.clone(), content };
                reserve_runs(devices, meta, &held).map(|()| held)
            });
            match held {
                Ok(held) => lock(&archives.held).push(held),
                Err(why) => pool.note(given_up(archive, &why.to_string())),
            }
        }
        archives
    }

    fn next_stripe(&self, incarnation: Incarnation) -> StripeId {
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        StripeId(incarnation.0.wrapping_add(number) | NUMBER_BIT)
    }
}

fn given_up(archive: &Archive, why: &str) -> String {
    format!("the metadata archive of transaction {} is given up: {why}", archive.txn)
}

/// Reserves the blocks of an archive on the devices that are known; all of them or none.
fn reserve_runs(devices: &Devices, meta: &Meta, held: &Held) -> Result<()> {
    let mut allocator = lock(&devices.allocator);
    let mut taken = Vec::new();
    for run in held.runs() {
        if !allocator.has_device(run.device) {
            continue;
        }
        let why = match allocator.hold(run, &mut |key| load_bitmap(meta, key)) {
            Ok(true) => {
                taken.push(run);
                continue;
            }
            Ok(false) => Error::corrupt("its blocks are used by something else"),
            Err(error) => error,
        };
        taken.into_iter().for_each(|run| allocator.release(run));
        return Err(why);
    }
    Ok(())
}

/// Whether a stripe of this number belongs to an archive.
pub fn is_archived(stripe: StripeId) -> bool {
    stripe.0 & NUMBER_BIT != 0
}

/// The blocks of an archive, as far as they are known.
pub(super) fn runs_of(media: &dyn Media, pool: Uuid, archive: &Archive) -> Vec<Run> {
    let content = content(media, pool, archive).unwrap_or_default();
    Held { archive: archive.clone(), content }.runs().collect()
}

/// Where the content of an archive is.
fn content(media: &dyn Media, pool: Uuid, archive: &Archive) -> Result<Vec<StripeLocation>> {
    if !archive.indirect {
        return Ok(archive.stripes.clone());
    }
    let length: u64 = archive.stripes.iter().map(|stripe| u64::from(stripe.payload_bytes)).sum();
    if length > LIST_MAX as u64 {
        return Err(Error::corrupt(format!("the list of an archive's stripes has {length} bytes")));
    }
    let mut list = Vec::new();
    read_stripes(media, pool, &archive.stripes, &mut |bytes| {
        list.extend_from_slice(bytes);
        Ok(())
    })?;
    StripeLocation::decode_list(&list)
}

/// The row a stripe would have, and the header of one of its shards from which it is made.
fn row_of(media: &dyn Media, pool: Uuid, stripe: &StripeLocation) -> Result<(StripeRow, ShardHeader)> {
    for (index, place) in stripe.placements.iter().map(placement).enumerate() {
        let Some(device) = (place != Placement::NONE).then(|| media.device(place.device)).flatten() else { continue };
        let mut block = AlignedBuf::scratch(BLOCK_SIZE as usize);
        if device.read_at(place.block.byte_offset(), &mut block).is_err() {
            continue;
        }
        let Ok(header) = ShardHeader::decode(&block) else { continue };
        let Ok(row) = header.row(stripe.placements.iter().map(placement).collect()) else { continue };
        let as_named = (row.k, row.m, row.shard_blocks, row.payload_bytes)
            == (stripe.k, stripe.m, stripe.shard_blocks, stripe.payload_bytes);
        let fits = as_named
            && header.pool == pool
            && header.belongs_to(StripeId(stripe.stripe), &row, index as u8)
            && header.granule_shift == stripe_io::granule_shift(row.placements.len(), row.shard_blocks);
        if fits {
            return Ok((row, header));
        }
    }
    Err(Error::corrupt(format!("no shard of stripe {} of a metadata archive can be read", stripe.stripe)))
}

/// Which shards of archives are to be mended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mend {
    /// Those that are corrupt or on no device that is here.
    Bad,
    /// Those that were never written.
    Unwritten,
    /// Those on a device that is to be emptied, good or not.
    On(DeviceId),
}

impl Mend {
    /// Gives up the shard that is meant of a stripe that cannot be reconstructed: one on a device that leaves. The others
    /// may come back.
    fn do_without(self, stripe: &mut StripeLocation) {
        if let Mend::On(device) = self {
            let there = stripe.placements.iter_mut().filter(|place| place.device == device.0);
            there.for_each(|place| *place = shard_location(&Placement::NONE));
        }
    }

    /// The shards of a stripe that are meant, and why.
    fn shards(self, media: &dyn Media, id: StripeId, row: &StripeRow) -> Vec<(usize, Fault)> {
        let device = match self {
            Mend::Bad => {
                let mut bad: Vec<(usize, Fault)> = stripe_io::verify_stripe(media, id, row)
                    .iter()
                    .map(|shard| (usize::from(shard.index), shard.fault))
                    .collect();
                // Without a header an archive is not found.
                for index in 0..row.placements.len() {
                    if !bad.iter().any(|(known, _)| *known == index) && header_of(media, id, row, index).is_none() {
                        bad.push((index, Fault::Checksum));
                    }
                }
                return bad;
            }
            Mend::Unwritten => Placement::NONE.device,
            Mend::On(device) => device,
        };
        let there = row.placements.iter().enumerate().filter(|(_, place)| place.device == device);
        there.map(|(index, _)| (index, Fault::Missing)).collect()
    }
}

/// The header in front of a shard, if it is its own.
fn header_of(media: &dyn Media, id: StripeId, row: &StripeRow, index: usize) -> Option<ShardHeader> {
    let place = row.placements.get(index)?;
    let mut block = AlignedBuf::scratch(BLOCK_SIZE as usize);
    media.device(place.device)?.read_at(place.block.byte_offset(), &mut block).ok()?;
    ShardHeader::decode(&block).ok().filter(|header| header.belongs_to(id, row, index as u8))
}

fn read_stripes(
    media: &dyn Media,
    pool: Uuid,
    stripes: &[StripeLocation],
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    for stripe in stripes {
        let (row, _) = row_of(media, pool, stripe)?;
        let whole = stripe.payload_bytes as usize;
        let mut bytes = vec![0; whole.min(PIECE)];
        for start in (0..whole).step_by(PIECE) {
            let out = &mut bytes[..(whole - start).min(PIECE)];
            let read = PayloadRead { id: StripeId(stripe.stripe), row: &row, start: start as u32, out };
            stripe_io::read_payloads(media, &mut [read])?;
            sink(&bytes[..(whole - start).min(PIECE)])?;
        }
    }
    Ok(())
}

/// Reads an archive that a label names. Whether it is the right one is known at the end only: what `sink` was given counts
/// when this succeeds.
pub fn read(media: &dyn Media, pool: Uuid, archive: &Archive, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let content = content(media, pool, archive)?;
    let (mut length, mut hasher) = (0, blake3::Hasher::new());
    read_stripes(media, pool, &content, &mut |bytes| {
        length += bytes.len() as u64;
        hasher.update(bytes);
        sink(bytes)
    })?;
    if length != archive.length || *hasher.finalize().as_bytes() != archive.digest {
        return Err(Error::corrupt(format!(
            "the metadata archive of transaction {} is not what was written",
            archive.txn
        )));
    }
    Ok(())
}

/// Writes an archive. Dropped before [`ArchiveWriter::finish`], nothing has happened.
pub struct ArchiveWriter<'s> {
    store: &'s Store,
    pool: Arc<Pool>,
    devices: Arc<Devices>,
    _only: MutexGuard<'s, ()>,
    buffer: Vec<u8>,
    length: u64,
    hasher: blake3::Hasher,
    content: Vec<StripeLocation>,
}

impl ArchiveWriter<'_> {
    /// Takes the next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.length += bytes.len() as u64;
        self.hasher.update(bytes);
        self.buffer.extend_from_slice(bytes);
        let full = self.devices.stripe_bytes();
        while self.buffer.len() >= full {
            let rest = self.buffer.split_off(full);
            let bytes = std::mem::replace(&mut self.buffer, rest);
            self.put(bytes)?;
        }
        Ok(())
    }

    /// Writes a stripe, in space that is promised to nobody else.
    fn put(&mut self, bytes: Vec<u8>) -> Result<()> {
        let promise = self.store.reserve(bytes.len() as u64)?;
        let written = self.store.write_archived(&self.devices, bytes);
        self.store.release(promise);
        self.content.extend(written?);
        Ok(())
    }

    /// Makes it the newest archive, of the state up to `txn`; durable when this returns.
    pub fn finish(mut self, txn: TxnId, created: i64) -> Result<()> {
        let last = std::mem::take(&mut self.buffer);
        if !last.is_empty() {
            self.put(last)?;
        }
        let archive = Archive {
            txn: txn.0,
            created,
            length: self.length,
            digest: *self.hasher.finalize().as_bytes(),
            indirect: false,
            stripes: Vec::new(),
        };
        let mut next = vec![Held { archive, content: std::mem::take(&mut self.content) }];
        next.extend(lock(&self.store.archives.held).iter().take(KEPT - 1).cloned());
        self.store.name_archives(&self.pool, &self.devices, next, BTreeSet::new())
    }
}

impl Drop for ArchiveWriter<'_> {
    fn drop(&mut self) {
        let mut allocator = lock(&self.devices.allocator);
        self.content.iter().flat_map(runs).for_each(|run| allocator.release(run));
    }
}

impl Store {
    /// Begins a new archive; waits while another one is written.
    pub fn archive_writer(&self) -> Result<ArchiveWriter<'_>> {
        let (pool, devices) = self.whole()?;
        self.meta.check()?;
        Ok(ArchiveWriter {
            store: self,
            pool,
            devices,
            _only: lock(&self.archives.writing),
            buffer: Vec::new(),
            length: 0,
            hasher: blake3::Hasher::new(),
            content: Vec::new(),
        })
    }

    /// The archives there are, newest first.
    pub fn archives(&self) -> Vec<Archive> {
        lock(&self.archives.held).iter().map(|held| held.archive.clone()).collect()
    }

    /// Transaction and time of the newest archive.
    pub fn newest_archive(&self) -> Option<(TxnId, i64)> {
        lock(&self.archives.held).first().map(|held| (TxnId(held.archive.txn), held.archive.created))
    }

    /// The blocks of all archives.
    pub fn archive_runs(&self) -> Vec<Run> {
        all_runs(&lock(&self.archives.held)).into_iter().collect()
    }

    /// Reads an archive; see [`read`].
    pub fn read_archive(&self, archive: &Archive, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (pool, devices) = self.whole()?;
        read(&*devices.membership, pool.uuid(), archive, sink)
    }

    /// Reads every shard of every archive; `visit` learns which are bad, or why a stripe cannot be told from other blocks.
    pub fn verify_archives(&self, visit: &mut dyn FnMut(Result<(StripeId, Verified)>)) {
        let Ok((pool, devices)) = self.whole() else { return };
        let _only = lock(&self.archives.writing);
        let held = lock(&self.archives.held).clone();
        let media = &*devices.membership;
        for stripe in held.iter().flat_map(Held::stripes) {
            let id = StripeId(stripe.stripe);
            visit(row_of(media, pool.uuid(), stripe).map(|(row, _)| (id, Verified::read(media, id, row))));
        }
    }

    /// Reserves the blocks that archives have on a device whose space has just become known. An archive whose blocks
    /// there were given to something else is given up.
    pub(super) fn reserve_archived(&self, pool: &Pool, allocator: &mut Allocator, id: DeviceId) {
        let mut held = lock(&self.archives.held);
        held.retain(|one| {
            let mut taken = Vec::new();
            for run in one.runs().filter(|run| run.device == id) {
                if !matches!(allocator.hold(run, &mut |key| load_bitmap(&self.meta, key)), Ok(true)) {
                    let elsewhere = one.runs().filter(|run| run.device != id);
                    taken.into_iter().chain(elsewhere).for_each(|run| allocator.release(run));
                    pool.note(given_up(
                        &one.archive,
                        "its blocks on a device that came back are used by something else",
                    ));
                    return false;
                }
                taken.push(run);
            }
            true
        });
    }

    /// Whether an archive has a shard on the device.
    pub(super) fn archives_on(&self, id: DeviceId) -> bool {
        self.archive_runs().iter().any(|run| run.device == id)
    }

    /// Writes bytes to stripes of their own and says where they are.
    fn write_archived(&self, devices: &Devices, bytes: Vec<u8>) -> Result<Vec<StripeLocation>> {
        let writes = [ContentWrite { ino: NO_INODE, offset: 0, bytes: SharedBytes::new(bytes) }];
        let mut next = || Ok(self.archives.next_stripe(devices.membership.incarnation()));
        let written = self.write_stripes(devices, &mut next, &writes, &[], pack::plan_moved);
        let location = |stripe: Written| StripeLocation {
            stripe: stripe.id.0,
            k: stripe.allocation.geometry.k(),
            m: stripe.allocation.geometry.m(),
            shard_blocks: stripe.allocation.shard_blocks,
            payload_bytes: stripe.payload.used as u32,
            placements: stripe.allocation.placements.iter().map(shard_location).collect(),
        };
        Ok(written?.1.into_iter().map(location).collect())
    }

    /// Writes the labels so that they name `next` and nothing else. What is not named in the end is free again: of the
    /// archives before, and of `moved`, which was reserved for `next`.
    fn name_archives(
        &self,
        pool: &Pool,
        devices: &Devices,
        mut next: Vec<Held>,
        mut moved: BTreeSet<Run>,
    ) -> Result<()> {
        let written = self.write_lists(devices, &mut next);
        moved.extend(all_runs(&next));
        let named = written.and_then(|()| {
            self.barrier()?;
            self.durable_point()?;
            next.iter_mut().for_each(|held| held.leave_out_doubtful(devices));
            let archives: Vec<Archive> = next.iter().map(|held| held.archive.clone()).collect();
            pool.update_labels(|label| label.archives = archives)
        });
        if let Err(Error::Poisoned(_)) = &named {
            // Some labels may name them already. Nothing is written any more, so nobody needs the space either.
            return named;
        }
        // In the order of whoever brings a device back, and not in between.
        let mut allocator = lock(&devices.allocator);
        let mut held = lock(&self.archives.held);
        moved.extend(all_runs(&held));
        if named.is_ok() {
            *held = next;
        }
        let kept = all_runs(&held);
        let unused: Vec<Run> = moved.difference(&kept).copied().collect();
        unused.iter().for_each(|run| allocator.release(*run));
        drop((held, allocator));
        self.discards.note(unused);
        named
    }

    /// Puts the list of each archive's stripes into its entry, or where the entry can point to it.
    fn write_lists(&self, devices: &Devices, next: &mut [Held]) -> Result<()> {
        let known = lock(&self.archives.held).clone();
        for held in next {
            if known.contains(held) {
                continue;
            }
            let list = StripeLocation::encode_list(&held.content)?;
            held.archive.indirect = list.len() > LIST_IN_LABEL;
            held.archive.stripes = match held.archive.indirect {
                true => self.write_archived(devices, list)?,
                false => held.content.clone(),
            };
        }
        Ok(())
    }

    /// Mends every archive, as repairs do with other stripes.
    pub(super) fn mend_archives(&self, which: Mend, progress: &mut Progress) -> Result<()> {
        let Ok((pool, devices)) = self.whole() else { return Ok(()) };
        let _only = lock(&self.archives.writing);
        let known = lock(&self.archives.held).clone();
        let mut next = known.clone();
        let mut moved = BTreeSet::new();
        for held in &mut next {
            for stripe in &mut held.content {
                progress.stripes += 1;
                match self.mend_stripe(&pool, &devices, stripe, which, &mut moved) {
                    Ok(repaired) => progress.repaired.add(repaired),
                    Err(Error::Corrupt(_)) => {
                        progress.lost += 1;
                        which.do_without(stripe);
                    }
                    Err(error) => {
                        let mut allocator = lock(&devices.allocator);
                        moved.iter().for_each(|run| allocator.release(*run));
                        return Err(error);
                    }
                }
            }
            let needs_none = |stripe: &StripeLocation| {
                let row = row_of(&*devices.membership, pool.uuid(), stripe);
                let id = StripeId(stripe.stripe);
                row.is_ok_and(|(row, _)| which.shards(&*devices.membership, id, &row).is_empty())
            };
            if held.archive.indirect && !held.archive.stripes.iter().all(needs_none) {
                // It differs from what is known, so its list is written anew.
                held.archive.stripes.clear();
            }
        }
        if next == known { self.barrier() } else { self.name_archives(&pool, &devices, next, moved) }
    }

    /// Rewrites shards in their place if they are only corrupt, and moves the others.
    fn mend_stripe(
        &self,
        pool: &Pool,
        devices: &Devices,
        stripe: &mut StripeLocation,
        which: Mend,
        moved: &mut BTreeSet<Run>,
    ) -> Result<Repaired> {
        let media = &*devices.membership;
        let id = StripeId(stripe.stripe);
        let (row, header) = row_of(media, pool.uuid(), stripe)?;
        let shards = which.shards(media, id, &row);
        // What is to be moved, or only lacks its header, is good, and needed for want of others.
        let mut payloads: Vec<_> = shards.iter().map(|(index, _)| stripe_io::read_shard(media, &row, *index)).collect();
        let lacking = |payload: &&mut Option<AlignedBuf>| payload.is_none();
        let wanted = shards.iter().zip(&payloads).filter(|(_, payload)| payload.is_none());
        let wanted: Vec<usize> = wanted.map(|((index, _), _)| *index).collect();
        if !wanted.is_empty() {
            let rebuilt = stripe_io::rebuild_shards(media, id, &row, &wanted)?;
            payloads.iter_mut().filter(lacking).zip(rebuilt).for_each(|(payload, rebuilt)| *payload = Some(rebuilt));
        }
        let here = |place: &Placement| media.device(place.device).is_some();
        let mut repaired = Repaired::default();
        for ((index, fault), payload) in shards.into_iter().zip(payloads.iter().flatten()) {
            let place = row.placements[index];
            let index = index as u8;
            let stays = fault != Fault::Missing;
            if stays && write_shard(devices, id, Some(&header), index, place, payload).is_ok() {
                repaired.rewritten += 1;
                continue;
            }
            let taken: Vec<DeviceId> =
                stripe.placements.iter().map(placement).filter(here).map(|place| place.device).collect();
            let load = &mut |key: &_| load_bitmap(&self.meta, key);
            let Some(target) = devices.allocate_shard(id, &taken, row.shard_blocks, load)? else {
                repaired.missing += 1;
                continue;
            };
            if let Err(error) = write_shard(devices, id, Some(&header), index, target, payload) {
                lock(&devices.allocator).release(run_of(target, row.shard_blocks));
                devices.membership.drop_member(target.device, &error)?;
                repaired.missing += 1;
                continue;
            }
            moved.insert(run_of(target, row.shard_blocks));
            stripe.placements[usize::from(index)] = shard_location(&target);
            repaired.rebuilt += 1;
        }
        Ok(repaired)
    }
}
