//! `recover` and `import-meta`: for pools that cannot be opened, so they open them themselves.

use std::fmt::Write as _;
use std::sync::Arc;

use super::maintain;
use crate::base::{Entropy, Error, Result, SystemEntropy, Timestamp};
use crate::check::{self, Export, Old, Origin, Pieces, Recovered, Watch};
use crate::control::locate::Located;
use crate::control::open::{OpenOptions, open_pool, open_without_metadata};
use crate::control::protocol::{Outcome, Progress};
use crate::control::server::Reply;
use crate::control::service::outcome;
use crate::pool::{Member, Pool, PoolState};
use crate::store::{self, Store};

/// Files that are named one by one to people; programs are told all.
const NAMED: usize = 100;

/// Makes the metadata of the pool again from its newest archive, then checks and verifies what came of it. Returns what the
/// user should know, too.
///
/// # Errors
/// [`Error::Usage`] when the metadata can be opened, unless `force`.
pub fn recover(
    located: &Located,
    options: &OpenOptions,
    force: bool,
    scrub: bool,
    reply: &mut dyn Reply,
) -> Result<(Outcome, Vec<String>)> {
    let old = worth_of_old(located, options, "the newest archive", force)?;
    make_again(located, options, scrub, reply, |pool, watch| {
        check::recover(pool, old, options.clock.clone(), SystemEntropy.next_u64(), watch)
    })
}

/// The same from an export in a file, which is read and verified as a whole before the pool is opened for writing.
///
/// # Errors
/// As [`recover`]; [`Error::Usage`] when the export is of another pool, [`Error::Corrupt`] when it is not what was written.
pub fn import(
    located: &Located,
    options: &OpenOptions,
    pieces: &Pieces<'_>,
    force: bool,
    scrub: bool,
    reply: &mut dyn Reply,
) -> Result<(Outcome, Vec<String>)> {
    let export = verify(located, pieces, reply)?;
    let old = worth_of_old(located, options, "the export", force)?;
    make_again(located, options, scrub, reply, |pool, watch| {
        check::import(pool, export, old, options.clock.clone(), SystemEntropy.next_u64(), watch)
    })
}

/// Verifies an export, and tells what it is and whether it would be imported. Nothing is changed.
pub fn import_dry_run(
    located: &Located,
    options: &OpenOptions,
    pieces: &Pieces<'_>,
    reply: &mut dyn Reply,
) -> Result<Outcome> {
    let export = verify(located, pieces, reply)?;
    let refused = worth_of_old(located, options, "the export", false).err().map(|error| error.to_string());
    let Export { head, summary, stripes, .. } = &export;
    let mut digest = String::new();
    crate::format::json::hex(&mut digest, &summary.digest);
    let mut text = format!(
        "a whole export of pool {} ({}), transaction {}: {} rows, {stripes} stripes, {} bytes, blake3 {digest}\n",
        head.name, head.pool, head.txn, summary.rows, summary.bytes
    );
    let _ = match &refused {
        Some(why) => write!(text, "It would not be imported without --force: {why}"),
        None => write!(text, "It would be imported; nothing was changed."),
    };
    let answer = serde_json::json!({
        "pool": { "name": head.name, "uuid": head.pool.to_string() }, "transaction": head.txn.0, "rows": summary.rows,
        "stripes": stripes, "bytes": summary.bytes, "blake3": digest, "refused": refused,
    });
    outcome(0, &answer, text)
}

fn verify<'p>(located: &Located, pieces: &'p Pieces<'p>, reply: &mut dyn Reply) -> Result<Export<'p>> {
    let work = "verifying the export".to_owned();
    reply.progress(&Progress { work, done: 0, total: 0, unit: "blocks".to_owned() })?;
    Export::verify(located.uuid, pieces)
}

fn make_again(
    located: &Located,
    options: &OpenOptions,
    scrub: bool,
    reply: &mut dyn Reply,
    how: impl FnOnce(&Arc<Pool>, &mut Watch<'_>) -> Result<Recovered>,
) -> Result<(Outcome, Vec<String>)> {
    let (pool, mut notes) = open_without_metadata(located, options)?;
    let mut told = Ok(());
    let mut watch = |what: &'static str, done, total| {
        told = reply.progress(&Progress { work: what.to_owned(), done, total, unit: "blocks".to_owned() });
        told.is_ok()
    };
    let recovered = how(&pool, &mut watch)?;
    told?;
    let store = Store::open(Arc::clone(&pool), options.clock.clone(), SystemEntropy.next_u64())?;
    let verified = match scrub {
        true => Some(store.scrub(&mut |progress| {
            let work = "verifying".to_owned();
            let progress = Progress { work, done: progress.stripes, total: 0, unit: "stripes".to_owned() };
            reply.progress(&progress).is_ok()
        })?),
        false => None,
    };
    check::archive(&store, pool.uuid(), options.clock.now().seconds, &|| true)?;
    store.close()?;
    notes.extend(pool.take_notes());

    let mut text = text(&recovered);
    let mut answer = serde_json::to_value(&recovered).map_err(|_| Error::Invalid("an answer that is not JSON"))?;
    if let Some(progress) = &verified {
        let _ = write!(text, "\n{}", maintain::text("verified", progress));
        answer["verified"] = maintain::answer(progress);
    }
    Ok((outcome(level(&recovered, verified.as_ref()), &answer, text)?, notes))
}

/// 2: something is lost; 1: something is uncertain, also because nobody knows what was in blocks that could not be read.
fn level(recovered: &Recovered, verified: Option<&store::maintain::Progress>) -> u8 {
    let lost = !recovered.lost.is_empty() || verified.is_some_and(|progress| progress.lost > 0);
    let uncertain = !recovered.newer.is_empty() || recovered.unreadable_blocks > 0;
    if lost { 2 } else { u8::from(uncertain) }
}

