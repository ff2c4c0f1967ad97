//! The consistency check: every pass reads one snapshot and compares what is stored in more than one place.
//!
//! Invariants:
//! - Nothing is changed.
//! - Damaged rows never stop a pass; only a store that cannot be read at all does.
//! - Memory is bounded: about 30 bytes for each inode, and bitmaps in windows of 64 MiB.

use serde::Serialize;

use super::issue::{Finding, Findings, Issue};
use super::{blocks, content, scan, stripes, tree};
use crate::base::{DeviceId, Result};
use crate::format::rows::{Counter, HistoryByDeathKey, HistoryKey};
use crate::format::table::{History, HistoryByDeath, Intents};
use crate::meta::{Reader, journal};

/// What the tables do not say about the pool.
#[derive(Clone, Default, Debug)]
pub struct Context {
    /// Members and their sizes in blocks. Empty: nothing is known, and shards are not compared with their devices.
    pub devices: Vec<(DeviceId, u64)>,
    /// Runs of blocks that belong to labels and the metadata volume: device, first block, count.
    pub metadata: Vec<(DeviceId, u64, u64)>,
}

/// What the check is doing, for whoever waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    pub pass: &'static str,
}

/// How much was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Checked {
    pub rows: u64,
    pub inodes: u64,
    pub names: u64,
    pub extents: u64,
    pub stripes: u64,
    pub blocks: u64,
    pub journal: u64,
    /// Inodes without names that are still open, or wait to be removed.
    pub orphans: u64,
    /// Shards whose bytes were read and compared; 0 without `--data`.
    pub shards: u64,
}

/// How many problems of one kind there are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Tally {
    pub id: &'static str,
    pub meaning: &'static str,
    pub count: u64,
}

/// The outcome.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    pub clean: bool,
    pub checked: Checked,
    pub issues: Vec<Tally>,
    /// The first problems of each kind.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Sums up.
    pub fn new(checked: Checked, findings: &Findings) -> Report {
        let tally = |(issue, count): (Issue, u64)| Tally { id: issue.id(), meaning: issue.meaning(), count };
        Report {
            clean: findings.total() == 0,
            checked,
            issues: findings.counts().map(tally).collect(),
            findings: findings.listed().to_vec(),
        }
    }
}

/// Checks the metadata that `reader` sees.
pub fn fsck(
    reader: &impl Reader,
    context: &Context,
    findings: &mut Findings,
    progress: &mut dyn FnMut(Progress),
) -> Result<Checked> {
    let mut checked = Checked::default();
    let mut pass = |name| progress(Progress { pass: name });
    pass("rows");
    checked.rows = scan::every_row(reader, findings)?;
    pass("tree");
    tree::check(reader, findings, &mut checked)?;
    pass("content");
    content::check(reader, findings, &mut checked)?;
    pass("stripes");
    stripes::check(reader, context, findings, &mut checked)?;
    pass("blocks");
    blocks::check(reader, context, findings, &mut checked)?;
    pass("journal");
    check_journal(reader, findings, &mut checked)?;
    pass("history");
    check_history(reader, findings)?;
    Ok(checked)
}

fn check_journal(reader: &impl Reader, findings: &mut Findings, checked: &mut Checked) -> Result<()> {
    match journal::verify(reader) {
        Ok(count) => checked.journal = count,
        Err(error) => findings.add(Issue::JournalBroken, || error.to_string()),
    }
    let (first, next) = (reader.counter(Counter::FirstJournal)?, reader.counter(Counter::NextJournal)?);
    let kept = next.saturating_sub(first);
    findings.expect(checked.journal == kept || findings.has(Issue::JournalBroken), Issue::JournalBroken, || {
        format!("{} rows are there, the counters say {kept} ({first}..{next})", checked.journal)
    });
    let next_intent = reader.counter(Counter::NextIntent)?;
    scan::rows::<Intents>(reader, |id, _| {
        findings.expect(id < next_intent, Issue::IdBeyondCounter, || format!("intent {id}, next is {next_intent}"));
        Ok(())
    })?;
    Ok(())
}

fn check_history(reader: &impl Reader, findings: &mut Findings) -> Result<()> {
    scan::rows::<History>(reader, |key, row| {
        let by_death = HistoryByDeathKey { death: row.death, table: key.table, row_key: key.row_key };
        let indexed = scan::find::<HistoryByDeath>(reader, &by_death)?.is_some();
        findings.expect(indexed, Issue::HistoryWrong, || {
            format!("a prior row of table {} that ended with transaction {} is not indexed", key.table, row.death)
        });
        Ok(())
    })?;
    scan::rows::<HistoryByDeath>(reader, |key, ()| {
        let row = scan::find::<History>(reader, &HistoryKey { table: key.table, row_key: key.row_key })?;
        findings.expect(row.is_some_and(|row| row.death == key.death), Issue::HistoryWrong, || {
            format!("the index names a prior row of table {} that is not there", key.table)
        });
        Ok(())
    })?;
    Ok(())
}
