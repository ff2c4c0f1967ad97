//! `damage`: what no redundancy could save, file by file, and what is to become of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

use crate::base::file::Caller;
use crate::base::{Error, Ino, Result, Timestamp};
use crate::check;
use crate::control::protocol::{DamageAction, Outcome};
use crate::control::service::{PoolService, outcome};
use crate::fs::{Fs, Options};

/// Ranges of a file that are shown to people.
const SHOWN: usize = 8;

/// A file with content that cannot be read.
#[derive(Serialize)]
struct DamagedFile {
    #[serde(flatten)]
    names: check::Paths,
    ino: u64,
    /// When the first of it was found, in seconds since 1970.
    found: i64,
    /// First byte and length of each range.
    ranges: Vec<(u64, u64)>,
}

/// Lists the damage, or does something about it.
pub fn damage(service: &PoolService, action: &DamageAction) -> Result<Outcome> {
    let (path, delete) = match action {
        DamageAction::List => return list(service),
        DamageAction::Accept { path } => (path, false),
        DamageAction::Delete { path } => (path, true),
    };
    let fs = match &service.mounted {
        Some(mounted) => Arc::clone(&mounted.fs),
        None => Arc::new(Fs::open(Arc::clone(&service.store), Options::default())?),
    };
    let (parent, name, ino) = find(service, &fs, path)?;
    let nothing = || Error::Usage(format!("nothing of {path} is damaged: `argosfs damage` lists what is"));
    let lost = if delete {
        // What was written there just now is not lost.
        fs.syncfs()?;
        let lost = fs.lost(ino)?;
        if lost == 0 {
            return Err(nothing());
        }
        fs.unlink_inode(&Caller::ROOT, parent, &name, ino).map_err(|error| match error {
            Error::NotFound => {
                Error::Usage(format!("{path} was replaced meanwhile: `argosfs damage` lists what is left"))
            }
            other => other,
        })?;
        lost
    } else {
        match fs.give_up_lost(&Caller::ROOT, ino)? {
            0 => return Err(nothing()),
            lost => lost,
        }
    };
    if service.mounted.is_none() {
        fs.forget_all();
    }
    fs.reclaim_waiting()?;
    fs.syncfs()?;
    // What nobody has any more is not damaged any more.
    service.store.damage()?;
    let mut answer = serde_json::json!({ "path": path, "bytes": lost, "deleted": delete });
    let text = match delete {
        true => {
            let left = names_left(service, fs.inner(ino)?)?;
            answer["left"] = left.paths.clone().into();
            match left.paths.is_empty() {
                true => format!("{path} is removed"),
                false => format!("the name {path} is removed; the damaged content is still there as {left}"),
            }
        }
        false => format!("{lost} bytes of {path} read as zeros from now on"),
    };
    outcome(0, &answer, text)
}

/// The names that a file still has.
fn names_left(service: &PoolService, ino: Ino) -> Result<check::Paths> {
    let mut names = service.store.view(|view| check::paths(view, &[ino].into()))?.remove(&ino).unwrap_or_default();
    names.paths.retain(|path| path.starts_with('/'));
    Ok(names)
}

/// What each file has lost, and when the first of it was found.
fn damage_of(service: &PoolService) -> Result<BTreeMap<Ino, (Timestamp, Vec<Range<u64>>)>> {
    let mut files: BTreeMap<Ino, (Timestamp, Vec<Range<u64>>)> = BTreeMap::new();
    for damaged in service.store.damage()? {
        for (ino, ranges) in damaged.lost {
            let file = files.entry(ino).or_insert_with(|| (damaged.found, Vec::new()));
            file.0 = file.0.min(damaged.found);
            file.1.extend(ranges);
        }
    }
    files.values_mut().for_each(|(_, ranges)| ranges.sort_by_key(|range| range.start));
    Ok(files)
}

fn list(service: &PoolService) -> Result<Outcome> {
    let damage = damage_of(service)?;
    let inos: BTreeSet<Ino> = damage.keys().copied().collect();
    let mut paths = service.store.view(|view| check::paths(view, &inos))?;
    let files: Vec<DamagedFile> = damage
        .into_iter()
        .map(|(ino, (found, ranges))| DamagedFile {
            names: paths.remove(&ino).unwrap_or_default(),
            ino: ino.0,
            found: found.seconds,
            ranges: ranges.into_iter().map(|range| (range.start, range.end - range.start)).collect(),
        })
        .collect();
    let mut text = String::new();
    for file in &files {
        let lost: u64 = file.ranges.iter().map(|(_, length)| length).sum();
        let found = Timestamp { seconds: file.found, nanos: 0 };
        let _ = write!(text, "{}: {lost} bytes lost, found {found}:", file.names);
        for (start, length) in file.ranges.iter().take(SHOWN) {
            let _ = write!(text, " {start}+{length}");
        }
        text.push_str(if file.ranges.len() > SHOWN { " ..\n" } else { "\n" });
    }
    if files.is_empty() {
        text.push_str("nothing is known to be damaged");
    } else {
        text.push_str("If a missing device has it, bring that back and run `argosfs rebuild`. Otherwise restore the files from a backup; ");
        text.push_str("`argosfs damage --delete PATH` removes one (each name by itself), `--accept PATH` keeps the rest of it and reads zeros where it is lost");
    }
    outcome(if files.is_empty() { 0 } else { 2 }, &serde_json::json!({ "files": files }), text)
}

/// Directory, name and inode of the file at a path, as `damage` lists it or below the mount point.
fn find(service: &PoolService, fs: &Fs, path: &str) -> Result<(Ino, Vec<u8>, Ino)> {
    let mounted = service.mounted.as_ref().map(|mounted| mounted.status.mountpoint.as_str()).unwrap_or("");
    let inside = path.strip_prefix(mounted).filter(|rest| !mounted.is_empty() && rest.starts_with('/')).unwrap_or(path);
    let names = check::names(inside)
        .ok_or_else(|| Error::Usage(format!("{path} is not a path: say it as `argosfs damage` lists it")))?;
    let missing = || Error::Usage(format!("there is no {path} in the pool"));
    let Some((last, directories)) = names.split_last() else { return Err(missing()) };
    let lookup = |parent, name: &[u8]| match fs.lookup(&Caller::ROOT, parent, name) {
        Ok(entry) => {
            fs.forget(entry.attr.ino, 1);
            Ok(entry.attr.ino)
        }
        Err(Error::NotFound | Error::NotDirectory) => Err(missing()),
        Err(error) => Err(error),
    };
    let parent = directories.iter().try_fold(Ino::ROOT, |parent, name| lookup(parent, name))?;
    Ok((parent, last.clone(), lookup(parent, last)?))
}
