//! Sparse content of one simulated device: copy-on-write blocks, so that a copy costs little and shares everything.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// Bytes per stored block.
pub(super) const BLOCK: usize = 4096;
/// What a torn write is torn at.
pub(super) const SECTOR: usize = 512;
/// Sectors per block.
pub(super) const SECTORS: usize = BLOCK / SECTOR;
/// Blocks per shared chunk.
const CHUNK: u64 = 64;

/// One block of content.
pub(super) type Block = [u8; BLOCK];

#[derive(Clone)]
struct Chunk([Option<Arc<Block>>; CHUNK as usize]);

/// Blocks by number; a block never written reads as zeros.
#[derive(Clone, Default)]
pub(super) struct Store {
    chunks: BTreeMap<u64, Arc<Chunk>>,
}

/// A shared copy of one block's worth of bytes; zeros cost nothing.
pub(super) fn share(bytes: &Block) -> Arc<Block> {
    static ZERO: OnceLock<Arc<Block>> = OnceLock::new();
    if *bytes == [0; BLOCK] { ZERO.get_or_init(|| Arc::new([0; BLOCK])).clone() } else { Arc::new(*bytes) }
}

impl Store {
    /// The block, unless it was never written.
    pub(super) fn get(&self, number: u64) -> Option<&Arc<Block>> {
        self.chunks.get(&(number / CHUNK))?.0[(number % CHUNK) as usize].as_ref()
    }

    /// Replaces one block; `None` forgets it.
    pub(super) fn set(&mut self, number: u64, block: Option<Arc<Block>>) {
        let at = (number % CHUNK) as usize;
        match self.chunks.get_mut(&(number / CHUNK)) {
            Some(chunk) => Arc::make_mut(chunk).0[at] = block,
            None if block.is_none() => {}
            None => {
                let mut chunk = Chunk([const { None }; CHUNK as usize]);
                chunk.0[at] = block;
                self.chunks.insert(number / CHUNK, Arc::new(chunk));
            }
        }
    }

    /// Changes one block in place.
    pub(super) fn edit(&mut self, number: u64, change: impl FnOnce(&mut Block)) {
        let mut block = self.get(number).map_or([0; BLOCK], |block| **block);
        change(&mut block);
        self.set(number, Some(share(&block)));
    }

    /// Changes a range of bytes: `change` gets each piece and the offset it starts at.
    pub(super) fn edit_bytes(&mut self, offset: u64, len: u64, mut change: impl FnMut(u64, &mut [u8])) {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let number = at / BLOCK as u64;
            let from = (at % BLOCK as u64) as usize;
            let until = BLOCK.min(from + (end - at) as usize);
            self.edit(number, |block| change(at, &mut block[from..until]));
            at += (until - from) as u64;
        }
    }

    /// Fills `buf` from byte `offset`.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) {
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let from = (at % BLOCK as u64) as usize;
            let (piece, tail) = rest.split_at_mut(rest.len().min(BLOCK - from));
            match self.get(at / BLOCK as u64) {
                Some(block) => piece.copy_from_slice(&block[from..from + piece.len()]),
                None => piece.fill(0),
            }
            at += piece.len() as u64;
            rest = tail;
        }
    }

    /// Calls `each` with every block whose content differs from that in `base`, ascending. What both share costs nothing.
    pub(super) fn each_difference(&self, base: &Store, mut each: impl FnMut(u64, Option<&Block>)) {
        let mut numbers: Vec<u64> = self.chunks.keys().chain(base.chunks.keys()).copied().collect();
        numbers.sort_unstable();
        numbers.dedup();
        for chunk in numbers {
            let (ours, theirs) = (self.chunks.get(&chunk), base.chunks.get(&chunk));
            if ours.zip(theirs).is_some_and(|(ours, theirs)| Arc::ptr_eq(ours, theirs)) {
                continue;
            }
            for at in 0..CHUNK as usize {
                let ours = ours.and_then(|chunk| chunk.0[at].as_ref());
                let theirs = theirs.and_then(|chunk| chunk.0[at].as_ref());
                let same = match (ours, theirs) {
                    (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs) || ours == theirs,
                    (None, None) => true,
                    (Some(only), None) | (None, Some(only)) => **only == [0; BLOCK],
                };
                if !same {
                    each(chunk * CHUNK + at as u64, ours.map(|block| &**block));
                }
            }
        }
    }

    /// Numbers of all blocks ever written, ascending.
    pub(super) fn written(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks.iter().flat_map(|(chunk, blocks)| {
            let present = blocks.0.iter().enumerate().filter(|(_, block)| block.is_some());
            present.map(move |(at, _)| chunk * CHUNK + at as u64)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_share_blocks_but_not_changes() {
        let mut one = Store::default();
        one.set(3, Some(share(&[7; BLOCK])));
        one.set(1000, Some(share(&[8; BLOCK])));
        let mut two = one.clone();
        two.edit_bytes(3 * BLOCK as u64 + 10, BLOCK as u64, |_, piece| piece.fill(9));
        let mut bytes = [0; 2 * BLOCK];
        one.read(3 * BLOCK as u64, &mut bytes);
        assert!(bytes[..BLOCK].iter().all(|byte| *byte == 7) && bytes[BLOCK..].iter().all(|byte| *byte == 0));
        two.read(3 * BLOCK as u64, &mut bytes);
        assert_eq!((bytes[9], bytes[10], bytes[BLOCK + 9], bytes[BLOCK + 10]), (7, 9, 9, 0));
        assert_eq!(two.written().collect::<Vec<_>>(), [3, 4, 1000]);
        let mut differing = Vec::new();
        two.set(5, Some(share(&[0; BLOCK])));
        two.each_difference(&one, |number, _| differing.push(number));
        assert_eq!(differing, [3, 4]);
        assert!(Arc::ptr_eq(one.get(1000).unwrap(), two.get(1000).unwrap()));
    }
}
