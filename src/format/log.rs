//! The bytes of the log ring: anchors, chained entries, and what the entries carry.
//!
//! A ring is two anchor blocks and then entries, each starting on a block. Positions count blocks since the ring was made
//! and never wrap; the place of a position on the device is its remainder by the ring's capacity.
//!
//! What keeps old bytes from being taken for the continuation of the chain: an entry is one only if its volume, position,
//! sequence number and the hash of its predecessor are the expected ones and its own hash covers all of these and its
//! payload. A position differs from lap to lap. Each read-write opening writes an entry with a new random salt and the next
//! life number first, so nothing a later life writes can hash to what an earlier life wrote behind it; and where a device that
//! lies about flushes offers an older continuation of the same predecessor, the higher life wins.

use super::record::{Field, Fields};
use crate::base::{BLOCK_SIZE, Error, Result};

/// Blocks in front of the ring proper: the two anchors.
pub const ANCHORS: u64 = 2;
/// Bytes of an entry's head.
pub const HEAD: usize = 128;
/// The most an entry carries; longer units are split.
pub const MAX_PAYLOAD: usize = 4 << 20;

const ENTRY_MAGIC: u32 = u32::from_le_bytes(*b"AGle");
const ANCHOR_MAGIC: u32 = u32::from_le_bytes(*b"AGla");
const VERSION: u8 = 1;
/// Bytes of the head that the hash covers.
const HASHED: usize = 80;
const ANCHOR_HASHED: usize = 80;

/// A link of the chain: the hash of an entry, or of what came before the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link(pub [u8; 32]);

impl Link {
    /// What the first entry of a volume names as its predecessor.
    pub fn genesis(volume: u64) -> Link {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"argosfs log");
        hasher.update(&volume.to_le_bytes());
        Link(*hasher.finalize().as_bytes())
    }
}

/// What an entry carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Groups of row changes, see [`put_group`].
    Redo,
    /// A [`Checkpoint`].
    Checkpoint,
    /// Nothing: a read-write opening.
    Opened,
}

/// Everything about an entry but its payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryHead {
    pub kind: Kind,
    /// The unit goes on in the next entry; it takes effect only whole.
    pub more: bool,
    /// Not the first entry of its unit.
    pub continued: bool,
    pub payload_len: u32,
    /// Number of the read-write opening that wrote it.
    pub life: u32,
    /// Random number of the volume.
    pub volume: u64,
    /// Random number of the opening that wrote it.
    pub salt: u64,
    pub seq: u64,
    /// In blocks since the ring was made.
    pub position: u64,
    pub previous: Link,
    pub hash: Link,
}

/// Blocks an entry with so much payload takes.
pub fn entry_blocks(payload_len: usize) -> u64 {
    ((HEAD + payload_len) as u64).div_ceil(BLOCK_SIZE)
}

impl EntryHead {
    /// Computes the hash over head and payload, and returns the head's bytes.
    pub fn seal(&mut self, payload: &[u8]) -> [u8; HEAD] {
        let mut bytes = Vec::with_capacity(HEAD);
        ENTRY_MAGIC.put(&mut bytes);
        bytes.push(VERSION);
        bytes.push(match self.kind {
            Kind::Redo => 1,
            Kind::Checkpoint => 2,
            Kind::Opened => 3,
        });
        bytes.push(u8::from(self.more) | u8::from(self.continued) << 1);
        bytes.push(0);
        self.payload_len.put(&mut bytes);
        self.life.put(&mut bytes);
        self.volume.put(&mut bytes);
        self.salt.put(&mut bytes);
        self.seq.put(&mut bytes);
        self.position.put(&mut bytes);
        bytes.extend_from_slice(&self.previous.0);
        self.hash = hash(&bytes, payload);
        bytes.extend_from_slice(&self.hash.0);
        let mut head = [0; HEAD];
        head.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
        head
    }

    /// Reads a head; `None` for anything else. Any bytes at all may come in, and a head proves nothing before
    /// [`EntryHead::matches`].
    pub fn decode(bytes: &[u8]) -> Option<EntryHead> {
        let mut fields = Fields(bytes);
        let mut head = || -> Result<Option<EntryHead>> {
            let magic = u32::take(&mut fields)?;
            let [version, kind, flags, zero] = fields.take::<4>()?;
            let kind = match kind {
                1 => Kind::Redo,
                2 => Kind::Checkpoint,
                3 => Kind::Opened,
                _ => return Ok(None),
            };
            if magic != ENTRY_MAGIC || version != VERSION || flags > 3 || zero != 0 {
                return Ok(None);
            }
            Ok(Some(EntryHead {
                kind,
                more: flags & 1 != 0,
                continued: flags & 2 != 0,
                payload_len: u32::take(&mut fields)?,
                life: u32::take(&mut fields)?,
                volume: u64::take(&mut fields)?,
                salt: u64::take(&mut fields)?,
                seq: u64::take(&mut fields)?,
                position: u64::take(&mut fields)?,
                previous: Link(fields.take()?),
                hash: Link(fields.take()?),
            }))
        };
        head().ok().flatten().filter(|head| head.payload_len as usize <= MAX_PAYLOAD)
    }

