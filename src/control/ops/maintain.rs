//! `scrub` and `rebuild`.

use std::path::{Path, PathBuf};

use crate::base::{Error, Result};
use crate::control::locate::{Spec, locate};
use crate::control::open::{open_device, when_released};
use crate::control::protocol::{Outcome, ScrubAction};
use crate::control::server::Reply;
use crate::control::service::{PoolService, outcome};
use crate::control::work::Ticket;
use crate::store::Store;
use crate::store::maintain::{Progress, Watch};

/// Begins, pauses, goes on with or asks after the scrub, which reads and verifies every shard and every metadata block of
/// every replica, and repairs what is bad.
pub fn scrub(service: &PoolService, action: ScrubAction, limit: u64, reply: &mut dyn Reply) -> Result<Outcome> {
    let scrub = &service.scrub;
    match action {
        ScrubAction::Wait => {
            scrub.start(limit)?;
            scrub.wait(reply)?;
            return Ok(scrubbed(service));
        }
        ScrubAction::Start | ScrubAction::Resume if service.mounted.is_none() => {
            return Err(Error::Usage(
                "the pool is not mounted, so there is nobody to do it in the background".to_owned(),
            ));
        }
        ScrubAction::Start => scrub.start(limit)?,
        ScrubAction::Resume => scrub.resume(limit)?,
        ScrubAction::Pause => scrub.pause()?,
        ScrubAction::Cancel => scrub.cancel()?,
        ScrubAction::Status => {}
    }
    let status = scrub.status();
    let text = status.as_ref().map_or_else(|| "there was no scrub yet".to_owned(), |status| status.text());
    outcome(0, &status, text)
}

/// The answer about a scrub that is not running any more. Level 2 besides when it did not come to its end: somebody paused or
/// cancelled it, or the pool was closed, and nobody knows what the rest is worth.
fn scrubbed(service: &PoolService) -> Outcome {
    let progress = service.scrub.progress();
    let state = service.scrub.status().map_or("none", |status| status.state);
    let finished = state == "finished";
    let mut said = text("verified", &progress);
    if !finished {
        said = format!("{state}: {said}");
    }
    let mut answer = answer(&progress);
    answer["state"] = state.into();
    Outcome { level: level(&progress, finished), answer, text: said }
}

fn level(progress: &Progress, finished: bool) -> u8 {
    let bad = progress.lost > 0 || progress.metadata_unreadable > 0;
    if bad || !finished { 2 } else { u8::from(progress.repaired.missing > 0) }
}

/// Rebuilds what lies on no device that is here, brings metadata replicas up to date, and lets members that came back
/// take part again.
pub fn rebuild(service: &PoolService, reply: &mut dyn Reply) -> Result<Outcome> {
    let ticket = service.work.begin("rebuild", "stripes")?;
    service.store.release_absent()?;
    let said = take_back(service);
    // The metadata first: it wants whole groups of blocks, the data takes what is left.
    service.store.mend_metadata()?;
    let progress = run(service, &ticket, reply, Store::rebuild)?;
    let level = if progress.lost > 0 { 2 } else { u8::from(progress.repaired.missing > 0) };
    let mut answer = answer(&progress);
    answer["devices"] = said.clone().into();
    let mut lines = said;
    lines.push(text("rebuilt", &progress));
    outcome(level, &answer, lines.join("\n"))
}

/// Lets members that were missing or had failed come back, if they can be found where they were, beside the others or
/// among the block devices. Says what became of each.
fn take_back(service: &PoolService) -> Vec<String> {
    let state = service.pool.state();
    let present: Vec<String> = state.present().map(|member| member.name()).collect();
    if present.len() == state.members.len() {
        return Vec::new();
    }
    let mut places: Vec<PathBuf> = state.label.members.iter().map(|member| PathBuf::from(&member.path)).collect();
    for place in &mut places {
        place.pop();
    }
    places.retain(|place| place.is_dir() && !place.starts_with("/dev"));
    places.sort();
    places.dedup();
    let located = match locate(&Spec::Uuid(state.label.uuid), &places) {
        Ok(located) => located,
        Err(error) => return vec![error.to_string()],
    };
    let back = located.paths.iter().filter(|path| !present.iter().any(|name| Path::new(name) == *path));
    let take = |path: &Path| service.store.take_back(when_released(|| open_device(path, &service.options))?);
    let said = |path: &PathBuf| match take(path) {
        Ok(id) => format!("{} is back as device {id}", path.display()),
        Err(error) => format!("{} is left out: {error}", path.display()),
    };
    back.map(said).collect()
}

/// Does the work, telling how far it is; it ends when nobody listens any more.
fn run(
    service: &PoolService,
    ticket: &Ticket,
    reply: &mut dyn Reply,
    work: impl FnOnce(&Store, Watch<'_>) -> Result<Progress>,
) -> Result<Progress> {
    let mut told = ticket.advance(0, 0, reply);
    let progress = work(&service.store, &mut |progress| {
        told = ticket.advance(progress.stripes, 0, reply);
        told.is_ok()
    })?;
    told.map(|()| progress)
}

/// The numbers for programs.
pub fn answer(progress: &Progress) -> serde_json::Value {
    serde_json::json!({
        "stripes": progress.stripes,
        "rewritten": progress.repaired.rewritten,
        "rebuilt": progress.repaired.rebuilt,
        "missing": progress.repaired.missing,
        "lost": progress.lost,
        "metadata_blocks": progress.metadata_blocks,
        "metadata_unreadable": progress.metadata_unreadable,
    })
}

/// The numbers for people.
pub fn text(did: &str, progress: &Progress) -> String {
    let repaired = progress.repaired;
    let mut text = format!(
        "{} stripes {did}: {} shards rewritten in place, {} rebuilt elsewhere",
        progress.stripes, repaired.rewritten, repaired.rebuilt
    );
    if progress.metadata_blocks > 0 {
        text.push_str(&format!(", {} metadata blocks repaired", progress.metadata_blocks));
    }
    if repaired.missing > 0 {
        text.push_str(&format!(
            "; {} SHARDS STILL MISSING: bring devices back or replace them (`argosfs device replace OLD NEW`), then run \
             `argosfs rebuild` again",
            repaired.missing
        ));
    }
    if progress.lost > 0 {
        text.push_str(&format!(
            "; {} STRIPES HAVE TOO FEW GOOD SHARDS: `argosfs damage` names the files",
            progress.lost
        ));
    }
    if progress.metadata_unreadable > 0 {
        text.push_str(&format!(
            "; {} METADATA BLOCKS ARE UNREADABLE, on every device that should have them, and some of them are in use: save what is \
             new while it can be read, then run `argosfs fsck`",
            progress.metadata_unreadable
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_that_cannot_vouch_for_everything_says_so() {
        let well = Progress::default();
        assert_eq!((level(&well, true), level(&well, false)), (0, 2));
        let unreadable = Progress { metadata_unreadable: 3, ..well };
        assert_eq!(level(&unreadable, true), 2);
        let said = text("verified", &unreadable);
        assert!(said.contains("3 METADATA BLOCKS ARE UNREADABLE") && said.contains("argosfs fsck"), "{said}");
        assert!(!text("verified", &well).contains("UNREADABLE"));
    }
}
