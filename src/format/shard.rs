//! The header block in front of every shard: enough to tell, without any metadata, which stripe the shard belongs to,
//! whether any shard of that stripe is intact, and which files its payload is part of.
//!
//! A block holds fixed fields, the checksums of the whole stripe (as in its row), and a manifest of the units in the
//! payload. When not all units fit, the header of each shard starts its manifest at another unit, so that together the
//! shards name as many as they can.
//!
//! Invariant: decoding takes any bytes at all and allocates no more than a few times the block's size.

use super::record::{Field, Fields, Row};
use super::rows::{Placement, StripeRow, StripeState};
use crate::base::{BLOCK_SIZE, Error, Incarnation, Ino, Result, StripeId, TxnId, Uuid};

const MAGIC: [u8; 8] = *b"ARGSHARD";
const VERSION: u16 = 1;
/// The manifest is sealed with the pool's key.
const FLAG_SEALED: u16 = 1;
/// More units exist than the manifest has room for.
const FLAG_TRUNCATED: u16 = 2;
/// Longest name hint kept.
const HINT_MAX: usize = 64;
/// Most checksums a header has room for; rows are made so that they stay below.
pub const MAX_SUMS: usize = 512;
/// Kinds of a unit that is stored as it is: new content, and content that was moved, which carries its birth. Others follow
/// with compression and encryption.
const UNIT_PLAIN: u64 = 0;
const UNIT_MOVED: u64 = 1;

const BLOCK: usize = BLOCK_SIZE as usize;
/// Where the checksum of the block lies.
const AT_CRC: usize = BLOCK - 4;

/// Whether a block may be a header: a look at its first bytes.
pub fn looks_like(block: &[u8]) -> bool {
    block.starts_with(&MAGIC)
}

/// Which shard of which stripe this is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardHeader {
    pub pool: Uuid,
    pub device: Uuid,
    pub stripe: StripeId,
    pub incarnation: Incarnation,
    /// `0..k` data, `k..k + m` parity.
    pub index: u8,
    pub k: u8,
    pub m: u8,
    pub granule_shift: u8,
    /// Payload blocks of each shard.
    pub shard_blocks: u32,
    /// The newest transaction committed when the stripe was written.
    pub txn: TxnId,
    /// Used bytes of the whole stripe's payload.
    pub payload_bytes: u32,
    /// Granule checksums of all shards, as in [`StripeRow::sums`]; none when there are more than [`MAX_SUMS`].
    pub sums: Vec<u32>,
    /// Whether the units are unreadable without the pool's key.
    pub sealed: bool,
    /// Whether `units` lacks some.
    pub truncated: bool,
    pub units: Vec<Unit>,
}

/// A range of a file in the stripe's payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unit {
    pub ino: Ino,
    pub offset: u64,
    pub length: u32,
    /// First byte in the payload.
    pub start: u32,
    /// The transaction that wrote this content, when the stripe was made to move it; what is new was committed by a
    /// transaction behind the header's.
    pub birth: Option<TxnId>,
    /// Directory and name under which the file was last seen, if known; the name is cut at 64 bytes.
    pub parent: Ino,
    pub name: Vec<u8>,
}

impl ShardHeader {
    /// Whether this is the header of shard `index` of the stripe with that row.
    pub fn belongs_to(&self, id: StripeId, row: &StripeRow, index: u8) -> bool {
        self.stripe == id
            && self.incarnation == row.incarnation
            && self.index == index
            && (self.k, self.m, self.shard_blocks) == (row.k, row.m, row.shard_blocks)
    }

    /// The row of the stripe, when its shards lie at `placements`.
    pub fn row(&self, placements: Vec<Placement>) -> Result<StripeRow> {
        let row = StripeRow {
            k: self.k,
            m: self.m,
            shard_blocks: self.shard_blocks,
            granule_shift: self.granule_shift,
            state: if placements.contains(&Placement::NONE) { StripeState::Degraded } else { StripeState::Whole },
            birth: self.txn,
            incarnation: self.incarnation,
            payload_bytes: self.payload_bytes,
            placements,
            sums: self.sums.clone(),
        };
        let width = usize::from(self.k) + usize::from(self.m);
        if row.placements.len() != width || usize::from(self.index) >= width {
            return Err(Error::corrupt("a shard header and its stripe have different widths"));
        }
        // What can be read back is possible.
        let mut bytes = Vec::new();
        row.encode(&mut bytes);
        StripeRow::decode(&bytes)
    }

