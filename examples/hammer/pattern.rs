//! Bytes that say where they belong, and random choices from a seed.

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The bytes of version `seed` from `offset` on.
pub fn bytes(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let first = offset / 8 * 8;
    let skip = (offset - first) as usize;
    let mut out = Vec::with_capacity(len + 16);
    let mut at = first;
    while out.len() < skip + len {
        out.extend_from_slice(&mix(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ mix(at)).to_le_bytes());
        at += 8;
    }
    out.truncate(skip + len);
    out.drain(..skip);
    out
}

/// A random sequence.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(mix(seed ^ 0x5eed))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Less than `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// From `low` to `high`, each power of two as likely as the next.
    pub fn size(&mut self, low: u64, high: u64) -> u64 {
        let powers = u64::from((high / low).ilog2()) + 1;
        let base = low << self.below(powers);
        (base + self.below(base)).min(high)
    }
}
