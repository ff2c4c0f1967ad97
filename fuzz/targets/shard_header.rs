//! A shard's header block: anything in it, with a checksum that matches.
#![no_main]

use argosfs::base::BLOCK_SIZE;
use argosfs::format::shard::{MAX_SUMS, ShardHeader};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut block = data.to_vec();
    block.resize(BLOCK_SIZE as usize, 0);
    block[..8].copy_from_slice(b"ARGSHARD");
    let at = block.len() - 4;
    let sum = crc32c::crc32c(&block[..at]);
    block[at..].copy_from_slice(&sum.to_le_bytes());
    if let Ok(header) = ShardHeader::decode(&block) {
        let again = ShardHeader::decode(&header.encode()).expect("what was encoded can be read");
        let identity = |header: &ShardHeader| (header.pool, header.stripe, header.incarnation, header.index);
        assert_eq!(identity(&again), identity(&header));
        if header.sums.len() <= MAX_SUMS {
            assert_eq!(again.sums, header.sums);
        }
    }
});
