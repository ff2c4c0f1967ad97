//! Reading parts of payloads: all that is needed, and no more, in one batch; what cannot be read is reconstructed from
//! shards that were read anyway wherever possible.

use std::ops::Range;
use std::sync::Arc;

use super::{
    BadShard, Fault, Media, byte_range, granule_bytes, payload_offset, reconstruct, shard_bytes, source, verifies,
};
use crate::base::{Error, Result, StripeId};
use crate::device::buffer::AlignedBuf;
use crate::device::{Device, Op, Request};
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

/// What is read of one shard.
struct Piece {
    shard: usize,
    granules: Range<usize>,
    device: Arc<dyn Device>,
    bytes: AlignedBuf,
    fault: Option<Fault>,
}

struct Plan {
    spans: Vec<Span>,
    pieces: Vec<Piece>,
}

/// Fills the buffers of all `reads` in one batch, reconstructing what is missing or bad. Returns the shards found bad;
/// fails when a stripe has too few good ones left.
pub fn read_payloads(media: &dyn Media, reads: &mut [PayloadRead<'_>]) -> Result<Vec<BadShard>> {
    let mut plans = reads.iter().map(|read| plan(media, read)).collect::<Result<Vec<Plan>>>()?;
    let mut batch = Vec::new();
    for (read, plan) in reads.iter().zip(&mut plans) {
        for piece in &mut plan.pieces {
            let offset = payload_offset(read.row.placements[piece.shard], &byte_range(read.row, &piece.granules));
            batch.push(Request::new(&*piece.device, Op::Read { offset, buf: &mut piece.bytes }));
        }
    }
    media.engine().run(&mut batch);
    let answers: Vec<bool> = batch.into_iter().map(|request| request.result.is_ok()).collect();
    let mut answers = answers.into_iter();
    for (read, plan) in reads.iter().zip(&mut plans) {
        for (piece, answered) in plan.pieces.iter_mut().zip(&mut answers) {
            if !answered {
                piece.fault = Some(Fault::Io);
            } else if !verifies(read.row, piece.shard, &piece.granules, &piece.bytes) {
                piece.fault = Some(Fault::Checksum);
            }
        }
    }
    let mut bad = Vec::new();
    for (read, plan) in reads.iter_mut().zip(&plans) {
        deliver(media, read, plan, &mut bad)?;
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
    let piece = |(shard, granules, device): (usize, Range<usize>, Arc<dyn Device>)| {
        let bytes = AlignedBuf::scratch(byte_range(row, &granules).len());
        Piece { shard, granules, device, bytes, fault: None }
    };
    Ok(Plan { spans, pieces: sources.into_iter().map(piece).collect() })
}

/// The smallest range around both.
fn hull(one: Option<Range<usize>>, other: &Range<usize>) -> Range<usize> {
    one.map_or(other.clone(), |one| one.start.min(other.start)..one.end.max(other.end))
}

/// The bytes of `granules` within a piece that covers them.
fn part<'a>(row: &StripeRow, piece: &'a Piece, granules: &Range<usize>) -> &'a [u8] {
    let first = byte_range(row, &piece.granules).start;
    let bytes = byte_range(row, granules);
    &piece.bytes[bytes.start - first..bytes.end - first]
}

/// Copies what was read to where it is wanted; reconstructs the rest.
fn deliver(media: &dyn Media, read: &mut PayloadRead<'_>, plan: &Plan, bad: &mut Vec<BadShard>) -> Result<()> {
    let row = read.row;
    let mut report = |shard: usize, fault: Fault| {
        let found = BadShard::of(read.id, row, shard, fault);
        if !bad.contains(&found) {
            bad.push(found);
        }
    };
    plan.spans
        .iter()
        .filter_map(|span| Some((span.shard, span.fault?)))
        .for_each(|(shard, fault)| report(shard, fault));
    let found = plan.pieces.iter().filter_map(|piece| Some((piece.shard, piece.fault?)));
    found.for_each(|(shard, fault)| report(shard, fault));

    for span in &plan.spans {
        let good = |piece: &&Piece| {
            piece.fault.is_none()
                && piece.granules.start <= span.granules.start
                && span.granules.end <= piece.granules.end
        };
        let out = &mut read.out[span.out.clone()];
        if let Some(piece) = plan.pieces.iter().filter(good).find(|piece| piece.shard == span.shard) {
            out.copy_from_slice(&part(row, piece, &span.granules)[span.skip..][..out.len()]);
            continue;
        }
        let present: Vec<(u8, &[u8])> = plan
            .pieces
            .iter()
            .filter(good)
            .map(|piece| (piece.shard as u8, part(row, piece, &span.granules)))
            .collect();
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
