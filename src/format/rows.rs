//! The rows and keys of every table.

use wincode::{SchemaRead, SchemaWrite};

use super::record::{Field, Fields, Key, Row};
use crate::base::{BlockNo, DeviceId, Error, Incarnation, Ino, Result, StripeId, Timestamp, TxnId};
use crate::{fixed_row, key, wire_row};

fixed_row! {
    /// An inode. `mode` is the full `st_mode`; `content` counts the bytes covered by extents (`st_blocks` is that
    /// in units of 512, rounded up).
    pub struct InodeRow, version 1 {
        pub mode: u32,
        pub uid: u32,
        pub gid: u32,
        /// Project quota id; 0 is none.
        pub project: u32,
        pub nlink: u32,
        pub rdev: u32,
        pub size: u64,
        pub content: u64,
        pub atime: Timestamp,
        pub mtime: Timestamp,
        pub ctime: Timestamp,
        pub btime: Timestamp,
        /// `FLAG_*` bits.
        pub flags: u32,
        /// Row of `policies`; 0 is the pool's default.
        pub policy: u32,
        /// The directory's parent (root: itself); 0 for other inodes.
        pub parent: Ino,
        /// Names in a directory; 0 for other inodes.
        pub entries: u64,
        /// Transaction of the first version of this row since the newest snapshot.
        pub birth: TxnId,
    }
}

/// `InodeRow::flags`: content and metadata may not change.
pub const FLAG_IMMUTABLE: u32 = 1;
/// `InodeRow::flags`: content may only be appended to.
pub const FLAG_APPEND: u32 = 2;
/// `InodeRow::flags`: has at least one extended attribute.
pub const FLAG_XATTRS: u32 = 4;

key! {
    /// `cookie` = 55 bits of the keyed hash of the name, then 8 bits that tell equal hashes apart. 0-2 are never used.
    pub struct DentryKey { pub parent: Ino, pub cookie: u64 }
}

fixed_row! {
    /// One name. `kind` is the `DT_*` value of the inode.
    pub struct DentryRow, version 1 {
        pub ino: Ino,
        pub kind: u8,
        pub birth: TxnId,
    } tail name
}

/// An extended attribute's piece: the key is inode, name, a zero byte, and the piece's number.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct XattrKey {
    pub ino: Ino,
    /// Without zero bytes, at most 255.
    pub name: Vec<u8>,
    pub piece: u16,
}

impl Key for XattrKey {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.ino.0.to_be_bytes());
        out.extend_from_slice(&self.name);
        out.push(0);
        out.extend_from_slice(&self.piece.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let bad = || Error::corrupt("an xattr key is malformed");
        let (ino, rest) = bytes.split_first_chunk::<8>().ok_or_else(bad)?;
        let (rest, piece) = rest.split_last_chunk::<2>().ok_or_else(bad)?;
        let (zero, name) = rest.split_last().ok_or_else(bad)?;
        if *zero != 0 || name.contains(&0) {
            return Err(bad());
        }
        Ok(XattrKey { ino: Ino(u64::from_be_bytes(*ino)), name: name.to_vec(), piece: u16::from_be_bytes(*piece) })
    }
}

/// Bytes of an attribute's value in one row.
pub const XATTR_PIECE: usize = 1000;

fixed_row! {
    /// A piece of an extended attribute's value; `total` is the length of the whole value.
    pub struct XattrRow, version 1 {
        pub total: u32,
        pub birth: TxnId,
    } tail value
}

key! {
    /// `offset`: first byte of the range in the file.
    pub struct ExtentKey { pub ino: Ino, pub offset: u64 }
}

/// Where a range of a file lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExtentRow {
    /// Bytes of the file this row covers.
    pub length: u64,
    pub birth: TxnId,
    pub body: ExtentBody,
}

/// The three kinds of extent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ExtentBody {
    /// The bytes themselves; exactly `length` of them.
    Inline(Vec<u8>),
    /// Part of a sealed unit in a stripe.
    Run(Run),
    /// Promised by fallocate, reads as zeros.
    Reserved,
}

