//! The label: who a device is, which pool it belongs to, and where that pool's metadata starts.

use wincode::{SchemaRead, SchemaWrite};

/// Where the metadata volume lies; part of every label. A change is made by writing the labels of all present
/// devices, flushed, before anything relies on it.
#[derive(Clone, PartialEq, Eq, Debug, Default, SchemaWrite, SchemaRead)]
pub struct MetaRoot {
    /// Grows with every change.
    pub generation: u64,
    /// Random number of the volume: no log of another one is mistaken for its own.
    pub volume: u64,
    /// Blocks of one chunk of home (sums area included).
    pub chunk_blocks: u32,
    /// The devices that hold the log and home, each with its log ring.
    pub replicas: Vec<ReplicaRoot>,
    /// Which blocks hold which chunks of home, sorted by chunk; neighbours are merged.
    pub chunks: Vec<ChunkRun>,
}

/// One device's part of the metadata volume.
#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct ReplicaRoot {
    pub device: u16,
    /// First block of the log ring.
    pub log_block: u64,
    pub log_blocks: u32,
    /// It missed something: its blocks are kept for bringing it up again, never read as a source.
    pub stale: bool,
}

/// `count` chunks from number `chunk` on, one behind the other from `block` on, on one replica.
#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct ChunkRun {
    pub device: u16,
    pub chunk: u32,
    pub count: u32,
    pub block: u64,
}
