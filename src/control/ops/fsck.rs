//! `fsck`: the labels, the copies of the metadata, its rows in one snapshot, then, if asked, every shard; otherwise what is recorded
//! of shards that were bad.
//!
//! Invariants:
//! - Without `repair` nothing is changed.
//! - Rows are repaired only in a pool that is not mounted, opened for this alone and opened anew after each round: nobody goes
//!   on with what was true before. On a mounted one only what lies on the devices is mended.
//! - What is reported as corrected was checked again afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use crate::base::{Entropy, Result, StripeId, SystemEntropy};
use crate::check::repair::{self, KEPT, Round, Rounds};
use crate::check::{self, Action, Context, Findings, Issue, Owners, PASSES, Report};
use crate::control::locate::Located;
use crate::control::open::{OpenOptions, open_pool};
use crate::control::protocol::{Outcome, Progress};
use crate::control::server::Reply;
use crate::control::service::{PoolService, outcome};
use crate::format::label::MemberState;
use crate::format::rows::{Placement, StripeRow};
use crate::meta::Reader;
use crate::meta::volume::VerifyReport;
use crate::pool::PoolState;
use crate::pool::stripe_io::Fault;
use crate::store::Store;
use crate::store::repair::{Repaired, Verified};

/// Stripes looked up at once.
const PAGE: usize = 1024;
/// Lost stripes of which the files are named, and files that are named.
const LOST: usize = 10_000;
/// Actions of repairs that are kept.
const DONE: usize = 10_000;
/// Actions that are told one by one to people; programs are told all.
const TOLD: usize = 200;

/// What to do with an unmounted pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FsckMode {
    /// Only look.
    Check,
    /// Tell what a repair would do.
    Plan,
    Repair,
}

/// What one look at the pool found.
struct Look {
    report: Report,
    /// What can be done about the rows.
    round: Round,
    lost: Lost,
}

/// Stripes that too few shards are left of.
#[derive(Default)]
struct LostStripes {
    ids: Vec<StripeId>,
    /// Those that there was no room for.
    more: u64,
}

/// Files with content that too few shards are left of.
#[derive(Default)]
struct Lost(Owners);

/// What was or will be done.
#[derive(Default)]
struct Work {
    actions: Vec<Action>,
    /// Actions that the next plan will have.
    more: u64,
    /// The same for what is mended on the devices.
    devices: Vec<String>,
}

/// Checks a pool that is open. `repair` mends what can be mended while others use it.
pub fn fsck(service: &PoolService, data: bool, repair: bool, reply: &mut dyn Reply) -> Result<Outcome> {
    let look = look(service, data, reply)?;
    if !repair || look.report.clean {
        return tell(service, &look, None, FsckMode::Check);
    }
    let mut work = Work::default();
    mend_devices(service, data, reply, &mut work)?;
    let after = self::look(service, data, reply)?;
    work.note_mended(&look.report, &after.report);
    tell(service, &after, Some(&work), FsckMode::Repair)
}

/// How a pool is opened for one look or one round of repairs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opening {
    /// Nothing is written.
    pub read_only: bool,
    /// The database checks all of itself first.
    pub untrusted: bool,
}

/// Opens the pool, and says what the user should know.
pub type Opener<'o> = &'o dyn Fn(Opening) -> Result<(PoolService, Vec<String>)>;

/// Checks a pool that is not mounted, and repairs it if that is asked for. Returns what the user should know, too.
pub fn fsck_unmounted(
    located: &Located,
    options: &OpenOptions,
    data: bool,
    untrusted: bool,
    mode: FsckMode,
    reply: &mut dyn Reply,
) -> Result<(Outcome, Vec<String>)> {
    let opener = |opening: Opening| {
        let options = OpenOptions { read_only: opening.read_only, ..options.clone() };
        open(located, &options, opening.untrusted)
    };
    fsck_opened(&opener, data, untrusted, mode, reply)
}

