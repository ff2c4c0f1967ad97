//! The label: who a device is, which pool it belongs to, and where that pool's metadata starts.
//!
//! A slot of [`LABEL_SLOT`] bytes holds a header of [`HEADER_LEN`] bytes, whose layout is the same in every format
//! version so that any build can name the pool and the version, and a body of numbered sections. Sections and
//! `compat` bits this build does not know are kept as they are.
//!
//! Invariants:
//! - Decoding takes any bytes at all; it allocates no more than a few times the slot's size.
//! - The checksum covers the header and the body; what follows in the slot is zeros and means nothing.
//! - [`PoolLabel`] is the same on every member that took part in the newest write; [`DeviceIdent`] is the member's own.

use wincode::config::{self, Configuration};
use wincode::{SchemaRead, SchemaWrite};

use crate::base::{BLOCK_SIZE, DeviceId, Error, Incarnation, Result, Uuid};

/// Bytes of one label copy.
pub const LABEL_SLOT: usize = 64 * 1024;
/// Bytes at the start of the slot whose layout never changes.
pub const HEADER_LEN: usize = 256;
/// The newest format this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// What every label starts with.
pub const LABEL_MAGIC: [u8; 8] = *b"ArgosFS\n";
/// Longest pool name, in bytes.
pub const MAX_POOL_NAME: usize = 63;
/// Most entries of the member table, removed ones included.
pub const MAX_MEMBERS: usize = 256;
/// Ancestors an epoch remembers.
pub const MAX_ANCESTORS: usize = 32;
/// First block of the first allocation group (1 MiB in): room for the labels, and for a boot loader one day.
pub const DATA_START: u64 = 256;
/// Blocks of an allocation group on all but tiny devices (128 MiB).
pub const GROUP_BLOCKS: u32 = 32_768;
/// The fewest blocks of an allocation group, and so of a chunk of metadata: mkfs makes them as large as the smallest group, or
/// 64 MiB.
const LEAST_GROUP_BLOCKS: u32 = 64;

/// `compat` bit of pools whose devices can be made to fail, for rehearsals.
pub const DEBUG_FAULTS: u64 = 1;
/// `incompat` bits this build reads.
const KNOWN_INCOMPAT: u64 = 0;
/// `ro_compat` bits this build may write beside.
const KNOWN_RO_COMPAT: u64 = 0;

const AT_VERSION: usize = 8;
const AT_BODY_LEN: usize = 12;
const AT_CRC: usize = 16;
const AT_COMPAT: usize = 24;
const AT_RO_COMPAT: usize = 32;
const AT_INCOMPAT: usize = 40;
const AT_POOL: usize = 48;
const AT_DEVICE: usize = 64;
const AT_SEQUENCE: usize = 80;
const AT_SIZE: usize = 88;
const AT_NAME: usize = 96;
const _: () = assert!(AT_NAME + 1 + MAX_POOL_NAME <= HEADER_LEN);

const SECTION_DEVICE: u16 = 1;
const SECTION_POOL: u16 = 2;
const SECTION_EPOCH: u16 = 3;
const SECTION_MEMBERS: u16 = 4;
const SECTION_META: u16 = 5;
const SECTION_ARCHIVES: u16 = 6;
const SECTION_KEYS: u16 = 7;

/// Lengths a decoder believes before it has seen the elements: those that fit the slot.
type Wire = Configuration<true, { 4 * LABEL_SLOT }>;
const WIRE: Wire = Configuration::default().with_preallocation_size_limit::<{ 4 * LABEL_SLOT }>();

/// One device's label.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Label {
    pub device: DeviceIdent,
    pub pool: PoolLabel,
}

/// Which device carries the label, and how its space is divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct DeviceIdent {
    pub uuid: Uuid,
    pub id: DeviceId,
    /// Bytes of the device when the label was written.
    pub size: u64,
    pub layout: GroupLayout,
}

/// How the space between the label areas is divided into allocation groups; the last one may be shorter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct GroupLayout {
    /// First block of group 0.
    pub start: u64,
    /// Blocks in all groups together.
    pub blocks: u64,
    /// Blocks of a group: a power of two.
    pub group_blocks: u32,
}

