//! Stripes: each row makes sense, something refers to it, and its live bytes are the union of its back references.

use std::collections::HashSet;

use super::content::belongs;
use super::fsck::{Checked, Context};
use super::issue::{Findings, Issue};
use super::plan::Fix;
use super::scan;
use crate::base::{BLOCK_SIZE, Ino, Result, StripeId, TxnId};
use crate::format::intent::Intent;
use crate::format::rows::{BackrefKey, Counter, Placement, StripeRow, StripeState};
use crate::format::table::{Backrefs, Intents, StripeLive, Stripes};
use crate::meta::{Reader, Visit};

/// Runs the pass.
pub fn check(reader: &impl Reader, context: &Context, findings: &mut Findings, checked: &mut Checked) -> Result<()> {
    let mut planned = HashSet::new();
    scan::rows::<Intents>(reader, |_, intent| {
        if let Intent::Rebuild { stripe } = intent {
            planned.insert(stripe);
        }
        Ok(())
    })?;
    let next = scan::counter(reader, Counter::NextStripe)?;
    checked.stripes = scan::rows::<Stripes>(reader, |id, row| {
        let show = || format!("stripe {id}, next is {next}");
        findings.expect_or(id.0 < next, Issue::IdBeyondCounter, show, || Fix::Counter {
            counter: Counter::NextStripe,
            least: id.0.saturating_add(1),
        });
        placements(id, &row, context, findings);
        let missing = row.placements.contains(&Placement::NONE);
        let show = || format!("stripe {id} lacks shards, but is said to be whole");
        let fine = !missing || row.state == StripeState::Degraded;
        findings.expect_or(fine, Issue::StripeInvalid, show, || Fix::Degrade { stripe: id });
        let fine = row.state == StripeState::Whole || planned.contains(&id.0);
        findings.expect_or(fine, Issue::StripeDegraded, || format!("stripe {id}"), || Fix::Rebuild { stripe: id });
        live_bytes(reader, id, &row, findings)
    })?;
    scan::rows::<StripeLive>(reader, |id, _| {
        let exists = scan::find::<Stripes>(reader, &id)?.is_some();
        let show = || format!("stripe {id}");
        findings.expect_or(exists, Issue::StripeLiveDangling, show, || Fix::DropLive { stripe: id });
        Ok(())
    })?;
    let mut last = None;
    scan::rows::<Backrefs>(reader, |key, _| {
        if last.replace(key.stripe) != Some(key.stripe) {
            let exists = scan::find::<Stripes>(reader, &key.stripe)?.is_some();
            let show = || format!("stripe {} does not exist", key.stripe);
            findings.expect_or(exists, Issue::BackrefDangling, show, || Fix::DropBackrefs { stripe: key.stripe });
        }
        Ok(())
    })?;
    Ok(())
}

fn placements(id: StripeId, row: &StripeRow, context: &Context, findings: &mut Findings) {
    for (at, placement) in row.placements.iter().enumerate() {
        if *placement == Placement::NONE {
            continue;
        }
        let again = row.placements.iter().take(at).any(|other| other.device == placement.device);
        let show = || format!("stripe {id} has two shards on device {}", placement.device);
        findings.expect_or(!again, Issue::StripeInvalid, show, || Fix::GiveUp { stripe: id, index: at });
        if context.devices.is_empty() {
            continue;
        }
        let device = context.devices.iter().find(|(device, _)| *device == placement.device);
        let end = placement.block.0.saturating_add(1 + u64::from(row.shard_blocks));
        let show = || format!("stripe {id}, shard {at}: device {}, block {}", placement.device, placement.block.0);
        let inside = device.is_some_and(|(_, blocks)| end <= *blocks);
        findings.expect_or(inside, Issue::ShardOutside, show, || Fix::GiveUp { stripe: id, index: at });
    }
}

fn live_bytes(reader: &impl Reader, id: StripeId, row: &StripeRow, findings: &mut Findings) -> Result<()> {
    let mut ranges = Vec::new();
    let capacity = u64::from(row.k) * u64::from(row.shard_blocks) * BLOCK_SIZE;
    let low = BackrefKey { stripe: id, ino: Ino(0), offset: 0, birth: TxnId(0) };
    let high = BackrefKey { stripe: StripeId(id.0.saturating_add(1)), ..low.clone() };
    scan::range::<Backrefs>(reader, &low, &high, |key, backref| {
        let end = u64::from(backref.start) + u64::from(backref.length);
        ranges.push((u64::from(backref.start), end));
        // One that belongs to an extent is mended with it. Others may belong to a prior row, but not past all shards.
        if end > u64::from(row.payload_bytes) && !belongs(reader, &key)? {
            let show = || format!("stripe {id}, inode {}, offset {}", key.ino, key.offset);
            findings.also(Issue::ExtentOutsideStripe, show, || match u32::try_from(end) {
                Ok(bytes) if end <= capacity => Fix::Payload { stripe: id, bytes },
                _ => Fix::DropBackref { key: key.clone() },
            });
        }
        Ok(Visit::Continue(()))
    })?;
    ranges.sort_unstable();
    let overlaps = ranges.windows(2).any(|pair| matches!(pair, [before, after] if after.0 < before.1));
    let (mut union, mut reached) = (0, 0);
    for (start, end) in &ranges {
        union += end.saturating_sub(reached.max(*start));
        reached = reached.max(*end);
    }
    let show = || format!("stripe {id}");
    findings.expect_or(!ranges.is_empty(), Issue::StripeUnused, show, || Fix::FreeStripe { stripe: id });
    findings.expect(reached <= u64::from(row.payload_bytes), Issue::ExtentOutsideStripe, || {
        format!("stripe {id}: a back reference ends at {reached} of {}", row.payload_bytes)
    });
    let live = scan::find::<StripeLive>(reader, &id)?;
    let counted = live.as_ref().map_or(0, |live| u64::from(live.live));
    let show = || format!("stripe {id} says {counted}, its back references cover {union}");
    let fine = live.is_some() && counted == union;
    findings.expect_or(fine, Issue::StripeLiveWrong, show, || Fix::Live { stripe: id });
    let may_overlap = live.is_none_or(|live| live.shared != 0);
    let show = || format!("stripe {id} has shared bytes, but is not marked so");
    findings.expect_or(!overlaps || may_overlap, Issue::StripeLiveWrong, show, || Fix::Live { stripe: id });
    Ok(())
}
