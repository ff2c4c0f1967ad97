//! Carries plans out, on a pool that nobody else uses: row by row, each change one transaction with its journal record.
//!
//! Invariants:
//! - An action looks at the rows as they are now; when they no longer ask for it, it changes nothing.
//! - Only the first stage of a plan that has anything to do is carried out. What remains is planned again, by the caller, on the
//!   pool opened anew: nobody goes on with numbers or free space from before.
//! - What can still be read is kept: without a name in lost+found, without an inode under a new one.

mod content;
mod names;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::fsck::{self, Checked, Context, Progress};
use super::issue::{Findings, Issue};
use super::paths::{NAMES, paths};
pub use super::plan::KEPT;
use super::plan::{Action, Field, Fix, Plan, Stage};
use crate::base::{Error, Result, StripeId};
use crate::format::rows::{
    ConfigKey, Counter, FLAG_XATTRS, GROUP_PART_BLOCKS, GroupKey, InodeRow, JournalOp, StripeRow,
};
use crate::format::table::{self, Config, Groups, HistoryByDeath, Inodes, Intents, Orphans};
use crate::meta::names::NAME_KEY;
use crate::meta::{Meta, Reader, Tx, journal};

/// What a repair asks about the devices.
pub trait Devices {
    /// Whether a shard is where the row says; `None` when nobody can tell.
    fn holds(&self, stripe: StripeId, row: &StripeRow, index: usize) -> Option<bool>;

    /// Rows for stripes that have none, from the headers of their shards; only those that can be read.
    fn find(&self, stripes: &BTreeSet<StripeId>) -> Result<BTreeMap<StripeId, StripeRow>>;

    /// Members of the pool that are not here: what is not found may be there.
    fn missing(&self) -> usize;
}

/// A pool whose devices cannot be asked.
impl Devices for () {
    fn holds(&self, _: StripeId, _: &StripeRow, _: usize) -> Option<bool> {
        None
    }

    fn find(&self, _: &BTreeSet<StripeId>) -> Result<BTreeMap<StripeId, StripeRow>> {
        Ok(BTreeMap::new())
    }

    fn missing(&self) -> usize {
        0
    }
}

/// What actions need besides the rows.
struct Means<'m> {
    devices: &'m dyn Devices,
    /// The new key of the names.
    key: [u8; 32],
    /// Stripes that were found again.
    found: BTreeMap<StripeId, StripeRow>,
}

/// What a round of repairs did.
#[derive(Clone, Default, Debug)]
pub struct Round {
    pub checked: Checked,
    pub findings: Findings,
    /// Everything that was planned.
    pub plan: Plan,
    /// What was carried out of it.
    pub done: Vec<Action>,
}

/// Checks, and plans what to do; nothing is changed.
pub fn plan(meta: &Meta, context: &Context, progress: &mut dyn FnMut(Progress)) -> Result<Round> {
    plan_some(meta, context, KEPT, progress)
}

fn plan_some(meta: &Meta, context: &Context, kept: usize, progress: &mut dyn FnMut(Progress)) -> Result<Round> {
    let mut findings = Findings::planning(kept);
    meta.view(|view| {
        let checked = fsck::fsck(view, context, &mut findings, progress)?;
        let mut plan = findings.take_plan();
        let inos = plan.actions().filter_map(|action| action.fix.ino()).collect();
        let paths = paths(view, &inos)?;
        let mut room = NAMES;
        for action in plan.actions_mut() {
            if let Some(names) = action.fix.ino().and_then(|ino| paths.get(&ino)) {
                action.names = names.within(&mut room);
            }
        }
        Ok(Round { checked, findings: std::mem::take(&mut findings), plan, done: Vec::new() })
    })
}