/// Feature bits, in three classes by what a build that does not know one may still do.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Features {
    /// Anything; unknown bits are kept.
    pub compat: u64,
    /// Read.
    pub ro_compat: u64,
    /// Nothing.
    pub incompat: u64,
}

/// What all members' labels say alike.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolLabel {
    pub features: Features,
    pub uuid: Uuid,
    /// At most [`MAX_POOL_NAME`] bytes.
    pub name: String,
    /// Grows with every label write; the copy with the highest one counts.
    pub sequence: u64,
    pub settings: PoolSettings,
    pub epoch: Epoch,
    pub members: Vec<MemberEntry>,
    pub meta: MetaRoot,
    /// The newest archives, newest first; at most two.
    pub archives: Vec<Archive>,
    pub key_slots: Vec<KeySlot>,
    /// Sections of newer builds, kept as they came.
    pub unknown: Vec<Section>,
}

/// Settings of the pool, and the id of its present read-write mount.
#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct PoolSettings {
    /// Unit of allocation in bytes.
    pub block_size: u32,
    pub geometry: DefaultGeometry,
    pub incarnation: Incarnation,
    /// When mkfs ran, in seconds since 1970.
    pub created: i64,
}

/// The geometry new stripes get while enough devices are there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct DefaultGeometry {
    pub k: u8,
    pub m: u8,
    /// Payload blocks a shard should have.
    pub shard_blocks: u32,
}

/// One state of the membership. Every change of it makes a new epoch, written to all present members before
/// anything is acknowledged.
#[derive(Clone, PartialEq, Eq, Debug, Default, SchemaWrite, SchemaRead)]
pub struct Epoch {
    pub id: Uuid,
    pub number: u64,
    /// Ids of the epochs before this one, newest (the parent) first; at most [`MAX_ANCESTORS`].
    pub ancestors: Vec<Uuid>,
    /// Why it was made, for people.
    pub reason: String,
}

impl Epoch {
    /// The epoch that follows.
    pub fn child(&self, id: Uuid, reason: &str) -> Epoch {
        let mut ancestors = vec![self.id];
        ancestors.extend(self.ancestors.iter().copied().take(MAX_ANCESTORS - 1));
        let reason = reason.chars().take(100).collect();
        Epoch { id, number: self.number + 1, ancestors, reason }
    }

    /// Whether `other` is known to have come before this one.
    pub fn descends_from(&self, other: Uuid) -> bool {
        self.ancestors.contains(&other)
    }
}

/// A line of the member table.
#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct MemberEntry {
    pub id: DeviceId,
    pub uuid: Uuid,
    pub state: MemberState,
    /// 0 unknown, 1 hdd, 2 ssd, 3 nvme.
    pub class: u8,
    pub tier: u8,
    /// Placement weight in 1/1000 of what capacity gives; 0 on a member that is being replaced, in whatever state.
    pub weight_milli: u32,
    pub failure_domain: u64,
    pub size: u64,
    pub layout: GroupLayout,
    /// The epoch the member's own label was in when this table was written: for members that take part in the
    /// table's epoch, the one they came from or this one; for the others, the last they took part in.
    pub last_epoch: Uuid,
    /// Where it was last seen; a hint.
    pub path: String,
}

/// What the pool knows of a member.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
pub enum MemberState {
    /// Present, up to date.
    Active,
    /// Not there.
    Missing,
    /// Back after an absence: takes writes, its metadata is not trusted before it is resynchronised.
    Stale,
    /// Dropped after an error.
    Failed,
    /// Present, up to date, and being emptied in favour of another member: no new data goes there.
    Replacing,
    /// No longer a member; kept so that it is recognised.
    Removed,
}

impl MemberState {
    /// Whether members in this state carry the label of their epoch.
    pub fn takes_part(self) -> bool {
        matches!(self, MemberState::Active | MemberState::Stale | MemberState::Replacing)
    }
}

