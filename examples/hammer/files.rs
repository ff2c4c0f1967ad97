//! Whole files with known content, listed in a manifest outside the pool.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::pattern::{self, Random};

const WRITERS: u64 = 4;
const CHUNK: usize = 1 << 20;

/// One file that has to be there.
struct Entry {
    path: PathBuf,
    len: u64,
    seed: u64,
}

fn said<T>(what: &str, path: &Path, result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{what} {}: {error}", path.display()))
}

fn save(manifest: &str, entries: &[Entry]) -> Result<(), String> {
    let lines = entries.iter().map(|entry| format!("{} {} {}\n", entry.len, entry.seed, entry.path.display()));
    said("write", Path::new(manifest), fs::write(manifest, lines.collect::<String>()))
}

/// Compares one file with what it has to be.
fn verify(entry: &Entry) -> Result<(), String> {
    let path = &entry.path;
    let file = said("open", path, File::open(path))?;
    let len = said("stat", path, file.metadata())?.len();
    if len != entry.len {
        return Err(format!("{} has {len} bytes instead of {}", path.display(), entry.len));
    }
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < len {
        let part = (len - at).min(CHUNK as u64) as usize;
        said("read", path, file.read_exact_at(&mut buffer[..part], at))?;
        let wanted = pattern::bytes(entry.seed, at, part);
        if let Some(wrong) = (0..part).find(|&i| buffer[i] != wanted[i]) {
            return Err(format!("{} has a wrong byte at {}", path.display(), at + wrong as u64));
        }
        at += part as u64;
    }
    Ok(())
}

/// Reads everything in the manifest back.
pub fn check(manifest: &str) -> Result<String, String> {
    let text = said("read", Path::new(manifest), fs::read_to_string(manifest))?;
    let (mut files, mut bytes, mut wrong) = (0, 0, Vec::new());
    for line in text.lines() {
        let mut words = line.splitn(3, ' ');
        let (Some(len), Some(seed), Some(path)) = (words.next(), words.next(), words.next()) else {
            return Err(format!("{manifest} is no manifest"));
        };
        let entry = Entry { path: path.into(), len: crate::number(len), seed: crate::number(seed) };
        match verify(&entry) {
            Ok(()) => {
                files += 1;
                bytes += entry.len;
            }
            Err(why) => wrong.push(why),
        }
    }
    match wrong.first() {
        None => Ok(format!("{files} files, {} MiB: all right", bytes >> 20)),
        Some(_) => Err(format!("{} files are wrong:\n  {}", wrong.len(), wrong.join("\n  "))),
    }
}

/// What the writers have in common.
struct Filling {
    dir: PathBuf,
    seed: u64,
    left: AtomicU64,
    refused_at_create: AtomicU64,
    done: Mutex<Vec<Entry>>,
}

/// Fills the pool. Only write(2) and creating a file may say that it is full.
pub fn fill(dir: &str, manifest: &str, mix: &str, seed: u64, bytes: u64) -> Result<String, String> {
    let filling = Filling {
        dir: dir.into(),
        seed,
        left: AtomicU64::new(bytes),
        refused_at_create: AtomicU64::new(0),
        done: Mutex::default(),
    };
    let large = |writer: u64| match mix {
        "large" => Ok(true),
        "small" => Ok(false),
        "mixed" => Ok(writer < WRITERS / 2),
        _ => Err(format!("there is no mix {mix}: large, small, mixed")),
    };
    let result = std::thread::scope(|scope| {
        let start = |writer| {
            let (large, filling) = (large(writer)?, &filling);
            Ok(scope.spawn(move || if large { filling.large(writer) } else { filling.small(writer) }))
        };
        let threads: Vec<_> = (0..WRITERS).map(start).collect::<Result<_, String>>()?;
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a writer panicked".to_owned())?)
    });
    let done = filling.done.into_inner().map_err(|_| "a writer panicked")?;
    save(manifest, &done)?;
    result?;
    let bytes: u64 = done.iter().map(|entry| entry.len).sum();
    let refused = filling.refused_at_create.into_inner();
    Ok(format!("{bytes} bytes in {} files acknowledged, {refused} creations refused", done.len()))
}

