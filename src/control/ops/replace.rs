//! `device replace`: a new device takes an old one's place.

use std::path::Path;
use std::sync::Arc;

use super::maintain;
use crate::base::{Bytes, DeviceId, Error, Result, Uuid};
use crate::control::open::{absolute, when_released};
use crate::control::protocol::Outcome;
use crate::control::server::Reply;
use crate::control::service::{PoolService, outcome};
use crate::device::file::{self, PathKind};
use crate::pool::PoolState;

/// Puts the device at `new` in the place of member `old` (its number, its id, or where it is or was), and moves or
/// rebuilds there what was on the old one. Goes on when nobody listens any more.
pub fn replace(service: &PoolService, old: &str, new: &str, force: bool, reply: &mut dyn Reply) -> Result<Outcome> {
    let state = service.pool.state();
    let id = find_member(&state, old)?;
    let member = state.member(id).ok_or(Error::NotFound)?;
    let path = absolute(Path::new(new))?;
    let ticket = service.work.begin("replacement of a device", "stripes")?;
    let options = file::OpenOptions {
        engine: service.options.engine,
        clock: Arc::clone(&service.options.clock),
        create_size: wanted_size(&path, member.size)?,
        ..file::OpenOptions::default()
    };
    service.store.release_absent()?;
    let device = when_released(|| file::open(&path, &options))?;
    let progress = service.store.replace(id, device, force, &mut |progress| {
        // Half a replacement is worse than one that nobody watches.
        let _ = ticket.advance(progress.stripes, 0, reply);
        true
    })?;
    let shown = path.display().to_string();
    let text = format!("{shown} has taken the place of {}; {}", member.name(), maintain::text("moved", &progress));
    let mut answer = maintain::answer(&progress);
    answer["old"] = id.0.into();
    answer["path"] = shown.into();
    let level = if progress.lost > 0 { 2 } else { u8::from(progress.repaired.missing > 0) };
    outcome(level, &answer, text)
}

/// The size for an image or directory that holds no device yet: that of the one it replaces.
fn wanted_size(path: &Path, size: u64) -> Result<Option<Bytes>> {
    Ok(match file::probe(path)? {
        PathKind::Missing { .. } | PathKind::Directory { size: None, .. } => Some(Bytes(size)),
        PathKind::Image { size: Bytes(0), .. } => Some(Bytes(size)),
        _ => None,
    })
}

/// The member a user means.
pub fn find_member(state: &PoolState, text: &str) -> Result<DeviceId> {
    let by_number = text.parse().ok().map(DeviceId).filter(|id| state.member(*id).is_some());
    let uuid = Uuid::parse(text);
    let path = absolute(Path::new(text))?;
    let path = path.to_str();
    let found = by_number.or_else(|| {
        let same = |member: &&crate::pool::Member| {
            let hint = state.label.member(member.id).map(|entry| entry.path.as_str());
            Some(member.uuid) == uuid
                || member.device.as_ref().is_some_and(|device| Some(device.name()) == path)
                || hint.is_some_and(|hint| !hint.is_empty() && (Some(hint) == path || hint == text))
        };
        state.members.iter().find(same).map(|member| member.id)
    });
    found.ok_or_else(|| {
        let members: Vec<String> =
            state.members.iter().map(|member| format!("{} ({})", member.id, member.name())).collect();
        Error::Usage(format!("pool {} has no device {text}; its devices are {}", state.label.name, members.join(", ")))
    })
}