/// Checks, and carries out the first stage that changes anything, `kept` actions of it at most. `key` are random bytes, used when
/// the key of the names is lost.
///
/// # Errors
/// [`Error::Unavailable`] when stripes cannot be found that may be on devices that are missing: without them their content would
/// be given up, and their blocks to others.
pub fn round(
    meta: &Meta,
    context: &Context,
    devices: &dyn Devices,
    key: [u8; 32],
    kept: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<Round> {
    let mut round = plan_some(meta, context, kept, progress)?;
    let missing: BTreeSet<StripeId> = round.plan.actions().filter_map(|action| action.fix.missing_stripe()).collect();
    if !missing.is_empty() {
        progress(Progress::of("looking for lost stripes", 0));
    }
    let found = if missing.is_empty() { BTreeMap::new() } else { devices.find(&missing)? };
    let lacking = missing.len() - found.len();
    if lacking > 0 && devices.missing() > 0 {
        return Err(Error::Unavailable(format!(
            "{lacking} stripes are not in the tables and cannot be found, and {} devices are missing that may have them: bring these \
             back, or replace them with `argosfs device replace`, before the rows are repaired",
            devices.missing()
        )));
    }
    let means = Means { devices, key, found };
    for (stage, mut actions) in round.plan.clone().into_stages() {
        // No record fits a journal that is broken.
        actions.sort_by_key(|action| action.fix != Fix::Relink);
        let total = actions.len() as u64;
        for (done, action) in (0..).zip(actions) {
            progress(Progress { done, total, ..Progress::of("repairing", 0) });
            if carry_out(meta, stage, &action, &means)? {
                round.done.push(action);
            }
        }
        if !round.done.is_empty() {
            break;
        }
    }
    Ok(round)
}

/// The rounds there were: whoever repairs goes on until one does nothing new.
#[derive(Default)]
pub struct Rounds(HashSet<blake3::Hash>);

impl Rounds {
    /// Whether a round did anything, and not the same as an earlier one: that would go round in circles.
    pub fn go_on(&mut self, done: &[Action]) -> bool {
        let mut hash = blake3::Hasher::new();
        done.iter().for_each(|action| {
            hash.update(format!("{:?}\n", action.fix).as_bytes());
        });
        !done.is_empty() && self.0.insert(hash.finalize())
    }
}

fn carry_out(meta: &Meta, stage: Stage, action: &Action, means: &Means<'_>) -> Result<bool> {
    debug_assert_eq!(stage, action.fix.stage());
    let mut what = format!("{}: {}", action.what, action.will);
    let record =
        |tx: &mut Tx<'_>, what: &str| tx.journal(0, JournalOp::Repair { issue: action.id.into(), what: what.into() });
    if action.fix == Fix::Relink {
        let relinked = journal::relink(meta)?;
        what = format!(
            "{what}; {} records changed their place or chain, {} could not be read and are gone",
            relinked.changed, relinked.lost
        );
        meta.transact(|tx| record(tx, &what))?;
        return Ok(true);
    }
    let (changed, _) = meta.transact(|tx| {
        let changed = apply(tx, &action.fix, means)?;
        if changed {
            // Whoever opens a mended pool looks at what is settled.
            tx.commit_at_once();
            record(tx, &what)?;
        }
        Ok(changed)
    })?;
    Ok(changed)
}

fn set_counter(tx: &mut Tx<'_>, counter: Counter, number: u64) -> Result<bool> {
    let changed = super::scan::counter(tx, counter)? != number;
    tx.set_counter(counter, number)?;
    Ok(changed)
}

fn apply(tx: &mut Tx<'_>, fix: &Fix, means: &Means<'_>) -> Result<bool> {
    let devices = means.devices;
    match fix {
        Fix::DropRow { table, key } => tx.delete_raw(*table, key),
        Fix::FindStripe { stripe } => content::restore_stripe(tx, *stripe, means.found.get(stripe)),
        Fix::RestoreExtent { key } => content::restore_extent(tx, key),
        Fix::Relink => Ok(false),
        Fix::NamesKey => {
            tx.put::<Config>(&ConfigKey { name: NAME_KEY.to_vec() }, &means.key.to_vec())?;
            Ok(true)
        }
        Fix::Counter { counter, least } => {
            let now = super::scan::counter(tx, *counter)?;
            tx.set_counter(*counter, now.max(*least))?;
            Ok(now < *least)
        }
        Fix::Mark { key, bits } => {
            let stored = tx.get::<Groups>(key)?.unwrap_or_default();
            let marked: Vec<u8> =
                bits.iter().enumerate().map(|(at, byte)| byte | stored.get(at).copied().unwrap_or(0)).collect();
            bitmap(tx, key, &marked)
        }
        Fix::Bitmap { key, bits } => bitmap(tx, key, bits),
        Fix::UsedBlocks { device, blocks } => {
            let Some(mut row) = tx.get::<table::Devices>(device)? else { return Ok(false) };
            let changed = std::mem::replace(&mut row.used_blocks, *blocks) != *blocks;
            tx.put::<table::Devices>(device, &row)?;
            Ok(changed)
        }

        Fix::MakeInode { ino, kind } => names::make_inode(tx, *ino, *kind),
        Fix::MendInode { ino } => names::mend_inode(tx, *ino),
        Fix::DropName { key, ino } => names::drop_name(tx, key, *ino),
        Fix::RescueName { key } => names::rescue(tx, key),
        Fix::Rename { key } => names::rename(tx, key),
        Fix::Kind { key, kind } => names::set_kind(tx, key, *kind),
        Fix::Adopt { ino } => names::adopt(tx, *ino),
        Fix::DropOrphan { ino } => tx.delete::<Orphans>(ino),
        Fix::DropXattr { ino, name } => names::drop_xattr(tx, *ino, name),
        Fix::Inode { ino, field } => {
            let Some(row) = tx.get::<Inodes>(ino)? else { return Ok(false) };
            let new = with_field(&row, *field);
            tx.put::<Inodes>(ino, &new)?;
            Ok(new != row)
        }
        Fix::Inodes { count } => set_counter(tx, Counter::Inodes, *count),
        Fix::Reserved { bytes } => set_counter(tx, Counter::Reserved, *bytes),

        Fix::SplitContent { ino } => content::split(tx, *ino),
        Fix::Cut { key, hole } => content::cut(tx, key, hole),
        Fix::DropExtent { key } => tx.delete::<table::Extents>(key),
        Fix::DropIntent { id } => tx.delete::<Intents>(id),
        Fix::Payload { stripe, bytes } => content::payload(tx, *stripe, *bytes),
        Fix::GiveUp { stripe, index } => content::give_up(tx, *stripe, *index, devices),
        Fix::Dispute { stripe, index } => content::dispute(tx, *stripe, *index, devices),
        Fix::Degrade { stripe } => content::degrade(tx, *stripe),
        Fix::Rebuild { stripe } => content::plan_rebuild(tx, *stripe),
        Fix::Backref { key, row } => content::backref(tx, key, row),
        Fix::DropBackref { key } => tx.delete::<table::Backrefs>(key),
        Fix::DropBackrefs { stripe } => content::drop_backrefs(tx, *stripe),
        Fix::FreeStripe { stripe } => content::free(tx, *stripe),
        Fix::Live { stripe } => content::live(tx, *stripe),
        Fix::DropLive { stripe } => tx.delete::<table::StripeLive>(stripe),

        Fix::Index { key } => {
            tx.put::<HistoryByDeath>(key, &())?;
            Ok(true)
        }
        Fix::DropIndex { key } => tx.delete::<HistoryByDeath>(key),
    }
}

fn bitmap(tx: &mut Tx<'_>, key: &GroupKey, bits: &[u8]) -> Result<bool> {
    debug_assert_eq!(bits.len() as u64, GROUP_PART_BLOCKS / 8);
    let before = tx.get::<Groups>(key)?.unwrap_or_default();
    // A row that is missing is an empty one.
    if bits.iter().all(|byte| *byte == 0) {
        return tx.delete::<Groups>(key);
    }
    tx.put::<Groups>(key, &bits.to_vec())?;
    Ok(before != bits)
}

fn with_field(row: &InodeRow, field: Field) -> InodeRow {
    let mut row = row.clone();
    match field {
        Field::Links(links) => row.nlink = links,
        Field::Entries(entries) => row.entries = entries,
        Field::Parent(parent) => row.parent = parent,
        Field::Xattrs(true) => row.flags |= FLAG_XATTRS,
        Field::Xattrs(false) => row.flags &= !FLAG_XATTRS,
        Field::Content(bytes) => row.content = bytes,
    }
    row
}

impl Round {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.total() == 0
    }

    /// Whether a problem of this kind was found.
    pub fn has(&self, issue: Issue) -> bool {
        self.findings.has(issue)
    }
}
