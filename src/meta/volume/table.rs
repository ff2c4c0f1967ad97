//! The one table of sums for all replicas, and where the chunks of home lie.
//!
//! Home is cut into chunks of the same number of blocks. A chunk on a device is its sums area (one 4-byte sum per data block,
//! 1024 to a page) followed by its data blocks. Chunks are mapped when first written; block `b` of the virtual file is data
//! block `b % data` of chunk `b / data`.

use super::block::{BLOCK, Block, EMPTY};
use crate::base::{BlockNo, DeviceId, Error, Result};
use crate::format::label::ChunkRun;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Sums in one page.
pub const PAGE_SUMS: u32 = (BLOCK / 4) as u32;

/// How a chunk is divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Blocks of a chunk on a device.
    pub chunk: u32,
    /// Pages of its sums area.
    pub pages: u32,
    /// Its data blocks.
    pub data: u32,
}

impl Geometry {
    /// The division of chunks of so many blocks.
    pub fn new(chunk_blocks: u32) -> Result<Geometry> {
        if !(4..=1 << 20).contains(&chunk_blocks) {
            return Err(Error::corrupt(format!("{chunk_blocks} blocks is no size for a chunk of metadata")));
        }
        let pages = chunk_blocks.div_ceil(PAGE_SUMS + 1);
        Ok(Geometry { chunk: chunk_blocks, pages, data: chunk_blocks - pages })
    }

    /// Chunk of a block, and which of its data blocks it is; `None` beyond the last chunk there can be.
    pub fn locate(&self, block: u64) -> Option<(u32, u32)> {
        let data = u64::from(self.data);
        Some((u32::try_from(block / data).ok()?, (block % data) as u32))
    }
}

/// One chunk of home.
pub struct Chunk {
    /// First block on every device that has it, stale replicas included.
    pub homes: Vec<(DeviceId, BlockNo)>,
    /// The stored root names it: it may be written.
    pub stored: bool,
    /// The sum of every data block as redb sees it now.
    sums: Vec<u32>,
    /// Bit per data block: its sum may differ from the newest checkpoint's.
    changed: Vec<u64>,
    /// The digests of the pages in the newest checkpoint.
    pub digests: Vec<u64>,
}

impl Chunk {
    /// A chunk without content.
    pub fn empty(geometry: Geometry, homes: Vec<(DeviceId, BlockNo)>, stored: bool) -> Chunk {
        Chunk {
            homes,
            stored,
            sums: vec![EMPTY; geometry.data as usize],
            changed: vec![0; (geometry.data as usize).div_ceil(64)],
            digests: vec![0; geometry.pages as usize],
        }
    }

    /// Where it lies on the device.
    pub fn home(&self, device: DeviceId) -> Option<BlockNo> {
        self.homes.iter().find(|(id, _)| *id == device).map(|(_, block)| *block)
    }

    /// The stored form of a page of sums.
    pub fn page(&self, page: u32) -> Box<Block> {
        let mut block = Block::zeroed();
        let from = (page * PAGE_SUMS) as usize;
        let sums = self.sums.get(from..).unwrap_or_default();
        for (bytes, sum) in block.0.chunks_exact_mut(4).zip(sums) {
            bytes.copy_from_slice(&sum.to_le_bytes());
        }
        block
    }

    /// Takes over the sums of a stored page.
    pub fn load_page(&mut self, page: u32, block: &Block) {
        let from = (page * PAGE_SUMS) as usize;
        for (sum, bytes) in self.sums.iter_mut().skip(from).zip(block.0.chunks_exact(4)) {
            *sum = bytes.try_into().map_or(EMPTY, u32::from_le_bytes);
        }
    }

    /// Marks all sums of a page lost.
    pub fn lose_page(&mut self, page: u32) {
        let from = (page * PAGE_SUMS) as usize;
        self.sums.iter_mut().skip(from).take(PAGE_SUMS as usize).for_each(|sum| *sum = super::block::LOST);
    }

    /// The sum of a data block.
    pub fn sum(&self, index: u32) -> u32 {
        self.sums.get(index as usize).copied().unwrap_or(EMPTY)
    }

    fn page_changed(&self, page: u32) -> bool {
        let words = (PAGE_SUMS / 64) as usize;
        self.changed.iter().skip(page as usize * words).take(words).any(|word| *word != 0)
    }
}

/// Digest of a stored page of sums; 0 for a page without any, and only for that.
pub fn digest(page: &Block) -> u64 {
    if page.0 == [0; BLOCK] {
        return 0;
    }
    let hash = blake3::hash(&page.0);
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1)
}

/// What changed since the checkpoint before.
pub struct Changes {
    /// Blocks and their sums, ascending.
    pub blocks: Vec<(u64, u32)>,
    /// Pages of sums to rewrite: chunk, page, content.
    pub pages: Vec<(u32, u32, Box<Block>)>,
}

/// All chunks.
pub struct Table {
    pub geometry: Geometry,
    pub chunks: BTreeMap<u32, Chunk>,
    changed: usize,
    homeless: usize,
}

impl Table {
    /// A table without chunks.
    pub fn new(geometry: Geometry) -> Table {
        Table { geometry, chunks: BTreeMap::new(), changed: 0, homeless: 0 }
    }

