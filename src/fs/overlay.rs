//! Content of one file that is not committed yet: bytes by offset, in buffers that grow as a writer goes on.
//!
//! Invariants:
//! - Segments are not empty, do not overlap, and are never longer than the limit given with each write.
//! - `bytes` is the sum of their lengths.

use std::collections::BTreeMap;
use std::ops::Range;

use super::lock;
use crate::base::sync::Mutex;

/// A piece of content on its way out.
pub type Segment = (u64, Vec<u8>);

/// From this size on a segment gets a buffer that can take a whole stripe.
const LARGE: usize = 256 << 10;
/// A following segment up to this size is appended to the one before it when the gap between them closes.
const SMALL: usize = 64 << 10;

/// Whole-stripe buffers to be used again: the first touch of fresh memory costs more than copying into it.
#[derive(Debug)]
pub struct Buffers {
    capacity: usize,
    most: usize,
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// Keeps at most `most` free buffers of `capacity` bytes.
    pub fn new(capacity: usize, most: usize) -> Buffers {
        Buffers { capacity, most, free: Mutex::default() }
    }

    /// An empty buffer for `bytes` to begin with.
    fn take(&self, bytes: usize) -> Vec<u8> {
        if bytes < LARGE {
            return Vec::with_capacity(bytes);
        }
        let used = lock(&self.free).pop();
        used.unwrap_or_else(|| Vec::with_capacity(self.capacity.max(bytes)))
    }

    /// Takes back a buffer nobody needs any more.
    pub fn give(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() < self.capacity || buffer.capacity() > 2 * self.capacity {
            return;
        }
        buffer.clear();
        let mut free = lock(&self.free);
        if free.len() < self.most {
            free.push(buffer);
        }
    }

    /// Makes room for `more` bytes in a segment.
    fn grow(&self, segment: &mut Vec<u8>, more: usize) {
        let needed = segment.len() + more;
        if segment.capacity() >= needed {
            return;
        }
        if needed < LARGE {
            // At least doubles.
            return segment.reserve(more);
        }
        let mut larger = self.take(needed);
        larger.extend_from_slice(segment);
        self.give(std::mem::replace(segment, larger));
    }
}

/// The content.
#[derive(Debug, Default)]
pub struct Overlay {
    segments: BTreeMap<u64, Vec<u8>>,
    bytes: u64,
}

fn end(start: u64, segment: &[u8]) -> u64 {
    start + segment.len() as u64
}

impl Overlay {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Where the last byte held ends; 0 when nothing is held.
    pub fn end(&self) -> u64 {
        self.segments.last_key_value().map_or(0, |(start, segment)| end(*start, segment))
    }