/// A metadata archive, stored as ordinary stripes.
#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct Archive {
    /// The newest transaction in it.
    pub txn: u64,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Bytes of the archive as stored.
    pub length: u64,
    /// BLAKE3 of those bytes.
    pub digest: [u8; 32],
    /// When true, `stripes` hold the encoded list of the stripes that hold the archive.
    pub indirect: bool,
    pub stripes: Vec<StripeLocation>,
}

/// Where a stripe lies, for readers that have no tables.
#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct StripeLocation {
    pub stripe: u64,
    pub k: u8,
    pub m: u8,
    pub shard_blocks: u32,
    pub payload_bytes: u32,
    pub placements: Vec<ShardLocation>,
}

/// Most bytes of a list of stripes kept outside the label.
pub const LIST_MAX: usize = 64 << 20;
type ListWire = Configuration<true, LIST_MAX>;
const LIST_WIRE: ListWire = Configuration::default().with_preallocation_size_limit::<LIST_MAX>();

impl StripeLocation {
    /// The list as it is stored, in a label or outside.
    pub fn encode_list(list: &Vec<StripeLocation>) -> Result<Vec<u8>> {
        config::serialize(list, LIST_WIRE)
            .map_err(|error| Error::Unavailable(format!("a list of stripes cannot be written: {error}")))
    }

    /// Reads a list. Any bytes at all may come in.
    pub fn decode_list(bytes: &[u8]) -> Result<Vec<StripeLocation>> {
        let list: Vec<StripeLocation> = config::deserialize_exact(bytes, LIST_WIRE)
            .map_err(|error| Error::corrupt(format!("a list of stripes cannot be read: {error}")))?;
        list.iter().try_for_each(StripeLocation::check).map_err(Error::corrupt)?;
        Ok(list)
    }

    /// Whether values that others will compute with are in range.
    fn check(&self) -> Result<(), &'static str> {
        let shards = usize::from(self.k) + usize::from(self.m);
        let bytes = u64::from(self.k) * u64::from(self.shard_blocks) * BLOCK_SIZE;
        let far = |placement: &ShardLocation| placement.block >= super::rows::BLOCKS_END;
        if self.k == 0
            || shards != self.placements.len()
            || shards > 255
            || !(1..=super::rows::MAX_SHARD_BLOCKS).contains(&self.shard_blocks)
            || u64::from(self.payload_bytes) > bytes
            || self.placements.iter().any(far)
        {
            return Err("a stripe of its archives is impossible");
        }
        Ok(())
    }
}

/// The header block of one shard; device `u16::MAX` when the shard was never written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct ShardLocation {
    pub device: u16,
    pub block: u64,
}

/// A wrapped key; what is inside belongs to `transform`.
#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct KeySlot {
    pub kind: u8,
    pub bytes: Vec<u8>,
}

/// A numbered part of the body.
#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct Section {
    pub number: u16,
    pub bytes: Vec<u8>,
}

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

/// Why a slot gives no label.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LabelFault {
    /// There never was a label here, or nothing is left of it.
    Absent,
    /// It was a label; the text says what is wrong.
    Damaged(String),
    /// An intact label of a format this build does not read.
    Newer { version: u32, incompat: u64, pool: String },
}

