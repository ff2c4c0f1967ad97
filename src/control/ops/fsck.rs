//! `fsck`: the metadata in one snapshot, then, if asked, every shard.

use std::fmt::Write as _;

use crate::base::{Result, StripeId};
use crate::check::{self, Context, Findings, Issue, Report};
use crate::control::protocol::{Outcome, Progress};
use crate::control::server::Reply;
use crate::control::service::{PoolService, outcome};
use crate::format::rows::StripeRow;
use crate::pool::PoolState;
use crate::pool::stripe_io::{BadShard, Fault};

/// Stripes looked up at once.
const PAGE: usize = 1024;

/// Checks; nothing is changed.
pub fn fsck(service: &PoolService, data: bool, reply: &mut dyn Reply) -> Result<Outcome> {
    let mut context = context(&service.pool.state());
    let archives = service.store.archive_runs();
    context.metadata.extend(archives.iter().map(|run| (run.device, run.block.0, u64::from(run.blocks))));
    let mut findings = Findings::default();
    let mut deaf = Ok(());
    let mut checked = service.store.view(|view| {
        check::fsck(view, &context, &mut findings, &mut |progress| {
            let work = format!("checking {}", progress.pass);
            let told = reply.progress(&Progress { work, done: 0, total: 0, unit: String::new() });
            if deaf.is_ok() {
                deaf = told;
            }
        })
    })?;
    deaf?;
    if data {
        checked.shards = shards(service, &mut findings, reply)?;
    }
    let report = Report::new(checked, &findings);
    let name = service.pool.state().label.name.clone();
    outcome(u8::from(!report.clean), &report, text(&name, &report))
}

/// What the labels say about the devices.
fn context(state: &PoolState) -> Context {
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

/// Reads every shard and compares it with its checksums. Stripes made meanwhile may be left out.
fn shards(service: &PoolService, findings: &mut Findings, reply: &mut dyn Reply) -> Result<u64> {
    let ticket = service.work.begin("check of the data", "stripes")?;
    let store = &service.store;
    let (mut shards, mut done, mut after) = (0, 0, None);
    loop {
        let (page, last) = store.stripes_with(after, PAGE, |_| true)?;
        for id in page {
            if let Some((row, bad)) = store.verify(id)? {
                shards += row.placements.len() as u64;
                report(id, &row, &bad, findings);
            }
            done += 1;
            ticket.advance(done, 0, reply)?;
        }
        match last {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    store.verify_archives(&mut |verified| match verified {
        Ok((id, row, bad)) => {
            shards += row.placements.len() as u64;
            report(id, &row, &bad, findings);
        }
        Err(error) => findings.add(Issue::StripeLost, || error.to_string()),
    });
    Ok(shards)
}

fn report(id: StripeId, row: &StripeRow, bad: &[BadShard], findings: &mut Findings) {
    let bad: Vec<&BadShard> = bad.iter().filter(|shard| shard.fault != Fault::Avoided).collect();
    findings.expect(bad.len() <= usize::from(row.m), Issue::StripeLost, || {
        format!("stripe {id}: {} of {} shards are bad", bad.len(), row.placements.len())
    });
    for shard in bad {
        let issue = if shard.fault == Fault::Checksum { Issue::ShardCorrupt } else { Issue::ShardMissing };
        findings.add(issue, || place(id, usize::from(shard.index), row));
    }
}

fn place(id: StripeId, index: usize, row: &StripeRow) -> String {
    match row.placements.get(index) {
        Some(placement) => {
            format!("stripe {id}, shard {index}: device {}, block {}", placement.device, placement.block.0)
        }
        None => format!("stripe {id}, shard {index}"),
    }
}

fn text(name: &str, report: &Report) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        let _ = writeln!(out, "{}: {}", finding.id, finding.what);
    }
    for tally in &report.issues {
        let _ = writeln!(out, "{}: {} ({})", tally.id, tally.count, tally.meaning);
    }
    let checked = &report.checked;
    let _ = write!(
        out,
        "{name}: {}; {} inodes, {} names, {} extents, {} stripes, {} blocks, {} journal rows",
        if report.clean { "clean" } else { "PROBLEMS FOUND" },
        checked.inodes,
        checked.names,
        checked.extents,
        checked.stripes,
        checked.blocks,
        checked.journal
    );
    if checked.shards > 0 {
        let _ = write!(out, ", {} shards", checked.shards);
    }
    out.push('\n');
    out
}