impl Filling {
    /// Appends up to `limit` bytes, smaller and smaller when there is no more room. Says how much was written and
    /// whether all was.
    fn append(&self, file: &File, path: &Path, seed: u64, limit: u64) -> Result<(u64, bool), String> {
        let (mut len, mut step) = (0, CHUNK as u64);
        while len < limit {
            let part = step.min(limit - len);
            let claim =
                self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(part)));
            if claim == Ok(0) {
                return Ok((len, false));
            }
            match file.write_at(&pattern::bytes(seed, len, part as usize), len) {
                Ok(0) => return Err(format!("write {}: nothing was written", path.display())),
                Ok(written) => len += written as u64,
                Err(error) if error.kind() == ErrorKind::StorageFull && part > 1 => step = part / 2,
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok((len, false)),
                Err(error) => return Err(format!("write {}: {error}", path.display())),
            }
        }
        Ok((len, true))
    }

    fn file(&self, path: PathBuf, seed: u64, limit: u64, sync: bool) -> Result<bool, String> {
        let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::StorageFull => {
                self.refused_at_create.fetch_add(1, Ordering::Relaxed);
                return Ok(false);
            }
            Err(error) => return Err(format!("create {}: {error}", path.display())),
        };
        let (len, whole) = self.append(&file, &path, seed, limit)?;
        if sync || !whole {
            said("fsync", &path, file.sync_all())?;
        }
        said("close", &path, close(file))?;
        self.done.lock().map_err(|_| "a writer panicked")?.push(Entry { path, len, seed });
        Ok(whole)
    }

    fn large(&self, writer: u64) -> Result<(), String> {
        self.file(self.dir.join(format!("large{writer}")), self.seed * 1000 + writer, u64::MAX, true).map(drop)
    }

    fn small(&self, writer: u64) -> Result<(), String> {
        let mut random = Random::new(self.seed ^ writer << 32);
        for at in 0.. {
            let dir = self.dir.join(format!("small{writer}.{}", at / 1000));
            if at % 1000 == 0 {
                match fs::create_dir(&dir) {
                    Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                    made => said("mkdir", &dir, made)?,
                }
            }
            let (seed, limit) = (random.next(), random.size(64, 64 << 10));
            if !self.file(dir.join(format!("f{at}")), seed, limit, at % 50 == 0)? {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Closes a file and tells what close(2) said.
fn close(file: File) -> std::io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor is ours alone, and is not used afterwards.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Writes, syncs and reads back for some time.
pub fn pump(dir: &str, manifest: &str, seconds: u64, seed: u64) -> Result<String, String> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let work = |writer: u64| -> Result<Vec<Entry>, String> {
        let mut random = Random::new(seed ^ writer << 40);
        let mut kept: Vec<Entry> = Vec::new();
        let mut at = 0;
        while Instant::now() < end {
            at += 1;
            let (own, len) = (random.next(), random.size(100, 2 << 20));
            let path = PathBuf::from(dir).join(format!("pump{writer}.{at}"));
            let mut file = said("create", &path, File::create_new(&path))?;
            said("write", &path, file.write_all(&pattern::bytes(own, 0, len as usize)))?;
            if random.below(3) == 0 {
                said("fsync", &path, file.sync_all())?;
            }
            said("close", &path, close(file))?;
            kept.push(Entry { path, len, seed: own });
            let again = random.below(kept.len() as u64) as usize;
            verify(&kept[again])?;
            if kept.len() > 60 {
                let old = kept.swap_remove(random.below(kept.len() as u64) as usize);
                said("unlink", &old.path, fs::remove_file(&old.path))?;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for entry in &kept {
            let file = said("open", &entry.path, File::open(&entry.path))?;
            said("fsync", &entry.path, file.sync_all())?;
        }
        Ok(kept)
    };
    let kept = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|writer| scope.spawn(move || work(writer))).collect();
        let mut kept = Vec::new();
        for thread in threads {
            kept.extend(thread.join().map_err(|_| "a writer panicked".to_owned())??);
        }
        Ok::<_, String>(kept)
    })?;
    save(manifest, &kept)?;
    Ok(format!("{} files kept", kept.len()))
}