/// The same for a pool that `open` opens, again and again.
pub fn fsck_opened(
    open: Opener<'_>,
    data: bool,
    untrusted: bool,
    mode: FsckMode,
    reply: &mut dyn Reply,
) -> Result<(Outcome, Vec<String>)> {
    let read_only = Opening { read_only: true, untrusted };
    let (service, notes) = open(read_only)?;
    let first = look(&service, data, reply)?;
    if mode != FsckMode::Repair || first.report.clean {
        let mut work = Work::default();
        work.actions.extend(first.round.plan.actions().cloned());
        work.more = first.round.plan.more;
        work.devices = plan_devices(&first.report);
        let told = (mode == FsckMode::Plan).then_some(&work);
        return Ok((tell(&service, &first, told, mode)?, notes));
    }
    drop(service);

    let mut work = Work::default();
    repair_rows(open, untrusted, reply, &mut work)?;
    let (service, _) = open(Opening { read_only: false, untrusted: false })?;
    mend_devices(&service, data, reply, &mut work)?;
    service.store.meta().checkpoint()?;
    drop(service);
    let (service, _) = open(read_only)?;
    let after = look(&service, data, reply)?;
    work.note_mended(&first.report, &after.report);
    Ok((tell(&service, &after, Some(&work), mode)?, notes))
}

/// The devices below a store.
struct OnDevices<'s>(&'s Store);

impl repair::Devices for OnDevices<'_> {
    fn holds(&self, stripe: StripeId, row: &StripeRow, index: usize) -> Option<bool> {
        self.0.holds(stripe, row, index)
    }

    fn find(&self, stripes: &BTreeSet<StripeId>) -> Result<BTreeMap<StripeId, StripeRow>> {
        self.0.find_rows(stripes)
    }

    fn missing(&self) -> usize {
        let Some(pool) = self.0.pool() else { return 0 };
        let state = pool.state();
        state.members.len() - state.present().count()
    }
}

fn open(located: &Located, options: &OpenOptions, untrusted: bool) -> Result<(PoolService, Vec<String>)> {
    let (pool, notes) = open_pool(located, options)?;
    let (clock, salt) = (options.clock.clone(), SystemEntropy.next_u64());
    let store = match untrusted {
        true => Store::open_untrusted(Arc::clone(&pool), clock, salt)?,
        false => Store::open(Arc::clone(&pool), clock, salt)?,
    };
    Ok((PoolService::unmounted(pool, Arc::new(store), options.clone()), notes))
}

/// Repairs rows, round by round, until nothing more can be done about them.
fn repair_rows(open: Opener<'_>, untrusted: bool, reply: &mut dyn Reply, work: &mut Work) -> Result<()> {
    let mut rounds = Rounds::default();
    loop {
        let (service, _) = open(Opening { read_only: false, untrusted })?;
        let context = context(&service);
        let mut key = [0; 32];
        SystemEntropy.fill(&mut key);
        let devices = OnDevices(&service.store);
        let mut told = Ok(());
        let mut tell = |now| pass(&now, reply, &mut told);
        let round = repair::round(service.store.meta(), &context, &devices, key, KEPT, &mut tell)?;
        told?;
        service.store.meta().checkpoint()?;
        let go_on = rounds.go_on(&round.done);
        for action in round.done {
            if work.actions.len() < DONE {
                work.actions.push(action);
            } else {
                work.more += 1;
            }
        }
        if !go_on {
            return Ok(());
        }
    }
}

