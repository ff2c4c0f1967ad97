//! Block bitmaps: rebuilt from the stripes and compared with what is stored; nobody's blocks overlap another's.

use std::collections::{BTreeMap, HashMap};

use super::fsck::{Checked, Context};
use super::issue::{Findings, Issue};
use super::plan::Fix;
use super::scan;
use crate::base::{DeviceId, Result};
use crate::format::record::Key;
use crate::format::rows::{GROUP_PART_BLOCKS, GroupKey, Placement};
use crate::format::table::{Devices, Groups, Stripes, Table};
use crate::meta::Reader;

/// Rows of `groups` compared in one sweep over the stripes: 64 MiB of bitmaps, which describe 2 TiB.
const WINDOW_PARTS: u64 = 65_536;
const PART_BYTES: usize = (GROUP_PART_BLOCKS / 8) as usize;

type Bitmap = Box<[u8; PART_BYTES]>;

/// Parts of all devices, numbered one behind the other so that windows can be cut anywhere.
struct Parts(BTreeMap<u16, (u64, u64)>);

impl Parts {
    fn number(&self, device: u16, part: u64) -> Option<u64> {
        let (base, count) = self.0.get(&device)?;
        (part < *count).then_some(base + part)
    }

    /// Device and part of a number.
    fn place(&self, number: u64) -> Option<(u16, u64)> {
        let (device, (base, _)) = self.0.iter().find(|(_, (base, count))| (*base..base + count).contains(&number))?;
        Some((*device, number - base))
    }
}

/// Runs the pass.
pub fn check(reader: &impl Reader, context: &Context, findings: &mut Findings, checked: &mut Checked) -> Result<()> {
    let (parts, total) = layout(reader, context)?;
    let mut used: BTreeMap<u16, u64> = BTreeMap::new();
    let mut window = 0;
    while window * WINDOW_PARTS < total {
        let range = window * WINDOW_PARTS..(window + 1) * WINDOW_PARTS;
        let mut expected: HashMap<u64, Bitmap> = HashMap::new();
        let mut claim = |device: u16, first: u64, count: u64, what: &dyn Fn() -> String, findings: &mut Findings| {
            let (mut claimed, mut shared) = (0, false);
            for block in first..first.saturating_add(count) {
                let Some(number) = parts.number(device, block / GROUP_PART_BLOCKS) else { break };
                if !range.contains(&number) {
                    continue;
                }
                let bitmap = expected.entry(number).or_insert_with(|| Box::new([0; PART_BYTES]));
                let at = (block % GROUP_PART_BLOCKS) as usize;
                let (Some(byte), bit) = (bitmap.get_mut(at / 8), 1 << (at % 8)) else { continue };
                shared |= *byte & bit != 0;
                findings.expect(*byte & bit == 0, Issue::BlockShared, || {
                    format!("block {block} of device {device}, {}", what())
                });
                *byte |= bit;
                claimed += 1;
            }
            (claimed, shared)
        };
        scan::rows::<Stripes>(reader, |id, row| {
            let placed = row.placements.iter().enumerate().filter(|(_, placement)| **placement != Placement::NONE);
            for (index, placement) in placed {
                let count = 1 + u64::from(row.shard_blocks);
                let what = || format!("stripe {id}");
                let (claimed, shared) = claim(placement.device.0, placement.block.0, count, &what, findings);
                checked.blocks += claimed;
                if shared {
                    findings.also(Issue::BlockShared, what, || Fix::Dispute { stripe: id, index });
                }
            }
            Ok(())
        })?;
        for (number, bitmap) in &expected {
            if let Some((device, _)) = parts.place(*number) {
                *used.entry(device).or_default() += bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
            }
        }
        compare(reader, &parts, &range, &mut expected, findings)?;
        window += 1;
    }
    device_rows(reader, context, &used, findings)?;
    overlaps_with_metadata(reader, context, findings)
}

/// How many parts each device has: as many as its size, its shards and its stored rows need.
fn layout(reader: &impl Reader, context: &Context) -> Result<(Parts, u64)> {
    let mut counts: BTreeMap<u16, u64> = BTreeMap::new();
    let mut need = |device: DeviceId, parts: u64| {
        let count = counts.entry(device.0).or_default();
        *count = parts.max(*count);
    };
    let mut known = HashMap::new();
    for (device, blocks) in &context.devices {
        need(*device, blocks.div_ceil(GROUP_PART_BLOCKS));
        known.insert(*device, *blocks);
    }
    scan::rows::<Stripes>(reader, |_, row| {
        for placement in row.placements.iter().filter(|placement| **placement != Placement::NONE) {
            // Shards outside a known device are reported by the stripes pass and make no room here.
            if known.is_empty() {
                let end = placement.block.0.saturating_add(1 + u64::from(row.shard_blocks));
                need(placement.device, end.div_ceil(GROUP_PART_BLOCKS).min(1 << 32));
            }
        }
        Ok(())
    })?;
    scan::rows::<Groups>(reader, |key, _| {
        if known.is_empty() {
            need(key.device, u64::from(key.group) + 1);
        }
        Ok(())
    })?;
    let mut total = 0;
    let mut parts = BTreeMap::new();
    for (device, count) in counts {
        parts.insert(device, (total, count));
        total += count;
    }
    Ok((Parts(parts), total))
}

