//! `recover`: for pools that cannot be opened, so it opens them itself.

use std::fmt::Write as _;
use std::sync::Arc;

use super::maintain;
use crate::base::{Entropy, Error, Result, SystemEntropy, Timestamp};
use crate::check::{self, Recovered};
use crate::control::locate::Located;
use crate::control::open::{OpenOptions, open_pool};
use crate::control::protocol::{Outcome, Progress};
use crate::control::server::Reply;
use crate::control::service::outcome;
use crate::store::Store;

/// Files that are named one by one to people; programs are told all.
const NAMED: usize = 100;

/// Makes the metadata of the pool again, then checks and verifies what came of it. Returns what the user should know, too.
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
    if !force {
        refuse_if_not_needed(located, options)?;
    }
    let (pool, mut notes) = open_pool(located, options)?;
    let mut told = Ok(());
    let mut watch = |what: &'static str, done, total| {
        told = reply.progress(&Progress { work: what.to_owned(), done, total, unit: "blocks".to_owned() });
        told.is_ok()
    };
    let recovered = check::recover(&pool, options.clock.clone(), SystemEntropy.next_u64(), &mut watch)?;
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
    let mut lost = !recovered.lost.is_empty();
    if let Some(progress) = &verified {
        let _ = write!(text, "\n{}", maintain::text("verified", progress));
        answer["verified"] = maintain::answer(progress);
        lost |= progress.lost > 0;
    }
    let level = if lost { 2 } else { u8::from(!recovered.newer.is_empty()) };
    Ok((outcome(level, &answer, text)?, notes))
}

/// Fails when the metadata can be opened, and when a device that is missing may hold a copy of it.
fn refuse_if_not_needed(located: &Located, options: &OpenOptions) -> Result<()> {
    let (pool, _) = open_pool(located, &OpenOptions { read_only: true, ..options.clone() })?;
    let state = pool.state();
    let Err(why) = Store::open(Arc::clone(&pool), options.clock.clone(), SystemEntropy.next_u64()) else {
        return Err(Error::Usage(format!(
            "the metadata of pool {} can be opened: `argosfs fsck` checks it, `argosfs mount` mounts it. With --force it is made \
             again from the newest archive all the same, and what is newer becomes uncertain",
            state.label.name
        )));
    };
    let missing = state.members.len() - state.present().count();
    match missing {
        0 => Ok(()),
        missing => Err(Error::Unavailable(format!(
            "{why}. {missing} devices of pool {} are missing and may hold a copy: bring them back, or say --force if they are gone \
             for good",
            state.label.name
        ))),
    }
}

fn text(recovered: &Recovered) -> String {
    let Recovered { transaction, created, rows, stripes, shards_moved, shards_gone, newer_stripes, .. } = recovered;
    let made = Timestamp { seconds: *created, nanos: 0 };
    let mut out =
        format!("recovered from the archive of {made} (transaction {transaction}): {rows} rows, {stripes} stripes");
    if shards_moved + shards_gone > 0 {
        let _ = write!(out, "; {shards_moved} shards had moved since, {shards_gone} are gone");
    }
    if recovered.unreadable_blocks > 0 {
        let _ = write!(out, "; {} BLOCKS COULD NOT BE READ", recovered.unreadable_blocks);
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
        let _ = write!(out, "\n  {} ({} bytes, inode {})", file.path, file.bytes, file.ino);
    }
    if files.len() > NAMED {
        let _ = write!(out, "\n  and {} more: --json names all", files.len() - NAMED);
    }
}