/// A sealed unit in a stripe's payload, and which part of its plain content an extent shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    pub stripe: StripeId,
    /// First byte of the unit in the stripe's payload.
    pub start: u32,
    /// Bytes of the unit as stored.
    pub stored: u32,
    /// Bytes of the unit when opened and decompressed; equals `stored` for plain units.
    pub logical: u32,
    /// First byte of the opened unit that belongs to the extent.
    pub inside: u32,
    /// 0 plain; others are given out by `transform`.
    pub codec: u8,
    /// 0 unencrypted.
    pub key_generation: u32,
    pub nonce: [u8; 24],
    pub tag: [u8; 16],
}

impl Run {
    /// A unit that is stored as it is.
    pub fn plain(stripe: StripeId, start: u32, length: u32) -> Run {
        Run {
            stripe,
            start,
            stored: length,
            logical: length,
            inside: 0,
            codec: 0,
            key_generation: 0,
            nonce: [0; 24],
            tag: [0; 16],
        }
    }

    /// Whether the unit is neither compressed nor encrypted, so that any part of it can be read by itself.
    pub fn is_plain(&self) -> bool {
        self.codec == 0 && self.key_generation == 0
    }

    /// The payload bytes of the stripe an extent of `length` bytes keeps alive: for plain units only its own
    /// part, otherwise the whole unit.
    pub fn payload_range(&self, length: u64) -> (u32, u32) {
        if self.is_plain() { (self.start + self.inside, length as u32) } else { (self.start, self.stored) }
    }
}

const EXTENT_VERSION: u8 = 1;
const EXTENT_INLINE: u8 = 0;
const EXTENT_PLAIN: u8 = 1;
const EXTENT_SEALED: u8 = 2;
const EXTENT_RESERVED: u8 = 3;

impl Row for ExtentRow {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(EXTENT_VERSION);
        let kind = match &self.body {
            ExtentBody::Inline(_) => EXTENT_INLINE,
            ExtentBody::Run(run) if run.is_plain() => EXTENT_PLAIN,
            ExtentBody::Run(_) => EXTENT_SEALED,
            ExtentBody::Reserved => EXTENT_RESERVED,
        };
        kind.put(out);
        self.length.put(out);
        self.birth.put(out);
        match &self.body {
            ExtentBody::Inline(bytes) => out.extend_from_slice(bytes),
            ExtentBody::Reserved => {}
            ExtentBody::Run(run) => {
                run.stripe.put(out);
                run.start.put(out);
                run.stored.put(out);
                run.inside.put(out);
                if kind == EXTENT_SEALED {
                    run.logical.put(out);
                    run.codec.put(out);
                    run.key_generation.put(out);
                    run.nonce.put(out);
                    run.tag.put(out);
                }
            }
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut from = Fields(bytes);
        let version = u8::take(&mut from)?;
        if version != EXTENT_VERSION {
            return Err(super::record::unknown_version("ExtentRow", version));
        }
        let kind = u8::take(&mut from)?;
        let length = u64::take(&mut from)?;
        let birth = TxnId::take(&mut from)?;
        let bad = |what| Err(Error::corrupt(format!("an extent's {what}")));
        let body = match kind {
            EXTENT_INLINE => {
                let bytes = std::mem::take(&mut from.0).to_vec();
                if bytes.len() as u64 != length {
                    return bad("inline bytes differ from its length");
                }
                ExtentBody::Inline(bytes)
            }
            EXTENT_RESERVED => ExtentBody::Reserved,
            EXTENT_PLAIN | EXTENT_SEALED => {
                let stripe = Field::take(&mut from)?;
                let start: u32 = Field::take(&mut from)?;
                let stored: u32 = Field::take(&mut from)?;
                let inside: u32 = Field::take(&mut from)?;
                let mut run = Run { inside, ..Run::plain(stripe, start, stored) };
                if kind == EXTENT_SEALED {
                    run.logical = Field::take(&mut from)?;
                    run.codec = Field::take(&mut from)?;
                    run.key_generation = Field::take(&mut from)?;
                    run.nonce = Field::take(&mut from)?;
                    run.tag = Field::take(&mut from)?;
                }
                if start.checked_add(stored).is_none()
                    || u64::from(inside).checked_add(length).is_none_or(|end| end > u64::from(run.logical))
                {
                    return bad("range leaves its unit");
                }
                ExtentBody::Run(run)
            }
            _ => return bad("kind is unknown; use a newer argosfs"),
        };
        from.end()?;
        if length == 0 {
            return bad("length is zero");
        }
        Ok(ExtentRow { length, birth, body })
    }
}