    /// Whether the hash is that of these very bytes. `head` is what [`EntryHead::decode`] read.
    pub fn matches(&self, head: &[u8], payload: &[u8]) -> bool {
        head.get(..HASHED).is_some_and(|head| hash(head, payload) == self.hash)
    }

    /// Blocks the entry takes.
    pub fn blocks(&self) -> u64 {
        entry_blocks(self.payload_len as usize)
    }
}

fn hash(head: &[u8], payload: &[u8]) -> Link {
    let mut hasher = blake3::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    Link(*hasher.finalize().as_bytes())
}

/// Where reading the log starts: in front of the entry at `position`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Anchor {
    pub volume: u64,
    pub seq: u64,
    pub position: u64,
    pub life: u32,
    pub previous: Link,
}

impl Anchor {
    /// The stored form; the rest of its block is zeros.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ANCHOR_HASHED + 32);
        ANCHOR_MAGIC.put(&mut bytes);
        u32::from(VERSION).put(&mut bytes);
        self.volume.put(&mut bytes);
        self.seq.put(&mut bytes);
        self.position.put(&mut bytes);
        self.life.put(&mut bytes);
        bytes.extend_from_slice(&self.previous.0);
        bytes.resize(ANCHOR_HASHED, 0);
        let hash = blake3::hash(&bytes);
        bytes.extend_from_slice(hash.as_bytes());
        bytes
    }

    /// Reads an anchor; `None` for anything else. Any bytes at all may come in.
    pub fn decode(bytes: &[u8]) -> Option<Anchor> {
        let (hashed, rest) = bytes.split_at_checked(ANCHOR_HASHED)?;
        if rest.get(..32)? != blake3::hash(hashed).as_bytes() {
            return None;
        }
        let mut fields = Fields(hashed);
        let mut anchor = || -> Result<Option<Anchor>> {
            if u32::take(&mut fields)? != ANCHOR_MAGIC || u32::take(&mut fields)? != u32::from(VERSION) {
                return Ok(None);
            }
            Ok(Some(Anchor {
                volume: u64::take(&mut fields)?,
                seq: u64::take(&mut fields)?,
                position: u64::take(&mut fields)?,
                life: u32::take(&mut fields)?,
                previous: Link(fields.take()?),
            }))
        };
        anchor().ok().flatten()
    }
}

/// Appends one group of row changes to a redo unit.
#[expect(clippy::expect_used, reason = "transactions are bounded: a longer one is our own mistake")]
pub fn put_group(out: &mut Vec<u8>, txn: u64, changes: &[u8]) {
    txn.put(out);
    u32::try_from(changes.len()).expect("a transaction is bounded").put(out);
    out.extend_from_slice(changes);
}

/// Bytes [`put_group`] appends.
pub fn group_len(changes: &[u8]) -> usize {
    12 + changes.len()
}

/// Calls `each(txn, changes)` for every group of a redo unit. Any bytes at all may come in.
pub fn each_group(unit: &[u8], mut each: impl FnMut(u64, &[u8])) -> Result<()> {
    let mut fields = Fields(unit);
    while !fields.0.is_empty() {
        let txn = u64::take(&mut fields)?;
        let len = u32::take(&mut fields)? as usize;
        let (changes, rest) = fields.0.split_at_checked(len).ok_or_else(|| cut("a redo group"))?;
        fields.0 = rest;
        each(txn, changes);
    }
    Ok(())
}

/// The state of home at one moment. Home follows from the newest checkpoint in the log and nothing else: this unit becoming
/// durable is what makes the new state the durable one.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Checkpoint {
    /// redb's header.
    pub header: Vec<u8>,
    /// Of every chunk with content: digests of the pages of its sums, 0 for a page without any.
    pub digests: Vec<(u32, Vec<u64>)>,
    /// Every block whose sum differs from the checkpoint before, ascending; 0 for a block that holds nothing now.
    pub changed: Vec<(u64, u32)>,
}

