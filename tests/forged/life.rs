//! What is done with a forged image: everything that somebody may do with a pool.

use std::collections::BTreeSet;
use std::sync::Arc;

use argosfs::base::file::{Caller, FallocateMode, FileType, RenameMode, SetAttr, Sink, Whence, XattrSet};
use argosfs::base::{Error, Ino, Result};
use argosfs::check::{ExportHeader, export};
use argosfs::control::open::OpenOptions;
use argosfs::control::protocol::{Outcome, Progress};
use argosfs::control::server::Reply;
use argosfs::control::service::{FsckMode, Opening, PoolService, fsck_opened};
use argosfs::device::engine::EngineChoice;
use argosfs::device::sim::SimWorld;
use argosfs::fs::{Fs, Options};
use argosfs::store::Store;

use crate::image::{self, Image, TOP};
use crate::mutation::{forge, forges_pages};

/// What was found wrong.
type Verdict = Result<(), String>;

/// Inodes that are looked at.
const NODES: usize = 60;
/// Steps after which background work must have come to its end.
const STEPS: usize = 500;

const ROOT: Caller = Caller::ROOT;

/// What is done with an image: bits of the first byte.
struct Flags(u8);

impl Flags {
    /// It is not mounted before it is checked.
    const ONLY_CHECKED: u8 = 1;
    /// What is checked is what was left by its use.
    const AFTER_USE: u8 = 2;
    const UNTRUSTED: u8 = 4;
    /// Every shard is read.
    const WITH_DATA: u8 = 8;
    /// The repair is planned by itself before.
    const PLANNED: u8 = 16;