/// A committed stripe.
///
/// Shard `i` (`0..k` data, `k..k+m` parity) lies at `placements[i]`: one header block, then `shard_blocks` payload
/// blocks. `sums[i * granules + g]` is the crc32c of granule `g` of shard `i`'s payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StripeRow {
    pub k: u8,
    pub m: u8,
    /// Payload blocks per shard.
    pub shard_blocks: u32,
    /// Bytes covered by one checksum: `4096 << granule_shift`.
    pub granule_shift: u8,
    pub state: StripeState,
    pub birth: TxnId,
    pub incarnation: Incarnation,
    /// Used bytes of the `k * shard_blocks * 4096` payload bytes; the rest is zeros.
    pub payload_bytes: u32,
    pub placements: Vec<Placement>,
    pub sums: Vec<u32>,
}

/// Whether all shards of a stripe are where its row says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum StripeState {
    Whole = 0,
    /// At least one shard was never written or is lost; an intent to rebuild it exists.
    Degraded = 1,
}

/// Where a shard lies. A shard that was never written has [`Placement::NONE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    pub device: DeviceId,
    /// The shard's header block.
    pub block: BlockNo,
}

impl Placement {
    /// No device holds this shard.
    pub const NONE: Placement = Placement { device: DeviceId(u16::MAX), block: BlockNo(0) };
}

/// Block numbers end here: beyond every device, and far from where byte offsets overflow.
pub const BLOCKS_END: u64 = 1 << 48;

/// The largest payload of one shard, in blocks (4 MiB).
pub const MAX_SHARD_BLOCKS: u32 = 1024;

impl StripeRow {
    /// Shards.
    pub fn width(&self) -> usize {
        usize::from(self.k) + usize::from(self.m)
    }

    /// Whether there can be stripes of such a geometry. Nothing else may be asked of one that cannot be.
    pub fn is_possible(&self) -> bool {
        let payload = u64::from(self.k) * u64::from(self.shard_blocks) * crate::base::BLOCK_SIZE;
        self.k > 0
            && self.width() <= 255
            && (1..=MAX_SHARD_BLOCKS).contains(&self.shard_blocks)
            && self.granule_shift <= 10
            && u64::from(self.payload_bytes) <= payload
    }

    /// Checksum granules in one shard.
    pub fn granules(&self) -> usize {
        (self.shard_blocks as usize).div_ceil(1 << self.granule_shift)
    }
}

