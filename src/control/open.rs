//! Opening a pool that is not mounted, and taking devices in.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::locate::Located;
use crate::base::{Clock, Entropy, Error, Result, SystemClock, SystemEntropy};
use crate::device::engine::{self, EngineChoice};
use crate::device::inject::{Board, Injected};
use crate::device::{Device, file};
use crate::pool::{OpenMode, Pool};
use crate::store::Store;

/// How to open a pool.
#[derive(Clone)]
pub struct OpenOptions {
    /// Nothing is written.
    pub read_only: bool,
    pub engine: EngineChoice,
    pub clock: Arc<dyn Clock>,
    /// What devices suffer, in pools that were made for it.
    pub faults: Arc<Board>,
}

impl OpenOptions {
    /// By the clock of the system.
    pub fn new(read_only: bool, engine: EngineChoice) -> OpenOptions {
        let faults = Arc::new(Board::new(SystemEntropy.next_u64()));
        OpenOptions { read_only, engine, clock: Arc::new(SystemClock), faults }
    }
}

/// An open pool, and what the user should know about how it was opened.
pub struct Opened {
    pub pool: Arc<Pool>,
    pub store: Arc<Store>,
    pub notes: Vec<String>,
}

/// Opens the located devices as their pool, with its metadata.
pub fn open(located: &Located, options: &OpenOptions) -> Result<Opened> {
    let (pool, mut notes) = open_pool(located, options)?;
    let store = Store::open(Arc::clone(&pool), Arc::clone(&options.clock), SystemEntropy.next_u64())?;
    if store.volume_stats().is_some_and(|stats| stats.log_unread) {
        notes.push("a block of the metadata log cannot be read: what was written last may be missing".to_owned());
    }
    Ok(Opened { pool, store: Arc::new(store), notes })
}

/// Opens the located devices as their pool, and says what the user should know. A device that cannot be opened counts as
/// missing, unless somebody else has it; not another path to one that was opened.
pub fn open_pool(located: &Located, options: &OpenOptions) -> Result<(Arc<Pool>, Vec<String>)> {
    open_members(located, options, false)
}

/// The same for a pool whose metadata is to be made again: none has to be there.
pub fn open_without_metadata(located: &Located, options: &OpenOptions) -> Result<(Arc<Pool>, Vec<String>)> {
    open_members(located, options, true)
}

fn open_members(located: &Located, options: &OpenOptions, without_metadata: bool) -> Result<(Arc<Pool>, Vec<String>)> {
    let (engine, mut notes) = engine::select(options.engine);
    if located.debug_faults {
        options.faults.enable();
    }
    let mut devices = Vec::new();
    let (mut opened, mut busy) = (Vec::new(), Vec::new());
    for (path, member) in located.paths.iter().zip(&located.members) {
        match open_device(path, options) {
            Ok(device) => {
                devices.push(device);
                opened.push(member);
            }
            Err(error @ Error::Busy(_)) => busy.push((member, error)),
            Err(error) => notes.push(format!("{} is left out: {error}", path.display())),
        }
    }
    // What is in use on the way to a member that was opened on another one is that member.
    if let Some((_, error)) = busy.into_iter().find(|(member, _)| !opened.contains(member)) {
        return Err(error);
    }
    let mode = OpenMode { read_only: options.read_only, pool: Some(located.uuid), without_metadata };
    let pool = Pool::open(&devices, &mode, engine, Box::new(SystemEntropy))?;
    let pool = Arc::new(pool);
    notes.extend(pool.take_notes());
    for device in &devices {
        notes.extend(device.notes());
    }
    Ok((pool, notes))
}

/// Opens one device as a member.
pub fn open_device(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Device>> {
    let device = file::open(
        path,
        &file::OpenOptions {
            read_only: options.read_only,
            engine: options.engine,
            clock: Arc::clone(&options.clock),
            ..file::OpenOptions::default()
        },
    )?;
    if !options.faults.is_enabled() {
        return Ok(device);
    }
    Ok(Arc::new(Injected::new(device, Arc::clone(&options.faults), Arc::clone(&options.clock))))
}

/// How long a device that was left out may take to answer what was asked of it before, until it can be opened again.
const RELEASE: Duration = Duration::from_secs(10);

/// Opens a device that may have been a member a moment ago: requests that are under way keep it in use until they end.
pub fn when_released<T>(mut open: impl FnMut() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match open() {
            Err(Error::Busy(_)) if began.elapsed() < RELEASE => std::thread::sleep(Duration::from_millis(20)),
            Err(Error::Busy(why)) => {
                return Err(Error::Busy(format!(
                    "{why}; if the pool itself had it, wait until it has answered everything, and try again"
                )));
            }
            opened => return opened,
        }
    }
}

/// An absolute path for a device that may have to be found again from elsewhere.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path)
        .or_else(|_| std::path::absolute(path))
        .map_err(|error| Error::io(path.display().to_string(), "look up", error))
}