    /// The block as stored. Units that do not fit are left out, which the block says.
    #[expect(clippy::indexing_slicing, reason = "what is filled in later was put before, and a block is cut at AT_CRC")]
    pub fn encode(&self) -> [u8; BLOCK] {
        let mut out = Vec::with_capacity(BLOCK);
        out.extend_from_slice(&MAGIC);
        VERSION.put(&mut out);
        let flags_at = out.len();
        0u16.put(&mut out);
        self.pool.put(&mut out);
        self.device.put(&mut out);
        self.stripe.put(&mut out);
        self.incarnation.put(&mut out);
        for byte in [self.index, self.k, self.m, self.granule_shift] {
            byte.put(&mut out);
        }
        self.shard_blocks.put(&mut out);
        self.txn.put(&mut out);
        self.payload_bytes.put(&mut out);
        let sums: &[u32] = if self.sums.len() <= MAX_SUMS { &self.sums } else { &[] };
        (sums.len() as u16).put(&mut out);
        sums.iter().for_each(|sum| sum.put(&mut out));

        let count_at = out.len();
        0u16.put(&mut out);
        let mut count = 0u16;
        let mut before = Before::default();
        for unit in self.rotated() {
            let mark = out.len();
            before.put(unit, &mut out);
            if out.len() > AT_CRC {
                out.truncate(mark);
                break;
            }
            count += 1;
        }
        let truncated = self.truncated || usize::from(count) < self.units.len();
        let flags = if self.sealed { FLAG_SEALED } else { 0 } | if truncated { FLAG_TRUNCATED } else { 0 };
        out[flags_at..flags_at + 2].copy_from_slice(&flags.to_le_bytes());
        out[count_at..count_at + 2].copy_from_slice(&count.to_le_bytes());
        out.resize(AT_CRC, 0);
        let sum = crc32c::crc32c(&out);
        let mut block = [0; BLOCK];
        block[..AT_CRC].copy_from_slice(&out);
        block[AT_CRC..].copy_from_slice(&sum.to_le_bytes());
        block
    }

    /// The units in the order in which this shard stores them: all shards begin elsewhere, unless all of it fits.
    fn rotated(&self) -> impl Iterator<Item = &Unit> {
        // What room there is at least: fixed fields and checksums taken off, names and numbers at their longest.
        let certain = (AT_CRC - 100 - 4 * self.sums.len().min(MAX_SUMS)) / (HINT_MAX + 54);
        let shards = (usize::from(self.k) + usize::from(self.m)).max(1);
        let first = match self.units.len() {
            few if few <= certain || self.truncated => 0,
            many => many * usize::from(self.index) / shards % many,
        };
        self.units.iter().cycle().skip(first).take(self.units.len())
    }

    /// Reads a block. Any bytes at all may come in.
    pub fn decode(block: &[u8]) -> Result<ShardHeader> {
        let bad = |what: &str| Error::corrupt(format!("a shard header {what}"));
        let Some((body, sum)) = block.split_last_chunk::<4>() else { return Err(bad("is cut short")) };
        if block.len() != BLOCK || crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
            return Err(bad("does not match its checksum"));
        }
        let mut from = Fields(body);
        if from.take::<8>()? != MAGIC {
            return Err(bad("has no magic"));
        }
        if u16::take(&mut from)? != VERSION {
            return Err(bad("has an unknown version; use a newer argosfs"));
        }
        let flags = u16::take(&mut from)?;
        let mut header = ShardHeader {
            pool: Field::take(&mut from)?,
            device: Field::take(&mut from)?,
            stripe: Field::take(&mut from)?,
            incarnation: Field::take(&mut from)?,
            index: Field::take(&mut from)?,
            k: Field::take(&mut from)?,
            m: Field::take(&mut from)?,
            granule_shift: Field::take(&mut from)?,
            shard_blocks: Field::take(&mut from)?,
            txn: Field::take(&mut from)?,
            payload_bytes: Field::take(&mut from)?,
            sums: Vec::new(),
            sealed: flags & FLAG_SEALED != 0,
            truncated: flags & FLAG_TRUNCATED != 0,
            units: Vec::new(),
        };
        for _ in 0..u16::take(&mut from)? {
            header.sums.push(Field::take(&mut from)?);
        }
        let mut before = Before::default();
        for _ in 0..u16::take(&mut from)? {
            match before.take(&mut from)? {
                Some(unit) => header.units.push(unit),
                // A unit of a newer kind: it and what follows cannot be read here.
                None => {
                    header.truncated = true;
                    break;
                }
            }
        }
        Ok(header)
    }
}