/// Mends what lies on the devices: labels, copies of the metadata, shards and their headers.
fn mend_devices(service: &PoolService, data: bool, reply: &mut dyn Reply, work: &mut Work) -> Result<()> {
    let store = &service.store;
    let ticket = service.work.begin("repair", "stripes")?;
    let present: Vec<_> = service.pool.state().present().map(|member| member.id).collect();
    if !service.pool.damaged_labels(&present).is_empty() {
        service.pool.update_labels(|_| ())?;
        work.devices.push("labels written anew".to_owned());
    }
    store.mend_metadata()?;
    let mut told = Ok(());
    let mut headers = Repaired::default();
    if data {
        each_stripe(store, &mut |id, done| {
            headers.add(store.mend_headers(id)?);
            ticket.advance(done, 0, reply)
        })?;
    }
    let mut watch = |progress: &crate::store::maintain::Progress| {
        told = ticket.advance(progress.stripes, 0, reply);
        told.is_ok()
    };
    let progress = if data { store.scrub(&mut watch)? } else { store.rebuild(&mut watch)? };
    told?;
    let mut did = |count: u64, what: &str| {
        if count > 0 {
            work.devices.push(format!("{count} {what}"));
        }
    };
    did(progress.metadata_blocks, "blocks of metadata written anew");
    did(headers.rewritten.into(), "headers of shards written anew");
    did(progress.repaired.rewritten.into(), "shards written anew in their place");
    did((headers.rebuilt + progress.repaired.rebuilt).into(), "shards rebuilt elsewhere");
    if !data && let Some(log) = store.mend_copies()? {
        did(log.repaired, "blocks of metadata written anew");
        did(log.log_repairs, "stretches of the metadata's log copied");
    }
    store.durable_point()
}

/// What [`mend_devices`] will do about these problems.
fn plan_devices(report: &Report) -> Vec<String> {
    let will = |id: &str| match id {
        "label-damaged" => Some("write the labels anew"),
        "member-stale" | "metadata-replica-missing" => Some("bring the copies of the metadata up to date"),
        "metadata-wrong" | "metadata-log-lacking" => Some("write what is bad anew from another copy"),
        "stripe-degraded" | "shard-missing" => Some("rebuild the missing shards"),
        "shard-corrupt" => Some("write the shards anew from the others of their stripes"),
        "shard-header-wrong" => Some("write the headers anew"),
        _ => None,
    };
    report.issues.iter().filter_map(|tally| Some(format!("{}: {}", tally.id, will(tally.id)?))).collect()
}

fn pass(now: &check::Progress, reply: &mut dyn Reply, told: &mut Result<()>) {
    let work = match PASSES.iter().position(|pass| *pass == now.pass) {
        Some(at) => format!("checking {} ({}/{})", now.pass, at + 1, PASSES.len()),
        None => now.pass.to_owned(),
    };
    let progress = Progress { work, done: now.done, total: now.total, unit: "rows".to_owned() };
    if told.is_ok() {
        *told = reply.progress(&progress);
    }
}

/// Checks everything; nothing is changed.
fn look(service: &PoolService, data: bool, reply: &mut dyn Reply) -> Result<Look> {
    let mut told = Ok(());
    let context = context(service);
    let mut devices = Findings::default();
    pass(&check::Progress::of("labels", 0), reply, &mut told);
    labels(service, &mut devices);
    pass(&check::Progress::of("metadata", 0), reply, &mut told);
    metadata(service, &mut devices)?;
    let mut round = repair::plan(service.store.meta(), &context, &mut |now| pass(&now, reply, &mut told))?;
    told?;
    let mut stripes = LostStripes::default();
    if data {
        round.checked.shards = shards(service, &mut devices, &mut stripes, reply)?;
    } else {
        recorded(&service.store, &mut devices, &mut stripes)?;
    }
    let lost = service.store.view(|view| stripes.owners(view, LOST))?;
    devices.append(&round.findings);
    Ok(Look { report: Report::new(round.checked, &devices), round, lost })
}

fn labels(service: &PoolService, findings: &mut Findings) {
    let state = service.pool.state();
    let present: Vec<_> = state.present().map(|member| member.id).collect();
    let damaged = service.pool.damaged_labels(&present);
    for member in &state.members {
        findings.expect(!damaged.contains(&member.id), Issue::LabelDamaged, || member.name());
        findings.expect(member.device.is_some(), Issue::MemberMissing, || match member.is_replaced() {
            true => format!("{}, which is being replaced: `argosfs rebuild` ends that", member.name()),
            false => format!("{}: bring it back, or `argosfs device replace` it", member.name()),
        });
        let stale = member.device.is_some() && member.state == MemberState::Stale;
        findings.expect(!stale, Issue::MemberStale, || member.name());
    }
}

