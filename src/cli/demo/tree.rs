//! A real tree to copy: files this machine has anyway (sources and headers of a Rust installation, manuals, tables),
//! and if these are too few, generated ones.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::base::{Error, Prng, Result};

/// How many files and links are copied at least, and at most.
const ENTRIES_MIN: usize = 5_500;
const ENTRIES_MAX: usize = 8_000;
/// Most bytes copied, and most in one file.
const BYTES_MAX: u64 = 320 << 20;
const FILE_MAX: u64 = 24 << 20;

/// What is copied: where from, and where to below the target.
struct Entry {
    from: PathBuf,
    to: PathBuf,
    length: u64,
}

/// The tree to copy.
pub struct Tree {
    entries: Vec<Entry>,
}

/// Where such files usually are.
fn sources() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let mut sources = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src"), cargo.join("registry/src")];
    sources.extend(["/usr/include", "/usr/lib/python3", "/usr/share"].map(PathBuf::from));
    sources
}

impl Tree {
    /// Collects the tree; what is missing is generated under `scratch`.
    pub fn find(scratch: &Path) -> Result<Tree> {
        let mut tree = Tree { entries: Vec::new() };
        for source in sources() {
            tree.collect(&source);
        }
        if tree.entries.len() < ENTRIES_MIN {
            let made = scratch.join("source");
            generate(&made, ENTRIES_MIN - tree.entries.len())?;
            tree.collect(&made);
        }
        Ok(tree)
    }

    /// Files and links to copy.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes to copy.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.length).sum()
    }

    fn collect(&mut self, source: &Path) {
        let mut bytes = self.bytes();
        let prefix: PathBuf = source.components().skip(1).collect();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let mut names: Vec<PathBuf> = match fs::read_dir(source.join(&folder)) {
                Ok(entries) => entries.flatten().map(|entry| folder.join(entry.file_name())).collect(),
                Err(_) => continue,
            };
            names.sort();
            for name in names {
                let from = source.join(&name);
                let Ok(meta) = fs::symlink_metadata(&from) else { continue };
                if meta.is_dir() {
                    folders.push(name);
                    continue;
                }
                let wanted =
                    meta.is_symlink() || meta.is_file() && meta.len() <= FILE_MAX && fs::File::open(&from).is_ok();
                if self.entries.len() >= ENTRIES_MAX || bytes + meta.len() > BYTES_MAX {
                    return;
                }
                if wanted {
                    bytes += meta.len();
                    self.entries.push(Entry { from, to: prefix.join(&name), length: meta.len() });
                }
            }
        }
    }

    /// Copies everything to `target` and tells what was written.
    pub fn copy(&self, target: &Path) -> Result<Digests> {
        let mut digests = Digests::default();
        let mut buffer = vec![0; 1 << 20];
        for entry in &self.entries {
            let to = target.join(&entry.to);
            let failed = |operation| {
                let to = to.display().to_string();
                move |error| Error::io(to, operation, error)
            };
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(failed("create the directory of"))?;
            }
            let meta = fs::symlink_metadata(&entry.from).map_err(failed("look up the source of"))?;
            if meta.is_symlink() {
                let link = fs::read_link(&entry.from).map_err(failed("read the source of"))?;
                symlink(&link, &to).map_err(failed("link"))?;
                digests.add(&entry.to, blake3::hash(link.as_os_str().as_bytes()), 0);
                continue;
            }
            let mut from = fs::File::open(&entry.from).map_err(failed("open the source of"))?;
            let mut file = fs::File::create(&to).map_err(failed("create"))?;
            let mut hasher = blake3::Hasher::new();
            let mut length = 0;
            loop {
                let count = from.read(&mut buffer).map_err(failed("read the source of"))?;
                if count == 0 {
                    break;
                }
                hasher.update(&buffer[..count]);
                length += count as u64;
                file.write_all(&buffer[..count]).map_err(failed("write"))?;
            }
            let mode = fs::Permissions::from_mode(meta.permissions().mode() & 0o777);
            file.set_permissions(mode).map_err(failed("set the mode of"))?;
            digests.add(&entry.to, hasher.finalize(), length);
        }
        Ok(digests)
    }
}

/// The content of a tree: a digest for each file and link, by its path.
#[derive(Default)]
pub struct Digests {
    entries: BTreeMap<PathBuf, blake3::Hash>,
    bytes: u64,
}

