//! Writing and reading the shards of stripes: encode, checksum, write in parallel; read, verify, reconstruct.
//!
//! Invariants:
//! - No byte leaves here that did not match its checksum in the stripe's row.
//! - A stripe is never changed in place, except that blocks which fail verification are overwritten with what the
//!   other shards say they should hold.

mod read;

pub use read::{PayloadRead, read_payloads};

use std::ops::Range;
use std::sync::Arc;

use crate::base::{BLOCK_SIZE, BlockNo, DeviceId, Error, Result, StripeId};
use crate::device::buffer::AlignedBuf;
use crate::device::{Answer, Device, Engine, Op, OwnRead, Request, STALL};
use crate::erasure::{Codec, Geometry};
use crate::format::rows::{Placement, StripeRow};

/// Largest stripe row aimed at, in checksum bytes: decides the granule.
const SUMS_BYTES: usize = 800;

/// The devices shards lie on.
pub trait Media: Send + Sync {
    /// A present device that may be read.
    fn device(&self, id: DeviceId) -> Option<Arc<dyn Device>>;
    /// The engine batches run on.
    fn engine(&self) -> &dyn Engine;
    /// Whether reads should prefer other devices for now (stalled or failing).
    fn avoid(&self, id: DeviceId) -> bool;
}

/// The checksum granule for stripes of `shards` shards of `shard_blocks` blocks: the smallest with which the row
/// stays small.
pub fn granule_shift(shards: usize, shard_blocks: u32) -> u8 {
    let mut shift = 0;
    while (shard_blocks as usize).div_ceil(1 << shift) * shards * 4 > SUMS_BYTES && shift < 10 {
        shift += 1;
    }
    shift
}

/// An encoded stripe in memory, ready to be written. Each shard lies in one piece behind room for its header block, so
/// that it is written by one request from one buffer.
pub struct StripeImage {
    pub geometry: Geometry,
    /// Payload blocks of each shard.
    pub shard_blocks: u32,
    pub granule_shift: u8,
    /// As in [`StripeRow::sums`].
    pub sums: Vec<u32>,
    shards: AlignedBuf,
}

const HEADER: usize = BLOCK_SIZE as usize;

impl StripeImage {
    /// Encodes a stripe. `fill` writes the payload of the data shards, every byte of it.
    pub fn encode(codec: &Codec, shard_blocks: u32, fill: impl FnOnce(&mut [&mut [u8]])) -> Result<StripeImage> {
        let geometry = codec.geometry();
        let (k, n) = (usize::from(geometry.k()), usize::from(geometry.shards()));
        let stride = HEADER + shard_blocks as usize * BLOCK_SIZE as usize;
        let mut shards = AlignedBuf::scratch(n * stride);
        let mut payloads: Vec<&mut [u8]> = shards.chunks_exact_mut(stride).map(|shard| &mut shard[HEADER..]).collect();
        let (data, parity) = payloads.split_at_mut(k);
        fill(data);
        let sources: Vec<&[u8]> = data.iter().map(|shard| &**shard).collect();
        codec.encode(&sources, parity)?;
        let granule_shift = granule_shift(n, shard_blocks);
        let granule = (BLOCK_SIZE as usize) << granule_shift;
        let sums = payloads.iter().flat_map(|shard| shard.chunks(granule)).map(crc32c::crc32c).collect();
        Ok(StripeImage { geometry, shard_blocks, granule_shift, sums, shards })
    }

    fn stride(&self) -> usize {
        HEADER + self.shard_blocks as usize * BLOCK_SIZE as usize
    }

    /// Puts the header of shard `index` in front of it.
    pub fn set_header(&mut self, index: usize, header: &[u8; HEADER]) {
        let start = index * self.stride();
        self.shards[start..start + HEADER].copy_from_slice(header);
    }

    /// Header and payload of shard `index`.
    pub fn shard(&self, index: usize) -> &[u8] {
        &self.shards[index * self.stride()..(index + 1) * self.stride()]
    }
}

/// One shard to write: `bytes` is its header block, then its payload.
pub struct ShardWrite<'a> {
    pub device: Arc<dyn Device>,
    pub block: BlockNo,
    pub bytes: &'a [u8],
}

/// Writes all shards in one batch; one result each. Nothing is flushed.
pub fn write_shards(engine: &dyn Engine, shards: &[ShardWrite<'_>]) -> Vec<Result<()>> {
    let mut batch: Vec<Request<'_>> = Vec::with_capacity(shards.len());
    for shard in shards {
        batch.push(Request::new(
            &*shard.device,
            Op::Write { offset: shard.block.byte_offset(), bufs: vec![shard.bytes] },
        ));
    }
    engine.run(&mut batch);
    batch.into_iter().map(|request| request.result).collect()
}

/// A shard that could not be read or did not verify.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BadShard {
    pub stripe: StripeId,
    pub index: u8,
    /// Where it should be; none when it was never written.
    pub device: DeviceId,
    pub fault: Fault,
}