impl Label {
    /// The slot's bytes, [`LABEL_SLOT`] of them. Fails when the contents do not fit.
    #[expect(clippy::indexing_slicing, reason = "fields lie at fixed places of the slot, and the body was seen to fit")]
    pub fn encode(&self) -> Result<Vec<u8>> {
        let pool = &self.pool;
        if pool.name.len() > MAX_POOL_NAME {
            return Err(Error::Usage(format!("a pool name has at most {MAX_POOL_NAME} bytes")));
        }
        let mut sections = vec![
            section(SECTION_DEVICE, &self.device)?,
            section(SECTION_POOL, &pool.settings)?,
            section(SECTION_EPOCH, &pool.epoch)?,
            section(SECTION_MEMBERS, &pool.members)?,
            section(SECTION_META, &pool.meta)?,
            section(SECTION_ARCHIVES, &pool.archives)?,
            section(SECTION_KEYS, &pool.key_slots)?,
        ];
        sections.extend(pool.unknown.iter().cloned());
        let body = wire(&sections)?;
        if HEADER_LEN + body.len() > LABEL_SLOT {
            return Err(Error::Unavailable(format!(
                "the label of pool {} needs {} bytes and has room for {}: too many devices or metadata chunks",
                pool.name,
                HEADER_LEN + body.len(),
                LABEL_SLOT
            )));
        }
        let mut out = vec![0; LABEL_SLOT];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &LABEL_MAGIC);
        put(AT_VERSION, &FORMAT_VERSION.to_le_bytes());
        put(AT_BODY_LEN, &(body.len() as u32).to_le_bytes());
        put(AT_COMPAT, &pool.features.compat.to_le_bytes());
        put(AT_RO_COMPAT, &pool.features.ro_compat.to_le_bytes());
        put(AT_INCOMPAT, &pool.features.incompat.to_le_bytes());
        put(AT_POOL, &pool.uuid.0);
        put(AT_DEVICE, &self.device.uuid.0);
        put(AT_SEQUENCE, &pool.sequence.to_le_bytes());
        put(AT_SIZE, &self.device.size.to_le_bytes());
        put(AT_NAME, &[pool.name.len() as u8]);
        put(AT_NAME + 1, pool.name.as_bytes());
        put(HEADER_LEN, &body);
        let crc = crc32c::crc32c(&out[..HEADER_LEN + body.len()]);
        out[AT_CRC..AT_CRC + 4].copy_from_slice(&crc.to_le_bytes());
        Ok(out)
    }

    /// Reads a slot.
    pub fn decode(slot: &[u8]) -> Result<Label, LabelFault> {
        let header: &[u8; HEADER_LEN] = slot.first_chunk().ok_or(LabelFault::Absent)?;
        if header[..8] != LABEL_MAGIC {
            return Err(LabelFault::Absent);
        }
        let damaged = |what: &str| LabelFault::Damaged(what.to_owned());
        let body_len = u32_at(header, AT_BODY_LEN) as usize;
        let covered = slot
            .get(..HEADER_LEN.saturating_add(body_len))
            .filter(|covered| covered.len() <= LABEL_SLOT)
            .ok_or_else(|| damaged("its length is impossible"))?;
        let (front, rest) = covered.split_at_checked(AT_CRC).ok_or(LabelFault::Absent)?;
        let (stored, behind) = rest.split_first_chunk().ok_or(LabelFault::Absent)?;
        let crc = crc32c::crc32c(front);
        let crc = crc32c::crc32c_append(crc, &[0; 4]);
        let crc = crc32c::crc32c_append(crc, behind);
        if crc != u32::from_le_bytes(*stored) {
            return Err(damaged("its checksum does not match"));
        }

        let version = u32_at(header, AT_VERSION);
        let incompat = u64_at(header, AT_INCOMPAT);
        let name_len = usize::from(header[AT_NAME]);
        let name = header.get(AT_NAME + 1..AT_NAME + 1 + name_len.min(MAX_POOL_NAME)).unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        let printable = || name.chars().filter(|c| !c.is_control()).collect();
        if version > FORMAT_VERSION || incompat & !KNOWN_INCOMPAT != 0 {
            return Err(LabelFault::Newer { version, incompat, pool: printable() });
        }
        if version != FORMAT_VERSION || name.len() != name_len {
            return Err(damaged("its header is impossible"));
        }

        let mut sections: Vec<Section> = unwire(covered.get(HEADER_LEN..).unwrap_or_default())?;
        let label = Label {
            device: take(&mut sections, SECTION_DEVICE)?,
            pool: PoolLabel {
                features: Features {
                    compat: u64_at(header, AT_COMPAT),
                    ro_compat: u64_at(header, AT_RO_COMPAT),
                    incompat,
                },
                uuid: uuid_at(header, AT_POOL),
                name,
                sequence: u64_at(header, AT_SEQUENCE),
                settings: take(&mut sections, SECTION_POOL)?,
                epoch: take(&mut sections, SECTION_EPOCH)?,
                members: take(&mut sections, SECTION_MEMBERS)?,
                meta: take(&mut sections, SECTION_META)?,
                archives: take(&mut sections, SECTION_ARCHIVES)?,
                key_slots: take(&mut sections, SECTION_KEYS)?,
                unknown: sections,
            },
        };
        if label.device.uuid != uuid_at(header, AT_DEVICE) || label.device.size != u64_at(header, AT_SIZE) {
            return Err(damaged("its header and its body disagree"));
        }
        label.check().map_err(damaged)?;
        Ok(label)
    }

    /// Whether values that others will compute with are in range.
    fn check(&self) -> Result<(), &'static str> {
        let pool = &self.pool;
        let geometry = pool.settings.geometry;
        self.device.layout.check(self.device.size)?;
        if pool.settings.block_size as u64 != BLOCK_SIZE {
            return Err("its block size is unknown");
        }
        let shards = u16::from(geometry.k) + u16::from(geometry.m);
        if geometry.k == 0 || shards > 255 || !(1..=super::rows::MAX_SHARD_BLOCKS).contains(&geometry.shard_blocks) {
            return Err("its geometry is impossible");
        }
        if pool.name.chars().any(char::is_control) {
            return Err("its pool name has control characters");
        }
        // Far beyond what can be counted to, and far from overflow.
        if pool.sequence >> 62 != 0 || pool.epoch.number >> 62 != 0 {
            return Err("one of its counters is impossible");
        }
        if pool.epoch.ancestors.len() > MAX_ANCESTORS || pool.archives.len() > 2 {
            return Err("one of its lists is too long");
        }
        if pool.members.is_empty() || pool.members.len() > MAX_MEMBERS {
            return Err("its member table is empty or too long");
        }
        pool.archives.iter().flat_map(|archive| &archive.stripes).try_for_each(StripeLocation::check)?;
        for (at, member) in pool.members.iter().enumerate() {
            member.layout.check(member.size)?;
            if member.id.0 == u16::MAX
                || pool.members.iter().take(at).any(|m| m.id == member.id || m.uuid == member.uuid)
            {
                return Err("its member table names a device twice");
            }
        }
        pool.meta.check(&pool.members)?;
        match pool.members.iter().find(|m| m.id == self.device.id) {
            Some(own)
                if (own.uuid, own.size, own.layout) == (self.device.uuid, self.device.size, self.device.layout) =>
            {
                Ok(())
            }
            _ => Err("its member table does not name this device as it is"),
        }
    }
}

