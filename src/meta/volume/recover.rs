//! Reading the log after any crash.
//!
//! The chain is walked over all live replicas together: at each step any replica may have the entry that continues it, and
//! which replicas lack it is noted. So entries that rotted on different replicas do not add up, and the walk ends where no
//! replica has a continuation. Units cut off at the end have not happened.
//!
//! What cannot be read is no end: acknowledged entries may lie there. It is taken for one only where a replica that has the
//! entry in front of it says that none follows, since entries are acknowledged when all replicas have them.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use super::block::{Block, zeroed};
use super::replicas::Replica;
use crate::base::{BLOCK_SIZE, BlockNo, Error, Result};
use crate::device::Device;
use crate::format::log::{ANCHORS, Anchor, EntryHead, HEAD, Kind, Link, entry_blocks};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Blocks read at a time.
const WINDOW: usize = 64;
/// How often something is read until it counts as unreadable.
pub const TRIES: usize = 3;
/// Starts tried when no anchor leads to a checkpoint.
const MAX_STARTS: usize = 64;

/// Reads one replica's ring.
struct Reader<'a> {
    device: &'a dyn Device,
    is_source: bool,
    /// Device block of the first block behind the anchors.
    base: u64,
    capacity: u64,
    window: Vec<Block>,
    /// Place in the ring of the window's first block, and how many blocks of the window hold something.
    at: u64,
    filled: usize,
}

impl<'a> Reader<'a> {
    fn new(replica: &'a Replica, capacity: u64) -> Reader<'a> {
        let window = zeroed(WINDOW);
        let (device, is_source) = (&*replica.device, !replica.is_joining());
        Reader { device, is_source, base: replica.log.0 + ANCHORS, capacity, window, at: 0, filled: 0 }
    }

    /// The block at a position.
    fn block(&mut self, position: u64) -> Result<&Block> {
        let place = position % self.capacity;
        if place.checked_sub(self.at).is_none_or(|from| from >= self.filled as u64) {
            let count = (self.capacity - place).min(WINDOW as u64) as usize;
            self.filled = 0;
            self.at = place;
            let offset = (self.base + place) * BLOCK_SIZE;
            let device = self.device;
            let mut read = |count| {
                let blocks = self.window.get_mut(..count).unwrap_or_default();
                read_again(device, offset, blocks.as_mut_bytes()).map(|()| count)
            };
            // A bad sector behind it must not hide this block.
            self.filled = read(count).or_else(|_| read(1))?;
        }
        self.window.get((place - self.at) as usize).ok_or_else(|| Error::corrupt("a log without blocks"))
    }

    /// The entry at a position if its bytes are whole and its head fits. An error when some of it cannot be read.
    fn entry(&mut self, position: u64, fits: impl Fn(&EntryHead) -> bool) -> Result<Option<(EntryHead, Vec<u8>)>> {
        let first = self.block(position)?.0;
        let head = EntryHead::decode(&first).filter(|head| head.position == position && head.blocks() <= self.capacity);
        let Some(head) = head.filter(fits) else { return Ok(None) };
        let len = head.payload_len as usize;
        let mut payload = Vec::with_capacity(len.min(first.len()));
        payload.extend(first.iter().skip(HEAD).take(len));
        for at in 1..entry_blocks(len) {
            let rest = len - payload.len();
            payload.extend(self.block(position + at)?.0.iter().take(rest));
        }
        Ok(head.matches(&first, &payload).then_some((head, payload)))
    }

    /// Forgets what was read ahead.
    fn forget(&mut self) {
        self.filled = 0;
    }

    fn anchor(&self, slot: u64) -> Option<Anchor> {
        let mut block = Block::zeroed();
        read_again(self.device, (self.base - ANCHORS + slot) * BLOCK_SIZE, &mut block.0).ok()?;
        Anchor::decode(&block.0)
    }
}

/// Reads what ends the log where it cannot be read: not for one error that passes.
pub fn read_again(device: &dyn Device, offset: u64, buf: &mut [u8]) -> Result<()> {
    (1..TRIES).find_map(|_| device.read_at(offset, buf).ok()).map_or_else(|| device.read_at(offset, buf), Ok)
}

/// The block that `is_right`, from one of these replicas and places; `None` when it is wrong everywhere. An error when it is
/// not right anywhere and could not be read somewhere: it may be right there.
pub fn read_right<'a>(
    places: impl Iterator<Item = (&'a Replica, BlockNo)>,
    is_right: impl Fn(&mut Block) -> bool,
) -> Result<Option<Box<Block>>> {
    let mut content = Block::zeroed();
    let mut failed = None;
    for (replica, place) in places {
        let mut last = Ok(());
        for _ in 0..TRIES {
            last = replica.device.read_at(place.byte_offset(), &mut content.0);
            if last.is_ok() && is_right(&mut content) {
                return Ok(Some(content));
            }
        }
        failed = last.err().or(failed);
    }
    failed.map_or(Ok(None), Err)
}

/// Where a walk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor {
    pub position: u64,
    pub seq: u64,
    pub link: Link,
    /// The highest life so far.
    pub life: u32,
}