/// The unit before: units follow each other closely, so that differences are short.
#[derive(Default)]
struct Before {
    ino: u64,
    end: u32,
    parent: u64,
}

impl Before {
    fn put(&mut self, unit: &Unit, out: &mut Vec<u8>) {
        let name = unit.name.get(..HINT_MAX).unwrap_or(&unit.name);
        match unit.birth {
            None => put_number(out, UNIT_PLAIN),
            Some(birth) => {
                put_number(out, UNIT_MOVED);
                put_number(out, birth.0);
            }
        }
        put_number(out, zigzag(unit.ino.0.wrapping_sub(self.ino)));
        put_number(out, unit.offset);
        put_number(out, unit.length.into());
        put_number(out, zigzag(u64::from(unit.start).wrapping_sub(self.end.into())));
        put_number(out, zigzag(unit.parent.0.wrapping_sub(self.parent)));
        put_number(out, name.len() as u64);
        out.extend_from_slice(name);
        *self = Before { ino: unit.ino.0, end: unit.start.wrapping_add(unit.length), parent: unit.parent.0 };
    }

    /// The next unit; `None` when its kind is unknown.
    fn take(&mut self, from: &mut Fields<'_>) -> Result<Option<Unit>> {
        let bad = || Error::corrupt("a unit of a shard header is impossible");
        let birth = match take_number(from)? {
            UNIT_PLAIN => None,
            UNIT_MOVED => Some(TxnId(take_number(from)?)),
            _ => return Ok(None),
        };
        let ino = self.ino.wrapping_add(unzigzag(take_number(from)?));
        let offset = take_number(from)?;
        let length = u32::try_from(take_number(from)?).map_err(|_| bad())?;
        let start = u64::from(self.end).wrapping_add(unzigzag(take_number(from)?));
        let start = u32::try_from(start).map_err(|_| bad())?;
        let parent = self.parent.wrapping_add(unzigzag(take_number(from)?));
        let name = usize::try_from(take_number(from)?).ok().and_then(|length| from.0.split_at_checked(length));
        let (name, rest) = name.ok_or_else(bad)?;
        from.0 = rest;
        *self = Before { ino, end: start.wrapping_add(length), parent };
        Ok(Some(Unit { ino: Ino(ino), offset, length, start, birth, parent: Ino(parent), name: name.to_vec() }))
    }
}

/// Small differences of either sign as small numbers.
fn zigzag(difference: u64) -> u64 {
    (difference << 1) ^ (((difference as i64) >> 63) as u64)
}

fn unzigzag(number: u64) -> u64 {
    (number >> 1) ^ (number & 1).wrapping_neg()
}