impl MetaRoot {
    /// Whether each piece of the metadata has blocks of its own, and only such as are given out: whoever writes it destroys
    /// nothing else.
    pub fn check(&self, members: &[MemberEntry]) -> Result<(), &'static str> {
        let logs =
            self.replicas.iter().map(|replica| (replica.device, replica.log_block, u64::from(replica.log_blocks)));
        let chunk_blocks = u64::from(self.chunk_blocks);
        let chunks = self.chunks.iter().map(|run| (run.device, run.block, u64::from(run.count) * chunk_blocks));
        let mut pieces: Vec<(u16, u64, u64)> = logs.chain(chunks).collect();
        pieces.sort_unstable();
        if !pieces.is_empty() && self.chunk_blocks < LEAST_GROUP_BLOCKS {
            return Err("its chunks of metadata are too small");
        }
        let mut before = None;
        for (device, first, blocks) in pieces {
            if blocks == 0 || blocks > u64::from(u32::MAX) {
                return Err("a piece of its metadata has an impossible length");
            }
            let end = first.checked_add(blocks).ok_or("its metadata lies outside of its devices")?;
            if before.is_some_and(|(other, taken)| other == device && taken > first) {
                return Err("its metadata lies over itself");
            }
            let layout = members.iter().find(|member| member.id.0 == device).map(|member| member.layout);
            if layout.is_some_and(|layout| first < layout.start || end - layout.start > layout.blocks) {
                return Err("its metadata lies outside of its devices");
            }
            before = Some((device, end));
        }
        Ok(())
    }
}

impl PoolLabel {
    /// Whether a build that knows no more than this one may write to the pool.
    pub fn writable(&self) -> bool {
        self.features.ro_compat & !KNOWN_RO_COMPAT == 0
    }