fn metadata(service: &PoolService, findings: &mut Findings) -> Result<()> {
    if let Some(found) = service.store.inspect_metadata()? {
        copies(&found, findings);
    }
    let lacking = service.store.lacking_replicas();
    findings.expect(lacking == 0, Issue::MetadataReplicaMissing, || format!("{lacking} are lacking"));
    Ok(())
}

fn copies(found: &VerifyReport, findings: &mut Findings) {
    findings.expect(found.bad == 0, Issue::MetadataWrong, || format!("{} of {} blocks", found.bad, found.blocks));
    findings.expect(found.unreadable.is_empty(), Issue::MetadataWrong, || {
        format!("{} blocks that no copy has right, and some of them are in use", found.unreadable.len())
    });
    findings.expect(found.log_lacking == 0, Issue::MetadataLogLacking, || format!("{} stretches", found.log_lacking));
    findings.expect(!found.log_broken, Issue::MetadataLogLacking, || "no copy has all of it".to_owned());
}

/// What the labels say about the devices.
fn context(service: &PoolService) -> Context {
    let mut context = context_of(&service.pool.state());
    let archives = service.store.archive_runs();
    context.metadata.extend(archives.iter().map(|run| (run.device, run.block.0, u64::from(run.blocks))));
    context
}

fn context_of(state: &PoolState) -> Context {
    let mut metadata = Vec::new();
    for member in &state.members {
        metadata.push((member.id, 0, member.layout.start));
    }
    let root = &state.label.meta;
    for replica in &root.replicas {
        metadata.push((crate::base::DeviceId(replica.device), replica.log_block, u64::from(replica.log_blocks)));
    }
    for run in &root.chunks {
        let blocks = u64::from(run.count) * u64::from(root.chunk_blocks);
        metadata.push((crate::base::DeviceId(run.device), run.block, blocks));
    }
    let devices = state.members.iter().map(|member| (member.id, member.layout.start + member.layout.blocks)).collect();
    Context { devices, metadata }
}

fn each_stripe(store: &Store, act: &mut dyn FnMut(StripeId, u64) -> Result<()>) -> Result<()> {
    let (mut done, mut after) = (0, None);
    loop {
        let (page, last) = store.stripes_with(after, PAGE, |_| true)?;
        for id in page {
            done += 1;
            act(id, done)?;
        }
        match last {
            Some(last) => after = Some(last),
            None => return Ok(()),
        }
    }
}

/// Reads every shard and compares it with its checksums, and its header with its stripe. Stripes made meanwhile may be left out.
fn shards(
    service: &PoolService,
    findings: &mut Findings,
    lost: &mut LostStripes,
    reply: &mut dyn Reply,
) -> Result<u64> {
    let ticket = service.work.begin("check of the data", "stripes")?;
    let store = &service.store;
    let mut shards = 0;
    each_stripe(store, &mut |id, done| {
        let mut bad_shards = Vec::new();
        if let Some(verified) = store.verify(id)? {
            shards += verified.row.placements.len() as u64;
            report(id, &verified, findings);
            if verified.lost {
                lost.add(id, LOST);
            }
            bad_shards = verified.bad.iter().map(|shard| usize::from(shard.index)).collect();
        }
        if let Some((row, wrong)) = store.wrong_headers(id)? {
            // Of a shard that is bad all of it is written anew.
            for index in wrong.into_iter().filter(|index| !bad_shards.contains(index)) {
                findings.add(Issue::ShardHeaderWrong, || place(id, index, &row));
            }
        }
        ticket.advance(done, 0, reply)
    })?;
    store.verify_archives(&mut |verified| match verified {
        Ok((id, verified)) => {
            shards += verified.row.placements.len() as u64;
            report(id, &verified, findings);
        }
        Err(error) => findings.add(Issue::StripeLost, || error.to_string()),
    });
    Ok(shards)
}