fn compare(
    reader: &impl Reader,
    parts: &Parts,
    window: &std::ops::Range<u64>,
    expected: &mut HashMap<u64, Bitmap>,
    findings: &mut Findings,
) -> Result<()> {
    scan::rows::<Groups>(reader, |key, stored| {
        let number = parts.number(key.device.0, u64::from(key.group)).filter(|_| key.part == 0);
        let valid = number.is_some() && stored.len() == PART_BYTES;
        if window.start == 0 {
            let show = || format!("table groups: {key:?}, {} bytes", stored.len());
            findings.expect_or(valid, Issue::RowUndecodable, show, || {
                let mut bytes = Vec::new();
                key.encode(&mut bytes);
                Fix::DropRow { table: Groups::ID, key: bytes }
            });
        }
        let Some(number) = number.filter(|number| valid && window.contains(number)) else { return Ok(()) };
        let wanted = expected.remove(&number).unwrap_or_else(|| Box::new([0; PART_BYTES]));
        differ(&key, &stored, &wanted, findings);
        Ok(())
    })?;
    for (number, wanted) in expected.drain() {
        let Some((device, part)) = parts.place(number) else { continue };
        let key = GroupKey { device: DeviceId(device), group: part as u32, part: 0 };
        differ(&key, &[0; PART_BYTES], &wanted, findings);
    }
    Ok(())
}

/// Reports each differing bit of a part.
fn differ(key: &GroupKey, have: &[u8], want: &Bitmap, findings: &mut Findings) {
    let (mut unmarked, mut leaked) = (false, false);
    let show = |block: u64| format!("block {block} of device {}", key.device);
    for (at, (have, want)) in have.iter().zip(want.iter()).enumerate().filter(|(_, (have, want))| have != want) {
        let first = u64::from(key.group) * GROUP_PART_BLOCKS + at as u64 * 8;
        for bit in (0..8).filter(|bit| (have ^ want) >> bit & 1 == 1) {
            let in_use = want >> bit & 1 == 1;
            unmarked |= in_use;
            leaked |= !in_use;
            let issue = if in_use { Issue::BlockUnmarked } else { Issue::BlockLeaked };
            findings.add(issue, || show(first + bit));
        }
    }
    let (device, first) = (key.device, u64::from(key.group) * GROUP_PART_BLOCKS);
    let show = || format!("blocks {first}..{} of device {device}", first + GROUP_PART_BLOCKS);
    if unmarked {
        findings.also(Issue::BlockUnmarked, show, || Fix::Mark { key: key.clone(), bits: want.to_vec() });
    }
    if leaked {
        findings.also(Issue::BlockLeaked, show, || Fix::Bitmap { key: key.clone(), bits: want.to_vec() });
    }
}

/// Compares what the rows of the devices say with what was found.
fn device_rows(
    reader: &impl Reader,
    context: &Context,
    used: &BTreeMap<u16, u64>,
    findings: &mut Findings,
) -> Result<()> {
    // A device without a row counts nothing. One that joined just before a crash has nothing, and that is right.
    let mut uncounted = used.clone();
    scan::rows::<Devices>(reader, |device, row| {
        uncounted.remove(&device.0);
        let blocks = used.get(&device.0).copied().unwrap_or(0);
        let show = || format!("device {device} says {}, {blocks} are in use", row.used_blocks);
        let fix = || Fix::UsedBlocks { device, blocks };
        findings.expect_or(row.used_blocks == blocks, Issue::UsedBlocksWrong, show, fix);
        let member = context.devices.is_empty() || context.devices.iter().any(|(id, _)| *id == device);
        findings.expect_or(
            member,
            Issue::DeviceRowWrong,
            || format!("device {device}"),
            || {
                let mut key = Vec::new();
                device.encode(&mut key);
                Fix::DropRow { table: Devices::ID, key }
            },
        );
        Ok(())
    })?;
    for (device, blocks) in uncounted.into_iter().filter(|(_, blocks)| *blocks > 0) {
        let (device, show) = (DeviceId(device), || format!("device {device} has no row, {blocks} are in use"));
        findings.mend(Issue::UsedBlocksWrong, show, || Fix::UsedBlocks { device, blocks });
    }
    Ok(())
}

fn overlaps_with_metadata(reader: &impl Reader, context: &Context, findings: &mut Findings) -> Result<()> {
    let mut taken: Vec<_> = context.metadata.iter().map(|(device, first, count)| (device.0, *first, *count)).collect();
    taken.sort_unstable();
    for pair in taken.windows(2) {
        if let [(device, first, count), (next_device, next, _)] = pair {
            findings.expect(device != next_device || first + count <= *next, Issue::BlockShared, || {
                format!("block {next} of device {device}, within the metadata volume")
            });
        }
    }
    scan::rows::<Stripes>(reader, |id, row| {
        let placed = row.placements.iter().enumerate().filter(|(_, placement)| **placement != Placement::NONE);
        for (index, placement) in placed {
            let (device, first) = (placement.device.0, placement.block.0);
            let end = first.saturating_add(1 + u64::from(row.shard_blocks));
            let before = taken.partition_point(|(d, start, _)| (*d, *start) < (device, end));
            let overlapping = taken
                .iter()
                .take(before)
                .next_back()
                .is_some_and(|(d, start, count)| *d == device && start + count > first);
            let show = || format!("block {first} of device {device}: stripe {id} and the metadata volume");
            findings.expect_or(!overlapping, Issue::BlockShared, show, || Fix::GiveUp { stripe: id, index });
        }
        Ok(())
    })?;
    Ok(())
}
