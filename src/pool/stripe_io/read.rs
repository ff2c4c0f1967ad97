//! Reading parts of payloads: all that is needed, and no more, in one batch; what cannot be read, or not in time, is
//! reconstructed from shards that were read anyway wherever possible.

use std::ops::Range;
use std::sync::Arc;

use super::{
    BadShard, Fault, Media, byte_range, granule_bytes, judge, own_read, reconstruct, shard_bytes, source, verifies,
};
use crate::base::{Error, Result, StripeId};
use crate::device::buffer::AlignedBuf;
use crate::device::{Device, STALL};
use crate::erasure::{Codec, Geometry};
use crate::format::rows::StripeRow;

/// Bytes wanted from a stripe's payload.
pub struct PayloadRead<'a> {
    pub id: StripeId,
    pub row: &'a StripeRow,
    /// First payload byte.
    pub start: u32,
    pub out: &'a mut [u8],
}

/// What a read wants of one shard.
struct Span {
    shard: usize,
    granules: Range<usize>,
    /// Where the wanted bytes go in the read's buffer, and where they start in the granules.
    out: Range<usize>,
    skip: usize,
    /// Why the shard is not read.
    fault: Option<Fault>,
}

/// What is to be read of one shard.
struct Piece {
    shard: usize,
    granules: Range<usize>,
    device: Arc<dyn Device>,
}

struct Plan {
    spans: Vec<Span>,
    pieces: Vec<Piece>,
}

/// What was read of one shard, or why it was not.
struct Got {
    shard: usize,
    granules: Range<usize>,
    bytes: std::result::Result<AlignedBuf, Fault>,
}

/// Fills the buffers of all `reads` in one batch, reconstructing what is missing or bad. Returns the shards found bad;
/// fails when a stripe has too few good ones left.
pub fn read_payloads(media: &dyn Media, reads: &mut [PayloadRead<'_>]) -> Result<Vec<BadShard>> {
    let plans = reads.iter().map(|read| plan(media, read)).collect::<Result<Vec<Plan>>>()?;
    let mut batch = Vec::new();
    for (read, plan) in reads.iter().zip(&plans) {
        let read = |piece: &Piece| own_read(read.row, piece.shard, &piece.granules, Arc::clone(&piece.device));
        batch.extend(plan.pieces.iter().map(read));
    }
    let mut answers = media.engine().read(batch, Some(STALL)).into_iter();
    let mut bad = Vec::new();
    let mut got: Vec<Vec<Got>> = Vec::with_capacity(plans.len());
    for (read, plan) in reads.iter().zip(&plans) {
        let pieces = plan.pieces.iter().zip(&mut answers).map(|(piece, answer)| Got {
            shard: piece.shard,
            granules: piece.granules.clone(),
            bytes: judge(read.row, piece.shard, &piece.granules, answer),
        });
        got.push(pieces.collect());
    }
    for ((read, plan), got) in reads.iter_mut().zip(&plans).zip(&got) {
        deliver(media, read, &plan.spans, got, &mut bad)?;
    }
    Ok(bad)
}

/// Cuts a read into spans of single shards, and decides what to read for them: the shards themselves, and where some
/// cannot be read, as many others as reconstruction takes.
fn plan(media: &dyn Media, read: &PayloadRead<'_>) -> Result<Plan> {
    let row = read.row;
    let shard_bytes = shard_bytes(row);
    let (mut from, end) = (read.start as usize, read.start as usize + read.out.len());
    if end > shard_bytes * usize::from(row.k) {
        return Err(Error::corrupt(format!("a read leaves stripe {}; run fsck", read.id)));
    }
    let mut spans: Vec<Span> = Vec::new();
    let mut sources: Vec<(usize, Range<usize>, Arc<dyn Device>)> = Vec::new();
    let mut lost: Option<Range<usize>> = None;
    while from < end {
        let shard = from / shard_bytes;
        let inside = from % shard_bytes;
        let length = (end - from).min(shard_bytes - inside);
        let granules = inside / granule_bytes(row)..(inside + length).div_ceil(granule_bytes(row));
        let (device, fault) = source(media, row.placements[shard]);
        match device {
            Some(device) => sources.push((shard, granules.clone(), device)),
            None => lost = Some(hull(lost, &granules)),
        }
        let out = from - read.start as usize;
        let skip = inside - byte_range(row, &granules).start;
        spans.push(Span { shard, granules, out: out..out + length, skip, fault });
        from += length;
    }
    if let Some(lost) = lost {
        for (_, granules, _) in &mut sources {
            *granules = hull(Some(granules.clone()), &lost);
        }
        let wanted: Vec<usize> = spans.iter().map(|span| span.shard).collect();
        let others = (0..row.placements.len()).filter(|shard| !wanted.contains(shard));
        let others = others.filter_map(|shard| Some((shard, lost.clone(), source(media, row.placements[shard]).0?)));
        let missing = usize::from(row.k).saturating_sub(sources.len());
        sources.extend(others.take(missing).collect::<Vec<_>>());
    }
    let piece = |(shard, granules, device)| Piece { shard, granules, device };
    Ok(Plan { spans, pieces: sources.into_iter().map(piece).collect() })
}

/// The smallest range around both.
fn hull(one: Option<Range<usize>>, other: &Range<usize>) -> Range<usize> {
    one.map_or(other.clone(), |one| one.start.min(other.start)..one.end.max(other.end))
}

/// The bytes of `granules` within what was read, if it is good and covers them.
fn part<'a>(row: &StripeRow, got: &'a Got, granules: &Range<usize>) -> Option<&'a [u8]> {
    let first = byte_range(row, &got.granules).start;
    let bytes = byte_range(row, granules);
    got.bytes.as_ref().ok()?.get(bytes.start.checked_sub(first)?..bytes.end - first)
}