    /// Segments that overlap `range`, ascending.
    fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &Vec<u8>)> {
        let first = self.before(range.start).filter(|(start, segment)| end(*start, segment) > range.start);
        let rest = (range.start < range.end).then(|| self.segments.range(range.clone()));
        let first = first.filter(|_| rest.is_some());
        first.into_iter().chain(rest.into_iter().flatten().map(|(start, segment)| (*start, segment)))
    }

    /// The last segment that starts below `offset`.
    fn before(&self, offset: u64) -> Option<(u64, &Vec<u8>)> {
        self.segments.range(..offset).next_back().map(|(start, segment)| (*start, segment))
    }

    /// The parts of `range` that are held, ascending; neighbours are merged.
    pub fn held(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut parts: Vec<Range<u64>> = Vec::new();
        for (start, segment) in self.overlapping(range.clone()) {
            let part = start.max(range.start)..end(start, segment).min(range.end);
            match parts.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => parts.push(part),
            }
        }
        parts
    }

    /// Whether anything of `range` is held.
    pub fn touches(&self, range: Range<u64>) -> bool {
        self.overlapping(range).next().is_some()
    }

    /// Bytes of `range` that are not held.
    pub fn missing(&self, range: Range<u64>) -> u64 {
        let held = |(start, segment): (u64, &Vec<u8>)| end(start, segment).min(range.end) - start.max(range.start);
        range.end - range.start - self.overlapping(range.clone()).map(held).sum::<u64>()
    }

    /// Takes over `data`. No segment grows beyond `limit`.
    pub fn write(&mut self, mut offset: u64, mut data: &[u8], limit: usize, buffers: &Buffers) {
        while !data.is_empty() {
            let covering = self.segments.range_mut(..=offset).next_back();
            let done = match covering {
                Some((start, segment)) if end(*start, segment) > offset => {
                    let skip = (offset - start) as usize;
                    let count = data.len().min(segment.len() - skip);
                    segment[skip..skip + count].copy_from_slice(&data[..count]);
                    count
                }
                _ => {
                    let next = self.segments.range(offset..).next().map(|(start, _)| start - offset);
                    let gap = next.map_or(data.len(), |gap| gap.min(data.len() as u64) as usize);
                    self.fill_gap(offset, &data[..gap], limit, buffers);
                    gap
                }
            };
            offset += done as u64;
            data = &data[done..];
        }
    }

    /// Puts `data` where nothing is held: behind the segment that ends there as far as that may grow, the rest into
    /// new ones.
    fn fill_gap(&mut self, mut offset: u64, mut data: &[u8], limit: usize, buffers: &Buffers) {
        self.bytes += data.len() as u64;
        if let Some((start, segment)) = self.segments.range_mut(..offset).next_back()
            && end(*start, segment) == offset
            && segment.len() < limit
        {
            let count = data.len().min(limit - segment.len());
            buffers.grow(segment, count);
            segment.extend_from_slice(&data[..count]);
            offset += count as u64;
            data = &data[count..];
        }
        while !data.is_empty() {
            let count = data.len().min(limit);
            let mut segment = buffers.take(count);
            segment.extend_from_slice(&data[..count]);
            self.segments.insert(offset, segment);
            offset += count as u64;
            data = &data[count..];
        }
        self.join(offset, limit, buffers);
    }

    /// Appends a small segment that starts at `offset` to the one that ends there.
    fn join(&mut self, offset: u64, limit: usize, buffers: &Buffers) {
        let Some(next) = self.segments.get(&offset).map(Vec::len).filter(|length| *length <= SMALL) else { return };
        let Some((start, segment)) = self.segments.range_mut(..offset).next_back() else { return };
        if end(*start, segment) != offset || segment.len() + next > limit {
            return;
        }
        let start = *start;
        let Some(next) = self.segments.remove(&offset) else { return };
        if let Some(segment) = self.segments.get_mut(&start) {
            buffers.grow(segment, next.len());
            segment.extend_from_slice(&next);
        }
    }

    /// Puts `data` only where nothing is held; returns how many bytes that were.
    pub fn write_under(&mut self, offset: u64, data: &[u8], limit: usize, buffers: &Buffers) -> u64 {
        let range = offset..offset + data.len() as u64;
        let before = self.bytes;
        for gap in gaps(range, &self.held(offset..offset + data.len() as u64)) {
            let piece = &data[(gap.start - offset) as usize..(gap.end - offset) as usize];
            self.fill_gap(gap.start, piece, limit, buffers);
        }
        self.bytes - before
    }

    /// Copies what is held of the bytes from `offset` on to their places in `out`.
    pub fn copy_to(&self, offset: u64, out: &mut [u8]) {
        for (start, segment) in self.overlapping(offset..offset + out.len() as u64) {
            copy_overlap(start, segment, offset, out);
        }
    }

    /// The contiguous bytes held around `offset`. Looks no further to a side once `enough` are found.
    pub fn run_around(&self, offset: u64, enough: u64) -> Range<u64> {
        let Some((start, segment)) = self.overlapping(offset..offset + 1).next() else { return offset..offset };
        let mut run = start..end(start, segment);
        while run.end - run.start < enough {
            match self.segments.get(&run.end) {
                Some(segment) => run.end = end(run.end, segment),
                None => break,
            }
        }
        while run.end - run.start < enough {
            match self.before(run.start) {
                Some((start, segment)) if end(start, segment) == run.start => run.start = start,
                _ => break,
            }
        }
        run
    }

    /// Takes out what is held of `range`, at most `most` bytes, ascending.
    pub fn take(&mut self, range: Range<u64>, most: u64) -> Vec<Segment> {
        let mut taken = Vec::new();
        let mut left = most;
        self.cut(range.start);
        while left > 0 && range.start < range.end {
            let Some((&start, segment)) = self.segments.range(range.clone()).next() else { break };
            let stop = end(start, segment).min(range.end).min(start.saturating_add(left));
            self.cut(stop);
            let Some(segment) = self.segments.remove(&start) else { break };
            left -= segment.len() as u64;
            self.bytes -= segment.len() as u64;
            taken.push((start, segment));
        }
        taken
    }

    /// Makes sure that no segment reaches across `offset`.
    fn cut(&mut self, offset: u64) {
        if let Some((start, segment)) = self.segments.range_mut(..offset).next_back()
            && end(*start, segment) > offset
        {
            let tail = segment.split_off((offset - start) as usize);
            self.segments.insert(offset, tail);
        }
    }
}

/// The parts of `range` outside `held`, which ascends and lies within it.
pub fn gaps(range: Range<u64>, held: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut gaps = Vec::new();
    let mut reached = range.start;
    for part in held {
        if part.start > reached {
            gaps.push(reached..part.start);
        }
        reached = reached.max(part.end);
    }
    if reached < range.end {
        gaps.push(reached..range.end);
    }
    gaps
}

