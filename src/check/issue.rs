//! What can be wrong, by permanent id: scripts, tests and people name problems by these.

use std::collections::BTreeMap;

use serde::Serialize;

use super::plan::{Fix, Plan};

macro_rules! issues {
    ($($variant:ident $id:literal $meaning:literal;)*) => {
        /// A kind of problem. Ids are permanent: one that is no longer found is retired, never given to another kind.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Issue { $(#[doc = $meaning] $variant),* }

        /// Every kind of problem, in order of its passes.
        pub const ISSUES: &[Issue] = &[$(Issue::$variant),*];

        impl Issue {
            /// The permanent id.
            pub fn id(self) -> &'static str {
                match self { $(Issue::$variant => $id),* }
            }

            /// What it means.
            pub fn meaning(self) -> &'static str {
                match self { $(Issue::$variant => $meaning),* }
            }
        }
    };
}

issues! {
    LabelDamaged "label-damaged" "a device has a copy of its label that is not as it was written";
    MemberMissing "member-missing" "a member of the pool is not here";
    MemberStale "member-stale" "a member came back and is not up to date";
    MetadataWrong "metadata-wrong" "a copy of metadata differs from its checksum";
    MetadataLogLacking "metadata-log-lacking" "a copy of the metadata's log lacks entries";
    MetadataReplicaMissing "metadata-replica-missing" "there are fewer copies of the metadata than there should be";

    RowUndecodable "row-undecodable" "a stored row cannot be read";
    CounterWrong "counter-wrong" "a counter disagrees with what it counts";
    IdBeyondCounter "id-beyond-counter" "an id is in use that was never given out";
    NamesKeyMissing "names-key-missing" "the key that spreads names is missing";

    RootMissing "root-missing" "the root directory is missing or not a directory";
    InodeInvalid "inode-invalid" "an inode has an impossible type or size";
    InodeUnreachable "inode-unreachable" "an inode has no name and nobody waits to remove it";
    LinkCountWrong "link-count-wrong" "an inode's link count differs from its names";
    DentryDangling "dentry-dangling" "a name refers to an inode that does not exist";
    DentryParentMissing "dentry-parent-missing" "a name is in a directory that does not exist";
    DentryKindWrong "dentry-kind-wrong" "a name's file type differs from its inode's";
    DentryNameInvalid "dentry-name-invalid" "a name is empty, too long or has forbidden bytes";
    DentryDuplicate "dentry-duplicate" "a directory has a name twice";
    DentryCookieWrong "dentry-cookie-wrong" "a name is not where it is looked for";
    DirectoryEntriesWrong "directory-entries-wrong" "a directory's count of names is wrong";
    DirectoryParentWrong "directory-parent-wrong" "a directory's parent differs from where its name is";
    DirectoryLoop "directory-loop" "a directory cannot be reached from the root";
    OrphanNamed "orphan-named" "an inode that waits for removal has names, or does not exist";
    XattrInodeMissing "xattr-inode-missing" "an extended attribute belongs to no inode";
    XattrNameInvalid "xattr-name-invalid" "an extended attribute has a name that nobody can ask for";
    XattrPiecesWrong "xattr-pieces-wrong" "the pieces of an extended attribute are not whole";
    AclInvalid "acl-invalid" "an access control list cannot be read";
    XattrFlagWrong "xattr-flag-wrong" "an inode's mark for extended attributes is wrong";

    ExtentInodeMissing "extent-inode-missing" "content belongs to no inode, or to one that cannot have any";
    ExtentOverlap "extent-overlap" "two extents of a file overlap";
    ExtentPastEnd "extent-past-end" "content lies past the end of its file";
    ExtentStripeMissing "extent-stripe-missing" "content refers to a stripe that does not exist";
    ExtentOutsideStripe "extent-outside-stripe" "content refers to bytes its stripe does not have";
    ExtentBackrefMissing "extent-backref-missing" "content has no matching back reference";
    ContentWrong "content-wrong" "a file's count of content bytes is wrong";
    BackrefDangling "backref-dangling" "a back reference belongs to no content";
    IntentInvalid "intent-invalid" "a planned action refers to something that does not exist";

    StripeInvalid "stripe-invalid" "a stripe's row contradicts itself";
    StripeUnused "stripe-unused" "nothing refers to a stripe (leaked)";
    StripeLiveWrong "stripe-live-wrong" "a stripe's count of live bytes is wrong";
    StripeLiveDangling "stripe-live-dangling" "a count of live bytes belongs to no stripe";
    StripeDegraded "stripe-degraded" "a stripe lacks shards and nothing plans to rebuild them";
    ShardOutside "shard-outside" "a shard lies outside its device, or on one that is not a member";
    BlockShared "block-shared" "two owners claim a block";
    BlockUnmarked "block-unmarked" "a block in use is marked free";
    BlockLeaked "block-leaked" "a free block is marked in use (leaked)";
    UsedBlocksWrong "used-blocks-wrong" "a device's count of used blocks is wrong";
    DeviceRowWrong "device-row-wrong" "a row describes a device that is no member";

    JournalBroken "journal-broken" "the journal's hash chain or its ends are broken";
    HistoryWrong "history-wrong" "prior rows and their index disagree";

    ShardMissing "shard-missing" "a shard cannot be read";
    ShardCorrupt "shard-corrupt" "a shard's bytes differ from their checksums";
    ShardHeaderWrong "shard-header-wrong" "a shard's header does not name its stripe";
    StripeLost "stripe-lost" "more shards of a stripe are bad than parity can make good";
}