    /// The sum of a block; [`EMPTY`] where nothing is mapped.
    pub fn sum(&self, block: u64) -> u32 {
        self.find(block).map_or(EMPTY, |(_, chunk, index)| chunk.sum(index))
    }

    /// The chunk a block lies in, when mapped, and its place there.
    pub fn find(&self, block: u64) -> Option<(u32, &Chunk, u32)> {
        let (number, index) = self.geometry.locate(block)?;
        self.chunks.get(&number).map(|chunk| (number, chunk, index))
    }

    /// Makes the chunk of a block known. Where it lies is decided when it is written back.
    pub fn map(&mut self, block: u64) -> Result<()> {
        let (number, _) = self.geometry.locate(block).ok_or(Error::FileTooLarge)?;
        if let Entry::Vacant(vacant) = self.chunks.entry(number) {
            vacant.insert(Chunk::empty(self.geometry, Vec::new(), false));
            self.homeless += 1;
        }
        Ok(())
    }

    /// Chunks that lie nowhere yet.
    pub fn homeless(&self) -> usize {
        self.homeless
    }

    /// Their numbers.
    pub fn all_homeless(&self) -> Vec<u32> {
        self.chunks.iter().filter(|(_, chunk)| chunk.homes.is_empty()).map(|(number, _)| *number).collect()
    }

    /// Gives a chunk its place.
    pub fn house(&mut self, number: u32, homes: Vec<(DeviceId, BlockNo)>) {
        if let Some(chunk) = self.chunks.get_mut(&number).filter(|chunk| chunk.homes.is_empty()) {
            chunk.homes = homes;
            self.homeless -= 1;
        }
    }

    /// Whether a block has its place.
    pub fn is_housed(&self, block: u64) -> bool {
        self.find(block).is_some_and(|(_, chunk, _)| !chunk.homes.is_empty())
    }

    /// Changes the sum of a block in a mapped chunk.
    pub fn set(&mut self, block: u64, sum: u32) {
        let (number, index) = self.geometry.locate(block).expect("a block of a mapped chunk");
        let chunk = self.chunks.get_mut(&number).expect("mapped before it is written");
        chunk.sums[index as usize] = sum;
        let (word, bit) = (index as usize / 64, 1 << (index % 64));
        self.changed += usize::from(chunk.changed[word] & bit == 0);
        chunk.changed[word] |= bit;
    }

    /// Blocks from this one on hold nothing any more.
    pub fn forget_from(&mut self, first: u64) {
        let data = u64::from(self.geometry.data);
        let Some((start, _)) = self.geometry.locate(first) else { return };
        let blocks: Vec<u64> = self
            .chunks
            .range(start..)
            .flat_map(|(number, chunk)| (u64::from(*number) * data..).zip(&chunk.sums))
            .filter(|(block, sum)| *block >= first && **sum != EMPTY)
            .map(|(block, _)| block)
            .collect();
        blocks.into_iter().for_each(|block| self.set(block, EMPTY));
    }

    /// Blocks whose sum may differ from the newest checkpoint's.
    pub fn changed(&self) -> usize {
        self.changed
    }

    /// Takes the changes for a checkpoint and updates the digests to it.
    pub fn take_changes(&mut self) -> Changes {
        let mut changes = Changes { blocks: Vec::with_capacity(self.changed), pages: Vec::new() };
        let data = u64::from(self.geometry.data);
        for (number, chunk) in &mut self.chunks {
            for page in (0..self.geometry.pages).filter(|page| chunk.page_changed(*page)).collect::<Vec<_>>() {
                let content = chunk.page(page);
                if let Some(slot) = chunk.digests.get_mut(page as usize) {
                    *slot = digest(&content);
                }
                changes.pages.push((*number, page, content));
            }
            for (word, bits) in (0u64..).zip(&mut chunk.changed) {
                let mut rest = std::mem::take(bits);
                while rest != 0 {
                    let index = word * 64 + u64::from(rest.trailing_zeros());
                    rest &= rest - 1;
                    let sum = chunk.sums.get(index as usize).copied().unwrap_or(EMPTY);
                    changes.blocks.push((u64::from(*number) * data + index, sum));
                }
            }
        }
        self.changed = 0;
        changes
    }

    /// The digests of all chunks with content.
    pub fn digests(&self) -> Vec<(u32, Vec<u64>)> {
        let with_content = self.chunks.iter().filter(|(_, chunk)| chunk.digests.iter().any(|digest| *digest != 0));
        with_content.map(|(number, chunk)| (*number, chunk.digests.clone())).collect()
    }

    /// The map as the root stores it: by device, neighbours merged.
    pub fn runs(&self) -> Vec<ChunkRun> {
        let mut homes: Vec<(DeviceId, u32, BlockNo)> = Vec::new();
        for (number, chunk) in &self.chunks {
            homes.extend(chunk.homes.iter().map(|(device, block)| (*device, *number, *block)));
        }
        homes.sort_unstable();
        let mut runs: Vec<ChunkRun> = Vec::new();
        for (device, chunk, block) in homes {
            match runs.last_mut() {
                Some(run)
                    if run.device == device.0
                        && run.chunk + run.count == chunk
                        && run.block + u64::from(run.count) * u64::from(self.geometry.chunk) == block.0 =>
                {
                    run.count += 1;
                }
                _ => runs.push(ChunkRun { device: device.0, chunk, count: 1, block: block.0 }),
            }
        }
        runs
    }
}
