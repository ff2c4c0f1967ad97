//! The bitmap of one row of `groups`: which of its blocks are taken.

use crate::base::{Error, Result};
use crate::format::rows::GROUP_PART_BLOCKS;

/// Blocks of one part.
pub(super) const PART: u32 = GROUP_PART_BLOCKS as u32;
const WORDS: usize = PART as usize / 64;

/// A part's blocks, bit set = taken.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Part([u64; WORDS]);

/// What is free in a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Summary {
    pub free: u16,
    /// The longest free run, and those at either end.
    pub longest: u16,
    pub prefix: u16,
    pub suffix: u16,
}

impl Part {
    /// Reads a stored row; a missing one is all free.
    pub fn from_row(row: Option<&[u8]>) -> Result<Part> {
        let mut words = [0; WORDS];
        let row = row.unwrap_or_default();
        if row.len() > WORDS * 8 {
            return Err(Error::corrupt("a block bitmap is longer than its part"));
        }
        for (word, bytes) in words.iter_mut().zip(row.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(whole);
        }
        Ok(Part(words))
    }

    /// Sets or clears the bits `from..to`; returns how many changed.
    pub fn set(&mut self, from: u32, to: u32, taken: bool) -> u32 {
        let mut changed = 0;
        let mut at = from;
        while at < to {
            let (word, bit) = ((at / 64) as usize, at % 64);
            let count = (64 - bit).min(to - at);
            let mask = (u64::MAX >> (64 - count)) << bit;
            let old = self.0[word];
            self.0[word] = if taken { old | mask } else { old & !mask };
            changed += (old ^ self.0[word]).count_ones();
            at += count;
        }
        changed
    }

    /// Whether `from..to` is free.
    pub fn is_free(&self, from: u32, to: u32) -> bool {
        self.next(from, true) >= to
    }

    /// The first free run of at least `count` blocks that starts at or behind `from` (or holds `from`): start, length.
    pub fn find(&self, from: u32, count: u32) -> Option<(u32, u32)> {
        self.runs(from).find(|(_, length)| *length >= count)
    }

    /// The shortest free run of at least `count` blocks.
    pub fn best(&self, count: u32) -> Option<(u32, u32)> {
        self.runs(0).filter(|(_, length)| *length >= count).min_by_key(|(_, length)| *length)
    }

    /// The free runs from `from` on.
    fn runs(&self, from: u32) -> impl Iterator<Item = (u32, u32)> {
        let mut at = from;
        std::iter::from_fn(move || {
            let start = self.next(at, false);
            let end = self.next(start, true);
            at = end;
            (start < PART).then_some((start, end - start))
        })
    }

    /// The first block at or behind `at` that is taken, or free; [`PART`] when there is none.
    fn next(&self, at: u32, taken: bool) -> u32 {
        let mut word = (at / 64) as usize;
        let mut mask = u64::MAX << (at % 64);
        while word < WORDS {
            let bits = if taken { self.0[word] } else { !self.0[word] } & mask;
            if bits != 0 {
                return word as u32 * 64 + bits.trailing_zeros();
            }
            mask = u64::MAX;
            word += 1;
        }
        PART
    }

    pub fn summary(&self) -> Summary {
        let mut summary = Summary { free: 0, longest: 0, prefix: 0, suffix: 0 };
        for (start, length) in self.runs(0) {
            let length16 = length as u16;
            summary.free += length16;
            summary.longest = summary.longest.max(length16);
            if start == 0 {
                summary.prefix = length16;
            }
            if start + length == PART {
                summary.suffix = length16;
            }
        }
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Prng;

    #[test]
    fn runs_and_summary_agree_with_a_plain_scan() {
        let mut prng = Prng::new(11);
        for round in 0..300 {
            let mut part = Part::from_row(None).unwrap();
            let mut plain = vec![false; PART as usize];
            for _ in 0..prng.below(40) {
                let from = prng.below(u64::from(PART)) as u32;
                let most = u64::from(PART - from) / (1 + prng.below(64)) + 1;
                let to = from + prng.below(most) as u32;
                let taken = prng.chance(2, 3);
                let mut changed = 0;
                for bit in &mut plain[from as usize..to as usize] {
                    changed += u32::from(*bit != taken);
                    *bit = taken;
                }
                assert_eq!(part.set(from, to, taken), changed);
            }
            let mut runs = Vec::new();
            let mut length = 0;
            for at in 0..=plain.len() {
                if at < plain.len() && !plain[at] {
                    length += 1;
                } else if length > 0 {
                    runs.push(((at - length) as u32, length as u32));
                    length = 0;
                }
            }
            assert_eq!(part.runs(0).collect::<Vec<_>>(), runs, "round {round}");
            let summary = part.summary();
            assert_eq!(u32::from(summary.free), runs.iter().map(|run| run.1).sum::<u32>());
            assert_eq!(u32::from(summary.longest), runs.iter().map(|run| run.1).max().unwrap_or(0));
            assert_eq!(summary.prefix > 0, !plain[0]);
            assert_eq!(summary.suffix > 0, !plain[plain.len() - 1]);
            let count = 1 + prng.below(50) as u32;
            assert_eq!(part.best(count).map(|run| run.1), runs.iter().map(|r| r.1).filter(|l| *l >= count).min());
        }
    }

    #[test]
    fn rows_of_any_length_are_read_or_refused() {
        assert!(Part::from_row(Some(&[0xff; 1025])).is_err());
        let part = Part::from_row(Some(&[0xff, 0x01])).unwrap();
        assert_eq!(part.find(0, 1), Some((9, PART - 9)));
    }
}