impl Row for StripeRow {
    fn encode(&self, out: &mut Vec<u8>) {
        debug_assert_eq!(self.placements.len(), usize::from(self.k) + usize::from(self.m));
        debug_assert_eq!(self.sums.len(), self.placements.len() * self.granules());
        1u8.put(out);
        self.k.put(out);
        self.m.put(out);
        self.shard_blocks.put(out);
        self.granule_shift.put(out);
        (self.state as u8).put(out);
        self.birth.put(out);
        self.incarnation.put(out);
        self.payload_bytes.put(out);
        for placement in &self.placements {
            placement.device.put(out);
            placement.block.put(out);
        }
        for sum in &self.sums {
            sum.put(out);
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut from = Fields(bytes);
        let version = u8::take(&mut from)?;
        if version != 1 {
            return Err(super::record::unknown_version("StripeRow", version));
        }
        let mut row = StripeRow {
            k: Field::take(&mut from)?,
            m: Field::take(&mut from)?,
            shard_blocks: Field::take(&mut from)?,
            granule_shift: Field::take(&mut from)?,
            state: match u8::take(&mut from)? {
                0 => StripeState::Whole,
                1 => StripeState::Degraded,
                _ => return Err(Error::corrupt("a stripe's state is unknown; use a newer argosfs")),
            },
            birth: Field::take(&mut from)?,
            incarnation: Field::take(&mut from)?,
            payload_bytes: Field::take(&mut from)?,
            placements: Vec::new(),
            sums: Vec::new(),
        };
        if !row.is_possible() {
            return Err(Error::corrupt("a stripe's geometry is impossible"));
        }
        let width = row.width();
        for _ in 0..width {
            let placement = Placement { device: Field::take(&mut from)?, block: Field::take(&mut from)? };
            if placement.block.0 >= BLOCKS_END {
                return Err(Error::corrupt("a stripe's shard lies beyond every device"));
            }
            row.placements.push(placement);
        }
        for _ in 0..width * row.granules() {
            row.sums.push(Field::take(&mut from)?);
        }
        from.end()?;
        Ok(row)
    }
}

fixed_row! {
    /// Live payload bytes of a stripe: the union of the ranges of its backrefs.
    pub struct StripeLiveRow, version 1 {
        pub live: u32,
        /// Used bytes of the payload, as in the stripe's row.
        pub payload: u32,
        /// 1 once two extents have shared bytes of the stripe: from then on ranges are compared before `live` falls.
        pub shared: u8,
    }
}

fixed_row! {
    /// A stripe of which so many shards are bad that some content cannot be read.
    pub struct DamageRow, version 1 {
        /// When that was found.
        pub found: Timestamp,
        /// Shards that were bad or away when it was looked at last.
        pub bad: u8,
    }
}

/// How far a scrub is; kept in `config`, so that it goes on after a pause or a restart.
#[derive(Clone, PartialEq, Eq, Debug, Default, SchemaWrite, SchemaRead)]
pub struct ScrubRow {
    pub state: ScrubState,
    /// Seconds since 1970.
    pub begun: i64,
    pub ended: i64,
    /// Seconds spent on it, pauses left out.
    pub seconds: u64,
    /// The last stripe that was verified.
    pub after: Option<u64>,
    pub stripes: u64,
    /// Bytes of shards verified.
    pub bytes: u64,
    pub rewritten: u64,
    pub rebuilt: u64,
    pub missing: u64,
    pub lost: u64,
    pub metadata_blocks: u64,
}
wire_row!(ScrubRow, version 1);

/// What a scrub is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
pub enum ScrubState {
    /// There never was one.
    #[default]
    None,
    /// It goes on, or goes on when the pool is mounted.
    Running,
    Paused,
    /// It came to its end.
    Finished,
    Cancelled,
}

key! {
    pub struct BackrefKey { pub stripe: StripeId, pub ino: Ino, pub offset: u64, pub birth: TxnId }
}

fixed_row! {
    /// The payload bytes an extent keeps alive.
    pub struct BackrefRow, version 1 {
        pub start: u32,
        pub length: u32,
    }
}

key! {
    /// `part`: which [`GROUP_PART_BLOCKS`] blocks of the allocation group.
    pub struct GroupKey { pub device: DeviceId, pub group: u32, pub part: u8 }
}

/// Blocks described by one row of `groups` (1 KiB of bitmap, least significant bit first; 1 = in use).
pub const GROUP_PART_BLOCKS: u64 = 8192;

/// A member as the filesystem sees it.
#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct DeviceRow {
    pub uuid: [u8; 16],
    pub state: u8,
    /// 0 unknown, 1 hdd, 2 ssd, 3 nvme.
    pub class: u8,
    pub tier: u8,
    /// Placement weight in 1/1000 of what capacity gives.
    pub weight_milli: u32,
    pub failure_domain: u64,
    pub blocks: u64,
    /// Blocks of committed stripes on the device; recomputed by fsck.
    pub used_blocks: u64,
    pub read_errors: u64,
    pub write_errors: u64,
    pub checksum_errors: u64,
    pub read_latency_us_ewma: u64,
    pub write_latency_us_ewma: u64,
    /// Risk memory of the autopilot.
    pub risk_milli: u32,
}
wire_row!(DeviceRow, version 1);