    /// The entry of a member.
    pub fn member(&self, id: DeviceId) -> Option<&MemberEntry> {
        self.members.iter().find(|member| member.id == id)
    }

    /// The entry of a member, to change it.
    pub fn member_mut(&mut self, id: DeviceId) -> Option<&mut MemberEntry> {
        self.members.iter_mut().find(|member| member.id == id)
    }
}

impl GroupLayout {
    /// How a device of `size` bytes is divided; `None` when it is too small for any use.
    pub fn for_size(size: u64) -> Option<GroupLayout> {
        let end = label_offsets(size)?[2] / BLOCK_SIZE;
        let blocks = end.checked_sub(DATA_START)?;
        let (smallest, largest) = (u64::from(LEAST_GROUP_BLOCKS), u64::from(GROUP_BLOCKS));
        // Metadata takes whole groups, so they should be a small part of the device.
        let group_blocks = (blocks / 64).checked_ilog2().map_or(0, |log| 1u64 << log).clamp(smallest, largest);
        (blocks >= 16 * smallest).then_some(GroupLayout {
            start: DATA_START,
            blocks,
            group_blocks: group_blocks as u32,
        })
    }

    /// Number of groups, the short last one included.
    pub fn groups(&self) -> u32 {
        self.blocks.div_ceil(u64::from(self.group_blocks)) as u32
    }

    /// First block and length of a group.
    pub fn group(&self, group: u32) -> (u64, u64) {
        let before = (u64::from(group) * u64::from(self.group_blocks)).min(self.blocks);
        (self.start + before, (self.blocks - before).min(u64::from(self.group_blocks)))
    }

    fn check(&self, size: u64) -> Result<(), &'static str> {
        let room = label_offsets(size).map_or(0, |slots| slots[2] / BLOCK_SIZE);
        let fits = self.start >= 2 * LABEL_SLOT as u64 / BLOCK_SIZE
            && self.start.checked_add(self.blocks).is_some_and(|end| end <= room)
            && self.group_blocks.is_power_of_two()
            && (LEAST_GROUP_BLOCKS..=1 << 20).contains(&self.group_blocks)
            && self.blocks / u64::from(self.group_blocks) < u64::from(u32::MAX);
        if fits { Ok(()) } else { Err("its allocation groups do not fit the device") }
    }
}

/// Where the four copies A, B, C, D of a device of `size` bytes lie; `None` when they would overlap.
pub fn label_offsets(size: u64) -> Option<[u64; 4]> {
    let slot = LABEL_SLOT as u64;
    let end = size / slot * slot;
    (end >= 4 * slot).then(|| [0, slot, end - 2 * slot, end - slot])
}

fn wire<T: SchemaWrite<Wire, Src = T>>(value: &T) -> Result<Vec<u8>> {
    config::serialize(value, WIRE).map_err(|error| Error::Unavailable(format!("a label cannot be written: {error}")))
}

fn unwire<T: for<'a> SchemaRead<'a, Wire, Dst = T>>(bytes: &[u8]) -> Result<T, LabelFault> {
    config::deserialize_exact(bytes, WIRE).map_err(|error| LabelFault::Damaged(error.to_string()))
}

fn section<T: SchemaWrite<Wire, Src = T>>(number: u16, value: &T) -> Result<Section> {
    Ok(Section { number, bytes: wire(value)? })
}

/// Removes a section from the list and reads it.
fn take<T: for<'a> SchemaRead<'a, Wire, Dst = T>>(sections: &mut Vec<Section>, number: u16) -> Result<T, LabelFault> {
    let at = sections.iter().position(|section| section.number == number);
    let at = at.ok_or_else(|| LabelFault::Damaged(format!("section {number} is missing")))?;
    unwire(&sections.remove(at).bytes)
}

fn field<const N: usize>(header: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    header.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn u32_at(header: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes(field(header, at))
}

fn u64_at(header: &[u8; HEADER_LEN], at: usize) -> u64 {
    u64::from_le_bytes(field(header, at))
}

fn uuid_at(header: &[u8; HEADER_LEN], at: usize) -> Uuid {
    Uuid(field(header, at))
}

#[cfg(test)]
#[path = "label_tests.rs"]
mod tests;