impl BadShard {
    fn of(stripe: StripeId, row: &StripeRow, shard: usize, fault: Fault) -> BadShard {
        BadShard { stripe, index: shard as u8, device: row.placements[shard].device, fault }
    }
}

/// Why a shard is bad.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    /// Its device is not here, or it was never written.
    Missing,
    /// The device refused to read it.
    Io,
    /// It was read but does not match its checksum.
    Checksum,
    /// Its device is slow; nothing is known to be wrong.
    Avoided,
}

fn shard_bytes(row: &StripeRow) -> usize {
    row.shard_blocks as usize * BLOCK_SIZE as usize
}

fn granule_bytes(row: &StripeRow) -> usize {
    (BLOCK_SIZE as usize) << row.granule_shift
}

/// Bytes of the shard that `granules` cover; the last granule may be short.
fn byte_range(row: &StripeRow, granules: &Range<usize>) -> Range<usize> {
    granules.start * granule_bytes(row)..(granules.end * granule_bytes(row)).min(shard_bytes(row))
}

/// Whether `bytes`, the content of `granules` of shard `shard`, match the row's checksums.
fn verifies(row: &StripeRow, shard: usize, granules: &Range<usize>, bytes: &[u8]) -> bool {
    let first = shard * row.granules() + granules.start;
    bytes.chunks(granule_bytes(row)).zip(&row.sums[first..]).all(|(piece, sum)| crc32c::crc32c(piece) == *sum)
}

fn payload_offset(placement: Placement, bytes: &Range<usize>) -> u64 {
    placement.block.byte_offset() + BLOCK_SIZE + bytes.start as u64
}

/// The read of `granules` of a shard.
fn own_read(row: &StripeRow, shard: usize, granules: &Range<usize>, device: Arc<dyn Device>) -> OwnRead {
    let bytes = byte_range(row, granules);
    let offset = payload_offset(row.placements[shard], &bytes);
    OwnRead { device, offset, buf: AlignedBuf::scratch(bytes.len()) }
}

/// What was read, if it verifies, or why not.
fn judge(
    row: &StripeRow,
    shard: usize,
    granules: &Range<usize>,
    answer: Answer,
) -> std::result::Result<AlignedBuf, Fault> {
    match answer {
        Answer::Read(bytes) if verifies(row, shard, granules, &bytes) => Ok(bytes),
        Answer::Read(_) => Err(Fault::Checksum),
        Answer::Failed(_) => Err(Fault::Io),
        Answer::Late => Err(Fault::Avoided),
    }
}

/// The device to read a shard from, or why not.
fn source(media: &dyn Media, placement: Placement) -> (Option<Arc<dyn Device>>, Option<Fault>) {
    if placement == Placement::NONE {
        return (None, Some(Fault::Missing));
    }
    match media.device(placement.device) {
        None => (None, Some(Fault::Missing)),
        Some(_) if media.avoid(placement.device) => (None, Some(Fault::Avoided)),
        Some(device) => (Some(device), None),
    }
}

/// Computes the bytes of `granules` of the `wanted` shards from others: first those on willing devices, then, if those
/// do not suffice, those on devices to avoid, which are waited for. What is found bad on the way is added to `bad`.
fn reconstruct(
    media: &dyn Media,
    id: StripeId,
    row: &StripeRow,
    wanted: &[usize],
    granules: &Range<usize>,
    bad: &mut Vec<BadShard>,
) -> Result<Vec<AlignedBuf>> {
    let bytes = byte_range(row, granules);
    let k = usize::from(row.k);
    let mut good: Vec<(u8, AlignedBuf)> = Vec::with_capacity(k);
    // Shards that are out of the question, and those whose device let us wait.
    let mut spent = vec![false; row.placements.len()];
    let mut late = spent.clone();
    for last_resort in [false, true] {
        while good.len() < k {
            let mut candidates = Vec::new();
            for (shard, placement) in row.placements.iter().enumerate() {
                // A wanted shard on a device that is merely avoided is the last resort, not a contradiction.
                if spent[shard] || (!last_resort && (late[shard] || wanted.contains(&shard))) {
                    continue;
                }
                let device = match source(media, *placement) {
                    (_, Some(Fault::Avoided)) if last_resort => media.device(placement.device),
                    (device, _) => device,
                };
                candidates.extend(device.map(|device| (shard, device)));
                if candidates.len() + good.len() == k {
                    break;
                }
            }
            if candidates.is_empty() {
                break;
            }
            let read = |(shard, device): &(usize, Arc<dyn Device>)| own_read(row, *shard, granules, Arc::clone(device));
            let reads = candidates.iter().map(read).collect();
            let answers = media.engine().read(reads, (!last_resort).then_some(STALL));
            for ((shard, _), answer) in candidates.into_iter().zip(answers) {
                let fault = match judge(row, shard, granules, answer) {
                    Ok(bytes) => {
                        good.push((shard as u8, bytes));
                        spent[shard] = true;
                        continue;
                    }
                    Err(fault) => fault,
                };
                match fault {
                    Fault::Avoided => late[shard] = true,
                    _ => spent[shard] = true,
                }
                let found = BadShard::of(id, row, shard, fault);
                if !bad.contains(&found) {
                    bad.push(found);
                }
            }
        }
    }
    if good.len() < k {
        return Err(Error::corrupt(format!(
            "stripe {id} has {} good shards left and needs {k}; bring missing devices back",
            good.len()
        )));
    }
    let present: Vec<(u8, &[u8])> = good.iter().map(|(shard, buf)| (*shard, &buf[..])).collect();
    let mut rebuilt: Vec<AlignedBuf> = wanted.iter().map(|_| AlignedBuf::scratch(bytes.len())).collect();
    let mut outputs: Vec<(u8, &mut [u8])> =
        wanted.iter().zip(&mut rebuilt).map(|(shard, buf)| (*shard as u8, &mut buf[..])).collect();
    Codec::new(Geometry::new(row.k, row.m)?).reconstruct(&present, &mut outputs)?;
    drop(outputs);
    for (shard, buf) in wanted.iter().zip(&rebuilt) {
        if !verifies(row, *shard, granules, buf) {
            return Err(Error::corrupt(format!(
                "shard {shard} of stripe {id} does not match its checksum even when reconstructed"
            )));
        }
    }
    Ok(rebuilt)
}