/// Takes up what is recorded of lost stripes, for want of a look at them.
fn recorded(store: &Store, findings: &mut Findings, lost: &mut LostStripes) -> Result<()> {
    for id in store.recorded_damage()? {
        findings.add(Issue::StripeLost, || format!("stripe {id}: recorded as damaged; `fsck --data` reads it again"));
        lost.add(id, LOST);
    }
    Ok(())
}

/// Notes what is bad.
fn report(id: StripeId, Verified { row, bad, lost }: &Verified, findings: &mut Findings) {
    findings.expect(!lost, Issue::StripeLost, || {
        format!("stripe {id}: {} of {} shards are bad", bad.len(), row.placements.len())
    });
    for shard in bad {
        let issue = if shard.fault == Fault::Checksum { Issue::ShardCorrupt } else { Issue::ShardMissing };
        findings.add(issue, || place(id, usize::from(shard.index), row));
    }
}

fn place(id: StripeId, index: usize, row: &StripeRow) -> String {
    match row.placements.get(index) {
        Some(placement) if *placement != Placement::NONE => {
            format!("stripe {id}, shard {index}: device {}, block {}", placement.device, placement.block.0)
        }
        _ => format!("stripe {id}, shard {index}"),
    }
}

/// Level 0: clean; 1: everything was corrected; 2: problems are left.
fn tell(service: &PoolService, look: &Look, work: Option<&Work>, mode: FsckMode) -> Result<Outcome> {
    let name = service.pool.state().label.name.clone();
    let level = match (look.report.clean, work) {
        // Repairs are made only when something was found.
        (true, Some(_)) if mode == FsckMode::Repair => 1,
        (true, _) => 0,
        (false, _) => 2,
    };
    let mut out = String::new();
    for finding in &look.report.findings {
        let _ = writeln!(out, "{}: {}", finding.id, finding.what);
    }
    if let Some(work) = work {
        work.tell(mode, &mut out);
    }
    look.lost.tell(&mut out);
    for tally in &look.report.issues {
        let _ = writeln!(out, "{}: {} ({})", tally.id, tally.count, tally.meaning);
    }
    if level == 2 && mode == FsckMode::Repair && service.mounted.is_some() {
        let _ = writeln!(out, "the rest is repaired only while nobody uses it: unmount {name} and run it again");
    }
    let state = ["clean", "CORRECTED, clean now", "PROBLEMS FOUND"][usize::from(level)];
    let checked = &look.report.checked;
    let _ = write!(
        out,
        "{name}: {state}; {} inodes, {} names, {} extents, {} stripes, {} blocks, {} journal rows",
        checked.inodes, checked.names, checked.extents, checked.stripes, checked.blocks, checked.journal
    );
    if checked.shards > 0 {
        let _ = write!(out, ", {} shards", checked.shards);
    }
    out.push('\n');
    let answer = serde_json::to_value(&look.report);
    let mut answer = answer.map_err(|_| crate::base::Error::Invalid("an answer that is not JSON"))?;
    look.lost.answer(&mut answer);
    if let Some(work) = work {
        let key = if mode == FsckMode::Plan { "plan" } else { "repaired" };
        answer[key] = serde_json::json!({ "actions": work.actions, "more": work.more, "devices": work.devices });
    }
    outcome(level, &answer, out)
}

impl LostStripes {
    fn add(&mut self, id: StripeId, limit: usize) {
        match self.ids.len() < limit {
            true => self.ids.push(id),
            false => self.more += 1,
        }
    }