/// Copies what was read to where it is wanted; reconstructs the rest.
fn deliver(
    media: &dyn Media,
    read: &mut PayloadRead<'_>,
    spans: &[Span],
    got: &[Got],
    bad: &mut Vec<BadShard>,
) -> Result<()> {
    let row = read.row;
    let not_read = spans.iter().filter_map(|span| Some((span.shard, span.fault?)));
    let not_good = got.iter().filter_map(|got| Some((got.shard, *got.bytes.as_ref().err()?)));
    for (shard, fault) in not_read.chain(not_good) {
        let found = BadShard::of(read.id, row, shard, fault);
        if !bad.contains(&found) {
            bad.push(found);
        }
    }
    for span in spans {
        let out = &mut read.out[span.out.clone()];
        let present: Vec<(u8, &[u8])> =
            got.iter().filter_map(|got| Some((got.shard as u8, part(row, got, &span.granules)?))).collect();
        if let Some((_, bytes)) = present.iter().find(|(shard, _)| usize::from(*shard) == span.shard) {
            out.copy_from_slice(&bytes[span.skip..][..out.len()]);
            continue;
        }
        if present.len() < usize::from(row.k) {
            let rebuilt = reconstruct(media, read.id, row, &[span.shard], &span.granules, bad)?;
            out.copy_from_slice(&rebuilt[0][span.skip..][..out.len()]);
            continue;
        }
        let mut rebuilt = AlignedBuf::scratch(byte_range(row, &span.granules).len());
        let codec = Codec::new(Geometry::new(row.k, row.m)?);
        codec.reconstruct(&present, &mut [(span.shard as u8, &mut rebuilt[..])])?;
        if !verifies(row, span.shard, &span.granules, &rebuilt) {
            return Err(Error::corrupt(format!(
                "shard {} of stripe {} does not match its checksum even when reconstructed",
                span.shard, read.id
            )));
        }
        out.copy_from_slice(&rebuilt[span.skip..][..out.len()]);
    }
    Ok(())
}
