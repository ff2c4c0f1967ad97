//! Finding the members of a pool: from the path of one, from the pool's name or id, in the places where members may be.
//!
//! Labels are only peeked at here: without locks, without repairing anything, so that it works beside a mounted pool.
//! Opening the devices decides.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::base::{Error, Result, Uuid};
use crate::device::file::DIRECTORY_FILE;
use crate::format::label::{DEBUG_FAULTS, LABEL_MAGIC, LABEL_SLOT, Label, LabelFault, MemberState, label_offsets};

/// What a user calls a pool by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Spec {
    /// The path of a member.
    Path(PathBuf),
    /// `argosfs:UUID`, or the bare id.
    Uuid(Uuid),
    Name(String),
}

/// Entries of one directory that are looked at.
const ENTRIES_MAX: usize = 4096;

impl Spec {
    /// What `text` means: an existing path or anything with a slash is a path, then ids, then names.
    pub fn parse(text: &Path) -> Spec {
        let plain = text.to_str();
        if let Some(uuid) = plain.and_then(|plain| plain.strip_prefix("argosfs:")).and_then(Uuid::parse) {
            return Spec::Uuid(uuid);
        }
        match plain {
            Some(plain) if !plain.contains('/') && fs::symlink_metadata(text).is_err() => {
                Uuid::parse(plain).map_or_else(|| Spec::Name(plain.to_owned()), Spec::Uuid)
            }
            _ => Spec::Path(text.to_path_buf()),
        }
    }
}

/// A device that carries a label.
#[derive(Clone, Debug)]
pub struct Labelled {
    pub path: PathBuf,
    pub label: Label,
}

/// The devices of one pool that can be seen.
#[derive(Clone, Debug)]
pub struct Located {
    pub uuid: Uuid,
    pub name: String,
    /// Paths of the devices that carry its label, sorted.
    pub paths: Vec<PathBuf>,
    /// The member that each of them shows.
    pub members: Vec<Uuid>,
    /// Members that the newest label expects and that were not seen, by what it knows of them.
    pub absent: Vec<String>,
    /// Where the newest label last saw its members.
    pub hints: Vec<String>,
    /// Made with faults on demand.
    pub debug_faults: bool,
}

/// Finds the members of the pool meant by `spec`. `search` lists directories to look into besides the usual places.
pub fn locate(spec: &Spec, search: &[PathBuf]) -> Result<Located> {
    let mut seen = Seen::default();
    for directory in search {
        if !directory.is_dir() {
            return Err(Error::Usage(format!("{} is no directory to search in", directory.display())));
        }
        seen.directory(directory);
    }
    match spec {
        Spec::Path(path) => {
            if let Err(error) = fs::metadata(path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                return Err(Error::io(path.display().to_string(), "look up", error));
            }
            seen.path(path);
            let own = absolute(path);
            match seen.found.iter().find(|found| found.path == own) {
                Some(found) => {
                    let uuid = found.label.pool.uuid;
                    seen.beside(&own);
                    seen.follow_hints(uuid);
                    Ok(seen.gather(uuid))
                }
                // Its label may be what is broken: does a pool nearby remember it?
                None => {
                    seen.beside(&own);
                    let Some(uuid) = seen.remembering(&own) else {
                        let refused = no_label(path, &seen);
                        // Something here may have the name of a pool that is elsewhere.
                        return match path.to_str() {
                            Some(name) if !name.contains('/') => seen.named(name, search).map_err(|_| refused),
                            _ => Err(refused),
                        };
                    };
                    seen.follow_hints(uuid);
                    Ok(seen.gather(uuid))
                }
            }
        }
        Spec::Uuid(uuid) => {
            seen.block_devices();
            seen.follow_hints(*uuid);
            match seen.found.iter().any(|found| found.label.pool.uuid == *uuid) {
                true => Ok(seen.gather(*uuid)),
                false => Err(nothing_found(&format!("argosfs:{uuid}"), search)),
            }
        }
        Spec::Name(name) => seen.named(name, search),
    }
}

