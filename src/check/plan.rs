//! What a repair will do, as data: made from one snapshot, printed by `--dry-run`, carried out by [`super::repair`].
//!
//! Invariants:
//! - An action says by itself what it does; carried out on rows that changed since, it does nothing or the same.
//! - Stages are carried out in order, and after each one the rest is planned anew: counts are right only when what they
//!   count is. So a plan lists what one look at the pool tells, and carrying it out may show more.
//! - Of each stage a bounded number of actions is kept; `more` counts the others, which the next plan has.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Serialize;

use super::issue::Issue;
use super::paths::{Paths, shown};
use crate::base::file::FileType;
use crate::base::{DeviceId, Ino, StripeId, TxnId};
use crate::format::export::table_name;
use crate::format::rows::{BackrefKey, BackrefRow, Counter, DentryKey, ExtentKey, GroupKey, HistoryByDeathKey};

/// Inode numbers end here.
pub const INO_END: u64 = 1 << 48;

/// When an action has its turn.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// What everything after it relies on: rows that can be read, numbers that are not given out twice, blocks that are not.
    Guard,
    /// Inodes that something refers to exist.
    Owners,
    /// Names, content and stripes refer to what exists.
    Structure,
    /// Back references follow from content.
    References,
    /// What follows from all of it: counts, live bytes, indexes.
    Counts,
    /// Bitmaps follow from the stripes that are left.
    Space,
}

/// One number of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    Links(u32),
    Entries(u64),
    Parent(Ino),
    Xattrs(bool),
    Content(u64),
}

/// A way to mend something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fix {
    DropRow {
        table: u8,
        key: Vec<u8>,
    },
    /// Looks on the devices for the shards of a stripe whose row is gone; their headers say what was in it.
    FindStripe {
        stripe: StripeId,
    },
    /// Makes an extent's row again from its back reference.
    RestoreExtent {
        key: Vec<u8>,
    },
    Relink,
    NamesKey,
    Counter {
        counter: Counter,
        least: u64,
    },
    /// Marks the blocks with set bits.
    Mark {
        key: GroupKey,
        bits: Vec<u8>,
    },

    MakeInode {
        ino: Ino,
        kind: FileType,
    },
    MendInode {
        ino: Ino,
    },

    DropName {
        key: DentryKey,
        ino: Ino,
    },
    /// Gives a name in a directory that can have none, or cannot be reached, a place in lost+found.
    RescueName {
        key: DentryKey,
    },
    /// Gives a name another, valid and unique, form.
    Rename {
        key: DentryKey,
    },
    Kind {
        key: DentryKey,
        kind: u8,
    },
    Adopt {
        ino: Ino,
    },
    DropOrphan {
        ino: Ino,
    },
    DropXattr {
        ino: Ino,
        name: Vec<u8>,
    },
    /// Gives content of an inode that cannot have any to a new one.
    SplitContent {
        ino: Ino,
    },
    /// Removes what an extent shows of `hole`.
    Cut {
        key: ExtentKey,
        hole: Range<u64>,
    },
    DropExtent {
        key: ExtentKey,
    },
    DropIntent {
        id: u64,
    },
    /// The stripe's payload reaches this far.
    Payload {
        stripe: StripeId,
        bytes: u32,
    },
    /// A shard that cannot be where the row says is to be rebuilt elsewhere.
    GiveUp {
        stripe: StripeId,
        index: usize,
    },
    Degrade {
        stripe: StripeId,
    },
    /// Blocks that several stripes claim go to the one whose shard is in them.
    Dispute {
        stripe: StripeId,
        index: usize,
    },

    Backref {
        key: BackrefKey,
        row: BackrefRow,
    },
    DropBackref {
        key: BackrefKey,
    },
    DropBackrefs {
        stripe: StripeId,
    },

    Inode {
        ino: Ino,
        field: Field,
    },
    Inodes {
        count: u64,
    },
    Reserved {
        bytes: u64,
    },
    FreeStripe {
        stripe: StripeId,
    },
    Live {
        stripe: StripeId,
    },
    DropLive {
        stripe: StripeId,
    },
    Rebuild {
        stripe: StripeId,
    },
    Index {
        key: HistoryByDeathKey,
    },
    DropIndex {
        key: HistoryByDeathKey,
    },

    /// The bitmap as it should be.
    Bitmap {
        key: GroupKey,
        bits: Vec<u8>,
    },
    /// The count in the device's row; whoever opens the pool for the repair made one where there was none.
    UsedBlocks {
        device: DeviceId,
        blocks: u64,
    },
}

