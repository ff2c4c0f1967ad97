//! What goes where: cuts the content of one commit into inline rows and stripe payloads. Pure: a plan is data.

use super::commit::{ContentWrite, Inline};
use crate::base::BLOCK_SIZE;

/// Largest content of ordinary write-back that goes inline, in bytes.
pub const INLINE_SMALL: usize = 2048;
/// Most content one synchronous commit puts inline, in bytes.
pub const INLINE_SYNCHRONOUS: usize = 32 << 10;
/// A stripe with less room left than this is closed rather than given the first bytes of a larger piece.
const SMALLEST_SPLIT: usize = 16 << 10;

/// Where in a stripe content of so many bytes may begin: at a multiple of this.
pub const fn alignment(length: usize) -> usize {
    if length < BLOCK_SIZE as usize { 8 } else { BLOCK_SIZE as usize }
}

/// A part of one write, in a stripe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Which of the commit's writes.
    pub write: usize,
    /// First byte of the write that this piece holds.
    pub skip: usize,
    pub length: usize,
    /// First byte in the stripe's payload.
    pub start: usize,
}

/// The payload of one stripe to be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Payload {
    pub pieces: Vec<Piece>,
    /// Bytes used, gaps between pieces included.
    pub used: usize,
}

/// A whole commit, sorted into rows and stripes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Writes whose content goes into the metadata.
    pub inline: Vec<usize>,
    pub stripes: Vec<Payload>,
}

/// Plans a commit of `writes` with stripes of at most `capacity` payload bytes.
pub fn plan(writes: &[ContentWrite], capacity: usize, inline: Inline) -> Plan {
    let total: usize = writes.iter().map(|write| write.bytes.len()).sum();
    let all_inline = inline == Inline::Synchronous && total <= INLINE_SYNCHRONOUS;
    pack(writes, capacity, |write| all_inline || (write.bytes.len() <= INLINE_SMALL && write.offset == 0))
}

/// Plans to put all of `writes` into stripes: content that is moved there.
pub fn plan_moved(writes: &[ContentWrite], capacity: usize) -> Plan {
    pack(writes, capacity, |_| false)
}

fn pack(writes: &[ContentWrite], capacity: usize, goes_inline: impl Fn(&ContentWrite) -> bool) -> Plan {
    let mut plan = Plan::default();
    let mut open = Payload::default();
    for (index, write) in writes.iter().enumerate() {
        let whole = write.bytes.len();
        if goes_inline(write) {
            plan.inline.push(index);
            continue;
        }
        let mut skip = 0;
        while skip < whole {
            let left = whole - skip;
            // What goes on where the write before it ended needs no gap: buffers end where they like.
            let goes_on = skip == 0
                && open.pieces.last().is_some_and(|piece| piece.write + 1 == index)
                && writes[index - 1].is_followed_by(write);
            let start = if goes_on { open.used } else { open.used.next_multiple_of(alignment(left)) };
            let room = capacity.saturating_sub(start);
            if room == 0 || (room < left && room < SMALLEST_SPLIT && open.used > 0) {
                plan.stripes.push(std::mem::take(&mut open));
                continue;
            }
            let length = left.min(room);
            open.pieces.push(Piece { write: index, skip, length, start });
            open.used = start + length;
            skip += length;
        }
    }
    if !open.pieces.is_empty() {
        plan.stripes.push(open);
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::super::commit::SharedBytes;
    use super::*;
    use crate::base::{Ino, Prng};

    fn write(ino: u64, offset: u64, length: usize) -> ContentWrite {
        ContentWrite { ino: Ino(ino), offset, bytes: SharedBytes::new(vec![ino as u8; length]) }
    }

    #[test]
    fn every_byte_is_planned_once_and_pieces_do_not_overlap() {
        for seed in 0..200 {
            let mut prng = Prng::new(seed);
            let capacity = (1 + prng.below(512) as usize) * BLOCK_SIZE as usize;
            let writes: Vec<_> = (0..1 + prng.below(60))
                .map(|ino| {
                    write(
                        ino,
                        prng.below(3) * 4096,
                        1 + prng.below(if ino % 7 == 0 { 3_000_000 } else { 9_000 }) as usize,
                    )
                })
                .collect();
            let plan = plan(&writes, capacity, Inline::Small);
            let mut planned = vec![0; writes.len()];
            for index in &plan.inline {
                assert!(writes[*index].bytes.len() <= INLINE_SMALL);
                planned[*index] += writes[*index].bytes.len();
            }
            for payload in &plan.stripes {
                let mut reached = 0;
                for piece in &payload.pieces {
                    assert!(piece.start >= reached);
                    assert_eq!(piece.skip, planned[piece.write]);
                    planned[piece.write] += piece.length;
                    reached = piece.start + piece.length;
                }
                assert_eq!(reached, payload.used);
                assert!(payload.used <= capacity);
            }
            assert!(planned.iter().zip(&writes).all(|(planned, write)| *planned == write.bytes.len()));
        }
    }

    #[test]
    fn small_files_share_stripes() {
        let writes: Vec<_> = (0..10_000).map(|ino| write(ino, 0, 4096)).collect();
        let plan = plan(&writes, 2 << 20, Inline::Small);
        assert_eq!(plan.stripes.len(), 10_000 * 4096 / (2 << 20) + 1);
    }

    #[test]
    fn an_unaligned_stream_fills_stripes_without_a_rest() {
        let writes = [write(1, 100, 8092), write(1, 8192, 8192), write(1, 16384, 8192), write(1, 24576, 100)];
        let plan = plan(&writes, 24576, Inline::Small);
        assert_eq!(plan.stripes.iter().map(|payload| payload.used).collect::<Vec<_>>(), [24576]);
    }

    #[test]
    fn a_small_synchronous_commit_needs_no_stripe() {
        let writes = [write(1, 8192, 4096), write(2, 0, 20_000)];
        assert_eq!(plan(&writes, 2 << 20, Inline::Synchronous).inline, [0, 1]);
        assert_eq!(plan(&writes, 2 << 20, Inline::Small).stripes.len(), 1);
    }
}
