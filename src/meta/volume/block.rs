//! Block-aligned memory: what devices opened with `O_DIRECT` read into and write from without a copy.

use crate::base::BLOCK_SIZE;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a block.
pub const BLOCK: usize = BLOCK_SIZE as usize;

/// One block of memory, aligned to its size.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub struct Block(pub [u8; BLOCK]);

impl Block {
    /// A block of zeros on the heap.
    pub fn zeroed() -> Box<Block> {
        Box::new(Block([0; BLOCK]))
    }

    /// A block on the heap that starts with `bytes`, which are no more than a block, and ends in zeros.
    pub fn padded(bytes: &[u8]) -> Box<Block> {
        let mut block = Block::zeroed();
        block.0[..bytes.len()].copy_from_slice(bytes);
        block
    }
}

/// So many blocks of zeros.
pub fn zeroed(count: usize) -> Vec<Block> {
    vec![Block([0; BLOCK]); count]
}

/// A block that holds nothing: it reads as zeros, whatever the device says.
pub const EMPTY: u32 = 0;
/// The sum of this block is lost: it cannot be verified, so it cannot be read.
pub const LOST: u32 = u32::MAX;

/// The sum of a block's content: crc32c, moved off the two values that mean something else.
pub fn sum(content: &[u8]) -> u32 {
    match crc32c::crc32c(content) {
        EMPTY => 1,
        LOST => 2,
        other => other,
    }
}