fn nothing_found(what: &str, search: &[PathBuf]) -> Error {
    let places: Vec<String> = search.iter().map(|path| path.display().to_string()).collect();
    let places = if places.is_empty() { String::new() } else { format!(" and in {}", places.join(", ")) };
    Error::Unavailable(format!(
        "no device of pool {what} was found among the block devices{places}: name a directory with --search DIR, or give \
         the path of a member"
    ))
}

fn no_label(path: &Path, seen: &Seen) -> Error {
    let shown = path.display();
    if fs::symlink_metadata(path).is_err() {
        return Error::Usage(format!("{shown} does not exist, and no pool beside it remembers it"));
    }
    match seen.faults.iter().find(|(faulty, _)| *faulty == absolute(path)) {
        Some((_, why)) => Error::Unavailable(format!("{shown} {why}")),
        None => {
            Error::Unavailable(format!("{shown} has no ArgosFS label: it is no member of a pool, or its label is gone"))
        }
    }
}

fn absolute(path: &Path) -> PathBuf {
    fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_path_buf())
}

/// What has been looked at.
#[derive(Default)]
struct Seen {
    found: Vec<Labelled>,
    /// Why a path with something like a label cannot be used.
    faults: Vec<(PathBuf, String)>,
    /// Devices looked at, by what they are.
    known: BTreeSet<(bool, u64, u64)>,
}

impl Seen {
    /// Looks at one path that may be a member.
    fn path(&mut self, path: &Path) {
        let path = absolute(path);
        let file = if path.is_dir() { path.join(DIRECTORY_FILE) } else { path.clone() };
        let Ok(meta) = fs::metadata(&file) else { return };
        let block = meta.file_type().is_block_device();
        let identity = if block { (true, meta.rdev(), 0) } else { (false, meta.dev(), meta.ino()) };
        if !(block || meta.is_file()) || !self.known.insert(identity) {
            return;
        }
        match peek(&file) {
            Some(Ok(label)) => self.found.push(Labelled { path, label }),
            Some(Err(why)) => self.faults.push((path, why)),
            None => {}
        }
    }

