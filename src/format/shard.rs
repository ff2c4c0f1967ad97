//! The header block in front of every shard: enough to tell, without any metadata, which stripe the shard belongs to
//! and which files its payload is part of.

use super::record::{Field, Fields};
use crate::base::{BLOCK_SIZE, Error, Incarnation, Ino, Result, StripeId, TxnId, Uuid};

const MAGIC: [u8; 8] = *b"ARGSHARD";
const VERSION: u16 = 1;
/// The manifest is sealed with the pool's key.
const FLAG_SEALED: u16 = 1;
/// More units exist than the manifest has room for.
const FLAG_TRUNCATED: u16 = 2;
/// Longest name hint kept.
const HINT_MAX: usize = 64;

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
    /// BLAKE3 of all granule checksums of the stripe, in the order of its row.
    pub sums_digest: [u8; 32],
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
    /// Directory and name under which the file was last seen, if known; the name is cut at 64 bytes.
    pub parent: Ino,
    pub name: Vec<u8>,
}

impl ShardHeader {
    /// The block as stored. Units that do not fit are left out, which the block says.
    pub fn encode(&self) -> [u8; BLOCK_SIZE as usize] {
        let mut out = Vec::with_capacity(BLOCK_SIZE as usize);
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
        self.sums_digest.put(&mut out);
        let count_at = out.len();
        0u16.put(&mut out);
        let mut count = 0u16;
        for unit in &self.units {
            let name = &unit.name[..unit.name.len().min(HINT_MAX)];
            if out.len() + 33 + name.len() > BLOCK_SIZE as usize - 4 {
                break;
            }
            unit.ino.put(&mut out);
            unit.offset.put(&mut out);
            unit.length.put(&mut out);
            unit.start.put(&mut out);
            unit.parent.put(&mut out);
            (name.len() as u8).put(&mut out);
            out.extend_from_slice(name);
            count += 1;
        }
        let truncated = self.truncated || usize::from(count) < self.units.len();
        let flags = if self.sealed { FLAG_SEALED } else { 0 } | if truncated { FLAG_TRUNCATED } else { 0 };
        out[flags_at..flags_at + 2].copy_from_slice(&flags.to_le_bytes());
        out[count_at..count_at + 2].copy_from_slice(&count.to_le_bytes());
        let mut block = [0; BLOCK_SIZE as usize];
        block[..out.len()].copy_from_slice(&out);
        let sum = crc32c::crc32c(&block[..BLOCK_SIZE as usize - 4]);
        block[BLOCK_SIZE as usize - 4..].copy_from_slice(&sum.to_le_bytes());
        block
    }

    /// Reads a block. Any bytes at all may come in.
    pub fn decode(block: &[u8]) -> Result<ShardHeader> {
        let bad = |what: &str| Error::corrupt(format!("a shard header {what}"));
        let Some((body, sum)) = block.split_last_chunk::<4>() else { return Err(bad("is cut short")) };
        if block.len() != BLOCK_SIZE as usize || crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
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
            sums_digest: Field::take(&mut from)?,
            sealed: flags & FLAG_SEALED != 0,
            truncated: flags & FLAG_TRUNCATED != 0,
            units: Vec::new(),
        };
        for _ in 0..u16::take(&mut from)? {
            let mut unit = Unit {
                ino: Field::take(&mut from)?,
                offset: Field::take(&mut from)?,
                length: Field::take(&mut from)?,
                start: Field::take(&mut from)?,
                parent: Field::take(&mut from)?,
                name: Vec::new(),
            };
            let length = usize::from(u8::take(&mut from)?);
            let (name, rest) = from.0.split_at_checked(length).ok_or_else(|| bad("has a name beyond its end"))?;
            unit.name = name.to_vec();
            from.0 = rest;
            header.units.push(unit);
        }
        Ok(header)
    }
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
            sums_digest: [3; 32],
            sealed: false,
            truncated: false,
            units: (0..units as u64)
                .map(|at| Unit {
                    ino: Ino(at + 2),
                    offset: at * 4096,
                    length: 4096,
                    start: at as u32 * 4096,
                    parent: Ino(1),
                    name: vec![b'x'; 10],
                })
                .collect(),
        }
    }

    #[test]
    fn headers_round_trip_and_say_when_the_manifest_is_cut() {
        let header = sample(40);
        assert_eq!(ShardHeader::decode(&header.encode()).unwrap(), header);
        let cut = ShardHeader::decode(&sample(400).encode()).unwrap();
        assert!(cut.truncated && cut.units.len() < 400 && cut.units[..] == sample(400).units[..cut.units.len()]);
    }

    #[test]
    fn damaged_headers_are_refused() {
        let mut prng = Prng::new(1);
        let good = sample(3).encode();
        for _ in 0..2000 {
            let mut bad = good;
            let at = prng.below(BLOCK_SIZE) as usize;
            bad[at] ^= 1 << prng.below(8);
            assert!(ShardHeader::decode(&bad).is_err());
            prng.fill(&mut bad);
            assert!(ShardHeader::decode(&bad[..prng.below(4097) as usize]).is_err());
        }
    }
}