impl Cursor {
    fn at(anchor: &Anchor) -> Cursor {
        Cursor { position: anchor.position, seq: anchor.seq, link: anchor.previous, life: anchor.life }
    }

    /// The anchor in front of the entry here.
    pub fn anchor(&self, volume: u64) -> Anchor {
        Anchor { volume, seq: self.seq, position: self.position, life: self.life, previous: self.link }
    }
}

/// An entry of the chain, and where it was found.
pub struct Found {
    pub position: u64,
    pub blocks: u64,
    /// Bit per replica that has it.
    pub holders: u64,
    hash: Link,
}

impl Found {
    /// Whether the bytes begin with this entry.
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        EntryHead::decode(bytes).filter(|head| head.hash == self.hash).is_some_and(|head| {
            let payload = bytes.get(HEAD..).and_then(|rest| rest.get(..head.payload_len as usize));
            payload.is_some_and(|payload| head.matches(bytes, payload))
        })
    }
}

/// What the log holds.
pub struct Log {
    /// In front of the newest checkpoint, and its unit.
    pub checkpoint: Cursor,
    pub unit: Vec<u8>,
    /// The redo units behind it.
    pub redo: Vec<Vec<u8>>,
    /// Behind the last whole unit.
    pub end: Cursor,
    /// The anchor slot that led here: not the one to write next.
    pub slot: u64,
    /// No anchor led here: all of the ring was read.
    pub scanned: bool,
    /// Why it cannot be told whether entries follow: no replica that might have one can be read there.
    pub unread: Option<Error>,
    chain: Vec<Found>,
}

/// Reads the log of a volume from `replicas` (no more than 64), whose rings have `capacity` blocks behind the anchors. Of those
/// that are joining, what they have is noted, and nothing is believed: it may be of another future.
pub fn recover(replicas: &[Arc<Replica>], volume: u64, capacity: u64) -> Result<Log> {
    let mut readers: Vec<Reader<'_>> = replicas.iter().map(|replica| Reader::new(replica, capacity)).collect();
    let mut starts: Vec<(Anchor, u64)> = Vec::new();
    for reader in readers.iter().filter(|reader| reader.is_source) {
        for slot in 0..ANCHORS {
            starts.extend(reader.anchor(slot).filter(|anchor| anchor.volume == volume).map(|anchor| (anchor, slot)));
        }
    }
    newest_first(&mut starts);
    for (anchor, slot) in starts {
        if let Some(log) = walk(&mut readers, &anchor, slot) {
            return Ok(log);
        }
    }
    let mut starts: Vec<(Anchor, u64)> = Vec::new();
    for reader in readers.iter_mut().filter(|reader| reader.is_source) {
        starts.extend(scan(reader, volume).into_iter().map(|anchor| (anchor, 0)));
    }
    newest_first(&mut starts);
    starts
        .into_iter()
        .take(MAX_STARTS)
        .find_map(|(anchor, slot)| walk(&mut readers, &anchor, slot))
        .map(|log| Log { scanned: true, ..log })
        .ok_or_else(|| Error::Unavailable(
                "no copy of the metadata log holds a checkpoint: bring back missing devices, or make the metadata again with \
                 `argosfs recover`, or with `argosfs import-meta` from an export"
                    .into(),
            ))
}

fn newest_first(starts: &mut Vec<(Anchor, u64)>) {
    starts.sort_by_key(|(anchor, _)| std::cmp::Reverse((anchor.seq, anchor.life, anchor.previous.0)));
    starts.dedup();
}

/// Looks for checkpoints at every place of the ring: for a log whose anchors are gone.
fn scan(reader: &mut Reader<'_>, volume: u64) -> Vec<Anchor> {
    let mut found = Vec::new();
    for place in 0..reader.capacity {
        let Some(head) = reader.block(place).ok().and_then(|block| EntryHead::decode(&block.0)) else { continue };
        if head.kind == Kind::Checkpoint
            && !head.continued
            && head.volume == volume
            && head.position % reader.capacity == place
        {
            let Ok(Some((head, _))) = reader.entry(head.position, |_| true) else { continue };
            found.push(Anchor {
                volume,
                seq: head.seq,
                position: head.position,
                life: head.life,
                previous: head.previous,
            });
        }
    }
    found
}