/// What the metadata is worth that there is. Unless `force`, this fails when it can be opened, and when a device that is
/// missing or stale may hold a copy of it. `from`: what it would be made again from.
fn worth_of_old(located: &Located, options: &OpenOptions, from: &str, force: bool) -> Result<Old> {
    let (pool, _) = open_pool(located, &OpenOptions { read_only: true, ..options.clone() })?;
    let state = pool.state();
    let why = match Store::open(Arc::clone(&pool), options.clock.clone(), SystemEntropy.next_u64()) {
        Err(_) if force => return Ok(Old::Useless),
        Err(why) => why,
        Ok(_) if force => return Ok(Old::Opens),
        Ok(_) => {
            return Err(Error::Usage(format!(
                "the metadata of pool {} can be opened: `argosfs fsck` checks it, `argosfs mount` mounts it. With --force it is \
                 made again from {from} all the same, and what is newer becomes uncertain",
                state.label.name
            )));
        }
    };
    match may_hold_a_copy(&state, from) {
        None => Ok(Old::Useless),
        Some(doubts) => Err(Error::Unavailable(format!("{why}. {doubts}"))),
    }
}

/// Which devices may hold a copy of the metadata that nobody has looked at: those that are missing, and those that are here but
/// have been absent, so that what is on them does not count.
fn may_hold_a_copy(state: &PoolState, from: &str) -> Option<String> {
    let name = &state.label.name;
    let mut doubts = Vec::new();
    let missing = state.members.len() - state.present().count();
    if missing > 0 {
        doubts.push(format!(
            "{missing} devices of pool {name} are missing and may hold a copy: bring them back, or say --force if they are gone for \
             good"
        ));
    }
    let replicas = &state.label.meta.replicas;
    let is_replica = |member: &&Member| replicas.iter().any(|replica| replica.device == member.id.0);
    let stale: Vec<String> =
        state.present().filter(|member| !member.is_current()).filter(is_replica).map(Member::name).collect();
    if !stale.is_empty() {
        doubts.push(format!(
            "{} of pool {name} had been absent and may hold an older copy, from when it was last here: look at it with the other \
             devices taken away (`argosfs mount -o ro,degraded`), or say --force to make the metadata again from {from} all the same",
            stale.join(", ")
        ));
    }
    if doubts.is_empty() { None } else { Some(doubts.join(". ")) }
}

fn text(recovered: &Recovered) -> String {
    let Recovered { transaction, created, rows, stripes, shards_moved, shards_gone, newer_stripes, .. } = recovered;
    let mut out = match recovered.source {
        Origin::Archive => "recovered from the archive".to_owned(),
        Origin::Export => "recovered from the export".to_owned(),
    };
    if let Some(seconds) = *created {
        let _ = write!(out, " of {}", Timestamp { seconds, nanos: 0 });
    }
    let _ = write!(out, " (transaction {transaction}): {rows} rows, {stripes} stripes");
    if shards_moved + shards_gone > 0 {
        let _ = write!(out, "; {shards_moved} shards had moved since, {shards_gone} are gone");
    }
    if recovered.unreadable_blocks > 0 {
        let _ = write!(
            out,
            "; {} BLOCKS COULD NOT BE READ: what was newer in them is missing",
            recovered.unreadable_blocks
        );
    }
    let _ = write!(
        out,
        "\nWhat was named, renamed, removed or written in small pieces after that moment is not in it. {newer_stripes} stripes \
         are newer."
    );
    if !recovered.newer.is_empty() {
        let _ = write!(
            out,
            "\nNEWER AND UNCERTAIN: {} files got content from these stripes ({} of them had no name and are in lost+found):",
            recovered.newer.len(),
            recovered.nameless
        );
        list(&mut out, &recovered.newer);
    }
    if !recovered.lost.is_empty() {
        let _ = write!(out, "\nLOST, with the devices that are here: content of {} files:", recovered.lost.len());
        list(&mut out, &recovered.lost);
    }
    out
}

fn list(out: &mut String, files: &[check::Affected]) {
    for file in files.iter().take(NAMED) {
        let _ = write!(out, "\n  {} ({} bytes, inode {})", file.names, file.bytes, file.ino);
    }
    if files.len() > NAMED {
        let _ = write!(out, "\n  and {} more: --json names all", files.len() - NAMED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_read_is_uncertain() {
        let recovered = Recovered {
            source: Origin::Archive,
            transaction: 1,
            created: None,
            rows: 1,
            stripes: 0,
            shards_moved: 0,
            shards_gone: 0,
            newer_stripes: 0,
            newer: Vec::new(),
            nameless: 0,
            lost: Vec::new(),
            unreadable_blocks: 0,
        };
        assert_eq!(level(&recovered, None), 0);
        let unreadable = Recovered { unreadable_blocks: 1, ..recovered.clone() };
        assert_eq!(level(&unreadable, None), 1);
        assert!(text(&unreadable).contains("1 BLOCKS COULD NOT BE READ"));
        let progress = store::maintain::Progress { lost: 1, ..Default::default() };
        assert_eq!(level(&unreadable, Some(&progress)), 2);
        let file = check::Affected { ino: 5, names: check::Paths::default(), bytes: 1 };
        assert_eq!(level(&Recovered { newer: vec![file.clone()], ..recovered.clone() }, None), 1);
        assert_eq!(level(&Recovered { lost: vec![file], ..recovered }, None), 2);
    }
}