impl Fix {
    /// When its turn is.
    pub fn stage(&self) -> Stage {
        match self {
            Fix::DropRow { .. }
            | Fix::Relink
            | Fix::NamesKey
            | Fix::Counter { .. }
            | Fix::RestoreExtent { .. }
            | Fix::FindStripe { .. }
            | Fix::Mark { .. } => Stage::Guard,
            Fix::MakeInode { .. } | Fix::MendInode { .. } => Stage::Owners,
            Fix::DropName { .. }
            | Fix::RescueName { .. }
            | Fix::Rename { .. }
            | Fix::Kind { .. }
            | Fix::Adopt { .. }
            | Fix::DropOrphan { .. }
            | Fix::DropXattr { .. }
            | Fix::SplitContent { .. }
            | Fix::Cut { .. }
            | Fix::DropExtent { .. }
            | Fix::DropIntent { .. }
            | Fix::Payload { .. }
            | Fix::GiveUp { .. }
            | Fix::Degrade { .. } => Stage::Structure,
            Fix::Backref { .. } | Fix::DropBackref { .. } | Fix::DropBackrefs { .. } => Stage::References,
            Fix::Inode { .. }
            | Fix::Inodes { .. }
            | Fix::Reserved { .. }
            | Fix::FreeStripe { .. }
            | Fix::Live { .. }
            | Fix::DropLive { .. }
            | Fix::Rebuild { .. }
            | Fix::Dispute { .. }
            | Fix::Index { .. }
            | Fix::DropIndex { .. } => Stage::Counts,
            Fix::Bitmap { .. } | Fix::UsedBlocks { .. } => Stage::Space,
        }
    }

    /// What it does, for people.
    pub fn describe(&self) -> String {
        match self {
            Fix::DropRow { table, .. } => format!("drop the row of table {}: what it said is lost", table_name(*table)),
            Fix::Relink => "chain the records that can be read anew, and say so in a record".to_owned(),
            Fix::NamesKey => "make a new key and place every name by it".to_owned(),
            Fix::Counter { counter, least } => format!("raise the counter {counter:?} to {least}"),
            Fix::Mark { .. } => "mark the blocks in use".to_owned(),
            Fix::FindStripe { stripe } => format!("look on all devices for the shards of stripe {stripe}"),
            Fix::RestoreExtent { .. } => {
                "make the row again from its back reference; without one its content is lost and reads as zeros"
                    .to_owned()
            }
            Fix::MakeInode { ino, kind } => {
                format!("make inode {ino} anew as a {}, for root alone, to keep what it has", kind_name(*kind))
            }
            Fix::MendInode { ino } => format!("give inode {ino} the type and size that what it has asks for"),
            Fix::DropName { ino, .. } => format!("remove the name of inode {ino}"),
            Fix::RescueName { .. } => "move it to lost+found".to_owned(),
            Fix::Rename { .. } => "store it under a valid and unique name".to_owned(),
            Fix::Kind { kind, .. } => format!("set the name's type to the inode's, {kind}"),
            Fix::Adopt { ino } => format!("name it lost+found/#{ino}"),
            Fix::DropOrphan { ino } => format!("let inode {ino} wait for removal no longer"),
            Fix::DropXattr { name, .. } => format!("remove the attribute {}: its value is lost", shown(name)),
            Fix::SplitContent { .. } => "give the content to a new file in lost+found".to_owned(),
            Fix::Cut { hole, .. } if hole.end == u64::MAX => {
                format!("cut off what lies past byte {}: nobody could read it", hole.start)
            }
            Fix::Cut { hole, .. } => {
                format!(
                    "let the newer extent show bytes {}..{}: the older version of them is lost",
                    hole.start, hole.end
                )
            }
            Fix::DropExtent { .. } => {
                "remove the extent, unless its stripe is found: its content is lost and reads as zeros".to_owned()
            }
            Fix::DropIntent { id } => format!("drop plan {id}"),
            Fix::Payload { bytes, .. } => format!("let the payload reach to byte {bytes}"),
            Fix::GiveUp { index, .. } => format!("give shard {index} up and plan to rebuild it elsewhere"),
            Fix::Dispute { .. } => {
                "leave the blocks to the stripe whose shard is in them; the others' are rebuilt".to_owned()
            }
            Fix::Degrade { .. } => "note that it lacks shards, and plan to rebuild them".to_owned(),
            Fix::Backref { row, .. } => format!("store the back reference {}+{}", row.start, row.length),
            Fix::DropBackref { .. } | Fix::DropBackrefs { .. } => "remove the back reference".to_owned(),
            Fix::Inode { field, .. } => match field {
                Field::Links(links) => format!("set the link count to {links}"),
                Field::Entries(entries) => format!("set the count of names to {entries}"),
                Field::Parent(parent) => format!("set the parent to {parent}"),
                Field::Xattrs(true) => "mark it as having extended attributes".to_owned(),
                Field::Xattrs(false) => "mark it as having no extended attributes".to_owned(),
                Field::Content(bytes) => format!("set the count of content bytes to {bytes}"),
            },
            Fix::Inodes { count } | Fix::Reserved { bytes: count } => format!("set the counter to {count}"),
            Fix::FreeStripe { .. } => "free the stripe".to_owned(),
            Fix::Live { .. } => "count the live bytes anew".to_owned(),
            Fix::DropLive { .. } => "remove the count".to_owned(),
            Fix::Rebuild { .. } => "plan to rebuild it".to_owned(),
            Fix::Index { .. } => "index the prior row".to_owned(),
            Fix::DropIndex { .. } => "remove the entry of the index".to_owned(),
            Fix::Bitmap { .. } => "correct the bitmap".to_owned(),
            Fix::UsedBlocks { blocks, .. } => format!("set the count to {blocks}"),
        }
    }