    /// Looks at everything in a directory, and at the directory itself.
    fn directory(&mut self, directory: &Path) {
        self.path(directory);
        let Ok(entries) = fs::read_dir(directory) else { return };
        let mut paths: Vec<PathBuf> = entries.take(ENTRIES_MAX).filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            self.path(&path);
        }
    }

    /// Looks where other members of the pool of this one are likely to be.
    fn beside(&mut self, member: &Path) {
        let Some(parent) = member.parent() else { return };
        if parent.starts_with("/dev") && !parent.starts_with("/dev/shm") {
            self.block_devices();
        } else {
            self.directory(parent);
        }
    }

    fn block_devices(&mut self) {
        let Ok(entries) = fs::read_dir("/sys/class/block") else { return };
        let mut names: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        names.sort();
        for name in names {
            // The kernel writes slashes in names as exclamation marks.
            let name = name.to_string_lossy().replace('!', "/");
            self.path(&Path::new("/dev").join(name));
        }
    }

    /// Looks at every place where a label of the pool remembers a member.
    fn follow_hints(&mut self, uuid: Uuid) {
        let hints: BTreeSet<String> = self
            .found
            .iter()
            .filter(|found| found.label.pool.uuid == uuid)
            .flat_map(|found| found.label.pool.members.iter().map(|member| member.path.clone()))
            .collect();
        for hint in hints.iter().filter(|hint| !hint.is_empty()) {
            self.path(Path::new(hint));
        }
    }

    /// The pool that remembers a member at this path.
    fn remembering(&self, path: &Path) -> Option<Uuid> {
        let shown = path.to_str()?;
        let remembers = |found: &&Labelled| found.label.pool.members.iter().any(|member| member.path == shown);
        self.found
            .iter()
            .filter(remembers)
            .max_by_key(|found| found.label.pool.sequence)
            .map(|found| found.label.pool.uuid)
    }

    /// The pool of this name.
    fn named(&mut self, name: &str, search: &[PathBuf]) -> Result<Located> {
        self.block_devices();
        let of_name = self.found.iter().map(|found| &found.label.pool).filter(|pool| pool.name == name);
        let mut uuids = of_name.map(|pool| pool.uuid).collect::<BTreeSet<Uuid>>().into_iter();
        match (uuids.next(), uuids.next()) {
            (Some(uuid), None) => {
                self.follow_hints(uuid);
                Ok(self.gather(uuid))
            }
            (Some(one), Some(other)) => Err(Error::Usage(format!(
                "several pools are called {name}: say argosfs:{one} or argosfs:{other}, or the path of a member"
            ))),
            (None, _) => Err(nothing_found(name, search)),
        }
    }

    fn gather(&self, uuid: Uuid) -> Located {
        let mut of_pool: Vec<&Labelled> = self.found.iter().filter(|found| found.label.pool.uuid == uuid).collect();
        of_pool.sort_by_key(|found| &found.path);
        let newest = of_pool.iter().max_by_key(|found| found.label.pool.sequence);
        let paths = of_pool.iter().map(|found| found.path.clone()).collect();
        let members = of_pool.iter().map(|found| found.label.device.uuid).collect();
        let (name, absent, hints) = (String::new(), Vec::new(), Vec::new());
        let mut located = Located { uuid, name, paths, members, absent, hints, debug_faults: false };
        let Some(newest) = newest else { return located };
        located.debug_faults = newest.label.pool.features.compat & DEBUG_FAULTS != 0;
        located.name = newest.label.pool.name.clone();
        for member in &newest.label.pool.members {
            if member.state == MemberState::Removed {
                continue;
            }
            located.hints.push(member.path.clone());
            let expected = !matches!(member.state, MemberState::Missing | MemberState::Failed);
            if expected && !of_pool.iter().any(|found| found.label.device.uuid == member.uuid) {
                let path = if member.path.is_empty() { "an unknown place" } else { &member.path };
                located.absent.push(format!("device {} ({path})", member.id));
            }
        }
        located
    }
}

/// The newest whole label of a device; an error says why one that is there cannot be used; `None`: nothing like a label.
/// A label that lies where it does not belong is not the device's: a disk shows those of the partitions on it.
fn peek(path: &Path) -> Option<Result<Label, String>> {
    let mut file = File::open(path).ok()?;
    let size = size(&mut file).ok()?;
    let mut best: Option<Label> = None;
    let mut fault = None;
    let mut slot = vec![0; LABEL_SLOT];
    // A device that grew has its last copies where its old end was; the first two are enough to see it.
    for offset in label_offsets(size)? {
        if file.read_exact_at(&mut slot[..LABEL_MAGIC.len()], offset).is_err()
            || slot[..LABEL_MAGIC.len()] != LABEL_MAGIC
            || file.read_exact_at(&mut slot, offset).is_err()
        {
            continue;
        }
        match Label::decode(&slot) {
            Ok(label) => {
                let own = label_offsets(label.device.size).is_some_and(|offsets| offsets.contains(&offset));
                if own && best.as_ref().is_none_or(|best| best.pool.sequence < label.pool.sequence) {
                    best = Some(label);
                }
            }
            Err(LabelFault::Newer { version, pool, .. }) => {
                fault = Some(format!(
                    "belongs to pool {pool}, whose format (version {version}) is newer than this program: use a newer argosfs"
                ));
            }
            Err(LabelFault::Damaged(why)) => {
                fault.get_or_insert(format!("has a damaged label: {why}"));
            }
            Err(LabelFault::Absent) => {}
        }
    }
    best.map(Ok).or(fault.map(Err))
}

