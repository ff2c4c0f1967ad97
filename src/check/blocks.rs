//! Block bitmaps: rebuilt from the stripes and compared with what is stored; nobody's blocks overlap another's.

use std::collections::{BTreeMap, HashMap};

use super::fsck::{Checked, Context};
use super::issue::{Findings, Issue};
use super::scan;
use crate::base::{DeviceId, Result};
use crate::format::rows::{GROUP_PART_BLOCKS, Placement};
use crate::format::table::{Groups, Stripes};
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
}

/// Runs the pass.
pub fn check(reader: &impl Reader, context: &Context, findings: &mut Findings, checked: &mut Checked) -> Result<()> {
    let (parts, total) = layout(reader, context)?;
    let mut window = 0;
    while window * WINDOW_PARTS < total {
        let range = window * WINDOW_PARTS..(window + 1) * WINDOW_PARTS;
        let mut expected: HashMap<u64, Bitmap> = HashMap::new();
        let mut claim = |device: u16, first: u64, count: u64, what: &dyn Fn() -> String, findings: &mut Findings| {
            let mut claimed = 0;
            for block in first..first.saturating_add(count) {
                let Some(number) = parts.number(device, block / GROUP_PART_BLOCKS) else { break };
                if !range.contains(&number) {
                    continue;
                }
                let bitmap = expected.entry(number).or_insert_with(|| Box::new([0; PART_BYTES]));
                let at = (block % GROUP_PART_BLOCKS) as usize;
                let (byte, bit) = (&mut bitmap[at / 8], 1 << (at % 8));
                findings.expect(*byte & bit == 0, Issue::BlockShared, || {
                    format!("block {block} of device {device}, {}", what())
                });
                *byte |= bit;
                claimed += 1;
            }
            claimed
        };
        scan::rows::<Stripes>(reader, |id, row| {
            for placement in row.placements.iter().filter(|placement| **placement != Placement::NONE) {
                let count = 1 + u64::from(row.shard_blocks);
                let what = || format!("stripe {id}");
                checked.blocks += claim(placement.device.0, placement.block.0, count, &what, findings);
            }
            Ok(())
        })?;
        compare(reader, &parts, &range, &mut expected, findings)?;
        window += 1;
    }
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
            findings.expect(valid, Issue::RowUndecodable, || format!("table groups: {key:?}, {} bytes", stored.len()));
        }
        let Some(number) = number.filter(|number| valid && window.contains(number)) else { return Ok(()) };
        let wanted = expected.remove(&number).unwrap_or_else(|| Box::new([0; PART_BYTES]));
        for (at, (have, want)) in stored.iter().zip(wanted.iter()).enumerate() {
            if have != want {
                let block = u64::from(key.group) * GROUP_PART_BLOCKS + at as u64 * 8;
                differ(key.device.0, block, *have, *want, findings);
            }
        }
        Ok(())
    })?;
    for (number, wanted) in expected.drain() {
        let Some((device, (base, _))) = parts.0.iter().rev().find(|(_, (base, _))| *base <= number) else { continue };
        for (at, want) in wanted.iter().enumerate().filter(|(_, want)| **want != 0) {
            differ(*device, (number - base) * GROUP_PART_BLOCKS + at as u64 * 8, 0, *want, findings);
        }
    }
    Ok(())
}

/// Reports each differing bit of eight blocks from `first` on.
fn differ(device: u16, first: u64, have: u8, want: u8, findings: &mut Findings) {
    for bit in (0..8).filter(|bit| (have ^ want) >> bit & 1 == 1) {
        let issue = if want >> bit & 1 == 1 { Issue::BlockUnmarked } else { Issue::BlockLeaked };
        findings.add(issue, || format!("block {} of device {device}", first + bit));
    }
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
        for placement in row.placements.iter().filter(|placement| **placement != Placement::NONE) {
            let (device, first) = (placement.device.0, placement.block.0);
            let end = first.saturating_add(1 + u64::from(row.shard_blocks));
            let before = taken.partition_point(|(d, start, _)| (*d, *start) < (device, end));
            let overlapping =
                taken[..before].last().is_some_and(|(d, start, count)| *d == device && start + count > first);
            findings.expect(!overlapping, Issue::BlockShared, || {
                format!("block {first} of device {device}: stripe {id} and the metadata volume")
            });
        }
        Ok(())
    })?;
    Ok(())
}