    /// Whether something that was stored is given up for good by it.
    pub fn loses(&self) -> bool {
        matches!(
            self,
            Fix::DropRow { .. }
                | Fix::RestoreExtent { .. }
                | Fix::DropXattr { .. }
                | Fix::Cut { .. }
                | Fix::DropExtent { .. }
                | Fix::DropName { .. }
        )
    }

    /// The stripe whose row it asks for.
    pub fn missing_stripe(&self) -> Option<StripeId> {
        match self {
            Fix::FindStripe { stripe } => Some(*stripe),
            _ => None,
        }
    }

    /// The inode it is about.
    pub fn ino(&self) -> Option<Ino> {
        match self {
            // The keys of these tables begin with an inode.
            Fix::DropRow { table: 0..=3, key } | Fix::RestoreExtent { key } => {
                key.first_chunk().map(|bytes| Ino(u64::from_be_bytes(*bytes)))
            }
            Fix::DropName { key, .. } => Some(key.parent),
            Fix::DropXattr { ino, .. }
            | Fix::MakeInode { ino, .. }
            | Fix::MendInode { ino }
            | Fix::Adopt { ino }
            | Fix::DropOrphan { ino }
            | Fix::SplitContent { ino }
            | Fix::Inode { ino, .. } => Some(*ino),
            Fix::Cut { key, .. } | Fix::DropExtent { key } => Some(key.ino),
            Fix::RescueName { key } | Fix::Rename { key } | Fix::Kind { key, .. } => Some(key.parent),
            _ => None,
        }
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        _ => "file",
    }
}

/// One thing to be done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Action {
    /// The problem's permanent id.
    pub id: &'static str,
    /// Where it is.
    pub what: String,
    /// What will be done.
    pub will: String,
    /// Whether something is given up for good by it.
    pub loses: bool,
    /// The file or directory it is about; empty where it is about none.
    #[serde(flatten)]
    pub names: Paths,
    #[serde(skip)]
    pub fix: Fix,
}

/// What will be done, in order.
#[derive(Clone, Debug)]
pub struct Plan {
    stages: BTreeMap<Stage, Vec<Action>>,
    /// Actions kept of each stage.
    kept: usize,
    /// Actions that were left out: the plan that is made after these have been carried out has them.
    pub more: u64,
}

/// Actions kept of each stage, unless somebody says otherwise.
pub const KEPT: usize = 5000;

impl Default for Plan {
    fn default() -> Plan {
        Plan::keeping(KEPT)
    }
}

impl Plan {
    /// An empty plan that keeps so many actions of each stage.
    pub fn keeping(kept: usize) -> Plan {
        Plan { stages: BTreeMap::new(), kept, more: 0 }
    }

    /// Adds an action.
    pub fn add(&mut self, issue: Issue, what: &dyn Fn() -> String, fix: Fix) {
        let stage = self.stages.entry(fix.stage()).or_default();
        if stage.len() >= self.kept {
            self.more += 1;
            return;
        }
        if let (
            Some(Action { fix: Fix::Counter { counter, least }, will, .. }),
            Fix::Counter { counter: other, least: more },
        ) = (stage.last_mut(), &fix)
            && counter == other
        {
            *least = (*least).max(*more);
            *will = Fix::Counter { counter: *counter, least: *least }.describe();
            return;
        }
        if stage.last().is_none_or(|last| last.fix != fix) {
            let (will, loses) = (fix.describe(), fix.loses());
            stage.push(Action { id: issue.id(), what: what(), will, loses, names: Paths::default(), fix });
        }
    }

    /// Everything, in order.
    pub fn actions(&self) -> impl Iterator<Item = &Action> {
        self.stages.values().flatten()
    }

    /// Everything, in order.
    pub fn actions_mut(&mut self) -> impl Iterator<Item = &mut Action> {
        self.stages.values_mut().flatten()
    }

    /// The stages that have anything to do, in order.
    pub fn into_stages(self) -> impl Iterator<Item = (Stage, Vec<Action>)> {
        self.stages.into_iter()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }
}

/// The key of the backref that an extent has.
pub fn backref_key(stripe: StripeId, key: &ExtentKey, birth: TxnId) -> BackrefKey {
    BackrefKey { stripe, ino: key.ino, offset: key.offset, birth }
}