impl Checkpoint {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.header.len() + self.digests.len() * 144 + self.changed.len() * 6);
        out.push(VERSION);
        (self.header.len() as u32).put(&mut out);
        out.extend_from_slice(&self.header);
        (self.digests.len() as u32).put(&mut out);
        for (chunk, digests) in &self.digests {
            chunk.put(&mut out);
            (digests.len() as u32).put(&mut out);
            digests.iter().for_each(|digest| digest.put(&mut out));
        }
        for run in self.changed.chunk_by(|a, b| a.0 + 1 == b.0) {
            run.first().map_or(0, |first| first.0).put(&mut out);
            (run.len() as u32).put(&mut out);
            run.iter().for_each(|(_, sum)| sum.put(&mut out));
        }
        out
    }

    /// No more bytes than [`Checkpoint::encode`] may need for so many chunks of so many pages and so many changed blocks.
    pub fn bound(chunks: usize, pages: usize, changed: usize) -> usize {
        1024 + chunks * (8 + 8 * pages) + changed * 16
    }

    /// Reads the stored form. Any bytes at all may come in; allocates no more than a few times their length.
    pub fn decode(bytes: &[u8]) -> Result<Checkpoint> {
        let mut fields = Fields(bytes);
        if fields.take::<1>()? != [VERSION] {
            return Err(Error::Unavailable("the metadata was written by a newer argosfs".into()));
        }
        let len = u32::take(&mut fields)? as usize;
        let (header, rest) = fields.0.split_at_checked(len).ok_or_else(|| cut("a checkpoint"))?;
        fields.0 = rest;
        let mut checkpoint = Checkpoint { header: header.to_vec(), ..Checkpoint::default() };
        for _ in 0..u32::take(&mut fields)? {
            let chunk = u32::take(&mut fields)?;
            let count = u32::take(&mut fields)? as usize;
            if count > fields.0.len() / 8 {
                return Err(cut("a checkpoint"));
            }
            let digests = (0..count).map(|_| u64::take(&mut fields)).collect::<Result<_>>()?;
            checkpoint.digests.push((chunk, digests));
        }
        while !fields.0.is_empty() {
            let first = u64::take(&mut fields)?;
            let count = u32::take(&mut fields)?;
            if count as usize > fields.0.len() / 4 || first.checked_add(u64::from(count)).is_none() {
                return Err(cut("a checkpoint"));
            }
            for at in 0..u64::from(count) {
                checkpoint.changed.push((first + at, u32::take(&mut fields)?));
            }
        }
        Ok(checkpoint)
    }
}

fn cut(what: &str) -> Error {
    Error::corrupt(format!("{what} in the log is cut short"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Prng;

    fn head() -> EntryHead {
        EntryHead {
            kind: Kind::Redo,
            more: true,
            continued: false,
            payload_len: 5,
            life: 3,
            volume: 4,
            salt: 5,
            seq: 6,
            position: 7,
            previous: Link::genesis(4),
            hash: Link([0; 32]),
        }
    }

    #[test]
    fn entries_round_trip_and_any_changed_bit_is_seen() {
        let mut head = head();
        let bytes = head.seal(b"hello");
        assert_eq!(EntryHead::decode(&bytes).as_ref(), Some(&head));
        assert!(head.matches(&bytes, b"hello") && !head.matches(&bytes, b"hellO"));
        for bit in 0..112 * 8 {
            let mut bent = bytes;
            bent[bit / 8] ^= 1 << (bit % 8);
            let same = EntryHead::decode(&bent).is_some_and(|head| head.matches(&bent, b"hello"));
            assert!(!same, "bit {bit}");
        }
    }

    #[test]
    fn golden_bytes() {
        let entry = head().seal(b"hello").to_vec();
        let anchor = Anchor { volume: 1, seq: 2, position: 3, life: 4, previous: Link([5; 32]) };
        assert_eq!(Anchor::decode(&anchor.encode()), Some(anchor));
        let checkpoint = Checkpoint {
            header: vec![9; 320],
            digests: vec![(0, vec![1, 0]), (7, vec![])],
            changed: vec![(0, 1), (1, 2), (5, 0)],
        };
        assert!(checkpoint.encode().len() <= Checkpoint::bound(2, 2, 3));
        assert_eq!(Checkpoint::decode(&checkpoint.encode()).unwrap(), checkpoint);
        let found =
            [entry, anchor.encode(), checkpoint.encode()].map(|bytes| blake3::hash(&bytes).to_hex().to_string());
        let golden = [
            "06927d5966c421401deda1723a84f90f6433df17745d229ebecba5fcb12e9974",
            "ad88707a652ac09c25991fa95fdc11801e6af02eebc5042896d3649dfe3a8639",
            "c6e62d38748845b1580cad0555e3f897e64cb73f844d79829af5bfaf358b8eab",
        ];
        assert_eq!(found, golden, "the format of entries, anchors or checkpoints changed");
    }

    #[test]
    fn hostile_bytes_are_refused_without_harm() {
        let mut prng = Prng::new(1);
        let checkpoint = Checkpoint {
            header: vec![9; 320],
            digests: vec![(0, vec![1, 0]), (7, vec![3])],
            changed: (0..50).map(|block| (block * 2, 7)).collect(),
        };
        let mut groups = Vec::new();
        put_group(&mut groups, 1, b"abc");
        put_group(&mut groups, 2, b"");
        for good in [
            checkpoint.encode(),
            groups,
            Anchor::encode(&Anchor { volume: 1, seq: 2, position: 3, life: 4, previous: Link([5; 32]) }),
        ] {
            for _ in 0..20_000 {
                let mut bad = good.clone();
                for _ in 0..=prng.below(3) {
                    let at = prng.below(bad.len() as u64) as usize;
                    bad[at] = if prng.chance(1, 2) { 255 } else { prng.next() as u8 };
                }
                bad.truncate(prng.below(bad.len() as u64 + 1) as usize);
                let _ = (Checkpoint::decode(&bad), Anchor::decode(&bad), EntryHead::decode(&bad));
                let _ = each_group(&bad, |_, _| {});
            }
        }
    }
}
