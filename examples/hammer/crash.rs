//! A workload that outlives the daemon and then says what has to be there.
//!
//! Every operation has the moment it was begun and, if it was acknowledged, the moment it was. A moment of durability
//! is when an fsync, an O_SYNC write or `argosfs sync` that was acknowledged began: all that was acknowledged before is
//! durable, as far as that call promises it. Invariants that are verified:
//! - Names and modes in a writer's directories are those after a prefix of its operations, which has all durable ones.
//! - A writer's prefix has every operation that was acknowledged before one in another's prefix began.
//! - Each byte of a file is the durable one or one written since, and its length lies between those.
//! - A file replaced by rename is one of its versions, whole, and none older than the durable one.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::pattern::{self, Random};

const WRITERS: u64 = 4;
const FILES: usize = 6;
const FILE_MAX: u64 = 768 << 10;
const HELD: usize = 8;

/// When an operation was begun and acknowledged.
#[derive(Clone, Copy, Debug)]
struct Moment {
    begun: u64,
    acknowledged: Option<u64>,
}

impl Moment {
    fn before(&self, horizon: u64) -> bool {
        self.acknowledged.is_some_and(|at| at < horizon)
    }
}

/// A change of names.
#[derive(Clone, Debug)]
enum Change {
    Create { name: String, ino: Option<u64>, directory: bool },
    Link { from: String, to: String },
    Rename { from: String, to: String },
    Remove { name: String },
    Mode { name: String, mode: u32 },
}

/// A change of bytes: those of a version, or zeros.
#[derive(Clone, Debug)]
struct Written {
    moment: Moment,
    offset: u64,
    bytes: Vec<u8>,
    /// The length afterwards.
    len: u64,
    /// It was made durable by itself.
    sure: bool,
}

/// A file and what may be in it.
struct Data {
    path: PathBuf,
    file: File,
    synced: File,
    now: Vec<u8>,
    /// As of the last fsync, and what came after.
    durable: Vec<u8>,
    since: Vec<Written>,
}

struct Writer {
    dir: PathBuf,
    random: Random,
    names: BTreeMap<String, (u64, u32)>,
    changes: Vec<(Moment, Change)>,
    files: Vec<Data>,
    replaced: Vec<(Moment, u64, u64)>,
    held: VecDeque<(File, u64, u64)>,
    next: u64,
    operations: u64,
}

/// What all writers share.
struct Shared {
    clock: AtomicU64,
    /// From when on names are durable, and everything is.
    names: AtomicU64,
    all: AtomicU64,
    side: PathBuf,
    writeback: bool,
    failures: Mutex<Vec<String>>,
}

impl Shared {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn fail(&self, why: String) {
        self.failures.lock().expect("no writer panics").push(why);
    }
}

