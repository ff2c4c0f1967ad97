//! Appending to the log.
//!
//! Invariants:
//! - `tail <= position`, and no more than `capacity` blocks lie between them; nothing in between is overwritten.
//! - The tail moves to a checkpoint only when an anchor that names it is durable on every replica. Until then the older
//!   anchor leads to the checkpoint through entries that are still there.
//! - A unit is acknowledged only after one flush of every replica that followed its write.

use super::block::{BLOCK, Block, zeroed};
use super::recover::Cursor;
use super::replicas::{Piece, Replica};
use crate::base::{BLOCK_SIZE, Result};
use crate::format::log::{ANCHORS, Anchor, EntryHead, HEAD, Kind, Link, entry_blocks};
use zerocopy::IntoBytes;

/// The head of the log: where the next entry goes and what it must name.
pub struct Ring {
    /// Blocks between the anchors and the end.
    pub capacity: u64,
    /// The most an entry carries.
    pub entry_limit: usize,
    pub volume: u64,
    pub life: u32,
    pub salt: u64,
    pub position: u64,
    pub seq: u64,
    pub link: Link,
    /// Position of the oldest block that must stay.
    pub tail: u64,
    /// The tail once the anchor written last is durable.
    pub next_tail: Option<u64>,
    /// Which anchor block is written next.
    pub slot: u64,
    /// Redo since the newest checkpoint.
    pub groups: u64,
    pub redo_bytes: u64,
}

/// Entries ready to be written.
pub struct Frames {
    pub position: u64,
    pub blocks: Vec<Block>,
}

impl Ring {
    /// Blocks that can be written without touching what must stay.
    pub fn free(&self) -> u64 {
        self.capacity - (self.position - self.tail)
    }

    /// The same, once the anchor written last is durable.
    pub fn free_soon(&self) -> u64 {
        self.capacity - (self.position - self.next_tail.unwrap_or(self.tail))
    }

    /// All replicas were flushed, and what was to be durable was written before.
    pub fn flushed(&mut self) {
        if let Some(tail) = self.next_tail.take() {
            self.tail = tail;
        }
    }

    /// An anchor in front of the next entry.
    pub fn anchor(&self) -> Anchor {
        Anchor { volume: self.volume, seq: self.seq, position: self.position, life: self.life, previous: self.link }
    }

    /// Whether a walk came to where the next entry goes.
    pub fn ends_at(&self, end: &Cursor) -> bool {
        (end.position, end.seq, end.link) == (self.position, self.seq, self.link)
    }

    /// Blocks a unit of so many bytes takes.
    pub fn unit_blocks(&self, len: usize) -> u64 {
        let whole = (len / self.entry_limit) as u64;
        let rest = len % self.entry_limit;
        whole * entry_blocks(self.entry_limit) + if rest > 0 || whole == 0 { entry_blocks(rest) } else { 0 }
    }

    /// Frames a unit and moves on; it has to be written now.
    pub fn frame(&mut self, kind: Kind, unit: &[u8]) -> Frames {
        let mut frames = Frames { position: self.position, blocks: zeroed(self.unit_blocks(unit.len()) as usize) };
        let bytes = frames.blocks.as_mut_slice().as_mut_bytes();
        let mut at = 0;
        let mut rest = unit;
        loop {
            let (payload, tail) = rest.split_at(rest.len().min(self.entry_limit));
            let mut head = EntryHead {
                kind,
                more: !tail.is_empty(),
                continued: rest.len() < unit.len(),
                payload_len: payload.len() as u32,
                life: self.life,
                volume: self.volume,
                salt: self.salt,
                seq: self.seq,
                position: self.position,
                previous: self.link,
                hash: self.link,
            };
            bytes[at..at + HEAD].copy_from_slice(&head.seal(payload));
            bytes[at + HEAD..at + HEAD + payload.len()].copy_from_slice(payload);
            at += head.blocks() as usize * BLOCK;
            self.position += head.blocks();
            self.seq += 1;
            self.link = head.hash;
            rest = tail;
            if rest.is_empty() {
                return frames;
            }
        }
    }
}

/// Where blocks of the log go on a replica: one piece, or two where the ring ends in between.
pub fn pieces<'a>(replica: &Replica, capacity: u64, position: u64, blocks: &'a [Block]) -> Vec<Piece<'a>> {
    let from = position % capacity;
    let first = ((capacity - from) as usize).min(blocks.len());
    let base = replica.log.0 + ANCHORS;
    let (head, tail) = blocks.split_at(first);
    let mut pieces = vec![((base + from) * BLOCK_SIZE, vec![head.as_bytes()])];
    if !tail.is_empty() {
        pieces.push((base * BLOCK_SIZE, vec![tail.as_bytes()]));
    }
    pieces
}

/// Reads blocks of the log from a replica.
pub fn read(replica: &Replica, capacity: u64, position: u64, blocks: &mut [Block]) -> Result<()> {
    let from = position % capacity;
    let first = ((capacity - from) as usize).min(blocks.len());
    let base = replica.log.0 + ANCHORS;
    let (head, tail) = blocks.split_at_mut(first);
    replica.device.read_at((base + from) * BLOCK_SIZE, head.as_mut_bytes())?;
    if tail.is_empty() { Ok(()) } else { replica.device.read_at(base * BLOCK_SIZE, tail.as_mut_bytes()) }
}

impl super::Core {
    /// Writes framed entries to every replica; not durable yet.
    pub fn write_frames(&self, ring: &Ring, frames: &Frames) -> Result<()> {
        self.write_all(|replica| Ok(pieces(replica, ring.capacity, frames.position, &frames.blocks)))
    }

    /// Writes an anchor that makes `anchor` the start of the log once the replicas are flushed.
    pub fn write_anchor(&self, ring: &mut Ring, anchor: &Anchor) -> Result<()> {
        let block = Block::padded(&anchor.encode());
        let slot = ring.slot;
        self.write_all(|replica| Ok(vec![((replica.log.0 + slot) * BLOCK_SIZE, vec![block.as_bytes()])]))?;
        ring.slot = (slot + 1) % ANCHORS;
        ring.next_tail = Some(anchor.position);
        Ok(())
    }
}
