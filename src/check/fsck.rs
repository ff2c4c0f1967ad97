//! The consistency check: every pass reads one snapshot and compares what is stored in more than one place.
//!
//! Invariants:
//! - Nothing is changed.
//! - Damaged rows never stop a pass; only a store that cannot be read at all does.
//! - Memory is bounded: about 30 bytes for each inode and 60 for each directory, bitmaps in windows of 64 MiB, 50 findings of
//!   each kind and, when asked for a plan, 5000 actions of each stage, of at most about 1 KiB, and 100,000 further names of what
//!   they are about.

use std::cell::{Cell, RefCell};
use std::ops::Bound;

use serde::Serialize;

use super::issue::{Finding, Findings, Issue};
use super::plan::Fix;
use super::{blocks, content, scan, stripes, tree};
use crate::base::{DeviceId, Result};
use crate::format::rows::{Counter, HistoryByDeathKey, HistoryKey};
use crate::format::table::*;
use crate::meta::{ReadRows, Reader, Visit, journal};

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
    /// Rows, or what the pass counts.
    pub done: u64,
    /// 0 when unknown.
    pub total: u64,
}

impl Progress {
    /// The beginning of a pass.
    pub fn of(pass: &'static str, total: u64) -> Progress {
        Progress { pass, done: 0, total }
    }
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

/// The passes, in order: the first two and the last read devices and are run by `control`.
pub const PASSES: &[&str] =
    &["labels", "metadata", "rows", "tree", "content", "stripes", "blocks", "history", "journal", "data"];

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
    let progress = RefCell::new(progress);
    let tell = |now| (progress.borrow_mut())(now);
    let watched = |pass, total| Watched::new(reader.rows(), pass, total, &tell);
    let counts = scan::every_row(&watched("rows", 0), findings)?;
    checked.rows = counts.values().sum();
    let rows = |tables: &[u8]| tables.iter().filter_map(|table| counts.get(table)).sum::<u64>();
    let total = rows(&[Inodes::ID, Dentries::ID, Xattrs::ID, Orphans::ID]);
    tree::check(&watched("tree", total), findings, &mut checked)?;
    let total = rows(&[Intents::ID, Extents::ID, Inodes::ID, Backrefs::ID]);
    content::check(&watched("content", total), findings, &mut checked)?;
    let total = rows(&[Intents::ID, Stripes::ID, StripeLive::ID, Backrefs::ID]);
    stripes::check(&watched("stripes", total), context, findings, &mut checked)?;
    blocks::check(&watched("blocks", 0), context, findings, &mut checked)?;
    check_history(&watched("history", rows(&[History::ID, HistoryByDeath::ID])), findings)?;
    check_journal(&watched("journal", rows(&[Journal::ID, Intents::ID])), findings, &mut checked)?;
    Ok(checked)
}

/// Tells how far a pass is while it reads through whole tables.
struct Watched<'w> {
    rows: &'w dyn ReadRows,
    now: Cell<Progress>,
    tell: &'w dyn Fn(Progress),
}

/// Rows between two words of progress.
const STRIDE: u64 = 4096;

impl<'w> Watched<'w> {
    fn new(rows: &'w dyn ReadRows, pass: &'static str, total: u64, tell: &'w dyn Fn(Progress)) -> Watched<'w> {
        let now = Progress::of(pass, total);
        tell(now);
        Watched { rows, now: Cell::new(now), tell }
    }
}

impl Reader for Watched<'_> {
    fn rows(&self) -> &dyn ReadRows {
        self
    }
}

impl ReadRows for Watched<'_> {
    fn read(&self, table: u8, key: &[u8], found: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.rows.read(table, key, found)
    }

    fn scan(
        &self,
        table: u8,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        backwards: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<Visit>,
    ) -> Result<()> {
        if range != (Bound::Unbounded, Bound::Unbounded) {
            return self.rows.scan(table, range, backwards, visit);
        }
        self.rows.scan(table, range, backwards, &mut |key, row| {
            let mut now = self.now.get();
            now.done += 1;
            self.now.set(now);
            if now.done.is_multiple_of(STRIDE) {
                (self.tell)(now);
            }
            visit(key, row)
        })
    }
}

fn check_journal(reader: &impl Reader, findings: &mut Findings, checked: &mut Checked) -> Result<()> {
    match journal::verify(reader) {
        Ok(count) => checked.journal = count,
        Err(error) => findings.mend(Issue::JournalBroken, || error.to_string(), || Fix::Relink),
    }
    let (first, next) = (scan::counter(reader, Counter::FirstJournal)?, scan::counter(reader, Counter::NextJournal)?);
    let kept = next.saturating_sub(first);
    let fine = checked.journal == kept || findings.has(Issue::JournalBroken);
    let show = || format!("{} rows are there, the counters say {kept} ({first}..{next})", checked.journal);
    findings.expect_or(fine, Issue::JournalBroken, show, || Fix::Relink);
    let next_intent = scan::counter(reader, Counter::NextIntent)?;
    scan::rows::<Intents>(reader, |id, _| {
        let show = || format!("intent {id}, next is {next_intent}");
        let fix = || Fix::Counter { counter: Counter::NextIntent, least: id.saturating_add(1) };
        findings.expect_or(id < next_intent, Issue::IdBeyondCounter, show, fix);
        Ok(())
    })?;
    Ok(())
}

fn check_history(reader: &impl Reader, findings: &mut Findings) -> Result<()> {
    scan::rows::<History>(reader, |key, row| {
        let by_death = HistoryByDeathKey { death: row.death, table: key.table, row_key: key.row_key.clone() };
        let indexed = scan::find::<HistoryByDeath>(reader, &by_death)?.is_some();
        let show =
            || format!("a prior row of table {} that ended with transaction {} is not indexed", key.table, row.death);
        findings.expect_or(indexed, Issue::HistoryWrong, show, || Fix::Index { key: by_death });
        Ok(())
    })?;
    scan::rows::<HistoryByDeath>(reader, |key, ()| {
        let row = scan::find::<History>(reader, &HistoryKey { table: key.table, row_key: key.row_key.clone() })?;
        let fine = row.is_some_and(|row| row.death == key.death);
        let show = || format!("the index names a prior row of table {} that is not there", key.table);
        findings.expect_or(fine, Issue::HistoryWrong, show, || Fix::DropIndex { key: key.clone() });
        Ok(())
    })?;
    Ok(())
}