/// Seven bits to a byte, least significant first, the top bit set on all but the last (LEB128).
fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_number(from: &mut Fields<'_>) -> Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = from.take::<1>()?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Error::corrupt("a number in a shard header is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Entropy, Prng};

    fn sample(units: usize) -> ShardHeader {
        ShardHeader {
            pool: Uuid([1; 16]),
            device: Uuid([2; 16]),
            stripe: StripeId(77),
            incarnation: Incarnation(9),
            index: 5,
            k: 4,
            m: 2,
            granule_shift: 2,
            shard_blocks: 128,
            txn: TxnId(1234),
            payload_bytes: 1 << 20,
            sums: (0..192).map(|at| at * 0x0101_0101).collect(),
            sealed: false,
            truncated: false,
            units: (0..units as u64)
                .map(|at| Unit {
                    ino: Ino(at * 3 + 2),
                    offset: at % 5 * 4096,
                    length: 4096 - at as u32 % 7,
                    start: at as u32 * 4096,
                    birth: (at % 7 == 6).then_some(TxnId(at << 20)),
                    parent: Ino(1 + at % 3),
                    name: vec![b'x'; at as usize % 20],
                })
                .collect(),
        }
    }

    #[test]
    fn headers_round_trip() {
        for units in [0, 1, 20] {
            let header = sample(units);
            assert_eq!(ShardHeader::decode(&header.encode()).unwrap(), header);
        }
        let mut extreme = sample(2);
        extreme.units[0] = Unit {
            ino: Ino(u64::MAX),
            offset: u64::MAX,
            length: u32::MAX,
            birth: Some(TxnId(u64::MAX)),
            start: 0,
            parent: Ino(0),
            name: vec![],
        };
        extreme.units[1].start = u32::MAX;
        extreme.units[1].birth = Some(TxnId(u64::MAX));
        assert_eq!(ShardHeader::decode(&extreme.encode()).unwrap(), extreme);
        let too_many = ShardHeader { sums: vec![1; MAX_SUMS + 1], ..sample(3) };
        assert_eq!(ShardHeader::decode(&too_many.encode()).unwrap(), ShardHeader { sums: vec![], ..sample(3) });
    }

    #[test]
    fn golden_bytes() {
        let block = sample(3).encode();
        assert_eq!(
            blake3::hash(&block).to_hex().as_str(),
            "d3f81c0841ca57bbaa99974ea53f9a4300f9703a8ff57ab413780459637ba978"
        );
        assert_eq!(&block[..12], b"ARGSHARD\x01\0\0\0");
    }

    #[test]
    fn a_manifest_that_does_not_fit_is_spread_over_the_shards() {
        let whole = sample(600);
        let mut seen = vec![0; 600];
        for index in 0..6 {
            let header = ShardHeader { index, ..whole.clone() };
            let cut = ShardHeader::decode(&header.encode()).unwrap();
            assert!(cut.truncated && cut.units.len() > 100, "{} units", cut.units.len());
            for unit in &cut.units {
                let at = unit.start as usize / 4096;
                assert_eq!(*unit, whole.units[at]);
                seen[at] += 1;
            }
            // Written again, say for a rebuilt shard, it keeps what it has.
            assert_eq!(
                ShardHeader::decode(&ShardHeader { index: 1, ..cut.clone() }.encode()).unwrap().units,
                cut.units
            );
        }
        assert!(seen.iter().all(|count| *count > 0), "some unit is named nowhere");
    }

    #[test]
    fn units_of_newer_kinds_are_passed_over() {
        let mut block = sample(2).encode();
        let at = 82 + 4 * 192;
        assert_eq!(block[at..at + 2], 2u16.to_le_bytes());
        block[at + 2] = 9;
        let sum = crc32c::crc32c(&block[..AT_CRC]);
        block[AT_CRC..].copy_from_slice(&sum.to_le_bytes());
        let header = ShardHeader::decode(&block).unwrap();
        assert!(header.truncated && header.units.is_empty() && header.sums == sample(2).sums);
    }

    #[test]
    fn damaged_and_hostile_headers_never_panic() {
        let mut prng = Prng::new(1);
        let good = sample(30).encode();
        for _ in 0..2000 {
            let mut bad = good;
            let at = prng.below(BLOCK_SIZE) as usize;
            bad[at] ^= 1 << prng.below(8);
            assert!(ShardHeader::decode(&bad).is_err());
            prng.fill(&mut bad);
            assert!(ShardHeader::decode(&bad[..prng.below(4097) as usize]).is_err());
        }
        let mut read = 0;
        for _ in 0..40_000 {
            let mut bad = good;
            for _ in 0..1 + prng.below(4) {
                bad[12 + prng.below(1500) as usize] = if prng.chance(1, 2) { 0xff } else { prng.next() as u8 };
            }
            let sum = crc32c::crc32c(&bad[..AT_CRC]);
            bad[AT_CRC..].copy_from_slice(&sum.to_le_bytes());
            if let Ok(header) = ShardHeader::decode(&bad) {
                read += 1;
                header.encode();
            }
        }
        assert!(read > 1000, "only {read} came through");
    }
}
