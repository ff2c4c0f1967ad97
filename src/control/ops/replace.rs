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
///
/// # Errors
/// [`Error::Usage`] when it is none or could be several: where one is, another one may have been.
pub fn find_member(state: &PoolState, text: &str) -> Result<DeviceId> {
    let by_number = text.parse().ok().map(DeviceId).filter(|id| state.member(*id).is_some());
    if let Some(id) = by_number {
        return Ok(id);
    }
    let uuid = Uuid::parse(text);
    let path = absolute(Path::new(text))?;
    let path = path.to_str();
    let meant = |member: &&crate::pool::Member| {
        let hint = state.label.member(member.id).map(|entry| entry.path.as_str());
        Some(member.uuid) == uuid
            || member.device.as_ref().is_some_and(|device| Some(device.name()) == path)
            || hint.is_some_and(|hint| !hint.is_empty() && (Some(hint) == path || hint == text))
    };
    let list = |members: &[&crate::pool::Member]| {
        let shown = members.iter().map(|member| match member.device.is_some() {
            true => format!("{} ({})", member.id, member.name()),
            false => format!("{} (missing, {})", member.id, member.uuid),
        });
        shown.collect::<Vec<_>>().join(", ")
    };
    let name = &state.label.name;
    match &state.members.iter().filter(meant).collect::<Vec<_>>()[..] {
        [member] => Ok(member.id),
        [] => {
            let members: Vec<_> = state.members.iter().collect();
            Err(Error::Usage(format!("pool {name} has no device {text}; its devices are {}", list(&members))))
        }
        several => Err(Error::Usage(format!(
            "{text} is or was the place of several devices of pool {name}: {}; say the number or the UUID of the one you mean",
            list(several)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Prng;
    use crate::device::InlineEngine;
    use crate::device::sim::SimWorld;
    use crate::pool::{FormatOptions, Pool};

    /// The device that is there now may be the last that anybody wants to give up.
    #[test]
    fn a_place_where_several_devices_were_names_none_of_them() {
        let options = FormatOptions::small(1, 1);
        let devices = SimWorld::new(1, 2, 16 << 20).devices();
        let pool = Pool::format(&devices, &options, Arc::new(InlineEngine), Box::new(Prng::new(1))).unwrap();
        let found = |state: &PoolState, text: &str| find_member(state, text).map_err(|error| error.to_string());
        let mut state = PoolState { label: pool.state().label.clone(), members: pool.state().members.clone() };
        assert_eq!(found(&state, "sim0"), Ok(DeviceId(0)));
        assert!(found(&state, "sim7").unwrap_err().contains("its devices are 0 (sim0), 1 (sim1)"));
        // The second one is gone, and was last seen where the first one is now.
        state.members[1].device = None;
        state.label.members[1].path = "sim0".to_owned();
        let refused = found(&state, "sim0").unwrap_err();
        let uuid = state.members[1].uuid.to_string();
        assert!(refused.contains(&format!("several devices of pool tank: 0 (sim0), 1 (missing, {uuid})")), "{refused}");
        assert_eq!((found(&state, "1"), found(&state, &uuid)), (Ok(DeviceId(1)), Ok(DeviceId(1))));
    }
}