impl Digests {
    fn add(&mut self, path: &Path, digest: blake3::Hash, bytes: u64) {
        self.entries.insert(path.to_path_buf(), digest);
        self.bytes += bytes;
    }

    /// Files and links.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes in the files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// One digest for all, shortened.
    pub fn summary(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (path, digest) in &self.entries {
            hasher.update(path.as_os_str().as_bytes());
            hasher.update(&[0]);
            hasher.update(digest.as_bytes());
        }
        hasher.finalize().to_hex()[..16].to_owned()
    }

    /// Fails unless both are the same.
    pub fn compare(&self, other: &Digests) -> Result<()> {
        let different: Vec<&PathBuf> = self
            .entries
            .iter()
            .filter(|(path, digest)| other.entries.get(*path) != Some(*digest))
            .map(|(path, _)| path)
            .collect();
        let extra = other.entries.keys().find(|path| !self.entries.contains_key(*path));
        match (different.first(), extra) {
            (Some(first), _) => Err(Error::Corrupt(format!(
                "{} of {} files differ from what was written, {} first",
                different.len(),
                self.len(),
                first.display()
            ))),
            (None, Some(extra)) => Err(Error::Corrupt(format!("{} was never written", extra.display()))),
            (None, None) => Ok(()),
        }
    }
}

/// Reads everything below `target`.
pub fn read(target: &Path) -> Result<Digests> {
    let mut digests = Digests::default();
    let mut buffer = vec![0; 1 << 20];
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let shown = target.join(&folder).display().to_string();
        let failed = |error| Error::io(&*shown, "read", error);
        for entry in fs::read_dir(target.join(&folder)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = folder.join(entry.file_name());
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_symlink() {
                let link = fs::read_link(entry.path()).map_err(failed)?;
                digests.add(&path, blake3::hash(link.as_os_str().as_bytes()), 0);
            } else {
                let failed = |error| Error::io(entry.path().display().to_string(), "read", error);
                let mut file = fs::File::open(entry.path()).map_err(failed)?;
                let mut hasher = blake3::Hasher::new();
                let mut length = 0;
                loop {
                    let count = file.read(&mut buffer).map_err(failed)?;
                    if count == 0 {
                        break;
                    }
                    hasher.update(&buffer[..count]);
                    length += count as u64;
                }
                digests.add(&path, hasher.finalize(), length);
            }
        }
    }
    Ok(digests)
}

/// Makes a tree of so many files, of sizes as they occur in source trees: most small, a few large.
fn generate(target: &Path, files: usize) -> Result<()> {
    let mut random = Prng::new(files as u64);
    let failed = |error| Error::io(target.display().to_string(), "generate", error);
    for number in 0..files {
        let folder = target.join(format!("part{}/module{}", number / 400, number / 25));
        if number % 25 == 0 {
            fs::create_dir_all(&folder).map_err(failed)?;
        }
        let length = match random.below(100) {
            0 => 200_000 + random.below(2_000_000),
            1..=19 => 10_000 + random.below(60_000),
            _ => random.below(9_000),
        };
        let mut text = String::with_capacity(length as usize + 16);
        while (text.len() as u64) < length {
            text.push_str(&format!("line {} of file {number}\n", random.below(1_000_000)));
        }
        fs::write(folder.join(format!("file{number}.txt")), text).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_read_back_the_same_and_a_changed_one_is_not() {
        let scratch = std::env::temp_dir().join(format!("argosfs-demo-tree-{}", std::process::id()));
        let _ = fs::remove_dir_all(&scratch);
        generate(&scratch.join("source"), 60).expect("generates");
        let mut tree = Tree { entries: Vec::new() };
        tree.collect(&scratch.join("source"));
        assert_eq!(tree.len(), 60);
        let target = scratch.join("target");
        let written = tree.copy(&target).expect("copies");
        assert_eq!(written.bytes(), tree.bytes());
        let read_again = read(&target).expect("reads");
        written.compare(&read_again).expect("the same");
        assert_eq!(written.summary(), read_again.summary());
        let victim = target.join(&tree.entries[7].to);
        let mut bytes = fs::read(&victim).expect("reads");
        bytes.push(b'!');
        fs::write(&victim, bytes).expect("writes");
        assert!(written.compare(&read(&target).expect("reads")).is_err());
        fs::remove_file(&victim).expect("removes");
        assert!(written.compare(&read(&target).expect("reads")).is_err());
        fs::remove_dir_all(&scratch).expect("removes");
    }
}