/// Follows the chain from an anchor; `None` when that does not come by a checkpoint.
fn walk(readers: &mut [Reader<'_>], start: &Anchor, slot: u64) -> Option<Log> {
    let capacity = readers.first()?.capacity;
    let mut chain = Vec::new();
    let mut cursor = Cursor::at(start);
    let mut unit_start = cursor;
    let mut unit: Vec<u8> = Vec::new();
    let mut end = cursor;
    let mut whole = 0;
    let mut checkpoint = None;
    let mut redo = Vec::new();
    let mut unread = None;
    loop {
        let (head, payload, found) = match step(readers, start.volume, &cursor, chain.last()) {
            Step::Entry(head, payload, found) => (head, payload, found),
            Step::Unread(error) => {
                unread = Some(error);
                break;
            }
            Step::End => break,
        };
        let next = Cursor {
            position: cursor.position.checked_add(found.blocks)?,
            seq: cursor.seq.checked_add(1)?,
            link: head.hash,
            life: cursor.life.max(head.life),
        };
        let begins = !head.continued;
        if next.position - start.position > capacity || begins != (unit_start == cursor) {
            break;
        }
        chain.push(found);
        cursor = next;
        unit.extend_from_slice(&payload);
        if head.more {
            continue;
        }
        let unit = std::mem::take(&mut unit);
        match head.kind {
            Kind::Redo => redo.push(unit),
            Kind::Checkpoint => {
                checkpoint = Some((unit_start, unit));
                redo.clear();
            }
            Kind::Opened => {}
        }
        end = cursor;
        unit_start = cursor;
        whole = chain.len();
    }
    chain.truncate(whole);
    let (checkpoint, unit) = checkpoint?;
    Some(Log { checkpoint, unit, redo, end, slot, scanned: false, unread, chain })
}

/// What follows a place in the chain.
enum Step {
    Entry(EntryHead, Vec<u8>, Found),
    /// Nothing.
    End,
    /// Nobody can tell.
    Unread(Error),
}

/// What continues the chain behind its `last` entry. Nothing does only if that is seen again: a read may be garbled.
fn step(readers: &mut [Reader<'_>], volume: u64, at: &Cursor, last: Option<&Found>) -> Step {
    for _ in 1..TRIES {
        if let Step::Entry(head, payload, found) = look(readers, volume, at, last) {
            return Step::Entry(head, payload, found);
        }
        readers.iter_mut().for_each(Reader::forget);
    }
    look(readers, volume, at, last)
}

/// The entry that continues the chain, from whichever replica has it. Where there are two, the later life's.
fn look(readers: &mut [Reader<'_>], volume: u64, at: &Cursor, last: Option<&Found>) -> Step {
    let mut best: Option<(EntryHead, Vec<u8>)> = None;
    let mut holding = Vec::with_capacity(readers.len());
    let mut ended = false;
    let mut failed = None;
    let fits = |head: &EntryHead| head.volume == volume && head.seq == at.seq && head.previous == at.link;
    for (index, reader) in readers.iter_mut().enumerate() {
        let (head, payload) = match reader.entry(at.position, fits) {
            Ok(Some(entry)) => entry,
            Ok(None) => {
                ended |= reader.is_source && last.is_none_or(|last| last.holders >> index & 1 == 1);
                continue;
            }
            Err(error) => {
                failed = Some(error).filter(|_| reader.is_source).or(failed);
                continue;
            }
        };
        holding.push((index, head.hash));
        let later = |chosen: &EntryHead| (chosen.life, chosen.hash.0) < (head.life, head.hash.0);
        if reader.is_source && best.as_ref().is_none_or(|(chosen, _)| later(chosen)) {
            best = Some((head, payload));
        }
    }
    let Some((head, payload)) = best else {
        return failed.filter(|_| !ended).map_or(Step::End, Step::Unread);
    };
    let holders = holding.iter().filter(|(_, hash)| *hash == head.hash).fold(0, |bits, (index, _)| bits | 1 << index);
    let found = Found { position: at.position, blocks: head.blocks(), holders, hash: head.hash };
    Step::Entry(head, payload, found)
}

impl Log {
    /// Stretches of entries from the newest checkpoint on that this replica lacks. Each lies in the ring as a whole, and the
    /// same replicas have all of it.
    pub fn missing(&self, replica: usize) -> Vec<&[Found]> {
        let from = self.chain.partition_point(|found| found.position < self.checkpoint.position);
        let behind = self.chain.get(from..).unwrap_or_default();
        let lacks = |stretch: &&[Found]| stretch.first().is_some_and(|found| found.holders >> replica & 1 == 0);
        behind.chunk_by(|a, b| a.holders == b.holders).filter(lacks).collect()
    }
}
