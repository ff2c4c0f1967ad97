//! Block bitmaps in the `groups` table: which blocks belong to committed stripes. A set bit is a block in use.
//!
//! Invariant: `DeviceRow::used_blocks` is the number of bits set for the device.

use std::ops::Bound;

use crate::base::{DeviceId, Error, Result};
use crate::format::record::Key;
use crate::format::rows::{GROUP_PART_BLOCKS, GroupKey, Placement, StripeRow};
use crate::format::table::{Devices, Groups, Table};
use crate::meta::{Reader, Tx, Visit};

const PART_BYTES: usize = (GROUP_PART_BLOCKS / 8) as usize;

/// Blocks a shard of the stripe occupies: its header and its payload.
pub fn shard_blocks(row: &StripeRow) -> u64 {
    1 + u64::from(row.shard_blocks)
}

/// Sets or clears the bits of every shard of a stripe.
pub fn mark_stripe(tx: &mut Tx<'_>, row: &StripeRow, used: bool) -> Result<()> {
    for placement in row.placements.iter().filter(|placement| **placement != Placement::NONE) {
        mark(tx, placement.device, placement.block.0, shard_blocks(row), used)?;
    }
    Ok(())
}

/// Whether none of these blocks belongs to a stripe.
pub fn is_free(reader: &impl Reader, device: DeviceId, first: u64, count: u64) -> Result<bool> {
    let mut block = first;
    while block < first + count {
        let key = GroupKey { device, group: (block / GROUP_PART_BLOCKS) as u32, part: 0 };
        let stop = (first + count).min((block / GROUP_PART_BLOCKS + 1) * GROUP_PART_BLOCKS);
        if let Some(bits) = reader.get::<Groups>(&key)? {
            let set = |at: u64| {
                let at = (at % GROUP_PART_BLOCKS) as usize;
                bits.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1)
            };
            if (block..stop).any(set) {
                return Ok(false);
            }
        }
        block = stop;
    }
    Ok(true)
}

/// The number of bits set for a device: what its row has to say. Keys that [`mark`] never looks at do not count.
pub fn used_blocks(reader: &impl Reader, device: DeviceId) -> Result<u64> {
    let (mut low, mut high) = (Vec::new(), Vec::new());
    GroupKey { device, group: 0, part: 0 }.encode(&mut low);
    GroupKey { device, group: u32::MAX, part: u8::MAX }.encode(&mut high);
    let mut used = 0;
    let range = (Bound::Included(low.as_slice()), Bound::Included(high.as_slice()));
    reader.scan_raw(Groups::ID, range, false, &mut |key, row| {
        if matches!(GroupKey::decode(key), Ok(GroupKey { part: 0, .. })) {
            used += row.iter().take(PART_BYTES).map(|byte| u64::from(byte.count_ones())).sum::<u64>();
        }
        Ok(Visit::Continue(()))
    })?;
    Ok(used)
}

/// Sets or clears the bits of a run of blocks; every bit must change.
pub fn mark(tx: &mut Tx<'_>, device: DeviceId, first: u64, count: u64, used: bool) -> Result<()> {
    let mut block = first;
    let end = first + count;
    while block < end {
        let key = GroupKey { device, group: (block / GROUP_PART_BLOCKS) as u32, part: 0 };
        let stop = end.min((block / GROUP_PART_BLOCKS + 1) * GROUP_PART_BLOCKS);
        let mut bits = tx.get::<Groups>(&key)?.unwrap_or_default();
        bits.resize(PART_BYTES, 0);
        for at in block..stop {
            let at = (at % GROUP_PART_BLOCKS) as usize;
            let (byte, bit) = (&mut bits[at / 8], 1 << (at % 8));
            if (*byte & bit != 0) == used {
                let state = if used { "in use" } else { "free" };
                return Err(Error::corrupt(format!("a block of device {device} is {state} already; run fsck")));
            }
            *byte ^= bit;
        }
        if bits.iter().all(|byte| *byte == 0) {
            tx.delete::<Groups>(&key)?;
        } else {
            tx.put::<Groups>(&key, &bits)?;
        }
        block = stop;
    }
    let Some(mut row) = tx.get::<Devices>(&device)? else {
        return Err(Error::corrupt(format!("device {device} has blocks but no row; run fsck")));
    };
    row.used_blocks = if used { row.used_blocks + count } else { row.used_blocks.saturating_sub(count) };
    tx.put::<Devices>(&device, &row)
}
