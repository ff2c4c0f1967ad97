//! Finding shards by their headers, in every block of every device that is there.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Run;
use crate::base::{BLOCK_SIZE, BlockNo, DeviceId, Incarnation, Result, StripeId, TxnId};
use crate::device::Device;
use crate::device::buffer::AlignedBuf;
use crate::format::rows::MAX_SHARD_BLOCKS;
use crate::format::shard::{self, ShardHeader};
use crate::pool::{Member, Pool};

/// A shard whose header was found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FoundShard {
    pub device: DeviceId,
    pub block: BlockNo,
    pub stripe: StripeId,
    pub incarnation: Incarnation,
    pub index: u8,
    /// The newest transaction committed when it was written.
    pub txn: TxnId,
    /// Blocks of its payload.
    pub payload: u32,
}

impl FoundShard {
    /// Its blocks, the header's included.
    pub fn run(&self) -> Run {
        Run { device: self.device, block: self.block, blocks: 1 + self.payload }
    }
}

/// What a search found.
#[derive(Default, Debug)]
pub struct Search {
    /// In order of device and block.
    pub shards: Vec<FoundShard>,
    /// Blocks that could not be read.
    pub unreadable: u64,
}

/// Blocks read at once.
const PIECE: u64 = 256;

/// Looks at every block of the devices that are there for headers of this pool's shards that `wanted` accepts. `watch` learns
/// how many blocks of how many were looked at, and says whether to go on.
pub fn find_shards(
    pool: &Pool,
    wanted: &(dyn Fn(&FoundShard) -> bool + Sync),
    watch: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Search> {
    let state = pool.state();
    let total = state.present().map(|member| member.layout.blocks).sum();
    let done = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let mut search = Search::default();
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for member in state.present() {
            let Some(device) = member.device.clone() else { continue };
            let (done, stop) = (&done, &stop);
            let uuid = pool.uuid();
            workers.push(scope.spawn(move || {
                let mut search = Search::default();
                let accept = |header: &ShardHeader, found: &FoundShard| {
                    header.pool == uuid && header.device == member.uuid && fits(member, found) && wanted(found)
                };
                let end = member.layout.start + member.layout.blocks;
                let mut block = member.layout.start;
                while block < end && !stop.load(Ordering::Relaxed) {
                    let blocks = PIECE.min(end - block);
                    look(&*device, member.id, block, blocks, &accept, &mut search);
                    block += blocks;
                    done.fetch_add(blocks, Ordering::Relaxed);
                }
                search
            }));
        }
        while workers.iter().any(|worker| !worker.is_finished()) {
            if !watch(done.load(Ordering::Relaxed), total) {
                stop.store(true, Ordering::Relaxed);
            }
            std::thread::park_timeout(std::time::Duration::from_millis(50));
        }
        for worker in workers {
            let found = worker.join().map_err(|_| crate::base::Error::corrupt("the search for shards failed"))?;
            search.shards.extend(found.shards);
            search.unreadable += found.unreadable;
        }
        Ok(())
    })?;
    if stop.load(Ordering::Relaxed) {
        return Err(crate::base::Error::Unavailable("the search for shards was stopped".to_owned()));
    }
    search.shards.sort_unstable();
    Ok(search)
}

/// Whether a shard can lie there.
fn fits(member: &Member, found: &FoundShard) -> bool {
    let end = member.layout.start + member.layout.blocks;
    (1..=MAX_SHARD_BLOCKS).contains(&found.payload) && found.block.0 + 1 + u64::from(found.payload) <= end
}

/// Looks at `blocks` blocks from `first` on; what cannot be read at once is read block by block.
fn look(
    device: &dyn Device,
    id: DeviceId,
    first: u64,
    blocks: u64,
    accept: &dyn Fn(&ShardHeader, &FoundShard) -> bool,
    search: &mut Search,
) {
    let mut buf = AlignedBuf::scratch((blocks * BLOCK_SIZE) as usize);
    if device.read_at(first * BLOCK_SIZE, &mut buf).is_err() {
        if blocks == 1 {
            search.unreadable += 1;
        } else {
            (first..first + blocks).for_each(|block| look(device, id, block, 1, accept, search));
        }
        return;
    }
    for (at, block) in buf.chunks(BLOCK_SIZE as usize).enumerate() {
        if !shard::looks_like(block) {
            continue;
        }
        let Ok(header) = ShardHeader::decode(block) else { continue };
        let found = FoundShard {
            device: id,
            block: BlockNo(first + at as u64),
            stripe: header.stripe,
            incarnation: header.incarnation,
            index: header.index,
            txn: header.txn,
            payload: header.shard_blocks,
        };
        if accept(&header, &found) {
            search.shards.push(found);
        }
    }
}

/// Reads the header of a shard again.
pub(super) fn read_header(device: &dyn Device, found: &FoundShard) -> Option<ShardHeader> {
    let mut block = AlignedBuf::scratch(BLOCK_SIZE as usize);
    device.read_at(found.block.byte_offset(), &mut block).ok()?;
    let header = ShardHeader::decode(&block).ok()?;
    (header.stripe == found.stripe && header.incarnation == found.incarnation && header.index == found.index)
        .then_some(header)
}