/// Runs, waits, verifies.
pub fn run(dir: &str, side: &str, argosfs: &str, seed: u64, writeback: bool) -> Result<String, String> {
    let shared = Shared {
        clock: AtomicU64::new(1),
        names: AtomicU64::new(0),
        all: AtomicU64::new(0),
        side: side.into(),
        writeback,
        failures: Mutex::default(),
    };
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|at| Writer::new(dir, at, seed).map_err(|e| format!("set up: {e}")))
        .collect::<Result<_, _>>()?;
    let pool = Path::new(dir).parent().ok_or("no mount point above")?.to_path_buf();
    fs::write(shared.side.join("begun"), "").map_err(|e| format!("begin: {e}"))?;
    std::thread::scope(|scope| {
        for writer in &mut writers {
            let shared = &shared;
            scope.spawn(move || {
                while let Ok(()) = writer.step(shared).map_err(|error| died(shared, &error)) {}
                // Descriptors of the dead mount have to go.
                writer.held.clear();
            });
        }
        scope.spawn(|| {
            let mut random = Random::new(seed ^ 77);
            loop {
                std::thread::sleep(Duration::from_millis(50 + random.below(500)));
                if shared.side.join("killing").exists() {
                    return;
                }
                let begun = shared.now();
                let mut command = Command::new(argosfs);
                command.arg("sync").arg(&pool).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                match command.status() {
                    Ok(status) if status.success() => {
                        shared.all.fetch_max(begun, Ordering::SeqCst);
                        shared.names.fetch_max(begun, Ordering::SeqCst);
                    }
                    _ if shared.side.join("killing").exists() => return,
                    other => shared.fail(format!("argosfs sync: {other:?}")),
                }
            }
        });
    });
    let side = &shared.side;
    fs::write(side.join("log"), log(&writers, &shared)).map_err(|e| format!("side log: {e}"))?;
    fs::write(side.join("ended"), "").map_err(|e| format!("side log: {e}"))?;
    let waiting = Instant::now();
    while !side.join("again").exists() {
        if waiting.elapsed() > Duration::from_secs(120) {
            return Err("nobody mounted it again".to_owned());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut prefixes = Vec::new();
    for (at, writer) in writers.iter().enumerate() {
        let prefix = writer.verify_names(at, &shared);
        prefixes.push(prefix);
        writer.files.iter().for_each(|data| data.verify(&shared));
        writer.verify_replaced(&shared);
    }
    order(&writers, &prefixes, &shared);
    let failures = shared.failures.into_inner().map_err(|_| "a writer panicked")?;
    if failures.is_empty() {
        let operations: u64 = writers.iter().map(|writer| writer.operations).sum();
        return Ok(format!("{operations} operations, all there"));
    }
    Err(format!("{} failures:\n  {}", failures.len(), failures[..failures.len().min(30)].join("\n  ")))
}

/// An operation failed: because the daemon was killed?
fn died(shared: &Shared, error: &io::Error) {
    if !shared.side.join("killing").exists() {
        shared.fail(format!("an operation failed while the daemon lived: {error}"));
    }
}

fn log(writers: &[Writer], shared: &Shared) -> String {
    let mut text = format!("names durable from {:?}, all from {:?}\n", shared.names, shared.all);
    for writer in writers {
        for (moment, change) in &writer.changes {
            let _ = writeln!(text, "{} {moment:?} {change:?}", writer.dir.display());
        }
        for data in &writer.files {
            let _ = writeln!(text, "{} durable length {}", data.path.display(), data.durable.len());
            for Written { moment, offset, bytes, len, sure } in &data.since {
                let (n, zeros) = (bytes.len(), bytes.iter().all(|byte| *byte == 0));
                let _ = writeln!(
                    text,
                    "{} {moment:?} {offset}+{n} zeros {zeros} length {len} sure {sure}",
                    data.path.display()
                );
            }
        }
        for replaced in &writer.replaced {
            let _ = writeln!(text, "{} replaced {replaced:?}", writer.dir.display());
        }
    }
    text
}

impl Writer {
    fn new(dir: &str, at: u64, seed: u64) -> io::Result<Writer> {
        let dir = Path::new(dir).join(format!("w{at}"));
        for part in ["a", "b", "data", "held", "target"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let mut files = Vec::new();
        for number in 0..FILES {
            let path = dir.join("data").join(format!("d{number}"));
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
            let synced = OpenOptions::new().write(true).custom_flags(libc::O_SYNC).open(&path)?;
            file.sync_all()?;
            files.push(Data { path, file, synced, now: Vec::new(), durable: Vec::new(), since: Vec::new() });
        }
        Ok(Writer {
            dir,
            random: Random::new(seed ^ at << 48),
            names: BTreeMap::new(),
            changes: Vec::new(),
            files,
            replaced: Vec::new(),
            held: VecDeque::new(),
            next: (seed & 0xffff) << 32 | at << 28,
            operations: 0,
        })
    }

    fn step(&mut self, shared: &Shared) -> io::Result<()> {
        self.operations += 1;
        match self.random.below(100) {
            0..40 => self.write(shared),
            40..43 => self.truncate(shared),
            43..50 => self.fsync(shared),
            50..60 => self.read(shared),
            60..64 => self.hold(shared),
            64..68 => self.replace(shared),
            _ => self.rename_and_such(shared),
        }
    }

    fn pick(&mut self) -> usize {
        self.random.below(FILES as u64) as usize
    }

    fn write(&mut self, shared: &Shared) -> io::Result<()> {
        self.next += 1;
        let (version, at) = (self.next, self.pick());
        let data = &mut self.files[at];
        let (offset, len) = match self.random.below(3) {
            0 if (data.now.len() as u64) < FILE_MAX => (data.now.len() as u64, self.random.size(1, 65536)),
            1 => (self.random.below(FILE_MAX), self.random.size(1, 4096)),
            _ => (self.random.below(FILE_MAX / 4096) * 4096, self.random.size(4096, 65536) / 4096 * 4096),
        };
        let bytes = pattern::bytes(version, offset, len as usize);
        let sync = self.random.below(12) == 0;
        data.apply(shared, offset, bytes, None, |data, bytes| {
            let file = if sync { &data.synced } else { &data.file };
            file.write_all_at(bytes, offset)
        })?;
        if sync {
            let written = data.since.last().map(|written| written.moment.begun);
            shared.names.fetch_max(written.unwrap_or(0), Ordering::SeqCst);
            match data.since.last_mut() {
                // The kernel has written back only the pages of this write before it asked for an fsync.
                Some(written) if shared.writeback => written.sure = true,
                _ => data.make_durable(),
            }
        }
        Ok(())
    }

    fn truncate(&mut self, shared: &Shared) -> io::Result<()> {
        let at = self.pick();
        let len = self.random.below(FILE_MAX);
        self.files[at].apply(shared, len, Vec::new(), Some(len), |data, _| data.file.set_len(len))
    }

    fn fsync(&mut self, shared: &Shared) -> io::Result<()> {
        let at = self.pick();
        let begun = shared.now();
        let data = &mut self.files[at];
        data.file.sync_all()?;
        shared.names.fetch_max(begun, Ordering::SeqCst);
        data.make_durable();
        Ok(())
    }

    fn read(&mut self, shared: &Shared) -> io::Result<()> {
        let at = self.pick();
        let data = &self.files[at];
        let offset = self.random.below(FILE_MAX) as usize;
        let mut buffer = vec![0; self.random.size(1, 65536) as usize];
        let mut got = 0;
        while got < buffer.len() {
            match data.file.read_at(&mut buffer[got..], (offset + got) as u64)? {
                0 => break,
                more => got += more,
            }
        }
        let wanted = data.now.get(offset..).unwrap_or(&[]);
        let wanted = &wanted[..wanted.len().min(buffer.len())];
        if &buffer[..got] != wanted {
            shared.fail(format!("{}: read {got} at {offset}: not what was written", data.path.display()));
        }
        Ok(())
    }

    /// Keeps some unlinked files open.
    fn hold(&mut self, shared: &Shared) -> io::Result<()> {
        self.next += 1;
        let path = self.dir.join("held").join(self.next.to_string());
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        let len = self.random.size(100, 1 << 20);
        file.write_all_at(&pattern::bytes(self.next, 0, len as usize), 0)?;
        fs::remove_file(&path)?;
        self.held.push_back((file, self.next, len));
        if self.held.len() > HELD
            && let Some((file, version, len)) = self.held.pop_front()
        {
            let mut buffer = vec![0; len as usize];
            file.read_exact_at(&mut buffer, 0)?;
            if buffer != pattern::bytes(version, 0, len as usize) {
                shared.fail(format!("{}: an unlinked file changed", self.dir.display()));
            }
        }
        Ok(())
    }

    /// Write, close, rename over.
    fn replace(&mut self, shared: &Shared) -> io::Result<()> {
        self.next += 1;
        let (version, len) = (self.next, self.random.size(100, 256 << 10));
        let (new, target) = (self.dir.join("target/new"), self.dir.join("target/it"));
        let file = File::create(&new)?;
        file.write_all_at(&pattern::bytes(version, 0, len as usize), 0)?;
        if self.random.below(4) == 0 {
            let begun = shared.now();
            file.sync_all()?;
            shared.names.fetch_max(begun, Ordering::SeqCst);
        }
        drop(file);
        self.replaced.push((Moment { begun: shared.now(), acknowledged: None }, version, len));
        fs::rename(&new, &target)?;
        if let Some((moment, ..)) = self.replaced.last_mut() {
            moment.acknowledged = Some(shared.now());
        }
        Ok(())
    }

    fn rename_and_such(&mut self, shared: &Shared) -> io::Result<()> {
        let mut name = || format!("{}/n{}", ["a", "b"][self.random.below(2) as usize], self.random.below(60));
        let (from, to) = (name(), name());
        let path = |name: &str| self.dir.join(name);
        let there = |name: &str| self.names.get(name).copied();
        let is_directory = |name: &str| there(name).is_some_and(|(_, mode)| mode & libc::S_IFMT == libc::S_IFDIR);
        let change = match (there(&from), there(&to), self.random.below(8)) {
            (None, _, 0) => Change::Create { name: from, ino: None, directory: true },
            (None, _, _) => Change::Create { name: from, ino: None, directory: false },
            (Some(_), _, 0 | 1) => Change::Remove { name: from },
            (Some(_), _, 2 | 3) => Change::Mode { name: from, mode: 0o600 | self.random.below(64) as u32 },
            (Some(_), None, 4) if !is_directory(&from) => Change::Link { from, to },
            (Some(one), Some(two), _) if one.0 == two.0 || is_directory(&from) != is_directory(&to) => return Ok(()),
            (Some(_), _, _) => Change::Rename { from, to },
        };
        self.changes.push((Moment { begun: shared.now(), acknowledged: None }, change.clone()));
        let done = match &change {
            Change::Create { name, directory: true, .. } => {
                fs::create_dir(path(name))?;
                Change::Create { name: name.clone(), ino: Some(fs::metadata(path(name))?.ino()), directory: true }
            }
            Change::Create { name, .. } => {
                let ino = File::create_new(path(name))?.metadata()?.ino();
                Change::Create { name: name.clone(), ino: Some(ino), directory: false }
            }
            Change::Link { from, to } => fs::hard_link(path(from), path(to)).map(|()| change)?,
            Change::Rename { from, to } => fs::rename(path(from), path(to)).map(|()| change)?,
            Change::Remove { name } if is_directory(name) => fs::remove_dir(path(name)).map(|()| change)?,
            Change::Remove { name } => fs::remove_file(path(name)).map(|()| change)?,
            Change::Mode { name, mode } => {
                fs::set_permissions(path(name), Permissions::from_mode(*mode)).map(|()| change)?
            }
        };
        done.apply(&mut self.names);
        if let Some(last) = self.changes.last_mut() {
            *last = (Moment { acknowledged: Some(shared.now()), ..last.0 }, done);
        }
        Ok(())
    }

    /// The shortest and longest prefixes of the changes that give what is there.
    fn verify_names(&self, at: usize, shared: &Shared) -> Option<(usize, usize)> {
        let mut found = BTreeMap::new();
        for part in ["a", "b"] {
            let Ok(entries) = fs::read_dir(self.dir.join(part)) else {
                shared.fail(format!("writer {at}: directory {part} cannot be read"));
                return None;
            };
            for entry in entries.flatten() {
                match entry.metadata() {
                    Ok(meta) => {
                        let name = format!("{part}/{}", entry.file_name().to_string_lossy());
                        found.insert(name, (meta.ino(), meta.mode()));
                    }
                    Err(error) => shared.fail(format!("{}: {error}", entry.path().display())),
                }
            }
        }
        let horizon = shared.names.load(Ordering::SeqCst);
        let durable = self.changes.iter().take_while(|(moment, _)| moment.before(horizon)).count();
        let mut names = BTreeMap::new();
        let mut fitting = Vec::new();
        for prefix in 0..=self.changes.len() {
            if prefix > 0 {
                self.changes[prefix - 1].1.apply(&mut names);
            }
            if prefix >= durable && same(&names, &found) {
                fitting.push(prefix);
            }
        }
        match (fitting.first(), fitting.last()) {
            (Some(first), Some(last)) => Some((*first, *last)),
            _ => {
                let total = self.changes.len();
                let names: Vec<_> = found.keys().collect();
                shared
                    .fail(format!("writer {at}: names are not those after {durable} to {total} operations: {names:?}"));
                None
            }
        }
    }

    fn verify_replaced(&self, shared: &Shared) {
        let path = self.dir.join("target/it");
        let found = fs::read(&path);
        let horizon = shared.names.load(Ordering::SeqCst);
        let durable = self.replaced.iter().take_while(|(moment, ..)| moment.before(horizon)).count();
        match found {
            Err(error) if error.kind() == io::ErrorKind::NotFound && durable == 0 => {}
            Err(error) => shared.fail(format!("{}: {error}", path.display())),
            Ok(found) => {
                let is = |(_, version, len): &&(Moment, u64, u64)| {
                    found.len() as u64 == *len && found == pattern::bytes(*version, 0, *len as usize)
                };
                // The first one replaces nothing: its content is on its own, all of it or none.
                let first = durable <= 1 && found.is_empty();
                if !first && !self.replaced[durable.saturating_sub(1)..].iter().any(|version| is(&version)) {
                    let known = self.replaced.iter().position(|version| is(&version));
                    let len = found.len();
                    shared.fail(format!("{}: {len} bytes, version {known:?} of {durable}..", path.display()));
                }
            }
        }
    }
}

/// Whether the names are those found. A file whose creation was not acknowledged has an unknown number and mode.
fn same(names: &BTreeMap<String, (u64, u32)>, found: &BTreeMap<String, (u64, u32)>) -> bool {
    names.len() == found.len()
        && names.iter().zip(found).all(|((name, is), (other, there))| {
            name == other && (is.0 == 0 || is.0 == there.0) && is.1 & !0o777 == there.1 & !0o777 && {
                let (mode, actual) = (is.1 & 0o777, there.1 & 0o777);
                mode == 0 || mode == actual
            }
        })
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, (u64, u32)>) {
        match self {
            // A mode of 0 stands for that of a fresh file.
            Change::Create { name, ino, directory } => {
                let kind = if *directory { libc::S_IFDIR } else { libc::S_IFREG };
                names.insert(name.clone(), (ino.unwrap_or(0), kind));
            }
            Change::Link { from, to } => {
                let it = names[from];
                names.insert(to.clone(), it);
            }
            Change::Rename { from, to } => {
                if let Some(it) = names.remove(from) {
                    names.insert(to.clone(), it);
                }
            }
            Change::Remove { name } => {
                names.remove(name);
            }
            Change::Mode { name, mode } => {
                let (ino, old) = names[name];
                for it in names.values_mut().filter(|it| it.0 == ino) {
                    it.1 = old & !0o777 | mode;
                }
            }
        }
    }
}

/// Names survive in the order of their acknowledgement across writers too.
fn order(writers: &[Writer], prefixes: &[Option<(usize, usize)>], shared: &Shared) {
    for (one, first) in writers.iter().zip(prefixes) {
        let Some((shortest, _)) = first else { continue };
        let Some(last) = shortest.checked_sub(1) else { continue };
        let begun = one.changes[last].0.begun;
        for (two, second) in writers.iter().zip(prefixes) {
            let Some((_, longest)) = second else { continue };
            let must = two.changes.iter().take_while(|(moment, _)| moment.before(begun)).count();
            if *longest < must {
                shared.fail(format!(
                    "{} has operation {last}, but {} lacks some acknowledged before it: {longest} of {must}",
                    one.dir.display(),
                    two.dir.display()
                ));
            }
        }
    }
}

impl Data {
    /// Does one change of bytes; with `cut`, the length becomes that.
    fn apply(
        &mut self,
        shared: &Shared,
        offset: u64,
        bytes: Vec<u8>,
        cut: Option<u64>,
        act: impl FnOnce(&Data, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let old = self.now.len() as u64;
        let end = offset + bytes.len() as u64;
        let len = cut.unwrap_or(old.max(end));
        // What lies between the old end and the new bytes, or was cut off, is zero.
        let zeros = if cut.is_some() { len.min(old)..len.max(old) } else { old..offset.max(old) };
        let moment = Moment { begun: shared.now(), acknowledged: None };
        let first = self.since.len();
        if zeros.end > zeros.start {
            let bytes = vec![0; (zeros.end - zeros.start) as usize];
            self.since.push(Written { moment, offset: zeros.start, bytes, len, sure: false });
        }
        self.since.push(Written { moment, offset, bytes: bytes.clone(), len, sure: false });
        act(self, &bytes)?;
        let acknowledged = Some(shared.now());
        self.since[first..].iter_mut().for_each(|written| written.moment.acknowledged = acknowledged);
        self.now.resize(len as usize, 0);
        self.now[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    /// After an fsync or a write with O_SYNC, which ends in an fsync.
    fn make_durable(&mut self) {
        self.durable.clone_from(&self.now);
        self.since.clear();
    }

    fn verify(&self, shared: &Shared) {
        let shown = self.path.display();
        let found = match fs::read(&self.path) {
            Ok(found) => found,
            Err(error) => return shared.fail(format!("{shown}: {error}")),
        };
        let horizon = shared.all.load(Ordering::SeqCst);
        let mut base = self.durable.clone();
        let durable = self.since.iter().take_while(|written| written.moment.before(horizon)).count();
        for written in &self.since[..durable] {
            base.resize(written.len as usize, 0);
            let room = base.len().saturating_sub(written.offset as usize).min(written.bytes.len());
            base[written.offset as usize..][..room].copy_from_slice(&written.bytes[..room]);
        }
        let later = &self.since[durable..];
        let (mut low, mut high) = (base.len(), base.len());
        for written in later {
            let len = written.len as usize;
            (low, high) = (low.min(len), high.max(len));
            if written.sure {
                low = low.max(written.offset as usize + written.bytes.len());
            }
        }
        if found.len() < low || found.len() > high {
            return shared.fail(format!("{shown}: {} bytes instead of {low} to {high}", found.len()));
        }
        let mut right: Vec<bool> = found.iter().enumerate().map(|(at, byte)| base.get(at) == Some(byte)).collect();
        if shared.writeback {
            // The kernel sends pages in any order: one after the old end may not have come.
            for at in base.len().min(found.len())..found.len() {
                right[at] |= found[at] == 0;
            }
        }
        for written in later {
            let start = written.offset as usize;
            for (at, byte) in written.bytes.iter().enumerate() {
                if start + at < found.len() {
                    let is = found[start + at] == *byte;
                    right[start + at] = is || !written.sure && right[start + at];
                }
            }
        }
        let wrong = right.iter().filter(|right| !**right).count();
        if let Some(first) = right.iter().position(|right| !right) {
            let zeros = (first..found.len()).filter(|at| !right[*at] && found[*at] == 0).count();
            shared.fail(format!(
                "{shown}: {wrong} wrong bytes from {first} on, {zeros} of them zero; {} bytes, durable were {}, {} writes since",
                found.len(),
                base.len(),
                later.len()
            ));
        }
    }
}