/// Numbers in the `counters` table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Counter {
    /// The last committed transaction; replay skips redo groups at or below it.
    Txn = 0,
    /// Next inode number never given out.
    NextIno = 1,
    /// Stripe ids below this may have been used.
    NextStripe = 2,
    NextIntent = 3,
    NextJournal = 4,
    /// Oldest row still in the journal.
    FirstJournal = 5,
    Inodes = 6,
    SchemaVersion = 7,
    /// Upper half of node ids of the live view; raised by a rollback.
    LiveEpoch = 8,
    /// Bytes reserved by fallocate and not written yet.
    Reserved = 9,
}

/// One audited operation. `chain` is the BLAKE3 hash of the previous row's chain and this row without its chain.
#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct JournalRow {
    pub seconds: i64,
    pub nanos: u32,
    pub uid: u32,
    pub txn: u64,
    pub operation: JournalOp,
    pub chain: [u8; 32],
}
wire_row!(JournalRow, version 1);

/// What an audited operation did; inode numbers are those of the live view.
#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub enum JournalOp {
    Create {
        parent: u64,
        name: Vec<u8>,
        ino: u64,
        mode: u32,
    },
    Link {
        ino: u64,
        parent: u64,
        name: Vec<u8>,
    },
    Unlink {
        parent: u64,
        name: Vec<u8>,
        ino: u64,
    },
    Rmdir {
        parent: u64,
        name: Vec<u8>,
        ino: u64,
    },
    Rename {
        from: u64,
        name: Vec<u8>,
        to: u64,
        new_name: Vec<u8>,
        ino: u64,
        flags: u32,
    },
    SetAttr {
        ino: u64,
        mask: u32,
        mode: u32,
        uid: u32,
        gid: u32,
        size: u64,
    },
    SetXattr {
        ino: u64,
        name: Vec<u8>,
        length: u32,
    },
    RemoveXattr {
        ino: u64,
        name: Vec<u8>,
    },
    /// Content committed: `bytes` in `extents` ranges, size afterwards.
    Write {
        ino: u64,
        bytes: u64,
        extents: u32,
        size: u64,
    },
    Fallocate {
        ino: u64,
        mode: u32,
        offset: u64,
        length: u64,
    },
    CopyRange {
        from: u64,
        to: u64,
        from_offset: u64,
        to_offset: u64,
        length: u64,
    },
    Reclaim {
        ino: u64,
    },
    Device {
        id: u16,
        action: Vec<u8>,
    },
    /// The metadata was made again from the archive or the export of transaction `archive` and `stripes` stripes that were
    /// newer.
    Recover {
        archive: u64,
        stripes: u64,
    },
    /// `fsck` mended a problem of this kind; `what` says where and how.
    Repair {
        issue: Vec<u8>,
        what: Vec<u8>,
    },
}

key! {
    pub struct ConfigKey {} tail name
}

key! {
    /// `row_key`: the key in the table of that number, with `birth` behind it.
    pub struct HistoryKey { pub table: u8 } tail row_key
}

fixed_row! {
    /// A row as it was before `death`; an empty tail with `present` 0 says that there was none.
    pub struct HistoryRow, version 1 {
        pub death: TxnId,
        pub present: u8,
    } tail row
}

key! {
    pub struct HistoryByDeathKey { pub death: TxnId, pub table: u8 } tail row_key
}

key! {
    pub struct SnapshotKey {} tail name
}

fixed_row! {
    pub struct SnapshotRow, version 1 {
        pub txn: TxnId,
        pub created: Timestamp,
        /// Upper half of the node ids under which it is browsed.
        pub view: u16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_that_leaves_its_unit_is_refused() {
        let extent = |inside, length| {
            let run = Run { inside, ..Run::plain(StripeId(7), 0, 100) };
            let mut bytes = Vec::new();
            ExtentRow { length, birth: TxnId(1), body: ExtentBody::Run(run) }.encode(&mut bytes);
            ExtentRow::decode(&bytes)
        };
        assert!(extent(40, 60).is_ok());
        for (inside, length) in [(41, 60), (0, 101), (1, u64::MAX)] {
            assert!(extent(inside, length).is_err(), "{length} bytes from byte {inside} of 100");
        }
    }
}