    /// Whose content it was: at most `limit` files.
    fn owners(&self, reader: &impl Reader, limit: usize) -> Result<Lost> {
        let owners = check::owners_of_stripes(reader, &self.ids, limit)?;
        Ok(Lost(Owners { more_stripes: owners.more_stripes + self.more, ..owners }))
    }
}

impl Lost {
    fn tell(&self, out: &mut String) {
        for path in &self.0.paths {
            let _ = writeln!(out, "LOST CONTENT: {path}");
        }
        if self.0.more_paths > 0 {
            let _ = writeln!(out, "LOST CONTENT: {} more names of these files", self.0.more_paths);
        }
        if self.0.more_stripes > 0 {
            let _ = writeln!(
                out,
                "LOST CONTENT: NOT ALL FILES ARE NAMED: {} more stripes are lost. Restore or remove the files above, then run it \
                 again: it names the rest",
                self.0.more_stripes
            );
        }
    }

    fn answer(&self, answer: &mut serde_json::Value) {
        answer["lost"] = self.0.paths.clone().into();
        answer["more_lost"] = serde_json::json!({ "stripes": self.0.more_stripes, "paths": self.0.more_paths });
    }
}

impl Work {
    /// Notes kinds of problems on the devices that are gone, however they were mended: opening a pool mends labels by itself.
    fn note_mended(&mut self, before: &Report, after: &Report) {
        let left = plan_devices(after);
        self.devices.extend(plan_devices(before).into_iter().filter(|line| !left.contains(line)));
    }

    fn tell(&self, mode: FsckMode, out: &mut String) {
        let word = if mode == FsckMode::Plan { "would" } else { "did" };
        for action in self.actions.iter().filter(|action| action.loses).chain(&self.actions).take(TOLD) {
            let named = !action.names.paths.is_empty();
            let path = if named { format!(" [{}]", action.names) } else { String::new() };
            let loss = if action.loses { "LOSS: " } else { "" };
            let _ = writeln!(out, "{word}: {loss}{}: {}{path}: {}", action.id, action.what, action.will);
        }
        let more = self.more + self.actions.len().saturating_sub(TOLD) as u64;
        if more > 0 {
            let _ = writeln!(out, "{word}: {more} more; --json tells them as far as they are known");
        }
        for line in &self.devices {
            let _ = writeln!(out, "{word}: {line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_that_no_copy_has_right_is_a_problem() {
        let mut findings = Findings::default();
        copies(&VerifyReport::default(), &mut findings);
        assert_eq!(findings.total(), 0);
        copies(&VerifyReport { unreadable: vec![5, 6], ..VerifyReport::default() }, &mut findings);
        assert!(
            findings.has(Issue::MetadataWrong) && findings.listed()[0].what.starts_with("2 blocks"),
            "{findings:?}"
        );
    }

    #[test]
    fn what_is_not_named_is_counted() {
        let told = |owners: Owners| {
            let (mut text, mut answer) = (String::new(), serde_json::json!({}));
            let lost = Lost(owners);
            lost.tell(&mut text);
            lost.answer(&mut answer);
            (text, answer)
        };
        let all = Owners { paths: vec!["/a".to_owned(), "/b".to_owned()], ..Owners::default() };
        let (text, answer) = told(all.clone());
        assert_eq!(text, "LOST CONTENT: /a\nLOST CONTENT: /b\n");
        assert_eq!(answer, serde_json::json!({ "lost": ["/a", "/b"], "more_lost": { "stripes": 0, "paths": 0 } }));
        let (text, answer) = told(Owners { more_stripes: 3, more_paths: 2, ..all });
        assert!(text.contains("2 more names") && text.contains("3 more stripes are lost"), "{text}");
        assert_eq!(answer["more_lost"], serde_json::json!({ "stripes": 3, "paths": 2 }));

        let mut stripes = LostStripes::default();
        (1..=5).for_each(|id| stripes.add(StripeId(id), 2));
        assert_eq!((stripes.ids.as_slice(), stripes.more), ([StripeId(1), StripeId(2)].as_slice(), 3));
    }
}