/// Copies the part of `segment`, which starts at `start`, that belongs into `out`, which starts at `offset`.
pub fn copy_overlap(start: u64, segment: &[u8], offset: u64, out: &mut [u8]) {
    let from = start.max(offset);
    let to = end(start, segment).min(end(offset, out));
    if from < to {
        let target = &mut out[(from - offset) as usize..(to - offset) as usize];
        target.copy_from_slice(&segment[(from - start) as usize..(to - start) as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Prng;

    const LIMIT: usize = 64;

    /// The whole file, `None` where nothing is held.
    fn compare(overlay: &Overlay, model: &[Option<u8>]) {
        let mut bytes = 0;
        let mut reached = 0;
        for (start, segment) in &overlay.segments {
            assert!(*start >= reached && !segment.is_empty() && segment.len() <= LIMIT);
            reached = end(*start, segment);
            bytes += segment.len() as u64;
        }
        assert_eq!(bytes, overlay.bytes);
        let all = 0..model.len() as u64;
        assert_eq!(model.iter().filter(|byte| byte.is_none()).count() as u64, overlay.missing(all.clone()));
        let mut out = vec![0; model.len()];
        overlay.copy_to(0, &mut out);
        for part in gaps(all.clone(), &overlay.held(all.clone())) {
            assert!(part.clone().all(|at| model[at as usize].is_none()), "{part:?}");
        }
        for (at, byte) in model.iter().enumerate() {
            assert_eq!(out[at], byte.unwrap_or(0), "at {at}");
        }
        let mut runs = overlay.held(all);
        runs.push(model.len() as u64..model.len() as u64);
        for at in (0..model.len() as u64).step_by(7) {
            let run = runs.iter().find(|run| run.end > at || run.is_empty()).expect("the last one ends them all");
            let expected = if run.contains(&at) { run.clone() } else { at..at };
            assert_eq!(overlay.run_around(at, u64::MAX), expected);
        }
    }

    #[test]
    fn behaves_as_a_map_of_bytes() {
        for seed in 0..100 {
            let mut prng = Prng::new(seed);
            let buffers = Buffers::new(LIMIT, 2);
            let mut overlay = Overlay::default();
            let mut model = vec![None; 400];
            for step in 0..60 {
                let start = prng.below(390);
                let most = if prng.chance(1, 4) { 400 - start } else { 10 };
                let length = 1 + prng.below(most);
                let range = start as usize..(start + length) as usize;
                let data = vec![step as u8 + 1; length as usize];
                match prng.below(8) {
                    0..=3 => {
                        overlay.write(start, &data, LIMIT, &buffers);
                        model[range].fill(Some(step as u8 + 1));
                    }
                    4 | 5 => {
                        let before = overlay.bytes();
                        let added = overlay.write_under(start, &data, LIMIT, &buffers);
                        assert_eq!(overlay.bytes(), before + added);
                        model[range]
                            .iter_mut()
                            .filter(|byte| byte.is_none())
                            .for_each(|byte| *byte = Some(step as u8 + 1));
                    }
                    kind => {
                        let most = if kind == 6 { prng.below(100) } else { u64::MAX };
                        let mut left = most;
                        let mut expected = Vec::new();
                        for at in range.clone() {
                            if left > 0
                                && let Some(byte) = model[at].take()
                            {
                                expected.push((at as u64, byte));
                                left -= 1;
                            }
                        }
                        let taken = overlay.take(start..start + length, most);
                        let taken: Vec<_> = taken
                            .iter()
                            .flat_map(|(start, bytes)| {
                                bytes.iter().enumerate().map(move |(at, byte)| (start + at as u64, *byte))
                            })
                            .collect();
                        assert_eq!(taken, expected, "seed {seed}");
                    }
                }
                compare(&overlay, &model);
            }
        }
    }

    #[test]
    fn a_sequential_writer_fills_one_buffer_of_a_stripe() {
        let limit = 2 << 20;
        let buffers = Buffers::new(limit, 4);
        let mut overlay = Overlay::default();
        for offset in (0..4 << 20).step_by(64 << 10) {
            overlay.write(offset, &[7; 64 << 10], limit, &buffers);
        }
        let segments = overlay.take(0..u64::MAX, u64::MAX);
        assert_eq!(segments.iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), [limit, limit]);
        let first = segments[0].1.as_ptr();
        segments.into_iter().for_each(|(_, bytes)| buffers.give(bytes));
        let mut reused = Overlay::default();
        reused.write(0, &[1; 1 << 20], limit, &buffers);
        reused.write(1 << 20, &[2; 1 << 20], limit, &buffers);
        reused.write(2 << 20, &[3; 1 << 20], limit, &buffers);
        assert_eq!(reused.segments[&(2 << 20)].as_ptr(), first, "the last buffer given back is taken last");
    }
}