    fn has(&self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

/// Forges an image as `bytes` say and uses it.
pub fn live(image: &Image, bytes: &[u8]) -> Verdict {
    let Some((flags, mutations)) = bytes.split_first() else { return Ok(()) };
    let Some(world) = forge(image, mutations) else { return Ok(()) };
    let flags = Flags(*flags);
    let mut checked = world.fork();
    if !flags.has(Flags::ONLY_CHECKED) {
        mount(&world)?;
        // The process is killed, or it never was there.
        if flags.has(Flags::AFTER_USE) {
            checked = world.fork();
        }
    }
    // The database must have checked all of itself before anybody wrote: what is copied from a forged page looks genuine.
    let sure = flags.has(Flags::UNTRUSTED) && (flags.has(Flags::ONLY_CHECKED) || !flags.has(Flags::AFTER_USE));
    match mend(&checked, &flags) {
        Err(_) if forges_pages(mutations) && !sure => Ok(()),
        told => told,
    }
}

/// An error has something to say.
fn told(error: &Error) -> Verdict {
    let text = error.to_string();
    if text.trim().is_empty() || text.len() > 10_000 {
        return Err(format!("an error that tells nothing: {error:?}"));
    }
    Ok(())
}

/// Mounts, reads everything, writes everywhere, and lets the background work run.
fn mount(world: &SimWorld) -> Verdict {
    let store = match image::open(world, false, false) {
        Ok((_, store)) => store,
        Err(error) => return told(&error),
    };
    let fs = match Fs::open(store.clone(), Options::default()) {
        Ok(fs) => fs,
        Err(error) => return told(&error),
    };
    let nodes = walk(&fs).0;
    write(&fs, &nodes);
    let _ = walk(&fs);
    background(&fs, &store)
}

/// Reads what can be reached. Returns directories and others, and what could not be read.
fn walk(fs: &Fs) -> ((Vec<Ino>, Vec<Ino>), Vec<Error>) {
    let (mut seen, mut open) = (BTreeSet::from([TOP]), vec![TOP]);
    let (mut nodes, mut errors) = ((Vec::new(), Vec::new()), Vec::new());
    while let Some(node) = open.pop() {
        let attr = match fs.getattr(node) {
            Ok(attr) => attr,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        let list = fs.list_xattr(&ROOT, node);
        for name in list.iter().flat_map(|list| list.split(|byte| *byte == 0)).filter(|name| !name.is_empty()) {
            errors.extend(fs.get_xattr(&ROOT, node, name).err());
        }
        errors.extend(list.err());
        match attr.kind() {
            FileType::Directory => {
                nodes.0.push(node);
                let mut names = Vec::new();
                let listed = fs.readdir(node, 0, &mut |entry| {
                    if !matches!(entry.name, b"." | b"..") {
                        names.push(entry.name.to_vec());
                    }
                    if names.len() < NODES { Sink::Taken } else { Sink::Full }
                });
                errors.extend(listed.err());
                for name in names {
                    match fs.lookup(&ROOT, node, &name) {
                        Ok(entry) if seen.len() < NODES && seen.insert(entry.attr.ino) => open.push(entry.attr.ino),
                        Ok(_) => {}
                        Err(error) => errors.push(error),
                    }
                }
            }
            FileType::Symlink => {
                nodes.1.push(node);
                errors.extend(fs.readlink(node).err());
            }
            kind => {
                nodes.1.push(node);
                if kind == FileType::Regular {
                    read(fs, node, &mut errors);
                }
            }
        }
    }
    (nodes, errors)
}

fn read(fs: &Fs, node: Ino, errors: &mut Vec<Error>) {
    let mut bytes = vec![0; 128 << 10];
    let mut at = 0;
    for _ in 0..12 {
        errors.extend(fs.read(node, at, &mut bytes).err());
        match fs.seek(node, at + bytes.len() as u64, Whence::Data) {
            Ok(data) => at = data,
            Err(Error::NoData) => return,
            Err(error) => return errors.push(error),
        }
    }
}

/// Some of everything, everywhere; what is refused is refused.
fn write(fs: &Fs, (dirs, others): &(Vec<Ino>, Vec<Ino>)) {
    let bytes: Vec<u8> = (0..40_000u32).map(|at| (at % 251) as u8).collect();
    for (at, node) in others.iter().enumerate().take(12) {
        let size = fs.getattr(*node).map_or(0, |attr| attr.size);
        let _ = fs.write(&ROOT, *node, 100, &bytes[..3000], false);
        let _ = fs.write(&ROOT, *node, size, &bytes, at % 2 == 0);
        let _ = fs.set_xattr(&ROOT, *node, b"user.new", &bytes[..200], XattrSet::Any, false);
        let _ = fs.fallocate(&ROOT, *node, 5000, 9000, FallocateMode::PunchHole);
        let _ = fs.fallocate(&ROOT, *node, size / 2, 9000, FallocateMode::ZeroRange { keep_size: false });
        let shrink = SetAttr { size: Some(size / 3), mode: Some(0o640), ..SetAttr::default() };
        let _ = fs.setattr(&ROOT, *node, &shrink);
        let _ = fs.fsync(*node, false);
        if let Some(to) = others.get(at + 1) {
            let _ = fs.copy_file_range(&ROOT, *node, 0, *to, 4096, 30_000);
        }
    }
    for (at, dir) in dirs.iter().enumerate().take(6) {
        if let Ok(made) = fs.mknod(&ROOT, *dir, b"made", 0o100_644, 0) {
            let _ = fs.write(&ROOT, made.attr.ino, 0, &bytes, false);
            let _ = fs.rename(&ROOT, *dir, b"made", TOP, b"moved", RenameMode::Replace);
            let _ = fs.link(&ROOT, made.attr.ino, *dir, b"linked");
        }
        let _ = fs.mkdir(&ROOT, *dir, b"below", 0o755);
        let _ = fs.symlink(&ROOT, *dir, b"pointer", b"made");
        let mut names = Vec::new();
        let _ = fs.readdir(*dir, 0, &mut |entry| {
            names.push(entry.name.to_vec());
            if names.len() < 20 { Sink::Taken } else { Sink::Full }
        });
        for name in names.iter().filter(|name| name.first() != Some(&b'.')).skip(at % 2).step_by(3) {
            let _ = fs.unlink(&ROOT, *dir, name);
            let _ = fs.rmdir(&ROOT, *dir, name);
        }
        let _ = fs.fsync(*dir, false);
    }
    fs.forget_all();
    let _ = fs.statfs();
    let _ = fs.syncfs();
}

/// What threads of a mounted filesystem do. Each has an end.
fn background(fs: &Fs, store: &Store) -> Verdict {
    let ends = |what: &str, step: &mut dyn FnMut() -> Result<bool>| {
        for _ in 0..STEPS {
            if !step().unwrap_or(false) {
                return Ok(());
            }
        }
        Err(format!("{what} comes to no end"))
    };
    let _ = fs.tick();
    ends("reclaiming", &mut || fs.reclaim_some())?;
    ends("repairing", &mut || store.repair_queued().map(|repaired| repaired > 0))?;
    ends("tidying", &mut || store.tidy_step(true))?;
    ends("discarding", &mut || store.discard_step())?;
    let _ = store.damage();
    let _ = store.rebuild(&mut |_| true);
    let _ = store.scrub(&mut |_| true);
    let uuid = store.pool().map(|pool| pool.uuid()).unwrap_or_default();
    let _ = argosfs::check::archive(store, uuid, 0, &|| true);
    let _ = store.meta().checkpoint();
    let _ = fs.tick();
    Ok(())
}

/// Listens to nothing.
struct Quiet;

impl Reply for Quiet {
    fn progress(&mut self, _: &Progress) -> Result<()> {
        Ok(())
    }

    fn data(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

fn fsck(world: &SimWorld, data: bool, untrusted: bool, mode: FsckMode) -> Result<Outcome> {
    let open = |opening: Opening| {
        let (pool, store) = image::open(world, opening.read_only, opening.untrusted)?;
        let options = OpenOptions::new(opening.read_only, EngineChoice::Inline);
        Ok((PoolService::unmounted(pool, store, options), Vec::new()))
    };
    fsck_opened(&open, data, untrusted, mode, &mut Quiet).map(|(outcome, _)| outcome)
}

/// What a check of everything comes to.
#[cfg(test)]
pub fn level(world: &SimWorld) -> u8 {
    fsck(world, true, true, FsckMode::Check).expect("it can be checked").level
}

/// Ids of what was found.
fn issues(outcome: &Outcome) -> Vec<String> {
    let issues = outcome.answer["issues"].as_array().into_iter().flatten();
    issues.filter_map(|issue| issue["id"].as_str()).map(str::to_owned).collect()
}

/// What no repair of rows can mend: bytes that no device has any more, and devices that are no members any more.
const BEYOND_REPAIR: [&str; 8] = [
    "stripe-lost",
    "stripe-degraded",
    "shard-missing",
    "shard-corrupt",
    "member-missing",
    "member-stale",
    "metadata-wrong",
    "metadata-replica-missing",
];

/// Checks, plans, repairs; what is said to be clean then can be used and is clean.
fn mend(world: &SimWorld, flags: &Flags) -> Verdict {
    let (data, untrusted) = (flags.has(Flags::WITH_DATA), flags.has(Flags::UNTRUSTED));
    let first = match fsck(world, data, untrusted, FsckMode::Check) {
        Ok(first) => first,
        Err(error) => return told(&error),
    };
    if flags.has(Flags::PLANNED)
        && let Err(error) = fsck(world, data, untrusted, FsckMode::Plan)
    {
        told(&error)?;
    }
    if first.level == 0 {
        return use_mended(world, data, untrusted);
    }
    let mended = match fsck(world, data, untrusted, FsckMode::Repair) {
        Ok(mended) => mended,
        Err(error) => return told(&error),
    };
    if mended.level > 1 {
        // An archive that its label puts over something else stays until there is a newer one.
        let archive = mended.text.contains("within the metadata volume");
        // A shard on a device that is no member any more is kept while its stripe cannot be read without it.
        let fewer = issues(&mended).iter().any(|id| id == "member-missing");
        let beyond = |id: &String| match id.as_str() {
            "block-shared" => archive,
            "shard-outside" => fewer,
            id => BEYOND_REPAIR.contains(&id),
        };
        let left: Vec<String> = issues(&mended).into_iter().filter(|id| !beyond(id)).collect();
        if left.is_empty() {
            return Ok(());
        }
        return Err(format!("found {:?}, and a repair leaves {left:?}:\n{}", issues(&first), mended.text));
    }
    let again = fsck(world, data, untrusted, FsckMode::Check).map_err(|error| format!("checking again: {error}"))?;
    if again.level != 0 {
        return Err(format!("found {:?}, mended, and found {:?}\n{}", issues(&first), issues(&again), again.text));
    }
    use_mended(world, data, untrusted)
}

/// What is clean can be exported, read and written, and is clean afterwards.
fn use_mended(world: &SimWorld, data: bool, untrusted: bool) -> Verdict {
    let (pool, store) = match image::open(world, false, false) {
        Ok(opened) => opened,
        // A label may say that it can only be read.
        Err(error @ Error::Unavailable(_)) => return told(&error),
        Err(error) => return Err(format!("opening what was mended: {error}")),
    };
    let header = ExportHeader { pool: pool.uuid(), name: pool.state().label.name.clone() };
    let exported = store.view(|view| export(view, &header, &mut |_| Ok(())));
    exported.map_err(|error| format!("exporting what was mended: {error}"))?;
    let fs = Fs::open(store.clone(), Options::default()).map_err(|error| format!("opening it: {error}"))?;
    let (nodes, errors) = walk(&fs);
    // Content that lies on no device any more is found by a check of the data only.
    if let Some(error) = errors.iter().find(|error| !matches!(error, Error::Corrupt(_) | Error::Io { .. })) {
        return Err(format!("reading what was mended: {error:?}"));
    }
    write(&fs, &nodes);
    background(&fs, &store)?;
    drop(fs);
    Arc::into_inner(store).map_or(Ok(()), Store::close).map_err(|error| format!("closing what was mended: {error}"))?;
    let after = fsck(world, data, untrusted, FsckMode::Check).map_err(|error| format!("checking at last: {error}"))?;
    if after.level != 0 {
        return Err(format!("used after it was mended, and found {:?}\n{}", issues(&after), after.text));
    }
    Ok(())
}