fn size(file: &mut File) -> std::io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    let size = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    // Some special files claim a size and give nothing.
    file.read_exact(&mut [0; 1])?;
    Ok(size)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::{Bytes, Prng};
    use crate::control::open::{OpenOptions, open_pool};
    use crate::device::engine::EngineChoice;
    use crate::device::{InlineEngine, file};
    use crate::pool::{FormatOptions, Pool};

    #[test]
    fn specs_are_told_apart() {
        let uuid = Uuid([0xab; 16]);
        assert_eq!(Spec::parse(Path::new(&format!("argosfs:{uuid}"))), Spec::Uuid(uuid));
        assert_eq!(Spec::parse(Path::new(&uuid.to_string())), Spec::Uuid(uuid));
        assert_eq!(Spec::parse(Path::new("no-such-pool-or-file")), Spec::Name("no-such-pool-or-file".to_owned()));
        assert_eq!(Spec::parse(Path::new("./x.img")), Spec::Path(PathBuf::from("./x.img")));
        assert_eq!(Spec::parse(Path::new("Cargo.toml")), Spec::Path(PathBuf::from("Cargo.toml")));
    }

    #[test]
    fn what_is_no_member_is_refused_with_advice() {
        let refusal = |path: &str| match locate(&Spec::parse(Path::new(path)), &[]) {
            Err(error) => error.to_string(),
            Ok(located) => panic!("{path} was taken for pool {}", located.name),
        };
        assert!(refusal("/no/such/file").contains("does not exist"));
        assert!(refusal(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).contains("no ArgosFS label"));
        assert!(refusal("a-pool-that-nobody-made").contains("--search DIR"));
        assert!(locate(&Spec::Name("x".to_owned()), &[PathBuf::from("/no/such/dir")]).is_err());
    }

    /// A directory with a pool of two images in it; removed with everything in it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("argosfs-locate-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            let scratch = Scratch(fs::canonicalize(path).unwrap());
            let create = file::OpenOptions { create_size: Some(Bytes(8 << 20)), ..file::OpenOptions::default() };
            let devices: Vec<_> =
                ["a.img", "b.img"].iter().map(|name| file::open(&scratch.0.join(name), &create).unwrap()).collect();
            let options = FormatOptions::small(1, 1);
            Pool::format(&devices, &options, Arc::new(InlineEngine), Box::new(Prng::new(1))).unwrap();
            scratch
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_disk_is_no_member_because_a_partition_at_its_end_is_one() {
        let scratch = Scratch::new("disk");
        let member = scratch.0.join("b.img");
        let disk = [vec![0; 1 << 20], fs::read(&member).unwrap()].concat();
        fs::write(scratch.0.join("a-disk.img"), disk).unwrap();
        let located = locate(&Spec::Path(member.clone()), &[]).unwrap();
        assert_eq!(located.paths, [scratch.0.join("a.img"), member]);
        assert!(located.absent.is_empty());
        assert!(locate(&Spec::Path(scratch.0.join("a-disk.img")), &[]).is_err());
        // One that grew is still itself.
        fs::OpenOptions::new().write(true).open(&located.paths[0]).unwrap().set_len(9 << 20).unwrap();
        assert_eq!(locate(&Spec::Path(located.paths[1].clone()), &[]).unwrap().paths, located.paths);
    }

    #[test]
    fn a_second_path_to_a_member_keeps_no_pool_from_being_opened() {
        let scratch = Scratch::new("paths");
        let mut located = locate(&Spec::Path(scratch.0.join("a.img")), &[]).unwrap();
        let options = OpenOptions::new(false, EngineChoice::Buffered);
        for (name, at) in [("0.img", 0), ("z.img", 2)] {
            fs::hard_link(scratch.0.join("a.img"), scratch.0.join(name)).unwrap();
            located.paths.insert(at, scratch.0.join(name));
            let member = located.members[0];
            located.members.insert(at, member);
        }
        let (pool, _) = open_pool(&located, &options).unwrap();
        assert_eq!(pool.state().can_lose(), 1);
        // Somebody else has it.
        assert!(matches!(open_pool(&located, &options), Err(Error::Busy(_))));
    }
}