impl Issue {
    /// Whether it is found on the devices and not in the tables.
    pub fn needs_devices(self) -> bool {
        use Issue::*;
        matches!(
            self,
            LabelDamaged
                | MemberMissing
                | MemberStale
                | MetadataWrong
                | MetadataLogLacking
                | MetadataReplicaMissing
                | ShardMissing
                | ShardCorrupt
                | ShardHeaderWrong
                | StripeLost
        )
    }
}

/// One problem.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    pub id: &'static str,
    /// Where, and what was found instead of what.
    pub what: String,
}

/// Problems found so far: all are counted, the first of each kind are listed.
#[derive(Clone, Default, Debug)]
pub struct Findings {
    listed: Vec<Finding>,
    counts: BTreeMap<Issue, u64>,
    plan: Option<Plan>,
}

/// Problems of one kind that are listed.
const LISTED: u64 = 50;

impl Findings {
    /// Findings that also plan what to do about them, `kept` actions of each stage at most.
    pub fn planning(kept: usize) -> Findings {
        Findings { plan: Some(Plan::keeping(kept)), ..Findings::default() }
    }

    /// What is to be done, if that was planned.
    pub fn take_plan(&mut self) -> Plan {
        self.plan.take().unwrap_or_default()
    }

    /// Notes a problem that can be mended.
    pub fn mend(&mut self, issue: Issue, what: impl Fn() -> String, fix: impl FnOnce() -> Fix) {
        if let Some(plan) = &mut self.plan {
            plan.add(issue, &what, fix());
        }
        self.add(issue, what);
    }

    /// Notes a problem that can be mended unless `fine`.
    pub fn expect_or(&mut self, fine: bool, issue: Issue, what: impl Fn() -> String, fix: impl FnOnce() -> Fix) {
        if !fine {
            self.mend(issue, what, fix);
        }
    }

    /// Plans something besides for a problem that was noted.
    pub fn also(&mut self, issue: Issue, what: impl Fn() -> String, fix: impl FnOnce() -> Fix) {
        if let Some(plan) = &mut self.plan {
            plan.add(issue, &what, fix());
        }
    }

    /// Notes a problem.
    pub fn add(&mut self, issue: Issue, what: impl FnOnce() -> String) {
        let count = self.counts.entry(issue).or_default();
        *count += 1;
        if *count <= LISTED {
            self.listed.push(Finding { id: issue.id(), what: what() });
        }
    }

    /// Adds what others found.
    pub fn append(&mut self, other: &Findings) {
        self.listed.extend(other.listed.iter().cloned());
        for (issue, count) in &other.counts {
            *self.counts.entry(*issue).or_default() += count;
        }
    }

    /// Notes a problem unless `fine`.
    pub fn expect(&mut self, fine: bool, issue: Issue, what: impl FnOnce() -> String) {
        if !fine {
            self.add(issue, what);
        }
    }

    /// How many problems there are.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// How many of each kind.
    pub fn counts(&self) -> impl Iterator<Item = (Issue, u64)> {
        self.counts.iter().map(|(issue, count)| (*issue, *count))
    }

    /// The listed problems.
    pub fn listed(&self) -> &[Finding] {
        &self.listed
    }

    /// Whether a problem of this kind was found.
    pub fn has(&self, issue: Issue) -> bool {
        self.counts.contains_key(&issue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_words() {
        for (at, issue) in ISSUES.iter().enumerate() {
            assert!(issue.id().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{}", issue.id());
            assert!(ISSUES[..at].iter().all(|other| other.id() != issue.id()), "{} twice", issue.id());
        }
    }
}