/// The whole payloads of the `wanted` shards, computed from the others; where fewer than k shards are good all over, from
/// those that are good in each place, as reads do it.
pub fn rebuild_shards(media: &dyn Media, id: StripeId, row: &StripeRow, wanted: &[usize]) -> Result<Vec<AlignedBuf>> {
    let rebuilt = reconstruct(media, id, row, wanted, &(0..row.granules()), &mut Vec::new());
    if !matches!(rebuilt, Err(Error::Corrupt(_))) {
        return rebuilt;
    }
    let mut payloads: Vec<AlignedBuf> = wanted.iter().map(|_| AlignedBuf::scratch(shard_bytes(row))).collect();
    for granule in 0..row.granules() {
        let here = granule..granule + 1;
        let pieces = reconstruct(media, id, row, wanted, &here, &mut Vec::new())?;
        for (payload, piece) in payloads.iter_mut().zip(&pieces) {
            payload[byte_range(row, &here)].copy_from_slice(piece);
        }
    }
    Ok(payloads)
}

/// Whether some of a stripe cannot be read any more. `bad` are its shards that are not as they should be.
pub fn is_lost(media: &dyn Media, id: StripeId, row: &StripeRow, bad: &[BadShard]) -> bool {
    let wanted: Vec<usize> = bad.iter().map(|shard| usize::from(shard.index)).collect();
    wanted.len() > usize::from(row.m) && rebuild_shards(media, id, row, &wanted).is_err()
}

/// The whole payload of one shard as its device has it, if it verifies.
pub fn read_shard(media: &dyn Media, row: &StripeRow, shard: usize) -> Option<AlignedBuf> {
    let placement = *row.placements.get(shard)?;
    let device = media.device(placement.device)?;
    let mut bytes = AlignedBuf::scratch(shard_bytes(row));
    device.read_at(payload_offset(placement, &(0..0)), &mut bytes).ok()?;
    verifies(row, shard, &(0..row.granules()), &bytes).then_some(bytes)
}

/// Reads and verifies every shard of a stripe; returns those that are not as they should be.
pub fn verify_stripe(media: &dyn Media, id: StripeId, row: &StripeRow) -> Vec<BadShard> {
    let granules = 0..row.granules();
    let mut bad = Vec::new();
    let mut present = Vec::new();
    for (shard, placement) in row.placements.iter().enumerate() {
        match (*placement != Placement::NONE).then(|| media.device(placement.device)).flatten() {
            Some(device) => present.push((shard, device, AlignedBuf::scratch(shard_bytes(row)))),
            None => bad.push(BadShard::of(id, row, shard, Fault::Missing)),
        }
    }
    let mut batch: Vec<Request<'_>> = present
        .iter_mut()
        .map(|(shard, device, buf)| {
            let offset = payload_offset(row.placements[*shard], &(0..0));
            Request::new(&**device, Op::Read { offset, buf })
        })
        .collect();
    media.engine().run(&mut batch);
    let results: Vec<bool> = batch.into_iter().map(|request| request.result.is_ok()).collect();
    for ((shard, _, buf), read) in present.iter().zip(results) {
        let fault = match read {
            false => Fault::Io,
            true if verifies(row, *shard, &granules, buf) => continue,
            true => Fault::Checksum,
        };
        bad.push(BadShard::of(id, row, *shard, fault));
    }
    bad
}

#[cfg(test)]
#[path = "stripe_io/tests.rs"]
mod tests;
